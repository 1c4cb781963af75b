"""Doubling and the dense system for the laws: exact values where they used to stop early or lose their digits."""

from fractions import Fraction

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import stationary_covariance
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd, with_ema

METHODS = pytest.mark.parametrize("method", ["doubling", "kronecker"])


def exact(lr, mu, h, c):
    """The variance under momentum, in exact arithmetic: lr c (1+mu) / (h (1-mu) (2 (1+mu) - lr h))."""
    lr, mu, h, c = map(Fraction, (lr, mu, h, c))
    return lr * c * (1 + mu) / (h * (1 - mu) * (2 * (1 + mu) - lr * h))


@METHODS
@pytest.mark.parametrize(
    ("optimizer", "curvatures"),
    [
        (sgd(lr=1e-3), [1.0]),
        (sgd(lr=1.9999), [1.0]),
        (sgd(lr=2 - 2**-40), [1.0]),
        (heavy_ball(lr=0.1, momentum=0.9), [1.0, 1e-6]),
        (heavy_ball(lr=0.1, momentum=0.9), [1.0, 1e-13]),
        (polyak(lr=1e-5, momentum=1 - 1e-5), [1.0, 0.5]),
        (polyak(lr=1e-5, momentum=1 - 1e-8), [1.0, 0.5]),
        (heavy_ball(lr=1e-9, momentum=0.999), [1.0]),
    ],
    ids=repr,
)
def test_slow_modes_and_momentum_near_1_are_right_to_the_reported_error(method, optimizer, curvatures):
    law = stationary_covariance(optimizer, np.diag(curvatures), np.eye(len(curvatures)), method=method)
    momentum = optimizer.values.get("momentum", 0.0)
    wanted = np.array([float(exact(optimizer.values["lr"], momentum, h, 1.0)) for h in curvatures])
    off = np.linalg.norm(np.diagonal(law.value) - wanted) / np.linalg.norm(wanted)
    assert off <= law.error
    assert law.error <= 1e-13
    assert np.all(np.abs(np.diagonal(law.value) / wanted - 1) <= 1e-13)  # the small ones too


@METHODS
def test_a_slow_direction_beside_a_flat_one_is_kept(method):
    law = stationary_covariance(sgd(lr=0.1), np.diag([1.0, 1e-13, 0.0]), np.diag([1.0, 1.0, 0.0]), method=method)
    wanted = [float(exact(0.1, 0, h, 1.0)) for h in (1.0, 1e-13)]
    assert np.diagonal(law.value)[:2] == pytest.approx(wanted, rel=1e-14)
    assert law.value[2, 2] == 0.0


@METHODS
@pytest.mark.parametrize("exponent", [-160, 160])
def test_units_of_any_size_change_nothing(method, exponent):
    """H in units s^2, the weights in units 1/s."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(3, 3))
    h, c = g @ g.T, np.diag([1.0, 2.0, 0.5])
    plain = stationary_covariance(heavy_ball(lr=0.05, momentum=0.5), h, c, method=method)
    lr = float(np.ldexp(0.05, -2 * exponent))
    there = stationary_covariance(
        heavy_ball(lr=lr, momentum=0.5), np.ldexp(h, 2 * exponent), np.ldexp(c, 2 * exponent), method=method
    )
    assert np.linalg.norm(np.ldexp(there.value, 2 * exponent) - plain.value) <= 1e-13 * np.linalg.norm(plain.value)


@METHODS
def test_every_slot_of_a_rotated_problem_is_that_of_the_pair_equation(method):
    rng = np.random.default_rng(1)
    g, b = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    h, c = g @ g.T, b @ b.T
    for optimizer in (nesterov(lr=0.02, momentum=0.9), with_ema(heavy_ball)(lr=0.02, momentum=0.5, ema_decay=0.99)):
        law = stationary_covariance(optimizer, h, c, method=method)
        spectral = stationary_covariance(optimizer, h, c)
        assert np.linalg.norm(law.joint() - spectral.joint()) <= 1e-10 * np.linalg.norm(spectral.joint())


def test_the_dense_system_is_for_small_problems():
    with pytest.raises(InvalidProblemError, match="here slots \\* d = 66"):
        stationary_covariance(heavy_ball(lr=0.1, momentum=0.5), np.eye(33), np.eye(33), method="kronecker")
