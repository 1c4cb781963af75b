"""Predictions about minibatches that are known to be wrong, each of which must be rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...numerics import MinibatchNoise
from ...theory import Optimizer
from .._runs import Engine
from .cases import Setup
from .minibatch_cases import HEAVY_BALL, SGD, MinibatchCase, MinibatchQuestion, case_of, wanted
from .minibatch_problems import NoisyProblem

__all__ = ["MinibatchControl", "minibatch_controls"]

Array = NDArray[np.float64]
Wrong = Callable[[MinibatchCase], Array]


@dataclass(frozen=True, eq=False)
class MinibatchControl:
    """A wrong prediction of the covariance of the weights with minibatches.

    Attributes
    ----------
    name : str
    statement : str
        What it wrongly takes for true.
    case : MinibatchCase
        What is run.
    wrong : callable
        ``wrong(case)``.
    """

    name: str
    statement: str
    case: MinibatchCase
    wrong: Wrong
    quantity: Literal["covariance"] = "covariance"

    @property
    def optimizer(self) -> Optimizer:
        """What makes the steps."""
        return self.case.optimizer

    @property
    def problem(self) -> NoisyProblem:
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
        """For example ``sgd/diabetes/minibatch``: what ``--only`` matches."""
        return self.case.key


def additive(case: MinibatchCase) -> Array:
    """The law with the noise at the minimum everywhere."""
    noise = case.noise
    return np.asarray(numerics.stationary_covariance(case.optimizer, noise.hessian, noise.covariance()).value)


def infinite_population(case: MinibatchCase) -> Array:
    """The exact law of examples that are drawn with replacement."""
    noise = MinibatchNoise(case.problem.examples, case.problem.batch_size)
    return np.asarray(numerics.stationary_covariance(case.optimizer, noise.hessian, noise).value)


def without_cross_term(case: MinibatchCase) -> Array:
    """Plain SGD from w = 0, as if the slope of an example and its Hessian were uncorrelated."""
    noise, lr = case.noise, float(case.optimizer.values["lr"])
    covariance, delta = np.zeros((noise.dim, noise.dim)), -noise.optimum
    step = np.eye(noise.dim) - lr * noise.hessian
    for _ in range(case.steps):
        added = noise.covariance() + noise.multiplicative(covariance + np.outer(delta, delta))
        covariance, delta = step @ covariance @ step.T + lr**2 * added, step @ delta
    return covariance


def white(case: MinibatchCase) -> Array:
    """The law of batches that are independent of each other."""
    noise = case.noise
    return np.asarray(numerics.stationary_covariance(case.optimizer, noise.hessian, noise).value)


def additive_epochs(case: MinibatchCase) -> Array:
    """The law of shuffled epochs with additive noise, at their ends."""
    noise = numerics.epoch_noise(case.problem.examples, case.problem.batch_size)
    law = numerics.stationary_covariance(case.optimizer, case.problem.hessian, noise, position=0)
    return np.asarray(law.value)


@dataclass(frozen=True)
class _Wrong:
    name: str
    statement: str
    question: MinibatchQuestion
    engine: Engine
    wrong: Wrong
    problems: tuple[str, ...]
    setup: Setup = SGD


_WRONG = (
    _Wrong("additive", "noise is that at the minimum", "minibatch", "rule", additive, ("gaussian", "examples")),
    _Wrong(
        "additive", "noise is that at the minimum", "minibatch", "torch.optim", additive, ("diabetes",), HEAVY_BALL
    ),
    _Wrong("population", "distinct batches have 1/B", "minibatch", "rule", infinite_population, ("examples",)),
    _Wrong("no cross term", "slope, Hessian uncorrelated", "start", "rule", without_cross_term, ("examples",)),
    _Wrong("white epochs", "shuffled is independent", "epochs", "rule", white, ("shared",)),
    _Wrong("additive ends", "epochs end additively", "epochs", "rule", additive_epochs, ("examples",)),
)


def minibatch_controls(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[MinibatchControl]:
    """List the wrong predictions about minibatches."""
    found = []
    for wrong in _WRONG:
        for name in wrong.problems:
            if wanted(wrong.setup.rule.name, name, wrong.question, only):
                case = case_of(
                    wrong.question, wrong.setup, name, wrong.engine, quick=quick, seed=seed, label=wrong.name
                )
                case = dataclasses.replace(case, positions=(0,))
                found.append(MinibatchControl(wrong.name, wrong.statement, case, wrong.wrong))
    return found
