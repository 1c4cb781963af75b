"""Every rule after up to 10^9 steps against 60-digit numbers: tiny curvatures, critical damping and near it, the edge.

The oracle steps the rule's own function on 60-digit numbers and raises the map of all second moments to the power k;
neither the trace, the doubling of pairs nor the double-double arithmetic that it checks has a part in it.
"""

import mpmath
import numpy as np
import pytest

from sgdcov.errors import DivergenceError
from sgdcov.numerics import (
    Phase,
    Schedule,
    stationary_covariance,
    trajectory,
    transient_covariance,
    transient_mean,
)
from sgdcov.theory import RULES, heavy_ball, nesterov, polyak, qhm, sgd, with_ema

ALL_RULES = (*RULES, with_ema(heavy_ball))
EPS = np.finfo(float).eps
DIGITS = 60
SMALLEST = 1e-280  # below, the second half of a double-double underflows

SPEC = 1e-10


def tolerance(optimizer, k):
    """Four roundings of u = eps/2, and k steps of double-double, 2^-100 each.

    The latter are magnified by what a power of A can exceed its spectral radius by, about 1/(1 - momentum): in both
    factors of the doubling, and once more where velocities cancel in a difference of weights.
    """
    memory = max(float(optimizer.values.get(name, 0)) for name in ("momentum", "beta", "ema_decay"))
    return 2 * EPS + k * 2.0**-100 * (4 / (1 - memory)) ** 3


def one_step(optimizer, h):
    """A(h) and b(h) as 60-digit numbers, from the rule's function."""
    m = len(optimizer.rule.slots)
    values = {name: mpmath.mpf(value) for name, value in optimizer.values.items()}

    def step(state, noise):
        return optimizer.rule.function(state, lambda w: mpmath.mpf(h) * w + noise, **values)

    columns = [step(tuple(mpmath.mpf(int(s == t)) for t in range(m)), mpmath.mpf(0)) for s in range(m)]
    return [[columns[s][p] for s in range(m)] for p in range(m)], step((mpmath.mpf(0),) * m, mpmath.mpf(1))


def product(a, b):
    columns = list(zip(*b, strict=True))
    return [[mpmath.fdot(row, column) for column in columns] for row in a]


def power(a, k):
    out = None
    while k:
        if k & 1:
            out = a if out is None else product(out, a)
        k >>= 1
        if k:
            a = product(a, a)
    return out


def oracle(optimizer, x, y, k):
    """The map of the second moments of the pair in k steps, and what unit noise adds."""
    (a, b), (c, e) = one_step(optimizer, x), one_step(optimizer, y)
    m = len(b)
    slots = [(p, q) for p in range(m) for q in range(m)]
    zero, one = mpmath.mpf(0), mpmath.mpf(1)
    whole = [[a[p][s] * c[q][t] for s, t in slots] + [b[p] * e[q]] for p, q in slots]
    whole = power([*whole, [zero] * len(slots) + [one]], k)
    return [row[:-1] for row in whole[:-1]], [row[-1] for row in whole[:-1]]


def problem(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, 2 * d))
    noise, w = root @ root.T, root[:, ::2] @ root[:, ::2].T
    return (noise + noise.T) / 2, (w + w.T) / 2


def relative(value, exact, bound=0):
    """The relative error; of what has cancelled to less than 2^-48 of its bound, that of 2^-48 of it."""
    return float(abs(mpmath.mpf(value) - exact) / max(abs(exact), abs(bound) * 2.0**-48, SMALLEST))


def worst_error(optimizer, h, k):
    """The worst relative error of the propagated and of the injected part, over pairs and slots, and where it is."""
    h = np.asarray(h, dtype=float)
    d, slots = h.size, optimizer.rule.slots
    m = len(slots)
    noise, w = problem(d)
    left = transient_covariance(optimizer, np.diag(h), np.zeros((d, d)), k, start=w)
    new = transient_covariance(optimizer, np.diag(h), noise, k)
    rest = [1.0 if name in ("w", "w_prev", "ema") else 0.0 for name in slots]
    exact = {}
    with mpmath.workdps(DIGITS):
        for i, j in zip(*np.triu_indices(d), strict=True):
            carried, built = oracle(optimizer, h[i], h[j], k)
            for p, q in np.ndindex(m, m):
                row = carried[p * m + q]
                old = mpmath.fsum(row[s * m + t] * rest[s] * rest[t] for s, t in np.ndindex(m, m))
                exact[i, j, p, q] = old * mpmath.mpf(w[i, j]), built[p * m + q] * mpmath.mpf(noise[i, j])
        worst = (0.0, None)
        for (i, j, p, q), parts in exact.items():
            for law, value, first, second in zip((left, new), parts, exact[i, i, p, p], exact[j, j, q, q], strict=True):
                bound = mpmath.sqrt(abs(first * second))
                error = relative(law.block(slots[p], slots[q])[i, j], value, bound)
                if error > worst[0]:
                    worst = (error, (optimizer, k, float(h[i]), float(h[j]), slots[p], slots[q]))
    return worst


def draw(rule, rng):
    """Momenta to 0.9999 and learning rates over six decades; curvatures from lr*h = 1e-12 to beyond the edge."""
    kinds = (lambda: 0.0, rng.uniform, lambda: 1 - 10 ** -rng.uniform(1, 4))
    draws = {
        "lr": lambda: 10 ** rng.uniform(-6, 0),
        "weight_decay": lambda: rng.choice([0.0, 10 ** rng.uniform(-6, -2)]),
        "rho": lambda: 10 ** rng.uniform(-4, 0),
        "nu": rng.uniform,
    }
    values = {p.name: float(draws.get(p.name, kinds[rng.integers(3)])()) for p in rule.hyperparameters}
    lr, mu = values["lr"], values.get("momentum", 0.0)
    critical = (1 - np.sqrt(mu)) ** 2 / lr
    near = critical * (1 + rng.choice([-1, 1]) * 10 ** -rng.uniform(6, 14))
    edge = 2 * (1 + mu) / lr
    h = [0.0, 1e-12 / lr, 10 ** rng.uniform(-12, 0) / lr, critical, near, edge * (1 - 10 ** -rng.uniform(1, 9))]
    return rule(**values), h


def check(rule, count, rng):
    worst = (0.0, 0.0, None)
    for _ in range(count):
        optimizer, h = draw(rule, rng)
        k = int(10 ** rng.uniform(0, 9))
        try:
            error, case = worst_error(optimizer, h, k)
        except DivergenceError:  # the edge of heavy ball is beyond that of other rules
            error, case = worst_error(optimizer, h[:2], k)
        worst = max(worst, (error / tolerance(optimizer, k), error, case), key=lambda e: e[0])
    assert worst[0] <= 1, f"relative error {worst[1]:.3g} at {worst[2]}"
    assert worst[1] <= SPEC
    return worst[1:]


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_both_parts_are_correct_to_the_last_bits(rule):
    check(rule, 3, np.random.default_rng([*rule.name.encode()]))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_both_parts_are_correct_to_the_last_bits_in_many_cases(rule):
    check(rule, 150, np.random.default_rng([*rule.name.encode(), 1]))


MU = 0.9
CRITICAL = (1 - np.sqrt(MU)) ** 2
SHARP = [0.25 * (1 + x) for x in (0, 1e-12, -1e-12, 1e-15, -1e-15, 2e-24)]
CASES = [
    (sgd(lr=1e-3), [0.0, 1e-9, 1e-6, 0.5, 1999.999, 2000.0]),
    # r+ = r- = 1/2 exactly, and |r+ - r-| = sqrt(4 (h - 1/4)) down to 1e-12 and below
    (heavy_ball(lr=1.0, momentum=0.25), SHARP),
    (heavy_ball(lr=0.1, momentum=MU), [1e-11, CRITICAL * 10, CRITICAL * 10 * (1 + 1e-12), 38 - 1e-9, 38.0]),
    (nesterov(lr=0.1, momentum=0.99), [1e-11, 1e-8, 1e-6, 0.3]),
    (polyak(lr=0.1, momentum=0.999), [1e-11, 1e-8, 0.3, 39.98 - 1e-9]),
    (qhm(lr=0.1, beta=0.99, nu=0.7), [1e-11, 1e-8, 1e-6, 0.3]),
]


@pytest.mark.parametrize("k", [1, 7, 1000, 999_999, 10**9])
@pytest.mark.parametrize(("optimizer", "h"), CASES, ids=[repr(optimizer) for optimizer, _ in CASES])
def test_hard_cases(optimizer, h, k):
    error, case = worst_error(optimizer, h, k)
    assert error <= tolerance(optimizer, k), case


def test_an_unstable_mode_grows_as_it_should():
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    error, case = worst_error(optimizer, [1.0, 38.01, 50.0], 300)
    assert error <= tolerance(optimizer, 300), case


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("rule", [heavy_ball, polyak, nesterov], ids=lambda rule: rule.name)
def test_from_the_stationary_law_of_another_learning_rate(rule, momentum):
    """End to end, the law at the start included: Polyak's two copies of the weights would lose it, held in doubles."""
    before, after = rule(lr=0.1, momentum=momentum), rule(lr=0.01, momentum=momentum)
    critical = (1 - np.sqrt(momentum)) ** 2 / 0.01
    h = [1e-11, 1e-3, critical, critical * (1 + 1e-12), 1.0, 5.0]
    start = stationary_covariance(before, np.diag(h), np.eye(len(h)))
    for k in (1, 20, 10**5):
        result = transient_covariance(after, np.diag(h), np.eye(len(h)), k, start=start)
        with mpmath.workdps(DIGITS):
            for i, x in enumerate(h):
                one_map, added = oracle(before, x, x, 1)
                n = len(added)
                system = mpmath.matrix([[(p == q) - one_map[p][q] for q in range(n)] for p in range(n)])
                law = mpmath.lu_solve(system, mpmath.matrix(added))
                carried, built = oracle(after, x, x, k)
                exact = mpmath.fdot(carried[0], list(law)) + built[0]
                assert relative(result.value[i, i], exact) <= tolerance(after, k)


@pytest.mark.parametrize("rule", [heavy_ball, polyak], ids=lambda rule: rule.name)
def test_three_phases_of_a_schedule(rule):
    """Between phases nothing is rounded: the law after all of them is as good as after one."""
    h = np.array([0.0, 1e-11, 1e-7, CRITICAL * 10, CRITICAL * 10 * (1 + 1e-12), 1.0, 3.0])
    phases = [(10**9, 0.1), (10**6 + 1, 0.01), (12_345, 0.3)]
    schedule = Schedule([Phase(k, lr=lr) for k, lr in phases])
    optimizer = rule(momentum=MU)
    value = trajectory(optimizer, schedule, np.diag(h), np.eye(h.size), record=[schedule.steps]).covariance[0]
    with mpmath.workdps(DIGITS):
        for i, x in enumerate(h):
            law = [mpmath.mpf(0)] * 4
            for k, lr in phases:
                carried, built = oracle(optimizer.replace(lr=lr), x, x, k)
                law = [mpmath.fdot(row, law) + c for row, c in zip(carried, built, strict=True)]
            assert relative(value[i, i], law[0]) <= 4 * EPS


def test_the_mean():
    h = [0.0, 1e-11, CRITICAL * 10, CRITICAL * 10 * (1 + 1e-12), 1.0]
    k = 10**6 + 1
    for weight_decay in (0.0, 1e-5):
        optimizer = heavy_ball(lr=0.1, momentum=MU, weight_decay=weight_decay)
        start, optimum = np.full(5, 3.0), np.ones(5)
        mean = transient_mean(optimizer, np.diag(h), k, start=start, optimum=optimum, slots=("w", "v"))
        with mpmath.workdps(DIGITS):
            for i, x in enumerate(h):
                a, b = one_step(optimizer, x)
                whole = power([[*a[p], -mpmath.mpf(x) * b[p]] for p in range(2)] + [[0, 0, mpmath.mpf(1)]], k)
                exact = [row[0] * 3 + row[2] for row in whole[:2]]
                assert relative(mean[i], exact[0]) <= 4 * EPS
                assert abs(mean[5 + i] - exact[1]) <= 4 * EPS * max(abs(exact[1]), EPS)


def test_the_oracle_notices_a_wrong_learning_rate():
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    wrong = optimizer.replace(lr=0.1 * (1 + 1e-14))
    with mpmath.workdps(DIGITS):
        exact = oracle(wrong, 1.0, 1.0, 100)[1][0]
    value = transient_covariance(optimizer, [[1.0]], [[1.0]], 100).value[0, 0]
    assert relative(value, exact) > tolerance(optimizer, 100)
