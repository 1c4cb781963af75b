r"""Where weight decay leaves the mean of a rule on a loss that is not quadratic.

With one call of the gradient a step is :math:`z' = A_0 z + b\,g(q^\top z)`, :math:`A_0 = A(0)`. The mean settles, to
leading order in the noise, where :math:`z = (I - A_0)^{-1} b\,g`, so that the point :math:`y = q^\top z` obeys

.. math:: g(y) + \Lambda y = 0, \qquad \Lambda = -\frac{1}{q^\top (I - A_0)^{-1} b} .

Coupled weight decay has :math:`\Lambda = \lambda`, decoupled weight decay with momentum :math:`(1 - \mu)\lambda`.
Curvature and noise are those of the loss at y, not at its minimiser.
"""

from __future__ import annotations

import sympy as sp

from ..errors import InvalidRuleError
from ._exact import is_zero, present
from .minibatch import gradient_call
from .recursion import recursion
from .update_rule import Optimizer

__all__ = ["mean_pull"]


def mean_pull(optimizer: Optimizer) -> tuple[sp.Expr, tuple[tuple[str, sp.Expr], ...]]:
    """Return Lambda, 0 for a rule without weight decay, and the claims that prove it.

    Raises
    ------
    InvalidRuleError
        If a rule with weight decay calls its gradient more than once a step, at points of its own.
    """
    step = recursion(optimizer)
    keep = step.transition.subs(step.h, 0)
    increment = (sp.eye(keep.rows) - keep).applyfunc(sp.expand)
    if is_zero(increment.det()):
        # Without a gradient the weights stay where they are: the mean rests where the gradient is 0.
        return sp.Integer(0), ()
    try:
        call = gradient_call(optimizer)
    except InvalidRuleError as error:
        raise InvalidRuleError(
            f"{optimizer!r} has weight decay and takes gradients at more than one point a step: its mean settles away "
            f"from the minimiser, at a point that depends on the loss beyond its curvature. Bind the weight decay to 0."
        ) from error
    settled = (increment.adjugate() * call.gain / increment.det()).applyfunc(sp.cancel)
    reached = sp.cancel((call.point * settled)[0])
    if is_zero(reached):
        raise InvalidRuleError(f"{optimizer!r} does not answer to a constant gradient, so its mean finds no minimiser.")
    pull = present(-1 / reached, ())
    state = settled * -pull
    claims = [(f"the mean is at rest, slot {name}", entry) for name, entry in
              zip(step.slots, increment * state + call.gain * pull, strict=True)]  # fmt: skip
    return pull, (*claims, ("where the gradient is taken", (call.point * state)[0] - 1))
