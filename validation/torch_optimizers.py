r"""The real ``torch.optim`` object behind a rule, and the rule behind a ``torch.optim`` object.

``torch.optim.SGD`` runs three of the shipped rules:

=============================================  =====================================================================
rule                                           PyTorch
=============================================  =====================================================================
``sgd(lr, weight_decay)``                      ``SGD(lr, weight_decay)``
``heavy_ball(lr, momentum, dampening, ...)``   ``SGD(lr, momentum, dampening, weight_decay)``
``nesterov(lr, momentum, weight_decay)``       ``SGD(lr, momentum, weight_decay, nesterov=True)``
=============================================  =====================================================================

One difference is PyTorch's own: where no momentum buffer exists yet, its first step sets the buffer to the bare
gradient and skips dampening. `torch_optimizer` starts the buffers at zero instead, so that the first step is the rule's
as well; without dampening the two starts are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..errors import HyperparameterError, InvalidRuleError
from ..theory import Optimizer, UpdateRule, heavy_ball, nesterov, sgd

__all__ = ["from_torch", "torch_optimizer"]

#: The rules that torch.optim has an object for.
TORCH_RULES: tuple[UpdateRule, ...] = (sgd, heavy_ball, nesterov)


def torch_optimizer(optimizer: Optimizer, params: Iterable[torch.Tensor]) -> torch.optim.SGD:
    """Return the real ``torch.optim`` object that runs a rule.

    Parameters
    ----------
    optimizer : Optimizer
        `sgd`, `heavy_ball` or `nesterov` with every hyper-parameter bound.
    params : iterable of torch.Tensor
        The parameters to optimise, as for any ``torch.optim`` class.

    Returns
    -------
    torch.optim.SGD
        With momentum buffers that start at zero (see the module's text).

    Raises
    ------
    InvalidRuleError
        If PyTorch has no object for the rule.
    HyperparameterError
        If PyTorch would run something else with these values: with ``momentum=0`` it ignores dampening.

    References
    ----------
    pytorch

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> w = torch.ones(1, dtype=torch.float64)
    >>> optim = torch_optimizer(heavy_ball(lr=0.5, momentum=0.5, dampening=0.5), [w])
    >>> w.grad = torch.ones_like(w)
    >>> optim.step()
    >>> w
    tensor([0.7500], dtype=torch.float64)
    """
    if not isinstance(optimizer, Optimizer) or optimizer.rule not in TORCH_RULES:
        raise InvalidRuleError(
            f"torch.optim has no object that runs {optimizer!r}; "
            f"it has one for {', '.join(rule.name for rule in TORCH_RULES)}."
        )
    optimizer.require_bound()
    values: dict[str, Any] = {name: float(value) for name, value in optimizer.values.items()}
    if values.get("momentum") == 0.0 and values.get("dampening", 0.0) != 0.0:
        raise HyperparameterError(
            f"{optimizer!r}: torch.optim.SGD ignores dampening when momentum is 0, the rule does not; "
            f"use sgd(lr={values['lr'] * (1.0 - values['dampening']):.6g}) for the same steps.",
            name="dampening",
        )
    # PyTorch refuses nesterov=True with momentum 0, where the two agree.
    optim = torch.optim.SGD(params, nesterov=optimizer.rule is nesterov and values["momentum"] > 0.0, **values)
    for group in optim.param_groups:
        if group["momentum"] != 0.0:
            for parameter in group["params"]:
                optim.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optim


def from_torch(optim: torch.optim.Optimizer) -> Optimizer:
    """Return the rule, with its hyper-parameters, that a ``torch.optim`` object runs.

    Parameters
    ----------
    optim : torch.optim.SGD
        With the same settings in every parameter group.

    Returns
    -------
    Optimizer
        `sgd`, `heavy_ball` or `nesterov`. Its stationary law is that of ``optim``; where dampening is set, PyTorch's
        very first step differs (see the module's text).

    Raises
    ------
    InvalidRuleError
        If ``optim`` is another class, maximises, or has parameter groups with different settings.

    References
    ----------
    pytorch

    Examples
    --------
    >>> w = torch.zeros(3)
    >>> from_torch(torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True))
    nesterov(lr=0.1, momentum=0.9)
    >>> from_torch(torch.optim.SGD([w], lr=0.1, weight_decay=0.01))
    sgd(lr=0.1, weight_decay=0.01)
    """
    if type(optim) is not torch.optim.SGD:
        raise InvalidRuleError(
            f"only torch.optim.SGD runs a rule that is linear in the gradient, got {type(optim).__name__}; "
            f"write another optimizer's step as a plain function and decorate it with update_rule."
        )
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    settings = [{name: group[name] for name in names} for group in optim.param_groups]
    for index, other in enumerate(settings[1:], start=1):
        for name in names:
            if other[name] != settings[0][name]:
                raise InvalidRuleError(
                    f"parameter group {index} has {name}={other[name]} but group 0 has {settings[0][name]}; "
                    f"one rule has one value. Split the problem, one optimizer per group."
                )
    first = settings[0]
    if first["maximize"]:
        raise InvalidRuleError("maximize=True climbs the loss; the rules here descend. Negate the loss instead.")
    momentum, dampening = float(first["momentum"]), float(first["dampening"])
    values = {"lr": float(first["lr"]), "weight_decay": float(first["weight_decay"])}
    if momentum == 0.0:
        return sgd(**values)
    if first["nesterov"]:
        if dampening != 0.0:
            raise InvalidRuleError(f"nesterov=True with dampening={dampening} is no rule of PyTorch's; set it to 0.")
        return nesterov(momentum=momentum, **values)
    return heavy_ball(momentum=momentum, dampening=dampening, **values)
