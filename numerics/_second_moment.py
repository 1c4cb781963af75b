r"""The second moments of a linear optimizer whose gradient noise depends on the weights.

A rule that takes one gradient in a step, at the point :math:`q^\top z` of its slots, has
:math:`A(h) = A_0 + h\,b q^\top`.  Its covariance obeys

.. math:: S' = A S A^\top + b b^\top \otimes \big[C(m) + \mathcal V(M)\big] , \qquad M = q^\top S q ,

the additive law with a noise that depends on the law itself.  At the stationary law the covariance C of the gradient
noise is therefore a fixed point,

.. math:: C = C(m) + \mathcal V(f \circ C) ,

in the eigenbasis of H, where f is the covariance of the point of the gradient for unit noise, an array over pairs of
directions.  :math:`\mathcal V` is self-adjoint and f positive, so the similar operator
:math:`G = \sqrt f \circ \mathcal V(\sqrt f \circ \cdot)` is symmetric, and its spectral radius (its largest eigenvalue,
for it keeps a cone) is below 1 exactly if that of the second-moment operator is.  Then conjugate gradients
solve the equation; nothing larger than a few d x d matrices is ever formed.  Symmetric matrices are kept as their
triangles, so that no antisymmetric rounding can grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from numpy.typing import NDArray

from ..errors import InvalidRuleError, NonStationaryError
from ..theory import Optimizer, recursion
from ._evolution import step_coefficients
from ._kernel import pair_kernel
from ._problem import Problem
from ._source_noise import data_noise
from .noise import GradientNoise

__all__ = [
    "Feedback",
    "Triangle",
    "gradient_point",
    "perron_root",
    "point_of_step",
    "rotated_map",
    "stretches_flat",
]

Array: TypeAlias = NDArray[np.float64]
Operator: TypeAlias = Callable[[Array], Array]

EPS = float(np.finfo(np.float64).eps)
#: Up to this many unknowns an operator is a dense matrix: exact eigenvalues, direct solution.
_DENSE = 150
#: Conjugate gradients between two refinements; each takes the residual from the operator itself.
_CG_TOLERANCE = 1e-13
_REFINEMENTS = 3


@functools.lru_cache(maxsize=256)
def gradient_point(optimizer: Optimizer) -> tuple[float, ...]:
    """The slots' weights q in the point at which the rule takes its one gradient.

    Raises
    ------
    InvalidRuleError
        If it takes more than one gradient from the same batch.
    """
    point = point_of_step(*step_coefficients(optimizer))
    if point is not None:
        return point
    raise InvalidRuleError(
        f"{optimizer!r} takes more than one gradient from the batch of a step, so its second moments involve higher "
        f"moments of the batch. Where the batches can be enumerated, one_gradient_form(optimizer, noise) gives the "
        f"plain SGD that it is on them."
    )


def point_of_step(
    increment: Sequence[Sequence[Fraction]], gain: Sequence[Sequence[Fraction]]
) -> tuple[float, ...] | None:
    r"""The same from a step's exact coefficients (`step_coefficients`); None where there is more than one gradient.

    One gradient at :math:`q^\top z` means D = D_0 + h b q' with a b that does not depend on h.  Where b is 0 (a step of
    learning rate 0) no gradient moves anything, and q is 0.
    """
    m = len(gain)
    if any(any(entry[2:]) for entry in increment) or any(any(entry[1:]) for entry in gain):
        return None
    b = [entry[0] if entry else Fraction(0) for entry in gain]
    slopes = [entry[1] if len(entry) > 1 else Fraction(0) for entry in increment]
    linear = [slopes[a * m : (a + 1) * m] for a in range(m)]
    lead = next((a for a, c in enumerate(b) if c), None)
    q = [Fraction(0)] * m if lead is None else [c / b[lead] for c in linear[lead]]
    if all(linear[a][k] == b[a] * q[k] for a in range(m) for k in range(m)):
        return tuple(float(c) for c in q)
    return None


@dataclass(frozen=True)
class Triangle:
    """Symmetric n x n matrices as vectors of their triangle, with the same inner product."""

    size: int

    @cached_property
    def _indices(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return np.triu_indices(self.size)

    @cached_property
    def _weights(self) -> Array:
        rows, columns = self._indices
        return np.where(rows == columns, 1.0, np.sqrt(2.0))

    @property
    def length(self) -> int:
        """The number of entries."""
        return self.size * (self.size + 1) // 2

    def pack(self, a: Array) -> Array:
        """The vector of a symmetric matrix."""
        return np.asarray(a[self._indices] * self._weights)

    def unpack(self, v: Array) -> Array:
        """The symmetric matrix of a vector."""
        out = np.empty((self.size, self.size))
        out[self._indices] = v / self._weights
        out.T[self._indices] = out[self._indices]
        return out

    def matrix(self, operator: Operator) -> Array:
        """A linear map of vectors as a dense matrix."""
        return np.stack([operator(e) for e in np.eye(self.length)], axis=1)

    def tabulated(self, linear: Operator) -> Operator:
        """A linear map of symmetric matrices that is applied often: a dense matrix where that is small."""
        if self.length > _DENSE:
            return linear
        table = self.matrix(lambda v: self.pack(linear(self.unpack(v))))
        return lambda a: self.unpack(table @ self.pack(a))


def rotated_map(problem: Problem, noise: GradientNoise, which: NDArray[np.intp]) -> Operator:
    """What a spread in the eigenbasis (of some directions) adds to the noise there.

    NumPy's products only: it and SciPy may each have a pool of threads, which in quick alternation wait for each other.
    """
    data = None if problem.hessian_factor is None else data_noise(noise)
    if data is not None:
        return functools.partial(data.added, data.rows(problem.directions)[:, which])
    basis = problem.directions.basis
    columns = np.eye(problem.directions.eigenvalues.size)[:, which] if basis is None else basis[:, which]

    return functools.partial(_rotated, problem, noise, columns)


def _rotated(problem: Problem, noise: GradientNoise, columns: Array, spread: Array) -> Array:
    added = noise.multiplicative(problem.leave(columns @ spread @ columns.T))
    rotated = columns.T @ problem.to_plain(added) @ columns
    return np.asarray(0.5 * (rotated + rotated.T))


def stretches_flat(problem: Problem, noise: GradientNoise) -> bool:
    r"""Whether single batches curve a direction that is flat in the mean.

    Then the second moments grow at every learning rate: the mean keeps what is there, :math:`u' K_B S K_B u` is added
    to it in every step, and whatever :math:`K_B` couples u with gives back.  Examples that do not curve down cannot do
    it, for their curvatures along u, none negative, have the mean 0.
    """
    directions = problem.directions
    if not directions.flat.size or noise.curvatures_semidefinite:
        return False
    columns = np.eye(directions.eigenvalues.size) if directions.basis is None else directions.basis
    flat = columns[:, directions.flat]
    stretched = float(np.trace(noise.multiplicative(problem.leave(flat @ flat.T))))
    if directions.basis is None:
        return stretched > 0.0
    # The flat eigenvectors are known to this angle, and K_B enters squared.
    moving = directions.eigenvalues[directions.moving]
    gap = float(moving.max() / moving.min()) if moving.size else 1.0
    angle = min(1.0, 8.0 * directions.eigenvalues.size * EPS * gap)
    return stretched > angle**2 * float(np.trace(noise.multiplicative(problem.leave(columns @ columns.T))))


class Feedback:
    """The fixed point of the noise of a problem, and whether it exists.

    Parameters
    ----------
    problem : Problem
        With the noise at the stationary mean.
    noise : GradientNoise
    """

    def __init__(self, problem: Problem, noise: GradientNoise) -> None:
        self.problem, self.noise = problem, noise
        self.stretches_flat = stretches_flat(problem, noise)
        directions = problem.directions
        #: The directions in which second moments change: all but those that are flat in every batch.
        self.moving = np.arange(directions.eigenvalues.size) if self.stretches_flat else directions.moving
        self.eigenvalues = problem.directions.eigenvalues[self.moving]
        self.point = gradient_point(problem.optimizer)
        self.triangle = Triangle(self.eigenvalues.size)
        self.map = rotated_map(problem, noise, self.moving)

    def __getstate__(self) -> dict[str, Any]:
        return {name: item for name, item in vars(self).items() if name != "added"}  # a function, made when needed

    @cached_property
    def added(self) -> Operator:
        """What a spread, as a triangle, adds to the noise; a dense matrix where that is small."""
        triangle = self.triangle

        def apply(v: Array) -> Array:
            return triangle.pack(self.map(triangle.unpack(v)))

        if triangle.length > _DENSE:
            return apply
        dense = triangle.matrix(apply)
        dense = 0.5 * (dense + dense.T)
        return lambda v: np.asarray(dense @ v)

    def stretches(self, which: NDArray[np.bool_]) -> bool:
        """Whether single batches curve some of the directions that move."""
        if not np.any(which) or self.noise.curvatures_semidefinite:
            return False
        return bool(np.trace(self.map(np.diag(which.astype(np.float64)))) > 0.0)

    def gain(self, optimizer: Optimizer) -> Array:
        """The covariance f of the point of the gradient for unit noise, over pairs of directions."""
        kernel = pair_kernel(optimizer)
        total = np.zeros((self.eigenvalues.size,) * 2)
        for a, left in enumerate(self.point):
            for b, right in enumerate(self.point):
                if left and right:
                    total += left * right * kernel.entries[a][b].on_pairs(self.eigenvalues, symmetric=a == b)
        return 0.5 * (total + total.T)

    def gain_error(self, relative: Array) -> Array:
        """The relative error of `gain` over pairs of directions, from those of the eigenvalues."""
        kernel, h = pair_kernel(self.problem.optimizer), self.eigenvalues
        total, change = np.zeros((h.size,) * 2), np.zeros((h.size,) * 2)
        for a, left in enumerate(self.point):
            for b, right in enumerate(self.point):
                if left and right:
                    entry = kernel.entries[a][b]
                    size = np.abs(left * right * entry.on_pairs(h, symmetric=a == b))
                    slope = np.abs(entry.log_derivative_x(h[:, None], h[None, :]))
                    total += left * right * entry.on_pairs(h, symmetric=a == b)
                    change += size * (slope * relative[:, None] + slope.T * relative + 4.0 * EPS)
        return np.divide(change + change.T, np.abs(total + total.T), out=np.zeros_like(total), where=total != 0)

    def gain_at_growth(self, optimizer: Optimizer, growth: float) -> Array:
        r"""The same for the recursion :math:`A \otimes A / s`: its fixed points grow by the factor s in a step."""
        increments, b = _increments(optimizer, self.eigenvalues)
        m, n = b.shape
        eye = np.eye(m)
        left = np.einsum("nab,cd->nacbd", increments, eye)[:, None]
        right = np.einsum("ab,ncd->nacbd", eye, increments)[None]
        both = np.einsum("iab,jcd->ijacbd", increments, increments)
        system = (growth - 1.0) * np.eye(m * m) - (left + right + both).reshape(n, n, m * m, m * m)
        drive = np.einsum("ai,bj->ijab", b, b).reshape(n, n, m * m, 1)
        solution = np.linalg.solve(system, drive)[..., 0]
        total = solution @ np.kron(self.point, self.point)
        return np.asarray(0.5 * (total + total.T))

    def radius(self, gain: Array) -> float:
        """The spectral radius of the feedback: below 1 exactly if there is a stationary law."""
        if not self.eigenvalues.size:
            return 0.0
        f = self.triangle.pack(gain) / self.triangle._weights
        if np.all(f > 0):
            s = np.sqrt(f)
            radius = perron_root(lambda v: s * self.added(s * v), self.triangle, symmetric=True)
        else:
            radius = perron_root(lambda v: f * self.added(v), self.triangle, symmetric=False)
        # The map keeps the cone of covariances, so that a negative root is the rounding of 0: equal examples.
        return max(0.0, radius)

    def solve(self, gain: Array, additive: Array, refinements: int = _REFINEMENTS) -> Array:
        """The fixed point C of the noise in the eigenbasis, over the directions that move."""
        if not self.eigenvalues.size:
            return np.zeros((0, 0))
        triangle = self.triangle
        f = triangle.pack(gain) / triangle._weights
        c = triangle.pack(additive)
        solver = scipy.sparse.linalg.cg if np.all(f > 0) else scipy.sparse.linalg.gmres
        s = np.sqrt(f) if np.all(f > 0) else f
        back = s if np.all(f > 0) else np.ones_like(f)  # the unknown is C times s, or M = f C itself

        def operate(v: Array) -> Array:
            return np.asarray(v - s * self.added(back * v))

        system = scipy.sparse.linalg.LinearOperator((c.size, c.size), matvec=operate, dtype=np.float64)
        unknown = np.zeros_like(c)
        target = s * c
        for _ in range(refinements):
            residual = target - operate(unknown)
            if not np.any(residual):
                break
            correction, info = solver(system, residual, rtol=_CG_TOLERANCE, atol=0.0, maxiter=20 * c.size + 200)
            if info > 0 and np.linalg.norm(residual - operate(correction)) > 1e-3 * np.linalg.norm(residual):
                raise NonStationaryError(
                    f"{self.problem.optimizer!r} is too close to the edge of mean-square stability for double "
                    f"precision: the fixed point of its noise was not found"
                )
            unknown = unknown + correction
        return triangle.unpack(c + self.added(back * unknown))


def perron_root(operator: Operator, triangle: Triangle, *, symmetric: bool) -> float:
    """The largest eigenvalue of a map that keeps the cone of covariances: its spectral radius."""
    size = triangle.length
    if size <= _DENSE:
        dense = triangle.matrix(operator)
        if symmetric:
            return float(scipy.linalg.eigvalsh(0.5 * (dense + dense.T))[-1])
        return float(np.max(np.abs(scipy.linalg.eigvals(dense))))
    system = scipy.sparse.linalg.LinearOperator((size, size), matvec=operator, dtype=np.float64)
    start = triangle.pack(np.eye(triangle.size))  # inside the cone, so not orthogonal to what is sought
    if symmetric:
        return float(scipy.sparse.linalg.eigsh(system, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
    return float(np.abs(scipy.sparse.linalg.eigs(system, k=1, which="LM", v0=start, return_eigenvectors=False)[0]))


def _increments(optimizer: Optimizer, h: Array) -> tuple[Array, Array]:
    """D at every eigenvalue, shape (n, m, m), and b, shape (m, n)."""
    step = recursion(optimizer)
    increments = sum(
        np.array(layer, dtype=np.float64) * (h**k)[:, None, None] for k, layer in enumerate(step.increment_coefficients)
    )
    gain = np.array(step.noise_gain_coefficients[0], dtype=np.float64)
    return np.asarray(increments), np.repeat(gain[:, None], h.size, axis=1)
