r"""The curvature that an ensemble of weights sees at a kink: finite data, averaged over a Gaussian cloud of weights.

The gradient of an adversarial example jumps by 2t x where its residual r changes sign, and no second derivative at a
point shows it. Averaged over weights :math:`w \sim N(\bar w, \Sigma)` it is curvature: then
:math:`r \sim N(\mu, \varsigma^2)` with :math:`\varsigma^2 = x^\top\Sigma x`, and with A = E sgn(r), f the density of r
at 0 and gamma = Cov(r, t),

.. math::

    \bar H = xx^\top - \epsilon A\,(xu^\top + ux^\top) + \epsilon^2uu^\top
    + 2f\Big(\bar t - \frac{\gamma\mu}{\varsigma^2}\Big)xx^\top .

Summed over data it is the curvature that a stationary ensemble follows: the finite-data form of `robust_kink`.
"""

from __future__ import annotations

import functools
from typing import Any

import sympy as sp

from ._attacked import H_IJ, LATEX, X_I, X_J, attack, named, norm_key
from .assumptions import Assumption
from .dual_norm import K_IJ, NORM, RADIUS, U_I, U_J, derive, dual_norm, dual_norm_curvature, norm_symbols
from .formula import Formula, Step

__all__ = ["smoothed_hessian"]

MEAN, SPREAD = sp.Symbol("mean_residual", real=True), sp.Symbol("spread", positive=True)
SIGN_MEAN, DENSITY = sp.Symbol("mean_sign", real=True), sp.Symbol("density", positive=True)
COUPLING = sp.Symbol("coupling", real=True)  # Cov(r, t)
#: E|r| and E[|r| r] for r ~ N(mean, spread^2), in A = E sgn(r) and the density f of r at 0.
ABSOLUTE = MEAN * SIGN_MEAN + 2 * SPREAD**2 * DENSITY
SIGNED_SQUARE = (MEAN**2 + SPREAD**2) * SIGN_MEAN + 2 * MEAN * SPREAD**2 * DENSITY
#: A and f along the mean and along the spread.
ALONG_MEAN: dict[sp.Symbol, sp.Expr] = {MEAN: sp.Integer(1), SIGN_MEAN: 2 * DENSITY,
                                        DENSITY: -MEAN * DENSITY / SPREAD**2}  # fmt: skip
ALONG_SPREAD: dict[sp.Symbol, sp.Expr] = {SPREAD: sp.Integer(1), SIGN_MEAN: -2 * DENSITY * MEAN / SPREAD,
                                          DENSITY: DENSITY * (MEAN**2 / SPREAD**2 - 1) / SPREAD}  # fmt: skip


def smoothed_hessian(norm: Any = 2) -> Formula:
    r"""Derive the Hessian of one example's squared adversarial loss, averaged over Gaussian weights.

    Parameters
    ----------
    norm : 2, inf, number p >= 1, or "p"
        The attack's.

    Returns
    -------
    Formula
        In the mean weights' residual ``mean_residual`` and dual norm ``norm_w``, the residual's standard deviation
        ``spread`` over the ensemble, and ``coupling``, its covariance with radius*norm_w, -radius x'Sigma u. Exact for
        linf (and l1) where the ensemble keeps the signs of the weights; for another norm an approximation, the dual
        norm being linear over the ensemble but for its Hessian at the mean. The part ``kink`` is what the mean of
        `adversarial_hessian` misses; as the spread tends to 0 it vanishes for an example with a residual, but not in
        the mean over data.

    Raises
    ------
    InvalidProblemError
        If ``norm`` is not one.

    References
    ----------
    bussgang1952 (the covariance with a sign)

    Examples
    --------
    >>> print(smoothed_hessian(float("inf")).parts["kink"])
    2*density*x_i*x_j*(-coupling*mean_residual/spread**2 + norm_w*radius)
    >>> smoothed_hessian(float("inf")).kind
    'exact'
    """
    return _smoothed(norm_key(norm))


@functools.lru_cache(maxsize=32)
def _smoothed(norm: Any) -> Formula:
    dual = dual_norm(norm)
    exact = dual.name in ("linf", "l1")
    end = RADIUS * NORM
    variance = sp.Symbol("t_variance", nonnegative=True)
    # E(|r| + t)^2/2, t = end + coupling/spread^2 (r - mean) + a part independent of r.
    average = (MEAN**2 + SPREAD**2 + 2 * (end * ABSOLUTE + COUPLING * SIGN_MEAN) + end**2 + variance) / 2
    along = [{**{s: d * -x for s, d in ALONG_MEAN.items()}, NORM: u, U_I: K_IJ} for x, u in ((X_I, U_I), (X_J, U_J))]
    derived = derive(derive(average, along[0]), along[1])
    kink = 2 * DENSITY * (end - COUPLING * MEAN / SPREAD**2) * X_I * X_J
    regular = (X_I * X_J - RADIUS * SIGN_MEAN * (X_I * U_J + U_I * X_J) + RADIUS**2 * U_I * U_J
               + RADIUS * K_IJ * (ABSOLUTE + end))  # fmt: skip
    sign = sp.Symbol("sign", real=True)
    alone = (sign * X_I - RADIUS * U_I) * (sign * X_J - RADIUS * U_J) + RADIUS * K_IJ * (sign * MEAN + end)
    point = {SIGN_MEAN: sign, DENSITY: 0}
    where = {**dual.where, SIGN_MEAN: sp.erf(MEAN / (sp.sqrt(2) * SPREAD)),
             DENSITY: sp.exp(-(MEAN**2) / (2 * SPREAD**2)) / (sp.sqrt(2 * sp.pi) * SPREAD)}  # fmt: skip
    explicit = regular + kink
    for name, meaning in where.items():
        explicit = explicit.xreplace({name: meaning})
    log_density = -(MEAN**2) / (2 * SPREAD**2) - sp.log(SPREAD)
    claims = (
        ("E sgn(r), as written, changes by 2f along the mean",
         sp.powsimp(sp.diff(where[SIGN_MEAN], MEAN) / where[DENSITY]) - ALONG_MEAN[SIGN_MEAN] / DENSITY),
        ("along the mean of r, the density's logarithm", sp.diff(log_density, MEAN) - ALONG_MEAN[DENSITY] / DENSITY),
        ("along its spread", sp.diff(log_density, SPREAD) - ALONG_SPREAD[DENSITY] / DENSITY),
        ("E|r| has the slope E sgn(r) along the mean", derive(ABSOLUTE, ALONG_MEAN) - SIGN_MEAN),
        ("and spreads by the heat equation: twice differentiated it is 2f",
         derive(ABSOLUTE, ALONG_SPREAD) - SPREAD * derive(SIGN_MEAN, ALONG_MEAN)),
        ("so does E sgn(r)",
         derive(SIGN_MEAN, ALONG_SPREAD) - SPREAD * derive(derive(SIGN_MEAN, ALONG_MEAN), ALONG_MEAN)),
        ("at spread 0 it is |mean|", ABSOLUTE.subs(SPREAD, 0) - MEAN * SIGN_MEAN),
        ("E|r|r has the slope 2 E|r|, and vanishes at mean 0", derive(SIGNED_SQUARE, ALONG_MEAN) - 2 * ABSOLUTE),
        ("Bussgang: Cov(|r|, r) = spread^2 E sgn(r)", SIGNED_SQUARE - MEAN * ABSOLUTE - SPREAD**2 * SIGN_MEAN),
        ("it is the second derivative of the averaged loss", derived - regular - kink),
        *((f"without spread it is the example's own Hessian (sign = {s})", (regular - alone).subs(point).subs(sign, s))
          for s in (1, -1)),
        ("at radius 0 there is no kink", kink.subs({RADIUS: 0, COUPLING: 0})),
    )  # fmt: skip
    return Formula(
        id=named("smoothed_hessian", norm),
        equation=sp.Eq(H_IJ, regular + kink, evaluate=False),
        symbols=norm_symbols(explicit),
        assumptions=(attack(norm), dual.assumption,
                     Assumption("Gaussian weights", "the weights are N(mean, Sigma); spread^2 = x'Sigma x, coupling = "
                                "-radius*x'Sigma u, and no weight of the ensemble changes its sign")),
        defining=(),
        solution={},
        references=("bussgang1952", "javanmard2020"),
        derivation=(
            Step("The averaged loss is E(|r| + t)^2/2 with r and t jointly Gaussian.", average),
            Step("Differentiate twice in the mean weights: mean r changes by -x, mean t by radius u."),
        ),
        kind="exact" if exact else "approximation",
        where=where,
        parts={"kink": kink, "example": regular},
        identities=claims,
        lemmas=(dual_norm_curvature(norm),),
        symbol_latex=LATEX,
    )  # fmt: skip

