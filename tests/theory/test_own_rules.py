"""Rules of a user's own: names that formulas use, a first slot of any name, quotients, constants, branches."""

import pytest
import sympy as sp

from sgdcov.errors import HyperparameterError, InvalidRuleError
from sgdcov.theory import (
    autocorrelation_time,
    autocovariance,
    average_covariance,
    characteristic_sequence,
    crossover_curvature,
    epoch_average_covariance,
    epoch_covariance,
    epoch_flat_limit,
    finite_data_covariance,
    gaussian_minibatch_covariance,
    heavy_ball,
    isotropic_covariance,
    label_noise_covariance,
    langevin_covariance,
    learning_rate_change,
    linear_scaling_gap,
    mean_square_share,
    minibatch_second_moment,
    sandwich_limit,
    sgd,
    stability,
    stationary_covariance,
    stationary_mean,
    transient_covariance,
    transient_mean,
    unhinged_covariance,
    update_rule,
)

MAKERS = (
    stationary_covariance, stationary_mean, transient_covariance, transient_mean, learning_rate_change, autocovariance,
    autocorrelation_time, average_covariance, sandwich_limit, characteristic_sequence, epoch_covariance,
    epoch_average_covariance, epoch_flat_limit, crossover_curvature, finite_data_covariance, minibatch_second_moment,
    gaussian_minibatch_covariance, mean_square_share, linear_scaling_gap, langevin_covariance, label_noise_covariance,
    isotropic_covariance, unhinged_covariance,
)  # fmt: skip
#: A value for every role of the formulas above, whatever the rule's own hyper-parameter is called.
AT = {"lr": 0.2, "h_i": 0.7, "h_j": 0.4, "c_ij": 0.6, "w_star": 1.5, "k": 3, "s": 3, "K": 4, "E": 2, "M": 5, "h": 0.7,
      "lr_before": 0.3, "batch_size": 4, "mean_square_h": 1.0, "mean_square_g": 0.5, "label_noise": 0.5, "U": 0.3,
      "delta_ij": 0.5, "inverse_temperature": 9.0, "noise": 0.8, "decay": 0.3, "norm_m": 2.0,
      "radius": 0.4}  # fmt: skip
#: Names that formulas use, and the formulas that do.
NAMES = {
    "s": (autocovariance, transient_mean), "k": (transient_mean, autocovariance), "K": (average_covariance,),
    "lr_before": (learning_rate_change,), "start_w_w": (learning_rate_change,), "start_w": (transient_mean,),
    "Sigma_ij": (autocovariance, stationary_covariance), "h_i": (stationary_covariance,), "h": (unhinged_covariance,
    stationary_covariance), "c_ij": (stationary_covariance, transient_mean), "r_plus_i": (autocovariance,),
    "U": (gaussian_minibatch_covariance, stationary_covariance), "decay": (unhinged_covariance, stationary_covariance),
    "alpha": (autocovariance, unhinged_covariance),
}  # fmt: skip


def with_momentum_called(name):
    """Heavy ball whose momentum has another name."""
    space = {}
    exec(
        f"def own(state, grad, *, lr, {name}):\n"
        f"    w, v = state\n    v = {name} * v + grad(w)\n    return w - lr * v, v\n",
        space,
    )
    return update_rule(slots=("w", "v"), domains={name: sp.Interval.Ropen(0, 1)})(space["own"])


def made_of(make, rule):
    try:
        return make(rule), None
    except HyperparameterError as error:
        return None, error


def number(formula, momentum, called):
    given = {role: momentum if role == called else AT.get(role, 0.25) for role in formula.symbols}
    return formula.lambdify()(**given)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_merges_with_a_symbol_of_the_formula(name):
    """Momentum by another name gives the same number, or the formula says that it uses the name itself."""
    rule = with_momentum_called(name)
    for make in NAMES[name]:
        formula, error = made_of(make, rule)
        if formula is None:
            assert error.name == name
            assert "is a name that this formula uses; bind or rename" in str(error)
            continue
        known = make(heavy_ball(dampening=0, weight_decay=0))
        assert number(formula, 0.6, name) == pytest.approx(number(known, 0.6, "momentum"), rel=1e-14)


def test_the_first_slot_may_have_any_name():
    @update_rule(slots=("theta", "v"))
    def own(state, grad, *, lr, momentum):
        theta, v = state
        v = momentum * v + grad(theta)
        return theta - lr * v, v

    plain = heavy_ball(dampening=0, weight_decay=0)
    for make in MAKERS:
        formula = make(own)
        known = make(plain)
        renamed = {role: role.replace("theta", "w") for role in formula.symbols}
        assert set(renamed.values()) == set(known.symbols)
        assert str(formula.equation.lhs) == str(known.equation.lhs).replace("next_w_w", "next_theta_theta")
        swap = {formula.symbols[role]: known.symbols[other] for role, other in renamed.items()}
        if not formula.where:
            assert sp.cancel(formula.expression.xreplace(swap) - known.expression) == 0
    assert stationary_covariance(own, ("theta", "v")).prove().claims
    with pytest.raises(InvalidRuleError, match="has the slots"):
        stationary_covariance(own, ("w", "w"))
    with pytest.raises(InvalidRuleError, match="pairs read alike"):
        update_rule(slots=("a", "a_b", "b_c", "c"))(own.function)


def test_a_quotient_of_hyperparameters_is_a_learning_rate():
    @update_rule(slots=("w",), domains={"eps": sp.Interval.Ropen(0, sp.oo)})
    def damped(state, grad, *, lr, eps):
        (w,) = state
        return (w - lr * grad(w) / (1 + eps),)

    lr, eps = (damped[name].symbol for name in ("lr", "eps"))
    for make in (stationary_covariance, sandwich_limit, langevin_covariance, epoch_flat_limit, autocorrelation_time):
        if make is langevin_covariance:
            assert make(damped).prove().claims
            continue
        expected = make(sgd).expression.subs(lr, lr / (1 + eps))
        assert sp.cancel(make(damped).expression - expected) == 0
        assert make(damped).prove().claims
    assert sp.cancel(stability(damped).largest_lr - 2 * (eps + 1) / stability(damped).h) == 0
    assert transient_covariance(damped).prove().claims
    law = average_covariance(damped).lambdify()
    plain = average_covariance(sgd).lambdify()
    at = {"K": 5, "h_i": 0.5, "h_j": 0.2, "c_ij": 1.0}
    assert law(**at, lr=0.3, eps=0.5) == pytest.approx(plain(**at, lr=0.2), rel=1e-14)


def test_what_is_no_rational_function_is_refused_as_that():
    @update_rule(slots=("w",))
    def irrational(state, grad, *, lr):
        (w,) = state
        return (w - sp.sqrt(2) * lr * grad(w),)

    @update_rule(slots=("w",))
    def branching(state, grad, *, lr, momentum):
        (w,) = state
        return (w - (lr * (1 - momentum) if momentum > 0 else lr) * grad(w),)

    with pytest.raises(InvalidRuleError, match=r"sqrt\(2\) is not a rational function"):
        stationary_covariance(irrational)
    with pytest.raises(InvalidRuleError, match=r"decides on the value of a hyper-parameter .*momentum > 0"):
        stationary_covariance(branching)
    bound = stationary_covariance(branching(momentum=sp.Rational(1, 2)))
    lr = sgd["lr"].symbol
    assert sp.cancel(bound.expression - stationary_covariance(sgd).expression.subs(lr, lr / 2)) == 0
