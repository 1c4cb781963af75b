"""Weights of examples: every law is that of the weighted losses, batch by batch."""

import numpy as np
import pytest
from every_batch import EveryBatch, batches, fractions

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    DropoutNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    RobustUnhinged,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, sgd

EPS = np.finfo(float).eps
WEIGHTS = np.array([0.25, 4.0, 0.0, 1.0, 2.25])  # squares of short binary fractions: their roots are exact
over_batches = pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (2, True), (2, False), (3, False)])


def data(seed=0, num_examples=5, dim=2):
    rng = np.random.default_rng(seed)
    return rng.integers(-16, 17, size=(num_examples, dim)) / 8, rng.integers(-16, 17, size=num_examples) / 8


def quadratic_examples(X, y):
    return X[:, :, None] * X[:, None, :], -y[:, None] * X


@over_batches
@pytest.mark.parametrize("optimizer", [sgd(lr=0.0625), heavy_ball(lr=0.03125, momentum=0.5)], ids=repr)
@pytest.mark.parametrize("kind", [LeastSquares, QuadraticExamples])
def test_the_law_is_that_of_every_weighted_batch_listed(kind, optimizer, batch_size, replacement):
    X, y = data()
    hessians, slopes = quadratic_examples(X, y)
    arguments = (X, y) if kind is LeastSquares else (hessians, slopes)
    problem = kind(*arguments, sample_weight=WEIGHTS)
    noise = MinibatchNoise(problem, batch_size, replacement)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    a = fractions(WEIGHTS)
    exact = EveryBatch.of(
        optimizer, a[:, None, None] * fractions(hessians), a[:, None] * fractions(slopes), batch_size, replacement
    )
    expected = exact.covariance.astype(float)[:2, :2]
    assert np.abs(law.value - expected).max() <= 64 * EPS * 16 / (1 - exact.spectral_radius) * np.abs(expected).max()
    assert np.abs(problem.optimum - exact.mean.astype(float)[:2]).max() <= 100 * EPS


@over_batches
@pytest.mark.parametrize(
    "problem",
    [
        LeastSquares(*data(), l2=0.5, sample_weight=WEIGHTS),
        QuadraticExamples(*quadratic_examples(*data()), sample_weight=WEIGHTS),
        AdversarialLeastSquares(*data(seed=3), 0.125, 2, 0.25, WEIGHTS),
        AdversarialLeastSquares(*data(seed=3), 0.125, np.inf, 0.25, WEIGHTS),
        AdversarialLogistic(data()[0], np.array([1, -1, 1, 1, -1.0]), 0.125, 2, 0.25, WEIGHTS),
        RobustUnhinged(data()[0], np.array([1, -1, 1, 1, -1.0]), 0.125, 0.25, WEIGHTS),
    ],
    ids=repr,
)
def test_the_noise_is_the_covariance_over_every_batch(problem, batch_size, replacement):
    gradients = problem.per_example_gradients(problem.optimum)
    means = np.array([gradients[batch].mean(axis=0) for batch in batches(5, batch_size, replacement)])
    exact = np.cov(means.T, bias=True)
    assert np.abs(problem.noise(batch_size, replacement) - exact).max() <= 100 * EPS * np.abs(problem.noise(1)).max()
    assert np.abs(gradients.mean(axis=0)).max() <= 1e-13


@pytest.mark.parametrize(
    "build",
    [
        lambda a: LeastSquares(*data(), 0.5, a),
        lambda a: AdversarialLeastSquares(*data(), 0.25, 2, 0.5, a),
        lambda a: AdversarialLogistic(data()[0], np.array([1, -1, 1, 1, -1.0]), 0.25, np.inf, 0.5, a),
        lambda a: RobustUnhinged(data()[0], np.array([1, -1, 1, 1, -1.0]), 0.25, 0.5, a),
    ],
)
def test_a_weight_multiplies_the_loss_of_its_example(build):
    w = np.array([0.3, -0.7])
    decay = 0.5 * w
    plain, weighted = build(None), build(WEIGHTS)
    own = plain.per_example_gradients(w) - decay
    found = weighted.per_example_gradients(w) - decay
    assert found == pytest.approx(WEIGHTS[:, None] * own, rel=20 * EPS, abs=20 * EPS)
    assert weighted.gradient(w) == pytest.approx(found.mean(axis=0) + decay, rel=20 * EPS, abs=20 * EPS)
    difference = [(weighted.loss(w + h) - weighted.loss(w - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
    assert weighted.gradient(w) == pytest.approx(difference, abs=1e-8)
    assert build(np.ones(5)).gradient(w) == pytest.approx(plain.gradient(w), rel=20 * EPS, abs=20 * EPS)


@pytest.mark.parametrize("norm", [2, np.inf])
def test_whole_weights_repeat_examples(norm):
    X, y = data(seed=5)
    counts = np.array([1, 3, 2, 1, 1])
    weighted = AdversarialLeastSquares(X, y, 0.1, norm, sample_weight=counts)
    repeated = AdversarialLeastSquares(np.repeat(X, counts, axis=0), np.repeat(y, counts), 0.1, norm)
    assert weighted.optimum == pytest.approx(repeated.optimum, rel=1e-12)
    factor = counts.sum() / 5
    assert float(weighted.loss([1.0, 2.0])) == pytest.approx(factor * float(repeated.loss([1.0, 2.0])), rel=20 * EPS)
    law = (np.diag([0.01, 0.02]), [1.0, 2.0])
    assert weighted.smoothed_hessian(*law) == pytest.approx(factor * repeated.smoothed_hessian(*law), rel=1e-12)
    assert LeastSquares(X, y, 0.0, counts).optimum == pytest.approx(
        LeastSquares(np.repeat(X, counts, axis=0), np.repeat(y, counts)).optimum, rel=1e-12
    )


def test_an_example_of_weight_zero_is_drawn_but_moves_nothing():
    X, y = data()
    problem = LeastSquares(X, y, 0.0, [1, 1, 0, 1, 1])
    kept = np.array([0, 1, 3, 4])
    assert problem.optimum == pytest.approx(LeastSquares(X[kept], y[kept]).optimum, rel=1e-13)
    assert problem.hessian == pytest.approx(0.8 * LeastSquares(X[kept], y[kept]).hessian, rel=1e-14)
    robust = AdversarialLeastSquares(X, y, 0.1, 2, 0.0, [1, 1, 0, 1, 1])
    assert robust.optimum == pytest.approx(AdversarialLeastSquares(X[kept], y[kept], 0.1).optimum, rel=1e-12)


def test_fresh_label_noise_is_weighted_like_its_loss():
    X, y = data()
    noise = MinibatchNoise(LeastSquares(X, y, sample_weight=WEIGHTS), 2).label_noise(3.0)
    exact = 9.0 * sum(a**2 * np.outer(x, x) for a, x in zip(WEIGHTS, X, strict=True)) / (5 * 2)
    assert noise == pytest.approx(exact, rel=20 * EPS)


def test_dropout_is_that_of_the_weighted_loss_and_input_noise_is_refused():
    X, y = data()
    problem = LeastSquares(X, y, sample_weight=WEIGHTS)
    masks = np.array([[0, 0], [0, 2], [2, 0], [2, 2]])
    curvature = np.mean([(X * m).T @ (WEIGHTS[:, None] * (X * m)) / 5 for m in masks], axis=0)
    dropout = DropoutNoise(problem, 0.5, 1)
    assert dropout.hessian == pytest.approx(curvature, rel=20 * EPS)
    with pytest.raises(InvalidProblemError, match="not implemented for examples with weights"):
        InputNoise(problem, 0.5, 1)
    with pytest.raises(InvalidProblemError, match="label noise on corrupted inputs"):
        dropout.label_noise(1.0)


def test_a_weighted_problem_says_so_and_keeps_its_weights():
    X, y = data()
    problem = LeastSquares(X, y, sample_weight=WEIGHTS)
    assert "weighted" in repr(problem)
    assert np.array_equal(problem.sample_weight, WEIGHTS)
    assert LeastSquares(X, y).sample_weight is None
    with pytest.raises(ValueError, match="read-only"):
        problem.sample_weight[0] = 2.0


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0, 1.0], "one entry per example, 5, got 2"),
        ([1.0, 1.0, -0.5, 1.0, 1.0], r"sample_weight\[2\] = -0.5"),
        ([0.0] * 5, "0 for every example"),
        ([1.0, np.nan, 1.0, 1.0, 1.0], "sample_weight must be finite"),
        ([[1.0] * 5], "sample_weight must be a vector"),
    ],
)
@pytest.mark.parametrize("kind", [LeastSquares, QuadraticExamples, AdversarialLeastSquares, AdversarialLogistic])
def test_bad_weights_are_named(kind, weights, says):
    X, y = data()
    arguments = {
        LeastSquares: (X, y),
        QuadraticExamples: quadratic_examples(X, y),
        AdversarialLeastSquares: (X, y, 0.1),
        AdversarialLogistic: (X, np.where(y > 0, 1.0, -1.0), 0.1),
    }[kind]
    with pytest.raises(InvalidProblemError, match=says):
        kind(*arguments, sample_weight=weights)


KINKS = ([[1.0], [2.0], [-1.0], [0.5], [1.0]], [1.0, 0.0, 2.0, 0.0, 3.0])


@pytest.mark.parametrize("radius", [100.0, 0.15])
@pytest.mark.parametrize("norm", [2, np.inf, 1, 3])
def test_kinks_are_those_of_the_examples_that_count(radius, norm):
    """The examples of weight 0 left out, the kinks are the same ones, by their places among all."""
    X, y = map(np.array, KINKS)
    for weights in np.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 1, 2, 0], [1, 0, 1, 1, 1]], dtype=float):
        kept = np.flatnonzero(weights)
        problem = AdversarialLeastSquares(X, y, radius, norm, sample_weight=weights)
        rest = AdversarialLeastSquares(X[kept], y[kept], radius, norm, sample_weight=weights[kept])
        assert problem.kinks.residuals == tuple(kept[k] for k in rest.kinks.residuals)
        assert problem.kinks.coordinates == rest.kinks.coordinates
        assert problem.kinks.collapsed == rest.kinks.collapsed
        assert problem.optimum == pytest.approx(rest.optimum, rel=1e-7)


def test_at_the_collapse_the_kinks_are_the_labels_of_0():
    problem = AdversarialLeastSquares(*KINKS, 100.0, sample_weight=[0, 1, 1, 1, 1])
    assert problem.kinks.residuals == (1, 3)


def test_at_the_collapse_radius_itself_rounding_does_not_decide():
    X, y = map(np.array, KINKS)
    kept = np.arange(1, 5)
    for problem in (
        AdversarialLeastSquares(X, y, 0.2, sample_weight=[0, 1, 1, 1, 1]),
        AdversarialLeastSquares(X[kept], y[kept], 0.2),
    ):
        assert problem.collapse_radius == pytest.approx(0.2)
        assert problem.kinks.collapsed


def test_an_example_of_weight_zero_has_no_kink():
    """Neither to cross, nor to be averaged."""
    X, y = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.3, 1.0]]), np.array([1.0, 3.0, 0.4, 1.1])
    weights = [1.0, 1.0, 1.0, 1.0, 0.0]
    problem = AdversarialLeastSquares(X, y, 0.1, np.inf)
    w = problem.optimum
    extra = np.array([1.0, 0.0])
    padded = AdversarialLeastSquares(np.vstack([X, extra]), np.append(y, extra @ w), 0.1, np.inf, 0.0, weights)
    spread = 1e-2 * np.eye(2)
    facets = padded.leaving_probability(spread, samples=0).facets
    assert facets == pytest.approx(problem.leaving_probability(spread, samples=0).facets, rel=1e-9)
    still = np.diag([0.0, 1e-2])  # moves every residual but that of weight 0
    assert padded.smoothed_hessian(still, w)[1, 1] == pytest.approx(problem.smoothed_hessian(still, w)[1, 1] * 4 / 5)
