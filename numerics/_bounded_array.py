"""A read-only array that knows a bound on its own error; what is computed from it is a plain array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoundedArray"]


class BoundedArray(np.ndarray):
    """An array with ``error``, a bound on its relative forward error in the Frobenius norm.

    Slices and results of arithmetic are plain arrays: the bound is of the whole.
    """

    error: float

    def __new__(cls, values: NDArray[np.float64], error: float) -> BoundedArray:
        out = np.array(values, dtype=np.float64).view(cls)
        out.error = error
        out.flags.writeable = False
        return out

    def __array_finalize__(self, source: object) -> None:
        self.error = float("nan")

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundedArray, (np.array(self), self.error)

    def __copy__(self) -> BoundedArray:
        return BoundedArray(np.asarray(self), self.error)

    def __deepcopy__(self, memo: Any) -> BoundedArray:
        return BoundedArray(np.asarray(self), self.error)
