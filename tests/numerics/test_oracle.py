"""Every rule against a 60-digit solution of the pair Stein equation, down to lr*h = 1e-12 and up to the stability edge.

The oracle takes its recursion from the rule's own step function, run on 60-digit numbers: nothing is shared with the
trace, the exact elimination or the double-double evaluation that it checks.
"""

import mpmath
import numpy as np
import pytest

from sgdcov.numerics import pair_covariance, stationary_covariance
from sgdcov.theory import RULES, heavy_ball, qhm, stability, with_ema

ALL_RULES = (*RULES, with_ema(heavy_ball), with_ema(qhm))
DIGITS = 60

# A value is a polynomial to one ulp (2u), divided by at most four of those, with a rounding u each: 14u, u = eps/2.
TOLERANCE = 8 * np.finfo(float).eps


def oracle(optimizer, x, y):
    """The slot covariances of the pair (x, y) for unit noise covariance, as 60-digit numbers."""
    m = len(optimizer.rule.slots)
    values = {name: mpmath.mpf(value) for name, value in optimizer.values.items()}

    def recursion(h):
        def step(state, noise):
            return optimizer.rule.function(state, lambda w: h * w + noise, **values)

        units = [tuple(mpmath.mpf(int(s == t)) for t in range(m)) for s in range(m)]
        columns = [step(unit, mpmath.mpf(0)) for unit in units]
        return [[columns[s][p] for s in range(m)] for p in range(m)], step((mpmath.mpf(0),) * m, mpmath.mpf(1))

    (a, b), (c, e) = recursion(mpmath.mpf(x)), recursion(mpmath.mpf(y))
    slots = [(p, q) for p in range(m) for q in range(m)]
    system = mpmath.matrix([[(p == s) * (q == t) - a[p][s] * c[q][t] for s, t in slots] for p, q in slots])
    solution = mpmath.lu_solve(system, mpmath.matrix([b[p] * e[q] for p, q in slots]))
    return [[solution[p * m + q] for q in range(m)] for p in range(m)]


def draw_optimizer(rule, rng):
    """Hyper-parameters over their whole useful range: momenta to 0.9999, learning rates over nine decades."""
    fraction = {
        "uniform": lambda: rng.uniform(),
        "near one": lambda: 1 - 10 ** -rng.uniform(1, 4),
        "zero": lambda: 0.0,
    }
    draws = {
        "lr": lambda: 10 ** rng.uniform(-8, 1),
        "weight_decay": lambda: rng.choice([0.0, 10 ** rng.uniform(-6, -2)]),
        "rho": lambda: rng.choice([0.0, 10 ** rng.uniform(-4, 1)]),
        "nu": lambda: rng.choice([0.0, 1.0, rng.uniform()], p=[0.1, 0.1, 0.8]),
    }
    kinds = ("uniform", "near one", "zero")
    values = {
        p.name: float(draws.get(p.name, fraction[rng.choice(kinds, p=[0.4, 0.5, 0.1])])()) for p in rule.hyperparameters
    }
    return rule(**values)


def stability_edge(optimizer):
    """The largest h below which every margin is positive."""
    roots = [np.roots(np.array(c[::-1], dtype=float)) for c in stability(optimizer).margin_coefficients]
    roots = np.concatenate(roots)
    positive = roots.real[(np.abs(roots.imag) < 1e-12 * np.abs(roots)) & (roots.real > 0)]
    return float(positive.min())


def draw_pairs(optimizer, count, rng):
    """Pairs of eigenvalues: far below the edge, near it and anywhere; nearly equal, and with ratios to 1e12."""
    edge = stability_edge(optimizer)
    share = np.stack([10 ** -rng.uniform(0, 12, count), 1 - 10 ** -rng.uniform(1, 6, count), rng.uniform(0, 1, count)])[
        rng.integers(3, size=count), np.arange(count)
    ]
    x = np.minimum(edge * share, edge * (1 - 1e-6))
    ratio = np.stack([10 ** -rng.uniform(0, 12, count), 1 - 10 ** -rng.uniform(0, 12, count), np.ones(count)])
    y = x * ratio[rng.integers(3, size=count), np.arange(count)]
    swap = rng.uniform(size=count) < 0.5
    return np.where(swap, y, x), np.where(swap, x, y)


def worst_error(optimizer, x, y):
    """The largest relative error over pairs and slots, and the pair."""
    measured = pair_covariance(optimizer, x, y)
    worst = (0.0, None)
    with mpmath.workdps(DIGITS):
        for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
            exact = oracle(optimizer, a, b)
            for p, q in np.ndindex(measured.shape[1:]):
                if abs(exact[p][q]) < mpmath.mpf(10) ** (10 - DIGITS):
                    error = abs(measured[i, p, q])
                else:
                    error = abs(mpmath.mpf(measured[i, p, q]) / exact[p][q] - 1)
                if error > worst[0]:
                    worst = (float(error), (a, b, p, q))
    return worst


def check(rule, optimizers, pairs):
    rng = np.random.default_rng([*rule.name.encode()])
    worst = (0.0, None)
    for _ in range(optimizers):
        optimizer = draw_optimizer(rule, rng)
        error, case = worst_error(optimizer, *draw_pairs(optimizer, pairs, rng))
        worst = max(worst, (error, (optimizer, case)), key=lambda w: w[0])
    assert worst[0] <= TOLERANCE, f"relative error {worst[0]:.3g} at {worst[1]}"
    return worst


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_the_pair_covariance_is_correct_to_a_few_ulp(rule):
    check(rule, optimizers=10, pairs=30)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_ten_thousand_pairs_are_correct_to_a_few_ulp(rule):
    check(rule, optimizers=125, pairs=80)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_every_entry_of_the_covariance_on_a_diagonal_hessian_is_correct_to_a_few_ulp(rule):
    rng = np.random.default_rng([*rule.name.encode(), 1])
    optimizer = draw_optimizer(rule, rng)
    h = np.concatenate(draw_pairs(optimizer, 3, rng))
    root = rng.normal(size=(h.size, h.size))
    noise = root @ root.T
    noise = (noise + noise.T) / 2
    joint = stationary_covariance(optimizer, np.diag(h), noise).joint()
    m, d = len(rule.slots), h.size
    with mpmath.workdps(DIGITS):
        for i, j in np.ndindex(d, d):
            exact = oracle(optimizer, h[i], h[j])
            for p, q in np.ndindex(m, m):
                expected = exact[p][q] * mpmath.mpf(noise[i, j])
                scale = abs(expected) if abs(exact[p][q]) > mpmath.mpf(10) ** (10 - DIGITS) else 1
                # One more rounding: the product with c_ij.
                assert abs(joint[p * d + i, q * d + j] - expected) <= 1.0625 * TOLERANCE * scale


def test_the_oracle_notices_a_wrong_learning_rate():
    optimizer = heavy_ball(lr=0.1, momentum=0.9)
    x = np.array([1.0])
    wrong = optimizer.replace(lr=0.1 * (1 + 1e-14))
    with mpmath.workdps(DIGITS):
        exact = oracle(wrong, 1.0, 1.0)[0][0]
    assert abs(pair_covariance(optimizer, x, x)[0, 0, 0] / float(exact) - 1) > TOLERANCE
