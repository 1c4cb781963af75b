r"""A run under gradient noise that depends on the weights: mean and covariance, one step after another.

With :math:`M = q^\top S q` the covariance of the point at which the gradient is taken, and m its mean,

.. math:: S' = A S A^\top + b b^\top \otimes \big[C(m) + \mathcal V(M)\big] .

The noise at the moving mean contains the cross term between the mean and the examples' own gradients.  What is left of
the start obeys the same equation without :math:`C(m)`, what has been built since starts from 0; both are kept.  Steps
are taken with the increment D = A - I, until they change nothing more, and every block of a slot with itself is
symmetric by construction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DivergenceError, ScaleError
from ..theory import Optimizer
from ._extended import Extended
from ._problem import Problem
from ._run import Bound, Records, Run, warn_if_long
from ._second_moment import Triangle, rotated_map
from ._step_family import StepFamily
from .noise import GradientNoise
from .schedules import counted

__all__ = ["NoisyRun"]

Array: TypeAlias = NDArray[np.float64]

#: Steps between two looks at the clock, until the time of those that are left has been estimated.
_FIRST = 256


class NoisyRun(Run):
    """A run through the phases of a schedule in which the noise follows the weights."""

    def __init__(
        self,
        bound: Bound,
        problem: Problem,
        noise: GradientNoise,
        mean: Extended,
        law: Extended | None,
        rest: Sequence[Fraction],
    ) -> None:
        h = problem.directions.eigenvalues
        m, n = mean.hi.shape[0], h.size
        family = StepFamily((o for o, _ in bound), h, rest, scaled=False)
        super().__init__(bound, family, problem, law, mean, problem.directions.rotate(noise.optimum))
        self._source, self._rest = noise, np.array([float(r) for r in rest])
        self._left = np.zeros((m, m, n, n)) if law is None else np.array(law.hi)
        self._built = np.zeros((m, m, n, n))
        self._delta = mean.hi[:, 0]
        self._map = rotated_map(problem, noise, np.arange(n))
        if Triangle(n).length < sum(count for _, count in bound):
            self._map = Triangle(n).tabulated(self._map)
        self._noise_at: tuple[Array, Array] | None = None

    def records(self, times: Collection[int]) -> Iterator[Records]:
        """The laws at these times, one by one."""
        wanted, segments = set(times), self._segments(sorted(times))
        if 0 in wanted:
            yield self._now(self._bound[0][0], 0)
        self._begun, self._taken, self._warned = time.monotonic(), 0, False
        self._steps = sum(count for _, count in self._bound)
        for segment in segments:
            self._advance(segment.optimizer, segment.count, self._name(segment))
            if segment.end in wanted:
                yield self._now(segment.optimizer, segment.end)

    def _now(self, optimizer: Optimizer, now: int) -> Records:
        variances = np.diagonal(self._left[0, 0] + self._built[0, 0])
        level = np.finfo(np.float64).eps * variances.size * float(np.max(variances, initial=0.0))
        left, built = self._left.copy(), self._built.copy()
        mean = Extended.of(self._delta[:, None].copy())

        def parts(a: int, b: int) -> tuple[Array, Array]:
            return left[a, b][None], built[a, b][None]

        return Records((now,), (optimizer,), parts, mean, variances > level)

    def _advance(self, optimizer: Optimizer, count: int, where: str) -> None:
        steps, push = self._family([optimizer])
        self._point = self._family.gradient_point(optimizer)
        increment, gain, delta = steps.increment.hi[:, :, 0], steps.gain.hi[:, 0, 0], self._delta
        drive = 0.0 if push is None else push.hi[:, 0, 0] * self._problem.directions.rotate(self._source.optimum)
        if np.any((gain != 0) & (np.abs(gain) < 1e-150)):
            raise ScaleError(
                f"{where}: the square of a noise gain of {np.min(np.abs(gain[gain != 0])):.3g} is too small for a "
                f"double. Rescale the weights."
            )
        for _ in range(count):
            noise = self._noise_at_mean(delta)
            before = self._left, self._built, delta
            with np.errstate(over="ignore", invalid="ignore"):
                size = float(np.trace(self._left[0, 0] + self._built[0, 0]))
                self._left = self._stepped(self._left, increment, gain, 0.0)
                self._built = self._stepped(self._built, increment, gain, noise)
                delta = delta + np.einsum("abn,bn->an", increment, delta) + drive
            if not (np.isfinite(self._left).all() and np.isfinite(self._built).all() and np.isfinite(delta).all()):
                raise self._overflow(where, size)
            self._taken += 1
            if self._taken % _FIRST == 0 and not self._warned and time.monotonic() - self._begun > 2.0:
                self._warned = True
                warn_if_long(self._begun, self._taken / self._steps, f"{counted(self._steps)} under noise that moves")
            if all(map(np.array_equal, before, (self._left, self._built, delta))):
                break  # the law has settled to the last bit: no further step of the same changes it
        self._delta = delta

    def _stepped(self, law: Array, increment: Array, gain: Array, noise: Array | float) -> Array:
        """One step of a covariance of all slots."""
        point = np.einsum("a,abij,b->ij", self._point, law, self._point)
        added = self._map(0.5 * (point + point.T)) + noise
        half = law + np.einsum("aci,cbij->abij", increment, law)
        out = half + np.einsum("acij,bcj->abij", half, increment)
        out += (gain[:, None, :, None] * gain[None, :, None, :]) * added
        return np.asarray(0.5 * (out + out.transpose(1, 0, 3, 2)))

    def _noise_at_mean(self, delta: Array) -> Array:
        """The noise at the mean of the gradient's point, computed again only when that has moved."""
        directions = self._problem.directions
        centre = float(self._point @ self._rest) * self._source.optimum
        point = np.concatenate([centre, np.asarray(self._point @ delta)])
        if self._noise_at is None or not np.array_equal(self._noise_at[0], point):
            at = self._source.covariance(centre + directions.rotate_back(point[centre.size :]))
            self._noise_at = point, directions.rotate(at)
        return self._noise_at[1]

    def _overflow(self, where: str, size: float) -> DivergenceError:
        """The error for numbers that have overflowed, by what they were before."""
        variances = np.diagonal(self._left[0, 0] + self._built[0, 0])
        worst = int(np.argmax(np.where(np.isnan(variances), np.inf, variances)))
        with np.errstate(all="ignore"):
            growth = float(np.sqrt(np.nansum(variances) / size)) if size else float("inf")
        return DivergenceError(where, float(self._problem.directions.eigenvalues[worst]), growth)
