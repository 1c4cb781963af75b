"""The verdict against exact rational linear algebra, on matrices whose eigenvalues often meet the unit circle."""

from __future__ import annotations

import numpy as np
import pytest
from sympy import QQ
from sympy.polys.matrices import DomainMatrix

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
