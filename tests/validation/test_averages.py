"""Measured autocovariances and averages are those of the recursion, summed one lag at a time; wrong ones are found."""

import brute_force
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from sgdcov import numerics
from sgdcov.errors import HyperparameterError, InvalidProblemError, InvalidRuleError, UnstableError
from sgdcov.numerics import LeastSquares, Quadratic
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from sgdcov.validation import autocovariance, average_covariance, compare

EPS = np.finfo(np.float64).eps

OPTIMIZERS = [
    sgd(lr=0.3, weight_decay=0.1),
    heavy_ball(lr=0.1, momentum=0.8),
    heavy_ball(lr=0.2, momentum=0.8, dampening=0.4, weight_decay=0.1),
    nesterov(lr=0.1, momentum=0.8),
    polyak(lr=0.1, momentum=0.8),
    qhm(lr=0.4, beta=0.9, nu=0.7),
    sgdw(lr=0.1, momentum=0.8, weight_decay=0.2),
    sam(lr=0.2, rho=0.3),
    with_ema(sgd)(lr=0.3, ema_decay=0.8),
]
TORCH = [optimizer for optimizer in OPTIMIZERS if optimizer.rule in (sgd, heavy_ball, nesterov)]


def non_commuting(dim=3, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    factor = rng.standard_normal((dim, dim))
    hessian = turn @ np.diag(np.linspace(0.5, 2.0, dim)) @ turn.T
    return Quadratic((hessian + hessian.T) / 2, factor @ factor.T, 10.0 * rng.standard_normal(dim))


def laws(optimizer, problem, longest):
    """Autocovariances of all slots at lags 0 to ``longest``, and the stationary mean."""
    step = brute_force.OneStep.of(optimizer, problem)
    gamma = [scipy.linalg.solve_discrete_lyapunov(step.transition, step.gain @ problem.noise @ step.gain.T)]
    for _ in range(longest):
        gamma.append(step.transition @ gamma[-1])
    return gamma, np.linalg.solve(np.eye(len(step.push)) - step.transition, step.push)


def average(gamma, window):
    """The covariance of the mean of ``window`` successive states, from its double sum."""
    total = window * gamma[0]
    for lag in range(1, window):
        total = total + (window - lag) * (gamma[lag] + gamma[lag].T)
    return total / window**2


# Every comparison below has a fixed seed and one false alarm in 10,000 seeds.


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_measured_autocovariances_are_those_of_the_recursion_in_every_slot(optimizer):
    problem, lags = non_commuting(), (0, 1, 6)
    gamma, _ = laws(optimizer, problem, lags[-1])
    measured = autocovariance(
        optimizer, problem, lags, slots=optimizer.rule.slots, replicas=2000, rng=1, progress=False
    )
    for lag, estimate in zip(lags, measured, strict=True):
        found = compare(estimate, gamma[lag])
        assert found.p_value > 1e-4
        assert found.relative_error < 3 * found.expected_relative_error


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_measured_averages_are_those_of_the_recursion_in_every_slot(optimizer):
    problem, window = non_commuting(), 12
    gamma, mean = laws(optimizer, problem, window)
    for start in ("burn-in", "law"):
        measured = average_covariance(
            optimizer, problem, window, slots=optimizer.rule.slots, start=start, replicas=1500, rng=2, progress=False
        )
        found = compare(measured, average(gamma, window), mean=mean)
        assert found.p_value > 1e-4
        assert found.mean_p_value > 1e-4


@pytest.mark.parametrize("optimizer", TORCH, ids=repr)
def test_so_are_those_of_the_real_torch_optimizer(optimizer):
    problem, slots = non_commuting(), optimizer.rule.slots
    gamma, mean = laws(optimizer, problem, 5)
    options = {"slots": slots, "replicas": 2000, "engine": "torch.optim", "rng": 3, "progress": False}
    assert compare(autocovariance(optimizer, problem, 3, **options), gamma[3]).p_value > 1e-4
    found = compare(average_covariance(optimizer, problem, 5, **options), average(gamma, 5), mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4


def test_what_numerics_predicts_is_measured():
    problem, optimizer = non_commuting(), heavy_ball(lr=0.1, momentum=0.8)
    arrays = problem.hessian, problem.noise
    options = {"replicas": 4000, "rng": 4, "progress": False}
    measured = autocovariance(optimizer, problem, 4, start="law", **options)
    assert compare(measured, numerics.autocovariance(optimizer, *arrays, 4)).p_value > 1e-4
    averaged = average_covariance(optimizer, problem, 50, start="law", **options)
    assert compare(averaged, numerics.average_covariance(optimizer, *arrays, 50)).p_value > 1e-4


def test_wrong_averages_are_rejected():
    problem, optimizer, window = non_commuting(), heavy_ball(lr=0.05, momentum=0.5), 40
    gamma, _ = laws(optimizer, problem, window)
    measured = average_covariance(optimizer, problem, window, replicas=2000, rng=5, progress=False)
    w = slice(0, 3)
    sandwich = np.linalg.solve(problem.hessian, np.linalg.solve(problem.hessian, problem.noise).T)
    assert compare(measured, average(gamma, window)[w, w]).p_value > 1e-4
    wrong = {
        "independent iterates": gamma[0] / window,
        "no average": gamma[0],
        "lags counted once": (average(gamma, window) + gamma[0] / window) / 2,
        "large K": np.pad((sandwich + sandwich.T) / 2 / window, (0, 3)),
    }
    for prediction in wrong.values():
        assert compare(measured, prediction[w, w]).p_value < 1e-6


def test_wrong_autocovariances_are_rejected():
    problem, optimizer = non_commuting(), heavy_ball(lr=0.1, momentum=0.8)
    gamma, _ = laws(optimizer, problem, 8)
    measured = autocovariance(optimizer, problem, 3, replicas=4000, rng=6, progress=False)
    w = slice(0, 3)
    other = laws(heavy_ball(lr=0.1, momentum=0.75), problem, 3)[0][3]
    assert compare(measured, gamma[3][w, w]).p_value > 1e-4
    assert compare(measured, gamma[3][w, w]).rank == 3
    for wrong in (gamma[2], gamma[4], gamma[3].T, gamma[0], 0 * gamma[0], other):
        assert compare(measured, wrong[w, w]).p_value < 1e-6


def test_p_is_uniform_under_a_true_autocovariance():
    # One false alarm in 1000 seeds; a Kolmogorov-Smirnov test of 300 sees a distance of 0.1 from uniform.
    problem, optimizer = non_commuting(2), sgd(lr=0.6)
    gamma, _ = laws(optimizer, problem, 2)
    p = [
        compare(
            autocovariance(optimizer, problem, 2, start="law", replicas=300, rng=seed, progress=False), gamma[2]
        ).p_value
        for seed in range(300)
    ]
    claimed = [each for each in p if not np.isnan(each)]  # of a few seeds so many replicas can claim nothing
    assert len(claimed) >= 290
    assert scipy.stats.kstest(claimed, "uniform").pvalue > 1e-3


def test_standard_errors_of_autocovariances_are_true():
    problem, optimizer, replicas = non_commuting(2), sgd(lr=0.6), 400
    gamma, _ = laws(optimizer, problem, 1)
    runs = [
        autocovariance(optimizer, problem, 1, start="law", replicas=replicas, rng=seed, progress=False)
        for seed in range(200)
    ]
    values = np.array([run.value for run in runs])
    assert (np.abs(values.mean(axis=0) - gamma[1]) < 4 * values.std(axis=0) / np.sqrt(200)).all()
    # For Gaussians the variance of an entry is (gamma_ii(0) gamma_jj(0) + gamma_ij(1)^2)/R.
    exact = np.sqrt((np.outer(np.diag(gamma[0]), np.diag(gamma[0])) + gamma[1] ** 2) / replicas)
    np.testing.assert_allclose(np.mean([run.standard_error for run in runs], axis=0), exact, rtol=0.05)


def test_flat_directions_at_rest_stay_out_of_it():
    problem, optimizer = Quadratic(np.diag([1.0, 0.0]), np.diag([1.0, 0.0]), [5.0, 7.0]), sgd(lr=0.5)
    right = np.diag([numerics.stationary_covariance(optimizer, [[1.0]], [[1.0]]).value[0, 0] / 4, 0.0])
    measured = autocovariance(optimizer, problem, 2, replicas=2000, rng=7, progress=False)
    found = compare(measured, right)
    assert (found.rank, found.flat_excess) == (1, 0.0)
    assert found.p_value > 1e-4
    assert compare(measured, right + np.array([[0.0, 0.1], [0.0, 0.0]])).p_value == 0.0
    averaged = average_covariance(optimizer, problem, 3, replicas=2000, rng=7, progress=False)
    assert not averaged.value[1].any()


def test_minibatches_are_close_to_the_autocovariance_of_the_additive_law_at_a_small_learning_rate():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) * np.linspace(1.0, 0.5, 3)
    problem, optimizer = LeastSquares(X, X @ np.ones(3) + rng.standard_exponential(60)), sgd(lr=0.05)
    additive = problem.quadratic(40)
    gamma, _ = laws(optimizer, additive, 10)
    measured = autocovariance(optimizer, problem, 10, replicas=800, batch_size=40, rng=8, progress=False)
    # The state-dependent part of the noise is of relative order lr; Monte Carlo sees 7%.
    assert compare(measured, gamma[10]).relative_error < 3 * compare(measured, gamma[10]).expected_relative_error
    assert compare(measured, gamma[0]).p_value < 1e-6


def test_one_state_is_its_own_average_and_has_lag_zero():
    problem, optimizer = non_commuting(), sgd(lr=0.3)
    one = average_covariance(optimizer, problem, 1, replicas=50, rng=9, progress=False)
    lagged = autocovariance(optimizer, problem, 0, replicas=50, rng=9, progress=False)
    np.testing.assert_array_equal(lagged.later, lagged.earlier)
    assert (one.window, one.burn_in, lagged.burn_in) == (1, one.burn_in, one.burn_in)
    np.testing.assert_allclose(lagged.value, np.cov(lagged.earlier.T), rtol=100 * EPS, atol=100 * EPS)


def test_estimates_show_themselves():
    problem, optimizer = non_commuting(), sgd(lr=0.3)
    average_of = average_covariance(optimizer, problem, 7, replicas=50, rng=10, progress=False)
    lagged = autocovariance(optimizer, problem, 7, replicas=50, rng=10, start="law", progress=False)
    np.testing.assert_array_equal(np.asarray(lagged), lagged.value)
    for text in (repr(average_of), average_of._repr_html_()):
        assert "50 replicas, each the mean of 7 successive states" in text
        assert f"{average_of.burn_in} steps of sgd(lr=0.3)" in text
    for text in (repr(lagged), lagged._repr_html_()):
        assert "w with w 7 steps earlier" in text
        assert "drawn, Gaussian, from the stationary law of sgd(lr=0.3)" in text


@pytest.mark.parametrize(
    ("function", "argument", "options", "error", "message"),
    [
        (autocovariance, -1, {}, InvalidProblemError, "lag must be a whole number, at least 0, got -1"),
        (autocovariance, (), {}, InvalidProblemError, "lag is empty"),
        (autocovariance, (2, 1), {}, InvalidProblemError, "lag must ascend"),
        (average_covariance, 0, {}, InvalidProblemError, "window must be a whole number, at least 1, got 0"),
        (average_covariance, 2.0, {}, InvalidProblemError, "got 2.0"),
        (average_covariance, 2, {"start": "cold"}, InvalidProblemError, "one of 'burn-in', 'law', got 'cold'"),
        (average_covariance, 2, {"optimizer": sgd(lr=5.0)}, UnstableError, "lr < 1"),
        (average_covariance, 2, {"optimizer": sgd()}, HyperparameterError, "lr"),
        (autocovariance, 2, {"optimizer": sgd(lr=1e-9)}, InvalidProblemError, "1,000,000 steps"),
        (
            autocovariance,
            2,
            {"optimizer": sam(lr=0.1, rho=0.1), "engine": "torch.optim"},
            InvalidRuleError,
            "torch.optim has no object",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(function, argument, options, error, message):
    arguments = {"optimizer": sgd(lr=0.3), "replicas": 10, "progress": False, **options}
    with pytest.raises(error, match=message):
        function(arguments.pop("optimizer"), non_commuting(), argument, **arguments)


def test_what_is_no_autocovariance_is_refused():
    measured = autocovariance(sgd(lr=0.3), non_commuting(), 1, replicas=200, rng=0, progress=False)
    with pytest.raises(InvalidProblemError, match=r"got \(2, 2\)"):
        compare(measured, np.eye(2))
    with pytest.raises(InvalidProblemError, match="no mean to test"):
        compare(measured, np.eye(3), mean=np.zeros(3))
    few = autocovariance(sgd(lr=0.3), non_commuting(), 1, replicas=99, rng=0, progress=False)
    with pytest.raises(InvalidProblemError, match="99 replicas"):
        compare(few, np.eye(3))
