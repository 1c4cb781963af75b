r"""Adversarial linear regression with isotropic Gaussian inputs under the l2 attack, as a function of the radius.

With :math:`S = s^2 I` the robust minimiser is :math:`\alpha w_0`, which `isotropic_radius` puts on the radius.
Curvature and noise have two values each, along the weights (radial) and across them (transverse). With
:math:`\omega = |w_0|`, :math:`q = 1 - \alpha` and :math:`v^2 = s^2q^2\omega^2 + \sigma^2`,

.. math::

    h_\perp = \frac{s^2}{\alpha}\Big(1 + \frac{c_0t}{v}\Big), \quad c_\perp = s^2(v^2 + 2c_0tv + t^2), \qquad
    t = \epsilon\alpha\omega .

The radius is explicit in the shrinkage. In one dimension there is the radial direction only.
"""

from __future__ import annotations

import functools
from typing import Literal

import sympy as sp

from ..errors import InvalidProblemError
from ._attacked import G_I
from .assumptions import Assumption, stable
from .dual_norm import K_IJ, NORM, RADIUS, U_I, U_J
from .formula import Formula, Step
from .minibatch import BATCH_SIZE, own_symbols
from .recursion import as_optimizer
from .robust_population import (
    A_I,
    A_J,
    C0,
    G_J,
    GAUSSIAN_INPUTS,
    GRADIENT,
    HESSIAN,
    RISK,
    S_IJ,
    T,
    V,
    robust_hessian,
    robust_noise,
)
from .robust_shrinkage import (
    AT_MINIMISER,
    ISOTROPIC,
    ISOTROPIC_LATEX,
    LABEL_NOISE,
    MEANING,
    PULLED,
    SHRINKAGE,
    SHRUNK,
    STD,
    TRUE_NORM,
    isotropic_formula,
    isotropic_radius,
)
from .stability import stability
from .stationary import C_IJ as DRAWN
from .stationary import H_I, H_J, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "isotropic_covariance",
    "isotropic_hessian",
    "isotropic_noise",
]

Direction = Literal["radial", "transverse"]

def isotropic_hessian(direction: Direction = "transverse") -> Formula:
    """Derive the curvature of the adversarial risk at the robust minimiser, along the weights or across them.

    Parameters
    ----------
    direction : {"radial", "transverse"}

    Returns
    -------
    Formula
        In ``radius`` and ``shrinkage``, which belong together (`isotropic_radius`). In d dimensions the transverse
        eigenvalue has the multiplicity d - 1.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.

    Examples
    --------
    >>> print(isotropic_hessian("transverse"))
    h = std**2*(c0*t/v + 1)/shrinkage
    """
    _check(direction)
    return _hessian(direction)


def isotropic_noise(direction: Direction = "transverse") -> Formula:
    """Derive the variance of one example's adversarial gradient at the robust minimiser, in either direction.

    Parameters
    ----------
    direction : {"radial", "transverse"}

    Returns
    -------
    Formula
        A batch of B examples divides it by B.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.

    Examples
    --------
    >>> print(isotropic_noise("transverse"))
    c = std**2*(2*c0*t*v + t**2 + v**2)
    """
    _check(direction)
    return _noise(direction)


def isotropic_covariance(rule: UpdateRule | Optimizer, direction: Direction = "transverse") -> Formula:
    r"""Derive the stationary variance of adversarial training at the robust minimiser, in either direction, for a rule.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    direction : {"radial", "transverse"}

    Returns
    -------
    Formula
        An approximation: the risk is taken as quadratic and the noise as that at the minimiser, an error of first order
        in lr for which there is no closed form. In ``radius``, ``shrinkage``, ``batch_size`` and the rule's own
        hyper-parameters.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(isotropic_covariance(sgd))
    Sigma ~ c*lr/(batch_size*h*(-h*lr + 2))
    """
    _check(direction)
    optimizer = as_optimizer(rule)
    law = stationary_covariance(optimizer).specialise(h_j="h_i")
    h, c, shown = sp.Symbol("h", positive=True), sp.Symbol("c", nonnegative=True), sp.Symbol("Sigma", nonnegative=True)
    curvature, noise = _hessian(direction), _noise(direction)
    expression = law.expression.subs({H_I: h, DRAWN: c / BATCH_SIZE}, simultaneous=True)
    conditions = stability(optimizer)
    own = own_symbols(optimizer, *curvature.symbols, "batch_size", "c")
    rename = {H_I: h, H_J: h, DRAWN: c / BATCH_SIZE, law.equation.lhs: shown}
    return Formula(
        id=f"{optimizer.rule.name}.isotropic_covariance({direction})",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={**noise.symbols, **curvature.symbols, "batch_size": BATCH_SIZE, **own},
        assumptions=(ISOTROPIC, GAUSSIAN_INPUTS, AT_MINIMISER, stable(tuple(x.subs(conditions.h, h) for x in
                     conditions.conditions)), Assumption("local", "the risk is quadratic and the noise constant where "
                     "the weights are")),
        defining=tuple(sp.Eq(e.lhs.subs(rename, simultaneous=True), e.rhs.subs(rename, simultaneous=True),
                             evaluate=False) for e in law.defining),
        solution={s.subs(rename): v.subs(rename, simultaneous=True) for s, v in law.solution.items()},
        references=("javanmard2020", *optimizer.rule.references),
        derivation=(Step("Curvature and noise at the robust minimiser, in this direction."),
                    Step("The stationary law of the rule for them.", sp.Eq(shown, expression, evaluate=False))),
        kind="approximation",
        where={h: curvature.expression, c: noise.expression, **MEANING},
        lemmas=(curvature, noise),
        symbol_latex={**ISOTROPIC_LATEX, **law.symbol_latex, shown: rf"\Sigma_{{\mathrm{{{direction}}}}}"},
    )  # fmt: skip


def _check(direction: str) -> None:
    if direction not in ("radial", "transverse"):
        raise InvalidProblemError(f"direction must be 'radial' or 'transverse'; got {direction!r}.")


@functools.cache
def _hessian(direction: Direction) -> Formula:
    shown = sp.Symbol("h", positive=True)
    norm = {T: RADIUS * SHRUNK, NORM: SHRUNK}
    if direction == "radial":
        entry = HESSIAN.subs({S_IJ: STD**2, A_I: PULLED, A_J: PULLED, U_I: 1, U_J: 1, K_IJ: 0})
        expression = (STD**2 + RADIUS**2 + C0 * T * STD**2 * LABEL_NOISE**2 / V**3
                      - 2 * C0 * RADIUS * STD**2 * (1 - SHRINKAGE) * TRUE_NORM / V)  # fmt: skip
        squared = {LABEL_NOISE: sp.Symbol("label_noise_now", real=True)}
        residual = (entry - expression).subs(squared)
        residual = residual.subs(squared[LABEL_NOISE] ** 2, V**2 - PULLED**2 / STD**2).subs(norm)
        claims: tuple[tuple[str, sp.Expr], ...] = (("the entry along the weights, v^2 = a^2/s^2 + sigma^2", residual),)
    else:
        entry = HESSIAN.subs({S_IJ: STD**2, A_I: 0, A_J: 0, U_I: 0, U_J: 0, K_IJ: 1 / NORM})
        expression = STD**2 * (1 + C0 * T / V) / SHRINKAGE
        # They differ by the gradient along the weights, over their length.
        gradient = GRADIENT.subs({A_I: PULLED, U_I: 1})
        claims = (("the entry across the weights is this plus the gradient over |w|, which is 0",
                   (entry - expression - gradient / SHRUNK).subs(norm)),)  # fmt: skip
    claims += (("at radius 0, where shrinkage is 1, it is s^2",
                expression.subs({RADIUS: 0, T: 0, SHRINKAGE: 1}) - STD**2),)  # fmt: skip
    return isotropic_formula(f"isotropic_hessian({direction})", shown, expression, MEANING, claims,
                    (Step("Put S = s^2 I, a = -s^2 (1 - alpha) w0 and u = w0/|w0| into the Hessian."),),
                    (robust_hessian(), isotropic_radius()))  # fmt: skip


@functools.cache
def _noise(direction: Direction) -> Formula:
    shown = sp.Symbol("c", nonnegative=True)
    general = robust_noise().expression.subs({G_I: 0, G_J: 0})
    square = 2 * RISK
    if direction == "radial":
        slope = (1 - SHRINKAGE) * TRUE_NORM * STD**2 / V**2  # b, along the weights
        entry = general.subs({S_IJ: STD**2, A_I: PULLED, A_J: PULLED, U_I: 1, U_J: 1})
        expression = (slope**2 * (3 * V**4 + 4 * C0 * T * V**3 + T**2 * V**2) + (STD**2 - V**2 * slope**2) * square
                      - 2 * RADIUS * slope * (2 * C0 * V**3 + 2 * T * V**2 + C0 * T**2 * V)
                      + RADIUS**2 * square)  # fmt: skip
    else:
        entry = general.subs({S_IJ: STD**2, A_I: 0, A_J: 0, U_I: 0, U_J: 0})
        expression = STD**2 * sp.expand(square)
    claims = (
        ("the entry of the noise in this direction", entry - expression),
        ("at radius 0 it is s^2 sigma^2 (v = sigma there)",
         expression.subs({RADIUS: 0, T: 0, SHRINKAGE: 1}) - STD**2 * V**2),
    )  # fmt: skip
    return isotropic_formula(f"isotropic_noise({direction})", shown, expression, MEANING, claims,
                    (Step("Put S = s^2 I, a = -s^2 (1 - alpha) w0 and u = w0/|w0| into the noise, with gradient 0."),),
                    (robust_noise(),))  # fmt: skip
