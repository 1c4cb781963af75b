r"""The stationary mean of an optimizer: where the iterates sit on average, which weight decay moves.

Along a direction with Hessian eigenvalue h the mean z of the slots solves :math:`D(h)\, z = h\, b(h)\, w^*`, since
the gradient is :math:`h (w - w^*) + \xi` and enters the step through b.  The system is solved exactly, like the pair
equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite, vector
from ._directions import eigen_directions
from ._kernel import mean_kernel
from ._margins import check_stable
from ._slot_law import slot_indices

__all__ = ["stationary_mean"]

Array: TypeAlias = NDArray[np.float64]


def stationary_mean(
    optimizer: Optimizer, hessian: ArrayLike, optimum: ArrayLike, *, slots: Sequence[str] = ("w",)
) -> Array:
    r"""The stationary mean of slots, stacked in the order given.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    hessian : array_like, shape (d, d)
        Symmetric positive semidefinite.
    optimum : array_like, shape (d,)
        The minimiser :math:`w^*` of the loss.
    slots : sequence of str
        Slot names; the weights by default.

    Returns
    -------
    ndarray, shape (k * d,)
        Without weight decay the mean of the weights is the optimum.  Along a flat direction, which never forgets its
        start, it is that of a start at the optimum.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is unbound.
    InvalidProblemError
        If an array is not what it should be, or the rule has no such slot.
    UnstableError
        If the recursion does not contract along some direction.

    Examples
    --------
    Weight decay pulls the mean to ``h / (h + weight_decay)`` of the optimum:

    >>> from sgdcov.theory import sgd
    >>> stationary_mean(sgd(lr=0.1, weight_decay=1), [[3.0, 0.0], [0.0, 1.0]], [4.0, 4.0])
    array([3., 2.])
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    wanted = slot_indices(optimizer, slots)
    checked = positive_semidefinite("hessian", hessian)
    target = vector("optimum", optimum, dim=checked.shape[0])
    directions = eigen_directions(optimizer, checked)
    h = directions.eigenvalues
    check_stable(optimizer, h[directions.moving])
    along = directions.rotate(target)
    # At a flat h = 0 the kernel is its limit: the weights stay at the optimum they started from.
    factors = (mean_kernel(optimizer).entries[index](h, np.zeros(())) for index in wanted)
    return np.concatenate([directions.rotate_back(factor * along) + 0.0 for factor in factors])
