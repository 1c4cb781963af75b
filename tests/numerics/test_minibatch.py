"""The exact law under minibatch noise, against every batch listed in exact arithmetic, and what has no law."""

import numpy as np
import pytest
from every_batch import EveryBatch, fractions
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdcov.errors import (
    InvalidProblemError,
    InvalidRuleError,
    MeanSquareUnstableError,
    UnstableError,
)
from sgdcov.numerics import (
    GaussianMinibatchNoise,
    LeastSquares,
    MinibatchNoise,
    Phase,
    QuadraticExamples,
    Schedule,
    autocovariance,
    average_covariance,
    mean_square_stability,
    one_gradient_form,
    periodic_covariance,
    stationary_covariance,
    stationary_mean,
    trajectory,
    transient_covariance,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, update_rule, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.125),
    sgd(lr=0.0625, weight_decay=0.5),
    heavy_ball(lr=0.0625, momentum=0.5),
    heavy_ball(lr=0.125, momentum=0.75, dampening=0.5, weight_decay=0.25),
    nesterov(lr=0.0625, momentum=0.5, weight_decay=0.125),
    polyak(lr=0.0625, momentum=0.5),
    qhm(lr=0.125, beta=0.75, nu=0.5),
    sgdw(lr=0.0625, momentum=0.5, weight_decay=0.25),
    with_ema(sgd)(lr=0.125, ema_decay=0.75),
)
BATCHES = ((1, True), (2, True), (1, False), (2, False), (3, False))
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
over_batches = pytest.mark.parametrize(("batch_size", "replacement"), BATCHES)


def data(seed=0, num_examples=5, dim=2):
    """A data set of short binary fractions: no rounding enters before the solver."""
    rng = np.random.default_rng(seed)
    return rng.integers(-16, 17, size=(num_examples, dim)) / 8, rng.integers(-16, 17, size=num_examples) / 8


def examples_of(X, y):
    """Per-example Hessians and gradients at 0 of a least-squares problem, as fractions."""
    X, y = fractions(X), fractions(y)
    return np.array([np.outer(x, x) for x in X]), np.array([-x * t for x, t in zip(X, y, strict=True)])


def rounding(law, radius):
    """What rounding may do to a law: the size of the system and its condition."""
    return 64 * EPS * len(law) ** 2 / (1 - radius) * np.max(np.abs(law))


@over_optimizers
@over_batches
def test_the_stationary_law_is_that_of_every_batch_listed(optimizer, batch_size, replacement):
    X, y = data()
    noise = MinibatchNoise(LeastSquares(X, y), batch_size, replacement)
    listed = EveryBatch.of(optimizer, *examples_of(X, y), batch_size, replacement)
    exact = listed.covariance.astype(float)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    radius = mean_square_stability(optimizer, noise).spectral_radius
    assert np.max(np.abs(law.joint() - exact)) <= rounding(exact, radius)
    assert radius == pytest.approx(listed.spectral_radius, rel=1e-10)
    mean = stationary_mean(optimizer, noise.hessian, noise.optimum, slots=optimizer.rule.slots)
    assert np.max(np.abs(mean - listed.mean.astype(float))) <= 1e3 * EPS


@over_optimizers
def test_general_hessians_have_the_law_of_every_batch_listed(optimizer):
    rng = np.random.default_rng(3)
    roots = rng.integers(-8, 9, size=(5, 2, 2)) / 8
    hessians = roots @ roots.transpose(0, 2, 1)
    hessians[0] -= np.eye(2) / 8  # one example is not convex
    gradients = rng.integers(-8, 9, size=(5, 2)) / 4
    noise = MinibatchNoise(QuadraticExamples(hessians, gradients), 2, replacement=False)
    listed = EveryBatch.of(optimizer, fractions(hessians), fractions(gradients), 2, False)
    exact = listed.covariance.astype(float)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    radius = mean_square_stability(optimizer, noise).spectral_radius
    assert np.max(np.abs(law.joint() - exact)) <= rounding(exact, radius)


@over_optimizers
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_transient_far_from_the_optimum_is_that_of_every_batch_listed(optimizer, steps):
    X, y = data(seed=1)
    d, slots = X.shape[1], optimizer.rule.slots
    noise = MinibatchNoise(LeastSquares(X, y), 2, replacement=False)
    listed = EveryBatch.of(optimizer, *examples_of(X, y), 2, False)
    rest = np.array([slot in ("w", "w_prev", "ema") for slot in slots], dtype=int)
    weights, spread = np.array([3.0, -2.0]), np.array([[1.0, 0.5], [0.5, 0.5]])
    mean, exact = listed.after(
        steps, fractions(np.kron(rest, weights)), fractions(np.kron(np.outer(rest, rest), spread))
    )
    exact, mean = exact.astype(float), mean.astype(float)
    law = transient_covariance(optimizer, noise.hessian, noise, steps, start=spread, mean=weights)
    assert np.max(np.abs(law.joint() - exact)) <= 1e3 * EPS * np.max(np.abs(exact))
    phases = Schedule([Phase(steps, lr=optimizer.values["lr"])])
    run = trajectory(optimizer, phases, noise.hessian, noise, start=spread, mean=weights)
    assert np.max(np.abs(run.final.joint() - exact)) <= 1e3 * EPS * np.max(np.abs(exact))
    assert np.max(np.abs(run.mean[-1] - mean[:d])) <= 1e3 * EPS * np.max(np.abs(weights))


@update_rule(slots=("w", "v"))
def look_ahead(state, grad, *, lr, momentum, ahead):
    """The gradient's point depends on a hyper-parameter, and so on the phase."""
    w, v = state
    v = momentum * v + grad(w - ahead * v)
    return w - lr * v, v


@pytest.mark.parametrize(
    "phases",
    [
        [Phase(2, lr=0.125, ahead=0.0), Phase(3, lr=0.25, ahead=0.5)],
        [Phase(1, lr=0.0, ahead=0.25), Phase(2, lr=0.25, ahead=0.5), Phase(1, lr=0, ahead=0.0), Phase(2, lr=0.125)],
    ],
    ids=["another point", "learning rates of 0"],
)
@pytest.mark.parametrize("rule", [look_ahead(momentum=0.5, ahead=0.125), sgd()], ids=["look_ahead", "sgd"])
def test_every_phase_takes_its_gradient_at_its_own_point(rule, phases):
    X, y = data(seed=1)
    noise = MinibatchNoise(LeastSquares(X, y), 2, replacement=False)
    if rule.rule is sgd:
        phases = [Phase(phase.steps, lr=phase.values["lr"]) for phase in phases]
    schedule = Schedule(phases)
    slots, weights = len(rule.rule.slots), np.array([3.0, -2.0])
    state = np.concatenate([weights, np.zeros(2 * (slots - 1))])
    mean, exact = fractions(state), fractions(np.zeros((2 * slots, 2 * slots)))
    for optimizer, steps in schedule.bind(rule):
        mean, exact = EveryBatch.of(optimizer, *examples_of(X, y), 2, False).after(steps, mean, exact)
    run = trajectory(rule, schedule, noise.hessian, noise, mean=weights)
    exact = exact.astype(float)
    assert np.max(np.abs(run.final.joint() - exact)) <= 1e3 * EPS * np.max(np.abs(exact))
    assert np.max(np.abs(run.mean[-1] - mean[:2].astype(float))) <= 1e3 * EPS * np.max(np.abs(weights))


def test_the_cross_term_of_a_moving_mean_is_not_negligible():
    """A transient that drops it is wrong by more than a tenth, so the test above would see it."""
    X, y = data(seed=1)
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    law = transient_covariance(sgd(lr=0.125), noise.hessian, noise, 2, mean=noise.optimum + np.array([1.0, -1.0]))
    centred = QuadraticExamples(
        np.concatenate([noise.problem.X[:, :, None] * noise.problem.X[:, None]] * 2),
        np.concatenate([r := noise.problem.per_example_gradients(noise.optimum), -r]),
    )  # every example twice, with both signs of its own gradient: the same moments but for the cross term
    without = MinibatchNoise(centred, 1)
    dropped = transient_covariance(sgd(lr=0.125), without.hessian, without, 2, mean=np.array([1.0, -1.0]))
    assert np.linalg.norm(dropped.value - law.value) > 0.1 * np.linalg.norm(law.value)


@pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (2, True), (2, False)])
def test_sam_is_plain_sgd_on_its_batches(batch_size, replacement):
    X, y = data(seed=2, num_examples=4)
    optimizer = sam(lr=0.0625, rho=0.125)
    listed = EveryBatch.of(optimizer, *examples_of(X, y), batch_size, replacement)
    noise = MinibatchNoise(LeastSquares(X, y), batch_size, replacement)
    with pytest.raises(InvalidRuleError, match="one_gradient_form"):
        stationary_covariance(optimizer, noise.hessian, noise)
    plain, same = one_gradient_form(optimizer, noise)
    exact = listed.covariance.astype(float)
    law = stationary_covariance(plain, same.hessian, same)
    assert np.max(np.abs(law.value - exact)) <= rounding(exact, mean_square_stability(plain, same).spectral_radius)
    assert np.max(np.abs(same.optimum - listed.mean.astype(float))) <= 1e3 * EPS


def test_batches_that_cannot_be_listed_are_refused():
    noise = MinibatchNoise(LeastSquares(np.eye(30), np.arange(30.0)), 15, replacement=False)
    with pytest.raises(InvalidProblemError, match=r"1.55118e\+08 batches"):
        one_gradient_form(sam(lr=0.1, rho=0.1), noise)
    with pytest.raises(InvalidRuleError, match="slots w, v"):
        one_gradient_form(heavy_ball(lr=0.1, momentum=0.5), noise)


def test_a_gradient_taken_ahead_of_the_weights_has_its_own_point():
    """Nesterov's method as Sutskever writes it: the gradient is taken at theta + momentum*u."""

    @update_rule(slots=("theta", "u"))
    def lookahead(state, grad, *, lr, momentum):
        theta, u = state
        u = momentum * u - lr * grad(theta + momentum * u)
        return theta + u, u

    X, y = data(seed=4)
    optimizer = lookahead(lr=0.0625, momentum=0.5)
    noise = MinibatchNoise(LeastSquares(X, y), 2, replacement=False)
    exact = EveryBatch.of(optimizer, *examples_of(X, y), 2, False).covariance.astype(float)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    radius = mean_square_stability(optimizer, noise).spectral_radius
    assert np.max(np.abs(law.joint() - exact)) <= rounding(exact, radius)
    ahead = nesterov(lr=0.0625, momentum=0.5)
    assert mean_square_stability(ahead, noise).spectral_radius == pytest.approx(radius, rel=1e-12)


@pytest.mark.parametrize("optimizer", [sgd(lr=0.1), heavy_ball(lr=0.02, momentum=0.9), nesterov(lr=0.03, momentum=0.8)])
def test_krylov_and_dense_solutions_agree(optimizer, monkeypatch):
    """The matrix-free path (d = 30: 465 unknowns) against the table of the same operator."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(80, 30)) * np.exp(rng.uniform(-2, 0, 30))
    noise = MinibatchNoise(LeastSquares(X, rng.normal(size=80)), 8, replacement=False)
    free = stationary_covariance(optimizer, noise.hessian, noise)
    radius = mean_square_stability(optimizer, noise)
    monkeypatch.setattr("sgdcov.numerics._second_moment._DENSE", 1000)
    table = stationary_covariance(optimizer, noise.hessian, noise)
    assert np.linalg.norm(free.value - table.value) <= 1e4 * EPS * np.linalg.norm(table.value)
    assert radius.spectral_radius == pytest.approx(mean_square_stability(optimizer, noise).spectral_radius, rel=1e-11)


@given(seed=st.integers(0, 2**32 - 1), batch_size=st.integers(1, 6), dim=st.integers(1, 4), share=st.floats(0.05, 0.9))
@settings(max_examples=40, deadline=None)
def test_the_law_is_its_own_fixed_point_and_above_the_additive_one(seed, batch_size, dim, share):
    rng = np.random.default_rng(seed)
    noise = MinibatchNoise(LeastSquares(rng.normal(size=(7, dim)), rng.normal(size=7)), batch_size, bool(seed % 2))
    bare = mean_square_stability(sgd(lr=1.0), noise)
    optimizer = sgd(lr=share * bare.largest_lr)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    own = noise.covariance(spread=law.value)
    assert np.array_equal(law.value, law.value.T)
    size = np.linalg.norm(own)
    assert np.linalg.norm(law.gradient_noise - own) <= 1e4 * EPS * size / (1 - share) + 1e-300
    additive = stationary_covariance(optimizer, noise.hessian, noise.covariance())
    gap = np.linalg.eigvalsh(law.value - additive.value)
    assert gap[0] >= -1e4 * EPS * np.linalg.norm(law.value) / (1 - share)
    assert law.additive_error == pytest.approx(
        np.linalg.norm(law.value - additive.value) / np.linalg.norm(law.value), abs=1e-9
    )


def test_lags_and_means_are_those_of_white_noise_with_the_law_s_own_covariance():
    X, y = data(seed=6)
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    optimizer = heavy_ball(lr=0.0625, momentum=0.5)
    law = stationary_covariance(optimizer, noise.hessian, noise)
    lag = autocovariance(optimizer, noise.hessian, noise, 3)
    listed = EveryBatch.of(optimizer, *examples_of(X, y), 1, True)
    transition = (listed.transitions.sum(axis=0) / len(listed.transitions)).astype(float)
    exact = listed.covariance.astype(float)
    assert lag == pytest.approx((np.linalg.matrix_power(transition, 3) @ exact)[:2, :2], rel=1e-11, abs=1e-15)
    lags = [np.linalg.matrix_power(transition, s) @ exact for s in range(4)]
    mean_of_four = (4 * lags[0] + sum((4 - s) * (lags[s] + lags[s].T) for s in (1, 2, 3)))[:2, :2] / 16
    assert average_covariance(optimizer, noise.hessian, noise, 4) == pytest.approx(mean_of_four, rel=1e-11)
    assert law.gradient_noise == pytest.approx(noise.covariance(spread=law.value), rel=1e-12)


def test_a_preconditioned_law_is_that_of_whitened_examples():
    X, y = data(seed=7)
    noise = MinibatchNoise(LeastSquares(X, y), 2)
    root = np.array([[1.0, 0.25], [0.25, 0.5]])
    optimizer = heavy_ball(lr=0.0625, momentum=0.5, weight_decay=0.25)
    law = stationary_covariance(optimizer, noise.hessian, noise, preconditioner=root @ root)
    inner = MinibatchNoise(LeastSquares(X @ root, y), 2)
    plain = stationary_covariance(optimizer, inner.hessian, inner)
    assert law.value == pytest.approx(root @ plain.value @ root, rel=1e-11)


def test_directions_without_data_stay_at_rest():
    rng = np.random.default_rng(8)
    X = np.column_stack([rng.normal(size=(9, 2)), np.zeros(9)])
    noise = MinibatchNoise(LeastSquares(X, rng.normal(size=9)), 2)
    law = stationary_covariance(heavy_ball(lr=0.05, momentum=0.5), noise.hessian, noise)
    assert np.all(law.value[2] == 0)
    assert len(law.flat) == 1
    assert np.isfinite(mean_square_stability(sgd(lr=0.1), noise).spectral_radius)


def test_curvature_noise_along_a_direction_that_is_flat_on_average_is_refused():
    """Two examples couple the second direction to the first with both signs: flat on average, and undamped."""
    hessians = [[[1.0, 0.5], [0.5, 0.0]], [[1.0, -0.5], [-0.5, 0.0]]]
    noise = MinibatchNoise(QuadraticExamples(hessians, [[1.0, 0.0], [-1.0, 0.0]]), 1)
    with pytest.raises(MeanSquareUnstableError):
        stationary_covariance(sgd(lr=0.1), noise.hessian, noise)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_beyond_the_threshold_the_finite_solution_of_the_linear_system_is_refused(momentum):
    X, y = data(seed=9, num_examples=4)
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    edge = mean_square_stability(heavy_ball(lr=1.0, momentum=momentum), noise)
    optimizer = heavy_ball(lr=edge.largest_lr * 1.01, momentum=momentum)
    listed = EveryBatch.of(optimizer, *examples_of(X, y), 1, True)
    assert listed.spectral_radius > 1
    finite = listed.covariance.astype(float)
    assert np.isfinite(finite).all()
    assert np.linalg.eigvalsh(finite)[0] < 0  # the trap
    with pytest.raises(MeanSquareUnstableError, match="mean-square stability") as caught:
        stationary_covariance(optimizer, noise.hessian, noise)
    assert isinstance(caught.value, UnstableError)
    assert caught.value.largest_lr == pytest.approx(edge.largest_lr, rel=1e-9)
    assert caught.value.largest_mean_lr > caught.value.lr
    assert caught.value.spectral_radius == pytest.approx(listed.spectral_radius, rel=1e-9)
    stable = heavy_ball(lr=edge.largest_lr * 0.99, momentum=momentum)
    assert np.linalg.eigvalsh(stationary_covariance(stable, noise.hessian, noise).value)[0] > 0
    assert np.isinf(stationary_covariance(optimizer, noise.hessian, noise.problem.noise(1)).additive_error)


def test_beyond_the_mean_s_own_threshold_the_error_names_that():
    X, y = data()
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    with pytest.raises(UnstableError) as caught:
        stationary_covariance(sgd(lr=100.0), noise.hessian, noise)
    assert not isinstance(caught.value, MeanSquareUnstableError)


def test_a_transient_beyond_the_threshold_grows_by_the_spectral_radius():
    X, y = data(seed=9, num_examples=4)
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    stability = mean_square_stability(sgd(lr=1.0), noise)
    optimizer = sgd(lr=1.5 * stability.largest_lr)
    traces = [transient_covariance(optimizer, noise.hessian, noise, k).trace for k in (200, 201)]
    assert traces[1] / traces[0] == pytest.approx(mean_square_stability(optimizer, noise).spectral_radius, rel=1e-6)


def test_iterates_stay_symmetric_where_the_antisymmetric_part_would_grow():
    """At B = 1 the map of antisymmetric matrices has a radius of its own; symmetric results must not see it."""
    X, y = data(seed=9, num_examples=4)
    noise = MinibatchNoise(LeastSquares(X, y), 1)
    optimizer = sgd(lr=0.9 * mean_square_stability(sgd(lr=1.0), noise).largest_lr)
    law = transient_covariance(optimizer, noise.hessian, noise, 500, mean=[5.0, 5.0])
    assert np.array_equal(law.value, law.value.T)
    limit = stationary_covariance(optimizer, noise.hessian, noise)
    assert law.value == pytest.approx(limit.value, rel=1e-9)


class TestAdditiveError:
    """The additive model tells how far it is from the exact law, if it knows its data."""

    def test_the_noise_of_a_problem_remembers_it(self):
        X, y = data()
        problem = LeastSquares(X, y)
        exact = stationary_covariance(sgd(lr=0.125), problem.hessian, MinibatchNoise(problem, 2, False))
        additive = stationary_covariance(sgd(lr=0.125), problem.hessian, problem.noise(2, False))
        gap = np.linalg.norm(additive.value - exact.value) / np.linalg.norm(exact.value)
        assert 0.01 < gap < 1
        quadratic = problem.quadratic(2, False)
        frozen = stationary_covariance(sgd(lr=0.125), quadratic.hessian, quadratic.noise)
        # Both laws are good to some 20 eps each; their difference loses what cancels in it.
        rounding = pytest.approx(gap, rel=100 * EPS / gap)
        assert [law.additive_error for law in (additive, exact, frozen)] == [rounding] * 3

    def test_what_is_computed_from_it_does_not(self):
        X, y = data()
        problem = LeastSquares(X, y)
        for noise in (problem.noise(2) * 1.0, np.array(problem.noise(2)), problem.noise(2).copy()):
            with pytest.raises(InvalidProblemError, match="plain covariance"):
                _ = stationary_covariance(sgd(lr=0.125), problem.hessian, noise).additive_error

    def test_it_vanishes_with_the_learning_rate(self):
        X, y = data()
        noise = LeastSquares(X, y).noise(2)
        hessian = LeastSquares(X, y).hessian
        errors = [stationary_covariance(sgd(lr=lr), hessian, noise).additive_error for lr in (1e-3, 1e-4)]
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.01)


class TestGaussianDesign:
    """Fresh Gaussian data, by Isserlis' theorem."""

    def test_the_noise_is_that_of_many_drawn_batches(self):
        rng = np.random.default_rng(11)
        root = rng.normal(size=(3, 3))
        noise = GaussianMinibatchNoise(root @ root.T, label_noise=0.5, batch_size=2, optimum=[1.0, 0.0, -1.0])
        weights = np.array([0.5, 1.0, 0.0])
        drawn = noise.draw(rng, 200_000).gradient(np.tile(weights, (200_000, 1)))
        expected = noise.covariance(weights)
        products = (drawn - drawn.mean(0))[:, :, None] * (drawn - drawn.mean(0))[:, None]
        z = (products.mean(0) - expected) / (products.std(0) / np.sqrt(len(products)))
        assert np.max(np.abs(z)) < 5  # 6 correlated entries: 4e-6
        mean = (drawn.mean(0) - noise.hessian @ (weights - noise.optimum)) / (drawn.std(0) / np.sqrt(len(drawn)))
        assert np.max(np.abs(mean)) < 5

    def test_the_threshold_of_covariance_diag_1_2_to_twelve_digits(self):
        noise = GaussianMinibatchNoise(np.diag([1.0, 2.0]), label_noise=1.0, batch_size=1)
        stability = mean_square_stability(sgd(lr=0.1), noise)
        exact = 4 / (9 + np.sqrt(17))
        assert abs(stability.largest_lr / exact - 1) < 1e-13
        assert abs(stability.mulayoff_michaeli / exact - 1) < 1e-13

    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
    @pytest.mark.parametrize(("dim", "batch_size"), [(1, 1), (5, 1), (5, 16), (20, 4)])
    def test_isotropic_thresholds_are_those_of_the_closed_form(self, momentum, dim, batch_size):
        variance = 0.7
        noise = GaussianMinibatchNoise(variance * np.eye(dim), label_noise=1.0, batch_size=batch_size)
        expected = 2 * (1 - momentum) / (variance * ((1 - momentum) / (1 + momentum) + (dim + 1) / batch_size))
        stability = mean_square_stability(heavy_ball(lr=0.1, momentum=momentum), noise)
        assert stability.largest_lr == pytest.approx(expected, rel=1e-11)

    def test_at_the_threshold_the_spectral_radius_is_one(self):
        noise = GaussianMinibatchNoise(np.diag([1.0, 2.0, 0.1]), label_noise=1.0, batch_size=3)
        for rule in (sgd(lr=1.0), heavy_ball(lr=1.0, momentum=0.9), nesterov(lr=1.0, momentum=0.5)):
            edge = mean_square_stability(rule, noise).largest_lr
            assert mean_square_stability(rule.replace(lr=edge), noise).spectral_radius == pytest.approx(1, abs=1e-11)

    def test_additive_noise_adds_up(self):
        noise = GaussianMinibatchNoise([[1.0]], label_noise=0.0, batch_size=1)
        assert np.all(stationary_covariance(sgd(lr=0.1), [[1.0]], noise).value == 0)
        both = np.array([[2.0]]) + noise
        # S = lr^2 c + (1 - lr)^2 S + 2 lr^2 S
        expected = 0.01 * 2.0 / (1 - 0.81 - 0.02)
        assert stationary_covariance(sgd(lr=0.1), [[1.0]], both).value[0, 0] == pytest.approx(expected, rel=1e-14)
        with pytest.raises(InvalidProblemError, match="do not add up"):
            noise + noise


def test_label_noise_has_no_finite_population_factor():
    X, y = data()
    noise = MinibatchNoise(LeastSquares(X, y), 5, replacement=False)  # the whole data set: no other noise is left
    assert np.all(noise.covariance() == 0)
    assert noise.label_noise(2.0) == pytest.approx(4.0 / 5 * X.T @ X / len(X), rel=1e-15)
    law = stationary_covariance(sgd(lr=0.125), noise.hessian, noise + noise.label_noise(2.0))
    expected = 0.125 * 4.0 / 5 * np.linalg.inv(2 * np.eye(2) - 0.125 * noise.hessian)
    assert law.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: MinibatchNoise(p, 0), "at least 1, got 0"),
        (lambda p: MinibatchNoise(p, 6), "from 1 to the number of examples, 5"),
        (lambda p: MinibatchNoise(p, 2.0), "must be an integer, got 2.0"),
        (lambda p: MinibatchNoise(p, True), "at least 1, got True"),
        (lambda p: MinibatchNoise(p.quadratic(1), 1), "need examples"),
        (lambda p: mean_square_stability(sgd(lr=0.1), p.noise(1)), "must be a GradientNoise"),
        (lambda p: stationary_covariance(sgd(lr=0.1), np.eye(2), MinibatchNoise(p, 1)), "pass noise.hessian"),
        (lambda p: stationary_covariance(sgd(lr=0.1), np.eye(3), MinibatchNoise(p, 1)), "shape"),
        (lambda p: transient_covariance(sgd(lr=0.1), p.hessian, p.noise(1), 3, mean=[1.0, 1.0]), "leave mean out"),
        (
            lambda p: trajectory(
                sgd(), Schedule([Phase(2, lr=0.1)]), p.hessian, MinibatchNoise(p, 1), optimum=[9.0, 9.0]
            ),
            "optimum is not that of the loss",
        ),
        (
            lambda p: periodic_covariance(sgd(), Schedule([Phase(2, lr=0.1)]), p.hessian, MinibatchNoise(p, 1)),
            "does not depend on the weights",
        ),
        (lambda p: QuadraticExamples([[1.0]], [[1.0]]), r"shape \(N, d, d\)"),
        (lambda p: QuadraticExamples([[[0.0]]], [[1.0]]), "no minimiser"),
        (lambda p: QuadraticExamples([[[-1.0]]], [[1.0]]), "mean of hessians is not positive semidefinite"),
        (lambda p: QuadraticExamples([[[1.0, 2.0], [0.0, 1.0]]], [[1.0, 1.0]]), r"hessians\[0\] is not symmetric"),
        (lambda p: GaussianMinibatchNoise(np.eye(2), -1.0, 1), "label_noise must be"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    X, y = data()
    with pytest.raises(InvalidProblemError, match=message):
        call(LeastSquares(X, y))


def test_one_hessian_for_all_examples_is_kept_as_one():
    hessians = np.broadcast_to(np.diag([1.0, 2.0]), (1000, 2, 2))
    problem = QuadraticExamples(hessians, np.random.default_rng(0).normal(size=(1000, 2)))
    assert problem.hessians.strides[0] == 0
    noise = MinibatchNoise(problem, 10)
    assert np.all(noise.multiplicative(np.eye(2)) == 0)
