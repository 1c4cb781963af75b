"""The stationary covariance as arrays: methods agree, symmetries hold, what is outside the domain is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdcov.errors import HyperparameterError, InvalidProblemError, NonStationaryError, UnstableError
from sgdcov.numerics import (
    adam,
    damped_newton,
    max_learning_rate,
    natural_gradient,
    pair_covariance,
    spectral_radius,
    stationary_covariance,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, update_rule, with_ema

EPS = np.finfo(float).eps
METHODS = ("spectral", "doubling", "kronecker")
OPTIMIZERS = (
    sgd(lr=0.1),
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.05, momentum=0.9),
    heavy_ball(lr=0.1, momentum=0.7, dampening=0.3, weight_decay=0.01),
    nesterov(lr=0.05, momentum=0.8),
    polyak(lr=0.1, momentum=0.5),
    qhm(lr=0.3, beta=0.95, nu=0.7),
    sgdw(lr=0.05, momentum=0.9, weight_decay=0.02),
    sam(lr=0.1, rho=0.2),
    with_ema(heavy_ball)(lr=0.05, momentum=0.9, ema_decay=0.9),
    with_ema(qhm)(lr=0.3, beta=0.9, nu=0.5, ema_decay=0.95),
)
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def rotated(u, a):
    out = u @ a @ u.T
    return (out + out.T) / 2


def draw_problem(seed, d=4, flat=0, rank=None):
    """H with eigenvalues in [0.2, 4] and ``flat`` zeros; C of the given rank, not commuting with H."""
    rng = np.random.default_rng(seed)
    u = orthogonal(rng, d)
    h = np.concatenate([np.zeros(flat), rng.uniform(0.2, 4.0, d - flat)])
    root = rng.normal(size=(d, rank or d))
    root[:flat] = 0.0
    return rotated(u, np.diag(h)), rotated(u, root @ root.T)


def defect(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def forward_bound(optimizer, hessian):
    """Rounding of a backward stable solve, times the condition of the Stein operator of a nearly normal recursion."""
    gap = 1.0 - spectral_radius(optimizer, hessian)
    return 100 * len(optimizer.rule.slots) * hessian.shape[0] * EPS / gap


@over_optimizers
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flat", [0, 2])
def test_methods_agree_on_every_block(optimizer, method, flat):
    hessian, noise = draw_problem(1, flat=flat)
    reference = stationary_covariance(optimizer, hessian, noise)
    result = stationary_covariance(optimizer, hessian, noise, method=method)
    assert result.method == method
    bound = forward_bound(optimizer, hessian)
    for a in optimizer.rule.slots:
        for b in optimizer.rule.slots:
            assert defect(result.block(a, b), reference.block(a, b)) <= bound
    assert result.rank == reference.rank
    assert abs(result.log_det - reference.log_det) <= 1e4 * bound


@over_optimizers
@pytest.mark.parametrize("method", METHODS)
def test_the_residual_is_at_rounding_level(optimizer, method):
    hessian, noise = draw_problem(2)
    result = stationary_covariance(optimizer, hessian, noise, method=method)
    # Each term is made of products of d x d matrices, each with an error of d * eps, and of rounded coefficients.
    assert result.residual <= 100 * hessian.shape[0] * EPS


@over_optimizers
def test_the_residual_notices_a_wrong_covariance(optimizer):
    hessian, noise = draw_problem(2)
    result = stationary_covariance(optimizer, hessian, noise)
    wrong = result.value.copy()
    wrong[0, 0] *= 1 + 1e-6
    assert replace(result, value=wrong).residual > 1e-10


@over_optimizers
def test_it_is_the_limit_of_the_recursion(optimizer):
    """Stepping the rule's own covariance recursion to its fixed point gives the same matrix."""
    hessian, noise = draw_problem(3, d=3)
    d, m = 3, len(optimizer.rule.slots)

    def step(z, shift):
        return np.concatenate(optimizer.step(tuple(z.reshape(m, d)), lambda w: hessian @ w + shift))

    zero = np.zeros(d)
    transition = np.stack([step(e, zero) for e in np.eye(m * d)], axis=1)
    gain = np.stack([step(np.zeros(m * d), e) for e in np.eye(d)], axis=1)
    z, power, excitation = gain @ noise @ gain.T, transition, gain @ noise @ gain.T
    for _ in range(16):
        z, power = z + power @ z @ power.T, power @ power
    assert np.linalg.norm(power) < 1e-16
    assert np.all(np.linalg.norm(excitation) > 0)
    joint = stationary_covariance(optimizer, hessian, noise).joint()
    scale = np.sqrt(np.outer(np.diagonal(z), np.diagonal(z)))
    assert np.max(np.abs(joint - z) / scale) <= forward_bound(optimizer, hessian)


@given(st.integers(0, 2**32 - 1), st.sampled_from(OPTIMIZERS), st.integers(1, 5), st.sampled_from(METHODS))
def test_symmetric_positive_semidefinite_and_inputs_unchanged(seed, optimizer, d, method):
    hessian, noise = draw_problem(seed, d=d)
    before = hessian.copy(), noise.copy()
    result = stationary_covariance(optimizer, hessian, noise, method=method)
    joint = result.joint()
    np.testing.assert_array_equal(result.value, result.value.T)
    np.testing.assert_array_equal(hessian, before[0])
    np.testing.assert_array_equal(noise, before[1])
    scale = np.sqrt(np.diagonal(joint))
    correlation = joint / scale / scale[:, None]
    assert np.linalg.eigvalsh(correlation).min() >= -forward_bound(optimizer, hessian)


@given(st.integers(0, 2**32 - 1), st.sampled_from(OPTIMIZERS), st.integers(-20, 20))
def test_it_is_linear_in_the_noise(seed, optimizer, exponent):
    hessian, noise = draw_problem(seed)
    one = stationary_covariance(optimizer, hessian, noise)
    scaled = stationary_covariance(optimizer, hessian, 2.0**exponent * noise)
    np.testing.assert_array_equal(scaled.joint(), 2.0**exponent * one.joint())


@given(st.integers(0, 2**32 - 1), st.sampled_from(OPTIMIZERS), st.sampled_from(METHODS))
def test_it_turns_with_the_coordinates(seed, optimizer, method):
    hessian, noise = draw_problem(seed)
    u = orthogonal(np.random.default_rng(seed + 1), 4)
    plain = np.asarray(stationary_covariance(optimizer, hessian, noise, method=method))
    turned = np.asarray(stationary_covariance(optimizer, rotated(u, hessian), rotated(u, noise), method=method))
    # The rotations perturb H by d * eps, which the condition multiplies.
    condition = stationary_covariance(optimizer, hessian, noise).condition
    assert defect(turned, rotated(u, plain)) <= 20 * condition * forward_bound(optimizer, hessian)


@over_optimizers
def test_a_diagonal_problem_stays_exactly_diagonal(optimizer):
    h, c = np.array([3.0, 1e-9, 0.5]), np.array([1.0, 2.0, 3.0])
    result = stationary_covariance(optimizer, np.diag(h), np.diag(c))
    expected = c * pair_covariance(optimizer, h, h)[:, 0, 0]
    np.testing.assert_array_equal(np.asarray(result), np.diag(expected))
    np.testing.assert_array_equal(result.eigenvalues, h)


def test_many_directions_are_tiled_consistently():
    """The kernel matrix is evaluated in tiles; every entry is that of a call of its own, to its few ulp."""
    optimizer = with_ema(heavy_ball)(lr=0.05, momentum=0.9, ema_decay=0.9)
    h = np.random.default_rng(5).uniform(0.1, 10.0, 211)
    result = stationary_covariance(optimizer, np.diag(h), np.ones((211, 211)))
    expected = pair_covariance(optimizer, h[:, None], h[None, :])
    for p, a in enumerate(result.slots):
        for q, b in enumerate(result.slots):
            np.testing.assert_allclose(result.block(a, b), expected[:, :, p, q], rtol=16 * EPS, atol=0)


def test_heavy_ball_has_the_published_closed_form():
    lr, mu = 0.05, 0.9
    hessian, noise = draw_problem(6)
    s = np.asarray(stationary_covariance(heavy_ball(lr=lr, momentum=mu), hessian, noise))
    left = (
        (1 - mu) * (hessian @ s + s @ hessian)
        - lr * (1 + mu**2) / (1 - mu**2) * hessian @ s @ hessian
        + lr * mu / (1 - mu**2) * (hessian @ hessian @ s + s @ hessian @ hessian)
    )
    assert defect(left, lr * noise) <= 1000 * EPS / (1 - mu)


def test_a_user_rule_with_three_coupled_slots_is_solved():
    @update_rule(slots=("w", "fast", "slow"))
    def aggregated(state, grad, *, lr, momentum):
        w, fast, slow = state
        g = grad(w)
        fast, slow = momentum * fast + g, (1 + momentum) / 2 * slow + g + (1 - momentum) / 8 * fast
        return w - lr * (fast + slow) / 2, fast, slow

    hessian, noise = draw_problem(7, d=3)
    optimizer = aggregated(lr=0.05, momentum=0.5)
    results = [stationary_covariance(optimizer, hessian, noise, method=method) for method in METHODS]
    for result in results[1:]:
        assert defect(result.joint(), results[0].joint()) <= forward_bound(optimizer, hessian)


class TestResult:
    optimizer = heavy_ball(lr=0.05, momentum=0.9)

    def test_it_is_an_array_wherever_one_is_expected(self):
        result = stationary_covariance(self.optimizer, *draw_problem(1))
        np.testing.assert_array_equal(np.asarray(result), result.value)
        assert np.asarray(result, dtype=np.float32).dtype == np.float32
        assert np.trace(result) == result.trace
        copy = np.array(result)
        copy[0, 0] = 0.0
        assert result.value[0, 0] != 0.0

    def test_joint_stacks_the_slots_in_the_order_given(self):
        result = stationary_covariance(self.optimizer, *draw_problem(1))
        joint = result.joint(("v", "w"))
        np.testing.assert_array_equal(joint[:4, :4], result.block("v", "v"))
        np.testing.assert_array_equal(joint[4:, :4], result.block("w", "v"))
        np.testing.assert_array_equal(result.block("v", "w"), result.block("w", "v").T)

    def test_unknown_slots_are_refused_by_name(self):
        result = stationary_covariance(self.optimizer, *draw_problem(1))
        with pytest.raises(InvalidProblemError, match=r"no slot 'u'; it has w, v"):
            result.block("w", "u")
        with pytest.raises(InvalidProblemError, match="no slot 'ema'"):
            result.joint(("ema",))

    def test_excess_risk_and_log_det(self):
        hessian, noise = draw_problem(1)
        result = stationary_covariance(self.optimizer, hessian, noise)
        assert result.excess_risk == pytest.approx(0.5 * np.trace(hessian @ result.value), rel=1e-14)
        assert result.rank == 4
        assert result.log_det == pytest.approx(np.linalg.slogdet(result.value)[1], abs=1e-12)

    @pytest.mark.parametrize("method", METHODS)
    def test_log_det_is_that_of_the_range(self, method):
        hessian, noise = np.diag([1.0, 2.0, 3.0]), np.diag([1.0, 0.0, 4.0])
        result = stationary_covariance(sgd(lr=0.1), hessian, noise, method=method)
        assert result.rank == 2
        assert result.log_det == pytest.approx(np.log(result.value[0, 0] * result.value[2, 2]), abs=1e-13)

    def test_log_det_keeps_tiny_variances(self):
        h, c = np.array([1.0, 1.0, 1.0]), np.array([1.0, 1e-20, 1e-40])
        result = stationary_covariance(sgd(lr=1.0), np.diag(h), np.diag(c))
        assert result.log_det == pytest.approx(np.sum(np.log(c)), rel=1e-14)

    def test_no_noise_gives_no_variance(self):
        result = stationary_covariance(self.optimizer, np.eye(3), np.zeros((3, 3)))
        assert not result.value.any()
        assert (result.rank, result.log_det, result.trace, result.residual) == (0, 0.0, 0.0, 0.0)

    def test_the_condition_grows_at_the_stability_edge(self):
        distance = 1e-6
        edge = sgd(lr=2.0 * (1 - distance))
        condition = stationary_covariance(edge, [[1.0]], [[1.0]]).condition
        # S = lr c / (h (2 - lr h)): d ln S / d ln h = -1 + lr h / (2 - lr h).
        assert condition == pytest.approx((1 - distance) / distance - 1, rel=1e-6)


class TestFlatDirections:
    @over_optimizers
    @pytest.mark.parametrize("method", METHODS)
    def test_unexcited_flat_directions_have_no_variance(self, optimizer, method):
        hessian, noise = draw_problem(8, d=5, flat=2)
        result = stationary_covariance(optimizer, hessian, noise, method=method)
        direction = np.linalg.eigh(hessian)[1][:, :2]
        bound = forward_bound(optimizer, hessian) * result.trace
        assert np.linalg.norm(result.value @ direction) <= bound
        decays = optimizer.values.get("weight_decay", 0) > 0
        assert result.flat == (() if decays else (0, 1))
        assert ("flat" in result.status) == (not decays)
        assert result.rank == 3

    @pytest.mark.parametrize("method", METHODS)
    def test_columns_that_are_constant_in_the_data(self, method):
        """Like pixels that never change: zero rows in H and in C."""
        rng = np.random.default_rng(9)
        x = rng.normal(size=(40, 6)) * np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
        hessian = x.T @ x / 40
        noise = (x.T * rng.uniform(0.1, 1.0, 40)) @ x / 400
        noise = (noise + noise.T) / 2
        result = stationary_covariance(heavy_ball(lr=0.1, momentum=0.9), hessian, noise, method=method)
        assert len(result.flat) == 2
        assert np.abs(result.value[[1, 4]]).max() <= 1e-14 * result.trace
        assert result.rank == 4

    @over_optimizers
    @pytest.mark.parametrize("method", METHODS)
    def test_excited_flat_directions_are_refused_unless_the_weights_decay(self, optimizer, method):
        hessian, noise = np.diag([0.0, 1.0, 2.0]), np.diag([0.25, 1.0, 1.0])
        if optimizer.values.get("weight_decay", 0) > 0:
            assert stationary_covariance(optimizer, hessian, noise, method=method).value[0, 0] > 0
            return
        with pytest.raises(NonStationaryError, match=r"direction 0 has .*eigenvalue 0 .* variance 0\.25") as caught:
            stationary_covariance(optimizer, hessian, noise, method=method)
        assert caught.value.modes == (0,)

    def test_a_diagonal_problem_is_taken_at_its_word(self):
        with pytest.raises(NonStationaryError):
            stationary_covariance(sgd(lr=0.1), np.diag([0.0, 1.0]), np.diag([1e-30, 1.0]))
        result = stationary_covariance(sgd(lr=0.1), np.diag([1e-30, 1.0]), np.diag([1e-30, 1.0]))
        assert result.flat == ()
        assert result.value[0, 0] == pytest.approx(0.05, rel=4 * EPS)

    def test_all_directions_flat_and_silent(self):
        result = stationary_covariance(sgd(lr=0.1), np.zeros((2, 2)), np.zeros((2, 2)))
        assert result.flat == (0, 1)
        assert (result.trace, result.condition, result.rank) == (0.0, 0.0, 0)


class TestPreconditioner:
    optimizer = heavy_ball(lr=0.05, momentum=0.5)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", ["matrix", "diagonal"])
    def test_it_is_the_rule_run_on_the_preconditioned_gradient(self, method, kind):
        hessian, noise = draw_problem(10)
        p = damped_newton(hessian, 0.5) if kind == "matrix" else adam(np.array([1.0, 4.0, 0.25, 1.0]))
        result = stationary_covariance(self.optimizer, hessian, noise, method=method, preconditioner=p)
        full = p if p.ndim == 2 else np.diag(p)
        m, d = 2, 4

        def step(z, shift):
            return np.concatenate(self.optimizer.step(tuple(z.reshape(m, d)), lambda w: full @ (hessian @ w + shift)))

        transition = np.stack([step(e, np.zeros(d)) for e in np.eye(m * d)], axis=1)
        gain = np.stack([step(np.zeros(m * d), e) for e in np.eye(d)], axis=1)
        joint = result.joint()
        right = transition @ joint @ transition.T + gain @ noise @ gain.T
        assert np.max(np.abs(right - joint)) <= 1000 * EPS * np.max(np.abs(joint))
        assert result.residual <= 1000 * EPS
        assert result.log_det == pytest.approx(np.linalg.slogdet(result.value)[1], abs=1e-11)

    def test_newton_gives_the_sandwich(self):
        hessian, noise = draw_problem(11)
        lr = 0.5
        result = stationary_covariance(sgd(lr=lr), hessian, noise, preconditioner=natural_gradient(hessian))
        inverse = np.linalg.inv(hessian)
        assert defect(result.value, lr / (2 - lr) * inverse @ noise @ inverse) <= 1e3 * EPS * np.linalg.cond(hessian)

    def test_a_preconditioner_that_is_not_positive_is_refused(self):
        with pytest.raises(InvalidProblemError, match="preconditioner"):
            stationary_covariance(self.optimizer, np.eye(2), np.eye(2), preconditioner=[1.0, 0.0])
        with pytest.raises(InvalidProblemError, match="preconditioner"):
            stationary_covariance(self.optimizer, np.eye(2), np.eye(2), preconditioner=np.eye(3))


class TestRefusals:
    good = heavy_ball(lr=0.1, momentum=0.9)

    @over_optimizers
    @pytest.mark.parametrize("method", METHODS)
    def test_unstable_learning_rates_name_the_eigenvalue_and_the_largest_one(self, optimizer, method):
        hessian, noise = np.diag([1.0, 3.0, 2.0]), np.eye(3)
        largest = max_learning_rate(optimizer, hessian)
        stationary_covariance(optimizer.replace(lr=largest * (1 - 1e-6)), hessian, noise, method="spectral")
        with pytest.raises(UnstableError, match="eigenvalue 3") as caught:
            stationary_covariance(optimizer.replace(lr=1.25 * largest), hessian, noise, method=method)
        assert caught.value.eigenvalue == 3.0
        assert caught.value.lr == 1.25 * largest
        assert caught.value.largest_lr == pytest.approx(largest, rel=4 * EPS)

    @pytest.mark.parametrize("method", METHODS)
    def test_the_edge_itself_is_unstable(self, method):
        for optimizer in (sgd(lr=1.0), heavy_ball(lr=1.5, momentum=0.5)):
            with pytest.raises(UnstableError):
                stationary_covariance(optimizer, [[2.0]], [[1.0]], method=method)

    def test_a_hair_inside_the_edge_is_stable(self):
        below = np.nextafter(1.0, 0.0)
        result = stationary_covariance(sgd(lr=below), [[2.0]], [[1.0]])
        # lr c / (h (2 - lr h)) with 2 - 2 lr = 2 (1 - lr) = eps exactly.
        assert result.value[0, 0] == pytest.approx(below / (2 * EPS), rel=4 * EPS)

    @pytest.mark.parametrize("method", METHODS)
    def test_an_unstable_direction_without_noise_is_still_refused(self, method):
        with pytest.raises(UnstableError):
            stationary_covariance(sgd(lr=1.0), np.diag([1.0, 2.0]), np.diag([1.0, 0.0]), method=method)

    def test_hyperparameters_must_be_bound(self):
        with pytest.raises(HyperparameterError, match="momentum"):
            stationary_covariance(heavy_ball(lr=0.1), np.eye(2), np.eye(2))
        with pytest.raises(HyperparameterError, match="lr"):
            pair_covariance(sgd(), 1.0, 1.0)

    def test_unknown_methods_are_refused_with_the_list(self):
        with pytest.raises(InvalidProblemError, match="'spectral', 'doubling', 'kronecker'"):
            stationary_covariance(self.good, np.eye(2), np.eye(2), method="fast")

    def test_kronecker_is_for_small_problems(self):
        with pytest.raises(InvalidProblemError, match="slots \\* d = 80"):
            stationary_covariance(self.good, np.eye(40), np.eye(40), method="kronecker")

    @pytest.mark.parametrize(
        ("hessian", "noise", "words"),
        [
            ([[1.0, 0.5], [0.0, 1.0]], np.eye(2), "hessian is not symmetric"),
            (np.diag([1.0, -1.0]), np.eye(2), "hessian is not positive semidefinite.* -1"),
            (np.eye(2), [[1.0, 2.0], [2.0, 1.0]], "noise is not positive semidefinite.* -1"),
            (np.eye(2), np.eye(3), r"noise must have shape \(2, 2\)"),
            (np.eye(2), [[np.nan, 0], [0, 1]], "noise must be finite"),
            (np.ones((2, 3)), np.eye(2), "hessian must be square"),
            (np.ones(2), np.eye(2), "hessian must be a matrix"),
        ],
    )
    @pytest.mark.parametrize("method", METHODS)
    def test_arrays_that_are_not_what_they_claim(self, hessian, noise, words, method):
        with pytest.raises(InvalidProblemError, match=words):
            stationary_covariance(self.good, hessian, noise, method=method)

    def test_a_rule_that_never_forgets_has_no_law(self):
        @update_rule(slots=("w", "start"))
        def anchored(state, grad, *, lr):
            w, start = state
            return w - lr * (grad(w) + w - start), start

        for method in METHODS:
            with pytest.raises(NonStationaryError, match="whatever the curvature"):
                stationary_covariance(anchored(lr=0.1), np.eye(2), np.eye(2), method=method)
        with pytest.raises(NonStationaryError, match="whatever the curvature"):
            pair_covariance(anchored(lr=0.1), 1.0, 1.0)


def test_with_weight_decay_an_eigenvalue_that_rounding_makes_negative_counts_as_zero():
    rng = np.random.default_rng(0)
    u = orthogonal(rng, 8)
    hessian = u[:, :5] @ np.diag([3.0, 2.0, 1.0, 0.5, 0.1]) @ u[:, :5].T
    hessian = (hessian + hessian.T) / 2
    result = stationary_covariance(sgd(lr=0.1, weight_decay=0.1), hessian, np.eye(8))
    assert result.flat == ()
    np.testing.assert_array_equal(result.eigenvalues[:3], 0.0)
    assert np.isfinite(pair_covariance(result.optimizer, result.eigenvalues, 1.0)).all()


class TestPairs:
    def test_arguments_broadcast(self):
        optimizer = with_ema(heavy_ball)(lr=0.1, momentum=0.9, ema_decay=0.9)
        assert pair_covariance(optimizer, 1.0, 2.0).shape == (3, 3)
        assert pair_covariance(optimizer, np.ones((4, 1)), np.ones(5)).shape == (4, 5, 3, 3)
        assert pair_covariance(optimizer, [], 1.0).shape == (0, 3, 3)

    def test_swapping_the_pair_transposes_the_block(self):
        optimizer = qhm(lr=0.1, beta=0.9, nu=0.7)
        np.testing.assert_array_equal(pair_covariance(optimizer, 1.0, 2.5), pair_covariance(optimizer, 2.5, 1.0).T)

    def test_eigenvalues_outside_the_domain_are_refused(self):
        with pytest.raises(InvalidProblemError, match="h_j must hold finite eigenvalues of at least 0"):
            pair_covariance(sgd(lr=0.1), 1.0, -1.0)
        with pytest.raises(InvalidProblemError, match="h_i"):
            pair_covariance(sgd(lr=0.1), np.nan, 1.0)
        with pytest.raises(NonStationaryError, match="random walk"):
            pair_covariance(sgd(lr=0.1), 0.0, 1.0)
        with pytest.raises(UnstableError, match="eigenvalue 30"):
            pair_covariance(sgd(lr=0.1), 1.0, 30.0)
        assert pair_covariance(sgd(lr=0.5, weight_decay=1), 0.0, 0.0)[0, 0] == pytest.approx(1 / 3, rel=4 * EPS)
