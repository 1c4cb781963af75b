r"""The robust risk of a Gaussian population as the solver wants it: derivatives by the weights and by their norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ScaleError
from ._data_directions import SMALLEST
from ._dual_norm import DualNorm
from ._robust_solver import Certificate, Partials

__all__ = ["C0", "GaussianRisk", "Units"]

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

    def residual_std(self, w: Array) -> Array:
        """The standard deviation of the residuals, over the last axis."""
        e = w - self.weights
        spread = np.maximum(np.einsum("...i,...i->...", e @ self.covariance, e), 0.0)
        return np.asarray(np.hypot(np.sqrt(spread), self.label_noise))

    def partials(self, w: Array, size: float, mu: float = 0.0, held: NDArray[np.intp] | None = None) -> Partials:
        """Value and derivatives by the weights and by their norm."""
        e = w - self.weights
        a = self.covariance @ e
        v = float(self.residual_std(w))
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


@dataclass(frozen=True)
class Units:
    """Powers of two, of the inputs and of the weights, in which neither of them nor a residual is above about 1."""

    inputs: int
    weights: int

    @classmethod
    def of(cls, covariance: Array, weights: Array, label_noise: float) -> Units:
        """From the inputs' covariance, the weights that make the labels, and the labels' deviation from them."""
        inputs = math.frexp(float(np.max(np.diagonal(covariance))))[1] // 2
        size = math.frexp(float(np.max(np.abs(weights))))[1]
        return cls(inputs, max(size, math.frexp(label_noise)[1] - inputs))

    def risk(
        self, covariance: Array, weights: Array, label_noise: float, radius: float, norm: DualNorm
    ) -> GaussianRisk:
        """The risk in these units.

        Raises
        ------
        ScaleError
            If the sizes are too far apart.
        """
        try:
            noise, reach = math.ldexp(label_noise, -self.inputs - self.weights), math.ldexp(radius, -self.inputs)
        except OverflowError:
            noise = reach = 0.0
        if noise < 1e-100 or (radius and not reach):  # powers of the noise are divided by
            raise ScaleError(
                f"inputs of variance {np.max(np.diagonal(covariance)):.3g}, weights of {np.max(np.abs(weights)):.3g}, "
                f"label_noise={label_noise:.3g} and radius={radius:.3g} are together beyond double precision"
            )
        scaled = np.ldexp(covariance, -2 * self.inputs), np.ldexp(weights, -self.weights)
        return GaussianRisk(*scaled, noise, reach, norm)

    def scaled(self, w: Array) -> Array:
        """Weights in these units."""
        return np.ldexp(w, -self.weights)

    def power(self, inputs: int, weights: int) -> int:
        """That of a quantity which goes with so many powers of the inputs and weights."""
        return inputs * self.inputs + weights * self.weights

    def restored(self, what: str, value: Array, inputs: int, weights: int) -> Array:
        """Such a quantity in the caller's units.

        Raises
        ------
        ScaleError
            If it overflows or underflows.
        """
        with np.errstate(over="ignore"):
            out = np.ldexp(value, self.power(inputs, weights))
        if not np.all(np.isfinite(out)) or np.any((np.abs(out) < SMALLEST) & (np.abs(value) > SMALLEST)):
            raise ScaleError(
                f"{what} is about {np.max(np.abs(value)):.3g} * 2**{self.power(inputs, weights)}, beyond double "
                f"precision; take other units"
            )
        return np.asarray(out)
