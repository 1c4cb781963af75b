"""What runs: every rule with hyper-parameters that matter, at a large learning rate, on every problem.

Learning rates are a share of the largest stable one, rounded to two digits: large enough that continuous-time
approximations are clearly wrong.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from ... import numerics
from ...theory import Optimizer, UpdateRule, heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from ...verify_options import DEFAULT_SEED
from .problems import Problem, load_problems

__all__ = ["DEFAULT_SEED", "SETUPS", "Case", "Setup", "cases", "matches", "seed_of", "setup_of"]

Engine = Literal["rule", "torch.optim"]

#: Replicas of each run, by problem: (default, quick).
REPLICAS: Mapping[str, tuple[int, int]] = {
    "noncommuting": (40_000, 4_000),
    "diabetes": (12_000, 800),
    "digits": (4_000, 300),
}


@dataclass(frozen=True, eq=False)
class Setup:
    """A rule, its hyper-parameters but for the learning rate, and the share of the largest stable one to run at."""

    rule: UpdateRule
    values: Mapping[str, float]
    share: float

    def on(self, problem: Problem, share: float | None = None) -> Optimizer:
        """Bind the learning rate that is the given share of the problem's largest stable one."""
        bound = self.rule(lr=1.0, **self.values)
        largest = numerics.max_learning_rate(bound, problem.quadratic.hessian)
        return bound.replace(lr=float(f"{(self.share if share is None else share) * largest:.2g}"))


SETUPS: tuple[Setup, ...] = (
    Setup(sgd, {}, 0.5),
    Setup(heavy_ball, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}, 0.5),
    Setup(nesterov, {"momentum": 0.9, "weight_decay": 0.02}, 0.6),
    Setup(polyak, {"momentum": 0.8}, 0.4),
    Setup(qhm, {"beta": 0.9, "nu": 0.7, "weight_decay": 0.02}, 0.5),
    Setup(sgdw, {"momentum": 0.8, "weight_decay": 0.1}, 0.4),
    Setup(sam, {"rho": 0.1}, 0.5),
    Setup(with_ema(heavy_ball), {"momentum": 0.8, "ema_decay": 0.9}, 0.3),
)
#: Rules that the real torch.optim.SGD runs, each on every problem.
IN_TORCH = (sgd, heavy_ball, nesterov)


@dataclass(frozen=True, eq=False)
class Case:
    """One row: an optimizer on a problem, stepped by its rule or by torch.optim."""

    optimizer: Optimizer
    problem: Problem
    engine: Engine
    replicas: int
    seed: int

    @property
    def key(self) -> str:
        """For example ``sgd/digits``: what ``--only`` matches."""
        return f"{self.optimizer.rule.name}/{self.problem.name}"


def cases(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[Case]:
    """List the rows to run, rule by rule."""
    found = []
    for setup in SETUPS:
        for problem in load_problems():
            if not matches(setup.rule, problem, only):
                continue
            make = functools.partial(_case, setup, problem, quick=quick, seed=seed)
            found.append(make("rule"))
            if setup.rule in IN_TORCH:
                found.append(make("torch.optim"))
    return found


def _case(setup: Setup, problem: Problem, engine: Engine, *, quick: bool, seed: int) -> Case:
    return Case(
        optimizer=setup.on(problem),
        problem=problem,
        engine=engine,
        replicas=REPLICAS[problem.name][quick],
        seed=seed_of(seed, setup.rule.name, problem.name, engine),
    )


def setup_of(rule: UpdateRule) -> Setup:
    """The setup of a rule."""
    return next(setup for setup in SETUPS if setup.rule is rule)


def matches(rule: UpdateRule, problem: Problem, only: Sequence[str]) -> bool:
    """Whether one of the patterns ``RULE`` or ``RULE/PROBLEM`` fits; everything does where there are none."""
    key = f"{rule.name}/{problem.name}"
    return not only or any(fnmatchcase(key, p if "/" in p else f"{p}/*") for p in only)


def seed_of(seed: int, *names: str) -> int:
    """A seed of its own for each run, the same whatever else runs.

    Examples
    --------
    >>> seed_of(0, "sgd") == seed_of(0, "sgd") != seed_of(0, "sam")
    True
    """
    sequence = np.random.SeedSequence([seed, *(zlib.crc32(name.encode()) for name in names)])
    return int(sequence.generate_state(1, np.uint32)[0])
