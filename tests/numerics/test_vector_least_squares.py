"""Least squares with several outputs is the same problem as its dense Hessians, and as LeastSquares for one output."""

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    VectorLeastSquares,
    VectorMinibatchNoise,
    mean_square_stability,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball

EPS = np.finfo(np.float64).eps


def problem(examples=7, outputs=3, dim=4, l2=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return VectorLeastSquares(
        rng.standard_normal((examples, outputs, dim)), rng.standard_normal((examples, outputs)), l2
    )


def dense(vector):
    """The same losses up to a constant, every Hessian a matrix."""
    hessians = np.einsum("nki,nkj->nij", vector.X, vector.X) + vector.l2 * np.eye(vector.dim)
    return QuadraticExamples(hessians, -np.einsum("nk,nki->ni", vector.y, vector.X))


def close(a, b, scale=1.0):
    # A few hundred products and sums of entries of size `scale`.
    np.testing.assert_allclose(a, b, rtol=0, atol=1000 * EPS * scale)


def test_it_is_the_sum_of_its_dense_hessians():
    vector, full = problem(), dense(problem())
    points = np.random.default_rng(1).standard_normal((5, vector.dim))
    close(vector.hessian, full.hessian)
    close(vector.optimum, full.optimum)
    close(vector.gradient(points), full.gradient(points), 10)
    close(vector.per_example_gradients(points), full.per_example_gradients(points), 100)
    close(vector.loss(points) - vector.loss(np.zeros(4)), full.loss(points), 10)
    close(vector.per_example_gradients(points).mean(axis=1), vector.gradient(points), 100)


@pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (3, True), (3, False), (7, False)])
def test_its_noise_is_that_of_its_dense_hessians(batch_size, replacement):
    vector, full = problem(), dense(problem())
    noise = VectorMinibatchNoise(vector, batch_size, replacement)
    other = MinibatchNoise(full, batch_size, replacement)
    root = np.random.default_rng(2).standard_normal((4, 4))
    mean, spread = root[0], root @ root.T
    close(noise.covariance(mean, spread), other.covariance(mean, spread), 1000)
    close(vector.noise(batch_size, replacement), full.noise(batch_size, replacement), 100)
    added = noise.multiplicative(spread)
    assert np.array_equal(added, added.T)
    assert np.linalg.eigvalsh(added)[0] >= -1000 * EPS * np.abs(added).max()


def test_one_output_is_least_squares():
    vector = problem(outputs=1)
    single = LeastSquares(vector.X[:, 0], vector.y[:, 0], vector.l2)
    close(vector.optimum, single.optimum)
    optimizer = heavy_ball(lr=0.02, momentum=0.8)
    mine, theirs = VectorMinibatchNoise(vector, 2), MinibatchNoise(single, 2)
    laws = [stationary_covariance(optimizer, noise.hessian, noise).value for noise in (mine, theirs)]
    np.testing.assert_allclose(*laws, rtol=1e-9)
    np.testing.assert_allclose(mine.label_noise(0.3), theirs.label_noise(0.3), rtol=1e-12)
    stable = [mean_square_stability(optimizer, noise).largest_lr for noise in (mine, theirs)]
    np.testing.assert_allclose(*stable, rtol=1e-9)


def test_its_draws_have_its_noise():
    noise = VectorMinibatchNoise(problem(), 2, False)
    w, count = np.ones(4), 20_000
    draw = noise.draw(np.random.default_rng(3), count)
    points = np.broadcast_to(w, (count, 4))
    gradients = draw.gradient(points)
    exact = noise.covariance(w)
    # Gradients are bounded: the covariance of n of them is off by at most max|u|^2 / sqrt(n) or so, in each entry.
    bound = 5 * np.square(gradients - gradients.mean(axis=0)).max() / np.sqrt(count)
    np.testing.assert_allclose(np.cov(gradients.T), exact, atol=bound)
    assert np.abs(np.cov(gradients.T) - exact * 1.5).max() > bound  # the threshold can fail
    np.testing.assert_allclose(draw.gradient(points + 1) - gradients, draw.curvature(np.ones((count, 4))), atol=1e-12)


def test_a_quadratic_is_its_loss_above_the_minimum():
    vector = problem()
    quadratic = vector.quadratic(2)
    w = vector.optimum + 0.3
    close(quadratic.loss(w), vector.loss(w) - vector.loss(vector.optimum), 100)


@pytest.mark.parametrize(
    ("X", "y", "l2", "says"),
    [
        (np.ones((2, 3)), np.ones(2), 0.0, r"X must have shape \(N, K, d\)"),
        (np.ones((2, 3, 1)), np.ones((2, 2)), 0.0, r"y must have shape \(2, 3\)"),
        (np.full((1, 1, 1), np.nan), np.ones((1, 1)), 0.0, "finite"),
        (np.ones((1, 1, 1)), np.ones((1, 1)), -1.0, "l2"),
    ],
)
def test_bad_input_is_refused(X, y, l2, says):
    with pytest.raises(InvalidProblemError, match=says):
        VectorLeastSquares(X, y, l2)
    with pytest.raises(InvalidProblemError, match="MinibatchNoise"):
        VectorMinibatchNoise(LeastSquares([[1.0]], [1.0]), 1)
