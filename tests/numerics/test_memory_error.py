"""The error bounds of autocovariances, averages and shuffled epochs against 60 digits, and what epoch laws say."""

import copy
import pickle
import warnings

import numpy as np
import pytest

from sgdcov.errors import AccuracyWarning
from sgdcov.numerics import EpochNoise, autocovariance, average_covariance, stationary_covariance
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd
from tests.support import high_precision

EPS = np.finfo(float).eps
OPTIMIZERS = (sgd(lr=0.1), heavy_ball(lr=0.05, momentum=0.9), nesterov(lr=0.05, momentum=0.8, weight_decay=0.01))
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def problem(seed, decades, rank=3):
    """Curvatures over so many decades in a rotated basis."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    root = u @ rng.normal(size=(3, rank))
    hessian, noise = (u * 10 ** -np.linspace(0, decades, 3)) @ u.T, root @ root.T
    return (hessian + hessian.T) / 2, (noise + noise.T) / 2


@over_optimizers
@pytest.mark.parametrize(("seed", "decades", "rank"), [(1, 1, 3), (2, 4, 2)])
def test_autocovariances_averages_and_epochs_keep_to_their_error(optimizer, seed, decades, rank):
    hessian, noise = problem(seed, decades, rank)
    loose = 1e4 if decades == 1 else np.inf
    for lag in (0, 3, 40):
        value = autocovariance(optimizer, hessian, noise, lag)
        true = high_precision.relative_error(value, high_precision.autocovariance(optimizer, hessian, noise, lag))
        assert true <= value.error <= loose * max(true, EPS)
    for window in (1, 30):
        value = average_covariance(optimizer, hessian, noise, window)
        exact = high_precision.average_covariance(optimizer, hessian, noise, window)
        true = high_precision.relative_error(value, exact)
        assert true <= value.error <= loose * max(true, EPS)
    law = stationary_covariance(optimizer, hessian, EpochNoise(noise, 5))
    true = high_precision.relative_error(law.value, high_precision.epoch_law(optimizer, hessian, noise, 5))
    assert true <= law.error <= 1e-6


@over_optimizers
def test_what_an_epoch_law_says_is_that_of_60_digits(optimizer):
    hessian, noise = problem(3, 1)
    law = stationary_covariance(optimizer, hessian, EpochNoise(noise, 4))
    exact = high_precision.epoch_law(optimizer, hessian, noise, 4)[:3, :3].astype(float)
    assert law.excess_risk == pytest.approx(0.5 * np.trace(hessian @ exact), rel=1e-11)
    assert law.trace == pytest.approx(np.trace(exact), rel=1e-11)
    assert law.log_det == pytest.approx(np.linalg.slogdet(exact)[1], abs=1e-9)
    assert law.rank == 3
    np.testing.assert_allclose(law.eigenvalues, 10.0 ** np.array([-1, -0.5, 0]), rtol=1e-13)


def test_the_arrays_are_read_only_and_keep_their_error():
    value = average_covariance(sgd(lr=0.5), [[2.0]], [[3.0]], 2)
    with pytest.raises(ValueError, match="read-only"):
        value[0, 0] = 1.0
    for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert (other.error, other[0, 0]) == (value.error, value[0, 0])
    assert type(2 * value) is np.ndarray
    assert type(value[0]) is np.ndarray


def test_numbers_beyond_doubles_on_the_way():
    """With lr = 1e-180, H = 1e170, C = 1e300 the covariance is 5e-51, and forgotten by 1e-10 a step."""
    optimizer, arrays = sgd(lr=1e-180), ([[1e170]], [[1e300]])
    law = stationary_covariance(optimizer, *arrays).value[0, 0]
    assert autocovariance(optimizer, *arrays, 10**10)[0, 0] == pytest.approx(law * np.exp(-1), rel=1e-9)
    assert average_covariance(optimizer, *arrays, 3)[0, 0] == pytest.approx(law, rel=1e-9)


def test_an_epoch_law_in_other_units():
    """The weights in units of sqrt(s): H / s, C / s and lr s give s times the covariance."""
    hessian, noise = problem(4, 1)
    for scale in (2.0**-500, 2.0**500):
        law = stationary_covariance(heavy_ball(lr=0.05, momentum=0.5), hessian, EpochNoise(noise, 6))
        optimizer = heavy_ball(lr=0.05 * scale, momentum=0.5)
        other = stationary_covariance(optimizer, hessian / scale, EpochNoise(noise / scale, 6))
        gap = np.linalg.norm(other.value / scale - law.value)
        assert gap <= (law.error + other.error) * np.linalg.norm(law.value)


def test_what_double_double_cannot_hold_is_in_the_error():
    """A mean of two iterates that turn by nearly half a circle each step, and are remembered for a million."""
    optimizer = heavy_ball(lr=5.76962854749851e-09, momentum=0.9999975973407832, dampening=0.9)
    hessian, noise = [[6.932846996562983e09]], [[1.0655627209264638e-06]]
    with pytest.warns(AccuracyWarning):
        value = average_covariance(optimizer, hessian, noise, 2)
    exact = high_precision.average_covariance(optimizer, hessian, noise, 2)
    assert 1e-12 < high_precision.relative_error(value, exact) <= value.error < 1


@pytest.mark.parametrize(("lag", "window"), [(0, 1), (3, 5)])
@pytest.mark.parametrize(
    ("optimizer", "h"),
    [
        (heavy_ball(lr=0.5, momentum=0.9999999948468252), 2 * 3.9999999896934066),  # a hair from the edge
        (polyak(lr=2.6e-4, momentum=0.99), 1.12e-18),  # a slow mode beside two copies of the weights
    ],
    ids=repr,
)
def test_what_the_sum_over_all_steps_misses_is_in_the_error(optimizer, h, lag, window):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        lagged = autocovariance(optimizer, [[h]], [[1.0]], lag)
        mean = average_covariance(optimizer, [[h]], [[1.0]], window)
    right = high_precision.average_covariance(optimizer, [[h]], [[1.0]], window)
    assert high_precision.relative_error(mean, right) <= mean.error
    right = high_precision.autocovariance(optimizer, [[h]], [[1.0]], lag)
    assert high_precision.relative_error(lagged, right) <= lagged.error


def test_without_noise_nothing_is_wrong():
    for method in ("spectral", "doubling", "kronecker"):
        assert stationary_covariance(sgd(lr=0.1), [[1.0]], [[0.0]], method=method).error == 0


@pytest.mark.parametrize("curvature", [1.1245570822409794e-18, 1e-14])
def test_a_curvature_lost_beside_two_copies_of_the_weights_counts(curvature):
    """lr h = 3e-22 beside the momentum has ten digits in double-double; with SGD's one slot it has all of them."""
    optimizer, hessian, noise = polyak(lr=0.0002603201419074038, momentum=0.99), np.array([[curvature]]), np.eye(1)
    for value, exact in (
        (autocovariance(optimizer, hessian, noise, 7), high_precision.autocovariance(optimizer, hessian, noise, 7)),
        (
            average_covariance(optimizer, hessian, noise, 5),
            high_precision.average_covariance(optimizer, hessian, noise, 5),
        ),
    ):
        assert high_precision.relative_error(value, exact) <= value.error <= 1e-6
