"""Double precision that knows its own error: a value beside a bound on how far rounding has taken it.

The arguments are taken as exact. Every operation adds what it can lose and carries on what has been lost, so that a
difference of nearly equal numbers shows the digits that it cost. Where a bound cannot be given it is infinite or not a
number, and compares as too large.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Rounded", "functions"]

# Four units in the last place of a double: a complex product loses up to sqrt(5) of them, any other operation less.
_UNIT = 2.0**-51


class Rounded:
    """An array of doubles (or complex ones) with a bound on the absolute error of each.

    Examples
    --------
    >>> import numpy as np
    >>> one = Rounded(np.array([1.0, 1e-17])) + 1 - 1
    >>> bool(one.error[1] > abs(one.value[1] - 1e-17))
    True
    """

    __array_ufunc__ = None  # an array on the left leaves the operation to this class

    def __init__(self, value: Any, error: Any = 0.0) -> None:
        self.value, self.error = value, error

    def __add__(self, other: Any) -> Rounded:
        other = _lifted(other)
        return _after(self.value + other.value, self.error + other.error)

    def __mul__(self, other: Any) -> Rounded:
        other = _lifted(other)
        carried = abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        return _after(self.value * other.value, carried)

    def __truediv__(self, other: Any) -> Rounded:
        other = _lifted(other)
        value = self.value / other.value
        return _after(value, (self.error + abs(value) * other.error) / _room(other))

    def __pow__(self, other: Any) -> Rounded:
        size = abs(self.value)
        if isinstance(other, int):
            if other < 0:
                return _lifted(1) / self**-other
            # (s + e)^n - s^n bounds the error, also at s = 0.
            return _after(self.value**other, (size + self.error) ** other - size**other, other)
        np, other = sys.modules["numpy"], _lifted(other)
        value = self.value**other.value
        logarithm = abs(np.log(size)) + 4.0  # of a complex base, its argument included
        exponent = abs(other.value) * self.error / _room(self) + other.error * logarithm
        # A real power is rounded once; a complex one goes through the logarithm.
        exponent = exponent + _unit(value) * (1.0 + np.iscomplexobj(self.value) * abs(other.value) * logarithm)
        return _after(value, abs(value) * np.expm1(exponent))

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __sub__(self, other: Any) -> Rounded:
        return self + -_lifted(other)

    def __rsub__(self, other: Any) -> Rounded:
        return -self + _lifted(other)

    def __rtruediv__(self, other: Any) -> Rounded:
        return _lifted(other) / self

    def __rpow__(self, other: Any) -> Rounded:
        return _lifted(other) ** self

    __radd__, __rmul__ = __add__, __mul__


def functions() -> dict[str, Any]:
    """Return the functions that compiled formulas call by name, for values that know their error."""
    np = sys.modules["numpy"]

    def sqrt(x: Any) -> Rounded:
        x = _lifted(x)
        value = np.sqrt(x.value + 0j)
        # |sqrt x - sqrt y| = |x - y|/|sqrt x + sqrt y|, and both roots lie in the right half plane.
        return _after(value, x.error / abs(value))

    def bounded(function: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Callable[[Any], Rounded]:
        def call(x: Any) -> Rounded:
            x = _lifted(x)
            value = function(x.value)
            return _after(value, slope(x) * x.error + _unit(value))

        return call

    def acos_slope(x: Rounded) -> Any:
        return 1.0 / np.sqrt(1.0 - (abs(x.value) + x.error) ** 2)

    def exp(x: Any) -> Rounded:
        x = _lifted(x)
        value = np.exp(x.value)
        return _after(value, abs(value) * np.expm1(x.error))

    return {
        "sqrt": sqrt,
        "exp": exp,
        "sin": bounded(np.sin, lambda x: 1.0),
        "cos": bounded(np.cos, lambda x: 1.0),
        "arccos": bounded(np.arccos, acos_slope),
        "pi": Rounded(np.pi, _UNIT),
    }


def _lifted(x: Any) -> Rounded:
    if isinstance(x, Rounded):
        return x
    # A quotient of integers arrives as the double next to it.
    return Rounded(x, 0.0 if isinstance(x, int) and abs(x) < 2**53 else _UNIT * abs(x))


def _after(value: Any, error: Any, operations: int = 1) -> Rounded:
    return Rounded(value, error * (1.0 + 8 * _UNIT) + operations * _unit(value) * abs(value))


def _unit(value: Any) -> Any:
    """Return four units in the last place of the precision in which a value is held, at most that of doubles."""
    np = sys.modules["numpy"]
    dtype = getattr(value, "dtype", None)
    return _UNIT if dtype is None else min(_UNIT, float(2 * np.finfo(dtype).eps))


def _room(x: Rounded) -> Any:
    """Return how far from 0 the true value is at least; 0 (and so an infinite error) where it may be 0."""
    room = abs(x.value) - x.error
    return room * (room > 0)
