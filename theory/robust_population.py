r"""Adversarial linear regression on Gaussian data: risk, gradient, Hessian with its kink, and gradient noise.

Examples :math:`x \sim N(0, S)`, :math:`y = x^\top w_0 + \sigma N(0, 1)`. With :math:`v^2 = (w-w_0)^\top S (w-w_0) +
\sigma^2` the variance of the residual, :math:`a = S(w - w_0)`, N the dual norm of the weights with gradient u and
Hessian K, :math:`t = \epsilon N` and :math:`c_0 = \sqrt{2/\pi}`, the mean of |N(0, 1)|:

.. math::

    R = \tfrac12(v^2 + 2c_0tv + t^2), \qquad
    \nabla R = \Big(1 + \frac{c_0t}{v}\Big)a + \epsilon(t + c_0v)u .

The Hessian of R is *not* the mean of the examples' Hessians: where a residual changes sign the gradient of its example
jumps by 2t x, which adds the density of such examples, :math:`2t f_r(0)\,\mathrm{E}[xx^\top | r = 0]`. No example's own
Hessian shows it, yet SGD follows it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import sympy as sp

from ._attacked import G_I, H_IJ, attack, named, norm_key
from .assumptions import Assumption
from .dual_norm import K_IJ, NORM, NORM_LATEX, RADIUS, U_I, U_J, derive, dual_norm, dual_norm_curvature, norm_symbols
from .formula import Formula, Step

__all__ = [
    "absolute_gaussian_moments",
    "mean_example_hessian",
    "robust_gradient",
    "robust_hessian",
    "robust_kink",
    "robust_noise",
    "robust_risk",
]

C0 = sp.Symbol("c0", positive=True)
DENSITY = sp.Symbol("phi0", positive=True)  # of N(0, 1) at 0
V = sp.Symbol("v", positive=True)
T = sp.Symbol("t", nonnegative=True)
A_I, A_J, S_IJ = sp.symbols("a_i a_j S_ij", real=True)
G_J, C_IJ = sp.symbols("g_j c_ij", real=True)
ABSOLUTE = sp.symbols("m0 m1 m2 m3 m4", positive=True)  # E|r|^k
CONSTANTS: dict[sp.Expr, sp.Expr] = {T: RADIUS * NORM, C0: sp.sqrt(2 / sp.pi)}
LATEX = {**NORM_LATEX, C0: "c_0", H_IJ: "H_{ij}", S_IJ: "S_{ij}", C_IJ: "c_{ij}", DENSITY: r"\varphi(0)"}
GAUSSIAN_INPUTS = Assumption(
    "Gaussian inputs", "x ~ N(0, S), y = x'w0 + label_noise*N(0, 1), and the residual's standard deviation v is not 0"
)
#: How v, a, N, t and u change along w_j.
ALONG_J: dict[sp.Symbol, sp.Expr] = {V: A_J / V, A_I: S_IJ, NORM: U_J, T: RADIUS * U_J, U_I: K_IJ}

RISK = (V**2 + 2 * C0 * T * V + T**2) / 2
GRADIENT = (1 + C0 * T / V) * A_I + RADIUS * (T + C0 * V) * U_I
HESSIAN = ((1 + C0 * T / V) * S_IJ + C0 * RADIUS * (A_I * U_J + U_I * A_J) / V - C0 * T * A_I * A_J / V**3
           + RADIUS**2 * U_I * U_J + RADIUS * (T + C0 * V) * K_IJ)  # fmt: skip
MEAN_HESSIAN = (S_IJ + C0 * RADIUS * (A_I * U_J + U_I * A_J) / V + RADIUS**2 * U_I * U_J
                + RADIUS * (T + C0 * V) * K_IJ)  # fmt: skip
KINK = C0 * T / V * (S_IJ - A_I * A_J / V**2)
SECOND = V**2 + 2 * C0 * T * V + T**2  # E(|r| + t)^2
WITH_SIGN = 2 * C0 * V**3 + 2 * T * V**2 + C0 * T**2 * V  # E|r|(|r| + t)^2
WITH_SQUARE = 3 * V**4 + 4 * C0 * T * V**3 + T**2 * V**2  # E r^2 (|r| + t)^2


@functools.cache
def absolute_gaussian_moments() -> Formula:
    r"""Derive :math:`\mathrm{E}|r|^k` for r ~ N(0, v^2) up to k = 4, by integrating by parts.

    Returns
    -------
    Formula
        Shows the first; its parts ``m1`` ... ``m4`` are all. c0 = E|N(0, 1)| is twice the density at 0.

    Examples
    --------
    >>> absolute_gaussian_moments().parts["m3"]
    2*c0*v**3
    >>> absolute_gaussian_moments().prove()
    <Proof of absolute_gaussian_moments: 9 claims hold exactly>
    """
    r, k, pi = sp.Symbol("r", positive=True), sp.Symbol("k", nonnegative=True), sp.Symbol("pi", positive=True)
    m0, m1, m2, m3, m4 = ABSOLUTE
    log_density = -(r**2) / (2 * V**2)
    slope = sp.diff(log_density, r)  # of the logarithm of the density
    values = {m0: sp.Integer(1), m1: C0 * V, m2: V**2, m3: 2 * C0 * V**3, m4: 3 * V**4, DENSITY: C0 / 2}
    defining = (
        sp.Eq(m0, 1, evaluate=False),
        sp.Eq(m1, 2 * V**2 * (DENSITY / V), evaluate=False),
        *(sp.Eq(ABSOLUTE[n + 2], (n + 1) * V**2 * ABSOLUTE[n], evaluate=False) for n in range(3)),
    )
    return Formula(
        id="absolute_gaussian_moments",
        equation=sp.Eq(m1, C0 * V, evaluate=False),
        symbols={"v": V, "c0": C0},
        assumptions=(Assumption("Gaussian", "r ~ N(0, v^2)"),),
        defining=defining,
        solution=values,
        references=("isserlis1918",),
        derivation=(
            Step("r f is -v^2 f', so E|r| = 2 v^2 f(0) with f(0) = phi(0)/v.", defining[1]),
            Step("r^(k+2) f - (k+1) v^2 r^k f is the derivative of -v^2 r^(k+1) f.", defining[-1]),
        ),
        parts={f"m{n}": values[ABSOLUTE[n]] for n in range(1, 5)},
        identities=(
            ("f' = -r f/v^2", slope + r / V**2),
            ("(-v^2 r^(k+1) f)' = (r^2 - (k+1) v^2) r^k f, divided by r^k f",
             -(V**2) * ((k + 1) + r * slope) - (r**2 - (k + 1) * V**2)),
            ("c0^2 = 4 phi(0)^2 = 2/pi, phi(0)^2 = 1/(2 pi)", 4 / (2 * pi) - 2 / pi),
        ),
        symbol_latex={**LATEX, **{m: rf"\mathrm{{E}}|r|^{n}" for n, m in enumerate(ABSOLUTE)}},
    )  # fmt: skip


def robust_risk(norm: Any = 2) -> Formula:
    r"""Derive the adversarial risk :math:`\tfrac12(v^2 + 2c_0tv + t^2)` of linear regression on Gaussian data.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"
        The attack's. It enters only through ``norm_w``, the dual norm of the weights.

    Returns
    -------
    Formula

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    javanmard2020, xing2021 (without the 1/2)

    Examples
    --------
    >>> print(robust_risk())
    risk = c0*t*v + t**2/2 + v**2/2
    >>> robust_risk().specialise(radius=0).explicit()
    v**2/2
    """
    m1, m2 = ABSOLUTE[1:3]
    shown = sp.Symbol("risk", nonnegative=True)
    expression = sp.expand(RISK)
    moments = absolute_gaussian_moments().solution
    mean = (m2 + 2 * T * m1 + T**2) / 2
    return robust_formula(
        "robust_risk", norm_key(norm), shown, expression, {},
        (
            ("the mean of (|r| + t)^2/2", mean.subs(moments) - expression),
            ("at radius 0 it is v^2/2", expression.subs(T, 0) - V**2 / 2),
        ),
        (Step("Average the loss of an example over r ~ N(0, v^2)."),),
        (absolute_gaussian_moments(),),
    )  # fmt: skip


def robust_gradient(norm: Any = 2) -> Formula:
    r"""Derive the gradient of the adversarial risk on Gaussian data.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        Proved twice: it is the derivative of the risk, and the mean of the examples' gradients.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> print(robust_gradient())
    g_i = a_i*(c0*t/v + 1) + radius*u_i*(c0*v + t)
    """
    key = norm_key(norm)
    m1, m2 = ABSOLUTE[1:3]
    moments = absolute_gaussian_moments().solution
    slope = -A_I / V**2  # of the regression of x on r
    mean = -slope * (m2 + T * m1) + RADIUS * U_I * (m1 + T)
    derived = derive(RISK, ALONG_J).subs({A_J: A_I, U_J: U_I}, simultaneous=True)
    claims = (
        ("v^2 changes by 2 a_j", 2 * V * ALONG_J[V] - 2 * A_J),
        ("it is the derivative of the risk", derived - GRADIENT),
        ("x - r b is uncorrelated with r for b = -a/v^2, as E[x r] = -a", -A_I - slope * V**2),
        ("it is the mean of -(|r| + t)(sgn(r) x - radius u)", mean.subs(moments) - GRADIENT),
        ("at radius 0 it is a", GRADIENT.subs({RADIUS: 0, T: 0}) - A_I),
    )
    steps = (Step("dv = a/v and dt = radius u along w."),)
    return robust_formula("robust_gradient", key, G_I, GRADIENT, dual_gradient(key), claims, steps, (robust_risk(key),))


def robust_hessian(norm: Any = 2) -> Formula:
    r"""Derive the Hessian of the adversarial risk on Gaussian data: the curvature that SGD follows.

    Parameters
    ----------
    norm : 2, inf, number p > 1, or "p"

    Returns
    -------
    Formula
        For linf, where no weight is zero. It is `mean_example_hessian` plus `robust_kink`.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> robust_hessian().specialise(radius=0).explicit()
    S_ij
    """
    key = norm_key(norm)
    claims = (
        ("it is the derivative of the gradient", derive(GRADIENT, ALONG_J) - HESSIAN),
        ("it is the examples' mean Hessian plus the kink", MEAN_HESSIAN + KINK - HESSIAN),
        ("at radius 0 it is S", HESSIAN.subs({RADIUS: 0, T: 0}) - S_IJ),
    )
    steps = (Step("Differentiate the gradient: da = S, du = K, dv = a/v."),)
    lemmas = (robust_gradient(key), dual_norm_curvature(key))
    where = dual_gradient(key, curvature=True)
    return robust_formula("robust_hessian", key, H_IJ, HESSIAN, where, claims, steps, lemmas)


def mean_example_hessian(norm: Any = 2) -> Formula:
    r"""Derive the mean over Gaussian data of the examples' Hessians: what automatic differentiation averages to.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        Not the Hessian of the risk: `robust_kink` is missing, a term of first order in the radius.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> print(mean_example_hessian(float("inf")).explicit().coeff(sp.Symbol("S_ij", real=True)))
    1
    """
    key = norm_key(norm)
    m1 = ABSOLUTE[1]
    moments = absolute_gaussian_moments().solution
    signed_i, signed_j = (-a / V**2 * m1 for a in (A_I, A_J))  # E[sgn(r) x]
    rank_one = S_IJ - RADIUS * (signed_i * U_J + U_I * signed_j) + RADIUS**2 * U_I * U_J
    shown = sp.Symbol("meanH_ij", real=True)
    claims = (
        ("mean of (sgn(r) x - radius u)(..)' + (|r| + t) radius K",
         (rank_one + (m1 + T) * RADIUS * K_IJ).subs(moments) - MEAN_HESSIAN),
        ("at radius 0 it is S", MEAN_HESSIAN.subs({RADIUS: 0, T: 0}) - S_IJ),
    )  # fmt: skip
    steps = (Step("E[sgn(r) x] = -c0 a/v, because x - r b is independent of r."),)
    lemmas = (absolute_gaussian_moments(), dual_norm_curvature(key))
    where = dual_gradient(key, curvature=True)
    return robust_formula("mean_example_hessian", key, shown, MEAN_HESSIAN, where, claims, steps, lemmas)


def robust_kink(norm: Any = 2) -> Formula:
    r"""Derive the kink's curvature :math:`2t\,f_r(0)\,\mathrm{E}[xx^\top | r = 0]`, which no example's Hessian has.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        Proved in two ways: as that product, and as the change of the mean of -t sgn(r) x with t held, every bit of
        which is due to examples whose residual changes sign.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> print(robust_kink())
    kink_ij = c0*t*(S_ij - a_i*a_j/v**2)/v
    >>> robust_kink().prove()
    <Proof of robust_kink(l2): 12 claims hold exactly>
    """
    key = norm_key(norm)
    shown = sp.Symbol("kink_ij", real=True)
    conditional = S_IJ - (-A_I / V**2) * (-A_J / V**2) * V**2  # Cov(x - r b) = E[xx' | r = 0]
    at_zero = absolute_gaussian_moments().solution[DENSITY] / V
    held = {V: ALONG_J[V], A_I: S_IJ}
    claims = (
        ("2 t f_r(0) E[xx' | r = 0]", 2 * T * at_zero * conditional - KINK),
        ("-t E[sgn(r) x] changes by it along w, t held", derive(T * C0 * A_I / V, held) - KINK),
        ("at radius 0 there is none", KINK.subs(T, 0)),
    )
    steps = (
        Step("Across r = 0 the gradient of an example jumps by 2 t x; r moves by -x along w."),
        Step("The density of such examples is f_r(0) = phi(0)/v, their covariance that of x - r b."),
    )
    return robust_formula("robust_kink", key, shown, KINK, {}, claims, steps, (absolute_gaussian_moments(),))


def robust_noise(norm: Any = 2) -> Formula:
    r"""Derive the covariance of one Gaussian example's adversarial gradient; a batch of B divides it by B.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        ``g_i`` and ``g_j`` are the mean gradient, 0 at the robust minimiser.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> robust_noise().specialise(radius=0, g_i=0, g_j=0, a_i=0, a_j=0).explicit()
    S_ij*v**2
    """
    key = norm_key(norm)
    m1, m2, m3, m4 = ABSOLUTE[1:]
    moments = absolute_gaussian_moments().solution
    b_i, b_j = -A_I / V**2, -A_J / V**2
    across = S_IJ - A_I * A_J / V**2
    expression = (A_I * A_J * WITH_SQUARE / V**4 + across * SECOND
                  + RADIUS * WITH_SIGN * (A_I * U_J + U_I * A_J) / V**2
                  + RADIUS**2 * SECOND * U_I * U_J - G_I * G_J)  # fmt: skip
    square = m2 + 2 * T * m1 + T**2
    with_sign = m3 + 2 * T * m2 + T**2 * m1
    drawn = (b_i * b_j * (m4 + 2 * T * m3 + T**2 * m2) + (S_IJ - V**2 * b_i * b_j) * square
             - RADIUS * with_sign * (b_i * U_J + U_I * b_j) + RADIUS**2 * square * U_I * U_J - G_I * G_J)  # fmt: skip
    ordinary = S_IJ * V**2 + 2 * A_I * A_J - G_I * G_J
    claims = (
        ("E[(|r| + t)^2 (sgn(r) x - radius u)(..)'] - g g'", drawn.subs(moments) - expression),
        ("at radius 0, with g = a, it is that of least squares: v^2 S + a a'",
         (expression - ordinary).subs({RADIUS: 0, T: 0})),
    )  # fmt: skip
    steps = (
        Step("x = b r + x', x' independent of r with covariance S - a a'/v^2."),
        Step("E|r|^k up to k = 4 does the rest."),
    )
    lemmas = (absolute_gaussian_moments(), robust_gradient(key))
    return robust_formula("robust_noise", key, C_IJ, expression, dual_gradient(key), claims, steps, lemmas)


def dual_gradient(norm: Any, *, curvature: bool = False) -> dict[sp.Expr, sp.Expr]:
    """Return what u_i and u_j (and K_ij before them) stand for."""
    dual = dual_norm(norm)
    return dual.where if curvature else {U_I: dual.gradient[0], U_J: dual.gradient[1]}


def robust_formula(
    name: str,
    norm: Any,
    shown: sp.Symbol,
    expression: sp.Expr,
    where: Mapping[sp.Expr, sp.Expr],
    claims: tuple[tuple[str, sp.Expr], ...],
    steps: tuple[Step, ...],
    lemmas: tuple[Formula, ...],
    parts: Mapping[str, sp.Expr] | None = None,
) -> Formula:
    """Return a formula of this subject, with what its symbols stand for."""
    dual = dual_norm(norm)
    used, explicit = {}, expression
    for symbol, meaning in {**where, **CONSTANTS}.items():
        if explicit.has(symbol):
            used[symbol] = meaning
            explicit = explicit.xreplace({symbol: meaning})
    return Formula(
        id=named(name, norm),
        equation=sp.Eq(shown, expression, evaluate=False),
        symbols=norm_symbols(explicit),
        assumptions=(attack(norm), GAUSSIAN_INPUTS, *((dual.assumption,) if where else ())),
        defining=(),
        solution={},
        references=("javanmard2020", "xing2021"),
        derivation=(*steps, Step("So it is", sp.Eq(shown, expression, evaluate=False))),
        where=used,
        parts={} if parts is None else parts,
        identities=claims,
        lemmas=lemmas,
        symbol_latex=LATEX,
    )  # fmt: skip
