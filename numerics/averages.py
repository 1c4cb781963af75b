r"""Memory and averages at the stationary law: autocovariance, autocorrelation time, the mean of the last iterates.

With Z the stationary covariance of all slots, the covariance of the state with itself s steps earlier is
:math:`A^s Z`, and the mean of K successive states has the covariance

.. math:: \frac{1}{K^2} \big[ F Z + Z F^\top \big] , \qquad F = \sum_{s=0}^{K-1} (K - s) A^s - \tfrac{K}{2} I .

All of it is summed by doubling in double-double arithmetic, Z included: with momentum the terms cancel (successive
iterates are anti-correlated), and what is left of an average of :math:`10^9` iterates has at least ten digits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite, shown, tuple_of, whole_number
from ._bounded_array import BoundedArray
from ._directions import eigen_directions
from ._evolution import Steps, mirror, still
from ._extended import Extended, identity
from ._forward_error import warn_if_inaccurate
from ._kernel import mean_kernel, pair_kernel, to_fraction
from ._margins import check_stable
from ._memory_error import average_error, cancelled, lagged_error
from ._problem import Problem
from ._settled import moving_responses, settled
from ._slot_law import slot_index
from ._spectral_law import CAUSE, in_doubles
from .epochs import LARGEST_WINDOW, EpochNoise, epoch_average_covariance
from .mean_square import additive_problem
from .noise import GradientNoise

__all__ = ["autocorrelation_time", "autocovariance", "average_covariance"]

Array: TypeAlias = NDArray[np.float64]


def autocovariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: ArrayLike | GradientNoise,
    lag: int,
    *,
    slots: tuple[str, str] = ("w", "w"),
) -> BoundedArray:
    r"""The covariance of one slot with another (or itself) a number of steps earlier, at the stationary law.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    hessian, noise : array_like, shape (d, d)
        H and C as for `stationary_covariance`.
    lag : int
        s, from 0 to 10^150.
    slots : pair of str
        ``(a, b)``: slot a, s steps later than slot b.

    Returns
    -------
    ndarray, shape (d, d)
        ``Cov(a at t + lag, b at t)``; not symmetric, unless H and C commute.  Read-only, with ``error``: a bound on its
        relative forward error in the Frobenius norm, which is warned of above 1e-6.

    Raises
    ------
    HyperparameterError, InvalidProblemError, UnstableError, NonStationaryError
        As `stationary_covariance`; also if ``lag`` is no whole number of at least 0, or the rule has no such slot.

    Examples
    --------
    Plain SGD forgets by the factor ``1 - lr h`` in a step:

    >>> from sgdcov.theory import sgd
    >>> autocovariance(sgd(lr=0.5), [[1.0]], [[3.0]], 0), autocovariance(sgd(lr=0.5), [[1.0]], [[3.0]], 2)
    (array([[1.]]), array([[0.25]]))
    """
    problem = additive_problem(optimizer, hessian, noise)
    named = tuple_of("slots", slots)
    if len(named) != 2:
        raise InvalidProblemError(f"slots must be the names of two slots, got {shown(slots)}")
    a, b = (slot_index(problem.optimizer, name) for name in named)
    count = whole_number("lag", lag, most=LARGEST_WINDOW)
    law, steps = settled(problem)
    power = still(len(problem.optimizer.rule.slots), law.power.hi.shape[2]).power
    if count:
        power = powers_and_sums(steps, count)[0]
    c, units = _moving_noise(problem), moving_responses(problem).units
    out, terms = np.empty_like(c), np.empty_like(c)
    row = power[a : a + 1]
    for (rows, columns), kernel in law.parts():
        left, right = (np.abs(row.hi[0][:, part]) for part in (rows, columns))
        sizes = np.abs(c[rows, columns]) * np.sum(left[:, :, None] * np.abs(kernel.hi[:, b]), axis=0)
        terms[rows, columns] = sizes
        sizes = np.abs(c[rows, columns]) * np.sum(np.abs(kernel.hi[b]) * right[:, None], axis=0)
        mirror(terms, rows, columns, sizes)
        out[rows, columns] = (row[:, :, rows, None] @ kernel[:, b : b + 1]).hi[0, 0] * c[rows, columns]
        other = kernel[b : b + 1] @ row[:, :, None, columns].transposed
        mirror(out, rows, columns, other.hi[0, 0] * c[rows, columns])
    whole, exponent = _with_flat(problem, out), units[a] + units[b] + problem.scaled_noise.exponent
    error = lagged_error(problem, whole, exponent, count, a, b)
    error += cancelled(problem, whole, _with_flat(problem, terms), law, b, units)
    warn_if_inaccurate("autocovariance", error, CAUSE)
    return BoundedArray(in_doubles(problem.directions.rotate_back(whole, symmetric=False), exponent), error)


def average_covariance(
    optimizer: Optimizer, hessian: ArrayLike, noise: ArrayLike | GradientNoise | EpochNoise, window: int
) -> BoundedArray:
    r"""The covariance of the mean of the weights over a window of successive steps, at the stationary law.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    hessian, noise : array_like, shape (d, d)
        H and C as for `stationary_covariance`.  With an `EpochNoise` the window begins with an epoch.
    window : int
        K, how many iterates are averaged, at least 1.  What it costs does not grow with it (its logarithm apart).

    Returns
    -------
    ndarray, shape (d, d)
        For large K it is the sandwich :math:`H^{-1} C H^{-1} / K`, whatever the learning rate and momentum.  Over whole
        epochs, the noise of each of which sums to zero, it falls like :math:`1/K^2` instead.  Read-only, with
        ``error``: a bound on its relative forward error in the Frobenius norm, which is warned of above 1e-6.

    Raises
    ------
    HyperparameterError, InvalidProblemError, UnstableError, NonStationaryError
        As `stationary_covariance`; also if ``window`` is no whole number of at least 1.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> average_covariance(heavy_ball(lr=0.5, momentum=0.5), [[2.0]], [[4.0]], 10**9).round(12) * 10**9
    array([[1.]])
    """
    if isinstance(noise, EpochNoise):
        return epoch_average_covariance(optimizer, hessian, noise, window)
    problem = additive_problem(optimizer, hessian, noise)
    count = whole_number("window", window, least=1, most=LARGEST_WINDOW)
    law, steps = settled(problem)
    size, n = law.power.hi.shape[1:]
    _, _, sums = powers_and_sums(steps, count)
    weights = (sums - identity(size, n).scaled(_extended(count)).scaled(0.5))[:1]
    c, units = _moving_noise(problem), moving_responses(problem).units
    out, terms = np.empty_like(c), np.empty_like(c)
    for (rows, columns), kernel in law.parts():
        left, right = (np.abs(weights.hi[0][:, part]) for part in (rows, columns))
        sizes = np.sum(left[:, :, None] * np.abs(kernel.hi[:, 0]) + np.abs(kernel.hi[0]) * right[:, None], axis=0)
        terms[rows, columns] = sizes / count / count * np.abs(c[rows, columns])
        mirror(terms, rows, columns, terms[rows, columns])
        total = weights[:, :, rows, None] @ kernel[:, :1] + kernel[:1] @ weights[:, :, None, columns].transposed
        out[rows, columns] = total.hi[0, 0] / count / count * c[rows, columns]
        mirror(out, rows, columns, out[rows, columns])
    whole, exponent = _with_flat(problem, out), 2 * units[0] + problem.scaled_noise.exponent
    error = average_error(problem, whole, exponent, count)
    error += cancelled(problem, whole, _with_flat(problem, terms), law, 0, units)
    warn_if_inaccurate("average_covariance", error, CAUSE)
    return BoundedArray(in_doubles(problem.directions.rotate_back(whole), exponent), error)


def autocorrelation_time(optimizer: Optimizer, hessian: ArrayLike) -> Array:
    r"""The integrated autocorrelation time of the weights along every eigen-direction of the Hessian.

    .. math:: \tau_i = 1 + 2 \sum_{s \ge 1} \rho_i(s) = \frac{(e_w^\top D^{-1} b)^2}{S_{ii}} ,

    with :math:`\rho_i(s)` the autocorrelation at lag s and S for unit noise: a long mean of K iterates has the variance
    of K / tau independent ones.  It depends on the curvature alone, not on the noise.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.

    Returns
    -------
    ndarray, shape (d,)
        In steps, to a few units in the last place; for the eigenvalues in ascending order (as they come, if the
        Hessian is diagonal).  Below 1 where successive iterates are anti-correlated; infinite in a flat direction.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If ``hessian`` is not symmetric positive semidefinite.
    UnstableError
        If the recursion does not contract along some direction.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> autocorrelation_time(sgd(lr=0.5), [[1.0, 0.0], [0.0, 2.0]])
    array([3., 1.])
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    directions = eigen_directions(optimizer, positive_semidefinite("hessian", hessian), vectors=False)
    out = np.full(directions.eigenvalues.shape, np.inf)
    moving = directions.moving
    h = directions.eigenvalues[moving]
    check_stable(optimizer, h)
    response = np.full(h.shape, _response_without_curvature(optimizer) if np.any(h == 0) else 0.0)
    curved = h > 0
    response[curved] = mean_kernel(optimizer).entries[0](h[curved], np.zeros(())) / h[curved]
    variance, exponents = pair_kernel(optimizer).entries[0][0].scaled(h, h)
    mantissa, shift = np.frexp(response)
    out[moving] = np.ldexp(mantissa / variance * mantissa, 2 * shift - exponents)
    return out


def powers_and_sums(steps: Steps, count: int) -> tuple[Extended, Extended, Extended]:
    r"""At n = count: A^n, the sum of A^s over s < n, and the sum of (n - s) A^s over s < n."""
    power = steps.transition
    plain = weighted = identity(*steps.transition.hi.shape[1:])
    n = 1
    for digit in bin(count)[3:]:
        weighted = weighted + plain.scaled(_extended(n)) + power @ weighted
        plain = plain + power @ plain
        power = power @ power
        n *= 2
        if digit == "1":
            plain = plain + power
            weighted = weighted + plain
            power = power @ steps.transition
            n += 1
    return power, plain, weighted


def _moving_noise(problem: Problem) -> Array:
    """The noise between the directions that move, in the units of `Problem.scaled_noise`."""
    moving = problem.directions.moving
    return problem.scaled_noise.covariance[np.ix_(moving, moving)]


def _extended(n: int) -> Extended:
    hi = float(n)
    return Extended(np.asarray(hi), np.asarray(float(n - int(hi))))


def _with_flat(problem: Problem, inner: Array) -> Array:
    """A matrix over the directions that move, with zeros for the flat ones."""
    out = np.zeros_like(problem.scaled_noise.covariance)
    moving = problem.directions.moving
    out[np.ix_(moving, moving)] = inner
    return out


def _response_without_curvature(optimizer: Optimizer) -> float:
    """The weights' entry of D^-1 b at h = 0, where weight decay alone holds them."""
    step = recursion(optimizer)
    solution = step.increment.subs(step.h, 0).LUsolve(step.noise_gain.subs(step.h, 0))
    return float(to_fraction(solution[0]))
