r"""A finite sum of general quadratic losses, each example with a Hessian of its own.

.. math:: L(w) = \frac1N \sum_n \ell_n(w), \qquad \nabla \ell_n(w) = H_n w + r_n .

Least squares is the special case of rank one, :math:`H_n = x_n x_n^\top`, :math:`r_n = -y_n x_n`
(`sgdcov.numerics.LeastSquares`, which is faster).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._data_directions import column_scales, gram_factor, gram_matrix
from ._provenance import NoiseCovariance
from ._regression import Pair, defect
from ._result import Frozen
from ._weights import checked_weights
from .problems import Quadratic

__all__ = ["QuadraticExamples"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, init=False)
class QuadraticExamples(Frozen):
    r"""The mean over examples of quadratic losses with gradients :math:`H_n w + r_n`.

    Parameters
    ----------
    hessians : array_like, shape (N, d, d)
        Symmetric; they need not be semidefinite one by one, but their mean must be.  A read-only view that repeats one
        matrix (``np.broadcast_to``) is kept as such.
    gradients : array_like, shape (N, d)
        Every example's gradient at w = 0.
    sample_weight : array_like, shape (N,), optional
        Weights :math:`a_n \ge 0`, used as given: the loss is :math:`\frac1N \sum_n a_n \ell_n`.  The attributes
        ``hessians`` and ``gradients`` hold those of :math:`a_n \ell_n`, so whatever is done with them is right.

    Raises
    ------
    InvalidProblemError
        Arrays of unfitting shapes, not finite, not symmetric; a mean Hessian that is indefinite; or no minimiser: the
        mean gradient has a component along a direction without curvature.

    Examples
    --------
    Two parabolas with minima at -1 and 1, the second three times as steep:

    >>> problem = QuadraticExamples([[[1.0]], [[3.0]]], [[1.0], [-3.0]])
    >>> problem.hessian, problem.optimum
    (array([[2.]]), array([0.5]))
    >>> problem.noise(batch_size=1)
    array([[2.25]])
    """

    hessians: Array
    gradients: Array

    def __init__(self, hessians: ArrayLike, gradients: ArrayLike, sample_weight: ArrayLike | None = None) -> None:
        hessians = _symmetric_stack(hessians)
        gradients = _arrays.matrix("gradients", gradients, rows=hessians.shape[0], columns=hessians.shape[1])
        weights = checked_weights(sample_weight, len(hessians))
        if weights is not None:
            hessians, gradients = weights[:, None, None] * hessians, weights[:, None] * gradients
        hessians.flags.writeable = gradients.flags.writeable = False
        object.__setattr__(self, "hessians", hessians)
        object.__setattr__(self, "gradients", gradients)
        object.__setattr__(self, "_weights", weights)
        _arrays.positive_semidefinite("the mean of hessians", self.hessian)
        self.optimum  # noqa: B018 - refuses a problem without a minimiser at once

    def __repr__(self) -> str:
        weighted = "" if self.sample_weight is None else ", weighted"
        return f"QuadraticExamples(num_examples={self.num_examples}, dim={self.dim}{weighted})"

    @property
    def sample_weight(self) -> Array | None:
        """The weights of the examples, which are already in ``hessians`` and ``gradients``; None for none."""
        weights: Array | None = self.__dict__["_weights"]
        return weights

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.hessians.shape[1])

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return int(self.hessians.shape[0])

    @cached_property
    def hessian(self) -> Array:
        """The mean of the Hessians, shape (d, d)."""
        shared = self.hessians.strides[0] == 0
        mean = np.array(self.hessians[0]) if shared else self.hessians.mean(axis=0)
        return _frozen(0.5 * (mean + mean.T))

    @cached_property
    def optimum(self) -> Array:
        """The minimiser, shape (d,); where there are many, the one of least norm."""
        slope = self.gradients.mean(axis=0)
        factor = gram_factor(self.hessian)
        if factor is not None:  # definite, whatever the units of the coordinates: none of them is left out
            scales = column_scales(factor)
            definite = scipy.linalg.cho_factor(self.hessian / scales / scales[:, None], check_finite=False)

            def solve(b: Array) -> Array:
                return np.asarray(scipy.linalg.cho_solve(definite, b / scales, check_finite=False) / scales)

            return _frozen(self._refined(-solve(slope), solve))
        h, basis = scipy.linalg.eigh(self.hessian)
        along = basis.T @ slope
        curved = h > h.size * np.finfo(np.float64).eps * max(abs(h[0]), abs(h[-1]))
        level = _arrays.ROUNDING * h.size * np.finfo(np.float64).eps * float(np.max(np.abs(self.gradients), initial=0))
        lost = np.abs(along[~curved])
        if lost.size and lost.max() > level:
            raise InvalidProblemError(
                f"the mean loss has no minimiser: along a direction without curvature its slope is {lost.max():.6g} "
                f"(rounding explains at most {level:.3g})"
            )
        return _frozen(-(basis[:, curved] @ (along[curved] / h[curved])))

    def _refined(self, w: Array, solve: Callable[[Array], Array]) -> Array:
        """A minimiser to its last bits, so that gradients that vanish at it do: from slopes in twice the precision."""
        if self.hessians.strides[0] == 0:
            return w
        count, d = self.gradients.shape
        rows = np.concatenate([self.hessians.transpose(1, 0, 2).reshape(d, count * d), self.gradients.T], axis=1)
        zero, last = Pair.zeros(d), np.inf
        found = Pair.of(w)
        for _ in range(4):
            high, low = (np.concatenate([np.tile(a, count), np.full(count, b)]) for a, b in (
                (found.hi, 1.0), (found.lo, 0.0)))  # fmt: skip
            step = solve(defect(rows, Pair(high, low), zero, zero) / count)
            size = float(np.max(np.abs(step), initial=0.0))
            if not 0.0 < size < 0.5 * last:
                break
            found, last = found.plus(step), size
        return found.hi

    def loss(self, w: ArrayLike) -> Array:
        """The mean loss over all examples, 0 at w = 0.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (...)
        """
        w = _arrays.points("w", w, self.dim)
        return np.asarray(np.sum(w * (0.5 * (w @ self.hessian) + self.gradients.mean(axis=0)), axis=-1))

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
        return np.asarray(w @ self.hessian + self.gradients.mean(axis=0))

    def per_example_gradients(self, w: ArrayLike) -> Array:
        """The gradient of each example's own loss; their mean is :meth:`gradient`.

        Parameters
        ----------
        w : array_like, shape (..., d)

        Returns
        -------
        ndarray, shape (..., N, d)
        """
        w = _arrays.points("w", w, self.dim)
        return np.asarray(np.einsum("nij,...j->...ni", self.hessians, w) + self.gradients)

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
            ``batch_size`` is not an integer from 1 to N.
        """
        size = checked_batch_size(batch_size, self.num_examples)
        gradients = self.per_example_gradients(self.optimum)
        centred = gradients - gradients.mean(axis=0)
        population = gram_matrix("the gradient noise", centred, self.num_examples)
        factor = batch_factor(size, self.num_examples, replacement)
        return NoiseCovariance.of(population * factor, (self, size, replacement))

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


def _symmetric_stack(hessians: ArrayLike) -> Array:
    # One matrix for all stays one: a view that repeats it.
    view = hessians if type(hessians) is np.ndarray and hessians.ndim == 3 and hessians.strides[0] == 0 else None
    raw = _arrays.finite_array("hessians", hessians) if view is None else view
    if raw.ndim != 3 or raw.shape[1] != raw.shape[2] or not raw.size:
        raise InvalidProblemError(f"hessians must have shape (N, d, d), got {raw.shape}")
    if view is not None:
        return np.broadcast_to(_arrays.symmetric("hessians[0]", raw[0]), raw.shape)
    return np.stack([_arrays.symmetric(f"hessians[{n}]", h) for n, h in enumerate(raw)])


def _frozen(a: Array) -> Array:
    a.flags.writeable = False
    return a
