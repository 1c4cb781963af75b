"""Predictions known to be wrong. A verification that does not reject them proves nothing by agreeing with the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ... import numerics, theory
from ...theory import Optimizer, UpdateRule, heavy_ball, nesterov, sgd, sgdw, with_ema
from . import closed_form
from .cases import Setup, matches, seed_of, setup_of
from .problems import Problem, load_problems

__all__ = ["ControlCase", "commuting_covariance", "controls", "sde_covariance"]

Array = NDArray[np.float64]
Prediction = Callable[[Optimizer, Problem], Array]

#: Replicas of each run, by problem: (default, quick). Enough to reject every wrong prediction whatever the seed.
REPLICAS: Mapping[str, tuple[int, int]] = {
    "noncommuting": (40_000, 10_000),
    "diabetes": (12_000, 4_000),
    "digits": (4_000, 400),
}


@dataclass(frozen=True, eq=False)
class ControlCase:
    """A wrong prediction of the covariance or the mean of the weights.

    Attributes
    ----------
    name : str
    statement : str
        What it wrongly takes for true.
    quantity : {"covariance", "mean"}
    wrong : callable
        ``wrong(optimizer, problem)``.
    optimizer, problem
        What is run.
    replicas, seed : int
    """

    name: str
    statement: str
    quantity: Literal["covariance", "mean"]
    wrong: Prediction
    optimizer: Optimizer
    problem: Problem
    replicas: int
    seed: int

    @property
    def key(self) -> str:
        """For example ``sgd/digits``: what ``--only`` matches."""
        return f"{self.optimizer.rule.name}/{self.problem.name}"


def sde_covariance(optimizer: Optimizer, problem: Problem) -> Array:
    """The continuous-time limit."""
    return closed_form.covariance(theory.sde_limit(optimizer.rule.free()), optimizer, problem)


def commuting_covariance(optimizer: Optimizer, problem: Problem) -> Array:
    """The covariance if the noise had no entries off the diagonal in the eigenbasis of the Hessian."""
    h, _ = closed_form.eigenbasis(problem)
    pairs = closed_form.on_pairs(theory.stationary_covariance(optimizer.rule.free()), optimizer, h)
    return closed_form.rotate_back(np.diag(np.diag(pairs * closed_form.rotated_noise(problem))), problem)


def _undamped(optimizer: Optimizer, problem: Problem) -> Array:
    return _solved(optimizer.replace(dampening=0.0), problem)


def _as_heavy_ball(optimizer: Optimizer, problem: Problem) -> Array:
    return _solved(heavy_ball(**optimizer.values), problem)


def _as_weights(optimizer: Optimizer, problem: Problem) -> Array:
    """The averaged weights scatter less; the weights themselves do not."""
    result = numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise)
    return result.block("ema", "ema")


def _optimum(optimizer: Optimizer, problem: Problem) -> Array:
    return problem.quadratic.optimum


def _larger(optimizer: Optimizer, problem: Problem) -> Array:
    """The whole covariance 4% too large."""
    return 1.04 * _solved(optimizer, problem)


def _one_direction(optimizer: Optimizer, problem: Problem) -> Array:
    """One eigen-direction of the covariance, in the middle of its spectrum, a tenth too wide."""
    values, vectors = np.linalg.eigh(_solved(optimizer, problem))
    values[len(values) // 2] *= 1.1
    return np.asarray((vectors * values) @ vectors.T)


def _solved(optimizer: Optimizer, problem: Problem) -> Array:
    result = numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise)
    return np.asarray(result)


#: (name, what is wrongly taken for true, quantity, prediction, rule, problems)
_WRONG: tuple[tuple[str, str, Literal["covariance", "mean"], Prediction, UpdateRule, tuple[str, ...]], ...] = (
    ("SDE limit", "lr tends to zero", "covariance", sde_covariance, sgd, ("noncommuting", "digits")),
    ("SDE limit", "lr tends to zero", "covariance", sde_covariance, heavy_ball, ("diabetes",)),
    ("commuting", "H and C commute", "covariance", commuting_covariance, heavy_ball, ("noncommuting", "diabetes")),
    ("no dampening", "dampening does nothing", "covariance", _undamped, heavy_ball, ("diabetes",)),
    ("wrong momentum", "Nesterov's is heavy ball's", "covariance", _as_heavy_ball, nesterov, ("digits",)),
    ("average", "averages scatter alike", "covariance", _as_weights, with_ema(heavy_ball), ("diabetes",)),
    ("4% larger", "the whole is 1.04 times", "covariance", _larger, sgd, ("diabetes", "digits")),
    ("one direction", "one eigenvalue is 1.1 times", "covariance", _one_direction, heavy_ball, ("noncommuting",)),
    ("no weight decay", "the mean is the optimum", "mean", _optimum, sgdw, ("noncommuting",)),
)


def controls(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[ControlCase]:
    """List the wrong predictions to test."""
    found = []
    problems = {problem.name: problem for problem in load_problems()}
    for name, statement, quantity, wrong, rule, where in _WRONG:
        for problem in (problems[p] for p in where):
            if matches(rule, problem, only):
                setup: Setup = setup_of(rule)
                found.append(
                    ControlCase(
                        name=name,
                        statement=statement,
                        quantity=quantity,
                        wrong=wrong,
                        optimizer=setup.on(problem),
                        problem=problem,
                        replicas=REPLICAS[problem.name][quick],
                        seed=seed_of(seed, "control", name, rule.name, problem.name),
                    )
                )
    return found
