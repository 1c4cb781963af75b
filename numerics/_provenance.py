"""A noise covariance that remembers the minibatches of which it is the noise at the optimum."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batches", "NoiseCovariance", "batches_of"]

Array: TypeAlias = NDArray[np.float64]
#: A problem with examples, the batch size, and whether it is drawn with replacement: `MinibatchNoise`'s arguments.
Batches: TypeAlias = tuple[Any, int, bool]


class NoiseCovariance(np.ndarray[tuple[int, int], np.dtype[np.float64]]):
    """A read-only array with a memory; what is computed from it has none."""

    batches: Batches | None

    @classmethod
    def of(cls, values: Array, batches: Batches | None) -> NoiseCovariance:
        """The array with its memory."""
        out = np.array(values).view(cls)
        out.batches = batches
        out.flags.writeable = False
        return out

    def __array_finalize__(self, obj: Any) -> None:
        self.batches = None

    def __repr__(self) -> str:
        return repr(np.asarray(self))


def batches_of(noise: object) -> Batches | None:
    """The minibatches of which an array is the noise at the optimum, where it says so."""
    return noise.batches if isinstance(noise, NoiseCovariance) else None
