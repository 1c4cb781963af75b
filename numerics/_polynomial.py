r"""Polynomials with exact integer coefficients, evaluated to the last bit at floating-point arguments.

:math:`P(x, y) = \sum_{kn} c_{kn} x^k y^n` is evaluated by Horner's rule in double-double, together with the sum of the
magnitudes of its terms.  That gives a rigorous bound of the relative error of every value; the few values that the
bound does not certify to half a unit in the last place (a heavy cancellation) are computed again in exact integer
arithmetic.  So a value is always within one unit in the last place of the exact one, whatever cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._doubledouble import HORNER_ERROR, from_integer, horner_step, split

__all__ = ["ExactPolynomial", "PreparedPolynomial", "binary_exponent", "same_size"]

Array: TypeAlias = NDArray[np.float64]
Layer: TypeAlias = tuple[Array, Array, Array]

#: Values are certified to this relative error before they are rounded to double.
_CERTIFIED = 2.0**-54
#: Magnitudes below this could have lost something to underflow and are not certified.
_SAFE = 2.0**-900
#: Binary orders of magnitude over which arguments share their units.
_SAME_SIZE = 100


def binary_exponent(*arrays: Array) -> int:
    """The smallest s with all entries at most 2**s in magnitude; 0 for nothing but zeros."""
    largest = max((float(np.max(np.abs(a), initial=0.0)) for a in arrays), default=0.0)
    return int(np.frexp(largest)[1]) if largest > 0 else 0


@dataclass(frozen=True)
class ExactPolynomial:
    """A polynomial in x and y; ``terms[k, n]`` is the integer coefficient of ``x**k * y**n``."""

    terms: Mapping[tuple[int, int], int]

    @property
    def swapped(self) -> ExactPolynomial:
        """``P(y, x)``."""
        return ExactPolynomial({(n, k): c for (k, n), c in self.terms.items()})

    @property
    def euler_x(self) -> ExactPolynomial:
        """``x dP/dx``."""
        return ExactPolynomial({(k, n): k * c for (k, n), c in self.terms.items() if k})

    @cached_property
    def degrees(self) -> tuple[int, int]:
        """Degree in x and in y (0 for the zero polynomial)."""
        return max((k for k, _ in self.terms), default=0), max((n for _, n in self.terms), default=0)

    def prepare(self, x: Array, scale: int, scale_y: int | None = None) -> PreparedPolynomial:
        """Evaluate in x, leaving a polynomial in y; x is at most ``2**scale`` in size, the later y ``2**scale_y``."""
        return PreparedPolynomial.of(self, x, scale, scale if scale_y is None else scale_y)

    def __call__(self, x: Array, y: Array | None = None) -> tuple[Array, int]:
        """Values at broadcast x, y as ``(mantissa, exponent)``, value = mantissa * 2**exponent, to one ulp."""
        x = np.asarray(x, dtype=np.float64)
        y = np.zeros(()) if y is None else np.asarray(y, dtype=np.float64)
        prepared = self.prepare(x, binary_exponent(x, y))
        return prepared(y), prepared.exponent

    def exactly(self, x: float, y: float) -> Fraction:
        """The exact value at two doubles."""
        fx, fy = Fraction(x), Fraction(y)
        return sum((c * fx**k * fy**n for (k, n), c in self.terms.items()), Fraction(0))

    def integers(self, x: Array, y: Array) -> tuple[NDArray[np.object_], int]:
        """The exact values at doubles, as integers times a common power of two."""
        (wholes_x, unit_x), (wholes_y, unit_y) = _wholes(x), _wholes(y)
        shifts = {(k, n): unit_x * k + unit_y * n for k, n in self.terms}
        base = min(shifts.values(), default=0)
        terms = {powers: c << (shifts[powers] - base) for powers, c in self.terms.items()}
        degree_x, degree_y = self.degrees
        total: NDArray[np.object_] = np.zeros(x.shape, dtype=object)
        for n in range(degree_y, -1, -1):
            inner: NDArray[np.object_] = np.zeros(x.shape, dtype=object)
            for k in range(degree_x, -1, -1):
                inner = inner * wholes_x + terms.get((k, n), 0)
            total = total * wholes_y + inner
        return total, base

    def signs(self, x: Array) -> NDArray[np.int8]:
        """The exact signs at doubles x of a polynomial in x alone, whatever their size."""
        out = np.zeros(x.shape, dtype=np.int8)
        # Where numbers are far smaller than the largest one, values in its units could be lost to underflow.
        for part in same_size(x):
            out[part] = np.sign(self(x[part])[0])
        return out


@dataclass(frozen=True)
class PreparedPolynomial:
    """A polynomial evaluated in x: layer n is the double-double coefficient of y**n and the sum of its magnitudes."""

    polynomial: ExactPolynomial
    x: Array
    scale_y: int
    exponent: int
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, polynomial: ExactPolynomial, x: Array, scale: int, scale_y: int) -> PreparedPolynomial:
        """Run the inner Horner rule, over x, for each power of y."""
        # In units of their scales the arguments are at most 1; the exponent brings the largest coefficient to about 1.
        scaled = {(k, n): (c, scale * k + scale_y * n) for (k, n), c in polynomial.terms.items() if c}
        exponent = max((c.bit_length() + e for c, e in scaled.values()), default=0)
        unit = np.ldexp(x, -scale)
        halves, size = split(unit), np.abs(unit)
        degree_x, degree_y = polynomial.degrees
        layers = []
        for n in range(degree_y + 1):
            hi, lo, magnitude = np.zeros_like(unit), np.zeros_like(unit), np.zeros_like(unit)
            for k in range(degree_x, -1, -1):
                c, e = scaled.get((k, n), (0, 0))
                c_hi, c_lo = from_integer(c, e - exponent)
                hi, lo = horner_step(hi, lo, unit, halves, c_hi, c_lo)
                magnitude = magnitude * size + abs(c_hi)
            layers.append((hi, lo, magnitude))
        return cls(polynomial, x, scale_y, exponent, tuple(layers))

    def __getitem__(self, index: slice) -> PreparedPolynomial:
        """The same polynomial at part of the x."""
        layers = tuple((hi[index], lo[index], size[index]) for hi, lo, size in self.layers)
        return PreparedPolynomial(self.polynomial, self.x[index], self.scale_y, self.exponent, layers)

    def __call__(self, y: Array) -> Array:
        """Values in units of ``2**exponent``, each within one ulp: at x and y broadcast, at x if y does not appear."""
        if self.polynomial.degrees[1] == 0:
            y = np.zeros(())
        unit = np.ldexp(y, -self.scale_y)
        halves = split(unit)
        hi, lo, _ = self.layers[-1]
        for q_hi, q_lo, _ in self.layers[-2::-1]:
            hi, lo = horner_step(hi, lo, unit, halves, q_hi, q_lo)
        values = np.array(np.broadcast_to(hi, np.broadcast_shapes(self.x.shape, y.shape)))
        if self.polynomial.terms:
            self._certify(values, y, np.abs(unit))
        return values

    def _certify(self, values: Array, y: Array, size: Array) -> None:
        """Compute again, exactly, every value whose error bound is not small enough."""
        bound = HORNER_ERROR * (sum(self.polynomial.degrees) + 2) / _CERTIFIED
        # The largest y first: where it clears a whole row, its bounds need not be computed one by one.
        largest = self._magnitude(np.asarray(np.max(size, initial=0.0)))
        modulus = np.abs(values)
        if np.all(modulus >= np.maximum(bound * largest, _SAFE)):
            return
        magnitude = self._magnitude(size)
        doubtful = (modulus < bound * magnitude) | (magnitude < _SAFE)
        if doubtful.any():
            self._repair(values, y, doubtful)

    def _magnitude(self, size: Array) -> Array:
        total = self.layers[-1][2]
        for _, _, q_size in self.layers[-2::-1]:
            total = total * size + q_size
        return total

    def _repair(self, values: Array, y: Array, doubtful: NDArray[np.bool_]) -> None:
        xs, ys = np.broadcast_to(self.x, values.shape)[doubtful], np.broadcast_to(y, values.shape)[doubtful]
        repaired = np.empty(xs.shape)
        parts = same_size(xs)
        for part in parts if len(parts) > 1 else [slice(None)]:
            wholes, base = self.polynomial.integers(xs[part], ys[part])
            repaired[part] = _rounded(wholes, base - self.exponent)
        values[doubtful] = repaired


def same_size(x: Array) -> list[NDArray[np.intp]]:
    """The indices of an array of one axis in groups, in each of which sizes differ by a factor of at most 2**100."""
    exponents = np.frexp(x)[1]
    top = int(exponents.max(initial=0))
    # A zero has the units of the largest.
    levels = np.where(x == 0, 0, (top - exponents) // _SAME_SIZE)
    if not levels.any():
        return [np.arange(x.size)]
    return [np.flatnonzero(levels == level) for level in np.unique(levels)]


def _wholes(x: Array) -> tuple[NDArray[np.object_], int]:
    """Doubles as integers times a common power of two."""
    mantissa, exponent = np.frexp(x)
    wholes = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
    used = exponent[x != 0]
    least = int(used.min()) if used.size else 0
    shifts = np.where(x == 0, 0, exponent - least)
    return (np.left_shift(wholes, shifts.astype(object)) if shifts.any() else wholes), least - 53


def _rounded(wholes: NDArray[np.object_], exponent: int) -> Array:
    """Integers times a power of two as doubles, to 2**-53 (1 + 2**-9) relative to each."""
    lengths = np.array([whole.bit_length() for whole in wholes.tolist()], dtype=np.int64)
    excess = np.maximum(lengths - 62, 0)
    leading = np.right_shift(wholes, excess.astype(object)).astype(np.int64).astype(np.float64)
    return np.asarray(np.ldexp(leading, np.clip(excess + exponent, -3000, 3000)))
