r"""The dual norm of an attack, with its gradient u and curvature K, and the inner maximum over a ball of perturbations.

For perturbations with :math:`\|\delta\|_p \le \epsilon` Hoelder's inequality bounds :math:`|\delta^\top w|` by
:math:`\epsilon N`, :math:`N = \|w\|_q`, :math:`1/p + 1/q = 1`, and the bound is attained. What a linear model loses to
the attack is therefore a function of N alone. Away from its kinks, from :math:`N^q = \sum_k |w_k|^q`,

.. math::

    u_i = \mathrm{sgn}(w_i)\,(|w_i|/N)^{q-1}, \qquad
    K_{ij} = \frac{q-1}{N}\big[\delta_{ij}(|w_i|/N)^{q-2} - u_i u_j\big].

For the l2 attack u = w/N and K = (I - uu')/N; for linf u = sgn(w) and K = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from ..errors import InvalidProblemError
from .assumptions import Assumption
from .formula import Formula, Step

__all__ = ["dual_norm_curvature", "worst_case_shift"]

RADIUS = sp.Symbol("radius", nonnegative=True)
NORM = sp.Symbol("norm_w", positive=True)
W_I, W_J = sp.symbols("w_i w_j", real=True)
ABS_I, ABS_J = sp.symbols("abs_w_i abs_w_j", positive=True)
SIGN_I, SIGN_J = sp.symbols("sign_w_i sign_w_j", real=True)
U_I, U_J, K_IJ = sp.symbols("u_i u_j K_ij", real=True)
SAME = sp.Symbol("delta_ij", nonnegative=True)
DUAL = sp.Symbol("q", positive=True)
NORM_LATEX = {RADIUS: r"\epsilon", NORM: r"\|w\|_q", K_IJ: "K_{ij}", SAME: r"\delta_{ij}", ABS_I: "|w_i|",
              ABS_J: "|w_j|", SIGN_I: r"\mathrm{sgn}(w_i)", SIGN_J: r"\mathrm{sgn}(w_j)"}  # fmt: skip


@dataclass(frozen=True)
class DualNorm:
    """The dual norm of an attack: u and K as they are written, and the symbols they are written in.

    Attributes
    ----------
    name : {"l2", "linf", "l1", "lp"}
    dual : sympy.Expr
        q.
    gradient : tuple of sympy.Expr
        u_i and u_j.
    curvature : sympy.Expr
        K_ij, in u_i and u_j.
    symbols : tuple of sympy.Symbol
    assumption : Assumption
        Where it is differentiable.
    """

    name: str
    dual: sp.Expr
    gradient: tuple[sp.Expr, sp.Expr]
    curvature: sp.Expr
    symbols: tuple[sp.Symbol, ...]
    assumption: Assumption

    @property
    def where(self) -> dict[sp.Expr, sp.Expr]:
        """What K_ij, u_i and u_j stand for, in the order of their use."""
        return {K_IJ: self.curvature, U_I: self.gradient[0], U_J: self.gradient[1]}


def dual_norm(norm: Any) -> DualNorm:
    """Return the dual of the norm of an attack: 2, infinity, 1, another number p > 1, or ``"p"`` for any p > 1."""
    infinite = isinstance(norm, str) and norm in ("inf", "linf")
    if norm == "p":
        return _power_norm(DUAL)
    if isinstance(norm, bool) or (isinstance(norm, str) and not infinite):
        raise InvalidProblemError(f"norm must be 2, infinity, a number p >= 1, or 'p' for all of them; got {norm!r}.")
    p = sp.oo if infinite else sp.nsimplify(norm, rational=True) if norm != float("inf") else sp.oo
    if not (p.is_number and p.is_extended_real and p >= 1):
        raise InvalidProblemError(f"norm={norm!r} is not a norm: an l_p attack needs p >= 1.")
    if p == sp.oo:
        smooth = Assumption("signs", "no weight is zero, and the signs of the weights are those given")
        return DualNorm("linf", sp.Integer(1), (SIGN_I, SIGN_J), sp.Integer(0), (SIGN_I, SIGN_J), smooth)
    if p == 1:
        smooth = Assumption("one largest weight", "one weight is the largest in absolute value; the sign given is its "
                            "sign there, and 0 for every other weight")  # fmt: skip
        return DualNorm("l1", sp.oo, (SIGN_I, SIGN_J), sp.Integer(0), (SIGN_I, SIGN_J), smooth)
    if p == 2:
        smooth = Assumption("non-zero weights", "w is not zero, and norm_w is its Euclidean norm")
        curvature = (SAME - U_I * U_J) / NORM
        return DualNorm("l2", sp.Integer(2), (W_I / NORM, W_J / NORM), curvature, (W_I, W_J, NORM, SAME), smooth)
    return _power_norm(p / (p - 1))


def _power_norm(q: sp.Expr) -> DualNorm:
    smooth = Assumption("non-zero weights", "no weight is zero; abs_w_i and sign_w_i are its absolute value and sign")
    gradient = (SIGN_I * (ABS_I / NORM) ** (q - 1), SIGN_J * (ABS_J / NORM) ** (q - 1))
    curvature = (q - 1) * (SAME * (ABS_I / NORM) ** (q - 2) - U_I * U_J) / NORM
    own = (DUAL,) if q == DUAL else ()
    return DualNorm("lp", q, gradient, curvature, (SIGN_I, SIGN_J, ABS_I, ABS_J, NORM, SAME, *own), smooth)


def derive(expression: sp.Expr, along: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    """Differentiate by the chain rule, given the derivatives of the symbols."""
    return sp.Add(*(sp.diff(expression, symbol) * slope for symbol, slope in along.items()))


def at_signs(text: str, residual: sp.Expr, *signs: sp.Symbol) -> Iterator[tuple[str, sp.Expr]]:
    """Yield a claim about symbols that are signs: one for each of their values."""
    if not signs:
        yield text, sp.expand(residual)
        return
    for value in (1, -1):
        yield from at_signs(f"{text} ({signs[0]} = {value})", residual.subs(signs[0], value), *signs[1:])


def norm_symbols(*expressions: sp.Expr) -> dict[str, sp.Symbol]:
    """Return the free symbols of some expressions by role."""
    free: set[sp.Symbol] = set().union(*(sp.sympify(e).free_symbols for e in expressions))
    return {s.name: s for s in sorted(free, key=str)}


@functools.cache
def dual_norm_curvature(norm: Any = 2) -> Formula:
    r"""Derive gradient and Hessian of the dual norm of an attack, by differentiating the equation that defines it.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"
        The attack's, as NumPy's ``ord``; ``"p"`` keeps the dual exponent q as a symbol.

    Returns
    -------
    Formula
        The entry K_ij of the Hessian, in u_i and u_j, the entries of the gradient, which its part ``gradient`` gives.
        For a power norm it is proved in A_i = |w_i|^q and P = N^q, as rational functions.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    hoelder1889

    Examples
    --------
    >>> print(dual_norm_curvature(2))
    K_ij = (delta_ij - u_i*u_j)/norm_w
    >>> print(dual_norm_curvature(float("inf")))
    K_ij = 0
    >>> dual_norm_curvature("p").prove()
    <Proof of dual_norm_curvature(lp): 9 claims hold exactly>
    """
    dual = dual_norm(norm)
    defining, solution, claims = _implicit(dual)
    shown = dual.curvature
    q = "" if dual.name in ("l2", "linf", "l1") or dual.dual == DUAL else f", q = {dual.dual}"
    return Formula(
        id=f"dual_norm_curvature({dual.name}{q})",
        equation=sp.Eq(K_IJ, shown, evaluate=False),
        symbols=norm_symbols(shown),
        assumptions=(dual.assumption,),
        defining=defining,
        solution=solution,
        references=("hoelder1889",),
        derivation=(
            Step("Differentiate N^q = sum |w_k|^q (N = sum sgn(w_k) w_k for linf) once for u."),
            Step("Differentiate again for K.", sp.Eq(K_IJ, shown, evaluate=False)),
        ),
        parts={"gradient": dual.gradient[0]},
        identities=claims,
        symbol_latex=NORM_LATEX,
    )


def _implicit(
    dual: DualNorm,
) -> tuple[tuple[sp.Eq, ...], dict[sp.Symbol, sp.Expr], tuple[tuple[str, sp.Expr], ...]]:
    """Return the equations that define u and K, the solution, and what else is claimed."""
    rest = sp.Symbol("rest", real=True)  # what all other weights add
    along_i, along_j = {W_I: sp.Integer(1), NORM: U_I}, {W_I: SAME, NORM: U_J, U_I: K_IJ}
    if dual.name == "lp":
        return _implicit_power(dual)
    relation = NORM**2 - W_I**2 - rest if dual.name == "l2" else NORM - SIGN_I * W_I - rest
    first = derive(relation, along_i)
    second = derive(first, along_j)
    defining = (sp.Eq(first, 0, evaluate=False), sp.Eq(second, 0, evaluate=False))
    if dual.name != "l2":
        return defining, {U_I: SIGN_I, K_IJ: sp.Integer(0)}, ()
    others = NORM**2 - W_I**2
    claims = (
        ("u = w/N", first.subs(U_I, dual.gradient[0])),
        ("u'w = N: the shares w_k^2/N of all weights add up to it", (W_I**2 + others) / NORM - NORM),
    )
    return defining[1:], {K_IJ: dual.curvature}, claims


def _implicit_power(
    dual: DualNorm,
) -> tuple[tuple[sp.Eq, ...], dict[sp.Symbol, sp.Expr], tuple[tuple[str, sp.Expr], ...]]:
    """Derive u and K of a power norm in A_i = |w_i|^q and P = N^q = sum of all A_k."""
    q = dual.dual
    a_i, a_j, total = sp.symbols("A_i A_j P", positive=True)
    sign = sp.Symbol("sign", positive=True)  # of w: sign*w is |w|
    rational = sp.Symbol("K", real=True)  # K_ij as a rational function
    # log P = q log N and log A = q log|w| give dP = q P dN/N and dA = q A dw/w.
    first = q * total * U_I / NORM - q * a_i / W_I
    second = derive(total * U_I * W_I - NORM * a_i,
                    {W_I: SAME, a_i: SAME * q * a_i / W_I, total: q * a_j / W_J, NORM: U_J, U_I: rational})  # fmt: skip
    u = {U_I: NORM * a_i / (total * W_I), U_J: NORM * a_j / (total * W_J)}
    k = (q - 1) * (SAME * NORM * a_i / (total * W_I**2) - u[U_I] * u[U_J] / NORM)
    low, high = sp.symbols("l L", real=True)  # log|w| and log N: powers are compared by their exponents
    claims = [
        ("d log|w|^q/dw = q/w", sp.diff(q * sp.log(sign * W_I), W_I) - q / W_I),
        ("u as written: (q-1)(l-L) is the logarithm of N A/(P |w|)", (q - 1) * (low - high)
         - (high + q * low - q * high - low)),
        ("K as written: (q-2)(l-L) - L is the logarithm of N A/(P w^2)", (q - 2) * (low - high) - high
         - (high + q * low - q * high - 2 * low)),
        ("u'w = N: the shares N A_k/P of all weights add up to it", (u[U_I] * W_I).subs(a_i, total) - NORM),
        ("K w = 0, with u'w = N", (q - 1) * (NORM * a_i / (total * W_I**2) * W_I - u[U_I] * NORM / NORM)),
    ]  # fmt: skip
    if q == DUAL:
        euclidean = {DUAL: 2, a_i: W_I**2, a_j: W_J**2, total: NORM**2}
        k_euclidean = (SAME - W_I * W_J / NORM**2) / NORM
        claims += [("at q = 2 it is that of the Euclidean norm", k.subs(euclidean, simultaneous=True) - k_euclidean),
                   ("at q = 1 it is 0", k.subs(DUAL, 1))]  # fmt: skip
    defining = (sp.Eq(first, 0, evaluate=False), sp.Eq(second, 0, evaluate=False))
    return defining, {**u, rational: k}, tuple(claims)


@functools.cache
def worst_case_shift(norm: Any = 2) -> Formula:
    r"""Prove Hoelder's inequality as it is used here: an attack shifts w'x by at most :math:`\epsilon\|w\|_q`, exactly.

    Parameters
    ----------
    norm : 2, inf, number p > 1, or "p"
        The attack's.

    Returns
    -------
    Formula
        The entry of the perturbation that raises w'x the most; the claims are that no perturbation raises it more,
        that it is on the ball, and that it does raise it by radius*norm_w. The bound is proved by writing what is left
        as a sum of terms that cannot be negative: for l2 Lagrange's identity, for linf coordinate by coordinate, else
        by Young's inequality, whose gap is convex and 0 at its minimum.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    hoelder1889

    Examples
    --------
    >>> print(worst_case_shift(float("inf")))
    shift_i = radius*sign_w_i
    >>> worst_case_shift("p").prove()
    <Proof of worst_case_shift(lp): 17 claims hold exactly>
    """
    dual = dual_norm(norm)
    shown = sp.Symbol("shift_i", real=True)
    if dual.name in ("linf", "l1"):
        shift: sp.Expr = RADIUS * SIGN_I
    elif dual.name == "l2":
        shift = RADIUS * W_I / NORM
    else:
        shift = RADIUS * SIGN_I * (ABS_I / NORM) ** (dual.dual - 1)
    q = "" if dual.name != "lp" or dual.dual == DUAL else f", q = {dual.dual}"
    how = {"l2": "Lagrange: what is missing is a square.", "linf": "Each coordinate adds at most radius |w_k|.",
           "l1": "Each coordinate adds at most |delta_k| times the largest |w_k|; spend all on that one.",
           "lp": "Young for every coordinate: |d_k|/radius |w_k|/N <= (..)^p/p + (..)^q/q; add up."}  # fmt: skip
    return Formula(
        id=f"worst_case_shift({dual.name}{q})",
        equation=sp.Eq(shown, shift, evaluate=False),
        symbols=norm_symbols(shift),
        assumptions=(Assumption("ball of attacks", "the perturbation has an l_p norm of at most radius"),),
        defining=(),
        solution={},
        references=("hoelder1889",),
        derivation=(Step(how[dual.name]), Step("Equality holds at", sp.Eq(shown, shift, evaluate=False))),
        parts={"raised": RADIUS * NORM},
        identities=_hoelder(dual, shift),
        lemmas=(dual_norm_curvature(norm),) if dual.name == "lp" else (),
        symbol_latex={**NORM_LATEX, shown: r"\delta_i"},
    )


def _hoelder(dual: DualNorm, shift: sp.Expr) -> tuple[tuple[str, sp.Expr], ...]:
    if dual.name == "l2":
        size, inner = sp.symbols("delta_norm inner", real=True)  # |delta| and delta'w
        apart = size**2 - 2 * (inner / NORM**2) * inner + (inner / NORM**2) ** 2 * NORM**2  # |delta - (inner/N^2) w|^2
        return (
            ("|delta|^2 N^2 - (delta'w)^2 = N^2 |delta - (delta'w/N^2) w|^2, not negative",
             size**2 * NORM**2 - inner**2 - NORM**2 * apart),
            ("the shift is on the ball", (RADIUS / NORM) ** 2 * NORM**2 - RADIUS**2),
            ("it raises w'x by radius*N", RADIUS / NORM * NORM**2 - RADIUS * NORM),
        )  # fmt: skip
    step = sp.Symbol("delta_k", real=True)
    weight, sign, largest = sp.Symbol("w_k", real=True), sp.Symbol("sign_k", real=True), sp.Symbol("top", positive=True)
    if dual.name == "linf":
        left = RADIUS * sign * weight - step * weight
        return (
            *at_signs("radius |w_k| - delta_k w_k = |w_k| (radius - sign_k delta_k), not negative",
                      left - sign * weight * (RADIUS - sign * step), sign),
            *at_signs("the shift is on the ball", (RADIUS * sign) ** 2 - RADIUS**2, sign),
            *at_signs("it adds radius |w_k|", RADIUS * sign * weight - RADIUS * (sign * weight), sign),
        )  # fmt: skip
    if dual.name == "l1":
        size = sp.Symbol("abs_delta_k", nonnegative=True)
        less = sp.Symbol("abs_w_k", nonnegative=True)
        return (
            *at_signs("|d_k| top - d_k w_k = |d_k| (top - |w_k|) + |d_k| |w_k| (1 - sign), not negative",
                      size * largest - sign * size * less
                      - (size * (largest - less) + size * less * (1 - sign)), sign),
            *at_signs("the shift raises w'x by radius*top", RADIUS * sign * (sign * largest) - RADIUS * largest, sign),
        )  # fmt: skip
    q = dual.dual
    p = q / (q - 1)
    low, high = sp.symbols("l L", real=True)  # log|w_k| and log N
    a, a_p = sp.symbols("a a_p", positive=True)  # |delta_k|/radius and its power p
    b, b_q = sp.symbols("b b_q", positive=True)  # |w_k|/N and its power q
    along = {a: sp.Integer(1), a_p: p * a_p / a}
    slope = derive(a_p / p + b_q / q - a * b, along)  # of Young's gap
    return (
        ("Young: the gap a^p/p + b^q/q - a b has the slope a^(p-1) - b", slope - (a_p / a - b)),
        ("which rises with a, by (p-1) a^(p-2)", derive(slope, along) - (p - 1) * a_p / a**2),
        ("it is 0 at a = b^(q-1), where a^(p-1) = b", (p - 1) * (q - 1) - 1),
        ("there a^p = b^q", p * (q - 1) - q),
        ("and the gap is 0", b_q / p + b_q / q - (b_q / b) * b),
        ("over all weights Young's bounds add up to 1/p + 1/q = 1", 1 / p + 1 / q - 1),
        ("the shift is on the ball: |shift_k|^p = radius^p |w_k|^q/N^q, which add up to radius^p",
         p * (q - 1) * (low - high) - (q * low - q * high)),
        ("it is radius u, and u'w = N", shift - RADIUS * dual.gradient[0]),
    )  # fmt: skip
