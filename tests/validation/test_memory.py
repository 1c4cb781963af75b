"""What a measurement keeps is bounded, and what it will take is said before it starts."""

import tracemalloc

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError, InvalidRuleError
from sgdcov.numerics import LeastSquares, Quadratic, Schedule
from sgdcov.theory import heavy_ball, sgd
from sgdcov.validation import (
    LinearizedNetwork,
    _memory,
    adaptive_covariance,
    autocovariance,
    average_covariance,
    compare,
    epoch_covariance,
    mlp,
    perturbed_covariance,
    run_memory,
    stationary_covariance,
    trajectory,
    transient_covariance,
)
from sgdcov.validation._moments import moments

QUIET = {"rng": 0, "progress": False}


def problem(dim=3):
    return Quadratic(np.diag(np.linspace(0.5, 1.0, dim)), np.eye(dim), np.ones(dim))


def test_moments_take_next_to_no_memory_beside_the_states():
    states = np.random.default_rng(0).standard_normal((4, 20_000, 20))  # 12.8 MB
    tracemalloc.start()
    value, error, mean, mean_error = moments(states)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * _memory.MOMENT_BYTES  # own means and their spread, a quarter of the states each, and the parts
    assert peak < states.nbytes + 4 * 8 * (1 << 21)
    # The definition, at once.
    centred = states - states.mean(axis=(0, 1))
    own = np.einsum("sri,srj->rij", centred, centred) / 4
    spread = states.mean(axis=0) - states.mean(axis=(0, 1))
    of_mean = spread.T @ spread / (20_000 * 19_999)
    np.testing.assert_allclose(value, own.mean(axis=0) + of_mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(error, own.std(axis=0, ddof=1) / np.sqrt(20_000), rtol=1e-4)
    np.testing.assert_allclose(mean, states.mean(axis=(0, 1)), atol=1e-14)
    np.testing.assert_allclose(mean_error, np.sqrt(np.diag(of_mean)), rtol=1e-12)


def runs():
    """Measurements of 900 replicas of 3 weights with several records, whose states take 21.6 kB each."""
    return {
        "stationary": lambda: [stationary_covariance(sgd(lr=0.3), problem(), replicas=900, snapshots=2, **QUIET)],
        "transient": lambda: transient_covariance(
            sgd(lr=0.3), problem(), (0, 2, 5), start=np.eye(3), replicas=900, **QUIET
        ),
        "trajectory": lambda: trajectory(
            sgd(lr=0.3), Schedule.constant(6, 0.3), problem(), start=np.eye(3), record=(1, 3, 6), replicas=900, **QUIET
        ).estimates,
        "epochs": lambda: epoch_covariance(
            sgd(lr=0.1), LeastSquares(np.eye(3) + 0.1, np.arange(3.0)), batch_size=1, replicas=900, positions=(0, 1),
            **QUIET,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["stationary", "transient", "trajectory", "epochs"])
def test_numbers_are_of_all_replicas_and_states_of_as_many_as_fit(kind, monkeypatch):
    whole = runs()[kind]()
    monkeypatch.setattr(_memory, "KEPT_BYTES", 10_000)
    fewer = runs()[kind]()
    for one, other in zip(whole, fewer, strict=True):
        assert one.samples.shape[1] == one.replicas == other.replicas == 900
        assert other.samples.shape[1] == _memory.FEWEST_KEPT
        np.testing.assert_array_equal(other.samples, one.samples[:, : _memory.FEWEST_KEPT])
        np.testing.assert_array_equal(other.value, one.value)
        np.testing.assert_array_equal(other.standard_error, one.standard_error)
        np.testing.assert_array_equal(other.mean, one.mean)
        assert "the states of 400 replicas" in repr(other)
    if kind == "stationary":  # what is kept is enough for the test
        exact = 0.3 / (np.linspace(0.5, 1.0, 3) * (2 - 0.3 * np.linspace(0.5, 1.0, 3)))
        assert compare(fewer[0], np.diag(exact), mean=np.ones(3)).p_value > 1e-3
        assert compare(fewer[0], 2 * np.diag(exact)).p_value < 1e-3


def test_snapshots_that_nobody_asked_for_are_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(_memory, "KEPT_BYTES", 3 * 8 * 900 * 3)
    assert len(stationary_covariance(sgd(lr=0.3), problem(), replicas=900, **QUIET).samples) == 3
    assert len(stationary_covariance(sgd(lr=0.3), problem(), replicas=900, snapshots=5, **QUIET).samples) == 5


X = np.random.default_rng(0).standard_normal((4, 2))
HUGE = {
    "stationary": lambda n: stationary_covariance(sgd(lr=0.3), problem(), replicas=n, **QUIET),
    "transient": lambda n: transient_covariance(sgd(lr=0.3), problem(), 5, replicas=n, **QUIET),
    "trajectory": lambda n: trajectory(sgd(lr=0.3), Schedule.constant(6, 0.3), problem(), replicas=n, **QUIET),
    "autocovariance": lambda n: autocovariance(sgd(lr=0.3), problem(), 1, replicas=n, **QUIET),
    "average": lambda n: average_covariance(sgd(lr=0.3), problem(), 2, replicas=n, **QUIET),
    "adaptive": lambda n: adaptive_covariance(sgd(lr=0.3), problem(), beta2=0.9, replicas=n, **QUIET),
    "perturbed": lambda n: perturbed_covariance(sgd(lr=0.3), problem(), 0.1, replicas=n, **QUIET),
    "epochs": lambda n: epoch_covariance(sgd(lr=0.1), LeastSquares(X, X[:, 0] + 1), batch_size=2, replicas=n, **QUIET),
    "linearised": lambda n: LinearizedNetwork(mlp((2, 1)), X, X[:, 0], l2=0.1).measure(
        sgd(lr=0.1), batch_size=2, steps=2, replicas=n, **QUIET
    ),
}


@pytest.mark.parametrize("run", HUGE.values(), ids=HUGE.keys())
def test_what_does_not_fit_is_refused_before_it_runs(run):
    with pytest.raises(InvalidProblemError, match=r"1,000,000,000,000 replicas .* this machine has"):
        run(10**12)


def test_the_memory_of_a_run_is_told_before_it_starts():
    # States of 8 bytes: so many of all replicas at the least.
    assert run_memory(sgd(lr=0.1), problem(100), replicas=20_000) > 9 * 8 * 20_000 * 100
    one, many = (run_memory(sgd(lr=0.1), problem(100), replicas=20_000, snapshots=1, records=n) for n in (1, 31))
    assert one < many <= one + _memory.KEPT_BYTES
    assert run_memory(heavy_ball(lr=0.1, momentum=0.9), problem(), replicas=10**6) > run_memory(
        sgd(lr=0.1), problem(), replicas=10**6
    )
    with pytest.raises(InvalidProblemError, match="replicas"):
        run_memory(sgd(lr=0.1), problem(), replicas=1)
    with pytest.raises(InvalidProblemError, match="the problem must be"):
        run_memory(sgd(lr=0.1), np.eye(2), replicas=10)
    with pytest.raises(InvalidRuleError, match="expected an optimizer"):
        run_memory(sgd, problem(), replicas=10)
    assert [_memory.text_of(size) for size in (999_000, 1_500_000, 2 * 10**12)] == ["999 kB", "1.5 MB", "2 TB"]
