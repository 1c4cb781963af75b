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
from .problems import Problem, load_problems

__all__ = ["DEFAULT_SEED", "SETUPS", "Case", "Setup", "cases", "matches", "seed_of", "setup_of"]

Engine = Literal["rule", "torch.optim", "minibatches"]

DEFAULT_SEED = 2025
#: Replicas of each run, by problem: (default, quick).
REPLICAS: Mapping[str, tuple[int, int]] = {
    "noncommuting": (40_000, 4_000),
    "diabetes": (12_000, 800),
    "digits": (4_000, 300),
}
#: Runs of true minibatches gather examples instead of drawing normals, so they have fewer replicas.
MINIBATCH_REPLICAS = (1_000, 200)


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
#: Shown with true minibatches, and the share of the largest stable learning rate. Their noise grows with the distance
#: from the optimum; at larger learning rates iterates diverge, and on digits, where some pixels are lit in a handful of
#: images only, they do so at any learning rate worth a run.
IN_MINIBATCHES = {("sgd", "diabetes"): 0.5, ("heavy_ball", "diabetes"): 0.1}


@dataclass(frozen=True, eq=False)
class Case:
    """One row: an optimizer on a problem, stepped by its rule, by torch.optim or with true minibatches."""

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
            if (setup.rule.name, problem.name) in IN_MINIBATCHES:
                found.append(make("minibatches"))
    return found


def _case(setup: Setup, problem: Problem, engine: Engine, *, quick: bool, seed: int) -> Case:
    true_batches = engine == "minibatches"
    counts = MINIBATCH_REPLICAS if true_batches else REPLICAS[problem.name]
    return Case(
        optimizer=setup.on(problem, IN_MINIBATCHES[setup.rule.name, problem.name] if true_batches else None),
        problem=problem,
        engine=engine,
        replicas=counts[quick],
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
