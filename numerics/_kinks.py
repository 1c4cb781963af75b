r"""Where a robust loss has no Hessian, and how likely weights are to cross over from one smooth piece to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import scipy.special
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ._arrays import rounding_level

__all__ = ["Facets", "Kinks", "LeavingProbability", "check_smooth", "leaving_probability"]

Array: TypeAlias = NDArray[np.float64]
#: Samples drawn at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class Kinks:
    """The kinks of a robust loss on which a point rests.

    Attributes
    ----------
    residuals : tuple of int
        Examples with a residual of 0.
    coordinates : tuple of int
        Weights at which the dual norm has no Hessian: those that are 0, or the largest ones that tie (attack norm 1).
    collapsed : bool
        Whether all weights are 0.
    """

    residuals: tuple[int, ...]
    coordinates: tuple[int, ...]
    collapsed: bool

    @property
    def smooth(self) -> bool:
        """Whether there is none."""
        return not (self.residuals or self.coordinates or self.collapsed)

    def __str__(self) -> str:
        if self.collapsed:
            return "all weights are 0, where the norm in the loss is a cone"
        parts = [
            f"{len(where)} {what} ({', '.join(map(str, where[:8]))}{', ...' if len(where) > 8 else ''})"
            for where, what in (
                (self.residuals, "residuals are 0"),
                (self.coordinates, "weights are on a kink of the norm"),
            )
            if where
        ]
        return " and ".join(parts) or "none"


@dataclass(frozen=True)
class Facets:
    """The linear boundaries of a smooth piece: it holds the points with ``rows @ (w - point) > -distances``."""

    rows: Array
    distances: Array


@dataclass(frozen=True)
class LeavingProbability:
    """The probability that Gaussian weights lie outside the smooth piece of the loss about their mean.

    Attributes
    ----------
    facets : ndarray
        The exact probability of lying beyond each boundary: those of the examples' residuals, then those of the norm.
    sampled : float
        The share of ``samples`` Gaussian draws that lie beyond any.
    standard_error : float
        Of ``sampled``.
    samples : int
    """

    facets: Array
    sampled: float
    standard_error: float
    samples: int

    @property
    def upper(self) -> float:
        """The sum over the boundaries, at most 1: never below the probability."""
        return min(1.0, float(self.facets.sum()))

    @property
    def lower(self) -> float:
        """The largest over the boundaries: never above the probability."""
        return float(self.facets.max(initial=0.0))


class _Attacked(Protocol):
    """What `check_smooth` must know of a problem."""

    @property
    def kinks(self) -> Kinks: ...

    @property
    def radius(self) -> float: ...

    @property
    def norm(self) -> float: ...

    @property
    def collapse_radius(self) -> float: ...


def check_smooth(problem: _Attacked, missing: str, unresolved: Sequence[int] | NDArray[np.intp]) -> None:
    """Refuse what is ``missing`` at an optimum on kinks, or at one whose ``unresolved`` weights leave its size open.

    Raises
    ------
    InvalidProblemError
        With the kinks and the way out.
    """
    kinks, ways = problem.kinks, []
    if len(unresolved):
        which = f"{', '.join(map(str, unresolved[:8]))}{', ...' if len(unresolved) > 8 else ''}"
        limit, near = ("inf", "a weight near 0") if problem.norm > 2 else ("1", "weights next to the largest")
        raise InvalidProblemError(
            f"{missing} at its optimum in double precision: under an attack of norm {problem.norm:.17g} the curvature "
            f"at {near} (here {which}) depends on more digits of it than there are. Attack norms from 1.001 to 10 are "
            f"rarely so; norm={limit} is the limit, with kinks in place of the curvature."
        )
    if kinks.smooth:
        return
    if kinks.collapsed:
        ways.append(
            f"take a radius below collapse_radius = {problem.collapse_radius:.6g} (it is {problem.radius:g}), from "
            f"which on the minimiser is 0 and no quadratic law holds"
        )
    elif kinks.coordinates:
        ways.append("face() is the problem of the other weights alone, with which these stay on their kink")
    if kinks.residuals and not kinks.collapsed:
        ways.append(
            "smoothed_hessian(covariance) and kink_corrected_covariance average the kinks of the residuals over "
            "the law of the weights"
        )
    raise InvalidProblemError(f"{missing} at its optimum: {kinks}. The way out: {'; '.join(ways)}.")


def leaving_probability(
    facets: Facets, covariance: Array, samples: int, rng: np.random.Generator
) -> LeavingProbability:
    """The probability for a Gaussian of a checked covariance about the point."""
    moved = facets.rows @ covariance
    spread = np.sqrt(np.maximum(np.einsum("fi,fi->f", moved, facets.rows), 0.0))
    far = np.where(spread > 0, facets.distances, np.inf) / np.where(spread > 0, spread, 1.0)
    beyond = scipy.special.ndtr(-far)
    h, basis = np.linalg.eigh(covariance)
    kept = h > rounding_level(covariance) if covariance.any() else np.zeros(len(h), dtype=bool)
    root = facets.rows @ (basis[:, kept] * np.sqrt(h[kept]))
    outside = 0
    for start in range(0, samples, _CHUNK):
        draws = rng.standard_normal((min(_CHUNK, samples - start), root.shape[1]))
        outside += int(np.any(draws @ root.T < -facets.distances, axis=1).sum())
    share = outside / samples if samples else float("nan")
    error = float(np.sqrt(share * (1.0 - share) / samples)) if samples else float("nan")
    return LeavingProbability(beyond, share, error, samples)
