r"""Preconditioners: the constant matrix P that an optimiser puts before the gradient.

A preconditioned rule sees :math:`P g` instead of :math:`g`.  For a symmetric positive definite P the change of
coordinates :math:`w = P^{1/2} z` turns it into the plain rule on z, with Hessian :math:`P^{1/2} H P^{1/2}` and noise
:math:`P^{1/2} C P^{1/2}`; every slot transforms with :math:`P^{1/2}`.  So the law of the plain rule, solved in z,
gives that of the preconditioned one, :math:`\Sigma_w = P^{1/2} \Sigma_z P^{1/2}`, for any H, C and P.  (Matrix
learning rates: ``liu2021noise``, arXiv 2012.03636, where the equation is left implicit.)

Each function returns a plain array: (d, d) symmetric positive definite, or (d,) positive for a diagonal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._rotated_noise import is_diagonal

__all__ = ["adam", "damped_newton", "natural_gradient", "preconditioner_sqrt", "rmsprop"]

Array = NDArray[np.float64]


def damped_newton(hessian: ArrayLike, damping: float) -> Array:
    r"""The damped Newton preconditioner :math:`(H + \delta I)^{-1}`.

    Parameters
    ----------
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    damping : float
        :math:`\delta \ge 0`; it must be positive where H is singular.

    Returns
    -------
    ndarray, shape (d, d)

    Raises
    ------
    InvalidProblemError
        H is not semidefinite, ``damping`` is negative, or ``H + damping I`` is singular to working precision.

    Notes
    -----
    Undamped, ``sgd(lr)`` then has the stationary covariance :math:`\frac{lr}{2 - lr} H^{-1} C H^{-1}` for any C:
    Newton's method in the sense of ``liu2021noise``.

    Examples
    --------
    >>> damped_newton([[1.0, 0.0], [0.0, 3.0]], damping=1.0)
    array([[0.5 , 0.  ],
           [0.  , 0.25]])
    """
    return _damped_inverse("hessian", hessian, damping)


def natural_gradient(fisher: ArrayLike, damping: float = 0.0) -> Array:
    r"""The natural-gradient preconditioner :math:`(F + \delta I)^{-1}` with a Fisher matrix held fixed.

    Parameters
    ----------
    fisher : array_like, shape (d, d)
        F, symmetric positive semidefinite.  The empirical Fisher matrix at the minimiser is proportional to the
        gradient noise, hence ``fisher=noise`` in ``liu2021noise``.
    damping : float, default 0
        :math:`\delta \ge 0`; it must be positive where F is singular.

    Returns
    -------
    ndarray, shape (d, d)

    Raises
    ------
    InvalidProblemError
        F is not semidefinite, ``damping`` is negative, or ``F + damping I`` is singular to working precision.

    Examples
    --------
    >>> natural_gradient([[2.0]])
    array([[0.5]])
    """
    return _damped_inverse("fisher", fisher, damping)


def adam(second_moment: ArrayLike, eps: float = 1e-8) -> Array:
    r"""Adam's diagonal preconditioner :math:`1/(\sqrt v + \epsilon)` with the second moments v held fixed.

    Parameters
    ----------
    second_moment : array_like, shape (d,)
        v, the mean squared gradients, not negative.  At a stationary law with small steps it is the diagonal of the
        noise.
    eps : float, default 1e-8
        Not negative; positive where a second moment is 0.

    Returns
    -------
    ndarray, shape (d,)

    Raises
    ------
    InvalidProblemError
        A negative or missing second moment, a negative ``eps``, or ``eps=0`` beside a second moment of 0.

    Notes
    -----
    Adam's first moment is ``heavy_ball(lr, momentum=beta1, dampening=beta1)``.  Its bias corrections are left out:
    they tend to 1 with the number of steps, and so do not change the stationary law.  What is approximate is the
    freezing: the real v fluctuates with the gradients it averages, the less the nearer beta2 is to 1.

    Examples
    --------
    >>> adam([4.0, 0.25], eps=0.0)
    array([0.5, 2. ])
    """
    return _inverse_root(second_moment, eps)


def rmsprop(second_moment: ArrayLike, eps: float = 1e-8) -> Array:
    r"""RMSProp's diagonal preconditioner :math:`1/(\sqrt v + \epsilon)` with the second moments v held fixed.

    The same array as :func:`adam`, whose first moment is the rule's own affair; RMSProp is it with ``sgd`` or
    ``heavy_ball``.

    Parameters
    ----------
    second_moment : array_like, shape (d,)
        v, the mean squared gradients, not negative.
    eps : float, default 1e-8
        Not negative; positive where a second moment is 0.  Outside the root, as in PyTorch.

    Returns
    -------
    ndarray, shape (d,)

    Raises
    ------
    InvalidProblemError
        As :func:`adam`.

    Examples
    --------
    >>> rmsprop([4.0, 0.0], eps=0.5)
    array([0.4, 2. ])
    """
    return _inverse_root(second_moment, eps)


def preconditioner_sqrt(preconditioner: ArrayLike, dim: int) -> tuple[Array, Array]:
    r"""The symmetric root :math:`P^{1/2}` of a preconditioner, and its inverse.

    Parameters
    ----------
    preconditioner : array_like, shape (d, d) or (d,)
        Symmetric positive definite, or the positive diagonal of a diagonal one.
    dim : int
        The d it must have.

    Returns
    -------
    root, inverse_root : ndarray
        Both (d, d), or both (d,) for a diagonal.

    Raises
    ------
    InvalidProblemError
        Not symmetric, or not positive definite to working precision (its smallest eigenvalue is named).

    Examples
    --------
    >>> preconditioner_sqrt([4.0, 1.0], dim=2)
    (array([2., 1.]), array([0.5, 1. ]))
    """
    if _arrays.finite_array("preconditioner", preconditioner).ndim == 1:
        diagonal = _arrays.vector("preconditioner", preconditioner, dim=dim)
        if np.any(diagonal <= 0.0):
            i = int(diagonal.argmin())
            raise InvalidProblemError(f"preconditioner must be positive: preconditioner[{i}] = {diagonal[i]:.6g}")
        root = np.sqrt(diagonal)
        return root, 1.0 / root
    p = _arrays.symmetric("preconditioner", preconditioner, dim=dim)
    values, vectors = _definite_eigh("preconditioner", p)
    roots = np.sqrt(values)
    return _symmetrised((vectors * roots) @ vectors.T), _symmetrised((vectors / roots) @ vectors.T)


def _definite_eigh(name: str, p: Array, way_out: str = "") -> tuple[Array, Array]:
    """The eigenvalues and eigenvectors of a positive definite matrix, or an error with its smallest eigenvalue."""
    values, vectors = scipy.linalg.eigh(p, check_finite=False)
    level = 0.0 if is_diagonal(p) else p.shape[0] * float(np.finfo(np.float64).eps) * float(np.abs(values).max())
    if not values[0] > level:
        raise InvalidProblemError(
            f"{name} is not positive definite: its smallest eigenvalue is {values[0]:.6g}, its largest {values[-1]:.6g}"
            + way_out
        )
    return values, vectors


def _damped_inverse(name: str, a: ArrayLike, damping: float) -> Array:
    matrix = _arrays.positive_semidefinite(name, a)
    delta = _arrays.nonnegative("damping", damping)
    damped = matrix + delta * np.eye(matrix.shape[0])
    label = f"{name} + damping*I with damping={delta:.6g}" if delta else name
    values, vectors = _definite_eigh(label, damped, "; a positive (larger) damping makes it invertible")
    if is_diagonal(damped):
        return np.diag(1.0 / np.diagonal(damped))
    return _symmetrised((vectors / values) @ vectors.T)


def _inverse_root(second_moment: ArrayLike, eps: Any) -> Array:
    v = _arrays.vector("second_moment", second_moment)
    if np.any(v < 0.0):
        i = int(v.argmin())
        raise InvalidProblemError(f"second_moment must not be negative: second_moment[{i}] = {v[i]:.6g}")
    shift = _arrays.nonnegative("eps", eps)
    denominator = np.sqrt(v) + shift
    if np.any(denominator == 0.0):
        i = int(denominator.argmin())
        raise InvalidProblemError(f"second_moment[{i}] = 0 needs eps > 0, got eps={shift:.6g}")
    return np.asarray(1.0 / denominator)


def _symmetrised(a: Array) -> Array:
    return 0.5 * (a + a.T)
