"""What was found about minibatches: an oracle against numerics, numerics against a measured run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..agreement import Agreement
from .minibatch_cases import MinibatchCase
from .sensitivity import Sensitive

__all__ = ["MinibatchMeasurement", "MinibatchRow", "OracleCheck"]


@dataclass(frozen=True)
class OracleCheck:
    """An answer that shares nothing with numerics' law, against that law.

    Attributes
    ----------
    kind : {"theory", "every batch"}
        Theory's closed form for Gaussian data in 50 digits, or all batches of a small data set listed.
    error, tolerance : float
        Largest error of the covariance, relative to the largest variance, and what rounding explains.
    seconds : float
    """

    kind: Literal["theory", "every batch"]
    error: float
    tolerance: float
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within what rounding explains."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class MinibatchMeasurement:
    """A measured run against numerics' exact law.

    Attributes
    ----------
    p_values, mean_p_values : tuple of float
        For the covariance and for the mean of all slots, at every position that is looked at; nan where a p-value is
        withheld.
    withheld : str or None
        Why.
    relative_error, expected_relative_error : float
        Of the covariance of the weights: in the Frobenius norm, and what Monte Carlo alone would give.
    additive_error : float
        How far the law with additive noise is from the exact one, in the same norm.
    replicas : int
    seconds : float
    agreed : tuple of Agreement
        What the p-values come from, and what they would have noticed.
    """

    p_values: tuple[float, ...]
    mean_p_values: tuple[float, ...]
    withheld: str | None
    relative_error: float
    expected_relative_error: float
    additive_error: float
    replicas: int
    seconds: float
    agreed: tuple[Agreement, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class MinibatchRow(Sensitive):
    """One row of the table of minibatches."""

    case: MinibatchCase
    claims: int | None = None
    oracle: OracleCheck | None = None
    measurement: MinibatchMeasurement | None = None
    refusal: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the row is part of the verdict: laws with frozen second moments are an approximation."""
        return self.case.question != "adaptive"

    @property
    def p_values(self) -> tuple[float, ...]:
        """The p-values that count: all that there are of an exact law."""
        if self.measurement is None or not self.counts:
            return ()
        return tuple(p for p in (*self.measurement.p_values, *self.measurement.mean_p_values) if not math.isnan(p))

    def blind(self, level: float) -> list[str]:
        """Nothing is expected to be rejected in a row that does not count."""
        return super().blind(level) if self.counts else []

    def disagreements(self, threshold: float) -> list[str]:
        """What does not agree, in words."""
        found = [] if self.refusal is None else [self.refusal]
        if self.oracle is not None and not self.oracle.agrees:
            o = self.oracle
            found.append(f"{o.kind} and numerics differ by {o.error:.1e} (tolerance {o.tolerance:.1e})")
        if self.measurement is not None and self.counts:
            kinds = {"covariance": self.measurement.p_values, "mean": self.measurement.mean_p_values}
            for kind, values in kinds.items():
                found += [
                    f"measured and predicted {kind} differ: p = {p:.1e}"
                    for p in values
                    if not p >= threshold and not (math.isnan(p) and self.measurement.withheld)
                ]
        return found
