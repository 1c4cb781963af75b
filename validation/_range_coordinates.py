r"""The coordinates in which a linearised network moves, and what its outputs are in them.

With V an orthonormal basis of the range of :math:`J^\top`, weights are :math:`w = V a + c`, and outputs
:math:`f(x; w_0) + J(x) V (a - a_0)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..numerics import StationaryCovariance, TransientCovariance
from ._functional import FlatModel
from ._jacobian import COLUMNS_AT_ONCE, Range, jacobian
from ._tensors import as_array, checked_inputs

__all__ = ["RangeCoordinates"]

Array: TypeAlias = NDArray[np.float64]


class RangeCoordinates:
    """What a linearised network knows of its weights; `LinearizedNetwork` sets it up."""

    _flat: FlatModel
    _range: Range
    _offsets: torch.Tensor
    _jacobian_bytes: int
    x: torch.Tensor

    @property
    def parameters(self) -> int:
        """The number P of parameters."""
        return self._flat.size

    @property
    def num_examples(self) -> int:
        """The number N of examples."""
        return len(self.x)

    @property
    def outputs(self) -> int:
        """The number K of outputs of an example."""
        return int(self._offsets.shape[1])

    @property
    def rank(self) -> int:
        """The dimension r of the range, in which everything that is random happens."""
        return self._range.rank

    @property
    def singular_values(self) -> Array:
        """Those of J that count, shape (r,), falling."""
        return as_array(self._range.singular_values)

    @property
    def explicit(self) -> bool:
        """Whether the Jacobian is held as a matrix."""
        return self._range.right is not None

    @cached_property
    def start(self) -> Array:
        """The coordinates of the weights that the model has, shape (r,)."""
        return as_array(self._range.coordinates(self._flat.start.unsqueeze(0)).squeeze(0))

    @cached_property
    def complement(self) -> Array:
        """What of these weights is outside of the range, shape (P,): nothing but weight decay moves it."""
        start = self._flat.start
        return as_array(start - self._range.weights(self._range.coordinates(start.unsqueeze(0))).squeeze(0))

    def coordinates(self, weights: ArrayLike) -> Array:
        """The coordinates of weights in the range.

        Parameters
        ----------
        weights : array_like, shape (..., P)

        Returns
        -------
        ndarray, shape (..., r)
        """
        return self._mapped(weights, self.parameters, self._range.coordinates)

    def weights(self, coordinates: ArrayLike) -> Array:
        """The weights in the range that have these coordinates; nothing of the complement is in them.

        Parameters
        ----------
        coordinates : array_like, shape (..., r)

        Returns
        -------
        ndarray, shape (..., P)
        """
        return self._mapped(coordinates, self.rank, self._range.weights)

    def _mapped(self, a: ArrayLike, size: int, how: Callable[[torch.Tensor], torch.Tensor]) -> Array:
        given = np.asarray(a, dtype=np.float64)
        if given.ndim == 0 or given.shape[-1] != size:
            raise InvalidProblemError(f"expected an array of shape (..., {size}), got {given.shape}.")
        rows = torch.tensor(given.reshape(-1, size), device=self.x.device)
        out = as_array(how(rows))
        return out.reshape(*given.shape[:-1], out.shape[-1])

    @cached_property
    def _design(self) -> tuple[Array, Array]:
        """Features (N, K, r) and the outputs at a = 0 (N, K)."""
        features = as_array(self._range.features).reshape(self.num_examples, self.outputs, self.rank)
        return features, as_array(self._offsets) - features @ self.start

    def features(self, x: torch.Tensor | ArrayLike | None = None) -> Array:
        """The Jacobian of outputs in the coordinates of the range.

        Parameters
        ----------
        x : array_like, shape (n, ...), optional
            Any inputs; those it is linearised on by default.

        Returns
        -------
        ndarray, shape (n, K, r)
        """
        if x is None:
            return self._design[0]
        inputs = self._flat.fitting(checked_inputs(x, self.x.device))
        other = jacobian(self._flat, inputs, self.outputs, self._jacobian_bytes)
        if self._range.right is not None:
            found = other.times(self._range.right)
        else:
            roots = self._range.left / self._range.singular_values
            found = torch.cat(
                [
                    other.times(self._range.jacobian.transposed_times(part))
                    for part in torch.split(roots, COLUMNS_AT_ONCE, dim=1)
                ],
                dim=1,
            )
        return as_array(found).reshape(len(inputs), self.outputs, self.rank)

    def predictions(self, coordinates: ArrayLike, x: torch.Tensor | ArrayLike | None = None) -> Array:
        """The linearised network's outputs, with the complement of the weights as the model has it.

        Parameters
        ----------
        coordinates : array_like, shape (..., r)
        x : array_like, shape (n, ...), optional
            Those it is linearised on by default.

        Returns
        -------
        ndarray, shape (..., n, K)
        """
        given = np.asarray(coordinates, dtype=np.float64)
        with torch.no_grad():
            base = self._offsets
            if x is not None:
                base = self._flat(self._flat.start, self._flat.fitting(checked_inputs(x, self.x.device)))
        return np.asarray(as_array(base) + np.einsum("nkr,...r->...nk", self.features(x), given - self.start))

    def function_covariance(
        self,
        covariance: ArrayLike | StationaryCovariance | TransientCovariance,
        x: torch.Tensor | ArrayLike | None = None,
    ) -> Array:
        r"""The covariance of outputs, :math:`J S J^\top`.

        Parameters
        ----------
        covariance : array_like, shape (r, r), or a law of numerics
            Of the weights in the coordinates of the range.
        x : array_like, shape (n, ...), optional
            Those it is linearised on by default.

        Returns
        -------
        ndarray, shape (n*K, n*K)
        """
        law = isinstance(covariance, StationaryCovariance | TransientCovariance)
        spread = np.asarray(covariance.value if law else covariance, dtype=np.float64)  # type: ignore[union-attr]
        if spread.shape != (self.rank, self.rank):
            raise InvalidProblemError(f"covariance must have shape {(self.rank, self.rank)}, got {spread.shape}.")
        rows = self.features(x).reshape(-1, self.rank)
        found = rows @ spread @ rows.T
        return np.asarray(0.5 * (found + found.T))
