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

__all__ = ["max_learning_rate", "spectral_radius"]

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
    free = optimizer.free("lr")
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
        start after one more step, in the long run.  0 if all are flat.

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
    optimizer.require_bound()
    directions = eigen_directions(optimizer, positive_semidefinite("hessian", hessian), vectors=False)
    moving = directions.eigenvalues[directions.moving]
    if not moving.size:
        return 0.0
    layers = recursion(optimizer).increment_coefficients
    increments = sum(np.array(layer, dtype=np.float64) * (moving**k)[:, None, None] for k, layer in enumerate(layers))
    shifts = np.linalg.eigvals(increments)
    return float(np.max(np.abs(1.0 + shifts)))
