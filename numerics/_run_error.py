r"""How wrong the law of a run can be: what the rounding of an eigen-decomposition does to it, to first order.

The computed directions are those of :math:`H + E`.  With :math:`\Phi(t, s)` the product of the steps from s to t, E
changes the law by :math:`\sum_s \Phi(t, s{+}1)\, dA_s Z_s A_s^\top \Phi(t, s{+}1)^\top` and its transpose, and dA
couples directions i and j by :math:`E_{ij}` times a divided difference of A.  By the Cauchy-Schwarz inequality over s,
and over the directions that E couples, the Frobenius norm of that is at most :math:`\sqrt{\max_i P_i \sum_l Q_l}` with

.. math:: P_i = \sum_s w\, \Phi_i(t, s)\, \Phi_i(t, s)^\top , \qquad
          Q_l = \sum_s w\, \operatorname{tr} Z_s\; \Phi_l(t, s)\, Z_{s,ll}\, \Phi_l(t, s)^\top , \qquad w = |dA| ,

small matrices for every direction that are stepped along like a covariance.  Over many equal steps at once the sums
are split: of what the start of the phase becomes, :math:`\sum_j \operatorname{tr} \sum_s A_j^s Z_{jj} A_j^{s\top}`
stands for the traces; what noise has built within the phase only grows.  Rounding in double-double
is in proportion to :math:`A - I` in every step that is not forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._directions import EPS
from ._evolution import Evolution, Steps
from ._forward_error import LARGEST_THETA
from ._problem import Problem

__all__ = ["RunError", "diagonals", "joint_error"]

Array: TypeAlias = NDArray[np.float64]

#: Of a product of two small matrices in double-double, entry by entry, with room for the size of the matrices.
_DOUBLE_DOUBLE = 2.0**-96


@dataclass
class RunError:
    """P, Q and the variances Z of every direction, shape (n, m, m), in the units of a run; ``spectral`` bounds E."""

    spectral: float
    start: Array
    noise: Array
    p: Array = field(init=False)
    q: Array = field(init=False)
    grown: Array = field(init=False)
    kicks: Array = field(init=False)
    steps: Array = field(init=False)
    theta: float = 0.0

    def __post_init__(self) -> None:
        self.p, self.q, self.kicks = (np.zeros_like(self.start) for _ in range(3))
        self.steps = np.zeros(len(self.start))
        self.grown = np.broadcast_to(np.eye(self.start.shape[-1]), self.start.shape)

    def passed(
        self, phases: Evolution, steps: Steps, counts: NDArray[np.object_], slopes: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """Bounds at the end of each phase: of what E does (Frobenius norm), and of double-double (relative)."""
        with np.errstate(all="ignore"):
            power, step = (np.moveaxis(a, (0, 1), (2, 3)) for a in (phases.power.hi, steps.transition.hi))
            sums, duals = (np.empty_like(step) for _ in range(2))
            for count in set(counts):
                these = np.flatnonzero(counts == count)
                sums[these], duals[these] = _gramians(step[these], int(count))
            late = sums + _congruent(step, sums)
            built = self.noise[:, None, None] * np.concatenate(diagonals(phases), axis=1)
            law = _stepped(power, built, self.start)
            before = np.concatenate([self.start[None], law[:-1]])
            change = np.abs(np.moveaxis(steps.increment.hi, (0, 1), (2, 3)))
            # |D| |Z|, which near the stationary law is of the size of one step's noise, however slow the direction.
            turned = sum(np.linalg.norm(change @ np.abs(z), axis=(2, 3)) for z in (before, law))
            kicks = _stepped(power, turned[:, :, None, None] * late, self.kicks)
            size = change.max(axis=(2, 3)) * np.array([float(min(count, 10**300)) for count in counts])[:, None]
            made = self.steps + np.cumsum(size, axis=0)
            self.kicks, self.steps = kicks[-1], made[-1]
            bound = np.zeros(len(step))
            if self.spectral:
                bound = self._coupled(power, before, built, duals, late, slopes)
            self.start = law[-1]
            return bound, self._rounding(kicks, made, law)

    def _coupled(
        self, power: Array, before: Array, built: Array, duals: Array, late: Array, slopes: tuple[Array, Array]
    ) -> Array:
        moved, bent = (self.spectral * slope[:, None, None, None] for slope in slopes)
        weight = moved + bent
        traces = np.trace(duals @ before, axis1=2, axis2=3).sum(axis=1)[:, None, None, None]
        own = np.trace(built, axis1=2, axis2=3)[:, :, None, None]
        q = weight * traces * _congruent(power, before) + weight * own.sum(axis=1, keepdims=True) * own * late
        kicks = float(np.sum(self.noise))
        q = q + np.divide(bent**2, weight, out=np.zeros_like(weight), where=weight > 0) * kicks * built
        first, second = _stepped(power, weight * late, self.p), _stepped(power, q, self.q)
        # Where a run grows, so do P and what they are compared with.
        grown = _stepped(power, np.zeros_like(power), self.grown)
        growth = np.maximum(1.0, np.trace(grown, axis1=2, axis2=3).max(axis=1) / grown.shape[-1])
        whole = np.trace(first, axis1=2, axis2=3).max(axis=1) / growth
        theta = np.maximum.accumulate(np.maximum(4.0 * whole, self.theta))
        self.grown, self.p, self.q = grown[-1], first[-1], second[-1]
        self.theta = float(theta[-1])
        # Twice: the term and its transpose.  What is of higher order is at most theta / (1 - theta) times it.
        bound = 2.0 * np.sqrt(first[..., 0, 0].max(axis=1) * second[..., 0, 0].sum(axis=1))
        bound = bound / (1.0 - np.minimum(theta, LARGEST_THETA))
        return np.where((theta <= LARGEST_THETA) & np.isfinite(bound), bound, np.inf)

    def _rounding(self, kicks: Array, made: Array, law: Array) -> Array:
        """Of steps in proportion to D: all of them, or those that are not forgotten."""
        kept = np.divide(kicks[..., 0, 0], law[..., 0, 0], out=np.zeros_like(made), where=kicks[..., 0, 0] != 0)
        kept = np.minimum(np.where(np.isnan(kept), np.inf, kept), made)
        return np.asarray(_DOUBLE_DOUBLE * kept.max(axis=-1))

    def now(self) -> tuple[Array, Array]:
        """The bounds at the present time, of shape (1,) each."""
        with np.errstate(all="ignore"):
            bound = 2.0 * np.sqrt(self.p[:, 0, 0].max() * self.q[:, 0, 0].sum()) / (1.0 - LARGEST_THETA)
            known = self.theta <= LARGEST_THETA and bool(np.isfinite(bound))
            rounding = self._rounding(self.kicks[None], self.steps[None], self.start[None])
            return np.array([bound if known else np.inf]), rounding

    def forever(self, once: Evolution) -> None:
        """Let the period that has been passed have passed for ever."""
        with np.errstate(all="ignore"):
            power = np.moveaxis(once.power.hi, (0, 1), (1, 2))
            one = np.eye(power.shape[-1])
            change = power - one if once.change is None else np.moveaxis(once.change.hi, (0, 1), (1, 2))
            for _ in range(1200):
                power = one + change
                if not np.any(np.abs(power) > 1e-7) or not np.isfinite(power).all():
                    break
                self.p, self.q, self.kicks = (x + _congruent(power, x) for x in (self.p, self.q, self.kicks))
                # It is the change from I that a slow mode is seen in; towards -I the rounding of it does not grow.
                change = 2.0 * change + change @ change
            self.steps = np.full_like(self.steps, np.inf)
            whole = float(np.trace(self.p, axis1=1, axis2=2).max())
            self.theta = max(self.theta, 4.0 * whole) if np.isfinite(whole) else math.inf


def diagonals(phases: Evolution) -> list[Array]:
    """What unit noise does to every direction with itself, shape (times, n, m, m), tile by tile."""
    out = []
    for (rows, _), kernel in phases.parts():
        square = kernel.hi[..., : rows.stop - rows.start]
        out.append(np.moveaxis(np.diagonal(square, axis1=-2, axis2=-1), (0, 1), (2, 3)))
    return out


def _gramians(step: Array, count: int) -> tuple[Array, Array]:
    """The sums of A^t A^t' and of A^t' A^t over t < count."""
    one = np.broadcast_to(np.eye(step.shape[-1]), step.shape)
    total, dual, power = one, one, step
    transposed = step.swapaxes(-1, -2)
    for digit in bin(count)[3:]:
        total = total + _congruent(power, total)
        dual = dual + _congruent(power.swapaxes(-1, -2), dual)
        power = power @ power
        if digit == "1":
            total, dual = one + _congruent(step, total), one + _congruent(transposed, dual)
            power = power @ step
    return total, dual


def _congruent(a: Array, x: Array) -> Array:
    return np.asarray(a @ x @ a.swapaxes(-1, -2))


def _stepped(power: Array, added: Array, start: Array) -> Array:
    """X after each phase, of X' = A X A' + S; many phases in blocks."""
    count = len(power)
    length = math.isqrt(count) if count > 8 else 1
    out = np.empty_like(added)
    firsts: NDArray[np.intp] = np.arange(0, count, length)
    reached, local = power[firsts].copy(), added[firsts].copy()
    within = [(reached, local)]
    for place in range(1, length):
        index = np.minimum(firsts + place, count - 1)
        reached, local = power[index] @ reached, _congruent(power[index], local) + added[index]
        within.append((reached, local))
    for block, first in enumerate(firsts.tolist()):
        stop = min(length, count - first)
        for place in range(stop):
            out[first + place] = _congruent(within[place][0][block], start) + within[place][1][block]
        start = out[first + stop - 1]
    return out


def joint_error(problem: Problem, size: Array, lost: Array) -> Array:
    """Relative errors, from the sizes of laws in the Frobenius norm and those of what they may have lost."""
    d = problem.directions
    rounding = 8.0 * EPS if d.basis is None else 2.0 * (d.eigenvalues.size + 4) * EPS
    with np.errstate(all="ignore"):
        ratio = np.where(lost == 0.0, 0.0, lost / size)
    error = np.where(size > 0, ratio + rounding, ratio * 0.0)
    # Where the size is beyond double precision in the units of the noise, nothing is known.
    return np.asarray(np.where(np.isnan(error), np.inf, error))
