"""What runs on attacked problems: their optimizers, how many replicas, and with which seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ... import numerics
from ...theory import Optimizer, heavy_ball, nesterov, sam, sgd
from .._runs import Engine
from .adversarial_problems import AdversarialProblem, load_adversarial_problems
from .cases import seed_of
from .minibatch_cases import wanted

__all__ = ["ADVERSARIAL", "AdversarialCase", "adversarial_case", "adversarial_cases"]

#: The question, as the third part of a row's name.
ADVERSARIAL = "adversarial"
#: The share of the largest learning rate with a covariance for the network.
NETWORK_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class AdversarialCase:
    """One row: an optimizer on an attacked problem.

    Attributes
    ----------
    optimizer : Optimizer
    problem : AdversarialProblem
    engine : {"rule", "torch.optim"}
    replicas, seed : int
    """

    optimizer: Optimizer
    problem: AdversarialProblem
    engine: Engine
    replicas: int
    seed: int

    @property
    def key(self) -> str:
        """For example ``sgd/cell/adversarial``: what ``--only`` matches."""
        return f"{self.optimizer.rule.name}/{self.problem.name}/{ADVERSARIAL}"


#: (problem, optimizer, engine, replicas, replicas of a quick run or 0 for none); the network's learning rate is found.
#: Linear-noise laws err by lr/(1 - momentum)/batch_size times a number of order 1 to 10, which shifts a normal score by
#: less than a half at these sizes.
_ASKED: tuple[tuple[str, Optimizer, Engine, int, int], ...] = (
    ("gaussian-l2", sgd(lr=0.05), "rule", 1_200, 200),
    ("gaussian-l2", heavy_ball(lr=0.01, momentum=0.8), "torch.optim", 1_000, 0),
    ("gaussian-linf", nesterov(lr=0.005, momentum=0.8), "torch.optim", 800, 160),
    ("cell", sgd(lr=0.2), "rule", 8_000, 1_000),
    ("cell", nesterov(lr=0.1, momentum=0.5), "torch.optim", 8_000, 0),
    ("sample", sgd(lr=0.05), "rule", 1_000, 200),
    ("logistic-l2", heavy_ball(lr=0.04, momentum=0.8), "torch.optim", 1_500, 150),
    ("logistic-linf", sgd(lr=0.2), "rule", 1_500, 160),
    ("unhinged", sgd(lr=0.1), "rule", 1_500, 200),
    ("perturbed", sam(lr=0.02, rho=0.2), "rule", 1_500, 160),
    ("normalised", sgd(lr=0.3), "rule", 8_000, 1_000),
    ("network", heavy_ball(lr=1.0, momentum=0.9), "torch.optim", 400, 160),
)


def adversarial_cases(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[AdversarialCase]:
    """List the rows, problem by problem."""
    return [
        adversarial_case(name, engine, quick=quick, seed=seed, rule=optimizer.rule.name)
        for name, optimizer, engine, *counts in _ASKED
        if counts[quick] and wanted(optimizer.rule.name, name, ADVERSARIAL, only)
    ]


def adversarial_case(
    name: str, engine: Engine, *, quick: bool, seed: int, rule: str | None = None, label: str = ADVERSARIAL
) -> AdversarialCase:
    """The first case of a problem and an engine, of this rule where one is named; ``label`` goes into its seed."""
    optimizer, counts = next(
        (optimizer, counts)
        for asked, optimizer, by, *counts in _ASKED
        if (asked, by) == (name, engine) and rule in (None, optimizer.rule.name)
    )
    problem = load_adversarial_problems()[name]
    if name == "network":
        optimizer = _stable(optimizer)
    drawn = seed_of(seed, label, optimizer.rule.name, name, engine)
    return AdversarialCase(optimizer, problem, engine, counts[quick], drawn)


@functools.cache
def _stable(optimizer: Optimizer) -> Optimizer:
    """At a share of the largest learning rate at which the network's iterates have a covariance."""
    problem = load_adversarial_problems()["network"]
    largest = numerics.mean_square_stability(optimizer, problem.problem.noise(problem.batch_size)).largest_lr
    return optimizer.replace(lr=float(np.format_float_positional(NETWORK_SHARE * largest, 2, fractional=False)))
