"""What is measured is what runs: the law of real iterates, its standard errors, and how long a run must be."""

import io
import sys

import numpy as np
import pytest
import torch

from sgdcov import numerics
from sgdcov.errors import (
    HyperparameterError,
    InvalidProblemError,
    InvalidRuleError,
    MeanSquareUnstableError,
    NonStationaryError,
    UnstableError,
)
from sgdcov.numerics import LeastSquares, Quadratic
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, update_rule, with_ema
from sgdcov.validation import compare, stationary_covariance, transient_covariance
from sgdcov.validation._draws import distinct_rows
from sgdcov.validation._gradients import gradient_source
from sgdcov.validation._moments import moments
from sgdcov.validation.stationary import SNAPSHOT_SHARE, TRANSIENT_FRACTION

EPS = np.finfo(np.float64).eps

OPTIMIZERS = [
    sgd(lr=0.3),
    sgd(lr=0.3, weight_decay=0.1),
    heavy_ball(lr=0.1, momentum=0.8),
    heavy_ball(lr=0.2, momentum=0.8, dampening=0.4, weight_decay=0.1),
    nesterov(lr=0.1, momentum=0.8),
    polyak(lr=0.1, momentum=0.8, weight_decay=0.1),
    qhm(lr=0.4, beta=0.9, nu=0.7),
    sgdw(lr=0.1, momentum=0.8, weight_decay=0.2),
    sam(lr=0.2, rho=0.3),
    with_ema(sgd)(lr=0.3, ema_decay=0.9),
    with_ema(heavy_ball)(lr=0.1, momentum=0.8, ema_decay=0.9),
]
TORCH = [optimizer for optimizer in OPTIMIZERS if optimizer.rule in (sgd, heavy_ball, nesterov)]


def non_commuting(dim=4, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    factor = rng.standard_normal((dim, dim))
    hessian = turn @ np.diag(np.linspace(0.5, 2.0, dim)) @ turn.T
    return Quadratic((hessian + hessian.T) / 2, factor @ factor.T, 10.0 * rng.standard_normal(dim))


def regression(examples=60, dim=3, l2=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((examples, dim)) * np.linspace(1.0, 0.5, dim)
    return LeastSquares(X, X @ np.ones(dim) + rng.standard_exponential(examples), l2=l2)


def agreement(optimizer, problem, additive=None, **options):
    """Measure and compare with numerics, covariance and mean, over every slot."""
    additive = problem if additive is None else additive
    slots = optimizer.rule.slots
    measured = stationary_covariance(optimizer, problem, slots=slots, progress=False, **options)
    predicted = numerics.stationary_covariance(optimizer, additive.hessian, additive.noise)
    mean = numerics.stationary_mean(optimizer, additive.hessian, additive.optimum, slots=slots)
    return compare(measured, predicted, mean=mean)


# Every comparison below has a fixed seed and one false alarm in 10,000 seeds.


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_measured_and_solved_agree_in_every_slot(optimizer):
    found = agreement(optimizer, non_commuting(), replicas=2000, rng=1)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert found.relative_error < 2.5 * found.expected_relative_error


@pytest.mark.parametrize("optimizer", TORCH, ids=repr)
def test_real_torch_optimizers_agree_in_every_slot(optimizer):
    found = agreement(optimizer, non_commuting(), replicas=2000, rng=2, engine="torch.optim")
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4


def test_wrong_predictions_are_rejected():
    problem, optimizer = non_commuting(), heavy_ball(lr=0.2, momentum=0.8, dampening=0.4)
    measured = stationary_covariance(optimizer, problem, replicas=4000, rng=3, progress=False)
    for wrong in (optimizer.replace(dampening=0), optimizer.replace(momentum=0.7), optimizer.replace(lr=0.21)):
        predicted = numerics.stationary_covariance(wrong, problem.hessian, problem.noise)
        assert compare(measured, predicted).p_value < 1e-6


@pytest.mark.parametrize("optimizer", TORCH, ids=repr)
def test_both_engines_walk_the_same_path(optimizer):
    # The same noise, step by step: the paths differ by the rounding of fused operations, kept small by contraction.
    runs = [
        stationary_covariance(
            optimizer, non_commuting(), replicas=10, rng=4, engine=engine, slots=optimizer.rule.slots, progress=False
        )
        for engine in ("rule", "torch.optim")
    ]
    scale = np.abs(runs[0].samples).max()
    assert np.abs(runs[0].samples - runs[1].samples).max() <= 100 * EPS * runs[0].steps * scale


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_without_noise_nothing_moves_from_the_fixed_point(optimizer):
    problem = non_commuting()
    quiet = Quadratic(problem.hessian, np.zeros((4, 4)), problem.optimum)
    slots = optimizer.rule.slots
    run = stationary_covariance(optimizer, quiet, replicas=5, slots=slots, steps=50, rng=0, progress=False)
    fixed = numerics.stationary_mean(optimizer, problem.hessian, problem.optimum, slots=slots)
    # 50 steps of about ten roundings each, of numbers no larger than the gradient at zero
    assert np.abs(run.samples - fixed).max() <= 500 * EPS * np.abs(problem.hessian @ problem.optimum).sum()


def test_the_spread_builds_up_as_it_should_from_the_fixed_point():
    a, steps = 0.3, 3
    problem = Quadratic([[1.0]], [[2.0]], [5.0])
    measured = stationary_covariance(sgd(lr=a), problem, replicas=20_000, steps=steps, rng=5, progress=False)
    full = a * 2.0 / (2.0 - a)
    assert (measured.samples.shape[0], measured.steps, measured.burn_in) == (1, 3, 3)
    assert compare(measured, [[full * (1 - (1 - a) ** (2 * steps))]], mean=[5.0]).p_value > 1e-4
    assert compare(measured, [[full]]).p_value < 1e-6


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_one_step_from_the_optimum_measures_the_minibatch_noise(replacement, l2):
    # There w = w* - lr g, so that Cov(w)/lr^2 is the covariance of the minibatch gradient: no model in between.
    problem = regression(l2=l2)
    measured = stationary_covariance(
        sgd(lr=0.5), problem, replicas=20_000, steps=1, batch_size=40, replacement=replacement, rng=6, progress=False
    )
    noise = {flag: problem.noise(40, replacement=flag) for flag in (True, False)}
    found = compare(measured, 0.25 * noise[replacement], mean=problem.optimum)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(measured, 0.25 * noise[not replacement]).p_value < 1e-6


@pytest.mark.parametrize("batch_size", [7, 40])
def test_minibatches_agree_with_the_additive_law_at_a_small_learning_rate(batch_size):
    problem, optimizer = regression(), heavy_ball(lr=0.01, momentum=0.5)
    additive = problem.quadratic(batch_size, replacement=False)
    found = agreement(
        optimizer, problem, additive, replicas=1000, batch_size=batch_size, replacement=False, steps=400, snapshots=1,
        rng=7,
    )  # fmt: skip
    # The state-dependent part of the noise is of relative order lr; Monte Carlo sees 5%.
    assert found.relative_error < 3 * found.expected_relative_error


def test_the_whole_data_set_as_a_batch_has_no_noise():
    problem = regression()
    run = stationary_covariance(
        sgd(lr=0.5), problem, replicas=3, steps=20, batch_size=60, replacement=False, rng=0, progress=False
    )
    assert np.abs(run.samples - problem.optimum).max() <= 20 * 60 * EPS


@pytest.mark.parametrize("batch_size", [2, 3, 4, 6])
def test_subsets_are_distinct_and_equally_likely(batch_size):
    generator = torch.Generator().manual_seed(8)
    rows = distinct_rows(6, (60_000, batch_size), generator).sort(dim=1).values.numpy()
    assert (np.diff(rows, axis=1) > 0).all()
    counts = np.unique(rows, axis=0, return_counts=True)[1]
    expected = 60_000 / len(counts)
    chi2 = np.sum((counts - expected) ** 2 / expected)
    # Chi-squared with len(counts) - 1 degrees of freedom: mean k, variance 2k.
    assert chi2 <= (len(counts) - 1) + 5 * np.sqrt(2 * len(counts))


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}])
def test_every_call_within_a_step_sees_the_same_minibatch(options):
    problem = regression() if options else non_commuting()
    source = gradient_source(
        problem, 7, torch.Generator().manual_seed(0), optimizer=sgd(lr=0.1), batch_size=options.get("batch_size"),
        replacement=True,
    )  # fmt: skip
    point = torch.zeros((7, problem.dim), dtype=torch.float64)
    grad, other = next(source.gradients), next(source.gradients)
    assert torch.equal(grad(point), grad(point))
    assert not torch.equal(grad(point), other(point))
    assert len(torch.unique(grad(point), dim=0)) > 1  # replicas draw for themselves


def test_a_coordinate_without_curvature_and_noise_never_moves():
    rest = np.diag([1.0, 0.0, 2.0])
    problem = Quadratic(rest, rest, [1.0, 3.0, 2.0])
    for optimizer in (heavy_ball(lr=0.1, momentum=0.8), polyak(lr=0.1, momentum=0.8)):
        measured = stationary_covariance(optimizer, problem, replicas=500, rng=9, progress=False)
        assert (measured.samples[:, :, 1] == 3.0).all()
        found = compare(measured, numerics.stationary_covariance(optimizer, problem.hessian, problem.noise))
        assert (found.rank, found.flat_excess) == (2, 0.0)
        assert found.p_value > 1e-4


def test_a_flat_direction_across_the_coordinates_stays_at_rest_up_to_rounding():
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    singular = turn @ np.diag([0.0, 1.0, 2.0]) @ turn.T
    problem = Quadratic((singular + singular.T) / 2, (singular + singular.T) / 2, [1.0, 3.0, 2.0])
    optimizer = heavy_ball(lr=0.1, momentum=0.8)
    measured = stationary_covariance(optimizer, problem, replicas=500, rng=9, progress=False)
    found = compare(measured, numerics.stationary_covariance(optimizer, problem.hessian, problem.noise))
    assert found.rank == 2
    assert found.flat_excess <= 1.0
    assert found.p_value > 1e-4


def test_the_estimate_is_unbiased_and_its_standard_error_true_for_skewed_and_dependent_samples():
    rng = np.random.default_rng(10)
    true = np.array([[1.0, 0.5], [0.5, 1.25]])
    values, errors, means, mean_errors = [], [], [], []
    for _ in range(4000):
        shared = rng.standard_exponential((1, 12, 2)) - 1.0
        own = rng.standard_exponential((3, 12, 2)) - 1.0
        x = np.sqrt(0.5) * shared + np.sqrt(0.5) * own  # three snapshots of 12 replicas, correlation 1/2
        x[..., 1] += 0.5 * x[..., 0]
        value, error, mean, mean_error = moments(x)
        values.append(value), errors.append(error), means.append(mean), mean_errors.append(mean_error)
    spread = np.std(values, axis=0)
    assert (np.abs(np.mean(values, axis=0) - true) < 4 * spread / np.sqrt(4000)).all()
    # The mean square of the standard error is the variance up to order 1/replicas.
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), spread, rtol=2 / 12)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(mean_errors), axis=0)), np.std(means, axis=0), rtol=0.06)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_the_burn_in_leaves_the_stated_share_of_a_standard_error(optimizer):
    # The state after k steps, solved without the run: (A^k)(.)(A^k)^T on the stacked slots takes away the share.
    problem, replicas = non_commuting(), 1000
    run = stationary_covariance(optimizer, problem, replicas=replicas, rng=0, progress=False)
    assert run.transient <= TRANSIENT_FRACTION
    assert run.steps == run.burn_in + 7 * run.spacing
    eigenvalues, vectors = np.linalg.eigh(problem.hessian)
    value = numerics.stationary_covariance(optimizer, problem.hessian, problem.noise).joint()
    slots = len(optimizer.rule.slots)
    basis = np.kron(np.eye(slots), vectors)

    def flow(z):
        """One noiseless step about the fixed point, of the columns of z."""
        parts = [torch.tensor(part.T) for part in np.split(basis @ z, slots)]
        stepped = optimizer.step(parts, lambda w: w @ torch.tensor(problem.hessian))
        return basis.T @ np.concatenate([part.numpy().T for part in stepped])

    one_step = flow(np.eye(len(value)))
    stationary = basis.T @ value @ basis
    standard_error = np.sqrt(2 / (8 * replicas))
    for steps, largest in ((run.burn_in, TRANSIENT_FRACTION * standard_error), (run.spacing, SNAPSHOT_SHARE)):
        left = []
        for k in (steps - 1, steps):
            power = np.linalg.matrix_power(one_step, k)
            share = np.diag(power @ stationary @ power.T) / np.diag(stationary)
            left.append(share[: len(eigenvalues)].max())  # the run reports w
        assert left[1] <= largest * (1 + 1e-6)
        assert left[0] > largest * (1 - 1e-6)  # and not a step more than needed


def test_a_slow_slot_matters_only_where_it_is_asked_for():
    optimizer = with_ema(sgd)(lr=0.3, ema_decay=0.99)
    problem = non_commuting()
    weights, average = (
        stationary_covariance(optimizer, problem, replicas=10, slots=(slot,), rng=0, progress=False)
        for slot in ("w", "ema")
    )
    assert average.burn_in > 5 * weights.burn_in


def test_one_seed_is_one_run():
    def run(rng):
        return stationary_covariance(sgd(lr=0.3), non_commuting(), replicas=4, rng=rng, progress=False)

    first = run(11)
    assert first.seed == 11
    np.testing.assert_array_equal(first.samples, run(11).samples)
    drawn = run(np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.samples, run(drawn.seed).samples)
    assert not np.array_equal(first.samples, drawn.samples)
    assert run(None).seed != run(None).seed


def test_global_random_state_and_threads_are_left_alone():
    before = torch.random.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    stationary_covariance(sgd(lr=0.3), non_commuting(), replicas=4, rng=0, progress=False)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.is_grad_enabled())


def test_exact_hyperparameters_step_tensors_too():
    from fractions import Fraction

    exact = stationary_covariance(sgd(lr=Fraction(1, 4)), non_commuting(), replicas=4, rng=0, progress=False)
    plain = stationary_covariance(sgd(lr=0.25), non_commuting(), replicas=4, rng=0, progress=False)
    np.testing.assert_array_equal(exact.samples, plain.samples)


def test_an_estimate_is_its_value_and_shows_itself():
    run = stationary_covariance(heavy_ball(lr=0.1, momentum=0.8), non_commuting(), replicas=50, slots=("v", "w"), rng=0)
    assert run.value.shape == run.standard_error.shape == (8, 8)
    assert run.mean.shape == run.mean_standard_error.shape == (8,)
    assert run.samples.shape == (8, 50, 8)
    assert run.slots == ("v", "w")
    np.testing.assert_array_equal(np.asarray(run), run.value)
    np.testing.assert_array_equal(np.asarray(run, dtype=np.float32), run.value.astype(np.float32))
    for text in (repr(run), run._repr_html_()):
        for part in ("heavy_ball(lr=0.1, momentum=0.8)", "Gaussian noise", "50 replicas x 8 snapshots", "seed"):
            assert part in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_a_bar_and_a_file_does_not(monkeypatch):
    for stream, progress, seen in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        stationary_covariance(sgd(lr=0.1), non_commuting(), replicas=2, steps=500, rng=0, progress=progress)
        assert ("sgd(lr=0.1)" in stream.getvalue()) is seen


@update_rule(slots=("w",))
def interrupted(state, grad, *, lr):
    """SGD whose user presses Ctrl-C at once (theory's symbols and numbers pass)."""
    (w,) = state
    if isinstance(w, torch.Tensor):
        raise KeyboardInterrupt
    return (w - lr * grad(w),)


def test_an_interrupt_is_passed_on_and_takes_the_bar_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt):
        stationary_covariance(interrupted(lr=0.1), non_commuting(), replicas=2, rng=0)
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"replicas": 0}, InvalidProblemError, "replicas must be a whole number, at least 2, got 0"),
        ({"replicas": 10.0}, InvalidProblemError, "got 10.0"),
        ({"steps": 0}, InvalidProblemError, "steps must be"),
        ({"steps": True}, InvalidProblemError, "got True"),
        ({"snapshots": 0}, InvalidProblemError, "snapshots must be"),
        ({"steps": 10, "snapshots": 8}, InvalidProblemError, "do not fit into steps=10"),
        ({"slots": ("v",)}, InvalidProblemError, r"names among \('w',\), got \('v',\)"),
        ({"slots": ()}, InvalidProblemError, "slots must be"),
        ({"slots": ("w", "w")}, InvalidProblemError, "distinct"),
        ({"engine": "jax"}, InvalidProblemError, "got 'jax'"),
        ({"rng": -1}, InvalidProblemError, "rng must be .* got -1"),
        ({"rng": "seed"}, InvalidProblemError, "got .seed."),
        ({"batch_size": 8}, InvalidProblemError, "a Quadratic has no examples"),
        ({"problem": regression()}, InvalidProblemError, "60 examples needs batch_size"),
        ({"problem": regression(), "batch_size": 0}, InvalidProblemError, "batch_size must be a whole number"),
        ({"problem": regression(), "batch_size": 61, "replacement": False}, InvalidProblemError, "60, got 61"),
        ({"problem": np.eye(2)}, InvalidProblemError, "got ndarray"),
        ({"optimizer": sgd}, InvalidRuleError, "expected an optimizer"),
        ({"optimizer": sgd()}, HyperparameterError, "lr"),
        ({"optimizer": sgd(lr=3.0)}, UnstableError, "lr < 1"),
        ({"optimizer": sgd(lr=1e-9)}, InvalidProblemError, "1,000,000 steps"),
        ({"optimizer": sam(lr=0.1, rho=0.1), "engine": "torch.optim"}, InvalidRuleError, "torch.optim has no object"),
        (
            {"optimizer": heavy_ball(lr=0.1, momentum=0), "engine": "torch.optim", "slots": ("v",)},
            HyperparameterError,
            "no momentum buffer",
        ),
        ({"problem": Quadratic(np.diag([1.0, 0.0]), np.eye(2), [0.0, 0.0])}, NonStationaryError, "noise"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, error, message):
    arguments = {"optimizer": sgd(lr=0.3), "problem": non_commuting(), "replicas": 10, "progress": False, **options}
    with pytest.raises(error, match=message):
        stationary_covariance(arguments.pop("optimizer"), arguments.pop("problem"), **arguments)


def test_minibatches_without_a_covariance_are_refused_before_they_run():
    # Mean curvature 1, so lr = 1.9 contracts on average; the two examples in ten with curvature 5 multiply by -8.5.
    problem = LeastSquares(np.sqrt([[5.0]] * 2 + [[0.0]] * 8), np.arange(10.0))
    run = {"replicas": 20, "batch_size": 1, "rng": 0, "progress": False}
    with pytest.raises(MeanSquareUnstableError, match="beyond mean-square stability"):
        stationary_covariance(sgd(lr=1.9), problem, steps=300, snapshots=1, **run)
    # Asked for a finite number of steps they do run, and huge but finite numbers are what they are; no more than that.
    assert np.trace(transient_covariance(sgd(lr=1.9), problem, 300, **run).value) > 1e20
    with pytest.raises(NonStationaryError, match=r"diverged: .* of 4000 steps"):
        transient_covariance(sgd(lr=1.9), problem, 4000, **run)
