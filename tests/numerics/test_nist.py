"""NIST's linear regression datasets: certified coefficients, and the minimiser of the given doubles in 80 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from sgdcov.numerics import LeastSquares, VectorLeastSquares
from tests.support.nist import FILIP, REFERENCES

EPS = np.finfo(np.float64).eps


def oracle(X, y):
    """Coefficients and residual sum of squares from the normal equations in 80 digits."""
    with mpmath.workdps(80):
        X, y = mpmath.matrix(X), mpmath.matrix(y)
        w = mpmath.lu_solve(X.T * X, X.T * y)
        rest = y - X * w
        return np.array([float(v) for v in w]), float(mpmath.fsum(v * v for v in rest))


def relative(found, exact):
    return np.max(np.abs(np.asarray(found) / exact - 1))


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_the_data_have_the_certified_values(reference):
    X, y = reference.X.tolist(), reference.y.tolist()
    if reference is FILIP:  # certified for the decimal figures, not for their powers rounded to doubles
        with mpmath.workdps(80):
            X, y = [[mpmath.mpf(repr(row[1])) ** k for k in range(11)] for row in X], [mpmath.mpf(repr(v)) for v in y]
    w, rss = oracle(X, y)
    assert relative(w, reference.coefficients) <= (1e-13 if reference.name == "Wampler2" else 1e-14)
    if reference.residual_sum:
        assert relative(rss, reference.residual_sum) <= 1e-14


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_optimum_is_that_of_the_given_doubles_to_the_last_place(reference, outputs):
    w, rss = oracle(reference.X.tolist(), reference.y.tolist())
    if outputs == 1:
        problem = LeastSquares(reference.X, reference.y)
    else:  # every example twice, once with each output
        problem = VectorLeastSquares(
            np.repeat(reference.X[:, None], 2, axis=1), np.repeat(reference.y[:, None], 2, axis=1)
        )
    assert relative(problem.optimum, w) <= 2 * EPS
    rest = problem._residual(problem.optimum)
    assert (
        abs(rest @ rest - outputs * rss) <= 8 * EPS * outputs * rss + (len(rest) * EPS * np.abs(reference.y).max()) ** 2
    )


@pytest.mark.parametrize("reference", REFERENCES, ids=str)
def test_the_optimum_has_the_certified_digits(reference):
    # Filip's powers are rounded to doubles: that moves the 11 coefficients in the 8th digit, whatever the solver.
    digits = 7.5 if reference is FILIP else 12.5
    assert relative(LeastSquares(reference.X, reference.y).optimum, reference.coefficients) <= 10**-digits
