"""Attacked problems: Gaussian data, a smooth piece, finite data full of kinks, classification, perturbed weights.

Where a law is not exact, batches are large and learning rates small enough that what it leaves out, of the order of
learning rate over batch size, is hidden by the standard errors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ... import numerics, theory
from ...numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    GaussianAdversarialRegression,
    MinibatchNoise,
    Quadratic,
    RobustUnhinged,
    StationaryCovariance,
)
from ...theory import Optimizer, sam
from ..linearized import LinearizedNetwork
from ..networks import digits, mlp

__all__ = ["AdversarialProblem", "Law", "Perturbed", "load_adversarial_problems"]

Array: TypeAlias = NDArray[np.float64]

#: Of the attack in cell and perturbed.
CELL_RADIUS = 0.02


@dataclass(frozen=True, eq=False)
class Perturbed:
    """A quadratic loss whose gradients are taken at weights moved uphill by the length rho (normalised AWP)."""

    quadratic: Quadratic
    rho: float


@dataclass(frozen=True, eq=False)
class Law:
    """A predicted covariance and, where it is exact enough to be tested, mean of all slots."""

    stationary: StationaryCovariance | Array
    mean: Array | None

    @property
    def value(self) -> Array:
        """The covariance of the weights."""
        return np.asarray(self.stationary)

    def joint(self, slots: tuple[str, ...]) -> Array:
        """The covariance of these slots, stacked; an array is that of the weights, the only slot there."""
        return self.stationary if isinstance(self.stationary, np.ndarray) else self.stationary.joint(slots)


@dataclass(frozen=True, eq=False)
class AdversarialProblem:
    """An attacked problem and the law that its iterates should follow.

    Attributes
    ----------
    name, description : str
    make : callable
        Maps a radius to the problem.
    radius : float
        Of the attack on inputs; for normalised, on weights.
    batch_size : int
    law_of : callable
        Maps an optimizer, the problem and the batch size to numerics' law.
    """

    name: str
    description: str
    make: Callable[[float], Any]
    radius: float
    batch_size: int
    law_of: Callable[[Optimizer, Any, int], Law]

    @functools.cached_property
    def problem(self) -> Any:
        """What is run: an attacked problem, a linearised network or a perturbed quadratic."""
        return self.make(self.radius)

    @functools.cached_property
    def ordinary(self) -> Any:
        """The same without an attack."""
        return self.make(0.0)

    def law(self, optimizer: Optimizer) -> Law:
        """Numerics' prediction."""
        return self.law_of(optimizer, self.problem, self.batch_size)

    def law_without_attack(self, optimizer: Optimizer) -> Law:
        """What it would be at radius 0."""
        return self.law_of(optimizer, self.ordinary, self.batch_size)


@functools.cache
def load_adversarial_problems() -> dict[str, AdversarialProblem]:
    """Return the problems by name.

    Examples
    --------
    >>> list(load_adversarial_problems())[:4]
    ['gaussian-l2', 'gaussian-linf', 'cell', 'sample']
    >>> load_adversarial_problems()["network"].problem.parameters
    1057
    """
    found = (
        AdversarialProblem(
            "gaussian-l2", "fresh Gaussian examples, squared loss, batches of 16",
            _population(2), 0.3, 16, _linear_noise,
        ),
        AdversarialProblem(
            "gaussian-linf", "the same under an attack of norm inf", _population(np.inf), 0.1, 16, _linear_noise
        ),
        AdversarialProblem(
            "cell", "24 examples, squared loss, attack of norm inf, within its smooth piece; batches of 8",
            _cell, CELL_RADIUS, 8, _exact,
        ),
        AdversarialProblem(
            "sample", "200 examples of gaussian-l2, whose residuals change sign all the time; batches of 8",
            _sample, 0.3, 8, _kink_corrected,
        ),
        AdversarialProblem(
            "logistic-l2", "60 examples, logistic loss, batches of 16", _classes(2), 0.2, 16, _linear_noise
        ),
        AdversarialProblem(
            "logistic-linf", "the same under an attack of norm inf", _classes(np.inf), 0.1, 16, _linear_noise
        ),
        AdversarialProblem(
            "unhinged", "40 examples, the robust unhinged loss, batches of 16", _unhinged, 0.5, 16, _linear_noise
        ),
        AdversarialProblem(
            "perturbed", "the examples of cell one by one, gradients at perturbed weights (AWP)",
            _cell, CELL_RADIUS, 1, _exact,
        ),
        AdversarialProblem(
            "normalised", "a quadratic with three equal directions, gradients at weights moved by a fixed length (AWP)",
            _isotropic, 0.6, 1, _closure,
        ),
        AdversarialProblem(
            "network", "a linearised network of 1,057 parameters on attacked digits (FGSM), batches of 8",
            _network, 0.1, 8, _network_law,
        ),
    )  # fmt: skip
    return {problem.name: problem for problem in found}


def _linear_noise(optimizer: Optimizer, problem: Any, batch_size: int) -> Law:
    return Law(numerics.stationary_covariance(optimizer, problem.hessian, problem.noise(batch_size)), None)


def _exact(optimizer: Optimizer, problem: AdversarialLeastSquares, batch_size: int) -> Law:
    """Within the smooth piece, where `sam` on single examples is SGD on re-weighted ones."""
    noise: Any = MinibatchNoise(problem.cell(), batch_size)
    solved = optimizer
    if optimizer.rule is sam:
        solved, noise = numerics.one_gradient_form(optimizer, noise)
    mean = numerics.stationary_mean(solved, noise.hessian, noise.optimum, slots=solved.rule.slots)
    return Law(numerics.stationary_covariance(solved, noise.hessian, noise), mean)


def _kink_corrected(optimizer: Optimizer, problem: AdversarialLeastSquares, batch_size: int) -> Law:
    law = numerics.kink_corrected_covariance(optimizer, problem, batch_size)
    return Law(law.law, None)


def _network_law(optimizer: Optimizer, problem: LinearizedNetwork, batch_size: int) -> Law:
    noise = problem.noise(batch_size)
    mean = numerics.stationary_mean(optimizer, noise.hessian, noise.optimum, slots=optimizer.rule.slots)
    return Law(numerics.stationary_covariance(optimizer, noise.hessian, noise), mean)


def _closure(optimizer: Optimizer, problem: Perturbed, batch_size: int) -> Law:
    """Theory's Gaussian closure for equal directions; it leaves out less than a tenth of a per cent here."""
    known = theory.normalised_perturbation_closure()
    h, c = problem.quadratic.hessian[0, 0], problem.quadratic.noise[0, 0]
    numbers = {"h_i": h, "c_ii": c, "dim": problem.quadratic.dim, "rho": problem.rho, "lr": optimizer.values["lr"]}
    cubic = known.parts["cubic"].subs(sp.Symbol("a", nonnegative=True), known.parts["a"])
    cubic = cubic.subs({s: numbers[str(s)] for s in cubic.free_symbols if str(s) in numbers})
    (length,) = (float(root) for root in sp.Poly(cubic, known.symbols["length"]).nroots() if root.is_real and root > 0)
    return Law(np.eye(problem.quadratic.dim) * float(known.lambdify()(h_i=h, c_ii=c, length=length)), None)


def _isotropic(rho: float) -> Perturbed:
    return Perturbed(Quadratic(np.eye(3), np.eye(3), np.zeros(3)), rho)


def _population(norm: float) -> Callable[[float], GaussianAdversarialRegression]:
    return lambda radius: GaussianAdversarialRegression(
        np.diag([1.0, 0.6, 0.3, 0.15]), np.array([1.0, -1.0, 0.8, 1.2]), 0.7, radius, norm
    )


def _cell(radius: float) -> AdversarialLeastSquares:
    """At CELL_RADIUS residuals are +-1, the minimiser is far from the norm's kinks: rows are shifted to make it one."""
    rng = np.random.default_rng(31)
    inputs, signs = rng.normal(size=(24, 3)), rng.choice([-1.0, 1.0], size=24)
    weights = np.array([6.0, -5.0, 4.0])
    inputs *= np.sqrt(3.0) / np.linalg.norm(inputs, axis=1, keepdims=True)
    inputs += signs[:, None] * (CELL_RADIUS * np.sign(weights) - (signs @ inputs) / 24)
    return AdversarialLeastSquares(inputs, inputs @ weights + signs, radius, np.inf)


def _sample(radius: float) -> AdversarialLeastSquares:
    drawn = _population(2)(radius).sample(200, 32)
    return AdversarialLeastSquares(drawn.X, drawn.y, radius, 2)


def _classes(norm: float) -> Callable[[float], AdversarialLogistic]:
    rng = np.random.default_rng(37)
    inputs = rng.normal(size=(60, 3))
    chance = 1.0 / (1.0 + np.exp(-inputs @ [1.5, -1.2, 1.0]))
    labels = np.where(rng.random(60) < chance, 1.0, -1.0)
    return lambda radius: AdversarialLogistic(inputs, labels, radius, norm, l2=0.01)


def _unhinged(radius: float) -> RobustUnhinged:
    rng = np.random.default_rng(34)
    inputs = rng.normal(size=(40, 3))
    return RobustUnhinged(inputs, np.where(inputs @ [1.5, -1.2, 1.0] > 0, 1.0, -1.0), radius, l2=0.5)


def _network(radius: float) -> LinearizedNetwork:
    x, y = digits(40, classes=(3, 8))
    return LinearizedNetwork(mlp((64, 16, 1)), x, y, radius, l2=0.1)
