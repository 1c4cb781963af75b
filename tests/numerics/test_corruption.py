"""Injected noise: what the formulas say is what the enumeration of all masks and batches, and quadrature, give."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import permutations, product

import mpmath
import numpy as np
import pytest

from sgdcov.errors import AccuracyWarning, HyperparameterError, InvalidProblemError
from sgdcov.numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    langevin_noise,
    stationary_covariance,
)
from sgdcov.numerics.mean_square import mean_square_stability
from sgdcov.theory import heavy_ball, sgd

EPS = np.finfo(np.float64).eps


def regression(num_examples=3, dim=2, l2=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(num_examples, dim)), rng.normal(size=num_examples), l2)


def corruptions(noise):
    """Every corrupted version of every example with its probability: shapes (N, K, d) and (K,).

    All masks for dropout; for Gaussian noise the nodes of a quadrature that is exact up to degree 5, and gradients'
    squares have degree 4 in the noise.
    """
    X = noise.problem.X
    if isinstance(noise, DropoutNoise):
        atoms = [(0.0, noise.rate), (1.0 / (1.0 - noise.rate), 1.0 - noise.rate)]
        table = list(product(atoms, repeat=X.shape[1]))
        factors = np.array([[f for f, _ in row] for row in table])
        return X[:, None] * factors, np.array([np.prod([p for _, p in row]) for row in table])
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    table = list(product(zip(nodes, weights / weights.sum(), strict=True), repeat=X.shape[1]))
    shifts = np.array([[f for f, _ in row] for row in table])
    return X[:, None] + noise.std * shifts, np.array([np.prod([p for _, p in row]) for row in table])


def enumerated(noise):
    """Hessians, gradients at 0 and probabilities of every batch of corrupted examples."""
    inputs, chances = corruptions(noise)
    size, examples = noise.batch_size, len(inputs)
    rows = range(examples)
    batches = list(product(rows, repeat=size) if noise.replacement else permutations(rows, size))
    hessians, gradients, probabilities = [], [], []
    for batch in batches:
        for versions in product(range(len(chances)), repeat=size):
            x = inputs[list(batch), list(versions)]
            hessians.append(x.T @ x / size + noise.problem.l2 * np.eye(x.shape[1]))
            gradients.append(-x.T @ noise.problem.y[list(batch)] / size)
            probabilities.append(np.prod(chances[list(versions)]) / len(batches))
    return np.array(hessians), np.array(gradients), np.array(probabilities)


CASES = [
    build(regression(), strength, size, replacement)
    for build, strength in ((DropoutNoise, 0.3), (DropoutNoise, 0.7), (InputNoise, 0.8))
    for size, replacement in ((1, True), (2, True), (2, False), (3, False))
    if not (build is InputNoise and size == 3)
]


@pytest.mark.parametrize("noise", CASES, ids=repr)
def test_hessian_optimum_and_covariance_are_those_of_all_corrupted_batches(noise):
    hessians, gradients, chances = enumerated(noise)
    assert chances.sum() == pytest.approx(1.0, rel=1e-12)
    mean = np.tensordot(chances, hessians, 1)
    assert noise.hessian == pytest.approx(mean, rel=50 * EPS, abs=50 * EPS)
    assert noise.optimum == pytest.approx(np.linalg.solve(mean, -chances @ gradients), rel=200 * EPS, abs=200 * EPS)
    for w in (noise.optimum, np.zeros(2), np.array([1.5, -0.7])):
        steps = hessians @ w + gradients
        centred = steps - chances @ steps
        exact = centred.T @ (chances[:, None] * centred)
        found = noise.covariance(mean=w)
        assert np.array_equal(found, found.T)
        assert np.abs(found - exact).max() <= 200 * EPS * np.abs(exact).max()


@pytest.mark.parametrize("noise", CASES, ids=repr)
def test_the_multiplicative_part_is_that_of_all_corrupted_batches(noise):
    hessians, _, chances = enumerated(noise)
    deviations = hessians - np.tensordot(chances, hessians, 1)
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(2, 2))
    for spread in (factor @ factor.T, factor + factor.T, np.diag([1.0, 0.0])):
        exact = np.einsum("k,kab,bc,kcd->ad", chances, deviations, spread, deviations)
        found = noise.multiplicative(spread)
        assert np.array_equal(found, found.T)
        assert np.abs(found - exact).max() <= 200 * EPS * np.abs(deviations).max() ** 2 * np.abs(spread).max()


@pytest.mark.parametrize("noise", CASES[::3], ids=repr)
def test_the_law_is_the_fixed_point_of_one_enumerated_step(noise):
    """With momentum: the second moment of (w, v) about the optimum, mapped by every batch there is."""
    hessians, gradients, chances = enumerated(noise)
    noise = noise + noise.label_noise(0.5)
    optimizer = heavy_ball(lr=0.1, momentum=0.5)
    S = stationary_covariance(optimizer, noise.hessian, noise).joint()
    slopes = hessians @ noise.optimum + gradients
    eye = np.eye(2)
    steps = [np.block([[eye - 0.1 * h, -0.05 * eye], [h, 0.5 * eye]]) for h in hessians]
    gain = np.vstack([-0.1 * eye, eye])
    after = gain @ noise.base.label_noise(0.5) @ gain.T
    for chance, step, slope in zip(chances, steps, slopes, strict=True):
        pushed = gain @ slope
        after = after + chance * (step @ S @ step.T + np.outer(pushed, pushed))
    assert np.abs(after - S).max() <= 1e-12 * np.abs(S).max()


def test_label_noise_is_carried_by_the_corrupted_inputs():
    for noise in CASES:
        inputs, chances = corruptions(noise)
        second = np.einsum("k,nka,nkb->ab", chances, inputs, inputs) / len(inputs)
        assert noise.label_noise(0.3) == pytest.approx(0.09 * second / noise.batch_size, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("build", [DropoutNoise, InputNoise])
@pytest.mark.parametrize("replacement", [True, False])
def test_without_corruption_it_is_the_noise_of_minibatches(build, replacement):
    problem = regression(num_examples=7, dim=3)
    plain, corrupted = MinibatchNoise(problem, 3, replacement), build(problem, 0.0, 3, replacement)
    w, spread = np.array([1.0, 2.0, -1.0]), np.diag([1.0, 2.0, 3.0]) + 0.5
    assert corrupted.hessian == pytest.approx(plain.hessian, rel=10 * EPS)
    assert corrupted.optimum == pytest.approx(plain.optimum, rel=1e-13)
    assert corrupted.covariance(w, spread) == pytest.approx(plain.covariance(w, spread), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("noise", [CASES[1], CASES[2], CASES[9]], ids=repr)
def test_draws_have_the_mean_and_covariance_that_the_formulas_say(noise):
    count, w = 60_000, np.array([0.8, -1.1])
    drawn = noise.draw(np.random.default_rng(2), count)
    points = np.tile(w, (count, 1))
    gradients = drawn.gradient(points)
    mean = noise.hessian @ (w - noise.optimum)
    error = np.sqrt(np.diag(noise.covariance(w)) / count)
    assert np.all(np.abs(gradients.mean(axis=0) - mean) <= 5 * error)
    centred = gradients - mean
    products = centred[:, :, None] * centred[:, None]
    z = (products.mean(axis=0) - noise.covariance(w)) / (products.std(axis=0) / np.sqrt(count))
    assert np.abs(z).max() <= 5
    uncorrupted = MinibatchNoise(noise.problem, noise.batch_size, noise.replacement)
    wrong = (products.mean(axis=0) - uncorrupted.covariance(w)) / (products.std(axis=0) / np.sqrt(count))
    assert np.abs(wrong).max() > 20
    assert drawn.curvature(points) == pytest.approx(gradients - drawn.gradient(0.0 * points), rel=1e-9, abs=1e-9)


def test_dropout_makes_a_stable_learning_rate_unstable_in_mean_square():
    problem = regression(num_examples=30, dim=4, l2=0.0)
    edges = [mean_square_stability(sgd(lr=0.1), DropoutNoise(problem, q, 4)).largest_lr for q in (0.0, 0.3, 0.6)]
    assert edges[0] > edges[1] > edges[2] > 0


def test_an_input_that_is_always_zero_is_a_flat_direction_under_dropout():
    problem = LeastSquares([[1.0, 0.0], [2.0, 0.0]], [1.0, 0.0])
    noise = DropoutNoise(problem, 0.5, 1)
    assert np.array_equal(noise.hessian[1], [0.0, 0.0])
    assert noise.optimum[1] == 0.0
    law = stationary_covariance(sgd(lr=0.05), noise.hessian, noise)
    assert law.flat == (1,)


def test_langevin_noise_samples_the_gibbs_law_at_small_learning_rates():
    h, beta = np.diag([1.0, 3.0]), 5.0
    for lr in (0.1, 0.01):
        law = stationary_covariance(sgd(lr=lr), h, langevin_noise(sgd(lr=lr), 2, beta))
        # 2/beta / (2 h - lr h^2), exactly
        assert np.diag(law.value) == pytest.approx([2 / beta / (2 * x - lr * x**2) for x in (1.0, 3.0)], rel=1e-14)
    hot = heavy_ball(lr=1e-6, momentum=0.9)
    law = stationary_covariance(hot, h, langevin_noise(hot, 2, beta))
    assert np.diag(law.value) == pytest.approx(10.0 / beta / np.diag(h), rel=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DropoutNoise(regression(), 1.0, 1), r"rate must be the probability .* below 1, got 1"),
        (lambda: DropoutNoise(regression(), -0.1, 1), r"rate must be a finite number, at least 0"),
        (lambda: DropoutNoise(regression(), 0.1, 4), r"batch_size must be from 1 to the number of examples, 3"),
        (lambda: DropoutNoise(regression().quadratic(1), 0.1, 1), r"need a LeastSquares problem.* got Quadratic"),
        (lambda: InputNoise(regression(), np.nan, 1), r"std must be a finite number"),
        (lambda: InputNoise(regression(), 0.1, 2.0), r"batch_size must be an integer"),
        (lambda: InputNoise(regression(), 0.1, 2).label_noise(-1.0), r"std must be a finite number, at least 0"),
        (lambda: langevin_noise(sgd(lr=0.1), 2, 0.0), r"inverse_temperature must be positive"),
        (lambda: langevin_noise(sgd(lr=0.1), 0, 1.0), r"dim must be"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(InvalidProblemError, match=says):
        call()


def test_langevin_noise_needs_a_learning_rate():
    with pytest.raises(HyperparameterError, match="has none bound"):
        langevin_noise(sgd(), 2, 1.0)


def exact_gradient_covariance(noise):
    """At the minimiser, of every corrupted batch, in 60 digits and from the doubles of X, y, l2 and q as they are."""
    (x,), (target,) = noise.problem.X[0].tolist(), noise.problem.y.tolist()
    with mpmath.workdps(60):
        q, x, target, l2 = (mpmath.mpf(float(v)) for v in (noise.rate, x, target, noise.problem.l2))
        seen = x / (1 - q)
        hessian = (1 - q) * seen**2 + l2
        w = (1 - q) * seen * target / hessian
        kept, dropped = seen * (seen * w - target) + l2 * w, l2 * w
        return hessian, q * (1 - q) * (kept - dropped) ** 2


@pytest.mark.parametrize(
    ("x", "rate", "most"), [(-2.5, 0.2, 1e-9), (10.0, 0.2, 1e-6), (30.0, 0.001, 1e-5), (2000.0, 0.2, np.inf)]
)
def test_near_interpolation_the_law_is_known_as_well_as_it_says(x, rate, most):
    """One step of plain SGD on one example: the gradients at the minimiser cancel, and the rounding of that counts."""
    noise, lr = DropoutNoise(LeastSquares([[x]], [0.7], l2=0.2), rate=rate, batch_size=1), 0.3 / x**2
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", AccuracyWarning)
        law = stationary_covariance(sgd(lr=lr), noise.hessian, noise)
    assert bool(warned) == (law.error > 1e-6)
    hessian, push = exact_gradient_covariance(noise)
    with mpmath.workdps(60):
        q, lr = mpmath.mpf(rate), mpmath.mpf(lr)
        spread = q * (1 - q) * (mpmath.mpf(x) / (1 - q)) ** 4
        exact = lr * push / (2 * hessian - lr * (hessian**2 + spread))
        true = float(abs(mpmath.mpf(float(law.value[0, 0])) - exact) / exact)
    assert true <= law.error <= most


@pytest.mark.parametrize("build", ["examples", "gaussian", "input"])
def test_every_source_bounds_the_rounding_of_its_covariance(build):
    """Against fractions: of gradients that are large beside what they differ by."""
    if build == "gaussian":
        noise, w = GaussianMinibatchNoise([[3.7]], 1e-9, 1, [1.0 / 3]), 1.0 / 3 + 1e-9
        gap = Fraction(w) - Fraction(1.0 / 3)
        exact = 2 * (Fraction(3.7) * gap) ** 2 + Fraction(1e-9) ** 2 * Fraction(3.7)
    elif build == "input":
        noise, w = InputNoise(LeastSquares([[1.0]], [0.3]), 0.5, 1), 0.3
        f, m = Fraction(w), Fraction(1, 4)
        s = f - Fraction(0.3)
        exact = s**2 * m + 2 * s * m * f + m * f**2 + 2 * m**2 * f**2
    else:
        hessians, gradients, w = [1.0, 1.0 + 2.0**-20], [0.3, 0.7 / 3], 1e6 / 3
        noise = MinibatchNoise(QuadraticExamples(np.reshape(hessians, (2, 1, 1)), np.reshape(gradients, (2, 1))), 1)
        parts = [Fraction(h) * Fraction(w) + Fraction(r) for h, r in zip(hessians, gradients, strict=True)]
        exact = (parts[0] - parts[1]) ** 2 / 4
    off = abs(Fraction(float(noise.covariance(mean=[w])[0, 0])) - exact)
    bound = noise.rounding(np.array([w]), np.zeros((1, 1)))[0, 0]
    assert float(off) <= bound <= 1e-5 * float(exact)


@pytest.mark.parametrize(("X", "y"), [([[1.0, 0.3], [0.7, -1.1]], [0.3, 1.7]), ([[1.0, 0.3, 0.1]], [0.7])])
def test_independent_examples_are_met_exactly_and_have_no_noise(X, y):
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    law = stationary_covariance(sgd(lr=0.1), noise.hessian, noise)
    assert not law.value.any()
    assert law.error == 0.0


def test_examples_that_one_point_satisfies_have_no_noise():
    """Three rank-one curvatures with the common minimiser (1, 2), whose mean has thirds in it."""
    rows = np.array([[1.0, 1.0], [1.0, -2.0], [3.0, 0.5]])
    hessians = rows[:, :, None] * rows[:, None, :]
    noise = MinibatchNoise(QuadraticExamples(hessians, -hessians @ [1.0, 2.0]), 1)
    law = stationary_covariance(sgd(lr=0.05), noise.hessian, noise)
    assert np.array_equal(noise.optimum, [1.0, 2.0])
    assert not law.value.any()
    assert law.error == 0.0
