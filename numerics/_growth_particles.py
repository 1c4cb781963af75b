r"""Growth rates of moments of random products by interacting particles.

Unit vectors are stretched by independent factors, weighted with the s-th power of what they were stretched by, and
resampled where the weights have become uneven; the product of the mean weights estimates
:math:`\mathrm E |A_n \cdots A_1 e|^s` without bias.  Its logarithm, which grows like :math:`n \log k(s)`, is too low on
average: each mean weight m of M particles with variance v takes :math:`v / (2 m^2)` off, which is added back, and
counted as an error as well.  Several populations, independent of each other, give the standard error.  (A population
dynamics for generalised Lyapunov exponents: ``vanneste2010``.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._products import Products

__all__ = ["ParticleGrowth", "particle_growth"]

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class ParticleGrowth:
    """Estimates of a growth rate by independent populations.

    Attributes
    ----------
    rates : ndarray, shape (repetitions,)
        Of the logarithm of the moment in a step, over the second half of the run.
    drift : float
        By how much the mean rate over the last quarter differs from that over the quarter before, and what of it
        chance explains (one standard error): a population that has not yet found the fastest way to grow drifts.
    drift_error : float
    bias : float
        What was added back to the rates, in the mean.
    """

    rates: Array
    drift: float
    drift_error: float
    bias: float

    @property
    def rate(self) -> float:
        """The mean of the estimates."""
        return float(self.rates.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: from the spread between populations, the bias, and the drift beyond what chance explains."""
        spread = float(self.rates.std(ddof=1) / math.sqrt(self.rates.size))
        return math.hypot(spread, self.bias, max(0.0, abs(self.drift) - 2.0 * self.drift_error))


def particle_growth(
    products: Products, order: float, rng: np.random.Generator, *, particles: int, steps: int, repetitions: int
) -> ParticleGrowth:
    """Grow populations of unit vectors and report how fast their s-th powers grow.

    Parameters
    ----------
    products : Products
    order : float
        The power s.
    rng : numpy.random.Generator
    particles : int
        Unit vectors of one population.
    steps : int
    repetitions : int
        Independent populations.
    """
    count = repetitions * particles
    states = rng.standard_normal((count, products.slots, products.directions))
    states /= _lengths(states)[:, None, None]
    logs = np.zeros((repetitions, particles))
    banked = np.zeros(repetitions)
    marks = {steps // 2: banked, steps - steps // 4: banked, steps: banked}
    taken = np.zeros(repetitions)
    for step in range(1, steps + 1):
        states = products.step(states, products.noise.draw(rng, count))
        lengths = _lengths(states)
        with np.errstate(divide="ignore", invalid="ignore"):
            states = np.where(lengths[:, None, None] > 0.0, states / lengths[:, None, None], states)
            stretch = lengths.reshape(logs.shape) ** order
            before = np.exp(logs - logs.max(axis=1, keepdims=True))
            logs = logs + order * np.log(lengths).reshape(logs.shape)
        before /= before.sum(axis=1, keepdims=True)
        mean = np.sum(before * stretch, axis=1, keepdims=True)
        if step > steps // 2:
            taken += 0.5 * np.sum(before**2 * (stretch / mean - 1.0) ** 2, axis=1)
        top = logs.max(axis=1)
        weights = np.exp(logs - top[:, None])
        means = weights.mean(axis=1)
        if step in marks:
            marks[step] = banked + top + np.log(means)
        for which in np.flatnonzero(means**2 < 0.5 * np.mean(weights**2, axis=1)):
            banked[which] += top[which] + math.log(means[which])
            parents = _systematic(weights[which], rng) + which * particles
            states[which * particles : (which + 1) * particles] = states[parents]
            logs[which] = 0.0
    half, three, end = (marks[k] for k in (steps // 2, steps - steps // 4, steps))
    taken /= steps - steps // 2
    rates = (end - half) / (steps - steps // 2) + taken
    differences = (end - three) / (steps // 4) - (three - half) / (steps - steps // 4 - steps // 2)
    drift_error = float(differences.std(ddof=1) / math.sqrt(repetitions))
    return ParticleGrowth(rates, float(differences.mean()), drift_error, float(taken.mean()))


def _lengths(states: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("cai,cai->c", states, states)))


def _systematic(weights: Array, rng: np.random.Generator) -> NDArray[np.intp]:
    """Indices drawn in proportion to the weights, with one random number."""
    edges = np.cumsum(weights)
    places = (rng.random() + np.arange(weights.size)) * (edges[-1] / weights.size)
    return np.asarray(np.minimum(np.searchsorted(edges, places, side="right"), weights.size - 1), dtype=np.intp)
