"""What minibatches are drawn from: Gaussian data, a handful of examples with Hessians of their own, and real data.

The noise that is injected (dropout, noise on inputs and labels, Langevin noise) comes on top of real minibatches of
diabetes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    GradientNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    Quadratic,
    QuadraticExamples,
    langevin_noise,
)
from ...theory import Optimizer
from .problems import load_problems

__all__ = ["NoisyProblem", "load_noisy_problems"]

Array = NDArray[np.float64]

#: Rates and standard deviations of what is injected, and the inverse temperature of Langevin noise.
DROPPED, INPUT_STD, LABEL_STD, INVERSE_TEMPERATURE = 0.2, 0.3, 1.0, 50.0


@dataclass(frozen=True, eq=False)
class NoisyProblem:
    """A mean loss with gradient noise that depends on the weights.

    Attributes
    ----------
    name, description : str
    batches : GradientNoise
        Of the minibatches.
    added : callable or None
        Maps the optimizer to the covariance of further noise.
    """

    name: str
    description: str
    batches: GradientNoise
    added: Callable[[Optimizer], Array] | None = None

    def noise(self, optimizer: Optimizer) -> GradientNoise:
        """All of the noise that an optimizer sees."""
        return self.batches if self.added is None else self.batches + self.added(optimizer)

    @property
    def examples(self) -> LeastSquares | QuadraticExamples:
        """What is passed through in epochs."""
        if not isinstance(self.batches, MinibatchNoise):
            raise TypeError(f"{self.name} has no examples to pass through")
        return self.batches.problem

    @property
    def batch_size(self) -> int:
        """Examples a batch."""
        return int(self.batches.batch_size)  # type: ignore[attr-defined]  # every noise here has one

    @property
    def hessian(self) -> Array:
        """Of the mean loss that is run."""
        return self.batches.hessian

    @property
    def optimum(self) -> Array:
        """Of the mean loss that is run."""
        return self.batches.optimum

    @functools.cached_property
    def quadratic(self) -> Quadratic:
        """The mean loss with the noise of the minibatches at its minimum: what the additive model takes for all."""
        return Quadratic(self.hessian, self.batches.covariance(), self.optimum)


@functools.cache
def load_noisy_problems() -> dict[str, NoisyProblem]:
    """Return the problems by name.

    Examples
    --------
    >>> list(load_noisy_problems())
    ['gaussian', 'examples', 'shared', 'diabetes', 'digits', 'dropout', 'input-noise', 'label-noise', 'langevin']
    """
    diabetes, digits = (_data(name) for name in ("diabetes", "digits"))
    small = MinibatchNoise(diabetes, 8)
    label, langevin = small.label_noise(LABEL_STD), functools.partial(_langevin, dim=small.dim)
    found = (
        NoisyProblem("gaussian", "fresh Gaussian examples, batches of 2, label noise of 0.5", _gaussian()),
        NoisyProblem(
            "examples",
            "9 examples with Hessians of their own that do not commute, batches of 3 distinct ones, all 84 listed",
            MinibatchNoise(_examples(), 3, replacement=False),
        ),
        NoisyProblem(
            "shared",
            "24 examples with one Hessian, whose noise is additive, batches of 4 distinct ones",
            MinibatchNoise(_shared(), 4, replacement=False),
        ),
        NoisyProblem("diabetes", "scikit-learn's diabetes, batches of 8", small),
        NoisyProblem("digits", "scikit-learn's digits, batches of 16 distinct", MinibatchNoise(digits, 16, False)),
        NoisyProblem("dropout", f"diabetes, {DROPPED:g} of the inputs dropped", DropoutNoise(diabetes, DROPPED, 8)),
        NoisyProblem("input-noise", f"diabetes, noise of {INPUT_STD:g} on inputs", InputNoise(diabetes, INPUT_STD, 8)),
        NoisyProblem("label-noise", f"diabetes, fresh noise of {LABEL_STD:g} on labels", small, lambda _: label),
        NoisyProblem("langevin", f"diabetes, SGLD of inverse temperature {INVERSE_TEMPERATURE:g}", small, langevin),
    )
    return {problem.name: problem for problem in found}


def _langevin(optimizer: Optimizer, dim: int) -> Array:
    return langevin_noise(optimizer, dim, INVERSE_TEMPERATURE)


def _data(name: str) -> LeastSquares:
    (data,) = (problem.data for problem in load_problems() if problem.name == name)
    if data is None:
        raise TypeError(f"{name} has no examples")
    return data


def _gaussian() -> GaussianMinibatchNoise:
    rng = np.random.default_rng(21)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    covariance = (turn * np.array([1.0, 0.6, 0.3, 0.15])) @ turn.T
    return GaussianMinibatchNoise((covariance + covariance.T) / 2, 0.5, 2, optimum=turn @ np.ones(4))


def _examples() -> QuadraticExamples:
    """Steep examples pull one way, flat ones the other: slopes and Hessians are correlated."""
    rng = np.random.default_rng(22)
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(9)]
    steepness = np.linspace(0.4, 1.6, 9)
    hessians = np.array(
        [s * (turn * np.array([1.0, 0.6, 0.2])) @ turn.T for s, turn in zip(steepness, turns, strict=True)]
    )
    pull = np.outer(steepness - 1.0, [2.0, -1.0, 1.0])
    slopes = pull + 0.5 * rng.normal(size=(9, 3)) - hessians @ np.array([2.0, -2.0, 1.0])
    return QuadraticExamples((hessians + hessians.transpose(0, 2, 1)) / 2, slopes)


def _shared() -> QuadraticExamples:
    rng = np.random.default_rng(23)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    hessian = (turn * np.array([1.0, 0.3, 0.1, 0.03])) @ turn.T
    slopes = rng.normal(size=(24, 4))
    shared = np.broadcast_to((hessian + hessian.T) / 2, (24, 4, 4))
    return QuadraticExamples(shared, slopes)
