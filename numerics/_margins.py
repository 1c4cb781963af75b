r"""Stability margins with exact coefficients, evaluated at the eigenvalues of a Hessian.

A rule contracts at the eigenvalue h if and only if all its margins, polynomials in h (and the learning rate), are
positive: with :math:`\lambda = (s+1)/(s-1)` the unit disc becomes a half-plane, and the criterion of Liénard and
Chipart decides.  Signs are decided exactly, so a point a hair inside the stability edge is told from the edge itself.

Theory states the margins of a rule with its symbols, factored.  Here they are of given numbers, whose exact fractions
may have hundreds of digits, and nothing is factored.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from sympy.polys.matrices import DomainMatrix

from ..errors import UnstableError
from ..theory import Optimizer, recursion
from ._polynomial import ExactPolynomial, same_size

__all__ = ["characteristic", "check_stable", "has_unit_root", "learning_rate_bounds"]

Array: TypeAlias = NDArray[np.float64]

_RING, _, _ = sp.ring("x,y", sp.QQ)


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
def _characteristic(optimizer: Optimizer) -> tuple[Any, ...]:
    """The coefficients of ``det(delta I - D)``, the powers of delta descending, in h and a free learning rate."""
    step = recursion(optimizer)
    lr = optimizer.rule["lr"].symbol if "lr" in optimizer.unbound else sp.Dummy("lr")

    def entry(expression: sp.Expr) -> Any:
        terms = sp.Poly(sp.expand(expression), step.h, lr, domain="QQ").terms()
        return _RING.from_dict({powers: _RING.domain.convert(c) for powers, c in terms if c})

    m = step.increment.shape[0]
    return tuple(_determinants([[entry(step.increment[p, q]) for q in range(m)] for p in range(m)]))


def _determinants(rows: list[list[Any]]) -> list[Any]:
    """The characteristic polynomial of a matrix over the ring."""
    return list(DomainMatrix(rows, (len(rows), len(rows)), _RING.to_domain()).charpoly())


def characteristic(optimizer: Optimizer) -> tuple[ExactPolynomial, ...]:
    """The coefficients of ``det(delta I - D)`` times a common factor, the powers of delta descending, in h."""
    coefficients = _characteristic(optimizer)
    unit = math.lcm(*(int(c.denominator) for polynomial in coefficients for c in polynomial.values()))
    return tuple(_over_integers(c, unit) for c in coefficients)


@functools.lru_cache(maxsize=256)
def _margins(optimizer: Optimizer) -> tuple[ExactPolynomial, ...]:
    """All positive where the recursion contracts; in h and a free learning rate."""
    coefficients = _characteristic(optimizer)
    n = len(coefficients) - 1
    # delta = lambda - 1 = 2 / (s - 1), and everything times (s - 1)^n: the coefficient of s^j.
    image = [
        sum((c * (2 ** (n - k) * math.comb(k, j) * (-1) ** (k - j)) for k, c in enumerate(coefficients)), _RING.zero)
        for j in range(n, -1, -1)
    ]
    minors = []
    for size in range(n - 1, 1, -2):
        places = [[2 * column + 1 - row for column in range(size)] for row in range(size)]
        rows = [[image[k] if 0 <= k <= n else _RING.zero for k in row] for row in places]
        minors.append(_determinants(rows)[-1] * (-1) ** size)
    return tuple(_over_integers(margin) for margin in (*image, *minors))


def learning_rate_bounds(optimizer: Optimizer, eigenvalues: Array) -> Array:
    """The largest stable learning rate at each eigenvalue."""
    bounds = np.full(eigenvalues.shape, np.inf)
    for margin in _margins(optimizer.free("lr")):
        for part in same_size(eigenvalues):
            bounds[part] = np.minimum(bounds[part], _first_zero(margin, eigenvalues[part]))
    return bounds


def _first_zero(margin: ExactPolynomial, eigenvalues: Array) -> Array:
    """The smallest positive zero in y of a polynomial at each x; 0 where it is not positive just above y = 0."""
    columns = []
    for n in range(margin.degrees[1] + 1):
        column = ExactPolynomial({(k, 0): c for (k, power), c in margin.terms.items() if power == n})
        columns.append(column(eigenvalues))
    mantissas = np.stack([values for values, _ in columns], axis=-1)
    exponents = np.array([exponent for _, exponent in columns])
    out = np.empty(eigenvalues.shape)
    for index, row in enumerate(mantissas):
        present = np.flatnonzero(row)
        if not present.size or row[present[0]] < 0:
            out[index] = 0.0
            continue
        first = int(present[0])
        sizes = np.frexp(row)[1] + exponents
        # In units in which no later coefficient is larger than the first, no zero is much below 1 (and one is about 1).
        later = present[1:]
        unit = int(np.min((sizes[first] - sizes[later]) // (later - first), initial=0 if not later.size else 2**30))
        scaled = np.ldexp(row, np.maximum(exponents - sizes[first] + unit * (np.arange(row.size) - first), -2000))
        ascending = scaled[first : int(present[-1]) + 1]
        if ascending.size == 1:
            out[index] = np.inf
        elif ascending.size == 2:
            out[index] = np.ldexp(-ascending[0] / ascending[1], unit) if ascending[1] < 0 else np.inf
        else:
            out[index] = _polished(margin, float(eigenvalues[index]), ascending, unit)
    return out


def _polished(margin: ExactPolynomial, x: float, ascending: Array, unit: int) -> float:
    """The smallest positive zero of a polynomial of degree two or more, by Newton steps in exact arithmetic."""
    roots = np.roots(ascending[::-1])
    real = roots.real[(np.abs(roots.imag) <= 1e-8 * np.abs(roots)) & (roots.real > 0)]
    if not real.size:
        return float("inf")
    y = float(np.ldexp(real.min(), unit))
    slopes = ExactPolynomial({(k, n - 1): n * c for (k, n), c in margin.terms.items() if n})
    for _ in range(8):
        slope = slopes.exactly(x, y)
        step = margin.exactly(x, y) / slope if slope else Fraction(0)
        if float(Fraction(y) - step) == y:
            break
        y = float(Fraction(y) - step)
    return y


def _over_integers(polynomial: Any, unit: int | None = None) -> ExactPolynomial:
    """The polynomial times a common denominator of its coefficients, the least if none is given."""
    unit = unit or math.lcm(*(int(c.denominator) for c in polynomial.values()))
    return ExactPolynomial(
        {(int(k), int(n)): int(c.numerator) * (unit // int(c.denominator)) for (k, n), c in polynomial.items()}
    )
