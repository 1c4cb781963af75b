"""The growth rate of the moments of one problem's random products, by the best method there is for every order."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
import scipy.optimize

from ..errors import InvalidProblemError, InvalidRuleError, NonStationaryError
from ._growth import LARGEST_ORDER, circle_growth, fourth_growth, planar, scalar_growth
from ._growth_particles import particle_growth
from ._products import Products
from .mean_square import mean_square_stability

__all__ = ["GrowthRates", "Method", "Verdict"]

Method: TypeAlias = Literal["auto", "exact", "particles"]
Verdict: TypeAlias = Literal["exists", "does not exist", "undecided"]

#: Standard errors by which an estimate must be off 0 for a verdict.
CLEAR = 4.0
#: Directions of the operator on the circle; the error is the difference from half as many.
_DIRECTIONS = 512
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
    ) -> None:
        if method not in get_args(Method):
            known = ", ".join(map(repr, get_args(Method)))
            raise InvalidProblemError(f"unknown method {method!r}; the methods are {known}")
        for name, count, least in (("particles", particles, 8), ("steps", steps, 8), ("repetitions", repetitions, 2)):
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
                raise InvalidProblemError(f"{name} must be an integer of at least {least}, got {count!r}")
        self.products, self.method = products, method
        self.particles, self.steps, self.repetitions = int(particles), int(steps), int(repetitions)
        # One seed for every order, so that growth at different orders sees the same batches.
        self.seed = int(np.random.default_rng(rng).integers(2**32))
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
        estimate = particle_growth(
            self.products, order, np.random.default_rng(self.seed), particles=self.particles, steps=self.steps,
            repetitions=self.repetitions,
        )  # fmt: skip
        return estimate.rate, estimate.standard_error, "particles"

    def verdict(self, order: float, log: float, error: float, how: str) -> tuple[Verdict, str]:
        """Whether the moment exists, and why one can say so."""
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
                known[order] = self.at(order)
            return known[order][0] / order

        high = 2.0
        while slope(high) <= 0.0 and high < LARGEST_ORDER:
            high *= 2.0
        if slope(high) <= 0.0:
            status = f"no root up to order {LARGEST_ORDER:g}: the index is larger"
            return LARGEST_ORDER, math.inf, known[high][2], status
        low = high / 2.0 if high > 2.0 else 1.0
        while slope(low) > 0.0:
            if low < _SMALLEST_ORDER:
                raise NonStationaryError(
                    f"{self.products.optimizer!r} has no stationary law with this noise: even moments of order "
                    f"{low:.2g} of its products grow, by {known[low][0]:.3g} in a step on the logarithmic scale"
                )
            low, high = low / 2.0, low
        width = 1e-13 if self.exact else 1e-2
        root = float(scipy.optimize.brentq(slope, low, high, xtol=width * high, rtol=max(0.1 * width, 4e-16)))
        _, error, how = known[min(known, key=lambda order: abs(order - root))]
        step = (1e-3 if self.exact else 0.1) * root
        above = min(root + step, LARGEST_ORDER)
        rise = (self.at(above)[0] - self.at(root - step)[0]) / (above - root + step)
        off = error / rise if rise > 0.0 else math.inf
        status = f"k is 1 there, and log k rises by {rise:.3g} an order"
        return root, math.hypot(off, width * root), how, status
