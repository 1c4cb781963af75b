r"""Whether a point is a minimum: one criterion, for the Hessian as a matrix and for its products alone.

A matrix is held to the criterion that numerics has for a Hessian, with one thing besides: the derivatives that it is
made of are rounded too, by about as much as the matrix differs from its transpose. A negative eigenvalue within that is
0 for all that is known, and numerics is given 0; one beyond is a direction in which the loss falls.

Of products, Lanczos' method gives Ritz values: each is the curvature :math:`v^\top H v` in a direction that there is,
so a negative one proves that the point is no minimum. That there is none is found, and not proved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from ..errors import InvalidProblemError
from ..numerics._arrays import rounding_level

__all__ = ["Curvature", "curvature_of", "curvature_of_products"]

Array: TypeAlias = NDArray[np.float64]

#: An asymmetry up to this multiple of the largest entry is rounding of the derivatives; a Ritz value below 0 likewise.
ROUNDING = 1e-10
#: Products that Lanczos' method may take.
LANCZOS_STEPS = 100


@dataclass(frozen=True, eq=False)
class Curvature:
    """A Hessian, its extreme eigenvalues, and what of it is rounding.

    Attributes
    ----------
    hessian : ndarray, shape (d, d), or LinearOperator
        Of a matrix the symmetric part, negative eigenvalues within rounding set to 0.
    smallest, largest : float
        Eigenvalues as they were found.
    level : float
        Up to which a negative eigenvalue is rounding.
    asymmetry : float
        Relative to the largest entry.
    """

    hessian: Array | LinearOperator
    smallest: float
    largest: float
    level: float
    asymmetry: float = 0.0

    @property
    def minimal(self) -> bool:
        """Whether the point is a minimum, as far as it can be told."""
        return self.smallest >= -self.level

    def refuse_saddle(self) -> None:
        """Refuse a point from which the loss falls.

        Raises
        ------
        InvalidProblemError
        """
        if not self.minimal:
            raise InvalidProblemError(
                f"the point is no minimum: the smallest eigenvalue of the Hessian is {self.smallest:.6g} (the largest "
                f"{self.largest:.6g}, and rounding explains at most {self.level:.3g} below 0), so the loss falls along "
                f"its eigenvector."
            )


def curvature_of(matrix: Array) -> Curvature:
    """Of a matrix as differentiation gives it.

    Raises
    ------
    InvalidProblemError
        If it is not symmetric.
    """
    top = float(np.abs(matrix).max())
    gap = float(np.abs(matrix - matrix.T).max())
    asymmetry = gap / top if top else 0.0
    if asymmetry > ROUNDING:
        raise InvalidProblemError(f"the Hessian is not symmetric, by {asymmetry:.3g}: the loss is not smooth.")
    hessian = np.asarray(0.5 * (matrix + matrix.T))
    level = rounding_level(hessian) + len(hessian) * gap
    values, vectors = scipy.linalg.eigh(hessian)
    smallest, largest = float(values[0]), float(values[-1])
    if -level <= smallest < -rounding_level(hessian):
        below = values < 0.0
        hessian = hessian - (vectors[:, below] * values[below]) @ vectors[:, below].T
        hessian = 0.5 * (hessian + hessian.T)
    return Curvature(hessian, smallest, largest, level, asymmetry)


def curvature_of_products(operator: LinearOperator) -> Curvature:
    """Of products only, by Lanczos' method from a random vector, every direction kept orthogonal to all before."""
    dim = operator.shape[0]
    steps = min(dim, LANCZOS_STEPS)
    basis = np.zeros((steps, dim))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    v = np.random.default_rng(0).standard_normal(dim)
    v /= np.linalg.norm(v)
    for k in range(steps):
        basis[k] = v
        w = np.asarray(operator @ v)
        diagonal[k] = float(v @ w)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        beside[k] = float(np.linalg.norm(w))
        if beside[k] <= 1e-12 * np.abs(diagonal[: k + 1]).max(initial=1e-300):  # an invariant subspace: go on outside
            w = np.random.default_rng(k + 1).standard_normal(dim)
            for _ in range(2):
                w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
            beside[k] = 0.0
        size = np.linalg.norm(w)
        if size == 0.0:
            steps = k + 1
            break
        v = w / size
    ritz = scipy.linalg.eigvalsh_tridiagonal(diagonal[:steps], beside[: steps - 1])
    smallest, largest = float(ritz[0]), float(ritz[-1])
    return Curvature(operator, smallest, largest, ROUNDING * max(abs(smallest), abs(largest)))
