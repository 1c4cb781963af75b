r"""Fourth moments of a Gaussian vector: Isserlis' theorem, from the derivatives of the generating function."""

from __future__ import annotations

import sympy as sp

from .assumptions import Assumption
from .formula import Formula, Step

__all__ = ["gaussian_fourth_moment"]


def gaussian_fourth_moment() -> Formula:
    r"""Prove Isserlis' theorem as it is used here: :math:`\mathrm{E}[x x^\top M x x^\top] = 2AMA + \mathrm{tr}(AM)A`.

    Returns
    -------
    Formula
        For x ~ N(0, A) and symmetric M. Proved from the fourth derivatives of the moment generating function
        exp(t'At/2) at 0, and for the entries in an eigenbasis of A, on the diagonal and off it.

    References
    ----------
    isserlis1918

    Examples
    --------
    >>> gaussian_fourth_moment().prove()
    <Proof of isserlis1918.fourth_moment: 4 claims hold exactly>
    """
    a_i, a_j = sp.symbols("a_i a_j", nonnegative=True)
    m_ii, m_ij, trace = sp.symbols("M_ii M_ij trace_AM", real=True)
    diagonal, mixed = sp.symbols("E_ii E_ij", real=True)
    fourth = 3 * a_i**2  # E x_i^4, from the first identity with all indices equal
    d = sp.Symbol("d", integer=True, positive=True)
    cov, weight, x = sp.MatrixSymbol("A", d, d), sp.MatrixSymbol("M", d, d), sp.MatrixSymbol("x", d, 1)
    moment = sp.Function("E")(x * x.T * weight * x * x.T)
    return Formula(
        id="isserlis1918.fourth_moment",
        equation=sp.Eq(moment, 2 * cov * weight * cov + sp.Trace(cov * weight) * cov, evaluate=False),
        symbols={},
        assumptions=(Assumption("Gaussian", "x ~ N(0, A), and M is symmetric"),),
        defining=(
            sp.Eq(diagonal, m_ii * fourth + (trace - a_i * m_ii) * a_i, evaluate=False),
            sp.Eq(mixed, 2 * m_ij * a_i * a_j, evaluate=False),
        ),
        solution={diagonal: 2 * a_i**2 * m_ii + trace * a_i, mixed: 2 * a_i * m_ij * a_j},
        references=("isserlis1918",),
        derivation=(
            Step("The fourth derivatives of exp(t'At/2) at 0 are the three pairings."),
            Step("In an eigenbasis of A, an entry off the diagonal keeps the two orders of x_i x_j."),
            Step("An entry on the diagonal is M_ii E x_i^4 + sum over j other than i of M_jj E x_i^2 E x_j^2."),
        ),
        identities=(
            ("E x_i x_j x_k x_l = A_ij A_kl + A_ik A_jl + A_il A_jk", _pairings()),
            ("E x_i^4 = 3 a_i^2", _fourth_power() - 3 * sp.Symbol("A00") ** 2),
        ),
    )  # fmt: skip


def _generating() -> sp.Expr:
    """Return exp(t'At/2) for four directions up to its fourth order."""
    t = sp.Matrix(sp.symbols("t0:4"))
    cov = sp.Matrix(4, 4, lambda i, j: sp.Symbol(f"A{min(i, j)}{max(i, j)}"))
    exponent = sp.expand((t.T * cov * t)[0] / 2)
    return sp.expand(1 + exponent + exponent**2 / 2)


def _at_zero() -> dict[sp.Symbol, int]:
    return dict.fromkeys(sp.symbols("t0:4"), 0)


def _pairings() -> sp.Expr:
    derived = sp.diff(_generating(), *sp.symbols("t0:4")).subs(_at_zero())
    a = {pair: sp.Symbol(f"A{pair}") for pair in ("01", "23", "02", "13", "03", "12")}
    return sp.expand(derived - a["01"] * a["23"] - a["02"] * a["13"] - a["03"] * a["12"])


def _fourth_power() -> sp.Expr:
    return sp.diff(_generating(), sp.Symbol("t0"), 4).subs(_at_zero())
