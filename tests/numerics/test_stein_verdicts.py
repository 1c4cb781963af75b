"""The verdict against exact rational linear algebra, on matrices whose eigenvalues often meet the unit circle."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from sympy import QQ
from sympy.polys.matrices import DomainMatrix

from sgdcov.errors import AccuracyWarning, InvalidProblemError, NonStationaryError, ScaleError
from sgdcov.numerics.stein import solve_stein

EPS = np.finfo(np.float64).eps


def exact_rank(rows):
    return DomainMatrix([[QQ(int(x)) for x in row] for row in rows], np.shape(rows), QQ).rank()


def admissible(twice_a, q):
    """The verdicts that exact arithmetic leaves open, for A = twice_a / 2."""
    m = len(q)
    operator = np.kron(twice_a, twice_a) - 4 * np.eye(m * m, dtype=int)
    rank = exact_rank(operator)
    radius = np.abs(np.linalg.eigvals(twice_a / 2)).max()
    if rank == m * m:  # no eigenvalue on the circle, and among such small matrices none within 1e-3 of it
        assert abs(radius - 1.0) > 1e-3
        return {"stationary"} if radius < 1.0 else {"unstable"}
    if exact_rank(np.column_stack([operator, q.ravel()])) > rank:
        return {"none"}
    # on the circle to the square or cube root of eps, for a Jordan block; else well outside
    return {"unstable"} if radius > 1.0 + 1e-3 else {"marginal", "unstable"}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("method", ["schur", "kronecker"])
def test_the_verdict_is_that_of_exact_arithmetic(method, half):
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(250):
        m = int(rng.integers(2, 4))
        twice_a = rng.integers(-2, 3, size=(m, m)) * (1 if half else 2)
        g = rng.integers(-1, 2, size=(m, int(rng.integers(1, m + 1))))
        q = g @ g.T
        solution = solve_stein(twice_a / 2, q, method=method)
        assert solution.verdict in admissible(twice_a, q), (twice_a / 2, q, solution.status)
        seen.add(solution.verdict)
        if solution.value is not None:
            assert solution.residual <= 100 * EPS
    assert seen == {"stationary", "unstable", "marginal", "none"}


def exact_solution(a, q):
    """The solution of the m^2 equations in 60 digits, as numbers of mpmath."""
    m = len(a)
    entries = mpmath.matrix(a.tolist())
    system = mpmath.matrix(m * m, m * m)
    for i, j, k, n in np.ndindex(m, m, m, m):
        system[i * m + j, k * m + n] = entries[i, k] * entries[j, n] - (1 if (i, j) == (k, n) else 0)
    return mpmath.lu_solve(system, mpmath.matrix((-q).ravel().tolist()))


@pytest.mark.parametrize("method", ["schur", "doubling", "kronecker"])
def test_verdict_and_error_in_random_units_hold_against_60_digits(method):
    """State units 1 : 1e8 : 1e-8, and Q itself up to 1e300 or down to 1e-300."""
    rng = np.random.default_rng(8)
    for radius in [0.3, 0.99, 1 - 1e-5, 1 - 1e-9, 1 + 1e-9, 1 + 1e-5, 1.5] * 4:
        a, g = rng.normal(size=(3, 3)), rng.normal(size=(3, int(rng.integers(1, 4))))
        a *= radius / np.abs(np.linalg.eigvals(a)).max()
        units = 10.0 ** rng.permutation([0.0, 8.0, -8.0])
        a, q = a * units[:, None] / units, (g @ g.T) * units * units[:, None] * 10.0 ** rng.choice([-270, 0, 270])
        q = 0.5 * (q + q.T)
        with mpmath.workdps(160):  # units squared twice take 64 digits
            rho = max(abs(z) for z in mpmath.eig(mpmath.matrix(a.tolist()))[0])
            stable = rho < 1
            if method == "doubling" and not stable:
                with pytest.raises(NonStationaryError):
                    solve_stein(a, q, method=method)
                continue
            solution = solve_stein(a, q, method=method)
            assert solution.verdict == ("stationary" if stable else "unstable")
            exact = exact_solution(a, q)
            off = mpmath.norm(mpmath.matrix(solution.value.ravel().tolist()) - exact) / mpmath.norm(exact)
            assert off <= solution.error + EPS  # and the error is that of the rounding to double, nearly
        assert solution.error <= 1e-12
        assert solution.residual <= 1e-14
        if stable:
            assert solution.rho < 1.0


@pytest.mark.parametrize(
    ("a", "q"), [([[0.5]], [[1e300]]), ([[0.5]], [[1e-290]]), (np.diag([0.5, 0.25]), np.diag([1e300, 1e-290]))]
)
def test_squares_that_overflow_or_underflow_do_not_show(a, q):
    solution = solve_stein(a, q)
    exact = np.diagonal(q) / (1 - np.diagonal(a) ** 2)
    assert np.all(np.abs(np.diagonal(solution.value) / exact - 1) <= 2 * EPS)
    assert solution.residual <= EPS
    assert solution.error <= EPS


def test_what_double_precision_does_not_hold_is_refused():
    with pytest.raises(ScaleError, match="1e31"):
        solve_stein([[1 - 1e-12]], [[1e300]])
    with pytest.raises(ScaleError, match="1e-3"):
        solve_stein([[0.5]], [[1e-300]])
    with pytest.raises(InvalidProblemError, match=r"too large for float64: max\|A\| = 1e\+200"):
        solve_stein([[1e200]], [[1.0]])
    # large beside what it couples with, not large
    assert solve_stein([[0.5, 1e60], [1e-61, 0.5]], np.diag([1e60, 1e-60])).error <= EPS


def test_a_nearly_singular_equation_says_how_far_it_may_be_off():
    """An inverse of 1e16 or so: a number is given only with the warning."""
    with pytest.warns(AccuracyWarning, match="may be off by"):
        solution = solve_stein([[np.nextafter(1.0, 2.0), 0.0], [1.0, 0.5]], np.eye(2))
    assert solution.error > 1e-6


def test_the_error_of_an_unstable_solution_covers_it():
    rng = np.random.default_rng(0)
    for m in (2, 5):
        a, g = 3.0 * rng.normal(size=(m, m)), rng.normal(size=(m, m))
        solution = solve_stein(a, g @ g.T)
        with mpmath.workdps(60):
            exact = exact_solution(a, g @ g.T)
            off = mpmath.norm(mpmath.matrix(solution.value.ravel().tolist()) - exact) / mpmath.norm(exact)
        assert off <= solution.error + EPS
        assert solution.error <= 1e-14
