"""The stationary mean is a fixed point of the rule's own step."""

import numpy as np
import pytest

from sgdcov.errors import HyperparameterError, InvalidProblemError, UnstableError
from sgdcov.numerics import stationary_mean
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.3),
    nesterov(lr=0.05, momentum=0.8, weight_decay=0.1),
    polyak(lr=0.1, momentum=0.5),
    qhm(lr=0.3, beta=0.95, nu=0.7, weight_decay=0.2),
    sgdw(lr=0.05, momentum=0.9, weight_decay=0.2),
    sam(lr=0.1, rho=0.2),
    with_ema(heavy_ball)(lr=0.05, momentum=0.9, weight_decay=0.3, ema_decay=0.9),
)


def draw(seed, d=4):
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(d, d)))[0]
    hessian = u @ np.diag(rng.uniform(0.2, 4.0, d)) @ u.T
    return (hessian + hessian.T) / 2, rng.normal(size=d)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_one_step_without_noise_leaves_it_where_it_is(optimizer):
    hessian, optimum = draw(1)
    slots = optimizer.rule.slots
    mean = stationary_mean(optimizer, hessian, optimum, slots=slots)
    stepped = optimizer.step(tuple(mean.reshape(len(slots), 4)), lambda w: hessian @ (w - optimum))
    np.testing.assert_allclose(np.concatenate(stepped), mean, rtol=0, atol=100 * EPS * np.abs(mean).max())


def test_without_weight_decay_it_is_the_optimum():
    hessian, optimum = draw(2)
    for optimizer in (heavy_ball(lr=0.05, momentum=0.9), qhm(lr=0.3, beta=0.9, nu=0.7), sam(lr=0.1, rho=0.1)):
        np.testing.assert_allclose(stationary_mean(optimizer, hessian, optimum), optimum, atol=100 * EPS)


def test_decoupled_decay_is_weaker_by_one_minus_momentum():
    hessian, optimum = draw(3)
    mean = stationary_mean(sgdw(lr=0.05, momentum=0.75, weight_decay=0.4), hessian, optimum)
    expected = np.linalg.solve(hessian + 0.25 * 0.4 * np.eye(4), hessian @ optimum)
    np.testing.assert_allclose(mean, expected, atol=100 * EPS * np.abs(optimum).max() * np.linalg.cond(hessian))


def test_a_flat_direction_stays_at_the_optimum_it_started_from_and_decays_with_weight_decay():
    hessian, optimum = np.diag([0.0, 2.0]), np.array([5.0, 3.0])
    rule = with_ema(heavy_ball)
    mean = stationary_mean(rule(lr=0.1, momentum=0.9, ema_decay=0.9), hessian, optimum, slots=("w", "v", "ema"))
    np.testing.assert_array_equal(mean, [5.0, 3.0, 0.0, 0.0, 5.0, 3.0])
    decayed = stationary_mean(rule(lr=0.1, momentum=0.9, ema_decay=0.9, weight_decay=2), hessian, optimum)
    np.testing.assert_allclose(decayed, [0.0, 1.5], rtol=4 * EPS)


def test_refusals():
    with pytest.raises(HyperparameterError, match="momentum"):
        stationary_mean(heavy_ball(lr=0.1), np.eye(2), np.ones(2))
    with pytest.raises(InvalidProblemError, match="no slot 'v'; it has w"):
        stationary_mean(sgd(lr=0.1), np.eye(2), np.ones(2), slots=("v",))
    with pytest.raises(InvalidProblemError, match=r"optimum must have shape \(2,\)"):
        stationary_mean(sgd(lr=0.1), np.eye(2), np.ones(3))
    with pytest.raises(UnstableError):
        stationary_mean(sgd(lr=3), np.eye(2), np.ones(2))
