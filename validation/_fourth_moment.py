r"""Whether the fourth moment exists, without which a measured covariance has no standard error.

A standard error is estimated from the spread of squares between replicas, whose variance is a fourth moment. Where the
noise depends on the weights, a law may have a covariance and no fourth moment: then the squares have no variance, their
empirical spread means nothing, and neither does a p-value. After a finite number of steps a fourth moment does exist,
but once it has grown by orders of magnitude a few rare replicas make it, and its estimate is worth no more.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .. import numerics
from ..numerics import GradientNoise
from ..theory import Optimizer
from ._gradients import GradientSource
from ._planning import solvable_form

__all__ = ["FourthMoment", "fourth_moment"]

#: Up to this many entries of the state the operator on fourth moments is solved at once; beyond it short simulations of
#: unit vectors are tried first, which mostly tell on which side of 1 its growth is.
EXACT_ENTRIES = 8
SHORT: tuple[dict[str, int], ...] = (
    {"particles": 64, "steps": 200, "repetitions": 8},
    {"particles": 128, "steps": 500, "repetitions": 8},
)
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


def fourth_moment(optimizer: Optimizer, source: GradientSource, steps: int | None = None) -> FourthMoment | None:
    """What numerics knows of the fourth moment, at the stationary law or after so many steps from a start.

    None where the noise is additive and Gaussian.
    """
    return _found(optimizer, source.noise, steps) if isinstance(source.noise, GradientNoise) else None


@functools.lru_cache(maxsize=64)
def _found(optimizer: Optimizer, noise: GradientNoise, steps: int | None) -> FourthMoment:
    form = solvable_form(optimizer, noise)
    if form is None:
        return FourthMoment("undecided", math.nan, math.nan, steps)
    solved, entries = form[0], np.linalg.matrix_rank(form[1].hessian) * len(form[0].rule.slots)
    for sizes in SHORT if entries > EXACT_ENTRIES else ():
        rough = numerics.moment_growth(solved, form[1], order=4, method="particles", rng=0, **sizes)
        found = FourthMoment(rough.verdict, rough.value, rough.error, steps)
        if found.trusted or found.verdict != "undecided":
            return found
    exact = numerics.moment_growth(solved, form[1], order=4)
    return FourthMoment(exact.verdict, exact.value, exact.error, steps)
