r"""A run under gradient noise that depends on the weights: mean and covariance, one step after another.

With :math:`M = q^\top S q` the covariance of the point at which the gradient is taken, and m its mean,

.. math:: S' = A S A^\top + b b^\top \otimes \big[C(m) + \mathcal V(M)\big] .

The noise at the moving mean contains the cross term between the mean and the examples' own gradients.  What is left of
the start obeys the same equation without :math:`C(m)`, what has been built since starts from 0; both are kept.  Steps
are taken with the increment D = A - I, and every block of a slot with itself is symmetric by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DivergenceError
from ..theory import Optimizer
from ._evolution import Steps, still
from ._extended import Extended
from ._problem import Problem
from ._run import Bound, Parts, Run
from ._second_moment import Triangle, rotated_map
from ._step_family import StepFamily
from .noise import GradientNoise

__all__ = ["NoisyRun"]

Array: TypeAlias = NDArray[np.float64]


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
        target = problem.directions.rotate(noise.optimum)
        super().__init__(bound, StepFamily((o for o, _ in bound), h, rest), h, still(m, n), mean, target)
        self._problem, self._noise = problem, noise
        self._rest = np.array([float(r) for r in rest])
        self._point = self._family.gradient_point(bound[0][0])
        self._left = np.zeros((m, m, n, n)) if law is None else np.array(law.hi)
        self._built = np.zeros((m, m, n, n))
        self._map = rotated_map(problem, noise, np.arange(n))
        if Triangle(n).length < sum(count for _, count in bound):
            self._map = Triangle(n).tabulated(self._map)
        self._noise_at: tuple[Array, Array] | None = None

    def parts(self, problem: Problem, law: Extended | None) -> tuple[Parts, NDArray[np.bool_]]:
        """What is left of the start and what noise has built, in two slots, and which directions vary."""
        variances = np.diagonal(self._left[0, 0] + self._built[0, 0])
        level = np.finfo(np.float64).eps * variances.size * float(np.max(variances, initial=0.0))
        left, built = self._left.copy(), self._built.copy()
        return lambda a, b: (left[a, b], built[a, b]), variances > level

    def _advance(self, optimizer: Optimizer, count: int, where: str) -> None:
        self.optimizer = optimizer
        steps, push = self._family(optimizer)
        self._point = self._family.gradient_point(optimizer)
        increment = _increment(steps)
        gain = steps.gain.hi[:, 0]
        delta = self.mean.hi[:, 0]
        drive = 0.0 if push is None or self._target is None else push.scaled(self._target).hi[:, 0]
        for _ in range(count):
            noise = self._noise_at_mean(delta)
            with np.errstate(over="ignore", invalid="ignore"):
                size = float(np.trace(self._left[0, 0] + self._built[0, 0]))
                self._left = self._stepped(self._left, increment, gain, 0.0)
                self._built = self._stepped(self._built, increment, gain, noise)
                delta = delta + np.einsum("abn,bn->an", increment, delta) + drive
            if not (np.isfinite(self._left).all() and np.isfinite(self._built).all() and np.isfinite(delta).all()):
                raise self._overflow(where, size)
        self.mean = Extended.of(delta[:, None])
        self.now += count

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
        centre = float(self._point @ self._rest) * self._noise.optimum
        point = np.concatenate([centre, np.asarray(self._point @ delta)])
        if self._noise_at is None or not np.array_equal(self._noise_at[0], point):
            at = self._noise.covariance(centre + directions.rotate_back(point[centre.size :]))
            self._noise_at = point, directions.rotate(at)
        return self._noise_at[1]

    def _overflow(self, where: str, size: float) -> DivergenceError:
        """The error for numbers that have overflowed, by what they were before."""
        variances = np.diagonal(self._left[0, 0] + self._built[0, 0])
        worst = int(np.argmax(np.where(np.isnan(variances), np.inf, variances)))
        with np.errstate(all="ignore"):
            growth = float(np.sqrt(np.nansum(variances) / size)) if size else float("inf")
        return DivergenceError(where, float(self._h[worst]), growth)


def _increment(steps: Steps) -> Array:
    """D = A - I, from the two halves of A, so that what is tiny beside 1 keeps its digits."""
    transition = steps.transition
    return np.asarray((transition.hi - np.eye(transition.hi.shape[0])[:, :, None]) + transition.lo)
