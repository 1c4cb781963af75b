"""Eigenvalues and minimisers from the data: accurate whatever the units, against 300 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from sgdcov.numerics._data_directions import column_scales, factor_directions, gram_factor
from sgdcov.numerics._regression import solve_regression
from tests.support.nist import FILIP, LONGLEY

EPS = np.finfo(np.float64).eps


def graded(rows=12, columns=5, spread=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-spread, spread, columns)


def year_mileage_tiny():
    rng = np.random.default_rng(1)
    years, miles = np.arange(2001.0, 2016.0), np.round(rng.uniform(1e4, 2e5, 15))
    return np.column_stack([np.ones(15), years, miles, 1e-8 * rng.standard_normal(15)])


def exact_eigenvalues(factor, shift=0.0):
    with mpmath.workdps(300):
        a = mpmath.matrix(factor.tolist())
        return mpmath.eigsy(a.T * a + mpmath.mpf(shift) * mpmath.eye(a.cols), eigvals_only=True)


FACTORS = {
    "plain": graded(spread=0),
    "graded": graded(),
    "graded by 120 orders": graded(spread=60),
    "a year beside a mileage": year_mileage_tiny(),
    "Longley": LONGLEY.X,
    "Filip": FILIP.X,
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("shift", [0.0, 1e-3])
def test_every_eigenvalue_is_accurate_to_its_own_bound(name, shift):
    factor = FACTORS[name]
    found = factor_directions(factor, shift)
    exact = exact_eigenvalues(factor, shift)
    errors = [float(abs(mpmath.mpf(h) / e - 1)) for h, e in zip(found.eigenvalues, exact, strict=True)]
    assert np.all(errors <= found.relative_error)
    # ... which is small where the columns, each of length 1, are not nearly dependent
    assert np.max(found.relative_error) <= (1e-3 if name == "Filip" else 1e-9)
    d = factor.shape[1]
    assert np.abs(found.basis.T @ found.basis - np.eye(d)).max() <= 100 * EPS


@pytest.mark.parametrize("name", FACTORS)
def test_the_rows_are_the_factor_in_the_eigenbasis_column_by_column(name):
    found = factor_directions(FACTORS[name])
    unit = found.rows / np.sqrt(found.eigenvalues)
    assert np.abs(unit.T @ unit - np.eye(unit.shape[1])).max() <= 100 * EPS  # no column is lost in a larger one
    back = found.rows @ found.basis.T
    scales = column_scales(FACTORS[name])
    assert np.abs(back - FACTORS[name]).max(axis=0) == pytest.approx(0, abs=100 * EPS * scales.max())


def test_a_column_that_depends_on_others_is_flat_whatever_its_units():
    a = year_mileage_tiny()
    a = np.column_stack([a, 1e6 * (a[:, 0] + a[:, 3])])
    found = factor_directions(a)
    assert found.eigenvalues[0] == 0.0
    assert np.all(found.eigenvalues[1:] > 0)
    assert np.array_equal(found.rows[:, 0], np.zeros(15))
    assert np.abs(a @ found.basis[:, 0]).max() <= 100 * EPS * np.abs(a).max()


@pytest.mark.parametrize("shape", [(3, 6), (4, 3), (1, 1), (2, 1)])
def test_wide_and_small_factors(shape):
    factor = graded(*shape, spread=3)
    found = factor_directions(factor)
    assert np.count_nonzero(found.eigenvalues) == min(shape)
    exact = exact_eigenvalues(factor)[shape[1] - min(shape) :]
    assert [float(mpmath.mpf(h) / e) for h, e in zip(found.eigenvalues[-min(shape) :], exact, strict=True)] == (
        pytest.approx([1.0] * min(shape), rel=1e-12)
    )


def test_a_factor_of_zeros_has_only_flat_directions():
    found = factor_directions(np.zeros((3, 2)))
    assert np.array_equal(found.eigenvalues, [0.0, 0.0])
    assert np.array_equal(factor_directions(np.zeros((3, 2)), 0.5).eigenvalues, [0.5, 0.5])


def test_a_graded_matrix_has_a_factor_and_a_singular_one_has_none():
    a = graded()
    gram = a.T @ a
    factor = gram_factor(gram)
    scales = np.sqrt(np.diagonal(gram))
    assert np.all(np.abs(factor.T @ factor - gram) <= 20 * EPS * np.outer(scales, scales))
    assert gram_factor(np.ones((2, 2))) is None
    assert gram_factor(np.diag([1.0, 0.0])) is None
    assert gram_factor(np.array([[1.0, 2.0], [2.0, 1.0]])) is None
    assert gram_factor(FILIP.X.T @ FILIP.X) is None  # squared, the condition of the powers is beyond double precision


def exact_minimiser(X, y, alpha):
    with mpmath.workdps(400):
        a = mpmath.matrix(X.tolist())
        gram = a.T * a + mpmath.mpf(alpha) * mpmath.eye(a.cols)
        return np.array([float(v) for v in mpmath.lu_solve(gram, a.T * mpmath.matrix(y.tolist()))])


@pytest.mark.parametrize("name", ["graded", "graded by 120 orders", "a year beside a mileage", "Longley"])
@pytest.mark.parametrize("alpha", [0.0, 1e-8, 3.0])
def test_the_minimiser_is_exact_to_a_few_units_in_the_last_place(name, alpha):
    X = FACTORS[name]
    y = np.random.default_rng(2).standard_normal(len(X)) * 1e3
    # weight decay enters through its root, rounded once
    found = solve_regression(X, y, alpha)
    assert found.w == pytest.approx(exact_minimiser(X, y, alpha), rel=16 * EPS, abs=0)
    assert found.error <= EPS


@pytest.mark.parametrize("gap", [1e-6, 1e-10, 1e-12])
def test_nearly_collinear_features_do_not_cost_digits(gap):
    X = graded(spread=0)
    X[:, 4] = X[:, 3] + gap * X[:, 4]
    y = np.random.default_rng(3).standard_normal(len(X))
    assert solve_regression(X, y).w == pytest.approx(exact_minimiser(X, y, 0.0), rel=16 * EPS, abs=0)


def test_without_full_rank_the_minimiser_is_the_least_one():
    rng = np.random.default_rng(4)
    X, y = rng.standard_normal((3, 5)) * np.array([1.0, 1e4, 1e-4, 1.0, 1.0]), rng.standard_normal(3)
    with mpmath.workdps(60):
        a = mpmath.matrix(X.tolist())
        exact = a.T * mpmath.lu_solve(a * a.T, mpmath.matrix(y.tolist()))
        exact = np.array([float(v) for v in exact])
    found = solve_regression(X, y).w
    assert np.linalg.norm(found - exact) <= 100 * EPS * np.linalg.norm(exact)
    assert solve_regression(X, np.zeros(3)).w.tolist() == [0.0] * 5
