"""What runs with real minibatches: every rule on Gaussian data and on listed batches, some on real data.

Learning rates are a share of the largest at which second moments settle. At that share the additive law, which takes
the noise at the minimum for the noise everywhere, is clearly wrong, and iterates still have the fourth moment that
p-values need.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...numerics import GradientNoise
from ...theory import Optimizer, heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from .._runs import Engine
from ..epochs import Position
from .cases import Setup, seed_of
from .minibatch_problems import NoisyProblem, load_noisy_problems

__all__ = ["MINIBATCH_QUESTIONS", "MinibatchCase", "MinibatchQuestion", "minibatch_cases", "wanted"]

Array = NDArray[np.float64]
MinibatchQuestion: TypeAlias = Literal["minibatch", "start", "epochs", "adaptive"]

#: Question -> what it asks.
MINIBATCH_QUESTIONS: Mapping[str, str] = {
    "minibatch": "the stationary covariance under noise that depends on the weights",
    "start": "the covariance and the mean some steps after a start at w = 0, with minibatches",
    "epochs": "the covariance and the mean of shuffled epochs, at their ends and on average",
    "adaptive": "the covariance under the real Adam and RMSprop, which frozen second moments approximate",
}
#: Steps after the start, by problem.
STEPS: Mapping[str, int] = {"diabetes": 40, "digits": 60, "examples": 3}
#: Replicas of each run, by problem: (default, quick).
REPLICAS: Mapping[str, tuple[int, int]] = {
    "gaussian": (6_000, 1_000),
    "examples": (8_000, 1_500),
    "digits": (2_000, 600),
    "shared": (10_000, 2_000),
}
OTHER_REPLICAS = (600, 200)
#: A few steps from a start cost little.
STARTED: Mapping[str, tuple[int, int]] = {"diabetes": (4_000, 800)}
#: A real ``DataLoader`` for each replica costs a hundred times as much as a step; Adam has a long memory.
LOADERS = (400, 250)

SGD = Setup(sgd, {}, 0.4)
HEAVY_BALL = Setup(heavy_ball, {"momentum": 0.9, "dampening": 0.3}, 0.4)
NESTEROV = Setup(nesterov, {"momentum": 0.9}, 0.4)
SGDW = Setup(sgdw, {"momentum": 0.8, "weight_decay": 0.1}, 0.4)
DECAYED = Setup(heavy_ball, {"momentum": 0.9, "weight_decay": 0.02}, 0.4)
SAM = Setup(sam, {"rho": 0.1}, 0.4)
POLYAK = Setup(polyak, {"momentum": 0.8}, 0.4)
QHM = Setup(qhm, {"beta": 0.9, "nu": 0.7}, 0.4)
AVERAGED = Setup(with_ema(heavy_ball), {"momentum": 0.8, "ema_decay": 0.9}, 0.4)
#: At this share a covariance exists and no fourth moment: no p-value would mean anything.
HEAVY_TAILED = Setup(sgd, {}, 0.8)
#: What Adam and RMSprop are to the weights; their learning rates are in units of their own.
ADAM = Setup(heavy_ball, {"momentum": 0.9, "dampening": 0.9}, 0.4)
RMSPROP = SGD
ADAPTIVE_LR, BETA2 = 0.01, 0.999
EVERY_RULE = (SGD, HEAVY_BALL, NESTEROV, POLYAK, QHM, AVERAGED)
#: (question, problem, setups by their rule, setups in the real torch.optim.SGD), with few replicas and with many
_ASKED: tuple[tuple[MinibatchQuestion, str, tuple[Setup, ...], tuple[Setup, ...]], ...] = (
    ("minibatch", "gaussian", (SGD, HEAVY_BALL), ()),
    ("minibatch", "examples", (*EVERY_RULE, SGDW, SAM), (SGD, NESTEROV)),
    ("minibatch", "diabetes", (), (HEAVY_BALL,)),
    ("minibatch", "dropout", (SGD,), ()),
    ("minibatch", "input-noise", (), (HEAVY_BALL,)),
    ("minibatch", "langevin", (), (DECAYED,)),
    ("start", "examples", (SGD,), ()),
    ("start", "diabetes", (SGD,), (HEAVY_BALL,)),
    ("epochs", "shared", (HEAVY_BALL,), (SGD,)),
    ("epochs", "examples", (NESTEROV,), (SGD,)),
)
#: The same, with many only.
_ASKED_BESIDES: tuple[tuple[MinibatchQuestion, str, tuple[Setup, ...], tuple[Setup, ...]], ...] = (
    ("minibatch", "gaussian", (NESTEROV, POLYAK, QHM, AVERAGED, DECAYED, HEAVY_TAILED), (HEAVY_BALL,)),
    ("minibatch", "diabetes", (SGD, SGDW), (NESTEROV,)),
    ("minibatch", "dropout", (), (HEAVY_BALL,)),
    ("minibatch", "label-noise", (), (HEAVY_BALL,)),
    ("start", "digits", (HEAVY_BALL,), (SGD, HEAVY_BALL)),
    ("adaptive", "gaussian", (), (ADAM, RMSPROP)),
)


@dataclass(frozen=True, eq=False)
class MinibatchCase:
    """One row: an optimizer with real minibatches.

    Attributes
    ----------
    question : str
    optimizer : Optimizer
    problem : NoisyProblem
    engine : {"rule", "torch.optim"}
        Epochs in torch.optim get their batches from a real ``DataLoader(shuffle=True)``.
    replicas, seed : int
    steps : int
        After a start; 0 at the stationary law.
    positions : tuple of int or "average"
        In an epoch.
    """

    question: MinibatchQuestion
    optimizer: Optimizer
    problem: NoisyProblem
    engine: Engine
    replicas: int
    seed: int
    steps: int = 0
    positions: tuple[Position, ...] = (0, "average")

    @property
    def key(self) -> str:
        """For example ``sgd/diabetes/minibatch``: what ``--only`` matches."""
        return f"{self.optimizer.rule.name}/{self.problem.name}/{self.question}"

    @property
    def text(self) -> str:
        """The problem and the question in short."""
        asked = {"minibatch": "", "start": f", start + {self.steps}", "epochs": ", epochs", "adaptive": ", adaptive"}
        return self.problem.name + asked[self.question]

    @property
    def adaptive_name(self) -> str:
        """The real optimizer with adaptive second moments, if one runs."""
        if self.question != "adaptive":
            return ""
        return "Adam" if self.optimizer.values.get("dampening") else "RMSprop"

    @property
    def noise(self) -> GradientNoise:
        """What the optimizer sees."""
        return self.problem.noise(self.optimizer)

    @property
    def solvable(self) -> tuple[Optimizer, GradientNoise]:
        """What numerics solves: itself, or the plain SGD that sam is on listed batches."""
        if self.optimizer.rule is sam:
            return numerics.one_gradient_form(self.optimizer, self.noise)
        return self.optimizer, self.noise


def minibatch_cases(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[MinibatchCase]:
    """List the rows with minibatches, problem by problem."""
    found = []
    for question, name, by_rule, in_torch in sorted((*_ASKED, *(() if quick else _ASKED_BESIDES)), key=_place):
        engines: tuple[tuple[Engine, tuple[Setup, ...]], ...] = (("rule", by_rule), ("torch.optim", in_torch))
        for engine, setups in engines:
            for setup in setups:
                if wanted(setup.rule.name, name, question, only):
                    found.append(case_of(question, setup, name, engine, quick=quick, seed=seed))
    return found


def _place(asked: tuple[MinibatchQuestion, str, tuple[Setup, ...], tuple[Setup, ...]]) -> tuple[int, int]:
    """Where a question about a problem stands in the table."""
    return list(MINIBATCH_QUESTIONS).index(asked[0]), list(load_noisy_problems()).index(asked[1])


def case_of(
    question: MinibatchQuestion,
    setup: Setup,
    name: str,
    engine: Engine,
    *,
    quick: bool,
    seed: int,
    label: str = "minibatch",
) -> MinibatchCase:
    """One case; ``label`` goes into its seed."""
    problem = load_noisy_problems()[name]
    loaded = question == "epochs" and engine == "torch.optim"
    adaptive = question == "adaptive"
    others = {**REPLICAS, **STARTED} if question == "start" else REPLICAS
    counts = LOADERS if loaded or adaptive else others.get(name, OTHER_REPLICAS)
    optimizer = setup.rule(lr=ADAPTIVE_LR, **setup.values) if adaptive else optimizer_on(problem, setup)
    return MinibatchCase(
        question,
        optimizer,
        problem,
        engine,
        replicas=counts[quick],
        seed=seed_of(seed, label, question, setup.rule.name, *setup.values, f"{setup.share:g}", name, engine),
        steps=STEPS[name] if question == "start" else 0,
    )


@functools.cache
def optimizer_on(problem: NoisyProblem, setup: Setup, share: float | None = None) -> Optimizer:
    """The learning rate that is a share of the largest with a covariance; of sam, of the one plain SGD has."""
    bound = setup.rule(lr=1.0, **setup.values)
    solvable = sgd(lr=1.0) if setup.rule is sam else bound
    largest = numerics.mean_square_stability(solvable, problem.batches).largest_lr
    return bound.replace(lr=float(f"{(setup.share if share is None else share) * largest:.2g}"))


def wanted(rule: str, problem: str, question: str, only: Sequence[str]) -> bool:
    """Whether one of the patterns ``RULE``, ``RULE/PROBLEM`` or ``RULE/PROBLEM/QUESTION`` fits."""
    keys = (f"{rule}/{problem}", f"{rule}/{problem}/{question}")
    return not only or any(fnmatchcase(key, p if "/" in p else f"{p}/*") for key in keys for p in only)
