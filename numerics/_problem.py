"""One checked problem: an optimizer, a Hessian, a noise covariance, and the coordinates in which they are plain.

With a preconditioner P the rule is given the gradient P g.  In the coordinates ``w = R z``, ``R = P^(1/2)``, that is
the plain rule with the Hessian ``R H R`` and the noise ``R C R``, and every slot transforms as w does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite, rounding_level
from ._directions import Directions, check_flat_noise, eigen_directions
from ._kernel import pair_kernel
from ._margins import check_stable
from .preconditioners import preconditioner_sqrt

__all__ = ["Problem", "is_diagonal", "make_problem"]

Array: TypeAlias = NDArray[np.float64]


def is_diagonal(a: Array) -> bool:
    """Whether nothing off the diagonal is nonzero."""
    return bool(np.count_nonzero(a) == np.count_nonzero(np.diagonal(a)))


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked arrays as given, the root R of the preconditioner (None for none), and arrays in plain coordinates."""

    optimizer: Optimizer
    hessian: Array
    noise: Array
    root: Array | None
    inverse_root: Array | None
    plain_hessian: Array
    plain_noise: Array

    @cached_property
    def directions(self) -> Directions:
        """Eigen-directions of the Hessian in plain coordinates."""
        return eigen_directions(self.optimizer, self.plain_hessian)

    @cached_property
    def rotated_noise(self) -> Array:
        """The noise covariance in the basis of the directions."""
        return self.directions.rotate(self.plain_noise)

    def check(self) -> None:
        """Raise unless the problem has a stationary law."""
        pair_kernel(self.optimizer)  # refuses a rule that never forgets, whatever the curvature
        directions = self.directions
        check_stable(self.optimizer, directions.eigenvalues[directions.moving])
        check_flat_noise(directions, self.rotated_noise, self.noise_level)

    @cached_property
    def noise_level(self) -> float:
        r"""Up to which variance the noise along a direction counts as none.

        The rounding of the rotation, :math:`8 d \varepsilon \max|c|`; 0 if H and C are diagonal, which is exact.
        """
        if self.directions.basis is None and is_diagonal(self.plain_noise):
            return 0.0
        return rounding_level(self.plain_noise)

    @property
    def root_log_det(self) -> float:
        """Log-determinant of the root of the preconditioner."""
        if self.root is None:
            return 0.0
        return float(np.sum(np.log(self.root)) if self.root.ndim == 1 else np.linalg.slogdet(self.root)[1])

    def leave(self, a: Array) -> Array:
        """A slot covariance (or mean) in plain coordinates, back in the caller's: ``R a R`` (``R a``)."""
        return a if self.root is None else _congruent(self.root, a)

    def to_plain(self, a: Array) -> Array:
        """A covariance of gradients in plain coordinates: ``R a R``, as they enter there."""
        return a if self.root is None else _symmetric_part(_congruent(self.root, a))

    def enter(self, a: Array) -> Array:
        """The inverse of `leave`."""
        return a if self.inverse_root is None else _congruent(self.inverse_root, a)


def make_problem(
    optimizer: Optimizer, hessian: ArrayLike, noise: ArrayLike, preconditioner: ArrayLike | None
) -> Problem:
    """Check every argument and change to plain coordinates."""
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    h = positive_semidefinite("hessian", hessian)
    c = positive_semidefinite("noise", noise, dim=h.shape[0])
    if preconditioner is None:
        return Problem(optimizer, h, c, None, None, h, c)
    root, inverse = preconditioner_sqrt(preconditioner, dim=h.shape[0])
    plain = (_symmetric_part(_congruent(root, a)) for a in (h, c))
    return Problem(optimizer, h, c, root, inverse, *plain)


def _congruent(root: Array, a: Array) -> Array:
    if a.ndim == 1:
        return root * a if root.ndim == 1 else root @ a
    if root.ndim == 1:
        return root[:, None] * a * root
    return root @ a @ root


def _symmetric_part(a: Array) -> Array:
    return 0.5 * (a + a.T)
