r"""Adversarial random-features regression: a network whose first layer is random and stays as it is.

The model is :math:`f(x) = w^\top \phi(W x)`, linear in the weights w that are trained.  The attack moves the features
within a ball, :math:`|\delta|_p \le \epsilon`, which has the closed form of adversarial regression on them.  An attack
on the inputs, linearised, would have the reach :math:`\epsilon |J(x)^\top w|`, :math:`J = \partial \phi / \partial x`,
another norm for every example; `RandomFeatures.input_reach` tells how the two compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _arrays
from .adversarial import AdversarialLeastSquares

__all__ = ["RandomFeatures", "random_features"]

Array: TypeAlias = NDArray[np.float64]
Activation: TypeAlias = Literal["relu", "tanh", "linear"]
#: The longest side of a first layer.
LARGEST = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class RandomFeatures:
    r"""The features :math:`\phi(W x) / \sqrt k` of a fixed first layer W with k rows.

    Parameters
    ----------
    first_layer : array_like, shape (k, D)
        W, one feature a row; see `random_features`.
    activation : {"relu", "tanh", "linear"}

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.

    References
    ----------
    hassani2024

    Examples
    --------
    >>> features = RandomFeatures([[1.0, 0.0], [0.0, -1.0]], "relu")
    >>> features([[3.0, 4.0]]) * 2**0.5
    array([[3., 0.]])
    """

    first_layer: Array
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        layer = _arrays.matrix("first_layer", self.first_layer)
        layer.flags.writeable = False
        object.__setattr__(self, "first_layer", layer)
        _arrays.choice("activation", self.activation, get_args(Activation))

    def __repr__(self) -> str:
        return f"RandomFeatures({self.num_features} of {self.input_dim} inputs, {self.activation!r})"

    @property
    def num_features(self) -> int:
        """The number k of features, which is the number of weights."""
        return int(self.first_layer.shape[0])

    @property
    def input_dim(self) -> int:
        """The number D of inputs."""
        return int(self.first_layer.shape[1])

    def __call__(self, inputs: ArrayLike) -> Array:
        """The features of some inputs.

        Parameters
        ----------
        inputs : array_like, shape (..., D)

        Returns
        -------
        ndarray, shape (..., k)
        """
        z = _arrays.points("inputs", inputs, self.input_dim) @ self.first_layer.T
        value = np.maximum(z, 0.0) if self.activation == "relu" else np.tanh(z) if self.activation == "tanh" else z
        return np.asarray(value / np.sqrt(self.num_features))

    def input_reach(self, inputs: ArrayLike, w: ArrayLike) -> Array:
        r"""How far the output moves per unit of the input, :math:`|J(x)^\top w|_2`, to first order.

        Divided by :math:`|w|_2`, it is by what an attack's radius in the inputs is to be multiplied to become one in
        the features that reaches as far.

        Parameters
        ----------
        inputs : array_like, shape (N, D)
        w : array_like, shape (k,)

        Returns
        -------
        ndarray, shape (N,)
        """
        z = _arrays.matrix("inputs", inputs, columns=self.input_dim) @ self.first_layer.T
        weights = _arrays.vector("w", w, dim=self.num_features)
        relu, tanh = self.activation == "relu", self.activation == "tanh"
        slopes = np.where(z > 0, 1.0, 0.0) if relu else 1.0 - np.tanh(z) ** 2 if tanh else np.ones_like(z)
        return np.asarray(np.linalg.norm((slopes * weights) @ self.first_layer, axis=1) / np.sqrt(self.num_features))

    def regression(
        self,
        inputs: ArrayLike,
        y: ArrayLike,
        radius: float,
        norm: float = 2,
        l2: float = 0.0,
        sample_weight: ArrayLike | None = None,
    ) -> AdversarialLeastSquares:
        """The training of the top layer against attacks on the features, a problem like any other.

        Parameters
        ----------
        inputs : array_like, shape (N, D)
        y : array_like, shape (N,)
        radius : float
            Of the attack, in the features.
        norm : float, default 2
            The order of the attack's norm.
        l2 : float, default 0
        sample_weight : array_like, shape (N,), optional

        Returns
        -------
        AdversarialLeastSquares
            In the weights of the top layer.
        """
        design = self(_arrays.matrix("inputs", inputs, columns=self.input_dim))
        weights = None if sample_weight is None else _arrays.vector("sample_weight", sample_weight)
        return AdversarialLeastSquares(design, _arrays.vector("y", y), radius, norm, l2, weights)


def random_features(
    num_features: int, input_dim: int, rng: np.random.Generator | int, activation: Activation = "relu"
) -> RandomFeatures:
    """Random features, with rows of the first layer uniform on the unit sphere.

    Parameters
    ----------
    num_features : int
        k, at least 1.
    input_dim : int
        D, at least 1.
    rng : numpy.random.Generator or int
    activation : {"relu", "tanh", "linear"}

    Returns
    -------
    RandomFeatures

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.

    References
    ----------
    hassani2024

    Examples
    --------
    >>> random_features(100, 20, rng=0)
    RandomFeatures(100 of 20 inputs, 'relu')
    """
    k = _arrays.whole_number("num_features", num_features, least=1, most=LARGEST)
    d = _arrays.whole_number("input_dim", input_dim, least=1, most=LARGEST)
    rows = _arrays.random_generator(rng).standard_normal((k, d))
    return RandomFeatures(rows / np.linalg.norm(rows, axis=1, keepdims=True), activation)
