"""Random features: an ordinary robust problem, whose size is an axis like the radius."""

import itertools

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    RandomFeatures,
    kink_corrected_covariance,
    radius_path,
    random_features,
)
from sgdcov.theory import sgd

EPS = np.finfo(float).eps
ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])


def data(num_examples=40, input_dim=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_examples, input_dim))
    return X, X @ np.ones(input_dim) / np.sqrt(input_dim) + 0.3 * rng.normal(size=num_examples)


@ACTIVATIONS
def test_the_reach_of_an_attack_on_inputs_is_the_length_of_the_outputs_slope(activation):
    features, (X, _) = random_features(30, 10, 1, activation), data()
    w = np.random.default_rng(2).normal(size=30)
    step = 1e-6
    slopes = np.stack([(features(X + h) - features(X - h)) @ w / (2 * step) for h in step * np.eye(10)], axis=1)
    assert features.input_reach(X, w) == pytest.approx(np.linalg.norm(slopes, axis=1), rel=1e-7)


def test_rows_are_on_the_sphere_and_streams_are_fixed():
    features = random_features(50, 10, 3)
    assert np.linalg.norm(features.first_layer, axis=1) == pytest.approx(np.ones(50), rel=10 * EPS)
    assert np.array_equal(features.first_layer, random_features(50, 10, np.random.default_rng(3)).first_layer)
    X, _ = data()
    assert features(X) == pytest.approx(np.maximum(X @ features.first_layer.T, 0) / np.sqrt(50), rel=10 * EPS)


def test_the_robust_loss_is_the_worst_over_moved_features():
    features, (X, y) = random_features(6, 10, 4), data(5)
    problem = features.regression(X, y, 0.2, np.inf, l2=0.1)
    assert isinstance(problem, AdversarialLeastSquares)
    w = np.random.default_rng(5).normal(size=6)
    corners = 0.2 * np.array(list(itertools.product([-1, 1], repeat=6)))
    worst = np.max([0.5 * (y - (features(X) + c) @ w) ** 2 for c in corners], axis=0)
    assert float(problem.loss(w)) == pytest.approx(worst.mean() + 0.05 * w @ w, rel=50 * EPS)


def test_linear_features_are_the_linear_problem():
    X, y = data()
    identity = RandomFeatures(np.sqrt(10) * np.eye(10), "linear")
    assert identity.regression(X, y, 0.1).optimum == pytest.approx(AdversarialLeastSquares(X, y, 0.1).optimum, rel=1e-9)


def test_beyond_interpolation_a_small_attack_leaves_every_residual_on_its_kink():
    X, y = data()
    kinks = [len(random_features(k, 10, 0).regression(X, y, 1e-3).kinks.residuals) for k in (10, 80)]
    assert kinks[0] < 5
    assert kinks[1] == 40


def test_the_law_along_the_number_of_features():
    X, y = data()

    def at(k):
        return random_features(int(k), 10, 0).regression(X, y, 0.05, l2=1e-2)

    path = radius_path(at, [10, 40, 120], sgd(lr=0.2), 4)
    assert path.status == ("stationary",) * 3
    assert path.least_risk[0] > path.least_risk[1]
    single = kink_corrected_covariance(sgd(lr=0.2), at(40), 4)
    assert path.excess_robust_risk[1] == pytest.approx(single.excess_risk, rel=1e-12)
    assert np.all(path.excess_robust_risk > 0)
    rng = np.random.default_rng(7)
    problem = at(40)
    w = rng.multivariate_normal(single.mean, single.value, size=20_000)
    excess = problem.loss(w) - problem.loss(problem.optimum)
    error = excess.std() / np.sqrt(len(w))
    assert abs(excess.mean() - single.excess_risk) <= 4 * error + 0.01 * single.excess_risk  # the norm's bend


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: random_features(0, 3, 0), "num_features must be a whole number, from 1 to 2147483647, got 0"),
        (lambda: random_features(3, 2.0, 0), "input_dim must be a whole number"),
        (lambda: random_features(3, 2, 0, "gelu"), "activation must be one of 'relu', 'tanh', 'linear', got 'gelu'"),
        (lambda: random_features(3, 2, 0)([1.0]), r"inputs must have shape \(\.\.\., 2\)"),
        (lambda: random_features(3, 2, 0).regression(np.ones((2, 2)), [1.0, 2.0], -1.0), "radius must be"),
        (lambda: random_features(3, 2, 0).input_reach(np.ones((2, 2)), [1.0]), r"w must have shape \(3,\)"),
    ],
)
def test_bad_input_is_named(build, says):
    with pytest.raises(InvalidProblemError, match=says):
        build()
