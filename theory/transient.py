r"""The law k steps after a change of hyper-parameters, with k symbolic.

From any state with covariance :math:`\Sigma_{ij}(0)` of all slots, after k steps

.. math::

    \Sigma_{ij}(k) = \underbrace{A_i^k\, \Sigma_{ij}(0)\, (A_j^k)^\top}_{\text{propagated}}
    + \underbrace{\Sigma_{ij} - A_i^k\, \Sigma_{ij}\, (A_j^k)^\top}_{\text{injected}},

where :math:`\Sigma_{ij}` solves the Stein equation of the new hyper-parameters. The first part is what is left of the
old law, the second what the noise has built since. It holds for every k, and the roots may lie anywhere, as long as no
product of a root at h_i with one at h_j is 1 (then the injected part grows like k and the Stein equation has no
solution).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

import sympy as sp

from ..errors import HyperparameterError
from .assumptions import CONSTANT_HESSIAN, WHITE_NOISE, Assumption, domains
from .formula import Formula, Step
from .powers import TIME, Roots, characteristic_sequence, matrix_power, regime, sequence_at
from .recursion import as_optimizer
from .rules import heavy_ball, polyak, sgd
from .stability import stability
from .stationary import H_I, H_J, W_STAR, covariance_symbol, stationary_covariance, stationary_mean
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "early_phase_surrogate",
    "learning_rate_change",
    "momentum_convention_gap",
    "transient_covariance",
    "transient_mean",
]

NO_UNIT_PRODUCT = Assumption(
    "no unit product", "no product of a characteristic root at h_i with one at h_j equals 1 (no flat direction, h > 0)"
)
LR_BEFORE = sp.Symbol("lr_before", positive=True)


def transient_covariance(
    rule: UpdateRule | Optimizer,
    slots: tuple[str, str] | None = None,
    *,
    roots: tuple[Roots, Roots] | None = None,
) -> Formula:
    """Derive the covariance of two slots k steps after a change, from any start.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        The hyper-parameters after the change.
    slots : pair of str
    roots : pair of {"distinct", "repeated", "complex"}, optional
        Form of the characteristic sequence at h_i and at h_j; "distinct" unless said otherwise. "complex" is the real
        form for under-damped directions, "repeated" the one for critical damping.

    Returns
    -------
    Formula
        In the sequences p_i(k) and p_j(k), whose closed forms stand in ``where`` and are proved with it. ``parts``
        holds what is ``propagated`` from the start and what is ``injected`` since. The start enters through the
        symbols ``start_a_b`` (covariance of slot a at h_i with slot b at h_j).

    Raises
    ------
    InvalidRuleError
        If the rule has no such slot, or the roots have no closed form.

    Notes
    -----
    The seed paper calls the two parts propagation and injected term (xu2024dynamics, Theorem 4.7, as far as known).

    References
    ----------
    xu2024dynamics

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> formula = transient_covariance(sgd)
    >>> print(formula.parts["propagated"])
    start_w_w*p_i(k)*p_j(k)
    >>> print(formula.parts["injected"])
    Sigma_ij*(-p_i(k)*p_j(k) + 1)
    >>> formula.where[sp.Symbol("r_i", real=True)]
    -h_i*lr + 1
    """
    optimizer = as_optimizer(rule)
    default: Roots = "distinct"
    return _covariance_formula(optimizer, optimizer.pair(slots), roots or (default, default))


def transient_mean(rule: UpdateRule | Optimizer, *, roots: Roots = "distinct") -> Formula:
    """Derive the mean of the weights after k steps from any start.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        A bare rule is taken with all hyper-parameters free, as in `stationary_mean`.
    roots : {"distinct", "repeated", "complex"}

    Returns
    -------
    Formula
        The start enters through the symbols ``start_a``, one for each slot.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(transient_mean(sgd(lr=0.5)))
    m_i(k) = w_star + (start_w - w_star)*p_i(k)
    """
    optimizer = rule.free() if isinstance(rule, UpdateRule) else as_optimizer(rule)
    power = matrix_power(optimizer, H_I, optimizer.rule.slots[:1])
    values, where = sequence_at(power, "i", roots, TIME)
    limit = stationary_mean(optimizer)
    settled = sp.Matrix(list(limit.solution.values())[: len(power.slots)])
    start = sp.Matrix([sp.Symbol(f"start_{name}", real=True) for name in power.slots])
    row = power.at(values).row(0)
    propagated = sum((g * (s - m) for g, s, m in zip(row, start, settled, strict=True)), sp.Integer(0))
    expression = grouped(propagated, values) + settled[0]
    shown = sp.Eq(sp.Function("m_i")(TIME), expression, evaluate=False)
    return Formula(
        id=f"{optimizer.rule.name}.transient_mean",
        equation=shown,
        symbols={"k": TIME, **limit.symbols, **{s.name: s for s in start}},
        assumptions=(CONSTANT_HESSIAN, WHITE_NOISE, NO_UNIT_PRODUCT, regime(power, roots), *domains(optimizer)),
        defining=(),
        solution={},
        references=optimizer.rule.references,
        derivation=(Step("The deviation from the stationary mean is multiplied by A at every step.", shown),),
        where=where,
        identities=power.identities(),
        lemmas=(limit, characteristic_sequence(optimizer, roots)),
        symbol_latex={**limit.symbol_latex, W_STAR: r"w^{*}_i", **root_latex(where)},
    )


@functools.lru_cache(maxsize=128)
def _covariance_formula(optimizer: Optimizer, slots: tuple[str, str], roots: tuple[Roots, Roots]) -> Formula:
    powers = [matrix_power(optimizer, h, slots) for h in (H_I, H_J)]
    (values_i, where_i), (values_j, where_j) = (
        sequence_at(power, index, form, TIME) for power, index, form in zip(powers, "ij", roots, strict=True)
    )
    names = powers[0].slots
    limit = stationary_covariance(optimizer, slots)
    settled = stationary_symbols(optimizer, names)
    start = sp.Matrix(len(names), len(names), lambda a, b: sp.Symbol(f"start_{names[a]}_{names[b]}", real=True))
    left = powers[0].at(values_i).row(names.index(slots[0]))
    right = powers[1].at(values_j).row(names.index(slots[1]))
    shown = settled[names.index(slots[0]), names.index(slots[1])]
    parts = {
        "propagated": grouped((left * start * right.T)[0], list(start)),
        "injected": grouped(shown - (left * settled * right.T)[0], list(settled)),
    }
    symbol = sp.Function(shown.name)(TIME)
    equation = sp.Eq(symbol, parts["propagated"] + parts["injected"], evaluate=False)
    return Formula(
        id=f"{optimizer.rule.name}.transient_covariance" + optimizer.tag(slots),
        equation=equation,
        symbols={"k": TIME, **limit.symbols, **{s.name: s for s in start}},
        assumptions=(CONSTANT_HESSIAN, WHITE_NOISE, NO_UNIT_PRODUCT,
                     *dict.fromkeys(regime(p, form) for p, form in zip(powers, roots, strict=True)),
                     *domains(optimizer)),
        defining=(),
        solution={},
        references=("xu2024dynamics, Theorem 4.7 (as far as known)", *optimizer.rule.references),
        derivation=(
            Step("Write A^k through the characteristic sequence; its closed form is proved by its recurrence."),
            Step("Each step multiplies the deviation from the stationary covariance by A_i and A_j'."),
            Step("Sort what comes from the start and what does not.", equation),
        ),
        where={**{s: limit.solution[s] for s in settled}, **where_i, **where_j},
        parts=parts,
        identities=powers[0].identities(),
        lemmas=(limit, *(characteristic_sequence(optimizer, form, slots=slots) for form in dict.fromkeys(roots))),
        symbol_latex={
            **limit.symbol_latex,
            **root_latex([*where_i, *where_j]),
            **{s: limit.symbol_latex[z] + "(0)" for s, z in zip(start, settled, strict=True)},
        },
    )


def learning_rate_change(rule: UpdateRule | Optimizer, *, roots: tuple[Roots, Roots] | None = None) -> Formula:
    """Derive the covariance of the weights k steps after the learning rate of a stationary run changes.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With ``lr`` (the new one) unbound.
    roots : pair of {"distinct", "repeated", "complex"}, optional

    Returns
    -------
    Formula
        `transient_covariance` from the stationary law at the learning rate ``lr_before``.

    Raises
    ------
    HyperparameterError
        If ``lr`` is bound or the rule has none.

    References
    ----------
    xu2024dynamics, Theorem 4.7, Eq. (14) (as far as known)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> drop = learning_rate_change(sgd)
    >>> print(drop.expression)
    Sigma_ij*(-p_i(k)*p_j(k) + 1) + start_w_w*p_i(k)*p_j(k)
    >>> print(drop.where[sp.Symbol("start_w_w", real=True)])
    c_ij*lr_before/(-h_i*h_j*lr_before + h_i + h_j)
    """
    optimizer = as_optimizer(rule)
    if "lr" not in optimizer.unbound:
        raise HyperparameterError(
            f"{optimizer!r} has no unbound lr to change; free it, as in .free('lr'). The rate before is lr_before.",
            name="lr",
        )
    transient = transient_covariance(optimizer, roots=roots)
    starts = _start_before(optimizer, transient)
    symbols = {role: s for role, s in transient.symbols.items() if s not in starts}
    return replace(
        transient,
        id=f"{optimizer.rule.name}.learning_rate_change",
        assumptions=(*transient.assumptions, _stable_before(optimizer)),
        symbols={**symbols, "lr_before": LR_BEFORE},
        where={**starts, **transient.where},
        derivation=(*transient.derivation, Step("Start from the stationary law at the learning rate before.")),
        symbol_latex={**transient.symbol_latex, LR_BEFORE: r"\eta_0"},
    )


def momentum_convention_gap(*, roots: tuple[Roots, Roots] | None = None) -> Formula:
    """Derive by how much the two conventions of momentum differ k steps after a learning-rate change.

    PyTorch's buffer does not contain the learning rate, so a drop shrinks the displacement that is carried on; in
    Polyak's form it is carried on unchanged. The stationary laws agree, and so do the injected parts.

    Parameters
    ----------
    roots : pair of {"distinct", "repeated", "complex"}, optional

    Returns
    -------
    Formula
        Covariance of the weights in Polyak's form minus that in PyTorch's, both started at their stationary law at
        ``lr_before``.

    References
    ----------
    polyak1964, pytorch

    Examples
    --------
    >>> gap = momentum_convention_gap().lambdify()
    >>> bool(gap(k=7, h_i=1.0, h_j=1.1, c_ij=1.0, lr=0.02, momentum=0.5, lr_before=0.16) > 0)
    True
    """
    pytorch, original = (learning_rate_change(rule, roots=roots) for rule in (heavy_ball, polyak))
    # Both propagated parts in one set of start symbols: those of Polyak's slots get names of their own.
    own = {s: sp.Symbol(f"polyak_{s.name}", real=True) for s in original.where if str(s).startswith("start_")}
    difference = original.parts["propagated"].xreplace(own) - pytorch.parts["propagated"]
    shown = sp.Eq(sp.Symbol("gap_ij"), difference, evaluate=False)
    return replace(
        pytorch,
        id="heavy_ball.momentum_convention_gap",
        equation=shown,
        where={**{own[s]: original.where[s] for s in own}, **pytorch.where},
        parts={"polyak": original.parts["propagated"].xreplace(own), "pytorch": -pytorch.parts["propagated"]},
        references=("polyak1964", "pytorch"),
        derivation=(
            Step("The injected parts agree: the weights answer to noise in the same way.", None),
            Step("Subtract the propagated parts.", shown),
        ),
        identities=(*pytorch.identities, *_same_answer_to_noise()),
        lemmas=(*pytorch.lemmas, *original.lemmas),
        symbol_latex={
            **pytorch.symbol_latex,
            shown.lhs: r"\Delta_{ij}",
            **{new: rf"\big[{original.symbol_latex[old]}\big]_{{\mathrm{{Polyak}}}}" for old, new in own.items()},
        },
    )


def early_phase_surrogate() -> Formula:
    r"""State the early phase with a single rate per eigenvalue, :math:`\rho = 1 - \eta h/(1-\mu)`, as an approximation.

    The form in which the early phase is usually told: the old variance decays like :math:`\rho^{2k}` and the new one
    takes its place. It is exact without momentum. With momentum no single rate per eigenvalue can be exact: an
    under-damped direction oscillates.

    Returns
    -------
    Formula
        An approximation of `learning_rate_change` on the diagonal; `Formula.relative_error` is its error.

    References
    ----------
    xu2024dynamics, Theorem 4.7, Eq. (14) (as far as known: a decomposition with a rate for each eigenvalue)

    Examples
    --------
    >>> print(early_phase_surrogate().where[sp.Symbol("rho_i", real=True)])
    -h_i*lr/(1 - momentum) + 1
    """
    exact = learning_rate_change(heavy_ball).specialise(h_j="h_i")
    lr, mu = exact.symbols["lr"], exact.symbols["momentum"]
    rho = sp.Symbol("rho_i", real=True)
    before, after = sp.Symbol("start_w_w", real=True), exact.equation.lhs.func
    settled = sp.Symbol(after.__name__, real=True)
    parts = {"propagated": rho ** (2 * TIME) * before, "injected": (1 - rho ** (2 * TIME)) * settled}
    where = {s: exact.where[s] for s in (before, settled)}
    return replace(
        exact,
        id="xu2024dynamics.early_phase_surrogate",
        equation=sp.Eq(exact.equation.lhs, parts["propagated"] + parts["injected"], evaluate=False),
        where={**where, rho: 1 - lr * H_I / (1 - mu)},
        parts=parts,
        kind="approximation",
        exact=exact,
        references=("xu2024dynamics, Theorem 4.7, Eq. (14) (as far as known)",),
        identities=(("without momentum the rate is the root of the recursion", (1 - lr * H_I / (1 - mu)).subs(mu, 0)
                     - matrix_power(sgd, H_I, ("w",)).transition[0]),),
        lemmas=(),
    )  # fmt: skip


def _same_answer_to_noise() -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that a unit of noise moves the weights of both conventions alike, now and k steps later."""
    answers = []
    for rule in (heavy_ball, polyak):
        power = matrix_power(rule, H_I, ("w",))
        symbols = sp.symbols("p0:2")
        answers.append((power.coefficients, (power.at(symbols).row(0) * power.noise_gain)[0]))
    (poly, answer), (other_poly, other_answer) = answers
    pairs = enumerate(zip(poly, other_poly, strict=True))
    claims = [(f"same recurrence, coefficient {n}", a - b) for n, (a, b) in pairs]
    return (*claims, ("same answer to noise k steps before", sp.expand(answer - other_answer)))


def _stable_before(optimizer: Optimizer) -> Assumption:
    before = stability(optimizer)
    at = [{before.h: h, optimizer.rule["lr"].symbol: LR_BEFORE} for h in (H_I, H_J)]
    conditions = tuple(c.subs(values, simultaneous=True) for values in at for c in before.conditions)
    return Assumption("stable before", "the law at lr_before, from which the change starts, is stationary", conditions)


def _start_before(optimizer: Optimizer, transient: Formula) -> dict[sp.Expr, sp.Expr]:
    """Return the start symbols of a transient as entries of the stationary law at the learning rate before."""
    lr = optimizer.rule["lr"].symbol
    law = stationary_covariance(optimizer)
    known = {**law.solution, law.equation.lhs: law.expression}
    slots = [(first, second) for first in optimizer.rule.slots for second in optimizer.rule.slots]
    entries = {transient.symbols.get(f"start_{a}_{b}"): known[covariance_symbol(optimizer, a, b)] for a, b in slots}
    return {start: entry.subs(lr, LR_BEFORE) for start, entry in entries.items() if start is not None}


def root_latex(where: Iterable[sp.Expr]) -> dict[sp.Symbol, str]:
    """Return how the symbols of characteristic roots are typeset."""
    letters = {"r": "r", "r_plus": "r_{+", "r_minus": "r_{-", "rho": r"\rho", "omega": r"\omega"}
    names: dict[sp.Symbol, str] = {}
    for symbol in (s for s in where if isinstance(s, sp.Symbol)):
        base, _, index = symbol.name.rpartition("_")
        if index in ("i", "j") and base in letters:
            letter = letters[base]
            names[symbol] = f"{letter},{index}}}" if "{" in letter else f"{letter}_{index}"
    return names


def stationary_symbols(optimizer: Optimizer, names: tuple[str, ...]) -> sp.Matrix:
    """Return the matrix of the symbols that stand for the stationary covariances of some slots."""
    return sp.Matrix([[covariance_symbol(optimizer, a, b) for b in names] for a in names])


def grouped(expression: sp.Expr, by: list[sp.Expr]) -> sp.Expr:
    """Write an expression linear in ``by`` as a sum of factored coefficients times those."""
    expanded = sp.expand(expression)
    collected = sp.collect(expanded, by, evaluate=False)
    return sp.Add(*(sp.factor(coefficient) * name for name, coefficient in collected.items()))
