r"""Matrix products to twice the working precision, and the residual of a Stein equation by them.

A matrix is cut into slices of so few bits, counted from the largest entry of each row (of the left factor) or column
(of the right one), that the product of two slices is exact in double precision whatever the order of the additions
(Ozaki, Ogita, Oishi and Rump, Numer. Algorithms 59, 2012).  So the result depends on no BLAS kernel, and matrix
products do nearly all the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._doubledouble import split

__all__ = ["SLICES", "Pair", "difference", "product", "slice_bits", "stein_residual"]

Array: TypeAlias = NDArray[np.float64]

#: Slices of a matrix, of some 22 bits each: more than the 53 of a double, for entries below the largest of their row.
SLICES = 4


@dataclass(frozen=True)
class Pair:
    """The unevaluated sum of two arrays, ``low`` at most the rounding of ``high``."""

    high: Array
    low: Array

    @classmethod
    def of(cls, a: Array) -> Pair:
        """An array as it is."""
        return cls(a, np.zeros_like(a))

    def __add__(self, other: Pair) -> Pair:
        total, rest = _two_sum(self.high, other.high)
        return _normalised(total, rest + (self.low + other.low))

    def times(self, factor: Fraction) -> Pair:
        """The product with a rational."""
        top = float(factor)
        rest = float(factor - Fraction(top))
        large, small = split(np.array(top))
        high, low = split(self.high)
        exact = self.high * top
        error = ((high * large - exact) + high * small + low * large) + low * small  # Dekker
        return _normalised(exact, error + (self.high * rest + self.low * top))

    @property
    def T(self) -> Pair:
        """The transpose."""
        return Pair(self.high.T, self.low.T)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Sum and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def difference(a: Array, b: Array) -> Pair:
    """``a - b``, exactly."""
    return Pair(*_two_sum(a, -b))


def _normalised(high: Array, low: Array) -> Pair:
    total = high + low
    return Pair(total, low - (total - high))


def slice_bits(n: int) -> int:
    """The bits of a slice, for inner dimension n: two slices and log2(n) additions fill the 53 of a double."""
    return (51 - max(0, math.ceil(math.log2(n)))) // 2


def _slices(a: Array, bits: int, axis: int) -> list[Array]:
    """Slices whose sum is ``a`` to ``SLICES * bits`` bits of the largest entry along the axis."""
    out = []
    rest = a
    for _ in range(SLICES):
        largest = np.max(np.abs(rest), axis=axis, keepdims=True)
        exponent = np.frexp(np.where(largest > 0.0, largest, 1.0))[1]
        # Adding and subtracting a power of two 2^(52 - bits) times the largest entry rounds all others to its grid.
        shift = np.ldexp(1.5, exponent + 52 - bits)
        top = (rest + shift) - shift
        out.append(top)
        rest = rest - top
    return out


def product(a: Pair, b: Pair) -> Pair:
    """``a @ b``, to ``2^(-SLICES * slice_bits)`` of the largest entries of the row of a and the column of b."""
    bits = slice_bits(a.high.shape[1])
    left, right = _slices(a.high, bits, axis=1), _slices(b.high, bits, axis=0)
    total = Pair.of(a.high @ b.low + a.low @ b.high)
    for level in range(2 * SLICES - 2, -1, -1):  # the smallest first; below SLICES bits nothing need be exact
        for i in range(max(0, level - SLICES + 1), min(level, SLICES - 1) + 1):
            total = total + Pair.of(left[i] @ right[level - i])
    return total


def stein_residual(d: Pair, x: Pair, q: Pair) -> Array:
    """``D X D' + D X + X D' + Q`` for symmetric X and Q, rounded once."""
    left = product(d, x)
    total = left + left.T + q + product(left, d.T)
    out = total.high + total.low
    return np.asarray(0.5 * (out + out.T))
