r"""How large a learning rate may be, and how fast an optimizer forgets, for a given Hessian.

The stability margins of a rule are polynomials in the eigenvalue h and the learning rate, with exact coefficients.  The
largest stable learning rate at h is the smallest positive zero of a margin; over a Hessian it is the smallest of those.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import HyperparameterError
from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite
from ._directions import eigen_directions
from ._margins import learning_rate_bounds
from ._spectral_gap import smallest_gap

__all__ = ["max_learning_rate", "spectral_gap", "spectral_radius"]

Array: TypeAlias = NDArray[np.float64]


def max_learning_rate(optimizer: Optimizer, hessian: ArrayLike) -> float:
    r"""The least upper bound of the stable learning rates: every smaller one has a stationary law.

    Parameters
    ----------
    optimizer : Optimizer
        Everything but ``lr`` must be bound; a bound ``lr`` is ignored.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.  Flat directions put no bound on the learning rate.

    Returns
    -------
    float
        Correct to a few units in the last place given the eigenvalues; ``inf`` if every direction is flat, 0 if
        arbitrarily small learning rates are unstable.

    Raises
    ------
    HyperparameterError
        If the rule has no ``lr``, or something else is unbound.
    InvalidProblemError
        If ``hessian`` is not symmetric positive semidefinite.

    Examples
    --------
    Momentum SGD is stable for ``lr * h < 2 * (1 + momentum)``:

    >>> from sgdcov.theory import heavy_ball
    >>> max_learning_rate(heavy_ball(lr=0.1, momentum=0.5), [[4.0, 0.0], [0.0, 1.0]])
    0.75
    """
    free = recursion(optimizer).optimizer.free("lr")
    missing = [name for name in free.unbound if name != "lr"]
    if missing:
        raise HyperparameterError(
            f"{free!r} has no value for {', '.join(missing)}; everything but lr must be bound", name=missing[0]
        )
    directions = eigen_directions(free, positive_semidefinite("hessian", hessian), vectors=False)
    moving = directions.eigenvalues[directions.moving]
    if not moving.size:
        return float("inf")
    return float(np.min(learning_rate_bounds(free, moving)))


def spectral_radius(optimizer: Optimizer, hessian: ArrayLike) -> float:
    r"""The spectral radius of the recursion over the directions that are not flat.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.  It need not be stable.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.

    Returns
    -------
    float
        The largest modulus of the eigenvalues of A(h) over the eigenvalues h that are not flat: what is left of the
        start after one more step, in the long run.  0 if all are flat.  Below 1 if and only if it contracts: a radius
        that would round to 1 is the largest double below it, and `spectral_gap` has its distance from 1.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If ``hessian`` is not symmetric positive semidefinite.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> spectral_radius(sgd(lr=0.5), [[1.5, 0.0], [0.0, 0.5]])
    0.75
    """
    gap = spectral_gap(optimizer, hessian)
    radius = 1.0 - gap
    if gap > 0.0:
        return min(radius, float(np.nextafter(1.0, 0.0)))
    return max(radius, float(np.nextafter(1.0, 2.0))) if gap < 0.0 else radius


def spectral_gap(optimizer: Optimizer, hessian: ArrayLike) -> float:
    r"""How far the spectral radius is below 1, to full relative accuracy: the rate at which the start is forgotten.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.  It need not be stable.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.

    Returns
    -------
    float
        :math:`1 - \rho`, positive if and only if the recursion contracts along every direction that is not flat; 1 if
        all are flat.  However small, it is correct to a few units in the last place given the eigenvalues.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If ``hessian`` is not symmetric positive semidefinite.
    ScaleError
        If it is too large or too small for double precision.

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> spectral_gap(sgd(lr=1e-20), [[1.0]])
    1e-20
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    directions = eigen_directions(optimizer, positive_semidefinite("hessian", hessian), vectors=False)
    moving = directions.eigenvalues[directions.moving]
    return float(smallest_gap(optimizer, moving)) if moving.size else 1.0
