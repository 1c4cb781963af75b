r"""The robust unhinged loss: the smallest example in which robustness changes the covariance.

The unhinged loss :math:`1 - y\,x^\top w` of a linear classifier with weight decay, under an l_p attack of a given
radius, is :math:`1 - y\,x^\top w + \epsilon N(w) + \tfrac{\lambda}{2}|w|^2`. With :math:`m = \mathrm{E}[yx]` and the
l2 attack

.. math::

    w^* = \frac{(|m| - \epsilon)_+}{\lambda}\,\frac{m}{|m|}, \qquad
    h_{\mathrm{radial}} = \lambda, \quad h_\perp = \frac{\lambda|m|}{|m| - \epsilon}, \qquad C = \mathrm{Cov}(yx)/B .

The noise depends neither on the weights nor on the radius: examples differ in a term that is linear in w. All that the
radius does is to curve the loss across the weights. Under the linf attack it only moves the minimiser.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import sympy as sp

from ..errors import InvalidProblemError
from ._attacked import H_IJ, LABEL, X_I, X_J, attack, norm_key
from ._mean_pull import mean_pull
from .assumptions import Assumption, domains, stable
from .dual_norm import (
    K_IJ,
    NORM,
    NORM_LATEX,
    RADIUS,
    SAME,
    SIGN_I,
    U_I,
    U_J,
    W_I,
    at_signs,
    derive,
    dual_norm,
    dual_norm_curvature,
    norm_symbols,
    worst_case_shift,
)
from .formula import Formula, Step
from .minibatch import BATCH_SIZE, NUM_EXAMPLES, minibatch_noise, rule_latex
from .recursion import as_optimizer
from .stability import stability
from .stationary import C_IJ as DRAWN
from .stationary import H_I, H_J, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = ["unhinged_covariance", "unhinged_hessian", "unhinged_loss", "unhinged_minimiser", "unhinged_noise"]

DECAY = sp.Symbol("decay", positive=True)
MEAN_I, MEAN_J = sp.symbols("m_i m_j", real=True)
MEAN_NORM = sp.Symbol("norm_m", positive=True)
LATEX = {**NORM_LATEX, DECAY: r"\lambda", MEAN_NORM: "|m|", H_IJ: "H_{ij}", BATCH_SIZE: "B", NUM_EXAMPLES: "N"}
BELOW = Assumption("below collapse", "the radius is less than |m|, m the mean of y x", (RADIUS < MEAN_NORM,))
LABELS = Assumption("labels", "the label y is -1 or 1, and margin is y x'w")
REFERENCES = ("vanrooyen2015", "zhou2023unhinged")


@functools.cache
def unhinged_loss(norm: Any = 2) -> Formula:
    r"""State the robust unhinged loss of one example: the inner maximum in closed form, at every point.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"
        The attack's.

    Returns
    -------
    Formula
        In the clean ``margin`` y x'w, the dual norm ``norm_w`` and the Euclidean ``length`` of the weights, with weight
        decay ``decay``.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    vanrooyen2015, zhou2023unhinged (the loss; without an attack)

    Examples
    --------
    >>> print(unhinged_loss())
    loss = decay*length**2/2 - margin + norm_w*radius + 1
    """
    key = norm_key(norm)
    margin, length, shown = sp.Symbol("margin", real=True), sp.Symbol("length", nonnegative=True), sp.Symbol("loss")
    shift = sp.Symbol("shift", real=True)
    expression = 1 - margin + RADIUS * NORM + DECAY * length**2 / 2
    moved = 1 - (margin + LABEL * shift) + DECAY * length**2 / 2
    return Formula(
        id=f"unhinged_loss({dual_norm(key).name}{'' if dual_norm(key).name != 'lp' or key == 'p' else f', p = {key}'})",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols=norm_symbols(expression),
        assumptions=(attack(key), LABELS),
        defining=(),
        solution={},
        references=(*REFERENCES, "hoelder1889"),
        derivation=(Step("A perturbation shifts x'w by at most eps N: the margin falls by at most that."),),
        identities=(
            *at_signs("a shift of x'w leaves radius N + y shift, not negative",
                      expression - moved - (RADIUS * NORM + LABEL * shift), LABEL),
            *at_signs("nothing at the worst shift", expression - moved.subs(shift, -LABEL * RADIUS * NORM), LABEL),
        ),
        lemmas=(worst_case_shift(key),),
        symbol_latex=LATEX,
    )  # fmt: skip


def unhinged_minimiser(norm: Any = 2) -> Formula:
    r"""Derive the minimiser of the mean robust unhinged loss: no equation to solve, for the l2 and the linf attack.

    Parameters
    ----------
    norm : 2 or inf
        The attack's.

    Returns
    -------
    Formula
        Below the collapse radius, |m| for l2; from it on zero weights are the minimiser. For linf a soft threshold: the
        weight i is zero where |m_i| <= radius.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is neither.

    Examples
    --------
    >>> print(unhinged_minimiser())
    w_i = m_i*(norm_m - radius)/(decay*norm_m)
    >>> print(unhinged_minimiser(float("inf")))
    w_i = (m_i - radius*sign_w_i)/decay
    """
    name = _two(norm)
    if name == "l2":
        solved = (MEAN_NORM - RADIUS) * MEAN_I / (DECAY * MEAN_NORM)
        length = (MEAN_NORM - RADIUS) / DECAY
        u = W_I / length
        squares = ("its length is (|m| - radius)/decay",
                   (MEAN_NORM - RADIUS) ** 2 / (DECAY * MEAN_NORM) ** 2 * MEAN_NORM**2 - length**2)  # fmt: skip
        # At zero weights the slope along d is radius |d| - d'm >= (radius - |m|)|d|.
        size = sp.Symbol("size", positive=True)
        further: tuple[tuple[str, sp.Expr], ...] = (
            squares,
            ("at zero weights the slope along d is at least (radius - |m|)|d|, by Cauchy and Schwarz",
             (RADIUS * size - MEAN_NORM * size) - (RADIUS - MEAN_NORM) * size),
        )  # fmt: skip
        assumptions = (attack(sp.Integer(2)), BELOW)
    else:
        solved = (MEAN_I - RADIUS * SIGN_I) / DECAY
        u = SIGN_I
        further = (("|w_i| decay = |m_i| - radius: the signs of w_i and m_i agree",
                    (SIGN_I * solved * DECAY - (SIGN_I * MEAN_I - RADIUS * SIGN_I**2)).expand()),)  # fmt: skip
        assumptions = (attack(sp.oo), Assumption("active", "|m_i| > radius; sign_w_i is the sign of m_i"))
    gradient = -MEAN_I + RADIUS * u + DECAY * W_I
    return Formula(
        id=f"unhinged_minimiser({name})",
        equation=sp.Eq(W_I, solved, evaluate=False),
        symbols=norm_symbols(solved),
        assumptions=(*assumptions, LABELS),
        defining=(sp.Eq(gradient, 0, evaluate=False),),
        solution={W_I: solved},
        references=REFERENCES,
        derivation=(
            Step("The mean loss is strictly convex; its gradient is -m + eps u + decay w.", sp.Eq(gradient, 0)),
            Step("Solve.", sp.Eq(W_I, solved, evaluate=False)),
        ),
        identities=further,
        symbol_latex=LATEX,
    )


@functools.cache
def unhinged_hessian(norm: Any = 2) -> Formula:
    r"""Derive the Hessian of the mean robust unhinged loss at its minimiser, with its two eigenvalues.

    Parameters
    ----------
    norm : 2 or inf

    Returns
    -------
    Formula
        Its parts ``radial`` and ``transverse`` are the eigenvalues along the minimiser and across it. There is no kink
        in the data, so that this is also every example's Hessian.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is neither.

    Examples
    --------
    >>> print(unhinged_hessian().parts["transverse"])
    decay*norm_m/(norm_m - radius)
    >>> unhinged_hessian(float("inf")).expression
    decay*delta_ij
    """
    name = _two(norm)
    if name == "linf":
        expression, radial, transverse = DECAY * SAME, DECAY, DECAY
        claims: tuple[tuple[str, sp.Expr], ...] = (
            ("the derivative of the gradient",
             derive(RADIUS * U_I + DECAY * W_I, {U_I: sp.Integer(0), W_I: SAME}) - expression),
        )  # fmt: skip
    else:
        length = (MEAN_NORM - RADIUS) / DECAY
        radial, transverse = DECAY, DECAY * MEAN_NORM / (MEAN_NORM - RADIUS)
        across = SAME - MEAN_I * MEAN_J / MEAN_NORM**2
        expression = radial * (SAME - across) + transverse * across
        there = {K_IJ: dual_norm(2).curvature}
        u = {U_I: MEAN_I / MEAN_NORM, U_J: MEAN_J / MEAN_NORM, NORM: length}
        derived = derive(RADIUS * U_I + DECAY * W_I, {U_I: K_IJ, W_I: SAME}).subs(there).subs(u)
        # H m and H d for d'm = 0, row i: m'm = |m|^2.
        rank_one = sp.Symbol("d_i", real=True)
        claims = (
            ("the derivative of the gradient", derived - expression),
            ("H m = decay m", radial * MEAN_I * MEAN_NORM**2 / MEAN_NORM**2
             + transverse * (MEAN_I - MEAN_I * MEAN_NORM**2 / MEAN_NORM**2) - radial * MEAN_I),
            ("H d is the transverse eigenvalue times d for d across m",
             expression.subs(MEAN_I, 0).subs(SAME, 1) * rank_one - transverse * rank_one),
            ("at radius 0 both are the decay", transverse.subs(RADIUS, 0) - radial),
            ("the transverse eigenvalue grows with the radius by transverse/(|m| - radius), positive",
             sp.diff(transverse, RADIUS) - transverse / (MEAN_NORM - RADIUS)),
        )  # fmt: skip
    return Formula(
        id=f"unhinged_hessian({name})",
        equation=sp.Eq(H_IJ, expression, evaluate=False),
        symbols=norm_symbols(expression),
        assumptions=(attack(norm_key(norm)), LABELS,
                     BELOW if name == "l2" else Assumption("signs", "no weight is zero")),
        defining=(),
        solution={},
        references=REFERENCES,
        derivation=(Step("The loss is linear in w but for decay and the dual norm: H = decay I + eps K."),
                    Step("At the minimiser.", sp.Eq(H_IJ, expression, evaluate=False))),
        parts={"radial": radial, "transverse": transverse},
        identities=claims,
        lemmas=(dual_norm_curvature(norm_key(norm)), unhinged_minimiser(norm)),
        symbol_latex=LATEX,
    )  # fmt: skip


@functools.cache
def unhinged_noise(*, replacement: bool = True) -> Formula:
    """Derive the covariance of a batch's gradient: that of y x, whatever the weights, the radius and the attack.

    Parameters
    ----------
    replacement : bool
        Whether an example may come twice in one batch.

    Returns
    -------
    Formula
        In ``M_ij``, the mean over the examples of x_i x_j, and ``m_i``, ``m_j``, the means of y x. So gradient noise is
        additive: exactly, for real minibatches.

    Examples
    --------
    >>> print(unhinged_noise())
    c_ij = (M_ij - m_i*m_j)/batch_size
    """
    batch = minibatch_noise(replacement=replacement)
    factor, shown, second = batch.parts["factor"], sp.Symbol("c_ij", real=True), sp.Symbol("M_ij", real=True)
    w_j = sp.Symbol("w_j", real=True)
    common_i, common_j = RADIUS * U_I + DECAY * W_I, RADIUS * U_J + DECAY * w_j  # the same for all examples
    example = (-LABEL * X_I + common_i) * (-LABEL * X_J + common_j)
    moments = {second: X_I * X_J, MEAN_I: LABEL * X_I, MEAN_J: LABEL * X_J}
    square = second - MEAN_I * common_j - common_i * MEAN_J + common_i * common_j
    population = square - (-MEAN_I + common_i) * (-MEAN_J + common_j)
    expression = factor * (second - MEAN_I * MEAN_J)
    how = "with" if replacement else "without"
    return Formula(
        id="unhinged_noise" + ("" if replacement else "[without replacement]"),
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols=norm_symbols(expression),
        assumptions=(LABELS,
                     Assumption("uniform batches", f"B of the N examples are drawn uniformly {how} replacement")),
        defining=(),
        solution={},
        references=(*REFERENCES, "cochran1977, Chapter 2"),
        derivation=(Step("An example's gradient is -y x plus what is common to all examples."),
                    Step("The covariance does not see the latter.", sp.Eq(shown, expression, evaluate=False))),
        identities=(
            *at_signs("the second moment, for one example", example - square.subs(moments), LABEL),
            ("radius, u and decay drop out", factor * population - expression),
        ),
        lemmas=(batch,),
        symbol_latex={**LATEX, shown: "c_{ij}"},
    )  # fmt: skip


def unhinged_covariance(
    rule: UpdateRule | Optimizer, direction: Literal["radial", "transverse"] = "transverse"
) -> Formula:
    r"""Derive the stationary variance of the weights under the l2 attack, for a rule: how robustness changes it.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    direction : {"radial", "transverse"}

    Returns
    -------
    Formula
        ``noise`` is the variance of one step's gradient in the direction, the same for all radii. Along the minimiser
        the radius changes nothing. Across it the curvature rises with the radius; the part ``slope`` is the derivative
        of the variance in the curvature: for plain SGD it is negative as long as lr*h < 1, half the stable limit, and
        there the variance falls with the radius. An approximation in one respect: the dual norm is not quadratic. (For
        linf, inside a cell of constant signs, it is linear, and the law is exact.) Weight decay of the rule, beside
        that of the loss, moves the mean towards zero, where the dual norm curves more: the curvature is that at the
        mean, and the part ``pull`` is what the rule adds to the decay there.

    Raises
    ------
    InvalidProblemError
        If there is no such direction.
    InvalidRuleError
        If the rule has weight decay and calls its gradient more than once a step.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(unhinged_covariance(sgd))
    Sigma ~ lr*noise/(h*(-h*lr + 2))
    >>> unhinged_covariance(sgd).parts["slope"]
    2*lr*noise*(h*lr - 1)/(h**2*(h*lr - 2)**2)
    >>> from sgdcov.theory import sgdw
    >>> unhinged_covariance(sgdw).parts["pull"]
    weight_decay*(1 - momentum)
    """
    if direction not in ("radial", "transverse"):
        raise InvalidProblemError(f"direction must be 'radial' or 'transverse'; got {direction!r}.")
    optimizer = as_optimizer(rule)
    law = stationary_covariance(optimizer).specialise(h_j="h_i")
    h, noise = sp.Symbol("h", positive=True), sp.Symbol("noise", real=True)
    shown = sp.Symbol("Sigma", nonnegative=True)
    pull, claims = mean_pull(optimizer)
    length = (MEAN_NORM - RADIUS) / (DECAY + pull)  # of the mean weights, along m
    curvature = unhinged_hessian(2).parts[direction]
    if pull != 0 and direction == "transverse":
        curvature = DECAY + RADIUS / length
    rename = {H_I: h, H_J: h, DRAWN: noise, law.equation.lhs: shown}
    expression = law.expression.xreplace(rename)
    conditions = stability(optimizer)
    own = optimizer.symbols
    slope = sp.factor(sp.diff(expression, h))
    return Formula(
        id=f"{optimizer.rule.name}.unhinged_covariance({direction})",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"noise": noise, **norm_symbols(curvature), **own},
        assumptions=(attack(sp.Integer(2)), LABELS, BELOW, stable(tuple(c.subs(conditions.h, h) for c in
                     conditions.conditions)), Assumption("local", "the loss is quadratic where the weights are"),
                     *domains(optimizer)),
        defining=tuple(sp.Eq(e.lhs.xreplace(rename), e.rhs.xreplace(rename), evaluate=False) for e in law.defining),
        solution={s.xreplace(rename): v.xreplace(rename) for s, v in law.solution.items()},
        references=(*REFERENCES, *optimizer.rule.references),
        derivation=(Step("Weight decay of the rule: the mean is where the gradient is -pull w.", pull),
                    Step("The curvature of this direction there, and noise that the radius does not change."),
                    Step("The stationary law of the rule.", sp.Eq(shown, expression, evaluate=False))),
        kind="approximation",
        where={h: curvature},
        parts={"slope": slope, "pull": pull},
        identities=(
            *claims,
            ("the gradient at the mean is -pull w, along m", -MEAN_NORM + RADIUS + (DECAY + pull) * length),
            ("the curvature there is decay + radius K, K = 1/|w| across the weights and 0 along them",
             DECAY + (RADIUS / length if direction == "transverse" else 0) - curvature),
        ),
        lemmas=(unhinged_hessian(2), unhinged_noise()),
        symbol_latex={**rule_latex(optimizer), **LATEX, DECAY: r"\lambda_0", h: "h", noise: "c"},
    )  # fmt: skip


def _two(norm: Any) -> str:
    name = dual_norm(norm).name
    if name not in ("l2", "linf"):
        raise InvalidProblemError(f"The minimiser is explicit for the l2 and the linf attack; got norm={norm!r}.")
    return name
