"""What runs over time: a drop of the learning rate, a fixed start, schedules, memory and averages.

Every rule goes through the drop, a few through the rest. The numbers of steps are so small that neither the start nor
the stationary law would be a fair answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from ...numerics import Schedule
from ...theory import Optimizer, heavy_ball, nesterov, sgd
from .._runs import Engine
from ..schedules import SchedulerFactory
from .cases import REPLICAS, SETUPS, Setup, matches, seed_of, setup_of
from .problems import Problem, load_problems

__all__ = ["DROP", "PLAIN", "QUESTIONS", "Question", "TimeCase", "on_time_problems", "time_cases", "wanted"]

Question: TypeAlias = Literal["drop", "start", "step-decay", "cosine", "lag", "average"]

#: Question -> what it asks.
QUESTIONS: Mapping[Question, str] = {
    "drop": "the covariance some steps after the learning rate of a stationary run drops to a quarter",
    "start": "the covariance and the mean some steps after a start at w = 0",
    "step-decay": "the same three times in a schedule that drops the learning rate to a quarter twice",
    "cosine": "the same three times in a schedule that follows half a cosine to zero",
    "lag": "the covariance of the weights with themselves some steps earlier",
    "average": "the covariance of the mean of successive iterates",
}
#: Problems that the questions are asked of.
PROBLEMS = ("noncommuting", "diabetes")
#: By how much a learning rate drops, and how many steps after that, or after a start, one looks.
DROP, STEPS_AFTER = 4, 8
LAG, WINDOW = 5, 20
#: Steps of the step decay between two drops; steps of the cosine; when their runs are looked at.
EVERY, STEP_DECAY_RECORD = 20, (20, 26, 60)
COSINE, COSINE_RECORD = 24, (8, 16, 24)
#: Momentum in PyTorch's form with nothing beside it, which is what people schedule and average.
PLAIN = Setup(heavy_ball, {"momentum": 0.9}, 0.5)
#: Which setups answer which question, beside the drop, and which of them run in the real torch.optim.SGD too.
ASKED: Mapping[Question, tuple[Setup, ...]] = {
    "drop": SETUPS,
    "start": tuple(map(setup_of, (sgd, heavy_ball, nesterov))),
    "step-decay": (PLAIN,),
    "cosine": (PLAIN,),
    "lag": tuple(map(setup_of, (sgd, heavy_ball))),
    "average": (setup_of(sgd), PLAIN),
}
IN_TORCH = {
    ("drop", "sgd", "noncommuting"),
    *(("drop", rule, problem) for rule in ("heavy_ball", "nesterov") for problem in PROBLEMS),
    *((schedule, "heavy_ball", problem) for schedule in ("step-decay", "cosine") for problem in PROBLEMS),
}


@dataclass(frozen=True, eq=False)
class TimeCase:
    """One row: a question, and the optimizer and problem it is asked of.

    Attributes
    ----------
    question : str
    optimizer : Optimizer
        What makes the steps; of a schedule, the first ones.
    problem : Problem
    engine : {"rule", "torch.optim"}
    steps : int
        After the drop or the start; the lag; the window; of the whole schedule.
    record : tuple of int
        When a run is looked at.
    before : Optimizer or None
        What ran before a drop.
    schedule : Schedule or None
        As data; ``scheduler`` makes the real ``lr_scheduler`` that should do the same.
    replicas, seed : int
    """

    question: Question
    optimizer: Optimizer
    problem: Problem
    engine: Engine
    steps: int
    record: tuple[int, ...]
    replicas: int
    seed: int
    before: Optimizer | None = None
    schedule: Schedule | None = None
    scheduler: SchedulerFactory | None = None

    @property
    def key(self) -> str:
        """For example ``sgd/diabetes/drop``: what ``--only`` matches."""
        return f"{self.optimizer.rule.name}/{self.problem.name}/{self.question}"

    @property
    def text(self) -> str:
        """The question in short."""
        return {
            "drop": f"drop + {self.steps}",
            "start": f"start + {self.steps}",
            "step-decay": "step decay",
            "cosine": "cosine",
            "lag": f"lag {self.steps}",
            "average": f"mean of {self.steps}",
        }[self.question]

    @property
    def runs_in(self) -> bool:
        """Whether replicas run to the stationary law they start from; where that takes thousands of steps they are
        drawn from it.
        """
        return self.engine == "torch.optim" or self.problem.name == "noncommuting"


def time_cases(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[TimeCase]:
    """List the rows over time, question by question."""
    found = []
    for question, setups in ASKED.items():
        for setup in setups:
            for problem in on_time_problems():
                if not wanted(setup, problem, question, only):
                    continue
                make = functools.partial(case_of, question, setup, problem, quick=quick, seed=seed)
                found.append(make("rule"))
                if (question, setup.rule.name, problem.name) in IN_TORCH:
                    found.append(make("torch.optim"))
    return found


def case_of(
    question: Question, setup: Setup, problem: Problem, engine: Engine, *, quick: bool, seed: int, name: str = "time"
) -> TimeCase:
    """One case; ``name`` goes into its seed."""
    first = setup.on(problem)
    lr = float(first.values["lr"])
    make = functools.partial(
        TimeCase,
        question,
        problem=problem,
        engine=engine,
        replicas=REPLICAS[problem.name][quick],
        seed=seed_of(seed, name, question, setup.rule.name, problem.name, engine),
    )
    if question == "drop":
        after = first.replace(lr=lr / DROP)
        return make(after, steps=STEPS_AFTER, record=(STEPS_AFTER,), before=first)
    if question == "step-decay":
        steps = STEP_DECAY_RECORD[-1]
        return make(
            first, steps=steps, record=STEP_DECAY_RECORD, scheduler=_step_lr,
            schedule=Schedule.step_decay(steps, lr, every=EVERY, factor=1 / DROP),
        )  # fmt: skip
    if question == "cosine":
        return make(
            first, steps=COSINE, record=COSINE_RECORD, schedule=Schedule.cosine(COSINE, lr), scheduler=_cosine_lr
        )
    steps = {"start": STEPS_AFTER, "lag": LAG, "average": WINDOW}[question]
    return make(first, steps=steps, record=(steps,))


def on_time_problems() -> tuple[Problem, ...]:
    """The problems that the questions are asked of."""
    return tuple(problem for problem in load_problems() if problem.name in PROBLEMS)


def wanted(setup: Setup, problem: Problem, question: str, only: Sequence[str]) -> bool:
    """Whether one of the patterns ``RULE``, ``RULE/PROBLEM`` or ``RULE/PROBLEM/QUESTION`` fits."""
    key = f"{setup.rule.name}/{problem.name}/{question}"
    return matches(setup.rule, problem, only) or any(fnmatchcase(key, pattern) for pattern in only)


def _step_lr(optim: torch.optim.Optimizer) -> StepLR:
    return StepLR(optim, step_size=EVERY, gamma=1 / DROP)


def _cosine_lr(optim: torch.optim.Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optim, T_max=COSINE)
