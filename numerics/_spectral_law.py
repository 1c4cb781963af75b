"""The stationary law from the exact pair kernels, at any scale of its numbers, and the bound on its error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import ScaleError
from ._directions import EPS
from ._forward_error import HessianError, frobenius
from ._kernel import pair_kernel
from ._problem import Problem

__all__ = ["CAUSE", "SpectralLaw", "in_doubles", "law_condition", "law_error", "relative_error"]

Array: TypeAlias = NDArray[np.float64]

#: What a large error bound is due to, in words.
CAUSE = (
    "The smallest curvatures that matter are near the rounding of the Hessian (or of the noise) as given. Give the "
    "data instead of their Gram matrix, rescale or drop nearly collinear features, or add weight decay."
)


@dataclass(frozen=True, eq=False)
class SpectralLaw:
    """The covariances of all slots of a checked problem."""

    problem: Problem

    @cached_property
    def _inner(self) -> tuple[NDArray[np.intp], ...] | tuple[slice, slice]:
        directions = self.problem.directions
        # A view where nothing is flat: no copy of the d x d noise.
        return np.ix_(directions.moving, directions.moving) if directions.flat.size else (slice(None), slice(None))

    def scaled(self, a: int, b: int) -> tuple[Array, int | NDArray[np.int64]]:
        """Cov(a, b) between the directions that move, as mantissas and exponents."""
        return self._weights if (a, b) == (0, 0) else self._evaluated(a, b)

    @cached_property
    def _weights(self) -> tuple[Array, int | NDArray[np.int64]]:
        return self._evaluated(0, 0)

    def _evaluated(self, a: int, b: int) -> tuple[Array, int | NDArray[np.int64]]:
        directions, noise = self.problem.directions, self.problem.scaled_noise
        kernel = pair_kernel(self.problem.optimizer).entries[a][b]
        values, exponents = kernel.scaled_on_pairs(directions.eigenvalues[directions.moving], symmetric=a == b)
        values = values * noise.covariance[self._inner]
        return values, exponents + noise.exponent

    def in_eigenbasis(self, a: int, b: int) -> Array:
        """Cov(a, b) in the eigenbasis; what is too small for doubles is 0 there."""
        values, exponents = self.scaled(a, b)
        if not self.problem.directions.flat.size:
            return np.asarray(np.ldexp(values, exponents))
        out = np.zeros_like(self.problem.scaled_noise.covariance)
        out[self._inner] = np.ldexp(values, exponents)
        return out

    def value(self, a: int, b: int) -> Array:
        """Cov(a, b) in the caller's coordinates."""
        problem, directions = self.problem, self.problem.directions
        values, exponents = self.scaled(a, b)
        plain = directions.basis is None and problem.root is None
        common = 0 if plain else _largest(values, exponents)
        with np.errstate(over="ignore"):  # infinities are refused below
            inner = np.ldexp(values, exponents - common)
        out = inner
        if directions.flat.size:
            out = np.zeros_like(problem.scaled_noise.covariance)
            out[self._inner] = inner
        if plain:
            return _checked(out, values, self._inner)
        back = directions.rotate_back(out, symmetric=a == b)
        out = problem.leave_symmetric(back) if a == b else problem.leave(back)
        return in_doubles(out, common)


def _largest(values: Array, exponents: int | NDArray[np.int64]) -> int:
    sizes = np.frexp(values)[1] + exponents
    used = np.broadcast_to(sizes, values.shape)[values != 0]
    return int(used.max()) if used.size else 0


def in_doubles(mantissas: Array, exponent: int) -> Array:
    """An array times a power of two, or `ScaleError` if its size is none of doubles."""
    with np.errstate(over="ignore"):
        out = np.ldexp(mantissas, exponent)
    return _checked(out, mantissas, (slice(None), slice(None)))


def _checked(out: Array, exact: Array, inner: tuple[NDArray[np.intp], ...] | tuple[slice, slice]) -> Array:
    """Refuse infinities, and variances that are lost to underflow (covariances beside larger variances may be)."""
    if not np.isfinite(out).all():
        raise ScaleError(
            f"a covariance overflows double precision (the largest double is {np.finfo(np.float64).max:.3g}); rescale "
            f"the weights or the noise and scale the answer back"
        )
    variances, true = np.diagonal(out[inner]), np.diagonal(exact)
    lost = (np.abs(variances) < np.finfo(np.float64).tiny) & (true != 0)
    if lost.any():
        raise ScaleError(
            f"{int(lost.sum())} of {variances.size} variances are too small for double precision (the smallest normal "
            f"double is {np.finfo(np.float64).tiny:.3g}); rescale the weights or the noise and scale the answer back"
        )
    return out


def law_error(problem: Problem, law: SpectralLaw) -> float:
    """A bound on the relative forward error of the covariance of the weights, in the Frobenius norm."""
    noise, directions = problem.scaled_noise, problem.directions
    moves = np.ones(directions.eigenvalues.size, dtype=np.bool_)
    moves[directions.flat] = False
    both = np.outer(moves, moves)
    c, dc = (np.where(both, a, 0.0) for a in (np.abs(noise.covariance), noise.error))
    error = problem.hessian_error
    if problem.root is not None and problem.root.ndim == 2:
        dc = dc + problem.preconditioner_error * (np.linalg.norm(c, axis=0) + np.linalg.norm(c, axis=0)[:, None]) * both
    changed = problem.responses.change(error, c, dc)
    if changed is None:
        return float("inf") if c.any() else 0.0
    values, exponents = law.scaled(0, 0)
    exponents = exponents + np.zeros(values.shape, dtype=np.int64)
    inner = np.ix_(directions.moving, directions.moving)
    size = np.zeros_like(c)
    common = _largest(values, exponents)
    size[inner] = np.ldexp(np.abs(values), np.maximum(exponents - common, -3000))
    bound = relative_error(problem, size, changed, 2 * problem.responses.units[0] + noise.exponent - common)
    if not noise.definite and size.any():
        # C as given may be indefinite by rounding, and then its law is: how far it is from being a covariance.
        least = float(scipy.linalg.eigvalsh(size * np.sign(noise.covariance), check_finite=False)[0])
        bound += max(-least, 0.0) / frobenius(size)
    return bound


def relative_error(problem: Problem, law: Array, change: Array, exponent: int = 0) -> float:
    """``|change| 2**exponent / |law|`` in the caller's coordinates, both given in the eigenbasis, and the rounding."""
    basis, root = problem.directions.basis, problem.root
    back = None if root is None else root if root.ndim == 2 else np.diag(root)
    turn = basis if back is None else back if basis is None else back @ basis
    rounding = 8.0 * EPS if basis is None else 2.0 * (len(law) + 4) * EPS
    if back is None or turn is None:
        size, lost, spread = (frobenius(a) for a in (law, change, law))
    else:
        # R is not orthogonal: what the bounds become in the caller's coordinates, entry by entry.
        size = frobenius(turn @ law @ turn.T)
        lost = frobenius(np.abs(turn) @ change @ np.abs(turn).T)
        spread = frobenius(np.abs(turn) @ np.abs(law) @ np.abs(turn).T)
        rounding *= 2.0
        if root is not None and root.ndim == 2:
            rounding += 2.0 * problem.preconditioner_error
    if not size > 0:
        return 0.0 if lost == 0.0 else float("inf")
    with np.errstate(over="ignore"):
        bound = float(np.ldexp(lost / size, int(np.clip(exponent, -3000, 3000)))) + rounding * spread / size
    return bound if np.isfinite(bound) else float("inf")


def law_condition(problem: Problem, value: Array) -> float:
    """The relative change of the covariance per relative change of H and of C, to first order."""
    noise, directions = problem.scaled_noise, problem.directions
    moving = directions.moving
    both = np.zeros_like(noise.covariance)
    both[np.ix_(moving, moving)] = 1.0
    c = np.abs(noise.covariance) * both
    if not c.any():
        return 0.0
    responses, largest = problem.responses, float(np.max(directions.eigenvalues, initial=0.0))
    right = responses.right_hand_side(HessianError(spectral=largest), c, float(np.linalg.norm(c, 2)) * both)
    change, exponent = responses.first_order(right), 2 * responses.units[0] + noise.exponent
    law = SpectralLaw(problem).scaled(0, 0)
    size = np.zeros_like(c)
    common = _largest(*law)
    size[np.ix_(moving, moving)] = np.ldexp(np.abs(law[0]), law[1] - common)
    return relative_error(problem, size, change, exponent - common)
