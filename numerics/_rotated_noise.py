r"""Gradient noise in the eigenbasis of a Hessian, carried there as a factor, and how well it is known.

Rotated entry by entry, a covariance of less than full rank gets noise of the size :math:`\varepsilon \max|c|` in
directions that have none, which the inverse of a small curvature then magnifies: a covariance matrix with negative
eigenvalues.  So :math:`C = L L^\top` is factored first, by Cholesky's method with pivots on the matrix with its
diagonal scaled to 1, and :math:`G = U^\top L` is rotated.  The error of :math:`c_{ij} = g_i \cdot g_j` is then in
proportion to :math:`|g_i|` and :math:`|g_j|`, and the law positive semidefinite up to a few units in the last place of
its diagonal.

What C itself says of a direction is good to its own rounding only, which `RotatedNoise.error` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

from ._directions import EPS, Directions
from ._polynomial import binary_exponent

__all__ = ["RotatedNoise", "is_diagonal", "rotated_noise"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RotatedNoise:
    """C in the eigenbasis in units of ``2**exponent``, and bounds on the errors of its entries in the same units."""

    covariance: Array
    error: Array
    exponent: int
    #: Whether it is positive semidefinite up to the relative rounding of its factor's rows.
    definite: bool = True


def is_diagonal(a: Array) -> bool:
    """Whether nothing off the diagonal is nonzero."""
    return bool(np.count_nonzero(a) == np.count_nonzero(np.diagonal(a)))


def rotated_noise(noise: Array, directions: Directions, root: Array | None = None) -> RotatedNoise:
    """The covariance ``R C R`` of the noise (R the root of a preconditioner, if any) in the eigenbasis."""
    exponent = binary_exponent(noise)
    c, basis = np.ldexp(noise, -exponent), directions.basis
    if basis is None and (root is None or root.ndim == 1):
        plain = c if root is None else root[:, None] * c * root
        error = np.zeros_like(c) if root is None else 4.0 * EPS * np.abs(plain)
        # Nothing is rotated, so that every entry stays what it was.
        return _in_units(plain, error, exponent, definite=is_diagonal(c) or _definite(c))
    deviations, factor, loss = _factor(c)
    rows, weights = factor, deviations
    if root is not None:
        rows = root[:, None] * rows if root.ndim == 1 else root @ rows
        weights = root * weights if root.ndim == 1 else np.abs(root) @ weights
    if basis is not None:
        rows, weights = basis.T @ rows, np.abs(basis.T) @ weights
    lengths = np.linalg.norm(rows, axis=1)
    # Products of d terms each: the error of a row is d * eps of what it would be without cancellation.
    products = 1 if root is None or root.ndim == 1 else 2
    row_error = products * (len(c) + 4) * EPS * weights + directions.tilt(lengths)
    error = np.outer(row_error, lengths)
    error = error + error.T + np.outer(row_error, row_error) + loss * np.outer(weights, weights)
    return _in_units(rows @ rows.T, error, exponent)


def _in_units(covariance: Array, error: Array, exponent: int, definite: bool = True) -> RotatedNoise:
    """With entries of at most about 1 (a root may have changed the scale)."""
    shift = binary_exponent(covariance)
    return RotatedNoise(np.ldexp(covariance, -shift), np.ldexp(error, -shift), exponent + shift, definite)


def _definite(c: Array) -> bool:
    """Whether the covariance is positive definite beyond rounding, so that nothing is lost by leaving it as it is."""
    diagonal = np.diagonal(c)
    if not np.all(diagonal > 0):
        return False
    scales = _scales(diagonal)
    shifted = c / scales / scales[:, None]
    shifted[np.diag_indices_from(shifted)] -= 8.0 * len(c) * EPS
    try:
        scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return False
    return True


def _factor(c: Array) -> tuple[Array, Array, float]:
    r"""Standard deviations D, a factor L, and l with :math:`|C - L L^\top|_{ij} \le l D_i D_j`."""
    diagonal = np.maximum(np.diagonal(c), 0.0)
    if is_diagonal(c):
        root = np.sqrt(diagonal)
        return root, np.diag(root), 2.0 * EPS
    scales = _scales(diagonal)
    unit = np.where(scales > 0, scales, 1.0)
    scaled = c / unit / unit[:, None]
    triangle, pivots, rank, _ = dpstrf(scaled, tol=len(c) * EPS, lower=1)
    factor = np.zeros((len(c), rank))
    factor[pivots - 1] = np.tril(triangle)[:, :rank]
    # What was left out is known, and as much again as the rounding of this very difference.
    loss = float(np.max(np.abs(scaled - factor @ factor.T))) + (rank + 3) * EPS
    # A variance of 0 beside a covariance that is not 0: it counts as a variance of the size of the unit.
    stray = np.any(scaled[scales == 0.0] != 0.0) if np.any(scales == 0.0) else False
    deviations = np.maximum(np.sqrt(diagonal), unit) if stray else np.sqrt(diagonal)
    return np.asarray(deviations), np.asarray(factor * unit[:, None]), 4.0 * loss


def _scales(diagonal: Array) -> Array:
    """Powers of two of the size of the roots; 0 for 0."""
    roots = np.sqrt(diagonal)
    return np.asarray(np.where(roots > 0, np.ldexp(1.0, np.frexp(roots)[1]), 0.0))
