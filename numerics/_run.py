"""A run through the phases of a schedule: the law of pairs of directions, and the mean where one is given.

Slots are measured in the units of `StepFamily`, the noise, the start and the mean in powers of two of their own, so
that nothing on the way leaves the range of doubles that does not leave it in the result.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DivergenceError, ScaleError, SlowWarning
from ..theory import Optimizer
from ._directions import EPS
from ._evolution import Evolution, Steps, running, still
from ._extended import Extended
from ._initial import start_level
from ._polynomial import binary_exponent
from ._problem import Problem
from ._run_error import RunError, diagonals, joint_error
from ._step_family import StepFamily
from .schedules import counted, phase_name

__all__ = ["Bound", "Parts", "Records", "Run", "check_growth", "warn_if_long"]

Array: TypeAlias = NDArray[np.float64]
Bound: TypeAlias = tuple[tuple[Optimizer, int], ...]
#: What is left of the start and what noise has built, in two slots; shape (times, d, d) each.
Parts: TypeAlias = Callable[[int, int], tuple[Array, Array]]

#: Numbers in the maps of the phases that are run through at once.
_PART = 1 << 19
#: Seconds from which on an estimate of what is left is given.
_LONG = 20.0
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Records:
    """The laws at some times of a run, in the eigenbasis; ``mean`` of every slot around rest, shape (m, times, d)."""

    times: tuple[int, ...]
    optimizers: tuple[Optimizer, ...]
    parts: Parts
    mean: Extended
    heard: NDArray[np.bool_]
    #: Bounds on the relative errors of the covariances of the weights; None where none is known.
    error: Array | None = None


@dataclass(frozen=True)
class _Segment:
    """A number of equal steps to a time, none of which but the last is asked for."""

    optimizer: Optimizer
    count: int
    end: int
    phase: int


class Run:
    """An evolution through the phases of a schedule, and the mean where one is given."""

    def __init__(
        self,
        bound: Bound,
        family: StepFamily,
        problem: Problem,
        law: Extended | None = None,
        mean: Extended | None = None,
        target: Array | None = None,
        *,
        quiet: NDArray[np.intp] | tuple[()] = (),
    ) -> None:
        self._ends = tuple(itertools.accumulate(count for _, count in bound))
        self._bound, self._family, self._problem = bound, family, problem
        known, unit = problem.scaled_noise, np.array(family.units)
        noise, noise_error = known.covariance.copy(), known.error.copy()
        for array in (noise, noise_error):  # along directions that count as without noise
            array[list(quiet)] = 0.0
            array[:, list(quiet)] = 0.0
        m, d = unit.size, noise.shape[0]
        self.evolution = still(m, d)
        self._heard = problem.heard & (np.diagonal(noise) > 0)
        self._noise, self._noise_error, self._noise_scale = noise, noise_error, known.exponent
        self._law: Extended | None = None
        self._law_scale = 0
        if law is not None:
            self._heard = self._heard | (np.diagonal(law.hi[0, 0]) > start_level(law))
            self._law_scale = binary_exponent(law.hi) - 2 * int(unit.max())
            self._law = law.shifted(-(unit[:, None, None, None] + unit[:, None, None] + self._law_scale))
        begun = np.zeros((d, m, m))
        if self._law is not None:
            with np.errstate(over="ignore"):
                variances = np.diagonal(self._law.hi, axis1=2, axis2=3)
                begun = np.ldexp(np.moveaxis(variances, 2, 0), self._law_scale - self._noise_scale)
        entries = problem.hessian_error
        spectral = entries.spectral + sum(np.linalg.norm(a) * np.linalg.norm(b) for a, b in entries.terms)
        self.errors = RunError(float(np.ldexp(spectral, -family.scale)), begun, np.maximum(np.diagonal(noise), 0.0))
        # Of a start that was rotated into the eigenbasis.
        self._start_error = 0.0 if problem.directions.basis is None else 2.0 * (d + 4) * EPS
        mean = Extended.of(np.zeros((m, 1, d))) if mean is None else mean
        target = np.zeros(d) if target is None else target
        self._mean_scale = binary_exponent(mean.hi, target) - int(unit.max())
        self._mean = mean.shifted(-(unit[:, None, None] + self._mean_scale))
        self._target = np.ldexp(target, -self._mean_scale)

    def records(self, times: Collection[int]) -> Iterator[Records]:
        """The laws at these times, several at once."""
        wanted, size = set(times), self.evolution.power.hi.shape
        segments = self._segments(sorted(wanted))
        length = max(1, min(len(segments), _PART // (size[0] * size[2]) ** 2))
        if self.evolution.kernels is None:
            self.evolution = still(size[0], size[2], max(1, math.isqrt(length)))
        if self._law is None and not self._noise.any():  # the mean alone: no pair is asked for
            self.evolution = replace(self.evolution, tiles=(), kernels=())
        if 0 in wanted:
            yield self._recorded(
                self.evolution.stacked([]), (0,), (self._bound[0][0],), "at the start", *self.errors.now()
            )
        begun = time.monotonic()
        for first in range(0, len(segments), length):
            part = segments[first : first + length]
            phases, steps = self._phases(part)
            kept = np.array([segment.end in wanted for segment in part])
            found, last = running(phases, self.evolution, kept)
            if not (last.finite() and (found is None or found.finite())):
                self._diverged(part, phases, steps)
            self.evolution = last
            lost = self._lost(part, phases, steps)
            if found is not None:
                those = [segment for segment, keep in zip(part, kept, strict=True) if keep]
                ends, optimizers = tuple(s.end for s in those), tuple(s.optimizer for s in those)
                yield self._recorded(found, ends, optimizers, self._name(part[-1]), *(a[kept] for a in lost))
            if first == 0:
                warn_if_long(begun, length / len(segments), f"{len(segments):,} phases of {size[2]} directions")

    def settle(self, law: Evolution, once: Evolution) -> None:
        """Go on from the periodic law of these phases, of which ``once`` is one period; with its error."""
        self.evolution = law
        if self._noise.any():  # else no pair is asked for, and the law is 0
            weights = np.concatenate(diagonals(law.stacked([])), axis=1)[0]
            self.errors.start = self.errors.noise[:, None, None] * weights
        segments, m = self._segments(()), self.evolution.power.hi.shape[1:]
        length = max(1, min(len(segments), _PART // (m[0] * m[1]) ** 2))
        for first in range(0, len(segments), length):
            part = segments[first : first + length]
            self._lost(part, *self._phases(part))
        self.errors.forever(once)

    def _segments(self, times: Sequence[int]) -> list[_Segment]:
        out, now, pending = [], 0, list(reversed(times))
        for phase, (optimizer, count) in enumerate(self._bound):
            end = now + count
            while now < end:
                while pending and pending[-1] <= now:
                    pending.pop()
                stop = min(end, pending[-1]) if pending else end
                out.append(_Segment(optimizer, stop - now, stop, phase))
                now = stop
        return out

    def _phases(self, part: Sequence[_Segment]) -> tuple[Evolution, Steps]:
        """What each segment does, all of the same number of steps at once."""
        steps, push = self._family([segment.optimizer for segment in part])
        push = None if push is None else push.scaled(self._target)
        counts = np.array([segment.count for segment in part], dtype=object)
        done, order = [], []
        for count in sorted(set(counts)):
            these = np.flatnonzero(counts == count)
            some = Steps(steps.increment[:, :, these], steps.gain[:, :, these])
            driven = None if push is None else push[:, :, these]
            done.append(Evolution.of(self.evolution.tiles, some, count, driven))
            order.append(these)
        whole = done[0] if len(done) == 1 else done[0].joined(done[1:]).at(np.argsort(np.concatenate(order)))
        return whole, steps

    def _lost(self, part: Sequence[_Segment], phases: Evolution, steps: Steps) -> tuple[Array, Array]:
        """What rounding of the Hessian may have done by the end of every phase, and that of the steps."""
        if not self.evolution.tiles:
            return np.zeros(len(part)), np.zeros(len(part))
        counts = np.array([segment.count for segment in part], dtype=object)
        return self.errors.passed(phases, steps, counts, self._family.slopes([s.optimizer for s in part]))

    def _recorded(
        self,
        evolution: Evolution,
        times: tuple[int, ...],
        optimizers: tuple[Optimizer, ...],
        where: str,
        lost: Array,
        rounding: Array,
    ) -> Records:
        units, law, noise = self._family.units, self._law, self._noise

        def local(a: int, b: int) -> tuple[Array, Array]:
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                built = evolution.injected(a, b, noise)
                return np.zeros_like(built) if law is None else evolution.propagated(a, b, law), built

        left, built = weights = local(0, 0)
        with np.errstate(all="ignore"):
            left = np.ldexp(left, self._law_scale - self._noise_scale)
            kept = np.max(np.abs(evolution.power.hi[0]).sum(axis=0), axis=-1) ** 2
            start = 0.0 if law is None else np.ldexp(_size(law.hi), self._law_scale - self._noise_scale)
            if self._noise_error.any():
                lost = lost + _size(evolution.injected(0, 0, self._noise_error))
            lost = lost + (kept * (self._start_error * start) if self._start_error and start else 0.0)
            error = joint_error(self._problem, _size(left + built), lost) + rounding

        def parts(a: int, b: int) -> tuple[Array, Array]:
            left, built = weights if a == b == 0 else local(a, b)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                shifted = [
                    np.ldexp(values, units[a] + units[b] + scale)
                    for values, scale in ((left, self._law_scale), (built, self._noise_scale))
                ]
            if a == b:
                _check_scale(built, shifted[1], f"{where}: the variance of slot {optimizers[0].rule.slots[a]!r}")
            return shifted[0], shifted[1]

        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            mean = evolution.power @ self._mean[:, :, None]
            if evolution.pushed is not None:
                mean = mean + evolution.pushed
            mean = mean[:, 0].shifted(np.array(units)[:, None, None] + self._mean_scale)
        return Records(times, optimizers, parts, mean, self._heard, error)

    def check(self, finite: bool, optimizer: Optimizer, where: str) -> None:
        """Raise `DivergenceError` or `ScaleError` unless a result is finite."""
        check_growth(finite, self._family([optimizer])[0], self._problem.directions.eigenvalues, where)

    def _diverged(self, part: Sequence[_Segment], phases: Evolution, steps: Steps) -> None:
        """Raise the error for the first of these phases in which numbers overflow."""
        state = self.evolution
        for index, segment in enumerate(part):
            state = state.then(phases.at(index))
            one = Steps(steps.increment[:, :, index : index + 1], steps.gain[:, :, index : index + 1])
            check_growth(state.finite(), one, self._problem.directions.eigenvalues, self._name(segment))

    def _name(self, segment: _Segment) -> str:
        optimizer, count = self._bound[segment.phase]
        if len(self._bound) == 1:
            return f"{counted(count)} of {optimizer!r}"
        end = self._ends[segment.phase]
        return f"{phase_name(segment.phase, end - count, end)} of {optimizer!r}"


def check_growth(finite: bool, steps: Steps, h: Array, where: str) -> None:
    """Raise an error unless the result of these steps (of one time) is finite: growth, or units alone."""
    if finite:
        return
    growth = np.max(np.abs(np.linalg.eigvals(np.moveaxis(steps.transition.hi[:, :, 0], 2, 0))), axis=1)
    worst = int(np.argmax(growth))
    if growth[worst] > 1.0 + 1e-12:
        raise DivergenceError(where, float(h[worst]), float(growth[worst]))
    raise ScaleError(f"{where}: the covariance is too large for a double, although nothing grows. Rescale the problem.")


def _size(a: Array) -> Array:
    """The Frobenius norms over the last two axes."""
    return np.asarray(np.linalg.norm(a, axis=(-2, -1))) if a.ndim == 3 else np.asarray(np.linalg.norm(a))


def _check_scale(local: Array, value: Array, what: str) -> None:
    """Refuse a variance that units alone have made too small for a double."""
    lost = (np.diagonal(local, axis1=-2, axis2=-1) > 0) & (np.diagonal(value, axis1=-2, axis2=-1) < _TINY)
    if lost.any():
        raise ScaleError(
            f"{what} is too small for a double ({_TINY:.1e}), though not 0. Rescale the noise, and its "
            f"covariance with it."
        )


def warn_if_long(begun: float, share: float, what: str) -> None:
    """Say how long a computation will take of which this share is done, if that is long."""
    taken = time.monotonic() - begun
    left = taken / share - taken
    if left > _LONG:
        text = f"{what}: {taken:.1f} s for the first {share:.2g} of it, so about {left:.3g} s more."
        warnings.warn(text, SlowWarning, stacklevel=4)
