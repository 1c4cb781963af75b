"""Along the radius: every number is that of its own problem, and where there is no law the path says why."""

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    GaussianAdversarialRegression,
    LeastSquares,
    MinibatchNoise,
    RobustUnhinged,
    kink_corrected_covariance,
    max_learning_rate,
    mean_square_stability,
    radius_path,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, sgd

OPTIMIZER = sgd(lr=0.1)


def population(radius, norm=2):
    return GaussianAdversarialRegression(np.diag([2.0, 1.0, 0.3]), [1.0, -1.0, 0.5], 0.5, radius, norm)


def regression(radius, norm=2, l2=0.0):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    return AdversarialLeastSquares(X, X @ [1.5, -1.0, 0.4] + 0.5 * rng.normal(size=60), radius, norm, l2)


def test_in_the_population_the_path_is_that_of_single_radii():
    radii = [0.0, 0.1, 0.4]
    path = radius_path(population, radii, OPTIMIZER, 4)
    assert len(path) == 3
    assert path.status == ("stationary",) * 3
    for k, radius in enumerate(radii):
        problem = population(radius)
        law = stationary_covariance(OPTIMIZER, problem.hessian, problem.noise(4))
        assert path.curvature[k] == pytest.approx(np.linalg.eigvalsh(problem.hessian)[-1], rel=1e-13)
        assert path.gradient_noise[k] == pytest.approx(np.trace(problem.noise(4)), rel=1e-13)
        assert path.spread[k] == pytest.approx(np.trace(law.value), rel=1e-13)
        assert path.excess_risk[k] == path.excess_robust_risk[k] == pytest.approx(law.excess_risk, rel=1e-13)
        assert path.least_risk[k] == pytest.approx(float(problem.risk(problem.optimum)), rel=1e-13)
        assert path.largest_lr[k] == pytest.approx(max_learning_rate(OPTIMIZER, problem.hessian), rel=1e-13)
        assert np.array_equal(path.optima[k], problem.optimum)
    assert np.all(np.isnan(path.largest_mean_square_lr))  # there are no examples


def test_the_factors_are_the_laws_of_one_changed_array():
    path = radius_path(population, [0.0, 0.3], OPTIMIZER, 1)
    first, last = population(0.0), population(0.3)
    assert path.curvature_alone[1] == pytest.approx(
        np.trace(stationary_covariance(OPTIMIZER, last.hessian, first.noise(1)).value), rel=1e-13
    )
    assert path.noise_alone[1] == pytest.approx(
        np.trace(stationary_covariance(OPTIMIZER, first.hessian, last.noise(1)).value), rel=1e-13
    )
    assert [path.curvature_alone[0], path.noise_alone[0]] == pytest.approx([path.spread[0]] * 2, rel=1e-13)
    # the answer in this population: more noise widens the law more than more curvature narrows it
    assert path.curvature_alone[1] < path.spread[0] < path.spread[1] < path.noise_alone[1]


def test_beyond_the_collapse_there_is_no_law_and_the_path_says_so():
    edge = population(0.1).collapse_radius
    path = radius_path(population, [0.9 * edge, 1.1 * edge], OPTIMIZER, 1)
    assert np.isfinite(path.spread[0])
    for column in (path.curvature, path.gradient_noise, path.spread, path.excess_risk, path.largest_lr):
        assert np.isnan(column[1])
    assert path.laws[1] is None
    assert "collapse_radius" in path.status[1]
    assert np.isfinite(path.least_risk[1])
    assert "1 with a stationary law" in repr(path)


def test_an_unstable_radius_keeps_its_curvature_and_its_limit():
    lr = 0.99 * max_learning_rate(OPTIMIZER, population(0.0).hessian)
    path = radius_path(population, [0.0, 0.4], sgd(lr=lr), 1)
    assert path.status[0] == "stationary"
    assert path.status[1].startswith("UnstableError")
    assert path.curvature[1] > path.curvature[0]
    assert path.largest_lr[1] < lr < path.largest_lr[0]
    assert np.isnan(path.spread[1])


def test_on_finite_data_the_law_is_the_one_with_kinks():
    radii = [0.0, 0.1, 0.3]
    path = radius_path(regression, radii, OPTIMIZER, 2)
    assert path.status == ("stationary",) * 3
    for k, radius in enumerate(radii):
        law = kink_corrected_covariance(OPTIMIZER, regression(radius), 2)
        assert path.spread[k] == pytest.approx(np.trace(law.value), rel=1e-12)
        assert path.excess_robust_risk[k] == pytest.approx(law.excess_risk, rel=1e-12)
    exact = mean_square_stability(OPTIMIZER, MinibatchNoise(LeastSquares(regression(0).X, regression(0).y), 2))
    assert path.largest_mean_square_lr[0] == pytest.approx(exact.largest_lr, rel=1e-10)
    smooth = [regression(radius).kinks.smooth for radius in radii]
    assert list(np.isfinite(path.largest_mean_square_lr)) == smooth
    local = radius_path(regression, [0.0, 0.3], OPTIMIZER, 2, law="local")
    assert local.status[0] == "stationary"
    assert "residuals are 0" in local.status[1]


def test_weights_that_stay_0_are_left_out():
    path = radius_path(lambda radius: regression(radius, np.inf), [0.05, 0.6], OPTIMIZER, 2)
    assert path.status == ("stationary", "stationary on the face of 1 of 3 weights, the others 0")
    problem = regression(0.6, np.inf)
    assert problem.kinks.coordinates == (1, 2)
    law = kink_corrected_covariance(OPTIMIZER, problem.face(), 2)
    assert path.spread[1] == pytest.approx(np.trace(law.value), rel=1e-12)
    assert np.array_equal(path.optima[1], problem.optimum)
    assert np.isnan(path.curvature_alone[1])  # arrays of another size


def classification(radius):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(50, 3))
    return AdversarialLogistic(X, np.where(X @ [1.0, -1.0, 0.5] + rng.normal(size=50) > 0, 1, -1), radius, l2=0.01)


def unhinged(radius):
    return RobustUnhinged(classification(0.1).X, classification(0.1).y, radius, 0.5)


@pytest.mark.parametrize("problem_at", [classification, unhinged])
@pytest.mark.parametrize("replacement", [True, False])
def test_other_losses_have_their_local_law(problem_at, replacement):
    path = radius_path(problem_at, [0.0, 0.1], heavy_ball(lr=0.1, momentum=0.5), 5, replacement=replacement)
    problem = problem_at(0.1)
    law = stationary_covariance(heavy_ball(lr=0.1, momentum=0.5), problem.hessian, problem.noise(5, replacement))
    assert path.spread[1] == pytest.approx(np.trace(law.value), rel=1e-12)


def test_laws_on_the_path_say_how_well_they_are_known():
    path = radius_path(population, [0.0, 0.2], OPTIMIZER, 4)
    for law, error in zip(path.laws, path.error, strict=True):
        assert law is not None
        assert 0 < error == law.error < 1e-12
    data = AdversarialLeastSquares([[1.0], [1.0], [1.0]], [0.0, 4.0, 1.5], radius=0.25)
    found, finer = (kink_corrected_covariance(OPTIMIZER, data, 1, tolerance=t) for t in (1e-7, 1e-13))
    gap = abs(found.value[0, 0] / finer.value[0, 0] - 1)
    assert 0 < gap <= found.error <= 1e-6
    assert finer.error <= 1e-11


def test_the_path_is_read_only():
    path = radius_path(population, [0.0, 0.1], OPTIMIZER, 1)
    with pytest.raises(ValueError, match="read-only"):
        path.spread[0] = 1.0
    with pytest.raises(AttributeError):
        path.spread = path.radii


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: radius_path(population, [0.1], OPTIMIZER, 1, law="exact"), "law must be one of 'auto'"),
        (lambda: radius_path(population, 0.1, OPTIMIZER, 1), "radii must be a vector"),
        (lambda: radius_path(population, [-0.1], OPTIMIZER, 1), "radius must be a finite number, at least 0, got -0.1"),
        (lambda: radius_path(population, [0.1], OPTIMIZER, 0), "batch_size must be"),
        (lambda: radius_path(regression, [0.1], OPTIMIZER, 61), "batch_size must be from 1 to"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(InvalidProblemError, match=says):
        call()
