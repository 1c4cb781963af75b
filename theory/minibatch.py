r"""Noise of real minibatches: the covariance of a batch mean, and the second moments it drives, as a closed recursion.

Example n has the gradient :math:`H_n(w - w^*) + g_n`. A batch mean of vectors u_n has p times their population
covariance, with :math:`p = 1/B` with replacement and :math:`p = (N-B)/(B(N-1))` without. The noise of a step is
therefore quadratic in w, and second moments about the optimum obey a closed equation: with q'z the point at which the
rule takes its gradient and M the second moment of that point,

.. math::

    Z^+ = A Z A^\top + b b^\top \otimes p\big[\overline{H_n M H_n} - H M H + \overline{g_n g_n^\top} + X + X^\top\big],
    \qquad X = \overline{H_n\, \mathrm{E}[q^\top z]\, g_n^\top}.

X vanishes once the mean has reached the optimum. This holds for every rule that calls its gradient once a step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import sympy as sp

from ..errors import InvalidRuleError
from ._exact import is_zero, present
from .assumptions import INDEPENDENT_BATCHES, QUADRATIC_EXAMPLES, Assumption, domains, stable
from .formula import Formula, Step
from .recursion import as_optimizer, recursion
from .stability import stability
from .stationary import C_IJ, H_I, H_J, W_STAR, covariance_symbol, stationary_covariance, stationary_mean
from .update_rule import Optimizer, UpdateRule

__all__ = ["finite_data_covariance", "minibatch_noise", "minibatch_second_moment"]

BATCH_SIZE = sp.Symbol("batch_size", integer=True, positive=True)
NUM_EXAMPLES = sp.Symbol("num_examples", integer=True, positive=True)
S_II = sp.Symbol("Sigma_ii", nonnegative=True)
MEAN_SQUARE = Assumption("mean-square stable", "the second moments contract as well (numerics: mean_square_stability)")
LATEX = {BATCH_SIZE: "B", NUM_EXAMPLES: "N"}


def batch_factor(*, replacement: bool) -> sp.Expr:
    """Return p: the covariance of a batch mean over the population covariance."""
    if replacement:
        return 1 / BATCH_SIZE
    return (NUM_EXAMPLES - BATCH_SIZE) / (BATCH_SIZE * (NUM_EXAMPLES - 1))


def minibatch_noise(*, replacement: bool = True) -> Formula:
    """Derive the covariance of a batch mean, between two directions a and b, for all N and B.

    Parameters
    ----------
    replacement : bool
        Whether an example may come twice in one batch.

    Returns
    -------
    Formula
        In the sums over all examples ``sum_a``, ``sum_b`` (of the components along a and b) and ``sum_ab`` (of their
        products). Its part ``factor`` is p, the part ``population`` the covariance of the examples (over N). Proved by
        counting how often an example, and a pair of them, enters a batch.

    References
    ----------
    cochran1977

    Examples
    --------
    >>> print(minibatch_noise().parts["factor"])
    1/batch_size
    >>> print(minibatch_noise(replacement=False).parts["factor"])
    (-batch_size + num_examples)/(batch_size*(num_examples - 1))
    >>> full = minibatch_noise(replacement=False).specialise(batch_size=9, num_examples=9)
    >>> full.expression
    0
    """
    size, total = BATCH_SIZE, NUM_EXAMPLES
    s_a, s_b, s_ab = sp.symbols("sum_a sum_b sum_ab", real=True)
    once, twice = sp.symbols("once twice", nonnegative=True)
    shown = sp.Symbol("c_ab", real=True)
    factor, population = batch_factor(replacement=replacement), s_ab / total - s_a * s_b / total**2
    # How often an example is drawn (once), and a given ordered pair of examples in two draws (twice).
    pairs, partners = (total**2, s_a * s_b) if replacement else (total * (total - 1), s_a * s_b - s_ab)
    defining = (
        sp.Eq(total * once, size, evaluate=False),
        sp.Eq(pairs * twice, size * (size - 1), evaluate=False),
        sp.Eq(shown, (once * s_ab + twice * partners) / size**2 - s_a * s_b / total**2, evaluate=False),
    )
    how = "with" if replacement else "without"
    return Formula(
        id=f"minibatch_noise({how} replacement)",
        equation=sp.Eq(shown, factor * population, evaluate=False),
        symbols={"batch_size": size, "num_examples": total, "sum_a": s_a, "sum_b": s_b, "sum_ab": s_ab},
        assumptions=(Assumption("uniform batches", f"B of the N examples are drawn uniformly {how} replacement",
                                () if replacement else (size <= total, total > 1)),),
        defining=defining,
        solution={once: size / total, twice: size * (size - 1) / pairs, shown: factor * population},
        references=("cochran1977, Chapter 2",),
        derivation=(
            Step("All examples are drawn equally often, B times together.", defining[0]),
            Step(f"So are the {'pairs' if replacement else 'pairs of different examples'} in two draws.", defining[1]),
            Step("The mean of products over draws, less the product of means.", defining[2]),
        ),
        parts={"factor": factor, "population": population},
        symbol_latex={**LATEX, shown: "c_{ab}", s_a: r"\Sigma a", s_b: r"\Sigma b", s_ab: r"\Sigma ab"},
    )


@dataclass(frozen=True)
class GradientCall:
    """A rule's one call of its gradient: ``z' = keep z + gain grad(point z)``.

    Attributes
    ----------
    keep : sympy.ImmutableMatrix
        A at h = 0.
    gain : sympy.ImmutableMatrix
        b.
    point : sympy.ImmutableMatrix
        q' as a row.
    """

    keep: sp.ImmutableMatrix
    gain: sp.ImmutableMatrix
    point: sp.ImmutableMatrix


def gradient_call(optimizer: Optimizer) -> GradientCall:
    """Return where and how a rule calls its gradient; refuse one that calls it at the answer of another call."""
    step = recursion(optimizer)
    slope = step.transition.diff(step.h).applyfunc(sp.cancel)
    gain = step.noise_gain
    row = next((n for n, b in enumerate(gain) if b != 0), 0)
    point = (slope.row(row) / gain[row]).applyfunc(sp.cancel)
    if gain.has(step.h) or slope.has(step.h) or not all(is_zero(e) for e in slope - gain * point):
        raise InvalidRuleError(
            f"{optimizer.rule.name} calls its gradient more than once a step on the same minibatch, so its step is "
            f"not affine in the batch mean and the moments of one batch's gradient do not determine its law. Second "
            f"moments are closed for rules that call it once; additive noise (stationary_covariance) has no such limit."
        )
    return GradientCall(step.transition.subs(step.h, 0).as_immutable(), gain, point.as_immutable())


def rule_latex(optimizer: Optimizer) -> dict[sp.Symbol, str]:
    """Return how the hyper-parameters of a rule and the symbols of a batch are typeset."""
    return {**LATEX, H_I: "h_i", H_J: "h_j", **{p.symbol: p.latex for p in optimizer.rule.hyperparameters}}


def unit_kernels(optimizer: Optimizer, slots: tuple[str, str]) -> tuple[sp.Expr, sp.Expr]:
    """Return the covariance of two slots, and of the point of the gradient, for a unit of noise at (i, j)."""
    names = optimizer.rule.slots
    law = stationary_covariance(optimizer).solution
    unit = sp.Matrix(len(names), len(names), lambda a, b: law[covariance_symbol(optimizer, names[a], names[b])] / C_IJ)
    point = gradient_call(optimizer).point
    seen = present((point * unit * point.T)[0], (H_I, H_J))
    own = stationary_covariance(optimizer, slots)
    return present(own.expression / C_IJ, (H_I, H_J)), seen


def minibatch_second_moment(
    rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None, *, replacement: bool = True
) -> Formula:
    r"""Derive the second moments after one minibatch step from those before it: the exact equation for finite data.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Calls its gradient once a step. With weight decay the optimum has to be the origin.
    slots : pair of str
        The entry that is shown; all are proved.
    replacement : bool

    Returns
    -------
    Formula
        For the directions (i, j) of two eigenvectors of the mean Hessian and moments about the optimum, which enter as
        ``moment_a_b`` (slot a along i with slot b along j). The examples enter through
        ``curvature_ij`` (mean of u_i' H_n M H_n u_j), ``gradient_ij`` (mean of g_n g_n') and ``cross_ij``,
        ``cross_ji`` (mean of u_i' H_n E[q'z] g_n' u_j and its transpose; 0 at the stationary law).

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step (sam), or has no such slot.

    Notes
    -----
    The weights of sgd start at ``moment_w_w`` = M. Published versions often drop the cross terms, which a transient
    with a mean away from the optimum needs.

    References
    ----------
    mulayoff2024exact (stationary, plain SGD)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> step = minibatch_second_moment(sgd)
    >>> print(step.parts["propagated"])
    moment_w_w*(h_i*lr - 1)*(h_j*lr - 1)
    >>> print(step.parts["noise"])
    lr**2*(cross_ij + cross_ji + curvature_ij + gradient_ij - h_i*h_j*moment_w_w)/batch_size
    """
    optimizer = as_optimizer(rule)
    names = optimizer.rule.slots
    slots = optimizer.pair(slots)
    call, transition = gradient_call(optimizer), recursion(optimizer).transition
    h = recursion(optimizer).h
    size = len(names)
    before = sp.Matrix(size, size, lambda a, b: sp.Symbol(f"moment_{names[a]}_{names[b]}", real=True))
    after = sp.Matrix(size, size, lambda a, b: sp.Symbol(f"next_{names[a]}_{names[b]}", real=True))
    curvature, gradient = sp.symbols("curvature_ij gradient_ij", real=True)
    cross, cross_t, noise = sp.symbols("cross_ij cross_ji c_ij", real=True)
    seen = (call.point * before * call.point.T)[0]
    spread = curvature - H_I * H_J * seen + gradient + cross + cross_t
    factor = batch_factor(replacement=replacement)
    moved = transition.subs(h, H_I) * before * transition.subs(h, H_J).T
    drive = call.gain * call.gain.T
    solution = {after[a, b]: moved[a, b] + factor * spread * drive[a, b] for a in range(size) for b in range(size)}
    defining = _expanded_step(call, before, after, noise)
    counted = minibatch_noise(replacement=replacement)
    # One example's vector along i is a + alpha (curvature and gradient part); sum(alpha) = 0, sum(a) = N h_i y_i.
    sums = {"sum_ab": NUM_EXAMPLES * (spread + H_I * H_J * seen), "sum_a": NUM_EXAMPLES * H_I * H_J * seen}
    batch = counted.expression.subs({counted.symbols[r]: v for r, v in sums.items()}).subs(
        counted.symbols["sum_b"], NUM_EXAMPLES
    )
    shown = names.index(slots[0]), names.index(slots[1])
    parts = {
        "propagated": sp.factor(moved[shown]),
        "noise": sp.factor(drive[shown]) * factor * spread,
    }
    equation = sp.Eq(after[shown], parts["propagated"] + parts["noise"], evaluate=False)
    how = "with" if replacement else "without"
    suffix = optimizer.tag(slots)
    return Formula(
        id=f"{optimizer.rule.name}.minibatch_second_moment{suffix}[{how} replacement]",
        equation=equation,
        symbols={
            "h_i": H_I, "h_j": H_J, "batch_size": BATCH_SIZE,
            **({} if replacement else {"num_examples": NUM_EXAMPLES}),
            **{s.name: s for s in (*before, curvature, gradient, cross, cross_t)},
            **optimizer.symbols,
        },
        assumptions=(QUADRATIC_EXAMPLES, INDEPENDENT_BATCHES, *counted.assumptions, *where_decay_pulls(optimizer),
                     *domains(optimizer)),
        defining=defining,
        solution={**solution, noise: factor * spread},
        references=("mulayoff2024exact, stationary and for plain SGD", *optimizer.rule.references),
        derivation=(
            Step("Given the state, one example's gradient along i is u_i'(H_n q'z + g_n), with the mean h_i u_i'q'z."),
            Step("The batch mean has p times the population covariance of that; average over the state.",
                 sp.Eq(noise, factor * spread, evaluate=False)),
            Step("Multiply the step along i with the step along j and average.", equation),
            Step("All pairs of directions together, as an operator on the matrix of second moments.",
                 _operator_equation(factor)),
        ),
        parts=parts,
        identities=(("the noise is that of a batch mean of a + alpha", sp.expand(batch - factor * spread)),),
        lemmas=(counted,),
        symbol_latex={
            **rule_latex(optimizer),
            **{z: _moment_latex("Z", names, n) for n, z in enumerate(before)},
            **{z: _moment_latex("Z^{+}", names, n) for n, z in enumerate(after)},
            curvature: r"[\overline{H_n M H_n}]_{ij}", gradient: r"[\overline{g_n g_n^{\top}}]_{ij}",
            cross: "X_{ij}", cross_t: "X_{ji}", noise: "c_{ij}",
        },
    )  # fmt: skip


def finite_data_covariance(
    rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None, *, replacement: bool = True
) -> Formula:
    """Derive the stationary covariance under minibatches of finite data in one direction, exactly.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Calls its gradient once a step, without weight decay (its mean is the optimum).
    slots : pair of str
    replacement : bool

    Returns
    -------
    Formula
        In the mean Hessian ``h_i``, ``mean_square_h`` (mean of H_n^2) and ``mean_square_g`` (mean of g_n^2). Several
        directions are coupled through all H_n; `sgdcov.numerics` solves that system.

    Raises
    ------
    InvalidRuleError
        If the rule calls its gradient more than once a step, or its stationary mean is not the optimum.

    References
    ----------
    mulayoff2024exact, Theorem 5 (plain SGD)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> law = finite_data_covariance(sgd)
    >>> law.specialise(batch_size=1).expression
    lr*mean_square_g/(2*h_i - lr*mean_square_h)
    """
    optimizer = as_optimizer(rule)
    slots = optimizer.pair(slots)
    if mean_displacement(optimizer) != 0:
        raise InvalidRuleError(
            f"{optimizer!r} has a stationary mean that is not the optimum, where the examples' gradients and Hessians "
            f"are correlated; bind weight_decay=0, or take the gradients g_n at the mean and solve numerically."
        )
    return _one_direction(optimizer, slots, replacement)


def mean_displacement(optimizer: Optimizer) -> sp.Expr:
    """Return by how much the stationary mean of the point of the gradient differs from the optimum, along h_i."""
    law = stationary_mean(optimizer)
    means = list(law.solution.values())
    point = gradient_call(optimizer).point
    return sp.factor(sum((q * m for q, m in zip(point, means, strict=True)), sp.Integer(0)) - W_STAR)


def where_decay_pulls(optimizer: Optimizer) -> tuple[Assumption, ...]:
    """Return what an equation for moments about the optimum assumes of a rule with weight decay."""
    if mean_displacement(optimizer) == 0:
        return ()
    return (Assumption("optimum at the origin", "weight decay pulls towards 0, and the optimum is there"),)


def _moment_latex(letter: str, names: tuple[str, ...], entry: int) -> str:
    first, second = (names[n].replace("_", r"\_") for n in divmod(entry, len(names)))
    return rf"{{{letter}}}_{{ij}}" if entry == 0 else rf"{{{letter}}}_{{ij}}^{{\mathrm{{{first},{second}}}}}"


def _operator_equation(factor: sp.Expr) -> sp.Eq:
    """Write the equation for the whole matrix of second moments (slots outermost)."""
    d, slots = sp.symbols("d m", integer=True, positive=True)
    after, state, step = (sp.MatrixSymbol(name, slots * d, slots * d) for name in ("Z^{+}", "Z", "A"))
    gain = sp.MatrixSymbol("b", slots, 1)
    names = (r"\overline{H_n M H_n}", "H", "M", r"\overline{g_n g_n^{\top}}", "X")
    curvature, hessian, moment, gradient, cross = (sp.MatrixSymbol(name, d, d) for name in names)
    spread = curvature - hessian * moment * hessian + gradient + cross + cross.T
    drive = factor * sp.KroneckerProduct(gain * gain.T, spread)
    return sp.Eq(after, step * state * step.T + drive, evaluate=False)


def _expanded_step(call: GradientCall, before: sp.Matrix, after: sp.Matrix, noise: sp.Symbol) -> tuple[sp.Eq, ...]:
    """Multiply out (keep z_i + gain G_i)(keep z_j + gain G_j)' with E[G | z] = h q'z and Cov[G_i, G_j | z] = c."""
    along = before * call.point.T  # E z_i (q'z_j)
    across = call.point * before
    product = call.keep * before * call.keep.T
    product += call.keep * along * H_J * call.gain.T + call.gain * H_I * across * call.keep.T
    product += call.gain * call.gain.T * (H_I * H_J * (call.point * along)[0] + noise)
    rows = range(before.shape[0])
    return tuple(sp.Eq(after[a, b], product[a, b], evaluate=False) for a in rows for b in rows)


@functools.lru_cache(maxsize=64)
def _one_direction(optimizer: Optimizer, slots: tuple[str, str], replacement: bool) -> Formula:
    kernel, seen = (present(k.subs(H_J, H_I), (H_I,)) for k in unit_kernels(optimizer, slots))
    h, squared, spread = H_I, sp.Symbol("mean_square_h", nonnegative=True), sp.Symbol("mean_square_g", nonnegative=True)
    factor = batch_factor(replacement=replacement)
    noise, moment, shown = sp.Symbol("c_ii", nonnegative=True), sp.Symbol("M_ii", nonnegative=True), S_II
    drawn = factor * spread / (1 - factor * (squared - h**2) * seen)
    solution = {noise: drawn, moment: seen * drawn, shown: kernel * drawn}
    one_step = minibatch_second_moment(optimizer, replacement=replacement)
    expression = present(kernel * drawn, (H_I,))
    how = "with" if replacement else "without"
    suffix = optimizer.tag(slots)
    conditions = stability(optimizer)
    return Formula(
        id=f"{optimizer.rule.name}.finite_data_covariance{suffix}[{how} replacement]",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={
            "h_i": H_I,
            "mean_square_h": squared,
            "mean_square_g": spread,
            "batch_size": BATCH_SIZE,
            **({} if replacement else {"num_examples": NUM_EXAMPLES}),
            **optimizer.symbols,
        },
        assumptions=(
            *one_step.assumptions,
            Assumption("one direction", "the weights are a single number"),
            stable(tuple(c.subs(conditions.h, H_I) for c in conditions.conditions)),
            replace_condition(MEAN_SQUARE, factor * (squared - h**2) * seen < 1),
            Assumption("mean of squares", "it is at least the square of the mean", (squared >= h**2,)),
        ),
        defining=(
            sp.Eq(moment, seen * noise, evaluate=False),
            sp.Eq(shown, kernel * noise, evaluate=False),
            sp.Eq(noise, factor * (squared * moment - h**2 * moment + spread), evaluate=False),
        ),
        solution=solution,
        references=("mulayoff2024exact, Theorem 5 (plain SGD)", *optimizer.rule.references),
        derivation=(
            Step("Stationary noise of variance c leads to the additive law with that c.", sp.Eq(shown, kernel * noise)),
            Step("The one-step equation gives c: at the stationary law the cross terms are 0.",
                 sp.Eq(noise, factor * (squared * moment - h**2 * moment + spread), evaluate=False)),
            Step("Solve for both.", sp.Eq(shown, expression, evaluate=False)),
        ),
        lemmas=(one_step, stationary_covariance(optimizer, slots)),
        symbol_latex={
            **rule_latex(optimizer),
            shown: r"\Sigma_{ii}",
            noise: "c_{ii}",
            squared: r"\overline{H_n^2}",
            spread: r"\overline{g_n^2}",
        },
    )  # fmt: skip


def replace_condition(assumption: Assumption, *conditions: sp.Basic) -> Assumption:
    """Return an assumption with its conditions on the symbols."""
    return replace(assumption, conditions=conditions)
