"""The shipped update rules, each the plain function a person would write.

``grad`` is the minibatch gradient: within one step every call of it uses the same minibatch. ``weight_decay`` is
coupled L2 regularisation (it joins the gradient) except in `sgdw`, where it shrinks the weights directly.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy as sp

from ..errors import InvalidRuleError
from .hyperparameters import FRACTION, NONNEGATIVE, Hyperparameter
from .update_rule import UpdateRule, update_rule

__all__ = ["RULES", "heavy_ball", "nesterov", "polyak", "qhm", "sam", "sgd", "sgdw", "with_ema"]

State = tuple[Any, ...]


@update_rule(slots=("w",), references=("robbins1951",))
def sgd(state: State, grad: Any, *, lr: Any, weight_decay: Any = 0) -> State:
    """Plain SGD: w <- w - lr*g."""
    (w,) = state
    g = grad(w) + weight_decay * w
    return (w - lr * g,)


@update_rule(slots=("w", "v"), references=("polyak1964", "pytorch"))
def heavy_ball(state: State, grad: Any, *, lr: Any, momentum: Any, dampening: Any = 0, weight_decay: Any = 0) -> State:
    """PyTorch's SGD with momentum: v <- momentum*v + (1-dampening)*g, w <- w - lr*v."""
    w, v = state
    g = grad(w) + weight_decay * w
    v = momentum * v + (1 - dampening) * g
    return w - lr * v, v


@update_rule(slots=("w", "v"), references=("nesterov1983", "sutskever2013", "pytorch"))
def nesterov(state: State, grad: Any, *, lr: Any, momentum: Any, weight_decay: Any = 0) -> State:
    """PyTorch's SGD with nesterov=True: v <- momentum*v + g, w <- w - lr*(g + momentum*v)."""
    w, v = state
    g = grad(w) + weight_decay * w
    v = momentum * v + g
    return w - lr * (g + momentum * v), v


@update_rule(slots=("w", "w_prev"), references=("polyak1964",))
def polyak(state: State, grad: Any, *, lr: Any, momentum: Any, weight_decay: Any = 0) -> State:
    """Polyak's own heavy ball: w <- w - lr*g + momentum*(w - w_prev)."""
    w, w_prev = state
    g = grad(w) + weight_decay * w
    return w - lr * g + momentum * (w - w_prev), w


@update_rule(slots=("w", "b"), references=("ma2019qhm",), domains={"beta": FRACTION, "nu": sp.Interval(0, 1)})
def qhm(state: State, grad: Any, *, lr: Any, beta: Any, nu: Any, weight_decay: Any = 0) -> State:
    """Quasi-hyperbolic momentum: b <- beta*b + (1-beta)*g, w <- w - lr*((1-nu)*g + nu*b)."""
    w, b = state
    g = grad(w) + weight_decay * w
    b = beta * b + (1 - beta) * g
    return w - lr * ((1 - nu) * g + nu * b), b


@update_rule(slots=("w", "v"), references=("loshchilov2019",))
def sgdw(state: State, grad: Any, *, lr: Any, momentum: Any, weight_decay: Any) -> State:
    """Momentum with decoupled weight decay: v <- momentum*v + g, w <- w - lr*v - lr*weight_decay*w."""
    w, v = state
    v = momentum * v + grad(w)
    return w - lr * v - lr * weight_decay * w, v


@update_rule(slots=("w",), references=("foret2021", "wu2020awp"), domains={"rho": NONNEGATIVE})
def sam(state: State, grad: Any, *, lr: Any, rho: Any) -> State:
    """Unnormalised sharpness-aware step: w <- w - lr*g(w + rho*g(w)), both gradients on the same minibatch."""
    (w,) = state
    return (w - lr * grad(w + rho * grad(w)),)


#: Every shipped rule, in the order of the handbook.
RULES: tuple[UpdateRule, ...] = (sgd, heavy_ball, nesterov, polyak, qhm, sgdw, sam)


@functools.cache
def with_ema(rule: UpdateRule) -> UpdateRule:
    """Return ``rule`` with one more slot: an exponential moving average of the new weights.

    The added slot ``ema`` follows ``ema <- ema_decay*ema + (1-ema_decay)*w`` after each step of ``rule``
    (Polyak averaging with exponential weights; the self-ensemble of SEAT).

    Parameters
    ----------
    rule : UpdateRule

    Returns
    -------
    UpdateRule
        Slots ``(*rule.slots, "ema")``; hyper-parameters of ``rule`` and ``ema_decay`` in [0, 1).

    Raises
    ------
    InvalidRuleError
        If ``rule`` already has a slot ``ema`` or a hyper-parameter ``ema_decay``.

    References
    ----------
    polyak1992, wang2022seat

    Examples
    --------
    >>> with_ema(sgd)(lr=1.0, ema_decay=0.5).step((1.0, 1.0), grad=lambda w: w)
    (0.0, 0.5)
    """
    if "ema" in rule.slots or any(p.name == "ema_decay" for p in rule.hyperparameters):
        raise InvalidRuleError(f"{rule.name} already averages its weights; with_ema can be applied once.")

    def step(state: State, grad: Any, *, ema_decay: Any, **values: Any) -> State:
        *inner, ema = state
        new = tuple(rule.function(tuple(inner), grad, **values))
        return (*new, ema_decay * ema + (1 - ema_decay) * new[0])

    return UpdateRule(
        function=step,
        name=f"with_ema({rule.name})",
        slots=(*rule.slots, "ema"),
        hyperparameters=(*rule.hyperparameters, Hyperparameter("ema_decay", FRACTION)),
        references=(*rule.references, "polyak1992", "wang2022seat"),
        origin=(with_ema, rule),
    )
