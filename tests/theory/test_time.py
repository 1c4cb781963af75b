"""Laws in time: proved with k symbolic, and equal to stepping the recursion in 50-digit arithmetic."""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
import sympy as sp
from cases import bound

from sgdcov.errors import HyperparameterError, InvalidRuleError, ProofError
from sgdcov.theory import (
    RULES,
    autocorrelation_time,
    autocovariance,
    average_covariance,
    characteristic_sequence,
    early_phase_surrogate,
    heavy_ball,
    learning_rate_change,
    momentum_convention_gap,
    nesterov,
    polyak,
    recursion,
    sam,
    sandwich_limit,
    sgd,
    sgdw,
    stationary_covariance,
    transient_covariance,
    transient_mean,
    update_rule,
    with_ema,
)
from sgdcov.theory._exact import is_zero
from sgdcov.theory.powers import matrix_power, root_identities, sequence

DIGITS = 50
CLOSE = mpmath.mpf(10) ** -35
H_I, H_J, C = sp.Rational(3, 2), sp.Rational(2, 5), sp.Rational(-7, 3)

# Momentum 1/4 is critically damped where lr h = 1/4, has a complex pair above and two real roots below.
CRITICAL, FLAT, STEEP = sp.Rational(1, 4), sp.Rational(1, 9), sp.Rational(5, 3)
REGIMES = {"repeated": CRITICAL, "distinct": FLAT, "complex": STEEP}


def matrices(optimizer, h):
    step = recursion(optimizer)
    return [mpmath.matrix(m.subs(step.h, h).applyfunc(lambda e: sp.Float(e, DIGITS + 10)).tolist())
            for m in (step.transition, step.noise_gain)]  # fmt: skip


def stepped(optimizer, h_i, h_j, c, start, steps):
    (a_i, b_i), (a_j, b_j) = matrices(optimizer, h_i), matrices(optimizer, h_j)
    for _ in range(steps):
        start = a_i * start * a_j.T + _mp(c) * b_i * b_j.T
    return start


def settled(optimizer, h_i, h_j, c):
    """The stationary block by brute force: the noise of all past steps added up, doubling their number."""
    (a_i, b_i), (a_j, b_j) = matrices(optimizer, h_i), matrices(optimizer, h_j)
    total = _mp(c) * b_i * b_j.T
    for _ in range(16):
        total, a_i, a_j = total + a_i * total * a_j.T, a_i * a_i, a_j * a_j
    return total


def _mp(value):
    value = sp.Rational(value)
    return mpmath.mpf(int(value.p)) / int(value.q)


def evaluated(formula, **values):
    given = {role: values[role] for role in formula.symbols}
    expression = formula.specialise(**given).explicit()
    return mpmath.mpmathify(sp.re(sp.N(expression, DIGITS)))


def start_values(slots):
    names = [(a, b) for a in slots for b in slots]
    return {f"start_{a}_{b}": sp.Rational(n + 2, 2 * n + 3) for n, (a, b) in enumerate(names)}


@pytest.mark.parametrize("rule", [*RULES, with_ema(sgd)], ids=lambda rule: rule.name)
def test_the_transient_is_the_recursion_stepped(rule):
    optimizer = bound(rule).replace(lr=sp.Rational(1, 5))
    with mpmath.workdps(DIGITS):
        for slots in {("w", "w"), (rule.slots[-1], "w"), (rule.slots[-1], rule.slots[-1])}:
            formula = transient_covariance(optimizer, slots)
            assert formula.prove().claims
            values = start_values(rule.slots)
            start = mpmath.matrix([[_mp(values[f"start_{a}_{b}"]) for b in rule.slots] for a in rule.slots])
            for k in (0, 1, 2, 7):
                exact = stepped(optimizer, H_I, H_J, C, start, k)[tuple(rule.slots.index(s) for s in slots)]
                found = evaluated(formula, k=k, h_i=H_I, h_j=H_J, c_ij=C, **values)
                assert abs(found - exact) < CLOSE * (1 + abs(exact))


@pytest.mark.parametrize("first", REGIMES)
@pytest.mark.parametrize("second", REGIMES)
def test_every_regime_of_damping_has_its_own_exact_form(first, second):
    optimizer = heavy_ball(lr=1, momentum=sp.Rational(1, 4))
    formula = transient_covariance(optimizer, roots=(first, second))
    assert formula.prove().claims
    values = start_values(("w", "v"))
    with mpmath.workdps(DIGITS):
        start = mpmath.matrix([[_mp(values[f"start_{a}_{b}"]) for b in "wv"] for a in "wv"])
        for k in (0, 1, 5, 23):
            exact = stepped(optimizer, REGIMES[first], REGIMES[second], C, start, k)[0, 0]
            found = evaluated(formula, k=k, h_i=REGIMES[first], h_j=REGIMES[second], c_ij=C, **values)
            assert abs(found - exact) < CLOSE * (1 + abs(exact))


def test_the_averaged_copy_of_momentum_sgd_has_three_roots():
    rule = with_ema(heavy_ball)
    optimizer = rule(lr=sp.Rational(1, 5), momentum=sp.Rational(1, 2), ema_decay=sp.Rational(4, 5))
    formula = transient_covariance(optimizer, ("ema", "ema"))
    assert formula.prove().claims
    values = dict.fromkeys(start_values(rule.slots), 0)
    with mpmath.workdps(DIGITS):
        exact = stepped(optimizer, H_I, H_J, C, mpmath.zeros(3), 9)[2, 2]
        assert abs(evaluated(formula, k=9, h_i=H_I, h_j=H_J, c_ij=C, **values) - exact) < CLOSE


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_symbolic_transients_prove_themselves_and_fall_into_their_parts(rule):
    formula = transient_covariance(rule)
    assert formula.prove().claims
    assert sp.expand(formula.parts["propagated"] + formula.parts["injected"] - formula.expression) == 0
    starts = {s for s in formula.symbols.values() if s.name.startswith("start_")}
    assert formula.parts["injected"].free_symbols & starts == set()
    assert formula.parts["propagated"].subs(dict.fromkeys(starts, 0)) == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_nothing_happens_without_a_change(rule):
    """Started at its own stationary law, the covariance does not depend on k."""
    formula = transient_covariance(rule)
    stay = {
        formula.symbols[f"start_{a}_{b}"]: stationary_covariance(rule, (a, b)).equation.lhs
        for a in rule.slots
        for b in rule.slots
    }
    assert sp.expand(formula.expression.subs(stay) - stationary_covariance(rule).equation.lhs) == 0


def test_a_wrong_recurrence_does_not_prove_itself():
    formula = characteristic_sequence(heavy_ball, "repeated")
    k, x = sp.symbols("k x")
    forged = replace(formula, identities=(*formula.identities, ("p(k) = k r^k", k * x - (k + 1) * x)))
    with pytest.raises(ProofError, match="p\\(k\\) = k"):
        forged.prove()
    wrong_power = transient_covariance(heavy_ball)
    text, residual = wrong_power.identities[0]
    with pytest.raises(ProofError):
        replace(wrong_power, identities=((text, residual + sp.Symbol("p0")),)).prove()


@pytest.mark.parametrize("roots", REGIMES)
def test_roots_of_another_rule_do_not_prove_themselves(roots):
    """The closed forms of the roots are held against the rule's own characteristic polynomial."""
    own, other = (matrix_power(rule, sp.Symbol("h"), ("w",)) for rule in (heavy_ball, nesterov))
    assert all(is_zero(residual) for _, residual in root_identities(own, roots, sequence(own, "", roots)[1]))
    assert not all(is_zero(residual) for _, residual in root_identities(own, roots, sequence(other, "", roots)[1]))


@pytest.mark.parametrize("rule", [sgd, heavy_ball, polyak, nesterov, sgdw, sam], ids=lambda rule: rule.name)
def test_learning_rate_change_starts_at_the_old_law_and_ends_at_the_new(rule):
    optimizer = bound(rule)
    values = {"h_i": H_I, "h_j": H_J, "c_ij": C, "lr": sp.Rational(1, 20), "lr_before": sp.Rational(2, 5)}
    formula = learning_rate_change(optimizer.free("lr"))
    with mpmath.workdps(DIGITS):
        before = settled(optimizer.replace(lr=values["lr_before"]), H_I, H_J, C)
        after = optimizer.replace(lr=values["lr"])
        for k in (0, 3, 11):
            exact = stepped(after, H_I, H_J, C, before, k)[0, 0]
            assert abs(evaluated(formula, k=k, **values) - exact) < CLOSE * (1 + abs(exact))


def test_the_momentum_conventions_differ_by_the_stated_gap():
    """An eightfold drop at momentum 0.9: ten times the variance in Polyak's form after seven steps is no rounding."""
    gap = momentum_convention_gap()
    assert gap.prove().claims
    mu, before, after = sp.Rational(9, 10), sp.Rational(8, 25), sp.Rational(1, 25)
    values = {"h_i": H_I, "h_j": H_I, "c_ij": 1, "lr": after, "lr_before": before, "momentum": mu}
    with mpmath.workdps(DIGITS):
        law = {}
        for rule in (polyak, heavy_ball):
            old = settled(rule(lr=before, momentum=mu), H_I, H_I, 1)
            law[rule] = stepped(rule(lr=after, momentum=mu), H_I, H_I, 1, old, 7)[0, 0]
        assert abs(evaluated(gap, k=7, **values) - (law[polyak] - law[heavy_ball])) < CLOSE * 100
        assert law[polyak] > 2 * law[heavy_ball]
        assert abs(evaluated(gap, k=7, **{**values, "lr_before": after})) < CLOSE


def test_the_surrogate_is_exact_without_momentum_and_marked_as_approximate_with_it():
    surrogate = early_phase_surrogate()
    assert surrogate.prove().claims
    assert surrogate.kind == "approximation"
    values = {"k": 6, "h_i": H_I, "c_ij": 1, "lr": sp.Rational(1, 20), "lr_before": sp.Rational(2, 5)}
    for momentum, exact in ((0, True), (sp.Rational(9, 10), False)):
        swap = {surrogate.symbols[role]: v for role, v in {**values, "momentum": momentum}.items()}
        error = abs(sp.N(surrogate.relative_error.subs(swap), DIGITS))
        assert (error < 1e-35) == exact


@pytest.mark.parametrize("rule", [*RULES, with_ema(sgd)], ids=lambda rule: rule.name)
def test_transient_mean_is_the_recursion_stepped(rule):
    optimizer = bound(rule).replace(lr=sp.Rational(1, 5))
    formula = transient_mean(optimizer)
    assert formula.prove().claims
    start = {f"start_{name}": sp.Rational(n + 1, 3) for n, name in enumerate(rule.slots)}
    star = sp.Rational(4, 7)
    with mpmath.workdps(DIGITS):
        transition, gain = matrices(optimizer, H_I)
        state = mpmath.matrix([_mp(v) for v in start.values()])
        for k in range(9):
            found = evaluated(formula, k=k, h_i=H_I, w_star=star, **start)
            assert abs(found - state[0]) < CLOSE
            state = transition * state - gain * _mp(H_I * star)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_autocovariance_and_averages_against_sums(rule):
    optimizer = bound(rule).replace(lr=sp.Rational(1, 5))
    at = {"h_i": H_I, "h_j": H_J, "c_ij": C}
    with mpmath.workdps(DIGITS):
        law = settled(optimizer, H_I, H_J, C)
        (a_i, _), (a_j, _) = matrices(optimizer, H_I), matrices(optimizer, H_J)
        for s in (0, 1, 6):
            assert abs(evaluated(autocovariance(optimizer), s=s, **at) - (a_i**s * law)[0, 0]) < CLOSE
        for window in (1, 2, 5):
            total = mpmath.zeros(len(rule.slots))
            for first in range(window):
                for second in range(window):
                    lag = first - second
                    total += a_i**lag * law if lag >= 0 else law * (a_j.T) ** -lag
            found = evaluated(average_covariance(optimizer), K=window, **at)
            assert abs(found - total[0, 0] / window**2) < CLOSE


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_averages_prove_themselves(rule):
    for make in (autocovariance, autocorrelation_time, average_covariance, sandwich_limit):
        assert make(rule).prove().claims


def test_published_forms():
    lr, mu = heavy_ball["lr"].symbol, heavy_ball["momentum"].symbol
    h = autocorrelation_time(sgd).symbols["h_i"]
    a = lr * h
    assert is_zero(autocorrelation_time(sgd).expression - (2 - a) / a)
    assert is_zero(autocorrelation_time(heavy_ball).expression - (1 - mu) * (2 - a / (1 + mu)) / a)
    h_j, c = (sandwich_limit(sgd).symbols[r] for r in ("h_j", "c_ij"))
    for rule in (*RULES[:5], sam):
        assert is_zero(sandwich_limit(rule).expression - c / (h * h_j))


def test_the_mean_of_many_iterates_forgets_how_they_were_made():
    with mpmath.workdps(DIGITS):
        values = {"h_i": _mp(H_I), "h_j": _mp(H_J), "c_ij": _mp(C), "K": 10**6}
        for optimizer in (sgd(lr=sp.Rational(1, 5)), heavy_ball(lr=sp.Rational(1, 5), momentum=sp.Rational(1, 2))):
            scaled = average_covariance(optimizer).lambdify("mpmath")(**values) * 10**6
            assert abs(scaled / _mp(C / (H_I * H_J)) - 1) < 1e-4


def test_lambdified_transients_are_real_in_every_regime():
    """Floats and arrays of times, under-damped and over-damped directions together; critical damping is refused."""
    optimizer = heavy_ball(lr=1, momentum=sp.Rational(1, 4))
    evaluate = transient_covariance(optimizer).lambdify()
    start = {"start_w_w": 1.0, "start_w_v": 0.0, "start_v_w": 0.0, "start_v_v": 0.0}
    times = np.arange(9)
    found = evaluate(k=times, h_i=float(STEEP), h_j=float(FLAT), c_ij=0.5, **start)
    assert found.dtype == np.float64
    with mpmath.workdps(DIGITS):
        begin = mpmath.matrix([[1, 0], [0, 0]])
        exact = [stepped(optimizer, STEEP, FLAT, 0.5, begin, int(k))[0, 0] for k in times]
    np.testing.assert_allclose(found, np.array(exact, dtype=float), rtol=0, atol=1e-14)
    with pytest.raises(HyperparameterError, match="roots='repeated'"), np.errstate(all="ignore"):
        evaluate(k=3, h_i=float(CRITICAL), h_j=float(FLAT), c_ij=0.5, **start)


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(InvalidRuleError, match="has the slots"):
        transient_covariance(sgd, ("w", "v"))
    with pytest.raises(InvalidRuleError, match="'distinct', 'repeated' or 'complex'"):
        characteristic_sequence(heavy_ball, "equal")
    with pytest.raises(InvalidRuleError, match="1 characteristic root"):
        transient_covariance(sgd, roots=("complex", "distinct"))
    with pytest.raises(HyperparameterError, match="no unbound lr"):
        learning_rate_change(sgd(lr=1))

    @update_rule(slots=("w", "a", "b"), domains={name: sp.Interval.Ropen(0, 1) for name in ("p", "q")})
    def coupled(state, grad, *, lr, p, q):
        w, a, b = state
        a, b = p * a + grad(w) + b, q * b + a + grad(w)
        return w - lr * (a + b), a, b

    with pytest.raises(InvalidRuleError, match="degree 1 or 2"):
        characteristic_sequence(coupled)
