r"""Shuffled epochs: noise that is drawn without replacement until the data are used up.

Whoever passes through the data in a new random order each epoch, M batches an epoch, has gradient noises that sum to
zero over every epoch.  Within an epoch those of two steps have the covariance :math:`-C/(M-1)`, epochs are independent.
The law is then periodic: with :math:`v_t = A^t b` and their mean :math:`\bar v`, along a pair of eigen-directions,

.. math:: Z_0 = A^M Z_0 A^{M\top} + c\,\frac{M}{M-1} \sum_{t<M} (v_t - \bar v)(v_t - \bar v)^\top

at the ends of epochs, where checkpoints are taken, and larger in between.  On directions of low curvature
(`crossover_curvature`) the variance no longer grows like 1/h: it levels off over time, and vanishes at ends of epochs.

This is exact where the noise is the same at all points.  What a noise that depends on the weights adds,
`reshuffling_law` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError
from ..theory import Optimizer, recursion
from ._arrays import whole_number
from ._bounded_array import BoundedArray
from ._epoch_noise import EpochNoise, epoch_noise
from ._epoch_sums import Correlated, EpochSteps, epoch_steps, exactly, with_empty_sum
from ._evolution import Evolution
from ._extended import Extended, identity
from ._forward_error import LARGEST_THETA, warn_if_inaccurate
from ._kernel import pair_kernel, to_fraction
from ._log_determinant import log_determinant
from ._margins import check_stable, has_unit_root
from ._memory_error import path_change
from ._problem import Problem, make_problem
from ._slot_law import SlotLaw
from ._spectral_law import CAUSE, in_doubles, relative_error

__all__ = [
    "LARGEST_WINDOW",
    "EpochCovariance",
    "EpochNoise",
    "Position",
    "checked_position",
    "crossover_curvature",
    "epoch_average_covariance",
    "epoch_noise",
    "epoch_stationary_covariance",
]

Array: TypeAlias = NDArray[np.float64]

#: The longest average, or lag: its square, by which a sum of covariances is divided, is a double.
LARGEST_WINDOW = 10**150

Position: TypeAlias = int | Literal["average"]


@dataclass(frozen=True, eq=False, repr=False)
class EpochCovariance(SlotLaw):
    """The law of shuffled epochs at one position or on time average.  An array wherever one is expected.

    Attributes
    ----------
    value : ndarray, shape (d, d)
        Covariance of the first slot, the weights; what ``np.asarray`` gives.
    optimizer : Optimizer
    position : int or "average"
        After how many steps of the epoch: from 0, the end of the last epoch, to ``batches_per_epoch - 1``.
    noise : EpochNoise
    error : float
        A bound on the relative forward error in the Frobenius norm, against the law of the very doubles that were
        given; infinite where none is known.  Above 1e-6 it was warned of.  Along flat directions it is that of a level
        which is held fixed.
    """

    value: Array
    optimizer: Optimizer
    position: Position
    noise: EpochNoise
    error: float
    _problem: Problem = field(repr=False)
    _solve_block: Callable[[int, int], Array] = field(repr=False)
    _eigenbasis_value: Array = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"EpochCovariance({self.optimizer!r}, shape={self.value.shape}, position={self.position!r} of "
            f"{self.noise.batches_per_epoch})"
        )

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of the Hessian (of the preconditioned one), flat ones exactly 0; as given if it is diagonal."""
        return self._problem.directions.eigenvalues

    @property
    def flat(self) -> tuple[int, ...]:
        """Indices, among the eigenvalues, of the flat directions."""
        return tuple(int(i) for i in self._problem.directions.flat)

    @property
    def status(self) -> str:
        """What kind of law this is, in words."""
        where = "on average over an epoch" if self.position == "average" else f"after {self.position} steps of an epoch"
        text, flat = f"periodic, {where}", self.flat
        if not flat:
            return text
        which = ", ".join(str(i) for i in flat[:8]) + (", ..." if len(flat) > 8 else "")
        text += f", with {len(flat)} of {self.value.shape[0]} directions flat (indices {which})"
        if not self.noise.sums_to_zero:
            return text + "; no noise reaches them, so they stay where they started and their covariance is 0"
        return text + (
            "; the noise of a whole epoch moves nothing along them, so every epoch ends at the level of the start, "
            "which is never forgotten: this is the law of a start whose level does not vary"
        )

    @property
    def excess_risk(self) -> float:
        """Mean loss above that at the mean, ``tr(H S) / 2``."""
        return 0.5 * float(np.vdot(self._problem.hessian, self.value))

    @property
    def rank(self) -> int:
        """Number of directions in which the weights vary: the rank of the covariance up to rounding."""
        return self._log_det_and_rank[1]

    @property
    def log_det(self) -> float:
        """Logarithm of the product of the nonzero eigenvalues (``rank`` of them): the log-determinant on the range."""
        return self._log_det_and_rank[0]

    @cached_property
    def _log_det_and_rank(self) -> tuple[float, int]:
        problem, s = self._problem, self._eigenbasis_value
        heard = problem.heard
        log_det, rank = log_determinant(s, heard)
        if problem.root is None:
            return log_det, rank
        if rank == s.shape[0]:
            return log_det + 2 * problem.root_log_det, rank
        return log_determinant(self.value, np.ones(rank and s.shape[0], dtype=np.bool_))


def epoch_stationary_covariance(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: EpochNoise,
    *,
    position: Position | None = None,
    preconditioner: ArrayLike | None = None,
) -> EpochCovariance:
    """What `stationary_covariance` does with an `EpochNoise`."""
    where = checked_position(0 if position is None else position, noise.batches_per_epoch)
    problem = make_problem(optimizer, hessian, noise.noise, preconditioner)
    one, law, c = _start_of_epoch(problem, noise)
    steps = _correlated(noise)
    if where == "average":
        law = steps.time_average(law, one)
    elif where > 0:
        law = steps.after(law, one, where)

    units = problem.responses.units

    def block(a: int, b: int) -> Array:
        back = problem.directions.rotate_back(law.injected(a, b, c), symmetric=a == b)
        whole = problem.leave_symmetric(back) if a == b else problem.leave(back)
        return in_doubles(whole, units[a] + units[b] + problem.scaled_noise.exponent)

    scaled = law.injected(0, 0, c)
    value, s = block(0, 0), np.ldexp(scaled, 2 * units[0] + problem.scaled_noise.exponent)
    error = _epoch_error(problem, noise, scaled, c)
    warn_if_inaccurate("stationary_covariance", error, CAUSE, stacklevel=4)
    return EpochCovariance(value, problem.optimizer, where, noise, error, problem, block, s)


def epoch_average_covariance(optimizer: Optimizer, hessian: ArrayLike, noise: EpochNoise, window: int) -> BoundedArray:
    r"""What `average_covariance` does with an `EpochNoise`.

    The window begins with the first step of an epoch.  A slot that sums the weights up after each step joins the state;
    whole epochs are then steps of their own.
    """
    problem = make_problem(optimizer, hessian, noise.noise, None)
    count = whole_number("window", window, least=1, most=LARGEST_WINDOW)
    _, law, c = _start_of_epoch(problem, noise)
    steps = _correlated(noise)
    one = epoch_steps(problem.responses, summed=True)
    total = with_empty_sum(law)
    epochs, rest = divmod(count, noise.batches_per_epoch)
    if epochs:
        total = steps.repeated(total, one, epochs)
    if rest:
        total = steps.after(total, one, rest)
    last = len(problem.optimizer.rule.slots)
    mean = total.injected(last, last, c) / count / count
    error = _epoch_error(problem, noise, mean, c, count)
    warn_if_inaccurate("average_covariance", error, CAUSE, stacklevel=4)
    exponent = 2 * problem.responses.units[0] + problem.scaled_noise.exponent
    return BoundedArray(in_doubles(problem.directions.rotate_back(mean), exponent), error)


@np.errstate(over="ignore", invalid="ignore")  # where a bound overflows there is none
def _epoch_error(problem: Problem, noise: EpochNoise, law: Array, c: Array, window: int = 0) -> float:
    r"""The bound for a law of shuffled epochs in the eigenbasis and units, or for that of a mean over a window.

    The noises of an epoch have a covariance of at most :math:`1 - \rho` times that of independent ones, whatever the
    direction, which bounds the past.  A window that is shifted differs from one that begins with an epoch by no more
    than two ends.
    """
    responses, error = problem.responses, problem.hessian_error
    if not responses.theta(error) <= LARGEST_THETA:
        return float("inf") if c.any() else 0.0
    within = replace(responses, steps=noise.batches_per_epoch)
    spreads = np.sqrt(np.sum(responses.noise[0] ** 2, axis=-1))
    flat = problem.directions.flat
    spreads[:, flat] = np.sqrt(np.sum(within.noise[0] ** 2, axis=-1))[:, flat]
    spreads = spreads * np.sqrt(float(1 - noise.correlation) * np.maximum(np.diagonal(c), 0.0))
    last = np.sqrt(np.maximum(np.diagonal(law), 0.0))
    if window:
        spreads[0] = np.minimum(last + 2.0 * min(noise.batches_per_epoch / window, 1.0) * spreads[0], spreads[0])
    change = path_change(responses, error, spreads, last)
    # In the noise the law is linear, entry by entry.
    dc = problem.scaled_noise.error
    relative = np.divide(dc, np.abs(c), out=np.zeros_like(dc), where=c != 0)
    return relative_error(problem, np.abs(law), change + np.abs(law) * relative)


def crossover_curvature(optimizer: Optimizer, batches_per_epoch: int) -> float:
    r"""The curvature at which shuffled epochs begin to lower the variance, ``3 (1 - momentum) / (lr M)`` for momentum.

    Defined by equating two asymptotes of the time-averaged variance of plain SGD at the learning rate that is
    effective over many steps, :math:`\gamma = \ell^\top b\; r_w / \ell^\top r` (:math:`\ell, r` the null vectors of
    D at h = 0; :math:`lr/(1-\mu)` for momentum): :math:`\gamma c/(2h)`, of independent batches, and
    :math:`\gamma^2 c M/6`, the plateau of shuffled epochs on flat directions.  Around it one passes into the other.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    batches_per_epoch : int
        M, at least 2.

    Returns
    -------
    float

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If weight decay leaves no direction flat, so that there is no plateau; or M is below 2.

    Notes
    -----
    The plateau is of leading order in M (1 - momentum): with momentum of a range longer than an epoch it is lower.

    References
    ----------
    kuehn2023

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> round(crossover_curvature(heavy_ball(lr=0.1, momentum=0.9), 100), 12)
    0.03
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    count = whole_number("batches_per_epoch", batches_per_epoch, least=2)
    if not has_unit_root(optimizer):
        raise InvalidProblemError(
            f"{optimizer!r} forgets its start on flat directions too (weight decay); ask without the decay and take it "
            f"off the result"
        )
    left, right = _null_vectors(optimizer)
    gain = recursion(optimizer).noise_gain.subs(recursion(optimizer).h, 0)
    push = sum((a * to_fraction(b) for a, b in zip(left, gain, strict=True)), Fraction(0))
    return float(abs(Fraction(3, count) / (push * right[0])))


def _correlated(noise: EpochNoise) -> Correlated:
    return Correlated(noise.batches_per_epoch, noise.correlation)


def checked_position(position: object, batches_per_epoch: int) -> Position:
    """Steps of the epoch, from 0 to its length M, which is the 0 of the next; or "average".  In every layer."""
    if isinstance(position, str) and position == "average":
        return "average"
    if isinstance(position, str):
        raise InvalidProblemError(f"position must be a number of steps of the epoch or 'average', got {position!r}")
    steps = whole_number("position", position)
    if steps > batches_per_epoch:
        raise InvalidProblemError(
            f"position={steps} is beyond the end of an epoch of {batches_per_epoch} steps, which is position 0 of the "
            f"next"
        )
    return steps % batches_per_epoch


def _start_of_epoch(problem: Problem, noise: EpochNoise) -> tuple[EpochSteps, Evolution, Array]:
    """One step, the law at the start of an epoch for unit noise, and the noise it is of, in the eigenbasis."""
    pair_kernel(problem.optimizer)  # refuses a rule that never forgets, whatever the curvature
    directions = problem.directions
    check_stable(problem.optimizer, directions.eigenvalues[directions.moving])
    c = problem.scaled_noise.covariance
    if directions.flat.size and not noise.sums_to_zero:
        _check_no_walk(problem, noise)
        c = c.copy()
        c[directions.flat] = 0.0
        c[:, directions.flat] = 0.0
    one = epoch_steps(problem.responses)
    keep = _without_level(problem, len(problem.optimizer.rule.slots)) if directions.flat.size else None
    law, kept = _correlated(noise).epoch(one, one.tiles, keep).repeated_forever()
    if kept.any():
        worst = float(directions.eigenvalues[kept][0])
        raise NonStationaryError(
            f"{problem.optimizer!r} is too close to the stability edge along the direction with Hessian eigenvalue "
            f"{worst:.6g}: it has not forgotten its start after 1e19 epochs",
            modes=(worst,),
        )
    return one, law, c


def _check_no_walk(problem: Problem, noise: EpochNoise) -> None:
    try:
        problem.check_flat()
    except NonStationaryError as error:
        raise NonStationaryError(
            f"{error} (Noise that sums to zero over an epoch, correlation -1/(batches_per_epoch - 1), would not "
            f"diffuse; this has {noise.correlation!s}.)",
            modes=error.modes,
        ) from error


def _without_level(problem: Problem, size: int) -> Extended:
    r"""The projection :math:`I - r \ell^\top` along flat directions, the unit matrix along the others.

    :math:`\ell^\top z` is the level that whole epochs leave unchanged; what is projected away is 0 up to rounding.
    """
    directions = problem.directions
    left, right = _null_vectors(problem.optimizer)
    units = problem.responses.units
    out = identity(size, directions.eigenvalues.size)
    for p in range(size):
        for q in range(size):
            unit = Fraction(2) ** (units[q] - units[p])
            entry = exactly(Fraction(int(p == q)) - right[p] * left[q] * unit)
            out.hi[p, q, directions.flat], out.lo[p, q, directions.flat] = entry.hi, entry.lo
    return out


def _null_vectors(optimizer: Optimizer) -> tuple[list[Fraction], list[Fraction]]:
    """Left and right null vectors of D at h = 0, of product 1."""
    step = recursion(optimizer)
    increment = sp.Matrix(step.increment.subs(step.h, 0))
    right, left = increment.nullspace(), increment.T.nullspace()
    product = (left[0].T * right[0])[0] if len(left) == 1 else 0
    if product == 0:
        raise NonStationaryError(
            f"{optimizer!r} does not stay where it is on a flat direction: along h = 0 its recursion has the "
            f"eigenvalue 1 more than once",
            modes=(0.0,),
        )
    return [to_fraction(entry / product) for entry in left[0]], [to_fraction(entry) for entry in right[0]]
