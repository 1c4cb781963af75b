r"""Whether the fourth moment exists, without which a measured covariance has no standard error.

A standard error is estimated from the spread of squares between replicas, whose variance is a fourth moment. Where the
noise depends on the weights, a law may have a covariance and no fourth moment: then the squares have no variance, their
empirical spread means nothing, and neither does a p-value. After a finite number of steps a fourth moment does exist,
but once it has grown by orders of magnitude a few rare replicas make it, and its estimate is worth no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..numerics import GradientNoise
from ..theory import Optimizer
from ._gradients import GradientSource
from ._planning import solvable_form

__all__ = ["FourthMoment", "fourth_moment"]

#: By how much fourth moments may grow in a finite run before their estimate is worth nothing.
LARGEST_GROWTH = 10.0


@dataclass(frozen=True)
class FourthMoment:
    """Whether iterates have a fourth moment at their stationary law, which standard errors of a covariance need.

    Attributes
    ----------
    verdict : {"exists", "does not exist", "undecided"}
    growth : float
        The factor by which fourth moments grow or shrink in a step, in the long run; below 1 they exist. nan where it
        is not known.
    error : float
        Numerical error of ``growth``.
    steps : int or None
        After how many steps from a start that has all moments it is asked for; None at the stationary law.
    """

    verdict: Literal["exists", "does not exist", "undecided"]
    growth: float
    error: float
    steps: int | None = None

    @property
    def trusted(self) -> bool:
        """Whether standard errors mean anything."""
        if self.verdict == "exists":
            return True
        if self.steps is None or math.isnan(self.growth):
            return False
        return self.steps * math.log(self.growth + self.error) <= math.log(LARGEST_GROWTH)

    def after(self, steps: int) -> FourthMoment:
        """The same asked for after so many steps.

        Parameters
        ----------
        steps : int

        Returns
        -------
        FourthMoment
        """
        return replace(self, steps=steps)

    def __str__(self) -> str:
        if math.isnan(self.growth):
            return f"{self.verdict}, nothing is known of its growth"
        about = f" +- {self.error:.1g}" if self.error >= 1e-6 * self.growth else ""
        return f"{self.verdict}: it grows by the factor {self.growth:.6g}{about} in a step"


def fourth_moment(optimizer: Optimizer, source: GradientSource) -> FourthMoment | None:
    """What numerics knows of the fourth moment; None where the noise is additive and Gaussian."""
    if not isinstance(source.noise, GradientNoise):
        return None
    try:
        from ..numerics.tails import moment_growth
    except ImportError:
        return None
    form = solvable_form(optimizer, source.noise)
    if form is None:
        return FourthMoment("undecided", math.nan, math.nan)
    found = moment_growth(*form, order=4)
    return FourthMoment(found.verdict, found.value, found.error)
