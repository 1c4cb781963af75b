r"""The robust risk of a Gaussian population as the solver wants it: derivatives by the weights and by their norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._dual_norm import DualNorm
from ._robust_solver import Certificate, Partials

__all__ = ["C0", "GaussianRisk"]

Array: TypeAlias = NDArray[np.float64]

#: The mean of the absolute value of a standard normal variable.
C0 = float(np.sqrt(2.0 / np.pi))


@dataclass(frozen=True)
class GaussianRisk:
    """The risk as the solver wants it."""

    covariance: Array
    weights: Array
    label_noise: float
    radius: float
    norm: DualNorm

    residual_scale = 1.0

    @property
    def dim(self) -> int:
        """The number of weights."""
        return len(self.weights)

    @property
    def weight_scale(self) -> float:
        """The size of the weights that make the labels."""
        return float(np.sqrt(np.mean(self.weights**2))) or 1.0

    def partials(self, w: Array, size: float, mu: float = 0.0, held: NDArray[np.intp] | None = None) -> Partials:
        """Value and derivatives by the weights and by their norm."""
        e = w - self.weights
        a = self.covariance @ e
        v = float(np.hypot(np.sqrt(max(float(e @ a), 0.0)), self.label_noise))
        eps, t = self.radius, self.radius * size
        pull = 1.0 + C0 * t / v
        return Partials(
            0.5 * v**2 + C0 * t * v + 0.5 * t**2,
            pull * a,
            eps * (C0 * v + t),
            pull * self.covariance - C0 * t / v**3 * np.outer(a, a),
            eps * C0 / v * a,
            eps**2,
        )

    def residuals(self, w: Array) -> tuple[Array, Array]:
        """None rests on a kink: they have a density."""
        return np.zeros(0), np.zeros((0, self.dim))

    def strength(self, w: Array) -> Array:
        """Of no residual."""
        return np.zeros(0)

    def check(self, w: Array) -> None:
        """There is always a minimiser."""

    def certify(self, w: Array, signs: Array) -> Certificate:
        """The length of a subgradient, the norm's part of it chosen where it is free."""
        partials = self.partials(w, float(self.norm.of(w)))
        g = self.norm.gradient(w)
        free = self.norm.kinked_coordinates(w)
        if self.norm.q == 1.0 and self.radius:
            g[free] = np.clip(-partials.w[free] / partials.n, -1.0, 1.0)
        elif np.isinf(self.norm.q) and len(free):
            shares = np.maximum(-partials.w[free] * np.sign(w[free]), 0.0)
            g[free] = shares / (shares.sum() or 1.0) * np.sign(w[free])
        size = float(np.linalg.norm(partials.w + partials.n * g))
        at_zero = float(np.linalg.norm(self.covariance @ self.weights))
        return Certificate("gradient norm", size, size / at_zero if at_zero else 0.0)
