"""Derived laws: proved, equal to the published forms, and equal to oracles that share no code with the derivation."""

from dataclasses import replace

import mpmath
import pytest
import sympy as sp
from cases import ALL_RULES, NUMBERS, bound

from sgdcov.errors import HyperparameterError, InvalidRuleError, NonStationaryError, ProofError
from sgdcov.theory import (
    RULES,
    catalogue,
    commuting_heavy_ball,
    heavy_ball,
    momentum_matrix_equation,
    nesterov,
    polyak,
    qhm,
    sam,
    sde_limit,
    sgd,
    sgdw,
    stationary_covariance,
    stationary_mean,
    update_rule,
    with_ema,
)
from sgdcov.theory._exact import is_zero

H_I, H_J, LR, MU = (stationary_covariance(heavy_ball).symbols[r] for r in ("h_i", "h_j", "lr", "momentum"))
C = stationary_covariance(heavy_ball).symbols["c_ij"]
A, B = LR * H_I, LR * H_J


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_every_formula_proves_itself(rule):
    proof = stationary_covariance(rule).prove()
    assert len(proof.claims) == 1 + len(rule.slots) ** 2
    assert len(stationary_mean(rule).prove().claims) == 1 + len(rule.slots)


def test_a_wrong_formula_does_not_prove_itself():
    """The commuting formula with h replaced by pairs: the proof must see it, in one entry of the block."""
    formula = stationary_covariance(heavy_ball)
    mean_h = (H_I + H_J) / 2
    wrong = LR * C / (mean_h * (1 - MU) * (2 - LR * mean_h / (1 + MU)))
    forged = replace(formula, solution={**formula.solution, formula.equation.lhs: wrong})
    with pytest.raises(ProofError):
        forged.prove()
    with pytest.raises(ProofError):
        replace(forged, equation=sp.Eq(formula.equation.lhs, wrong)).prove()
    off_by_rounding = replace(
        formula, solution={k: v * (1 + sp.Rational(1, 10**30)) for k, v in formula.solution.items()}
    )
    with pytest.raises(ProofError):
        off_by_rounding.prove()


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_closed_form_sums_the_noise_of_all_past_steps(rule):
    """Oracle: S = sum_k c (A_i^k b_i)(A_j^k b_j)^T, added up in 50-digit arithmetic until it stops changing."""
    optimizer = bound(rule).replace(lr=sp.Rational(1, 5))
    h_i, h_j, c = sp.Rational(3, 2), sp.Rational(2, 5), sp.Rational(-7, 3)
    with mpmath.workdps(50):
        state = []
        for h in (h_i, h_j):
            kicked = optimizer.step((0,) * len(rule.slots), lambda w, h=h: h * w + 1)
            state.append(tuple(mpmath.mpf(x.p) / x.q for x in map(sp.Rational, kicked)))
        hs = [mpmath.mpf(h.p) / h.q for h in (h_i, h_j)]
        values = {k: mpmath.mpf(sp.Rational(v).p) / sp.Rational(v).q for k, v in optimizer.values.items()}
        total = mpmath.matrix(len(rule.slots))
        for _ in range(6000):
            for a in range(len(rule.slots)):
                for b in range(len(rule.slots)):
                    total[a, b] += mpmath.mpf(c.p) / c.q * state[0][a] * state[1][b]
            state = [rule.function(z, lambda w, h=h: h * w, **values) for z, h in zip(state, hs, strict=True)]
        for a, first in enumerate(rule.slots):
            for b, second in enumerate(rule.slots):
                closed = (
                    stationary_covariance(optimizer, (first, second)).specialise(h_i=h_i, h_j=h_j, c_ij=c).expression
                )
                assert abs(mpmath.mpf(closed.p) / closed.q / total[a, b] - 1) < mpmath.mpf(10) ** -40


PUBLISHED = {
    # Plain SGD and momentum SGD in PyTorch's convention, written out independently of the compact presentation.
    "sgd": (sgd, LR * C / (H_I + H_J - LR * H_I * H_J)),
    "heavy_ball": (
        heavy_ball,
        LR**2 * C / ((1 - MU) * (A + B) - ((1 + MU**2) * A * B - MU * (A**2 + B**2)) / (1 - MU**2)),
    ),
    "polyak": (
        polyak,
        LR**2 * C / ((1 - MU) * (A + B - A * B / (1 + MU)) + MU * (A - B) ** 2 / (1 - MU**2)),
    ),
    "compact": (
        heavy_ball,
        LR * (1 + MU) * C
        / ((1 - MU) * ((1 + MU) * (H_I + H_J) - LR * H_I * H_J) + LR * MU * (H_I - H_J) ** 2 / (1 - MU)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pair_formulas(name):
    rule, published = PUBLISHED[name]
    assert is_zero(stationary_covariance(rule).expression - published)


def test_momentum_sgd_is_presented_compactly():
    assert sp.simplify(stationary_covariance(heavy_ball).expression - PUBLISHED["compact"][1]) == 0
    assert sp.count_ops(stationary_covariance(heavy_ball).expression) <= sp.count_ops(PUBLISHED["compact"][1]) + 2


def test_published_nesterov_variance():
    a = A
    published = (
        LR**2 * C * (1 + MU + MU * (1 + 2 * MU) * a) / (a * (1 - MU + MU * a) * (2 * (1 + MU) - (1 + 2 * MU) * a))
    )
    assert is_zero(stationary_covariance(nesterov).specialise(h_j="h_i").expression - published)


def test_heavy_ball_matrix_identities():
    """Cov(w,v) = -(H S - mu S H)/(1-mu^2) and Cov(v,v) = (H S + S H)/(lr (1+mu))."""
    s = stationary_covariance(heavy_ball).expression
    cross = stationary_covariance(heavy_ball, ("w", "v")).expression
    assert is_zero(cross + (H_I * s - MU * s * H_J) / (1 - MU**2))
    assert is_zero(stationary_covariance(heavy_ball, ("v", "v")).expression - (H_I + H_J) * s / (LR * (1 + MU)))


def test_dampening_scales_the_learning_rate():
    tau = heavy_ball["dampening"].symbol
    damped = stationary_covariance(heavy_ball.free("dampening")).expression
    assert is_zero(damped - stationary_covariance(heavy_ball).expression.subs(LR, LR * (1 - tau)))


def test_coupled_weight_decay_adds_to_the_curvature():
    lam = heavy_ball["weight_decay"].symbol
    for rule in (sgd, heavy_ball, nesterov, polyak, qhm):
        shifted = {H_I: H_I + lam, H_J: H_J + lam}
        plain = stationary_covariance(rule).expression.subs(shifted, simultaneous=True)
        assert is_zero(stationary_covariance(rule.free("weight_decay")).expression - plain)


def test_qhm_contains_sgd_and_heavy_ball():
    formula, beta = stationary_covariance(qhm), qhm["beta"].symbol
    assert is_zero(formula.specialise(nu=0).expression - stationary_covariance(sgd).expression)
    as_momentum = stationary_covariance(heavy_ball).expression.subs({LR: LR * (1 - beta), MU: beta}, simultaneous=True)
    assert is_zero(formula.specialise(nu=1).expression - as_momentum)


def test_sam_is_sgd_on_the_curvature_it_sees():
    rho = sam["rho"].symbol
    seen = {H_I: H_I * (1 + rho * H_I), H_J: H_J * (1 + rho * H_J)}
    expected = stationary_covariance(sgd).expression.subs(seen, simultaneous=True) * (1 + rho * H_I) * (1 + rho * H_J)
    assert is_zero(stationary_covariance(sam).expression - expected)


def test_averaged_weights_of_sgd():
    """E_ij = S_ij (1-d)/(1+d) [1 + d m_i/(1-d m_i) + d m_j/(1-d m_j)], m = 1 - lr h."""
    rule = with_ema(sgd)
    d = rule["ema_decay"].symbol
    m_i, m_j = 1 - LR * H_I, 1 - LR * H_J
    expected = (
        stationary_covariance(sgd).expression
        * (1 - d)
        / (1 + d)
        * (1 + d * m_i / (1 - d * m_i) + d * m_j / (1 - d * m_j))
    )
    assert is_zero(stationary_covariance(rule, ("ema", "ema")).expression - expected)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_averaged_rule_keeps_the_law_of_its_weights(rule):
    assert is_zero(stationary_covariance(with_ema(rule)).expression - stationary_covariance(rule).expression)


def test_stationary_means():
    h, star = (stationary_mean(sgdw).symbols[r] for r in ("h_i", "w_star"))
    lam = sgdw["weight_decay"].symbol
    assert is_zero(stationary_mean(sgdw).expression - h * star / (h + (1 - MU) * lam))
    for rule in (sgd, heavy_ball, nesterov, polyak, qhm):
        assert is_zero(stationary_mean(rule).expression - h * star / (h + lam))
    assert stationary_mean(sam).expression == star
    assert stationary_mean(heavy_ball(lr=0.1, momentum=0.9)).expression == star


def test_continuous_time_limit_and_first_discrete_correction():
    formula = stationary_covariance(sgd)
    assert is_zero(formula.limit("lr", 0, scale="1/lr") - C / (H_I + H_J))
    first, second = C * LR / (H_I + H_J), C * LR**2 * H_I * H_J / (H_I + H_J) ** 2
    assert is_zero(formula.series("lr", 1) - first)
    assert is_zero(formula.series("lr", 2) - first - second)
    assert is_zero(sp.series(formula.expression, LR, 0, 4).removeO() - formula.series("lr", 3))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_series_leaves_a_remainder_of_the_next_order(rule):
    formula = stationary_covariance(rule)
    remainder = (formula.expression - formula.series("lr", 2)) / LR**2
    assert is_zero(sp.cancel(sp.together(remainder)).subs(LR, 0))
    assert not is_zero(sp.cancel(sp.together((formula.expression - formula.series("lr", 1)) / LR**2)).subs(LR, 0))


@pytest.mark.parametrize("rule", [*RULES, with_ema(heavy_ball)], ids=lambda rule: rule.name)
def test_sde_limit_is_marked_and_its_error_vanishes_with_the_learning_rate(rule):
    limit = sde_limit(rule)
    limit.prove()
    assert limit.kind == "approximation"
    assert limit.exact is not None
    assert is_zero(limit.expression / limit.exact.expression - 1 - limit.relative_error)
    assert is_zero(limit.relative_error.subs(limit.symbols["lr"], 0))
    assert not is_zero(limit.relative_error)
    assert r"\approx" in limit.latex()


def test_sde_limit_errs_to_both_sides_with_momentum():
    """Too small on the diagonal; too large off it where h_i < mu h_j."""
    error = sde_limit(heavy_ball).relative_error.subs({LR: sp.Rational(1, 10), MU: sp.Rational(9, 10)})
    assert error.subs({H_I: 1, H_J: 1}) < 0
    assert error.subs({H_I: sp.Rational(1, 2), H_J: 1}) > 0


def test_literature():
    assert commuting_heavy_ball().prove().claims
    c = commuting_heavy_ball().symbols["c_ii"]
    on_diagonal = stationary_covariance(heavy_ball).specialise(h_j="h_i").expression.subs(C, c)
    assert is_zero(commuting_heavy_ball().expression - on_diagonal)
    assert len(momentum_matrix_equation().prove().claims) == 1
    with pytest.raises(InvalidRuleError, match="no unbound lr"):
        sde_limit(sgd(lr=1))


def test_catalogue_is_citable():
    formulas = catalogue()
    on_minibatches, on_epochs, on_injected_noise, adversarial = 45, 36, 18, 129
    everything = 9 * len(RULES) + 6 + on_minibatches + on_epochs + on_injected_noise + adversarial
    assert len({f.id for f in formulas}) == len(formulas) == everything
    for formula in formulas:
        assert formula.assumptions
        assert formula.derivation
        assert formula._repr_latex_().startswith("$")
        assert "no entry" not in formula.bibtex()
        assert "@" in formula.bibtex()
        assert {s.name for s in formula.explicit().free_symbols} <= {s.name for s in formula.symbols.values()} | {
            "A",
            "C",
            "M",
            "d",
        }


def test_specialised_formulas_still_prove_themselves():
    formula = stationary_covariance(heavy_ball).specialise(momentum=sp.Rational(9, 10), h_j="h_i")
    assert formula.prove().claims
    assert set(formula.symbols) == {"h_i", "c_ij", "lr"}
    with pytest.raises(HyperparameterError, match="no symbol 'nu'"):
        formula.specialise(nu=1)


def test_lambdified_formula_takes_roles():
    evaluate = stationary_covariance(heavy_ball).lambdify()
    exact = stationary_covariance(heavy_ball).expression.subs(
        {H_I: 1, H_J: 2, C: 3, LR: sp.Rational(1, 4), MU: sp.Rational(1, 2)}
    )
    assert evaluate(h_i=1.0, h_j=2.0, c_ij=3.0, lr=0.25, momentum=0.5) == pytest.approx(float(exact), rel=1e-15)
    with pytest.raises(HyperparameterError, match="is a function of h_i, h_j, c_ij, lr, momentum"):
        evaluate(h_i=1.0)


def test_what_cannot_be_derived_is_refused():
    with pytest.raises(InvalidRuleError, match="has the slots"):
        stationary_covariance(sgd, ("w", "v"))

    @update_rule(slots=("w", "total"))
    def counting(state, grad, *, lr):
        w, total = state
        return w - lr * grad(w), total + w

    with pytest.raises(NonStationaryError, match="modulus 1"):
        stationary_covariance(counting)
    with pytest.raises(NonStationaryError, match="memory of its start"):
        stationary_mean(counting)

    @update_rule(slots=("w",))
    def clash(state, grad, *, h_i):
        (w,) = state
        return (w - h_i * grad(w),)

    with pytest.raises(HyperparameterError, match="a name that this formula uses"):
        stationary_covariance(clash)


def test_is_zero_decides_exactly():
    x, y = sp.symbols("x y")
    assert is_zero((x**2 - y**2) / (x - y) - x - y)
    assert not is_zero((x**2 - y**2) / (x - y) - x - y + sp.Rational(1, 10**40))
    assert is_zero(sp.Integer(0))
    assert not is_zero(sp.Rational(1, 3))
    with pytest.raises(ValueError, match="not a rational function"):
        is_zero(sp.sqrt(x) - x)


def test_numbers_cover_every_hyperparameter():
    assert {p.name for rule in ALL_RULES for p in rule.hyperparameters} == set(NUMBERS)
