r"""Read the hyper-parameters that a real ``torch.optim.lr_scheduler`` sets, as a schedule that is plain data.

A scheduler is only defined by what it does to the parameter groups of its optimizer. So it is stepped, the settings are
noted before each step, and everything is put back. A setting beside the learning rate is part of the schedule if the
scheduler has its hand on it: if it changes on the way, or if making the scheduler has already replaced it.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_Settings: TypeAlias = dict[str, float]

#: What a scheduler may set, the learning rate first.
SETTINGS = ("lr", "momentum", "dampening", "weight_decay")


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
        One phase for each stretch of equal settings. Momentum (and weight decay, and dampening) are part of it if the
        scheduler sets them, be it to a constant: ``OneCycleLR`` and ``CyclicLR`` replace the optimizer's momentum by
        their own as they are made.

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
    before: _Settings | None = None
    if isinstance(scheduler, LRScheduler):
        if optimizer is not None:
            raise InvalidProblemError(
                f"optimizer={optimizer!r} was given, but a scheduler that exists has its own; pass a function that "
                f"makes one, as in lambda optim: {type(scheduler).__name__}(optim, ...)."
            )
        made = scheduler
    else:
        optim = _torch_optimizer(optimizer)
        before = _settings_of(optim.param_groups[0])
        made = scheduler_of(scheduler, optim)
    if isinstance(made, ReduceLROnPlateau):
        raise InvalidRuleError("ReduceLROnPlateau follows the loss that it is shown, so it has no schedule of its own.")
    with _put_back(made), warnings.catch_warnings():
        # Nothing is stepped but the scheduler, which PyTorch would remark on.
        warnings.simplefilter("ignore")
        read = list(_settings(made, int(steps)))
    names = ["lr", *(name for name in SETTINGS[1:] if _is_set(name, read, before, made))]
    phases = []
    for values, stretch in itertools.groupby({name: settings[name] for name in names} for settings in read):
        phases.append(Phase(sum(1 for _ in stretch), **values))
    return Schedule(phases)


def _is_set(name: str, read: list[_Settings], before: _Settings | None, made: LRScheduler) -> bool:
    """Whether the scheduler has its hand on a setting."""
    values = {settings[name] for settings in read}
    if len(values) > 1 or (before is not None and values != {before[name]}):
        return True
    # One that exists has replaced the optimizer's momentum already, and tells so; parts of another one tell it too.
    parts = [made, *getattr(made, "_schedulers", ())]
    return name == "momentum" and any(getattr(part, "cycle_momentum", False) for part in parts)


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


def _settings(scheduler: LRScheduler, steps: int) -> Iterator[_Settings]:
    """The settings of each of the coming optimizer steps."""
    for step in range(steps):
        if step:
            try:
                scheduler.step()
            except ValueError as error:  # OneCycleLR knows its end
                raise InvalidProblemError(
                    f"{type(scheduler).__name__} has no learning rate after {step} of {steps} steps: {error}"
                ) from error
        first, *others = [_settings_of(group) for group in scheduler.optimizer.param_groups]
        for index, other in enumerate(others, start=1):
            if other != first:
                apart = [name for name in SETTINGS if other[name] != first[name]]
                raise InvalidRuleError(
                    f"parameter group {index} has {_text(other, apart)} but group 0 has {_text(first, apart)} at step "
                    f"{step}; one schedule has one value. Split the problem, one optimizer per group."
                )
        yield first


def _settings_of(group: Mapping[str, Any]) -> _Settings:
    return {name: float(group.get(name, 0.0)) for name in SETTINGS}


def _text(settings: _Settings, names: Iterable[str]) -> str:
    return ", ".join(f"{name}={settings[name]}" for name in names)


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
