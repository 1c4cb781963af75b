r"""Statements of the literature about the stationary law, each marked as what it is.

Exact statements are proved against the derived law; approximations carry their error against it in closed form.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import sympy as sp

from ..errors import InvalidRuleError
from ._exact import is_zero, present
from .assumptions import COMMUTING, SMALL_LEARNING_RATE
from .formula import Formula, Step
from .gaussian_minibatch import gaussian_minibatch_covariance
from .mean_square import mean_square_share
from .minibatch import batch_factor, finite_data_covariance, minibatch_second_moment
from .recursion import as_optimizer, recursion
from .rules import heavy_ball, sgd
from .stationary import C_IJ, H_I, H_J, stationary_covariance
from .update_rule import Optimizer, UpdateRule

__all__ = [
    "commuting_heavy_ball",
    "momentum_matrix_equation",
    "momentum_minibatch_covariance",
    "mulayoff_michaeli_covariance",
    "mulayoff_michaeli_threshold",
    "sde_limit",
]


@functools.cache
def commuting_heavy_ball() -> Formula:
    r"""Momentum SGD's stationary variance when C and H commute: the setting of Xu and Zhang, Theorem 4.5.

    Returns
    -------
    Formula
        Exact under its assumption. The text of the theorem was not available to us: it is given as far as it is known
        (stationary covariance of SGD with Polyak momentum at a constant learning rate), not as a transcription.

    Notes
    -----
    Putting pairs (i, j) in place of i is not a valid extension: off the diagonal the exact denominator has the further
    term :math:`\eta\mu(h_i-h_j)^2/(1-\mu^2)`.

    References
    ----------
    xu2024dynamics, Theorem 4.5

    Examples
    --------
    >>> print(commuting_heavy_ball())
    Sigma_ii = c_ii*lr/(h_i*(1 - momentum)*(-h_i*lr/(momentum + 1) + 2))
    """
    derived = stationary_covariance(heavy_ball).specialise(h_j="h_i")
    lr, mu = derived.symbols["lr"], derived.symbols["momentum"]
    c = sp.Symbol("c_ii", nonnegative=True)
    sigma = sp.Symbol("Sigma_ii", nonnegative=True)
    # The weights' own unknown keeps its place in the defining equations; only its name says that i = j.
    own = derived.equation.lhs
    rename = {own: sigma, C_IJ: c}
    written = lr * c / (H_I * (1 - mu) * (2 - lr * H_I / (1 + mu)))
    return Formula(
        id="xu2024dynamics.stationary_covariance",
        equation=sp.Eq(sigma, written, evaluate=False),
        symbols={"h_i": H_I, "c_ii": c, "lr": lr, "momentum": mu},
        assumptions=(*derived.assumptions, COMMUTING),
        defining=tuple(sp.Eq(e.lhs.xreplace(rename), e.rhs.xreplace(rename), evaluate=False) for e in derived.defining),
        solution={s.xreplace(rename): v.xreplace(rename) for s, v in derived.solution.items()},
        references=("xu2024dynamics, Theorem 4.5 (as far as known)", "liu2021noise"),
        derivation=(*derived.derivation, Step("Put i = j: with C and H commuting there is nothing off the diagonal.")),
        symbol_latex={**derived.symbol_latex, sigma: r"\Sigma_{ii}", c: "c_{ii}"},
    )


@functools.cache
def momentum_matrix_equation() -> Formula:
    r"""The matrix equation of momentum SGD by Liu, Ziyin and Ueda, solved by our closed form entry by entry.

    .. math::

        (1-\mu)\,\eta(H\Sigma + \Sigma H) - \frac{1+\mu^2}{1-\mu^2}\,\eta^2 H\Sigma H
        + \frac{\mu}{1-\mu^2}\,\eta^2 (H^2\Sigma + \Sigma H^2) = \eta^2 C

    Returns
    -------
    Formula
        Exact, also when C and H do not commute; the equation shown is the matrix equation, and what is proved is that
        the derived stationary covariance of heavy ball satisfies it for every pair (i, j).

    References
    ----------
    liu2021noise; as quoted in ziyin2022strength, Theorem 1, Eq. (3)

    Examples
    --------
    >>> momentum_matrix_equation().prove()
    <Proof of liu2021noise.momentum_matrix_equation: 1 claim holds exactly>
    """
    derived = stationary_covariance(heavy_ball)
    lr, mu, sigma = derived.symbols["lr"], derived.symbols["momentum"], derived.equation.lhs

    def left(s: sp.Expr, h_left: sp.Expr, h_right: sp.Expr) -> sp.Expr:
        drift = (1 - mu) * lr * (h_left * s + s * h_right)
        discrete = -(1 + mu**2) / (1 - mu**2) * lr**2 * h_left * s * h_right
        return drift + discrete + mu / (1 - mu**2) * lr**2 * (h_left**2 * s + s * h_right**2)

    d = sp.Symbol("d", integer=True, positive=True)
    hessian, noise, covariance = (sp.MatrixSymbol(name, d, d) for name in ("H", "C", "Sigma"))
    return Formula(
        id="liu2021noise.momentum_matrix_equation",
        equation=sp.Eq(left(covariance, hessian, hessian), lr**2 * noise, evaluate=False),
        symbols={"lr": lr, "momentum": mu},
        assumptions=derived.assumptions,
        defining=(sp.Eq(left(sigma, H_I, H_J), lr**2 * C_IJ, evaluate=False),),
        solution={sigma: derived.expression},
        references=("liu2021noise", "ziyin2022strength, Theorem 1, Eq. (3)"),
        derivation=(*derived.derivation, Step("Substitute into the matrix equation, entry (i, j).")),
        symbol_latex={**derived.symbol_latex, covariance: r"\Sigma"},
    )


@functools.cache
def momentum_minibatch_covariance() -> Formula:
    r"""Momentum SGD on Gaussian examples as Ziyin, Liu, Mori and Ueda state it, proved equal to our derived law.

    .. math::

        \Sigma_{ii} = \frac{\sigma^2}{B}\Big(1 + \frac{\kappa}{B}\Big)\frac{\eta}{G_i}, \quad
        G_i = 2(1-\mu) - \Big(\frac{1-\mu}{1+\mu} + \frac1B\Big)\eta h_i, \quad
        \kappa = \frac{T}{1 - T/B}, \quad T = \sum_j \frac{\eta h_j}{G_j}

    Returns
    -------
    Formula
        Exact; ``T`` is the trace over all directions, B times the U of `gaussian_minibatch_covariance`.

    References
    ----------
    ziyin2022strength, Theorem 2, Eq. (6)

    Examples
    --------
    >>> momentum_minibatch_covariance().prove().claims[0]
    'equal to the derived law, with U = T/B'
    """
    derived, share = gaussian_minibatch_covariance(heavy_ball), mean_square_share(heavy_ball)
    h, lr, mu, b, sigma = (derived.symbols[r] for r in ("h_i", "lr", "momentum", "batch_size", "label_noise"))
    trace = sp.Symbol("T", nonnegative=True)
    g = 2 * (1 - mu) - ((1 - mu) / (1 + mu) + 1 / b) * lr * h
    kappa = trace / (1 - trace / b)
    expression = sigma**2 / b * (1 + kappa / b) * lr / g
    return Formula(
        id="ziyin2022strength.stationary_covariance",
        equation=sp.Eq(derived.equation.lhs, expression, evaluate=False),
        symbols={**{role: s for role, s in derived.symbols.items() if role != "U"}, "T": trace},
        assumptions=tuple(
            replace(a, conditions=tuple(c.subs(derived.symbols["U"], trace / b) for c in a.conditions))
            for a in derived.assumptions
        ),
        defining=(),
        solution={},
        references=("ziyin2022strength, Theorem 2, Eq. (6)",),
        derivation=(*derived.derivation, Step("Write B U = T, and the denominator as G_i.")),
        parts={"G": g, "kappa": kappa},
        identities=(
            (
                "equal to the derived law, with U = T/B",
                expression - derived.expression.subs(derived.symbols["U"], trace / b),
            ),
            ("T is the sum of lr h_j/G_j: B times a share", lr * h / g - b * share.expression),
        ),
        lemmas=(derived, share),
        symbol_latex=derived.symbol_latex,
    )


def mulayoff_michaeli_covariance(*, replacement: bool = True) -> Formula:
    r"""Plain SGD on finite data in one direction, as Mulayoff and Michaeli state it.

    .. math:: \Sigma = \frac{\eta p\, \overline{g_n^2}}{2H - \eta D}, \qquad D = (1-p) H^2 + p\, \overline{H_n^2}

    Parameters
    ----------
    replacement : bool

    Returns
    -------
    Formula
        Exact; proved from the one-step equation.

    References
    ----------
    mulayoff2024exact, Theorem 5, Eq. (17)

    Examples
    --------
    >>> mulayoff_michaeli_covariance().prove().claims[0]
    'equal to the derived law'
    """
    derived = finite_data_covariance(sgd, replacement=replacement)
    h, h2, g2, lr = (derived.symbols[r] for r in ("h_i", "mean_square_h", "mean_square_g", "lr"))
    p = batch_factor(replacement=replacement)
    d = (1 - p) * h**2 + p * h2
    expression = lr * p * g2 / (2 * h - lr * d)
    return Formula(
        id=f"mulayoff2024exact.stationary_covariance[{'with' if replacement else 'without'} replacement]",
        equation=sp.Eq(derived.equation.lhs, expression, evaluate=False),
        symbols=derived.symbols,
        assumptions=derived.assumptions,
        defining=(),
        solution={},
        references=("mulayoff2024exact, Theorem 5, Eq. (17)",),
        derivation=(*derived.derivation, Step("Collect what multiplies lr^2 as D.")),
        parts={"D": d, "p": p},
        identities=(("equal to the derived law", expression - derived.expression),),
        lemmas=(derived,),
        symbol_latex=derived.symbol_latex,
    )


def mulayoff_michaeli_threshold(*, replacement: bool = True) -> Formula:
    r"""The mean-square threshold of plain SGD on finite data in one direction, :math:`\eta = 2H/D`.

    Parameters
    ----------
    replacement : bool

    Returns
    -------
    Formula
        Exact: where the second moment of the one-step equation is multiplied by exactly 1.

    References
    ----------
    mulayoff2024exact, Theorem 3, Eq. (13)

    Examples
    --------
    >>> print(mulayoff_michaeli_threshold().specialise(batch_size=1))
    lr_max = 2*h_i/mean_square_h
    """
    law = mulayoff_michaeli_covariance(replacement=replacement)
    h, h2, lr = (law.symbols[r] for r in ("h_i", "mean_square_h", "lr"))
    limit = sp.Symbol("lr_max", positive=True)
    expression = 2 * h / law.parts["D"]
    one_step = minibatch_second_moment(sgd, replacement=replacement)
    moment = one_step.symbols["moment_w_w"]
    alone = dict.fromkeys((one_step.symbols[r] for r in ("gradient_ij", "cross_ij", "cross_ji")), 0)
    swap = {**alone, one_step.symbols["curvature_ij"]: h2 * moment, H_J: h, lr: limit}
    growth = sp.cancel(one_step.expression.subs(swap, simultaneous=True) / moment)
    return Formula(
        id=f"mulayoff2024exact.threshold[{'with' if replacement else 'without'} replacement]",
        equation=sp.Eq(limit, expression, evaluate=False),
        symbols={role: s for role, s in law.symbols.items() if role not in ("lr", "mean_square_g")},
        assumptions=law.assumptions[:-2],
        defining=(sp.Eq(growth, 1, evaluate=False),),
        solution={limit: expression},
        references=("mulayoff2024exact, Theorem 3, Eq. (13)",),
        derivation=(Step("The one-step equation multiplies the second moment by", growth),
                    Step("That is 1 at lr = 0 and once more.", sp.Eq(limit, expression, evaluate=False))),
        lemmas=(one_step,),
        symbol_latex={**law.symbol_latex, limit: r"\eta_{\max}"},
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def sde_limit(rule: UpdateRule | Optimizer = sgd) -> Formula:
    r"""The continuous-time (stochastic differential equation) limit of a rule's stationary covariance.

    For plain SGD it solves the Lyapunov equation :math:`H\Sigma + \Sigma H = \eta C` of Mandt, Hoffman and Blei; for
    another rule the rate of the slow mode, read off its characteristic polynomial, takes the place of :math:`\eta h`.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        With ``lr`` unbound.

    Returns
    -------
    Formula
        An approximation; ``relative_error`` is its error against the exact law, in closed form.

    Raises
    ------
    InvalidRuleError
        If the rule has no unbound ``lr`` to let tend to zero.

    Notes
    -----
    For plain SGD the limit is always too small. With momentum that holds for variances only: a covariance of two
    directions with :math:`h_i < \mu h_j` is overestimated, as the sign of ``relative_error`` shows.

    References
    ----------
    mandt2017 (their Eq. for the stationary covariance, epsilon/S B B' being lr*C here)

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, sgd
    >>> print(sde_limit(sgd))
    Sigma_ij ~ c_ij*lr/(h_i + h_j)
    >>> sde_limit(sgd).relative_error
    -h_i*h_j*lr/(h_i + h_j)
    >>> print(sde_limit(heavy_ball))
    Sigma_ij ~ c_ij*lr/((1 - momentum)*(h_i + h_j))
    """
    optimizer = as_optimizer(rule)
    if "lr" not in optimizer.unbound:
        raise InvalidRuleError(f"{optimizer!r} has no unbound lr to let tend to zero; free it, as in .free('lr').")
    exact = stationary_covariance(optimizer)
    lr, sigma = exact.symbols["lr"], exact.equation.lhs
    expression = exact.series("lr", 1)
    rates = _slow_rate(optimizer, lr, H_I) + _slow_rate(optimizer, lr, H_J)
    gain = present(expression * rates / C_IJ, (H_I, H_J))
    return Formula(
        id=f"{optimizer.rule.name}.sde_limit",
        equation=sp.Eq(sigma, present(expression, (H_I, H_J)), evaluate=False),
        symbols=exact.symbols,
        assumptions=(*exact.assumptions, SMALL_LEARNING_RATE),
        defining=(sp.Eq(rates * sigma, gain * C_IJ, evaluate=False),),
        solution={sigma: expression},
        references=("mandt2017", *exact.references),
        derivation=(
            Step("To first order in lr the slow mode decays at a rate per step of", rates),
            Step("Balance decay and noise: the Lyapunov equation.", sp.Eq(rates * sigma, gain * C_IJ, evaluate=False)),
        ),
        kind="approximation",
        exact=exact,
        symbol_latex=exact.symbol_latex,
    )


def _slow_rate(optimizer: Optimizer, lr: sp.Symbol, h: sp.Symbol) -> sp.Expr:
    """Return the first-order decrease, per step, of the eigenvalue that is 1 at lr = 0."""
    step = recursion(optimizer)
    z = sp.Symbol("z")
    polynomial = step.transition.subs(step.h, h).charpoly(z).as_expr()
    if not is_zero(polynomial.subs({z: 1, lr: 0})):
        raise InvalidRuleError(f"{optimizer!r} does not keep its weights at lr = 0; it has no continuous-time limit.")
    slope = sp.diff(polynomial, lr).subs({z: 1, lr: 0}) / sp.diff(polynomial, z).subs({z: 1, lr: 0})
    return present(lr * sp.cancel(slope), (h,))
