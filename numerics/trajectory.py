r"""The law of the weights through a schedule: mean, covariance and excess risk at the times asked for.

Every phase of a schedule is a number of equal steps, and steps that are equal are doubled, not made one by one: a phase
of :math:`10^9` steps costs what a phase of ten does.  Between the phases nothing is rounded.  (Noise that depends on
the weights is the exception: there steps are made one by one, see ``_noisy_run``.)  Started from covariance
:math:`\Sigma_0` and mean :math:`m_0` of the weights, the mean loss above the minimum at time t is

.. math:: \tfrac12 \big( \operatorname{tr}(H \Sigma_t) + (m_t - w^*)^\top H (m_t - w^*) \big) .

A schedule that is repeated for ever has a periodic law (`periodic_covariance`): the sum over all past periods gives
it at the start of a period, and one more period at every other position.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError, UnstableError
from ..theory import Optimizer, recursion
from ._arrays import shown, tuple_of, whole_number
from ._directions import Directions, check_flat_noise
from ._evolution import Evolution
from ._forward_error import warn_if_inaccurate
from ._initial import initial_law, initial_mean, rest_factors
from ._log_determinant import log_determinant
from ._noisy_run import NoisyRun
from ._problem import make_problem
from ._result import Frozen
from ._run import Bound, Run
from ._spectral_law import CAUSE
from ._step_family import StepFamily
from .noise import GradientNoise
from .schedules import Schedule, counted
from .transient import Start, TransientCovariance, absolute_mean, covariance_of, optimum_of

__all__ = ["PeriodicCovariance", "Trajectory", "periodic_covariance", "trajectory"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Frozen):
    """The law of the weights at the recorded times.

    Attributes
    ----------
    times : ndarray of int, shape (n,)
        Steps made since the start.
    mean : ndarray, shape (n, d)
    trace : ndarray, shape (n,)
        Total variance of the weights.
    propagated_risk, injected_risk : ndarray, shape (n,)
        ``tr(H S) / 2`` of what is left of the covariance at the start, and of what noise has built since.
    mean_risk : ndarray, shape (n,)
        The loss at the mean, above the minimum.
    final : TransientCovariance
        The covariance of all slots at the end of the schedule: a start for the next.
    error : ndarray, shape (n,), or None
        A bound on the relative forward error of each covariance in the Frobenius norm; None under noise that depends on
        the weights, where none is known.
    """

    times: NDArray[np.int64]
    mean: Array
    trace: Array
    propagated_risk: Array
    injected_risk: Array
    mean_risk: Array
    final: TransientCovariance
    _laws: tuple[Array, ...] = field(repr=False)
    _directions: Directions = field(repr=False)
    _heard: NDArray[np.bool_] = field(repr=False)
    error: Array | None = None

    def __repr__(self) -> str:
        return f"Trajectory({self.times.size} times to {self.times[-1]}, d={self.mean.shape[1]})"

    @property
    def excess_risk(self) -> Array:
        """Mean loss above the minimum, shape (n,): the sum of the three risks."""
        return self.propagated_risk + self.injected_risk + self.mean_risk

    @cached_property
    def covariance(self) -> Array:
        """Covariance of the weights, shape (n, d, d)."""
        return np.stack([self._directions.rotate_back(s) for s in self._laws])

    @cached_property
    def log_det(self) -> Array:
        """Logarithm of the product of the nonzero eigenvalues of the covariance, shape (n,)."""
        return np.array([log_determinant(s, self._heard)[0] for s in self._laws])


def trajectory(
    optimizer: Optimizer,
    schedule: Schedule,
    hessian: ArrayLike,
    noise: ArrayLike | GradientNoise,
    *,
    start: Start = None,
    mean: ArrayLike | None = None,
    optimum: ArrayLike | None = None,
    record: Sequence[int] | NDArray[np.integer] | None = None,
) -> Trajectory:
    r"""The law of the weights through a schedule.

    Parameters
    ----------
    optimizer : Optimizer
        What no phase names it must have bound.
    schedule : Schedule
        Its phases may be unstable.
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    noise : array_like, shape (d, d), or GradientNoise
        C, the covariance of one step's gradient noise; symmetric positive semidefinite.  It need not commute with H.
        Or noise that depends on the weights, such as `MinibatchNoise`: then every step is taken, one application of the
        noise's map for each.
    start : StationaryCovariance, TransientCovariance, array_like of shape (d, d), or None
        The covariance at the start, as for `transient_covariance`.
    mean : array_like, shape (d,) or (m * d,), optional
        The mean of the weights at the start, every other slot at rest; or of all m slots, stacked.  The optimum by
        default.
    optimum : array_like, shape (d,), optional
        The minimiser :math:`w^*` of the loss; 0 by default, and that of the noise where it depends on the weights.
    record : sequence of int, optional
        Increasing times, in steps since the start, from 0 to the length of the schedule.  The start and the end of
        every phase by default.  Each takes an array of shape (d, d).

    Returns
    -------
    Trajectory

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound or outside its domain in some phase; names the phase.
    InvalidProblemError
        If an array is not what it should be, or a time lies outside the schedule.
    DivergenceError
        If the numbers of an unstable phase overflow; names the phase.

    Examples
    --------
    The excess risk of plain SGD settles at ``lr c / (2 (2 - lr h))`` in every phase:

    >>> from sgdcov.numerics import Phase, Schedule
    >>> from sgdcov.theory import sgd
    >>> drop = Schedule([Phase(10**9, lr=1.0), Phase(10**9, lr=0.5)])
    >>> trajectory(sgd(), drop, [[1.0]], [[12.0]], mean=[3.0]).excess_risk
    array([4.5, 6. , 2. ])
    """
    bound = _bind(optimizer, schedule)
    # A source is asked for its noise at every step.
    given = np.zeros_like(noise.hessian) if isinstance(noise, GradientNoise) else noise
    problem = make_problem(bound[0][0], hessian, given, None)
    directions = problem.directions
    h, d = directions.eigenvalues, directions.eigenvalues.size
    times = _times(record, schedule.steps, (0, *schedule.ends))
    target = optimum_of(noise, hessian, optimum, d)
    law = initial_law(problem, start)
    rest = rest_factors(bound[0][0])
    centred = initial_mean(bound[0][0], target if mean is None else mean, target, directions)
    if isinstance(noise, GradientNoise):
        run: Run = NoisyRun(bound, problem, noise, centred, law, rest)
    else:
        family = StepFamily((o for o, _ in bound), h, rest)
        run = Run(bound, family, problem, law, centred, directions.rotate(target))
    laws: list[Array] = []
    rows, means, errors, recorded = [], [], [], set(times)
    for records in run.records({*times, schedule.steps}):
        left, built = records.parts(0, 0)
        finite = bool(np.isfinite(left + built).all())
        run.check(finite, records.optimizers[-1], f"the first {counted(records.times[-1])}")
        deviation = records.mean.hi[0]
        variances = [np.diagonal(part, axis1=1, axis2=2) for part in (left, built)]
        risks = [0.5 * np.sum(h * values, axis=1) for values in (*variances, deviation**2)]
        table = np.stack([np.sum(variances[0] + variances[1], axis=1), *risks], axis=1)
        wanted = [index for index, now in enumerate(records.times) if now in recorded]
        laws.extend((left + built)[wanted])
        rows.append(table[wanted])
        errors.append(None if records.error is None else records.error[wanted])
        means.append(absolute_mean(records.mean, rest, target, directions)[0, wanted])
    final = covariance_of(problem, records, -1)
    known = [each for each in errors if each is not None]
    error = np.concatenate(known) if known else None
    if error is not None:
        warn_if_inaccurate("trajectory", float(np.max(error, initial=final.error or 0.0)), CAUSE)
    trace, left_risk, built_risk, mean_risk = np.concatenate(rows).T
    return Trajectory(
        np.array(times), np.concatenate(means), trace, left_risk, built_risk, mean_risk, final, tuple(laws), directions,
        records.heard, error,
    )  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class PeriodicCovariance(Frozen):
    """The periodic law of a schedule that is repeated for ever.

    Attributes
    ----------
    positions : ndarray of int, shape (n,)
        Steps made since the start of the period.
    laws : tuple of TransientCovariance
        The covariance of every slot at these positions: arrays where one is expected, and starts.  They remember no
        start: ``propagated`` is 0.
    period : int
        Number of steps of a period.
    """

    positions: NDArray[np.int64]
    laws: tuple[TransientCovariance, ...]
    period: int

    def __repr__(self) -> str:
        return f"PeriodicCovariance({self.positions.size} positions of {self.period}, d={len(self.laws[0].value)})"

    @property
    def covariance(self) -> Array:
        """Covariance of the weights, shape (n, d, d)."""
        return np.stack([law.value for law in self.laws])

    @property
    def error(self) -> Array:
        """Bounds on the relative forward errors of the covariances in the Frobenius norm, shape (n,)."""
        return np.array([law.error for law in self.laws])

    @property
    def trace(self) -> Array:
        """Total variance of the weights, shape (n,)."""
        return np.array([law.trace for law in self.laws])

    @property
    def excess_risk(self) -> Array:
        """Mean loss above that at the mean, ``tr(H S) / 2``, shape (n,)."""
        return np.array([law.excess_risk for law in self.laws])

    @property
    def log_det(self) -> Array:
        """Logarithm of the product of the nonzero eigenvalues of the covariance, shape (n,)."""
        return np.array([law.log_det for law in self.laws])


def periodic_covariance(
    optimizer: Optimizer,
    schedule: Schedule,
    hessian: ArrayLike,
    noise: ArrayLike,
    *,
    record: Sequence[int] | NDArray[np.integer] | None = None,
) -> PeriodicCovariance:
    """The law of the weights (and every other slot) when a schedule is repeated for ever.

    Parameters
    ----------
    optimizer : Optimizer
        What no phase names it must have bound.
    schedule : Schedule
        One period.  Single phases may be unstable, if the period as a whole contracts.
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    noise : array_like, shape (d, d)
        C, the covariance of one step's gradient noise; symmetric positive semidefinite.  It need not commute with H.
    record : sequence of int, optional
        Increasing positions in the period, from 0 to its length (which is the 0 of the next).  The start of every phase
        by default.

    Returns
    -------
    PeriodicCovariance

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound or outside its domain in some phase; names the phase.
    InvalidProblemError
        If an array is not what it should be, or a position lies outside the period.
    UnstableError
        If a period does not contract along some direction.  With momentum that can happen although every phase is
        stable by itself: a mode that rings can resonate with the schedule.
    NonStationaryError
        If noise reaches a flat direction, which then is a random walk.
    DivergenceError
        If the numbers overflow within a period; names the phase.

    Examples
    --------
    With the learning rate 1 the start of every period is forgotten at once:

    >>> from sgdcov.numerics import Phase, Schedule
    >>> from sgdcov.theory import sgd
    >>> periodic_covariance(sgd(), Schedule([Phase(1, lr=1.0), Phase(1, lr=0.5)]), [[1.0]], [[1.0]]).trace
    array([0.5, 1. ])
    """
    if isinstance(noise, GradientNoise):
        raise InvalidProblemError(
            "periodic_covariance takes the covariance of noise that does not depend on the weights; for noise that "
            "does, repeat the schedule in trajectory(...) until the law no longer changes"
        )
    bound = _bind(optimizer, schedule)
    problem = make_problem(bound[0][0], hessian, noise, None)
    directions, period = problem.directions, schedule.steps
    positions = _times(record, period, (0, *schedule.ends[:-1]))
    h = directions.eigenvalues
    family = StepFamily((o for o, _ in bound), h)
    run = Run(bound, family, problem)
    for _ in run.records(()):
        pass
    once = run.evolution
    law, kept = once.repeated_forever()
    if kept.any():
        _check_forgotten(bound, schedule, once, h, kept)
        flat = np.flatnonzero(kept)
        check_flat_noise(replace(directions, flat=flat), problem.rotated_noise, problem.noise_level)
        once = once.without(kept)
        law, _ = once.repeated_forever()
    run = Run(bound, family, problem, quiet=np.flatnonzero(kept))
    run.settle(law, once)
    laws: list[TransientCovariance] = []
    for records in run.records(positions):
        laws.extend(covariance_of(problem, records, index) for index in range(len(records.times)))
    warn_if_inaccurate("periodic_covariance", max(law.error or 0.0 for law in laws), CAUSE)
    return PeriodicCovariance(np.array(positions), tuple(laws), period)


def _check_forgotten(bound: Bound, schedule: Schedule, once: Evolution, h: Array, kept: NDArray[np.bool_]) -> None:
    """Raise unless all directions that a period does not forget are flat."""
    curved = np.flatnonzero(kept & (h > 0))
    if not curved.size:
        return
    if not any(optimizer.values.get("lr", 1) for optimizer, _ in bound):
        raise NonStationaryError(
            f"every phase of {schedule!r} has lr=0: nothing moves the weights, so their start is never forgotten. "
            f"For a finite number of steps use trajectory.",
            modes=tuple(float(x) for x in h[curved]),
        )
    radius = np.max(np.abs(np.linalg.eigvals(np.moveaxis(once.power.hi[:, :, curved], 2, 0))), axis=1)
    if radius.max() >= 1.0 + 1e-9:
        raise UnstableError(None, float(h[curved][radius >= 1.0 + 1e-9].max()), None)
    raise NonStationaryError(
        f"along the direction with Hessian eigenvalue {float(h[curved][0]):.6g} a period of {schedule!r} is too close "
        f"to one that never forgets its start for the digits of a double (its spectral radius there is "
        f"{float(radius[0]):.17g}). For a finite number of steps use trajectory.",
        rho=float(radius.max()),
        modes=tuple(float(x) for x in h[curved]),
    )


def _bind(optimizer: Optimizer, schedule: Schedule) -> Bound:
    if not isinstance(schedule, Schedule):
        got = shown(schedule)
        raise InvalidProblemError(f"schedule must be a Schedule, as Schedule([Phase(1000, lr=0.1)]), got {got}")
    return schedule.bind(recursion(optimizer).optimizer)


def _times(record: object, steps: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Checked, increasing times within the schedule."""
    if record is None:
        return tuple(dict.fromkeys(default))
    times = tuple(whole_number("a time in record", t) for t in tuple_of("record", record))
    if not times:
        raise InvalidProblemError(f"record must be a list of times, got {shown(record)}")
    for earlier, later in itertools.pairwise(times):
        if later <= earlier:
            raise InvalidProblemError(f"the times in record must increase, got {shown(earlier)} before {shown(later)}")
    if times[-1] > steps:
        last = shown(times[-1])
        raise InvalidProblemError(f"record asks for time {last}, but the schedule ends after {counted(steps)}")
    return times
