"""A rule is traced exactly, and what is not a linear step is refused with the term that spoils it."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from cases import ALL_RULES, bound

from sgdcov.errors import HyperparameterError, InvalidRuleError, NonlinearRuleError
from sgdcov.theory import heavy_ball, polyak, qhm, recursion, sam, sgd, update_rule, with_ema


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_the_recursion_is_what_the_rule_does(rule):
    """Stepping the function on fractions gives exactly A(h) z + b(h) xi, with the optimum away from zero included."""
    optimizer = bound(rule)
    step = recursion(optimizer)
    rng = np.random.default_rng(5)
    for _ in range(5):
        h, noise, optimum, *state = (Fraction(int(n), 11) for n in rng.integers(1, 40, size=3 + len(rule.slots)))
        moved = optimizer.step(tuple(state), lambda w, h=h, n=noise, o=optimum: h * (w - o) + n)
        at = {step.h: sp.Rational(h)}
        drive = sp.Rational(noise) - sp.Rational(h) * sp.Rational(optimum)
        expected = step.transition.subs(at) * sp.Matrix(state) + step.noise_gain.subs(at) * drive
        assert [sp.Rational(entry) for entry in moved] == list(expected)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_coefficients_rebuild_the_increment(rule):
    step = recursion(bound(rule))
    size = len(rule.slots)
    rebuilt = sum((sp.Matrix(layer) * step.h**k for k, layer in enumerate(step.increment_coefficients)), sp.zeros(size))
    assert sp.expand(rebuilt - (step.transition - sp.eye(size))) == sp.zeros(size)
    gain = sum(
        (sp.Matrix(layer) * step.h**k for k, layer in enumerate(step.noise_gain_coefficients)), sp.zeros(size, 1)
    )
    assert sp.expand(gain - step.noise_gain) == sp.zeros(size, 1)


def test_floats_are_taken_at_their_exact_value():
    layer = recursion(sgd(lr=0.1)).increment_coefficients[1]
    assert layer[0][0] == -sp.Rational(3602879701896397, 36028797018963968)


def test_unbound_hyperparameters_are_symbols_and_defaults_are_bound():
    step = recursion(heavy_ball)
    assert {s.name for s in step.transition.free_symbols} == {"h", "lr", "momentum"}
    freed = recursion(heavy_ball.free())
    assert {s.name for s in freed.transition.free_symbols} == {"h", "lr", "momentum", "dampening", "weight_decay"}
    with pytest.raises(HyperparameterError, match="momentum"):
        _ = recursion(heavy_ball(lr=1)).increment_coefficients


def test_sam_uses_one_minibatch_for_both_gradients():
    step = recursion(sam)
    lr, rho = (sam[name].symbol for name in ("lr", "rho"))
    assert sp.expand(step.noise_gain[0] + lr * (1 + rho * step.h)) == 0


def test_a_constant_written_as_a_float_is_exact():
    @update_rule(slots=("w",))
    def half(state, grad, *, lr):
        (w,) = state
        return (0.5 * w - lr * grad(w),)

    assert recursion(half).transition.subs(recursion(half).h, 0)[0] == sp.Rational(1, 2)


def test_a_linear_rule_written_as_a_quotient_is_linear():
    @update_rule(slots=("w", "v"))
    def quotient(state, grad, *, lr):
        w, v = state
        return (w**2 - v**2) / (w - v), v - lr * grad(w)

    assert list(recursion(quotient).transition.row(0)) == [1, 1]


def _square(state, grad, *, lr):
    (w,) = state
    return (w - lr * grad(w) ** 2,)


def _normalised(state, grad, *, lr):
    (w,) = state
    g = grad(w)
    return (w - lr * g / abs(g),)


def _clamped(state, grad, *, lr):
    (w,) = state
    return (w - lr * grad(w).clamp(-1, 1),)


def _branching(state, grad, *, lr):
    (w,) = state
    g = grad(w)
    return (w - lr * (g if g > 0 else 0),)


def _numpy(state, grad, *, lr):
    (w,) = state
    return (w - lr * np.sign(grad(w)),)


def _product(state, grad, *, lr):
    w, v = state
    return w - lr * v * grad(w), v


def _shifted(state, grad, *, lr):
    (w,) = state
    return (w - lr * grad(w) - 1,)


@pytest.mark.parametrize(
    ("function", "term"),
    [
        (_square, "xi**2"),
        (_normalised, "Abs"),
        (_clamped, "clamp"),
        (_branching, "truth value"),
        (_numpy, "w*h + xi < 0"),
        (_product, "v*xi"),
        (_shifted, "-1"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_nonlinear_rule_is_refused_by_its_term(function, term):
    rule = update_rule(slots=("w", "v") if function is _product else ("w",))(function)
    with pytest.raises(NonlinearRuleError) as caught:
        recursion(rule)
    assert term in caught.value.term
    assert caught.value.rule == function.__name__


def test_an_irrational_hyperparameter_is_refused():
    @update_rule(slots=("w",), domains={"beta": sp.Interval.Ropen(0, 1)})
    def root(state, grad, *, lr, beta):
        (w,) = state
        return (w - lr * (1 - beta**2) ** 0.5 * grad(w),)

    with pytest.raises(InvalidRuleError, match="is not a rational function"):
        recursion(root)


def test_a_rule_of_the_wrong_form_is_refused():
    with pytest.raises(InvalidRuleError, match="signature"):
        update_rule(slots=("w",))(lambda state, grad, lr: state)
    with pytest.raises(InvalidRuleError, match="distinct slot names"):
        update_rule(slots=("w", "w"))(_square)
    with pytest.raises(InvalidRuleError, match="one entry per slot"):
        recursion(update_rule(slots=("w", "v"))(_shifted_pair))
    with pytest.raises(InvalidRuleError, match="expected an update rule"):
        recursion("heavy_ball")
    with pytest.raises(InvalidRuleError, match="no hyper-parameter 'beta'"):
        update_rule(slots=("w",), domains={"beta": sp.Interval(0, 1)})(_square)


def _shifted_pair(state, grad, *, lr):
    return (state[0],)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heavy_ball(lr=-0.1), r"lr=-0.1 is outside its domain \(0, inf\)"),
        (lambda: heavy_ball(momentum=1), r"momentum=1 is outside its domain \[0, 1\)"),
        (lambda: heavy_ball(lr=float("nan")), "lr=nan is not a finite real number"),
        (lambda: heavy_ball(lr="0.1"), "lr='0.1' is not a finite real number"),
        (lambda: heavy_ball(lr=True), "lr=True is not"),
        (lambda: heavy_ball(nu=0.1), "no hyper-parameter 'nu'"),
        (lambda: qhm(nu=1.5), r"nu=1.5 is outside its domain \[0, 1\]"),
        (lambda: heavy_ball(lr=0.1).replace(momentum=2), "momentum=2 is outside"),
        (lambda: heavy_ball.free("nu"), "no hyper-parameter 'nu'"),
        (lambda: heavy_ball(lr=0.1).step((0.0, 0.0), abs), "no value for momentum"),
    ],
)  # fmt: skip
def test_a_bad_hyperparameter_is_refused_by_name(call, message):
    with pytest.raises(HyperparameterError, match=message):
        call()


def test_optimizers_are_values():
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    assert optimizer == heavy_ball(momentum=0.9, lr=0.1)
    assert hash(optimizer) == hash(heavy_ball(momentum=0.9, lr=0.1))
    assert optimizer.replace(lr=0.2) == heavy_ball(lr=0.2, momentum=0.9)
    assert optimizer.free("lr").unbound == ("lr",)
    with pytest.raises(AttributeError):
        optimizer.bound = ()


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_rules_and_optimizers_survive_pickling(rule):
    assert pickle.loads(pickle.dumps(rule)) is rule
    assert pickle.loads(pickle.dumps(bound(rule))) == bound(rule)


def test_averaging_twice_is_refused():
    with pytest.raises(InvalidRuleError, match="already averages"):
        with_ema(with_ema(polyak))
