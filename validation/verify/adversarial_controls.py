"""Predictions about attacked problems that are known to be wrong, each of which must be rejected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...numerics import GaussianAdversarialRegression, MinibatchNoise
from ...theory import Optimizer, sgd
from .._runs import Engine
from ..linearized import LinearizedNetwork
from .adversarial_cases import ADVERSARIAL, AdversarialCase, adversarial_case
from .adversarial_problems import AdversarialProblem
from .minibatch_cases import wanted

__all__ = ["AdversarialControl", "adversarial_controls"]

Array = NDArray[np.float64]
Wrong = Callable[[AdversarialCase], Array]


@dataclass(frozen=True, eq=False)
class AdversarialControl:
    """A wrong prediction of the covariance of the weights on an attacked problem.

    Attributes
    ----------
    name : str
    statement : str
        What it wrongly takes for true.
    case : AdversarialCase
        What is run.
    wrong : callable
        ``wrong(case)``.
    """

    name: str
    statement: str
    case: AdversarialCase
    wrong: Wrong
    quantity: Literal["covariance"] = "covariance"

    @property
    def optimizer(self) -> Optimizer:
        """What makes the steps."""
        return self.case.optimizer

    @property
    def problem(self) -> AdversarialProblem:
        """What it runs on."""
        return self.case.problem

    @property
    def replicas(self) -> int:
        """How many runs."""
        return self.case.replicas

    @property
    def seed(self) -> int:
        """Of the runs."""
        return self.case.seed

    @property
    def key(self) -> str:
        """For example ``sgd/cell/adversarial``: what ``--only`` matches."""
        return self.case.key


def without_kink(case: AdversarialCase) -> Array:
    """The law for the mean Hessian of single examples, which automatic differentiation averages to."""
    problem, size = case.problem.problem, case.problem.batch_size
    if isinstance(problem, GaussianAdversarialRegression):
        hessian, noise = problem.mean_ae_hessian(), problem.noise(size)
    else:
        law = numerics.kink_corrected_covariance(case.optimizer, problem, size)
        hessian, noise = problem.mean_ae_hessian(problem.optimum), law.noise
    return np.asarray(numerics.stationary_covariance(case.optimizer, hessian, noise).value)


def additive(case: AdversarialCase) -> Array:
    """The law within the cell, or of the network, with the noise at the minimum everywhere."""
    problem, size = case.problem.problem, case.problem.batch_size
    network = isinstance(problem, LinearizedNetwork)
    noise = problem.noise(size) if network else MinibatchNoise(problem.cell(), size)
    return np.asarray(numerics.stationary_covariance(case.optimizer, noise.hessian, noise.covariance()).value)


def without_attack(case: AdversarialCase) -> Array:
    """The law at radius 0."""
    return case.problem.law_without_attack(case.optimizer).value


def without_perturbation(case: AdversarialCase) -> Array:
    """Plain SGD, as if rho were 0."""
    return case.problem.law(sgd(lr=float(case.optimizer.values["lr"]))).value


_WRONG: tuple[tuple[str, str, str, Engine, Wrong], ...] = (
    ("no kink", "curvature is autograd's mean", "gaussian-l2", "rule", without_kink),
    ("no kink", "curvature is autograd's mean", "sample", "rule", without_kink),
    ("additive", "noise is that at the minimum", "cell", "rule", additive),
    ("additive", "noise is that at the minimum", "network", "torch.optim", additive),
    ("no attack", "the radius is 0", "gaussian-linf", "torch.optim", without_attack),
    ("no attack", "the radius is 0", "logistic-l2", "torch.optim", without_attack),
    ("no attack", "the radius is 0", "unhinged", "rule", without_attack),
    ("no perturbation", "rho is 0", "perturbed", "rule", without_perturbation),
    ("no perturbation", "rho is 0", "normalised", "rule", without_attack),
)
#: The additive law errs by 3% in the cell: beyond it more replicas are needed than for a row.
CELL_REPLICAS = 10_000
#: What a quick run has no time for.
LEFT_OUT = ("sample", "gaussian-linf", "network", "perturbed")


def adversarial_controls(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[AdversarialControl]:
    """List the wrong predictions about attacked problems."""
    found = []
    for name, statement, problem, engine, wrong in _WRONG:
        if quick and problem in LEFT_OUT:
            continue
        case = adversarial_case(problem, engine, quick=quick, seed=seed, label=name)
        if wanted(case.optimizer.rule.name, problem, ADVERSARIAL, only):
            if problem == "cell":
                case = AdversarialCase(case.optimizer, case.problem, case.engine, CELL_REPLICAS, case.seed)
            found.append(AdversarialControl(name, statement, case, wrong))
    return found
