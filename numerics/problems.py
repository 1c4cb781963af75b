r"""Problems whose loss is exactly quadratic: a Hessian, a gradient noise, a minimiser.

:class:`Quadratic` states the three.  :class:`LeastSquares` derives them from data:

.. math:: L(w) = \frac1N \sum_n \tfrac12 (y_n - x_n^\top w)^2 + \tfrac{\lambda}{2} |w|^2 ,

where the noise is the covariance of a minibatch's mean gradient, exactly, at the minimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._data_directions import gram_matrix
from ._provenance import NoiseCovariance, batches_of
from ._regression import Regression, solve_regression
from ._result import Frozen
from ._weights import checked_weights

__all__ = ["LeastSquares", "Quadratic"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Quadratic(Frozen):
    r"""The loss :math:`L(w) = (w - w^*)^\top H (w - w^*)/2` with additive gradient noise of covariance C.

    Parameters
    ----------
    hessian : array_like, shape (d, d)
        H, symmetric positive semidefinite.
    noise : array_like, shape (d, d)
        C, the covariance of ONE step's gradient noise; symmetric positive semidefinite.
    optimum : array_like, shape (d,)
        A minimiser; the loss there is 0.

    Raises
    ------
    InvalidProblemError
        An array that is not what it claims to be, with its name and by how much.

    Examples
    --------
    >>> problem = Quadratic([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0])
    >>> float(problem.loss([2.0, 1.0]))
    1.5
    >>> problem.gradient([[2.0, 1.0], [1.0, 0.0]])
    array([[2., 1.],
           [0., 0.]])
    """

    hessian: Array
    noise: Array
    optimum: Array

    def __post_init__(self) -> None:
        hessian = _arrays.positive_semidefinite("hessian", self.hessian)
        object.__setattr__(self, "hessian", _frozen(hessian))
        noise = _arrays.positive_semidefinite("noise", self.noise, dim=self.dim)
        object.__setattr__(self, "noise", NoiseCovariance.of(noise, batches_of(self.noise)))
        object.__setattr__(self, "optimum", _frozen(_arrays.vector("optimum", self.optimum, dim=self.dim)))

    def __repr__(self) -> str:
        return f"Quadratic(dim={self.dim})"

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.hessian.shape[0])

    def loss(self, w: ArrayLike) -> Array:
        """The loss above its minimum.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        delta = _arrays.points("w", w, self.dim) - self.optimum
        return np.asarray(0.5 * np.einsum("...i,...i->...", delta @ self.hessian, delta))

    def gradient(self, w: ArrayLike) -> Array:
        """The noiseless gradient ``H (w - optimum)``.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., d)
        """
        return np.asarray((_arrays.points("w", w, self.dim) - self.optimum) @ self.hessian)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class LeastSquares(Frozen):
    r"""Linear regression on data, the mean over examples of :math:`(y - x^\top w)^2/2`, plus :math:`\lambda|w|^2/2`.

    Parameters
    ----------
    X : array_like, shape (N, d)
        One example a row.
    y : array_like, shape (N,)
    l2 : float, default 0
        The weight-decay strength, at least 0.
    sample_weight : array_like, shape (N,), optional
        Weights :math:`a_n \ge 0`, used as given: the loss is :math:`\frac1N\sum_n a_n (y_n - x_n^\top w)^2/2`, with N
        the number of examples whatever the weights, plus the same weight decay.  Examples are drawn into batches
        regardless of their weights.

    Raises
    ------
    InvalidProblemError
        Arrays not finite or of unfitting shapes, a negative ``l2`` or weight.

    Notes
    -----
    With weights, the attributes ``X`` and ``y`` hold the rows and labels multiplied by :math:`\sqrt{a_n}`: without
    weights these are the same losses, example by example, so whatever is done with them is right.

    At a point w other than the minimiser the gradient noise differs: its covariance is that of the per-example
    gradients there.  The additive model (:meth:`quadratic`) freezes it at the minimiser.

    Examples
    --------
    Two examples with residuals -1 and +1 at the mean:

    >>> problem = LeastSquares([[1.0], [1.0]], [0.0, 2.0])
    >>> problem.optimum, problem.hessian, float(problem.loss([1.0]))
    (array([1.]), array([[1.]]), 0.5)
    >>> problem.noise(batch_size=1)
    array([[1.]])
    >>> problem.noise(batch_size=2, replacement=False)
    array([[0.]])
    """

    X: Array
    y: Array
    l2: float

    def __init__(self, X: ArrayLike, y: ArrayLike, l2: float = 0.0, sample_weight: ArrayLike | None = None) -> None:
        design = _arrays.matrix("X", X)
        labels = _arrays.vector("y", y)
        if labels.shape[0] != design.shape[0]:
            raise InvalidProblemError(f"y must have one entry per row of X, {design.shape[0]}, got {labels.shape[0]}")
        weights = checked_weights(sample_weight, len(design))
        if weights is not None:
            root = np.sqrt(weights)
            design, labels = root[:, None] * design, root * labels
        object.__setattr__(self, "X", _frozen(design))
        object.__setattr__(self, "y", _frozen(labels))
        object.__setattr__(self, "l2", _arrays.nonnegative("l2", l2))
        object.__setattr__(self, "_weights", weights)

    def __repr__(self) -> str:
        weighted = "" if self.sample_weight is None else ", weighted"
        return f"LeastSquares(num_examples={self.num_examples}, dim={self.dim}, l2={self.l2:g}{weighted})"

    @property
    def sample_weight(self) -> Array | None:
        """The weights of the examples, which are already in ``X`` and ``y``; None for none."""
        weights: Array | None = self.__dict__["_weights"]
        return weights

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.X.shape[1])

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return int(self.X.shape[0])

    def loss(self, w: ArrayLike) -> Array:
        """The mean loss over all examples, the l2 part included.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        w = _arrays.points("w", w, self.dim)
        residual = w @ self.X.T - self.y
        return np.asarray(0.5 * np.mean(residual**2, axis=-1) + 0.5 * self.l2 * np.sum(w**2, axis=-1))

    def gradient(self, w: ArrayLike) -> Array:
        """The gradient of :meth:`loss`.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., d)
        """
        w = _arrays.points("w", w, self.dim)
        return np.asarray((w @ self.X.T - self.y) @ self.X / self.num_examples + self.l2 * w)

    def per_example_gradients(self, w: ArrayLike) -> Array:
        """The gradient of each example's own loss; each has the l2 part, so their mean is :meth:`gradient`.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., N, d)
        """
        w = _arrays.points("w", w, self.dim)
        residual = w @ self.X.T - self.y
        return np.asarray(residual[..., None] * self.X + self.l2 * w[..., None, :])

    @cached_property
    def hessian(self) -> Array:
        """``X^T X / N + l2 I``, shape (d, d)."""
        return _frozen(gram_matrix("the Hessian", self.X, self.num_examples) + self.l2 * np.eye(self.dim))

    def _hessian_factor(self) -> tuple[Array, float]:
        """A factor A of shape (N, d) and a shift, with ``hessian = A.T @ A + shift I``."""
        return self.X / np.sqrt(self.num_examples), self.l2

    def _noise_factor(self, w: Array, rows: Array) -> Array:
        """A factor G with ``G.T @ G`` the covariance, with divisor N, of the per-example gradients at w.

        ``rows`` is the factor of the Hessian in any basis, and G is in that basis: gradients are multiples of the
        examples' rows, up to the weight decay, which is the same for all.
        """
        scaled = -self._residual(w)[:, None] * rows
        return np.asarray(scaled - scaled.mean(axis=0))

    def _noise_terms(self, w: Array, rows: Array) -> Array:
        """The sizes of the terms of which the factor is the sum, in whose rounding it is known."""
        at_optimum = np.array_equal(w, self.optimum)
        sizes = np.abs(self._residual(w)) if at_optimum else np.abs(self.y) + np.abs(self.X) @ np.abs(w)
        return np.asarray(sizes[:, None] * np.abs(rows))

    def _second_moment(self, rows: Array, spread: Array) -> Array:
        """The mean over examples of ``H_n spread H_n``, H_n their Hessians without decay, in the basis of ``rows``."""
        forms = np.einsum("ni,ni->n", rows @ spread, rows)
        return np.asarray(self.num_examples * (rows.T @ (forms[:, None] * rows)))

    @cached_property
    def optimum(self) -> Array:
        """The minimiser, shape (d,); where there are many, the one of least norm.

        Of the doubles as they are, whatever the units of the features (`_regression`).  A feature is a combination of
        others, which leaves the minimiser open where ``l2`` is 0, if it is one up to the rounding of its entries.
        """
        return _frozen(self._solution.w)

    @cached_property
    def _solution(self) -> Regression:
        return solve_regression(self.X, self.y, self.num_examples * self.l2)

    def _residual(self, w: Array) -> Array:
        """``y - X w``; at the optimum that of the minimiser before it was rounded, which X may multiply by much."""
        return self._solution.residual if np.array_equal(w, self.optimum) else self.y - self.X @ w

    @cached_property
    def _population_covariance(self) -> Array:
        """The covariance, with divisor N, of the per-example gradients at the optimum."""
        return gram_matrix("the gradient noise", self._noise_factor(self.optimum, self.X), self.num_examples)

    def noise(self, batch_size: int, replacement: bool = True) -> Array:
        r"""The covariance of a minibatch's mean gradient, at the optimum.

        With replacement it is the population covariance :math:`V` (divisor N) over B; a batch of distinct examples has
        the finite-population factor besides:

        .. math:: C = \frac VB \quad\text{or}\quad C = \frac VB\,\frac{N - B}{N - 1} .

        Parameters
        ----------
        batch_size : int
            B, from 1 to N.
        replacement : bool, default True
            Whether the examples of a batch are drawn independently.  Without, the B examples of one batch are distinct;
            batches are independent of each other either way (epochs that pass through the data once are not).

        Returns
        -------
        ndarray, shape (d, d)
            It remembers where it comes from, so that a law made with it can tell its
            `StationaryCovariance.additive_error`.

        Raises
        ------
        InvalidProblemError
            ``batch_size`` is not an integer from 1 to N.
        """
        size = checked_batch_size(batch_size, self.num_examples)
        factor = batch_factor(size, self.num_examples, replacement)
        return NoiseCovariance.of(self._population_covariance * factor, (self, size, replacement))

    def quadratic(self, batch_size: int, replacement: bool = True) -> Quadratic:
        """The same loss above its minimum, with the noise of :meth:`noise` at every point.

        Parameters
        ----------
        batch_size : int
            From 1 to N.
        replacement : bool, default True

        Returns
        -------
        Quadratic
        """
        return Quadratic(self.hessian, self.noise(batch_size, replacement), self.optimum)


def _frozen(a: Array) -> Array:
    a.flags.writeable = False
    return a
