"""The log-determinant of a covariance on its range, told from rounding direction by direction."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ._arrays import rounding_level

__all__ = ["log_determinant"]

Array: TypeAlias = NDArray[np.float64]


def log_determinant(s: Array, heard: NDArray[np.bool_]) -> tuple[float, int]:
    """Sum of the logarithms of the eigenvalues above rounding, and their number.

    ``s`` is in the eigenbasis of the Hessian; only the directions ``heard`` can vary.  Variances taken out first, tiny
    eigenvalues keep their digits.
    """
    kept = np.flatnonzero(heard & (np.diagonal(s) > 0))
    if not kept.size:
        return 0.0, 0
    deviation = np.sqrt(np.diagonal(s)[kept])
    correlation = s[np.ix_(kept, kept)] / deviation / deviation[:, None]
    spectrum = scipy.linalg.eigvalsh(correlation, check_finite=False)
    spectrum = spectrum[spectrum > rounding_level(correlation)]
    rank = int(spectrum.size)
    if rank == kept.size:
        return float(np.sum(np.log(spectrum)) + 2 * np.sum(np.log(deviation))), rank
    whole = scipy.linalg.eigvalsh(s, check_finite=False)[s.shape[0] - rank :]
    return float(np.sum(np.log(whole))), rank
