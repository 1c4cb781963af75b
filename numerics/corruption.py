r"""Noise that is injected on purpose: dropout and Gaussian noise on the inputs of a linear model, Langevin noise.

Each draw of an example sees corrupted inputs :math:`\tilde x = x + e`, the entries of e independent of each other, of
mean 0, with second, third and fourth moments :math:`m_2, m_3, m_4` that may depend on x.  The loss stays quadratic in
the weights, with the gradient :math:`\tilde u = \tilde x (\tilde x^\top w - y) + \lambda w`.  Averaged over e, its
Hessian gains a diagonal :math:`\mathrm{mean}_n D_n`, :math:`D_n = \mathrm{diag}(m_2)`, and the covariance of a batch's
mean is, by the law of total variance,

.. math:: C(w) = p\,\mathrm{Cov}_n\,\mathrm E[\tilde u | n] + \tfrac1B\,\mathrm{mean}_n\,\mathrm{Cov}(\tilde u | n) ,

p the factor of `MinibatchNoise`: corruptions are fresh at every draw, so that they have no finite-population factor.
With :math:`s = x^\top w - y`, :math:`\tau = w^\top D w` and products of vectors by entries,

.. math::

   \mathrm{Cov}(\tilde u | n) = s^2 D + s\,[x (Dw)^\top + Dw\,x^\top] + \tau\,x x^\top + 2 s\,\mathrm{diag}(m_3 w)
   + x (m_3 w^2)^\top + (m_3 w^2)\,x^\top + Dw\,(Dw)^\top + \mathrm{diag}\big(m_2 \tau + (m_4 - 3 m_2^2)\,w^2\big) .
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import HyperparameterError, InvalidProblemError, ScaleError
from ..theory import Optimizer, recursion
from . import _arrays
from ._batches import batch_factor, checked_batch_size, draw_batches
from ._curvature_spread import LARGEST_TABLE, CurvatureSpread, curvature_spread
from ._noise_rounding import minimiser_rounding, outer_errors, unit_of_sums
from .noise import Draw, GradientNoise
from .problems import LeastSquares

__all__ = ["DropoutNoise", "InputNoise", "langevin_noise"]

Array: TypeAlias = NDArray[np.float64]

#: A (d, d) array of 8 GiB.
LARGEST_DIM = 2**15


class CorruptedInputs(GradientNoise):
    """Minibatches of least squares whose inputs are corrupted afresh at every draw."""

    problem: LeastSquares
    batch_size: int
    replacement: bool

    @property
    @abstractmethod
    def moments(self) -> tuple[Array, Array, Array]:
        """The second, third and fourth central moments of every input, shape (N, d) each."""

    @property
    @abstractmethod
    def averaged(self) -> LeastSquares:
        """The loss averaged over the corruptions, up to a constant: least squares again."""

    @abstractmethod
    def corrupt(self, inputs: Array, rng: np.random.Generator) -> Array:
        """Inputs of any shape, each corrupted by itself."""

    def _check(self) -> None:
        if not isinstance(self.problem, LeastSquares):
            raise InvalidProblemError(
                f"corrupted inputs need a LeastSquares problem, which has inputs; got {type(self.problem).__name__}"
            )
        object.__setattr__(self, "batch_size", checked_batch_size(self.batch_size, self.problem.num_examples))
        object.__setattr__(self, "replacement", _arrays.flag("replacement", self.replacement))

    @property
    def hessian(self) -> Array:
        """The Hessian of the averaged loss: that of the problem and the curvature that the corruption adds."""
        return self.averaged.hessian

    @property
    def optimum(self) -> Array:
        """The minimiser of the averaged loss, which is a ridge solution."""
        return self.averaged.optimum

    @property
    def factor(self) -> float:
        """The factor p by which averaging over a batch shrinks what differs between examples."""
        return batch_factor(self.batch_size, self.problem.num_examples, self.replacement)

    def at(self, weights: Array) -> Array:
        """The covariance of a batch's mean gradient at given weights."""
        X, (m2, m3, _) = self.problem.X, self.moments
        s = X @ weights - self.problem.y
        means = s[:, None] * X + m2 * weights
        centred = means - means.mean(axis=0)
        return self._mixed(centred.T @ centred, _within(X, s, weights, (m2, m3), self._excess))

    def multiplicative(self, spread: Array) -> Array:
        """What the spread of the weights adds to it."""
        X, (m2, m3, _) = self.problem.X, self.moments
        if self.dim <= LARGEST_TABLE:
            between = self._curvature_spread(spread) * len(X)
        else:
            between = _between_spread(X, spread, m2)
            between -= len(X) * (self._mean_curvature @ spread @ self._mean_curvature)
        return self._mixed(between, _within_spread(X, spread, (m2, m3), self._excess))

    def rounding(self, mean: Array, spread: Array) -> Array:
        """Bounds on the errors of the entries of ``covariance(mean, spread)``: every term with the size it has."""
        X, y, w = np.abs(self.problem.X), np.abs(self.problem.y), np.abs(mean)
        m2, m3, m4 = (np.abs(m) for m in self.moments)
        excess = np.sum(m4 + 3.0 * m2**2, axis=0)
        unit, curvature = unit_of_sums(*X.shape), X.T @ X / len(X) + np.diag(m2.mean(axis=0) + self.problem.l2)
        dw = unit * w + minimiser_rounding(self.hessian, unit * (curvature @ w + X.T @ y / len(X)))
        s = self.problem.X @ mean - self.problem.y
        ds = unit * (X @ w + y) + X @ dw
        means = s[:, None] * self.problem.X + self.moments[0] * mean
        errors = ds[:, None] * X + m2 * dw + unit * (np.abs(s)[:, None] * X + m2 * w)
        between = outer_errors(means - means.mean(axis=0), errors + errors.mean(axis=0))
        # What a polynomial with positive coefficients gains if its arguments grow by their errors.
        sizes = _within(X, np.abs(s), w, (m2, m3), excess)
        grown = _within(X, np.abs(s) + ds, w + dw, (m2, m3), excess)
        within = grown - sizes + unit * grown
        absolute = np.abs(spread)
        within += unit * _within_spread(X, absolute, (m2, m3), excess)
        between += unit * (_between_spread(X, absolute, m2) + len(X) * (curvature @ absolute @ curvature))
        return self._mixed(between if len(X) > 1 else 0.0 * between, within)  # one example does not differ from itself

    def _mixed(self, between: Array, within: Array) -> Array:
        """The covariance of a batch from sums over the examples."""
        total = self.factor * between + within / self.batch_size
        return np.asarray(0.5 * (total + total.T) / self.problem.num_examples)

    @property
    def curvatures_semidefinite(self) -> bool:
        """True: a batch's Hessian is that of inputs."""
        return True

    @cached_property
    def _curvature_spread(self) -> CurvatureSpread:
        """Of the examples' Hessians averaged over the corruptions."""
        X, m2, diagonal = self.problem.X, self.moments[0], np.eye(self.dim)
        return curvature_spread(
            len(X), self.dim, lambda part: X[part, :, None] * X[part, None, :] + m2[part, :, None] * diagonal
        )

    @cached_property
    def _mean_curvature(self) -> Array:
        """The mean Hessian without the weight decay of the loss, which is the same for all."""
        X, (m2, _, _) = self.problem.X, self.moments
        return np.asarray(X.T @ X / len(X) + np.diag(m2.mean(axis=0)))

    @cached_property
    def _excess(self) -> Array:
        """The sum of what the fourth moments have beyond Gaussian ones."""
        m2, _, m4 = self.moments
        return np.asarray(np.sum(m4 - 3.0 * m2**2, axis=0))

    def label_noise(self, std: float) -> Array:
        r"""The noise that fresh label noise adds at every draw: :math:`\sigma^2\,\mathrm E \tilde x \tilde x^\top / B`.

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
            If ``std`` is negative, or the examples have weights.
        """
        if self.problem.sample_weight is not None:
            raise InvalidProblemError(
                "label noise on corrupted inputs is not implemented for examples with weights; multiply the rows of X "
                "and y by the roots of the weights yourself if the noise is to be of the scaled labels"
            )
        curvature = self._mean_curvature
        return np.asarray(_arrays.variance("std", std) / self.batch_size * 0.5 * (curvature + curvature.T))

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Batches drawn from the examples, with inputs corrupted afresh."""
        problem = self.problem
        drawn = draw_batches(rng, count, self.batch_size, problem.num_examples, self.replacement)
        inputs, labels, l2 = self.corrupt(problem.X[drawn], rng), problem.y[drawn], problem.l2

        def apply(v: Array, targets: Array | float) -> Array:
            residuals = np.einsum("cbi,ci->cb", inputs, v) - targets
            return np.asarray(np.einsum("cb,cbi->ci", residuals, inputs) / self.batch_size + l2 * v)

        return Draw(lambda w: apply(w, labels), lambda v: apply(v, 0.0))


@dataclass(frozen=True, eq=False, repr=False)
class DropoutNoise(CorruptedInputs):
    r"""The noise of dropout on the inputs of a linear model, together with that of its minibatches; exact.

    Every entry of every input that is drawn is 0 with probability q and divided by 1 - q otherwise (inverted dropout,
    as ``torch.nn.Dropout(p=q)``), which leaves its mean and adds curvature:

    .. math:: H = A + \tfrac{q}{1-q}\,\mathrm{diag} A + \lambda I , \qquad A = X^\top X / N .

    Parameters
    ----------
    problem : LeastSquares
    rate : float
        q, the probability of dropping an entry; at least 0, below 1.
    batch_size : int
        B, from 1 to N.
    replacement : bool, default True
        Whether the examples of a batch are drawn independently.  Masks are drawn afresh for every draw of every step.

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.

    Notes
    -----
    Each term costs :math:`O(N d^2)`.  No stochastic differential equation is involved.

    References
    ----------
    srivastava2014

    Examples
    --------
    One example with x = 1, y = 1: half the masks give the input 2, half give 0, so the curvature doubles.

    >>> from sgdcov.numerics import LeastSquares
    >>> noise = DropoutNoise(LeastSquares([[1.0]], [1.0]), rate=0.5, batch_size=1)
    >>> noise.hessian, noise.optimum, noise.covariance()
    (array([[2.]]), array([0.5]), array([[0.]]))
    >>> noise.covariance(mean=[1.0])
    array([[1.]])
    """

    problem: LeastSquares
    rate: float
    batch_size: int
    replacement: bool = True

    def __post_init__(self) -> None:
        self._check()
        rate = _arrays.nonnegative("rate", self.rate)
        if rate >= 1.0:
            raise InvalidProblemError(f"rate must be the probability of dropping an entry, below 1, got {rate:.6g}")
        object.__setattr__(self, "rate", rate)

    def __repr__(self) -> str:
        return (
            f"DropoutNoise({self.problem!r}, rate={self.rate:g}, batch_size={self.batch_size}, "
            f"replacement={self.replacement})"
        )

    @cached_property
    def moments(self) -> tuple[Array, Array, Array]:
        r"""Central moments of every input: :math:`\frac{q}{1-q} x^2` and so on."""
        q, keep, X = self.rate, 1.0 - self.rate, self.problem.X
        return (
            q / keep * X**2,
            q * (2.0 * q - 1.0) / keep**2 * X**3,
            q * (q**3 + keep**3) / keep**3 * X**4,
        )

    @cached_property
    def averaged(self) -> LeastSquares:
        """The averaged loss: d further examples with one input each carry the curvature that dropout adds."""
        X, y = self.problem.X, self.problem.y
        if not self.rate:
            return self.problem
        added = np.diag(np.sqrt(self.rate / (1.0 - self.rate)) * np.linalg.norm(X, axis=0))
        scale = np.sqrt((len(X) + len(added)) / len(X))
        return LeastSquares(
            scale * np.vstack([X, added]), scale * np.concatenate([y, np.zeros(len(added))]), self.problem.l2
        )

    def corrupt(self, inputs: Array, rng: np.random.Generator) -> Array:
        """Entries dropped with the rate, the others divided by what is kept on average."""
        kept = rng.random(inputs.shape) >= self.rate
        return np.asarray(inputs * kept / (1.0 - self.rate))


@dataclass(frozen=True, eq=False, repr=False)
class InputNoise(CorruptedInputs):
    r"""The noise of Gaussian noise on the inputs of a linear model, together with that of its minibatches; exact.

    Each entry of every input that is drawn gets independent noise :math:`N(0, \sigma^2)`, which adds the curvature
    :math:`\sigma^2 I` of a ridge penalty (``bishop1995``, for small noise; here for any) and noise that depends on the
    weights.

    Parameters
    ----------
    problem : LeastSquares
    std : float
        :math:`\sigma`, the standard deviation of the noise on an entry, at least 0.
    batch_size : int
        B, from 1 to N.
    replacement : bool, default True
        Whether the examples of a batch are drawn independently.  The noise is fresh for every draw of every step.

    Raises
    ------
    InvalidProblemError
        If an argument is not what it should be.

    References
    ----------
    bishop1995

    Examples
    --------
    >>> from sgdcov.numerics import LeastSquares
    >>> noise = InputNoise(LeastSquares([[1.0]], [2.0]), std=1.0, batch_size=1)
    >>> noise.hessian, noise.optimum
    (array([[2.]]), array([1.]))
    >>> noise.covariance()  # the variance of z (z - 2) for z = 1 + N(0, 1), that is of N(0, 1)**2 - 1
    array([[2.]])
    """

    problem: LeastSquares
    std: float
    batch_size: int
    replacement: bool = True

    def __post_init__(self) -> None:
        self._check()
        if self.problem.sample_weight is not None:
            raise InvalidProblemError(
                "input noise is not implemented for examples with weights: noise on the rows scaled by their weights "
                "is not noise on the inputs"
            )
        object.__setattr__(self, "std", _arrays.nonnegative("std", self.std))
        _arrays.variance("std", self.std, power=4)  # its fourth moment must be a number

    def __repr__(self) -> str:
        return (
            f"InputNoise({self.problem!r}, std={self.std:g}, batch_size={self.batch_size}, "
            f"replacement={self.replacement})"
        )

    @cached_property
    def moments(self) -> tuple[Array, Array, Array]:
        r"""Central moments of every input: :math:`\sigma^2, 0, 3 \sigma^4`."""
        shape = self.problem.X.shape
        second, third, fourth = (np.broadcast_to(m, shape) for m in (self.std**2, 0.0, 3.0 * self.std**4))
        return second, third, fourth

    @cached_property
    def averaged(self) -> LeastSquares:
        """The averaged loss: ridge regression."""
        return LeastSquares(self.problem.X, self.problem.y, self.problem.l2 + self.std**2)

    def corrupt(self, inputs: Array, rng: np.random.Generator) -> Array:
        """Entries with Gaussian noise added."""
        return np.asarray(inputs + self.std * rng.standard_normal(inputs.shape))


def langevin_noise(optimizer: Optimizer, dim: int, inverse_temperature: float) -> Array:
    r"""The covariance of Langevin noise as gradient noise, :math:`\frac{2}{\beta\,lr} I`.

    SGLD adds :math:`\sqrt{2\,lr/\beta}\,\xi` to the weights, which for ``sgd`` is gradient noise of this covariance: at
    a small learning rate, and without other noise, the stationary law tends to :math:`N(w^*, H^{-1}/\beta)`.

    Parameters
    ----------
    optimizer : Optimizer
        With its ``lr`` bound.
    dim : int
        The number of parameters.
    inverse_temperature : float
        :math:`\beta > 0`.

    Returns
    -------
    ndarray, shape (d, d)
        Give it as the noise, or add it to one.

    Raises
    ------
    HyperparameterError
        If the optimizer has no learning rate bound.
    InvalidProblemError
        If ``dim`` or ``inverse_temperature`` is not positive.

    Notes
    -----
    With momentum it matters where the noise enters.  Here it enters the *gradient*, and goes through the momentum
    buffer as every gradient does: the law of ``heavy_ball`` is then that of its effective learning rate
    ``lr (1 - dampening) / (1 - momentum)``, and so its temperature is higher than :math:`1/\beta` by the factor
    ``(1 - dampening) / (1 - momentum)``; divide by that factor for a law of inverse temperature :math:`\beta`.  Noise
    added to the weights after the momentum step is another process, with another law.

    References
    ----------
    welling2011

    Examples
    --------
    >>> from sgdcov.theory import sgd
    >>> langevin_noise(sgd(lr=0.1), dim=2, inverse_temperature=10.0)
    array([[2., 0.],
           [0., 2.]])
    """
    optimizer = recursion(optimizer).optimizer
    if "lr" not in optimizer.values:
        raise HyperparameterError(f"Langevin noise needs a learning rate, and {optimizer!r} has none bound", name="lr")
    lr = float(optimizer.values["lr"])
    beta = _arrays.nonnegative("inverse_temperature", inverse_temperature)
    if not beta > 0.0:
        raise InvalidProblemError("inverse_temperature must be positive, got 0: the noise would be infinite")
    with np.errstate(over="ignore", divide="ignore"):
        strength = float(2.0 / np.float64(beta) / np.float64(lr))
    if not 0.0 < strength < np.inf:
        raise ScaleError(
            f"Langevin noise of inverse temperature {beta:.3g} at lr={lr:.3g} has a variance that double precision "
            f"does not hold; rescale the loss"
        )
    return np.asarray(strength * np.eye(_arrays.whole_number("dim", dim, least=1, most=LARGEST_DIM)))


def _within(X: Array, s: Array, weights: Array, moments: tuple[Array, Array], excess: Array) -> Array:
    """The sum over the examples of the covariance that corruption makes at given weights, s the residuals."""
    (m2, m3), carried = moments, moments[0] * weights
    tau = m2 @ weights**2
    out = X.T @ (tau[:, None] * X) + carried.T @ carried
    out += _doubled(X.T @ (s[:, None] * carried + m3 * weights**2))
    out[np.diag_indices_from(out)] += s**2 @ m2 + 2.0 * (s @ m3) * weights + tau @ m2 + excess * weights**2
    return out


def _within_spread(X: Array, spread: Array, moments: tuple[Array, Array], excess: Array) -> Array:
    """What a spread of the weights adds to that."""
    (m2, m3), moved, variances = moments, X @ spread, np.diagonal(spread)
    tau, forms = m2 @ variances, np.einsum("ni,ni->n", moved, X)
    out = X.T @ (tau[:, None] * X) + _carried(X, spread, m2) + _doubled((X.T @ m3) * variances)
    diagonal = forms @ m2 + 2.0 * np.einsum("ni,ni->i", m3, moved) + tau @ m2 + excess * variances
    out[np.diag_indices_from(out)] += diagonal
    return np.asarray(out)


def _between_spread(X: Array, spread: Array, m2: Array) -> Array:
    """The sum over the examples of ``H_n spread H_n``, H_n their Hessians averaged over the corruptions."""
    forms = np.einsum("ni,ni->n", X @ spread, X)
    return np.asarray(X.T @ (forms[:, None] * X) + _carried(X, spread, m2))


def _carried(X: Array, spread: Array, m2: Array) -> Array:
    return np.asarray(_doubled(X.T @ (m2 * (X @ spread))) + spread * (m2.T @ m2))


def _doubled(a: Array) -> Array:
    """A matrix plus its transpose."""
    return np.asarray(a + a.T)
