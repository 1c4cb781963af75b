"""What problems and results are: frozen, their arrays read-only, an array where they have one, fit to be pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayResult", "Frozen"]

Array: TypeAlias = NDArray[np.float64]


class Frozen:
    """Base of the frozen dataclasses that this layer takes and returns.

    Arrays among the fields are made read-only, so that writing to ``np.asarray(law)`` cannot change what the law says
    of itself.  A field that is a function, solving for something on demand, cannot be pickled; `settle` evaluates what
    such a field is for, and pickle and copy leave the field out.
    """

    #: Names of the fields that solve on demand.
    _on_demand: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._freeze()

    def _freeze(self) -> None:
        for item in vars(self).values():
            for array in item if isinstance(item, tuple) else (item,):
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False

    def settle(self) -> None:
        """Compute whatever a field that solves on demand is for."""

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**vars(self), **dict.fromkeys(self._on_demand)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._freeze()


class ArrayResult(Frozen):
    """A result that reads as an array wherever one is expected: as its ``value``, read-only."""

    if TYPE_CHECKING:  # a field in some results, a property in others

        @property
        def value(self) -> Array: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if dtype is None or np.dtype(dtype) == self.value.dtype:
            return self.value.copy() if copy else self.value
        if copy is False:
            raise ValueError(f"a view of float64 numbers as {np.dtype(dtype)} needs a copy")
        return self.value.astype(dtype)
