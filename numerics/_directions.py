r"""The eigen-directions of a Hessian, and which of them an optimizer never forgets.

A direction is flat when the recursion has the eigenvalue 1 there, which happens at h = 0 (with weight decay h = 0 is
an ordinary direction).  From a diagonal Hessian the eigenvalues are exact and only h = 0 is flat.  Any other Hessian
is known only up to the rounding of its eigen-decomposition, so an eigenvalue of at most
:math:`d\,\varepsilon\,h_{\max}` is indistinguishable from 0 and counts as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import NonStationaryError
from ..theory import Optimizer
from ._margins import has_unit_root

__all__ = ["Directions", "check_flat_noise", "eigen_directions"]

Array: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Directions:
    """Eigenvalues in ascending order (as given, if the Hessian is diagonal), their basis, and which of them are flat.

    ``basis`` is None for a diagonal Hessian: its coordinates are the directions.
    """

    eigenvalues: Array
    basis: Array | None
    flat: NDArray[np.intp]

    @property
    def moving(self) -> NDArray[np.intp]:
        """Indices of the directions that are not flat."""
        return np.setdiff1d(np.arange(self.eigenvalues.size), self.flat)

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


def eigen_directions(optimizer: Optimizer, hessian: Array, *, vectors: bool = True) -> Directions:
    """Diagonalise a checked Hessian; eigenvalues that count as 0 are set to exactly 0."""
    h, basis, level = _eigh(hessian, vectors)
    h[h <= level] = 0.0
    flat = np.flatnonzero(h == 0.0) if has_unit_root(optimizer) else np.zeros(0, dtype=np.intp)
    return Directions(h, basis, flat)


def _eigh(hessian: Array, vectors: bool) -> tuple[Array, Array | None, float]:
    diagonal = np.diagonal(hessian)
    if np.count_nonzero(hessian) == np.count_nonzero(diagonal):
        return diagonal.copy(), None, 0.0
    if vectors:
        h, basis = scipy.linalg.eigh(hessian, driver="evd", check_finite=False)
    else:
        h, basis = scipy.linalg.eigvalsh(hessian, driver="evd", check_finite=False), None
    return h, basis, h.size * EPS * float(np.max(np.abs(h)))


def check_flat_noise(directions: Directions, noise: Array, level: float) -> None:
    r"""Raise `NonStationaryError` if a flat direction receives noise; ``noise`` is in the basis of the directions.

    Noise counts as none up to ``level``, and up to what the rounding of the flat eigenvectors lets in: they are known
    to the angle :math:`d\,\varepsilon\,h_{\max}/h_{\min}` (h_min the smallest eigenvalue that is not flat), and let
    in its square times the trace.
    """
    flat, moving = directions.flat, directions.eigenvalues[directions.moving]
    if not flat.size:
        return
    if directions.basis is not None and moving.size:
        angle = min(1.0, noise.shape[0] * EPS * float(moving.max() / moving.min()))
        level += angle**2 * float(np.trace(noise))
    variances = np.diagonal(noise)[flat]
    excited = flat[variances > level]
    if excited.size:
        first, many = int(excited[0]), "" if excited.size == 1 else "s"
        raise NonStationaryError(
            f"direction {first} has Hessian eigenvalue 0 and gradient noise of variance {noise[first, first]:.6g} "
            f"({excited.size} such direction{many} in all): it is a random walk and has no "
            f"stationary law. Add weight_decay, or project it out.",
            modes=tuple(int(i) for i in excited),
        )
