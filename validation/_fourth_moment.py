r"""Whether the fourth moment exists, without which a measured covariance has no standard error.

A standard error is estimated from the spread of squares between replicas, whose variance is a fourth moment. Where the
noise depends on the weights, a law may have a covariance and no fourth moment: then the squares have no variance, their
empirical spread means nothing, and neither does a p-value. Near the threshold the squares have a variance but no third
moment, and their spread settles too slowly for any sample: the growth of moments is convex in their order on a
logarithmic scale, and on the parabola through the orders 0, 2 and 4 the sixth moment of the iterates exists where
fourth moments decay at least as fast as second ones. After a finite number of steps a fourth moment does exist, but
once it has grown by orders of magnitude a few rare replicas make it, and its estimate is worth no more.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .. import numerics
from ..errors import NonStationaryError
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
    second : float or None
        The same factor for second moments; None where the law is not stationary.
    steps : int or None
        After how many steps from a start that has all moments it is asked for; None at the stationary law.
    """

    verdict: Literal["exists", "does not exist", "undecided"]
    growth: float
    error: float
    steps: int | None = None
    second: float | None = None

    @property
    def near_threshold(self) -> bool:
        """Whether it exists, but squares of iterates have no third moment that would make standard errors reliable."""
        return self.verdict == "exists" and self.second is not None and self.growth + self.error > self.second

    @property
    def trusted(self) -> bool:
        """Whether standard errors mean anything."""
        if self.verdict == "exists" and not self.near_threshold:
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
        where = "" if self.steps is None else " at the stationary law"
        count = "a step" if self.steps is None else f"each of {self.steps} steps"
        near = f", near the threshold: second moments by {self.second:.6g}" if self.near_threshold else ""
        return f"{self.verdict}{where}: it grows by the factor {self.growth:.6g}{about} in {count}{near}"


def fourth_moment(optimizer: Optimizer, source: GradientSource, steps: int | None = None) -> FourthMoment | None:
    """What numerics knows of the fourth moment, at the stationary law or after so many steps from a start.

    None where the noise is additive.
    """
    noise = source.noise
    return _found(optimizer, noise, steps) if isinstance(noise, GradientNoise) and _multiplies(noise) else None


def _multiplies(noise: GradientNoise) -> bool:
    """Whether the curvature of a batch is random at all, beyond rounding."""
    added = np.abs(noise.multiplicative(np.eye(noise.dim)))
    rounding = 64 * np.finfo(np.float64).eps * noise.dim * np.linalg.norm(noise.hessian, 2) ** 2
    return bool(added.max() > rounding)


@functools.lru_cache(maxsize=64)
def _found(optimizer: Optimizer, noise: GradientNoise, steps: int | None) -> FourthMoment:
    try:
        form = solvable_form(optimizer, noise)
        found = None if form is None else _growth(*form, steps)
    except NonStationaryError:  # no direction in which anything moves back to an optimum
        found = None
    return FourthMoment("undecided", math.nan, math.nan, steps) if found is None else found


def _growth(optimizer: Optimizer, noise: GradientNoise, steps: int | None) -> FourthMoment:
    """The growth of fourth moments, known as well as its verdict needs."""
    entries = np.linalg.matrix_rank(noise.hessian) * len(optimizer.rule.slots)
    second = numerics.mean_square_stability(optimizer, noise).spectral_radius if steps is None else None
    for sizes in SHORT if entries > EXACT_ENTRIES else ():
        rough = numerics.moment_growth(optimizer, noise, order=4, method="particles", rng=0, **sizes)
        found = FourthMoment(rough.verdict, rough.value, rough.error, steps, second)
        if found.trusted or rough.verdict == "does not exist":
            return found
    exact = numerics.moment_growth(optimizer, noise, order=4)
    return FourthMoment(exact.verdict, exact.value, exact.error, steps, second)
