r"""Read the learning rates that a real ``torch.optim.lr_scheduler`` produces, as a schedule that is plain data.

A scheduler is only defined by what it does to the parameter groups of its optimizer. So it is stepped, the learning
rate (and the momentum, where it is cycled along) is noted before each step, and everything is put back.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..errors import HyperparameterError, InvalidProblemError, InvalidRuleError
from ..numerics import Phase, Schedule
from ..theory import Optimizer
from ._runs import check_count
from .torch_optimizers import TORCH_RULES, torch_optimizer

__all__ = ["SchedulerFactory", "schedule_from_torch", "scheduler_of"]

#: Makes a scheduler for an optimizer, as ``lambda optim: StepLR(optim, step_size=30)`` does.
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]


def schedule_from_torch(
    scheduler: LRScheduler | SchedulerFactory, steps: int, *, optimizer: Optimizer | None = None
) -> Schedule:
    """Return the schedule that a real ``torch.optim.lr_scheduler`` follows.

    Parameters
    ----------
    scheduler : LRScheduler or callable
        A scheduler, read from where it stands and left there; or a function that makes one for a ``torch.optim``
        object, read from its beginning.
    steps : int
        Optimizer steps to read, with one ``scheduler.step()`` after each; at least 1.
    optimizer : Optimizer, optional
        For a function only: the optimizer whose ``lr`` (and ``momentum``) the scheduler is made for.

    Returns
    -------
    Schedule
        One phase for each stretch of equal learning rates. Momentum is part of it if the scheduler changes it (as
        ``OneCycleLR`` and ``CyclicLR`` do).

    Raises
    ------
    InvalidProblemError
        If ``steps`` is not a positive integer, or more than the scheduler can take.
    InvalidRuleError
        If it is not a scheduler, follows a measured loss, or sets parameter groups apart.
    HyperparameterError
        If ``optimizer`` is needed and missing, or has no learning rate bound.

    References
    ----------
    pytorch

    Examples
    --------
    >>> from torch.optim.lr_scheduler import StepLR
    >>> from sgdcov.theory import heavy_ball
    >>> before = heavy_ball(lr=0.5, momentum=0.9)
    >>> schedule_from_torch(lambda optim: StepLR(optim, 30, gamma=0.5), 80, optimizer=before)
    Schedule([Phase(30, lr=0.5), Phase(30, lr=0.25), Phase(20, lr=0.125)])
    """
    check_count("steps", steps, 1)
    if isinstance(scheduler, LRScheduler):
        if optimizer is not None:
            raise InvalidProblemError(
                f"optimizer={optimizer!r} was given, but a scheduler that exists has its own; pass a function that "
                f"makes one, as in lambda optim: {type(scheduler).__name__}(optim, ...)."
            )
        made = scheduler
    else:
        made = scheduler_of(scheduler, _torch_optimizer(optimizer))
    if isinstance(made, ReduceLROnPlateau):
        raise InvalidRuleError("ReduceLROnPlateau follows the loss that it is shown, so it has no schedule of its own.")
    with _put_back(made), warnings.catch_warnings():
        # Nothing is stepped but the scheduler, which PyTorch would remark on.
        warnings.simplefilter("ignore")
        read = list(_settings(made, int(steps)))
    changes_momentum = len({momentum for _, momentum in read}) > 1
    phases = []
    for (lr, momentum), stretch in itertools.groupby(read):
        values = {"lr": lr, "momentum": momentum} if changes_momentum else {"lr": lr}
        phases.append(Phase(sum(1 for _ in stretch), **values))
    return Schedule(phases)


def scheduler_of(factory: SchedulerFactory, optim: torch.optim.Optimizer) -> LRScheduler:
    """The scheduler that a function makes for this optimizer, checked."""
    if not callable(factory):
        raise InvalidRuleError(f"expected a torch lr_scheduler, or a function that makes one, got {factory!r}.")
    made = factory(optim)
    if not isinstance(made, LRScheduler):
        raise InvalidRuleError(f"the function made {type(made).__name__}, not a torch.optim.lr_scheduler.")
    if made.optimizer is not optim:
        raise InvalidRuleError("the function made a scheduler for another optimizer than the one it was given.")
    return made


def _torch_optimizer(optimizer: Optimizer | None) -> torch.optim.Optimizer:
    """A ``torch.optim`` object with the learning rate and momentum of an optimizer, whatever the rule."""
    if not isinstance(optimizer, Optimizer):
        raise HyperparameterError(
            f"a function that makes a scheduler needs optimizer=..., whose lr it starts from; got {optimizer!r}.",
            name="lr",
        )
    optimizer.require_bound()
    parameter = torch.zeros(1, dtype=torch.float64)
    if optimizer.rule in TORCH_RULES:
        return torch_optimizer(optimizer, [parameter])
    if "lr" not in optimizer.values:
        raise HyperparameterError(f"{optimizer!r} has no lr for a scheduler to change.", name="lr")
    momentum = float(optimizer.values.get("momentum", 0.0))
    return torch.optim.SGD([parameter], lr=float(optimizer.values["lr"]), momentum=momentum)


def _settings(scheduler: LRScheduler, steps: int) -> Iterator[tuple[float, float]]:
    """Learning rate and momentum of each of the coming optimizer steps."""
    for step in range(steps):
        if step:
            try:
                scheduler.step()
            except ValueError as error:  # OneCycleLR knows its end
                raise InvalidProblemError(
                    f"{type(scheduler).__name__} has no learning rate after {step} of {steps} steps: {error}"
                ) from error
        groups = scheduler.optimizer.param_groups
        settings = [(float(group["lr"]), float(group.get("momentum", 0.0))) for group in groups]
        for index, other in enumerate(settings[1:], start=1):
            if other != settings[0]:
                raise InvalidRuleError(
                    f"parameter group {index} has (lr, momentum) = {other} but group 0 has {settings[0]} at step "
                    f"{step}; one schedule has one value. Split the problem, one optimizer per group."
                )
        yield settings[0]


@contextmanager
def _put_back(scheduler: LRScheduler) -> Iterator[None]:
    """Leave the scheduler and its optimizer's settings as they were."""
    state = copy.deepcopy(scheduler.state_dict())
    groups: list[dict[str, Any]] = scheduler.optimizer.param_groups
    kept = [{name: (value, _copied(value)) for name, value in group.items() if name != "params"} for group in groups]
    try:
        yield
    finally:
        scheduler.load_state_dict(state)
        for group, before in zip(groups, kept, strict=True):
            for name, (value, number) in before.items():
                if isinstance(value, torch.Tensor):  # a learning rate that lives in a tensor is changed in place
                    value.copy_(number)
                group[name] = value


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
