r"""Minibatches of Gaussian examples: the stationary law in closed form, with its scalar trace equation.

Least squares on fresh examples x ~ N(0, H) with label noise of variance :math:`\sigma^2`. By Isserlis,
:math:`\mathrm{E}[x x^\top M x x^\top] = 2 H M H + \mathrm{tr}(HM) H` for symmetric M, so that a batch of B gives noise
with the covariance :math:`(H M H + \mathrm{tr}(HM) H + \sigma^2 H)/B`, M being the second moment of the point of the
gradient about the optimum. With f_i the additive stationary variance of that point for a unit of noise,

.. math::

    c_i = \frac{h_i}{B}\big(\sigma^2 + h_i M_i + T\big), \quad M_i = f_i c_i, \quad T = \sum_j h_j M_j
    \quad\Longrightarrow\quad
    c_i = \frac{\sigma^2 h_i}{(B - f_i h_i^2)(1 - U)}, \quad U = \sum_j \frac{f_j h_j^2}{B - f_j h_j^2} .

Noise of the form :math:`(\tau_1 \mathrm{tr}(HM) H - \tau_2 H M H + \sigma^2 H)/B` ("spectrally expressible") is solved
in the same way; Gaussian data is :math:`\tau_1 = 1, \tau_2 = -1`. Weight decay moves the mean from the optimum, and
what that adds is part of the formula.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from ..errors import InvalidRuleError
from ._exact import present
from .assumptions import GAUSSIAN_DATA, INDEPENDENT_BATCHES, Assumption, domains, stable
from .formula import Formula, Step
from .gaussian_moments import gaussian_fourth_moment
from .minibatch import (
    BATCH_SIZE,
    MEAN_SQUARE,
    S_II,
    gradient_call,
    mean_displacement,
    minibatch_second_moment,
    rule_latex,
    unit_kernels,
    where_decay_pulls,
)
from .recursion import as_optimizer
from .stability import stability
from .stationary import C_IJ, H_I, H_J, W_STAR, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = ["additive_minibatch_limit", "gaussian_minibatch_covariance", "gaussian_minibatch_second_moment",
           "spectrally_expressible_covariance"]  # fmt: skip

LABEL_NOISE = sp.Symbol("label_noise", nonnegative=True)
LOAD = sp.Symbol("U", nonnegative=True)
DISPLACED = sp.Symbol("V", nonnegative=True)
TAU = sp.symbols("tau1 tau2", real=True)
GAUSSIAN = (sp.Integer(1), sp.Integer(-1))
W_STAR_J = sp.Symbol("w_star_j", real=True)


def gaussian_minibatch_second_moment(rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None) -> Formula:
    r"""Derive the second moments after one step on a Gaussian minibatch from those before it, at any distance.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Calls its gradient once a step. With weight decay the optimum has to be the origin.
    slots : pair of str

    Returns
    -------
    Formula
        `minibatch_second_moment` with what Isserlis says of the examples. ``delta_ij`` is 1 for i = j, else 0; ``T`` is
        the sum of h_j M_jj over all directions, M being the second moment of the point of the gradient. Moments are
        about the optimum; there are no cross terms, because labels err independently of the inputs.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step, or has no such slot.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(gaussian_minibatch_second_moment(sgd).parts["noise"])
    lr**2*(delta_ij*h_i*(T + label_noise**2) + h_i*h_j*moment_w_w)/batch_size
    """
    optimizer = as_optimizer(rule)
    slots = optimizer.pair(slots)
    step = minibatch_second_moment(optimizer, slots)
    curvature, gradient, cross, cross_t = (
        step.symbols[r] for r in ("curvature_ij", "gradient_ij", "cross_ij", "cross_ji")
    )
    same, total = sp.Symbol("delta_ij", nonnegative=True), sp.Symbol("T", nonnegative=True)
    call, names = gradient_call(optimizer), optimizer.rule.slots
    before = sp.Matrix(len(names), len(names), lambda a, b: step.symbols[f"moment_{names[a]}_{names[b]}"])
    seen = (call.point * before * call.point.T)[0]
    examples = {
        curvature: 2 * H_I * H_J * seen + same * H_I * total,
        gradient: same * H_I * LABEL_NOISE**2,
        cross: sp.Integer(0),
        cross_t: sp.Integer(0),
    }
    drive = (call.gain * call.gain.T)[names.index(slots[0]), names.index(slots[1])]
    noise = sp.factor(drive) * (H_I * H_J * seen + same * H_I * (LABEL_NOISE**2 + total)) / BATCH_SIZE
    expression = step.parts["propagated"] + noise
    own = {"delta_ij": same, "T": total, "label_noise": LABEL_NOISE}
    dropped = ("curvature_ij", "gradient_ij", "cross_ij", "cross_ji")
    return replace(
        step,
        id=step.id.replace("minibatch_second_moment", "gaussian_minibatch_second_moment").split("[")[0],
        equation=sp.Eq(step.equation.lhs, expression, evaluate=False),
        symbols={**{r: s for r, s in step.symbols.items() if r not in dropped}, **own,
                 **optimizer.symbols},
        assumptions=(GAUSSIAN_DATA, INDEPENDENT_BATCHES, *where_decay_pulls(optimizer), *domains(optimizer)),
        defining=tuple(e.subs(examples, simultaneous=True) for e in step.defining),
        solution={s: v.subs(examples, simultaneous=True) for s, v in step.solution.items()},
        references=("isserlis1918", *optimizer.rule.references),
        derivation=(
            *step.derivation,
            Step("For Gaussian examples the mean of H_n M H_n is 2 H M H + tr(HM) H, and that of g_n g_n' is "
                 "label_noise^2 H.", sp.Eq(step.equation.lhs, expression, evaluate=False)),
        ),
        parts={"propagated": step.parts["propagated"], "noise": noise},
        lemmas=(step, gaussian_fourth_moment()),
        symbol_latex={**step.symbol_latex, LABEL_NOISE: r"\sigma", same: r"\delta_{ij}"},
    )  # fmt: skip


def gaussian_minibatch_covariance(
    rule: UpdateRule | Optimizer,
    slots: tuple[str, str] | None = None,
    *,
    eigenvalues: Sequence[Any] | None = None,
) -> Formula:
    r"""Derive the stationary covariance under minibatches of Gaussian examples, exactly, for any number of directions.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Calls its gradient once a step: every shipped rule but sam.
    slots : pair of str
    eigenvalues : sequence of numbers or expressions, optional
        All eigenvalues of the data covariance, which is the Hessian. Then U is written out in ``where``; otherwise it
        is a symbol of the formula, the sum of `mean_square_share` over all directions.

    Returns
    -------
    Formula
        The variance along h_i; ``label_noise`` is a standard deviation. Covariances of different directions are 0
        unless weight decay moves the mean; then the part ``off_diagonal`` is theirs, and ``V`` is the sum over
        directions of the part ``displaced``.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step.

    References
    ----------
    ziyin2022strength, Theorem 2 (momentum SGD)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(gaussian_minibatch_covariance(sgd))
    Sigma_ii = label_noise**2*lr/((1 - U)*(2*batch_size - h_i*lr*(batch_size + 1)))
    >>> two = gaussian_minibatch_covariance(sgd, eigenvalues=(1, 2)).specialise(batch_size=1, lr=sp.Rational(1, 10))
    >>> two.specialise(h_i=1, label_noise=1).explicit()
    4/59
    """
    return _with_eigenvalues(_derived(rule, slots, GAUSSIAN), eigenvalues)


def spectrally_expressible_covariance(
    rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None, *, eigenvalues: Sequence[Any] | None = None
) -> Formula:
    r"""Derive the stationary covariance for noise :math:`(\tau_1 \mathrm{tr}(HM)H - \tau_2 HMH + \sigma^2 H)/B`.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    slots : pair of str
    eigenvalues : sequence of numbers or expressions, optional

    Returns
    -------
    Formula
        As `gaussian_minibatch_covariance`, which is its case ``tau1`` = 1, ``tau2`` = -1. Exact for noise of this form;
        for a finite data set the form itself is an approximation in general.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step.

    References
    ----------
    velikanov2023

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> law = spectrally_expressible_covariance(sgd)
    >>> print(law.specialise(tau1=0, tau2=0, U=0))
    Sigma_ii = label_noise**2*lr/(batch_size*(-h_i*lr + 2))
    """
    return _with_eigenvalues(_derived(rule, slots, TAU), eigenvalues)


@dataclass(frozen=True)
class Direction:
    """What one direction contributes: its kernels, displacement, share of U and of V."""

    kernel: sp.Expr
    seen: sp.Expr
    displacement: sp.Expr
    share: sp.Expr
    displaced: sp.Expr


@functools.lru_cache(maxsize=64)
def direction(optimizer: Optimizer, slots: tuple[str, str], tau: tuple[sp.Expr, sp.Expr] = GAUSSIAN) -> Direction:
    """Return the quantities of one direction under spectrally expressible noise."""
    kernel, seen = (present(k.subs(H_J, H_I), (H_I,)) for k in unit_kernels(optimizer, slots))
    gap = mean_displacement(optimizer)
    room = BATCH_SIZE + tau[1] * seen * H_I**2
    share = present(tau[0] * seen * H_I**2 / room, (H_I,)) if tau[0] != 0 else sp.Integer(0)
    displaced = sp.Integer(0) if gap == 0 else present(tau[0] * BATCH_SIZE * H_I * gap**2 / room, (H_I,))
    return Direction(kernel, seen, gap, share, displaced)


def _derived(rule: UpdateRule | Optimizer, slots: tuple[str, str] | None, tau: tuple[sp.Expr, sp.Expr]) -> Formula:
    optimizer = as_optimizer(rule)
    return _law(optimizer, optimizer.pair(slots), tau)


@functools.lru_cache(maxsize=64)
def _law(optimizer: Optimizer, slots: tuple[str, str], tau: tuple[sp.Expr, sp.Expr]) -> Formula:
    one = direction(optimizer, slots, tau)
    moved = one.displacement != 0
    shift = DISPLACED if moved else sp.Integer(0)
    noise, total = sp.Symbol("c_i", nonnegative=True), sp.Symbol("T", nonnegative=True)  # total: tau1 tr(HM)
    gap = one.displacement
    room = BATCH_SIZE + tau[1] * one.seen * H_I**2
    level = (LABEL_NOISE**2 + shift) / (1 - LOAD)  # sigma^2 + T
    drawn = H_I * (level - tau[1] * H_I * gap**2) / room
    solution = {noise: drawn, total: level - LABEL_NOISE**2, S_II: one.kernel * drawn}
    expression = one.kernel * drawn if moved else present(one.kernel * drawn * (1 - LOAD), (H_I,)) / (1 - LOAD)
    balance = sp.Eq(
        noise,
        H_I * (LABEL_NOISE**2 + total - tau[1] * H_I * (one.seen * noise + gap**2)) / BATCH_SIZE,
        evaluate=False,
    )
    trace = sp.Eq(total, (LABEL_NOISE**2 + total) * LOAD + shift, evaluate=False)
    summand = tau[0] * H_I * (one.seen * noise + gap**2) - (LABEL_NOISE**2 + total) * one.share - one.displaced
    conditions = stability(optimizer)
    gaussian = tau == GAUSSIAN
    parts = {"share": one.share}
    identities: tuple[tuple[str, sp.Expr], ...] = ()
    if moved:
        mixed, identities = _off_diagonal(optimizer, slots, tau, gap)
        parts |= {"displaced": one.displaced, "off_diagonal": mixed}
    name = "gaussian_minibatch_covariance" if gaussian else "spectrally_expressible_covariance"
    data = GAUSSIAN_DATA if gaussian else SPECTRALLY_EXPRESSIBLE
    own = {"h_i": H_I, "label_noise": LABEL_NOISE, "batch_size": BATCH_SIZE, "U": LOAD}
    own |= {"V": DISPLACED, "w_star": W_STAR} if moved else {}
    own |= {} if gaussian else {"tau1": TAU[0], "tau2": TAU[1]}
    return Formula(
        id=f"{optimizer.rule.name}.{name}" + optimizer.tag(slots),
        equation=sp.Eq(S_II, expression, evaluate=False),
        symbols={**own, **optimizer.symbols},
        assumptions=(
            data,
            INDEPENDENT_BATCHES,
            stable(tuple(c.subs(conditions.h, H_I) for c in conditions.conditions)),
            replace(MEAN_SQUARE, conditions=(LOAD < 1, room > 0)),
            *domains(optimizer),
        ),
        defining=(balance, trace, sp.Eq(S_II, one.kernel * noise, evaluate=False), sp.Eq(summand, 0, evaluate=False)),
        solution=solution,
        references=(("ziyin2022strength, Theorem 2, Eq. (6) for momentum SGD", "isserlis1918") if gaussian
                    else ("velikanov2023",)) + optimizer.rule.references,
        derivation=(
            Step("Noise of variance c_i leads to the additive law with that c_i."),
            Step("At that law the noise has the variance, with T for what all directions add,", balance),
            Step("Sum h_j M_j over the directions: U and V collect their shares.", trace),
            Step("Solve the scalar equation for T, then for each direction.", sp.Eq(S_II, expression, evaluate=False)),
        ),
        parts=parts,
        identities=identities,
        lemmas=(stationary_covariance(optimizer, slots), *((gaussian_fourth_moment(),) if gaussian else ())),
        symbol_latex={**rule_latex(optimizer), S_II: r"\Sigma_{ii}", LABEL_NOISE: r"\sigma", W_STAR: r"w^{*}_i",
                      noise: "c_i", TAU[0]: r"\tau_1", TAU[1]: r"\tau_2"},
    )  # fmt: skip


SPECTRALLY_EXPRESSIBLE = Assumption(
    "spectrally expressible noise", "one step's noise has the covariance (tau1 tr(HM) H - tau2 HMH + label_noise^2 H)/B"
)


def _off_diagonal(
    optimizer: Optimizer, slots: tuple[str, str], tau: tuple[sp.Expr, sp.Expr], gap: sp.Expr
) -> tuple[sp.Expr, tuple[tuple[str, sp.Expr], ...]]:
    """Return the covariance of two directions, which only a displaced mean brings about, and what proves it."""
    kernel, seen = unit_kernels(optimizer, slots)
    gaps = gap * gap.subs({H_I: H_J, W_STAR: W_STAR_J}, simultaneous=True)
    drawn = -tau[1] * H_I * H_J * gaps / (BATCH_SIZE + tau[1] * seen * H_I * H_J)
    balance = BATCH_SIZE * drawn + tau[1] * H_I * H_J * (seen * drawn + gaps)
    return present(kernel * drawn, (H_I, H_J)), (("c_ij B = -tau2 h_i h_j M_ij, i other than j", balance),)


def _with_eigenvalues(formula: Formula, eigenvalues: Sequence[Any] | None) -> Formula:
    if eigenvalues is None:
        return formula
    values = [sp.nsimplify(h, rational=True) if isinstance(h, float) else sp.sympify(h) for h in eigenvalues]
    share = formula.parts["share"]
    added = sorted(set().union(*(h.free_symbols for h in values)), key=str)
    symbols = {role: s for role, s in formula.symbols.items() if s != LOAD}
    return replace(
        formula,
        symbols={**symbols, **{s.name: s for s in added}},
        where={LOAD: sp.Add(*(share.subs(H_I, h) for h in values))},
        derivation=(*formula.derivation, Step(f"Sum the shares of {len(values)} directions.")),
    )


def additive_minibatch_limit(rule: UpdateRule | Optimizer) -> Formula:
    """State the additive law with the noise at the optimum: what large batches tend to, and how far off it is.

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula
        An approximation of `gaussian_minibatch_covariance`. Its relative error falls like 1/batch_size (U does) and is
        negative: additive noise underestimates.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step, or weight decay moves its mean.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> additive = additive_minibatch_limit(sgd)
    >>> print(additive)
    Sigma_ii ~ label_noise**2*lr/(batch_size*(-h_i*lr + 2))
    >>> share = additive.exact.parts["share"]
    >>> one_direction = additive.specialise(U=share)
    >>> one_direction.relative_error
    -2*h_i*lr/(batch_size*(-h_i*lr + 2))
    """
    optimizer = as_optimizer(rule)
    exact = gaussian_minibatch_covariance(optimizer)
    if DISPLACED in exact.symbols.values():
        raise InvalidRuleError(f"{optimizer!r} has a stationary mean that is not the optimum; bind weight_decay=0.")
    law = stationary_covariance(optimizer).specialise(h_j="h_i")
    drawn = LABEL_NOISE**2 * H_I / BATCH_SIZE
    expression = present(law.expression.subs(C_IJ, drawn), (H_I,))
    noise = sp.Symbol("c_i", nonnegative=True)
    return replace(
        exact,
        id=f"{optimizer.rule.name}.additive_minibatch_limit",
        equation=sp.Eq(S_II, expression, evaluate=False),
        defining=(
            sp.Eq(noise, drawn, evaluate=False),
            sp.Eq(S_II, law.expression.subs(C_IJ, noise), evaluate=False),
        ),
        solution={noise: drawn, S_II: expression},
        assumptions=(*exact.assumptions, Assumption("large batches", "the noise is that at the optimum")),
        derivation=(Step("Take the noise at the optimum, label_noise^2 h_i/B, for the noise everywhere."),),
        kind="approximation",
        exact=exact,
        references=optimizer.rule.references,
    )
