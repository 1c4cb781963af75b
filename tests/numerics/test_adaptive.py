"""The self-consistent law: closed forms in one dimension, the fixed point in many, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from sgdcov.errors import HyperparameterError, InvalidProblemError, InvalidRuleError, NonStationaryError, UnstableError
from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    adam,
    adaptive_covariance,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, nesterov, qhm, sam, sgd, sgdw

EPS = np.finfo(np.float64).eps
ADAM = heavy_ball(lr=0.1, momentum=0.9, dampening=0.9)
RULES = [sgd(lr=0.3), ADAM, heavy_ball(lr=0.05, momentum=0.8), nesterov(lr=0.05, momentum=0.8)]


def definite(dim, seed):
    factor = np.random.default_rng(seed).normal(size=(dim, dim))
    return factor @ factor.T / dim


@pytest.mark.parametrize(("lr", "noise"), [(0.01, 1.0), (1.0, 1.0), (5.0, 1e-2), (5.0, 1e-6), (100.0, 1.0)])
def test_one_dimension_has_a_closed_form(lr, noise):
    # v = h^2 S + c, S = lr P c/(h (2 - lr P h)), P = 1/sqrt(v): 2 v - lr h sqrt(v) - 2 c = 0
    h = 2.0
    law = adaptive_covariance(sgd(lr=lr), [[h]], [[noise]], eps=0.0)
    root = (lr * h + np.sqrt((lr * h) ** 2 + 16 * noise)) / 4
    assert law.second_moment[0] == pytest.approx(root**2, rel=1e-12)
    assert law.preconditioner[0] == pytest.approx(1 / root, rel=1e-12)
    assert law.value[0, 0] == pytest.approx((root**2 - noise) / h**2, rel=1e-12 * max(1.0, lr * h / noise))


def test_heavy_ball_in_one_dimension_solves_its_own_quadratic():
    # S = e c/(h P (1-mu)(2 - ...)) with e = lr (1-mu): v = h^2 S + c, S = lr P c/(h (2 - lr P h (1-mu)/(1+mu)))
    h, c, lr, mu = 2.0, 0.3, 1.5, 0.9
    law = adaptive_covariance(heavy_ball(lr=lr, momentum=mu, dampening=mu), [[h]], [[c]], eps=0.0)
    v = law.second_moment[0]
    a = lr * h / np.sqrt(v)
    assert v == pytest.approx(c * (1 + a / (2 - a * (1 - mu) / (1 + mu))), rel=1e-11)


@pytest.mark.parametrize("optimizer", RULES, ids=repr)
@pytest.mark.parametrize("dim", [1, 4, 40])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_second_moments_are_those_of_the_law_that_they_make(optimizer, dim, size):
    h, c = definite(dim, 0) + 0.05 * np.eye(dim), size * definite(dim, 1) + 1e-3 * size * np.eye(dim)
    law = adaptive_covariance(optimizer, h, c)
    frozen = stationary_covariance(optimizer, h, c, preconditioner=adam(law.second_moment, 1e-8))
    np.testing.assert_allclose(law.value, frozen.value, rtol=0, atol=10 * dim * EPS * frozen.trace)
    again = np.diagonal(h @ frozen.value @ h) + np.diagonal(c)
    assert np.max(np.abs(again / law.second_moment - 1)) <= 1e-10
    assert law.residual <= 1e-10
    assert np.all(law.second_moment >= np.diagonal(c))
    assert "approximation" in law.status


def test_it_is_stable_where_the_second_moments_of_the_noise_alone_are_not():
    h, c = np.diag([1.0, 4.0]), 0.01 * np.array([[1.0, 0.5], [0.5, 2.0]])
    with pytest.raises(UnstableError):
        stationary_covariance(sgd(lr=1.0), h, c, preconditioner=adam(np.diagonal(c)))
    law = adaptive_covariance(sgd(lr=1.0), h, c)
    assert law.residual <= 1e-10
    assert np.linalg.eigvalsh(law.value)[0] > 0


def test_at_small_learning_rates_the_noise_alone_decides():
    h, c = definite(3, 0), definite(3, 1)
    gaps = []
    for lr in (1e-3, 1e-4):
        law = adaptive_covariance(sgd(lr=lr), h, c)
        gaps.append(np.max(np.abs(law.second_moment / np.diagonal(c) - 1)))
    assert gaps[0] / gaps[1] == pytest.approx(10.0, rel=0.02)


def test_eps_enters_as_in_pytorch():
    h, c = definite(2, 0), definite(2, 1)
    law = adaptive_covariance(ADAM, h, c, eps=0.5)
    assert law.preconditioner == pytest.approx(1 / (np.sqrt(law.second_moment) + 0.5), rel=2 * EPS)


def test_noise_that_depends_on_the_weights_counts_at_its_average_over_the_law():
    rng = np.random.default_rng(2)
    problem = LeastSquares(rng.normal(size=(20, 3)), rng.normal(size=20))
    noise = MinibatchNoise(problem, batch_size=4)
    law = adaptive_covariance(sgd(lr=0.3), noise.hessian, noise)
    own = law.covariance.gradient_noise
    assert np.all(np.diagonal(own) > np.diagonal(noise.covariance()))
    again = np.diagonal(noise.hessian @ law.value @ noise.hessian) + np.diagonal(own)
    assert law.second_moment == pytest.approx(again, rel=1e-10)


def test_a_coordinate_that_nothing_moves_stays_at_rest():
    h, c = np.diag([1.0, 0.0]), np.diag([2.0, 0.0])
    law = adaptive_covariance(sgd(lr=0.1), h, c)
    assert law.second_moment[1] == 0.0
    assert law.value[1, 1] == 0.0
    assert law.value[0, 0] == pytest.approx(adaptive_covariance(sgd(lr=0.1), [[1.0]], [[2.0]]).value[0, 0], rel=1e-12)


def test_it_is_an_array_and_its_covariance_has_the_other_slots():
    h, c = definite(2, 0), definite(2, 1)
    law = adaptive_covariance(ADAM, h, c)
    assert np.array_equal(np.asarray(law), law.value)
    assert law.covariance.block("w", "v").shape == (2, 2)
    assert "iterations" in repr(law)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: adaptive_covariance(sgd(lr=0.1, weight_decay=0.1), [[1.0]], [[1.0]]), InvalidRuleError, "weight dec"),
        (lambda: adaptive_covariance(sgdw(lr=0.1, momentum=0.5, weight_decay=0.1), [[1.0]], [[1.0]]),
         InvalidRuleError, "weight decay"),
        (lambda: adaptive_covariance(sam(lr=0.1, rho=0.1), [[1.0]], [[1.0]]), InvalidRuleError, "more than one grad"),
        (lambda: adaptive_covariance(sgd(), [[1.0]], [[1.0]]), HyperparameterError, "lr"),
        (lambda: adaptive_covariance(sgd(lr=0.1), [[1.0]], [[0.0]]), InvalidProblemError, "the noise is 0"),
        (lambda: adaptive_covariance(sgd(lr=0.1), np.diag([1.0, 1.0]), np.diag([1.0, 0.0])), InvalidProblemError,
         "coordinate 1 has curvature but nothing moves"),
        (lambda: adaptive_covariance(sgd(lr=0.1), np.diag([1.0, 0.0]), np.eye(2)), NonStationaryError, "random walk"),
        (lambda: adaptive_covariance(sgd(lr=0.1), [[1.0]], [[1.0]], eps=-1.0), InvalidProblemError, "eps must be"),
        (lambda: adaptive_covariance(qhm(lr=0.1, beta=0.9, nu=0.5), [[1.0]], [[1.0, 0.0]]), InvalidProblemError,
         "noise must have shape"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
