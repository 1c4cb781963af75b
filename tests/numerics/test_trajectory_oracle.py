"""Schedules, periods and transients against 60-digit numbers stepped one by one: many phases, every scale, flat noise.

The oracle steps the rule's own function on 60-digit numbers; it shares nothing with what it checks.
"""

import time
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from sgdcov.errors import AccuracyWarning, NonStationaryError, ScaleError
from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    Phase,
    Schedule,
    periodic_covariance,
    trajectory,
    transient_covariance,
    transient_mean,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sgd, with_ema

EPS = np.finfo(float).eps
DIGITS = 60


class Stepped:
    """Two directions, one step after the other: the mean of each, and the covariance of all slots of the pair."""

    def __init__(self, rule, h):
        self.rule, self.h, self.m = rule, [mpmath.mpf(x) for x in h], len(rule.slots)
        self.law = [[[[mpmath.mpf(0)] * self.m for _ in range(self.m)] for _ in h] for _ in h]

    def step(self, values, noise):
        values = {name: mpmath.mpf(value) for name, value in values.items()}
        zero, one, m, size = mpmath.mpf(0), mpmath.mpf(1), self.m, len(self.h)
        maps = []
        for h in self.h:
            columns = [
                self.rule.function(tuple(mpmath.mpf(s == t) for t in range(m)), lambda w, h=h: h * w, **values)
                for s in range(m)
            ]
            gain = self.rule.function((zero,) * m, lambda w, h=h: h * w + one, **values)
            maps.append(([[columns[s][p] for s in range(m)] for p in range(m)], gain))
        for i in range(size):
            for j in range(size):
                (a, b), (c, e), z = maps[i], maps[j], self.law[i][j]
                half = [[mpmath.fsum(a[p][s] * z[s][q] for s in range(m)) for q in range(m)] for p in range(m)]
                self.law[i][j] = [
                    [
                        mpmath.fsum(half[p][s] * c[q][s] for s in range(m)) + b[p] * e[q] * mpmath.mpf(noise[i][j])
                        for q in range(m)
                    ]
                    for p in range(m)
                ]

    def block(self, p, q):
        """The covariance of two slots."""
        return [[self.law[i][j][p][q] for j in range(len(self.h))] for i in range(len(self.h))]


def relative(value, exact):
    """The error in the Frobenius norm."""
    with mpmath.workdps(DIGITS):
        size = mpmath.sqrt(mpmath.fsum(x * x for row in exact for x in row))
        pairs = zip(np.ravel(value), (x for row in exact for x in row), strict=True)
        gap = mpmath.fsum((mpmath.mpf(float(v)) - x) ** 2 for v, x in pairs)
        return float(mpmath.sqrt(gap) / size)


H, NOISE = [0.9, 1e-3], [[2.0, 0.5], [0.5, 1.0]]
RULES = (sgd(), heavy_ball(momentum=0.9), polyak(momentum=0.5), qhm(beta=0.9, nu=0.5), with_ema(sgd)(ema_decay=0.9))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_many_phases_of_several_lengths(rule):
    """Over the blocks in which they are run through; recorded here and there, at ends of phases and inside."""
    rates = np.concatenate([[0.0], np.linspace(0.05, 0.4, 37), np.linspace(0.4, 0.0, 30)])
    phases = [Phase(1 + 2 * (k % 7 == 3), lr=float(lr)) for k, lr in enumerate(rates)]
    schedule = Schedule(phases)
    record = [0, 2, 3, 5, 50, schedule.steps - 1, schedule.steps]
    result = trajectory(rule, schedule, np.diag(H), NOISE, record=record)
    with mpmath.workdps(DIGITS):
        oracle, exact = Stepped(rule.rule, H), {}
        now = 0
        for optimizer, count in schedule.bind(rule):
            for _ in range(count):
                now += 1
                oracle.step(optimizer.values, NOISE)
                exact[now] = oracle.block(0, 0)
    for time_, value in zip(record[1:], result.covariance[1:], strict=True):
        assert relative(value, exact[time_]) <= 8 * EPS
    for p, a in enumerate(rule.rule.slots):
        for q, b in enumerate(rule.rule.slots):
            assert relative(result.final.block(a, b), oracle.block(p, q)) <= 8 * EPS


def test_ten_thousand_rates_are_soon_run_through():
    """They took a millisecond and a half each, one by one."""
    schedule = Schedule.cosine(10_000, lr=0.1)
    begun = time.process_time()
    run = trajectory(heavy_ball(momentum=0.9), schedule, np.diag([1.0, 0.1]), np.eye(2), mean=[1.0, 1.0])
    assert time.process_time() - begun < 5
    assert run.times.size == 10_001


@pytest.mark.parametrize("lr", [1e-10, 1e-40, 1e-70, 1e-140])
@pytest.mark.parametrize("rule", [sgd(), heavy_ball(momentum=0.5)], ids=repr)
def test_a_period_of_tiny_learning_rates(rule, lr):
    """To first order in the learning rates 5 lr and 5 lr/2: what is left out is smaller by lr."""
    schedule = Schedule([Phase(5, lr=lr), Phase(5, lr=lr / 2)])
    law = periodic_covariance(rule, schedule, np.diag([1.0, 0.1]), np.eye(2))
    # A gradient of step t moves the weights by u_t in all, and c sum u_t^2 is what the drift 2 h sum u_t balances.
    rates = [Fraction(lr), Fraction(lr) / 2]
    momentum = Fraction(rule.values.get("momentum", 0))
    moved = [sum(rates[s // 5 % 2] * momentum ** (s - t) for s in range(t, t + 60)) for t in range(10)]
    expected = float(sum(u**2 for u in moved) / sum(moved)) / 2
    np.testing.assert_allclose(np.diag(law.covariance[0]) / expected, [1.0, 10.0], rtol=max(50 * lr, 16 * EPS))


def test_moments_on_the_way_may_leave_the_range_of_doubles():
    """The squared learning rate is 1e-360, and the answer 5e-51."""
    for rule, effective in ((sgd(), 1), (heavy_ball(momentum=0.5), 2)):
        optimizer = rule.rule(**{**rule.values, "lr": 1e-180})
        law = transient_covariance(optimizer, [[1e170]], [[1e300]], 10**30)
        assert law.value[0, 0] == pytest.approx(effective * 5e-51, rel=1e-9)
        run = trajectory(optimizer, Schedule([Phase(10**30), Phase(10**30, lr=5e-181)]), [[1e170]], [[1e300]])
        np.testing.assert_allclose(run.trace, [0, effective * 5e-51, effective * 2.5e-51], rtol=1e-9)
        law = periodic_covariance(optimizer, Schedule([Phase(3)]), [[1e170]], [[1e300]])
        assert law.trace[0] == pytest.approx(effective * 5e-51, rel=1e-9)


def test_what_is_too_small_or_too_large_for_a_double_is_refused():
    data = MinibatchNoise(LeastSquares([[1.0], [2.0]], [1, 3]), 1)
    for call in (
        lambda: transient_covariance(sgd(lr=1e-200), [[1.0]], [[1.0]], 5),
        lambda: trajectory(heavy_ball(lr=1e-200, momentum=0.9), Schedule([Phase(5)]), [[1.0]], [[1.0]]),
        lambda: periodic_covariance(sgd(lr=0.1), Schedule([Phase(5)]), [[1.0]], [[5e-324]]),
        lambda: transient_covariance(sgd(lr=1e200), [[0.0]], [[1.0]], 5),
        lambda: transient_covariance(sgd(lr=1e-200), data.hessian, data, 5),
    ):
        with pytest.raises(ScaleError, match=r"too (small|large) for a double"):
            call()


@pytest.mark.parametrize("steps", [10**30, 10**400])
def test_numbers_of_steps_that_are_no_doubles(steps):
    law = transient_covariance(nesterov(lr=0.1, momentum=0.5), np.diag([1.0, 0.1]), np.eye(2), steps)
    later = transient_covariance(nesterov(lr=0.1, momentum=0.5), np.diag([1.0, 0.1]), np.eye(2), 10**6)
    np.testing.assert_allclose(law.value, later.value, rtol=4 * EPS)
    assert transient_mean(sgd(lr=0.1), [[1.0]], steps, start=[1.0], optimum=[2.0]) == 2.0
    if steps > 10**300:
        with pytest.raises(ScaleError, match=r"about 1e\d+ steps of sgd"):
            transient_covariance(sgd(lr=0.1), [[0.0]], [[1.0]], steps)


def test_minibatch_noise_settles():
    """A million million steps, of which all but the first thousands change nothing."""
    noise = MinibatchNoise(LeastSquares([[1.0], [2.0], [0.5]], [1.0, 3.0, 0.0]), 2)
    law = transient_covariance(sgd(lr=0.1), noise.hessian, noise, 10**12, mean=[5.0])
    later = transient_covariance(sgd(lr=0.1), noise.hessian, noise, 3000, mean=[5.0])
    np.testing.assert_allclose(law.value, later.value, rtol=16 * EPS)


def rotated(h, c, seed=0):
    """H and C as doubles in a rotated basis, and their exact counterparts at 60 digits: eigenvalues and C there."""
    d = len(h)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    hessian, noise = basis @ np.diag(h) @ basis.T, basis @ np.asarray(c) @ basis.T
    hessian, noise = (hessian + hessian.T) / 2, (noise + noise.T) / 2
    with mpmath.workdps(DIGITS):
        eigenvalues, vectors = mpmath.eigsy(mpmath.matrix(hessian.tolist()))
        exact = vectors.T * mpmath.matrix(noise.tolist()) * vectors
    return hessian, noise, list(eigenvalues), vectors, [[exact[i, j] for j in range(d)] for i in range(d)]


@pytest.mark.parametrize("smallest", [0.3, 1e-4, 1e-9])
@pytest.mark.parametrize("rule", [sgd(), heavy_ball(momentum=0.9), nesterov(momentum=0.5)], ids=repr)
def test_the_error_is_within_its_bound(rule, smallest):
    """In a rotated basis, of which rounding knows small curvatures only so well; every result of a run."""
    hessian, noise, h, vectors, c = rotated([1.0, 0.5, smallest], np.diag([1.0, 3.0, 2.0]))
    schedule = Schedule([Phase(9, lr=0.3), Phase(1, lr=0.1), Phase(30, lr=0.2)])
    start = np.diag([1.0, 2.0, 3.0])
    run = trajectory(rule, schedule, hessian, noise, record=[9, 10, 40])
    left = transient_covariance(rule.rule(**rule.values, lr=0.2), hessian, noise, 40, start=start)
    with mpmath.workdps(DIGITS):
        oracle, exact = Stepped(rule.rule, h), []
        for optimizer, count in schedule.bind(rule):
            for _ in range(count):
                oracle.step(optimizer.values, c)
            exact.append(oracle.block(0, 0))
        begun, rest = Stepped(rule.rule, h), [1] + [0] * (oracle.m - 1)
        z = vectors.T * mpmath.matrix(start.tolist()) * vectors
        begun.law = [[[[z[i, j] * p * q for q in rest] for p in rest] for j in range(3)] for i in range(3)]
        for _ in range(40):
            begun.step(left.optimizer.values, c)

        def back(block):
            whole = vectors * mpmath.matrix(block) * vectors.T
            return [[whole[i, j] for j in range(3)] for i in range(3)]

        found = [*zip(run.covariance, run.error, exact, strict=True), (left.value, left.error, begun.block(0, 0))]
        for value, bound, block in found:
            error = relative(value, back(block))
            assert error <= bound <= 1e-11


def test_the_error_of_a_period_and_of_a_million_million_steps():
    """Both know a small curvature only up to the rounding of the largest; sgd in closed form."""
    lr = 0.25
    for smallest, reach in ((1e-3, 1e-9), (1e-10, 1e-2)):
        hessian, noise, h, vectors, c = rotated([1.0, 0.5, smallest], np.eye(3))
        calls = (
            lambda hessian=hessian, noise=noise: periodic_covariance(
                sgd(lr=lr), Schedule([Phase(2), Phase(1)]), hessian, noise
            ).laws[0],
            lambda hessian=hessian, noise=noise: transient_covariance(sgd(lr=lr), hessian, noise, 10**12),
        )
        with mpmath.workdps(DIGITS):
            size = len(h)
            inner = mpmath.matrix(size)
            for i in range(size):
                for j in range(size):
                    inner[i, j] = lr * c[i][j] / (h[i] + h[j] - lr * h[i] * h[j])
            whole = vectors * inner * vectors.T
            exact = [[whole[i, j] for j in range(size)] for i in range(size)]
        for call in calls:
            if smallest == 1e-10:
                with pytest.warns(AccuracyWarning, match="relative error may be"):
                    law = call()
            else:
                law = call()
            assert relative(law.value, exact) <= law.error <= reach


def test_noise_along_flat_directions_grows_without_end():
    """A Hilbert matrix under isotropic noise: exactly k lr^2 of variance along what is flat, and no stationary law."""
    hessian = 1.0 / (np.arange(15)[:, None] + np.arange(15) + 1)
    steps = 10**6
    law = transient_covariance(sgd(lr=0.5), hessian, np.eye(15), steps)
    vectors = np.linalg.eigh(hessian)[1]
    assert vectors[:, 0] @ law.value @ vectors[:, 0] == pytest.approx(steps * 0.25, rel=1e-7)
    assert law.error <= 1e-7
    with pytest.raises(NonStationaryError, match="random walk"):
        periodic_covariance(sgd(lr=0.5), Schedule([Phase(2), Phase(1, lr=0.25)]), hessian, np.eye(15))


def test_a_period_without_noise_has_the_law_0():
    period = Schedule([Phase(1, lr=0.1), Phase(3, lr=0.025)])
    law = periodic_covariance(heavy_ball(lr=0.1, momentum=0.9), period, [[1.0, 0.2], [0.2, 0.5]], np.zeros((2, 2)))
    assert not law.covariance.any()
    assert [part.error for part in law.laws] == [0.0, 0.0]


def test_an_error_that_cannot_be_told_is_infinite_and_warned_of():
    hessian = 1e-102 * np.array([[4.0, -2.0], [-2.0, 3.0]])
    with pytest.warns(AccuracyWarning, match="no bound"):
        law = transient_covariance(sgd(lr=4e101), hessian, np.diag([0.1, 1e-7]), 0, start=np.eye(2))
    assert law.value == pytest.approx(np.eye(2), abs=1e-14)
    assert law.error == np.inf
