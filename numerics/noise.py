r"""Gradient noise that depends on the weights: minibatches of real examples, and of Gaussian data.

Near or far from the optimum, a step's gradient is that of its own batch.  For quadratic losses of the examples the
covariance of its noise is a quadratic function of the weights; over weights of mean m and covariance S it averages to

.. math:: \mathrm E\, C(w) = C(m) + \mathcal V(S) ,

with a linear map :math:`\mathcal V` that keeps the cone of covariances.  Both are exact; nothing is expanded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from . import _arrays
from ._batches import batch_factor, checked_batch_size, draw_batches
from ._curvature_spread import LARGEST_TABLE, CurvatureSpread, curvature_spread
from ._noise_rounding import examples_rounding, outer_errors, unit_of_sums
from ._result import Frozen
from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples

__all__ = ["Draw", "GaussianMinibatchNoise", "GradientNoise", "MinibatchNoise", "WithAdditive"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """One independent batch for each of several runs: what it makes of their weights.

    Attributes
    ----------
    gradient : callable
        Maps weights, shape (count, d), to the gradient that each run's batch gives, same shape.
    curvature : callable
        Maps vectors, shape (count, d), to the batch's Hessian times them: the part of ``gradient`` that is linear.
    """

    gradient: Callable[[Array], Array]
    curvature: Callable[[Array], Array]


class GradientNoise(Frozen, ABC):
    """The noise of one step's gradient, exact at any weights.  Give it where a noise covariance is expected.

    Add a covariance, ``noise + C``, for further noise that is independent of it and of the weights.
    """

    __array_ufunc__ = None  # so that ``array + noise`` asks this class

    @property
    @abstractmethod
    def hessian(self) -> Array:
        """The Hessian of the mean loss that the steps see, shape (d, d)."""

    @property
    @abstractmethod
    def optimum(self) -> Array:
        """The minimiser of the mean loss that the steps see, shape (d,)."""

    @abstractmethod
    def at(self, weights: Array) -> Array:
        """The covariance of one step's gradient noise at given weights of shape (d,)."""

    @abstractmethod
    def multiplicative(self, spread: Array) -> Array:
        r"""What weights of this covariance about their mean add to the noise: :math:`\mathcal V(S)`, linear in S.

        Parameters
        ----------
        spread : ndarray, shape (d, d)
            Symmetric.

        Returns
        -------
        ndarray, shape (d, d)
            Exactly symmetric; positive semidefinite where ``spread`` is.
        """

    def rounding(self, mean: Array, spread: Array) -> Array:
        """Bounds on the errors of the entries of ``covariance(mean, spread)``, shape (d, d).

        Here those of a sum in which nothing cancels but between its entries; a noise whose terms do says so itself.

        Parameters
        ----------
        mean : ndarray, shape (d,)
        spread : ndarray, shape (d, d)
        """
        roots = np.sqrt(np.maximum(np.diagonal(self.at(mean) + self.multiplicative(spread)), 0.0))
        return np.asarray(unit_of_sums(1, self.dim) * np.outer(roots, roots))

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Independent batches for ``count`` runs."""

    @property
    def dim(self) -> int:
        """The number d of parameters."""
        return int(self.hessian.shape[0])

    @property
    def curvatures_semidefinite(self) -> bool:
        """Whether no step's own Hessian curves down; what is flat in the mean is then flat in every step."""
        return False

    def covariance(self, mean: ArrayLike | None = None, spread: ArrayLike | None = None) -> Array:
        """The covariance of one step's gradient noise, averaged over weights of given mean and covariance.

        Parameters
        ----------
        mean : array_like, shape (d,), optional
            The optimum by default.
        spread : array_like, shape (d, d), optional
            The covariance of the weights; 0 by default.

        Returns
        -------
        ndarray, shape (d, d)

        Raises
        ------
        InvalidProblemError
            If an array is not what it should be.
        """
        out = self.at(self.optimum if mean is None else _arrays.vector("mean", mean, dim=self.dim))
        if spread is not None:
            out = out + self.multiplicative(_arrays.positive_semidefinite("spread", spread, dim=self.dim))
        return out

    def __add__(self, other: ArrayLike) -> GradientNoise:
        if isinstance(other, GradientNoise):
            raise InvalidProblemError(
                "two gradient noises that depend on the weights do not add up: each is the noise of a whole loss. "
                "Add a covariance matrix, such as noise.label_noise(std) or langevin_noise(...)."
            )
        return WithAdditive(self, _arrays.positive_semidefinite("the added noise", other, dim=self.dim))

    __radd__ = __add__


@dataclass(frozen=True, eq=False, repr=False)
class MinibatchNoise(GradientNoise):
    r"""The noise of minibatches of a finite data set, exact at any weights.

    With the gradients :math:`u_n = \nabla \ell_n(w)` of the examples and :math:`p = 1/B` for batches drawn with
    replacement, :math:`p = (N-B)/(B(N-1))` for batches of distinct examples,

    .. math:: C(w) = p\,\mathrm{Cov}_n(u_n) , \qquad
              \mathcal V(S) = p\,\big[\tfrac1N \sum_n H_n S H_n - H S H\big] .

    Parameters
    ----------
    problem : LeastSquares or QuadraticExamples
    batch_size : int
        B, from 1 to N.
    replacement : bool, default True
        Whether the examples of one batch are drawn independently.  Without, they are distinct; the batches of
        different steps are independent either way (for epochs see `EpochNoise`).

    Raises
    ------
    InvalidProblemError
        If ``problem`` has no examples, or ``batch_size`` is not an integer from 1 to N.

    Notes
    -----
    One application of :math:`\mathcal V` costs :math:`O(N d^2)` for least squares (:math:`O(N d^3)` for
    general Hessians).

    References
    ----------
    mulayoff2024exact, Theorem 5 and Eq. 17 (the stationary law of plain SGD)

    Examples
    --------
    One input of 1 and one of 3: at weights that vary, the curvature itself is noisy.

    >>> from sgdcov.numerics import LeastSquares
    >>> noise = MinibatchNoise(LeastSquares([[1.0], [3.0]], [0.0, 0.0]), batch_size=1)
    >>> noise.covariance(), noise.covariance(spread=[[1.0]])
    (array([[0.]]), array([[16.]]))
    """

    problem: LeastSquares | QuadraticExamples
    batch_size: int
    replacement: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.problem, LeastSquares | QuadraticExamples):
            cell = ", whose cell() is one about its optimum" if hasattr(self.problem, "cell") else ""
            raise InvalidProblemError(
                f"minibatches need examples: a LeastSquares or QuadraticExamples problem, "
                f"got {type(self.problem).__name__}{cell}"
            )
        object.__setattr__(self, "batch_size", checked_batch_size(self.batch_size, self.problem.num_examples))
        object.__setattr__(self, "replacement", _arrays.flag("replacement", self.replacement))

    def __repr__(self) -> str:
        return f"MinibatchNoise({self.problem!r}, batch_size={self.batch_size}, replacement={self.replacement})"

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
        gradients = self.problem.per_example_gradients(weights)
        centred = gradients - gradients.mean(axis=0)
        return _symmetrised(centred.T @ centred) * (self.factor / len(centred))

    def multiplicative(self, spread: Array) -> Array:
        """What the spread of the weights adds to it."""
        if self.dim <= LARGEST_TABLE:
            return self._curvature_spread(spread) * self.factor
        if isinstance(self.problem, LeastSquares):
            X = self.problem.X
            forms = np.einsum("ni,ni->n", X @ spread, X)
            second = X.T @ (forms[:, None] * X) / len(X) - self._gram @ spread @ self._gram
        else:
            hessians = self.problem.hessians
            centred = (hessians[:1] if hessians.strides[0] == 0 else hessians) - self._gram
            second = np.mean(centred @ spread @ centred, axis=0)
        return _symmetrised(second) * self.factor

    def rounding(self, mean: Array, spread: Array) -> Array:
        """Bounds on the errors of the entries of ``covariance(mean, spread)``, shape (d, d)."""
        if isinstance(self.problem, LeastSquares):
            return super().rounding(mean, spread)  # laws use the factors of its data instead
        return examples_rounding(self.problem, mean, spread) * self.factor

    @cached_property
    def _curvature_spread(self) -> CurvatureSpread:
        problem = self.problem
        if isinstance(problem, QuadraticExamples):
            return curvature_spread(problem.num_examples, self.dim, lambda part: problem.hessians[part])
        X = problem.X
        return curvature_spread(len(X), self.dim, lambda part: X[part, :, None] * X[part, None, :])

    @cached_property
    def curvatures_semidefinite(self) -> bool:
        """Whether no example curves down, up to the rounding of its own Hessian."""
        if isinstance(self.problem, LeastSquares):
            return True
        hessians = self.problem.hessians[:1] if self.problem.hessians.strides[0] == 0 else self.problem.hessians
        values = np.linalg.eigvalsh(hessians)
        level = _arrays.ROUNDING * self.dim * np.finfo(np.float64).eps * np.max(np.abs(values), axis=1)
        diagonal = np.array([np.count_nonzero(h) == np.count_nonzero(np.diagonal(h)) for h in hessians])
        return bool(np.all(values[:, 0] >= -np.where(diagonal, 0.0, level)))

    @cached_property
    def _gram(self) -> Array:
        """The mean of the examples' own Hessians; weight decay in the loss is the same for all and is no noise."""
        if isinstance(self.problem, LeastSquares):
            return _symmetrised(self.problem.X.T @ self.problem.X / self.problem.num_examples)
        return self.problem.hessian

    def label_noise(self, std: float) -> Array:
        r"""The noise that fresh label noise adds at every draw, :math:`\sigma^2 X^\top X / (N B)`.

        It has no finite-population factor: the labels are drawn anew even where the examples are not.  With weights
        of the examples the noise of a label is weighted like its loss: :math:`\sigma^2 \sum_n a_n^2 x_n x_n^\top/(NB)`.

        Parameters
        ----------
        std : float
            Standard deviation of the noise added to a label, in its units.

        Returns
        -------
        ndarray, shape (d, d)
            Add it: ``noise + noise.label_noise(std)``.

        Raises
        ------
        InvalidProblemError
            If the problem has no labels, or ``std`` is negative.
        """
        if not isinstance(self.problem, LeastSquares):
            raise InvalidProblemError("only a LeastSquares problem has labels to add noise to")
        strength = _arrays.variance("std", std) / self.batch_size
        weights = self.problem.sample_weight
        if weights is None:
            return np.asarray(strength * self._gram)
        X = self.problem.X  # the weights' roots are in it
        return strength * _symmetrised(X.T @ (weights[:, None] * X) / len(X))

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Batches drawn from the examples."""
        problem = self.problem
        drawn = draw_batches(rng, count, self.batch_size, problem.num_examples, self.replacement)
        if isinstance(problem, LeastSquares):
            inputs, labels, l2 = problem.X[drawn], problem.y[drawn], problem.l2

            def apply(v: Array, targets: Array | float) -> Array:
                residuals = np.einsum("cbi,ci->cb", inputs, v) - targets
                return np.asarray(np.einsum("cb,cbi->ci", residuals, inputs) / self.batch_size + l2 * v)

            return Draw(lambda w: apply(w, labels), lambda v: apply(v, 0.0))
        hessians, slopes = problem.hessians[drawn].mean(axis=1), problem.gradients[drawn].mean(axis=1)

        def curvature(v: Array) -> Array:
            return np.asarray(np.einsum("cij,cj->ci", hessians, v))

        return Draw(lambda w: curvature(w) + slopes, curvature)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMinibatchNoise(GradientNoise):
    r"""The noise of minibatches of fresh Gaussian data, :math:`x \sim N(0, A)` and :math:`y = x^\top w^* + \sigma\xi`.

    By Isserlis' theorem, with :math:`\delta = w - w^*`,

    .. math:: C(w) = \frac1B \big[A \delta \delta^\top A + (\delta^\top A \delta) A + \sigma^2 A\big] , \qquad
              \mathcal V(S) = \frac1B \big[A S A + \mathrm{tr}(A S) A\big] .

    Parameters
    ----------
    covariance : array_like, shape (d, d)
        A, the covariance of the inputs, which is the Hessian; symmetric positive semidefinite.
    label_noise : float
        :math:`\sigma`, the standard deviation of the labels about the line, at least 0.
    batch_size : int
        B, at least 1.
    optimum : array_like, shape (d,), optional
        The weights that make the labels; 0 by default.

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.

    References
    ----------
    ziyin2022strength, Theorem 2 and Eq. 6

    Examples
    --------
    >>> GaussianMinibatchNoise([[2.0]], label_noise=3.0, batch_size=2).covariance(spread=[[1.0]])
    array([[13.]])
    """

    input_covariance: Array
    noise_std: float
    batch_size: int
    centre: Array

    def __init__(
        self, covariance: ArrayLike, label_noise: float, batch_size: int, optimum: ArrayLike | None = None
    ) -> None:
        checked = _arrays.positive_semidefinite("covariance", covariance)
        d = checked.shape[0]
        centre = np.zeros(d) if optimum is None else _arrays.vector("optimum", optimum, dim=d)
        checked.flags.writeable = centre.flags.writeable = False
        object.__setattr__(self, "input_covariance", checked)
        object.__setattr__(self, "noise_std", _arrays.nonnegative("label_noise", label_noise))
        object.__setattr__(self, "batch_size", checked_batch_size(batch_size, None))
        object.__setattr__(self, "centre", centre)

    def __repr__(self) -> str:
        return f"GaussianMinibatchNoise(dim={self.dim}, label_noise={self.noise_std:g}, batch_size={self.batch_size})"

    @property
    def curvatures_semidefinite(self) -> bool:
        """True: a batch's Hessian is that of inputs."""
        return True

    @property
    def hessian(self) -> Array:
        """The covariance of the inputs."""
        return self.input_covariance

    @property
    def optimum(self) -> Array:
        """The weights that make the labels."""
        return self.centre

    def at(self, weights: Array) -> Array:
        """The covariance of a batch's mean gradient at given weights."""
        A, delta = self.input_covariance, weights - self.centre
        along = A @ delta
        return np.asarray((np.outer(along, along) + (float(delta @ along) + self.noise_std**2) * A) / self.batch_size)

    def multiplicative(self, spread: Array) -> Array:
        """What the spread of the weights adds to it."""
        A = self.input_covariance
        return _symmetrised(A @ spread @ A + float(np.vdot(A, spread)) * A) / self.batch_size

    def rounding(self, mean: Array, spread: Array) -> Array:
        """Bounds on the errors of the entries of ``covariance(mean, spread)``, shape (d, d)."""
        A = np.abs(self.input_covariance)
        unit, gap = unit_of_sums(1, self.dim), mean - self.centre
        moved = unit * (np.abs(mean) + np.abs(self.centre)) if gap.any() else np.zeros(self.dim)
        along, reach = np.abs(self.input_covariance @ gap), A @ (np.abs(gap) + moved)
        lost = A @ moved + unit * reach
        risk = 2.0 * float(moved @ reach) + unit * (float((np.abs(gap) + moved) @ reach) + self.noise_std**2)
        feedback = A @ np.abs(spread) @ A + float(np.vdot(A, np.abs(spread))) * A
        return np.asarray((outer_errors(along[None], lost[None]) + risk * A + unit * feedback) / self.batch_size)

    @cached_property
    def _root(self) -> Array:
        """A factor R with R R' = A."""
        h, basis = np.linalg.eigh(self.input_covariance)
        kept = h > h.size * np.finfo(np.float64).eps * abs(h[-1])
        return np.asarray(basis[:, kept] * np.sqrt(h[kept]))

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Batches of fresh inputs and labels."""
        root = self._root
        inputs = rng.standard_normal((count, self.batch_size, root.shape[1])) @ root.T
        noise = self.noise_std * rng.standard_normal((count, self.batch_size))

        def apply(v: Array, targets: Array | float) -> Array:
            residuals = np.einsum("cbi,ci->cb", inputs, v) - targets
            return np.asarray(np.einsum("cb,cbi->ci", residuals, inputs) / self.batch_size)

        return Draw(lambda w: apply(w - self.centre, noise), lambda v: apply(v, 0.0))


@dataclass(frozen=True, eq=False, repr=False)
class WithAdditive(GradientNoise):
    """A gradient noise plus independent noise of a fixed covariance."""

    base: GradientNoise
    additive: Array

    def __repr__(self) -> str:
        return f"{self.base!r} + C"

    @property
    def curvatures_semidefinite(self) -> bool:
        """As for the noise below."""
        return self.base.curvatures_semidefinite

    @property
    def hessian(self) -> Array:
        """That of the loss below."""
        return self.base.hessian

    @property
    def optimum(self) -> Array:
        """That of the loss below."""
        return self.base.optimum

    def at(self, weights: Array) -> Array:
        """The sum of both."""
        return self.base.at(weights) + self.additive

    def rounding(self, mean: Array, spread: Array) -> Array:
        """That of the noise below, and of the sum."""
        return self.base.rounding(mean, spread) + unit_of_sums(1, self.dim) * np.abs(self.additive)

    def multiplicative(self, spread: Array) -> Array:
        """That of the noise below: what is added does not depend on the weights."""
        return self.base.multiplicative(spread)

    @cached_property
    def _root(self) -> Array:
        """A factor R with R R' = C, of full column rank."""
        c, basis = np.linalg.eigh(self.additive)
        kept = c > c.size * np.finfo(np.float64).eps * abs(c[-1])
        return np.asarray(basis[:, kept] * np.sqrt(c[kept]))

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Batches of the loss below, and Gaussian noise besides."""
        drawn = self.base.draw(rng, count)
        noise = rng.standard_normal((count, self._root.shape[1])) @ self._root.T
        return Draw(lambda w: drawn.gradient(w) + noise, drawn.curvature)


def _symmetrised(a: Array) -> Array:
    """The symmetric part, exactly symmetric: what remains of a symmetric product besides its rounding."""
    return np.asarray(0.5 * (a + a.T))
