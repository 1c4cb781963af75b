"""The problems: linear regression on scikit-learn's diabetes and digits, and a small one that does not commute at all.

From data X, y the Hessian is X^T X / N and the noise the covariance of a minibatch's gradient at the optimum, both of
the data themselves. The pixels of digits that are blank in every image are columns of zeros: flat directions that no
noise reaches.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from ...numerics import LeastSquares, Quadratic

__all__ = ["Problem", "load_problems"]

Array = NDArray[np.float64]

#: Examples per minibatch, drawn with replacement.
BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Problem:
    """A quadratic loss with its gradient noise, and the data it came from.

    Attributes
    ----------
    name, description : str
    quadratic : Quadratic
    data : LeastSquares or None
    batch_size : int or None
    """

    name: str
    description: str
    quadratic: Quadratic
    data: LeastSquares | None = None
    batch_size: int | None = None

    @functools.cached_property
    def live(self) -> NDArray[np.intp]:
        """Coordinates in which the Hessian is not exactly zero."""
        return np.flatnonzero(np.any(self.quadratic.hessian != 0.0, axis=1))

    @functools.cached_property
    def flat(self) -> NDArray[np.intp]:
        """Coordinates in which it is."""
        return np.setdiff1d(np.arange(self.quadratic.dim), self.live)

    @functools.cached_property
    def commutator(self) -> float:
        """``|HC - CH| / |HC|`` in the Frobenius norm: 0 if Hessian and noise commute."""
        product = self.quadratic.hessian @ self.quadratic.noise
        return float(np.linalg.norm(product - product.T) / np.linalg.norm(product))


@functools.cache
def load_problems() -> tuple[Problem, ...]:
    """Return the three problems; their data come with scikit-learn.

    Examples
    --------
    >>> [(problem.name, problem.quadratic.dim, len(problem.flat)) for problem in load_problems()]
    [('noncommuting', 5, 0), ('diabetes', 10, 0), ('digits', 64, 3)]
    """
    return (
        Problem("noncommuting", "made up: random rotations of H and C, each other's worst case", _noncommuting()),
        _regression("diabetes", *load_diabetes(return_X_y=True)),
        _regression("digits", *load_digits(return_X_y=True)),
    )


def _regression(name: str, X: Array, y: Array) -> Problem:
    data = LeastSquares(_standardised(X), _standardised(np.asarray(y, dtype=np.float64)[:, None])[:, 0])
    description = f"scikit-learn's {name}, {data.num_examples} examples, linear regression, batches of {BATCH_SIZE}"
    return Problem(name, description, data.quadratic(BATCH_SIZE), data, BATCH_SIZE)


def _standardised(X: Array) -> Array:
    """Columns of mean 0 and variance 1; constant ones exactly 0."""
    spread = X.std(axis=0)
    constant = np.ptp(X, axis=0) == 0.0
    return np.where(constant, 0.0, (X - X.mean(axis=0)) / np.where(constant, 1.0, spread))


def _noncommuting() -> Quadratic:
    rng = np.random.default_rng(20)
    first, second = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    hessian = (first * np.array([2.0, 1.2, 0.7, 0.4, 0.2])) @ first.T
    noise = (second * np.array([1.0, 0.3, 0.1, 0.03, 0.01])) @ second.T
    return Quadratic((hessian + hessian.T) / 2, (noise + noise.T) / 2, first @ np.ones(5))
