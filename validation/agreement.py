r"""Does a measured covariance agree with a predicted one? One calibrated p-value, whatever the law of the iterates.

With W a square root of the inverse of the prediction, :math:`y = W (z - \bar z)` has covariance I under a true
prediction. The replicas are cut into K blocks. The blocks before the k-th propose the direction of disagreement,

.. math:: M_k = \operatorname{mean}_{\text{blocks before } k}(y y^\top) - I,

and the k-th block tests it. Given the earlier blocks, the numbers :math:`\langle M_k,\, y y^\top - I\rangle` of its
replicas are independent, identically distributed and, under a true prediction, of mean 0: a Student statistic tests
them, for any law of the iterates and in any dimension. (Hall's cubic takes out the skewness that squares have.) Under a
false prediction their mean is about :math:`\|\operatorname{E} y y^\top - I\|_F^2 > 0`, whatever the deviation is, so
large values reject. The K - 1 statistics, turned into normal scores, are independent of each other; they are added with
the weights :math:`\sqrt{k-1}`, as well as their direction is known. Each block is centred at its own mean, and
:math:`y y^\top` corrected for that without bias.

The mean is tested in the same way: the earlier blocks propose the direction :math:`\operatorname{mean}(W(z - m))`. So
is an autocovariance: x the later state and y the earlier one, :math:`x y^\top` takes the place of :math:`y y^\top`, and
its prediction that of I; the units W are those of the stationary law that numerics solves.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..numerics import EpochCovariance, ReshufflingLaw, StationaryCovariance, TransientCovariance
from ._chained_test import chained_test, covariance_direction, covariance_score, cross_test, mean_direction, mean_score
from .averages import AutocovarianceEstimate
from .stationary import Estimate

__all__ = ["Agreement", "compare"]

Array = NDArray[np.float64]
Prediction: TypeAlias = ArrayLike | StationaryCovariance | TransientCovariance | EpochCovariance | ReshufflingLaw

#: With fewer replicas a block is too small for its Student statistic to be calibrated, and `compare` refuses.
FEWEST_REPLICAS = 100
#: An asymmetry of this size, relative to the largest entry, is rounding of whoever made the prediction.
ASYMMETRY = 1e-10
#: An eigenvalue of the prediction below ``FLAT * size * eps`` times the largest is a direction that does not move.
FLAT = 100.0


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How a measured covariance compares with a predicted one.

    Attributes
    ----------
    p_value : float
        One number for the whole matrix: uniform on (0, 1) under a true prediction, small under a false one. nan, which
        is neither large nor small, where there is none.
    withheld : str or None
        Why there is none: without a fourth moment of the iterates no standard error means anything.
    z : ndarray, shape (k*d, k*d)
        Difference of each entry in its own standard errors. Entries are correlated: `p_value` is the verdict, not their
        number.
    max_abs_z : float
    relative_error : float
        Frobenius norm of the difference relative to the prediction.
    expected_relative_error : float
        What Monte Carlo alone would give: root mean square of `relative_error` under a true prediction.
    mean_p_value : float or None
        The same test for the mean, where a mean was given.
    mean_z : ndarray, shape (k*d,), or None
    rank : int
        Dimension of the range of the prediction.
    flat_excess : float
        Largest standard deviation measured in a direction where the prediction has none, in units of what counts as
        none; above 1, `p_value` is 0.
    slots : tuple of str
    replicas : int
    """

    p_value: float
    withheld: str | None
    z: Array = field(repr=False)
    max_abs_z: float
    relative_error: float
    expected_relative_error: float
    mean_p_value: float | None
    mean_z: Array | None
    rank: int
    flat_excess: float
    slots: tuple[str, ...]
    replicas: int

    def _rows(self) -> list[tuple[str, str]]:
        size = len(self.z)
        matrix = f"covariance of {', '.join(self.slots)}, {size} x {size}, rank {self.rank}"
        rows = [
            ("p-value", f"{_p_text(self.p_value)} ({matrix})" if self.withheld is None else f"none: {self.withheld}"),
            ("relative error", f"{self.relative_error:.3%}, by Monte Carlo alone {self.expected_relative_error:.3%}"),
            ("largest |z|", f"{self.max_abs_z:.2f} of {size * (size + 1) // 2} entries"),
            ("replicas", str(self.replicas)),
        ]
        if self.mean_p_value is not None:
            rows.insert(1, ("p-value of mean", _p_text(self.mean_p_value)))
        if self.rank < size:
            verdict = "at rest" if self.flat_excess <= 1.0 else "NOT at rest"
            rows.append(("flat directions", f"{size - self.rank}, {verdict} ({self.flat_excess:.2g} of the tolerance)"))
        return rows

    def __repr__(self) -> str:
        return "\n".join(["Agreement", *(f"  {name:<16} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Measured against predicted covariance</caption>{rows}</table>"


def compare(
    estimate: Estimate | AutocovarianceEstimate,
    prediction: Prediction,
    *,
    mean: ArrayLike | None = None,
) -> Agreement:
    r"""Compare a measured covariance with a predicted one.

    Parameters
    ----------
    estimate : Estimate or AutocovarianceEstimate
        With at least 100 replicas.
    prediction : array_like, shape (k*d, k*d), or a law of numerics
        Predicted covariance of the estimate's slots, stacked in the estimate's order; of numerics' result the joint
        block of these slots is taken.
    mean : array_like, shape (k*d,), optional
        Predicted mean, tested separately; for an autocovariance there is none to test.

    Returns
    -------
    Agreement

    Raises
    ------
    InvalidProblemError
        If the prediction has the wrong shape, is not finite, symmetric and positive semidefinite, or there are too few
        replicas.

    Notes
    -----
    Directions in which the prediction has no variance (eigenvalue at most ``100 n eps`` times the largest, n = k*d,
    each slot first scaled to unit mean variance) are taken out of the test. There the measured standard deviation must
    be at most the square root of that same threshold, plus ``steps * eps * |mean|`` for the rounding of the iterates,
    or ``p_value`` is 0.

    Where the noise depends on the weights, iterates may have a covariance and no fourth moment. Their squares then have
    no variance, so that no standard error of the covariance means anything: `Agreement.withheld` says so, and there is
    no p-value unless a direction without variance moved. The mean is tested all the same.

    Strongly skewed or heavy-tailed iterates want more replicas, or several snapshots of each, for the p-value to be
    as well calibrated as it is for Gaussian ones.

    Power: with n independent Gaussian samples of rank r, a prediction that is off by delta in Frobenius norm after
    whitening shifts the normal score by about ``0.66 n delta^2 / sqrt(2 r (r + 1))`` where noise dominates.

    References
    ----------
    hall1992

    Examples
    --------
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> from sgdcov.validation import stationary_covariance
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[0.0])
    >>> estimate = stationary_covariance(sgd(lr=0.5), problem, replicas=2000, rng=0)
    >>> compare(estimate, [[0.5 / (2 - 0.5)]]).p_value > 0.01  # lr c / (2 h - lr h^2)
    True
    >>> compare(estimate, [[0.5 / 2]]).p_value > 1e-6  # the continuous-time limit
    False
    """
    if estimate.replicas < FEWEST_REPLICAS:
        raise InvalidProblemError(
            f"{estimate.replicas} replicas are too few for a calibrated p-value; measure at least {FEWEST_REPLICAS}."
        )
    if isinstance(estimate, AutocovarianceEstimate):
        return _compare_autocovariance(estimate, prediction, mean)
    predicted = _checked_prediction(estimate, prediction)
    frame = _Frame.of(predicted, len(estimate.slots), estimate.steps, estimate.mean)
    flat_variance = np.diag(frame.flat.T @ (frame.scale[:, None] * estimate.value * frame.scale) @ frame.flat)
    flat_excess = frame.flat_excess(np.sqrt(np.maximum(flat_variance, 0.0)))
    whitened = (estimate.samples - estimate.mean) @ frame.whitening
    p_value = chained_test(whitened, covariance_direction, covariance_score)

    mean_p_value = mean_z = None
    if mean is not None:
        wanted = np.asarray(mean, dtype=np.float64)
        if wanted.shape != estimate.mean.shape or not np.isfinite(wanted).all():
            raise InvalidProblemError(f"mean must hold {len(estimate.mean)} finite numbers, got shape {wanted.shape}.")
        deviation = estimate.mean - wanted
        mean_z = _standardised(deviation, estimate.mean_standard_error, frame.tolerance / frame.scale)
        mean_p_value = chained_test((estimate.samples - wanted) @ frame.whitening, mean_direction, mean_score)
        if frame.flat_excess(np.abs(frame.flat.T @ (frame.scale * deviation))) > 1.0:
            mean_p_value = 0.0

    difference = estimate.value - predicted
    z = _standardised(difference, estimate.standard_error, frame.tolerance**2 / np.outer(frame.scale, frame.scale))
    withheld = _withheld(estimate)
    return Agreement(
        p_value=0.0 if flat_excess > 1.0 else p_value if withheld is None else float("nan"),
        withheld=None if flat_excess > 1.0 else withheld,
        z=z,
        max_abs_z=float(np.max(np.abs(z))),
        relative_error=_relative(difference, predicted),
        expected_relative_error=_relative(estimate.standard_error, predicted),
        mean_p_value=mean_p_value,
        mean_z=mean_z,
        rank=frame.whitening.shape[1],
        flat_excess=flat_excess,
        slots=estimate.slots,
        replicas=estimate.replicas,
    )


@dataclass(frozen=True)
class _Frame:
    """Coordinates of a prediction: its range, whitened, and the flat directions beside it."""

    scale: Array  # (n,) each slot to unit mean variance
    whitening: Array  # (n, rank)
    flat: Array  # (n, n - rank), on the scaled coordinates
    tolerance: float  # standard deviation that counts as none, on the scaled coordinates

    @classmethod
    def of(cls, predicted: Array, slots: int, steps: int, mean: Array) -> _Frame:
        size = len(predicted)
        variance = np.diag(predicted).reshape(slots, -1).mean(axis=1)
        scale = np.repeat(1.0 / np.sqrt(np.where(variance > 0.0, variance, 1.0)), size // slots)
        values, vectors = np.linalg.eigh(scale[:, None] * predicted * scale)
        floor = FLAT * size * np.finfo(np.float64).eps * max(values[-1], 0.0)
        if values[0] < -floor:
            raise InvalidProblemError(
                f"the prediction is no covariance: with each slot scaled to unit variance, its smallest eigenvalue is "
                f"{values[0]:.3g} beside the largest, {values[-1]:.3g}, where rounding explains at most {-floor:.3g}."
            )
        kept = values > floor
        whitening = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
        rounding = steps * np.finfo(np.float64).eps * float(np.max(np.abs(scale * mean)))
        return cls(scale, whitening, vectors[:, ~kept], float(np.sqrt(floor)) + rounding)

    def flat_excess(self, deviations: Array) -> float:
        """The largest deviation in units of the tolerance."""
        largest = float(np.max(deviations, initial=0.0))
        return largest / self.tolerance if largest else 0.0


def _compare_autocovariance(
    estimate: AutocovarianceEstimate, prediction: Prediction, mean: ArrayLike | None
) -> Agreement:
    if mean is not None:
        raise InvalidProblemError("an autocovariance has no mean to test; compare a stationary_covariance with it.")
    predicted = _finite_prediction(estimate, prediction)
    # The stationary law only gives the units; the test is calibrated in any.
    law = estimate.law.joint(estimate.slots)
    frame = _Frame.of(law, len(estimate.slots), estimate.burn_in + estimate.lag, estimate.earlier.mean(axis=0))
    outside = frame.scale[:, None] * predicted * frame.scale
    flat_excess = frame.flat_excess(np.abs(np.concatenate([frame.flat.T @ outside, frame.flat.T @ outside.T])))
    inside = frame.whitening
    p_value = cross_test(estimate.later @ inside, estimate.earlier @ inside, inside.T @ predicted @ inside)
    difference = estimate.value - predicted
    z = _standardised(difference, estimate.standard_error, frame.tolerance**2 / np.outer(frame.scale, frame.scale))
    withheld = _withheld(estimate)
    return Agreement(
        p_value=0.0 if flat_excess > 1.0 else p_value if withheld is None else float("nan"),
        withheld=None if flat_excess > 1.0 else withheld,
        z=z,
        max_abs_z=float(np.max(np.abs(z))),
        relative_error=_relative(difference, predicted),
        expected_relative_error=_relative(estimate.standard_error, predicted),
        mean_p_value=None,
        mean_z=None,
        rank=inside.shape[1],
        flat_excess=flat_excess,
        slots=estimate.slots,
        replicas=estimate.replicas,
    )


def _withheld(estimate: Estimate | AutocovarianceEstimate) -> str | None:
    """Why no p-value would mean anything, if it would not."""
    fourth = estimate.fourth_moment
    if fourth is None or fourth.trusted:
        return None
    return f"the standard errors mean nothing, because the fourth moment of the iterates {fourth}"


def _finite_prediction(estimate: Estimate | AutocovarianceEstimate, prediction: Prediction) -> Array:
    size = len(estimate.value)
    if isinstance(prediction, StationaryCovariance | TransientCovariance | EpochCovariance | ReshufflingLaw):
        prediction = prediction.joint(estimate.slots)
    predicted = np.asarray(prediction, dtype=np.float64)
    if predicted.shape != (size, size):
        raise InvalidProblemError(
            f"the prediction must have shape {(size, size)} for the estimate's slots ({', '.join(estimate.slots)}), "
            f"got {predicted.shape}."
        )
    if not np.isfinite(predicted).all():
        unfit = np.count_nonzero(~np.isfinite(predicted))
        raise InvalidProblemError(f"the prediction has {unfit} of {predicted.size} entries that are not finite.")
    return predicted


def _checked_prediction(estimate: Estimate, prediction: Prediction) -> Array:
    predicted = _finite_prediction(estimate, prediction)
    asymmetry, largest = float(np.max(np.abs(predicted - predicted.T))), float(np.max(np.abs(predicted)))
    if asymmetry > ASYMMETRY * largest:
        raise InvalidProblemError(
            f"the prediction is not symmetric: it differs from its transpose by {asymmetry:.3g}, "
            f"where its largest entry is {largest:.3g}."
        )
    return 0.5 * (predicted + predicted.T)


def _standardised(difference: Array, standard_error: Array, negligible: Array) -> Array:
    """Difference in standard errors; 0 where it is negligible, infinite where nothing varies but it is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(np.abs(difference) <= negligible, 0.0, difference / standard_error))


def _relative(difference: Array, predicted: Array) -> float:
    size, error = float(np.linalg.norm(predicted)), float(np.linalg.norm(difference))
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def _p_text(p_value: float) -> str:
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1e}" if p_value >= 1e-12 else "< 1e-12"
