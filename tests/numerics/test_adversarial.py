"""Robust losses of finite data: inner maxima by enumeration, derivatives by differences, optima by other solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from sgdcov.errors import InvalidProblemError, NonStationaryError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    kink_corrected_covariance,
    max_learning_rate,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, sgd, sgdw

EPS = np.finfo(float).eps
NORMS = (2, np.inf, 1, 1.5, 3)
over_norms = pytest.mark.parametrize("norm", NORMS)


def regression(num_examples=30, dim=3, radius=0.1, norm=2, l2=0.0, seed=0, noise=0.5, **more):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_examples, dim))
    y = X @ np.linspace(1.5, -1.0, dim) + noise * rng.normal(size=num_examples)
    return AdversarialLeastSquares(X, y, radius, norm, l2, **more)


def classification(num_examples=60, dim=3, radius=0.1, norm=2, l2=0.0, seed=0, **more):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_examples, dim))
    y = np.where(X @ np.linspace(1.5, -1.0, dim) + rng.normal(size=num_examples) > 0, 1.0, -1.0)
    return AdversarialLogistic(X, y, radius, norm, l2, **more)


def smooth(**arguments):
    """A regression whose optimum rests on no kink."""
    return next(p for p in (regression(seed=seed, **arguments) for seed in range(100)) if p.kinks.smooth)


def ordinary_loss(problem, X, w):
    """The examples' losses on other inputs, without any attack."""
    if isinstance(problem, AdversarialLeastSquares):
        return 0.5 * (problem.y - X @ w) ** 2
    return np.logaddexp(0.0, -problem.y * (X @ w))


def slope_by_differences(function, w, step=1e-6):
    return np.array([(function(w + h) - function(w - h)) / (2 * step) for h in step * np.eye(len(w))])


@pytest.mark.parametrize("dim", [1, 2, 5, 10])
@pytest.mark.parametrize("build", [regression, classification])
def test_the_inner_maximum_is_that_of_the_corners_of_the_cube(build, dim):
    problem = build(num_examples=8, dim=dim, radius=0.3, norm=np.inf)
    corners = np.array(list(itertools.product([-0.3, 0.3], repeat=dim)))
    for w in np.random.default_rng(dim).normal(size=(5, dim)):
        worst = np.max([ordinary_loss(problem, problem.X + corner, w) for corner in corners], axis=0)
        assert float(problem.loss(w)) == pytest.approx(worst.mean(), rel=20 * dim * EPS)
        attained = ordinary_loss(problem, problem.worst_case_inputs(w), w)
        assert attained == pytest.approx(worst, rel=20 * dim * EPS)


@pytest.mark.parametrize("build", [regression, classification])
def test_the_inner_maximum_is_that_of_the_corners_of_the_cross_polytope(build):
    problem = build(num_examples=8, dim=4, radius=0.3, norm=1)
    corners = 0.3 * np.vstack([np.eye(4), -np.eye(4)])
    for w in np.random.default_rng(1).normal(size=(5, 4)):
        worst = np.max([ordinary_loss(problem, problem.X + corner, w) for corner in corners], axis=0)
        assert float(problem.loss(w)) == pytest.approx(worst.mean(), rel=50 * EPS)


@over_norms
@pytest.mark.parametrize("build", [regression, classification])
def test_the_worst_inputs_are_in_the_ball_and_attain_the_loss_that_none_exceeds(build, norm):
    problem = build(num_examples=6, radius=0.3, norm=norm)
    rng = np.random.default_rng(2)
    for w in rng.normal(size=(3, 3)):
        inputs = problem.worst_case_inputs(w)
        reach = np.linalg.norm(inputs - problem.X, ord=norm, axis=1)
        assert reach.max() <= 0.3 * (1 + 20 * EPS)
        losses = ordinary_loss(problem, inputs, w)
        assert losses.mean() == pytest.approx(float(problem.loss(w)), rel=50 * EPS)
        for delta in rng.normal(size=(200, 3)):
            other = ordinary_loss(problem, problem.X + 0.3 * delta / np.linalg.norm(delta, ord=norm), w)
            assert np.all(other <= losses * (1 + 50 * EPS))


@over_norms
@pytest.mark.parametrize("build", [regression, classification])
def test_derivatives_are_those_of_the_loss(build, norm):
    problem = build(norm=norm, l2=0.2, sample_weight=np.linspace(0.0, 2.0, 30 if build is regression else 60))
    for w in np.random.default_rng(3).normal(size=(3, 3)):
        assert problem.gradient(w) == pytest.approx(slope_by_differences(problem.loss, w), abs=1e-8)
        hessian = slope_by_differences(problem.gradient, w)
        assert problem.mean_ae_hessian(w) == pytest.approx(hessian, abs=2e-8)
        each = problem.per_example_hessians(w)
        one = slope_by_differences(problem.per_example_gradients, w).transpose(1, 0, 2)
        assert each == pytest.approx(one, abs=2e-7)
        assert each.mean(axis=0) == pytest.approx(problem.mean_ae_hessian(w), abs=100 * EPS)
        assert problem.per_example_gradients(w).mean(axis=0) == pytest.approx(problem.gradient(w), abs=50 * EPS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_examples_agree_with_automatic_differentiation():
    torch = pytest.importorskip("torch")
    problem = regression(num_examples=5, norm=2)
    w = np.array([0.4, -0.3, 1.1])

    def loss(v, x, y):
        return 0.5 * ((y - x @ v).abs() + problem.radius * v.norm()) ** 2

    v, X, y = (torch.tensor(np.array(a)) for a in (w, problem.X, problem.y))
    gradients = torch.stack([torch.func.grad(loss)(v, x, t) for x, t in zip(X, y, strict=True)])
    hessians = torch.stack([torch.func.hessian(loss)(v, x, t) for x, t in zip(X, y, strict=True)])
    assert problem.per_example_gradients(w) == pytest.approx(gradients.numpy(), rel=1e-13)
    assert problem.per_example_hessians(w) == pytest.approx(hessians.numpy(), rel=1e-12, abs=1e-14)


@over_norms
@pytest.mark.parametrize("build", [regression, classification])
def test_points_are_vectorised_over_leading_axes(build, norm):
    problem = build(norm=norm)
    w = np.random.default_rng(4).normal(size=(2, 3, 3))
    assert problem.loss(w).shape == (2, 3)
    assert problem.gradient(w)[1, 2] == pytest.approx(problem.gradient(w[1, 2]), rel=20 * EPS, abs=20 * EPS)
    gradients = problem.per_example_gradients(w)
    assert gradients.shape == (2, 3, problem.num_examples, 3)
    assert gradients[1, 2] == pytest.approx(problem.per_example_gradients(w[1, 2]), rel=20 * EPS, abs=20 * EPS)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_at_radius_0_everything_is_least_squares(l2):
    problem = regression(radius=0.0, l2=l2, norm=np.inf)
    plain = LeastSquares(problem.X, problem.y, l2)
    assert problem.optimum == pytest.approx(plain.optimum, rel=20 * EPS)
    assert problem.kinks.smooth
    assert problem.hessian == pytest.approx(plain.hessian, rel=20 * EPS)
    assert problem.noise(3, replacement=False) == pytest.approx(plain.noise(3, replacement=False), rel=100 * EPS)
    spread = np.diag([0.1, 0.2, 0.3])
    exact = MinibatchNoise(plain, 3).covariance(spread=spread)
    assert problem.smoothed_noise(3, spread) == pytest.approx(exact, rel=1e-13)
    assert problem.smoothed_hessian(spread) == pytest.approx(plain.hessian, rel=20 * EPS)


# --- optima ----------------------------------------------------------------------------------------------------------


@over_norms
@pytest.mark.parametrize("radius", [0.01, 0.2, 0.5])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(30, 3), (60, 12), (15, 25)])
@pytest.mark.parametrize("build", [regression, classification])
def test_the_optimum_is_certified(build, shape, l2, radius, norm):
    problem = build(*shape, radius=radius, norm=norm, l2=l2)
    if build is classification and not l2 and separable(problem):
        with pytest.raises(InvalidProblemError, match=r"separable.*l2 > 0"):
            problem.optimum  # noqa: B018
        return
    certificate = problem.certificate
    assert certificate.kind == "duality gap"
    assert certificate.relative <= 1e-13
    w = problem.optimum
    assert np.all(w[list(problem.kinks.coordinates)] == 0.0) or norm == 1
    residuals = problem.y - problem.X @ w
    if build is regression and not problem.kinks.collapsed:
        assert np.all(np.abs(residuals[list(problem.kinks.residuals)]) <= 1e-12)
    steps = np.random.default_rng(5).normal(size=(200, shape[1]))
    for size in (1e-6, 1e-3, 1e-1):
        assert np.all(problem.loss(w + size * steps) >= problem.loss(w) * (1 - 10 * EPS))


def separable(problem):
    """Whether a direction of the unit cube has every margin above the attack's reach, by a linear programme.

    For attacks of the 1-norm and the cube's own exact; for others decided by bounds between the norms, if they can.
    """
    (N, d), signed = problem.X.shape, problem.y[:, None] * problem.X
    split = np.hstack([signed, -signed])  # w = u - v, |w|_1 <= sum(u + v)
    rows = np.vstack([np.hstack([-split, np.ones((N, 1))]), [[1.0] * (2 * d) + [0.0]]])
    bounds = [(0, None)] * (2 * d) + [(None, None)]
    cross = -scipy.optimize.linprog([0.0] * (2 * d) + [-1.0], rows, [0.0] * N + [1.0], bounds=bounds).fun
    rows = np.hstack([-signed, np.ones((N, 1))])
    cube = -scipy.optimize.linprog([0.0] * d + [-1.0], rows, np.zeros(N), bounds=[(-1, 1)] * d + [(None, None)]).fun
    if problem.dual == 1:
        return cross > problem.radius
    if np.isinf(problem.dual):
        return cube > problem.radius
    margins = [signed @ w / np.linalg.norm(w, ord=problem.dual) for w in np.linalg.lstsq(signed, np.eye(N))[0].T]
    if cross > problem.radius or max(m.min() for m in margins) > problem.radius:
        return True
    w = np.linalg.lstsq(signed, np.ones(N))[0]
    return bool((signed @ w).min() > problem.radius * np.linalg.norm(w, ord=problem.dual))


@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("radius", [0.05, 0.4])
@pytest.mark.parametrize("build", [regression, classification])
def test_the_optimum_of_two_weights_is_that_of_a_grid(build, radius, norm):
    problem = build(dim=2, radius=radius, norm=norm, l2=0.05, seed=1)
    centre, width = np.zeros(2), 4.0
    for _ in range(14):  # the loss is convex: the best grid point and its neighbours hold the minimiser, generously
        axis = np.linspace(-width, width, 41)
        grid = centre + np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        centre, width = grid[np.argmin(problem.loss(grid))], 0.3 * width
    assert float(problem.loss(problem.optimum)) <= float(problem.loss(centre)) * (1 + 10 * EPS)
    assert problem.optimum == pytest.approx(centre, abs=1e-5)


@over_norms
@pytest.mark.parametrize("build", [regression, classification])
def test_the_optimum_is_that_of_a_general_solver(build, norm):
    problem = build(radius=0.15, norm=norm, l2=0.05, seed=2)
    found = scipy.optimize.minimize(
        problem.loss, np.full(3, 0.1), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 5000}
    )
    assert float(problem.loss(problem.optimum)) <= found.fun * (1 + 10 * EPS)
    assert problem.optimum == pytest.approx(found.x, abs=1e-5)


def test_a_weight_that_the_attack_holds_at_0_meets_the_condition_of_the_subgradient():
    problem = regression(dim=6, radius=0.4, norm=np.inf, l2=0.1)
    kinks, w = problem.kinks, problem.optimum
    assert kinks.coordinates
    assert not kinks.collapsed
    assert np.all(w[list(kinks.coordinates)] == 0.0)
    slope = problem.gradient(w)  # the norm's own part of it is 0 where w is
    r = np.abs(problem.y - problem.X @ w)
    hold = 0.4 * np.mean(r + 0.4 * np.abs(w).sum())
    jump = 0.4 * np.abs(w).sum() * np.abs(problem.X[list(kinks.residuals)]).sum(axis=0) / problem.num_examples
    for i in kinks.coordinates:
        assert abs(slope[i]) <= hold + jump[i]


@over_norms
@pytest.mark.parametrize("build", [regression, classification])
def test_from_the_collapse_radius_on_the_optimum_is_0(build, norm):
    edge = build(norm=norm).collapse_radius
    beyond, before = build(norm=norm, radius=edge * (1 + 1e-9)), build(norm=norm, radius=edge * 0.99)
    assert beyond.kinks.collapsed
    assert not beyond.optimum.any()
    assert beyond.certificate.value == 0.0
    assert before.optimum.any()
    points = np.random.default_rng(6).normal(size=(500, 3)) * np.geomspace(1e-3, 1.0, 500)[:, None]
    assert np.all(beyond.loss(points) >= beyond.loss(np.zeros(3)) * (1 - 10 * EPS))
    with pytest.raises(InvalidProblemError, match=r"all weights are 0.*collapse_radius = "):
        beyond.hessian  # noqa: B018


def test_data_without_label_noise_rest_on_every_kink_and_are_still_solved():
    rng = np.random.default_rng(7)
    X, w = rng.normal(size=(40, 4)), np.array([1.0, -2.0, 0.5, 3.0])
    for norm in (2, np.inf):
        problem = AdversarialLeastSquares(X, X @ w, 0.02, norm)
        assert problem.optimum == pytest.approx(w, rel=1e-12)
        assert len(problem.kinks.residuals) == 40
        assert problem.certificate.relative <= 1e-13


# --- kinks and cells -------------------------------------------------------------------------------------------------


def test_on_a_kink_hessian_and_noise_are_refused_with_the_way_out():
    problem = regression(num_examples=60, dim=5, radius=0.3)
    assert problem.kinks.residuals
    for ask in (lambda: problem.hessian, lambda: problem.noise(2), lambda: problem.quadratic(2), problem.cell):
        with pytest.raises(InvalidProblemError, match=r"residuals are 0 \(.*smoothed_hessian\(covariance\)"):
            ask()
    problem = regression(dim=6, radius=0.5, norm=np.inf)
    assert problem.kinks.coordinates
    with pytest.raises(InvalidProblemError, match=r"weights are on a kink of the norm \(.*face\(\) is the problem"):
        problem.hessian  # noqa: B018
    with pytest.raises(InvalidProblemError, match="has no Hessian at this w"):
        problem.mean_ae_hessian(problem.optimum)
    with pytest.raises(InvalidProblemError, match=r"is 0 and the covariance does not move it.*face\(\)"):
        problem.smoothed_hessian(np.diag(problem.optimum**2))
    with pytest.raises(InvalidProblemError, match="kink at the centre of the Gaussian"):
        regression(norm=1).smoothed_hessian(np.eye(3), np.ones(3))
    with pytest.raises(InvalidProblemError, match=r"face\(\) is the problem"):
        kink_corrected_covariance(sgd(lr=0.1), problem, 2)


@pytest.mark.parametrize("build", [regression, classification])
def test_the_face_is_the_problem_of_the_weights_that_are_not_0(build):
    problem = build(dim=6, radius=0.35, norm=np.inf)
    kept = np.setdiff1d(np.arange(6), problem.kinks.coordinates)
    assert 0 < len(kept) < 6
    face = problem.face()
    assert face.optimum == pytest.approx(problem.optimum[kept], rel=1e-11)
    assert not face.kinks.coordinates
    with pytest.raises(InvalidProblemError, match="tie for the largest"):
        build(dim=6, radius=1.1 if build is regression else 0.7, norm=1).face()


@pytest.mark.parametrize("norm", [np.inf, 1])
def test_within_the_cell_the_losses_are_those_of_least_squares(norm):
    problem = smooth(num_examples=12, radius=0.05, norm=norm, l2=0.1, sample_weight=np.linspace(0.5, 2.0, 12))
    assert problem.kinks.smooth
    cell = problem.cell()
    assert isinstance(cell, LeastSquares)
    assert cell.optimum == pytest.approx(problem.optimum, rel=1e-11)
    assert cell.hessian == pytest.approx(problem.hessian, rel=1e-12)
    assert cell.noise(4, False) == pytest.approx(problem.noise(4, False), rel=1e-9)
    inside, residuals = 0, problem.y - problem.X @ problem.optimum
    for w in problem.optimum + 0.03 * np.random.default_rng(8).normal(size=(50, 3)):
        same = np.array_equal(np.sign(problem.y - problem.X @ w), np.sign(residuals))
        same = same and np.argmax(np.abs(w)) == np.argmax(np.abs(problem.optimum))
        if same and np.array_equal(np.sign(w), np.sign(problem.optimum)):
            inside += 1
            assert cell.per_example_gradients(w) == pytest.approx(
                problem.per_example_gradients(w), rel=1e-12, abs=1e-13
            )
            assert float(cell.loss(w)) == pytest.approx(float(problem.loss(w)), rel=1e-13)
    assert inside >= 5


def test_the_exact_minibatch_law_follows_from_the_cell():
    problem = smooth(num_examples=12, radius=0.05, norm=np.inf)
    optimizer = heavy_ball(lr=0.1, momentum=0.5)
    additive = stationary_covariance(optimizer, problem.hessian, problem.noise(2))
    exact = stationary_covariance(optimizer, problem.cell().hessian, MinibatchNoise(problem.cell(), 2))
    expected = np.linalg.norm(additive.value - exact.value) / np.linalg.norm(exact.value)
    assert additive.additive_error == pytest.approx(expected, rel=1e-8)
    assert expected > 0.01
    with pytest.raises(InvalidProblemError, match=r"whose cell\(\) is one"):
        MinibatchNoise(problem, 2)


@pytest.mark.parametrize(
    "problem", [smooth(num_examples=12, radius=0.05, l2=0.1), classification(norm=3, l2=0.1)], ids=repr
)
def test_the_cell_of_a_curved_loss_is_its_expansion(problem):
    cell = problem.cell()
    assert isinstance(cell, QuadraticExamples)
    w = problem.optimum
    assert cell.optimum == pytest.approx(w, rel=1e-11)
    assert cell.hessian == pytest.approx(problem.hessian, rel=1e-13)
    assert cell.per_example_gradients(w) == pytest.approx(problem.per_example_gradients(w), rel=1e-12, abs=1e-14)
    assert problem.quadratic(2).noise == pytest.approx(cell.noise(2), rel=1e-12)


def test_the_probability_of_leaving_is_exact_in_one_dimension():
    problem = AdversarialLeastSquares([[1.0], [1.0]], [0.0, 4.0], 0.1, np.inf)
    w, std = float(problem.optimum[0]), 1.0
    found = problem.leaving_probability([[std**2]], samples=20_000, rng=1)
    exact = scipy.special.ndtr(-w / std) + scipy.special.ndtr(-(4 - w) / std)
    assert found.lower <= exact <= found.upper
    assert found.facets == pytest.approx(
        [scipy.special.ndtr(-w), scipy.special.ndtr(-(4 - w)), scipy.special.ndtr(-w)], rel=1e-12
    )
    assert abs(found.sampled - exact) <= 5 * found.standard_error
    assert problem.leaving_probability([[0.0]]).upper == 0.0


@pytest.mark.parametrize("norm", [2, np.inf, 1])
def test_leaving_is_what_changes_a_sign(norm):
    problem = smooth(num_examples=8, radius=0.1, norm=norm, l2=0.1)
    covariance = 0.05 * np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
    found = problem.leaving_probability(covariance, samples=5000)
    w = np.random.default_rng(11).multivariate_normal(problem.optimum, covariance, size=5000)
    base = problem.optimum
    left = np.any(np.sign(problem.y - w @ problem.X.T) != np.sign(problem.y - problem.X @ base), axis=1)
    if norm == np.inf:
        left |= np.any(np.sign(w) != np.sign(base), axis=1)
    if norm == 1:
        top = np.argmax(np.abs(base))
        left |= (np.argmax(np.abs(w), axis=1) != top) | (np.sign(w[:, top]) != np.sign(base[top]))
    error = np.hypot(found.standard_error, np.sqrt(left.mean() * (1 - left.mean()) / 5000))
    assert abs(found.sampled - left.mean()) <= 5 * error
    assert found.lower <= found.upper


# --- averages over Gaussian weights ----------------------------------------------------------------------------------


def average(function, mean, std, breaks):
    """The mean of a function of one Gaussian weight, by quadrature between its kinks."""
    ends = [mean - 12 * std, *sorted(b for b in breaks if abs(b - mean) < 12 * std), mean + 12 * std]
    density = scipy.stats.norm(mean, std).pdf
    return sum(
        scipy.integrate.quad(lambda w: function(w) * density(w), a, b, epsabs=1e-13, epsrel=1e-12)[0]
        for a, b in itertools.pairwise(ends)
    )


@pytest.mark.parametrize("mean", [1.3, None])
def test_averages_over_one_weight_are_exact(mean):
    X, y, a = np.array([[1.0], [2.0], [-0.5], [1.0]]), np.array([1.5, 2.0, -2.0, 4.0]), np.array([1.0, 0.5, 2.0, 1.0])
    problem = AdversarialLeastSquares(X, y, 0.3, np.inf, 0.2, a)
    centre, std = (float(problem.optimum[0]) if mean is None else mean), 0.1
    breaks = y / X[:, 0]
    given = ([[std**2]],) if mean is None else ([[std**2]], [mean])

    def of(function):
        return average(function, centre, std, breaks)

    assert problem.smoothed_loss(*given) == pytest.approx(of(lambda w: float(problem.loss([w]))), rel=1e-10)
    slope = of(lambda w: float(problem.gradient([w])[0]))
    assert problem.smoothed_gradient(*given)[0] == pytest.approx(slope, rel=1e-9, abs=1e-11)
    curvature = of(lambda w: float(problem.gradient([w])[0]) * (w - centre)) / std**2  # Stein's identity
    assert problem.smoothed_hessian(*given)[0, 0] == pytest.approx(curvature, rel=1e-9)
    square = of(lambda w: float(np.mean((problem.per_example_gradients([w])[:, 0] - 0.2 * w) ** 2)))
    mean_slope = slope - 0.2 * centre
    expected = square - mean_slope**2 - (curvature - 0.2) ** 2 * std**2
    assert problem.smoothed_noise(2, *given)[0, 0] == pytest.approx(expected / 2, rel=1e-8)


@pytest.mark.parametrize("norm", [np.inf, 1])
def test_averages_of_several_weights_derive_from_each_other(norm):
    problem = regression(norm=norm, l2=0.1, radius=0.3)
    mean = np.array([1.5, 0.6, -1.1])
    spread = 0.01 * np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
    slope = slope_by_differences(lambda m: problem.smoothed_loss(spread, m), mean)
    assert problem.smoothed_gradient(spread, mean) == pytest.approx(slope, abs=1e-8)
    curvature = slope_by_differences(lambda m: problem.smoothed_gradient(spread, m), mean)
    assert problem.smoothed_hessian(spread, mean) == pytest.approx(curvature, abs=1e-8)


@pytest.mark.parametrize("norm", [np.inf, 2, 3])
def test_averages_are_those_of_draws(norm):
    problem = regression(num_examples=20, norm=norm, l2=0.1, radius=0.3)
    mean = np.array([1.5, 0.6, -1.1])
    spread = 1e-3 * np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]])
    root = np.linalg.cholesky(spread)
    rows = []
    for half in np.split(np.random.default_rng(12).standard_normal((20_000, 3)), 20):
        delta = np.vstack([half, -half]) @ root.T
        gradients = problem.per_example_gradients(mean + delta)
        means = gradients.mean(axis=1)
        centred = gradients - means[:, None]
        between = np.einsum("cni,cnj->ij", centred, centred, optimize=True) / gradients.shape[1] / len(delta)
        curvature = np.linalg.solve(spread, delta.T @ means / len(delta))
        rows.append(
            np.concatenate([[problem.loss(mean + delta).mean()], means.mean(0), curvature.ravel(), between.ravel()])
        )
    estimate, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(20)
    expected = np.concatenate(
        [
            [problem.smoothed_loss(spread, mean)],
            problem.smoothed_gradient(spread, mean),
            problem.smoothed_hessian(spread, mean).ravel(),
            problem.smoothed_noise(1, spread, mean).ravel(),
        ]
    )
    # z of t(19) for 22 entries, false alarm 1e-4; besides, the norm bends (second order in the covariance over |m|^2)
    second_order = 0.0 if np.isinf(norm) else 3.0 * (np.trace(spread) / (mean @ mean)) * np.abs(expected)
    bent_mean = np.concatenate([np.zeros(13), np.full(9, 0.03 * np.abs(expected[13:]).max())])
    assert np.all(np.abs(estimate - expected) <= 6.5 * error + second_order + bent_mean)
    without = problem.mean_ae_hessian(mean).ravel()
    assert np.max(np.abs(without - estimate[4:13]) / error[4:13]) > 30


def test_a_kink_that_nothing_averages_is_refused():
    problem = AdversarialLeastSquares([[1.0], [1.0], [1.0]], [0.0, 4.0, 1.5], 0.25)
    assert problem.kinks.residuals == (2,)
    for law in (problem.smoothed_hessian, problem.smoothed_loss):
        with pytest.raises(InvalidProblemError, match="example 2 is 0 and the covariance does not move it"):
            law([[0.0]], [1.5])


@pytest.mark.parametrize(
    "optimizer", [sgd(lr=0.1), heavy_ball(lr=0.1, momentum=0.5), sgdw(lr=0.1, weight_decay=0.01, momentum=0.0)]
)
def test_at_radius_0_the_self_consistent_law_is_the_exact_one(optimizer):
    problem = regression(radius=0.0)
    noise = MinibatchNoise(LeastSquares(problem.X, problem.y), 2)
    exact = stationary_covariance(optimizer, noise.hessian, noise)
    found = kink_corrected_covariance(optimizer, problem, 2)
    assert found.value == pytest.approx(exact.value, rel=1e-8)
    assert np.asarray(found) == pytest.approx(exact.value, rel=1e-8)


def test_the_self_consistent_law_agrees_with_itself():
    problem = regression(num_examples=60, dim=4, radius=0.3)
    assert problem.kinks.residuals
    law = kink_corrected_covariance(sgd(lr=0.05), problem, 2)
    assert law.change <= 1e-10
    assert problem.smoothed_hessian(law.value, law.mean) == pytest.approx(law.hessian, rel=1e-7)
    assert problem.smoothed_noise(2, law.value, law.mean) == pytest.approx(law.noise, rel=1e-7)
    assert np.linalg.norm(problem.smoothed_gradient(law.value, law.mean)) <= 1e-9
    assert stationary_covariance(sgd(lr=0.05), law.hessian, law.noise).value == pytest.approx(law.value, rel=1e-7)


def test_a_learning_rate_beyond_mean_square_stability_is_refused():
    problem = regression(num_examples=60, dim=8, radius=0.01)
    lr = 0.7 * max_learning_rate(sgd(lr=0.1), problem.mean_ae_hessian(problem.optimum))
    with pytest.raises(NonStationaryError, match=r"grows without bound.*smaller learning rate or a larger batch"):
        kink_corrected_covariance(sgd(lr=lr), problem, 1)


def ensemble(problem, lr, batch_size, replicas, steps, every, seed):
    """Covariances and means over replicas of plain SGD in NumPy, after a burn-in of a third, at spaced steps."""
    rng = np.random.default_rng(seed)
    w = np.tile(problem.optimum, (replicas, 1))
    seen = []
    for k in range(steps):
        drawn = rng.integers(problem.num_examples, size=(replicas, batch_size))
        x, y = problem.X[drawn], problem.y[drawn]
        r = y - np.einsum("rbi,ri->rb", x, w)
        n = np.linalg.norm(w, ord=problem.dual, axis=1, keepdims=True)
        g = np.sign(w) if problem.dual == 1 else w / n
        total = np.abs(r) + problem.radius * n
        w = (
            w
            - lr
            * (-np.einsum("rb,rbi->ri", np.sign(r) * total, x) + problem.radius * total.sum(1)[:, None] * g)
            / batch_size
        )
        if k >= steps // 3 and k % every == 0:
            seen.append(w)
    return np.array(seen)


def test_the_kinks_of_weights_near_0_are_averaged_too():
    problem = regression(num_examples=200, radius=0.3, norm=np.inf, seed=4)
    law = kink_corrected_covariance(sgd(lr=0.05), problem, 4)
    nearest = int(np.argmin(np.abs(problem.optimum)))
    assert abs(problem.optimum[nearest]) < np.sqrt(law.value[nearest, nearest])  # so its sign changes
    seen = ensemble(problem, 0.05, 4, 1500, 450, 25, seed=1)
    where = seen.mean(axis=0)
    std, error = np.sqrt(np.diag(law.value)), where.std(axis=0, ddof=1) / np.sqrt(1500)
    assert np.all(np.abs(where.mean(axis=0) - law.mean) <= 4 * error + 0.02 * std)
    assert np.all(np.abs(np.diag(np.cov(seen.reshape(-1, 3).T)) - std**2) <= 0.25 * std**2)  # the law is not Gaussian
    assert abs(where.mean(axis=0) - problem.optimum)[nearest] > 20 * error[nearest]


@pytest.mark.parametrize("norm", [2, np.inf])
def test_an_ensemble_follows_the_kinks_and_not_the_mean_of_the_hessians(norm):
    problem = regression(num_examples=200, dim=2, radius=0.3, norm=norm, seed=4)
    lr, size, replicas = 0.05, 4, 1500
    law = kink_corrected_covariance(sgd(lr=lr), problem, size)
    seen = ensemble(problem, lr, size, replicas, 450, 25, seed=1)
    # per replica, averaged over its own time: independent estimates of tr(H S) and of the mean
    centred = seen - law.mean
    each = np.einsum("tri,ij,trj->r", centred, law.hessian, centred) / len(seen)
    estimate, error = each.mean(), each.std(ddof=1) / np.sqrt(replicas)
    predicted = float(np.vdot(law.hessian, law.value))
    linear_noise = 0.02 * predicted  # the law is Gaussian to leading order only
    assert abs(estimate - predicted) <= 4 * error + linear_noise
    where = seen.mean(axis=0)
    slack = 4 * where.std(axis=0, ddof=1) / np.sqrt(replicas) + 0.02 * np.sqrt(np.diag(law.value))
    assert np.all(np.abs(where.mean(axis=0) - law.mean) <= slack)
    without = stationary_covariance(sgd(lr=lr), problem.mean_ae_hessian(problem.optimum), law.noise)
    assert abs(estimate - float(np.vdot(law.hessian, without.value))) > 10 * error + linear_noise


# --- what is refused -------------------------------------------------------------------------------------------------


def test_separable_data_have_no_finite_optimum_without_weight_decay():
    X, y = np.array([[2.0, 1.0], [1.0, 3.0], [-1.0, -2.0]]), [1, 1, -1]
    for radius in (0.0, 0.5):
        problem = AdversarialLogistic(X, y, radius)
        with pytest.raises(InvalidProblemError, match=r"separable.*no finite minimiser.*l2 > 0"):
            problem.optimum  # noqa: B018
        assert AdversarialLogistic(X, y, radius, l2=0.01).certificate.relative <= 1e-13
    assert AdversarialLogistic(X, y, 5.0).kinks.collapsed
    ties = AdversarialLogistic([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [1, 1, -1], 0.0)
    with pytest.raises(InvalidProblemError, match=r"separable but for ties.*l2 > 0"):
        ties.optimum  # noqa: B018
    far = AdversarialLogistic([[50.0], [1.0], [1.0], [1.0]], [1, 1, 1, -1], 0.0)  # a large margin is none of that
    assert far.optimum == pytest.approx([np.log(2.0)], rel=1e-9)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: regression(radius=-0.1), "radius must be a finite number, at least 0, got -0.1"),
        (lambda: regression(radius=np.nan), "radius must be"),
        (lambda: regression(norm=0.5), r"order of the attack's l_p norm, a number of at least 1.*got 0.5"),
        (lambda: regression(norm="fro"), r"2, numpy.inf, 1 or any between"),
        (lambda: regression(norm=np.nan), "norm must be"),
        (lambda: regression(l2=-1.0), "l2 must be"),
        (lambda: AdversarialLeastSquares([[1.0], [2.0]], [1.0], 0.1), "one entry per row of X, 2, got 1"),
        (
            lambda: AdversarialLogistic([[1.0], [2.0]], [0, 1], 0.1),
            r"labels must be -1 or 1, got y\[0\] = 0 .*2\*y - 1",
        ),
        (lambda: regression().noise(0), "batch_size must be"),
        (lambda: regression().loss([1.0]), r"w must have shape \(\.\.\., 3\)"),
        (lambda: regression().mean_ae_hessian(np.zeros(3)), "no Hessian at this w: all weights are 0"),
        (lambda: regression().smoothed_hessian(-np.eye(3)), "covariance is not positive semidefinite"),
        (lambda: regression().leaving_probability(np.eye(2)), "covariance must have shape"),
        (lambda: kink_corrected_covariance(sgd(lr=0.1), classification(), 2), "an AdversarialLeastSquares problem"),
    ],
)
def test_bad_input_is_named(build, says):
    with pytest.raises(InvalidProblemError, match=says):
        build()


def test_arrays_are_copied_and_read_only():
    X = np.ones((2, 1))
    problem = AdversarialLeastSquares(X, [0.0, 1.0], 0.1)
    X[0, 0] = 5.0
    assert problem.X[0, 0] == 1.0
    for array in (problem.X, problem.y, problem.optimum):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
