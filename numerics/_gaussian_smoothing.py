r"""The robust squared loss averaged over Gaussian weights: what the kinks of its residuals amount to.

Over :math:`w \sim N(m, S)` a residual is Gaussian, :math:`r \sim N(\bar r, \tau^2)` with :math:`\tau^2 = x^\top S x`
and the density f at 0, and everything follows from

.. math:: s = \mathrm E\,\mathrm{sgn}(r) = \mathrm{erf}\frac{\bar r}{\sqrt2 \tau} , \qquad
          \mathrm E|r| = \bar r s + 2 \tau^2 f , \qquad
          f = \frac{1}{\sqrt{2\pi}\,\tau} e^{-\bar r^2/(2\tau^2)} .

The kink of :math:`\epsilon |w|_q |r|` has the curvature :math:`2 \epsilon\,\mathrm E[|w|_q \mid r = 0]\,f\,xx^\top`,
however small :math:`\tau` is, and no Hessian of an example has it.  The norm is expanded about m: for q = 1 and q = inf
it is linear as far as its own smooth piece reaches, and all averages are exact there; otherwise they are right to the
first order in :math:`S / |m|^2`.  For q = 1 the kinks of weights near 0 are averaged in the same way,
:math:`|w_i|` becoming :math:`\mathrm E|w_i|`, to leading order: as if independent of the residuals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.special
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ._dual_norm import DualNorm, NormTerms

__all__ = ["Smoothed"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothed:
    """Averages over weights of given mean and covariance; per example, without weight decay and weights."""

    X: Array
    radius: float
    size: float  # of the mean: n
    g: Array  # the norm's gradient there
    bend: Array  # its Hessian
    spread: Array  # S
    moved: Array  # S x, row by row
    residual: Array  # means of the residuals
    variance: Array  # tau^2
    sign: Array  # s
    density: Array  # f
    tilt: Array  # mean over tau^2
    restless: Array  # variances of the norm's gradient beyond those of its linear part, coordinate by coordinate

    @classmethod
    def of(
        cls, X: Array, y: Array, radius: float, norm: DualNorm, mean: Array, spread: Array, weights: Array
    ) -> Smoothed:
        """The averages' ingredients; an example of weight 0 has no kink.

        Raises
        ------
        InvalidProblemError
            If a residual, or for q = 1 a weight, is 0 and does not vary.
        """
        moved = X @ spread
        variance = np.maximum(np.einsum("ni,ni->n", moved, X), 0.0)
        residual = y - X @ mean
        fixed = np.flatnonzero((variance == 0.0) & (residual == 0.0) & (weights > 0))
        if radius and fixed.size:
            raise InvalidProblemError(
                f"the residual of example {fixed[0]} is 0 and the covariance does not move it ({fixed.size} such "
                f"examples), so nothing averages its kink; give a covariance that is positive along its input"
            )
        varies = variance > 0
        tau = np.sqrt(np.where(varies, variance, 1.0))
        ratio = residual / tau
        bell = np.exp(-0.5 * np.minimum(np.abs(ratio), 1e3) ** 2) / (np.sqrt(2.0 * np.pi) * tau)
        density, tilt = np.where(varies, bell, 0.0), np.where(varies, residual / tau**2, 0.0)
        sign = np.where(varies, scipy.special.erf(ratio / np.sqrt(2.0)), np.sign(residual))
        terms, restless = norm.terms(mean), np.zeros(len(mean))
        if norm.q == 1.0 and radius:
            terms, restless = _averaged_sum(mean, np.diagonal(spread))
        return cls(X, radius, *terms, spread, moved, residual, variance, sign, density, tilt, restless)

    @property
    def length(self) -> Array:
        """Mean absolute residuals."""
        return np.asarray(self.residual * self.sign + 2.0 * self.variance * self.density)

    @property
    def overlap(self) -> Array:
        """Covariances of the norm with the residuals."""
        return np.asarray(-self.moved @ self.g)

    @property
    def swing(self) -> float:
        """The variance of the norm."""
        return float(self.g @ self.spread @ self.g)

    @property
    def _averaged(self) -> bool:
        """Whether ``size`` is the mean of the norm already."""
        return bool(self.restless.any())

    def losses(self) -> Array:
        """Mean losses."""
        bend = np.zeros_like(self.bend) if self._averaged else self.bend
        sagging = float(np.vdot(bend, self.spread))
        product = self.size * self.length + self.overlap * self.sign + 0.5 * self.length * sagging
        product += self.density * np.einsum("ni,ni->n", self.moved @ bend, self.moved)
        square = self.size**2 + self.swing + self.size * sagging
        second = self.residual**2 + self.variance
        return np.asarray(0.5 * second + self.radius * product + 0.5 * self.radius**2 * square)

    def gradients(self) -> Array:
        """Mean gradients, shape (N, d)."""
        along = -self.residual - self.radius * (self.size * self.sign + 2.0 * self.density * self.overlap)
        out = along[:, None] * self.X + (self.radius * self.length + self.radius**2 * self.size)[:, None] * self.g
        return np.asarray(out - self.radius * self.sign[:, None] * (self.moved @ self.bend))

    def hessian(self, shares: Array) -> Array:
        """The mean Hessian, over examples of given shares."""
        eps, f = self.radius, 2.0 * self.density * shares
        own = shares + eps * f * (self.size - self.overlap * self.tilt)
        out = self.X.T @ (own[:, None] * self.X)
        mixed = np.outer(self.X.T @ (shares * self.sign), self.g) - self.X.T @ (f[:, None] * (self.moved @ self.bend))
        out -= eps * (mixed + mixed.T)
        out += eps**2 * float(shares.sum()) * np.outer(self.g, self.g)
        out += (eps * float(shares @ self.length) + eps**2 * self.size * float(shares.sum())) * self.bend
        return np.asarray(0.5 * (out + out.T))

    def between(self, weights: Array) -> Array:
        """The covariance over weighted examples of their gradients, averaged over the law."""
        N, curvature = len(weights), self.hessian(weights / len(weights))
        slope = weights @ self.gradients() / N
        out = self._second_moment(weights**2 / N) - np.outer(slope, slope) - curvature @ self.spread @ curvature
        if self._averaged:
            reach = weights * self.radius * (self.length + self.radius * self.size)
            out += np.diag(self.restless) * float(np.var(reach))
        return np.asarray(0.5 * (out + out.T))

    def _second_moment(self, shares: Array) -> Array:
        """The mean of the gradients' outer products, over examples of given shares."""
        eps, f, s, r = self.radius, self.density, self.sign, self.residual
        t, c, v = eps * self.size, eps * self.overlap, eps**2 * self.swing
        even = r**2 + self.variance + 2.0 * (t * self.length + c * s) + t**2 + v
        odd = (r**2 + self.variance) * s + 2.0 * r * self.variance * f + 2.0 * (r * t + c)
        odd = odd + (t**2 + v) * s + 4.0 * t * c * f - 2.0 * c**2 * f * self.tilt
        out = self.X.T @ ((shares * even)[:, None] * self.X)
        mixed = -eps * np.outer(self.X.T @ (shares * odd), self.g)
        out += eps**2 * float(shares @ even) * np.outer(self.g, self.g)
        if self.bend.any():
            turned, pulled = self.moved @ self.bend, eps * (self.bend @ (self.spread @ self.g))
            by_r, by_t = 2.0 * (self.length + t + t**2 * f), 2.0 * (r + t * s)
            mixed -= eps * self.X.T @ (shares[:, None] * (by_t[:, None] * pulled - by_r[:, None] * turned))
            drift = 2.0 * (self.length + t) @ shares * pulled - (shares * by_t) @ turned
            mixed += eps**2 * np.outer(self.g, drift)
            out += eps**2 * float(shares @ even) * (self.bend @ self.spread @ self.bend)
        out += mixed + mixed.T
        return np.asarray(0.5 * (out + out.T))


def _averaged_sum(mean: Array, variances: Array) -> tuple[NormTerms, Array]:
    """The mean of the sum of absolute Gaussian weights, with derivatives, and what their signs vary by beyond those."""
    stuck = np.flatnonzero((variances <= 0.0) & (mean == 0.0))
    if stuck.size:
        raise InvalidProblemError(
            f"weight {stuck[0]} is 0 and the covariance does not move it ({stuck.size} such weights), so nothing "
            f"averages the norm's kink; face() is the problem without the weights that stay 0"
        )
    varies = variances > 0
    std = np.sqrt(np.where(varies, variances, 1.0))
    ratio = mean / std
    sign = np.where(varies, scipy.special.erf(ratio / np.sqrt(2.0)), np.sign(mean))
    bell = np.exp(-0.5 * np.minimum(np.abs(ratio), 1e3) ** 2) / (np.sqrt(2.0 * np.pi) * std)
    bend = np.where(varies, 2.0 * bell, 0.0)
    terms = float(np.sum(mean * sign + variances * bend)), sign, np.diag(bend)
    return terms, np.maximum(1.0 - sign**2 - bend**2 * variances, 0.0)
