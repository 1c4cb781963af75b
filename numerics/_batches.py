r"""Batches of examples: their size, and the factor by which averaging over them shrinks a covariance.

The mean over a batch of B of N vectors has the covariance :math:`p V`, with V the population covariance (divisor N):

.. math:: p = \frac1B \ \text{(drawn independently)}, \qquad p = \frac{N - B}{B (N - 1)} \ \text{(distinct)} .
"""

from __future__ import annotations

import operator

import numpy as np

from ..errors import InvalidProblemError
from ._arrays import flag, shown

__all__ = ["batch_factor", "checked_batch_size", "draw_batches"]


#: The largest batch of fresh examples: up to here an integer is a double.
_MOST = 2**53


def checked_batch_size(batch_size: object, num_examples: int | None) -> int:
    """A batch size from 1 to the number of examples (None: of any size)."""
    try:
        size = operator.index(batch_size)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidProblemError(f"batch_size must be an integer, got {shown(batch_size)}") from error
    if isinstance(batch_size, bool | np.bool_) or size < 1:
        raise InvalidProblemError(f"batch_size must be an integer of at least 1, got {shown(batch_size)}")
    if num_examples is None and size > _MOST:
        raise InvalidProblemError(f"batch_size must be at most {_MOST}, got {shown(batch_size)}")
    if num_examples is not None and size > num_examples:
        raise InvalidProblemError(
            f"batch_size must be from 1 to the number of examples, {num_examples}, got {shown(batch_size)}"
        )
    return size


def batch_factor(batch_size: int, num_examples: int, replacement: bool) -> float:
    """The factor p of a checked batch size."""
    if flag("replacement", replacement):
        return 1.0 / batch_size
    if batch_size == num_examples:
        return 0.0
    return (num_examples - batch_size) / (batch_size * (num_examples - 1))


def draw_batches(
    rng: np.random.Generator, count: int, batch_size: int, num_examples: int, replacement: bool
) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Indices of ``count`` independent batches, shape (count, batch_size)."""
    if replacement or batch_size == 1:
        return rng.integers(num_examples, size=(count, batch_size))
    if 2 * batch_size**2 > num_examples:  # repetitions are the rule: order random numbers instead
        keys = rng.random((count, num_examples))
        return np.argpartition(keys, batch_size - 1, axis=1)[:, :batch_size]
    out = rng.integers(num_examples, size=(count, batch_size))
    rows = np.arange(count)
    while rows.size:  # whole batches again, so that every set is equally likely
        ordered = np.sort(out[rows], axis=1)
        rows = rows[np.any(ordered[:, 1:] == ordered[:, :-1], axis=1)]
        out[rows] = rng.integers(num_examples, size=(rows.size, batch_size))
    return out
