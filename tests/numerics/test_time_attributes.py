"""Every attribute of laws over time, one by one, against 50-digit numbers stepped by the rule's own function."""

import dataclasses
import itertools

import mpmath
import numpy as np
import pytest

from sgdcov.numerics import (
    Phase,
    QuadraticExamples,
    Schedule,
    periodic_covariance,
    reshuffling_law,
    stationary_covariance,
    trajectory,
    transient_covariance,
)
from sgdcov.theory import heavy_ball, polyak, sgd

EPS = np.finfo(float).eps
H = np.array([[1.0, 0.25], [0.25, 0.5]])
C = np.array([[2.0, -0.5], [-0.5, 1.0]])
START = np.array([[1.0, 0.5], [0.5, 3.0]])
MEAN, OPTIMUM = np.array([2.0, -1.0]), np.array([0.5, 0.25])
FAST, SLOW = ({"lr": lr, "momentum": 0.5} for lr in (0.25, 0.125))
SCHEDULE = Schedule([Phase(3, **FAST), Phase(4, **SLOW)])


def exactly(a):
    return np.vectorize(mpmath.mpf, otypes=[object])(a)


def steps(optimizer, hessian):
    """A and B of one step, as objects, from the rule's function."""
    m, d = len(optimizer.rule.slots), len(hessian)
    values = {name: mpmath.mpf(value) for name, value in optimizer.values.items()}

    def step(state, noise):
        slots = tuple(state.reshape(m, d))
        return np.concatenate(optimizer.rule.function(slots, lambda w: exactly(hessian) @ w + noise, **values))

    nothing, still = exactly(np.zeros(m * d)), exactly(np.zeros(d))
    a = np.array([step(unit, still) for unit in exactly(np.eye(m * d))]).T
    return a, np.array([step(nothing, unit) for unit in exactly(np.eye(d))]).T


def solved(matrix, right):
    return np.array(list(mpmath.lu_solve(mpmath.matrix(matrix.tolist()), mpmath.matrix(right.tolist()))))


def log_det(s):
    return mpmath.log(mpmath.det(mpmath.matrix(s.tolist())))


def risk(s):
    return np.sum(exactly(H) * s) / 2


def public(result):
    """Names of all that is told by itself: fields and properties."""
    kind = type(result)
    names = {field.name for field in dataclasses.fields(kind)} | {
        n for n in dir(kind) if not callable(getattr(kind, n))
    }
    return {name for name in names if not name.startswith("_")}


def check(result, expected, *, exact=(), error="error"):
    """Each attribute, and that none was forgotten."""
    told = public(result) - set(exact) - {error}
    assert told == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            np.asarray(getattr(result, name), dtype=float), np.array(value, dtype=float), rtol=1e3 * EPS, err_msg=name
        )


def run(bound, *, start=None, mean=None):
    """The two parts of the covariance of all slots, and the mean of them, after 0, 1, ... steps."""
    (first, _), m = bound[0], len(bound[0][0].rule.slots)
    rest = [mpmath.mpf(float(name != "v")) for name in first.rule.slots]
    left = np.kron(np.outer(rest, rest), exactly(np.zeros((2, 2)) if start is None else start))
    built = exactly(np.zeros((2 * m, 2 * m)))
    delta = np.kron(rest, exactly(OPTIMUM if mean is None else mean) - exactly(OPTIMUM))
    yield left, built, delta
    for optimizer, count in bound:
        a, b = steps(optimizer, H)
        for _ in range(count):
            left, built, delta = a @ left @ a.T, a @ built @ a.T + b @ exactly(C) @ b.T, a @ delta
            yield left, built, delta


def law_of(left, built, optimizer, count):
    w = np.s_[:2, :2]
    value = (left + built)[w]
    return {
        "value": value, "propagated": left[w], "injected": built[w], "steps": count, "excess_risk": risk(value),
        "log_det": log_det(value), "rank": 2, "trace": np.trace(value),
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", [sgd(lr=0.25), heavy_ball(**FAST), polyak(**FAST)], ids=lambda o: o.rule.name)
def test_every_attribute_of_a_transient(optimizer):
    with mpmath.workdps(50):
        left, built, _ = list(run(((optimizer, 5),), start=START))[-1]
        law = transient_covariance(optimizer, H, C, 5, start=START)
        check(law, law_of(left, built, optimizer, 5), exact=("optimizer", "slots"))
        assert (law.optimizer, law.slots) == (optimizer, optimizer.rule.slots)
        np.testing.assert_allclose(law.joint(), (left + built).astype(float), rtol=1e3 * EPS)
        gap = np.linalg.norm((law.value - law_of(left, built, optimizer, 5)["value"]).astype(float))
        assert gap <= law.error * np.linalg.norm(law.value) < 1e-12


@pytest.mark.parametrize("rule", [heavy_ball, polyak], ids=lambda rule: rule.name)
def test_every_attribute_of_a_trajectory(rule):
    times = [0, 2, 3, 6, 7]
    with mpmath.workdps(50):
        states = list(run(SCHEDULE.bind(rule()), start=START, mean=MEAN))
        result = trajectory(rule(), SCHEDULE, H, C, start=START, mean=MEAN, optimum=OPTIMUM, record=times)
        parts = [[x[:2, :2] if x.ndim == 2 else x[:2] for x in states[t]] for t in times]
        laws = [left + built for left, built, _ in parts]
        risks = [[risk(left), risk(built), risk(np.outer(d, d))] for left, built, d in parts]
        expected = {
            "times": times, "mean": [d + exactly(OPTIMUM) for *_, d in parts], "trace": [np.trace(s) for s in laws],
            "propagated_risk": [r[0] for r in risks], "injected_risk": [r[1] for r in risks],
            "mean_risk": [r[2] for r in risks], "excess_risk": [sum(r) for r in risks], "covariance": laws,
            "log_det": [log_det(s) for s in laws],
        }  # fmt: skip
        check(result, expected, exact=("final",))
        left, built, _ = states[-1]
        check(result.final, law_of(left, built, rule(**SLOW), 7), exact=("optimizer", "slots"))
        gaps = np.linalg.norm((result.covariance - np.array(laws)).astype(float), axis=(1, 2))
        sizes = np.linalg.norm(result.covariance, axis=(1, 2))
        assert np.all(gaps <= result.error * sizes)
        assert np.all(result.error < 1e-12)


@pytest.mark.parametrize("rule", [heavy_ball, polyak], ids=lambda rule: rule.name)
def test_every_attribute_of_a_periodic_law(rule):
    positions = [0, 2, 3, 7]
    with mpmath.workdps(50):
        bound = SCHEDULE.bind(rule())
        a = exactly(np.eye(4))
        for optimizer, count in bound:
            for _ in range(count):
                a = steps(optimizer, H)[0] @ a
        whole = list(run(bound))[-1][1].ravel()
        z = solved(exactly(np.eye(16)) - np.kron(a, a), whole).reshape(4, 4)
        laws = [z]
        for optimizer, count in bound:
            step, gain = steps(optimizer, H)
            for _ in range(count):
                laws.append(step @ laws[-1] @ step.T + gain @ exactly(C) @ gain.T)
        result = periodic_covariance(rule(), SCHEDULE, H, C, record=positions)
        at = [laws[t][:2, :2] for t in positions]
        expected = {
            "positions": positions, "period": 7, "covariance": at, "trace": [np.trace(s) for s in at],
            "excess_risk": [risk(s) for s in at], "log_det": [log_det(s) for s in at],
        }  # fmt: skip
        check(result, expected, exact=("laws",))
        for law, t in zip(result.laws, positions, strict=True):
            nothing = exactly(np.zeros((4, 4)))
            check(law, law_of(nothing, laws[t], rule(**SLOW), t), exact=("optimizer", "slots"))
        gaps = np.linalg.norm((result.covariance - np.array(at)).astype(float), axis=(1, 2))
        assert np.all(gaps <= result.error * np.linalg.norm(result.covariance, axis=(1, 2)))
        assert np.all(result.error < 1e-12)


@pytest.mark.parametrize("position", [0, 1, "average"])
def test_every_attribute_of_a_shuffled_law(position):
    """All six orders of three examples in two dimensions, under weight decay."""
    optimizer, decay, lr = sgd(lr=0.25, weight_decay=0.125), mpmath.mpf(0.125), mpmath.mpf(0.25)
    hessians = np.array([[[1.0, 0.5], [0.5, 2.0]], [[0.5, 0.0], [0.0, 0.25]], [[1.5, 0.25], [0.25, 0.75]]])
    offsets = np.array([[1.0, -2.0], [-0.5, 0.5], [0.25, 1.0]])
    problem = QuadraticExamples(hessians, offsets)
    with mpmath.workdps(50):
        h, g, one = exactly(hessians), exactly(offsets), exactly(np.eye(2))
        mean_h, mean_g = (x.sum(axis=0) / 3 for x in (h, g))
        optimum, fixed = solved(mean_h, -mean_g), solved(mean_h + decay * one, -mean_g)
        paths = []
        for order in itertools.permutations(range(3)):
            path = [(one, 0 * fixed)]
            for i in order:
                a, (power, shift) = one - lr * (h[i] + decay * one), path[-1]
                path.append((a @ power, a @ shift - lr * g[i]))
            paths.append(path)
        powers, shifts = ([path[-1][k] for path in paths] for k in (0, 1))
        start = solved(one - sum(powers) / 6, sum(shifts) / 6)
        both = sum(np.kron(a, a) for a in powers) / 6
        linear = sum(np.outer(a @ start, s) + np.outer(s, a @ start) for a, s in zip(powers, shifts, strict=True)) / 6
        second = linear + sum(np.outer(s, s) for s in shifts) / 6
        moments = solved(exactly(np.eye(4)) - both, second.ravel()).reshape(2, 2)

        def at(step):
            mean, square = 0, 0
            for path in paths:
                a, s = path[step]
                mean = mean + (a @ start + s) / 6
                cross = np.outer(a @ start, s)
                square = square + (a @ moments @ a.T + cross + cross.T + np.outer(s, s)) / 6
            return mean, square

        seen = [at(step) for step in range(3)] if position == "average" else [at(position)]
        mean, square = (sum(x[k] for x in seen) / len(seen) for k in (0, 1))
        value, delta = square - np.outer(mean, mean), mean - optimum
        radius = max(abs(x) for x in mpmath.eig(mpmath.matrix(both.tolist()), left=False, right=False))
        expected = {
            "value": value, "mean": mean, "fixed_point": fixed, "bias": mean - fixed, "rank": 2,
            "spectral_radius": radius, "trace": np.trace(value), "log_det": log_det(value),
            "excess_risk": np.sum(mean_h * (value + np.outer(delta, delta))) / 2,
        }  # fmt: skip
        law = reshuffling_law(optimizer, problem, 1, position=position)
        check(law, expected, exact=("optimizer", "slots", "position", "method", "status"))
        assert (law.optimizer, law.position, law.method) == (optimizer, position, "enumeration")
        np.testing.assert_allclose(law.slot_mean(["w"]), law.mean, rtol=EPS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("optimizer", [sgd(lr=0.25), heavy_ball(lr=0.25, momentum=0.75)], ids=lambda o: o.rule.name)
def test_under_rank_deficient_noise_a_transient_is_a_covariance_no_wider_than_the_stationary_law(optimizer, seed):
    """Noise of rank 2 in 5 directions whose curvatures lie 14 decades apart, in a rotated basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    factor = rng.normal(size=(5, 2))
    hessian, noise = basis @ np.diag(10.0 ** -np.array([0, 1, 4, 9, 14])) @ basis.T, factor @ factor.T
    hessian, noise = (hessian + hessian.T) / 2, (noise + noise.T) / 2
    decayed = optimizer.replace(weight_decay=1e-6)
    whole = stationary_covariance(decayed, hessian, noise)
    schedule = Schedule([Phase(10), Phase(10**3)])
    laws = [transient_covariance(decayed, hessian, noise, count) for count in (1, 10, 10**4, 10**12)]
    path = trajectory(decayed, schedule, hessian, noise)
    values = [(law.value, law.error) for law in laws] + list(zip(path.covariance, path.error, strict=True))[1:]
    for value, error in values:
        size = np.linalg.norm(value)
        np.linalg.cholesky(value + error * size * np.eye(5))
        assert np.trace(value) <= np.trace(whole.value) * (1 + 5 * (error + whole.error))
