r"""The Stein equation of one pair of Hessian eigenvalues, solved exactly.

For eigenvalues x, y of the Hessian and gradient noise with unit covariance between the two directions, the covariance
block S of the slots solves

.. math:: D(x)\, S + S\, D(y)^\top + D(x)\, S\, D(y)^\top = -\, b(x)\, b(y)^\top, \qquad D = A - I .

The coefficients of D and b are exact rationals (a float hyper-parameter is a binary fraction), so the equation is a
linear system over :math:`\mathbb{Z}[x, y]`, which fraction-free elimination solves without rounding.  What is left is
to evaluate polynomials with known integer coefficients at all pairs, which `ExactPolynomial` does to the last bit.
No digit is lost to :math:`1 - lr\, h`, to momentum near 1 or to the stability edge.

Slots that do not feed back (an averaged copy of the weights) make A block triangular; the elimination then runs block
by block along the strongly connected components of the slots, and a solution carries the determinants it was divided
by as separate factors.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from sympy.polys.matrices import DomainMatrix
from sympy.polys.matrices.exceptions import DMNonInvertibleMatrixError

from ..errors import NonStationaryError, ScaleError
from ..theory import Optimizer, Recursion, recursion
from ._polynomial import ExactPolynomial, PreparedPolynomial, binary_exponent, same_size

__all__ = ["MeanKernel", "PairKernel", "Quotient", "kicked_variances", "mean_kernel", "pair_kernel", "to_fraction"]

Array: TypeAlias = NDArray[np.float64]
Block: TypeAlias = tuple[int, int]

#: Pairs evaluated at a time: small enough for the temporaries to stay in cache.
_TILE = 16384

_RING, _X, _Y = sp.ring("x,y", sp.ZZ)


def to_fraction(number: object) -> Fraction:
    """A SymPy rational (or anything rational) as a `Fraction`."""
    exact = sp.Rational(number)
    return Fraction(int(exact.p), int(exact.q))


@dataclass(frozen=True)
class Quotient:
    """A rational function of x and y: a numerator over a product of denominators."""

    numerator: ExactPolynomial
    denominators: tuple[ExactPolynomial, ...]

    @property
    def swapped(self) -> Quotient:
        """The function of (y, x)."""
        return Quotient(self.numerator.swapped, tuple(d.swapped for d in self.denominators))

    def __call__(self, x: Array, y: Array) -> Array:
        """Values at broadcast x, y, to a few units in the last place; infinite where a denominator is 0.

        Raises
        ------
        ScaleError
            If a value is too large or too small for a double.
        """
        mantissas, exponents = self.scaled(x, y)
        with np.errstate(over="ignore"):
            out = np.ldexp(mantissas, exponents)
        lost = ((np.abs(out) < np.finfo(np.float64).tiny) & (mantissas != 0)) | (np.isinf(out) & np.isfinite(mantissas))
        if lost.any():
            size = float(np.log10(np.abs(mantissas[lost][0])) + exponents[lost][0] * np.log10(2.0))
            raise ScaleError(
                f"a value per unit of noise (or of the optimum) is of the order 1e{size:.0f}, beyond double precision; "
                f"rescale the weights or the loss and scale the answer back"
            )
        return np.asarray(out)

    def scaled(self, x: Array, y: Array) -> tuple[Array, NDArray[np.int64]]:
        """Values at broadcast x, y as mantissas and exponents."""
        x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
        flat_x, flat_y = x.ravel(), y.ravel()
        out, exponents = np.empty(flat_x.shape), np.empty(flat_x.shape, dtype=np.int64)
        for part in same_size(flat_x):
            for both in (part[group] for group in same_size(flat_y[part])):
                out[both], exponents[both] = self.at(flat_x[both], flat_y[both])
        return out.reshape(x.shape), exponents.reshape(x.shape)

    def at(self, x: Array, y: Array) -> tuple[Array, int]:
        """Values at broadcast x, y, each of comparable sizes, as mantissas and one exponent."""
        return _quotient(self._prepare(x, binary_exponent(x), binary_exponent(y)), y)

    def on_pairs(self, h: Array, *, symmetric: bool) -> Array:
        """The matrix of values at all pairs (h_i, h_j); of a symmetric function only one triangle is evaluated."""
        return np.asarray(np.ldexp(*self.scaled_on_pairs(h, symmetric=symmetric)))

    def scaled_on_pairs(self, h: Array, *, symmetric: bool) -> tuple[Array, int | NDArray[np.int64]]:
        """What `on_pairs` gives as mantissas and exponents (one for all, if all h are of comparable size)."""
        groups = same_size(h)
        if len(groups) == 1:
            return self._tiled(h, symmetric)
        out, exponents = np.empty((h.size, h.size)), np.empty((h.size, h.size), dtype=np.int64)
        for rows in groups:
            for columns in groups:
                block = np.ix_(rows, columns)
                out[block], exponents[block] = self.at(h[rows, None], h[None, columns])
        return out, exponents

    def _tiled(self, h: Array, symmetric: bool) -> tuple[Array, int]:
        n = h.size
        prepared = self._prepare(h[:, None], binary_exponent(h), binary_exponent(h))
        out, exponent = np.empty((n, n)), 0
        start = 0
        while start < n:
            first = start if symmetric else 0
            stop = min(n, start + max(1, _TILE // (n - first)))
            rows = slice(start, stop)
            out[rows, first:], exponent = _quotient(tuple(p[rows] for p in prepared), h[None, first:])
            if symmetric:
                # Within the square on the diagonal both triangles were evaluated; one of them is kept.
                out[stop:, rows] = out[rows, stop:].T
                square = out[rows, rows]
                lower = np.tril_indices(stop - start, -1)
                square[lower] = square.T[lower]
            start = stop
        return out, exponent

    def log_derivative_x(self, x: Array, y: Array) -> Array:
        """``x d ln|f| / dx`` at broadcast x, y; 0 where f is."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape))
        for sign, polynomial in ((1, self.numerator), *((-1, d) for d in self.denominators)):
            (slope, e), (value, f) = polynomial.euler_x(x, y), polynomial(x, y)
            ratio = np.divide(slope, value, out=np.zeros(total.shape), where=value != 0)
            total += sign * np.ldexp(ratio, e - f)
        return total

    def _prepare(self, x: Array, scale: int, scale_y: int) -> tuple[PreparedPolynomial, ...]:
        return tuple(p.prepare(x, scale, scale_y) for p in (self.numerator, *self.denominators))


def _quotient(prepared: tuple[PreparedPolynomial, ...], y: Array) -> tuple[Array, int]:
    """Values as mantissas and one exponent."""
    values, exponent = prepared[0](y), prepared[0].exponent
    with np.errstate(divide="ignore", invalid="ignore"):
        for divisor in prepared[1:]:
            values = values / divisor(y)
            exponent -= divisor.exponent
    return np.broadcast_to(values, np.broadcast_shapes(prepared[0].x.shape, y.shape)), exponent


@dataclass(frozen=True)
class PairKernel:
    """The slot covariances of a pair of eigenvalues, as exact rational functions: ``entries[a][b]`` for Cov(a, b)."""

    entries: tuple[tuple[Quotient, ...], ...]


@dataclass(frozen=True)
class MeanKernel:
    """The stationary mean of each slot per unit of the optimum, as rational functions of one eigenvalue x.

    Common powers of x are cancelled, so that the value at x = 0 is the limit.
    """

    entries: tuple[Quotient, ...]


@functools.lru_cache(maxsize=256)
def pair_kernel(optimizer: Optimizer) -> PairKernel:
    """Solve the pair Stein equation of an optimizer with every hyper-parameter bound."""
    return _pair_kernel(optimizer, *_integer_recursion(recursion(optimizer)))


@functools.lru_cache(maxsize=64)
def _kick_kernels(optimizer: Optimizer) -> tuple[PairKernel, ...]:
    """For each slot the kernel of noise of variance 1 that enters there alone."""
    increment, gain = _integer_recursion(recursion(optimizer))
    size = len(gain)
    return tuple(_pair_kernel(optimizer, increment, [[Fraction(p == q)] for q in range(size)]) for p in range(size))


def kicked_variances(optimizer: Optimizer, h: Array) -> list[tuple[Array, NDArray[np.int64]]]:
    """For noise of variance 1 in each slot, what becomes the variance of all, as mantissas and exponents (m, n)."""
    out = []
    for kernel in _kick_kernels(optimizer):
        values, exponents = zip(*(row[a].scaled(h, h) for a, row in enumerate(kernel.entries)), strict=True)
        out.append((np.stack(values), np.stack(exponents)))
    return out


def _pair_kernel(optimizer: Optimizer, increment: list[list[list[Fraction]]], gain: list[list[Fraction]]) -> PairKernel:
    unit, increments, gains = _common_denominator(increment, gain)
    at = {v: ([[_in(e, v) for e in row] for row in increments], [_in(e, v) for e in gains]) for v in (_X, _Y)}
    (dx, bx), (dy, by) = at[_X], at[_Y]

    def operator(p: int, q: int, s: int, t: int) -> Any:
        entry = dx[p][s] * dy[q][t]
        if t == q:
            entry += unit * dx[p][s]
        if s == p:
            entry += unit * dy[q][t]
        return entry

    # values[a, b] is the numerator and the set of determinants below it, each named by its block.
    values: dict[Block, tuple[Any, frozenset[Block]]] = {}
    determinants: dict[Block, Any] = {}
    components = _components(increments)
    for i, j in sorted(itertools.combinations_with_replacement(range(len(components)), 2), key=lambda ij: ij[::-1]):
        block = list(itertools.product(components[i], components[j]))
        known = [slot for slot in values if slot[0] in _upto(components, i) and slot[1] in _upto(components, j)]
        below = frozenset().union(*(values[slot][1] for slot in known))
        common = _product(determinants[name] for name in below)
        right = []
        for p, q in block:
            side = -bx[p] * by[q] * common
            for s, t in known:
                entry = operator(p, q, s, t)
                if entry:
                    numerator, own = values[s, t]
                    side -= entry * numerator * _product(determinants[name] for name in below - own)
            right.append(side)
        matrix = [[operator(p, q, s, t) for s, t in block] for p, q in block]
        numerators, determinant = _solve(matrix, right, optimizer)
        determinants[i, j], below = determinant, below | {(i, j)}
        values.update({slots: (n, below) for slots, n in zip(block, numerators, strict=True)})
        if i != j:
            determinants[j, i] = _swap(determinant)
            mirrored = frozenset((b, a) for a, b in below)
            values.update({(q, p): (_swap(n), mirrored) for (p, q), n in zip(block, numerators, strict=True)})
    size = len(gains)
    polynomials = {name: _exact(d) for name, d in determinants.items()}
    return PairKernel(
        tuple(
            tuple(
                Quotient(_exact(values[a, b][0]), tuple(polynomials[name] for name in sorted(values[a, b][1])))
                for b in range(size)
            )
            for a in range(size)
        )
    )


@functools.lru_cache(maxsize=256)
def mean_kernel(optimizer: Optimizer) -> MeanKernel:
    """Solve ``D(x) z = x b(x)`` for the stationary mean z of the slots."""
    increment, gain = _integer_recursion(recursion(optimizer))
    _, increments, gains = _common_denominator(increment, gain)
    matrix = [[_in(e, _X) for e in row] for row in increments]
    numerators, determinant = _solve(matrix, [_X * _in(e, _X) for e in gains], optimizer)
    entries = []
    for numerator in numerators:
        top, bottom = _exact(numerator), _exact(determinant)
        shared = min(min((k for k, _ in p.terms), default=10**9) for p in (top, bottom))
        top, bottom = (ExactPolynomial({(k - shared, n): c for (k, n), c in p.terms.items()}) for p in (top, bottom))
        entries.append(Quotient(top, (bottom,)))
    return MeanKernel(tuple(entries))


def _integer_recursion(step: Recursion) -> tuple[list[list[list[Fraction]]], list[list[Fraction]]]:
    """Entries of D and of b as ascending lists of exact coefficients in h."""
    layers, gains = step.increment_coefficients, step.noise_gain_coefficients
    size = len(step.slots)
    increment = [[[to_fraction(layer[p][q]) for layer in layers] for q in range(size)] for p in range(size)]
    return increment, [[to_fraction(layer[p]) for layer in gains] for p in range(size)]


def _common_denominator(
    increment: list[list[list[Fraction]]], gain: list[list[Fraction]]
) -> tuple[int, list[list[list[int]]], list[list[int]]]:
    everything = itertools.chain(*itertools.chain(*increment), *gain)
    unit = math.lcm(*(c.denominator for c in everything))
    increments = [[[int(c * unit) for c in e] for e in row] for row in increment]
    return unit, increments, [[int(c * unit) for c in e] for e in gain]


def _components(increments: list[list[list[int]]]) -> list[list[int]]:
    """Strongly connected components of the slots, each after those it depends on."""
    size = len(increments)
    reach = np.array([[p == q or any(increments[p][q]) for q in range(size)] for p in range(size)])
    for k in range(size):
        reach |= np.outer(reach[:, k], reach[k, :])
    groups = {tuple(np.flatnonzero(reach[p] & reach[:, p]).tolist()) for p in range(size)}
    return [list(g) for g in sorted(groups, key=lambda g: (int(reach[g[0]].sum()), g))]


def _upto(components: list[list[int]], index: int) -> set[int]:
    return set(itertools.chain(*components[: index + 1]))


def _solve(matrix: list[list[Any]], right: list[Any], optimizer: Optimizer) -> tuple[list[Any], Any]:
    """Numerators and common denominator of the solution of a square system over Z[x, y]."""
    domain = _RING.to_domain()
    n = len(right)
    try:
        solution, denominator = DomainMatrix(matrix, (n, n), domain).solve_den(
            DomainMatrix([[r] for r in right], (n, 1), domain)
        )
    except DMNonInvertibleMatrixError as error:
        raise NonStationaryError(
            f"{optimizer!r} has no stationary law for any Hessian: a slot of {optimizer.rule.name} never forgets its "
            f"start (its recursion has the eigenvalue 1 whatever the curvature)."
        ) from error
    numerators = [row[0] for row in solution.to_list()]
    content = math.gcd(*(int(c) for p in (*numerators, denominator) for c in p.values()))
    return [p.quo_ground(content) for p in numerators], denominator.quo_ground(content)


def _in(coefficients: Sequence[int], variable: Any) -> Any:
    return sum((c * variable**k for k, c in enumerate(coefficients)), _RING.zero)


def _product(factors: Any) -> Any:
    return functools.reduce(lambda a, b: a * b, factors, _RING.one)


def _swap(polynomial: Any) -> Any:
    return _RING.from_dict({(n, k): c for (k, n), c in polynomial.items()})


def _exact(polynomial: Any) -> ExactPolynomial:
    return ExactPolynomial({(int(k), int(n)): int(c) for (k, n), c in polynomial.items()})
