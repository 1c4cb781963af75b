"""What measurements of shuffled epochs share: checked arguments, how long the burn-in is, and where the run starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import EpochNoise, LeastSquares, MinibatchNoise, Quadratic, QuadraticExamples
from ..numerics._arrays import flag, whole_number
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._fourth_moment import FourthMoment, fourth_moment
from ._gradients import GradientSource
from ._runs import Run, Setup, check_count, check_engine, check_optimizer, check_slots, is_auto, seed_of
from ._shuffled import loaded_gradients, shuffled_gradients
from ._tensors import checked_device
from .stationary import LARGEST_AUTOMATIC_BURN_IN, SNAPSHOT_SHARE, TRANSIENT_FRACTION

__all__ = ["EpochEngine", "EpochSetup", "Plan", "set_up_epochs"]

Array = NDArray[np.float64]
EpochEngine: TypeAlias = Literal["rule", "torch.optim", "dataloader"]

#: What the burn-in leaves of the way to a biased mean, as a fraction of a standard deviation of one replica: with ten
#: thousand replicas a hundredth of the standard error of their mean.
MEAN_FRACTION = 1e-4


@dataclass(frozen=True)
class Plan:
    """The epochs to measure, and the bias that the ones before leave, in standard errors of a variance."""

    first: int
    apart: int
    snapshots: int
    transient: float

    @property
    def epochs(self) -> range:
        """The numbers of the epochs, from 0."""
        return range(self.first, self.first + self.apart * self.snapshots, self.apart)


@dataclass(frozen=True)
class EpochSetup:
    """Checked arguments, and the noise that the epochs would have if it were the same at all weights."""

    setup: Setup
    noise: EpochNoise
    engine: str
    common: bool  # whether it is: all examples have one Hessian
    batches: MinibatchNoise  # independent batches of distinct examples

    @property
    def count(self) -> int:
        """Steps of an epoch."""
        return self.noise.batches_per_epoch

    def fourth_moment(self) -> FourthMoment | None:
        """What independent batches tell of the fourth moment; None where all iterates are bounded.

        In one dimension that is on the safe side: a mean of products over distinct examples is at most the product of
        means (Maclaurin's inequality). Where independent batches have no fourth moment, nothing is known of shuffled
        ones.
        """
        if self.common:
            return None
        setup = self.setup
        source = GradientSource(iter(()), "independent batches", setup.quadratic, self.batches)
        found = fourth_moment(setup.optimizer, source)
        return found if found is None or found.verdict == "exists" else FourthMoment("undecided", math.nan, math.nan)

    def new_run(self) -> Run:
        """All replicas where the run without noise rests."""
        setup = self.setup
        known, device = setup.optimizer.rule.slots, setup.generator.device
        quadratic = setup.quadratic
        fixed = numerics.stationary_mean(setup.optimizer, quadratic.hessian, quadratic.optimum, slots=known)
        rows = [torch.tensor(row, device=device).unsqueeze(1) for row in np.split(fixed, len(known))]
        return setup.new_run(setup.optimizer, [row.repeat(1, setup.replicas).T for row in rows])

    def plan(self, epochs: int | str, snapshots: int) -> Plan:
        """How many epochs to burn in, and how far apart those measured are."""
        check_count("snapshots", snapshots, 1)
        soon = is_auto("epochs", epochs, 1)
        forgetting = self._forgetting()
        most = max(1, LARGEST_AUTOMATIC_BURN_IN // self.count)
        error = float(np.sqrt(2.0 / (self.setup.replicas * snapshots)))
        if soon:
            share = TRANSIENT_FRACTION * error
            if not self.common:
                share = min(share, MEAN_FRACTION**2)
            burn_in = forgetting.steps(share, most)
            if burn_in is None:
                raise InvalidProblemError(
                    f"the slowest direction still misses a share {forgetting.share(most):.3g} of its variance after "
                    f"{most * self.count:,} steps, and at most {share:.3g} may be missing. Give epochs=... to run "
                    f"anyway, or take a larger learning rate or a better conditioned problem."
                )
            first = burn_in if self.common else 2 * burn_in
        else:
            first = int(epochs)
        apart = forgetting.steps(SNAPSHOT_SHARE, most)
        return Plan(first, first if apart is None else apart, snapshots, forgetting.share(first) / error)

    def _forgetting(self) -> Forgetting:
        """How fast ends of epochs forget, an epoch being a step: the law at the ends is at least what it remembers."""
        optimizer, slots = self.setup.optimizer, self.setup.optimizer.rule.slots
        # Refuses what has no law; without the flat directions, where nothing is forgotten nor missing.
        law = numerics.stationary_covariance(optimizer, self.setup.quadratic.hessian, self.noise)
        moving = np.delete(np.asarray(law.eigenvalues), np.asarray(law.flat, dtype=int))
        step = Forgetting.of(optimizer, moving, slots)
        if not moving.size:
            return step
        each = EpochNoise(np.eye(moving.size), self.count, self.noise.correlation)
        ends = numerics.stationary_covariance(optimizer, np.diag(moving), each)
        covariance = np.array([[np.diag(ends.block(a, b)) for b in slots] for a in slots]).transpose(2, 0, 1)
        return Forgetting(np.linalg.matrix_power(step.transition, self.count), covariance, step.slots)


def set_up_epochs(
    optimizer: Optimizer,
    problem: LeastSquares | QuadraticExamples,
    *,
    batch_size: int,
    replicas: int,
    slots: tuple[str, ...],
    drop_last: bool,
    engine: EpochEngine,
    rng: np.random.Generator | int | None,
    device: str | torch.device,
) -> EpochSetup:
    """Check the arguments that measurements of epochs share."""
    seed = seed_of(rng)
    check_optimizer(optimizer)
    optimizer.require_bound()
    check_count("replicas", replicas, 2)
    check_engine(engine, ("rule", "torch.optim", "dataloader"))
    drop_last = flag("drop_last", drop_last)
    if not isinstance(problem, LeastSquares | QuadraticExamples):
        raise InvalidProblemError(
            f"epochs need examples: the problem must be a LeastSquares or QuadraticExamples, got "
            f"{type(problem).__name__}."
        )
    slots = check_slots(optimizer, slots)
    batch_size = whole_number("batch_size", batch_size, least=1)
    noise = numerics.epoch_noise(problem, batch_size, drop_last=drop_last)
    generator = torch.Generator(device=checked_device(device)).manual_seed(seed)
    if engine == "dataloader":
        gradients = loaded_gradients(problem, replicas, batch_size, generator, drop_last=drop_last)
    else:
        gradients = shuffled_gradients(problem, replicas, batch_size, generator)
    kind = f"shuffled epochs of {noise.batches_per_epoch} batches of {batch_size}"
    quadratic = Quadratic(problem.hessian, noise.noise, problem.optimum)
    source = GradientSource(gradients, kind, quadratic, quadratic.noise)
    steps: Literal["rule", "torch.optim"] = "rule" if engine == "rule" else "torch.optim"
    common = isinstance(problem, QuadraticExamples) and problem.hessians.strides[0] == 0
    setup = Setup(optimizer, source, replicas, slots, steps, generator, seed, batch_size)
    setup.refuse_too_much(1, 1)
    return EpochSetup(setup, noise, engine, common, MinibatchNoise(problem, batch_size, replacement=False))
