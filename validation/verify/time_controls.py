"""Predictions over time that are known to be wrong, each of which must be rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...theory import Optimizer, heavy_ball, polyak
from .._runs import Engine
from . import closed_form, time_closed_form
from .cases import Setup
from .controls import REPLICAS
from .problems import Problem
from .time_cases import PLAIN, Question, TimeCase, case_of, on_time_problems, wanted

__all__ = ["TimeControl", "time_controls"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TimeControl:
    """A wrong prediction of a covariance over time.

    Attributes
    ----------
    name : str
    statement : str
        What it wrongly takes for true.
    case : TimeCase
        What is run.
    wrong : callable
        ``wrong(case)``.
    """

    name: str
    statement: str
    case: TimeCase
    wrong: Callable[[TimeCase], Array]
    quantity: Literal["covariance"] = "covariance"

    @property
    def optimizer(self) -> Optimizer:
        """What makes the steps."""
        return self.case.optimizer

    @property
    def problem(self) -> Problem:
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
        """For example ``sgd/diabetes/drop``: what ``--only`` matches."""
        return self.case.key


def polyak_drop(case: TimeCase) -> Array:
    """The drop in Polyak's form of momentum, whose displacement keeps the learning rate it was made with."""
    quadratic = case.problem.quadratic
    after, before = (polyak(lr=o.values["lr"], momentum=o.values["momentum"]) for o in _both(case))
    law = numerics.stationary_covariance(before, quadratic.hessian, quadratic.noise)
    return numerics.transient_covariance(after, quadratic.hessian, quadratic.noise, case.steps, start=law).value


def settled(case: TimeCase) -> Array:
    """The stationary law of the learning rate after the drop."""
    quadratic = case.problem.quadratic
    return numerics.stationary_covariance(case.optimizer, quadratic.hessian, quadratic.noise).value


def independent(case: TimeCase) -> Array:
    """The covariance of a mean of independent iterates."""
    return settled(case) / case.steps


def one_rate(case: TimeCase) -> Array:
    """The exact correlations in the eigenbasis with the variances of the surrogate with one rate per eigenvalue."""
    after, before = _both(case)
    stated, exact = time_closed_form.early_phase_variances(after, before, case.steps, case.problem)
    _, vectors = closed_form.eigenbasis(case.problem)
    covariance = vectors.T @ time_closed_form.after_change(after, before, case.steps, case.problem) @ vectors
    factor = np.sqrt(stated / exact)
    return closed_form.rotate_back(np.asarray(factor[:, None] * covariance * factor), case.problem)


def _both(case: TimeCase) -> tuple[Optimizer, Optimizer]:
    """What runs after a drop, and before."""
    return case.optimizer, case.optimizer if case.before is None else case.before


@dataclass(frozen=True)
class _Wrong:
    name: str
    statement: str
    question: Question
    engine: Engine
    wrong: Callable[[TimeCase], Array]
    problems: tuple[str, ...]
    setup: Setup = PLAIN


#: At this learning rate every direction is under-damped, and the one rate that the surrogate gives it is stable.
_SLOW = Setup(heavy_ball, {"momentum": 0.9}, 0.1)
_WRONG = (
    _Wrong("Polyak's drop", "the buffer holds lr", "drop", "torch.optim", polyak_drop, ("noncommuting", "diabetes")),
    _Wrong("settled", "it settles in 8 steps", "drop", "rule", settled, ("diabetes",)),
    _Wrong("one rate", "one decay rate per mode", "drop", "rule", one_rate, ("noncommuting",), _SLOW),
    _Wrong("S/K", "iterates are independent", "average", "rule", independent, ("diabetes",)),
)


def time_controls(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[TimeControl]:
    """List the wrong predictions over time."""
    found = []
    for wrong in _WRONG:
        for problem in on_time_problems():
            if problem.name in wrong.problems and wanted(wrong.setup, problem, wrong.question, only):
                case = case_of(
                    wrong.question, wrong.setup, problem, wrong.engine, quick=quick, seed=seed, name=wrong.name
                )
                case = dataclasses.replace(case, replicas=REPLICAS[problem.name][quick])
                found.append(TimeControl(wrong.name, wrong.statement, case, wrong.wrong))
    return found
