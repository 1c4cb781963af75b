r"""Theory's formulas evaluated on a problem: the answer that a reader with pencil, paper and patience would get.

The formula is the proved, symbolic one with every hyper-parameter a symbol. Hyper-parameters go in as exact rationals,
eigenvalues with 50 digits, so that what is left to compare with numerics is numerics' own rounding. In the eigenbasis
of H, entry (i, j) is the formula at (h_i, h_j) times c_ij; flat coordinates, which no noise reaches, have covariance 0.
"""

from __future__ import annotations

import functools
from typing import Any

import mpmath
import numpy as np
import scipy.linalg
import sympy as sp
from numpy.typing import NDArray

from ... import theory
from ...theory import Formula, Optimizer
from .problems import Problem

__all__ = ["covariance", "eigenbasis", "joint_covariance", "mean", "on_pairs", "rotate_back", "rotated_noise"]

Array = NDArray[np.float64]

DIGITS = 50


def eigenbasis(problem: Problem) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of the Hessian on the live coordinates (by QR iteration: not numerics' driver)."""
    live = np.ix_(problem.live, problem.live)
    values, vectors = scipy.linalg.eigh(problem.quadratic.hessian[live], driver="ev")
    return values, vectors


def rotated_noise(problem: Problem) -> Array:
    """The noise on the live coordinates, in the eigenbasis of the Hessian."""
    _, vectors = eigenbasis(problem)
    return np.asarray(vectors.T @ problem.quadratic.noise[np.ix_(problem.live, problem.live)] @ vectors)


def rotate_back(value: Array, problem: Problem) -> Array:
    """A matrix in the eigenbasis, in the problem's own coordinates; 0 along flat ones."""
    _, vectors = eigenbasis(problem)
    back = np.zeros_like(problem.quadratic.noise)
    back[np.ix_(problem.live, problem.live)] = vectors @ value @ vectors.T
    return back


def on_pairs(formula: Formula, optimizer: Optimizer, h: Array, unknown: str | None = None) -> Array:
    """The formula for unit c_ij at all pairs of eigenvalues, or another unknown that it proves beside it."""
    expression = formula.expression
    if unknown is not None:
        expression = {str(symbol): value for symbol, value in formula.solution.items()}[unknown]
    above, below = _polynomials(expression, tuple(formula.symbols.items()), optimizer)
    with mpmath.workdps(DIGITS):
        powers = np.array([[mpmath.mpf(x) ** k for k in range(_degree(above, below) + 1)] for x in h.tolist()])
        return np.asarray(_evaluate(above, powers) / _evaluate(below, powers), dtype=np.float64)


def covariance(formula: Formula, optimizer: Optimizer, problem: Problem) -> Array:
    """The covariance that a formula for pairs gives, shape (d, d), in the problem's own coordinates."""
    h, _ = eigenbasis(problem)
    return rotate_back(on_pairs(formula, optimizer, h) * rotated_noise(problem), problem)


def joint_covariance(optimizer: Optimizer, problem: Problem) -> tuple[Array, Array]:
    """The joint covariance of all slots, and its entries for unit c_ij in the eigenbasis, shape (n, n, m, m)."""
    slots = optimizer.rule.slots
    formula = theory.stationary_covariance(optimizer.rule.free())
    h, _ = eigenbasis(problem)
    noise = rotated_noise(problem)
    kernel = np.empty((len(h), len(h), len(slots), len(slots)))
    for a, first in enumerate(slots):
        for b, second in enumerate(slots):
            name = "Sigma_ij" if a == b == 0 else f"Sigma_ij({first},{second})"
            kernel[..., a, b] = on_pairs(formula, optimizer, h, name)
    blocks = [[rotate_back(kernel[..., a, b] * noise, problem) for b in range(len(slots))] for a in range(len(slots))]
    return np.block(blocks), kernel


def mean(optimizer: Optimizer, problem: Problem) -> Array:
    """The stationary mean of the weights; along flat coordinates the optimum itself."""
    h, vectors = eigenbasis(problem)
    # The formula has no h_j: every column is the same.
    factor = on_pairs(theory.stationary_mean(optimizer.rule.free()), optimizer, h)[:, 0]
    value = problem.quadratic.optimum.copy()
    value[problem.live] = vectors @ (factor * (vectors.T @ value[problem.live]))
    return value


Coefficients = dict[tuple[int, int], sp.Rational]


@functools.lru_cache(maxsize=128)
def _polynomials(
    expression: sp.Expr, symbols: tuple[tuple[str, sp.Symbol], ...], optimizer: Optimizer
) -> tuple[Coefficients, Coefficients]:
    """Numerator and denominator in h_i and h_j, exactly."""
    roles = dict(symbols)
    numbers: dict[str, Any] = {"c_ij": sp.Integer(1), "w_star": sp.Integer(1), **optimizer.exact}
    pair = tuple(roles.get(role, sp.Symbol(role)) for role in ("h_i", "h_j"))
    bound = expression.xreplace({symbol: numbers[role] for role, symbol in symbols if symbol not in pair})
    above, below = (sp.Poly(part, *pair, domain="QQ") for part in sp.fraction(sp.together(bound)))
    return above.as_dict(), below.as_dict()


def _degree(*polynomials: Coefficients) -> int:
    return max(max(powers) for polynomial in polynomials for powers in polynomial)


def _evaluate(polynomial: Coefficients, powers: NDArray[np.object_]) -> NDArray[np.object_]:
    size = powers.shape[1]
    table = np.full((size, size), mpmath.mpf(0))
    for (a, b), value in polynomial.items():
        table[a, b] = mpmath.mpf(int(value.p)) / int(value.q)
    return np.asarray(powers @ (table @ powers.T))
