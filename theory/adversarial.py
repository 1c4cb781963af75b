r"""Adversarial losses of linear models in closed form: value, gradient, Hessian and gradient noise of one example.

A linear model under an l_p attack of a given radius loses what its dual norm N = |w|_q allows (`worst_case_shift`):

.. math::

    \tfrac12\big(|r| + \epsilon N\big)^2, \quad r = y - x^\top w; \qquad
    \log\big(1 + e^{-(m - \epsilon N)}\big), \quad \max(0,\, 1 - (m - \epsilon N)), \quad m = y\,x^\top w .

All three are one: with the sign tau = sgn(r) or y, the attacked example is :math:`c = \tau x - \epsilon u`, u the
gradient of N, the loss gradient is :math:`-\rho\,c` for a pull rho >= 0, and away from the kinks the Hessian is
:math:`\kappa\,cc^\top + \rho\,\epsilon K` with K the Hessian of N. For linf K = 0 and u is constant while no sign
changes: inside such a cell squared loss is ordinary least squares with shifted features. What happens where residuals
change sign is not in any of these Hessians; `robust_kink` has it.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy as sp

from ._attacked import (
    ABS_R,
    ACTIVE,
    C_AB,
    G_I,
    H_IJ,
    LABEL,
    LATEX,
    MARGIN,
    PULL,
    SIGN,
    VALUE,
    X_I,
    X_J,
    Loss,
    attack,
    attacked_loss,
    named,
    norm_key,
)
from .assumptions import Assumption
from .dual_norm import (
    K_IJ,
    NORM,
    RADIUS,
    U_I,
    U_J,
    at_signs,
    derive,
    dual_norm,
    dual_norm_curvature,
    norm_symbols,
    worst_case_shift,
)
from .formula import Formula, Step
from .minibatch import NUM_EXAMPLES, minibatch_noise

__all__ = [
    "adversarial_gradient",
    "adversarial_hessian",
    "adversarial_loss",
    "adversarial_noise",
    "shifted_least_squares",
]

def adversarial_loss(loss: Loss = "squared", norm: Any = 2) -> Formula:
    r"""State the loss of one example under the worst perturbation of an l_p ball, and prove that it is the worst.

    Parameters
    ----------
    loss : {"squared", "logistic", "hinge"}
    norm : 2, inf, number p >= 1, or "p"
        The attack's, as NumPy's ``ord``.

    Returns
    -------
    Formula
        In the clean residual or margin, ``radius`` and ``norm_w``, the dual norm of the weights. With
        `worst_case_shift` it is proved that a perturbation can shift x'w by any amount of at most radius*norm_w; here,
        that the loss is then largest at one end. For squared loss what is missing for a shift s is
        (radius*norm_w + sgn(r) s)(2|r| + radius*norm_w - sgn(r) s)/2: no factor is negative.

    Raises
    ------
    InvalidProblemError
        If loss or norm is none of those.

    References
    ----------
    javanmard2020 (squared), goodfellow2015 (logistic), xu2009robustness (hinge)

    Examples
    --------
    >>> print(adversarial_loss("squared", 2))
    loss = (abs_residual + norm_w*radius)**2/2
    >>> adversarial_loss("squared", 2).specialise(radius=0).expression
    abs_residual**2/2
    >>> print(adversarial_loss("logistic", float("inf")))
    loss = log(exp(-margin + norm_w*radius) + 1)
    """
    return _value(loss, norm_key(norm))


def adversarial_gradient(loss: Loss = "squared", norm: Any = 2) -> Formula:
    r"""Derive the gradient :math:`-\rho\,(\tau x_i - \epsilon u_i)` of one example's adversarial loss.

    Parameters
    ----------
    loss : {"squared", "logistic", "hinge"}
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        u_i, the gradient of the dual norm, is given in ``where``, as is the pull of the logistic loss.

    Raises
    ------
    InvalidProblemError
        If loss or norm is none of those.

    Examples
    --------
    >>> print(adversarial_gradient("squared"))
    g_i = (abs_residual + norm_w*radius)*(radius*u_i - sign*x_i)
    >>> adversarial_gradient("squared").prove()
    <Proof of adversarial_gradient(squared, l2): 14 claims hold exactly>
    """
    return _gradient(loss, norm_key(norm))


def adversarial_hessian(loss: Loss = "squared", norm: Any = 2) -> Formula:
    r"""Derive the Hessian of one example's adversarial loss, away from its kinks.

    Parameters
    ----------
    loss : {"squared", "logistic", "hinge"}
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        Rank one plus the curvature of the dual norm, ``K_ij`` in ``where``; that is 0 for linf. This is what automatic
        differentiation gives. A mean of these Hessians over data misses the curvature of the kink (`robust_kink`).

    Raises
    ------
    InvalidProblemError
        If loss or norm is none of those.

    Examples
    --------
    >>> adversarial_hessian("squared", float("inf")).explicit()
    (-radius*sign_w_i + sign*x_i)*(-radius*sign_w_j + sign*x_j)
    >>> adversarial_hessian("squared", 2).prove()
    <Proof of adversarial_hessian(squared, l2): 22 claims hold exactly>
    """
    return _hessian(loss, norm_key(norm))


def adversarial_noise(loss: Loss = "squared", norm: Any = 2, *, replacement: bool = True) -> Formula:
    r"""Derive the covariance of a batch's mean adversarial gradient, in moments of the clean data.

    Parameters
    ----------
    loss : {"squared", "logistic", "hinge"}
    norm : 2, inf, number p >= 1, or "p"
    replacement : bool
        Whether an example may come twice in one batch.

    Returns
    -------
    Formula
        With means over the examples: ``M_ij`` of rho^2 x_i x_j, ``k_i`` of tau rho^2 x_i, ``m2`` of rho^2, and ``g_i``
        the mean gradient (0 at the optimum). The attack enters through u, which is the same for all examples, and
        through the pulls rho.

    Raises
    ------
    InvalidProblemError
        If loss or norm is none of those.

    Examples
    --------
    >>> print(adversarial_noise("squared").specialise(radius=0, g_i=0))
    c_ij = M_ij/batch_size
    """
    return _noise(loss, norm_key(norm), replacement)


def shifted_least_squares() -> Formula:
    r"""Prove that the linf attack on least squares is, inside a cell of constant signs, least squares once more.

    Returns
    -------
    Formula
        The shifted feature :math:`z_i = x_i - \epsilon\,\mathrm{sgn}(r)\,\mathrm{sgn}(w_i)`; with it and the same
        label, loss, gradient and Hessian of the example are those of ordinary least squares. The cell ends where a
        residual or a weight changes its sign. Within it the law of finite data under real minibatches is exact
        (`finite_data_covariance`, `minibatch_second_moment`).

    Examples
    --------
    >>> print(shifted_least_squares())
    z_i = -radius*sign*sign_w_i + x_i
    >>> shifted_least_squares().prove()
    <Proof of shifted_least_squares: 37 claims hold exactly>
    """
    return _cell()


@functools.lru_cache(maxsize=64)
def _value(loss: Loss, norm: Any) -> Formula:
    one = attacked_loss(loss)
    symbols = norm_symbols(one.value)
    end, shift = RADIUS * NORM, sp.Symbol("shift", real=True)  # of x'w
    if loss == "squared":
        missing = (end + SIGN * shift) * (2 * ABS_R + end - SIGN * shift) / 2
        claims = (
            *at_signs("what a shift leaves to the worst case has no negative factor",
                      one.value - (SIGN * ABS_R - shift) ** 2 / 2 - missing, SIGN),
            *at_signs("the worst case is attained", one.value - (SIGN * ABS_R - (-SIGN * end)) ** 2 / 2, SIGN),
            ("at radius 0 it is the ordinary loss", one.value.subs(RADIUS, 0) - ABS_R**2 / 2),
        )  # fmt: skip
        step = Step("(|r| + eps N)^2 - (r - s)^2 is a product of two factors, for |s| <= eps N none negative.")
    else:
        odds = sp.Symbol("odds", positive=True)  # exp(-margin) of the attacked example
        own = sp.Symbol("m", real=True)
        raw = sp.log(1 + sp.exp(-own)) if loss == "logistic" else ACTIVE * (1 - own)
        slope = sp.diff(raw, own).subs(sp.exp(-own), odds)
        falls = -odds / (1 + odds) if loss == "logistic" else -ACTIVE
        claims = (
            ("the loss falls with the margin", slope - falls),
            *at_signs("the worst margin is attained", LABEL * (-LABEL * end) + end, LABEL),
            ("at radius 0 it is the ordinary loss",
             (one.value - raw.subs(own, MARGIN)).subs(RADIUS, 0)),
        )  # fmt: skip
        step = Step("The loss falls with the margin, which an attack lowers by at most eps N.")
    return Formula(
        id=named("adversarial_loss", norm, loss),
        equation=sp.Eq(VALUE, one.value, evaluate=False),
        symbols=symbols,
        assumptions=(attack(norm), one.assumption),
        defining=(),
        solution={},
        references=(one.reference, "hoelder1889"),
        derivation=(Step("By Hoelder a perturbation shifts x'w by at most eps N, by any such amount."), step),
        identities=claims,
        lemmas=(worst_case_shift(norm),),
        symbol_latex=LATEX,
    )


@functools.lru_cache(maxsize=64)
def _gradient(loss: Loss, norm: Any) -> Formula:
    one, dual = attacked_loss(loss), dual_norm(norm)
    expression = one.pull * (RADIUS * U_I - one.sign * X_I)
    where = {**dict(one.where), U_I: dual.gradient[0]}
    derived = derive(one.value, one.along_j).subs({X_J: X_I, U_J: U_I}, simultaneous=True)
    odds = sp.Symbol("odds", positive=True)  # exp(attacked margin): the pull is 1/(1 + odds)
    if loss == "logistic":
        inverse = sp.exp(-MARGIN + RADIUS * NORM)
        derived = derived.subs(inverse, 1 / odds)
    ordinary = derive(one.value.subs(RADIUS, 0), one.along_j).subs(X_J, X_I).subs(sp.exp(-MARGIN), 1 / odds)
    claims = [("it is the derivative of the loss", derived - expression.subs(PULL, 1 / (1 + odds)))]
    claims.append(("at radius 0 it is that of the ordinary loss",
                   ordinary - expression.subs(RADIUS, 0).subs(PULL, 1 / (1 + odds))))  # fmt: skip
    return Formula(
        id=named("adversarial_gradient", norm, loss),
        equation=sp.Eq(G_I, expression, evaluate=False),
        symbols=norm_symbols(_explicit(expression, where)),
        assumptions=(attack(norm), one.assumption, dual.assumption),
        defining=(),
        solution={},
        references=(one.reference,),
        derivation=(
            Step("Differentiate the loss; N has the gradient u, x'w the gradient x."),
            Step("Collect the attacked example tau x - eps u.", sp.Eq(G_I, expression, evaluate=False)),
        ),
        where=where,
        parts={"pull": one.pull, "attacked example": one.moved(X_I, U_I)},
        identities=tuple(claims),
        lemmas=(_value(loss, norm), dual_norm_curvature(norm)),
        symbol_latex=LATEX,
    )


@functools.lru_cache(maxsize=64)
def _hessian(loss: Loss, norm: Any) -> Formula:
    one, dual = attacked_loss(loss), dual_norm(norm)
    rank_one = one.curvature * one.moved(X_I, U_I) * one.moved(X_J, U_J)
    expression = rank_one + one.pull * RADIUS * K_IJ
    derived = derive(-one.pull * one.moved(X_I, U_I), one.along_j)
    claims = [*at_signs("it is the derivative of the gradient", derived - expression, one.sign)]
    claims += at_signs("at radius 0 it is that of the ordinary loss",
                       (expression - one.curvature * X_I * X_J).subs(RADIUS, 0), one.sign)  # fmt: skip
    if loss == "logistic":
        odds = sp.Symbol("odds", positive=True)
        pull = 1 / (1 + odds)  # d odds = odds d(margin), and the attacked margin has the gradient y x - radius u
        claims.append(("the pull falls like pull*(1 - pull)", sp.diff(pull, odds) * odds + pull * (1 - pull)))
    where = {**dict(one.where), **dual.where}
    return Formula(
        id=named("adversarial_hessian", norm, loss),
        equation=sp.Eq(H_IJ, expression, evaluate=False),
        symbols=norm_symbols(_explicit(expression, where)),
        assumptions=(attack(norm), one.assumption, dual.assumption),
        defining=(),
        solution={},
        references=(one.reference,),
        derivation=(
            Step("Differentiate the gradient with tau held: away from the kinks it is constant."),
            Step("The pull changes along the attacked example, u along K.", sp.Eq(H_IJ, expression, evaluate=False)),
        ),
        where=where,
        parts={"rank_one": rank_one, "norm": one.pull * RADIUS * K_IJ},
        identities=tuple(claims),
        lemmas=(_gradient(loss, norm), dual_norm_curvature(norm)),
        symbol_latex=LATEX,
    )


@functools.lru_cache(maxsize=64)
def _noise(loss: Loss, norm: Any, replacement: bool) -> Formula:
    one, dual = attacked_loss(loss), dual_norm(norm)
    second, m2 = sp.Symbol("M_ij", real=True), sp.Symbol("m2", nonnegative=True)
    k_i, k_j, g_j = sp.symbols("k_i k_j g_j", real=True)
    batch = minibatch_noise(replacement=replacement)
    factor = batch.parts["factor"]
    square = second - RADIUS * (k_i * U_J + k_j * U_I) + RADIUS**2 * m2 * U_I * U_J
    expression = factor * (square - G_I * g_j)
    rho = sp.Symbol("rho", nonnegative=True)
    example = (-rho * one.moved(X_I, U_I)) * (-rho * one.moved(X_J, U_J))
    of_one = {second: rho**2 * X_I * X_J, k_i: one.sign * rho**2 * X_I, k_j: one.sign * rho**2 * X_J, m2: rho**2}
    claims = [*at_signs("for one example; the means follow term by term", example - square.subs(of_one), one.sign)]
    total = NUM_EXAMPLES
    sums = {"sum_ab": total * square, "sum_a": total * G_I, "sum_b": total * g_j}
    population = batch.parts["population"].subs({batch.symbols[role]: value for role, value in sums.items()})
    claims.append(("the batch factor times the covariance of the examples", factor * population - expression))
    where = {U_I: dual.gradient[0], U_J: dual.gradient[1]}
    how = "with" if replacement else "without"
    return Formula(
        id=named("adversarial_noise", norm, loss) + ("" if replacement else "[without replacement]"),
        equation=sp.Eq(C_AB, expression, evaluate=False),
        symbols=norm_symbols(_explicit(expression, where)),
        assumptions=(attack(norm), one.assumption, dual.assumption,
                     Assumption("uniform batches", f"B of the N examples are drawn uniformly {how} replacement")),
        defining=(),
        solution={},
        references=(one.reference, "cochran1977, Chapter 2"),
        derivation=(
            Step("An example's gradient is -rho (tau x - eps u), with the same u for all examples."),
            Step("Multiply out and average.", sp.Eq(C_AB, expression, evaluate=False)),
        ),
        where=where,
        parts={"factor": factor, "second_moment": square},
        identities=tuple(claims),
        lemmas=(batch, _gradient(loss, norm)),
        symbol_latex=LATEX,
    )  # fmt: skip


@functools.cache
def _cell() -> Formula:
    z_i, z_j = sp.symbols("z_i z_j", real=True)
    s_i, s_j = dual_norm(sp.oo).gradient
    y, xw, w_i, rest_x, rest_n = sp.symbols("y xw w_i rest_x rest_N", real=True)
    feature = X_I - RADIUS * SIGN * s_i
    other = X_J - RADIUS * SIGN * s_j
    one = attacked_loss("squared")
    # x'w = x_i w_i + rest and N = sgn(w_i) w_i + rest: so z'w = x'w - radius sgn(r) N, coordinate by coordinate.
    added = feature * w_i + rest_x - RADIUS * SIGN * rest_n - (X_I * w_i + rest_x)
    predicted = xw - RADIUS * SIGN * NORM
    residual = SIGN * (y - xw)  # |r|
    claims = [
        *at_signs("z'w = x'w - radius sgn(r) N", added + RADIUS * SIGN * (s_i * w_i + rest_n), SIGN, s_i),
        *at_signs("the loss is (y - z'w)^2/2", one.value.subs(ABS_R, residual) - (y - predicted) ** 2 / 2, SIGN),
        *at_signs("the gradient is -(y - z'w) z_i",
                  (-one.pull * one.moved(X_I, s_i)).subs(ABS_R, residual) + (y - predicted) * feature, SIGN, s_i),
        *at_signs("the Hessian is z_i z_j", one.moved(X_I, s_i) * one.moved(X_J, s_j) - feature * other, SIGN, s_i),
    ]  # fmt: skip
    cell = Assumption("cell", "the signs of the residual and of all weights are those given, and none is zero")
    return Formula(
        id="shifted_least_squares",
        equation=sp.Eq(z_i, feature, evaluate=False),
        symbols=norm_symbols(feature),
        assumptions=(attack(sp.oo), cell),
        defining=(),
        solution={},
        references=("javanmard2020", "xu2009robustness"),
        derivation=(
            Step("|r| + eps |w|_1 = sgn(r) (y - z'w) for these features.", sp.Eq(z_i, feature, evaluate=False)),
            Step("Inside the cell z is constant, so the loss is the quadratic (y - z'w)^2/2 exactly."),
        ),
        parts={"hessian": feature * other},
        identities=tuple(claims),
        lemmas=(_hessian("squared", sp.oo),),
        symbol_latex={**LATEX, z_i: "z_i", z_j: "z_j"},
    )


def _explicit(expression: sp.Expr, where: dict[sp.Expr, sp.Expr]) -> sp.Expr:
    for name, meaning in where.items():
        expression = expression.xreplace({name: meaning})
    return expression
