r"""The minimiser of :math:`|y - Xw|^2 + \alpha|w|^2` for the very doubles given, badly scaled or nearly collinear.

Columns are scaled (powers of two, so nothing is rounded) and a QR decomposition with pivoting decides the rank.
At full rank the solution of the augmented system

.. math:: r + B z = y , \qquad B^\top r = 0

is refined with residuals in twice the precision (Björck 1967; Higham 2002, section 20.5): each step multiplies the
error by about :math:`\varepsilon\,\kappa(B)`, so what remains is the rounding of w.  Without full rank the
solution of least norm comes from singular values that are accurate one by one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import AccuracyWarning
from ._data_directions import EPS, factor_directions, scaled_qr
from ._doubledouble import split

__all__ = ["Pair", "Regression", "defect", "solve_regression"]

Array: TypeAlias = NDArray[np.float64]

_REFINEMENTS = 30
#: A relative error above this is warned of.
ACCURATE = 1e-6
#: Numbers at a time in the products of twice the precision.
_CHUNK = 2**20


@dataclass(frozen=True)
class Regression:
    """A minimiser, its residuals ``y - X w`` (of the minimiser before it was rounded), and how well it is known.

    ``error`` is the last change of the refinement relative to the solution, in units in which the columns of X have
    length about 1; nan without full rank, where nothing was refined.
    """

    w: Array
    residual: Array
    error: float


def solve_regression(X: Array, y: Array, alpha: float = 0.0) -> Regression:
    """The minimiser; where there are many, the one of least norm.

    Parameters
    ----------
    X : ndarray, shape (N, d)
    y : ndarray, shape (N,)
    alpha : float, default 0
        The weight of the squared norm, at least 0.
    """
    count, d = X.shape
    size = float(np.max(np.abs(y)))
    if not size:
        return Regression(np.zeros(d), np.zeros(count), 0.0)
    unit = float(np.ldexp(1.0, int(np.frexp(size)[1])))
    design, target = X, y / unit
    if alpha:
        design = np.vstack([X, np.sqrt(alpha) * np.eye(d)])
        target = np.concatenate([target, np.zeros(d)])
    q, r, order, scales, rank = scaled_qr(design)
    if rank < d:
        return _least_norm(X, y, alpha)
    scaled = design[:, order] / scales[order]
    z, residual, error = _refined(scaled, target, q, r)
    if error > ACCURATE:
        warnings.warn(
            f"the minimiser of the squares is known to about {error:.1g} only: some of the {d} features are "
            f"combinations of others but for their last digits. Leave these out, or give weight decay.",
            AccuracyWarning,
            stacklevel=5,
        )
    w = np.empty(d)
    w[order] = z / scales[order] * unit
    if count == d and not alpha:
        residual = np.zeros(count)  # as many independent rows as unknowns: met by all, whatever rounding leaves
    return Regression(w, residual[:count] * unit, error)


def _refined(b: Array, y: Array, q: Array, r: Array) -> tuple[Array, Array, float]:
    """The solution of the augmented system, its residuals, and the last change relative to the solution."""
    z, rest = Pair.zeros(b.shape[1]), Pair.zeros(len(y))
    last = np.inf
    for _ in range(_REFINEMENTS):
        first = defect(b, z, Pair.of(y), rest)  # y - r - B z
        second = defect(b.T, rest, Pair.zeros(b.shape[1]), Pair.zeros(b.shape[1]))  # -B' r
        u = scipy.linalg.solve_triangular(r, second, trans=1, check_finite=False)
        along = q.T @ first
        step = scipy.linalg.solve_triangular(r, along - u, check_finite=False)
        size = float(np.linalg.norm(step))
        if not size < 0.5 * last:  # no progress: this is the accuracy that the condition leaves
            break
        z, rest = z.plus(step), rest.plus(first - q @ (along - u))
        last = size
        if np.all(np.abs(step) <= 0.25 * EPS * (np.abs(z.hi) + EPS * np.abs(z.hi).max())):
            break
    return z.hi, rest.hi, last / (float(np.linalg.norm(z.hi)) or 1.0)


def _least_norm(X: Array, y: Array, alpha: float) -> Regression:
    """The minimiser of least norm, or with a weight of the norm too small to make the rank full."""
    directions = factor_directions(X)
    h = directions.eigenvalues
    reached = h > 0
    # rows are U S: u_i' y s_i / (s_i^2 + alpha)
    along = (directions.rows[:, reached] / np.sqrt(h[reached])).T @ y
    w = directions.basis[:, reached] @ (along * (np.sqrt(h[reached]) / (h[reached] + alpha)))
    met = not alpha and np.count_nonzero(reached) == len(y)  # independent rows: rounding alone is left of residuals
    return Regression(w, np.zeros(len(y)) if met else y - X @ w, float("nan"))


@dataclass(frozen=True)
class Pair:
    """A vector in twice the precision, the unevaluated sum of two."""

    hi: Array
    lo: Array

    @classmethod
    def of(cls, a: Array) -> Pair:
        return cls(a, np.zeros_like(a))

    @classmethod
    def zeros(cls, size: int) -> Pair:
        return cls.of(np.zeros(size))

    def plus(self, step: Array) -> Pair:
        hi, error = _two_sum(self.hi, step)
        lo = self.lo + error
        total = hi + lo
        return Pair(total, lo - (total - hi))


def defect(a: Array, x: Pair, target: Pair, taken: Pair) -> Array:
    """``target - taken - a @ x``, rounded once: every product and sum carries its own rounding error along."""
    out = np.empty(len(a))
    x_high, x_low = split(x.hi)
    step = max(1, _CHUNK // (a.shape[1] + 2))
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        rows = a[part]
        high, low = split(rows)
        product = rows * x.hi
        error = ((high * x_high - product) + high * x_low + low * x_high) + low * x_low
        error += rows * x.lo
        terms = np.column_stack([target.hi[part], -taken.hi[part], -product])
        errors = target.lo[part] - taken.lo[part] - error.sum(axis=1)
        while terms.shape[1] > 1:
            if terms.shape[1] % 2:
                terms = np.column_stack([terms, np.zeros(len(terms))])
            terms, rest = _two_sum(terms[:, ::2], terms[:, 1::2])
            errors = errors + rest.sum(axis=1)
        out[part] = terms[:, 0] + errors
    return out


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
