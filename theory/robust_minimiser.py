r"""The robust minimiser of adversarial linear regression on Gaussian data, along the radius.

The gradient vanishes where :math:`S(w - w_0) = -\lambda\,u`, u the gradient of the dual norm: for the l2 attack on the
ridge path, for linf on the lasso path, with a penalty that depends on the minimiser itself,

.. math::

    \lambda = \frac{\epsilon(\epsilon N + c_0 v)}{1 + c_0\epsilon N/v}
    \quad\Longleftrightarrow\quad
    N\epsilon^2 + c_0\Big(v - \frac{\lambda N}{v}\Big)\epsilon - \lambda = 0 .

The quadratic has exactly one positive root: given a point of the path, the radius it is robust to is explicit. The path
ends at zero weights, at the collapse radius.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..errors import InvalidProblemError
from ._attacked import G_I, norm_key
from .dual_norm import K_IJ, NORM, RADIUS, SIGN_I, U_I, U_J, W_I, dual_norm, worst_case_shift
from .formula import Formula, Step
from .robust_population import (
    A_I,
    A_J,
    C0,
    G_J,
    GRADIENT,
    HESSIAN,
    KINK,
    S_IJ,
    T,
    V,
    dual_gradient,
    robust_formula,
    robust_gradient,
    robust_hessian,
    robust_noise,
    robust_risk,
)

__all__ = ["collapse_radius", "robust_minimiser", "robust_onset", "robust_radius"]

PENALTY = sp.Symbol("penalty", nonnegative=True)
VARIANCE_I = sp.Symbol("variance_i", positive=True)
TRUE_I = sp.Symbol("w0_i", real=True)


def robust_minimiser(norm: Any = 2) -> Formula:
    r"""Derive the robust minimiser for inputs with uncorrelated entries: a ridge (l2) or a soft threshold (linf).

    Parameters
    ----------
    norm : 2 or inf
        The attack's. For l2 any S will do, in its eigenbasis; for linf S must be diagonal.

    Returns
    -------
    Formula
        The weight w_i for a true weight ``w0_i`` and an input of variance ``variance_i``. The penalty is given in
        ``where`` and self-consistent: ``norm_w`` and ``v`` are those of the minimiser. For linf the weight is 0 where
        variance_i |w0_i| is at most the penalty. `robust_radius` turns the equation round.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is neither.

    References
    ----------
    javanmard2020, xing2021

    Examples
    --------
    >>> print(robust_minimiser())
    w_i = variance_i*w0_i/(variance_i + penalty/norm_w)
    >>> print(robust_minimiser(float("inf")))
    w_i = -penalty*sign_w_i/variance_i + w0_i
    """
    key = norm_key(norm)
    dual = dual_norm(key)
    if dual.name not in ("l2", "linf"):
        raise InvalidProblemError(
            f"The minimiser is explicit for the l2 and the linf attack; got norm={norm!r}. For any other one, solve "
            f"S(w - w0) = -penalty*u for a penalty; robust_radius gives the radius it belongs to."
        )
    u: sp.Expr = W_I / NORM if dual.name == "l2" else SIGN_I
    ridge = VARIANCE_I * TRUE_I / (VARIANCE_I + PENALTY / NORM)
    solved = ridge if dual.name == "l2" else TRUE_I - PENALTY * SIGN_I / VARIANCE_I
    level = RADIUS * (RADIUS * NORM + C0 * V) / (1 + C0 * RADIUS * NORM / V)
    at_solution = {A_I: VARIANCE_I * (W_I - TRUE_I), U_I: u}
    balance = VARIANCE_I * (W_I - TRUE_I) + PENALTY * u
    factored = (1 + C0 * T / V) * balance.subs(PENALTY, level) - GRADIENT.subs(at_solution)
    claims = (
        ("it solves variance_i (w_i - w0_i) = -penalty u_i", balance.subs(W_I, solved)),
        ("which is where the gradient of the risk is 0", factored.subs(T, RADIUS * NORM)),
        ("at radius 0 it is the true weight", solved.subs(PENALTY, level.subs(RADIUS, 0)) - TRUE_I),
    )
    steps = (
        Step("Divide the gradient by 1 + c0 t/v: a + penalty u = 0.", sp.Eq(PENALTY, level, evaluate=False)),
        Step("The risk is convex, being a mean of maxima of convex functions: where the gradient is 0 it is least."),
    )
    return robust_formula("robust_minimiser", key, W_I, solved, {PENALTY: level}, claims, steps,
                          (robust_gradient(key),), {"penalty": level})  # fmt: skip


def robust_radius(norm: Any = 2) -> Formula:
    r"""Derive the radius that a point of the penalised path is robust to, in closed form.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        For weights with S(w - w0) = -penalty*u: for the l2 attack the ridge solution with ridge penalty/norm_w. So
        quantities are plotted against the radius without solving an equation: choose the ridge, and read off all.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> robust_radius().specialise(penalty=0).explicit()
    0
    >>> robust_radius().prove()
    <Proof of robust_radius(l2): 19 claims hold exactly>
    """
    key = norm_key(norm)
    linear = C0 * (V - PENALTY * NORM / V)
    root = sp.Symbol("root", positive=True)
    radicand = linear**2 + 4 * NORM * PENALTY
    solved = (root - linear) / (2 * NORM)
    level = RADIUS * (RADIUS * NORM + C0 * V) / (1 + C0 * RADIUS * NORM / V)
    quadratic = NORM * RADIUS**2 + linear * RADIUS - PENALTY
    claims = (
        ("the quadratic is the equation of the penalty",
         (level - PENALTY) * (1 + C0 * RADIUS * NORM / V) - quadratic),
        ("it vanishes at the root", quadratic.subs(RADIUS, solved) - (root**2 - radicand) / (4 * NORM)),
        ("the other root is negative: their product is -penalty/norm_w",
         solved * ((-root - linear) / (2 * NORM)) + PENALTY / NORM + (root**2 - radicand) / (4 * NORM**2)),
    )  # fmt: skip
    steps = (Step("Multiply the equation of the penalty out: a quadratic in the radius.", sp.Eq(quadratic, 0)),
             Step("Take its positive root."))  # fmt: skip
    return robust_formula("robust_radius", key, RADIUS, solved, {root: sp.sqrt(radicand)}, claims, steps,
                          (robust_gradient(key),), {"radicand": radicand})  # fmt: skip


def collapse_radius(norm: Any = 2) -> Formula:
    r"""Derive the radius from which on zero weights are the robust minimiser.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        ``signal`` is the norm of S w0 *dual to that of the weights*, the attack's own: Euclidean for l2, the largest
        entry for linf. ``v`` is the standard deviation of the labels, sqrt(w0'S w0 + label_noise^2). Proved from the
        slope of the risk at zero weights in an arbitrary direction d; the risk is convex.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    javanmard2020, xing2021

    Examples
    --------
    >>> print(collapse_radius())
    radius = signal/(c0*v)
    """
    key = norm_key(norm)
    signal = sp.Symbol("signal", nonnegative=True)
    h, inner, size, quad = sp.symbols("h dSw0 norm_d dSd", real=True)
    solved = signal / (C0 * V)
    # Along w = h d: v^2 = v0^2 - 2 h d'S w0 + h^2 d'S d, t = radius h |d|.
    square = V**2 - 2 * h * inner + h**2 * quad
    spread = sp.Symbol("v_h", positive=True)
    slope_of_spread = sp.diff(square, h) / (2 * spread)
    risk = (spread**2 + 2 * C0 * spread * RADIUS * h * size + (RADIUS * h * size) ** 2) / 2
    slope = (sp.diff(risk, h) + sp.diff(risk, spread) * slope_of_spread).subs({h: 0}).subs(spread, V)
    claims = (
        ("the slope of the risk at 0 along d is radius c0 v |d| - d'S w0", slope - (RADIUS * C0 * V * size - inner)),
        ("with d'S w0 <= signal |d| it is not negative from this radius on: there, at the worst d, it is 0",
         slope.subs(inner, signal * size).subs(RADIUS, solved)),
        ("beyond it grows", sp.diff(slope, RADIUS) - C0 * V * size),
    )  # fmt: skip
    steps = (
        Step("Zero weights are the minimiser of the convex risk where no direction goes down."),
        Step("By Hoelder the steepest direction has d'S w0 = signal |d|."),
    )
    return robust_formula("collapse_radius", key, RADIUS, solved, {}, claims, steps,
                             (robust_risk(key), worst_case_shift(key)))  # fmt: skip

def robust_onset(norm: Any = 2) -> Formula:
    r"""Derive how the Hessian starts to depend on the radius: linearly, with the slope shown.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"

    Returns
    -------
    Formula
        dH/d radius at radius 0 and at given weights. At the minimiser (a = 0, v the label noise) it is the part
        ``at_minimiser``, the total derivative as well, since H does not depend on w at radius 0; the noise grows there
        by ``noise`` and the minimiser moves against u: S dw = ``pull`` u. A smooth loss in radius^2 would have slope 0.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    Examples
    --------
    >>> print(robust_onset())
    dH_ij = c0*(K_ij*v + S_ij*norm_w/v - a_i*a_j*norm_w/v**3 + (a_i*u_j + a_j*u_i)/v)
    >>> robust_onset().parts["noise"]
    2*S_ij*c0*norm_w*v
    """
    key = norm_key(norm)
    shown = sp.Symbol("dH_ij", real=True)
    slope = C0 * (NORM / V * S_IJ + (A_I * U_J + A_J * U_I) / V - NORM / V**3 * A_I * A_J + V * K_IJ)
    in_radius = {T: RADIUS * NORM}
    at_minimiser = C0 * (NORM / V * S_IJ + V * K_IJ)
    moved = sp.Symbol("da", real=True), sp.Symbol("db", real=True)  # a = radius da near radius 0
    path = {A_I: RADIUS * moved[0], A_J: RADIUS * moved[1]}
    noise_there = robust_noise(key).expression.subs({G_I: 0, G_J: 0}).subs(in_radius).subs(path)
    noise = 2 * C0 * NORM * V * S_IJ
    pull = -C0 * V
    along = sp.diff(GRADIENT.subs(in_radius).subs(A_I, RADIUS * moved[0]), RADIUS).subs(RADIUS, 0)
    claims = (
        ("the derivative of the Hessian in the radius",
         sp.diff(HESSIAN.subs(in_radius), RADIUS).subs(RADIUS, 0) - slope),
        ("of which the kink's",
         sp.diff(KINK.subs(in_radius), RADIUS).subs(RADIUS, 0) - C0 * NORM / V * (S_IJ - A_I * A_J / V**2)),
        ("at the minimiser of radius 0", slope.subs({A_I: 0, A_J: 0}) - at_minimiser),
        ("there the minimiser moves so that the gradient stays 0", along.subs(moved[0], pull * U_I)),
        ("there the noise grows like this", sp.diff(noise_there, RADIUS).subs(RADIUS, 0) - noise),
    )  # fmt: skip
    steps = (Step("Differentiate the Hessian in the radius at 0."),)
    parts = {"at_minimiser": at_minimiser, "noise": noise, "pull": pull}
    where = dual_gradient(key, curvature=True)
    return robust_formula("robust_onset", key, shown, slope, where, claims, steps, (robust_hessian(key),), parts)
