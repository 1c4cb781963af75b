"""The largest stable learning rate and the spectral radius."""

from fractions import Fraction

import numpy as np
import pytest

from sgdcov.errors import HyperparameterError, InvalidProblemError
from sgdcov.numerics import max_learning_rate, spectral_radius
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, update_rule, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=1),
    sgd(lr=1, weight_decay=0.3),
    heavy_ball(lr=1, momentum=0.9),
    heavy_ball(lr=1, momentum=0.99, dampening=0.5, weight_decay=0.1),
    nesterov(lr=1, momentum=0.9),
    polyak(lr=1, momentum=0.3, weight_decay=1.0),
    qhm(lr=1, beta=0.999, nu=0.7),
    sgdw(lr=1, momentum=0.9, weight_decay=0.2),
    sam(lr=1, rho=0.5),
    with_ema(heavy_ball)(lr=1, momentum=0.9, ema_decay=0.5),
    with_ema(qhm)(lr=1, beta=0.9, nu=0.5, ema_decay=0.5),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_the_largest_learning_rate_is_where_the_spectral_radius_reaches_one(optimizer):
    hessian = np.diag([0.5, 3.0, 1.0])
    largest = max_learning_rate(optimizer, hessian)
    # The eigenvalues of a 2 x 2 or 3 x 3 recursion carry sqrt(eps) at worst (a double root), here far less.
    assert spectral_radius(optimizer.replace(lr=largest * (1 - 1e-6)), hessian) < 1
    assert spectral_radius(optimizer.replace(lr=largest * (1 + 1e-6)), hessian) > 1
    for share in np.linspace(0.1, 0.9, 5):
        assert spectral_radius(optimizer.replace(lr=float(share * largest)), hessian) < 1


def test_known_limits_are_reached_to_the_last_bits():
    rng = np.random.default_rng(0)
    for mu, h in zip(rng.uniform(size=10), 10 ** rng.uniform(-8, 8, 10), strict=True):
        exact_mu, exact_h = Fraction(float(mu)), Fraction(float(h))
        limits = {
            sgd(lr=1): 2 / exact_h,
            heavy_ball(lr=1, momentum=float(mu)): 2 * (1 + exact_mu) / exact_h,
            nesterov(lr=1, momentum=float(mu)): 2 * (1 + exact_mu) / ((1 + 2 * exact_mu) * exact_h),
            sam(lr=1, rho=float(mu)): 2 / (exact_h * (1 + exact_mu * exact_h)),
        }
        for optimizer, limit in limits.items():
            assert max_learning_rate(optimizer, [[h]]) == pytest.approx(float(limit), rel=4 * EPS)


def test_a_margin_of_higher_degree_in_lr():
    """A step that squares the learning rate: 0 < lr*h + lr^2*h < 2, so lr < (sqrt(1 + 8/h) - 1)/2."""

    @update_rule(slots=("w",))
    def squared(state, grad, *, lr):
        (w,) = state
        return (w - (lr + lr * lr) * grad(w),)

    for h in (1e-6, 1.0, 3.0, 1e6):
        exact = 4 / h / (1 + np.sqrt(1 + 8 / h))
        assert max_learning_rate(squared(lr=1), [[h]]) == pytest.approx(exact, rel=4 * EPS)


def test_flat_directions_set_no_bound():
    assert max_learning_rate(sgd(lr=1), np.diag([0.0, 4.0])) == 0.5
    assert max_learning_rate(sgd(lr=1), np.zeros((2, 2))) == np.inf
    assert max_learning_rate(sgd(lr=1, weight_decay=4), np.zeros((2, 2))) == 0.5
    assert spectral_radius(sgd(lr=0.125), np.diag([0.0, 4.0])) == 0.5
    assert spectral_radius(sgd(lr=0.125), np.zeros((2, 2))) == 0.0


def test_a_bound_learning_rate_is_not_needed_and_not_used():
    assert max_learning_rate(heavy_ball(momentum=0.5), [[3.0]]) == 1.0
    assert max_learning_rate(heavy_ball(lr=7.0, momentum=0.5), [[3.0]]) == 1.0


def test_the_radius_of_heavy_ball_is_the_root_of_the_momentum_where_it_oscillates():
    assert spectral_radius(heavy_ball(lr=0.1, momentum=0.81), np.diag([1.0, 9.0])) == pytest.approx(0.9, rel=4 * EPS)


def test_refusals():
    @update_rule(slots=("w",))
    def unit(state, grad):
        (w,) = state
        return (w - grad(w),)

    with pytest.raises(HyperparameterError, match="no hyper-parameter 'lr'"):
        max_learning_rate(unit(), np.eye(2))
    with pytest.raises(HyperparameterError, match="momentum"):
        max_learning_rate(heavy_ball(lr=0.1), np.eye(2))
    with pytest.raises(HyperparameterError, match="lr"):
        spectral_radius(sgd(), np.eye(2))
    with pytest.raises(InvalidProblemError, match="hessian is not positive semidefinite"):
        max_learning_rate(sgd(lr=0.1), np.diag([1.0, -1.0]))
