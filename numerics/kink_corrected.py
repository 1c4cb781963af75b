r"""The stationary law of adversarial regression with the curvature of the kinks in it.

The curvature and the noise that an ensemble sees are averages over its own law, which they determine:

.. math:: H = \mathrm E\,\nabla^2 L(w) , \quad C = \mathrm E\,C(w) , \quad \mathrm E\,\nabla L(w) = 0 , \qquad
          w \sim N(m, S) , \quad S = \text{the stationary covariance for } H, C .

Kinks are part of the first average (`AdversarialLeastSquares.smoothed_hessian`): where the minimiser rests on residuals
of 0, as it does on most finite data, this is the only Hessian that there is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import AccuracyWarning, InvalidProblemError, NonStationaryError, UnstableError
from ..theory import Optimizer, recursion
from . import _arrays
from ._batches import batch_factor, checked_batch_size
from ._data_directions import gram_matrix
from ._forward_error import warn_if_inaccurate
from ._result import ArrayResult
from ._spectral_law import CAUSE
from .adversarial import AdversarialLeastSquares
from .mean import stationary_mean
from .stationary import StationaryCovariance, stationary_covariance

__all__ = ["KinkCorrectedCovariance", "kink_corrected_covariance"]

Array: TypeAlias = NDArray[np.float64]

#: How often the first guess of the covariance may be enlarged until its curvature is one the optimizer can follow.
_ENLARGEMENTS = 60
#: From this iteration on only half of the change is made.
_UNDAMPED = 25
_MEAN_STEPS = 60
#: A covariance so many times the squared size of the weights is on its way to infinity.
_UNBOUNDED = 1e3


@dataclass(frozen=True, eq=False, repr=False)
class KinkCorrectedCovariance(ArrayResult):
    """A self-consistent stationary law.  An array, the covariance, wherever one is expected.

    Attributes
    ----------
    law : StationaryCovariance
        The stationary law for `hessian` and `noise`, with all its slots.
    mean : ndarray, shape (d,)
        Where the iterates sit on average; not quite the optimum, since the loss is not symmetric about it.
    hessian : ndarray, shape (d, d)
        The Hessian of the mean loss, averaged over the law.
    noise : ndarray, shape (d, d)
        The covariance of one step's gradient noise, averaged over the law.
    excess_risk : float
        The mean loss over the law, above the minimum.
    iterations : int
    change : float
        The relative change of mean and covariance in the last iteration.
    error : float
        A bound, to first order, on the relative error of the covariance as the fixed point that it is meant to be: that
        of the law for `hessian` and `noise`, the rounding of these averages times its condition, and what the iteration
        has left, by the rate at which its changes shrink.  What the law's being Gaussian is wrong by is no part of it.
    """

    law: StationaryCovariance
    mean: Array
    hessian: Array
    noise: Array
    excess_risk: float
    iterations: int
    change: float
    error: float

    @property
    def value(self) -> Array:
        """The covariance of the weights."""
        return self.law.value

    def __repr__(self) -> str:
        return (
            f"KinkCorrectedCovariance({self.law.optimizer!r}, shape={self.value.shape}, "
            f"iterations={self.iterations}, change={self.change:.2g})"
        )


def kink_corrected_covariance(
    optimizer: Optimizer,
    problem: AdversarialLeastSquares,
    batch_size: int,
    *,
    replacement: bool = True,
    tolerance: float = 1e-10,
    max_iterations: int = 500,
) -> KinkCorrectedCovariance:
    r"""The stationary law whose curvature and noise are averaged over itself, kinks included.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : AdversarialLeastSquares
    batch_size : int
        B, from 1 to N.
    replacement : bool, default True
        Whether the examples of a batch are drawn independently, or are distinct.
    tolerance : float, default 1e-10
        The relative change of mean and covariance at which the iteration ends.
    max_iterations : int, default 500

    Returns
    -------
    KinkCorrectedCovariance
        An array wherever one is expected.

    Raises
    ------
    UnstableError
        If the curvature is too large for the optimizer whatever the covariance.
    NonStationaryError
        If the covariance grows without bound, or the iteration does not settle.
    InvalidProblemError
        If the optimum rests on a kink of the norm, which no covariance averages: see `AdversarialLeastSquares.face`.

    Notes
    -----
    At radius 0 it is the exact second-order law under minibatches.  Otherwise it is exact but for two things: the law
    is taken to be Gaussian, and averages are those of `smoothed_hessian` and `smoothed_noise`.  The first holds to
    leading order in the learning rate where the optimum is on no kink, and well where many kinks lie within the spread.

    A residual that the minimiser holds on its kink takes the curvature :math:`\propto 1/\tau`, so there the variance
    falls faster than in proportion to the learning rate; and where it is the only one within the spread the law tends
    to Laplace's as the learning rate tends to 0.  With a jump 2a of the slope and noise of variance C its variance is
    :math:`\eta^2 C^2 / (2 a^2)`, and that of a Gaussian with the same mean slope :math:`\pi \eta^2 C^2 / (8 a^2)`: the
    true one is up to :math:`4/\pi` times that given here.

    Examples
    --------
    The minimiser rests on the kink of the third residual, the sharper the less the weights vary:

    >>> from sgdcov.theory import sgd
    >>> problem = AdversarialLeastSquares([[1.0], [1.0], [1.0]], [0.0, 4.0, 1.5], radius=0.25)
    >>> problem.kinks.residuals
    (2,)
    >>> law = kink_corrected_covariance(sgd(lr=0.01), problem, batch_size=1)
    >>> float(problem.mean_ae_hessian(problem.optimum)[0, 0]), round(float(law.hessian[0, 0]), 3)
    (1.0625, 1.901)
    """
    optimizer = recursion(optimizer).optimizer
    optimizer.require_bound()
    if not isinstance(problem, AdversarialLeastSquares):
        raise InvalidProblemError(
            f"the kinks are those of an AdversarialLeastSquares problem, got {type(problem).__name__}"
        )
    size = checked_batch_size(batch_size, problem.num_examples)
    tolerance = _arrays.number("tolerance", tolerance, least=0)
    if problem.kinks.coordinates:
        problem.hessian  # noqa: B018 - refused, with the reason and the way out
    _arrays.whole_number("max_iterations", max_iterations, least=1)
    centre, spread = problem.optimum, _first_guess(optimizer, problem, size, replacement)
    last = change = float("inf")
    scale = float(problem.optimum @ problem.optimum) + float(np.linalg.norm(spread))
    for iteration in range(1, max_iterations + 1):
        moved = _mean(optimizer, problem, spread, centre, tolerance)
        hessian = problem.smoothed_hessian(spread, moved)
        noise = np.asarray(problem.smoothed_noise(size, spread, moved, replacement))
        try:
            law = _law(optimizer, hessian, noise)
        except UnstableError:
            if iteration > _ENLARGEMENTS:
                raise
            spread = 4.0 * spread  # a wider law sees blunter kinks
            continue
        wide = float(np.linalg.norm(law.value)) or 1.0
        if wide > _UNBOUNDED * scale:
            raise NonStationaryError(
                f"the self-consistent covariance grows without bound for {optimizer!r}: noise that grows with the "
                f"spread of the weights leaves no stationary law. Take a smaller learning rate or a larger batch."
            )
        far = float(np.linalg.norm(moved - centre)) / np.sqrt(wide)
        last, change = change, max(float(np.linalg.norm(law.value - spread)) / wide, far)
        damped = iteration > _UNDAMPED
        centre, spread = moved, 0.5 * (law.value + spread) if damped else law.value
        if change <= tolerance:
            excess = problem.smoothed_loss(law.value, centre) - float(problem.loss(problem.optimum))
            error = _error(law, problem.num_examples, change, last)
            cause = (
                CAUSE if law.error > change else f"Its iteration ended at tolerance={tolerance:g}; take a smaller one."
            )
            warn_if_inaccurate("kink_corrected_covariance", error, cause)
            return KinkCorrectedCovariance(law, centre, hessian, noise, excess, iteration, change, error)
    raise NonStationaryError(
        f"the self-consistent law did not settle in {max_iterations} iterations: it still changes by {change:.3g}; a "
        f"smaller learning rate makes the law more nearly Gaussian and the iteration tamer (tolerance={tolerance:g})"
    )


def _mean(
    optimizer: Optimizer, problem: AdversarialLeastSquares, spread: Array, start: Array, tolerance: float
) -> Array:
    """The stationary mean over a law of given covariance: Newton's method, no step over more than a kink's width."""
    mean = start
    width = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", problem.X, spread, problem.X), 0.0))
    size = np.sqrt(np.trace(spread))
    for _ in range(_MEAN_STEPS):
        hessian = problem.smoothed_hessian(spread, mean)
        newton = scipy.linalg.lstsq(hessian, problem.smoothed_gradient(spread, mean))[0]
        step = stationary_mean(optimizer, hessian, mean - newton) - mean
        across = np.abs(problem.X @ step)
        reach = float(np.max(np.divide(across, width, out=np.zeros_like(across), where=width > 0), initial=0.0))
        mean = mean + step / max(1.0, reach)
        if np.linalg.norm(step) <= 0.1 * tolerance * size:
            break
    return np.asarray(mean)


def _first_guess(optimizer: Optimizer, problem: AdversarialLeastSquares, size: int, replacement: bool) -> Array:
    """The law for the examples' own Hessians, where there is one; otherwise one of the size of the weights."""
    hessian = problem.mean_ae_hessian(problem.optimum)
    gradients = problem.per_example_gradients(problem.optimum)
    centred = gradients - gradients.mean(axis=0)
    noise = gram_matrix("the gradient noise", centred, problem.num_examples)
    factor = batch_factor(size, problem.num_examples, replacement)
    return np.asarray(_law(optimizer, hessian, factor * noise).value)


def _law(optimizer: Optimizer, hessian: Array, noise: Array) -> StationaryCovariance:
    """The law of one iteration; how well it is known matters for the last one alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        return stationary_covariance(optimizer, hessian, noise)


def _error(law: StationaryCovariance, num_examples: int, change: float, last: float) -> float:
    """How far the law may be from the fixed point, relatively, when the changes were these at the end."""
    rate = min(change / last, 0.99) if 0.0 < last < np.inf else 0.0
    averages = 8.0 * np.sqrt(num_examples) * float(np.finfo(np.float64).eps) * law.condition
    return float(law.error + averages + change) / (1.0 - rate)
