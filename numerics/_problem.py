"""One checked problem: an optimizer, a Hessian, a noise covariance, and the coordinates in which they are plain.

With a preconditioner P the rule is given the gradient P g.  In the coordinates ``w = R z``, ``R = P^(1/2)``, that is
the plain rule with the Hessian ``R H R`` and the noise ``R C R``, and every slot transforms as w does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..theory import Optimizer, recursion
from ._arrays import positive_semidefinite, rounding_level
from ._directions import EPS, Directions, check_flat_noise, eigen_directions
from ._forward_error import HessianError, Responses, frobenius
from ._kernel import pair_kernel
from ._margins import check_stable
from ._rotated_noise import RotatedNoise, is_diagonal, rotated_noise
from .preconditioners import preconditioner_sqrt

__all__ = ["Problem", "make_problem"]

Array: TypeAlias = NDArray[np.float64]


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

    hessian_factor: tuple[Array, float] | None = None
    #: The noise in the eigenbasis, from whoever has it in a better form than as an array.
    known_noise: RotatedNoise | None = None

    @cached_property
    def directions(self) -> Directions:
        """Eigen-directions of the Hessian in plain coordinates."""
        if self.hessian_factor is not None:
            return eigen_directions(self.optimizer, self.plain_hessian, factor=self.hessian_factor)
        if self.root is None or self.root.ndim == 1:
            return eigen_directions(self.optimizer, self.plain_hessian, formed=self.preconditioner_error)
        # The two products of R H R.
        blurred = 4.0 * len(self.root) * EPS * float(np.linalg.norm(self.root, 2)) ** 2 * frobenius(self.hessian)
        return eigen_directions(self.optimizer, self.plain_hessian, blurred=blurred)

    @cached_property
    def scaled_noise(self) -> RotatedNoise:
        """The noise covariance in the basis of the directions, in units of a power of two, and how well it is known."""
        if self.known_noise is not None:
            return self.known_noise
        return rotated_noise(self.noise, self.directions, self.root)

    @cached_property
    def rotated_noise(self) -> Array:
        """The noise covariance in the basis of the directions."""
        return np.asarray(np.ldexp(self.scaled_noise.covariance, self.scaled_noise.exponent))

    def with_noise(self, noise: Array, known_noise: RotatedNoise | None = None) -> Problem:
        """The same problem with another noise, and the directions that are known already.

        ``known_noise`` is the noise in their basis, from whoever has it there in a better form than as an array.
        """
        checked = positive_semidefinite("noise", noise, dim=len(self.hessian))
        out = replace(self, noise=checked, plain_noise=self.to_plain(checked), known_noise=known_noise)
        out.__dict__["directions"] = self.directions
        return out

    def check(self) -> None:
        """Raise unless the problem has a stationary law."""
        pair_kernel(self.optimizer)  # refuses a rule that never forgets, whatever the curvature
        directions = self.directions
        check_stable(self.optimizer, directions.eigenvalues[directions.moving])
        self.check_flat()

    def check_flat(self) -> None:
        """Raise if noise reaches a flat direction."""
        if self.directions.flat.size:
            check_flat_noise(self.directions, self.rotated_noise, self.noise_level)

    @cached_property
    def noise_level(self) -> float | Array:
        r"""Up to which variance the noise along a direction counts as none.

        The rounding of the array, :math:`8 d \varepsilon \max|c|`; 0 if H and C are diagonal, which is exact.  Where
        the noise came in a better form, its error there, direction by direction.
        """
        if self.known_noise is not None:
            return np.asarray(np.ldexp(np.diagonal(self.scaled_noise.error), self.scaled_noise.exponent))
        if self.directions.basis is None and is_diagonal(self.plain_noise):
            return 0.0
        return rounding_level(self.plain_noise)

    @property
    def heard(self) -> NDArray[np.bool_]:
        """Which directions have noise."""
        return np.asarray(np.diagonal(self.rotated_noise) > self.noise_level)

    @cached_property
    def hessian_error(self) -> HessianError:
        """How well the Hessian is known in its eigenbasis, the preconditioner's share included."""
        known, h = self.directions.error, self.directions.eigenvalues
        if self.root is None:
            return known
        # An error of P, as the factor I + Q of the gradient in plain coordinates, is one of Q H in the Hessian.
        return HessianError(known.spectral, (*known.terms, (np.full(h.size, self.preconditioner_error), h)))

    @cached_property
    def preconditioner_error(self) -> float:
        """The relative error of the root of the preconditioner and of what is formed with it: its condition."""
        if self.root is None:
            return 0.0
        if self.root.ndim == 1:
            return 4.0 * EPS
        assert self.inverse_root is not None
        condition = float(np.linalg.norm(self.root, 2) * np.linalg.norm(self.inverse_root, 2)) ** 2
        return float(4.0 * self.root.shape[0] * EPS * condition)

    @cached_property
    def responses(self) -> Responses:
        """What kicks along the directions become."""
        return Responses(self.optimizer, self.directions.eigenvalues, self.directions.flat)

    @property
    def root_log_det(self) -> float:
        """Log-determinant of the root of the preconditioner."""
        if self.root is None:
            return 0.0
        return float(np.sum(np.log(self.root)) if self.root.ndim == 1 else np.linalg.slogdet(self.root)[1])

    def leave(self, a: Array) -> Array:
        """A slot covariance (or mean) in plain coordinates, back in the caller's: ``R a R`` (``R a``)."""
        return a if self.root is None else _congruent(self.root, a)

    def leave_symmetric(self, a: Array) -> Array:
        """`leave` of a symmetric matrix, exactly symmetric."""
        return a if self.root is None else _symmetric_part(_congruent(self.root, a))

    def to_plain(self, a: Array) -> Array:
        """A covariance of gradients in plain coordinates: ``R a R``, as they enter there."""
        return a if self.root is None else _symmetric_part(_congruent(self.root, a))

    def enter(self, a: Array) -> Array:
        """The inverse of `leave`."""
        return a if self.inverse_root is None else _congruent(self.inverse_root, a)


def make_problem(
    optimizer: Optimizer,
    hessian: ArrayLike,
    noise: ArrayLike,
    preconditioner: ArrayLike | None,
    *,
    hessian_factor: tuple[Array, float] | None = None,
) -> Problem:
    """Check every argument and change to plain coordinates.

    ``hessian_factor``, a pair (A, shift) with the Hessian ``A'A + shift I``, is for data that know more of it than the
    array tells; for their noise see `Problem.with_noise`.
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    h = positive_semidefinite("hessian", hessian)
    c = positive_semidefinite("noise", noise, dim=h.shape[0])
    if preconditioner is None:
        return Problem(optimizer, h, c, None, None, h, c, hessian_factor)
    root, inverse = preconditioner_sqrt(preconditioner, dim=h.shape[0])
    plain_h, plain_c = (_symmetric_part(_congruent(root, a)) for a in (h, c))
    if hessian_factor is not None:
        factor, shift = hessian_factor
        if shift:
            factor = np.vstack([factor, np.sqrt(shift) * np.eye(h.shape[0])])
        hessian_factor = (factor * root if root.ndim == 1 else factor @ root), 0.0
    return Problem(optimizer, h, c, root, inverse, plain_h, plain_c, hessian_factor)


def _congruent(root: Array, a: Array) -> Array:
    if a.ndim == 1:
        return root * a if root.ndim == 1 else root @ a
    if root.ndim == 1:
        return root[:, None] * a * root
    return root @ a @ root


def _symmetric_part(a: Array) -> Array:
    return 0.5 * (a + a.T)
