r"""The robust unhinged loss: the example in which everything about robustness is explicit.

.. math:: L(w) = \frac1N \sum_n a_n \big(1 - y_n x_n^\top w + \epsilon |w|_2\big) + \frac\lambda2 |w|^2

With :math:`m = \frac1N \sum a_n y_n x_n` and :math:`\bar a` the mean weight, the minimiser is
:math:`w^* = (|m| - \bar a \epsilon)_+\, m / (\lambda |m|)`; the curvature is :math:`\lambda` along it and
:math:`\lambda |m| / (|m| - \bar a \epsilon)` across, and the noise does not depend on the radius unless weights differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, ScaleError
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._data_directions import gram_matrix
from ._dual_norm import DualNorm
from ._weights import checked_weights
from .problems import Quadratic

__all__ = ["RobustUnhinged"]

Array: TypeAlias = NDArray[np.float64]

_EUCLIDEAN = DualNorm.of_attack(2)


@dataclass(frozen=True, eq=False, repr=False)
class RobustUnhinged:
    r"""Linear classification by the unhinged loss against an attack of the 2-norm.

    Parameters
    ----------
    X : array_like, shape (N, d)
        One example a row.
    y : array_like, shape (N,)
        Labels, -1 or 1.
    radius : float
        Of the attack, at least 0.
    l2 : float
        The weight decay :math:`\lambda > 0`; without it the loss is linear and has no minimiser.
    sample_weight : array_like, shape (N,), optional
        Weights :math:`a_n \ge 0`, used as given.

    Raises
    ------
    InvalidProblemError
        Labels other than -1 and 1, no weight decay, a negative radius, unfitting arrays.

    References
    ----------
    vanrooyen2015, zhou2023unhinged

    Examples
    --------
    >>> problem = RobustUnhinged([[3.0, 4.0], [-3.0, -4.0]], [1, -1], radius=2.5, l2=1.0)
    >>> problem.optimum, problem.hessian @ [4.0, -3.0] / [4.0, -3.0]
    (array([1.5, 2. ]), array([2., 2.]))
    """

    X: Array
    y: Array
    radius: float
    l2: float
    sample_weight: Array | None = None

    def __post_init__(self) -> None:
        design, y = _arrays.matrix("X", self.X), _arrays.vector("y", self.y)
        if len(y) != len(design):
            raise InvalidProblemError(f"y must have one entry per row of X, {len(design)}, got {len(y)}")
        wrong = np.flatnonzero(np.abs(y) != 1.0)
        if wrong.size:
            raise InvalidProblemError(f"labels must be -1 or 1, got y[{wrong[0]}] = {y[wrong[0]]:g}")
        design.flags.writeable = y.flags.writeable = False
        decay = _arrays.nonnegative("l2", self.l2)
        if not decay:
            raise InvalidProblemError("l2 must be positive: without weight decay the unhinged loss has no minimiser")
        for name, value in (
            ("X", design),
            ("y", y),
            ("radius", _arrays.nonnegative("radius", self.radius)),
            ("l2", decay),
            ("sample_weight", checked_weights(self.sample_weight, len(design))),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return (
            f"RobustUnhinged(num_examples={self.num_examples}, dim={self.dim}, radius={self.radius:g}, l2={self.l2:g})"
        )

    @cached_property
    def _weights(self) -> Array:
        return np.ones(self.num_examples) if self.sample_weight is None else self.sample_weight

    @cached_property
    def _mean_weight(self) -> float:
        return float(self._weights.mean())

    @cached_property
    def _pull(self) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            pull = (self._weights * self.y) @ self.X / self.num_examples
        if not np.all(np.isfinite(pull)):
            raise ScaleError(f"the mean of the examples overflows: X has entries of {np.abs(self.X).max():.3g}")
        return np.asarray(pull)

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.X.shape[1])

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return int(self.X.shape[0])

    @property
    def collapse_radius(self) -> float:
        """The radius from which on w = 0 is the minimiser."""
        return float(_EUCLIDEAN.of(self._pull) / self._mean_weight)

    def loss(self, w: ArrayLike) -> Array:
        """The mean robust loss, the l2 part included.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        w = _arrays.points("w", w, self.dim)
        reach = self._mean_weight * (1.0 + self.radius * _EUCLIDEAN.of(w))
        return np.asarray(reach - w @ self._pull + 0.5 * (np.sqrt(self.l2) * _EUCLIDEAN.of(w)) ** 2)

    def per_example_gradients(self, w: ArrayLike) -> Array:
        """The gradient of each example's own weighted loss; each has the l2 part.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., N, d)
            At w = 0, a subgradient.
        """
        w = _arrays.points("w", w, self.dim)
        own = -self.y[:, None] * self.X + self.radius * _EUCLIDEAN.gradient(w)[..., None, :]
        return np.asarray(self._weights[:, None] * own + self.l2 * w[..., None, :])

    def gradient(self, w: ArrayLike) -> Array:
        """The gradient of `loss`; at w = 0, a subgradient.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., d)
        """
        return np.asarray(self.per_example_gradients(w).mean(axis=-2))

    @cached_property
    def optimum(self) -> Array:
        """The minimiser, shape (d,); 0 from `collapse_radius` on."""
        left = self._left
        if left <= 0:
            w = np.zeros(self.dim)
        else:
            with np.errstate(over="ignore"):
                w = _EUCLIDEAN.gradient(self._pull) * (left / self.l2)
            largest = float(np.abs(w).max())
            if not 0.0 < largest < np.inf:
                raise ScaleError(
                    f"the minimiser, of length {left:.3g} / {self.l2:.3g} (slope over l2), is beyond double precision; "
                    f"take other units for X or l2"
                )
        w.flags.writeable = False
        return w

    @cached_property
    def _left(self) -> float:
        """The slope along the mean example that the attack leaves."""
        return float(_EUCLIDEAN.of(self._pull)) - self.radius * self._mean_weight

    def _require_smooth(self) -> None:
        if not self.optimum.any():
            raise InvalidProblemError(
                f"the radius {self.radius:g} is not below collapse_radius = {self.collapse_radius:.6g}: the minimiser "
                f"is 0, where the loss is a cone and has no Hessian; take a smaller radius"
            )

    @cached_property
    def hessian(self) -> Array:
        """The Hessian at the optimum, shape (d, d).

        Raises
        ------
        InvalidProblemError
            If the optimum is 0.
        """
        self._require_smooth()
        u = _EUCLIDEAN.gradient(self._pull)
        # mean weight * radius / |w*|, before either of them is rounded to 0 or overflows
        across = self.l2 * (self.radius * self._mean_weight / self._left)
        out = self.l2 * np.eye(self.dim) + across * (np.eye(self.dim) - np.outer(u, u))
        if not np.all(np.isfinite(out)):
            raise ScaleError(
                f"the curvature across the minimiser overflows: l2={self.l2:.3g}, radius={self.radius:.3g}"
            )
        out.flags.writeable = False
        return out

    def noise(self, batch_size: int, replacement: bool = True) -> Array:
        """The covariance of a minibatch's mean gradient, at the optimum.

        Parameters
        ----------
        batch_size : int
            B, from 1 to N.
        replacement : bool, default True

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            If the optimum is 0, or ``batch_size`` is not an integer from 1 to N.
        """
        size = checked_batch_size(batch_size, self.num_examples)
        self._require_smooth()
        gradients = self.per_example_gradients(self.optimum)
        centred = gradients - gradients.mean(axis=0)
        population = gram_matrix("the gradient noise", centred, self.num_examples)
        return population * batch_factor(size, self.num_examples, replacement)

    def quadratic(self, batch_size: int, replacement: bool = True) -> Quadratic:
        """The quadratic loss of the same Hessian and optimum, with the noise of `noise` at every point.

        Parameters
        ----------
        batch_size : int
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
