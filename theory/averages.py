r"""Memory and averages at the stationary law: autocovariance, autocorrelation time, means of the last K iterates.

With Z the stationary covariance of all slots, the autocovariance at lag s is :math:`A^s Z`. The covariance of the mean
of K successive states is

.. math:: \frac{1}{K^2}\big[K Z + F Z + Z F^\top\big], \qquad
          F = \sum_{s=1}^{K-1} (K-s) A^s = K A E^{-1} - A (I - A^K) E^{-2}, \quad E = I - A,

for a pair of eigenvectors with A_i on the left and A_j on the right. As K grows it tends to
:math:`c_{ij} E_i^{-1} b_i b_j^\top E_j^{-\top}/K`, which for the weights is the sandwich :math:`H^{-1} C H^{-1}/K`.
"""

from __future__ import annotations

import functools

import sympy as sp

from ._exact import present
from .formula import Formula, Step
from .powers import MatrixPower, Roots, characteristic_sequence, matrix_power, regime, sequence_at
from .recursion import as_optimizer
from .stationary import C_IJ, H_I, H_J, stationary_covariance
from .transient import grouped, root_latex, stationary_symbols
from .update_rule import Optimizer, UpdateRule

__all__ = ["autocorrelation_time", "autocovariance", "average_covariance", "sandwich_limit"]

LAG = sp.Symbol("s", integer=True, nonnegative=True)
WINDOW = sp.Symbol("K", integer=True, positive=True)


def autocovariance(
    rule: UpdateRule | Optimizer, slots: tuple[str, str] | None = None, *, roots: Roots = "distinct"
) -> Formula:
    """Derive the covariance of one slot with another one s steps earlier, at the stationary law.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    slots : pair of str
        ``(a, b)`` is the covariance of slot a at h_i, s steps later, with slot b at h_j.
    roots : {"distinct", "repeated", "complex"}
        Form of the characteristic sequence at h_i.

    Returns
    -------
    Formula

    Raises
    ------
    InvalidRuleError
        If the rule has no such slot, or the roots have no closed form.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(autocovariance(sgd))
    Gamma_ij(s) = Sigma_ij*p_i(s)
    """
    optimizer = as_optimizer(rule)
    slots = optimizer.pair(slots)
    power = matrix_power(optimizer, H_I, slots)
    values, where = sequence_at(power, "i", roots, LAG)
    limit = stationary_covariance(optimizer, slots)
    settled = stationary_symbols(optimizer, power.slots)
    row = power.at(values).row(power.slots.index(slots[0]))
    expression = grouped((row * settled)[power.slots.index(slots[1])], list(settled))
    shown = sp.Eq(sp.Function("Gamma_ij")(LAG), expression, evaluate=False)
    suffix = optimizer.tag(slots)
    return Formula(
        id=f"{optimizer.rule.name}.autocovariance{suffix}",
        equation=shown,
        symbols={"s": LAG, **limit.symbols},
        assumptions=(*limit.assumptions, regime(power, roots)),
        defining=(),
        solution={},
        references=optimizer.rule.references,
        derivation=(Step("Later noise is independent of the earlier state, so the lag multiplies by A^s.", shown),),
        where={**{z: limit.solution[z] for z in settled}, **where},
        identities=power.identities(),
        lemmas=(limit, characteristic_sequence(optimizer, roots, slots=slots)),
        symbol_latex={**limit.symbol_latex, **root_latex(where)},
    )


def autocorrelation_time(rule: UpdateRule | Optimizer) -> Formula:
    """Derive the integrated autocorrelation time of the weights along one eigenvector, 1 + 2 sum_s rho(s).

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula
        May be below 1: with momentum and a large learning rate successive iterates are anti-correlated.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, sgd
    >>> print(autocorrelation_time(sgd))
    tau_i = (-h_i*lr + 2)/(h_i*lr)
    >>> print(autocorrelation_time(heavy_ball))
    tau_i = (1 - momentum)*(-h_i*lr + 2*(momentum + 1))/(h_i*lr*(momentum + 1))
    """
    optimizer = as_optimizer(rule)
    power = matrix_power(optimizer, H_I, optimizer.rule.slots[:1])
    limit = sandwich_limit(optimizer).specialise(h_j="h_i")
    law = stationary_covariance(optimizer).specialise(h_j="h_i")
    expression = present(limit.expression / law.expression, (H_I,))
    later = (power.transition * _resolvent(power)).row(0)
    first_column = [law.solution[z] for z in stationary_symbols(optimizer, power.slots).col(0)]
    summed = sp.Add(*(2 * g * z for g, z in zip(later, first_column, strict=True)), (1 - expression) * law.expression)
    shown = sp.Eq(sp.Symbol("tau_i", positive=True), expression, evaluate=False)
    return Formula(
        id=f"{optimizer.rule.name}.autocorrelation_time",
        equation=shown,
        symbols={role: s for role, s in law.symbols.items() if role != "c_ij"},
        assumptions=law.assumptions,
        defining=(),
        solution={},
        references=optimizer.rule.references,
        derivation=(Step("A long mean has the variance Sigma_ii tau/K.", shown),),
        identities=(("tau Sigma_ii = Sigma_ii + 2 (sum of A^s Z over s from 1)_ww", summed),),
        lemmas=(sandwich_limit(optimizer),),
        symbol_latex={**law.symbol_latex, shown.lhs: r"\tau_i"},
    )


def average_covariance(
    rule: UpdateRule | Optimizer, *, roots: tuple[Roots, Roots] = ("distinct", "distinct")
) -> Formula:
    """Derive the covariance of the mean of K successive iterates at the stationary law (SWA, Polyak-Ruppert).

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    roots : pair of {"distinct", "repeated", "complex"}
        Forms of the characteristic sequence at h_i and at h_j.

    Returns
    -------
    Formula
        Exact for every K; `sandwich_limit` is what K times it tends to.

    References
    ----------
    polyak1992 (the limit)

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> mean = average_covariance(sgd).specialise(K=1)
    >>> sp.simplify(mean.explicit() - mean.where[sp.Symbol("Sigma_ij", real=True)])
    0
    """
    optimizer = as_optimizer(rule)
    powers = [matrix_power(optimizer, h, optimizer.rule.slots[:1]) for h in (H_I, H_J)]
    limit = stationary_covariance(optimizer)
    settled = stationary_symbols(optimizer, powers[0].slots)
    (values_i, where_i), (values_j, where_j) = (
        sequence_at(power, index, form, WINDOW) for power, index, form in zip(powers, "ij", roots, strict=True)
    )
    left, right = (_weighted_sum(p, WINDOW, v).row(0) for p, v in zip(powers, (values_i, values_j), strict=True))
    total = WINDOW * settled[0, 0] + (left * settled.col(0))[0] + (settled.row(0) * right.T)[0]
    shown = sp.Eq(sp.Symbol("average_ij", real=True), grouped(total, list(settled)) / WINDOW**2, evaluate=False)
    return Formula(
        id=f"{optimizer.rule.name}.average_covariance",
        equation=shown,
        symbols={"K": WINDOW, **limit.symbols},
        assumptions=(*limit.assumptions,
                     *dict.fromkeys(regime(p, form) for p, form in zip(powers, roots, strict=True))),
        defining=(),
        solution={},
        references=("polyak1992", *optimizer.rule.references),
        derivation=(
            Step("The covariance of a mean is the double sum of autocovariances over the window."),
            Step("Sum the powers of A with their multiplicities K - s.", shown),
        ),
        where={**{z: limit.solution[z] for z in settled}, **where_i, **where_j},
        identities=(*powers[0].identities(), *_sum_identities(powers[0])),
        lemmas=(limit, *(characteristic_sequence(optimizer, form) for form in dict.fromkeys(roots))),
        symbol_latex={
            **limit.symbol_latex,
            shown.lhs: r"\overline{\Sigma}_{ij}",
            **root_latex([*where_i, *where_j]),
        },
    )


def sandwich_limit(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive what K times the covariance of the mean of K iterates tends to.

    Without weight decay it is :math:`H^{-1} C H^{-1}`, for every stable learning rate and every rule whose steps add up
    to the same total for the same gradient.

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula

    References
    ----------
    polyak1992

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, nesterov, qhm, sgd
    >>> {str(sandwich_limit(rule).expression) for rule in (sgd, heavy_ball, nesterov, qhm)}
    {'c_ij/(h_i*h_j)'}
    """
    return _sandwich(as_optimizer(rule))


@functools.lru_cache(maxsize=64)
def _sandwich(optimizer: Optimizer) -> Formula:
    powers = [matrix_power(optimizer, h, optimizer.rule.slots[:1]) for h in (H_I, H_J)]
    limit = stationary_covariance(optimizer)
    settled = stationary_symbols(optimizer, powers[0].slots)
    gains = [(_resolvent(p) * p.noise_gain)[0] for p in powers]
    expression = present(C_IJ * gains[0] * gains[1], (H_I, H_J))
    left, right = ((p.transition * _resolvent(p)).row(0) for p in powers)
    total = settled[0, 0] + (left * settled.col(0))[0] + (settled.row(0) * right.T)[0]
    residual = sp.Poly(total, *settled)
    values = [limit.solution[z] for z in settled]
    summed = sp.Add(
        *(sp.Mul(c, *(v**n for v, n in zip(values, order, strict=True))) for order, c in residual.terms()), -expression
    )
    shown = sp.Eq(sp.Symbol("Omega_ij", real=True), expression, evaluate=False)
    return Formula(
        id=f"{optimizer.rule.name}.sandwich_limit",
        equation=shown,
        symbols={r: s for r, s in limit.symbols.items() if r in ("h_i", "h_j", "c_ij") or expression.has(s)},
        assumptions=limit.assumptions,
        defining=(),
        solution={},
        references=("polyak1992", *optimizer.rule.references),
        derivation=(
            Step("The powers of A vanish as K grows, and Z + A E^(-1) Z + Z A' E'^(-1) remains."),
            Step("By the Stein equation that is c E^(-1) b b' E'^(-1); its first entry is", shown),
        ),
        identities=(("Z + A E^(-1) Z + Z A' E'^(-1) = c E^(-1) b b' E'^(-1), weights", summed),),
        lemmas=(limit,),
        symbol_latex={**limit.symbol_latex, shown.lhs: r"\Omega_{ij}"},
    )


def _resolvent(power: MatrixPower) -> sp.Matrix:
    """Return (I - A)^(-1)."""
    difference = sp.eye(len(power.slots)) - power.transition
    determinant = sp.factor(difference.det())
    return (difference.adjugate() / determinant).applyfunc(sp.factor)


def _weighted_sum(power: MatrixPower, window: sp.Expr, values: list[sp.Expr]) -> sp.Matrix:
    """Return sum_{s<K} (K - s) A^s for s from 1, given the values of the characteristic sequence at K, K-1, ..."""
    inverse = _resolvent(power)
    moved = power.transition * inverse
    return window * moved - moved * (sp.eye(len(power.slots)) - power.at(values)) * inverse


def _sum_identities(power: MatrixPower) -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that the weighted sum starts at 0 and grows by A + ... + A^K from K to K + 1."""
    size = len(power.slots)
    window = sp.Symbol("K")
    now = list(sp.symbols(f"p0:{size}"))
    later = [-sum(d * p for d, p in zip(power.coefficients, now, strict=True)), *now[:-1]]
    first = [-power.coefficients[0], sp.Integer(1), *[sp.Integer(0)] * size][:size]
    grown = _weighted_sum(power, window + 1, later) - _weighted_sum(power, window, now)
    geometric = power.transition * (sp.eye(size) - power.at(now)) * _resolvent(power)
    growth = [(f"F(K+1) - F(K) = A + ... + A^K, entry {n}", e) for n, e in enumerate(grown - geometric)]
    start = [(f"F(1) = 0, entry {n}", e) for n, e in enumerate(_weighted_sum(power, sp.Integer(1), first))]
    return (*growth, *start)
