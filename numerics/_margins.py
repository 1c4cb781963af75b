r"""Stability margins with exact coefficients, evaluated at the eigenvalues of a Hessian.

Theory gives the margins of a rule as polynomials in the eigenvalue (and the learning rate): all positive if and only
if the recursion contracts.  Their sign is decided exactly, so a point a hair inside the stability edge is told from
the edge itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ..errors import UnstableError
from ..theory import Optimizer, recursion, stability
from ._kernel import to_fraction
from ._polynomial import ExactPolynomial

__all__ = ["check_stable", "has_unit_root", "learning_rate_bounds"]

Array: TypeAlias = NDArray[np.float64]


@functools.lru_cache(maxsize=256)
def has_unit_root(optimizer: Optimizer) -> bool:
    """Whether the recursion never forgets its start along a direction with h = 0."""
    step = recursion(optimizer)
    return bool(sp.expand(step.increment.subs(step.h, 0).det()) == 0)


def check_stable(optimizer: Optimizer, eigenvalues: Array) -> None:
    """Raise `UnstableError` if a margin is not positive, for the eigenvalue that needs the smallest learning rate."""
    unstable = np.zeros(eigenvalues.shape, dtype=np.bool_)
    for margin in _margins(optimizer):
        unstable |= ~(margin.signs(eigenvalues) > 0)
    offenders = eigenvalues[unstable]
    if not offenders.size:
        return
    if "lr" not in optimizer.values:
        raise UnstableError(None, float(offenders.max()), None)
    bounds = learning_rate_bounds(optimizer, offenders)
    worst = int(np.argmin(bounds))
    raise UnstableError(float(optimizer.values["lr"]), float(offenders[worst]), float(bounds[worst]))


@functools.lru_cache(maxsize=256)
def _margins(optimizer: Optimizer) -> tuple[ExactPolynomial, ...]:
    """The margins of an optimizer with everything bound, in h."""
    return tuple(
        _over_integers({(k, 0): to_fraction(c) for k, c in enumerate(coefficients)})
        for coefficients in stability(optimizer).margin_coefficients
    )


def learning_rate_bounds(optimizer: Optimizer, eigenvalues: Array) -> Array:
    """The largest stable learning rate at each eigenvalue."""
    free = optimizer.free("lr")
    conditions = stability(free)
    bounds = np.full(eigenvalues.shape, np.inf)
    for margin in conditions.margins:
        polynomial = sp.Poly(margin, conditions.h, conditions.lr)
        terms = _over_integers({(int(k), int(n)): to_fraction(c) for (k, n), c in polynomial.terms()})
        bounds = np.minimum(bounds, _first_zero(terms, eigenvalues))
    return bounds


def _first_zero(margin: ExactPolynomial, eigenvalues: Array) -> Array:
    """The smallest positive zero in y of a polynomial at each x; 0 where it is not positive just above y = 0."""
    columns = []
    for n in range(margin.degrees[1] + 1):
        column = ExactPolynomial({(k, 0): c for (k, power), c in margin.terms.items() if power == n})
        columns.append(column(eigenvalues))
    top = max(exponent for _, exponent in columns)
    coefficients = np.stack([np.ldexp(values, exponent - top) for values, exponent in columns], axis=-1)
    out = np.empty(eigenvalues.shape)
    for index, row in enumerate(coefficients):
        present = np.flatnonzero(row)
        if not present.size or row[present[0]] < 0:
            out[index] = 0.0
            continue
        ascending = row[present[0] : present[-1] + 1]
        if ascending.size == 1:
            out[index] = np.inf
        elif ascending.size == 2:
            out[index] = -ascending[0] / ascending[1] if ascending[1] < 0 else np.inf
        else:
            out[index] = _polished(margin, float(eigenvalues[index]), ascending)
    return out


def _polished(margin: ExactPolynomial, x: float, ascending: Array) -> float:
    """The smallest positive zero of a polynomial of degree two or more, by Newton steps in exact arithmetic."""
    roots = np.roots(ascending[::-1])
    real = roots.real[(np.abs(roots.imag) <= 1e-8 * np.abs(roots)) & (roots.real > 0)]
    if not real.size:
        return float("inf")
    y = float(real.min())
    slopes = ExactPolynomial({(k, n - 1): n * c for (k, n), c in margin.terms.items() if n})
    for _ in range(8):
        slope = slopes.exactly(x, y)
        step = margin.exactly(x, y) / slope if slope else Fraction(0)
        if float(Fraction(y) - step) == y:
            break
        y = float(Fraction(y) - step)
    return y


def _over_integers(coefficients: Mapping[tuple[int, int], Fraction]) -> ExactPolynomial:
    """The polynomial times the least common denominator of its coefficients: the same sign and zeros."""
    unit = math.lcm(*(c.denominator for c in coefficients.values()))
    return ExactPolynomial({powers: int(c * unit) for powers, c in coefficients.items() if c})
