"""The law after a number of steps as arrays: step by step, in the limit, in composition; what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdcov.errors import DivergenceError, HyperparameterError, InvalidProblemError
from sgdcov.numerics import (
    spectral_radius,
    stationary_covariance,
    stationary_mean,
    transient_covariance,
    transient_mean,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, update_rule, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.1, momentum=0.7, dampening=0.3, weight_decay=0.01),
    nesterov(lr=0.05, momentum=0.8),
    polyak(lr=0.1, momentum=0.5, weight_decay=0.02),
    qhm(lr=0.3, beta=0.95, nu=0.7),
    sgdw(lr=0.05, momentum=0.9, weight_decay=0.02),
    sam(lr=0.1, rho=0.2),
    with_ema(heavy_ball)(lr=0.05, momentum=0.9, ema_decay=0.9),
)
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
#: Products of a few small matrices, of norms of about 1 here, in each of few steps and rotations.
ROUNDING = 1e3 * EPS


def spd(rng, d):
    root = rng.normal(size=(d, d))
    out = root @ root.T / d
    return (out + out.T) / 2


def problem(seed=0, d=4):
    """H and C that do not commute, and a covariance."""
    rng = np.random.default_rng(seed)
    return spd(rng, d), spd(rng, d), spd(rng, d)


def matrices(optimizer, hessian):
    """The step of all coordinates of all slots, stacked, from the rule's own function."""
    d, m = len(hessian), len(optimizer.rule.slots)

    def step(z, shift):
        return np.concatenate(optimizer.step(tuple(z.reshape(m, d)), lambda w: hessian @ w + shift))

    transition = np.stack([step(e, np.zeros(d)) for e in np.eye(m * d)], axis=1)
    return transition, np.stack([step(np.zeros(m * d), e) for e in np.eye(d)], axis=1)


def at_rest(optimizer, w):
    """The joint covariance when only the weights vary and everything else is at rest."""
    rest = np.array([1.0 if slot in ("w", "w_prev", "ema") else 0.0 for slot in optimizer.rule.slots])
    return np.kron(np.outer(rest, rest), w)


def close(a, b):
    return np.linalg.norm(a - b) <= ROUNDING * np.linalg.norm(b)


@over_optimizers
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_it_is_the_recursion_step_by_step(optimizer, steps):
    hessian, noise, w = problem()
    transition, gain = matrices(optimizer, hessian)
    left, built = at_rest(optimizer, w), np.zeros_like(transition)
    for _ in range(steps):
        left = transition @ left @ transition.T
        built = transition @ built @ transition.T + gain @ noise @ gain.T
    result = transient_covariance(optimizer, hessian, noise, steps, start=w)
    assert close(result.joint(), left + built)
    assert close(result.propagated, left[:4, :4])
    assert np.linalg.norm(result.injected - built[:4, :4]) <= ROUNDING * np.linalg.norm(built)
    np.testing.assert_array_equal(result.value, result.propagated + result.injected)
    np.testing.assert_array_equal(result.value, result.value.T)
    assert result.trace == np.trace(result.value)
    assert result.excess_risk == pytest.approx(np.trace(hessian @ result.value) / 2, rel=ROUNDING)
    assert result.rank == 4
    error = ROUNDING * np.linalg.cond(result.value)
    assert result.log_det == pytest.approx(np.linalg.slogdet(result.value)[1], rel=error)


@over_optimizers
def test_after_very_many_steps_it_is_the_stationary_law(optimizer):
    hessian, noise, w = problem(1)
    result = transient_covariance(optimizer, hessian, noise, 10**9, start=w)
    stationary = stationary_covariance(optimizer, hessian, noise)
    assert close(result.joint(), stationary.joint())
    assert np.all(np.abs(result.propagated) <= 1e-300)
    assert result.log_det == pytest.approx(stationary.log_det, rel=1e-12)


@over_optimizers
def test_the_stationary_law_stays(optimizer):
    hessian, noise, _ = problem(2)
    start = stationary_covariance(optimizer, hessian, noise)
    for steps in (1, 17, 1000):
        result = transient_covariance(optimizer, hessian, noise, steps, start=start)
        assert close(result.joint(), start.joint())


@over_optimizers
def test_two_runs_in_a_row_are_one(optimizer):
    hessian, noise, w = problem(3)
    first = transient_covariance(optimizer, hessian, noise, 7, start=w)
    second = transient_covariance(optimizer, hessian, noise, 13, start=first)
    assert close(second.joint(), transient_covariance(optimizer, hessian, noise, 20, start=w).joint())


def test_the_velocity_of_pytorch_and_of_polyak_differ_after_a_drop():
    """Same stationary law, but the buffer of one holds the old learning rate: formula sheet, 4.2."""
    hessian, noise = np.diag([0.5, 1.0, 2.0]), np.eye(3)
    traces = []
    for rule in (heavy_ball, polyak):
        start = stationary_covariance(rule(lr=0.8, momentum=0.9), hessian, noise)
        traces.append(transient_covariance(rule(lr=0.1, momentum=0.9), hessian, noise, 7, start=start).trace)
    assert traces[1] > 2 * traces[0]


def test_sgd_in_closed_form():
    before, after, k = sgd(lr=0.8), sgd(lr=0.1), 5
    h = np.array([0.5, 2.0])
    noise = np.array([[2.0, 1.0], [1.0, 3.0]])
    pairs = np.add.outer(h, h), np.multiply.outer(h, h)
    old, new = (lr * noise / (pairs[0] - lr * pairs[1]) for lr in (0.8, 0.1))
    kept = np.outer(1 - 0.1 * h, 1 - 0.1 * h) ** k
    result = transient_covariance(after, np.diag(h), noise, k, start=stationary_covariance(before, np.diag(h), noise))
    np.testing.assert_allclose(result.propagated, kept * old, rtol=16 * EPS)
    np.testing.assert_allclose(result.injected, (1 - kept) * new, rtol=64 * EPS)


def test_a_flat_direction_is_a_random_walk():
    result = transient_covariance(sgd(lr=0.5), np.diag([0.0, 1.0]), np.eye(2), 10**9)
    assert result.value[0, 0] == 0.25e9
    momentum = transient_covariance(heavy_ball(lr=0.5, momentum=0.5), [[0.0]], [[1.0]], 10**9)
    assert momentum.value[0, 0] == pytest.approx(1e9, rel=1e-8)  # the effective learning rate is 1


def test_without_noise_and_start_nothing_varies():
    result = transient_covariance(heavy_ball(lr=0.5, momentum=0.5), np.eye(2), np.zeros((2, 2)), 10)
    assert (result.rank, result.log_det, result.trace) == (0, 0.0, 0.0)


def test_the_log_determinant_is_on_the_range():
    hessian, _, _ = problem(5)
    eigenvectors = np.linalg.eigh(hessian)[1]
    direction = eigenvectors[:, 1]
    result = transient_covariance(sgd(lr=0.1), hessian, np.outer(direction, direction), 9)
    assert result.rank == 1
    assert result.log_det == pytest.approx(np.log(result.trace), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from(OPTIMIZERS), st.integers(0, 40))
def test_symmetric_positive_semidefinite_and_inputs_unchanged(seed, optimizer, steps):
    hessian, noise, w = arrays = problem(seed, d=3)
    copies = [a.copy() for a in arrays]
    joint = transient_covariance(optimizer, hessian, noise, steps, start=w).joint()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert np.linalg.norm(joint - joint.T) <= EPS * np.linalg.norm(joint)
    assert np.linalg.eigvalsh(joint).min() >= -ROUNDING * np.linalg.norm(joint)


@over_optimizers
@pytest.mark.parametrize("whole", [False, True])
def test_the_mean_is_that_of_the_rule_itself(optimizer, whole):
    hessian, _, _ = problem(6)
    rng = np.random.default_rng(6)
    optimum, m = rng.normal(size=4), len(optimizer.rule.slots)
    start = rng.normal(size=4 * m if whole else 4)
    rest = [1.0 if slot in ("w", "w_prev", "ema") else 0.0 for slot in optimizer.rule.slots]
    state = tuple(start.reshape(m, 4)) if whole else tuple(r * start for r in rest)
    for _ in range(11):
        state = optimizer.step(state, lambda w: hessian @ (w - optimum))
    mean = transient_mean(optimizer, hessian, 11, start=start, optimum=optimum, slots=optimizer.rule.slots)
    assert close(mean, np.concatenate(state))
    late = transient_mean(optimizer, hessian, 10**7, start=start, optimum=optimum)
    assert close(late, stationary_mean(optimizer, hessian, optimum))


def test_growth_is_exact_until_it_overflows():
    assert spectral_radius(sgd(lr=3.0), [[1.0]]) == 2.0
    assert transient_covariance(sgd(lr=3.0), [[1.0]], [[0.0]], 100, start=[[1.0]]).value[0, 0] == 4.0**100
    with pytest.raises(DivergenceError, match=r"2000 steps of sgd\(lr=3(\.0)?\).*eigenvalue 1 .*factor 2 ") as caught:
        transient_covariance(sgd(lr=3.0), [[1.0]], [[1.0]], 2000)
    assert (caught.value.eigenvalue, caught.value.growth) == (1.0, 2.0)
    with pytest.raises(DivergenceError):
        transient_covariance(sgd(lr=3.0), [[1.0]], [[1e200]], 400)
    with pytest.raises(DivergenceError):
        transient_mean(sgd(lr=3.0), [[1.0]], 2000, start=[1.0])


@update_rule(slots=("w", "anchor"))
def anchored(state, grad, *, lr):
    w, anchor = state
    return w - lr * grad(w) + lr * (anchor - w), anchor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps must be a whole number, at least 0, got -1"),
        ({"steps": 2.0}, "steps must be a whole number, at least 0, got 2.0"),
        ({"steps": True}, "steps must be a whole number"),
        ({"start": [[1.0, 0.0], [0.0, -1.0]]}, "start is not positive semidefinite"),
        ({"start": [[1.0]]}, r"start must have shape \(2, 2\)"),
        ({"start": [[1.0, np.nan], [np.nan, 1.0]]}, "start must be finite"),
        ({"start": stationary_covariance(sgd(lr=0.1), [[1.0]], [[1.0]])}, "law of the slots w, but heavy_ball has"),
        (
            {"start": stationary_covariance(heavy_ball(lr=0.1, momentum=0), [[1.0]], [[1.0]])},
            "start is a law of 1 parameters",
        ),
        ({"noise": [[1.0, 2.0], [2.0, 1.0]]}, "noise is not positive semidefinite"),
        ({"optimizer": anchored(lr=0.1), "start": np.eye(2)}, "no single state of rest"),
    ],
)
def test_what_is_refused(arguments, message):
    given_ = {"optimizer": heavy_ball(lr=0.1, momentum=0.5), "hessian": np.eye(2), "noise": np.eye(2), "steps": 3}
    given_ |= arguments
    optimizer, hessian, noise, steps = (given_.pop(name) for name in ("optimizer", "hessian", "noise", "steps"))
    with pytest.raises(InvalidProblemError, match=message):
        transient_covariance(optimizer, hessian, noise, steps, **given_)


def test_every_hyper_parameter_must_be_bound():
    with pytest.raises(HyperparameterError, match="no value for momentum"):
        transient_covariance(heavy_ball(lr=0.1), [[1.0]], [[1.0]], 1)
    with pytest.raises(HyperparameterError, match="no value for momentum"):
        transient_mean(heavy_ball(lr=0.1), [[1.0]], 1, start=[0.0])
