r"""Small matrices in double-double arithmetic, one for every eigenvalue or pair of eigenvalues at once.

A power of a 2 x 2 matrix in double precision is wrong by about :math:`k\,\varepsilon`, which is everything after
:math:`10^{16}` steps and too much after :math:`10^9`; near critical damping it is worse.  With about 32 digits the
error of :math:`k` steps is :math:`k \cdot 10^{-31}`.

The matrix axes come first and everything behind them broadcasts, so that ``p @ k @ q.transposed`` with ``p`` of shape
(m, m, n, 1) and ``q`` of shape (m, m, 1, n) is a product for every pair.  Products and sums are in error by a few
:math:`2^{-106}` of the sum of the magnitudes of their terms, entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import EllipsisType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._doubledouble import split

__all__ = ["Extended", "identity", "joined", "polynomial_values", "stacked"]

Array: TypeAlias = NDArray[np.float64]
Index: TypeAlias = int | slice | EllipsisType | NDArray[np.intp] | None


@dataclass(frozen=True, eq=False)
class Extended:
    """The unevaluated sum ``hi + lo`` of two arrays of shape (m, n, ...)."""

    hi: Array
    lo: Array

    @classmethod
    def of(cls, values: Array) -> Extended:
        """Plain doubles."""
        return cls(values, np.zeros_like(values))

    @property
    def transposed(self) -> Extended:
        """The transposed matrices."""
        return Extended(self.hi.swapaxes(0, 1), self.lo.swapaxes(0, 1))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Extended:
        return Extended(self.hi[index], self.lo[index])

    def __add__(self, other: Extended) -> Extended:
        total, error = _two_sum(self.hi, other.hi)
        return _normalised(total, error + (self.lo + other.lo))

    def __neg__(self) -> Extended:
        return Extended(-self.hi, -self.lo)

    def __sub__(self, other: Extended) -> Extended:
        return self + -other

    def __matmul__(self, other: Extended) -> Extended:
        """The product of the matrices (axes 0 and 1), for every index behind them."""
        left = _parts(self)
        right = _parts(other)
        hi = lo = None
        for s in range(self.hi.shape[1]):
            product, error = _product(*(a[:, s, None] for a in left), *(b[None, s] for b in right))
            if hi is None or lo is None:
                hi, lo = product, error
            else:
                hi, rest = _two_sum(hi, product)
                lo = lo + (rest + error)
        assert hi is not None
        assert lo is not None
        return _normalised(hi, lo)

    def shifted(self, exponent: int | NDArray[np.int_]) -> Extended:
        """Times a power of two."""
        return Extended(np.ldexp(self.hi, exponent), np.ldexp(self.lo, exponent))

    def scaled(self, factor: float | Array | Extended) -> Extended:
        """Every entry times a number or an array that broadcasts."""
        if not isinstance(factor, Extended):
            factor = Extended.of(np.asarray(factor, dtype=np.float64))
        return _normalised(*_product(*_parts(self), *_parts(factor)))

    def reshaped(self, *shape: int) -> Extended:
        """The same numbers in another shape."""
        return Extended(self.hi.reshape(shape), self.lo.reshape(shape))

    def finite(self) -> bool:
        """Whether nothing has overflowed."""
        return bool(np.isfinite(self.hi).all() and np.isfinite(self.lo).all())


def stacked(parts: Sequence[Extended], axis: int) -> Extended:
    """Several as one, along a new axis."""
    return Extended(np.stack([part.hi for part in parts], axis), np.stack([part.lo for part in parts], axis))


def joined(parts: Sequence[Extended], axis: int) -> Extended:
    """Several as one, along an axis that they have."""
    hi, lo = ([part.hi for part in parts], [part.lo for part in parts])
    return Extended(np.concatenate(hi, axis), np.concatenate(lo, axis))


def identity(size: int, count: int) -> Extended:
    """The unit matrix, ``count`` times."""
    return Extended.of(np.repeat(np.eye(size)[:, :, None], count, axis=2))


def polynomial_values(polynomials: Sequence[Sequence[Fraction]], x: Array) -> Extended:
    """Polynomials with exact ascending coefficients at doubles x, shape (number of polynomials, n)."""
    degree = max(len(p) for p in polynomials)
    point = Extended.of(x)
    value = Extended.of(np.zeros((len(polynomials), x.size)))
    for k in range(degree - 1, -1, -1):
        exact = [p[k] if k < len(p) else Fraction(0) for p in polynomials]
        hi = [float(c) for c in exact]
        lo = [float(c - Fraction(h)) for c, h in zip(exact, hi, strict=True)]
        value = value.scaled(point) + Extended(np.array(hi)[:, None], np.array(lo)[:, None])
    return value


def _parts(a: Extended) -> tuple[Array, Array, Array, Array]:
    return (a.hi, a.lo, *split(a.hi))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _normalised(hi: Array, lo: Array) -> Extended:
    total = hi + lo
    return Extended(total, lo - (total - hi))


def _product(
    a: Array, a_lo: Array, a_high: Array, a_low: Array, b: Array, b_lo: Array, b_high: Array, b_low: Array
) -> tuple[Array, Array]:
    """The product of two double-doubles: rounded to double, and the error of that (Dekker)."""
    product = a * b
    error = a_high * b_high - product
    error += a_high * b_low
    error += a_low * b_high
    error += a_low * b_low
    error += a * b_lo
    error += a_lo * b
    return product, error
