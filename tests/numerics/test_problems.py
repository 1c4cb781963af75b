"""Problems: gradients are the derivatives of losses, and the noise is what enumeration of every minibatch says."""

from __future__ import annotations

from itertools import combinations, product

import mpmath
import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    GaussianAdversarialRegression,
    QuadraticExamples,
    RobustUnhinged,
    VectorLeastSquares,
)
from sgdcov.numerics.problems import LeastSquares, Quadratic

EPS = np.finfo(np.float64).eps


def regression(num_examples=5, dim=2, l2=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(num_examples, dim)), rng.normal(size=num_examples), l2)


def exact_optimum(problem):
    """The minimiser in 60 digits, from the normal equations."""
    with mpmath.workdps(60):
        x = mpmath.matrix(problem.X.tolist())
        gram = x.T * x + problem.num_examples * mpmath.mpf(problem.l2) * mpmath.eye(problem.dim)
        return np.array([float(v) for v in mpmath.lu_solve(gram, x.T * mpmath.matrix(problem.y.tolist()))])


PROBLEMS = [
    Quadratic([[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.2], [0.2, 3.0]], [1.0, -2.0]),
    regression(),
    regression(l2=0.3),
    regression(num_examples=3, dim=5),
]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_quadratic_is_its_own_taylor_expansion(problem):
    rng = np.random.default_rng(1)
    w, step = rng.normal(size=(2, 7, problem.dim))
    expected = (
        problem.loss(w)
        + np.sum(problem.gradient(w) * step, axis=-1)
        + 0.5 * np.einsum("ni,ij,nj->n", step, problem.hessian, step)
    )
    assert problem.loss(w + step) == pytest.approx(expected, rel=50 * EPS, abs=50 * EPS)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_gradient_vanishes_at_the_optimum(problem):
    scale = np.abs(problem.gradient(np.zeros(problem.dim))).max()
    assert np.abs(problem.gradient(problem.optimum)).max() <= 20 * EPS * scale


@pytest.mark.parametrize("problem", PROBLEMS)
def test_points_are_vectorised_over_leading_axes(problem):
    w = np.random.default_rng(2).normal(size=(2, 3, problem.dim))
    assert problem.loss(w).shape == (2, 3)
    assert problem.gradient(w).shape == w.shape
    assert problem.loss(w[1, 2]).shape == ()
    assert float(problem.loss(w[1, 2])) == pytest.approx(float(problem.loss(w)[1, 2]), rel=10 * EPS)
    assert problem.gradient(w[1, 2]) == pytest.approx(problem.gradient(w)[1, 2], rel=10 * EPS, abs=10 * EPS)


def test_the_loss_of_a_quadratic_is_zero_at_its_optimum():
    assert PROBLEMS[0].loss(PROBLEMS[0].optimum) == 0.0


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_mean_of_the_per_example_gradients_is_the_gradient(l2):
    problem = regression(l2=l2)
    w = np.random.default_rng(3).normal(size=(4, 2))
    gradients = problem.per_example_gradients(w)
    assert gradients.shape == (4, 5, 2)
    assert gradients.mean(axis=-2) == pytest.approx(problem.gradient(w), rel=20 * EPS, abs=20 * EPS)
    one = LeastSquares(problem.X[:1], problem.y[:1], l2)
    assert gradients[:, 0] == pytest.approx(one.gradient(w), rel=20 * EPS)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_the_noise_is_the_covariance_over_every_minibatch(batch_size, replacement, l2):
    problem = regression(l2=l2)
    batches = product(range(5), repeat=batch_size) if replacement else combinations(range(5), batch_size)
    gradients = problem.per_example_gradients(problem.optimum)
    means = np.array([gradients[list(batch)].mean(axis=0) for batch in batches])
    assert len(means) == (5**batch_size if replacement else [5, 10, 10, 5, 1][batch_size - 1])
    exact = np.cov(means.T, bias=True) if len(means) > 1 else np.zeros((2, 2))
    found = problem.noise(batch_size, replacement)
    assert np.abs(found - exact).max() <= 50 * EPS * np.abs(problem.noise(1)).max()
    assert np.array_equal(found, found.T)


def test_a_whole_batch_without_replacement_has_no_noise():
    assert np.array_equal(regression().noise(5, replacement=False), np.zeros((2, 2)))
    assert np.array_equal(LeastSquares([[1.0]], [2.0]).noise(1, replacement=False), [[0.0]])


@pytest.mark.parametrize("l2", [0.0, 1e-12, 1e-3, 10.0])
def test_the_optimum_is_accurate_where_the_normal_equations_are_not(l2):
    rng = np.random.default_rng(4)
    u, _ = np.linalg.qr(rng.normal(size=(20, 4)))
    v, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    condition = 1e6  # squared: 1e12
    x = (u * np.geomspace(1.0, 1 / condition, 4)) @ v.T
    problem = LeastSquares(x, x @ np.ones(4), l2)
    exact = exact_optimum(problem)
    assert np.linalg.norm(problem.optimum - exact) <= 100 * EPS * condition * np.linalg.norm(exact)


def test_the_optimum_of_a_singular_design_has_least_norm():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 6))
    x[:, 0] = 0.0
    y = rng.normal(size=8)
    problem = LeastSquares(x, y)
    assert problem.optimum == pytest.approx(np.linalg.pinv(x) @ y, rel=1e4 * EPS, abs=1e4 * EPS)
    assert problem.optimum[0] == 0.0
    assert LeastSquares(np.zeros((3, 2)), np.ones(3)).optimum == pytest.approx([0.0, 0.0])


def test_quadratic_has_the_same_landscape():
    problem = regression(l2=0.1)
    model = problem.quadratic(2, replacement=False)
    w = np.random.default_rng(6).normal(size=(3, 2))
    assert model.gradient(w) == pytest.approx(problem.gradient(w), rel=50 * EPS, abs=50 * EPS)
    above = problem.loss(w) - problem.loss(problem.optimum)
    assert model.loss(w) == pytest.approx(above, rel=100 * EPS, abs=100 * EPS)
    assert np.array_equal(model.noise, problem.noise(2, replacement=False))


def test_arrays_are_copied_and_read_only():
    hessian = np.eye(2)
    problem = Quadratic(hessian, np.eye(2), np.zeros(2))
    hessian[0, 0] = 5.0
    assert problem.hessian[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.hessian[0, 0] = 5.0
    with pytest.raises(AttributeError):
        problem.hessian = np.eye(2)


@pytest.mark.parametrize("batch_size", [0, 6, -1, 2.0, "2", None, True, np.nan])
def test_a_batch_size_that_is_none_is_refused(batch_size):
    with pytest.raises(InvalidProblemError, match=r"batch_size must be .*got "):
        regression().noise(batch_size)


def test_numpy_integers_are_batch_sizes():
    assert np.array_equal(regression().noise(np.int64(2)), regression().noise(2))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Quadratic([[1.0, 0.0]], [[1.0]], [0.0]), r"hessian must be square"),
        (lambda: Quadratic([[-1.0]], [[1.0]], [0.0]), r"hessian is not positive semidefinite.* is -1 "),
        (lambda: Quadratic([[1.0]], [[-1e-9]], [0.0]), r"noise is not positive semidefinite.* -1e-09 "),
        (lambda: Quadratic(np.eye(2), [[1.0]], [0.0, 0.0]), r"noise must have shape \(2, 2\), got \(1, 1\)"),
        (lambda: Quadratic(np.eye(2), np.eye(2), [0.0]), r"optimum must have shape \(2,\), got \(1,\)"),
        (lambda: Quadratic(np.eye(2), [[1.0, 0.5], [0.0, 1.0]], [0.0, 0.0]), r"noise is not symmetric"),
        (lambda: LeastSquares([1.0, 2.0], [1.0, 2.0]), r"X must be a matrix"),
        (lambda: LeastSquares([[1.0], [2.0]], [1.0]), r"one entry per row of X, 2, got 1"),
        (lambda: LeastSquares([[np.nan]], [1.0]), r"X must be finite: X\[0, 0\] = nan"),
        (lambda: LeastSquares([[1.0]], [1.0], l2=-0.1), r"l2 must be a finite number, at least 0, got -0.1"),
        (lambda: LeastSquares([[1.0]], [1.0], l2=np.nan), r"l2 must be"),
        (lambda: regression().loss([1.0, 2.0, 3.0]), r"w must have shape \(\.\.\., 2\), got \(3,\)"),
        (lambda: regression().gradient("ab"), r"w must hold real numbers"),
        (lambda: PROBLEMS[0].gradient([0.0, np.nan]), r"w must be finite: w\[1\] = nan"),
    ],
)
def test_bad_input_is_named(build, says):
    with pytest.raises(InvalidProblemError, match=says):
        build()


def spoilt(values, bad):
    """The array with its last entry replaced."""
    out = np.array(values, dtype=float)
    out.flat[-1] = bad
    return out


X4, Y4, SIGNS = np.arange(8.0).reshape(4, 2) % 3 + 1, np.array([1.0, 2.0, -1.0, 0.5]), np.array([1.0, -1.0, 1.0, 1.0])
DATA = {
    LeastSquares: {"X": X4, "y": Y4, "sample_weight": np.ones(4)},
    VectorLeastSquares: {"X": X4[:, None], "y": Y4[:, None]},
    QuadraticExamples: {"hessians": np.stack([np.eye(2)] * 4), "gradients": X4, "sample_weight": np.ones(4)},
    AdversarialLeastSquares: {"X": X4, "y": Y4, "radius": 0.1, "sample_weight": np.ones(4)},
    AdversarialLogistic: {"X": X4, "y": SIGNS, "radius": 0.1, "sample_weight": np.ones(4)},
    RobustUnhinged: {"X": X4, "y": SIGNS, "radius": 0.1, "l2": 1.0, "sample_weight": np.ones(4)},
    GaussianAdversarialRegression: {"covariance": np.eye(2), "weights": Y4[:2], "label_noise": 1.0, "radius": 0.1},
    Quadratic: {"hessian": np.eye(2), "noise": np.eye(2), "optimum": Y4[:2]},
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("build", "name"), [(build, name) for build, given in DATA.items() for name in given])
def test_one_entry_that_is_no_number_is_refused_by_its_name(build, name, bad):
    build(**DATA[build])  # as it is it is fine
    with pytest.raises(InvalidProblemError, match=name):
        build(**DATA[build] | {name: spoilt(DATA[build][name], bad)[()]})


@pytest.mark.parametrize("replacement", ["no", 0, None, 1.0])
@pytest.mark.parametrize("build", [LeastSquares, VectorLeastSquares, QuadraticExamples, RobustUnhinged])
def test_only_true_and_false_say_whether_examples_come_back(build, replacement):
    with pytest.raises(InvalidProblemError, match="replacement must be True or False"):
        build(**DATA[build]).noise(1, replacement)


def test_a_problem_of_mean_hessian_in_units_of_its_own_has_its_minimiser():
    """Each coordinate's minimiser is -1, however small its curvature is beside the others'."""
    units = np.array([1.0, 1e-9, 1e6])
    rotation = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    hessian = units[:, None] * rotation * units
    problem = QuadraticExamples([hessian, hessian], [hessian @ (1 / units)] * 2)
    assert problem.optimum * units == pytest.approx([-1.0, -1.0, -1.0], rel=1e-12)
