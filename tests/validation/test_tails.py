"""Hill's estimate from real iterates: the exact index is accepted, wrong ones are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError, UnstableError
from sgdcov.numerics import GaussianMinibatchNoise, LeastSquares, MinibatchNoise, Quadratic
from sgdcov.theory import heavy_ball, sgd
from sgdcov.validation import tail_index
from sgdcov.validation.tails import _hill_plot, _trusted


def gaussian(batch_size, dim=1, variance=1.0):
    return GaussianMinibatchNoise(variance * np.eye(dim), label_noise=1.0, batch_size=batch_size)


def outliers():
    """Two parameters; one input in six is large enough to stretch at lr = 0.9, and not along an axis."""
    X = np.array([[1.0, 0.2], [-0.5, 1.0], [0.3, -0.8], [0.9, 0.4], [-0.2, -0.6], [1.2, 1.3]])
    return MinibatchNoise(LeastSquares(X, np.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5])), batch_size=1)


CASES = [
    (sgd(lr=1.0), gaussian(1), 60),
    (sgd(lr=1.0), gaussian(3), 60),
    (sgd(lr=0.2), gaussian(1, dim=3, variance=2.0), 100),
    (heavy_ball(lr=0.3, momentum=0.5), gaussian(1), 100),
]

# Fixed seeds; |z| above 4 has a false-alarm rate of 6e-5.


@pytest.mark.parametrize(("optimizer", "noise", "steps"), CASES, ids=repr)
def test_the_measured_index_is_the_exact_one(optimizer, noise, steps):
    exact = numerics.tail_index(optimizer, noise, method="exact")
    measured = tail_index(optimizer, noise, replicas=80_000, steps=steps, rng=0, progress=False)
    assert abs(measured.z(exact.value)) < 4
    assert abs(measured.drift) < 4
    # z of f times the exact index is sqrt(k) (f - 1), of standard deviation f: with k >= 50 at least 4 of those off.
    assert measured.order_statistics >= 50
    assert measured.z(4.0 * exact.value) > 4
    assert measured.z(exact.value / 4.0) < -4


@pytest.mark.parametrize(
    ("batch_size", "replicas", "count"), [(1, 200_000, 16_000), (2, 200_000, 2_000), (4, 400_000, 1_000)]
)
def test_a_published_index_is_rejected_away_from_two(batch_size, replicas, count):
    """Ziyin et al. (2022): 2B/(lr s^2) - B, exact at index 2 only; here lr = s^2 = 1, so it says B.

    With f = B / exact the z of B is sqrt(k) (f - 1), of standard deviation f: -10.5 for B = 1.  For B = 4 it is 4.5,
    and a bias of 3% in the index, which k = 1,000 of these replicas have, makes it 5.6; 1.96 is 3.2 deviations below.
    """
    noise, published = gaussian(batch_size), float(batch_size)
    measured = tail_index(
        sgd(lr=1.0), noise, replicas=replicas, steps=40, rng=1, order_statistics=count, progress=False
    )
    exact = numerics.tail_index(sgd(lr=1.0), noise).value
    assert abs(measured.z(exact)) < 4
    if published != 2.0:
        assert abs(measured.z(published)) > 1.96


def test_every_direction_has_the_index_of_the_norm():
    noise = gaussian(1, dim=3, variance=2.0)
    measured = tail_index(
        sgd(lr=0.2), noise, replicas=50_000, steps=100, direction=[1.0, -1.0, 0.5], rng=2, progress=False
    )
    assert abs(measured.z(2.0)) < 4


def test_real_batches_of_a_finite_data_set():
    noise, optimizer = outliers(), sgd(lr=0.9)
    exact = numerics.tail_index(optimizer, noise, method="exact")
    assert exact.method == "directions"
    measured = tail_index(optimizer, noise, replicas=100_000, steps=100, rng=3, progress=False)
    assert abs(measured.z(exact.value)) < 4


def test_additive_noise_has_no_power_law():
    """Gaussian iterates: whatever number comes out is not stable, or far above what heavy tails have."""
    measured = tail_index(
        sgd(lr=0.5), Quadratic([[1.0]], [[1.0]], [0.0]), replicas=100_000, steps=50, rng=4, progress=False
    )
    assert measured.value > 6
    assert np.all(np.diff(measured.stability[[0, -1], 1]) < 0)  # fewer order statistics, larger index


def test_estimates_of_a_pareto_sample_are_calibrated():
    rng = np.random.default_rng(5)
    scores, cut = [], 0
    for _ in range(200):
        x = np.sort(rng.pareto(3.0, size=20_000) + 1.0)[::-1]  # exactly a power law
        plot = _hill_plot(x)
        cut += _trusted(plot) < 2000
        k, index, error = plot[-1]
        scores.append((1 / index - 1 / 3) * 3 * math.sqrt(k))
        assert error == pytest.approx(index / math.sqrt(k))
    assert cut <= 40  # some false alarms, which only cost precision
    assert abs(np.mean(scores)) < 5 / math.sqrt(200)
    assert np.std(scores) == pytest.approx(1.0, abs=5 / math.sqrt(400))


def test_a_tail_that_is_not_yet_a_power_is_cut_where_it_is():
    rng = np.random.default_rng(6)
    x = rng.pareto(2.0, size=200_000) + 1.0
    bulk = rng.standard_normal(200_000) * 10.0
    distances = np.sort(np.where(rng.random(200_000) < 0.01, 100.0 * x, np.abs(bulk)))[::-1]
    plot = _hill_plot(distances)
    assert 200 <= _trusted(plot) <= 4000  # 2000 are Pareto
    k = _trusted(plot) // 10
    index = plot[np.searchsorted(plot[:, 0], max(50, k)), 1]
    assert index == pytest.approx(2.0, rel=4 / math.sqrt(max(50, k)))


def test_the_report_says_what_was_done_and_repeats():
    options = {"replicas": 2000, "steps": 30, "progress": False}
    first = tail_index(sgd(lr=0.5), gaussian(1), rng=7, **options)
    again = tail_index(sgd(lr=0.5), gaussian(1), rng=7, **options)
    assert np.array_equal(first.distances, again.distances)
    assert float(first) == first.value
    low, high = first.interval
    assert low < first.value < high
    assert "tail index" in repr(first)
    assert "order statistics" in first._repr_html_()
    assert 0.0 <= first.p_value(first.value) <= 1.0
    assert first.z(math.inf) > 0


@pytest.mark.parametrize(
    ("options", "wrong", "says"),
    [
        ({"replicas": 10}, InvalidProblemError, "replicas must be a whole number, at least 1000"),
        ({"steps": 1}, InvalidProblemError, "steps must be"),
        ({"order_statistics": 1000}, InvalidProblemError, "leave no threshold"),
        ({"direction": [0.0]}, InvalidProblemError, "direction must be a vector of 1"),
        ({"level": 1.0}, InvalidProblemError, "level must be a finite number"),
        ({"problem": Quadratic([[1.0]], [[0.0]], [0.0])}, InvalidProblemError, "no noise to make a tail"),
        ({"optimizer": sgd(lr=3.0)}, UnstableError, "lr < 2"),
    ],
)
def test_bad_input_is_named(options, wrong, says):
    given = {"optimizer": sgd(lr=0.5), "problem": gaussian(1), "replicas": 1000, "steps": 10, "progress": False}
    given |= options
    with pytest.raises(wrong, match=says):
        tail_index(given.pop("optimizer"), given.pop("problem"), **given)


def examples():
    rng = np.random.default_rng(0)
    return MinibatchNoise(LeastSquares(rng.normal(size=(12, 3)), rng.normal(size=12)), batch_size=1)


ESTIMATED = [
    (sgd(lr=0.1), 0.9, GaussianMinibatchNoise(np.diag([1.0, 2.0, 0.5]), label_noise=1.0, batch_size=2)),
    (sgd(lr=0.1), 0.95, examples()),
    (heavy_ball(lr=0.1, momentum=0.5), 0.8, GaussianMinibatchNoise(np.diag([1.0, 2.0]), label_noise=1.0, batch_size=2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "share", "noise"), ESTIMATED, ids=repr)
def test_measured_and_estimated_indices_agree_in_several_dimensions(optimizer, share, noise):
    edge = numerics.mean_square_stability(optimizer, noise).largest_lr
    at = optimizer.replace(lr=share * edge)
    estimated = numerics.tail_index(at, noise)
    assert estimated.method == "particles"
    measured = tail_index(at, noise, replicas=100_000, steps=150, rng=1, progress=False)
    # Both have an error: that of the estimate joins that of the measurement.
    relative = math.hypot(estimated.error / estimated.value, measured.standard_error / measured.value)
    assert abs(estimated.value / measured.value - 1) <= 4 * relative
    assert estimated.value > 2  # below the edge the covariance exists
    assert measured.z(2.0 * estimated.value) > 4
