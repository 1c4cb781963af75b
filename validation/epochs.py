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

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import EpochNoise, LeastSquares, Quadratic, QuadraticExamples
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._gradients import GradientSource
from ._moments import moments
from ._runs import Setup, advance, check_count, check_optimizer, check_slots, read_slots, seed_of
from ._shuffled import loaded_gradients, shuffled_gradients
from .stationary import LARGEST_AUTOMATIC_BURN_IN, SNAPSHOT_SHARE, TRANSIENT_FRACTION, Estimate

__all__ = ["EpochEstimate", "epoch_covariance"]

Array = NDArray[np.float64]
Position: TypeAlias = int | Literal["average"]
Positions: TypeAlias = tuple[Position, ...] | list[Position]
EpochEngine: TypeAlias = Literal["rule", "torch.optim", "dataloader"]

#: What the burn-in leaves of the way to a biased mean, as a fraction of a standard deviation of one replica: with ten
#: thousand replicas a hundredth of the standard error of their mean.
MEAN_FRACTION = 1e-4


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
        After how many steps of the epoch; 0 is its beginning, where checkpoints are taken, "average" all of them
        together. All are measured in the one run.
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
    setup, noise = _set_up(
        optimizer, problem, batch_size, replicas, slots, drop_last=drop_last, engine=engine, rng=rng, device=device
    )
    wanted = _positions(positions, noise.batches_per_epoch)
    check_count("snapshots", snapshots, 1)
    plan = _plan(setup, problem, noise, epochs, snapshots)
    samples = _run(setup, noise.batches_per_epoch, plan, set(wanted), progress=progress)
    estimates = tuple(_estimate(setup, noise.batches_per_epoch, plan, each, samples, engine) for each in wanted)
    return estimates if isinstance(positions, tuple | list) else estimates[0]


@dataclass(frozen=True)
class _Plan:
    """The epochs to measure, and how the burn-in was chosen."""

    first: int
    apart: int
    snapshots: int
    forgetting: Forgetting

    @property
    def epochs(self) -> range:
        return range(self.first, self.first + self.apart * self.snapshots, self.apart)


def _set_up(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    batch_size: int,
    replicas: int,
    slots: tuple[str, ...],
    *,
    drop_last: bool,
    engine: str,
    rng: np.random.Generator | int | None,
    device: str | torch.device,
) -> tuple[Setup, EpochNoise]:
    seed = seed_of(rng)
    check_optimizer(optimizer)
    optimizer.require_bound()
    check_count("replicas", replicas, 2)
    if engine not in ("rule", "torch.optim", "dataloader"):
        raise InvalidProblemError(f"engine must be 'rule', 'torch.optim' or 'dataloader', got {engine!r}.")
    if not isinstance(problem, LeastSquares | QuadraticExamples):
        raise InvalidProblemError(
            f"epochs need examples: the problem must be a LeastSquares or QuadraticExamples, got "
            f"{type(problem).__name__}."
        )
    slots = check_slots(optimizer, slots)
    noise = numerics.epoch_noise(problem, batch_size, drop_last=drop_last)
    generator = torch.Generator(device=device).manual_seed(seed)
    if engine == "dataloader":
        gradients = loaded_gradients(problem, replicas, batch_size, generator, drop_last=drop_last)
    else:
        gradients = shuffled_gradients(problem, replicas, batch_size, generator)
    kind = f"shuffled epochs of {noise.batches_per_epoch} batches of {batch_size}"
    quadratic = Quadratic(problem.hessian, noise.noise, problem.optimum)
    source = GradientSource(gradients, kind, quadratic, quadratic.noise)
    steps: Literal["rule", "torch.optim"] = "rule" if engine == "rule" else "torch.optim"
    return Setup(optimizer, source, replicas, slots, steps, generator, seed), noise


def _positions(positions: Position | Positions, count: int) -> tuple[Position, ...]:
    each: tuple[Position, ...] = tuple(positions) if isinstance(positions, tuple | list) else (positions,)
    if not each or len(set(each)) != len(each):
        raise InvalidProblemError(f"positions must be distinct, and at least one, got {positions!r}.")
    for position in each:
        if position == "average":
            continue
        if isinstance(position, str):
            raise InvalidProblemError(f"a position is a number of steps of the epoch or 'average', got {position!r}.")
        check_count("position", position, 0)
        if position >= count:
            raise InvalidProblemError(
                f"position {position} is not within an epoch of {count} steps; its end is position 0 of the next."
            )
    return each


def _plan(
    setup: Setup, problem: LeastSquares | QuadraticExamples, noise: EpochNoise, epochs: object, snapshots: int
) -> _Plan:
    optimizer, quadratic, count = setup.optimizer, setup.quadratic, noise.batches_per_epoch
    law = numerics.stationary_covariance(optimizer, quadratic.hessian, noise)  # refuses what has none
    moving = np.delete(np.asarray(law.eigenvalues), np.asarray(law.flat, dtype=int))
    forgetting = Forgetting.of(optimizer, moving, setup.slots)
    common = isinstance(problem, QuadraticExamples) and problem.hessians.strides[0] == 0
    spacing = forgetting.steps(SNAPSHOT_SHARE, LARGEST_AUTOMATIC_BURN_IN)
    if epochs != "auto":
        check_count("epochs", epochs, 1)
        first = int(epochs)  # type: ignore[call-overload]
    else:
        share = TRANSIENT_FRACTION * float(np.sqrt(2.0 / (setup.replicas * snapshots)))
        if not common:
            share = min(share, MEAN_FRACTION**2)
        burn_in = forgetting.steps(share, LARGEST_AUTOMATIC_BURN_IN)
        if burn_in is None:
            left = forgetting.share(LARGEST_AUTOMATIC_BURN_IN)
            raise InvalidProblemError(
                f"the slowest direction still misses a share {left:.3g} of its variance after "
                f"{LARGEST_AUTOMATIC_BURN_IN:,} steps, and at most {share:.3g} may be missing. Give epochs=... to run "
                f"anyway, or take a larger learning rate or a better conditioned problem."
            )
        first = -(-(1 if common else 2) * burn_in // count)
    apart = max(1, -(-spacing // count)) if spacing is not None else first
    return _Plan(first, apart, snapshots, forgetting)


def _run(
    setup: Setup, count: int, plan: _Plan, wanted: set[Position], *, progress: bool
) -> dict[Position, list[Array]]:
    """The states of all replicas at every position, one array an epoch (for the average, one a step)."""
    optimizer, device = setup.optimizer, setup.generator.device
    known = optimizer.rule.slots
    fixed = numerics.stationary_mean(optimizer, setup.quadratic.hessian, setup.quadratic.optimum, slots=known)
    rows = [torch.tensor(row, device=device).unsqueeze(1) for row in np.split(fixed, len(known))]
    run = setup.new_run(optimizer, [row.repeat(1, setup.replicas).T for row in rows])
    samples: dict[Position, list[Array]] = {position: [] for position in wanted}
    last = count - 1 if "average" in wanted else max(int(position) for position in wanted)

    def take(step: int) -> None:
        epoch, position = divmod(step, count)
        if epoch not in plan.epochs or not wanted & {position, "average"}:
            return
        state = read_slots(run, setup.slots)
        for name in wanted & {position, "average"}:
            samples[name].append(state)

    advance(run, setup, plan.epochs[-1] * count + last, take, progress=progress)
    return samples


def _estimate(
    setup: Setup, count: int, plan: _Plan, position: Position, samples: dict[Position, list[Array]], engine: str
) -> EpochEstimate:
    states = np.stack(samples[position])
    value, standard_error, mean, mean_standard_error = moments(states)
    within = 0 if position == "average" else int(position)
    burn_in = plan.first * count + within
    gaussian_error = float(np.sqrt(2.0 / (setup.replicas * plan.snapshots)))
    return EpochEstimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=states,
        replicas=setup.replicas,
        steps=plan.epochs[-1] * count + (count - 1 if position == "average" else within),
        burn_in=burn_in,
        spacing=plan.apart * count,
        transient=plan.forgetting.share(burn_in) / gaussian_error,
        slots=setup.slots,
        optimizer=setup.optimizer,
        engine=engine,
        gradients=setup.source.kind,
        seed=setup.seed,
        position=position,
        batches_per_epoch=count,
    )
