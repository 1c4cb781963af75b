r"""Where a finite run starts: the law of every slot, from the little that a caller has to say.

A rule has a state of rest for weights that see no gradient: velocities are 0, copies of the weights (Polyak's
``w_prev``, an average) equal them.  It is the fixed point of the step at h = 0 without weight decay, :math:`r\,w` with
the same factors r for every direction.  Around the optimum the mean follows

.. math:: \delta' = A\,\delta + (D\,r - h\,b)\,w^* , \qquad \delta = z - r\,w^* ,

whose drive is a polynomial in h, exactly 0 without weight decay.
"""

from __future__ import annotations

import contextlib
import functools
from fractions import Fraction
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError
from ..theory import Optimizer, recursion
from ._arrays import finite_array, positive_semidefinite, rounding_level, vector
from ._directions import Directions
from ._extended import Extended
from ._kernel import to_fraction
from ._problem import Problem
from ._settled import settled_law
from .stationary import StationaryCovariance

__all__ = ["Law", "initial_law", "initial_mean", "rest_factors", "start_level"]

Array: TypeAlias = NDArray[np.float64]


@runtime_checkable
class Law(Protocol):
    """A covariance of every slot: `StationaryCovariance`, `TransientCovariance`."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots."""

    def block(self, a: str, b: str) -> Array:
        """The covariance of two slots."""


def initial_law(problem: Problem, start: Law | ArrayLike | None) -> Extended | None:
    """The covariance of all slots at the start in the eigenbasis, shape (m, m, d, d); None where it is 0.

    A stationary law on the same Hessian is computed again to twice the digits; any other start is taken as it is.
    """
    optimizer, directions = problem.optimizer, problem.directions
    slots, d = optimizer.rule.slots, directions.eigenvalues.size
    if start is None:
        return None
    if not isinstance(start, Law):
        w = directions.rotate(positive_semidefinite("start", start, dim=d))
        r = np.array([float(c) for c in rest_factors(optimizer)])
        return Extended.of(np.asarray(np.multiply.outer(np.outer(r, r), w)))
    if start.slots != slots:
        raise InvalidProblemError(
            f"start is a law of the slots {', '.join(start.slots)}, but {optimizer.rule.name} has {', '.join(slots)}; "
            f"give a law of those, or the covariance of the weights as an array"
        )
    size = start.block(slots[0], slots[0]).shape[0]
    if size != d:
        raise InvalidProblemError(f"start is a law of {size} parameters, but hessian has shape ({d}, {d})")
    if isinstance(start, StationaryCovariance):
        before = start._problem
        if before.root is None and np.array_equal(before.hessian, problem.hessian) and _same_basis(before, problem):
            with contextlib.suppress(NonStationaryError):  # a hair from the edge double-double does not settle
                return settled_law(before)
    basis = directions.basis
    out = np.empty((len(slots), len(slots), d, d))
    for p, a in enumerate(slots):
        for q, b in enumerate(slots[p:], start=p):
            block = start.block(a, b)
            if p == q:
                out[p, q] = directions.rotate(block)
            else:
                out[p, q] = block if basis is None else basis.T @ block @ basis
                out[q, p] = out[p, q].T
    return Extended.of(out)


def _same_basis(a: Problem, b: Problem) -> bool:
    one, other = a.directions.basis, b.directions.basis
    return one is None or other is None or np.array_equal(one, other)


def start_level(start: Extended | None) -> float:
    """Up to which variance the weights count as at rest at the start: the rounding of the rotation."""
    return 0.0 if start is None else rounding_level(start.hi[0, 0])


def initial_mean(optimizer: Optimizer, start: ArrayLike, optimum: Array, directions: Directions) -> Extended:
    """The mean of every slot minus that of rest at the optimum, in the eigenbasis, shape (m, 1, d)."""
    d, m = directions.eigenvalues.size, len(optimizer.rule.slots)
    given = finite_array("the mean at the start", start)
    whole = given.ndim == 1 and given.size == m * d and m > 1
    state = vector("the mean at the start", given, dim=m * d if whole else d).reshape(-1, d)
    factors = rest_factors(optimizer)
    rows = []
    for p, factor in enumerate(factors):
        if whole:
            rows.append(directions.rotate(state[p] - float(factor) * optimum))
        else:
            rows.append(directions.rotate(float(factor) * (state[0] - optimum)))
    return Extended.of(np.stack(rows)[:, None, :])


@functools.lru_cache(maxsize=256)
def rest_factors(optimizer: Optimizer) -> tuple[Fraction, ...]:
    """The state of rest per unit of the weights, one factor for each slot: of the rule, if it is the same for all."""
    still = {"weight_decay": 0} if "weight_decay" in optimizer.values else {}
    general = _rest(optimizer.free().replace(**still))
    if general is None or any(c.free_symbols for c in general):
        general = _rest(optimizer.replace(**still))
    if general is None:
        raise InvalidProblemError(
            f"{optimizer!r} has no single state of rest for given weights: give a start with all its slots "
            f"({', '.join(optimizer.rule.slots)})"
        )
    return tuple(to_fraction(c) for c in general)


def _rest(optimizer: Optimizer) -> tuple[sp.Expr, ...] | None:
    step = recursion(optimizer)
    increment = step.increment.subs(step.h, 0)
    others = increment[1:, 1:]
    if sp.expand(others.det()) == 0:
        return None
    return (sp.Integer(1), *(sp.cancel(c) for c in others.LUsolve(-increment[1:, 0])))
