"""A run through the phases of a schedule: the law of pairs of directions, and the mean where one is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DivergenceError
from ..theory import Optimizer
from ._evolution import Evolution, Steps
from ._extended import Extended
from ._initial import mean_after, start_level
from ._problem import Problem
from ._step_family import StepFamily
from .schedules import phase_name

__all__ = ["Bound", "Parts", "Run", "check_growth", "parts_of"]

Array: TypeAlias = NDArray[np.float64]
Bound: TypeAlias = tuple[tuple[Optimizer, int], ...]
Parts: TypeAlias = Callable[[int, int], tuple[Array, Array]]


class Run:
    """An evolution through the phases of a schedule, and the mean where one is given."""

    def __init__(
        self,
        bound: Bound,
        family: StepFamily,
        h: Array,
        evolution: Evolution,
        mean: Extended | None = None,
        target: Array | None = None,
    ) -> None:
        self._bound, self._family, self._h, self._target = bound, family, h, target
        self.evolution, self.now, self.optimizer = evolution, 0, bound[0][0]
        self.mean = Extended.of(np.zeros((1, 1, h.size))) if mean is None else mean

    def stops(self, times: set[int]) -> Iterator[str]:
        """Go on to each of the times; gives the name of the phase."""
        pending = sorted(times, reverse=True)
        begin = 0
        for index, (optimizer, count) in enumerate(self._bound):
            end = begin + count
            where = f"{phase_name(index, begin, end)} of {optimizer!r}"
            while pending and pending[-1] <= end:
                self._advance(optimizer, pending.pop() - self.now, where)
                yield where
            if pending:
                self._advance(optimizer, end - self.now, where)
            begin = end

    def parts(self, problem: Problem, law: Extended | None) -> tuple[Parts, NDArray[np.bool_]]:
        """What is left of a start and what noise has built, in two slots, and which directions can vary."""
        return parts_of(problem, self.evolution, law)

    def check(self, finite: bool, where: str) -> None:
        """Raise `DivergenceError` unless a result is finite."""
        check_growth(finite, self._family(self.optimizer)[0], self._h, where)

    def _advance(self, optimizer: Optimizer, count: int, where: str) -> None:
        if not count:
            return
        self.optimizer = optimizer
        steps, push = self._family(optimizer)
        self.evolution = self.evolution.advance(steps, count)
        if self._target is not None:
            self.mean = mean_after(steps, count, self.mean, None if push is None else push.scaled(self._target))
        self.now += count
        self.check(self.evolution.finite() and self.mean.finite(), where)


def parts_of(problem: Problem, evolution: Evolution, law: Extended | None) -> tuple[Parts, NDArray[np.bool_]]:
    """What is left of a start and what noise has built, as functions of two slots, and which directions can vary."""
    noise = problem.rotated_noise
    heard = np.diagonal(noise) > problem.noise_level
    if law is not None:
        heard = heard | (np.diagonal(law.hi[0, 0]) > start_level(law))

    def parts(a: int, b: int) -> tuple[Array, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            left = np.zeros_like(noise) if law is None else evolution.propagated(a, b, law)
            return left, evolution.injected(a, b, noise)

    return parts, heard


def check_growth(finite: bool, steps: Steps, h: Array, where: str) -> None:
    """Raise `DivergenceError` unless the result of these steps is finite."""
    if finite:
        return
    growth = np.max(np.abs(np.linalg.eigvals(np.moveaxis(steps.transition.hi, 2, 0))), axis=1)
    worst = int(np.argmax(growth))
    raise DivergenceError(where, float(h[worst]), float(growth[worst]))
