r"""Units of a linear recursion's state, powers of two, in which its numbers are of one size.

The recursion :math:`z' = A z + \xi` in the units t, :math:`z = T y`, is :math:`y' = T^{-1} A T y + T^{-1} \xi`.
Powers of two round nothing.  Balancing A fixes the units of entries that feed each other; what is not coupled has Q's
own units.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse.csgraph
from numpy.typing import NDArray

__all__ = ["state_units"]

Array: TypeAlias = NDArray[np.float64]

#: Units are kept within this of each other, so that their products are numbers.
LARGEST = 2.0**510


def state_units(a: Array, q: Array | None) -> Array:
    """Units that balance A and give each uncoupled part of the state a Q whose largest variance is of the order of 1.

    Q, positive semidefinite, may be None: then A alone is balanced.
    """
    # LAPACK itself: SciPy's wrapper casts the units to integers on the way
    units = np.array(scipy.linalg.lapack.dgebal(a, scale=1, permute=0)[3], dtype=np.float64)
    if q is not None and np.any(q):
        count, part = scipy.sparse.csgraph.connected_components(a != 0.0, directed=False)
        deviations = np.sqrt(np.maximum(np.diagonal(q), 0.0)) / units
        for k in range(count):
            largest = float(np.max(deviations[part == k]))
            if largest > 0.0:
                units[part == k] *= np.ldexp(1.0, round(float(np.log2(largest))))
    return np.clip(units, 1.0 / LARGEST, LARGEST)
