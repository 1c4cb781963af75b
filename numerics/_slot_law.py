"""What every covariance of slots can tell: a block, several stacked, the total variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ..theory import Optimizer
from ._arrays import shown, tuple_of
from ._result import ArrayResult

__all__ = ["SlotLaw", "slot_index", "slot_indices"]

Array: TypeAlias = NDArray[np.float64]


class SlotLaw(ArrayResult):
    """A covariance of all slots: the block of the weights, ``value``, is at hand, the others are solved on demand."""

    value: Array
    optimizer: Optimizer
    _solve_block: Callable[[int, int], Array]
    _on_demand: ClassVar[tuple[str, ...]] = ("_solve_block",)

    def settle(self) -> None:
        """Solve for the covariance of every pair of slots."""
        size = len(self.slots)
        for a in range(size):
            for b in range(a, size):
                self._block(a, b)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots, the weights first."""
        return self.optimizer.rule.slots

    def block(self, a: str, b: str) -> Array:
        """The covariance ``Cov(a, b)`` of two slots, shape (d, d).

        Parameters
        ----------
        a, b : str
            Slot names.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            If the rule has no such slot.
        """
        return self._block(slot_index(self.optimizer, a), slot_index(self.optimizer, b))

    def joint(self, slots: Sequence[str] | None = None) -> Array:
        """The joint covariance of slots, stacked in the order given (all slots by default), shape (k d, k d).

        Parameters
        ----------
        slots : sequence of str, optional
            Slot names.

        Returns
        -------
        ndarray, shape (k * d, k * d)

        Raises
        ------
        InvalidProblemError
            If the rule has no such slot, or none is named.
        """
        indices = slot_indices(self.optimizer, self.slots if slots is None else slots)
        return np.block([[self._block(a, b) for b in indices] for a in indices])

    @property
    def trace(self) -> float:
        """Total variance of the weights."""
        return float(np.trace(self.value))

    def _block(self, a: int, b: int) -> Array:
        if a > b:
            return self._block(b, a).T
        if (a, b) == (0, 0):
            return self.value
        if (a, b) not in self._blocks:
            self._blocks[a, b] = block = self._solve_block(a, b)
            block.flags.writeable = False
        return self._blocks[a, b]

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], Array]:
        return {}


def slot_index(optimizer: Optimizer, name: str) -> int:
    """Which slot of the rule it is."""
    known = optimizer.rule.slots
    if not isinstance(name, str) or name not in known:
        raise InvalidProblemError(f"{optimizer.rule.name} has no slot {shown(name)}; it has {', '.join(known)}")
    return known.index(name)


def slot_indices(optimizer: Optimizer, slots: Sequence[str]) -> list[int]:
    """Which slots of the rule they are, at least one."""
    names = tuple_of("slots", slots)
    if not names:
        raise InvalidProblemError("slots is empty: name at least one slot, such as ('w',)")
    return [slot_index(optimizer, name) for name in names]
