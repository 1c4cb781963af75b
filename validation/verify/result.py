"""What a verification found, and the verdict.

Every p-value that counts is compared with one threshold, the family-wise false-alarm rate over their number
(Bonferroni): if all predictions are true, the chance that any of them is rejected is at most that rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..agreement import Agreement
from .adversarial_controls import AdversarialControl
from .adversarial_result import AdversarialRow
from .cases import Case
from .controls import ControlCase
from .minibatch_controls import MinibatchControl
from .minibatch_result import MinibatchRow
from .questions import QuestionRow
from .sensitivity import Sensitive
from .time_cases import TimeCase
from .time_controls import TimeControl

__all__ = [
    "FALSE_ALARM_RATE",
    "ControlResult",
    "Measurement",
    "ProofCheck",
    "Row",
    "TheoryCheck",
    "TimeMeasurement",
    "TimeRow",
    "TimeTheoryCheck",
    "Verification",
]

Array = NDArray[np.float64]

#: The chance that a verification of true predictions fails.
FALSE_ALARM_RATE = 1e-3


@dataclass(frozen=True)
class ProofCheck:
    """The exact proof of a rule's formulas, with every hyper-parameter a symbol."""

    rule: str
    claims: int
    seconds: float


@dataclass(frozen=True)
class TheoryCheck:
    """Theory's formula in 30 digits against numerics' arrays.

    Attributes
    ----------
    pair_error, pair_tolerance : float
        Largest relative error of `numerics.pair_covariance` over all pairs of eigenvalues and slots.
    array_error, doubling_error, array_tolerance : float
        Largest error of the covariance of all slots, by numerics' default method and by doubling, each entry relative
        to the standard deviations it belongs to.
    mean_error, mean_tolerance : float
        Of the stationary mean, relative to its largest entry.
    condition : float
        The condition that numerics reports.
    seconds : float
    """

    pair_error: float
    pair_tolerance: float
    array_error: float
    doubling_error: float
    array_tolerance: float
    mean_error: float
    mean_tolerance: float
    condition: float
    seconds: float

    @property
    def error(self) -> float:
        """The largest of the errors of arrays."""
        return max(self.array_error, self.doubling_error, self.mean_error)

    @property
    def agrees(self) -> bool:
        """Whether every error is within what rounding explains."""
        return (
            self.pair_error <= self.pair_tolerance
            and self.array_error <= self.array_tolerance  # not the larger of both: one of them may be nan
            and self.doubling_error <= self.array_tolerance
            and self.mean_error <= self.mean_tolerance
        )


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measured run against numerics' prediction.

    Attributes
    ----------
    p_value : float
        For the joint covariance of all slots.
    mean_p_value : float or None
        For the stationary mean of all slots, where weight decay moves that of the weights.
    relative_error, expected_relative_error : float
        Of the covariance of the weights: in the Frobenius norm, and what Monte Carlo alone would give.
    flat : int
        Number of flat coordinates.
    moved : float
        Largest spread between replicas along them; anything but exactly 0 is wrong.
    replicas, snapshots, steps, burn_in : int
    seconds : float
    predicted, measured, standard_error : ndarray, shape (d, d)
        Covariance of the weights.
    agreed : tuple of Agreement
        What the p-values come from, and what they would have noticed.
    """

    p_value: float
    mean_p_value: float | None
    relative_error: float
    expected_relative_error: float
    flat: int
    moved: float
    replicas: int
    snapshots: int
    steps: int
    burn_in: int
    seconds: float
    predicted: Array = field(repr=False)
    measured: Array = field(repr=False)
    standard_error: Array = field(repr=False)
    agreed: tuple[Agreement, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class Row(Sensitive):
    """One row of the table. ``problem`` holds what went wrong where a layer refused to answer."""

    case: Case
    proof: ProofCheck | None = None
    theory: TheoryCheck | None = None
    measurement: Measurement | None = None
    refusal: str | None = None

    @property
    def p_values(self) -> tuple[float, ...]:
        """The p-values that count."""
        if self.measurement is None:
            return ()
        values = (self.measurement.p_value, self.measurement.mean_p_value)
        return tuple(p for p in values if p is not None)

    def disagreements(self, threshold: float) -> list[str]:
        """What does not agree, in words."""
        found = []
        if self.refusal is not None:
            found.append(self.refusal)
        if self.theory is not None and not self.theory.agrees:
            t = self.theory
            found.append(
                f"theory and numerics differ: pairs by {t.pair_error:.1e} (tolerance {t.pair_tolerance:.1e}), "
                f"arrays by {max(t.array_error, t.doubling_error):.1e} ({t.array_tolerance:.1e}), "
                f"the mean by {t.mean_error:.1e} ({t.mean_tolerance:.1e})"
            )
        if self.measurement is not None:
            m = self.measurement
            if not m.p_value >= threshold:
                found.append(f"measured and predicted covariance differ: p = {m.p_value:.1e}")
            if m.mean_p_value is not None and not m.mean_p_value >= threshold:
                found.append(f"measured and predicted mean differ: p = {m.mean_p_value:.1e}")
            if m.moved != 0.0:
                found.append(f"flat directions moved by {m.moved:.1e}")
        return found


@dataclass(frozen=True)
class TimeTheoryCheck:
    """Theory's formula over time in 50 digits against numerics' arrays.

    Attributes
    ----------
    error, tolerance : float
        Largest error of the weights' covariance, each entry relative to the standard deviations it belongs to.
    mean_error, mean_tolerance : float
        Of the mean after a fixed start, relative to its largest entry; 0 where the question is not about it.
    seconds : float
    """

    error: float
    tolerance: float
    mean_error: float
    mean_tolerance: float
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether every error is within what rounding explains."""
        return self.error <= self.tolerance and self.mean_error <= self.mean_tolerance


@dataclass(frozen=True, eq=False)
class TimeMeasurement:
    """A measured run against numerics' prediction.

    Attributes
    ----------
    p_values, mean_p_values : tuple of float
        For the covariance, and the mean where it is asked for, at every time that is looked at.
    relative_error, expected_relative_error : float
        Of the covariance of the weights at the last of these times: in the Frobenius norm, and what Monte Carlo alone
        would give.
    replicas : int
    start : str
        Where the replicas started, in words.
    seconds : float
    agreed : tuple of Agreement
        What the p-values come from, and what they would have noticed.
    """

    p_values: tuple[float, ...]
    mean_p_values: tuple[float, ...]
    relative_error: float
    expected_relative_error: float
    replicas: int
    start: str
    seconds: float
    agreed: tuple[Agreement, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class TimeRow(Sensitive):
    """One row of the table over time."""

    case: TimeCase
    proof: ProofCheck | None = None
    theory: TimeTheoryCheck | None = None
    measurement: TimeMeasurement | None = None
    refusal: str | None = None

    @property
    def p_values(self) -> tuple[float, ...]:
        """The p-values that count: all."""
        return () if self.measurement is None else (*self.measurement.p_values, *self.measurement.mean_p_values)

    def disagreements(self, threshold: float) -> list[str]:
        """What does not agree, in words."""
        found = [] if self.refusal is None else [self.refusal]
        if self.theory is not None and not self.theory.agrees:
            t = self.theory
            found.append(
                f"theory and numerics differ by {t.error:.1e} (tolerance {t.tolerance:.1e}), in the mean by "
                f"{t.mean_error:.1e} ({t.mean_tolerance:.1e})"
            )
        if self.measurement is not None:
            kinds = {"covariance": self.measurement.p_values, "mean": self.measurement.mean_p_values}
            for kind, values in kinds.items():
                for step, p in zip(self.case.record, values, strict=False):
                    if not p >= threshold:
                        found.append(f"measured and predicted {kind} differ: p = {p:.1e} (at {step} steps)")
        return found


@dataclass(frozen=True, eq=False)
class ControlResult:
    """A wrong prediction against a measured run, and the right one against the same run.

    Attributes
    ----------
    case : ControlCase, TimeControl, MinibatchControl or AdversarialControl
    p_value : float
        Of the wrong prediction; it must be below the threshold.
    right_p_value : float
        Of numerics' prediction; it counts like the rows' p-values.
    size : float
        How wrong the prediction is: relative distance from the right one.
    seconds : float
    """

    case: ControlCase | TimeControl | MinibatchControl | AdversarialControl
    p_value: float
    right_p_value: float
    size: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Verification:
    """Everything that was found.

    Attributes
    ----------
    rows : tuple of Row
    controls : tuple of ControlResult
    timed : tuple of TimeRow
        The rows over time.
    minibatches : tuple of MinibatchRow
        The rows with minibatches.
    attacked : tuple of AdversarialRow
        The rows with attacks.
    asked : tuple of QuestionRow
        The rows of other public questions.
    planned : int
        Rows and controls that were to run.
    interrupted : bool
    seed : int
    quick : bool
    seconds : float
    versions : dict of str to str
    """

    rows: tuple[Row, ...]
    controls: tuple[ControlResult, ...]
    planned: int
    interrupted: bool
    seed: int
    quick: bool
    seconds: float
    versions: dict[str, str]
    timed: tuple[TimeRow, ...] = ()
    minibatches: tuple[MinibatchRow, ...] = ()
    attacked: tuple[AdversarialRow, ...] = ()
    asked: tuple[QuestionRow, ...] = ()

    @property
    def all_rows(self) -> tuple[Row | TimeRow | MinibatchRow | AdversarialRow | QuestionRow, ...]:
        """The rows of all tables."""
        return (*self.rows, *self.timed, *self.minibatches, *self.attacked, *self.asked)

    @property
    def finished(self) -> int:
        """The number of rows and controls that were run."""
        return len(self.all_rows) + len(self.controls)

    @property
    def comparisons(self) -> int:
        """The number of p-values that count."""
        return sum(len(row.p_values) for row in self.all_rows) + len(self.controls)

    @property
    def threshold(self) -> float:
        """A p-value below this rejects."""
        return FALSE_ALARM_RATE / max(1, self.comparisons)

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Every disagreement and every wrong prediction that was not rejected, in words."""
        found = []
        for row in self.all_rows:
            texts = row.disagreements(self.threshold) + row.blind(self.threshold)
            found += [f"{row.case.key}, {row.case.engine}: {text}" for text in texts]
        for control in self.controls:
            name = f"control {control.case.name}, {control.case.key}"
            if not control.p_value < self.threshold:
                found.append(f"{name}: the wrong prediction was not rejected, p = {control.p_value:.1e}")
            if not control.right_p_value >= self.threshold:
                found.append(f"{name}: the right prediction was rejected, p = {control.right_p_value:.1e}")
        return tuple(found)

    @property
    def status(self) -> Literal["agree", "disagree", "interrupted"]:
        """The verdict in one word."""
        if self.disagreements:
            return "disagree"
        return "interrupted" if self.interrupted else "agree"

    @property
    def exit_code(self) -> int:
        """0 if everything agrees and every control is rejected, 1 if not, 130 if it was interrupted before that."""
        return {"agree": 0, "disagree": 1, "interrupted": 130}[self.status]

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        counted = len(self.rows) + len(self.timed) + sum(row.counts for row in self.minibatches)
        counted += len(self.attacked) + len(self.asked)
        done = f"{counted} rows, {len(self.controls)} controls"
        seconds = f"{self.seconds:.0f} s"
        if self.status == "interrupted":
            return f"INTERRUPTED after {self.finished} of {self.planned} runs: no verdict."
        if self.status == "disagree":
            cut = ", interrupted" if self.interrupted else ""
            return f"DISAGREEMENT: {len(self.disagreements)} finding(s) in {done} ({seconds}{cut})."
        rejected = "every wrong prediction is rejected" if self.controls else "no wrong prediction was among them"
        return f"AGREEMENT: theory, numerics and measured runs agree; {rejected} ({done}, {seconds})."
