r"""Measure a run through a schedule: the law of the weights, and the excess risk, at recorded steps.

Learning rate and momentum change from step to step, by our rules or by a real ``torch.optim.lr_scheduler`` that steps
beside the real ``torch.optim.SGD``. Replica r is at :math:`w_r(t)` after t steps; the excess risk is the mean over
replicas of the loss above its minimum,

.. math:: \hat R(t) = \frac1N \sum_r \tfrac12 (w_r - w^*)^\top H (w_r - w^*) ,

whose expectation is :math:`(\operatorname{tr} H\Sigma_t + (m_t - w^*)^\top H (m_t - w^*))/2`.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import HyperparameterError, InvalidProblemError
from ..numerics import Schedule
from ..numerics._result import Frozen
from ..theory import Optimizer
from ._fourth_moment import fourth_moment
from ._gradients import Measurable
from ._memory import Keeper
from ._runs import ENGINES, Engine, Run, Setup, TorchRun, advance, check_engine, check_optimizer, read_slots, set_up
from ._starts import Start, begin
from .schedules import SchedulerFactory, schedule_from_torch, scheduler_of
from .transient import TransientEstimate, estimate_at, recorded_steps

__all__ = ["Trajectory", "trajectory"]

Array = NDArray[np.float64]

#: The learning rate that stands for 0 where only the state of rest is asked for, which is that of any.
SLOW = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Frozen):
    """What was measured along a run: one `TransientEstimate` for each recorded time, and summaries over time.

    Attributes
    ----------
    times : ndarray of int, shape (n,)
        Steps made since the start.
    estimates : tuple of TransientEstimate
        The law of the slots then, for `compare`. All come from the same replicas, and are not independent.
    mean, mean_standard_error : ndarray, shape (n, k*d)
    covariance, covariance_standard_error : ndarray, shape (n, k*d, k*d)
    trace, trace_standard_error : ndarray, shape (n,)
        Total variance of the weights.
    excess_risk, excess_risk_standard_error : ndarray, shape (n,)
        Mean loss above its minimum.
    schedule : Schedule
        What the run went through; read off the scheduler where one was given.
    """

    times: NDArray[np.int64]
    estimates: tuple[TransientEstimate, ...]
    trace: Array
    trace_standard_error: Array
    excess_risk: Array
    excess_risk_standard_error: Array
    schedule: Schedule = field(repr=False)

    @property
    def mean(self) -> Array:
        """Mean of the slots over time."""
        return np.stack([estimate.mean for estimate in self.estimates])

    @property
    def mean_standard_error(self) -> Array:
        """Standard error of each entry of `mean`."""
        return np.stack([estimate.mean_standard_error for estimate in self.estimates])

    @property
    def covariance(self) -> Array:
        """Covariance of the slots over time."""
        return np.stack([estimate.value for estimate in self.estimates])

    @property
    def covariance_standard_error(self) -> Array:
        """Standard error of each entry of `covariance`."""
        return np.stack([estimate.standard_error for estimate in self.estimates])

    def at(self, time: int) -> TransientEstimate:
        """The law recorded after this many steps.

        Parameters
        ----------
        time : int

        Returns
        -------
        TransientEstimate

        Raises
        ------
        InvalidProblemError
            If that time was not recorded.
        """
        found = np.flatnonzero(self.times == time)
        if not len(found):
            raise InvalidProblemError(f"time {time} was not recorded; those that were are {self.times.tolist()}.")
        return self.estimates[int(found[0])]

    def _rows(self) -> list[tuple[str, str]]:
        last = self.estimates[-1]
        stepper = "its rule" if last.engine == "rule" else "torch.optim.SGD"
        first, end = int(self.times[0]), int(self.times[-1])
        return [
            ("optimizer", f"{last.optimizer!r} at the end, stepped by {stepper}"),
            ("gradients", last.gradients),
            ("start", last.start),
            ("sample", f"{last.replicas} replicas, {len(self.times)} records of steps {first} to {end}"),
            ("excess risk", f"{self.excess_risk[-1]:.4g} +- {self.excess_risk_standard_error[-1]:.1g} at the end"),
            ("seed", str(last.seed)),
        ]

    def __repr__(self) -> str:
        return "\n".join(["Trajectory", *(f"  {name:<12} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Measured trajectory</caption>{rows}</table>"


def trajectory(
    optimizer: Optimizer,
    schedule: Schedule | SchedulerFactory,
    problem: Measurable,
    *,
    start: Start = None,
    mean: ArrayLike | None = None,
    record: Sequence[int] | NDArray[np.integer] | None = None,
    replicas: int,
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Trajectory:
    r"""Measure the law of an optimizer at recorded steps of a schedule.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound, but for those that the schedule sets. Some phases may be unstable.
    schedule : Schedule or callable
        What changes over time; or a function that makes a real ``torch.optim.lr_scheduler`` for a ``torch.optim``
        object, as ``lambda optim: StepLR(optim, step_size=30)`` does. With ``engine="torch.optim"`` that scheduler
        itself steps along, once after each step of the optimizer; the rule follows what `schedule_from_torch` reads.
    problem : Quadratic, LeastSquares, QuadraticExamples, GradientNoise or an adversarial problem
        As in `stationary_covariance`.
    start : Optimizer, StationaryCovariance, TransientCovariance, array_like or None
        As in `transient_covariance`.
    mean : array_like, shape (d,) or (m*d,), optional
        As in `transient_covariance`.
    record : sequence of int, optional
        Increasing times, in steps since the start, at which to record; the run ends with the last. The start and the
        end of every phase by default; a function that makes a scheduler has no end, and needs them.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    slots : tuple of str
        Slots to report, stacked in this order.
    batch_size : int, optional
        For `LeastSquares`, `QuadraticExamples` and the adversarial problems.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement, for these.
    engine : {"rule", "torch.optim"}
        What steps: the rule's own function, or the real ``torch.optim.SGD`` (see `torch_optimizer`).
    rng : numpy.random.Generator or int, optional
        As in `stationary_covariance`.
    device : str or torch.device
    progress : bool
        As in `stationary_covariance`.

    Returns
    -------
    Trajectory

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, or a record lies beyond the end of the schedule.
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule, or ``schedule`` is neither a schedule nor a function
        that makes a scheduler.
    HyperparameterError
        If a hyper-parameter is not bound, or outside its domain in some phase.
    UnstableError, NonStationaryError
        If a burn-in is asked for and has no stationary law.
    DivergenceError
        If iterates left the finite numbers (NonStationaryError if that is the noise of minibatches).

    Examples
    --------
    The real ``torch.optim.SGD`` with a real scheduler that drops its learning rate after three of five steps:

    >>> import torch
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> run = trajectory(
    ...     sgd(lr=0.5), lambda optim: torch.optim.lr_scheduler.StepLR(optim, step_size=3, gamma=0.5), problem,
    ...     record=(3, 5), replicas=20_000, engine="torch.optim", rng=0,
    ... )
    >>> at_3 = 0.25 * (1 + 0.5**2 + 0.5**4)
    >>> at_5 = 0.75**4 * at_3 + 0.25**2 * (1 + 0.75**2)
    >>> bool((abs(run.excess_risk - [at_3 / 2, at_5 / 2]) < 4 * run.excess_risk_standard_error).all())
    True
    """
    check_optimizer(optimizer)
    check_engine(engine, ENGINES)
    factory = None if isinstance(schedule, Schedule) else schedule
    records = recorded_steps("record", _default_record(schedule) if record is None else record)
    plan = _plan(schedule, optimizer, records[-1])
    phases = plan.bind(optimizer)
    if engine == "torch.optim":
        before = [] if factory is None else [(optimizer, 0)]  # what the scheduler finds, and may replace at once
        _refuse_momentum_that_vanishes([*before, *phases], 1 - len(before))
    # Rest and slots are the same in all phases; a learning rate of 0 has no law that a source could ask for.
    at_rest = _boldest(phases, len(phases))
    setup = set_up(
        at_rest if _moves(at_rest) else at_rest.replace(lr=SLOW), problem, replicas=replicas, slots=slots,
        batch_size=batch_size, replacement=replacement, engine=engine, rng=rng, device=device,
    )  # fmt: skip
    begun = begin(setup, start, mean, progress=progress)
    ends = np.array(plan.ends)
    starts = dict(zip((0, *plan.ends), phases, strict=False))
    summaries = _Summaries(setup)
    estimates: list[TransientEstimate] = []
    boldest = _boldest(phases, int(np.searchsorted(ends, records[-1])))
    fourth = fourth_moment(boldest, setup.source, records[-1]) if _moves(boldest) else None
    wanted, keeper = set(records), Keeper(len(records))
    scheduler = None
    if factory is not None and engine == "torch.optim":
        # PyTorch's own scheduler changes PyTorch's own optimizer, from the learning rate that it was given.
        torch_run = TorchRun(optimizer, begun.state)
        scheduler, starts = scheduler_of(factory, torch_run.optim), {}
        run: Run = torch_run
    else:
        run = setup.new_run(phases[0][0], begun.state)

    def change(done: int) -> None:
        if done in starts and done:
            run.change(starts[done][0])

    def take(step: int) -> None:
        if scheduler is not None and step:
            scheduler.step()
        if step in wanted:
            states = read_slots(run, setup.slots)
            estimates.append(estimate_at(setup, begun, step, states, stepping(step), fourth, keeper))
            summaries.add(read_slots(run, ("w",)))

    def stepping(step: int) -> Optimizer:
        """What makes the step of this number, the first of all for number 0."""
        return phases[int(np.searchsorted(ends, step))][0]

    take(0)
    advance(
        run, setup, records[-1], take, before=change, progress=progress, stepping=stepping, recorded=wanted,
        records=len(records),
    )  # fmt: skip
    trace, trace_error, risk, risk_error = np.array(summaries.found).T
    return Trajectory(
        times=np.array(records, dtype=np.int64),
        estimates=tuple(estimates),
        trace=trace,
        trace_standard_error=trace_error,
        excess_risk=risk,
        excess_risk_standard_error=risk_error,
        schedule=plan,
    )


def _default_record(schedule: Schedule | SchedulerFactory) -> tuple[int, ...]:
    if not isinstance(schedule, Schedule):
        raise InvalidProblemError("a function that makes a scheduler has no end: give record=..., when to look.")
    return (0, *schedule.ends)


def _plan(schedule: Schedule | SchedulerFactory, optimizer: Optimizer, end: int) -> Schedule:
    """The schedule as data, long enough."""
    if not isinstance(schedule, Schedule):
        return schedule_from_torch(schedule, max(1, end), optimizer=optimizer)
    if end > schedule.steps:
        raise InvalidProblemError(f"record asks for step {end}, but the schedule ends after {schedule.steps} steps.")
    return schedule


def _boldest(phases: Sequence[tuple[Optimizer, int]], last: int) -> Optimizer:
    """Of the optimizers up to a phase, one of the largest learning rate: its fourth moments grow fastest."""
    return max((optimizer for optimizer, _ in phases[: last + 1]), key=lambda o: float(o.values.get("lr", 0.0)))


def _moves(optimizer: Optimizer) -> bool:
    return float(optimizer.values.get("lr", 1.0)) > 0.0


class _Summaries:
    """Total variance and excess risk of the weights, with standard errors from the spread between replicas."""

    def __init__(self, setup: Setup) -> None:
        self.problem = setup.quadratic
        self.found: list[tuple[float, float, float, float]] = []

    def add(self, weights: Array) -> None:
        root = float(np.sqrt(len(weights)))
        squares = np.sum(np.square(weights - weights.mean(axis=0)), axis=1)
        losses = self.problem.loss(weights)
        trace = float(np.sum(squares)) / (len(weights) - 1)
        errors = (float(np.std(sample, ddof=1)) / root for sample in (squares, losses))
        self.found.append((trace, next(errors), float(np.mean(losses)), next(errors)))


def _refuse_momentum_that_vanishes(phases: Sequence[tuple[Optimizer, int]], first: int) -> None:
    momenta = [float(optimizer.values.get("momentum", 0.0)) for optimizer, _ in phases]
    for index, (before, now) in enumerate(itertools.pairwise(momenta), start=first):
        if (before == 0.0) != (now == 0.0):
            raise HyperparameterError(
                f"phase {index}: momentum goes from {before:.6g} to {now:.6g}, and torch.optim.SGD leaves its buffer "
                f"alone while momentum is 0, where the rule does not. Take engine='rule', or a momentum that is "
                f"never 0.",
                name="momentum",
            )
