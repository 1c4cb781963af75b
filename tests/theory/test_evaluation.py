"""A formula gives numbers inside its conditions only, with all their digits; it survives pickle and copies."""

import copy
import multiprocessing
import pickle

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
from cases import NUMBERS, lookahead

from sgdcov.errors import HyperparameterError, InvalidProblemError
from sgdcov.theory import (
    RULES,
    average_covariance,
    epoch_covariance,
    finite_data_covariance,
    gaussian_fourth_moment,
    gaussian_minibatch_covariance,
    heavy_ball,
    kesten_equation,
    learning_rate_change,
    linear_scaling_gap,
    momentum_matrix_equation,
    recursion,
    sgd,
    stability,
    stationary_covariance,
    transient_covariance,
)


def epoch_average(h, lr, batches):
    """Stationary variance of sgd over one epoch, from the noise covariance of its batches, batch by batch."""
    a, noise = 1 - mp.mpf(lr) * h, mp.mpf(lr) ** 2
    moved = [mp.mpf(0)]  # variance of what the noise of an epoch has built after k steps
    summed = mp.mpf(0)  # covariance of that with the sum of the noise so far, per batch to come
    for _ in range(batches):
        cross = -summed / (batches - 1)  # with the next batch
        moved.append(a**2 * moved[-1] + 2 * a * cross * noise + noise)
        summed = a * summed + 1
    start = moved[-1] / (1 - a ** (2 * batches))
    return sum(a ** (2 * k) * start + moved[k] for k in range(batches)) / batches


@pytest.mark.parametrize("h", [1e-8, 1e-6, 1e-3, 0.5])
def test_no_digits_are_lost_on_small_curvature(h):
    law, mean = epoch_covariance(sgd, "average").lambdify(), average_covariance(sgd).lambdify()
    with mp.workdps(80):
        exact = epoch_average(mp.mpf(h), 0.1, 50)
        a = 1 - mp.mpf(0.1) * mp.mpf(h)
        variance = mp.mpf(0.1) / (mp.mpf(h) * (1 + a))
        window = variance * sum((20 - abs(s)) * a ** abs(s) for s in range(-19, 20)) / 400
        assert abs(law(h_i=h, h_j=h, c_ij=1.0, lr=0.1, M=50) / exact - 1) < 1e-15
        assert abs(mean(h_i=h, h_j=h, c_ij=1.0, lr=0.1, K=20) / window - 1) < 1e-15


def test_arrays_are_the_numbers_one_by_one():
    law = learning_rate_change(heavy_ball).lambdify()
    h = np.array([1e-9, 1e-4, 0.3, 1.0])
    given = {"c_ij": 1.0, "h_j": 0.5, "lr": 0.1, "momentum": 0.9, "lr_before": 0.2}
    found = law(h_i=h[:, None], k=np.array([0, 3, 40]), **given)
    assert found.shape == (4, 3)
    one_by_one = [[law(h_i=float(x), k=k, **given) for k in (0, 3, 40)] for x in h]
    assert found == pytest.approx(np.array(one_by_one), rel=1e-11, abs=0)


def test_outside_the_conditions_there_is_no_number():
    law = stationary_covariance(sgd)
    at = {"h_i": 1.0, "h_j": 1.0, "c_ij": 1.0}
    for lr in (5.0, 2.0, 0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(HyperparameterError, match="does not hold at"):
            law.lambdify()(**at, lr=lr)
        assert np.isnan(law.lambdify(outside="nan")(**at, lr=lr))
    partly = law.lambdify(outside="nan")(**at, lr=np.array([0.5, 1.9, 2.0, 2.5]))
    assert np.isnan(partly).tolist() == [False, False, True, True]
    with pytest.raises(HyperparameterError, match=r"h_i=1.0, lr=2.5: it needs h_i\*lr < 2"):
        law.lambdify()(**at, lr=np.array([0.5, 2.5]))
    for wrong in ({"lr": 5, "h_i": 1}, {"lr": 0}, {"lr": -1}, {"lr": "0.1+"}, {"lr": None}, {"lr": "rate"}):
        with pytest.raises(HyperparameterError):
            law.specialise(**wrong)
    momentum = stationary_covariance(heavy_ball)
    with pytest.raises(HyperparameterError, match="it needs momentum < 1"):
        momentum.specialise(momentum=1)
    with pytest.raises(HyperparameterError, match="it needs momentum < 1"):
        momentum.lambdify()(**at, lr=0.1, momentum=1.0)
    for wrong in (True, "1", None, 1j, [[1], [2, 3]], object()):
        with pytest.raises((HyperparameterError, InvalidProblemError)):
            law.lambdify()(**at, lr=wrong)
    with pytest.raises(InvalidProblemError, match="outside the range of doubles"):
        law.lambdify()(h_i=1e-200, h_j=1e-200, c_ij=1e200, lr=1.0)


def test_critical_damping_is_asked_for_where_it_is():
    at = {"h_i": 1.0, "h_j": 1.0, "c_ij": 1.0, "k": 5}
    at |= {"start_w_w": 1.0, "start_w_v": 0.0, "start_v_w": 0.0, "start_v_v": 0.0}
    law = transient_covariance(heavy_ball, roots=("repeated", "repeated")).lambdify()
    critical = float((1 - mp.sqrt(0.81)) ** 2)
    near = transient_covariance(heavy_ball).lambdify()(**at, lr=critical * (1 + 1e-9), momentum=0.81)
    assert law(**at, lr=critical, momentum=0.81) == pytest.approx(near, rel=1e-6)
    with pytest.raises(HyperparameterError, match="it needs Eq"):
        law(**at, lr=critical * 1.5, momentum=0.81)


def compiled(optimizer, h):
    """The recursion's matrix and noise gain as functions of the learning rate."""
    step = recursion(optimizer)
    rule, free = step.optimizer.rule, set(step.optimizer.unbound) - {"lr"}
    numbers = {step.h: h, **{rule[n].symbol: sp.Rational(NUMBERS[n]) for n in free}}
    parts = [m.subs(numbers) for m in (step.transition, step.noise_gain)]
    return sp.lambdify([rule["lr"].symbol], [m.tolist() for m in parts], "math")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_stated_stability_ends_where_the_recursion_does(rule):
    """By eigenvalues of the recursion: the learning rate at which its spectral radius is 1."""
    h = sp.Rational(3, 4)
    low, high, matrices = 1.0, 20.0, compiled(rule, h)
    for _ in range(50):
        middle = (low + high) / 2
        inside = max(abs(np.linalg.eigvals(np.array(matrices(middle)[0], dtype=float)))) < 1
        low, high = (middle, high) if inside else (low, middle)
    law, edge = stationary_covariance(rule), (low + high) / 2
    others = {n: NUMBERS[n] for n in law.symbols if n in NUMBERS and n != "lr"}
    number = law.lambdify()
    assert number(h_i=0.75, h_j=0.75, c_ij=1, lr=edge * (1 - 1e-6), **others) > 0
    with pytest.raises(HyperparameterError, match="does not hold"):
        number(h_i=0.75, h_j=0.75, c_ij=1, lr=edge * (1 + 1e-6), **others)
    conditions = stability(rule)
    stated = [c.subs({rule[n].symbol: sp.Rational(x) for n, x in others.items()}).subs(conditions.h, h)
              for c in conditions.conditions]  # fmt: skip
    for lr, holds in ((edge * (1 - 1e-6), True), (edge * (1 + 1e-6), False)):
        assert all(bool(c.subs(rule["lr"].symbol, sp.Rational(lr))) for c in stated) == holds


def second_moment_radius(transition, gain, spread):
    """Spectral radius of the second moments in one direction: noise of variance spread*M beside A M A'."""
    a, b = np.array(transition, dtype=float), np.array(gain, dtype=float)
    seen = np.zeros((len(b), len(b)))
    seen[0, 0] = spread  # the gradient is taken at the weights
    return max(abs(np.linalg.eigvals(np.kron(a, a) + np.outer(np.kron(b, b), seen.ravel()))))


@pytest.mark.parametrize("optimizer", [sgd, heavy_ball(momentum=0.6)], ids=["sgd", "heavy_ball"])
def test_stated_mean_square_stability_ends_where_second_moments_do(optimizer):
    h, size = 1.0, 3
    low, high, matrices = 0.01, 2.5, compiled(optimizer, sp.Rational(h))
    for _ in range(50):
        middle = (low + high) / 2
        inside = second_moment_radius(*matrices(middle), 2 * h**2 / size) < 1
        low, high = (middle, high) if inside else (low, middle)
    gaussian = gaussian_minibatch_covariance(optimizer, eigenvalues=[1]).lambdify()
    finite, gap = finite_data_covariance(optimizer).lambdify(), linear_scaling_gap(optimizer).lambdify()
    calls = {
        "gaussian": lambda lr: gaussian(h_i=1, label_noise=1, batch_size=size, lr=lr),
        "finite": lambda lr: finite(h_i=1, mean_square_h=3, mean_square_g=1, batch_size=size, lr=lr),
        "gap, scaled": lambda lr: gap(h_i=1, k=size, batch_size=1, lr=lr / size),
        "gap": lambda lr: gap(h_i=1, k=0.5, batch_size=size, lr=lr),
    }
    for name, call in calls.items():
        assert call(low * (1 - 1e-6)) > (0 if "gap" not in name else -1)
        with pytest.raises(HyperparameterError, match="does not hold"):
            call(high * (1 + 1e-6))


def test_a_float_is_exact_and_reads_as_it_was_given():
    law, exact = stationary_covariance(sgd).specialise(lr=0.1), sp.Rational(0.1)
    assert str(law) == "Sigma_ij = 0.1*c_ij/(-0.1*h_i*h_j + h_i + h_j)"
    assert law.latex() == r"\Sigma_{ij} = \frac{0.1 c_{ij}}{- 0.1 h_i h_j + h_i + h_j}"
    h_i, h_j, c = (law.symbols[r] for r in ("h_i", "h_j", "c_ij"))
    assert sp.cancel(law.expression - exact * c / (h_i + h_j - exact * h_i * h_j)) == 0
    assert "3602879701896397" not in str(stationary_covariance(heavy_ball(lr=0.1, momentum=0.9)))
    assert stationary_covariance(heavy_ball).specialise(momentum=0.9, lr=1e-5).prove().claims


def test_text_means_the_roles_of_the_formula():
    law = stationary_covariance(heavy_ball)
    doubled = law.specialise(lr="momentum/(2*h_i)", h_j="h_i")
    assert set(doubled.symbols) == {"h_i", "c_ij", "momentum"}
    assert doubled.expression.free_symbols == set(doubled.symbols.values())
    epsilon = sp.Symbol("epsilon", positive=True)
    assert law.specialise(lr=epsilon).symbols["epsilon"] == epsilon
    with pytest.raises(HyperparameterError, match="'h_i' is a name that this formula uses"):
        law.specialise(lr=2 * sp.Symbol("h_i"))


def test_statements_about_matrices_have_no_value():
    for formula in (momentum_matrix_equation(), gaussian_fourth_moment()):
        with pytest.raises(InvalidProblemError, match="between matrices"):
            formula.lambdify()
    assert momentum_matrix_equation().specialise(lr=0.1, momentum=0.5).prove().claims
    growth = kesten_equation().lambdify()
    with mp.workdps(30):
        exact = mp.quad(lambda x: abs(1 - x / 2) ** 3 * mp.exp(-x / 2) / mp.sqrt(2 * mp.pi * x), [0, 2, mp.inf])
    assert growth(alpha=3, h_i=1, lr=0.5, batch_size=1) == pytest.approx(float(exact), rel=1e-14)



def test_formulas_and_rules_survive_pickle_copies_and_a_spawned_process():
    formula = average_covariance(heavy_ball(lr=0.1, momentum=0.9))
    rule = lookahead
    things = [formula, formula.prove(), formula.assumptions[0], recursion(rule), stability(rule), rule, rule(lr=0.1)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(copy.copy, things)
    for back in ([copy.deepcopy(x) for x in things], [copy.copy(x) for x in things],
                 [pickle.loads(pickle.dumps(x)) for x in things], elsewhere):  # fmt: skip
        assert repr(back) == repr(things)
        assert back[0].equation == formula.equation
        assert dict(back[0].where) == dict(formula.where)
        assert back[0].explicit() == formula.explicit()
        assert back[3] == recursion(rule)
        assert back[5] is rule
        with pytest.raises(TypeError):
            back[0].symbols["lr"] = 1
