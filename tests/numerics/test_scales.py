"""Numbers of any size: right, or refused as beyond double precision; never a false 0, infinity or NaN."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from sgdcov.errors import ScaleError
from sgdcov.numerics import (
    autocorrelation_time,
    max_learning_rate,
    pair_covariance,
    spectral_gap,
    spectral_radius,
    stationary_covariance,
    stationary_mean,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd, with_ema
from tests.support.high_precision import relative_error, stationary_law

EPS = np.finfo(float).eps


def test_a_covariance_whose_parts_are_beyond_doubles():
    law = stationary_covariance(sgd(lr=1e-180), [[1e170]], [[1e300]])
    lr, h, c = Fraction(1e-180), Fraction(1e170), Fraction(1e300)
    assert law.value[0, 0] == pytest.approx(float(lr * c / (h * (2 - lr * h))), rel=4 * EPS)
    assert law.error <= 1e-14
    assert 0 < law.residual <= 1e-14
    assert law.excess_risk == pytest.approx(0.5 * 1e170 * law.value[0, 0], rel=4 * EPS)


@pytest.mark.parametrize(
    "optimizer", [heavy_ball(lr=1e-141, momentum=0.9), nesterov(lr=1e-141, momentum=0.5)], ids=repr
)
def test_curvatures_over_280_decades(optimizer):
    h = np.array([1e-140, 3e-7, 1e140])
    law = stationary_covariance(optimizer, np.diag(h), np.diag(h))
    for x, variance in zip(h, np.diagonal(law.value), strict=True):
        # One direction at a time is one number, in units of its own.
        assert relative_error([[variance]], stationary_law(optimizer, [[x]], [[x]], digits=650)) <= 8 * EPS


@pytest.mark.parametrize("scale", [1e-150, 1e-40, 1e150])
def test_the_same_problem_in_other_units(scale):
    """w' = w sqrt(s): H/s, C/s, lr*s."""
    rng = np.random.default_rng(3)
    root, x = rng.normal(size=(3, 3)), rng.normal(size=(9, 3))
    hessian, noise = x.T @ x / 9, root @ root.T
    law = stationary_covariance(heavy_ball(lr=0.01, momentum=0.9), hessian, noise)
    other = stationary_covariance(heavy_ball(lr=0.01 * scale, momentum=0.9), hessian / scale, noise / scale)
    assert np.linalg.norm(other.value / scale - law.value) <= 2 * law.error * np.linalg.norm(law.value)
    assert other.error == pytest.approx(law.error, rel=0.5)


def test_what_is_too_large_or_too_small_is_refused():
    with pytest.raises(ScaleError, match="too small for double precision"):
        stationary_covariance(sgd(lr=1e-180), [[1e10]], [[1e-200]])
    with pytest.raises(ScaleError, match="overflows double precision"):
        stationary_covariance(sgd(lr=1e100), [[1e-200]], [[1e200]])
    with pytest.raises(ScaleError, match="1e-350"):
        pair_covariance(sgd(lr=1e-180), 1e170, 1e170)


def test_a_tiny_learning_rate_has_an_error_bound():
    hessian, noise = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.0, 2.0])
    exact = stationary_law(heavy_ball(lr=2.0**-100, momentum=0.9), hessian, noise, digits=130)
    # The covariance is lr times a constant up to a relative 2^-100.
    for exponent in (-1000, -100, -60):
        law = stationary_covariance(heavy_ball(lr=2.0**exponent, momentum=0.9), hessian, noise)
        assert relative_error(np.ldexp(law.value, -100 - exponent), exact) <= law.error <= 1e-12


def test_other_answers_at_such_scales():
    assert max_learning_rate(heavy_ball(momentum=0.5), np.diag([1e-170, 1e170])) == pytest.approx(3e-170, rel=4 * EPS)
    assert max_learning_rate(nesterov(momentum=0.5), [[1e170]]) == pytest.approx(1.5e-170, rel=4 * EPS)
    assert stationary_mean(sgd(lr=1e-180, weight_decay=1e100), [[1e100]], [1.0]) == pytest.approx([0.5])
    tau = autocorrelation_time(sgd(lr=1e-180), np.diag([1e170, 1e20]))
    # (2 - lr h) / (lr h)
    np.testing.assert_allclose(tau, [2e10, 2e160], rtol=1e-9)


class TestSpectralGap:
    @pytest.mark.parametrize("momentum", [0.0, 0.9, 1 - 1e-9])
    @pytest.mark.parametrize("lr", [1e-100, 1e-18, 1e-3, 0.9, 1.9999999999999])
    def test_it_is_that_of_the_exact_eigenvalues(self, momentum, lr):
        optimizer, h = heavy_ball(lr=lr, momentum=momentum), [1.0, 0.25, 1e-5]
        with mpmath.workdps(400):
            gaps = []
            for x in h:
                b = 1 + mpmath.mpf(momentum) - mpmath.mpf(lr) * x
                root = mpmath.sqrt(b * b - 4 * mpmath.mpf(momentum))
                gaps += [1 - abs((b + root) / 2), 1 - abs((b - root) / 2)]
            exact = min(gaps)
        gap = spectral_gap(optimizer, np.diag(h))
        assert abs(gap - float(exact)) <= 4 * EPS * float(exact)
        assert spectral_radius(optimizer, np.diag(h)) < 1

    def test_beyond_the_edge_it_is_negative_and_the_radius_above_1(self):
        above = float(np.nextafter(2.0, 3.0))
        assert spectral_gap(sgd(lr=above), [[1.0]]) == -2 * EPS
        assert spectral_radius(sgd(lr=above), [[1.0]]) > 1
        assert spectral_radius(sgd(lr=2.0), [[1.0]]) == 1

    @pytest.mark.parametrize(
        "optimizer", [polyak(lr=1e-30, momentum=0.5), with_ema(sgd)(lr=1e-30, ema_decay=0.9)], ids=repr
    )
    def test_rules_of_several_slots(self, optimizer):
        lost = 1e-30 / (1 - float(optimizer.values.get("momentum", 0)))
        assert spectral_gap(optimizer, np.diag([1.0, 2.0])) == pytest.approx(lost, rel=1e-12)

    def test_without_a_moving_direction(self):
        assert (spectral_gap(sgd(lr=0.1), [[0.0]]), spectral_radius(sgd(lr=0.1), [[0.0]])) == (1, 0)


def test_many_directions_at_the_edge_take_no_time():
    """2 - lr h = 1e-14 at 300 directions: every one of 45,150 pairs cancels to the last digits."""
    rng = np.random.default_rng(4)
    h, lr = 1 - 1e-15 * rng.integers(1, 9, 300), 2 - 1e-14
    law = stationary_covariance(sgd(lr=lr), np.diag(h), np.eye(300))
    exact = [float(Fraction(lr) / (Fraction(x) * (2 - Fraction(lr) * Fraction(x)))) for x in h]
    np.testing.assert_allclose(np.diagonal(law.value), exact, rtol=8 * EPS)


def test_the_residual_is_of_numbers_whose_squares_underflow_too():
    """Noise of the size 1e-200 leaves a residual of the size of rounding, not 0."""
    rng = np.random.default_rng(5)
    root, x = rng.normal(size=(3, 3)), rng.normal(size=(9, 3))
    law = stationary_covariance(sgd(lr=0.1), x.T @ x / 9, 1e-200 * (root @ root.T))
    assert 0 < law.residual <= 1e-14
