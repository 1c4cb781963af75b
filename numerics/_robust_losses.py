r"""The robust losses of finite data as the solver wants them: partial derivatives, kinks, and a dual bound.

For the squared loss, :math:`\tfrac12(|r| + t)^2 = \max_{|\alpha| \le \beta} \alpha r + \beta t - \beta^2/2`; for the
logistic one, :math:`\log(1 + e^{-m}) = \max_{0 \le \pi \le 1} -\pi m + h(\pi)` with the binary entropy h.  Either way
a point of the dual leaves :math:`\min_w -c^\top w + b |w|_q + \tfrac\lambda2 |w|^2`, which is at least
:math:`-|c - c_1|^2/(2\lambda)` for any :math:`|c_1|_p \le b`: a lower bound on the loss, whoever found the point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

from ..errors import InvalidProblemError, ScaleError
from ._dual_norm import DualNorm
from ._robust_solver import Certificate, Partials, Solution

__all__ = ["RobustLogistic", "RobustSquares"]

Array: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]

#: A margin above this makes a logistic loss that might fall for ever; below it, it has not fallen far.
_FAR_OUT = 20.0


@dataclass(frozen=True)
class _Finite:
    """Data, weights over N, the radius, the norm and the weight decay, all in units in which they are about 1.

    ``units`` are the powers of two by which weights, the radius and the loss are to be multiplied.
    """

    X: Array
    y: Array
    shares: Array  # a_n / N
    radius: float
    norm: DualNorm
    l2: float
    units: tuple[float, float, float]

    @classmethod
    def of(cls, X: Array, y: Array, shares: Array, radius: float, norm: DualNorm, l2: float, *, labels: bool) -> Self:
        """The loss of examples of any size; ``labels`` is whether these have a size (-1 and 1 have not)."""
        ex, es = _exponent(X), _exponent(shares)
        ey = _exponent(y) if labels else 0
        weights = ey - ex if labels else -ex
        try:
            decay = math.ldexp(l2, -2 * ex - es)
            reach = math.ldexp(radius, -ex)
            units = (math.ldexp(1.0, weights), math.ldexp(1.0, ex), math.ldexp(1.0, 2 * ey + es))
        except OverflowError:
            units, decay, reach = (0.0, 0.0, 0.0), 0.0, 0.0
        if not all(units) or (l2 > 0.0 and not decay):
            raise ScaleError(
                f"inputs of {np.abs(X).max():.3g}, labels of {np.abs(y).max():.3g}, radius={radius:.3g} and "
                f"l2={l2:.3g} are together beyond double precision; take other units"
            )
        return cls(np.ldexp(X, -ex), np.ldexp(y, -ey), np.ldexp(shares, -es), reach, norm, decay, units)

    @property
    def dim(self) -> int:
        return int(self.X.shape[1])

    @cached_property
    def pull_rounding(self) -> float:
        """The rounding of the pull of `collapse`, in the attack's norm."""
        return (
            4.0
            * float(np.finfo(np.float64).eps)
            * self.norm.attack_norm(np.abs(self.X).T @ (self.shares * np.abs(self.y)))
        )

    def restored(self, found: Solution) -> Solution:
        """A solution in the caller's units."""
        weights, _, loss = self.units
        certificate = replace(found.certificate, value=found.certificate.value * loss)
        return replace(found, w=found.w * weights, certificate=certificate)

    @cached_property
    def _input_scale(self) -> float:
        return float(np.sqrt(np.mean(self.X**2))) or 1.0

    def _left_over(self, c: Array, b: float, w: Array) -> Array:
        """What of c the norm's ball of radius b cannot carry, given that weight decay carries l2 w."""
        carried = c - self.l2 * w
        size = self.norm.attack_norm(carried)
        return np.asarray(c - carried * min(1.0, b / size)) if size else c

    def check(self, w: Array) -> None:
        """There is always a minimiser."""

    def check_minimiser(self, w: Array) -> None:
        """It is one if it is certified."""


class RobustSquares(_Finite):
    """The mean of (|y - x'w| + radius |w|_q)^2 / 2."""

    @cached_property
    def residual_scale(self) -> float:
        """The size of the labels."""
        return float(np.sqrt(np.mean(self.y**2))) or 1.0

    @cached_property
    def weight_scale(self) -> float:
        """The size of weights."""
        return self.residual_scale / self._input_scale

    def partials(self, w: Array, size: float, mu: float, held: Indices | None = None) -> Partials:
        """Value and partial derivatives; residuals smoothed to sqrt(r^2 + mu^2)."""
        r = self.y - self.X @ w
        mu = mu * self.residual_scale
        rho = np.hypot(r, mu) if mu else np.abs(r)
        slope = r / rho if mu else np.sign(r)
        bend = (mu / rho) ** 2 / rho if mu else np.zeros_like(r)
        if held is not None and held.size:
            rho[held], slope[held] = 0.0, 0.0
        total = rho + self.radius * size
        weighted = self.shares * total
        curvature = self.shares * slope**2 + weighted * bend
        return Partials(
            0.5 * float(weighted @ total) + 0.5 * self.l2 * float(w @ w),
            -self.X.T @ (weighted * slope) + self.l2 * w,
            self.radius * float(weighted.sum()),
            self.X.T @ (curvature[:, None] * self.X) + self.l2 * np.eye(self.dim),
            -self.radius * (self.X.T @ (self.shares * slope)),
            self.radius**2 * float(self.shares.sum()),
        )

    def residuals(self, w: Array) -> tuple[Array, Array]:
        """Residuals of the labels."""
        return self.y - self.X @ w, self.X

    def strength(self, w: Array) -> Array:
        """The share of each example, times radius |w|."""
        return self.shares * self.radius * float(self.norm.of(w))

    def certify(self, w: Array, signs: Array) -> Certificate:
        """The duality gap."""
        r = self.y - self.X @ w
        beta = np.abs(r) + self.radius * float(self.norm.of(w))
        loss = 0.5 * float(self.shares @ beta**2) + 0.5 * self.l2 * float(w @ w)
        weighted = self.shares * beta
        alpha = weighted * signs
        c, b = self.X.T @ alpha, self.radius * float(weighted.sum())
        if self.l2 > 0:
            lost = self._left_over(c, b, w)
            bound = float(alpha @ self.y) - 0.5 * float(lost @ lost) / self.l2
        else:
            size = self.norm.attack_norm(c)
            bound = float(alpha @ self.y) * (min(1.0, b / size) if size else 1.0)
        gap = loss - (bound - 0.5 * float(weighted @ beta))
        at_zero = 0.5 * float(self.shares @ self.y**2)
        return Certificate("duality gap", gap, abs(gap) / at_zero if at_zero else 0.0)

    def collapse(self) -> tuple[Array, float]:
        """The vector and the number whose ratio, in the attack's norm, is the radius beyond which w = 0 is optimal."""
        return self.X.T @ (self.shares * self.y), float(self.shares @ np.abs(self.y))


class RobustLogistic(_Finite):
    """The mean of log(1 + exp(-(y x'w - radius |w|_q)))."""

    residual_scale = 1.0

    @cached_property
    def weight_scale(self) -> float:
        """The size of weights."""
        return 1.0 / self._input_scale

    @cached_property
    def _signed(self) -> Array:
        return self.y[:, None] * self.X

    def partials(self, w: Array, size: float, mu: float, held: Indices | None = None) -> Partials:
        """Value and partial derivatives."""
        m = self._signed @ w - self.radius * size
        share = self.shares * scipy.special.expit(-m)
        curvature = share * scipy.special.expit(m)
        return Partials(
            float(self.shares @ np.logaddexp(0.0, -m)) + 0.5 * self.l2 * float(w @ w),
            -self._signed.T @ share + self.l2 * w,
            self.radius * float(share.sum()),
            self._signed.T @ (curvature[:, None] * self._signed) + self.l2 * np.eye(self.dim),
            -self.radius * (self._signed.T @ curvature),
            self.radius**2 * float(curvature.sum()),
        )

    def residuals(self, w: Array) -> tuple[Array, Array]:
        """None has a kink."""
        return np.zeros(0), np.zeros((0, self.dim))

    def strength(self, w: Array) -> Array:
        """Of no residual."""
        return np.zeros(0)

    def certify(self, w: Array, signs: Array) -> Certificate:
        """The duality gap; without weight decay, of the dual point that the least change makes feasible."""
        m = self._signed @ w - self.radius * float(self.norm.of(w))
        loss = float(self.shares @ np.logaddexp(0.0, -m)) + 0.5 * self.l2 * float(w @ w)
        chance = scipy.special.expit(-m)
        if self.l2 > 0:
            weighted = self.shares * chance
            lost = self._left_over(self._signed.T @ weighted, self.radius * float(weighted.sum()), w)
            bound = -0.5 * float(lost @ lost) / self.l2
        else:
            chance, defect = self._feasible(chance)
            bound = -2.0 * float(np.abs(defect) @ np.abs(w))
        gap = loss - bound - float(self.shares @ (scipy.special.entr(chance) + scipy.special.entr(1.0 - chance)))
        at_zero = float(self.shares.sum() * np.log(2.0))
        return Certificate("duality gap", gap, float(abs(gap)) / at_zero)

    def _feasible(self, chance: Array) -> tuple[Array, Array]:
        """The nearest dual point at which the slope of the loss vanishes, for the norm's subgradient that is nearest.

        And what is left of the slope: it weakens the bound by no more than its product with a minimiser.
        """
        weighted = self.shares * chance
        pull, strength = self._signed.T @ weighted, self.radius * float(weighted.sum())
        g = pull / strength if strength else np.zeros(self.dim)
        g = g / max(self.norm.attack_norm(g), 1.0)
        equations = (self._signed - self.radius * g).T * self.shares
        give = np.sqrt(chance * (1.0 - chance))  # so that chances near 0 and 1 stay between them
        size = np.linalg.norm(equations * give, axis=1)
        size = np.where(size > 0, size, 1.0)
        change = np.linalg.lstsq(equations * give / size[:, None], equations @ chance / size, rcond=None)[0]
        moved = np.clip(chance - give * change, 0.0, 1.0)
        return moved, np.asarray(equations @ moved)

    def check(self, w: Array) -> None:
        """Refuse data that a w separates by more than the radius."""
        if self.l2 > 0:
            return
        margins = self._signed @ w - self.radius * float(self.norm.of(w))
        if np.all(margins > 0):
            least = float(margins.min() / np.linalg.norm(w))
            by = "" if self.radius == 0 else f" by more than the attack's reach (radius {self.radius:g})"
            raise InvalidProblemError(
                f"the data are separable{by}: a direction has all margins positive (at least {least:.3g} per unit "
                f"of |w|), so the loss falls for ever along it and has no finite minimiser. Give weight decay, l2 > 0."
            )

    def check_minimiser(self, w: Array) -> None:
        """Refuse a point that only looks like a minimiser: data that a direction separates but for ties.

        Decided by a linear programme without an attack, where ties are common; with one they are a coincidence.
        """
        margins = self._signed @ w
        if self.l2 > 0 or self.radius or margins.max() < _FAR_OUT:
            return
        found = scipy.optimize.linprog(
            -self._signed.sum(axis=0), -self._signed, np.zeros(len(margins)), bounds=[(-1.0, 1.0)] * self.dim
        )
        if found.status == 0 and -found.fun > 1e-9 * np.abs(self._signed).sum():
            raise InvalidProblemError(
                "the data are separable but for ties: a direction has no negative margin and a positive one, so the "
                "loss falls for ever along it and has no finite minimiser. Give weight decay, l2 > 0."
            )

    def collapse(self) -> tuple[Array, float]:
        """The vector and the number whose ratio, in the attack's norm, is the radius beyond which w = 0 is optimal."""
        return self._signed.T @ self.shares, float(self.shares.sum())


def _exponent(a: Array) -> int:
    """The power of two of the size of the largest entry."""
    largest = float(np.max(np.abs(a), initial=0.0))
    return math.frexp(largest)[1] if largest else 0
