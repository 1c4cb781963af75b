r"""Weights of examples: the loss is :math:`\frac1N \sum_n a_n \ell_n`, with the weights as given."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays

__all__ = ["checked_weights"]

Array: TypeAlias = NDArray[np.float64]


def checked_weights(sample_weight: ArrayLike | None, num_examples: int) -> Array | None:
    """One finite weight of at least 0 for each example, not all 0; None for none."""
    if sample_weight is None:
        return None
    weights = _arrays.vector("sample_weight", sample_weight)
    if len(weights) != num_examples:
        raise InvalidProblemError(f"sample_weight must have one entry per example, {num_examples}, got {len(weights)}")
    if weights.min() < 0:
        n = int(weights.argmin())
        raise InvalidProblemError(f"sample_weight must be at least 0, got sample_weight[{n}] = {weights[n]:.6g}")
    if not weights.any():
        raise InvalidProblemError("sample_weight is 0 for every example: no loss is left")
    weights.flags.writeable = False
    return weights
