"""The stability conditions are the plain inequalities of the literature, and hold exactly where the roots say so."""

import numpy as np
import pytest
import sympy as sp

from sgdcov.theory import (
    RULES,
    heavy_ball,
    nesterov,
    polyak,
    qhm,
    recursion,
    sam,
    sgd,
    sgdw,
    stability,
    update_rule,
    with_ema,
)
from sgdcov.theory._positivity import sign_on_box


def symbols(rule):
    return {p.name: p.symbol for p in rule.hyperparameters} | {"h": stability(rule).h}


@pytest.mark.parametrize(
    ("rule", "largest"),
    [
        (sgd, "2/h"),
        (heavy_ball, "2*(1+momentum)/h"),
        (polyak, "2*(1+momentum)/h"),
        (nesterov, "2*(1+momentum)/((1+2*momentum)*h)"),
        (qhm, "2*(1+beta)/((1+beta*(1-2*nu))*h)"),
        (sgdw, "2*(1+momentum)/(h+(1+momentum)*weight_decay)"),
        (sam, "2/(h*(1+rho*h))"),
        (with_ema(nesterov), "2*(1+momentum)/((1+2*momentum)*h)"),
        (heavy_ball.free("dampening"), "2*(1+momentum)/((1-dampening)*h)"),
        (heavy_ball.free("weight_decay"), "2*(1+momentum)/(h+weight_decay)"),
    ],
    ids=str,
)
def test_largest_learning_rate(rule, largest):
    derived = stability(rule)
    base = getattr(rule, "rule", rule)
    expected = sp.sympify(largest, locals=symbols(base))
    assert sp.cancel(derived.largest_lr - expected) == 0
    assert len(derived.conditions) == 2


@pytest.mark.parametrize(
    ("optimizer", "h"),
    [(heavy_ball(momentum=sp.Rational(9, 10)), 2), (nesterov(momentum=sp.Rational(1, 2)), 3), (sgd(), 1)],
    ids=str,
)  # fmt: skip
def test_the_edge_is_where_the_spectral_radius_is_one(optimizer, h):
    edge = stability(optimizer).largest_lr.subs(stability(optimizer).h, h)
    for factor, inside in ((sp.Rational(999, 1000), True), (1, False), (sp.Rational(1001, 1000), False)):
        matrix = recursion(optimizer.replace(lr=edge * factor)).transition.subs(stability(optimizer).h, h)
        radius = max(abs(root) for root in np.linalg.eigvals(np.array(matrix.tolist(), dtype=float)))
        assert (radius < 1 - 1e-9) == inside


def _deep(state, grad, *, lr, p, q, r):
    w, a, b, c = state
    a = p * a + grad(w)
    b = q * b + a
    c = r * c + b - w / 7
    return w - lr * (a + b / 3 + c / 5), a, b, c


deep = update_rule(slots=("w", "a", "b", "c"))(_deep)


@pytest.mark.parametrize("rule", [*RULES, with_ema(qhm), deep], ids=lambda rule: rule.name)
def test_margins_are_positive_exactly_where_all_roots_are_inside(rule):
    """Against the eigenvalues of A(h) at random hyper-parameters, on both sides of the edge, four slots included."""
    rng = np.random.default_rng(11)
    decided = {True: 0, False: 0}
    for _ in range(60):
        values = {}
        for p in rule.hyperparameters:
            top = 3.0 if p.name in ("lr", "rho", "weight_decay") else 0.999
            values[p.name] = sp.Rational(int(rng.integers(1, 999)), 999) * sp.Rational(top)
        optimizer = rule(**values)
        h = sp.Rational(int(rng.integers(1, 400)), 100)
        derived = stability(optimizer)
        matrix = recursion(optimizer).transition.subs(derived.h, h)
        radius = max(abs(np.linalg.eigvals(np.array(matrix.tolist(), dtype=float))))
        if abs(radius - 1) < 1e-6:
            continue
        stable = all(margin.subs(derived.h, h) > 0 for margin in derived.margins)
        assert stable == (radius < 1)
        decided[stable] += 1
    assert min(decided.values()) >= 3


def test_unit_root_marks_the_direction_that_never_forgets():
    assert stability(heavy_ball(lr=0.1, momentum=0.9)).unit_root_coefficients[0] == 0
    assert stability(heavy_ball(lr=0.1, momentum=0.9, weight_decay=0.01)).unit_root_coefficients[0] > 0


def test_coefficients_belong_to_the_margins():
    derived = stability(sam(lr=0.1, rho=0.5))
    for margin, coefficients in zip(derived.margins, derived.margin_coefficients, strict=True):
        assert sp.expand(margin - sum(c * derived.h**k for k, c in enumerate(coefficients))) == 0


def test_a_certificate_is_never_given_to_what_changes_sign():
    x, y = sp.symbols("x y")
    unit = {x: sp.Interval(0, 1), y: sp.Interval.Ropen(0, 1)}
    assert sign_on_box(1 + x * y, unit) == 1
    assert sign_on_box(x - 2, unit) == -1
    for indefinite in (x - y, x, 1 - x, 2 * x - 1, 1 - x - y):
        assert sign_on_box(indefinite, unit) == 0
    assert sign_on_box(1 - y, unit) == 1


def test_a_rule_without_learning_rate_has_conditions_but_no_largest_one():
    @update_rule(slots=("w",), domains={"gain": sp.Interval.open(0, 1)})
    def gained(state, grad, *, gain):
        (w,) = state
        return (w - gain * grad(w),)

    assert stability(gained).largest_lr is None
    assert stability(gained).lr is None
    assert stability(gained).conditions
