r"""What robust losses of finite data have in common.

An example's loss depends on its product with the weights, :math:`z = x^\top w`, and on the reach of the attack,
:math:`t = \epsilon |w|_q`; all derivatives follow by the chain rule from those of :math:`\ell(z, t)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._data_directions import gram_matrix
from ._dual_norm import DualNorm
from ._kinks import Facets, Kinks, LeavingProbability, check_smooth, leaving_probability
from ._provenance import NoiseCovariance
from ._result import Frozen
from ._robust_losses import RobustLogistic, RobustSquares
from ._robust_solver import Certificate, Solution, minimise, unresolved_weights
from ._weights import checked_weights
from .problems import LeastSquares, Quadratic
from .quadratic_examples import QuadraticExamples

__all__ = ["RobustExamples"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class RobustExamples(Frozen, ABC):
    """The mean over examples of a loss of z and t; see the subclasses."""

    X: Array
    y: Array
    radius: float
    norm: float = 2
    l2: float = 0.0
    sample_weight: Array | None = None

    def __post_init__(self) -> None:
        design = _arrays.matrix("X", self.X)
        y = _arrays.vector("y", self.y)
        if len(y) != len(design):
            raise InvalidProblemError(f"y must have one entry per row of X, {len(design)}, got {len(y)}")
        design.flags.writeable = y.flags.writeable = False
        object.__setattr__(self, "X", design)
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "radius", _arrays.nonnegative("radius", self.radius))
        object.__setattr__(self, "l2", _arrays.nonnegative("l2", self.l2))
        object.__setattr__(self, "norm", self._dual_norm.p)
        object.__setattr__(self, "sample_weight", checked_weights(self.sample_weight, len(design)))
        self._check_labels()

    def __repr__(self) -> str:
        weighted = "" if self.sample_weight is None else ", weighted"
        return (
            f"{type(self).__name__}(num_examples={self.num_examples}, dim={self.dim}, radius={self.radius:g}, "
            f"norm={self.norm:.15g}, l2={self.l2:g}{weighted})"
        )

    @abstractmethod
    def _check_labels(self) -> None:
        """Refuse labels that are none."""

    @abstractmethod
    def _losses(self, z: Array, t: Array) -> Array:
        """The examples' losses."""

    @abstractmethod
    def _slopes(self, z: Array, t: Array) -> tuple[Array, Array]:
        """Their derivatives by z and t."""

    @abstractmethod
    def _curvatures(self, z: Array, t: Array) -> tuple[Array, Array, Array]:
        """Their second derivatives zz, zt, tt off the kinks."""

    @abstractmethod
    def _solver_loss(self) -> RobustSquares | RobustLogistic:
        """The loss as the solver wants it."""

    @abstractmethod
    def _signs(self, w: Array) -> Array:
        """The sign of z that raises each example's loss."""

    @cached_property
    def _dual_norm(self) -> DualNorm:
        return DualNorm.of_attack(self.norm)

    @cached_property
    def _weights(self) -> Array:
        return np.ones(self.num_examples) if self.sample_weight is None else self.sample_weight

    @cached_property
    def _kept(self) -> NDArray[np.intp]:
        """The examples that are part of the loss: those whose weight is not 0."""
        return np.flatnonzero(self._weights > 0)

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.X.shape[1])

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return int(self.X.shape[0])

    @property
    def dual(self) -> float:
        """The order q of the norm of the weights that the attack puts into the loss: 1/p + 1/q = 1."""
        return self._dual_norm.q

    def _z_and_t(self, w: Array) -> tuple[Array, Array]:
        return w @ self.X.T, self.radius * self._dual_norm.of(w)[..., None]

    def loss(self, w: ArrayLike) -> Array:
        """The mean robust loss over all examples, the l2 part included.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        w = _arrays.points("w", w, self.dim)
        losses = self._losses(*self._z_and_t(w)) @ self._weights / self.num_examples
        return np.asarray(losses + 0.5 * self.l2 * np.sum(w**2, axis=-1))

    def per_example_gradients(self, w: ArrayLike) -> Array:
        """The gradient of each example's own weighted loss; each has the l2 part, so their mean is `gradient`.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., N, d)
            On a kink, a subgradient: the sign of 0 is 0.
        """
        w = _arrays.points("w", w, self.dim)
        by_z, by_t = (a * self._weights for a in self._slopes(*self._z_and_t(w)))
        g = self._dual_norm.gradient(w)
        out = by_z[..., None] * self.X + (self.radius * by_t)[..., None] * g[..., None, :]
        return np.asarray(out + self.l2 * w[..., None, :])

    def gradient(self, w: ArrayLike) -> Array:
        """The gradient of `loss`; on a kink a subgradient, the sign of 0 being 0.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., d)
        """
        w = _arrays.points("w", w, self.dim)
        by_z, by_t = (a * self._weights for a in self._slopes(*self._z_and_t(w)))
        pull = self.radius * by_t.mean(axis=-1, keepdims=True)
        return np.asarray(by_z @ self.X / self.num_examples + pull * self._dual_norm.gradient(w) + self.l2 * w)

    def per_example_hessians(self, w: ArrayLike) -> Array:
        """The Hessian of each example's own weighted loss off the kinks, what automatic differentiation gives.

        Parameters
        ----------
        w : array_like, shape (d,)

        Returns
        -------
        ndarray, shape (N, d, d)

        Raises
        ------
        InvalidProblemError
            If the norm of ``w`` has a kink there.
        """
        w = self._off_norm_kinks(w)
        zz, zt, tt = (a * self._weights for a in self._curvatures(*self._z_and_t(w)))
        by_t = self._slopes(*self._z_and_t(w))[1] * self._weights
        g, bend = self._dual_norm.gradient(w), self._dual_norm.hessian(w)
        cross = (self.radius * zt)[:, None, None] * (self.X[:, :, None] * g)
        out = zz[:, None, None] * (self.X[:, :, None] * self.X[:, None, :]) + cross + cross.transpose(0, 2, 1)
        out += (self.radius**2 * tt)[:, None, None] * np.outer(g, g) + (self.radius * by_t)[:, None, None] * bend
        return np.asarray(0.5 * (out + out.transpose(0, 2, 1)) + self.l2 * np.eye(self.dim))

    def mean_ae_hessian(self, w: ArrayLike) -> Array:
        """The mean of the examples' Hessians at a point: the curvature without that of the residuals' kinks.

        Parameters
        ----------
        w : array_like, shape (d,)

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            If the norm of ``w`` has a kink there.
        """
        w = self._off_norm_kinks(w)
        shares = self._weights / self.num_examples
        zz, zt, tt = (a * shares for a in self._curvatures(*self._z_and_t(w)))
        by_t = self._slopes(*self._z_and_t(w))[1] * shares
        g = self._dual_norm.gradient(w)
        cross = self.radius * np.outer(self.X.T @ zt, g)
        out = self.X.T @ (zz[:, None] * self.X) + cross + cross.T + self.radius**2 * tt.sum() * np.outer(g, g)
        out += self.radius * by_t.sum() * self._dual_norm.hessian(w)
        return np.asarray(0.5 * (out + out.T) + self.l2 * np.eye(self.dim))

    def _off_norm_kinks(self, w: ArrayLike) -> Array:
        point = _arrays.vector("w", w, dim=self.dim)
        if self.radius and (not point.any() or len(self._dual_norm.kinked_coordinates(point))):
            raise InvalidProblemError(
                f"the norm of order {self.dual:g} has no Hessian at this w: "
                f"{Kinks((), tuple(map(int, self._dual_norm.kinked_coordinates(point))), not point.any())}"
            )
        return point

    def worst_case_inputs(self, w: ArrayLike) -> Array:
        """Every input within the radius at which its example's loss is largest.

        Parameters
        ----------
        w : array_like, shape (d,)

        Returns
        -------
        ndarray, shape (N, d)
            Where several are worst, one of them.
        """
        w = _arrays.vector("w", w, dim=self.dim)
        return np.asarray(self.X + self.radius * self._signs(w)[:, None] * self._dual_norm.gradient(w))

    @cached_property
    def collapse_radius(self) -> float:
        """The radius from which on w = 0 is the minimiser; infinite if there is none."""
        loss = self._solver_loss()
        pull, strength = loss.collapse()
        size = self._dual_norm.attack_norm(pull)
        return size / strength * loss.units[1] if strength else (float("inf") if size else 0.0)

    @cached_property
    def _solution(self) -> Solution:
        loss, kept = self._solver_loss(), self._kept
        pull, strength = loss.collapse()
        # At the collapse radius itself rounding decides, and a minimiser that is 0 up to rounding has no Hessian.
        if self.radius and self._dual_norm.attack_norm(pull) - loss.pull_rounding <= loss.radius * strength:
            zero, everywhere, y = np.zeros(self.dim), np.arange(self.dim), self.y[kept]
            return Solution(zero, kept[y == 0], everywhere, np.sign(y), Certificate("duality gap", 0.0, 0.0))
        found = minimise(loss, repr(self))
        loss.check_minimiser(found.w)
        return replace(loss.restored(found), residuals=kept[found.residuals])

    @cached_property
    def optimum(self) -> Array:
        """The robust minimiser, shape (d,), to a `certificate`.

        Weights on a kink at 0 are exactly 0; a residual on a kink is 0 up to rounding.

        Raises
        ------
        InvalidProblemError
            If there is no finite minimiser, or none could be certified.
        """
        w = np.array(self._solution.w)
        w.flags.writeable = False
        return w

    @property
    def certificate(self) -> Certificate:
        """How the `optimum` is known to be one."""
        return self._solution.certificate

    @cached_property
    def kinks(self) -> Kinks:
        """The kinks of the loss on which the `optimum` rests."""
        solution = self._solution
        if not self.radius:
            return Kinks((), (), False)
        collapsed = not solution.w.any()
        return Kinks(tuple(map(int, solution.residuals)), tuple(map(int, solution.coordinates)), collapsed)

    @cached_property
    def _unresolved(self) -> NDArray[np.intp]:
        """Weights of a minimiser off the kinks that are not known well enough for the norm's curvature."""
        w = self.optimum
        by_t = self._slopes(*self._z_and_t(w))[1] @ self._weights / self.num_examples
        bend = self.radius * by_t * self._dual_norm.hessian(w)
        return unresolved_weights(self._dual_norm, w, self.gradient(w), self.mean_ae_hessian(w), bend)

    def _require_smooth(self, what: str) -> None:
        check_smooth(self, f"the loss has no {what}", self._unresolved if self.kinks.smooth and self.radius else ())

    @cached_property
    def hessian(self) -> Array:
        """The Hessian of the mean loss at the optimum, shape (d, d).

        Raises
        ------
        InvalidProblemError
            If the optimum rests on a kink.
        """
        self._require_smooth("Hessian")
        out = self.mean_ae_hessian(self.optimum)
        out.flags.writeable = False
        return out

    def noise(self, batch_size: int, replacement: bool = True) -> Array:
        r"""The covariance of a minibatch's mean gradient, at the optimum.

        Parameters
        ----------
        batch_size : int
            B, from 1 to N.
        replacement : bool, default True
            Whether the examples of a batch are drawn independently, or are distinct.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            If the optimum rests on a kink, or ``batch_size`` is not an integer from 1 to N.
        """
        size = checked_batch_size(batch_size, self.num_examples)
        self._require_smooth("gradient of every example")
        gradients = self.per_example_gradients(self.optimum)
        centred = gradients - gradients.mean(axis=0)
        population = gram_matrix("the gradient noise", centred, self.num_examples)
        factor = batch_factor(size, self.num_examples, replacement)
        cell = self.cell() if self._exact_cell else None
        return NoiseCovariance.of(population * factor, None if cell is None else (cell, size, replacement))

    def quadratic(self, batch_size: int, replacement: bool = True) -> Quadratic:
        """The quadratic loss of the same Hessian and optimum, with the noise of `noise` at every point.

        Parameters
        ----------
        batch_size : int
            From 1 to N.
        replacement : bool, default True

        Returns
        -------
        Quadratic

        Raises
        ------
        InvalidProblemError
            As for `hessian` and `noise`.
        """
        return Quadratic(self.hessian, self.noise(batch_size, replacement), self.optimum)

    @property
    def _exact_cell(self) -> bool:
        """Whether the examples' losses are quadratic within the cell."""
        return False

    def cell(self) -> LeastSquares | QuadraticExamples:
        """The finite quadratic problem that this one is about its optimum, example by example.

        Returns
        -------
        QuadraticExamples
            Of every example's gradient and Hessian at the optimum; exact to second order.

        Raises
        ------
        InvalidProblemError
            If the optimum rests on a kink.
        """
        self._require_smooth("expansion")
        hessians = self.per_example_hessians(self.optimum)
        return QuadraticExamples(hessians, self.per_example_gradients(self.optimum) - hessians @ self.optimum)

    def _face_columns(self) -> NDArray[np.intp]:
        kinks = self.kinks
        if kinks.collapsed:
            self._require_smooth("face")
        if np.isinf(self.dual) and kinks.coordinates:
            raise InvalidProblemError(
                "the weights on the kink tie for the largest (attack norm 1): their face is not one of coordinates"
            )
        return np.setdiff1d(np.arange(self.dim), kinks.coordinates)

    def _facets(self) -> Facets:
        """The boundaries of the norm's own smooth piece about the optimum."""
        w, identity = self.optimum, np.eye(self.dim)
        if self.radius and self.dual == 1.0:
            return Facets(np.sign(w)[:, None] * identity, np.abs(w))
        if self.radius and np.isinf(self.dual):
            top = int(np.argmax(np.abs(w)))
            rest = np.delete(identity, top, axis=0)
            lead = np.sign(w[top]) * identity[top]
            rows = np.vstack([lead - rest, lead + rest])
            return Facets(rows, rows @ w)
        return Facets(np.zeros((0, self.dim)), np.zeros(0))

    def leaving_probability(
        self, covariance: ArrayLike, *, samples: int = 10_000, rng: np.random.Generator | int = 0
    ) -> LeavingProbability:
        """How likely weights with the law N(optimum, covariance) are outside the smooth piece about the optimum.

        Parameters
        ----------
        covariance : array_like, shape (d, d)
            Of the weights, such as a stationary covariance.
        samples : int, default 10000
            How many Gaussian draws estimate the probability of leaving anywhere, between its exact bounds.
        rng : numpy.random.Generator or int, default 0

        Returns
        -------
        LeavingProbability

        Raises
        ------
        InvalidProblemError
            If an argument is not what it should be.
        """
        spread = _arrays.positive_semidefinite("covariance", covariance, dim=self.dim)
        count = _arrays.whole_number("samples", samples, most=10**9)
        return leaving_probability(self._facets(), spread, count, _arrays.random_generator(rng))
