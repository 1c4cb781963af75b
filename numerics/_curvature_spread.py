r"""How unequal the curvatures of examples are: the map :math:`S \mapsto \frac1N \sum_n K_n S K_n`.

:math:`K_n = H_n - H` is what an example's Hessian differs from the mean.  Written out, the map is
:math:`\frac1N \sum_n H_n S H_n - H S H`, a difference of two numbers that agree where the examples do: of equal
examples only rounding would be left, of either sign, and a map that keeps no cone has no Perron root.  So the Hessians
are centred first.  In few dimensions the map is a table of the size of :math:`H \otimes H`, whatever N is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_TABLE", "CurvatureSpread", "curvature_spread"]

Array: TypeAlias = NDArray[np.float64]

#: Up to this d the map is a table of d^4 numbers.
LARGEST_TABLE = 16
#: Numbers in the Hessians that are held at a time.
_HELD = 2**20


@dataclass(frozen=True)
class CurvatureSpread:
    """The map as a table, for Hessians in units of a power of two, so that no square of them overflows."""

    table: Array
    unit: float

    def __call__(self, spread: Array) -> Array:
        """The map of a symmetric matrix, exactly symmetric."""
        d = spread.shape[0]
        # one unit before and one after the product: between them the numbers are of the size of the spread
        image = (self.table @ (spread * self.unit).ravel()).reshape(d, d) * self.unit
        return np.asarray(0.5 * (image + image.T))


def curvature_spread(count: int, dim: int, hessians: Callable[[slice], Array]) -> CurvatureSpread:
    """Tabulate the map.

    Parameters
    ----------
    count : int
        The number N of examples.
    dim : int
        d, at most `LARGEST_TABLE`.
    hessians : callable
        Maps a slice of the examples to their Hessians, shape (n, d, d).
    """
    step = max(1, _HELD // dim**2)
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    largest = max(float(np.max(np.abs(hessians(part)))) for part in parts)
    unit = float(np.ldexp(1.0, np.frexp(largest)[1])) if largest > 0.0 else 1.0
    mean = np.sum([np.sum(hessians(part) / unit, axis=0) for part in parts], axis=0) / count
    products = np.zeros((dim * dim, dim * dim))
    for part in parts:
        centred = (hessians(part) / unit - mean).reshape(-1, dim * dim)
        products += centred.T @ centred
    # products[(a, c), (b, d)] = sum_n K_n[a, c] K_n[b, d], and the image is [a, b] = sum_cd of it times S[c, d]
    table = products.reshape((dim,) * 4).transpose(0, 2, 1, 3).reshape(dim * dim, dim * dim)
    return CurvatureSpread(table / count, unit)
