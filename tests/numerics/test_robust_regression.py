"""Robust regression in the population: integrals by quadrature, derivatives by differences, limits of samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import GaussianAdversarialRegression, kink_corrected_covariance, stationary_covariance
from sgdcov.theory import sgd

EPS = np.finfo(float).eps
COVARIANCE = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.5]])
WEIGHTS = np.array([1.0, -0.7, 0.4])
POINTS = np.array([[0.9, -0.2, 0.5], [-0.3, 0.8, 0.4]])
over_norms = pytest.mark.parametrize("norm", [2, np.inf, 1, 3])


def population(radius=0.3, norm=2, label_noise=0.5):
    return GaussianAdversarialRegression(COVARIANCE, WEIGHTS, label_noise, radius, norm)


def differences(function, w, step=1e-5):
    return np.array([(function(w + h) - function(w - h)) / (2 * step) for h in step * np.eye(len(w))])


@over_norms
def test_the_risk_is_the_integral_over_residuals(norm):
    problem = population(norm=norm)
    for w in POINTS:
        v = np.sqrt((w - WEIGHTS) @ COVARIANCE @ (w - WEIGHTS) + 0.25)
        t = 0.3 * np.linalg.norm(w, ord=problem.dual)
        density = scipy.stats.norm(0.0, v).pdf
        integral = 2.0 * scipy.integrate.quad(lambda r: 0.5 * (r + t) ** 2 * density(r), 0.0, 12 * v)[0]  # noqa: B023
        assert float(problem.risk(w)) == pytest.approx(integral, rel=1e-10)
        assert float(problem.residual_std(w)) == pytest.approx(v, rel=10 * EPS)


@over_norms
def test_derivatives_are_those_of_the_risk(norm):
    problem = population(norm=norm)
    for w in POINTS:
        assert problem.gradient(w) == pytest.approx(differences(problem.risk, w), abs=1e-9)
        assert problem.hessian_at(w) == pytest.approx(differences(problem.gradient, w), abs=1e-8)
    assert problem.gradient(POINTS)[1] == pytest.approx(problem.gradient(POINTS[1]), rel=10 * EPS)


@over_norms
def test_the_kinks_are_what_the_mean_of_the_hessians_lacks(norm):
    problem = population(norm=norm)
    for w in POINTS:
        v, a = float(problem.residual_std(w)), COVARIANCE @ (w - WEIGHTS)
        given_no_residual = COVARIANCE - np.outer(a, a) / v**2  # E[x x' | r = 0]
        t = 0.3 * np.linalg.norm(w, ord=problem.dual)
        kinks = 2.0 * t / (np.sqrt(2.0 * np.pi) * v) * given_no_residual
        assert problem.hessian_at(w) - problem.mean_ae_hessian(w) == pytest.approx(kinks, abs=50 * EPS)


@over_norms
def test_noise_and_mean_hessian_are_those_of_many_examples(norm):
    problem = population(norm=norm)
    w, size, blocks = POINTS[0], 2000, 100
    rows = []
    for k in range(blocks):
        sample = problem.sample(size, k)
        gradients = sample.per_example_gradients(w)
        centred = gradients - problem.gradient(w)
        rows.append([centred.T @ centred / size, sample.mean_ae_hessian(w)])
    estimate, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(blocks)
    expected = np.array([problem.noise(1, w), problem.mean_ae_hessian(w)])
    assert np.all(np.abs(estimate - expected) <= 5.0 * error)  # t(99) for 12 different entries: false alarm 3e-5
    assert np.max(np.abs(estimate[1] - problem.hessian_at(w)) / error[1]) > 20.0  # the kinks are seen in no example
    assert problem.noise(5, w) == pytest.approx(problem.noise(1, w) / 5, rel=10 * EPS)


@pytest.mark.parametrize("norm", [2, np.inf])
def test_averaged_over_small_weights_the_hessian_of_many_examples_is_the_populations(norm):
    problem = population(norm=norm)
    exact, missing = problem.hessian, problem.hessian - problem.mean_ae_hessian()
    errors = []
    for size in (1_000, 10_000, 100_000):
        spread = 0.03 * size**-0.4 * np.eye(3)  # narrower as N grows, yet with ever more residuals in its reach
        found = [problem.sample(size, seed).smoothed_hessian(spread, problem.optimum) for seed in range(4)]
        errors.append(np.sqrt(np.mean([np.linalg.norm(h - exact) ** 2 for h in found])))
        without = problem.sample(size, 0).mean_ae_hessian(problem.optimum)
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.05 * np.linalg.norm(missing)
    assert np.linalg.norm(without - exact) > 0.95 * np.linalg.norm(missing)  # of 100,000 examples


def test_the_law_of_many_examples_is_that_of_the_population():
    problem = population()
    sample = problem.sample(20_000, 3)
    optimizer = sgd(lr=0.005)
    finite = kink_corrected_covariance(optimizer, sample, 1)
    law = stationary_covariance(optimizer, problem.hessian, problem.noise(1))
    without = stationary_covariance(optimizer, problem.mean_ae_hessian(), problem.noise(1))
    scale = np.linalg.norm(law.value)
    assert np.linalg.norm(finite.value - law.value) <= 0.05 * scale  # O(lr) and O(N^-1/2)
    assert np.linalg.norm(without.value - law.value) > 0.2 * scale


@over_norms
@pytest.mark.parametrize("radius", [0.05, 0.3, 0.5])
def test_the_optimum_is_that_of_a_general_solver(radius, norm):
    problem = population(radius, norm)
    found = scipy.optimize.minimize(
        problem.risk, 0.5 * WEIGHTS, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 5000}
    )
    assert problem.certificate.kind == "gradient norm"
    assert problem.certificate.relative <= 1e-14
    assert float(problem.risk(problem.optimum)) <= found.fun * (1 + 10 * EPS)
    assert problem.optimum == pytest.approx(found.x, abs=1e-5)
    assert problem.kinks.smooth == bool(np.all(problem.optimum) and len(set(np.abs(problem.optimum))) == 3)
    if problem.kinks.smooth:
        assert np.linalg.eigvalsh(problem.hessian)[0] > 0


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3, 0.9])
def test_the_optimum_is_a_self_consistent_ridge_solution(radius):
    problem = population(radius)
    ridge = radius**2
    for _ in range(2000):  # by iteration of its own
        w = np.linalg.solve(COVARIANCE + ridge * np.eye(3), COVARIANCE @ WEIGHTS)
        v, n = np.sqrt((w - WEIGHTS) @ COVARIANCE @ (w - WEIGHTS) + 0.25), np.linalg.norm(w)
        c0 = np.sqrt(2.0 / np.pi)
        ridge = radius * (radius + c0 * v / n) / (1.0 + c0 * radius * n / v)
    assert problem.ridge == pytest.approx(ridge, rel=1e-9)
    assert problem.optimum == pytest.approx(w, rel=1e-9)


@over_norms
def test_from_the_collapse_radius_on_the_optimum_is_0(norm):
    edge = population(norm=norm).collapse_radius
    beyond, before = population(edge * (1 + 1e-12), norm), population(edge * 0.99, norm)
    assert beyond.kinks.collapsed
    assert before.optimum.any()
    points = np.random.default_rng(0).normal(size=(500, 3)) * np.geomspace(1e-3, 1.0, 500)[:, None]
    assert np.all(beyond.risk(points) >= beyond.risk(np.zeros(3)) * (1 - 10 * EPS))
    for ask in (lambda: beyond.hessian, lambda: beyond.noise(1), lambda: beyond.quadratic(1), beyond.face):
        with pytest.raises(InvalidProblemError, match=r"all weights are 0.*take a radius below collapse_radius"):
            ask()


def test_the_face_makes_label_noise_of_what_it_leaves_out():
    problem = population(0.6, np.inf)
    assert problem.kinks.coordinates
    with pytest.raises(InvalidProblemError, match=r"face\(\) is the problem of the other weights"):
        problem.hessian  # noqa: B018
    face = problem.face()
    kept = np.setdiff1d(np.arange(3), problem.kinks.coordinates)
    assert face.optimum == pytest.approx(problem.optimum[kept], rel=1e-10)
    points = np.random.default_rng(1).normal(size=(20, len(kept)))
    whole = np.zeros((20, 3))
    whole[:, kept] = points
    assert face.risk(points) == pytest.approx(problem.risk(whole), rel=1e-13)
    assert np.all(np.isfinite(face.hessian))


def test_at_radius_0_it_is_ordinary_regression():
    problem = population(0.0)
    assert np.array_equal(problem.optimum, WEIGHTS)
    assert problem.hessian == pytest.approx(COVARIANCE, rel=10 * EPS)
    assert problem.noise(4) == pytest.approx(0.25 * COVARIANCE / 4, rel=10 * EPS)
    assert problem.ridge == 0.0


def test_the_curvature_is_linear_in_a_small_radius():
    slope = (population(1e-6).hessian_at(POINTS[0]) - COVARIANCE) / 1e-6
    w, a = POINTS[0], COVARIANCE @ (POINTS[0] - WEIGHTS)
    n, v = np.linalg.norm(w), float(population().residual_std(w))
    u = w / n
    bends = n / v * COVARIANCE + (np.outer(u, a) + np.outer(a, u)) / v - n / v**3 * np.outer(a, a)
    bends += v / n * (np.eye(3) - np.outer(u, u))
    assert slope == pytest.approx(np.sqrt(2.0 / np.pi) * bends, abs=1e-4)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: population(-0.1), "radius must be a finite number, at least 0, got -0.1"),
        (lambda: population(norm=0.2), "number of at least 1"),
        (lambda: population(label_noise=0.0), "label_noise must be positive"),
        (lambda: population(label_noise=-1.0), "label_noise must be"),
        (lambda: GaussianAdversarialRegression(-np.eye(2), [1.0, 1.0], 1.0, 0.1), "covariance is not positive"),
        (lambda: GaussianAdversarialRegression(np.eye(2), [1.0], 1.0, 0.1), r"weights must have shape \(2,\)"),
        (lambda: population(norm=np.inf).ridge, "for attacks of norm 2, not inf"),
        (lambda: population().noise(0), "batch_size must be"),
        (lambda: population().hessian_at(np.zeros(3)), "no Hessian at this w: all weights are 0"),
        (lambda: population().sample(0, 0), "num_examples must be"),
        (lambda: population(1.6, 1).face(), "tie for the largest"),
    ],
)
def test_bad_input_is_named(build, says):
    with pytest.raises(InvalidProblemError, match=says):
        build()
