"""The growth rate of the moments of one problem's random products, by the best method there is for every order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

from ..errors import InvalidProblemError, InvalidRuleError, NonStationaryError
from . import _arrays
from ._growth import LARGEST_ORDER, circle_growth, fourth_growth, planar, scalar_growth
from ._growth_particles import particle_growth
from ._products import Products
from .mean_square import mean_square_stability

__all__ = ["GrowthRates", "Method", "Verdict"]

Array: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["auto", "exact", "particles"]
Verdict: TypeAlias = Literal["exists", "does not exist", "undecided"]

#: Standard errors by which an estimate must be off 0 for a verdict.
CLEAR = 4.0
#: Directions of the operator on the circle; the error is the difference from half as many.
_DIRECTIONS = 512
#: Numbers in the populations, and steps, at most.
LARGEST_POPULATION = 100_000_000
#: Rare inputs that populations must meet in a run.
_SEEN = 100
#: Operations up to which the factors of all examples are diagonalised.
_MOST_WORK = 10**9
#: By how much smaller than asked for are the populations that find the root roughly.
_SKETCH = 8
#: Whole populations that polish a root, at most.
_MOST_POLISHING = 6
_ROOT = "k is 1 there, and log k rises by {rise:.3g} an order"
#: Below this order a root is not told from 0.
_SMALLEST_ORDER = 1e-3


class GrowthRates:
    """log k(s) of one problem at any order, by the best method there is."""

    def __init__(
        self,
        products: Products,
        method: Method,
        *,
        particles: int,
        steps: int,
        repetitions: int,
        rng: np.random.Generator | int | None,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.products, self.method = products, _arrays.choice("method", method, get_args(Method))
        self.particles = _arrays.whole_number("particles", particles, least=8, most=LARGEST_POPULATION)
        self.steps = _arrays.whole_number("steps", steps, least=8, most=LARGEST_POPULATION)
        self.repetitions = _arrays.whole_number("repetitions", repetitions, least=2, most=LARGEST_POPULATION)
        entries = self.particles * self.repetitions * products.size
        if entries > LARGEST_POPULATION:
            raise InvalidProblemError(
                f"{self.repetitions} repetitions of {self.particles} particles of {products.size} entries each are "
                f"{entries} numbers, drawn anew in every step; at most {LARGEST_POPULATION} are held"
            )
        if progress is not None and not callable(progress):
            raise InvalidProblemError(f"progress must be a function of a line of text, got {_arrays.shown(progress)}")
        self.progress = progress
        self._pace: float | None = None
        # One seed for every order, so that growth at different orders sees the same batches.
        self.seed = int(_arrays.random_generator(rng).integers(2**32))
        self.scalar = None if method == "particles" else scalar_growth(products)
        self.planar = None if method == "particles" or self.scalar is not None else planar(products)

    @cached_property
    def bounded(self) -> bool:
        """Whether it is certain that no batch stretches anything, and some shrink everything in the end."""
        if self.scalar is not None:
            finite = self.scalar.coarse is None  # the nodes of a quadrature end where Gaussian inputs do not
            return finite and bool(self.scalar.factors.max() <= 1.0) and self.scalar.lyapunov < 0.0
        products = self.products
        if products.slots != 1 or len(products.layers) != 2:
            return False
        rest, slope = 1.0 + float(products.layers[0][0, 0]), float(products.layers[1][0, 0])
        stretched = max(abs(rest), abs(rest + slope * products.largest_curvature))
        return stretched <= 1.0 and self.mean_square is not None and self.mean_square < 1.0

    @cached_property
    def mean_square(self) -> float | None:
        """k(2), where it is known exactly."""
        try:
            radius = mean_square_stability(self.products.optimizer, self.products.noise).spectral_radius
        except InvalidRuleError:
            return None
        return radius if radius > 0.0 else None

    @property
    def exact(self) -> bool:
        """Whether the growth at every order is known without particles."""
        return self.scalar is not None or self.planar is not None

    def at(self, order: float) -> tuple[float, float, str]:
        """The logarithm of k, its error and the method."""
        if self.scalar is not None:
            how = "batches" if self.scalar.coarse is None else "quadrature"
            return self.scalar.log_moment(order), self.scalar.error(order), how
        if self.method != "particles":
            eps = float(np.finfo(np.float64).eps)
            if order == 2.0 and self.mean_square is not None:
                return math.log(self.mean_square), 64 * eps * self.products.size, "mean square"
            if order == 4.0:
                found = fourth_growth(self.products)
                if found is not None:
                    return found, 1e3 * eps * self.products.size, "fourth moments"
            if self.planar is not None:
                fine, coarse = (circle_growth(self.planar, order, n) for n in (_DIRECTIONS, _DIRECTIONS // 2))
                return fine, abs(fine - coarse) + 64 * eps, "directions"
        if self.method == "exact":
            raise InvalidProblemError(
                f"k({order:g}) is not known exactly for {self.products.optimizer!r} with {self.products.noise!r}; "
                f"method='auto' estimates it"
            )
        return self._particles(order, self.particles)

    def _particles(self, order: float, particles: int) -> tuple[float, float, str]:
        if self.progress is not None:
            work = particles * self.repetitions
            takes = "" if self._pace is None else f", about {self._pace * work * self.steps:.2g} s"
            self.progress(
                f"k({order:.4g}): {self.repetitions} populations of {particles} for {self.steps} steps{takes}"
            )
        start = time.perf_counter()
        estimate = particle_growth(
            self.products, order, np.random.default_rng(self.seed), particles=particles, steps=self.steps,
            repetitions=self.repetitions,
        )  # fmt: skip
        self._pace = (time.perf_counter() - start) / (particles * self.repetitions * self.steps)
        if not self._sees(order, particles):
            return estimate.rate, math.inf, "particles"
        least = self._least(order)
        if least > estimate.rate:
            return least, math.hypot(least - estimate.rate, estimate.standard_error), "particles"
        return estimate.rate, estimate.standard_error, "particles"

    def _sees(self, order: float, particles: int) -> bool:
        """Whether populations of Gaussian inputs meet the inputs that make their moment of an order.

        The factor of a batch grows like the squared norm of its inputs, to the degree p of the rule: along one
        direction :math:`r^{2 p s}` against the chi density :math:`r^{B-1} e^{-r^2/2}`, most at r^2 = B - 1 + 2 p s.
        What lies beyond is as rare as it is large, and populations without it look as if nothing were missing.
        """
        if not self.products.gaussian:
            return True
        size, degree = self.products.batch_size, len(self.products.layers) - 1
        chance = scipy.stats.chi2.sf(size - 1 + 2.0 * degree * order, size)
        return bool(self.repetitions * particles * self.steps * chance >= _SEEN)

    def _least(self, order: float) -> float:
        """A lower bound of log k: the same example again and again, of chance p in a step, gives p rho(A)^s."""
        chances, radii = self._repeated
        with np.errstate(divide="ignore"):
            return float(np.max(np.log(chances) + order * np.log(radii), initial=-math.inf))

    @cached_property
    def _repeated(self) -> tuple[Array, Array]:
        """Chances of batches that are one draw, repeated, and the spectral radii of their factors."""
        products, draws = self.products, self.products.draws
        if draws is None or not products.independent or products.gaussian:
            return np.zeros(0), np.zeros(0)
        if len(draws.chances) * products.size**3 > _MOST_WORK:
            return np.zeros(0), np.zeros(0)
        radii = np.max(np.abs(np.linalg.eigvals(products.matrices(draws.hessians))), axis=1)
        return draws.chances**products.batch_size, radii

    def verdict(self, order: float, log: float, error: float, how: str) -> tuple[Verdict, str]:
        """Whether the moment exists, and why one can say so."""
        if math.isinf(error):
            return "undecided", "the moment is made by inputs so rare that populations of this size do not meet them"
        if self.bounded:
            return "exists", "no batch stretches anything: every moment exists"
        known = self.mean_square if how == "particles" else None
        if known is not None and known >= 1.0 and order >= 2.0:
            return "does not exist", f"there is no second moment: k(2) = {known:.6g}"
        if known is not None and known < 1.0 and order <= 2.0:
            return "exists", f"the second moment exists: k(2) = {known:.6g}"
        off = CLEAR if how == "particles" else 1.0
        if log < -off * error:
            return "exists", f"k({order:g}) is below 1"
        # On the edge itself the moment grows with the number of steps.
        if log > off * error or how in ("batches", "mean square"):
            return "does not exist", f"k({order:g}) is at least 1"
        return "undecided", f"log k({order:g}) = {log:.3g} is within {off:g} errors ({error:.2g}) of 0"

    def index(self) -> tuple[float, float, str, str]:
        """The root of log k(s)/s, which increases: value, error, method and status."""
        known: dict[float, tuple[float, float, str]] = {}

        def slope(order: float) -> float:
            if order not in known:
                known[order] = self.at(order) if self.exact else self._sketch(order)
            return known[order][0] / order

        high = 2.0
        while slope(high) <= 0.0 and high < LARGEST_ORDER and math.isfinite(known[high][1]):
            high *= 2.0
        if math.isinf(known[high][1]):
            high = self._highest_seen()
            known[high] = self.at(high)
            if slope(high) <= 0.0:
                status = (
                    f"no root up to order {high:.3g}: the index is larger. Higher moments are made by inputs so rare "
                    f"that populations of this size do not meet them"
                )
                return high, math.inf, known[high][2], status
        if slope(high) <= 0.0:
            found = self.at(high)  # where a sketch is not enough
            if found[0] <= 0.0:
                status = f"no root up to order {LARGEST_ORDER:g}: the index is larger"
                return LARGEST_ORDER, math.inf, found[2], status
            known[high] = found
        low = max(2.0, high / 2.0) if high > 2.0 else 1.0
        while slope(low) > 0.0:
            if low < _SMALLEST_ORDER:
                raise NonStationaryError(
                    f"{self.products.optimizer!r} has no stationary law with this noise: even moments of order "
                    f"{low:.2g} of its products grow, by {known[low][0]:.3g} in a step on the logarithmic scale"
                )
            low, high = low / 2.0, low
        width = 1e-13 if self.exact else 0.05
        root = float(scipy.optimize.brentq(slope, low, high, xtol=width * high, rtol=max(0.1 * width, 4e-16)))
        if not self.exact:
            return self._polished(root)
        _, error, how = known[min(known, key=lambda order: abs(order - root))]
        step = 1e-3 * root
        above = min(root + step, LARGEST_ORDER)
        rise = (self.at(above)[0] - self.at(root - step)[0]) / (above - root + step)
        off = error / rise if rise > 0.0 else math.inf
        return root, math.hypot(off, width * root), how, _ROOT.format(rise=rise)

    def _highest_seen(self) -> float:
        """The highest order of which whole populations meet what makes it, above 2, where k is known."""
        high = 2.0
        while high < LARGEST_ORDER and self._sees(1.05 * high, self.particles):
            high *= 1.05
        return min(high, LARGEST_ORDER)

    def _sketch(self, order: float) -> tuple[float, float, str]:
        """Log k as `at`, but by a small population where only particles know it: enough to find the root roughly."""
        if order == 2.0 and self.method == "auto":
            return self.at(order)
        return self._particles(order, max(8, self.particles // _SKETCH))

    def _polished(self, root: float) -> tuple[float, float, str, str]:
        """The root near that of the sketches, by secants between whole populations."""
        above = min(1.1 * root, LARGEST_ORDER)
        rise = (self._sketch(above)[0] - self._sketch(0.9 * root)[0]) / (above - 0.9 * root)
        points: list[tuple[float, float]] = []
        for _ in range(_MOST_POLISHING):
            log, error, how = self.at(root)
            points.append((root, log))
            if len(points) > 1 and abs(points[-1][0] - points[-2][0]) > 0.02 * root:
                secant = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
                rise = secant if secant > 0.0 else rise
            if not rise > 0.0:
                return root, math.inf, how, _ROOT.format(rise=rise)
            move = -log / rise
            root = min(max(root + move, 0.5 * root), 1.5 * root, LARGEST_ORDER)
            if abs(move) <= max(0.02 * root, error / rise):
                break
        # what is left of the last move is a secant's error, of the second order; half of it is claimed
        return root, math.hypot(error / rise, 0.5 * move, 1e-2 * root), how, _ROOT.format(rise=rise)
