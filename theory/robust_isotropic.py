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
from dataclasses import replace
from typing import Literal

import sympy as sp

from ..errors import InvalidProblemError
from ._attacked import G_I
from ._mean_pull import mean_pull
from .assumptions import Assumption, domains, stable
from .dual_norm import K_IJ, NORM, RADIUS, U_I, U_J, derive
from .formula import Formula, Step
from .minibatch import BATCH_SIZE
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
    ISOTROPIC,
    ISOTROPIC_LATEX,
    LABEL_NOISE,
    MEANING,
    PULLED,
    SHRINKAGE,
    SHRUNK,
    STD,
    TRUE_NORM,
    at_rest,
    isotropic_formula,
    isotropic_radius,
)
from .stability import stability
from .stationary import C_IJ as DRAWN
from .stationary import H_I, H_J, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "isotropic_covariance",
    "isotropic_excess_risk",
    "isotropic_hessian",
    "isotropic_noise",
    "isotropic_onset",
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
        eigenvalue has the multiplicity d - 1; it is the larger one, proved by their difference, which is a square.

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
        hyper-parameters. The part ``largest_lr``, in h, is there if the rule has one in closed form; that of the
        transverse direction is the smaller. Weight decay of the rule moves the mean towards zero: then ``shrinkage`` is
        that of the mean, where the gradient is -``pull`` times the weights; `isotropic_radius` with that pull puts it
        on the radius.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.
    InvalidRuleError
        If the rule has weight decay and calls its gradient more than once a step.

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
    pull, claims = mean_pull(optimizer)
    # Both are written for a gradient of 0; at the mean it is -pull times the weights.
    here = curvature.expression - (pull if direction == "transverse" else 0)
    drawn = noise.expression - (pull**2 * SHRUNK**2 if direction == "radial" else 0)
    expression = law.expression.subs({H_I: h, DRAWN: c / BATCH_SIZE}, simultaneous=True)
    conditions = stability(optimizer)
    own = optimizer.symbols
    rename = {H_I: h, H_J: h, DRAWN: c / BATCH_SIZE, law.equation.lhs: shown}
    return Formula(
        id=f"{optimizer.rule.name}.isotropic_covariance({direction})",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={**noise.symbols, **curvature.symbols, "batch_size": BATCH_SIZE, **own},
        assumptions=(ISOTROPIC, GAUSSIAN_INPUTS, at_rest(pull), stable(tuple(x.subs(conditions.h, h) for x in
                     conditions.conditions)), Assumption("local", "the risk is quadratic and the noise constant where "
                     "the weights are"), *domains(optimizer)),
        defining=tuple(sp.Eq(e.lhs.subs(rename, simultaneous=True), e.rhs.subs(rename, simultaneous=True),
                             evaluate=False) for e in law.defining),
        solution={s.subs(rename): v.subs(rename, simultaneous=True) for s, v in law.solution.items()},
        references=("javanmard2020", *optimizer.rule.references),
        derivation=(Step("The mean is where the gradient is -pull times the weights.", pull),
                    Step("Curvature and noise there, in this direction."),
                    Step("The stationary law of the rule for them.", sp.Eq(shown, expression, evaluate=False))),
        kind="approximation",
        where={h: here, c: drawn, **MEANING},
        parts={"pull": pull, **({} if conditions.largest_lr is None else
                                {"largest_lr": conditions.largest_lr.subs(conditions.h, h)})},
        identities=(*claims, *_at_the_mean(direction, here, drawn, pull)),
        lemmas=(curvature, noise),
        symbol_latex={**ISOTROPIC_LATEX, **law.symbol_latex, shown: rf"\Sigma_{{\mathrm{{{direction}}}}}"},
    )  # fmt: skip


def isotropic_excess_risk(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive the excess adversarial risk tr(H Sigma)/2 of a rule around the robust minimiser, in ``dim`` dimensions.

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula
        An approximation, as `isotropic_covariance` is.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(isotropic_excess_risk(sgd))
    excess ~ Sigma_r*h_r/2 + Sigma_t*h_t*(dim - 1)/2
    """
    radial, transverse = isotropic_covariance(rule, "radial"), isotropic_covariance(rule, "transverse")
    dim, shown = sp.Symbol("dim", integer=True, positive=True), sp.Symbol("excess", nonnegative=True)
    h, spread = sp.symbols("h_r h_t", positive=True), sp.symbols("Sigma_r Sigma_t", nonnegative=True)
    expression = h[0] * spread[0] / 2 + (dim - 1) * h[1] * spread[1] / 2
    where: dict[sp.Expr, sp.Expr] = {}
    conditions: list[sp.Basic] = []
    for k, law in enumerate((radial, transverse)):
        own = {s: sp.Symbol(f"{s}_{'rt'[k]}", **s.assumptions0) for s in law.where if s.name in ("h", "c")}
        where[spread[k]] = law.expression.xreplace(own)
        where |= {own[s]: law.where[s] for s in own}
        conditions += [c.xreplace(own) for c in law.conditions]
    total, lost = sp.symbols("trace other", real=True)
    return Formula(
        id=f"{as_optimizer(rule).rule.name}.isotropic_excess_risk",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={**radial.symbols, **transverse.symbols, "dim": dim},
        assumptions=(*(replace(a, conditions=()) for a in radial.assumptions),
                     Assumption("conditions", "both directions are stable", tuple(dict.fromkeys(conditions)))),
        defining=(sp.Eq(2 * shown, total, evaluate=False), sp.Eq(total, h[0] * spread[0] + lost, evaluate=False),
                  sp.Eq(lost, (dim - 1) * h[1] * spread[1], evaluate=False)),
        solution={shown: expression, total: 2 * expression, lost: (dim - 1) * h[1] * spread[1]},
        references=radial.references,
        derivation=(Step("One radial direction and dim - 1 transverse ones."),),
        kind="approximation",
        where={**where, **MEANING},
        lemmas=(radial, transverse),
        symbol_latex=radial.symbol_latex,
    )  # fmt: skip


def _at_the_mean(
    direction: Direction, curvature: sp.Expr, noise: sp.Expr, pull: sp.Expr
) -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that curvature and noise are the entries of the Hessian and the noise at the mean."""
    norm = {T: RADIUS * SHRUNK, NORM: SHRUNK}
    along = int(direction == "radial")
    here = {S_IJ: STD**2, A_I: PULLED if along else 0, A_J: PULLED if along else 0, U_I: along, U_J: along,
            K_IJ: 0 if along else 1 / NORM}  # fmt: skip
    gradient = GRADIENT.subs({A_I: PULLED, U_I: 1})
    general = robust_noise().expression.subs({G_I: -pull * SHRUNK if along else 0, G_J: -pull * SHRUNK if along else 0})
    # The gradient is -pull |w| there: what the claim leaves over is a multiple of gradient + pull |w|.
    left = 0 if along else (gradient + pull * SHRUNK) / SHRUNK
    square = V**2 - PULLED**2 / STD**2
    residual = (HESSIAN.subs(here) - curvature - left).subs(LABEL_NOISE**2, square)
    return (
        ("the curvature is the entry of the Hessian at the mean", residual.subs(norm)),
        ("the noise is the entry at the mean", (general.subs(here) - noise).subs(norm)),
    )


@functools.cache
def isotropic_onset(direction: Direction = "transverse") -> Formula:
    r"""Derive whether a small radius widens the stationary law or narrows it, in either direction.

    Parameters
    ----------
    direction : {"radial", "transverse"}

    Returns
    -------
    Formula
        The relative slope, at radius 0, of noise over curvature, to which the stationary variance is proportional at a
        small lr. Its parts ``noise`` and ``curvature`` are the slopes of the two, of which it is the difference. Noise
        wins along the weights. Across them curvature wins where std*weight_norm < label_noise: there adversarial
        training narrows the law.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.

    Examples
    --------
    >>> print(isotropic_onset("radial"))
    widening = c0*weight_norm/label_noise
    >>> print(isotropic_onset("transverse"))
    widening = c0*(-label_noise/(std**2*weight_norm) + weight_norm/label_noise)
    """
    _check(direction)
    shown = sp.Symbol("widening", real=True)
    rise = C0 * LABEL_NOISE / (STD**2 * TRUE_NORM)  # of 1 - alpha
    noise = 2 * C0 * TRUE_NORM / LABEL_NOISE
    curvature = C0 * TRUE_NORM / LABEL_NOISE + (rise if direction == "transverse" else 0)
    expression = C0 * (TRUE_NORM / LABEL_NOISE
                       - (LABEL_NOISE / (STD**2 * TRUE_NORM) if direction == "transverse" else 0))  # fmt: skip
    # The slopes at radius 0: of v it is 0, since v^2 - sigma^2 is of second order.
    along = {RADIUS: sp.Integer(1), T: TRUE_NORM, SHRINKAGE: -rise}
    start = {RADIUS: 0, T: 0, SHRINKAGE: 1, V: LABEL_NOISE}
    gradient = GRADIENT.subs({A_I: PULLED, U_I: 1})

    def relative(of: sp.Expr) -> sp.Expr:
        return (derive(of, along) / of).subs(start)

    claims = (
        ("the shrinkage starts so that the gradient stays 0", derive(gradient, along).subs(start)),
        ("v starts with slope 0", sp.diff(PULLED**2 / STD**2, SHRINKAGE).subs(SHRINKAGE, 1)),
        ("the slope of the noise", relative(_noise(direction).expression) - noise),
        ("the slope of the curvature", relative(_hessian(direction).expression) - curvature),
        ("their difference", noise - curvature - expression),
    )
    steps = (Step("Differentiate noise and curvature at radius 0, with the minimiser moving."),)
    lemmas, parts = (_hessian(direction), _noise(direction)), {"noise": noise, "curvature": curvature}
    where = {C0: MEANING[C0]}
    return isotropic_formula(f"isotropic_onset({direction})", shown, expression, where, claims, steps, lemmas, parts)


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
        radial = HESSIAN.subs({S_IJ: STD**2, A_I: PULLED, A_J: PULLED, U_I: 1, U_J: 1, K_IJ: 0})
        square = C0 * RADIUS * (V**2 - PULLED * SHRUNK) ** 2 / (SHRUNK * V**3)
        claims = (
            ("the entry across the weights is this plus the gradient over |w|, which is 0",
             (entry - expression - gradient / SHRUNK).subs(norm)),
            ("it is larger than the radial one by c0 radius (v^2 + s^2 (1 - alpha) w0 |w|)^2/(|w| v^3)",
             (entry - radial - square).subs(norm)),
        )  # fmt: skip
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
