r"""Measure shuffled epochs: each replica passes through the examples in a new random order of its own every epoch.

The law is periodic, so what is measured is the law after a number of steps of an epoch, or at all of them together.
Each replica contributes

.. math:: P_r = \frac1S \sum_{s=1}^{S} (z_{rs} - \bar z)(z_{rs} - \bar z)^\top

from S states at the same position of S epochs (or at all positions of S epochs); its orders are its own, so replicas
are independent and their spread gives the standard errors, of the mean too: where Hessians differ between examples, the
mean of shuffled epochs is not at the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ..numerics import LeastSquares, QuadraticExamples
from ..numerics._arrays import shown
from ..numerics.epochs import checked_position
from ..theory import Optimizer
from ._epoch_runs import EpochEngine, EpochSetup, Plan, set_up_epochs
from ._fourth_moment import FourthMoment
from ._memory import Keeper
from ._moments import moments
from ._runs import advance, check_count, read_slots
from .averages import AverageEstimate
from .stationary import Estimate

__all__ = ["EpochEstimate", "epoch_average_covariance", "epoch_covariance"]

Array = NDArray[np.float64]
Position: TypeAlias = int | Literal["average"]
Positions: TypeAlias = tuple[Position, ...] | list[Position]


@dataclass(frozen=True, eq=False, repr=False)
class EpochEstimate(Estimate):
    """The law of shuffled epochs, measured at one position: an `Estimate` from the states of every replica there.

    Attributes
    ----------
    position : int or "average"
        After how many steps of the epoch; "average" takes the states at all of them.
    batches_per_epoch : int
    """

    position: Position
    batches_per_epoch: int

    def _rows(self) -> list[tuple[str, str]]:
        count = self.batches_per_epoch
        where = f"after {self.position} of {count} steps of"
        epochs = len(self.samples)
        if self.position == "average":
            where, epochs = f"at all {count} steps of", epochs // count
        sample = f"{self.replicas} replicas {where} {epochs} epoch{'s' if epochs > 1 else ''}"
        if epochs > 1:
            sample += f", {self.spacing // count} epochs apart"
        fed = {"dataloader": f"{self.optimizer!r}, stepped by torch.optim.SGD, fed by DataLoader(shuffle=True)"}
        changed = {"sample": sample, "optimizer": fed.get(self.engine)}
        return [(name, changed.get(name) or text) for name, text in super()._rows()]


@overload
def epoch_covariance(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    *,
    batch_size: int,
    replicas: int,
    positions: Position,
    epochs: int | Literal["auto"] = ...,
    snapshots: int = ...,
    slots: tuple[str, ...] = ...,
    drop_last: bool = ...,
    engine: EpochEngine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> EpochEstimate: ...


@overload
def epoch_covariance(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    *,
    batch_size: int,
    replicas: int,
    positions: Positions = ...,
    epochs: int | Literal["auto"] = ...,
    snapshots: int = ...,
    slots: tuple[str, ...] = ...,
    drop_last: bool = ...,
    engine: EpochEngine = ...,
    rng: np.random.Generator | int | None = ...,
    device: str | torch.device = ...,
    progress: bool = ...,
) -> tuple[EpochEstimate, ...]: ...


def epoch_covariance(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    *,
    batch_size: int,
    replicas: int,
    positions: Position | Positions = (0,),
    epochs: int | Literal["auto"] = "auto",
    snapshots: int = 1,
    slots: tuple[str, ...] = ("w",),
    drop_last: bool = False,
    engine: EpochEngine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> EpochEstimate | tuple[EpochEstimate, ...]:
    r"""Measure the law of an optimizer that passes through the examples in a new random order each epoch.

    All replicas start where the run without noise rests.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : LeastSquares or QuadraticExamples
        The gradients are those of true batches: exactly additive where all examples have one Hessian.
    batch_size : int
        B; it must divide the number of examples, or ``drop_last`` be set.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    positions : int or "average", or a tuple or list of them
        After how many steps of the epoch; 0 is its beginning, where checkpoints are taken (their number M, the end of
        the epoch, is the 0 of the next), "average" all of them together. All are measured in the one run.
    epochs : int or "auto"
        Epochs before the first that is measured. "auto": until the variance still missing along any eigenvector of the
        Hessian is at most 1% of its Monte-Carlo standard error by theory's recursion; where Hessians differ, until of
        the way to the biased mean 1e-4 standard deviations are left, and twice as long, as second moments may decay
        more slowly there.
    snapshots : int
        Epochs that are measured, so far apart that the squared correlation between neighbours is at most exp(-2).
    slots : tuple of str
        Slots to report, stacked in this order.
    drop_last : bool
        Leave out the examples that do not fill a batch, other ones in every epoch.
    engine : {"rule", "torch.optim", "dataloader"}
        What steps: the rule's own function; the real ``torch.optim.SGD``; or that, fed with the batches of a real
        ``torch.utils.data.DataLoader(shuffle=True)`` for each replica and differentiated by autograd.
    rng : numpy.random.Generator or int, optional
        As in `stationary_covariance`.
    device : str or torch.device
    progress : bool
        As in `stationary_covariance`.

    Returns
    -------
    EpochEstimate or tuple of EpochEstimate
        One for each position; those of one call come from the same replicas, and are not independent.

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, or "auto" would need more than a million steps.
    UnstableError, NonStationaryError
        If there is no stationary law (numerics decides for additive noise), or iterates left the finite numbers.
    InvalidRuleError
        If the engine has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Notes
    -----
    Where Hessians differ, whether the fourth moment exists that standard errors need is asked of independent batches of
    distinct examples; shuffled ones are known to be milder in one dimension.

    Examples
    --------
    Ends of epochs are quiet: with two examples each is used once, and most of the noise has cancelled.

    >>> import numpy as np
    >>> from sgdcov import numerics
    >>> from sgdcov.theory import sgd
    >>> problem = numerics.QuadraticExamples([[[1.0]], [[1.0]]], [[1.0], [-1.0]])
    >>> estimate = epoch_covariance(sgd(lr=0.5), problem, batch_size=1, replicas=2000, positions=0, rng=0)
    >>> noise = numerics.epoch_noise(problem, 1)
    >>> exact = numerics.stationary_covariance(sgd(lr=0.5), problem.hessian, noise).value
    >>> bool(abs(estimate.value - exact) < 4 * estimate.standard_error)
    True
    """
    prepared = set_up_epochs(
        optimizer, problem, batch_size=batch_size, replicas=replicas, slots=slots, drop_last=drop_last, engine=engine,
        rng=rng, device=device,
    )  # fmt: skip
    wanted = _positions(positions, prepared.count)
    plan = prepared.plan(epochs, snapshots)
    samples, fourth = _run(prepared, plan, set(wanted), progress=progress), prepared.fourth_moment()
    estimates = tuple(_estimate(prepared, plan, each, samples, fourth, len(wanted)) for each in wanted)
    return estimates if isinstance(positions, tuple | list) else estimates[0]


def epoch_average_covariance(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    window: int,
    *,
    batch_size: int,
    replicas: int,
    epochs: int | Literal["auto"] = "auto",
    slots: tuple[str, ...] = ("w",),
    drop_last: bool = False,
    engine: EpochEngine = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> AverageEstimate:
    r"""Measure the covariance of the mean of successive iterates of shuffled epochs.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : LeastSquares or QuadraticExamples
        As in `epoch_covariance`.
    window : int
        How many successive states each mean is of, at least 1: those after the first step of an epoch and the following
        ones.
    batch_size : int
        As in `epoch_covariance`.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    epochs : int or "auto"
        Epochs before the window, as in `epoch_covariance`.
    slots : tuple of str
        Slots to average and report, stacked in this order.
    drop_last : bool
        As in `epoch_covariance`.
    engine : {"rule", "torch.optim", "dataloader"}
        As in `epoch_covariance`.
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
    InvalidProblemError, UnstableError, NonStationaryError, InvalidRuleError, HyperparameterError
        As `epoch_covariance`; also if ``window`` is no integer of at least 1.

    Examples
    --------
    Of two examples the second takes back what the first has done, so that the mean of an epoch moves little:

    >>> from sgdcov import numerics
    >>> from sgdcov.theory import sgd
    >>> problem = numerics.QuadraticExamples([[[1.0]], [[1.0]]], [[1.0], [-1.0]])
    >>> estimate = epoch_average_covariance(sgd(lr=0.5), problem, 2, batch_size=1, replicas=2000, rng=0)
    >>> noise = numerics.epoch_noise(problem, 1)
    >>> exact = numerics.average_covariance(sgd(lr=0.5), problem.hessian, noise, 2)
    >>> bool(abs(estimate.value - exact) < 4 * estimate.standard_error)
    True
    """
    prepared = set_up_epochs(
        optimizer, problem, batch_size=batch_size, replicas=replicas, slots=slots, drop_last=drop_last, engine=engine,
        rng=rng, device=device,
    )  # fmt: skip
    check_count("window", window, 1)
    setup, plan, run = prepared.setup, prepared.plan(epochs, 1), prepared.new_run()
    burn_in = plan.first * prepared.count
    total = np.zeros((replicas, len(setup.slots) * setup.quadratic.dim))

    def add(step: int) -> None:
        if step > burn_in:
            np.add(total, read_slots(run, setup.slots), out=total)

    advance(run, setup, burn_in + window, add, progress=progress)
    states = total[None] / window
    value, standard_error, mean, mean_standard_error = moments(states)
    return AverageEstimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=Keeper().keep(states),
        replicas=replicas,
        steps=burn_in + window,
        burn_in=burn_in,
        spacing=0,
        transient=plan.transient,
        slots=setup.slots,
        optimizer=setup.optimizer,
        engine=engine,
        gradients=setup.source.kind,
        seed=setup.seed,
        fourth_moment=prepared.fourth_moment(),
        time=window,
        start=f"{plan.first} epochs",
        window=window,
    )


def _positions(positions: Position | Positions, count: int) -> tuple[Position, ...]:
    """Checked as numerics does: the end of the epoch is position 0 of the next."""
    given = tuple(positions) if isinstance(positions, tuple | list) else (positions,)
    each = tuple(checked_position(position, count) for position in given)
    if not all(isinstance(position, str | int | np.integer) for position in each):
        raise InvalidProblemError(f"a position is a number of steps of the epoch or 'average', got {shown(positions)}.")
    if not each or len(set(each)) != len(each):
        raise InvalidProblemError(f"positions must be distinct, and at least one, got {positions!r}.")
    return each


def _run(prepared: EpochSetup, plan: Plan, wanted: set[Position], *, progress: bool) -> dict[Position, list[Array]]:
    """The states of all replicas at every position, one array an epoch (for the average, one a step)."""
    setup, count, run = prepared.setup, prepared.count, prepared.new_run()
    samples: dict[Position, list[Array]] = {position: [] for position in wanted}
    last = count - 1 if "average" in wanted else max(int(position) for position in wanted)

    def take(step: int) -> None:
        epoch, position = divmod(step, count)
        if epoch not in plan.epochs or not wanted & {position, "average"}:
            return
        state = read_slots(run, setup.slots)
        for name in wanted & {position, "average"}:
            samples[name].append(state)

    states = len(plan.epochs) * (len(wanted - {"average"}) + (count if "average" in wanted else 0))
    advance(run, setup, plan.epochs[-1] * count + last, take, progress=progress, snapshots=states)
    return samples


def _estimate(
    prepared: EpochSetup,
    plan: Plan,
    position: Position,
    samples: dict[Position, list[Array]],
    fourth: FourthMoment | None,
    records: int,
) -> EpochEstimate:
    setup, count = prepared.setup, prepared.count
    states = np.stack(samples.pop(position))
    value, standard_error, mean, mean_standard_error = moments(states)
    within = 0 if position == "average" else int(position)
    return EpochEstimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=Keeper(records).keep(states),
        replicas=setup.replicas,
        steps=plan.epochs[-1] * count + (count - 1 if position == "average" else within),
        burn_in=plan.first * count + within,
        spacing=plan.apart * count,
        transient=plan.transient,
        slots=setup.slots,
        optimizer=setup.optimizer,
        engine=prepared.engine,
        gradients=setup.source.kind,
        seed=setup.seed,
        fourth_moment=fourth,
        position=position,
        batches_per_epoch=count,
    )
