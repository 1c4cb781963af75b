"""The assumptions a formula rests on, as values that are printed next to it."""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from ._immutable import Immutable
from ._print import text
from .update_rule import Optimizer

__all__ = [
    "COMMUTING",
    "CONSTANT_HESSIAN",
    "GAUSSIAN_DATA",
    "INDEPENDENT_BATCHES",
    "QUADRATIC_EXAMPLES",
    "SHUFFLED_EPOCHS",
    "SMALL_LEARNING_RATE",
    "WHITE_NOISE",
    "Assumption",
    "domains",
    "stable",
]


@dataclass(frozen=True)
class Assumption(Immutable):
    """One assumption: a name, what it says, and, where it is one, the conditions on the symbols."""

    name: str
    statement: str
    conditions: tuple[sp.Basic, ...] = ()

    def __str__(self) -> str:
        conditions = ", ".join(text(c) for c in self.conditions)
        return f"{self.statement} ({conditions})" if conditions else self.statement


CONSTANT_HESSIAN = Assumption(
    "constant Hessian", "the loss is quadratic, L(w) = (w - w*)' H (w - w*)/2, with H symmetric positive semidefinite"
)
WHITE_NOISE = Assumption(
    "white noise",
    "the gradient noise has mean zero and covariance C at every step, independent of w and of all other steps",
)
COMMUTING = Assumption("commuting", "C and H have a common eigenbasis, so that c_ij = 0 for i != j")
QUADRATIC_EXAMPLES = Assumption(
    "quadratic examples",
    "the loss of every example is quadratic, with gradient H_n (w - w*) + g_n, mean H_n = H and mean g_n = 0",
)
INDEPENDENT_BATCHES = Assumption(
    "independent batches", "every step draws its batch anew, uniformly and independently of all other steps"
)
GAUSSIAN_DATA = Assumption(
    "Gaussian data", "least squares on fresh examples x ~ N(0, H), y = x'w* + label_noise*N(0, 1), B of them a step"
)
SHUFFLED_EPOCHS = Assumption(
    "shuffled epochs",
    "each epoch runs once through all M batches of a fresh shuffle; gradient noise does not depend on w",
)
SMALL_LEARNING_RATE = Assumption("small learning rate", "lr*h is small against 1: time may be taken as continuous")


def domains(optimizer: Optimizer) -> tuple[Assumption, ...]:
    """Return the assumption that the free hyper-parameters lie in their domains, beyond what their signs say."""
    free = [optimizer.rule[name] for name in optimizer.unbound]
    conditions = tuple(c for parameter in free for c in parameter.conditions)
    return (Assumption("hyper-parameters", "the rule is defined", conditions),) if conditions else ()


def stable(conditions: tuple[sp.Basic, ...]) -> Assumption:
    """Return the assumption that the recursion contracts along the eigenvectors in question."""
    return Assumption("stable", "the recursion contracts at h = h_i and at h = h_j", tuple(conditions))
