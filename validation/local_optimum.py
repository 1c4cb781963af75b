r"""A local minimum of a differentiable loss, to the accuracy that its local quadratic asks for.

L-BFGS goes most of the way. Newton steps finish it, with the absolute eigenvalues of the Hessian,

.. math:: w \leftarrow w - t\, V |\Lambda|^{-1} V^\top \nabla L , \qquad \nabla^2 L = V \Lambda V^\top ,

which leave saddles, and a step length t that lowers the loss or, close to the minimum, its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..numerics._arrays import nonnegative, whole_number
from ._minimum import curvature_of
from ._pointwise_loss import PointwiseLoss

__all__ = ["local_optimum"]

Array = NDArray[np.float64]

#: Eigenvalues below this multiple of the largest make no longer steps than at it.
FLAT = 1e-8
#: Newton steps beyond the tolerance, for as long as each halves the gradient.
POLISHING = 5
#: How near to the weights, relative to their norm, a kink counts as the reason that no gradient of 0 was found.
NEARBY = 1e-4
#: By what factor weights that grow have grown.
GROWN = 30.0
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
        Where the gradient is within the tolerance and the Hessian has no negative eigenvalue beyond rounding, which is
        what `local_quadratic` and numerics ask for.

    Raises
    ------
    InvalidProblemError
        If there is none within so many steps, with what seems to be the reason: a loss may have no minimum (classes
        that can be told apart and no weight decay), or have it on kinks (ReLU).

    Examples
    --------
    >>> w = local_optimum(lambda w, x: torch.cosh(w[0] - x), [3.0], [-1.0, 1.0])
    >>> bool(abs(w[0]) < 1e-8)
    True
    """
    count = whole_number("steps", steps, least=1)
    limit = nonnegative("tolerance", tolerance)
    point = PointwiseLoss.of(loss, start, data, device)
    if point.dim > LARGEST_NEWTON:
        raise InvalidProblemError(
            f"{point.dim} parameters are more than the {LARGEST_NEWTON} of which a Newton step takes the Hessian; "
            f"minimise with torch.optim, and give local_quadratic the result."
        )
    point.value_and_gradients()  # refuses what cannot be differentiated
    with np.errstate(over="ignore", invalid="ignore"):
        found: Any = scipy.optimize.minimize(
            lambda w: point.at(w).value_and_gradient(), point.optimum, jac=True, method="L-BFGS-B",
            options={"maxiter": 500, "gtol": 1e-12, "ftol": 1e-14},
        )  # fmt: skip
    here, best = point.at(np.asarray(found.x, dtype=np.float64)), None
    polished, last = 0, math.inf
    for _ in range(count + POLISHING):
        value, gradient = here.value_and_gradient()
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            here.value_and_gradients()  # tells for which example
        size, norm = here.gradient_size(), float(np.linalg.norm(gradient))
        raw = here.hessian()
        h, basis = scipy.linalg.eigh(0.5 * (raw + raw.T))
        small = norm <= limit * size
        if small and curvature_of(raw).minimal:
            best = here
        if best is not None and (polished == POLISHING or norm > 0.5 * last or norm == 0.0):
            return best.optimum
        polished += best is not None
        last = norm
        along = basis.T @ gradient
        if small and best is None:  # a saddle: leave it along its steepest descent
            along[0] += size * 1e-3
        step = basis @ (along / np.maximum(np.abs(h), FLAT * np.abs(h).max()))
        w = here.optimum
        closer = h[0] > 0.0 and np.linalg.norm(here.at(w - step).value_and_gradient()[1]) < 0.5 * norm
        if closer or best is not None:
            here = here.at(w - step)  # close by, where rounding hides whether the loss falls
        else:
            here = here.at(w - _length(here, value, step, float(gradient @ step)) * step)
    share = norm / size if size else math.inf
    text = (
        f"no minimum after {steps} Newton steps: the gradient is {norm:.3g}, {share:.3g} of the root mean square of "
        f"the examples' own, and the weights have norm {np.linalg.norm(here.optimum):.3g}."
    )
    if small:
        text += f" The smallest eigenvalue of the Hessian is {h[0]:.3g} (the largest {h[-1]:.3g})."
    raise InvalidProblemError(f"{text} {_reason(point, here, small=small)}")


def _reason(start: PointwiseLoss, here: PointwiseLoss, *, small: bool) -> str:
    """Why there is no minimum, as far as it shows, and the way out."""
    length = float(np.linalg.norm(here.optimum))
    if length > GROWN * max(1.0, float(np.linalg.norm(start.optimum))):
        return "The weights grow, as where a loss has no minimum: add weight decay."
    kinked = 0 if small else here.kinked_near(NEARBY * max(1.0, length))
    if kinked:
        return (
            f"The gradients of {kinked} of {here.num_examples} examples jump right there: the loss has its minimum on "
            f"kinks, as losses of ReLU networks do, where its gradient is not 0 and it has no quadratic. Take a smooth "
            f"activation (softplus, gelu, tanh)."
        )
    return "Take more steps, or start elsewhere."


def _length(here: PointwiseLoss, value: float, step: Array, slope: float) -> float:
    """The largest of 1, 1/2, 1/4, ... at which the loss falls."""
    lengths = 0.5 ** np.arange(20)
    tried = here.mean_at(here.optimum - lengths[:, None] * step)
    rounding = 64 * np.finfo(np.float64).eps * abs(value)
    good = np.flatnonzero(tried <= value - 1e-4 * lengths * slope + rounding)
    return float(lengths[good[0]]) if good.size else float(lengths[-1])
