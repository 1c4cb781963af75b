r"""Where the replicas of a finite run start: at a point, drawn from a law, or after a burn-in of their own.

A rule is at rest at weights w where a step without gradient and weight decay leaves it: velocities are 0, copies of the
weights equal them. In units of w that is :math:`r` with :math:`r_1 = 1`, and a covariance S of the weights alone means
:math:`r_a r_b S` between the slots a and b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import numerics
from ..errors import InvalidProblemError
from ..numerics import EpochCovariance, StationaryCovariance, TransientCovariance
from ..numerics._arrays import finite_array
from ..theory import Optimizer
from ._draws import range_factor
from ._fourth_moment import FourthMoment, fourth_moment
from ._planning import forgetting_of, stationary_law
from ._runs import Setup, advance
from .stationary import LARGEST_AUTOMATIC_BURN_IN, TRANSIENT_FRACTION

__all__ = ["Begun", "Start", "begin", "burn_in_steps"]

Array = NDArray[np.float64]
Start: TypeAlias = "Optimizer | Law | ArrayLike | None"
Law: TypeAlias = StationaryCovariance | TransientCovariance | EpochCovariance

#: A negative eigenvalue of a start, relative to the largest, that counts as rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Begun:
    """The state of every slot at the start, transposes of (d, replicas) tensors, and how it came about."""

    state: list[torch.Tensor]
    text: str
    burn_in: int = 0
    transient: float = 0.0
    fourth_moment: FourthMoment | None = None  # of the law that they ran to, where it has no such moment


def begin(setup: Setup, start: Start, mean: ArrayLike | None, *, progress: bool) -> Begun:
    """Put the replicas at their start."""
    if isinstance(start, Optimizer):
        _refuse_mean(mean, "an optimizer")
        return _burnt_in(setup, start, progress=progress)
    if isinstance(start, StationaryCovariance | TransientCovariance | EpochCovariance):
        return _drawn_from(setup, start, mean)
    given = None if start is None else finite_array("start", start)
    if given is None or given.ndim == 1:
        if given is not None:
            _refuse_mean(mean, "a point")
        point = mean if given is None else given
        text = "at rest at the optimum" if point is None else "at a given point"
        return Begun(_at(setup, _state_at(setup, point)), text)
    d, rest = setup.quadratic.dim, _rest(setup.optimizer)
    checked = _covariance(given, d)
    joint: Array = np.kron(np.outer(rest, rest), checked).astype(np.float64)
    text = "weights drawn with a given covariance, other slots at rest"
    return Begun(_drawn(setup, _state_at(setup, mean), joint), text)


def burn_in_steps(setup: Setup, optimizer: Optimizer, slots: tuple[str, ...]) -> tuple[int, float]:
    """Steps that bring a run from its fixed point to its stationary law, and the bias left in standard errors."""
    stationary_law(optimizer, setup.source)  # refuses what has none
    forgetting = forgetting_of(optimizer, setup.source, slots)
    error = float(np.sqrt(2.0 / setup.replicas))
    burn_in = forgetting.steps(TRANSIENT_FRACTION * error, LARGEST_AUTOMATIC_BURN_IN)
    if burn_in is None:
        left = forgetting.share(LARGEST_AUTOMATIC_BURN_IN)
        raise InvalidProblemError(
            f"the slowest direction of {optimizer!r} still misses a share {left:.3g} of its variance after "
            f"{LARGEST_AUTOMATIC_BURN_IN:,} steps. Start from its law as numerics.stationary_covariance solves it."
        )
    return burn_in, forgetting.share(burn_in) / error


def _burnt_in(setup: Setup, optimizer: Optimizer, *, progress: bool) -> Begun:
    optimizer.require_bound()
    slots, known = optimizer.rule.slots, setup.optimizer.rule.slots
    if slots != known:
        raise InvalidProblemError(
            f"start is a run of {optimizer!r} with the slots {', '.join(slots)}, but {setup.optimizer.rule.name} has "
            f"{', '.join(known)}; give an optimizer with those."
        )
    burn_in, transient = burn_in_steps(setup, optimizer, slots)
    fixed = numerics.stationary_mean(optimizer, setup.quadratic.hessian, setup.quadratic.optimum, slots=slots)
    run = setup.new_run(optimizer, _at(setup, fixed))
    advance(run, setup, burn_in, lambda step: None, progress=progress, stepping=lambda step: optimizer)
    fourth = fourth_moment(optimizer, setup.source)
    if fourth is not None and fourth.trusted:
        fourth = None
    return Begun([run.read(slot) for slot in slots], f"{burn_in} steps of {optimizer!r}", burn_in, transient, fourth)


def _drawn_from(setup: Setup, law: Law, mean: ArrayLike | None) -> Begun:
    slots, d = setup.optimizer.rule.slots, setup.quadratic.dim
    if law.slots != slots:
        raise InvalidProblemError(
            f"start is a law of the slots {', '.join(law.slots)}, but {setup.optimizer.rule.name} has "
            f"{', '.join(slots)}; give a law of those, or the covariance of the weights as an array."
        )
    if law.value.shape != (d, d):
        raise InvalidProblemError(f"start is a law of {len(law.value)} parameters, but the problem has {d}.")
    kind = f"law after {law.steps} steps" if isinstance(law, TransientCovariance) else "stationary law"
    if isinstance(law, EpochCovariance):
        kind = "law of shuffled epochs"
    text = f"all slots drawn, Gaussian, from the {kind} of {law.optimizer!r}"
    return Begun(_drawn(setup, _state_at(setup, mean), law.joint()), text)


def _rest(optimizer: Optimizer) -> Array:
    """The state of rest per unit of the weights: the fixed point in a direction without curvature and decay."""
    if "weight_decay" in optimizer.values:
        optimizer = optimizer.replace(weight_decay=0)
    return numerics.stationary_mean(optimizer, [[0.0]], [1.0], slots=optimizer.rule.slots)


def _state_at(setup: Setup, point: ArrayLike | None) -> Array:
    """All slots, stacked: at rest at weights (d,), or given in full (m*d,); at the optimum unless given."""
    d, slots = setup.quadratic.dim, setup.optimizer.rule.slots
    given = setup.quadratic.optimum if point is None else finite_array("a point to start from", point)
    size = d * len(slots)
    if given.shape not in {(d,), (size,)}:
        raise InvalidProblemError(
            f"a point to start from must have shape ({d},), the weights, or ({size},), the slots {', '.join(slots)} "
            f"stacked; got {given.shape}."
        )
    whole = given if given.shape == (size,) else np.kron(_rest(setup.optimizer), given)
    return np.array(whole, dtype=np.float64)


def _at(setup: Setup, point: Array) -> list[torch.Tensor]:
    """Every replica at the same stacked state."""
    rows = np.split(point, len(setup.optimizer.rule.slots))
    device = setup.generator.device
    return [torch.tensor(row, device=device).unsqueeze(1).repeat(1, setup.replicas).T for row in rows]


def _drawn(setup: Setup, centre: Array, joint: Array) -> list[torch.Tensor]:
    """Gaussian replicas with this mean and covariance of the stacked slots."""
    slots = len(setup.optimizer.rule.slots)
    variance = np.diag(joint).reshape(slots, -1).mean(axis=1)
    # Slots of very different size count alike where the range of the covariance is found.
    scale = np.repeat(np.sqrt(np.where(variance > 0.0, variance, 1.0)), len(joint) // slots)
    factor = scale[:, None] * range_factor(joint / scale / scale[:, None])
    generator = setup.generator
    shape = (factor.shape[1], setup.replicas)
    normals = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    moved = torch.tensor(factor, device=generator.device) @ normals
    moved += torch.tensor(centre, device=generator.device).unsqueeze(1)
    return [part.T for part in moved.chunk(slots)]


def _covariance(given: Array, dim: int) -> Array:
    """A covariance of the weights, checked."""
    if given.shape != (dim, dim):
        raise InvalidProblemError(
            f"start must be a covariance of shape ({dim}, {dim}), a point of shape ({dim},), a law of numerics, an "
            f"optimizer or None; got shape {given.shape}."
        )
    checked = given
    asymmetry, largest = float(np.max(np.abs(checked - checked.T))), float(np.max(np.abs(checked)))
    if asymmetry > ROUNDING * largest:
        raise InvalidProblemError(f"start is not symmetric: it differs from its transpose by {asymmetry:.3g}.")
    values = np.linalg.eigvalsh(checked)
    if values[0] < -ROUNDING * max(values[-1], -values[0]):
        raise InvalidProblemError(f"start is not positive semidefinite: its smallest eigenvalue is {values[0]:.3g}.")
    return 0.5 * (checked + checked.T)


def _refuse_mean(mean: ArrayLike | None, what: str) -> None:
    if mean is not None:
        raise InvalidProblemError(f"mean was given, but the start is {what}, which has its own.")
