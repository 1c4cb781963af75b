r"""Does a measured covariance agree with a predicted one? One calibrated p-value, whatever the law of the iterates.

With W a square root of the inverse of the prediction, :math:`y = W (z - \bar z)` has covariance I under a true
prediction. Five statistics, each the Student statistic of a linear functional :math:`\langle D,\, y y^\top - I\rangle`
of the replicas, look for different deviations:

===========================  ==========================================================
``"whole"``                  the size of the whole covariance: D = I
``"largest directions"``     its largest eigen-directions: D is the prediction itself
``"everything"``             any deviation: D is the deviation that earlier replicas saw
``"one eigen-direction"``    D is that deviation's largest entry among eigen-directions
``"one entry"``              D is its largest entry among coordinates
===========================  ==========================================================

Their p-values are combined into one. `sgdcov.validation._chained_test` says how D and the replicas that test it are
kept independent, and what is done about skewness. Under a false prediction the mean of the third statistic is about
:math:`\|\operatorname{E} y y^\top - I\|_F^2 > 0`, whatever the deviation is; the others see a deviation of their kind
where it is too small for that one.

The mean is tested in the same way: earlier replicas propose the direction :math:`\operatorname{mean}(W(z - m))`. So
is an autocovariance: x the later state and y the earlier one, :math:`x y^\top` takes the place of :math:`y y^\top`, and
its prediction that of I; the units W are those of the stationary law that numerics solves.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError
from ..numerics import EpochCovariance, ReshufflingLaw, StationaryCovariance, TransientCovariance
from ..numerics._result import Frozen
from ._chained_test import Outcome, SecondMoments, chained_shares, combined, mean_test, second_moment_tests
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
#: A p-value that cannot be smaller than this says nothing.
LARGEST_LEAST = 0.05
#: `Agreement.detectable_error` is found in this share of all measurements.
POWER = 0.95
#: The level at which an agreement prints what it would have seen.
LEVEL_SHOWN = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Frozen):
    """How a measured covariance compares with a predicted one.

    Attributes
    ----------
    p_value : float
        One number for the whole matrix: uniform on (0, 1) under a true prediction, small under a false one. nan, which
        is neither large nor small, where there is none.
    withheld : str or None
        Why there is none: without a fourth moment of the iterates, or near the threshold where it ceases to exist, no
        standard error means anything; and so few replicas of so skewed a law may not be able to claim any small one.
    p_values : dict of str to float
        The p-values that `p_value` combines, by what they look for; none where nothing moves.
    least_p_value : float
        The least `p_value` that so many replicas of a law as skewed as theirs can claim.
    least_p_values : dict of str to float
        The same of each of `p_values`.
    whole_standard_error, direction_standard_error : float
        Standard error of the size of the whole covariance, as one factor of the prediction, and of the variance along
        the eigen-direction where it is largest.
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
    p_values: dict[str, float]
    least_p_value: float
    least_p_values: dict[str, float]
    whole_standard_error: float
    direction_standard_error: float
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

    def detectable_error(self, level: float, *, where: Literal["whole", "one direction"] = "whole") -> float:
        """How wrong a prediction has to be for 95% of such measurements to give a smaller p-value than `level`.

        Parameters
        ----------
        level : float
            Between 0 and 1.
        where : {"whole", "one direction"}
            Wrong by a factor common to all entries, or along one eigen-direction of the prediction only.

        Returns
        -------
        float
            Relative error; infinite where so many replicas cannot claim `level`.

        Raises
        ------
        InvalidProblemError
            If `level` is not between 0 and 1.

        Examples
        --------
        >>> from sgdcov.numerics import Quadratic
        >>> from sgdcov.theory import sgd
        >>> from sgdcov.validation import stationary_covariance
        >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[0.0])
        >>> agreement = compare(stationary_covariance(sgd(lr=0.5), problem, replicas=2000, rng=0), [[1 / 3]])
        >>> 0.05 < agreement.detectable_error(1e-4) < 0.1
        True
        """
        if not 0.0 < level < 1.0:
            raise InvalidProblemError(f"level must be between 0 and 1, got {level!r}.")
        if not self.p_values:
            return float("inf")
        # The Cauchy combination of m p-values falls below a small level as soon as one of them falls below level/m.
        test = "whole" if where == "whole" or self.rank == 1 else "one eigen-direction"
        own, power = level / len(self.p_values), float(scipy.stats.norm.ppf(POWER))
        if self.least_p_values[test] >= own:
            return float("inf")
        if test == "whole":
            shift = (float(scipy.stats.norm.isf(own / 2.0)) + power) * self.whole_standard_error
        else:
            # The direction must be found by those who propose, above the noise of all other entries, and then tested.
            tested, proposing = chained_shares(self.replicas)
            noise = float(np.sqrt(2.0 * np.log(self.rank * (self.rank + 1) / 2)))
            reached = (float(scipy.stats.norm.isf(own)) + power) / tested
            shift = max(reached, (noise + power) / proposing) * self.direction_standard_error
        # Replicas that vary more than predicted also scatter more, in the units of the prediction.
        return shift / (1.0 - shift) if shift < 1.0 else float("inf")

    def _rows(self) -> list[tuple[str, str]]:
        size = len(self.z)
        matrix = f"covariance of {', '.join(self.slots)}, {size} x {size}, rank {self.rank}"
        rows = [
            ("p-value", f"{_p_text(self.p_value)} ({matrix})" if self.withheld is None else f"none: {self.withheld}"),
            ("relative error", f"{self.relative_error:.3%}, by Monte Carlo alone {self.expected_relative_error:.3%}"),
            ("largest |z|", f"{self.max_abs_z:.2f} of {size * (size + 1) // 2} entries"),
            ("replicas", f"{self.replicas}, which can claim a p-value of {_p_text(self.least_p_value)}"),
        ]
        caught = self.detectable_error(LEVEL_SHOWN)
        if np.isfinite(caught):
            rows.insert(2, ("would be seen", f"a factor of {caught:.1%} too much or too little (p < {LEVEL_SHOWN:g})"))
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

    What R replicas can claim is limited, the more so the more skewed the squares of the iterates are:
    `Agreement.least_p_value`. Where that is not small enough, more replicas are wanted, or several snapshots of each.

    Power: `Agreement.detectable_error` for a deviation of the whole or along one eigen-direction. Of any other kind,
    with n independent Gaussian samples of rank r, a prediction that is off by delta in Frobenius norm after whitening
    shifts the normal score by about ``0.66 n delta^2 / sqrt(2 r (r + 1))`` where noise dominates.

    References
    ----------
    hall1992, liu2020cauchy

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
    moments = frame.moments(whitened, whitened, np.eye(whitened.shape[2]))

    mean_p_value = mean_z = None
    if mean is not None:
        wanted = np.asarray(mean, dtype=np.float64)
        if wanted.shape != estimate.mean.shape or not np.isfinite(wanted).all():
            raise InvalidProblemError(f"mean must hold {len(estimate.mean)} finite numbers, got shape {wanted.shape}.")
        deviation = estimate.mean - wanted
        mean_z = _standardised(deviation, estimate.mean_standard_error, frame.tolerance / frame.scale)
        mean_p_value = mean_test((estimate.samples - wanted) @ frame.whitening).p_value
        if frame.flat_excess(np.abs(frame.flat.T @ (frame.scale * deviation))) > 1.0:
            mean_p_value = 0.0
    return _agreement(estimate, predicted, frame, moments, flat_excess, mean_p_value, mean_z)


def _agreement(
    estimate: Estimate | AutocovarianceEstimate,
    predicted: Array,
    frame: _Frame,
    moments: SecondMoments,
    flat_excess: float,
    mean_p_value: float | None,
    mean_z: Array | None,
) -> Agreement:
    tests, whole_error = second_moment_tests(moments)
    least = combined([t.least for t in tests.values()]) if tests else 0.0  # where nothing moves, nothing is claimed
    outcome = Outcome(combined([t.p_value for t in tests.values()]), least)
    difference = estimate.value - predicted
    z = _standardised(difference, estimate.standard_error, frame.tolerance**2 / np.outer(frame.scale, frame.scale))
    withheld = None if flat_excess > 1.0 else _withheld(estimate, outcome.least)
    return Agreement(
        p_value=0.0 if flat_excess > 1.0 else outcome.p_value if withheld is None else float("nan"),
        withheld=withheld,
        p_values={name: test.p_value for name, test in tests.items()},
        least_p_value=outcome.least,
        least_p_values={name: test.least for name, test in tests.items()},
        whole_standard_error=whole_error,
        direction_standard_error=moments.largest_standard_error(),
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
    spread: Array  # (n, rank), back from whitened to scaled coordinates
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
        deviations = np.sqrt(values[kept])
        rounding = steps * np.finfo(np.float64).eps * float(np.max(np.abs(scale * mean)))
        tolerance = float(np.sqrt(floor)) + rounding
        return cls(
            scale, scale[:, None] * vectors[:, kept] / deviations, vectors[:, kept] * deviations, vectors[:, ~kept],
            tolerance,
        )  # fmt: skip

    def moments(self, later: Array, earlier: Array, target: Array) -> SecondMoments:
        """Whitened rows and what is predicted of them."""
        length = np.linalg.norm(self.spread, axis=1)
        coordinates = self.spread[length > 0.0] / length[length > 0.0, None]
        return SecondMoments(later, earlier, target, np.linalg.norm(self.spread, axis=0), coordinates)

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
    later, earlier = ((rows @ inside)[None] for rows in (estimate.later, estimate.earlier))
    moments = frame.moments(later, earlier, inside.T @ predicted @ inside)
    return _agreement(estimate, predicted, frame, moments, flat_excess, None, None)


def _withheld(estimate: Estimate | AutocovarianceEstimate, least: float) -> str | None:
    """Why no p-value would mean anything, if it would not."""
    fourth = estimate.fourth_moment
    if fourth is not None and not fourth.trusted:
        return f"the standard errors mean nothing, because the fourth moment of the iterates {fourth}"
    if least > LARGEST_LEAST:
        return (
            f"{estimate.replicas} replicas of a law as skewed as this can claim no p-value below {least:.2g}; "
            f"measure several times as many"
        )
    return None


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
