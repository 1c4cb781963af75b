r"""How wrong autocovariances and averages can be: the theorem of the forward error, carried along the lags.

:math:`d(A^s Z) = A^s\,dZ + \sum_{t<s} A^{s-1-t}\, dA\, A^t Z`.  The sum is bounded by the inequality of Cauchy and
Schwarz for :math:`A/\varphi`, with :math:`\varphi` the rate at which the slowest direction is forgotten; over all lags
of a window it is a product of two sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._directions import EPS
from ._evolution import Evolution
from ._forward_error import LARGEST_THETA, HessianError, Responses, frobenius
from ._kernel import pair_kernel
from ._margins import characteristic
from ._problem import Problem
from ._spectral_law import relative_error

__all__ = ["average_error", "cancelled", "lagged_error", "path_change"]

Array: TypeAlias = NDArray[np.float64]


def moving_bounds(problem: Problem) -> tuple[Array, Array]:
    """The entries of C between directions that move, and bounds on their errors, in units of the noise's exponent."""
    noise = problem.scaled_noise
    moves = np.ones(noise.covariance.shape[0], dtype=np.bool_)
    moves[problem.directions.flat] = False
    both = np.outer(moves, moves)
    return np.where(both, np.abs(noise.covariance), 0.0), np.where(both, noise.error, 0.0)


def lagged_error(problem: Problem, value: Array, exponent: int, lag: int, a: int, b: int) -> float:
    """The bound for ``Cov(a at t + lag, b at t)``, whose value in the eigenbasis is in units of ``2**exponent``."""
    responses = problem.responses
    powers = np.abs(responses.power(lag))
    largest = float(np.max(powers[problem.directions.moving], initial=0.0))
    # Where everything is forgotten nothing is known of what is left: the bound is of underflow.
    rate = min(np.log(largest) / lag, 0.0) if lag and largest > 0 else 0.0
    sums = responses.damped(rate, lag) if lag else None

    def carried(p: int) -> Array:
        return powers[:, a, p]

    def summed(p: int, q: int) -> Array:
        assert sums is not None
        return np.asarray(np.sqrt(np.sum(sums.kicks[p, q] ** 2, axis=-1)))

    decay = float(np.exp(rate * (lag - 1))) if lag else 0.0
    change = _change(problem, a, b, carried, summed if lag else None, decay)
    if change is None:
        return float("inf") if np.any(value) else 0.0
    shift = responses.units[a] + responses.units[b] + problem.scaled_noise.exponent - exponent
    return relative_error(problem, np.abs(value), change, shift)


def average_error(problem: Problem, value: Array, exponent: int, window: int) -> float:
    """The bound for the covariance of the mean of so many weights, in the eigenbasis in units of ``2**exponent``."""
    responses = replace(problem.responses, steps=window)
    change = _change(
        problem, 0, 0, lambda p: responses.durations(0, p, window), lambda p, q: responses.durations(p, q, window), 1.0
    )
    if change is None:
        return float("inf") if np.any(value) else 0.0
    shift = 2 * responses.units[0] + problem.scaled_noise.exponent - exponent
    return relative_error(problem, np.abs(value), (change + change.T) / window, shift)


def cancelled(problem: Problem, value: Array, terms: Array, law: Evolution, b: int, units: Sequence[int]) -> float:
    r"""What the rounding of double-double leaves of a sum that cancels, from the sums of the sizes of its terms.

    ``law`` is the stationary one that they are made of, for unit noise, its slots in units of ``2**units``; how far its
    covariances with slot b are from the exact ones is measured.

    The power of a rotation by t steps is wrong by t roundings, and so is each of the two factors of a covariance by as
    many as the mode is remembered.  A slow mode that does not turn is doubled by what it changes, and loses what the
    entries of D do not tell of it: the condition of D, entry by entry.
    """
    responses, moving = problem.responses, problem.directions.moving
    if not moving.size:
        return 0.0
    shifts = np.linalg.eigvals(responses.increments[moving])
    lengths = 1.0 / np.maximum(1.0 - np.abs(1.0 + shifts), 2.0**-52)
    memory, m = np.ones(value.shape[0]), len(responses.units)
    memory[moving] = np.max(np.where(np.abs(shifts) > 0.25, lengths, 1.0), axis=1)
    hidden = np.zeros(value.shape[0])
    hidden[moving] = _condition(problem)
    missed = np.zeros(value.shape[0])
    missed[moving] = _missed(problem, law, b, units)
    doubt = m * 2.0**-100 * (np.outer(memory, memory) + hidden + hidden[:, None]) * terms
    doubt += np.maximum.outer(missed, missed) * terms
    if m * 2.0**-100 * np.max(hidden) > LARGEST_THETA and np.any(value):
        return float("inf")  # of first order only
    size = frobenius(value)
    return frobenius(doubt) / size if size else 0.0


def _missed(problem: Problem, law: Evolution, b: int, units: Sequence[int]) -> Array:
    """By how much the covariances of slot b differ from the exact ones, for every direction that moves.

    Near the stability edge with momentum near 1 two modes nearly coincide, and what a step adds cancels between them.
    """
    h, kernel = problem.directions.eigenvalues[problem.directions.moving], pair_kernel(problem.optimizer)
    found = [k.hi[:, b, :, : r.stop - r.start] for (r, _), k in law.parts()]
    worst = np.zeros(h.size)
    for p, unit in enumerate(units):
        mantissas, exponents = kernel.entries[p][b].scaled(h, h)
        own = np.concatenate([np.diagonal(block[p]) for block in found])
        with np.errstate(all="ignore"):
            gaps = np.abs(own / np.ldexp(mantissas, exponents - unit - units[b]) - 1.0)
        gaps = np.where(mantissas != 0, np.where(np.isfinite(gaps), gaps, np.inf), 0.0)
        # The exact ones are rounded to a few units in the last place themselves.
        worst = np.maximum(worst, gaps - 4.0 * EPS)
    return worst


def _condition(problem: Problem) -> Array:
    r"""The spectral radius of :math:`|D^{-1}|\,|D|` for every direction that moves: no units of the slots count.

    With two copies of the weights D is nearly singular, and the curvature that makes it not is beside far larger
    numbers; the determinant is known exactly.
    """
    moving, increments = problem.directions.moving, problem.responses.increments
    d, m = np.abs(increments[moving]), increments.shape[-1]
    if m == 1:
        return np.ones(len(d))
    ends = [np.ldexp(*c(problem.directions.eigenvalues[moving])) for c in characteristic(problem.optimizer)[::m]]
    minors = np.empty_like(d)
    for p, q in itertools.product(range(m), repeat=2):
        kept = np.ix_(np.arange(len(d)), np.delete(np.arange(m), q), np.delete(np.arange(m), p))
        minors[:, p, q] = np.abs(np.linalg.det(increments[moving][kept]))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        products = minors @ d * np.abs(ends[0] / ends[1])[:, None, None]
    usable = np.isfinite(products).all(axis=(1, 2))
    radii = np.max(np.abs(np.linalg.eigvals(np.where(usable[:, None, None], products, 0.0))), axis=1)
    return np.asarray(np.where(usable, radii, np.inf))


def _change(
    problem: Problem,
    a: int,
    b: int,
    carried: Callable[[int], Array],
    summed: Callable[[int, int], Array] | None,
    decay: float,
) -> Array | None:
    """What is carried from an error of Z, and what the errors of the steps between add."""
    responses, error = problem.responses, problem.hessian_error
    c, dc = moving_bounds(problem)
    with np.errstate(over="ignore", invalid="ignore"):
        theta = responses.theta(error)
        if not theta <= LARGEST_THETA:
            return None
        right = responses.right_hand_side(error, c, dc)
        m = len(responses.units)
        out = sum((carried(p)[:, None] * responses.first_order(right, p, b) for p in range(m)), np.zeros_like(c))
        if summed is not None and not error.none:
            before = responses.noise[0]
            for p, q in itertools.product(range(m), repeat=2):
                slope = responses.slope(p, q)
                if slope:
                    sizes = sum(summed(q, r)[:, None] * (c * (before[r] @ before[b].T)) for r in range(m))
                    out = out + decay * slope * summed(a, p)[:, None] * responses.times(error, np.asarray(sizes))
        # The second order is at most so much more; ten times as much room as it needs where steps multiply it.
        out = out * (1.0 + 10.0 * theta)
    return out if np.isfinite(out).all() else None


def path_change(responses: Responses, error: HessianError, spreads: Array, last: Array) -> Array:
    r"""Bounds on what an error of the Hessian does to a covariance of paths, whatever the correlation of the noises.

    :math:`dz_t = \sum_s A^s\, dA\, z_{t-s-1}`, and the covariance of two numbers is at most the product of their
    standard deviations: ``spreads`` (m, n) of the slots over the past, ``last`` (n,) of what is looked at.
    """
    forever, m = 2**62, len(responses.units)
    out = np.zeros((last.size, last.size))
    for p, q in itertools.product(range(m), repeat=2):
        slope = responses.slope(p, q)
        if slope:
            moved = responses.times(error, np.outer(spreads[q], last))
            out += slope * responses.durations(0, p, forever)[:, None] * moved
    return out + out.T
