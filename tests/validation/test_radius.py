"""Measured quantities along the radius are those of numerics' path, and the wrong ones are told apart."""

import numpy as np
import pytest

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import AdversarialLeastSquares, AdversarialLogistic, GaussianAdversarialRegression, RobustUnhinged
from sgdcov.theory import heavy_ball, sgd
from sgdcov.validation import radius_path

QUANTITIES = ("curvature", "gradient_noise", "spread", "excess_risk", "excess_robust_risk")
RADII = [0.0, 0.15, 0.35]
COVARIANCE = np.diag([1.0, 0.5, 0.25])


def population(radius):
    return GaussianAdversarialRegression(COVARIANCE, [1.0, -1.0, 0.8], 0.7, radius)


def z_scores(measured, predicted):
    """In standard errors; a law that errs by O(lr/batch_size) is allowed one per cent."""
    found = {}
    for name in QUANTITIES:
        value, expected = getattr(measured, name), getattr(predicted, name)
        found[name] = (np.abs(value - expected) - 0.01 * np.abs(expected)) / getattr(measured, f"{name}_error")
    return found


def test_every_quantity_follows_numerics_along_the_radius_of_gaussian_data():
    optimizer = heavy_ball(lr=0.02, momentum=0.8)
    measured = radius_path(population, RADII, optimizer, 16, replicas=600, rng=1, progress=False)
    predicted = numerics.radius_path(population, RADII, optimizer, 16)
    for name, z in z_scores(measured, predicted).items():
        assert (z < 4).all(), (name, z)
    assert measured.status == ("measured",) * 3
    assert measured.estimates[1].gradients.endswith("(l2, radius 0.15)")
    # The mean Hessian of single examples is not what the iterates see.
    for k in (1, 2):
        blunt = np.linalg.eigvalsh(population(RADII[k]).mean_ae_hessian())[-1]
        assert measured.curvature[k] - blunt > 6 * measured.curvature_error[k]
    assert (np.diff(measured.curvature) > 0).all()
    with pytest.raises(ValueError, match="read-only"):
        measured.curvature[0] = 1.0
    assert repr(measured) == "MeasuredRadiusPath(3 radii from 0 to 0.35, 3 measured)"


def test_finite_data_with_kinks_follow_the_self_consistent_law():
    sample = population(0.3).sample(200, 0)

    def problem_at(radius):
        return AdversarialLeastSquares(sample.X, sample.y, radius)

    optimizer = sgd(lr=0.05)
    measured = radius_path(problem_at, [0.0, 0.2], optimizer, 8, replicas=300, rng=1, progress=False)
    predicted = numerics.radius_path(problem_at, [0.0, 0.2], optimizer, 8)
    for name, z in z_scores(measured, predicted).items():
        assert (z < 4).all(), (name, z)


def test_standard_errors_are_those_of_repetitions():
    def once(seed):
        return radius_path(population, [0.2], sgd(lr=0.4), 16, replicas=100, rng=seed, progress=False)

    runs = [once(seed) for seed in range(30)]
    for name in QUANTITIES:
        values = np.array([getattr(run, name)[0] for run in runs])
        claimed = np.sqrt(np.mean([getattr(run, f"{name}_error")[0] ** 2 for run in runs]))
        # The ratio of standard deviations of 30 runs has the relative error 1/sqrt(58).
        assert 0.55 < values.std(ddof=1) / claimed < 1.55, name


def test_a_radius_without_a_law_says_why_and_the_others_go_on():
    measured = radius_path(population, [0.2, 5.0], sgd(lr=0.1), 4, replicas=100, rng=0, progress=False)
    assert np.isnan(measured.spread[1])
    assert "collapse_radius" in measured.status[1]
    assert measured.estimates[1] is None
    assert measured.spread[0] > 0


def test_weights_that_the_attack_sets_to_zero_are_left_out():
    def problem_at(radius):
        return GaussianAdversarialRegression(COVARIANCE, [1.0, -1.0, 0.05], 0.7, radius, np.inf)

    measured = radius_path(problem_at, [0.1], sgd(lr=0.1), 4, replicas=100, rng=0, progress=False)
    assert measured.status == ("measured on the face of 2 of 3 weights, the others 0",)
    assert measured.estimates[0].value.shape == (2, 2)


@pytest.mark.parametrize("kind", [AdversarialLogistic, RobustUnhinged])
def test_other_losses_have_a_path_too(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = np.where(X @ [1.0, -1.0] + rng.normal(size=30) > 0, 1.0, -1.0)
    measured = radius_path(
        lambda radius: kind(X, y, radius, l2=0.3), [0.0, 0.2], sgd(lr=0.2), 8, replicas=300, replacement=False, rng=0,
        progress=False,
    )  # fmt: skip
    for k, radius in enumerate((0.0, 0.2)):
        problem = kind(X, y, radius, l2=0.3)
        law = numerics.stationary_covariance(sgd(lr=0.2), problem.hessian, problem.noise(8, replacement=False))
        assert abs(measured.spread[k] - np.trace(law.value)) < 4 * measured.spread_error[k] + 0.02 * measured.spread[k]


def test_what_is_no_path_is_refused():
    with pytest.raises(InvalidProblemError, match="radii"):
        radius_path(population, [np.nan], sgd(lr=0.1), 4, replicas=100)
    with pytest.raises(InvalidProblemError, match="replicas"):
        radius_path(population, [0.1], sgd(lr=0.1), 4, replicas=20)
