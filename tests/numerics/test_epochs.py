"""Shuffled epochs: against whole epochs written out densely, every order of the examples, and 150-digit closed sums."""

import itertools
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from brute_force import OneStep
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdcov.errors import HyperparameterError, InvalidProblemError, NonStationaryError, UnstableError
from sgdcov.numerics import (
    EpochNoise,
    LeastSquares,
    Phase,
    Quadratic,
    QuadraticExamples,
    Schedule,
    autocovariance,
    average_covariance,
    crossover_curvature,
    epoch_noise,
    periodic_covariance,
    stationary_covariance,
    trajectory,
    transient_covariance,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, recursion, sam, sgd, sgdw, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.1, momentum=0.7, dampening=0.3, weight_decay=0.01),
    nesterov(lr=0.05, momentum=0.8),
    polyak(lr=0.1, momentum=0.5),
    qhm(lr=0.3, beta=0.95, nu=0.7),
    sgdw(lr=0.05, momentum=0.9, weight_decay=0.02),
    sam(lr=0.1, rho=0.2),
    with_ema(heavy_ball)(lr=0.05, momentum=0.9, ema_decay=0.9),
)
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
#: Of the dense oracle: products of tens of matrices, and a solve whose condition is about 1/(lr h M).
ROUNDING = 1e3 * EPS


def problem(seed=0, d=3):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, d, 2 * d))
    hessian, noise = ((root @ root.T + (root @ root.T).T) / (4 * d) for root in roots)
    return hessian, noise


def close(a, b, tolerance=ROUNDING):
    return np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


class Dense:
    """A whole epoch as one step: every slot and every noise of the epoch stacked, nothing in the eigenbasis."""

    def __init__(self, optimizer, hessian, noise):
        d, self.noise = len(hessian), noise
        step = OneStep.of(optimizer, Quadratic(hessian, noise.noise, np.zeros(d)))
        self.transition, self.gain = step.transition, step.gain
        count, rho = noise.batches_per_epoch, float(noise.correlation)
        self.joint = np.kron(np.full((count, count), rho) + (1 - rho) * np.eye(count), noise.noise)
        power, injected = self.after(count)
        n = len(power)
        flat = np.linalg.solve(np.eye(n * n) - np.kron(power, power), injected.ravel())
        self.start = flat.reshape(n, n)

    def responses(self, steps):
        """What the noise of every step of an epoch has become after so many of them."""
        count = self.noise.batches_per_epoch
        gains = [np.linalg.matrix_power(self.transition, steps - 1 - t) @ self.gain for t in range(steps)]
        return np.hstack([*gains, *[np.zeros_like(self.gain)] * (count - steps)])

    def after(self, steps):
        response = self.responses(steps)
        return np.linalg.matrix_power(self.transition, steps), response @ self.joint @ response.T

    def law(self, position):
        power, injected = self.after(position)
        return power @ self.start @ power.T + injected

    def average(self, window, d):
        """The mean of the weights after each step of a window: one long sum over its starts and its noises."""
        epochs = -(-window // self.noise.batches_per_epoch)
        powers = [np.linalg.matrix_power(self.transition, t) for t in range(window + 1)]
        kept = sum(powers[1:])
        late = np.cumsum([power @ self.gain for power in powers[:-1]], axis=0)
        columns = np.hstack([*late[::-1], np.zeros((len(kept), epochs * len(self.joint) - window * d))])
        joint = np.kron(np.eye(epochs), self.joint)
        return (kept @ self.start @ kept.T + columns @ joint @ columns.T)[:d, :d] / window**2


NOISES = ((2, None), (5, None), (5, Fraction(-1, 10)), (4, 0))


@over_optimizers
@pytest.mark.parametrize(("count", "correlation"), NOISES)
def test_every_position_is_that_of_epochs_written_out(optimizer, count, correlation):
    hessian, c = problem()
    noise = EpochNoise(c, count, correlation)
    dense = Dense(optimizer, hessian, noise)
    laws = [dense.law(position) for position in range(count)]
    for position, expected in enumerate(laws):
        assert close(stationary_covariance(optimizer, hessian, noise, position=position).joint(), expected)
    average = stationary_covariance(optimizer, hessian, noise, position="average")
    assert close(average.joint(), sum(laws) / count)
    np.testing.assert_array_equal(average.value, average.value.T)


@over_optimizers
@pytest.mark.parametrize("window", [1, 4, 5, 12, 20])
@pytest.mark.parametrize("correlation", [None, Fraction(-1, 10)])
def test_an_average_is_that_of_epochs_written_out(optimizer, window, correlation):
    hessian, c = problem(1)
    noise = EpochNoise(c, 5, correlation)
    expected = Dense(optimizer, hessian, noise).average(window, len(hessian))
    assert close(average_covariance(optimizer, hessian, noise, window), expected)


def closed_law(optimizer, x, y, noise, position):
    """All slots of one pair, unit noise, by closed geometric sums with their cancellations left to the digits."""
    step = recursion(optimizer)
    size = len(step.slots)

    def matrices(h):
        def value(entry):
            exact = entry.subs(step.h, Fraction(h))
            return mpmath.mpf(int(exact.p)) / int(exact.q)

        increment = mpmath.matrix(size, size)
        for p, q in itertools.product(range(size), repeat=2):
            increment[p, q] = value(step.increment[p, q])
        return increment, mpmath.matrix([value(entry) for entry in step.noise_gain])

    (dx, bx), (dy, by) = matrices(x), matrices(y)
    unit = mpmath.eye(size * size)
    ax, ay = mpmath.eye(size) + dx, mpmath.eye(size) + dy
    both, q, rho = kronecker(ax, ay), kronecker(bx, by), mpmath.mpf(noise.correlation.numerator)
    rho /= noise.correlation.denominator
    count = noise.batches_per_epoch
    inverse, once = mpmath.inverse(unit - both), both**count

    def injected(n):
        responses = [mpmath.lu_solve(d, a**n * b - b) for d, a, b in ((dx, ax, bx), (dy, ay, by))]
        return (1 - rho) * (inverse * (q - both**n * q)) + rho * kronecker(*responses)

    start = mpmath.lu_solve(unit - once, injected(count))
    if position != "average":
        return start if position == 0 else both**position * start + injected(position)
    # The sums over positions k of A^k Z A^k', of K_k, and of s_k s_k' with s_k = D^-1 (A^k b - b).
    fixed = [mpmath.lu_solve(d, b) for d, b in ((dx, bx), (dy, by))]
    drift = [mpmath.lu_solve(d, a**count * f - f) for d, a, f in zip((dx, dy), (ax, ay), fixed, strict=True)]
    squares = kronecker(*fixed)
    response = inverse * (squares - once * squares) + count * squares
    response -= kronecker(drift[0], fixed[1]) + kronecker(fixed[0], drift[1])
    white = inverse * (count * q - inverse * (q - once * q))
    return (inverse * (start - once * start) + (1 - rho) * white + rho * response) / count


def closed_average(optimizer, x, y, noise, epochs):
    """The weights' entry of a pair for unit noise, B (2 Z - A^T Z - Z A'^T) B'/T^2 with B = (A - I)^-1 A."""
    step, total = recursion(optimizer), epochs * noise.batches_per_epoch
    size = len(step.slots)
    start, unit = closed_law(optimizer, x, y, noise, 0), mpmath.eye(size)
    z, powers, factors = mpmath.matrix(size, size), [], []
    for p, q in itertools.product(range(size), repeat=2):
        z[p, q] = start[p * size + q]
    for h in (x, y):
        a = mpmath.matrix(size, size)
        for p, q in itertools.product(range(size), repeat=2):
            exact = step.transition[p, q].subs(step.h, Fraction(h))
            a[p, q] = mpmath.mpf(int(exact.p)) / int(exact.q)
        powers.append(a**total)
        factors.append(mpmath.inverse(a - unit) * a)
    return (factors[0] * (2 * z - powers[0] * z - z * powers[1].T) * factors[1].T)[0, 0] / total**2


def kronecker(a, b):
    out = mpmath.matrix(a.rows * b.rows, a.cols * b.cols)
    for i, j, k, n in itertools.product(range(a.rows), range(a.cols), range(b.rows), range(b.cols)):
        out[i * b.rows + k, j * b.cols + n] = a[i, j] * b[k, n]
    return out


CURVATURES = np.array([1e-10, 1e-5, 0.05, 1.5])
EXTREME = (
    sgd(lr=1.0),
    heavy_ball(lr=1.0, momentum=0.5),
    heavy_ball(lr=1.0, momentum=0.999),
    nesterov(lr=0.5, momentum=0.99),
    polyak(lr=1.0, momentum=0.999),
)


@pytest.mark.parametrize("optimizer", EXTREME, ids=repr)
@pytest.mark.parametrize("count", [2, 1000, 100_000])
@pytest.mark.parametrize("position", [0, 1, "average"])
def test_flat_directions_and_long_memory_keep_every_digit(optimizer, count, position):
    """At lr h = 1e-10 and two batches the noise of an epoch cancels to 1e-20 of its parts."""
    noise = EpochNoise(np.ones((4, 4)), count)
    law = stationary_covariance(optimizer, np.diag(CURVATURES), noise, position=position)
    m = len(law.slots)
    with mpmath.workdps(150):
        for i, j in ((0, 0), (0, 3), (1, 1), (2, 1), (2, 2), (3, 3)):
            exact = closed_law(optimizer, CURVATURES[i], CURVATURES[j], noise, position)
            for a, b in itertools.product(range(m), repeat=2):
                entry = law.block(law.slots[a], law.slots[b])[i, j]
                assert abs(mpmath.mpf(float(entry)) - exact[a * m + b]) <= EPS * abs(exact[a * m + b])


@pytest.mark.parametrize("optimizer", EXTREME, ids=repr)
@pytest.mark.parametrize("count", [2, 1000, 100_000])
@pytest.mark.parametrize("epochs", [1, 10_000])
def test_averages_over_epochs_keep_every_digit(optimizer, count, epochs):
    noise = EpochNoise(np.ones((4, 4)), count)
    average = average_covariance(optimizer, np.diag(CURVATURES), noise, count * epochs)
    with mpmath.workdps(150):
        for i, j in ((0, 0), (0, 3), (1, 1), (2, 1), (3, 3)):
            exact = closed_average(optimizer, CURVATURES[i], CURVATURES[j], noise, epochs)
            assert abs(mpmath.mpf(float(average[i, j])) - exact) <= 2 * EPS * abs(exact)


@over_optimizers
def test_without_correlation_it_is_white_noise(optimizer):
    hessian, c = problem(2)
    white = stationary_covariance(optimizer, hessian, c)
    noise = EpochNoise(c, 7, 0)
    for position in (0, 3, "average"):
        assert close(stationary_covariance(optimizer, hessian, noise, position=position).joint(), white.joint())
    for window in (5, 7, 30):
        expected = average_covariance(optimizer, hessian, c, window)
        assert close(average_covariance(optimizer, hessian, noise, window), expected)


def test_the_noise_of_examples_is_that_of_every_order():
    """N = 5 with one left out, and N = 4 in pairs: covariances over all permutations."""
    rng = np.random.default_rng(0)
    for total, size, drop_last in ((5, 2, True), (4, 2, False), (5, 1, False), (7, 3, True)):
        data = LeastSquares(rng.normal(size=(total, 2)), rng.normal(size=total))
        gradients = data.per_example_gradients(data.optimum)
        noise = epoch_noise(data, size, drop_last=drop_last)
        count = noise.batches_per_epoch
        orders = np.array(list(itertools.permutations(range(total))))[:, : count * size]
        batches = gradients[orders].reshape(len(orders), count, size, 2).mean(axis=2)
        batches = batches.reshape(len(orders), -1)
        covariance = batches.T @ batches / len(orders)
        expected = np.kron(np.full((count, count), float(noise.correlation)), noise.noise)
        expected += np.kron((1 - float(noise.correlation)) * np.eye(count), noise.noise)
        assert close(covariance, expected)
        assert noise.sums_to_zero == (total % size == 0)


def test_examples_with_hessians_of_their_own_have_it_too():
    data = QuadraticExamples([[[1.0]], [[3.0]], [[1.0]], [[1.0]]], [[1.0], [-3.0], [0.0], [2.0]])
    noise = epoch_noise(data, 1)
    np.testing.assert_array_equal(noise.noise, data.noise(1, replacement=False))
    assert noise.batches_per_epoch == 4


def test_a_flat_direction_comes_back_at_every_end_of_an_epoch():
    """Plain SGD: lr^2 c k (M - k)/(M - 1) in between, lr^2 c (M + 1)/6 on average, and correlated with the others."""
    lr, count = 0.25, 9
    hessian, c = np.diag([0.0, 1.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    noise = EpochNoise(c, count)
    for position in range(count):
        law = stationary_covariance(sgd(lr=lr), hessian, noise, position=position)
        expected = lr**2 * 2.0 * position * (count - position) / (count - 1)
        assert abs(law.value[0, 0] - expected) <= 4 * EPS * expected
        assert law.rank == (1 if position == 0 else 2)
    average = stationary_covariance(sgd(lr=lr), hessian, noise, position="average")
    assert average.value[0, 0] == pytest.approx(lr**2 * 2.0 * (count + 1) / 6, rel=4 * EPS)
    assert "level of the start" in average.status


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd(lr=0.25),
        heavy_ball(lr=0.25, momentum=0.75, dampening=0.5),
        nesterov(lr=0.25, momentum=0.75),
        polyak(lr=0.25, momentum=0.75),
        qhm(lr=0.25, beta=0.75, nu=0.5),
        sam(lr=0.25, rho=0.5),
        with_ema(heavy_ball)(lr=0.25, momentum=0.75, ema_decay=0.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("position", [0, 4, "average"])
def test_the_law_of_a_flat_direction_is_the_limit_of_low_curvature(optimizer, position):
    """It is of first order in the curvature; with a level that varied it could not be."""
    noise = EpochNoise([[2.0, 0.5], [0.5, 1.0]], 9)

    def law(h):
        return stationary_covariance(optimizer, np.diag([h, 1.0]), noise, position=position).joint()

    flat = law(0.0)
    near, nearer = np.linalg.norm(law(2e-9) - flat), np.linalg.norm(law(1e-9) - flat)
    assert nearer <= 1e-6 * np.linalg.norm(flat)
    assert nearer == pytest.approx(near / 2, abs=16 * EPS * np.linalg.norm(flat), rel=1e-6)


@pytest.mark.parametrize("optimizer", [sgd(lr=0.25), heavy_ball(lr=0.25, momentum=0.75)], ids=repr)
def test_a_flat_direction_keeps_the_level_of_its_start(optimizer):
    """Ten epochs step by step, the same shuffled noise, two starts: the difference stays what it was."""
    step = OneStep.of(optimizer, Quadratic([[0.0]], [[1.0]], [0.0]))
    rng = np.random.default_rng(0)
    draws = rng.permuted(np.repeat(np.arange(8.0)[None] - 3.5, 10, axis=0), axis=1).ravel()
    m = len(step.transition)
    ends = []
    for start in (0.0, 3.0):
        z = np.zeros(m)
        z[0] = start
        for xi in draws:
            z = step.transition @ z + step.gain[:, 0] * xi
        ends.append(z)
    np.testing.assert_allclose(ends[1] - ends[0], [3.0, *[0.0] * (m - 1)], atol=1e-12)
    if m == 1:
        assert abs(ends[0][0]) <= 1e-12


def test_noise_that_does_not_sum_to_zero_walks():
    noise = EpochNoise(np.eye(2), 4, Fraction(-1, 5))
    with pytest.raises(NonStationaryError, match="random walk") as caught:
        stationary_covariance(sgd(lr=0.1), np.diag([0.0, 1.0]), noise)
    assert caught.value.modes == (0,)
    silent = EpochNoise(np.diag([0.0, 1.0]), 4, Fraction(-1, 5))
    law = stationary_covariance(sgd(lr=0.1), np.diag([0.0, 1.0]), silent)
    assert law.value[0, 0] == 0.0
    assert law.flat == (0,)
    assert "their covariance is 0" in law.status


def test_the_mean_of_whole_epochs_falls_with_the_square_of_their_number():
    """Cov = D^-1 A (2 Z - A^T Z - Z A^T') A' D^-1' / T^2, which for long windows is as good as constant/T^2."""
    hessian, c = problem(3)
    noise = EpochNoise(c, 6)
    optimizer = heavy_ball(lr=0.1, momentum=0.7)
    step = OneStep.of(optimizer, Quadratic(hessian, c, np.zeros(3)))
    z = stationary_covariance(optimizer, hessian, noise).joint()
    back = np.linalg.solve(step.transition - np.eye(6), step.transition)
    for epochs in (1, 2, 10**4, 10**9):
        total = 6 * epochs
        left = np.linalg.matrix_power(step.transition, total) @ z
        expected = (back @ (2 * z - left - left.T) @ back.T)[:3, :3] / total / total
        assert close(average_covariance(optimizer, hessian, noise, total), expected, 1e5 * EPS)


def test_on_a_flat_direction_whole_epochs_average_like_independent_ones():
    """Plain SGD: each contributes the mean of a bridge of its own, of variance lr^2 c (M + 1)/12."""
    lr, count = 0.5, 5
    for epochs in (1, 7):
        value = average_covariance(sgd(lr=lr), [[0.0]], EpochNoise([[3.0]], count), count * epochs)
        steps = np.arange(1, count + 1.0)
        expected = lr**2 * 3.0 * count / (count - 1) * np.sum((steps - steps.mean()) ** 2) / count**2 / epochs
        assert value[0, 0] == pytest.approx(expected, rel=8 * EPS)


def test_the_crossover_is_where_the_asymptotes_meet():
    for optimizer, gain in (
        (sgd(lr=0.1), 0.1),
        (heavy_ball(lr=0.1, momentum=0.75), 0.4),
        (heavy_ball(lr=0.1, momentum=0.75, dampening=0.5), 0.2),
        (nesterov(lr=0.1, momentum=0.75), 0.4),
        (polyak(lr=0.1, momentum=0.75), 0.4),
        (qhm(lr=0.1, beta=0.75, nu=0.5), 0.1),
        (with_ema(heavy_ball)(lr=0.1, momentum=0.75, ema_decay=0.5), 0.4),
    ):
        count = 10**6
        crossover = crossover_curvature(optimizer, count)
        assert crossover == pytest.approx(3 / (gain * count), rel=8 * EPS)
        noise = EpochNoise([[1.0]], count)
        plateau = stationary_covariance(optimizer, [[0.0]], noise, position="average").value[0, 0]
        white = stationary_covariance(optimizer, [[crossover]], [[1.0]]).value[0, 0]
        assert plateau == pytest.approx(white, rel=1e-4)
        above = stationary_covariance(optimizer, [[1000 * crossover]], noise, position="average").value[0, 0]
        white = stationary_covariance(optimizer, [[1000 * crossover]], [[1.0]]).value[0, 0]
        assert 0.99 < above / white < 1.0


def test_a_preconditioner_changes_the_coordinates():
    hessian, c = problem(4)
    noise = EpochNoise(c, 4)
    root = np.diag([1.0, 2.0, 0.5])
    square = root @ root
    plain = EpochNoise(root @ c @ root, 4)
    for position in (0, 2, "average"):
        law = stationary_covariance(sgd(lr=0.05), hessian, noise, preconditioner=square, position=position)
        expected = stationary_covariance(sgd(lr=0.05), root @ hessian @ root, plain, position=position)
        assert close(law, root @ expected.value @ root)
        assert law.log_det == pytest.approx(np.linalg.slogdet(law.value)[1])


RULES_TRIED = tuple(heavy_ball(lr=lr, momentum=momentum) for lr in (0.01, 0.9, 1.8) for momentum in (0.0, 0.5, 0.95))


@given(st.sampled_from(RULES_TRIED), st.integers(2, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_it_is_a_covariance_and_shuffling_does_not_raise_it(optimizer, count, seed):
    """At every position; and where successive iterates are positively correlated, the average is below white noise."""
    hessian, c = problem(seed)
    values, basis = np.linalg.eigh(hessian)
    hessian = hessian / values[-1]
    noise = EpochNoise(c, count)
    for position in (0, count // 2, "average"):
        law = stationary_covariance(optimizer, hessian, noise, position=position)
        joint = law.joint()
        np.testing.assert_array_equal(law.value, law.value.T)
        assert np.linalg.eigvalsh(joint)[0] >= -1e2 * EPS * np.linalg.norm(joint)
    if optimizer.values["momentum"] == 0 and optimizer.values["lr"] <= 1:
        white = stationary_covariance(optimizer, hessian, c).value
        assert np.all(np.diag(basis.T @ (white - law.value) @ basis) >= 0)


def test_what_is_wrong_is_named():
    noise = EpochNoise(np.eye(2), 4)
    hessian = np.eye(2)
    with pytest.raises(InvalidProblemError, match="at least 2"):
        EpochNoise(np.eye(2), 1)
    with pytest.raises(InvalidProblemError, match="from -1/"):
        EpochNoise(np.eye(2), 4, -0.5)
    with pytest.raises(InvalidProblemError, match="from -1/"):
        EpochNoise(np.eye(2), 4, 0.1)
    with pytest.raises(InvalidProblemError, match="number"):
        EpochNoise(np.eye(2), 4, "much")
    with pytest.raises(InvalidProblemError, match="positive semidefinite"):
        EpochNoise(-np.eye(2), 4)
    for position in (5, -1, 1.0, "end"):
        with pytest.raises(InvalidProblemError, match="position"):
            stationary_covariance(sgd(lr=0.1), hessian, noise, position=position)
    with pytest.raises(InvalidProblemError, match="EpochNoise"):
        stationary_covariance(sgd(lr=0.1), hessian, np.eye(2), position=0)
    with pytest.raises(InvalidProblemError, match="independent steps"):
        stationary_covariance(sgd(lr=0.1), hessian, noise, method="doubling")
    with pytest.raises(UnstableError):
        stationary_covariance(sgd(lr=2.5), hessian, noise)
    with pytest.raises(HyperparameterError):
        stationary_covariance(sgd, hessian, noise)
    with pytest.raises(InvalidProblemError, match="noise"):
        stationary_covariance(sgd(lr=0.1), np.eye(3), noise)
    with pytest.raises(InvalidProblemError, match="weight decay"):
        crossover_curvature(sgd(lr=0.1, weight_decay=0.1), 10)
    for refused in (transient_covariance, autocovariance):
        with pytest.raises(InvalidProblemError, match="correlated within an epoch"):
            refused(sgd(lr=0.1), hessian, noise, 3)
    for refused in (trajectory, periodic_covariance):
        with pytest.raises(InvalidProblemError, match="correlated within an epoch"):
            refused(sgd(lr=0.1), Schedule([Phase(3, lr=0.1)]), hessian, noise)


def test_a_law_of_epochs_is_a_start_with_every_slot():
    """Then go on with independent batches: what is left of the start is A Z A'."""
    hessian, c = problem(5)
    optimizer = heavy_ball(lr=0.1, momentum=0.7)
    law = stationary_covariance(optimizer, hessian, EpochNoise(c, 4), position=1)
    step = OneStep.of(optimizer, Quadratic(hessian, c, np.zeros(3)))
    later = transient_covariance(optimizer, hessian, c, 1, start=law)
    assert close(later.propagated, (step.transition @ law.joint() @ step.transition.T)[:3, :3])


def test_a_correlation_in_floating_point_counts_as_the_exact_one():
    assert EpochNoise([[1.0]], 50, -1 / 49).sums_to_zero
    assert not EpochNoise([[1.0]], 50, -1 / 50).sums_to_zero
    law = stationary_covariance(sgd(lr=0.1), [[1.0]], EpochNoise([[1.0]], 50), position=50)
    assert law.position == 0


def test_batches_that_do_not_fit_are_refused_with_a_way_out():
    data = LeastSquares(np.ones((10, 1)), np.arange(10.0))
    with pytest.raises(InvalidProblemError, match=r"4 does not divide the 10 examples.*of 2 .*2 or 5.*drop_last"):
        epoch_noise(data, 4)
    with pytest.raises(InvalidProblemError, match="two whole batches"):
        epoch_noise(data, 6, drop_last=True)
    with pytest.raises(InvalidProblemError, match="batch_size"):
        epoch_noise(data, 0)
    prime = LeastSquares(np.ones((7, 1)), np.arange(7.0))
    with pytest.raises(InvalidProblemError, match="a batch_size of 1, or leave"):
        epoch_noise(prime, 3)
