"""Laws on data whose features have units of their own, against exact linear algebra in 120 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from nist import FILIP, LONGLEY

from sgdcov.errors import AccuracyWarning
from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    VectorLeastSquares,
    VectorMinibatchNoise,
    mean_square_stability,
    stationary_covariance,
)
from sgdcov.theory import sgd

DIGITS = 120


def features(name):
    rng = np.random.default_rng(0)
    if name == "a feature in units of 1e-8":
        return rng.standard_normal((10, 3)) * np.array([1.0, 1e-8, 1.0])
    if name == "a year beside a mileage":
        return np.column_stack([np.ones(10), np.arange(2001.0, 2011.0), np.round(rng.uniform(1e4, 2e5, 10))])
    if name == "graded":
        return rng.standard_normal((10, 3)) * np.array([1e10, 1e-9, 1.0])
    return LONGLEY.X[:, [0, 1, 6]]  # the constant, a price index, the year


NAMES = ["a feature in units of 1e-8", "a year beside a mileage", "graded", "Longley"]


def labels(X):
    return np.random.default_rng(1).standard_normal(len(X)) * np.abs(X).max()


def exact_law(X, y, lr, p, *, l2=0.0, added=0.0, follows=True):
    """SGD's law: S = A S A + lr^2 (C + V(S)), one linear system for the triangle of S; the trace and the array."""
    with mpmath.workdps(DIGITS):
        N, d = X.shape
        X, y, lr, l2 = mpmath.matrix(X.tolist()), mpmath.matrix(y.tolist()), mpmath.mpf(lr), mpmath.mpf(l2)
        gram = X.T * X / N
        w = mpmath.lu_solve(gram + l2 * mpmath.eye(d), X.T * y / N)
        rest = y - X * w
        slope = X.T * rest / N  # minus the mean of the gradients without weight decay
        noise = mpmath.zeros(d)
        for n in range(N):
            noise += X[n, :].T * X[n, :] * rest[n] ** 2 / N
        noise = (noise - slope * slope.T) * p + mpmath.mpf(added) * mpmath.eye(d)
        step = mpmath.eye(d) - lr * (gram + l2 * mpmath.eye(d))
        pairs = [(i, j) for i in range(d) for j in range(i, d)]
        system = mpmath.zeros(len(pairs))
        for k, (a, b) in enumerate(pairs):
            unit = mpmath.zeros(d)
            unit[a, b] = unit[b, a] = 1
            out = unit - step * unit * step
            if follows:
                second = -gram * unit * gram
                for n in range(N):
                    second += X[n, :].T * X[n, :] * (X[n, :] * unit * X[n, :].T)[0] / N
                out -= lr**2 * p * second
            for row, (i, j) in enumerate(pairs):
                system[row, k] = out[i, j]
        solution = mpmath.lu_solve(system, mpmath.matrix([lr**2 * noise[i, j] for i, j in pairs]))
        law = mpmath.zeros(d)
        for (a, b), value in zip(pairs, solution, strict=True):
            law[a, b] = law[b, a] = value
        return law


def relative_error(found, exact):
    with mpmath.workdps(DIGITS):
        entries = [(i, j) for i in range(exact.rows) for j in range(exact.cols)]
        lost = mpmath.fsum((mpmath.mpf(float(found[i, j])) - exact[i, j]) ** 2 for i, j in entries)
        return float(mpmath.sqrt(lost / mpmath.fsum(exact[i, j] ** 2 for i, j in entries)))


def steady(X):
    return 0.1 / float(np.max(np.sum(X**2, axis=1)))


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_law_under_minibatches_is_right_in_any_units(name):
    X = features(name)
    y, lr = labels(X), steady(X)
    problem = LeastSquares(X, y)
    law = stationary_covariance(sgd(lr=lr), problem.hessian, MinibatchNoise(problem, 2))
    assert law.flat == ()
    error = relative_error(law.value, exact_law(X, y, lr, 0.5))
    assert error <= law.error <= 1e-8
    assert error <= 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_the_additive_law_of_the_arrays_alone_is_right_too(name):
    """The entries of X'X tell the eigenvalues whatever the units, as long as the scaled columns are not dependent."""
    X = features(name)
    y, lr = labels(X), steady(X)
    problem = LeastSquares(X, y)
    law = stationary_covariance(sgd(lr=lr), np.array(problem.hessian), np.array(problem.noise(2)))
    assert law.flat == ()
    # the arrays are rounded; that is no error of theirs, but one of X'X beside X
    assert relative_error(law.value, exact_law(X, y, lr, 0.5, follows=False)) <= 100 * law.error <= 1e-4


@pytest.mark.parametrize("l2", [1e-3, 1e-30])
def test_weight_decay_and_added_noise_come_in_their_own_units(l2):
    X = features("graded")
    y, lr = labels(X), steady(X)
    problem = LeastSquares(X, y, l2)
    noise = MinibatchNoise(problem, 2) + 1e-20 * np.eye(3)
    law = stationary_covariance(sgd(lr=lr), problem.hessian, noise)
    assert relative_error(law.value, exact_law(X, y, lr, 0.5, l2=l2, added=1e-20)) <= law.error <= 1e-9


def test_several_outputs():
    X = features("a feature in units of 1e-8")
    y, lr = labels(X), steady(X)
    problem = VectorLeastSquares(np.stack([X, 0 * X], axis=1), np.stack([y, 0 * y], axis=1))
    law = stationary_covariance(sgd(lr=lr), problem.hessian, VectorMinibatchNoise(problem, 2))
    assert relative_error(law.value, exact_law(X, y, lr, 0.5)) <= law.error <= 1e-9


def test_whitening_takes_the_units_out():
    """With the preconditioner that undoes the units, the law is that of the data without them, in them."""
    X, units = np.random.default_rng(3).standard_normal((10, 3)), np.array([2.0**20, 2.0**-20, 1.0])
    y = labels(X)
    plain, problem = LeastSquares(X, y), LeastSquares(X * units, y)
    lr = steady(X)
    law = stationary_covariance(sgd(lr=lr), problem.hessian, MinibatchNoise(problem, 2), preconditioner=1.0 / units**2)
    expected = stationary_covariance(sgd(lr=lr), plain.hessian, MinibatchNoise(plain, 2)).value
    assert units[:, None] * law.value * units == pytest.approx(expected, rel=1e-11)
    assert law.error <= 1e-9


def test_a_feature_that_depends_on_others_is_flat_and_stays():
    X = features("a year beside a mileage")
    X = np.column_stack([X, X[:, 0] + X[:, 1]])
    y, lr = labels(X), steady(X)
    problem = LeastSquares(X, y)
    law = stationary_covariance(sgd(lr=lr), problem.hessian, MinibatchNoise(problem, 2))
    assert law.flat == (0,)
    assert "flat" in law.status


def test_the_law_on_filips_powers_says_how_well_it_is_known():
    """The 11 scaled columns have a condition of 5e9: X'X tells nothing of the slowest directions, X all of them."""
    X, y, size = FILIP.X, FILIP.y, 8
    lr = steady(X)
    problem = LeastSquares(X, y)
    with pytest.warns(AccuracyWarning, match="relative error"):
        law = stationary_covariance(sgd(lr=lr), problem.hessian, MinibatchNoise(problem, size))
    assert law.flat == ()
    with mpmath.workdps(DIGITS):
        N, d = X.shape
        exact, rate = mpmath.matrix(X.tolist()), mpmath.mpf(lr)
        h, u = mpmath.eigsy(exact.T * exact / N)
        z = exact * u
        w = mpmath.lu_solve(exact.T * exact, exact.T * mpmath.matrix(y.tolist()))
        rest = mpmath.matrix(y.tolist()) - exact * w
        state = mpmath.zeros(d)
        for _ in range(12):  # S = f (C + V(S)), with a feedback of less than 0.1
            noise = mpmath.zeros(d)
            for n in range(N):
                noise += z[n, :].T * z[n, :] * (rest[n] ** 2 + (z[n, :] * state * z[n, :].T)[0]) / N
            for i in range(d):
                for j in range(d):
                    noise[i, j] = (noise[i, j] - h[i] * state[i, j] * h[j]) / size
                    state[i, j] = rate * noise[i, j] / (h[i] + h[j] - rate * h[i] * h[j])
        error = relative_error(law.value, u * state * u.T)
    assert error <= law.error
    assert error <= 1e-7


def test_mean_square_stability_knows_the_data():
    X = features("graded")
    y = labels(X)
    problem = LeastSquares(X, y)
    found = mean_square_stability(sgd(lr=steady(X)), MinibatchNoise(problem, 1))
    # the large feature alone decides: the others take up no more than 1e-20 of it
    large = mean_square_stability(sgd(lr=steady(X)), MinibatchNoise(LeastSquares(X[:, :1], y), 1))
    assert found.stable
    assert found.largest_lr == pytest.approx(large.largest_lr, rel=1e-9)
