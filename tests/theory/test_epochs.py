"""Shuffled epochs: proved, and equal to the law of their noise written out step by step or order by order."""

import itertools
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import sympy as sp
from cases import bound

from sgdcov.errors import HyperparameterError, InvalidRuleError, ProofError
from sgdcov.theory import (
    RULES,
    crossover_curvature,
    epoch_average_covariance,
    epoch_covariance,
    epoch_flat_limit,
    epoch_noise,
    heavy_ball,
    minibatch_noise,
    nesterov,
    polyak,
    qhm,
    reshuffling_bias,
    reshuffling_covariance,
    sam,
    sgd,
    sgdw,
    stationary_covariance,
    with_ema,
)
from sgdcov.theory._exact import is_zero

R = sp.Rational
DIGITS = 50
CLOSE = mpmath.mpf(10) ** -38
H_I, H_J, C = R(3, 2), R(2, 5), R(-7, 3)


def mp(value):
    value = sp.Rational(value)
    return mpmath.mpf(int(value.p)) / int(value.q)


def stepped(optimizer, h):
    """A and b of one direction, from the rule's own function, in mpmath."""
    size = len(optimizer.rule.slots)
    optimizer = optimizer.replace(**{name: R(v) for name, v in optimizer.values.items()})
    units = [tuple(R(int(m == n)) for m in range(size)) for n in range(size)]
    columns = [optimizer.step(unit, lambda w: h * w) for unit in units]
    kick = optimizer.step((R(0),) * size, lambda w: h * w + 1)
    a = mpmath.matrix([[mp(columns[n][m]) for n in range(size)] for m in range(size)])
    return a, mpmath.matrix([mp(k) for k in kick])


def epoch_by_epoch(optimizer, h_i, h_j, c, batches):
    """The covariances of all states of an epoch, Z_0, ..., Z_M, with the noise covariance as a matrix over steps."""
    (a_i, b_i), (a_j, b_j) = stepped(optimizer, h_i), stepped(optimizer, h_j)
    noise = [[mp(c) if s == t else -mp(c) / (batches - 1) for t in range(batches)] for s in range(batches)]

    def injected(steps):
        total = mpmath.zeros(len(a_i))
        for s, t in itertools.product(range(steps), repeat=2):
            total += noise[s][t] * (a_i ** (steps - 1 - s) * b_i) * (a_j ** (steps - 1 - t) * b_j).T
        return total

    start, left, right = injected(batches), a_i**batches, a_j**batches
    for _ in range(16):  # sum over all past epochs, doubling their number
        start, left, right = start + left * start * right.T, left * left, right * right
    return [a_i**k * start * (a_j**k).T + injected(k) for k in range(batches + 1)], (a_i, a_j)


def evaluated(formula, **values):
    expression = formula.explicit().subs({formula.symbols[role]: values[role] for role in formula.symbols})
    return mpmath.mpf(sp.re(sp.N(expression, DIGITS)))


def epochs_of(num_examples, batch_size):
    for order in itertools.permutations(range(num_examples)):
        yield [order[k : k + batch_size] for k in range(0, num_examples, batch_size)]


def mean(values):
    values = list(values)
    return sum(values[1:], values[0]) / len(values)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_two_batches_of_an_epoch_are_anticorrelated(batch_size):
    """Over all orders of six examples."""
    a = [Fraction(v) for v in (3, -1, 4, 1, -5, 9)]
    b = [Fraction(v, 3) for v in (2, 7, 1, -8, 2, 8)]
    batches = 6 // batch_size
    orders = [[(sum(a[n] for n in s), sum(b[n] for n in s)) for s in e] for e in epochs_of(6, batch_size)]
    centre = [Fraction(sum(x) * batch_size, 6) for x in (a, b)]
    same, other = (mean((e[0][0] - centre[0]) * (e[k][1] - centre[1]) for e in orders) / batch_size**2 for k in (0, 1))
    formula, one = epoch_noise(), minibatch_noise(replacement=False)
    sums = {"sum_a": sum(a), "sum_b": sum(b), "sum_ab": sum(x * y for x, y in zip(a, b, strict=True))}
    values = {**{k: R(v) for k, v in sums.items()}, "batch_size": batch_size, "num_examples": 6}
    assert one.expression.subs({s: values[r] for r, s in one.symbols.items()}) == R(same)
    assert formula.expression.subs({formula.symbols["c_ab"]: R(same), formula.symbols["M"]: batches}) == R(other)


@pytest.mark.parametrize("rule", [*RULES, with_ema(sgd), with_ema(heavy_ball)], ids=lambda rule: rule.name)
def test_every_position_of_an_epoch(rule):
    optimizer, batches = bound(rule).replace(lr=R(1, 5)), 3
    slots = ("w", "ema") if "ema" in rule.slots else (rule.slots[0], rule.slots[-1])
    formula = epoch_covariance(optimizer, slots=slots)
    row, column = (rule.slots.index(name) for name in slots)
    at = {"M": batches, "h_i": H_I, "h_j": H_J, "c_ij": C}
    with mpmath.workdps(DIGITS):
        exact, _ = epoch_by_epoch(optimizer, H_I, H_J, C, batches)
        for k in range(batches + 1):
            assert abs(evaluated(formula, k=k, **at) - exact[k][row, column]) < CLOSE
        average = epoch_covariance(optimizer, "average", slots)
        total = sum((z[row, column] for z in exact[:-1]), mpmath.mpf(0)) / batches
        assert abs(evaluated(average, **at) - total) < CLOSE
        white = evaluated(stationary_covariance(optimizer, slots), h_i=H_I, h_j=H_J, c_ij=C)
        assert abs(white - total) > mpmath.mpf(10) ** -4  # independent batches are another law


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rule", [*RULES, with_ema(sgd)], ids=lambda rule: rule.name)
def test_the_mean_of_two_whole_epochs(rule, after):
    """All covariances between the states of two epochs, added up."""
    optimizer, batches, epochs = bound(rule).replace(lr=R(1, 5)), 3, 2
    last = rule.slots[-1] if "ema" in rule.slots else rule.slots[0]
    formula = epoch_average_covariance(optimizer, (last, last), after=after)
    where = rule.slots.index(last)
    with mpmath.workdps(DIGITS):
        states, (a_i, a_j) = epoch_by_epoch(optimizer, H_I, H_J, C, batches)
        (_, b_i), (_, b_j) = stepped(optimizer, H_I), stepped(optimizer, H_J)
        steps, size = epochs * batches, len(a_i)
        first = range(1, steps + 1) if after else range(steps)
        # Every state as a linear map of the start and of the noise of all steps.
        weight_i, weight_j = mpmath.zeros(1, size), mpmath.zeros(1, size)
        noise_i, noise_j = [mpmath.mpf(0)] * steps, [mpmath.mpf(0)] * steps
        for t in first:
            weight_i += (a_i**t)[where, :]
            weight_j += (a_j**t)[where, :]
            for s in range(t):
                noise_i[s] += (a_i ** (t - 1 - s) * b_i)[where]
                noise_j[s] += (a_j ** (t - 1 - s) * b_j)[where]
        total = (weight_i * states[0] * weight_j.T)[0]
        for s, t in itertools.product(range(steps), repeat=2):
            if s // batches == t // batches:
                total += (mp(C) if s == t else -mp(C) / (batches - 1)) * noise_i[s] * noise_j[t]
        found = evaluated(formula, E=epochs, M=batches, h_i=H_I, h_j=H_J, c_ij=C)
        assert abs(found - total / steps**2) < CLOSE


@pytest.mark.parametrize("roots", [("repeated", "repeated"), ("repeated", "distinct"), ("distinct", "repeated")])
def test_critical_damping_has_its_own_form(roots):
    """Momentum 1/4 is critically damped where lr h = 1/4, and has a complex pair at 5/3."""
    optimizer, batches = heavy_ball(lr=1, momentum=R(1, 4)), 4
    h = {"repeated": R(1, 4), "distinct": R(5, 3)}
    with mpmath.workdps(DIGITS):
        exact, _ = epoch_by_epoch(optimizer, h[roots[0]], h[roots[1]], C, batches)
        at = {"M": batches, "h_i": h[roots[0]], "h_j": h[roots[1]], "c_ij": C}
        formula = epoch_covariance(optimizer, roots=roots)
        assert formula.prove().claims
        for k in range(batches + 1):
            assert abs(evaluated(formula, k=k, **at) - exact[k][0, 0]) < CLOSE
        average = epoch_covariance(optimizer, "average", roots=roots)
        assert abs(evaluated(average, **at) - sum(z[0, 0] for z in exact[:-1]) / batches) < CLOSE
    undefined = epoch_covariance(optimizer, "average").lambdify("mpmath")
    with pytest.raises(HyperparameterError, match="roots='repeated'"):
        undefined(M=4, h_i=0.25, h_j=0.25, c_ij=1)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_formula_proves_itself(rule):
    covariances = (epoch_covariance(rule), epoch_covariance(rule, "average"))
    averages = (epoch_average_covariance(rule), epoch_average_covariance(rule, after=True))
    for formula in (*covariances, *averages):
        assert formula.prove().claims
        assert {s.name for s in formula.explicit().free_symbols} <= {s.name for s in formula.symbols.values()}


def test_white_noise_inside_an_epoch_does_not_prove_itself():
    """Forged: the factor M/(M - 1) forgotten, as if the noise of an epoch were centred white noise."""
    formula = epoch_covariance(sgd)
    text, _ = next(claim for claim in formula.identities if claim[0].startswith("Z_0"))
    batches = formula.symbols["M"]
    r, s, r_m, s_m = sp.symbols("r s R S")
    start = 1 / (1 - r * s) - (1 - r_m) * (1 - s_m) / (batches * (1 - r) * (1 - s) * (1 - r_m * s_m))
    drive = (1 - r_m * s_m) / (1 - r * s) - (1 - r_m) * (1 - s_m) / (batches * (1 - r) * (1 - s))
    factor = batches / (batches - 1)
    assert is_zero(factor * start - r_m * s_m * factor * start - factor * drive)
    forged = replace(formula, identities=((text, start - r_m * s_m * start - factor * drive),))
    with pytest.raises(ProofError, match="Z_0"):
        forged.prove()


def test_the_state_of_real_epochs_with_equal_hessians():
    """Plain SGD on four examples with one Hessian, over all 24 orders: the law of additive noise is exact."""
    g, h, lr = [R(3), R(-1), R(2), R(-4)], R(2), R(1, 5)
    ends = []
    for epoch in epochs_of(4, 1):
        w = R(0)
        for (n,) in epoch:
            w = w - lr * (h * w + g[n])
        ends.append(w)
    assert mean(ends) == 0
    variance = mean(w**2 for w in ends) / (1 - (1 - lr * h) ** 8)
    formula = epoch_covariance(sgd, 0).specialise(h_j="h_i", M=4)
    one_batch = sum(x**2 for x in g) / 4
    assert formula.explicit().subs({formula.symbols["h_i"]: h, formula.symbols["lr"]: lr,
                                    formula.symbols["c_ij"]: one_batch}) == variance  # fmt: skip


@pytest.mark.parametrize("rule", [sgd, heavy_ball, nesterov, polyak, qhm, sam], ids=lambda rule: rule.name)
def test_the_flat_limit_is_that_of_the_average(rule):
    optimizer = bound(rule).replace(lr=R(1, 5), **({"weight_decay": 0} if rule is not sam else {}))
    formula = epoch_flat_limit(optimizer)
    assert formula.prove().claims
    flat = R(1, 10**20)
    with mpmath.workdps(DIGITS):
        average = epoch_covariance(optimizer, "average")
        expression = average.explicit().subs({average.symbols["M"]: 7, average.symbols["c_ij"]: 1})
        near = sp.N(expression.subs({average.symbols["h_i"]: flat, average.symbols["h_j"]: 3 * flat}), 60, maxn=400)
        limit = evaluated(formula, M=7, c_ij=1)
        assert abs(mpmath.mpf(sp.re(near)) / limit - 1) < mpmath.mpf(10) ** -17
    with pytest.raises(InvalidRuleError, match="weight_decay=0"):
        epoch_flat_limit(sgdw)


def test_the_plateau_of_momentum_is_published_to_leading_order_only():
    mu = R(9, 10)
    exact = epoch_flat_limit(heavy_ball(lr=1, momentum=mu)).lambdify("mpmath")
    with mpmath.workdps(30):
        ratios = [exact(M=batches, c_ij=1) / (batches / mp(6 * (1 - mu) ** 2)) for batches in (400, 10**6)]
    assert float(ratios[0]) == pytest.approx(0.93457, abs=1e-5)
    assert abs(ratios[1] - 1) < 1e-4


@pytest.mark.parametrize("rule", [sgd, heavy_ball], ids=lambda rule: rule.name)
def test_white_noise_is_recovered_far_above_the_crossover(rule):
    optimizer = rule(lr=R(1, 1000)) if rule is sgd else rule(lr=R(1, 1000), momentum=R(1, 2))
    crossing = crossover_curvature(optimizer)
    assert crossing.prove().claims
    assert crossing.kind == "approximation"
    batches = 1000
    h = crossing.expression.subs(crossing.symbols["M"], batches)
    ratios = []
    with mpmath.workdps(DIGITS):
        for factor in (R(1, 100), 1, 100):
            at = {"h_i": h * factor, "h_j": h * factor, "c_ij": 1}
            white = evaluated(stationary_covariance(optimizer), **at)
            ratios.append(evaluated(epoch_covariance(optimizer, "average"), M=batches, **at) / white)
    below, at_it, above = ratios
    assert abs(above - 1) < mpmath.mpf(2) / 300  # 1 - 2/(lr h M) for plain SGD, at lr h M = 300 (1 - mu)
    assert abs(below - R(1, 100)) < 2e-4
    assert below < at_it < above


# --- different Hessians --------------------

HESSIANS = [Fraction(v) for v in (1, 2, 1, 1, 1, 15)]
GRADIENTS = [Fraction(v) for v in (2, -3, 1, 4, -5, 1)]


def ends_of_epochs(lr, batch_size):
    """Exact stationary mean and variance at epoch ends, over all orders."""
    maps = []
    for epoch in epochs_of(6, batch_size):
        slope, shift = Fraction(1), Fraction(0)
        for batch in epoch:
            h, g = (sum(x[n] for n in batch) / batch_size for x in (HESSIANS, GRADIENTS))
            slope, shift = slope * (1 - lr * h), shift * (1 - lr * h) - lr * g
        maps.append((slope, shift))
    centre = mean(b for _, b in maps) / (1 - mean(a for a, _ in maps))
    second = mean(b * b + 2 * a * b * centre for a, b in maps) / (1 - mean(a * a for a, _ in maps))
    return centre, second - centre**2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_reshuffling_biases_epoch_ends(batch_size):
    """The error of the leading order halves with the learning rate; with another p it does not."""
    formula = reshuffling_bias()
    assert formula.prove().claims
    h, hg = mean(HESSIANS), mean(x * g for x, g in zip(HESSIANS, GRADIENTS, strict=True))
    values = {"h_i": R(h), "mean_hg": R(hg), "batch_size": batch_size, "num_examples": 6}
    errors, wrong = [], []
    for lr in (Fraction(1, 2000), Fraction(1, 4000)):
        exact, _ = ends_of_epochs(lr, batch_size)
        stated = formula.expression.subs({s: {**values, "lr": R(lr)}[r] for r, s in formula.symbols.items()})
        errors.append(abs(stated / R(exact) - 1))
        with_replacement = R(1, batch_size) / R(6 - batch_size, batch_size * 5)
        wrong.append(abs(stated * with_replacement / R(exact) - 1))
    assert errors[0] < R(1, 50)
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.02)
    if batch_size > 1:
        assert wrong[1] > R(1, 10)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_variance_at_epoch_ends_knows_that_hessians_differ(batch_size):
    formula = reshuffling_covariance()
    assert formula.prove().claims
    h, batches = mean(HESSIANS), 6 // batch_size
    zeta, slopes = [], []
    for epoch in epochs_of(6, batch_size):
        drawn = [tuple(sum(x[n] for n in batch) / batch_size for x in (HESSIANS, GRADIENTS)) for batch in epoch]
        zeta.append(sum(drawn[s][0] * drawn[t][1] for s in range(batches) for t in range(s)))
        slopes.append(sum((batches - 1 - t) * h * drawn[t][1] for t in range(batches)))
    spread = mean(z * z for z in zeta) - mean(zeta) ** 2
    additive = mean(z * z for z in slopes) - mean(slopes) ** 2
    errors = []
    for lr in (Fraction(1, 2000), Fraction(1, 4000)):
        _, exact = ends_of_epochs(lr, batch_size)
        values = {"lr": R(lr), "h_i": R(h), "var_zeta": R(spread), "M": batches}
        stated = formula.expression.subs({s: values[r] for r, s in formula.symbols.items()})
        errors.append(abs(stated / R(exact) - 1))
        rejected = stated * R(additive) / R(spread)
        assert abs(rejected / R(exact) - 1) > R(1, 10)
    assert errors[0] < R(1, 20)
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.02)


def test_what_is_not_there_is_refused():
    with pytest.raises(InvalidRuleError, match="position must be"):
        epoch_covariance(sgd, -1)
    with pytest.raises(InvalidRuleError, match="position must be"):
        epoch_covariance(sgd, "end")
    with pytest.raises(InvalidRuleError, match="has the slots"):
        epoch_covariance(sgd, slots=("w", "v"))
    with pytest.raises(InvalidRuleError, match="a complex pair is 'distinct'"):
        epoch_covariance(heavy_ball, roots=("complex", "distinct"))
    with pytest.raises(InvalidRuleError, match="1 characteristic root"):
        epoch_covariance(sgd, roots=("repeated", "repeated"))
