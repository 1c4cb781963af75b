"""The measured law after a number of steps is that of the recursion, repeated one step at a time, from every start."""

import brute_force
import numpy as np
import pytest
import scipy.linalg

from sgdcov import numerics
from sgdcov.errors import DivergenceError, HyperparameterError, InvalidProblemError, UnstableError
from sgdcov.numerics import LeastSquares, Quadratic
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from sgdcov.validation import TransientEstimate, compare, transient_covariance

EPS = np.finfo(np.float64).eps

OPTIMIZERS = [
    sgd(lr=0.3, weight_decay=0.1),
    heavy_ball(lr=0.2, momentum=0.8),
    heavy_ball(lr=0.2, momentum=0.8, dampening=0.4, weight_decay=0.1),
    nesterov(lr=0.1, momentum=0.8),
    polyak(lr=0.1, momentum=0.8, weight_decay=0.1),
    qhm(lr=0.4, beta=0.9, nu=0.7),
    sgdw(lr=0.1, momentum=0.8, weight_decay=0.2),
    sam(lr=0.2, rho=0.3),
    with_ema(heavy_ball)(lr=0.1, momentum=0.8, ema_decay=0.9),
]
TORCH = [optimizer for optimizer in OPTIMIZERS if optimizer.rule in (sgd, heavy_ball, nesterov)]


def non_commuting(dim=3, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    factor = rng.standard_normal((dim, dim))
    hessian = turn @ np.diag(np.linspace(0.5, 2.0, dim)) @ turn.T
    return Quadratic((hessian + hessian.T) / 2, factor @ factor.T, 10.0 * rng.standard_normal(dim))


def stationary(optimizer, problem):
    """Stationary covariance and mean of all slots, solved for the stepped matrices."""
    step = brute_force.OneStep.of(optimizer, problem)
    covariance = scipy.linalg.solve_discrete_lyapunov(step.transition, step.gain @ problem.noise @ step.gain.T)
    return (covariance + covariance.T) / 2, np.linalg.solve(np.eye(len(step.push)) - step.transition, step.push)


def after(optimizer, problem, steps, start):
    """The law of all slots after some steps from a (covariance, mean)."""
    *_, last = brute_force.propagate([optimizer] * steps, problem, *start)
    return last


def assert_agree(estimates, problem, start):
    # Fixed seeds; each comparison has one false alarm in 10,000 seeds.
    for estimate in estimates:
        law = after(estimate.optimizer, problem, estimate.time, start)
        covariance, mean = (brute_force.block(part, estimate.optimizer, estimate.slots) for part in law)
        found = compare(estimate, covariance, mean=mean)
        assert found.p_value > 1e-4, estimate
        assert found.mean_p_value > 1e-4, estimate
        if np.any(covariance):
            assert found.relative_error < 3 * found.expected_relative_error


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_run_whose_learning_rate_drops_has_the_law_of_the_recursion_in_every_slot(optimizer):
    problem = non_commuting()
    before, optimizer = optimizer, optimizer.replace(lr=optimizer.values["lr"] / 4)
    slots = optimizer.rule.slots
    estimates = transient_covariance(
        optimizer, problem, (0, 1, 4, 15), start=before, slots=slots, replicas=2000, rng=1, progress=False
    )
    assert_agree(estimates, problem, stationary(before, problem))


@pytest.mark.parametrize("optimizer", TORCH, ids=repr)
def test_so_does_the_real_torch_optimizer(optimizer):
    problem = non_commuting()
    before, optimizer = optimizer, optimizer.replace(lr=optimizer.values["lr"] / 4)
    estimates = transient_covariance(
        optimizer, problem, (1, 4, 15), start=before, slots=optimizer.rule.slots, replicas=2000, rng=2,
        engine="torch.optim", progress=False,
    )  # fmt: skip
    assert_agree(estimates, problem, stationary(before, problem))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_states_can_be_drawn_from_the_law_before(optimizer):
    problem = non_commuting()
    before, optimizer = optimizer.replace(lr=optimizer.values["lr"] / 3), optimizer
    law = numerics.stationary_covariance(before, problem.hessian, problem.noise)
    slots = optimizer.rule.slots
    estimates = transient_covariance(
        optimizer, problem, (0, 3), start=law, mean=stationary(before, problem)[1], slots=slots, replicas=2000, rng=3,
        progress=False,
    )  # fmt: skip
    assert_agree(estimates, problem, stationary(before, problem))
    assert estimates[0].burn_in == 0
    assert "drawn, Gaussian, from the stationary law" in estimates[0].start


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_covariance_of_the_weights_leaves_the_other_slots_at_rest(optimizer):
    problem, weights = non_commuting(), np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 3.0]])
    mean = np.array([1.0, 2.0, 3.0])
    r = brute_force.rest(optimizer, np.ones(1))
    estimates = transient_covariance(
        optimizer, problem, (0, 1, 5), start=weights, mean=mean, slots=optimizer.rule.slots, replicas=2000, rng=4,
        progress=False,
    )  # fmt: skip
    assert_agree(estimates, problem, (np.kron(np.outer(r, r), weights), brute_force.rest(optimizer, mean)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_point_has_no_spread_but_what_noise_builds(optimizer):
    problem, point = non_commuting(), np.array([1.0, 2.0, 3.0])
    slots = optimizer.rule.slots
    options = {"slots": slots, "replicas": 2000, "rng": 5, "progress": False}
    still = np.zeros((3 * len(slots), 3 * len(slots)))
    estimates = transient_covariance(optimizer, problem, (0, 1, 5), start=point, **options)
    assert not estimates[0].value.any()
    assert_agree(estimates, problem, (still, brute_force.rest(optimizer, point)))
    whole = np.arange(3.0 * len(slots))
    assert_agree(transient_covariance(optimizer, problem, (0, 2), start=whole, **options), problem, (still, whole))
    estimate = transient_covariance(optimizer, problem, 3, **options)
    assert_agree([estimate], problem, (still, brute_force.rest(optimizer, problem.optimum)))


def test_what_numerics_predicts_is_measured_and_goes_on_from_its_own_result():
    problem = non_commuting()
    before, optimizer = heavy_ball(lr=0.4, momentum=0.9), heavy_ball(lr=0.05, momentum=0.9)
    arrays = problem.hessian, problem.noise
    law = numerics.stationary_covariance(before, *arrays)
    middle = numerics.transient_covariance(optimizer, *arrays, 4, start=law)
    for start, total in ((before, 7), (law, 7), (middle, 11)):
        measured = transient_covariance(
            optimizer, problem, 7, start=start, slots=("v", "w"), replicas=4000, rng=6, progress=False
        )
        predicted = numerics.transient_covariance(optimizer, *arrays, total, start=law)
        assert compare(measured, predicted.joint(("v", "w"))).p_value > 1e-4
        assert compare(measured, predicted).p_value > 1e-4


def test_wrong_answers_after_a_drop_are_rejected():
    # Eight times smaller, seven steps later: PyTorch's buffer carries the old velocity, Polyak's the old displacement.
    problem = non_commuting()
    before, optimizer = heavy_ball(lr=0.4, momentum=0.9), heavy_ball(lr=0.05, momentum=0.9)
    for engine in ("rule", "torch.optim"):
        measured = transient_covariance(
            optimizer, problem, 7, start=before, replicas=2000, rng=7, engine=engine, progress=False
        )
        true = after(optimizer, problem, 7, stationary(before, problem))[0]
        other = polyak(lr=0.05, momentum=0.9)
        convention = after(other, problem, 7, stationary(polyak(lr=0.4, momentum=0.9), problem))[0]
        too_early = stationary(optimizer, problem)[0]
        not_moved = stationary(before, problem)[0]
        a_step_late = after(optimizer, problem, 8, stationary(before, problem))[0]
        assert compare(measured, true[:3, :3]).p_value > 1e-4
        for wrong in (convention, too_early, not_moved, a_step_late):
            assert compare(measured, wrong[:3, :3]).p_value < 1e-6


def test_both_ways_to_start_at_the_old_law_tell_the_conventions_apart():
    problem = non_commuting()
    for rule, other in ((heavy_ball, polyak), (polyak, heavy_ball)):
        before, optimizer = rule(lr=0.4, momentum=0.9), rule(lr=0.05, momentum=0.9)
        law = numerics.stationary_covariance(before, problem.hessian, problem.noise)
        for start in (before, law):
            measured = transient_covariance(
                optimizer, problem, 7, start=start, replicas=1000, rng=8, progress=False
            )
            right = after(optimizer, problem, 7, stationary(before, problem))[0]
            drop = other(lr=0.05, momentum=0.9), problem, 7, stationary(other(lr=0.4, momentum=0.9), problem)
            assert compare(measured, right[:3, :3]).p_value > 1e-4
            assert compare(measured, after(*drop)[0][:3, :3]).p_value < 1e-6


def test_an_unstable_optimizer_is_measured_while_it_is_finite():
    problem, optimizer = non_commuting(), sgd(lr=1.5)
    measured = transient_covariance(optimizer, problem, (3, 12), replicas=2000, rng=9, progress=False)
    assert_agree(measured, problem, (np.zeros((3, 3)), problem.optimum))
    assert np.trace(measured[1].value) > 10 * np.trace(measured[0].value)
    with pytest.raises(DivergenceError, match=r"sgd\(lr=1.5\) after 768 of 1500 .* eigenvalue 2 .* factor 2 "):
        transient_covariance(optimizer, problem, 1500, replicas=2, rng=9, progress=False)


def test_a_flat_direction_walks_at_random_or_rests():
    lr, steps = 0.5, 20
    walking = Quadratic(np.diag([1.0, 0.0]), np.eye(2), [1.0, 2.0])
    measured = transient_covariance(sgd(lr=lr), walking, steps, replicas=2000, rng=10, progress=False)
    assert_agree([measured], walking, (np.zeros((2, 2)), walking.optimum))
    assert abs(measured.value[1, 1] - lr**2 * steps) < 4 * measured.standard_error[1, 1]
    resting = Quadratic(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), [1.0, 2.0])
    measured = transient_covariance(sgd(lr=lr), resting, steps, start=sgd(lr=1.0), replicas=200, rng=11, progress=False)
    assert not measured.value[1].any()
    assert compare(measured, after(sgd(lr=lr), resting, steps, (np.diag([1.0, 0.0]), resting.optimum))[0]).rank == 1


def test_minibatches_agree_after_a_drop_at_small_learning_rates():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) * np.linspace(1.0, 0.5, 3)
    problem = LeastSquares(X, X @ np.ones(3) + rng.standard_exponential(60))
    before, optimizer = heavy_ball(lr=0.02, momentum=0.5), heavy_ball(lr=0.005, momentum=0.5)
    measured = transient_covariance(
        optimizer, problem, 20, start=before, replicas=1000, batch_size=20, rng=12, progress=False
    )
    additive = problem.quadratic(20)
    exact = after(optimizer, additive, 20, stationary(before, additive))[0][:3, :3]
    # The state-dependent part of the noise is of relative order lr; Monte Carlo sees 5%.
    assert compare(measured, exact).relative_error < 3 * compare(measured, exact).expected_relative_error
    assert compare(measured, stationary(optimizer, additive)[0][:3, :3]).p_value < 1e-6


@pytest.mark.parametrize("optimizer", TORCH, ids=repr)
def test_both_engines_walk_the_same_path(optimizer):
    runs = [
        transient_covariance(
            optimizer, non_commuting(), (5, 40), start=optimizer.replace(lr=0.05), slots=optimizer.rule.slots,
            replicas=10, rng=13, engine=engine, progress=False,
        )
        for engine in ("rule", "torch.optim")
    ]  # fmt: skip
    for ours, theirs in zip(*runs, strict=True):
        # The paths differ by the rounding of fused operations, kept small by contraction.
        scale = np.abs(ours.samples).max()
        assert np.abs(ours.samples - theirs.samples).max() <= 100 * EPS * ours.steps * scale


def test_a_recording_does_not_disturb_the_run():
    arguments = {"start": sgd(lr=0.8), "replicas": 5, "rng": 14, "progress": False}
    alone = transient_covariance(sgd(lr=0.2), non_commuting(), 9, **arguments)
    recorded = transient_covariance(sgd(lr=0.2), non_commuting(), [0, 3, 9], **arguments)
    assert isinstance(alone, TransientEstimate)
    assert [estimate.time for estimate in recorded] == [0, 3, 9]
    np.testing.assert_array_equal(alone.samples, recorded[-1].samples)
    assert alone.steps == alone.burn_in + 9


def test_an_estimate_shows_where_it_started():
    measured = transient_covariance(
        sgd(lr=0.2), non_commuting(), 9, start=sgd(lr=0.8), replicas=50, rng=15, progress=False
    )
    for text in (repr(measured), measured._repr_html_()):
        for part in (f"{measured.burn_in} steps of sgd(lr=0.8)", "50 replicas, 9 steps after it", "bias of about"):
            assert part in text
    assert measured.transient <= 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, InvalidProblemError, "steps must be a whole number, at least 0, got -1"),
        ({"steps": 2.0}, InvalidProblemError, "got 2.0"),
        ({"steps": True}, InvalidProblemError, "got True"),
        ({"steps": ()}, InvalidProblemError, "steps is empty"),
        ({"steps": (3, 3)}, InvalidProblemError, "steps must ascend, but 3 follows 3"),
        ({"replicas": 1}, InvalidProblemError, "replicas must be"),
        ({"start": np.diag([1.0, 1.0, -0.5])}, InvalidProblemError, "smallest eigenvalue is -0.5"),
        ({"start": np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])}, InvalidProblemError, "not symmetric: .* 1"),
        ({"start": np.eye(2)}, InvalidProblemError, r"\(3, 3\).*got shape \(2, 2\)"),
        ({"start": np.full((3, 3), np.nan)}, InvalidProblemError, "start must be finite"),
        ({"start": np.ones(2)}, InvalidProblemError, r"\(3,\), the weights, or \(6,\)"),
        ({"start": [1.0, np.inf, 0.0]}, InvalidProblemError, "must be finite: .* inf"),
        ({"start": np.ones(3), "mean": np.ones(3)}, InvalidProblemError, "start is a point"),
        ({"start": heavy_ball(lr=0.1, momentum=0.5), "mean": np.ones(3)}, InvalidProblemError, "is an optimizer"),
        ({"start": sgd(lr=0.1)}, InvalidProblemError, "slots w, but heavy_ball has w, v"),
        ({"start": polyak(lr=0.1, momentum=0.5)}, InvalidProblemError, "slots w, w_prev"),
        ({"start": heavy_ball(lr=5.0, momentum=0.5)}, UnstableError, "lr < 1.5"),
        ({"start": heavy_ball(lr=0.1)}, HyperparameterError, "momentum"),
        ({"start": numerics.stationary_covariance(sgd(lr=0.1), np.eye(3), np.eye(3))}, InvalidProblemError, "law of"),
        (
            {"start": numerics.stationary_covariance(heavy_ball(lr=0.1, momentum=0.5), np.eye(2), np.eye(2))},
            InvalidProblemError,
            "law of 2 parameters, but the problem has 3",
        ),
    ],
)
def test_what_cannot_be_started_is_refused(options, error, message):
    arguments = {"steps": 3, "replicas": 10, "progress": False, **options}
    with pytest.raises(error, match=message):
        transient_covariance(heavy_ball(lr=0.1, momentum=0.5), non_commuting(), arguments.pop("steps"), **arguments)
