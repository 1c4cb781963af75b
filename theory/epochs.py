r"""Shuffled epochs: noise that sums to zero over every epoch, and the law it leads to at every position inside one.

The M batches of an epoch are exchangeable and their noise sums to zero, so that two of them have the covariance
:math:`-C/(M-1)`. With :math:`K_n = \sum_{t<n} A^t b b^\top A'^t` and :math:`s_n = \sum_{t<n} A^t b` the first n steps
of an epoch bring :math:`c\,\tfrac{M}{M-1}[K_n - s_n s_n'^\top/M]`, independently of the state at its start, hence

.. math:: Z_0 = A^M Z_0 A'^M + c\,\tfrac{M}{M-1}\Big[K_M - \frac{s_M s_M'^\top}{M}\Big], \qquad
          Z_k = A^k Z_0 A'^k + c\,\tfrac{M}{M-1}\Big[K_k - \frac{s_k s_k'^\top}{M}\Big].

What a slot keeps of one unit of noise after n steps is a sum over characteristic roots, :math:`\sum_a \phi_a r_a^n`.
So every law is a sum, over pairs of a root at h_i and one at h_j, of one function of two numbers: its kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, TypeAlias

import sympy as sp

from ..errors import InvalidRuleError
from ._answers import Answer, answer_latex, root_weights, sum_over_roots
from ._epoch_kernels import (
    BATCHES,
    EPOCHS,
    POSITION,
    Kernel,
    average_claims,
    average_kernel,
    flat_claims,
    flat_kernel,
    kernel_claims,
    position_kernel,
    run_after_claims,
    run_after_kernel,
    run_claims,
    run_kernel,
)
from ._exact import present
from .assumptions import CONSTANT_HESSIAN, SHUFFLED_EPOCHS, Assumption, domains, stable
from .formula import Formula, Step
from .minibatch import BATCH_SIZE, NUM_EXAMPLES, batch_factor, rule_latex
from .powers import MatrixPower, Roots, characteristic_sequence, matrix_power, regime
from .recursion import as_optimizer
from .stability import stability
from .stationary import C_IJ, H_I, H_J, covariance_symbol
from .transient import root_latex
from .update_rule import Optimizer, UpdateRule

__all__ = ["crossover_curvature", "epoch_average_covariance", "epoch_covariance", "epoch_flat_limit", "epoch_noise"]

Pair: TypeAlias = tuple[Roots, Roots]
Claims: TypeAlias = tuple[tuple[str, sp.Expr], ...]
MANY_BATCHES = Assumption("many batches", "M(1 - r) is large for every root but the slow one")
DISTINCT: Pair = ("distinct", "distinct")


def epoch_noise() -> Formula:
    """Derive the covariance of the noise of two different batches of one epoch, from that of one batch.

    Returns
    -------
    Formula
        ``c_ab`` is the covariance of one batch's gradient noise, M = ``M`` the number of batches of an epoch.

    References
    ----------
    kuehn2023

    Examples
    --------
    >>> print(epoch_noise())
    r_ab = -c_ab/(M - 1)
    """
    one, two = sp.Symbol("c_ab", real=True), sp.Symbol("r_ab", real=True)
    s_a, s_b, s_ab = sp.symbols("sum_a sum_b sum_ab", real=True)
    population = s_ab / NUM_EXAMPLES - s_a * s_b / NUM_EXAMPLES**2
    # Two batches share no example: every ordered pair of different examples is equally likely to be met across them.
    across = (s_a * s_b - s_ab) / (NUM_EXAMPLES * (NUM_EXAMPLES - 1)) - s_a * s_b / NUM_EXAMPLES**2
    counted = batch_factor(replacement=False) * population / (NUM_EXAMPLES / BATCH_SIZE - 1)
    return Formula(
        id="epoch_noise",
        equation=sp.Eq(two, -one / (BATCHES - 1), evaluate=False),
        symbols={"c_ab": one, "M": BATCHES},
        assumptions=(SHUFFLED_EPOCHS, Assumption("epochs", "an epoch has several batches", (sp.Le(2, BATCHES),))),
        defining=(sp.Eq(one + (BATCHES - 1) * two, 0, evaluate=False),),
        solution={two: -one / (BATCHES - 1)},
        references=("kuehn2023",),
        derivation=(
            Step("The noise of an epoch sums to zero, so no batch is correlated with the sum; all pairs are alike.",
                 sp.Eq(one + (BATCHES - 1) * two, 0, evaluate=False)),
        ),
        identities=(("the same by counting pairs of examples across two batches of N/M", across + counted),),
        symbol_latex={one: "c_{ab}", two: "r_{ab}"},
    )  # fmt: skip


def epoch_covariance(
    rule: UpdateRule | Optimizer,
    position: int | Literal["k", "average"] = "k",
    slots: tuple[str, str] | None = None,
    *,
    roots: Pair = DISTINCT,
) -> Formula:
    """Derive the stationary covariance under shuffled epochs, at a position inside the epoch or averaged over all.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    position : int, "k" or "average"
        Steps of the epoch already made: 0 is the start of an epoch, where checkpoints are taken, "k" keeps it a
        symbol. "average" is the mean over the M positions.
    slots : pair of str
    roots : pair of {"distinct", "repeated"}
        Whether two characteristic roots meet at h_i and at h_j. Complex pairs are distinct roots.

    Returns
    -------
    Formula
        Exact for additive noise. What stands in ``where`` are the kernels of pairs of roots, the weights ``phi`` of
        the roots in the answer to noise, and the roots.

    Raises
    ------
    InvalidRuleError
        If the rule has no such slot, the roots no closed form, or there is no such position.

    Notes
    -----
    The closed form cancels on flat directions; `sgdcov.numerics` sums it in a form that does not.

    References
    ----------
    kuehn2023 (the average)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> two_batches = epoch_covariance(sgd, 0).specialise(M=2, h_j="h_i")
    >>> sp.factor(two_batches.explicit())
    -c_ij*h_i*lr**3/((h_i*lr - 2)*(h_i**2*lr**2 - 2*h_i*lr + 2))
    """
    optimizer = as_optimizer(rule)
    _check(roots)
    slots = optimizer.pair(slots)
    if position == "average":
        return _law(optimizer, slots, roots, "average")
    if position == "k":
        return _law(optimizer, slots, roots, "position")
    if isinstance(position, bool) or not isinstance(position, int) or position < 0:
        raise InvalidRuleError(f"position must be 'k', 'average' or an integer from 0 (to M), got {position!r}.")
    return _law(optimizer, slots, roots, "position").specialise(k=position)


def epoch_average_covariance(
    rule: UpdateRule | Optimizer,
    slots: tuple[str, str] | None = None,
    *,
    after: bool = False,
    roots: Pair = DISTINCT,
) -> Formula:
    r"""Derive the covariance of the mean of all iterates of E whole epochs.

    The noise of whole epochs sums to zero, so the mean only knows where it started and ended,
    :math:`\bar z = (A - I)^{-1}(z_{EM} - z_0)/(EM)`, and its covariance falls like 1/E^2 instead of 1/E.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    slots : pair of str
    after : bool
        The mean of the states after each step instead of those before it.
    roots : pair of {"distinct", "repeated"}

    Returns
    -------
    Formula

    Raises
    ------
    InvalidRuleError
        If the rule has no such slot or the roots have no closed form.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> mean = epoch_average_covariance(sgd)
    >>> one, ten = (mean.specialise(E=n, M=2, h_i=1, h_j=1, c_ij=1, lr=1).explicit() for n in (1, 10))
    >>> one / ten
    100
    """
    optimizer = as_optimizer(rule)
    _check(roots)
    slots = optimizer.pair(slots)
    return _law(optimizer, slots, roots, "run after" if after else "run")


def _check(roots: Pair) -> None:
    if len(roots) != 2 or not set(roots) <= {"distinct", "repeated"}:
        raise InvalidRuleError(
            f"roots must be a pair of 'distinct' or 'repeated', got {roots!r}; a complex pair is 'distinct'."
        )


_LAWS: dict[str, tuple[str, Kernel, Callable[[], Claims]]] = {
    "position": ("epoch_covariance", position_kernel, kernel_claims),
    "average": ("epoch_covariance[average]", average_kernel, average_claims),
    "run": ("epoch_average_covariance", run_kernel, run_claims),
    "run after": ("epoch_average_covariance[after]", run_after_kernel, run_after_claims),
}


@functools.lru_cache(maxsize=64)
def _law(optimizer: Optimizer, slots: tuple[str, str], roots: Pair, what: str) -> Formula:
    name, kernel, claims = _LAWS[what]
    powers = [matrix_power(optimizer, h, slots) for h in (H_I, H_J)]
    sides = [Answer(p, slot, i, form) for p, slot, i, form in zip(powers, slots, "ij", roots, strict=True)]
    expression, where = sum_over_roots(sides[0], sides[1], kernel)
    shown = _left_side(optimizer, slots, what)
    extra = {"position": {"k": POSITION}, "average": {}}.get(what, {"E": EPOCHS})
    conditions = stability(optimizer)
    suffix = optimizer.tag(slots)
    lemmas = [characteristic_sequence(optimizer, form, slots=slots) for form in dict.fromkeys(roots)]
    return Formula(
        id=f"{optimizer.rule.name}.{name}{suffix}",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={**extra, "M": BATCHES, "h_i": H_I, "h_j": H_J, "c_ij": C_IJ,
                 **optimizer.symbols},
        assumptions=(
            CONSTANT_HESSIAN,
            SHUFFLED_EPOCHS,
            stable(tuple(c.subs(conditions.h, h) for h in (H_I, H_J) for c in conditions.conditions)),
            Assumption("whole epochs", "an epoch has M batches of equal size", _bounds(what)),
            *dict.fromkeys(regime(p, form) for p, form in zip(powers, roots, strict=True)),
            *domains(optimizer),
        ),
        defining=(),
        solution={},
        references=("kuehn2023", *optimizer.rule.references),
        derivation=(
            Step("Two batches of an epoch have the noise covariance -C/(M - 1); epochs are independent."),
            Step("A slot keeps the sum of phi r^n of a unit of noise n steps later, over the characteristic roots."),
            Step(_HOW[what]),
            Step("Add up the pairs of roots.", sp.Eq(shown, expression, evaluate=False)),
        ),
        where=where,
        identities=(*dict.fromkeys((*sides[0].claims(), *sides[1].claims())), *claims()),
        lemmas=(epoch_noise(), *lemmas),
        symbol_latex={**rule_latex(optimizer), C_IJ: "c_{ij}", **root_latex(where), **answer_latex(where)},
    )  # fmt: skip


_HOW = {
    "position": "For one pair of roots: solve for the start of the epoch, then follow it for k steps.",
    "average": "For one pair of roots: average over the positions of an epoch.",
    "run": "For one pair of roots: (r - 1) times the sum of the states is the last state less the first.",
    "run after": "For one pair of roots: (r - 1) times the sum of the states is r times the last state less the first.",
}


def _bounds(what: str) -> tuple[sp.Basic, ...]:
    at_least_two = sp.Le(2, BATCHES)
    return (at_least_two, sp.Le(POSITION, BATCHES)) if what == "position" else (at_least_two,)


def _left_side(optimizer: Optimizer, slots: tuple[str, str], what: str) -> sp.Expr:
    symbol = covariance_symbol(optimizer, *slots)
    if what == "position":
        return sp.Function(symbol.name)(POSITION)
    return symbol if what == "average" else sp.Symbol("average_ij", real=True)


def epoch_flat_limit(rule: UpdateRule | Optimizer) -> Formula:
    """Derive the time-averaged covariance under shuffled epochs as the curvature tends to 0, where it stays finite.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        One that keeps its weights where there is no gradient (no weight decay).

    Returns
    -------
    Formula

    Raises
    ------
    InvalidRuleError
        If the rule has no simple characteristic root 1 at h = 0.

    References
    ----------
    kuehn2023 (the leading order in M(1 - momentum) with momentum)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(epoch_flat_limit(sgd))
    plateau_ij = c_ij*lr**2*(M + 1)/6
    """
    return _flat(as_optimizer(rule))


@functools.lru_cache(maxsize=64)
def _flat(optimizer: Optimizer) -> Formula:
    power = matrix_power(optimizer, H_I, optimizer.rule.slots[:1])
    roots, weights = _flat_answer(optimizer, power)
    total = sp.Add(*(
        sp.factor(v * w) * flat_kernel(r, s) for v, r in zip(weights, roots, strict=True)
        for w, s in zip(weights, roots, strict=True)
    ))  # fmt: skip
    shown = sp.Symbol("plateau_ij", real=True)
    expression = sp.factor(C_IJ * total) if len(roots) == 1 else C_IJ * sp.powsimp(total)
    exact = _law(optimizer, (optimizer.rule.slots[0],) * 2, DISTINCT, "average")
    return Formula(
        id=f"{optimizer.rule.name}.epoch_flat_limit",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"M": BATCHES, "c_ij": C_IJ, **optimizer.symbols},
        assumptions=(*exact.assumptions[:2], Assumption("flat limit", "h_i and h_j tend to 0", (sp.Le(2, BATCHES),)),
                     *domains(optimizer)),
        defining=(),
        solution={},
        references=("kuehn2023", *optimizer.rule.references),
        derivation=(
            Step("At h = 0 one characteristic root is 1; expand the kernel about it."),
            Step("Add up the pairs of roots.", sp.Eq(shown, expression, evaluate=False)),
        ),
        identities=flat_claims(),
        lemmas=(exact,),
        symbol_latex={**rule_latex(optimizer), C_IJ: "c_{ij}", shown: r"\Sigma_{ij}^{\mathrm{flat}}"},
    )


def _flat_answer(optimizer: Optimizer, power: MatrixPower) -> tuple[list[sp.Expr], list[sp.Expr]]:
    """Return the roots at h = 0 and their weights in the answer of the weights to noise."""
    at_zero = MatrixPower(
        power.slots,
        power.transition.subs(H_I, 0).as_immutable(),
        power.noise_gain.subs(H_I, 0).as_immutable(),
        tuple(sp.factor(d.subs(H_I, 0)) for d in power.coefficients),
        tuple(n.subs(H_I, 0).as_immutable() for n in power.matrices),
    )
    answer = Answer(at_zero, power.slots[0], "", "distinct")
    values = [sp.factor(v) for v in answer.roots.values()]
    if values.count(sp.Integer(1)) != 1:
        raise InvalidRuleError(
            f"{optimizer!r} does not keep its weights where there is no gradient: its characteristic roots at h = 0 "
            f"are {values}, and a flat limit needs 1 among them. Bind weight_decay=0."
        )
    size = len(values)
    return values, [sp.factor(w) for w in root_weights(values, answer.first[:size], "distinct")]


def crossover_curvature(rule: UpdateRule | Optimizer) -> Formula:
    """State the curvature below which shuffled epochs have less variance than independent batches.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Without weight decay.

    Returns
    -------
    Formula
        An approximation by definition: where the leading order of the law for independent batches meets that of the
        plateau. The transition is smooth; a hundred times above, the laws agree to about a percent.

    Raises
    ------
    InvalidRuleError
        If the rule has no simple characteristic root 1 at h = 0.

    References
    ----------
    kuehn2023

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> print(crossover_curvature(heavy_ball))
    h_x ~ 3*(1 - momentum)/(M*lr)
    """
    optimizer = as_optimizer(rule)
    power = matrix_power(optimizer, H_I, optimizer.rule.slots[:1])
    roots, weights = _flat_answer(optimizer, power)
    gain = -weights[roots.index(sp.Integer(1))]  # how far one unit of gradient moves the weights in the end
    shown = sp.Symbol("h_x", positive=True)
    expression = 3 * present(1 / (gain * BATCHES), (H_I,))
    white, plateau = gain * C_IJ / 2, shown * gain**2 * C_IJ * BATCHES / 6  # both times h
    return Formula(
        id=f"{optimizer.rule.name}.crossover_curvature",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"M": BATCHES, **optimizer.symbols},
        assumptions=(CONSTANT_HESSIAN, SHUFFLED_EPOCHS, MANY_BATCHES, *domains(optimizer)),
        defining=(sp.Eq(white, plateau, evaluate=False),),
        solution={shown: expression},
        references=("kuehn2023", *optimizer.rule.references),
        derivation=(
            Step("One unit of gradient moves the weights, in the end, by", gain),
            Step("Leading orders of independent batches and of the plateau meet.",
                 sp.Eq(white, plateau, evaluate=False)),
        ),
        kind="approximation",
        symbol_latex={**rule_latex(optimizer), C_IJ: "c_{ij}", shown: r"h_\times"},
    )  # fmt: skip
