r"""The eigen-directions of a Hessian, and which of them an optimizer never forgets.

A direction is flat when the recursion has the eigenvalue 1 there, which happens at h = 0 (with weight decay h = 0 is
an ordinary direction).  From a diagonal Hessian the eigenvalues are exact and only h = 0 is flat.  Any other Hessian
is known only up to the rounding of its eigen-decomposition, so an eigenvalue of at most
:math:`d\,\varepsilon\,h_{\max}` is indistinguishable from 0 and counts as 0.  Where only the units of
the coordinates make it so small, a factor of the Hessian tells it from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import NonStationaryError
from ..theory import Optimizer
from ._data_directions import factor_directions, gram_factor
from ._forward_error import HessianError
from ._margins import has_unit_root

__all__ = ["EPS", "Directions", "check_flat_noise", "eigen_directions"]

Array: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)

#: From this relative uncertainty of the least eigenvalue on, and this range of its diagonal, a Hessian is factored.
_UNCERTAIN = 1e-8
_UNEQUAL_UNITS = 1e4


@dataclass(frozen=True)
class Directions:
    """Eigenvalues in ascending order (as given, if the Hessian is diagonal), their basis, and which of them are flat.

    ``basis`` is None for a diagonal Hessian: its coordinates are the directions.  ``rows``, where the Hessian came as a
    factor, is that factor in the eigenbasis.
    """

    eigenvalues: Array
    basis: Array | None
    flat: NDArray[np.intp]
    error: HessianError = field(default_factory=HessianError)
    rows: Array | None = None

    @property
    def moving(self) -> NDArray[np.intp]:
        """Indices of the directions that are not flat."""
        return np.setdiff1d(np.arange(self.eigenvalues.size), self.flat)

    def tilt(self, sizes: Array) -> Array:
        """What the basis, being orthogonal only up to rounding, mixes into each entry of a vector of these sizes."""
        if self.basis is None:
            return np.zeros_like(sizes)
        if not self.error.terms:
            return np.full(sizes.shape, sizes.size * EPS * float(np.linalg.norm(sizes)))
        # The vectors of a graded matrix are orthogonal entry by entry.
        overlap = np.abs(self.basis.T @ self.basis - np.eye(sizes.size))
        overlap += sizes.size * EPS * (np.abs(self.basis.T) @ np.abs(self.basis))
        return np.asarray(overlap @ sizes)

    def rotate(self, a: Array) -> Array:
        """A matrix or vector in the basis of the directions."""
        if self.basis is None:
            return a
        return _congruent(self.basis.T, a) if a.ndim == 2 else self.basis.T @ a

    def rotate_back(self, a: Array, *, symmetric: bool = True) -> Array:
        """A matrix or vector in the basis of the directions, back in the original coordinates."""
        if self.basis is None:
            return a
        if a.ndim == 1:
            return self.basis @ a
        return _congruent(self.basis, a) if symmetric else self.basis @ a @ self.basis.T


def _congruent(u: Array, a: Array) -> Array:
    """``u a u'`` of a symmetric a, exactly symmetric: half of it from the triangle of a, whose product costs half."""
    triangle = np.tril(a)
    triangle[np.diag_indices_from(triangle)] *= 0.5
    # BLAS wants columns: the transposes below are views of row-major arrays.
    if u.flags.f_contiguous:
        half = scipy.linalg.blas.dtrmm(1.0, triangle.T, u, side=1, trans_a=1) @ u.T
    else:
        half = u @ scipy.linalg.blas.dtrmm(1.0, triangle.T, u.T, trans_a=1)
    return np.asarray(half + half.T)


def eigen_directions(
    optimizer: Optimizer,
    hessian: Array,
    *,
    vectors: bool = True,
    factor: tuple[Array, float] | None = None,
    formed: float = 0.0,
    blurred: float = 0.0,
) -> Directions:
    """Diagonalise a checked Hessian; eigenvalues that count as 0 are set to exactly 0.

    ``factor`` is a pair (A, shift) with the Hessian ``A'A + shift I``, where it is known.  ``formed`` is the relative
    error, entry by entry, with which the Hessian was formed, ``blurred`` one in the spectral norm.
    """
    unit_root = has_unit_root(optimizer)
    if factor is not None:
        return _from_factor(*factor, unit_root, None)
    diagonal = np.diagonal(hessian)
    if np.count_nonzero(hessian) == np.count_nonzero(diagonal):
        h = diagonal.copy()
        terms = ((formed * h, np.ones(h.size)),) if formed else ()
        return Directions(h, None, _flat(h, unit_root), HessianError(terms=terms))
    if vectors:
        h, basis = scipy.linalg.eigh(hessian, driver="evd", check_finite=False)
    else:
        h, basis = scipy.linalg.eigvalsh(hessian, driver="evd", check_finite=False), None
    largest = float(np.max(np.abs(h)))
    level = h.size * EPS * largest
    smallest, largest_unit = float(diagonal.min()), float(diagonal.max())
    if not blurred and float(h[0]) * _UNCERTAIN < level and 0.0 < smallest < largest_unit / _UNEQUAL_UNITS:
        triangle = gram_factor(hessian)
        if triangle is not None:
            graded = _from_factor(triangle, 0.0, unit_root, (hessian, formed))
            if np.all(np.isfinite(graded.error.terms[0][0])):
                return graded
    h[h <= level] = 0.0
    return Directions(
        h, basis, _flat(h, unit_root), HessianError(level + blurred + (formed * h.size * largest if formed else 0.0))
    )


def _from_factor(factor: Array, shift: float, unit_root: bool, given: tuple[Array, float] | None) -> Directions:
    r"""The directions of ``factor' factor + shift``; ``given`` is the matrix, if the factor was made of it.

    An error of the factor whose columns in the eigenbasis are of length :math:`t_j` changes the entries of the Hessian
    there by at most :math:`\sigma_i t_j + t_i \sigma_j`.
    """
    found = factor_directions(factor, shift)
    sizes = np.linalg.norm(found.rows, axis=0)
    lengths = (
        0.5 * found.relative_error * np.divide(found.eigenvalues, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    )
    terms: tuple[tuple[Array, Array], ...] = ((lengths, sizes), (sizes, lengths))
    if given is not None:
        # Cholesky's backward error, and that of forming the matrix, are relative to the roots of the diagonal.
        matrix, formed = given
        weights = np.abs(found.basis.T) @ np.sqrt(np.diagonal(matrix))
        terms = (*terms, (((len(matrix) + 2) * EPS + formed) * weights, weights))
    error = HessianError(terms=terms)
    return Directions(found.eigenvalues, found.basis, _flat(found.eigenvalues, unit_root), error, found.rows)


def _flat(h: Array, unit_root: bool) -> NDArray[np.intp]:
    return np.flatnonzero(h == 0.0) if unit_root else np.zeros(0, dtype=np.intp)


def check_flat_noise(directions: Directions, noise: Array, level: float | Array) -> None:
    r"""Raise `NonStationaryError` if a flat direction receives noise; ``noise`` is in the basis of the directions.

    Noise counts as none up to ``level``, the rounding of the noise itself.  The flat eigenvectors are known to an
    angle of :math:`d\,\varepsilon\,h_{\max}/h_{\min}` only (h_min the smallest eigenvalue that is not flat), so that
    noise of the directions beside them may be all there is; which of the two it is the arrays do not tell, and there
    is no law to return.
    """
    flat, moving = directions.flat, directions.eigenvalues[directions.moving]
    variances = np.diagonal(noise)
    levels = np.broadcast_to(level, variances.shape)
    excited = flat[variances[flat] > levels[flat]]
    if not excited.size:
        return
    first, many = int(excited[0]), "" if excited.size == 1 else "s"
    exact = directions.basis is None
    message = (
        f"direction {first} has Hessian eigenvalue {'0' if exact else '0 up to rounding'} and gradient noise of "
        f"variance {variances[first]:.6g} ({excited.size} such direction{many} in all): it is a random walk and has no "
        f"stationary law. Add weight_decay, or project it out."
    )
    if not exact and moving.size:
        angle = min(1.0, variances.size * EPS * float(moving.max() / moving.min()))
        if np.all(variances[excited] <= levels[excited] + angle**2 * float(np.sum(variances))):
            message += (
                f" (So little noise may also be that of directions of small curvature, down to {moving.min():.3g}, "
                f"which these arrays do not tell from the flat ones.)"
            )
    raise NonStationaryError(message, modes=tuple(int(i) for i in excited))
