r"""The robust minimiser for isotropic Gaussian inputs under the l2 attack: one number, the shrinkage, along the radius.

With :math:`S = s^2 I` the robust minimiser is :math:`\alpha w_0`, alpha in [0, 1]. The radius is explicit in alpha (the
root of a quadratic, `robust_radius`); alpha in the radius is the root of a quartic, explicit without label noise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy as sp

from ..errors import InvalidProblemError
from .assumptions import Assumption
from .dual_norm import NORM, RADIUS, U_I
from .formula import Formula, Step
from .robust_minimiser import PENALTY, robust_radius
from .robust_population import A_I, C0, CONSTANTS, GAUSSIAN_INPUTS, GRADIENT, LATEX, T, V

__all__ = ["isotropic_radius", "isotropic_shrinkage", "noiseless_shrinkage"]

STD = sp.Symbol("std", positive=True)
SHRINKAGE = sp.Symbol("shrinkage", positive=True)
TRUE_NORM = sp.Symbol("weight_norm", positive=True)
LABEL_NOISE = sp.Symbol("label_noise", nonnegative=True)
ISOTROPIC = Assumption("isotropic inputs", "S = std^2 I, and the attack is l2")
#: What stands for what: v, then t.
MEANING: dict[sp.Expr, sp.Expr] = {
    V: sp.sqrt(STD**2 * (1 - SHRINKAGE) ** 2 * TRUE_NORM**2 + LABEL_NOISE**2),
    T: RADIUS * SHRINKAGE * TRUE_NORM,
    C0: CONSTANTS[C0],
}
ISOTROPIC_LATEX = {**LATEX, STD: "s", SHRINKAGE: r"\alpha", TRUE_NORM: r"\omega", LABEL_NOISE: r"\sigma"}
#: The minimiser's quantities along the weights: a, u and N.
PULLED = -(STD**2) * (1 - SHRINKAGE) * TRUE_NORM
SHRUNK = SHRINKAGE * TRUE_NORM
#: How far radius and shrinkage may be from belonging together, relative to the gradient at 0: the digits of a solver.
TOGETHER = sp.Rational(1, 10**8)


def at_rest(pull: sp.Expr) -> Assumption:
    """Return the assumption that alpha w0 is where the gradient is -pull times the weights (pull 0: the minimiser)."""
    gradient = GRADIENT.subs({A_I: PULLED, U_I: 1}) + pull * SHRUNK
    together = sp.Le(sp.Abs(gradient), TOGETHER * (STD**2 * TRUE_NORM), evaluate=False)
    where = "the minimiser" if pull == 0 else "the stationary mean, to which weight decay pulls the minimiser"
    said = f"shrinkage is that of the radius (isotropic_radius) at {where}; it lies in (0, 1]"
    return Assumption("at the minimiser" if pull == 0 else "at the mean", said, (together, sp.Le(SHRINKAGE, 1)))


@functools.cache
def isotropic_radius(pull: sp.Expr | int = 0) -> Formula:
    r"""Derive the radius at which the robust minimiser is alpha w0.

    Parameters
    ----------
    pull : sympy.Expr
        Weight decay beside the risk: where risk + pull |w|^2/2 is least (`isotropic_covariance` names the pull of a
        rule with weight decay).

    Returns
    -------
    Formula
        Falls from the collapse radius at alpha -> 0 to 0 at alpha = 1. The inverse is the root of a quartic:
        `isotropic_shrinkage` computes it, `noiseless_shrinkage` is explicit without label noise.

    References
    ----------
    xing2021

    Examples
    --------
    >>> at_one = isotropic_radius().specialise(shrinkage=1, label_noise=1, std=1, weight_norm=1)
    >>> sp.simplify(at_one.explicit())
    0
    """
    root = sp.Symbol("root", positive=True)
    penalty, pulled = (1 - SHRINKAGE) * STD**2 * TRUE_NORM, sp.sympify(pull) * SHRUNK
    general = robust_radius()
    # N radius^2 + c0 (v - penalty N/v) radius - (penalty - pull N) = 0
    linear = C0 * (V - penalty * SHRUNK / V)
    radicand = linear**2 + 4 * SHRUNK * (penalty - pulled)
    expression = (root - linear) / (2 * SHRUNK)
    along = GRADIENT.subs({T: RADIUS * SHRUNK, A_I: PULLED, U_I: 1}) + pulled
    quadratic = sp.expand(along * V)
    claims = (
        ("the gradient along w0 vanishes there",
         quadratic.subs(RADIUS, expression) - V * (root**2 - radicand) / (4 * SHRUNK)),
        ("as the shrinkage tends to 0 it is the collapse radius: the gradient at zero weights",
         along.subs(SHRINKAGE, 0).subs(RADIUS, STD**2 * TRUE_NORM / (C0 * V))),
        ("without decay it is that of the general path",
         expression - general.expression.subs({NORM: SHRUNK, PENALTY: penalty})),
        ("at shrinkage 1 nothing but the pull is left", (quadratic - pulled * V).subs({SHRINKAGE: 1, RADIUS: 0})),
    )  # fmt: skip
    where = {root: sp.sqrt(radicand), V: MEANING[V], C0: MEANING[C0]}
    name = "isotropic_radius" if pull == 0 else f"isotropic_radius({pull})"
    formula = isotropic_formula(name, RADIUS, expression, where, claims,
                    (Step("S(w - w0) = -s^2 (1 - alpha) w0, so the penalty is s^2 (1 - alpha) |w0|."),
                     Step("Take the radius of that penalty.")), (general,))  # fmt: skip
    attacked = Assumption("attacked", "the weights are no larger than without an attack", (sp.Le(pulled, penalty),))
    return replace(formula, assumptions=(*formula.assumptions, attacked))


@functools.cache
def noiseless_shrinkage() -> Formula:
    r"""Derive the robust minimiser without label noise, explicit in the radius.

    Returns
    -------
    Formula
        The shrinkage between the radii ``first`` = c0 s, up to which the true weights themselves are the robust
        minimiser (the risk has a kink there, where every residual is 0), and ``last`` = s/c0, from which on it is 0.

    Examples
    --------
    >>> print(noiseless_shrinkage())
    shrinkage = std*(-c0*radius + std)/(-2*c0*radius*std + radius**2 + std**2)
    """
    expression = STD * (STD - C0 * RADIUS) / (STD**2 - 2 * C0 * RADIUS * STD + RADIUS**2)
    quadratic = STD**2 * (1 - SHRINKAGE) ** 2  # v^2/omega^2
    spread = STD * (1 - SHRINKAGE)  # v/omega, for shrinkage <= 1
    risk = quadratic + 2 * C0 * spread * RADIUS * SHRINKAGE + RADIUS**2 * SHRINKAGE**2  # 2 R/omega^2
    slope = sp.diff(risk, SHRINKAGE)
    first, last = C0 * STD, STD / C0
    return Formula(
        id="noiseless_shrinkage",
        equation=sp.Eq(SHRINKAGE, expression, evaluate=False),
        symbols={"radius": RADIUS, "std": STD},
        assumptions=(ISOTROPIC, GAUSSIAN_INPUTS, Assumption("noiseless", "labels are x'w0, and the radius lies between "
                     "c0*std and std/c0", (first <= RADIUS, last >= RADIUS))),
        defining=(sp.Eq(slope, 0, evaluate=False),),
        solution={SHRINKAGE: expression},
        references=("xing2021", "javanmard2020"),
        derivation=(
            Step("Without label noise v = s (1 - alpha) omega, and the risk is quadratic in alpha below 1.",
                 sp.Eq(slope, 0, evaluate=False)),
            Step("Solve for alpha."),
        ),
        where={C0: CONSTANTS[C0]},
        parts={"first": first, "last": last},
        identities=(
            ("it is 1 at the first radius", expression.subs(RADIUS, first) - 1),
            ("at true weights the risk rises with 1 - alpha up to that radius",
             slope.subs(SHRINKAGE, 1) - 2 * RADIUS * (RADIUS - first)),
            ("it is 0 at the last", expression.subs(RADIUS, last)),
            ("the second derivative is that of |s - radius|^2 + 2 (1 - c0) s radius, positive",
             sp.diff(slope, SHRINKAGE) - 2 * ((STD - RADIUS) ** 2 + 2 * (1 - C0) * STD * RADIUS)),
        ),
        symbol_latex=ISOTROPIC_LATEX,
    )  # fmt: skip


def isotropic_shrinkage(
    radius: Any, *, weight_norm: Any = 1, std: Any = 1, label_noise: Any = 1, digits: int = 15
) -> sp.Float:
    """Compute the shrinkage of a radius: the root of the gradient along w0, by bisection.

    Parameters
    ----------
    radius, weight_norm, std, label_noise : number
    digits : int
        How many digits to compute; nothing is lost to cancellation.

    Returns
    -------
    sympy.Float
        In [0, 1]; exactly 0 from the collapse radius on, exactly 1 at radius 0.

    Raises
    ------
    InvalidProblemError
        If an argument is out of range.

    Examples
    --------
    >>> isotropic_shrinkage(0.5)
    0.517393987420535
    """
    size, length, spread, noise = (_number(x) for x in (radius, weight_norm, std, label_noise))
    if size < 0 or length <= 0 or spread <= 0 or noise < 0 or digits < 1:
        raise InvalidProblemError(
            f"radius and label_noise must be at least 0, weight_norm and std positive, digits at least 1; got radius="
            f"{radius}, weight_norm={weight_norm}, std={std}, label_noise={label_noise}, digits={digits}."
        )
    working = digits + 10
    half = sp.Rational(1, 2)
    c0 = CONSTANTS[C0]
    collapse = spread**2 * length / (c0 * sp.sqrt(spread**2 * length**2 + noise**2))
    if sp.N(size - collapse, working) >= 0:
        return sp.Float(0, digits)
    if size == 0 or (noise == 0 and sp.N(size - c0 * spread, working) <= 0):
        return sp.Float(1, digits)

    def slope(alpha: sp.Rational) -> sp.Expr:
        """Return dR/d alpha, over omega^2."""
        v = sp.sqrt(spread**2 * (1 - alpha) ** 2 * length**2 + noise**2)
        t = size * alpha * length
        return sp.N(-(spread**2) * (1 - alpha) * (1 + c0 * t / v) + size * (size * alpha + c0 * v / length), working)

    low, high = sp.Integer(0), sp.Integer(1)
    while high - low > sp.Rational(1, 2 ** (int(digits * 3.33) + 4)) * high:
        middle = (low + high) * half
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return sp.N((low + high) * half, digits)


def _number(value: Any) -> sp.Rational:
    exact = sp.nsimplify(value, rational=True) if not isinstance(value, str) else sp.nan
    if not exact.is_Rational:
        raise InvalidProblemError(f"{value!r} is not a rational number.")
    return exact


def isotropic_formula(
    name: str,
    shown: sp.Symbol,
    expression: sp.Expr,
    where: Mapping[sp.Expr, sp.Expr],
    claims: tuple[tuple[str, sp.Expr], ...],
    steps: tuple[Step, ...],
    lemmas: tuple[Formula, ...],
    parts: Mapping[str, sp.Expr] | None = None,
) -> Formula:
    """Return a formula of this subject, with what its symbols stand for."""
    used, explicit = {}, expression
    for symbol, meaning in where.items():
        if explicit.has(symbol):
            used[symbol] = meaning
            explicit = explicit.xreplace({symbol: meaning})
    return Formula(
        id=name,
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={s.name: s for s in sorted(explicit.free_symbols, key=str)},
        assumptions=(ISOTROPIC, GAUSSIAN_INPUTS, *(() if shown == RADIUS else (at_rest(sp.Integer(0)),))),
        defining=(),
        solution={},
        references=("javanmard2020", "xing2021"),
        derivation=(*steps, Step("So it is", sp.Eq(shown, expression, evaluate=False))),
        where=used,
        parts={} if parts is None else parts,
        identities=claims,
        lemmas=lemmas,
        symbol_latex=ISOTROPIC_LATEX,
    )
