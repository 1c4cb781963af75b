"""Laws through schedules: step by step, phase by phase, for ever; what is refused."""

import time

import numpy as np
import pytest

from sgdcov.errors import (
    DivergenceError,
    HyperparameterError,
    InvalidProblemError,
    NonStationaryError,
    UnstableError,
)
from sgdcov.numerics import (
    Phase,
    Schedule,
    periodic_covariance,
    stationary_covariance,
    trajectory,
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
ROUNDING = 1e3 * EPS
MANY = Schedule.cosine(9, lr=0.3)  # more learning rates than are traced one by one
WARM = Schedule.from_learning_rates([0.0, 0.0, *np.linspace(0.05, 0.3, 6), 0.0])
FEW = Schedule([Phase(2, lr=0.2), Phase(3, lr=0.05), Phase(1, lr=0.1)])


def spd(rng, d):
    root = rng.normal(size=(d, d))
    out = root @ root.T / d
    return (out + out.T) / 2


def problem(seed=0, d=4):
    rng = np.random.default_rng(seed)
    return spd(rng, d), spd(rng, d), spd(rng, d)


def rest(optimizer):
    return np.array([1.0 if slot in ("w", "w_prev", "ema", "slow") else 0.0 for slot in optimizer.rule.slots])


def matrices(optimizer, hessian):
    d, m = len(hessian), len(optimizer.rule.slots)

    def step(z, shift):
        return np.concatenate(optimizer.step(tuple(z.reshape(m, d)), lambda w: hessian @ w + shift))

    transition = np.stack([step(e, np.zeros(d)) for e in np.eye(m * d)], axis=1)
    return transition, np.stack([step(np.zeros(m * d), e) for e in np.eye(d)], axis=1)


def step_by_step(optimizer, schedule, hessian, noise, law):
    """The joint covariance of all slots before every step and after the last."""
    out = [law]
    for one, count in schedule.bind(optimizer):
        transition, gain = matrices(one, hessian)
        for _ in range(count):
            law = transition @ law @ transition.T + gain @ noise @ gain.T
            out.append(law)
    return np.array(out)


def close(a, b):
    return np.linalg.norm(a - b) <= ROUNDING * np.linalg.norm(b)


@over_optimizers
@pytest.mark.parametrize("schedule", [FEW, MANY, WARM], ids=["few", "many", "from 0 to 0"])
def test_it_is_the_recursion_step_by_step(optimizer, schedule):
    hessian, noise, w = problem()
    rng = np.random.default_rng(1)
    first, optimum = rng.normal(size=(2, 4))
    factors = rest(optimizer)
    laws = step_by_step(optimizer, schedule, hessian, noise, np.kron(np.outer(factors, factors), w))
    state, means = tuple(r * first for r in factors), [first]
    for one, count in schedule.bind(optimizer):
        for _ in range(count):
            state = one.step(state, lambda x: hessian @ (x - optimum))
            means.append(state[0])
    times = range(schedule.steps + 1)
    result = trajectory(optimizer, schedule, hessian, noise, start=w, mean=first, optimum=optimum, record=times)
    np.testing.assert_array_equal(result.times, times)
    assert close(result.covariance, laws[:, :4, :4])
    assert close(result.final.joint(), laws[-1])
    assert close(result.mean, np.array(means))
    variance = np.einsum("ij,tij->t", hessian, laws[:, :4, :4]) / 2
    gap = np.array(means) - optimum
    assert close(result.propagated_risk + result.injected_risk, variance)
    assert close(result.mean_risk, np.einsum("ti,ij,tj->t", gap, hessian, gap) / 2)
    assert close(result.excess_risk, variance + result.mean_risk)
    assert close(result.trace, np.trace(laws[:, :4, :4], axis1=1, axis2=2))
    slogdet = np.linalg.slogdet(laws[:, :4, :4])[1]
    assert np.max(np.abs(result.log_det - slogdet)) <= ROUNDING * np.max(np.linalg.cond(laws[:, :4, :4]))


def test_one_phase_is_a_transient():
    hessian, noise, w = problem(2)
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    once = Schedule([Phase(10**6)])
    result = trajectory(optimizer, once, hessian, noise, start=w, mean=np.ones(4), record=[0, 3, 777])
    for index, k in enumerate([0, 3, 777]):
        expected = transient_covariance(optimizer, hessian, noise, k, start=w)
        np.testing.assert_allclose(result.covariance[index], expected.value, rtol=ROUNDING)
        mean = transient_mean(optimizer, hessian, k, start=np.ones(4))
        assert np.linalg.norm(result.mean[index] - mean) <= ROUNDING
    assert result.final.steps == 10**6


def test_a_period_in_which_nothing_moves_has_no_law():
    for optimizer in OPTIMIZERS:
        still = Schedule([Phase(2, lr=0), Phase(3, lr=0.0)])
        with pytest.raises(NonStationaryError, match="lr=0: nothing moves the weights"):
            periodic_covariance(optimizer, still, np.diag([1.0, 0.1]), np.eye(2))
        half = still + Schedule.constant(5, lr=0.1)
        law = periodic_covariance(optimizer, half, np.diag([1.0, 0.1]), np.eye(2), record=[0, half.steps])
        assert close(law.covariance[0], law.covariance[1])


def test_phases_without_end_cost_nothing_and_settle():
    hessian, noise, w = problem(3)
    optimizer = heavy_ball(momentum=0.9)
    begin = time.perf_counter()
    schedule = Schedule([Phase(10**9, lr=0.1), Phase(10**9, lr=0.01), Phase(10**9, lr=0.001)])
    result = trajectory(optimizer, schedule, hessian, noise, start=w)
    assert time.perf_counter() - begin < 5
    for index, lr in enumerate((0.1, 0.01, 0.001), start=1):
        assert close(result.covariance[index], stationary_covariance(optimizer.replace(lr=lr), hessian, noise).value)


def test_a_trajectory_continues_another():
    hessian, noise, w = problem(4)
    optimizer = polyak(momentum=0.9)
    whole = trajectory(optimizer, FEW + MANY, hessian, noise, start=w)
    first = trajectory(optimizer, FEW, hessian, noise, start=w)
    second = trajectory(optimizer, MANY, hessian, noise, start=first.final)
    assert close(second.final.joint(), whole.final.joint())


def test_inverse_time_reaches_the_asymptotic_variance():
    """T Var -> a^2 C / (2 a h - 1) for lr = a/t, a h > 1/2: Chung 1954; formula sheet 4.6."""
    a, h, steps = 2.0, 1.0, 4000
    schedule = Schedule.inverse_time(steps, lr=a / 4, timescale=4.0)
    result = trajectory(sgd(), schedule, [[h]], [[1.0]], record=[steps])
    limit = a**2 / (2 * a * h - 1)
    assert abs(steps * result.trace[0] / limit - 1) <= 10 / steps


def test_ten_thousand_learning_rates_are_accurate():
    """SGD in closed form: S(T) = c sum_t lr_t^2 prod_{s>t} (1 - lr_s h)^2, summed in extended precision."""
    lr = np.array([phase.values["lr"] for phase in Schedule.cosine(3000, lr=1e-2)], dtype=np.longdouble)
    kept = np.cumprod((1 - lr[::-1]) ** 2)[::-1]
    expected = np.sum(lr**2 * np.append(kept[1:], 1))
    result = trajectory(sgd(), Schedule.cosine(3000, lr=1e-2), [[1.0]], [[1.0]], record=[3000])
    assert abs(result.trace[0] / float(expected) - 1) <= 4 * EPS


def test_the_two_parts_after_a_drop():
    hessian, noise, _ = problem(5)
    before = heavy_ball(lr=0.4, momentum=0.9)
    start = stationary_covariance(before, hessian, noise)
    result = trajectory(before, Schedule([Phase(10, lr=0.05)]), hessian, noise, start=start, record=[0, 10])
    assert result.propagated_risk[0] == pytest.approx(start.excess_risk, rel=ROUNDING)
    assert (result.injected_risk[0], result.mean_risk[1]) == (0, 0)
    assert 0 < result.injected_risk[1] < stationary_covariance(before.replace(lr=0.05), hessian, noise).excess_risk


@over_optimizers
@pytest.mark.parametrize("schedule", [FEW, MANY], ids=["few", "many"])
def test_a_periodic_law_comes_back(optimizer, schedule):
    hessian, noise, _ = problem(6)
    hessian /= 8  # with momentum 0.9 larger curvatures resonate with the schedule
    positions = range(schedule.steps + 1)
    result = periodic_covariance(optimizer, schedule, hessian, noise, record=positions)
    laws = step_by_step(optimizer, schedule, hessian, noise, result.laws[0].joint())
    for law, expected in zip(result.laws, laws, strict=True):
        assert close(law.joint(), expected)
    assert close(result.laws[-1].joint(), result.laws[0].joint())
    late = trajectory(optimizer, schedule * 20, hessian, noise, record=[20 * schedule.steps]).final.joint()
    # What 20 periods leave of the law at the start, the difference of the two.
    left = np.eye(len(late))
    for one, count in 20 * schedule.bind(optimizer):
        left = np.linalg.matrix_power(matrices(one, hessian)[0], count) @ left
    assert close(result.laws[0].joint() - left @ result.laws[0].joint() @ left.T, late)
    np.testing.assert_array_equal(result.trace, [law.trace for law in result.laws])
    assert result.covariance.shape == (schedule.steps + 1, 4, 4)
    assert result.excess_risk[0] == result.laws[0].excess_risk
    assert result.log_det[0] == result.laws[0].log_det


def test_a_period_of_one_phase_is_the_stationary_law():
    hessian, noise, _ = problem(7)
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    result = periodic_covariance(optimizer, Schedule([Phase(10**6)]), hessian, noise, record=[0, 17, 10**6])
    for law in result.laws:
        assert close(law.joint(), stationary_covariance(optimizer, hessian, noise).joint())


@update_rule(slots=("w", "slow"))
def lookahead(state, grad, *, lr, pull, back):
    """Inner steps with pull = back = 0; a synchronisation moves the slow weights, and the fast ones to them."""
    w, slow = state
    w = w - lr * grad(w)
    slow = slow + pull * (w - slow)
    return w + back * (slow - w), slow


def test_lookahead_in_closed_form():
    """S_ij = a^2 lr^2 c_ij (1-(m_i m_j)^k)/(1-m_i m_j) / (1-(1-a+a m_i^k)(1-a+a m_j^k)): formula sheet, 3."""
    h, a, lr, k = np.array([0.3, 2.0]), 0.5, 0.1, 5
    noise = np.array([[2.0, 1.0], [1.0, 3.0]])
    schedule = Schedule([Phase(k - 1, pull=0.0, back=0.0), Phase(1, pull=a, back=1.0)])
    result = periodic_covariance(lookahead(lr=lr), schedule, np.diag(h), noise)
    m = 1 - lr * h
    inner = (1 - np.outer(m, m) ** k) / (1 - np.outer(m, m))
    outer = 1 - np.outer(1 - a + a * m**k, 1 - a + a * m**k)
    np.testing.assert_allclose(result.covariance[0], a**2 * lr**2 * noise * inner / outer, rtol=100 * EPS)
    np.testing.assert_allclose(result.laws[0].block("slow", "slow"), result.covariance[0], rtol=4 * EPS)


def test_flat_directions_in_a_period():
    schedule = Schedule.cyclic(0.1, 0.3, up=3)
    quiet = periodic_covariance(sgd(), schedule, np.diag([0.0, 1.0]), np.diag([0.0, 1.0]))
    alone = periodic_covariance(sgd(), schedule, [[1.0]], [[1.0]])
    np.testing.assert_allclose(quiet.covariance[:, 1, 1], alone.covariance[:, 0, 0], rtol=8 * EPS)
    assert not quiet.covariance[:, 0].any()
    with pytest.raises(NonStationaryError, match="random walk"):
        periodic_covariance(sgd(), schedule, np.diag([0.0, 1.0]), np.eye(2))


def test_stable_phases_can_make_an_unstable_period():
    """Parametric resonance: a mode with momentum rings, and a schedule in step with it drives it."""
    optimizer, schedule = heavy_ball(momentum=0.9), Schedule([Phase(2, lr=0.2), Phase(3, lr=0.05), Phase(1, lr=0.1)])
    transition = np.eye(2)
    for one, count in schedule.bind(optimizer):
        stationary_covariance(one, [[2.8]], [[1.0]])  # has one
        transition = np.linalg.matrix_power(matrices(one, np.array([[2.8]]))[0], count) @ transition
    assert np.max(np.abs(np.linalg.eigvals(transition))) > 1.3
    with pytest.raises(UnstableError, match=r"eigenvalue 2\.8"):
        periodic_covariance(optimizer, schedule, [[2.8]], [[1.0]])


def test_an_unstable_phase_is_fine_where_the_period_contracts():
    schedule = Schedule([Phase(1, lr=3.0), Phase(1, lr=0.9)])  # (1 - 3)(1 - 0.9) = -0.2
    law = periodic_covariance(sgd(), schedule, [[1.0]], [[1.0]])
    assert law.trace[0] == pytest.approx((9 * 0.01 + 0.81) / (1 - 0.04), rel=64 * EPS)
    with pytest.raises(UnstableError, match="eigenvalue 1"):
        periodic_covariance(sgd(), Schedule([Phase(2, lr=3.0), Phase(1, lr=0.1)]), [[1.0]], [[1.0]])


def test_an_overflow_names_the_phase():
    schedule = Schedule([Phase(5, lr=0.1), Phase(2000, lr=3.0)])
    for run in (trajectory, periodic_covariance):
        with pytest.raises(DivergenceError, match=r"phase 1 \(steps 5 to 2005\) of sgd\(lr=3(\.0)?\): .*factor 2 "):
            run(sgd(), schedule, [[1.0]], [[1.0]])


def test_a_phase_outside_the_domain_is_named():
    for run in (trajectory, periodic_covariance):
        with pytest.raises(HyperparameterError, match=r"phase 1 \(steps 5 to 6\): lr=-1.0"):
            run(sgd(), Schedule([Phase(5, lr=0.1), Phase(1, lr=-1.0)]), [[1.0]], [[1.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"record": [0, 12]}, "record asks for time 12, but the schedule ends after 11 steps"),
        ({"record": [5, 3]}, "the times in record must increase, got 5 before 3"),
        ({"record": [-1, 3]}, "a time in record must be a whole number, at least 0, got -1"),
        ({"record": [0.5]}, "a time in record must be a whole number"),
        ({"record": []}, "record must be a list of times"),
        ({"record": 3}, "record must be a sequence, got 3"),
        ({"start": [[-1.0]]}, "start is not positive semidefinite"),
        ({"mean": [1.0, 2.0]}, "the mean at the start must have shape"),
        ({"optimum": [np.nan]}, "optimum must be finite"),
        ({"schedule": [Phase(3)]}, "schedule must be a Schedule"),
    ],
)
def test_what_is_refused(arguments, message):
    arguments = {"schedule": Schedule([Phase(1), Phase(10)])} | arguments
    schedule = arguments.pop("schedule")
    with pytest.raises(InvalidProblemError, match=message):
        trajectory(sgd(lr=0.1), schedule, [[1.0]], [[1.0]], **arguments)
