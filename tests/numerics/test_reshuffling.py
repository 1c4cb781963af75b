"""Shuffled epochs with Hessians that differ: against every order of the examples, one by one, and the limit lr -> 0."""

import itertools
import math
import re

import numpy as np
import pytest
from brute_force import rest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdcov.errors import (
    InvalidProblemError,
    InvalidRuleError,
    MeanSquareUnstableError,
    NonStationaryError,
    UnstableError,
)
from sgdcov.numerics import (
    EpochNoise,
    LeastSquares,
    QuadraticExamples,
    epoch_noise,
    reshuffling_law,
    stationary_covariance,
    stationary_mean,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.05, momentum=0.7, dampening=0.3, weight_decay=0.01),
    nesterov(lr=0.02, momentum=0.8),
    polyak(lr=0.05, momentum=0.5),
    qhm(lr=0.1, beta=0.9, nu=0.7),
    sgdw(lr=0.02, momentum=0.9, weight_decay=0.02),
    sam(lr=0.05, rho=0.2),
    with_ema(sgd)(lr=0.05, ema_decay=0.9),
)
over_optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
#: Of both routes: products of a few matrices, and solves whose condition is about 1/(lr h M).
ROUNDING = 1e4 * EPS


def least_squares(total=4, d=2, seed=0, l2=0.1):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(total, d)), rng.normal(size=total), l2=l2)


def quadratic_examples(total=4, d=2, seed=1):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(total, d, d))
    return QuadraticExamples(roots @ roots.swapaxes(1, 2), rng.normal(size=(total, d)))


def close(a, b, tolerance=ROUNDING):
    return np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


class EveryOrder:
    """Each order of the examples stepped by the rule's own function on per-example gradients; then plain averages."""

    def __init__(self, optimizer, problem, size):
        self.m, self.d = len(optimizer.rule.slots), problem.dim
        self.n = self.m * self.d
        self.centre = rest(optimizer, problem.optimum)
        count = problem.num_examples // size
        self.epochs = []
        for order in itertools.permutations(range(problem.num_examples)):
            maps = [(np.eye(self.n), np.zeros(self.n))]
            for k in range(count):
                batch = list(order[k * size : (k + 1) * size])
                states = (self.centre + np.vstack([np.zeros(self.n), np.eye(self.n)])).reshape(-1, self.m, self.d)

                def gradient(w, batch=batch):
                    return problem.per_example_gradients(w)[:, batch].mean(axis=1)

                stepped = np.hstack(optimizer.step(tuple(states.swapaxes(0, 1)), gradient)) - self.centre
                power, shift = (stepped[1:] - stepped[0]).T, stepped[0]
                maps.append((power @ maps[-1][0], power @ maps[-1][1] + shift))
            self.epochs.append(maps)
        self.count = count
        powers, shifts = (np.array([maps[-1][i] for maps in self.epochs]) for i in (0, 1))
        self.mean = np.linalg.solve(np.eye(self.n) - powers.mean(axis=0), shifts.mean(axis=0))
        moved = powers @ self.mean + shifts - self.mean
        both = np.mean([np.kron(power, power) for power in powers], axis=0)
        injected = (moved.T @ moved / len(moved)).ravel()
        self.covariance = np.linalg.solve(np.eye(self.n**2) - both, injected).reshape(self.n, self.n)
        self.radius = np.max(np.abs(np.linalg.eigvals(both)))

    def law(self, position):
        """Mean and covariance after so many steps."""
        powers, shifts = (np.array([maps[position][i] for maps in self.epochs]) for i in (0, 1))
        means = powers @ self.mean + shifts
        mean = means.mean(axis=0)
        covariance = (powers @ self.covariance @ powers.swapaxes(1, 2)).mean(axis=0)
        return mean, covariance + (means - mean).T @ (means - mean) / len(means)


@over_optimizers
@pytest.mark.parametrize("problem", [least_squares(), quadratic_examples()], ids=["least-squares", "general"])
@pytest.mark.parametrize("size", [1, 2])
def test_it_is_the_average_over_every_order(optimizer, problem, size):
    oracle = EveryOrder(optimizer, problem, size)
    laws = [oracle.law(position) for position in range(oracle.count)]
    for position, (mean, covariance) in enumerate(laws):
        law = reshuffling_law(optimizer, problem, size, position=position)
        assert close(law.joint(), covariance)
        assert close(law.slot_mean(law.slots), mean + oracle.centre)
        assert law.spectral_radius == pytest.approx(oracle.radius, rel=ROUNDING)
    mean = sum(mean for mean, _ in laws) / oracle.count
    second = sum(covariance + np.outer(m, m) for m, covariance in laws) / oracle.count
    law = reshuffling_law(optimizer, problem, size, position="average")
    assert close(law.joint(), second - np.outer(mean, mean))
    np.testing.assert_array_equal(law.value, law.value.T)


def test_a_remainder_that_is_left_out_is_another_one_in_every_epoch():
    problem = quadratic_examples(total=5)
    oracle = EveryOrder(heavy_ball(lr=0.05, momentum=0.5), problem, 2)
    for position in (0, 1):
        law = reshuffling_law(heavy_ball(lr=0.05, momentum=0.5), problem, 2, position=position, drop_last=True)
        mean, covariance = oracle.law(position)
        assert close(law.joint(), covariance)
        assert close(law.slot_mean(law.slots), mean + oracle.centre)


@over_optimizers
@pytest.mark.parametrize("position", [0, 1, "average"])
def test_where_all_hessians_are_equal_it_is_the_additive_law_without_bias(optimizer, position):
    rng = np.random.default_rng(3)
    hessian = np.array([[1.0, 0.3], [0.3, 0.5]])
    problem = QuadraticExamples(np.broadcast_to(hessian, (6, 2, 2)), rng.normal(size=(6, 2)))
    fixed = stationary_mean(optimizer, hessian, problem.optimum)
    if optimizer.rule is not sam:  # it takes two gradients, both with the same noise
        assert close(fixed, reshuffling_law(optimizer, problem, 2).fixed_point)
    law = reshuffling_law(optimizer, problem, 2, position=position)
    additive = stationary_covariance(optimizer, hessian, epoch_noise(problem, 2), position=position)
    assert close(law.joint(), additive.joint())
    assert np.linalg.norm(law.bias) <= ROUNDING * np.linalg.norm(law.mean)


@pytest.mark.parametrize(("total", "size"), [(2, 1), (3, 1), (6, 1), (6, 2), (6, 3), (8, 2), (8, 4), (9, 3)])
@pytest.mark.parametrize("position", [0, 1, "average"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_error_of_the_expansion_is_linear_in_the_learning_rate(total, size, position, decay):
    """A tenth of the learning rate, a tenth of the error: mean and covariance, every pattern of coincidences."""
    problem = quadratic_examples(total, seed=total)
    errors = []
    for lr in (1e-3, 1e-4):
        optimizer = sgd(lr=lr, weight_decay=decay)
        exact = reshuffling_law(optimizer, problem, size, position=position)
        short = reshuffling_law(optimizer, problem, size, position=position, method="expansion")
        errors.append(
            (
                np.linalg.norm(short.value - exact.value) / np.linalg.norm(exact.value),
                np.linalg.norm(short.bias - exact.bias) / np.linalg.norm(exact.bias),
            )
        )
    assert max(errors[0]) < 0.1
    for coarse, fine in zip(*errors, strict=True):
        # What deviates from proportionality is the next order, itself 10 lr of the first; below 1e-7 it is rounding.
        assert fine == pytest.approx(coarse / 10, rel=0.2, abs=1e-7)


@pytest.mark.parametrize(
    "rule",
    [
        lambda lr: heavy_ball(lr=lr, momentum=0.5, dampening=0.2, weight_decay=0.3),
        lambda lr: nesterov(lr=lr, momentum=0.6),
        lambda lr: polyak(lr=lr, momentum=0.5),
        lambda lr: qhm(lr=lr, beta=0.7, nu=0.6),
        lambda lr: sgdw(lr=lr, momentum=0.5, weight_decay=0.3),
    ],
    ids=["heavy_ball", "nesterov", "polyak", "qhm", "sgdw"],
)
@pytest.mark.parametrize(("total", "size"), [(6, 1), (6, 2)])
@pytest.mark.parametrize("position", [0, 1, "average"])
def test_with_momentum_the_additive_covariance_is_the_limit_at_ends_of_epochs_too(rule, total, size, position):
    """And the bias is that of the response to one gradient."""
    problem = quadratic_examples(total, seed=total)
    errors = []
    for lr in (1e-3, 1e-4):
        optimizer = rule(lr)
        exact = reshuffling_law(optimizer, problem, size, position=position)
        short = reshuffling_law(optimizer, problem, size, position=position, method="expansion")
        errors.append(
            (
                np.linalg.norm(short.joint() - exact.joint()) / np.linalg.norm(exact.joint()),
                np.linalg.norm(short.value - exact.value) / np.linalg.norm(exact.value),
                np.linalg.norm(short.bias - exact.bias) / np.linalg.norm(exact.bias),
            )
        )
    assert max(errors[0]) < 0.02
    for coarse, fine in zip(*errors, strict=True):
        assert fine == pytest.approx(coarse / 10, rel=0.2, abs=1e-7)


def test_least_squares_expands_like_its_own_hessians():
    problem = least_squares(total=30, d=3, l2=0.2)
    hessians = problem.X[:, :, None] * problem.X[:, None] + 0.2 * np.eye(3)
    general = QuadraticExamples(hessians, problem.per_example_gradients(np.zeros(3)))
    for size in (1, 5):
        laws = [reshuffling_law(sgd(lr=0.01), each, size, method="expansion") for each in (problem, general)]
        assert close(laws[0].value, laws[1].value)
        assert close(laws[0].mean, laws[1].mean)
        assert "approximation" in laws[0].status


def test_the_expansion_of_many_examples_is_that_of_orders_drawn_at_random():
    """N = 60 in 12 batches; 20,000 orders: each entry within 5 of its own standard errors."""
    problem, size, orders = least_squares(total=60, d=2, l2=0.0), 5, 20_000
    rng = np.random.default_rng(0)
    gradients = problem.per_example_gradients(problem.optimum)
    order = rng.permuted(np.broadcast_to(np.arange(60), (orders, 60)), axis=1).reshape(orders, 12, size)
    hessians = (problem.X[order][..., None] * problem.X[order][..., None, :]).mean(axis=2)
    batch = gradients[order].mean(axis=2)
    earlier = np.cumsum(batch, axis=1) - batch
    sums = np.einsum("olij,olj->oi", hessians, earlier)
    lr = 1e-3
    law = reshuffling_law(sgd(lr=lr), problem, size, method="expansion")
    expected = problem.hessian @ law.value + law.value @ problem.hessian
    products = (sums - sums.mean(axis=0))[:, :, None] * (sums - sums.mean(axis=0))[:, None] * lr**3 / 12
    error = products.std(axis=0) / math.sqrt(orders)
    assert np.all(np.abs(products.mean(axis=0) - expected) <= 5 * error)
    drift = lr * sums / 12
    error = drift.std(axis=0) / math.sqrt(orders)
    assert np.all(np.abs(drift.mean(axis=0) - problem.hessian @ law.bias) <= 5 * error)


def test_the_additive_law_is_not_the_limit_at_ends_of_epochs_but_on_average():
    problem = quadratic_examples(6)
    noise = epoch_noise(problem, 1)
    for lr in (1e-3, 1e-5):
        ends, average = (
            reshuffling_law(sgd(lr=lr), problem, 1, position=position).value
            / stationary_covariance(sgd(lr=lr), problem.hessian, noise, position=position).value
            for position in (0, "average")
        )
        assert np.all(np.abs(np.diag(average) - 1) < 100 * lr)
        assert np.any(np.abs(np.diag(ends) - 1) > 0.1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 1), (6, 2), (6, 3)]), st.floats(0.01, 0.3))
@settings(max_examples=25, deadline=None)
def test_it_is_a_covariance(seed, sizes, lr):
    total, size = sizes
    problem = least_squares(total, seed=seed)
    largest = np.max(np.sum(problem.X**2, axis=1)) + problem.l2
    optimizer = sgd(lr=lr / largest)
    for position in (0, 1, "average"):
        law = reshuffling_law(optimizer, problem, size, position=position)
        assert np.linalg.eigvalsh(law.value)[0] >= -ROUNDING * np.linalg.norm(law.value)
        assert 0 < law.spectral_radius < 1
        assert law.excess_risk >= 0


def test_beyond_the_mean_square_edge_there_is_none():
    """The examples contract on average, h = 1 and 0.05, but not one by one; the linear solve would have an answer."""
    problem = QuadraticExamples([[[0.05]], [[5.0]], [[0.05]]], [[1.0], [0.0], [-1.0]])
    lr = 1.1
    growth = (1 - lr * 0.05) ** 2 * (1 - lr * 5.0)
    assert growth**2 > 1
    assert lr * problem.hessian[0, 0] < 2
    with pytest.raises(MeanSquareUnstableError) as caught:
        reshuffling_law(sgd(lr=lr), problem, 1)
    assert caught.value.spectral_radius == pytest.approx(abs(growth) ** (2 / 3))
    assert caught.value.largest_mean_lr == pytest.approx(2 / problem.hessian[0, 0])
    with pytest.raises(UnstableError, match="no stationary law on the direction"):
        reshuffling_law(sgd(lr=2.5), quadratic_examples(), 1)


def test_a_direction_without_curvature_is_refused():
    data = LeastSquares([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]], [1.0, 0.0, 2.0])
    for method in ("enumeration", "expansion"):
        with pytest.raises(NonStationaryError, match="no curvature") as caught:
            reshuffling_law(sgd(lr=0.1), data, 1, method=method)
        assert len(caught.value.modes) == 1
        assert reshuffling_law(sgd(lr=0.1, weight_decay=0.1), data, 1, method=method).rank == 1


@pytest.mark.parametrize(("total", "size"), [(442, 1), (1500, 1), (1500, 750), (100_000, 2)])
def test_too_many_orders_are_counted_by_their_logarithms(total, size):
    """The counts have up to 456,574 digits; the message has a few, and comes at once."""
    with pytest.raises(InvalidProblemError, match="Take fewer examples, or method='expansion'") as caught:
        reshuffling_law(sgd(lr=0.1), LeastSquares(np.ones((total, 1)), np.arange(total)), size)
    assert len(str(caught.value)) < 300
    orders = re.search(r"the ([0-9.]+)e\+(\d+) orders", str(caught.value))
    log = math.lgamma(total + 1) - total // size * math.lgamma(size + 1)
    assert math.log(float(orders[1])) + int(orders[2]) * math.log(10) == pytest.approx(log, abs=0.01)


def test_what_is_wrong_is_named():
    problem = least_squares(6)
    with pytest.raises(InvalidProblemError, match=r"2.43e\+18 orders of 20 examples.*1.05e\+7 products"):
        reshuffling_law(sgd(lr=0.1), least_squares(20), 1)
    with pytest.raises(InvalidProblemError, match="operations"):
        reshuffling_law(sgd(lr=0.1), least_squares(12, d=20), 1)
    with pytest.raises(InvalidProblemError, match="does not divide"):
        reshuffling_law(sgd(lr=0.1), least_squares(7), 3)
    with pytest.raises(InvalidProblemError, match="two whole batches"):
        reshuffling_law(sgd(lr=0.1), problem, 6)
    with pytest.raises(InvalidProblemError, match="sums to zero"):
        reshuffling_law(sgd(lr=0.1), least_squares(7), 3, method="expansion", drop_last=True)
    with pytest.raises(InvalidRuleError, match=r"no memory.*plain sgd"):
        reshuffling_law(heavy_ball(lr=0.1, momentum=0), problem, 2, method="expansion")
    with pytest.raises(InvalidRuleError, match="more than one gradient"):
        reshuffling_law(sam(lr=0.1, rho=0.1), problem, 2, method="expansion")
    with pytest.raises(InvalidProblemError, match="method must be one of 'enumeration', 'expansion', got 'guess'"):
        reshuffling_law(sgd(lr=0.1), problem, 2, method="guess")
    with pytest.raises(InvalidProblemError, match="position"):
        reshuffling_law(sgd(lr=0.1), problem, 2, position=4)
    with pytest.raises(InvalidProblemError, match="LeastSquares or QuadraticExamples"):
        reshuffling_law(sgd(lr=0.1), EpochNoise([[1.0]], 2), 2)
    with pytest.raises(InvalidProblemError, match="no slot"):
        reshuffling_law(sgd(lr=0.1), problem, 2).slot_mean(["v"])
