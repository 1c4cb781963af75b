r"""A local minimum of a differentiable loss, to the accuracy that its local quadratic asks for.

L-BFGS goes most of the way. Newton steps finish it, with the absolute eigenvalues of the Hessian,

.. math:: w \leftarrow w - t\, V |\Lambda|^{-1} V^\top \nabla L , \qquad \nabla^2 L = V \Lambda V^\top ,

which leave saddles, and a step length t that lowers the loss or, close to the minimum, its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ._pointwise_loss import PointwiseLoss

__all__ = ["local_optimum"]

Array = NDArray[np.float64]

#: Eigenvalues below this multiple of the largest make no longer steps than at it.
FLAT = 1e-8
#: Up to this many parameters the Hessian of a Newton step is a matrix.
LARGEST_NEWTON = 3000


def local_optimum(
    loss: Callable[..., torch.Tensor],
    start: torch.Tensor | ArrayLike,
    data: torch.Tensor | ArrayLike | Sequence[torch.Tensor | ArrayLike],
    *,
    tolerance: float = 1e-8,
    steps: int = 100,
    device: str | torch.device = "cpu",
) -> Array:
    """A local minimum of the mean loss over examples.

    Parameters
    ----------
    loss : callable
        ``loss(w, *example)``, as for `local_quadratic`.
    start : array_like, shape (d,)
    data : array_like, shape (N, ...), or a tuple of such
    tolerance : float
        The norm of the mean gradient may be at most this multiple of the root mean square of the examples' own.
    steps : int
        The most Newton steps, after L-BFGS.
    device : str or torch.device

    Returns
    -------
    ndarray, shape (d,)
        Where the gradient is within the tolerance and the Hessian has no negative eigenvalue.

    Raises
    ------
    InvalidProblemError
        If there is none within so many steps, with the gradient that was left: a loss without minimum (classes that can
        be told apart and no weight decay) has none.

    Examples
    --------
    >>> w = local_optimum(lambda w, x: torch.cosh(w[0] - x), [3.0], [-1.0, 1.0])
    >>> bool(abs(w[0]) < 1e-8)
    True
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise InvalidProblemError(f"steps must be an integer of at least 1, got {steps!r}.")
    point = PointwiseLoss.of(loss, start, data, device)
    if point.dim > LARGEST_NEWTON:
        raise InvalidProblemError(
            f"{point.dim} parameters are more than the {LARGEST_NEWTON} of which a Newton step takes the Hessian; "
            f"minimise with torch.optim, and give local_quadratic the result."
        )

    def value_and_gradient(w: Array) -> tuple[float, Array]:
        value, gradients = point.at(w).value_and_gradients()
        return value, gradients.mean(axis=0)

    w = np.array(point.optimum)
    with np.errstate(over="ignore", invalid="ignore"):
        found: Any = scipy.optimize.minimize(
            value_and_gradient, w, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-12, "ftol": 1e-14}
        )
    w = np.asarray(found.x, dtype=np.float64)
    for _ in range(int(steps)):
        here = point.at(w)
        value, own = here.value_and_gradients()
        gradient = own.mean(axis=0)
        hessian = here.hessian()
        h, basis = scipy.linalg.eigh(0.5 * (hessian + hessian.T))
        size = float(np.sqrt(np.mean(np.square(own).sum(axis=1))))
        small = float(np.linalg.norm(gradient)) <= tolerance * size
        if small and h[0] >= -FLAT * h[-1]:
            return w
        along = basis.T @ gradient
        if small:  # a saddle: leave it along its steepest descent
            along[0] += size * 1e-3
        step = basis @ (along / np.maximum(np.abs(h), FLAT * np.abs(h).max()))
        if h[0] > 0.0 and np.linalg.norm(value_and_gradient(w - step)[1]) < 0.5 * np.linalg.norm(gradient):
            w = w - step  # close by, where rounding hides whether the loss falls
        else:
            w = w - _length(here, value, step, float(gradient @ step)) * step
    raise InvalidProblemError(
        f"no minimum after {steps} Newton steps: the gradient is {np.linalg.norm(gradient):.3g}, "
        f"{np.linalg.norm(gradient) / size:.3g} of the root mean square of the examples' own, and the weights have "
        f"norm {np.linalg.norm(w):.3g}. If these grow, the loss has no minimum: add weight decay."
    )


def _length(here: PointwiseLoss, value: float, step: Array, slope: float) -> float:
    """The largest of 1, 1/2, 1/4, ... at which the loss falls."""
    lengths = 0.5 ** np.arange(20)
    tried = here.mean_at(here.optimum - lengths[:, None] * step)
    rounding = 64 * np.finfo(np.float64).eps * abs(value)
    good = np.flatnonzero(tried <= value - 1e-4 * lengths * slope + rounding)
    return float(lengths[good[0]]) if good.size else float(lengths[-1])
