r"""Measure memory and averages at the stationary law: autocovariances, and the covariance of means of iterates.

Every replica reaches its stationary law first. Then, replica for replica, the state s steps later is put beside the
earlier one, or K successive states are averaged,

.. math:: \hat\Gamma(s) = \frac{1}{R-1} \sum_r \big(z_r(s) - \bar z(s)\big)\big(z_r(0) - \bar z(0)\big)^\top , \qquad
          a_r = \frac1K \sum_{k=1}^{K} z_r(k) .

Successive states depend on each other, replicas do not: standard errors come from the spread between replicas and need
no autocorrelation time.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray

from .. import numerics
from ..numerics import StationaryCovariance
from ..numerics._arrays import choice
from ..numerics._result import ArrayResult
from ..theory import Optimizer
from ._fourth_moment import FourthMoment, fourth_moment
from ._gradients import Measurable
from ._memory import Keeper
from ._moments import moments
from ._planning import stationary_law
from ._runs import Engine, Run, Setup, advance, check_count, read_slots, set_up
from ._starts import Begun, begin
from .transient import TransientEstimate, estimate_at, recorded_steps

__all__ = ["AutocovarianceEstimate", "AverageEstimate", "autocovariance", "average_covariance"]

Array = NDArray[np.float64]
#: How the replicas come to their stationary law.
Stationarity: TypeAlias = Literal["burn-in", "law"]


@dataclass(frozen=True, eq=False, repr=False)
class AverageEstimate(TransientEstimate):
    """The law of the mean of successive stationary states: an `Estimate` from one mean of every replica.

    Attributes
    ----------
    window : int
        How many states each mean is of.
    """

    window: int

    def _rows(self) -> list[tuple[str, str]]:
        text = f"{self.replicas} replicas, each the mean of {self.window} successive states"
        return [(name, text if name == "sample" else row) for name, row in super()._rows()]


@dataclass(frozen=True, eq=False, repr=False)
class AutocovarianceEstimate(ArrayResult):
    """A measured stationary autocovariance: `value` is what ``numpy.asarray(estimate)`` gives.

    Attributes
    ----------
    value : ndarray, shape (k*d, k*d)
        Unbiased estimate of the covariance of the ``k`` stacked slots (rows) with themselves ``lag`` steps earlier
        (columns). It is not symmetric in general.
    standard_error : ndarray, shape (k*d, k*d)
        Of each entry, from the spread between replicas.
    lag : int
    later, earlier : ndarray, shape (replicas, k*d)
        The states themselves; of a large run those of the first replicas, as in `Estimate`.
    replicas : int
    burn_in : int
        Steps before the earlier state.
    transient : float
        As in `Estimate`.
    start : str
        How the replicas came to their stationary law, in words.
    law : StationaryCovariance
        That law as numerics solves it: the units in which `compare` looks.
    slots : tuple of str
    optimizer : Optimizer
    engine : str
    gradients : str
    fourth_moment : FourthMoment or None
        As in `Estimate`.
    seed : int
    """

    value: Array
    standard_error: Array
    lag: int
    later: Array = field(repr=False)
    earlier: Array = field(repr=False)
    replicas: int
    burn_in: int
    transient: float
    start: str
    law: StationaryCovariance = field(repr=False)
    slots: tuple[str, ...]
    optimizer: Optimizer
    engine: str
    gradients: str
    fourth_moment: FourthMoment | None = field(default=None, kw_only=True)
    seed: int

    def _rows(self) -> list[tuple[str, str]]:
        stepper = "its rule" if self.engine == "rule" else "torch.optim.SGD"
        slots = ", ".join(self.slots)
        return [
            ("optimizer", f"{self.optimizer!r}, stepped by {stepper}"),
            ("gradients", self.gradients),
            ("covariance of", f"{slots} with {slots} {self.lag} steps earlier"),
            ("start", self.start),
            ("sample", f"{self.replicas} replicas"),
            *([] if self.fourth_moment is None else [("fourth moment", str(self.fourth_moment))]),
            ("seed", str(self.seed)),
        ]

    def __repr__(self) -> str:
        return "\n".join(["AutocovarianceEstimate", *(f"  {name:<14} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Measured autocovariance</caption>{rows}</table>"


@overload
def autocovariance(
    optimizer: Optimizer,
    problem: Measurable,
    lag: int,
    *,
    replicas: int,
    start: Stationarity = ...,
    slots: tuple[str, ...] = ...,
    batch_size: int | None = ...,
    replacement: bool = ...,
    engine: Engine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> AutocovarianceEstimate: ...


@overload
def autocovariance(
    optimizer: Optimizer,
    problem: Measurable,
    lag: Sequence[int],
    *,
    replicas: int,
    start: Stationarity = ...,
    slots: tuple[str, ...] = ...,
    batch_size: int | None = ...,
    replacement: bool = ...,
    engine: Engine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> tuple[AutocovarianceEstimate, ...]: ...


def autocovariance(
    optimizer: Optimizer,
    problem: Measurable,
    lag: int | Sequence[int],
    *,
    replicas: int,
    start: Stationarity = "burn-in",
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> AutocovarianceEstimate | tuple[AutocovarianceEstimate, ...]:
    r"""Measure the autocovariance of an optimizer at its stationary law.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : Quadratic, LeastSquares, QuadraticExamples or GradientNoise
        As in `stationary_covariance`.
    lag : int or sequence of int
        How many steps the later state is behind the earlier one, at least 0; several ascending lags are all measured in
        the one run, from the same earlier state.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    start : {"burn-in", "law"}
        How the replicas come to their stationary law: they run until they are there, or are drawn, Gaussian, all slots
        together, from the law that numerics solves.
    slots : tuple of str
        Slots to report, stacked in this order.
    batch_size : int, optional
        For `LeastSquares` and `QuadraticExamples`.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement, for these.
    engine : {"rule", "torch.optim"}
        As in `stationary_covariance`.
    rng : numpy.random.Generator or int, optional
        As in `stationary_covariance`.
    device : str or torch.device
    progress : bool
        As in `stationary_covariance`.

    Returns
    -------
    AutocovarianceEstimate or tuple of AutocovarianceEstimate
        One for each lag; those of one call come from the same replicas, and are not independent.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit.
    UnstableError, NonStationaryError
        If there is no stationary law, or iterates left the finite numbers.
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Examples
    --------
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> estimate = autocovariance(sgd(lr=0.5), problem, 2, replicas=20_000, rng=0)
    >>> exact = (1 - 0.5) ** 2 * 0.5 / (2 - 0.5)  # (1 - lr h)^2 times the variance
    >>> bool(abs(estimate.value[0, 0] - exact) < 4 * estimate.standard_error[0, 0])
    True
    """
    lags = recorded_steps("lag", lag)
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=slots, batch_size=batch_size, replacement=replacement,
        engine=engine, rng=rng, device=device,
    )  # fmt: skip
    law, begun, run = _stationary_run(setup, start, progress=progress)
    earlier = read_slots(run, setup.slots)
    fourth = fourth_moment(optimizer, setup.source, lags[-1])
    wanted, keeper, estimates = set(lags), Keeper(len(lags)), []

    def take(step: int) -> None:
        if step in wanted:
            later = read_slots(run, setup.slots)
            estimates.append(_autocovariance_of(setup, law, begun, step, later, earlier, fourth, keeper))

    take(0)
    advance(run, setup, lags[-1], take, progress=progress, records=len(lags) + 1)
    return tuple(estimates) if isinstance(lag, Iterable) else estimates[0]


def average_covariance(
    optimizer: Optimizer,
    problem: Measurable,
    window: int,
    *,
    replicas: int,
    start: Stationarity = "burn-in",
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Engine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> AverageEstimate:
    r"""Measure the covariance of the mean of successive iterates at the stationary law.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : Quadratic, LeastSquares, QuadraticExamples or GradientNoise
        As in `stationary_covariance`.
    window : int
        How many successive states each mean is of, at least 1.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    start : {"burn-in", "law"}
        As in `autocovariance`.
    slots : tuple of str
        Slots to average and report, stacked in this order.
    batch_size : int, optional
        For `LeastSquares` and `QuadraticExamples`.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement, for these.
    engine : {"rule", "torch.optim"}
        As in `stationary_covariance`.
    rng : numpy.random.Generator or int, optional
        As in `stationary_covariance`.
    device : str or torch.device
    progress : bool
        As in `stationary_covariance`.

    Returns
    -------
    AverageEstimate

    Raises
    ------
    InvalidProblemError
        If an argument does not fit.
    UnstableError, NonStationaryError
        If there is no stationary law, or iterates left the finite numbers.
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Examples
    --------
    The mean of two states has the variance ``S (1 + rho)/2`` for a correlation ``rho`` of one with the next:

    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> estimate = average_covariance(sgd(lr=0.5), problem, 2, replicas=20_000, rng=0)
    >>> exact = 0.5 / (2 - 0.5) * (1 + 0.5) / 2
    >>> bool(abs(estimate.value[0, 0] - exact) < 4 * estimate.standard_error[0, 0])
    True
    """
    check_count("window", window, 1)
    setup = set_up(
        optimizer, problem, replicas=replicas, slots=slots, batch_size=batch_size, replacement=replacement,
        engine=engine, rng=rng, device=device,
    )  # fmt: skip
    _, begun, run = _stationary_run(setup, start, progress=progress)
    total = torch.zeros(replicas, len(setup.slots) * setup.quadratic.dim, dtype=torch.float64, device=device)
    add = _adder(run, setup.slots, total)
    advance(run, setup, int(window), add, progress=progress)
    averages = (total / int(window)).cpu().numpy()
    fourth = fourth_moment(optimizer, setup.source, int(window))
    estimate = estimate_at(setup, begun, int(window), averages, optimizer, fourth, Keeper())
    return AverageEstimate(**vars(estimate), window=int(window))


def _stationary_run(setup: Setup, start: Stationarity, *, progress: bool) -> tuple[StationaryCovariance, Begun, Run]:
    """The stationary law as numerics solves it, and a run that is there."""
    choice("start", start, ("burn-in", "law"))
    optimizer, quadratic = setup.optimizer, setup.quadratic
    law = stationary_law(optimizer, setup.source)
    if start == "burn-in":
        begun = begin(setup, optimizer, None, progress=progress)
    else:
        slots = optimizer.rule.slots
        mean = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum, slots=slots)
        begun = begin(setup, law, mean, progress=progress)
    return law, begun, setup.new_run(optimizer, begun.state)


def _adder(run: Run, slots: tuple[str, ...], total: torch.Tensor) -> Callable[[int], None]:
    """A function that adds the slots to their total after every step."""
    parts = total.chunk(len(slots), dim=1)

    def add(step: int) -> None:
        for slot, part in zip(slots, parts, strict=True):
            part += run.read(slot)

    return add


def _autocovariance_of(
    setup: Setup,
    law: StationaryCovariance,
    begun: Begun,
    lag: int,
    later: Array,
    earlier: Array,
    fourth: FourthMoment | None,
    keeper: Keeper,
) -> AutocovarianceEstimate:
    size = later.shape[1]
    pairs = np.concatenate([later, earlier], axis=1)[None]
    value, standard_error, _, _ = moments(pairs)
    pairs = keeper.keep(pairs)[0]
    return AutocovarianceEstimate(
        value=value[:size, size:].copy(),
        standard_error=standard_error[:size, size:].copy(),
        lag=lag,
        later=pairs[:, :size],
        earlier=pairs[:, size:],
        replicas=setup.replicas,
        burn_in=begun.burn_in,
        transient=begun.transient,
        start=begun.text,
        law=law,
        slots=setup.slots,
        optimizer=setup.optimizer,
        engine=setup.engine,
        gradients=setup.source.kind,
        fourth_moment=begun.fourth_moment or (fourth and fourth.after(lag)),
        seed=setup.seed,
    )
