r"""Double-double arithmetic: a number as the unevaluated sum ``hi + lo`` of two doubles, about 32 digits, vectorised.

Only what the evaluation of polynomials needs: the exact product of two doubles (Dekker's, from Veltkamp's splitting),
the exact sum (Knuth's), and one Horner step made of them.  With :math:`u = 2^{-53}` the step

.. math:: a \leftarrow a\,y + q

commits an error of at most :math:`16\,u^2\,(|a y| + |q|)` for double-double a, q and a double y, as long as nothing
underflows; `HORNER_ERROR` is that factor.  The bound is absolute in the magnitudes, which is all that a running error
bound asks for, so the short form of the addition is enough.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["HORNER_ERROR", "from_integer", "horner_step", "split"]

Array: TypeAlias = NDArray[np.float64]

#: Error of one Horner step, as a multiple of ``|a*y| + |q|``.
HORNER_ERROR = 16.0 * 2.0**-106

_SPLITTER = 2.0**27 + 1.0


def split(a: Array) -> tuple[Array, Array]:
    """Two halves of at most 26 bits each with ``high + low == a``."""
    t = _SPLITTER * a
    high = t - (t - a)
    return high, a - high


def horner_step(
    hi: Array, lo: Array, y: Array, y_halves: tuple[Array, Array], q_hi: Array | float, q_lo: Array | float
) -> tuple[Array, Array]:
    """One step ``(hi + lo) * y + (q_hi + q_lo)`` in double-double; all arguments broadcast."""
    y_high, y_low = y_halves
    product = hi * y
    high, low = split(hi)
    error = ((high * y_high - product) + high * y_low + low * y_high) + low * y_low
    error += lo * y
    total = product + q_hi
    part = total - product
    rest = (product - (total - part)) + (q_hi - part)
    rest += error + q_lo
    new_hi = total + rest
    return new_hi, rest - (new_hi - total)


def from_integer(n: int, exponent: int) -> tuple[float, float]:
    """The double-double nearest to ``n * 2**exponent`` (relative error below 2**-105)."""
    excess = max(n.bit_length() - 120, 0)
    n = (n + (1 << excess >> 1)) >> excess
    hi = float(n)
    lo = float(n - int(hi))
    scale = exponent + excess
    return float(np.ldexp(hi, scale)), float(np.ldexp(lo, scale))
