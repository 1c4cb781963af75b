"""Random numbers of a run, all from one torch generator: normals by the block, and subsets without repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Gradient", "distinct_rows", "normals", "range_factor"]

Gradient = Callable[[torch.Tensor], torch.Tensor]
Array = NDArray[np.float64]

#: Random numbers drawn at once: enough steps to make the call cheap, few enough to stay in the cache.
DRAWS_AT_ONCE = 1 << 17


def normals(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Standard normals of this shape in double precision, again and again.

    They are drawn in single precision and cast, several times faster than drawing doubles; their covariance is exact to
    about 1e-7.
    """
    steps = max(1, DRAWS_AT_ONCE // max(1, math.prod(shape)))
    block = torch.empty((steps, *shape), dtype=torch.float32, device=generator.device)
    while True:
        block.normal_(generator=generator)
        for drawn in block:
            yield drawn.double()


def range_factor(noise: Array) -> Array:
    """L of shape (d, rank) with L L^T = noise; eigenvalues that are rounding of the largest are left out."""
    values, vectors = np.linalg.eigh(noise)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    factor = vectors[:, kept] * np.sqrt(values[kept])
    factor[np.diag(noise) == 0.0] = 0.0  # a variance of exactly 0 stays exactly 0
    return np.ascontiguousarray(factor)


def distinct_rows(examples: int, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Rows of distinct indices, each row a uniformly random subset.

    Draws that repeat an earlier one of their row are drawn again until none is left. The procedure treats all examples
    alike, hence so does the law of the set it ends with: every subset is equally likely.
    """
    device = generator.device
    if 2 * shape[1] > examples:
        keys = torch.rand((shape[0], examples), generator=generator, dtype=torch.float64, device=device)
        return keys.topk(shape[1], dim=1, sorted=False).indices
    drawn = torch.randint(examples, shape, generator=generator, device=device).sort(dim=1).values
    rows = torch.arange(shape[0], device=device)
    while len(rows):
        part = drawn[rows]
        repeated = torch.zeros_like(part, dtype=torch.bool)
        repeated[:, 1:] = part[:, 1:] == part[:, :-1]
        again = torch.randint(examples, (int(repeated.sum()),), generator=generator, device=device)
        part[repeated] = again
        part = part.sort(dim=1).values
        drawn[rows] = part
        rows = rows[repeated.any(dim=1)]
    return drawn
