r"""The local quadratic of cross-entropy with linear outputs, at its minimum, as least squares with several outputs.

With outputs :math:`f_n = c_n + \Phi_n a`, probabilities p and :math:`s = \sqrt p`, the gradient and Hessian are

.. math:: \Phi_n^\top (p - e_y), \qquad
          \Phi_n^\top (\operatorname{diag} p - p p^\top) \Phi_n = \Phi_n^\top R^\top R\, \Phi_n , \qquad
          R = (I - s s^\top) \operatorname{diag} s ,

and :math:`R^\top (s - e_y / s_y) = p - e_y`: features :math:`R \Phi_n` and residuals :math:`s - e_y/s_y`.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ..numerics import VectorLeastSquares

__all__ = ["softmax_quadratic"]

Array = NDArray[np.float64]

#: Newton steps before giving up; a dozen is usual.
MOST_STEPS = 100
#: The gradient at the minimum, relative to the mean size of the examples' gradients there.
GRADIENT_TOLERANCE = 1e-10


def softmax_quadratic(
    features: Array, offsets: Array, labels: NDArray[np.int64], l2: float
) -> tuple[VectorLeastSquares, Array]:
    """The quadratic at the minimum of the mean cross-entropy plus ``l2 |a|^2 / 2``, and that minimum.

    Parameters
    ----------
    features : ndarray, shape (N, K, r)
    offsets : ndarray, shape (N, K)
    labels : ndarray of int, shape (N,)
    l2 : float
    """
    if not l2 > 0.0:
        raise InvalidProblemError(
            "cross-entropy has no minimum over more weights than outputs: the loss falls to 0 as they grow. Give "
            "l2 > 0."
        )
    count, _, dim = features.shape
    a = np.zeros(dim)
    value = _value(features, offsets, labels, l2, a)
    hot = np.eye(features.shape[1])[labels]
    for _ in range(MOST_STEPS):
        p = _probabilities(offsets + features @ a)
        own = np.einsum("nk,nkr->nr", p - hot, features)
        gradient = own.mean(axis=0) + l2 * a
        size = np.sqrt(np.mean(np.square(own).sum(axis=1))) + l2 * np.linalg.norm(a)
        rows = _curved(p, features)
        if np.linalg.norm(gradient) <= GRADIENT_TOLERANCE * size:
            residuals = np.sqrt(p) - hot / np.sqrt(p)
            return VectorLeastSquares(rows, rows @ a - residuals, l2), a
        flat = rows.reshape(-1, dim)
        hessian = flat.T @ flat / count + l2 * np.eye(dim)
        step = scipy.linalg.solve(hessian, gradient, assume_a="pos")
        fraction, slope = 1.0, float(gradient @ step)
        while (tried := _value(features, offsets, labels, l2, a - fraction * step)) > value - 1e-4 * fraction * slope:
            fraction *= 0.5
            if fraction < 1e-8:  # rounding of the loss itself
                fraction, tried = 1.0, _value(features, offsets, labels, l2, a - step)
                break
        a, value = a - fraction * step, tried
    raise InvalidProblemError(
        f"Newton's method did not find the minimum of the cross-entropy in {MOST_STEPS} steps: the gradient is "
        f"{np.linalg.norm(gradient):.3g}; take a larger l2 than {l2:g}."
    )


def _probabilities(outputs: Array) -> Array:
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _curved(p: Array, features: Array) -> Array:
    """R times the features of every example."""
    s = np.sqrt(p)
    scaled = s[:, :, None] * features
    return np.asarray(scaled - s[:, :, None] * np.einsum("nk,nkr->nr", s, scaled)[:, None, :])


def _value(features: Array, offsets: Array, labels: NDArray[np.int64], l2: float, a: Array) -> float:
    outputs = offsets + features @ a
    top = outputs.max(axis=1)
    each = top + np.log(np.exp(outputs - top[:, None]).sum(axis=1)) - outputs[np.arange(len(labels)), labels]
    return float(each.mean() + 0.5 * l2 * a @ a)
