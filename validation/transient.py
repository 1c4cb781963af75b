r"""Measure the covariance a number of steps after a start: replicas of a real run, all recorded at the same steps.

After k steps replica r is at :math:`z_r(k)`; replicas are independent, so

.. math:: \hat\Sigma(k) = \frac{1}{R-1} \sum_r (z_r - \bar z)(z_r - \bar z)^\top

is unbiased for every start, stationary or not, and the spread of the R products between replicas is its standard error.
Nothing here asks for stability: an unstable optimizer is measured for as long as its iterates stay finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..numerics._arrays import tuple_of
from ..theory import Optimizer
from ._fourth_moment import FourthMoment, fourth_moment
from ._gradients import Measurable
from ._memory import Keeper
from ._moments import moments
from ._runs import Engine, Setup, advance, check_count, read_slots, set_up
from ._starts import Begun, Start, begin
from .stationary import Estimate

__all__ = ["TransientEstimate", "transient_covariance"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class TransientEstimate(Estimate):
    """A law measured a number of steps after the start: an `Estimate` from one state of every replica.

    Attributes
    ----------
    time : int
        Steps after the start; ``steps`` counts those of the burn-in too.
    start : str
        Where the replicas started, in words.
    """

    time: int
    start: str

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        at = [name for name, _ in rows].index("sample")
        started = self.start
        if self.burn_in:
            started += f", leaving a bias of about {self.transient:.2g} standard errors"
        rows[at : at + 2] = [("start", started), ("sample", f"{self.replicas} replicas, {self.time} steps after it")]
        return rows


@overload
def transient_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    steps: int,
    *,
    start: Start = ...,
    mean: ArrayLike | None = ...,
    replicas: int,
    slots: tuple[str, ...] = ...,
    batch_size: int | None = ...,
    replacement: bool = ...,
    engine: Engine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> TransientEstimate: ...


@overload
def transient_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    steps: Sequence[int],
    *,
    start: Start = ...,
    mean: ArrayLike | None = ...,
    replicas: int,
    slots: tuple[str, ...] = ...,
    batch_size: int | None = ...,
    replacement: bool = ...,
    engine: Engine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> tuple[TransientEstimate, ...]: ...


def transient_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    steps: int | Sequence[int],
    *,
    start: Start = None,
    mean: ArrayLike | None = None,
    replicas: int,
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> TransientEstimate | tuple[TransientEstimate, ...]:
    r"""Measure the covariance of an optimizer a number of steps after a start.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound. It may be unstable, for as long as its iterates stay finite.
    problem : Quadratic, LeastSquares, QuadraticExamples, GradientNoise or an adversarial problem
        As in `stationary_covariance`.
    steps : int or sequence of int
        How many steps after the start, at least 0; several ascending numbers are all recorded in the one run.
    start : Optimizer, StationaryCovariance, TransientCovariance, array_like or None
        Where the replicas start.

        - An optimizer with the same slots (before a drop of the learning rate, say): the replicas run it, from its
          fixed point, until its law is stationary.
        - A law of numerics: all slots of every replica are drawn from it together, Gaussian.
        - A covariance of the weights, shape (d, d): they are drawn, Gaussian, with every other slot at rest (velocities
          0, copies of the weights equal to them).
        - A point, shape (d,) or (m*d,): all replicas start at these weights with the other slots at rest, or in this
          state of all m slots.
        - None: all replicas start at rest at ``mean``.
    mean : array_like, shape (d,) or (m*d,), optional
        Mean of a start that is drawn: the weights, every other slot at rest, or all m slots stacked. The optimum by
        default, as in numerics; where weight decay moves the mean of a stationary law, give its `stationary_mean`.
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
    TransientEstimate or tuple of TransientEstimate
        One for each number of steps; those of one call come from the same replicas, and are not independent.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, or a start is no covariance.
    UnstableError, NonStationaryError
        If a burn-in is asked for and has no stationary law.
    DivergenceError
        If iterates left the finite numbers (NonStationaryError if that is the noise of minibatches).
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Examples
    --------
    Five steps after a fourfold drop of the learning rate, from replicas that really ran before it:

    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> before, after = sgd(lr=0.8), sgd(lr=0.2)
    >>> estimate = transient_covariance(after, problem, 5, start=before, replicas=20_000, rng=0)
    >>> old, new, left = 0.8 / 1.2, 0.2 / 1.8, 0.8 ** 10
    >>> bool(abs(estimate.value[0, 0] - (left * old + (1 - left) * new)) < 4 * estimate.standard_error[0, 0])
    True
    """
    times = recorded_steps("steps", steps)
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=slots, batch_size=batch_size, replacement=replacement,
        engine=engine, rng=rng, device=device,
    )  # fmt: skip
    begun = begin(setup, start, mean, progress=progress)
    run = setup.new_run(optimizer, begun.state)
    fourth = fourth_moment(optimizer, setup.source, times[-1])
    wanted, keeper, estimates = set(times), Keeper(len(times)), []

    def take(step: int) -> None:
        if step in wanted:
            states = read_slots(run, setup.slots)
            estimates.append(estimate_at(setup, begun, step, states, optimizer, fourth, keeper))

    take(0)
    advance(run, setup, times[-1], take, progress=progress, recorded=wanted, records=len(times))
    return tuple(estimates) if isinstance(steps, Iterable) else estimates[0]


def estimate_at(
    setup: Setup,
    begun: Begun,
    time: int,
    states: Array,
    optimizer: Optimizer,
    fourth: FourthMoment | None,
    keeper: Keeper,
) -> TransientEstimate:
    """The estimate from the states (replicas, k*d) a number of steps after the start.

    Where the law that replicas started from has no fourth moment, no later one does; ``fourth`` is of the steps.
    """
    value, standard_error, mean, mean_standard_error = moments(states[None])
    return TransientEstimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=keeper.keep(states[None]),
        replicas=setup.replicas,
        steps=begun.burn_in + time,
        burn_in=begun.burn_in,
        spacing=1,
        transient=begun.transient,
        slots=setup.slots,
        optimizer=optimizer,
        engine=setup.engine,
        gradients=setup.source.kind,
        fourth_moment=begun.fourth_moment or (fourth and fourth.after(time)),
        seed=setup.seed,
        time=time,
        start=begun.text,
    )


def recorded_steps(name: str, steps: int | Iterable[int]) -> tuple[int, ...]:
    """Ascending whole numbers of at least 0."""
    given = tuple_of(name, steps) if isinstance(steps, Iterable) else (steps,)
    if not given:
        raise InvalidProblemError(f"{name} is empty: say when to record.")
    for step in given:
        check_count(name, step, 0)
    for earlier, later in itertools.pairwise(given):
        if later <= earlier:
            raise InvalidProblemError(f"{name} must ascend, but {later} follows {earlier}.")
    return tuple(int(step) for step in given)
