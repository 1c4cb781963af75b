"""Many random small problems: the law under minibatch noise against every batch listed in exact arithmetic."""

import itertools

import numpy as np
import pytest
from every_batch import EveryBatch, fractions

from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    mean_square_stability,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sgd, sgdw, with_ema

EPS = np.finfo(float).eps
RULES = (
    sgd(lr=1.0),
    sgd(lr=1.0, weight_decay=0.25),
    heavy_ball(lr=1.0, momentum=0.875, dampening=0.25),
    nesterov(lr=1.0, momentum=0.75, weight_decay=0.125),
    polyak(lr=1.0, momentum=0.5),
    qhm(lr=1.0, beta=0.875, nu=0.625),
    sgdw(lr=1.0, momentum=0.5, weight_decay=0.25),
    with_ema(heavy_ball)(lr=1.0, momentum=0.5, ema_decay=0.75),
)


def draw(rng, index):
    """A problem of short binary fractions, the same as exact examples, and its batches."""
    n, d = int(rng.integers(3, 7)), 1 + index % 2
    batch_size = int(rng.integers(1, 4))
    replacement = bool(rng.integers(2)) and n**batch_size < 130
    if index % 3:
        X, y = rng.integers(-32, 33, size=(n, d)) / 16, rng.integers(-32, 33, size=n) / 16
        X[0, 0] = 1.0 + abs(X[0, 0])
        problem = LeastSquares(X, y)
        rows, labels = fractions(X), fractions(y)
        hessians, gradients = np.einsum("ni,nj->nij", rows, rows), -rows * labels[:, None]
    else:
        roots = rng.integers(-16, 17, size=(n, d, d)) / 16
        floats = roots @ roots.transpose(0, 2, 1) + np.eye(d) / 16
        problem = QuadraticExamples(floats, slopes := rng.integers(-16, 17, size=(n, d)) / 8)
        hessians, gradients = fractions(floats), fractions(slopes)
    return MinibatchNoise(problem, batch_size, replacement), hessians, gradients


def worst_error(cases, seed):
    """The largest error of an entry of any law, relative to its deviations and to the condition of its system."""
    rng = np.random.default_rng(seed)
    worst = (0.0, 0.0, "")
    for index, bare in enumerate(itertools.islice(itertools.cycle(RULES), cases)):
        noise, hessians, gradients = draw(rng, index)
        edge = mean_square_stability(bare, noise).largest_lr
        optimizer = bare.replace(lr=float(np.float32(rng.uniform(0.05, 0.95) * edge)))
        listed = EveryBatch.of(optimizer, hessians, gradients, noise.batch_size, noise.replacement)
        exact = listed.covariance.astype(float)
        if not np.all(np.diagonal(exact) > 0):
            continue
        law = stationary_covariance(optimizer, noise.hessian, noise).joint()
        deviation = np.sqrt(np.diagonal(exact))
        error = float(np.max(np.abs(law - exact) / np.outer(deviation, deviation)))
        condition = 1.0 / (1.0 - mean_square_stability(optimizer, noise).spectral_radius)
        h = np.linalg.eigvalsh(noise.hessian)
        worst = max(worst, (error / (condition * h[-1] / h[0]), error, f"{optimizer!r}, {noise!r}"))
    return worst


def test_random_problems_have_the_law_of_every_batch_listed():
    scaled, error, where = worst_error(12, seed=1)
    assert scaled <= 64 * EPS, (error, where)


@pytest.mark.slow
def test_hundreds_of_random_problems_have_the_law_of_every_batch_listed():
    scaled, error, where = worst_error(300, seed=2)
    assert scaled <= 64 * EPS, (error, where)
