"""What was found about attacked problems: an oracle against numerics, numerics against a measured run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..agreement import Agreement
from .adversarial_cases import AdversarialCase
from .sensitivity import Sensitive

__all__ = ["AdversarialMeasurement", "AdversarialRow", "AttackOracle"]


@dataclass(frozen=True)
class AttackOracle:
    """Losses, gradients, Hessians, noise or a law that share nothing with numerics', against numerics'.

    Attributes
    ----------
    kind : {"theory", "corners", "re-weighted", "first order"}
        Theory's formulas; the worst corner of the attack's ball, found by trying all; examples with theory's weights;
        theory's law to first order in the perturbation of the weights.
    error, tolerance : float
        Largest error, relative to the largest entry of what is compared, and what rounding explains.
    claims : int
        How many claims theory proved for it.
    seconds : float
    """

    kind: str
    error: float
    tolerance: float
    claims: int
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within what rounding explains."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class AdversarialMeasurement:
    """A measured run against numerics' law.

    Attributes
    ----------
    p_value : float
        For the joint covariance of all slots; nan where it is withheld.
    mean_p_value : float or None
        For their mean, where the law is exact.
    withheld : str or None
        Why.
    relative_error, expected_relative_error : float
        Of the covariance of the weights: in the Frobenius norm, and what Monte Carlo alone would give.
    attack : float or None
        How far the law without the attack is from that with it, in the same norm, where both are of the same weights.
    left : float or None
        The share of measured states outside the smooth piece of the loss, where the law is exact within.
    replicas : int
    seconds : float
    agreed : tuple of Agreement
        What the p-values come from, and what they would have noticed.
    """

    p_value: float
    mean_p_value: float | None
    withheld: str | None
    relative_error: float
    expected_relative_error: float
    attack: float | None
    left: float | None
    replicas: int
    seconds: float
    agreed: tuple[Agreement, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class AdversarialRow(Sensitive):
    """One row of the table of attacked problems."""

    case: AdversarialCase
    oracle: AttackOracle | None = None
    measurement: AdversarialMeasurement | None = None
    refusal: str | None = None

    @property
    def p_values(self) -> tuple[float, ...]:
        """The p-values that count: all that there are."""
        if self.measurement is None:
            return ()
        values = (self.measurement.p_value, self.measurement.mean_p_value)
        return tuple(p for p in values if p is not None and not math.isnan(p))

    def disagreements(self, threshold: float) -> list[str]:
        """What does not agree, in words."""
        found = [] if self.refusal is None else [self.refusal]
        if self.oracle is not None and not self.oracle.agrees:
            o = self.oracle
            found.append(f"{o.kind} and numerics differ by {o.error:.1e} (tolerance {o.tolerance:.1e})")
        if self.measurement is not None:
            kinds = {"covariance": self.measurement.p_value, "mean": self.measurement.mean_p_value}
            found += [
                f"measured and predicted {kind} differ: p = {p:.1e}"
                for kind, p in kinds.items()
                if p is not None and not p >= threshold and not (math.isnan(p) and self.measurement.withheld)
            ]
        return found
