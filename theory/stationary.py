r"""The stationary law of a linear optimiser, derived from its update rule.

With :math:`z' = A(h) z + b(h)\xi` along each Hessian eigenvector and noise of covariance C, the covariance block of a
pair of eigenvectors (i, j) is constant in time when

.. math:: \Sigma_{ij} = A(h_i)\, \Sigma_{ij}\, A(h_j)^\top + c_{ij}\, b(h_i)\, b(h_j)^\top,

a linear system for the m x m block of the m slots. C and H need not commute: c_ij is an entry of C in the eigenbasis of
H. The optimum enters only the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import sympy as sp

from ..errors import NonStationaryError
from ._exact import is_zero, present, solve_pair_stein
from .assumptions import CONSTANT_HESSIAN, WHITE_NOISE, domains, stable
from .formula import Formula, Step
from .recursion import Recursion, as_optimizer, recursion
from .stability import stability
from .update_rule import Optimizer, UpdateRule

__all__ = ["stationary_covariance", "stationary_mean"]

H_I, H_J = sp.symbols("h_i h_j", nonnegative=True)
C_IJ = sp.Symbol("c_ij", real=True)
W_STAR = sp.Symbol("w_star", real=True)
_PAIR_LATEX = {H_I: "h_i", H_J: "h_j", C_IJ: "c_{ij}", W_STAR: r"w^{*}_i"}


def stationary_covariance(rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None) -> Formula:
    r"""Derive the stationary covariance of two slots for a pair of Hessian eigenvectors.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Hyper-parameters without a value are symbols; those with a default are at the default unless freed
        (``heavy_ball.free("weight_decay")``).
    slots : pair of str
        The weights twice, unless said otherwise; ``("w", "v")`` is the covariance of w_i with v_j.

    Returns
    -------
    Formula
        Valid whether or not C and H commute. Proves the whole block of slots, not only the entry it shows.

    Raises
    ------
    NonStationaryError
        If no hyper-parameters and eigenvalues give a stationary law.
    InvalidRuleError
        If the rule has no such slot.

    Notes
    -----
    Assumes a constant Hessian, gradient noise independent of the weights, and stability at both eigenvalues.

    References
    ----------
    liu2021noise (plain and momentum SGD; implicit there for momentum and C, H that do not commute)

    Examples
    --------
    >>> from sgdcov.theory import sgd, heavy_ball
    >>> print(stationary_covariance(sgd))
    Sigma_ij = c_ij*lr/(-h_i*h_j*lr + h_i + h_j)
    >>> commuting = stationary_covariance(heavy_ball).specialise(h_j="h_i")
    >>> commuting.expression
    c_ij*lr*(momentum + 1)/(h_i*(1 - momentum)*(-h_i*lr + 2*(momentum + 1)))
    """
    optimizer = as_optimizer(rule)
    return _covariance_formula(optimizer, optimizer.pair(slots))


def stationary_mean(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive the stationary mean of the weights along one Hessian eigenvector.

    Weight decay pulls the mean from the optimum w* towards zero. A bare rule is therefore taken here with all its
    hyper-parameters free, those with defaults included.

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula
        Solves :math:`m = A(h) m - h\, b(h)\, w^*` for all slots and shows the first.

    Raises
    ------
    NonStationaryError
        If the recursion has the eigenvalue 1 for every h.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, sgdw
    >>> print(stationary_mean(heavy_ball))
    m_i = h_i*w_star/(h_i + weight_decay)
    >>> print(stationary_mean(sgdw))
    m_i = h_i*w_star/(h_i - weight_decay*(momentum - 1))
    """
    optimizer = rule.free() if isinstance(rule, UpdateRule) else as_optimizer(rule)
    return _mean_formula(optimizer)


@functools.lru_cache(maxsize=256)
def _covariance_formula(optimizer: Optimizer, slots: tuple[str, str]) -> Formula:
    step = recursion(optimizer)
    block, how = _solved_block(optimizer)
    names = optimizer.rule.slots
    slotted = range(len(names))
    unknowns = {(a, b): covariance_symbol(optimizer, names[a], names[b]) for a in slotted for b in slotted}
    solution = {unknowns[key]: value for key, value in block.items()}
    shown = names.index(slots[0]), names.index(slots[1])
    expression = present(block[shown], (H_I, H_J))
    compact = _compact_form(optimizer, block[shown]) if shown == (0, 0) else None
    steps = [
        Step("Trace one step of the rule along a Hessian eigenvector.", _recursion_equation(step)),
        Step("Stationarity of the covariance of a pair of eigenvectors is the Stein equation, entry by entry."),
        *(Step(f"Solve {text}") for text in how),
        Step("Read off the entry asked for.", sp.Eq(unknowns[shown], expression, evaluate=False)),
    ]
    if compact is not None:
        expression = compact
        steps.append(Step("Write it compactly.", sp.Eq(unknowns[shown], compact, evaluate=False)))
    conditions = stability(optimizer)
    at_pair = [c.subs(conditions.h, h) for h in (H_I, H_J) for c in conditions.conditions]
    suffix = optimizer.tag(slots)
    return Formula(
        id=f"{optimizer.rule.name}.stationary_covariance{suffix}",
        equation=sp.Eq(unknowns[shown], expression, evaluate=False),
        symbols={"h_i": H_I, "h_j": H_J, "c_ij": C_IJ, **optimizer.symbols},
        assumptions=(CONSTANT_HESSIAN, WHITE_NOISE, stable(tuple(at_pair)), *domains(optimizer)),
        defining=_stein_equations(step, unknowns),
        solution=solution,
        references=("liu2021noise", *optimizer.rule.references),
        derivation=tuple(steps),
        symbol_latex={**_symbol_latex(optimizer), **{s: _covariance_latex(names, k) for k, s in unknowns.items()}},
    )


@functools.lru_cache(maxsize=256)
def _solved_block(optimizer: Optimizer) -> tuple[Mapping[tuple[int, int], sp.Expr], tuple[str, ...]]:
    step = recursion(optimizer)
    shift = _curvature_shift(optimizer, step)
    transition, gain = step.transition, step.noise_gain
    if shift is not None:
        transition, gain = transition.subs(shift, 0), gain.subs(shift, 0)
    pair = [(m.subs(step.h, H_I), m.subs(step.h, H_J)) for m in (transition, gain)]
    try:
        block, how = solve_pair_stein(pair[0][0], pair[0][1], pair[1][0] * pair[1][1].T)
    except ZeroDivisionError as error:
        raise NonStationaryError(
            f"{optimizer!r} has no stationary law for any Hessian eigenvalue: {error} A mode of its recursion has "
            f"modulus 1 whatever the curvature."
        ) from error
    names = optimizer.rule.slots
    together = [", ".join(f"Cov({names[a]}, {names[b]})" for a, b in entries) for entries in how]
    steps = [f"the equations for {covariances} together, exactly." for covariances in together]
    if shift is not None:
        back = {H_I: H_I + shift, H_J: H_J + shift}
        block = {key: value.subs(back, simultaneous=True) for key, value in block.items()}
        steps.append(f"all with {shift} = 0, and put h + {shift} for h: the recursion depends on h + {shift} only.")
    return {key: C_IJ * value for key, value in block.items()}, tuple(steps)


def _curvature_shift(optimizer: Optimizer, step: Recursion) -> sp.Symbol | None:
    """Find a symbol that only ever adds to h (coupled weight decay): one variable less to carry."""
    for name in optimizer.unbound:
        symbol = optimizer.rule[name].symbol
        entries = [*step.transition, *step.noise_gain]
        if any(e.has(symbol) for e in entries) and all(
            is_zero(e - e.subs(symbol, 0).subs(step.h, step.h + symbol)) for e in entries
        ):
            return symbol
    return None


def _stein_equations(step: Recursion, unknowns: Mapping[tuple[int, int], sp.Symbol]) -> tuple[sp.Eq, ...]:
    size = len(step.slots)
    covariance = sp.Matrix(size, size, lambda a, b: unknowns[a, b])
    left, right = step.transition.subs(step.h, H_I), step.transition.subs(step.h, H_J)
    drive = step.noise_gain.subs(step.h, H_I) * step.noise_gain.subs(step.h, H_J).T
    moved = left * covariance * right.T + C_IJ * drive
    return tuple(sp.Eq(covariance[a, b], moved[a, b], evaluate=False) for a in range(size) for b in range(size))


@functools.lru_cache(maxsize=256)
def _mean_formula(optimizer: Optimizer) -> Formula:
    step = recursion(optimizer)
    names = optimizer.rule.slots
    unknowns = [sp.Symbol("m_i" if k == 0 else f"m_{name}_i", real=True) for k, name in enumerate(names)]
    increment = step.increment.subs(step.h, H_I)
    drive = (H_I * step.noise_gain.subs(step.h, H_I) * W_STAR).applyfunc(sp.expand)
    if is_zero(increment.det()):
        raise NonStationaryError(
            f"{optimizer!r} keeps a memory of its start for every Hessian eigenvalue: its recursion always has the "
            f"eigenvalue 1, so the mean has no stationary value."
        )
    mean = increment.LUsolve(drive) if len(names) == 1 else increment.adjugate() * drive / increment.det()
    solution = {s: sp.cancel(sp.together(v)) for s, v in zip(unknowns, mean, strict=True)}
    moved = step.transition.subs(step.h, H_I) * sp.Matrix(unknowns) - drive
    shown = sp.Eq(unknowns[0], present(solution[unknowns[0]], (H_I,)), evaluate=False)
    conditions = stability(optimizer)
    return Formula(
        id=f"{optimizer.rule.name}.stationary_mean",
        equation=shown,
        symbols={"h_i": H_I, "w_star": W_STAR, **optimizer.symbols},
        assumptions=(
            CONSTANT_HESSIAN,
            WHITE_NOISE,
            stable(tuple(c.subs(conditions.h, H_I) for c in conditions.conditions)),
            *domains(optimizer),
        ),
        defining=tuple(sp.Eq(s, m, evaluate=False) for s, m in zip(unknowns, moved, strict=True)),
        solution=solution,
        references=optimizer.rule.references,
        derivation=(
            Step("Trace one step of the rule along a Hessian eigenvector.", _recursion_equation(step)),
            Step("Every gradient carries -h w* beside the noise, so the mean obeys m = A m - h b w*."),
            Step("Solve for the mean.", shown),
        ),
        symbol_latex=_symbol_latex(optimizer),
    )


def _compact_form(optimizer: Optimizer, derived: sp.Expr) -> sp.Expr | None:
    """Return momentum SGD's covariance as it is cited, if it is proved equal to the derived one; else None."""
    values, zero = optimizer.exact, sp.Integer(0)
    if not {"lr", "momentum"} <= set(values):
        return None
    lr, mu = values["lr"] * (1 - values.get("dampening", zero)), values["momentum"]
    a, b = (h + values.get("weight_decay", zero) for h in (H_I, H_J))
    drift = (1 - mu) * ((1 + mu) * (a + b) - lr * a * b)
    compact = lr * (1 + mu) * C_IJ / (drift + lr * mu * (a - b) ** 2 / (1 - mu))
    return compact if is_zero(compact - derived) else None


def _recursion_equation(step: Recursion) -> sp.Eq:
    state = sp.Matrix([sp.Symbol(name) for name in step.slots])
    after = sp.Matrix([sp.Symbol(f"{name}'") for name in step.slots])
    moved = sp.Add(sp.MatMul(step.transition, state, evaluate=False), sp.Symbol("xi") * step.noise_gain, evaluate=False)
    return sp.Eq(after, moved, evaluate=False)


def covariance_symbol(optimizer: Optimizer, first: str, second: str) -> sp.Symbol:
    return sp.Symbol(f"Sigma_ij{optimizer.tag((first, second))}", real=True)


def _covariance_latex(names: tuple[str, ...], key: tuple[int, int]) -> str:
    first, second = (names[k].replace("_", r"\_") for k in key)
    return r"\Sigma_{ij}" if key == (0, 0) else rf"\Sigma^{{\mathrm{{{first},{second}}}}}_{{ij}}"


def _symbol_latex(optimizer: Optimizer) -> dict[sp.Symbol, str]:
    return {**_PAIR_LATEX, **{p.symbol: p.latex for p in optimizer.rule.hyperparameters}}
