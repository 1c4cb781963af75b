r"""Least squares with several outputs per example, whose Hessians have the rank of the outputs.

.. math:: L(w) = \frac1N \sum_n \tfrac12 |y_n - X_n w|^2 + \tfrac{\lambda}{2} |w|^2 ,
          \qquad X_n \in \mathbb R^{K \times d} .

A linearised network with K outputs is one.  `QuadraticExamples` holds the same losses as N matrices of d x d; here they
stay factored, so that a batch's law costs :math:`O(N K d^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size, draw_batches
from ._data_directions import gram_matrix
from ._regression import Regression, solve_regression
from ._result import Frozen
from .noise import Draw, GradientNoise
from .problems import Quadratic

__all__ = ["VectorLeastSquares", "VectorMinibatchNoise"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class VectorLeastSquares(Frozen):
    r"""The mean over examples of :math:`|y_n - X_n w|^2/2`, plus :math:`\lambda|w|^2/2`.

    Parameters
    ----------
    X : array_like, shape (N, K, d)
        The features of one example are a (K, d) matrix, one row for each output.
    y : array_like, shape (N, K)
    l2 : float, default 0
        The weight-decay strength, at least 0.

    Raises
    ------
    InvalidProblemError
        Arrays not finite or of unfitting shapes, a negative ``l2``.

    Examples
    --------
    One example whose two outputs disagree about the one weight:

    >>> problem = VectorLeastSquares([[[1.0], [1.0]]], [[0.0, 2.0]])
    >>> problem.optimum, problem.hessian, float(problem.loss([1.0]))
    (array([1.]), array([[2.]]), 1.0)
    """

    X: Array
    y: Array
    l2: float = 0.0

    def __post_init__(self) -> None:
        raw = _arrays.finite_array("X", self.X)
        if raw.ndim != 3 or not raw.size:
            raise InvalidProblemError(f"X must have shape (N, K, d), got {raw.shape}")
        y = _arrays.matrix("y", self.y, rows=raw.shape[0], columns=raw.shape[1])
        object.__setattr__(self, "X", _frozen(raw))
        object.__setattr__(self, "y", _frozen(y))
        object.__setattr__(self, "l2", _arrays.nonnegative("l2", self.l2))

    def __repr__(self) -> str:
        n, k, d = self.X.shape
        return f"VectorLeastSquares(num_examples={n}, outputs={k}, dim={d}, l2={self.l2:g})"

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.X.shape[2])

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return int(self.X.shape[0])

    @property
    def outputs(self) -> int:
        """The number K of outputs of an example."""
        return int(self.X.shape[1])

    @cached_property
    def _rows(self) -> Array:
        """All features as one matrix, shape (N K, d)."""
        return self.X.reshape(-1, self.dim)

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
        residual = w @ self._rows.T - self.y.ravel()
        return np.asarray(
            0.5 * np.sum(residual**2, axis=-1) / self.num_examples + 0.5 * self.l2 * np.sum(w**2, axis=-1)
        )

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
        return np.asarray((w @ self._rows.T - self.y.ravel()) @ self._rows / self.num_examples + self.l2 * w)

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
        residual = (w @ self._rows.T - self.y.ravel()).reshape(*w.shape[:-1], *self.y.shape)
        return np.asarray(np.einsum("...nk,nkd->...nd", residual, self.X) + self.l2 * w[..., None, :])

    @cached_property
    def hessian(self) -> Array:
        """The mean of ``X_n^T X_n``, plus ``l2 I``, shape (d, d)."""
        return _frozen(self._gram + self.l2 * np.eye(self.dim))

    @cached_property
    def _gram(self) -> Array:
        """The mean of the examples' own Hessians, without weight decay."""
        return _frozen(gram_matrix("the Hessian", self._rows, self.num_examples))

    def _hessian_factor(self) -> tuple[Array, float]:
        """A factor A of shape (N K, d) and a shift, with ``hessian = A.T @ A + shift I``."""
        return self._rows / np.sqrt(self.num_examples), self.l2

    def _noise_factor(self, w: Array, rows: Array) -> Array:
        """A factor of the covariance of the per-example gradients: see `LeastSquares`."""
        scaled = (-self._residual(w)[:, None] * rows).reshape(*self.y.shape, -1).sum(axis=1)
        return np.asarray(scaled - scaled.mean(axis=0))

    def _noise_terms(self, w: Array, rows: Array) -> Array:
        """The sizes of the terms of which the factor is the sum, in whose rounding it is known."""
        at_optimum = np.array_equal(w, self.optimum)
        sizes = np.abs(self._residual(w)) if at_optimum else np.abs(self.y.ravel()) + np.abs(self._rows) @ np.abs(w)
        return np.asarray((sizes[:, None] * np.abs(rows)).reshape(*self.y.shape, -1).sum(axis=1))

    def _second_moment(self, rows: Array, spread: Array) -> Array:
        """The mean over examples of ``H_n spread H_n``: see `LeastSquares`."""
        each = rows.reshape(*self.y.shape, -1)
        forms = (rows @ spread).reshape(each.shape) @ each.transpose(0, 2, 1)
        return np.asarray(self.num_examples * (rows.T @ (forms @ each).reshape(rows.shape)))

    @cached_property
    def optimum(self) -> Array:
        """The minimiser, shape (d,); where there are many, the one of least norm (see `LeastSquares.optimum`)."""
        return _frozen(self._solution.w)

    @cached_property
    def _solution(self) -> Regression:
        return solve_regression(self._rows, self.y.ravel(), self.num_examples * self.l2)

    def _residual(self, w: Array) -> Array:
        """``y - X w`` over all outputs; at the optimum that of the minimiser before it was rounded."""
        return self._solution.residual if np.array_equal(w, self.optimum) else self.y.ravel() - self._rows @ w

    def noise(self, batch_size: int, replacement: bool = True) -> Array:
        """The covariance of a minibatch's mean gradient, at the optimum.

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
            ``batch_size`` is not an integer from 1 to N.
        """
        return VectorMinibatchNoise(self, batch_size, replacement).covariance()

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


@dataclass(frozen=True, eq=False, repr=False)
class VectorMinibatchNoise(GradientNoise):
    r"""The noise of minibatches of examples with several outputs, exact at any weights: `MinibatchNoise` for them.

    .. math:: \mathcal V(S) = p\,\Big[\frac1N \sum_n X_n^\top (X_n S X_n^\top) X_n - G S G\Big] ,
              \qquad G = \frac1N \sum_n X_n^\top X_n .

    Parameters
    ----------
    problem : VectorLeastSquares
    batch_size : int
        B, from 1 to N.
    replacement : bool, default True
        Whether the examples of one batch are drawn independently.  Without, they are distinct; the batches of
        different steps are independent either way.

    Raises
    ------
    InvalidProblemError
        If ``problem`` is another, or ``batch_size`` is not an integer from 1 to N.

    Examples
    --------
    The curvature of one output is 1, of the other 3; a batch is one of two examples that have one each:

    >>> problem = VectorLeastSquares([[[1.0], [0.0]], [[0.0], [3.0]]], [[0.0, 0.0], [0.0, 0.0]])
    >>> VectorMinibatchNoise(problem, batch_size=1).covariance(spread=[[1.0]])
    array([[16.]])
    """

    problem: VectorLeastSquares
    batch_size: int
    replacement: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.problem, VectorLeastSquares):
            raise InvalidProblemError(
                f"problem must be a VectorLeastSquares, got {type(self.problem).__name__}; for LeastSquares and "
                f"QuadraticExamples there is MinibatchNoise"
            )
        object.__setattr__(self, "batch_size", checked_batch_size(self.batch_size, self.problem.num_examples))
        object.__setattr__(self, "replacement", _arrays.flag("replacement", self.replacement))

    def __repr__(self) -> str:
        return f"VectorMinibatchNoise({self.problem!r}, batch_size={self.batch_size}, replacement={self.replacement})"

    @property
    def hessian(self) -> Array:
        """The Hessian of the mean loss."""
        return self.problem.hessian

    @property
    def optimum(self) -> Array:
        """The minimiser of the mean loss."""
        return self.problem.optimum

    @property
    def factor(self) -> float:
        """The factor p by which averaging over a batch shrinks a covariance."""
        return batch_factor(self.batch_size, self.problem.num_examples, self.replacement)

    def at(self, weights: Array) -> Array:
        """The covariance of a batch's mean gradient at given weights."""
        centred = self.problem._noise_factor(weights, self.problem._rows)
        return gram_matrix("the gradient noise", centred, len(centred)) * self.factor

    def multiplicative(self, spread: Array) -> Array:
        """What the spread of the weights adds to it."""
        X, rows, gram = self.problem.X, self.problem._rows, self.problem._gram
        forms = (rows @ spread).reshape(X.shape) @ X.transpose(0, 2, 1)
        second = rows.T @ (forms @ X).reshape(rows.shape) / len(X) - gram @ spread @ gram
        return _symmetrised(second) * self.factor

    def label_noise(self, std: float) -> Array:
        r"""The noise that fresh noise on every label adds at every draw, :math:`\sigma^2 G / B`.

        Parameters
        ----------
        std : float
            Standard deviation of the independent noise added to each of an example's K labels.

        Returns
        -------
        ndarray, shape (d, d)
            Add it: ``noise + noise.label_noise(std)``.

        Raises
        ------
        InvalidProblemError
            If ``std`` is negative.
        """
        return np.asarray(_arrays.nonnegative("std", std) ** 2 / self.batch_size * self.problem._gram)

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Batches drawn from the examples."""
        problem = self.problem
        drawn = draw_batches(rng, count, self.batch_size, problem.num_examples, self.replacement)
        inputs, labels = problem.X[drawn], problem.y[drawn]

        def apply(v: Array, targets: Array | float) -> Array:
            residuals = np.einsum("cbki,ci->cbk", inputs, v) - targets
            return np.asarray(np.einsum("cbk,cbki->ci", residuals, inputs) / self.batch_size + problem.l2 * v)

        return Draw(lambda w: apply(w, labels), lambda v: apply(v, 0.0))


def _symmetrised(a: Array) -> Array:
    """The symmetric part, exactly symmetric: what remains of a symmetric product besides its rounding."""
    return np.asarray(0.5 * (a + a.T))


def _frozen(a: Array) -> Array:
    a.flags.writeable = False
    return a
