r"""Eigen-directions of a Gram matrix :math:`H = A^\top A + \lambda I` from its factor A, badly scaled columns or not.

Forming :math:`A^\top A` squares the condition, and ``eigh`` loses what is below :math:`\varepsilon h_{\max}`.  From the
factor neither happens: with :math:`A = B D`, D the sizes of the columns, the one-sided Jacobi method has

.. math:: |\delta\sigma_i| \le p\,\varepsilon\,\|B^+\|\,\sigma_i

for every singular value, however small (Demmel and Veselić 1992; Drmač and Veselić 2008, LAPACK's ``dgejsv``): the
units of the features do not count.  Whether a direction is flat is likewise decided on B: it is where a column of B is,
up to rounding, a combination of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.lapack import dgejsv, dpstrf

from ..errors import ScaleError

__all__ = [
    "SMALLEST",
    "FactorDirections",
    "column_scales",
    "factor_directions",
    "gram_factor",
    "gram_matrix",
    "scaled_qr",
]

Array: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)

#: Products below this lose digits to underflow.
SMALLEST = float(np.finfo(np.float64).tiny) / EPS
#: What dgejsv's first arguments mean: rows and columns both scaled; no small columns killed; no transposition; no
#: perturbation of tiny numbers.
_JACOBI = {"joba": 2, "jobr": 0, "jobt": 0, "jobp": 0}


@dataclass(frozen=True)
class FactorDirections:
    """The eigen-decomposition of a Gram matrix, and the factor in the eigenbasis.

    Attributes
    ----------
    eigenvalues : ndarray, shape (d,)
        Ascending; without a shift exactly 0 along the directions that the factor does not reach.
    basis : ndarray, shape (d, d)
        Eigenvectors in columns.
    rows : ndarray, shape (m, d)
        ``factor @ basis``; column by column as accurate as the singular values, which that product is not.
    relative_error : ndarray, shape (d,)
        A bound on the relative error of each eigenvalue; for one that counts as 0, it is 0.
    """

    eigenvalues: Array
    basis: Array
    rows: Array
    relative_error: Array


def column_scales(a: Array) -> Array:
    """Powers of two of the size of the columns' norms; 1 for a column of zeros."""
    largest = np.max(np.abs(a), axis=0, initial=0.0)
    _, power = np.frexp(np.where(largest > 0, largest, 1.0))
    # frexp first: squares of the entries as they are may overflow or underflow.
    norms = np.linalg.norm(np.ldexp(a, -power), axis=0)
    return np.asarray(np.ldexp(1.0, power + np.frexp(np.where(norms > 0, norms, 1.0))[1] - 1))


def gram_matrix(name: str, rows: Array, divisor: float = 1.0) -> Array:
    """``rows.T @ rows / divisor``, exactly symmetric.

    Raises
    ------
    ScaleError
        If it overflows, or if columns are so small that it underflows and would be a false 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = rows.T @ rows / divisor
        out = 0.5 * product + 0.5 * product.T
    present = np.any(rows != 0.0, axis=0)
    if not np.all(np.isfinite(out)) or np.any(np.diagonal(out)[present] < SMALLEST):
        size = np.abs(rows).max(axis=0)[present]
        raise ScaleError(
            f"{name} is a matrix of squares of numbers from {size.min():.3g} to {size.max():.3g}, beyond double "
            f"precision; take units in which the numbers lie between 1e-145 and 1e150"
        )
    return out


def scaled_qr(a: Array) -> tuple[Array, Array, NDArray[np.intp], Array, int]:
    """``a / scales = q r`` up to the order of the columns: q, r, that order, the scales, and the rank."""
    scales = column_scales(a)
    # Pivoting is slow on a tall matrix (it works column by column), and on its triangle does the same.
    q, r = scipy.linalg.qr(a / scales, mode="economic", check_finite=False)
    inner, r, order = scipy.linalg.qr(r, mode="economic", pivoting=True, check_finite=False)
    q = q @ inner
    pivots = np.abs(np.diagonal(r))
    # What Householder's reflections may leave of a column that depends on the others: it counts as nothing.
    kept = pivots > max(a.shape) * EPS * pivots[0] if pivots[0] else np.zeros(len(pivots), dtype=bool)
    return q, r, order, scales, int(np.count_nonzero(np.cumprod(kept)))


def factor_directions(factor: Array, shift: float = 0.0) -> FactorDirections:
    """The eigen-directions of ``factor.T @ factor + shift I``.

    Parameters
    ----------
    factor : ndarray, shape (m, d)
    shift : float, default 0
        At least 0; the directions do not depend on it, and the eigenvalue of those that the factor does not reach is
        the shift exactly.
    """
    d = factor.shape[1]
    q, r, order, scales, rank = scaled_qr(factor)
    top = np.zeros((rank, d))
    top[:, order] = r[:rank] * scales[order]
    # The transpose is tall, and graded by rows as the factor is by columns.
    sizes, left, right = _jacobi(top.T)
    sizes, left, right = sizes[::-1], left[:, ::-1], right[:, ::-1]
    basis = np.hstack([_complement(left), left])
    rows = np.zeros((len(factor), d))
    rows[:, d - rank :] = (q[:, :rank] @ right) * sizes
    squares = np.zeros(d)
    squares[d - rank :] = sizes**2
    h = squares + shift
    error = np.zeros(d)
    error[d - rank :] = _relative_error(len(factor), np.abs(left) * scales[:, None], sizes, r[:rank, :rank])
    # The shift is known, and dilutes what is not.
    error = error * np.divide(squares, h, out=np.zeros(d), where=h > 0) + (EPS if shift else 0.0)
    return FactorDirections(h, basis, rows, error)


def _relative_error(m: int, weighted: Array, sizes: Array, triangle: Array) -> Array:
    """Bounds on the relative errors of the squared singular values, from the vectors times the scales of the columns.

    The computed values are those of ``A + E D`` with columns of E of length c eps at most; to first order
    ``u_i' E D v_i`` is at most c eps times the sum of ``|D v_i|``.  Infinite where E might be a tenth of the least
    singular value of B, so that the first order says nothing.
    """
    if not sizes.size:
        return np.zeros(0)
    level = (2.0 * np.sqrt(m) + 4.0 * len(weighted)) * EPS
    least = float(scipy.linalg.svdvals(triangle, check_finite=False)[-1])
    if not np.sqrt(len(weighted)) * level < 0.1 * least:
        return np.full(len(sizes), np.inf)
    return np.asarray(2.5 * level * weighted.sum(axis=0) / sizes)


def _jacobi(a: Array) -> tuple[Array, Array, Array]:
    """Singular values in descending order, and vectors, of a matrix with at least as many rows as columns."""
    if not a.shape[1]:
        return np.zeros(0), np.zeros((a.shape[0], 0)), np.zeros((0, 0))
    sizes, left, right, work, _, info = dgejsv(a, jobu=0, jobv=0, **_JACOBI)
    if info:
        left, sizes, right_t = scipy.linalg.svd(a, full_matrices=False, lapack_driver="gesvd")
        return sizes, left, right_t.T
    sizes = sizes * (work[0] / work[1])
    descending = np.argsort(-sizes, kind="stable")
    return sizes[descending], left[:, descending], right[:, descending]


def _complement(basis: Array) -> Array:
    """Orthonormal columns that are orthogonal to those of a tall matrix with orthonormal columns."""
    d, rank = basis.shape
    if rank == d:
        return np.zeros((d, 0))
    if not rank:
        return np.eye(d)
    return np.asarray(scipy.linalg.qr(basis, mode="full", check_finite=False)[0][:, rank:])


def gram_factor(gram: Array) -> Array | None:
    """A factor A with ``A.T @ A`` the given matrix, if it is positive definite beyond the rounding of its entries.

    By Cholesky's method on the matrix with its diagonal scaled to about 1 (van der Sluis: nearly the best scaling), so
    the units of the coordinates do not count.  None where a pivot is lost in rounding: the entries do not tell its
    eigenvalues then, whatever is done with them.
    """
    d = len(gram)
    diagonal = np.diagonal(gram)
    if not np.all(diagonal > 0):
        return None
    scales = np.ldexp(1.0, np.frexp(np.sqrt(diagonal))[1])
    triangle, pivots, rank, info = dpstrf(gram / scales / scales[:, None], tol=8.0 * d * EPS)
    if info or rank < d:
        return None
    out = np.zeros_like(gram)
    out[:, pivots - 1] = np.triu(triangle)
    return np.asarray(out * scales)
