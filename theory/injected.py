r"""Injected noise: Langevin, fresh labels, dropout and Gaussian noise on the inputs of a linear model.

Langevin dynamics at inverse temperature :math:`\beta` adds :math:`2/(\beta\eta)` to the noise of every gradient, fresh
label noise adds :math:`(\sigma^2/B) H`. Corrupted inputs :math:`\tilde x = x + e` add curvature,
:math:`\mathrm{E}[\tilde x\tilde x^\top] = x x^\top + D_2`, and make the noise depend on the weights through
:math:`\mathrm{E}[\tilde x\tilde x^\top M \tilde x\tilde x^\top]`, which its central moments determine.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import sympy as sp

from ..errors import InvalidRuleError
from .assumptions import Assumption
from .formula import Formula, Step
from .gaussian_minibatch import LABEL_NOISE
from .minibatch import BATCH_SIZE, rule_latex
from .recursion import as_optimizer
from .stationary import C_IJ, H_I, H_J, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "corrupted_fourth_moment",
    "dropout_moments",
    "input_noise_moments",
    "label_noise_covariance",
    "langevin_covariance",
]

SAME = sp.Symbol("delta_ij", nonnegative=True)
INVERSE_TEMPERATURE = sp.Symbol("inverse_temperature", positive=True)
INDEPENDENT_ENTRIES = Assumption(
    "independent entries", "given the example, the entries of the corruption e are independent and have mean 0"
)
DROPOUT = sp.Symbol("rate", nonnegative=True)
INPUT_STD = sp.Symbol("std", nonnegative=True)


def langevin_covariance(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive the stationary covariance with Langevin noise of inverse temperature beta added to every gradient (SGLD).

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With a learning rate ``lr``.

    Returns
    -------
    Formula
        ``delta_ij`` is 1 for i = j and 0 otherwise. Without momentum the noise added to the weights has the variance
        2 lr/beta. With momentum it matters where the noise enters: here it enters with the gradient.

    Raises
    ------
    InvalidRuleError
        If the rule has no ``lr``.

    References
    ----------
    welling2011

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> print(langevin_covariance(sgd))
    Sigma_ij = lr*(c_ij + 2*delta_ij/(inverse_temperature*lr))/(-h_i*h_j*lr + h_i + h_j)
    """
    optimizer = as_optimizer(rule)
    law = stationary_covariance(optimizer)
    if "lr" not in optimizer.exact:
        raise InvalidRuleError(f"{optimizer.rule.name} has no hyper-parameter lr to scale Langevin noise with.")
    drawn = C_IJ + 2 * SAME / (INVERSE_TEMPERATURE * optimizer.exact["lr"])
    expression = law.expression.subs(C_IJ, drawn)
    return _with_noise(optimizer, "langevin_covariance", drawn, expression,
                       {"delta_ij": SAME, "inverse_temperature": INVERSE_TEMPERATURE}, ("welling2011",),
                       "Langevin noise adds 2/(inverse_temperature*lr) to every variance of the gradient.")  # fmt: skip


def label_noise_covariance(rule: UpdateRule | Optimizer) -> Formula:
    r"""Derive the stationary covariance under fresh label noise alone, of variance :math:`\sigma^2`.

    Parameters
    ----------
    rule : UpdateRule or Optimizer

    Returns
    -------
    Formula
        For a pair of eigenvectors of the Hessian; 0 off the diagonal. No finite-population factor: labels are drawn
        anew at every step.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> label_noise_covariance(sgd).specialise(h_j="h_i", delta_ij=1).expression
    label_noise**2*lr/(batch_size*(-h_i*lr + 2))
    """
    optimizer = as_optimizer(rule)
    drawn = SAME * LABEL_NOISE**2 * H_I / BATCH_SIZE
    expression = stationary_covariance(optimizer).expression.subs(C_IJ, drawn)
    own = {"delta_ij": SAME, "label_noise": LABEL_NOISE, "batch_size": BATCH_SIZE}
    return _with_noise(optimizer, "label_noise_covariance", drawn, expression, own, (),
                       "Label noise brings the gradient noise x epsilon, of covariance label_noise^2 H/B.")  # fmt: skip


def _with_noise(
    optimizer: Optimizer,
    name: str,
    drawn: sp.Expr,
    expression: sp.Expr,
    own: dict[str, sp.Symbol],
    references: tuple[str, ...],
    text: str,
) -> Formula:
    """Return the stationary covariance of a rule for a given noise covariance, proved by its Stein equations."""
    law = stationary_covariance(optimizer)
    noise = sp.Symbol("C_ij", real=True)
    shown = law.equation.lhs
    kept = {"c_ij": C_IJ} if drawn.has(C_IJ) else {}
    return Formula(
        id=f"{optimizer.rule.name}.{name}",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"h_i": H_I, "h_j": H_J, **kept, **own, **optimizer.symbols},
        assumptions=law.assumptions,
        defining=(
            sp.Eq(noise, drawn, evaluate=False),
            *(sp.Eq(e.lhs, e.rhs.subs(C_IJ, noise), evaluate=False) for e in law.defining),
        ),
        solution={noise: drawn, **{s: v.subs(C_IJ, drawn) for s, v in law.solution.items()}},
        references=(*references, *optimizer.rule.references),
        derivation=(Step(text, sp.Eq(noise, drawn, evaluate=False)), *law.derivation),
        symbol_latex={**law.symbol_latex, **rule_latex(optimizer), noise: "C_{ij}", SAME: r"\delta_{ij}",
                      LABEL_NOISE: r"\sigma", INVERSE_TEMPERATURE: r"\beta_T"},
    )  # fmt: skip


@functools.cache
def corrupted_fourth_moment(*, diagonal: bool = False) -> Formula:
    r"""Derive an entry (k, l) of :math:`\mathrm{E}[(\tilde x^\top M\tilde x)\,\tilde x\tilde x^\top]`, given x.

    Parameters
    ----------
    diagonal : bool
        The entry k = l, which also knows the third and fourth moments of one entry together.

    Returns
    -------
    Formula
        In x_k, x_l, the central moments ``m2_k``, ``m3_k``, ``m4_k`` of the corruption of entry k (and l), the entries
        of M, ``v_k`` = (Mx)_k, ``Q`` = x'Mx and ``t`` = sum of M_jj m2_j over all entries. Proved by multiplying
        everything out with four entries, of which two are others: the claim is linear in M, whose entries name no more
        than two.

    Examples
    --------
    >>> off = corrupted_fourth_moment()
    >>> no_corruption = {role: 0 for role in off.symbols if role[0] == "m" or role == "t"}
    >>> print(off.specialise(**no_corruption))
    E_kl = Q*x_k*x_l
    """
    x_k, x_l, v_k, v_l, q, t = sp.symbols("x_k x_l v_k v_l Q t", real=True)
    m_kk, m_ll, m_kl = sp.symbols("M_kk M_ll M_kl", real=True)
    (k2, k3, k4), (l2, l3) = sp.symbols("m2_k m3_k m4_k", real=True), sp.symbols("m2_l m3_l", real=True)
    if diagonal:
        expression = (q + t) * (x_k**2 + k2) + 4 * x_k * v_k * k2 + 2 * x_k * m_kk * k3 + 2 * v_k * k3
        expression += 2 * m_kk * k2**2 + m_kk * (k4 - 3 * k2**2)
        symbols: tuple[sp.Symbol, ...] = (x_k, v_k, q, t, m_kk, k2, k3, k4)
    else:
        expression = (q + t) * x_k * x_l + 2 * x_k * v_l * l2 + 2 * x_l * v_k * k2
        expression += x_k * m_ll * l3 + x_l * m_kk * k3 + 2 * k2 * l2 * m_kl
        symbols = (x_k, x_l, v_k, v_l, q, t, m_kk, m_ll, m_kl, k2, l2, k3, l3)
    shown = sp.Symbol("E_kk" if diagonal else "E_kl", real=True)
    x, m, moments = _four_entries()
    row, column = (0, 0) if diagonal else (0, 1)
    product = _expected(x, m, moments, row, column)
    named = {
        x_k: x[0], x_l: x[1], v_k: (m * x)[0], v_l: (m * x)[1], q: (x.T * m * x)[0],
        t: sum(m[n, n] * moments[n][2] for n in range(4)), m_kk: m[0, 0], m_ll: m[1, 1], m_kl: m[0, 1],
        k2: moments[0][2], k3: moments[0][3], k4: moments[0][4], l2: moments[1][2], l3: moments[1][3],
    }  # fmt: skip
    return Formula(
        id=f"corrupted_fourth_moment[{'k = l' if diagonal else 'k other than l'}]",
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={s.name: s for s in symbols},
        assumptions=(INDEPENDENT_ENTRIES, Assumption("symmetric", "M is symmetric")),
        defining=(),
        solution={},
        references=("bishop1995, the curvature", "srivastava2014, dropout"),
        derivation=(
            Step("Expand in e and keep what has no single e: (Q + t)(x_k x_l), crossed terms, and M_kl m2_k m2_l."),
            Step("Add up.", sp.Eq(shown, expression, evaluate=False)),
        ),
        identities=(("multiplied out with four entries", sp.expand(product - expression.subs(named))),),
    )


def _four_entries() -> tuple[sp.Matrix, sp.Matrix, list[tuple[sp.Expr, ...]]]:
    x = sp.Matrix(sp.symbols("x0:4", real=True))
    m = sp.Matrix(4, 4, lambda a, b: sp.Symbol(f"M{min(a, b)}{max(a, b)}", real=True))
    one, zero = sp.Integer(1), sp.Integer(0)
    return x, m, [(one, zero, *sp.symbols(f"m2_{n} m3_{n} m4_{n}", real=True)) for n in range(4)]


def _expected(x: sp.Matrix, m: sp.Matrix, moments: list[tuple[sp.Expr, ...]], row: int, column: int) -> sp.Expr:
    """Multiply out (x + e)'M(x + e) (x + e)_row (x + e)_column and put moments for the powers of every e."""
    total = sp.Integer(0)
    for a, b in itertools.product(range(4), repeat=2):
        for kept in itertools.product((True, False), repeat=4):  # which of the four factors give x, not e
            factors = list(zip((a, b, row, column), kept, strict=True))
            orders = [sum(1 for n, is_x in factors if not is_x and n == entry) for entry in range(4)]
            given = sp.Mul(*(x[n] for n, is_x in factors if is_x))
            total += m[a, b] * given * sp.Mul(*(moments[n][order] for n, order in enumerate(orders)))
    return total


def dropout_moments() -> Formula:
    r"""Derive what inverted dropout of the inputs adds: curvature q/(1-q) diag(A), and its central moments.

    Returns
    -------
    Formula
        Each entry x of an input is 0 with probability q = ``rate`` and x/(1-q) otherwise. The parts ``m2``, ``m3``,
        ``m4`` are the central moments given x, for `corrupted_fourth_moment`; the equation shown is the curvature of a
        linear model for entry (k, l) of the data's second moment A, with ``delta_kl``.

    References
    ----------
    srivastava2014

    Examples
    --------
    >>> print(dropout_moments())
    H_kl = A_kl*delta_kl*rate/(1 - rate) + A_kl
    >>> print(dropout_moments().parts["m2"])
    rate*x**2/(1 - rate)
    """
    x, q = sp.Symbol("x", real=True), DROPOUT
    m2, m3, m4 = (
        x**2 * q / (1 - q),
        x**3 * q * (2 * q - 1) / (1 - q) ** 2,
        x**4 * q * (1 - 3 * q + 3 * q**2) / (1 - q) ** 3,
    )
    outcomes = ((1 - q, x / (1 - q)), (q, sp.Integer(0)))

    def central(order: int) -> sp.Expr:
        return sp.Add(*(probability * (value - x) ** order for probability, value in outcomes))

    return _curvature("dropout_moments", q, "rate", x, (m2, m3, m4), central, ("srivastava2014",),
                      lambda a, same: a + a * same * q / (1 - q))  # fmt: skip


def input_noise_moments() -> Formula:
    r"""Derive what Gaussian noise on the inputs adds: curvature tau^2 I, and the central moments of its noise.

    Returns
    -------
    Formula
        ``std`` is tau. As `dropout_moments`, with moments that do not depend on x.

    References
    ----------
    bishop1995

    Examples
    --------
    >>> print(input_noise_moments())
    H_kl = A_kl + delta_kl*std**2
    """
    x, tau = sp.Symbol("x", real=True), INPUT_STD
    # Moments of N(0, tau^2) by E[e^(n+1)] = n tau^2 E[e^(n-1)].
    values = {0: sp.Integer(1), 1: sp.Integer(0)}
    for order in range(1, 4):
        values[order + 1] = order * tau**2 * values[order - 1]
    return _curvature("input_noise_moments", tau, "std", x, (tau**2, sp.Integer(0), 3 * tau**4), values.__getitem__,
                      ("bishop1995",), lambda a, same: a + same * tau**2)  # fmt: skip


def _curvature(
    name: str,
    parameter: sp.Symbol,
    role: str,
    x: sp.Symbol,
    moments: tuple[sp.Expr, sp.Expr, sp.Expr],
    central: Callable[[int], sp.Expr],
    references: Iterable[str],
    curvature: Callable[[sp.Expr, sp.Expr], sp.Expr],
) -> Formula:
    entry, same, shown = (
        sp.Symbol("A_kl", real=True),
        sp.Symbol("delta_kl", nonnegative=True),
        sp.Symbol("H_kl", real=True),
    )
    claims = [("the corruption has mean 0", central(1))]
    claims += [(f"central moment {n}", central(n) - m) for n, m in zip((2, 3, 4), moments, strict=True)]
    claims.append(("on the diagonal E x~^2 = x^2 + m2", curvature(x**2, sp.Integer(1)) - x**2 - moments[0]))
    claims.append(("off the diagonal entries are independent", curvature(entry, sp.Integer(0)) - entry))
    expression = curvature(entry, same)
    return Formula(
        id=name,
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols={"A_kl": entry, "delta_kl": same, role: parameter},
        assumptions=(INDEPENDENT_ENTRIES,),
        defining=(),
        solution={},
        references=tuple(references),
        derivation=(
            Step("Given x, the second moment of the corrupted input is x x' plus the variances on the diagonal."),
            Step("Average over the examples.", sp.Eq(shown, expression, evaluate=False)),
        ),
        parts={"m2": moments[0], "m3": moments[1], "m4": moments[2]},
        identities=tuple(claims),
        symbol_latex={entry: "A_{kl}", same: r"\delta_{kl}", shown: "H_{kl}", INPUT_STD: r"\tau", DROPOUT: "q"},
    )
