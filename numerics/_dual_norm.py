r"""The dual norm that an l_p attack puts into a linear model's loss, with its derivatives, exact and smoothed.

.. math:: \max_{|\delta|_p \le \epsilon} \delta^\top w = \epsilon |w|_q , \qquad \frac1p + \frac1q = 1 .

Where the norm is smooth its gradient is the direction of the worst perturbation.  It has kinks at w = 0, for q = 1
where a coordinate is 0, and for q = inf where the largest coordinates tie; for 1 < q < 2 a coordinate of 0 leaves the
gradient continuous but the curvature infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.special
from numpy.typing import NDArray

from ..errors import InvalidProblemError

__all__ = ["DualNorm", "NormTerms"]

Array: TypeAlias = NDArray[np.float64]
#: Value, gradient and Hessian of a norm at a point.
NormTerms: TypeAlias = tuple[float, Array, Array]


@dataclass(frozen=True)
class DualNorm:
    """The norm of order ``q``, dual to that of an attack of order ``p``."""

    p: float
    q: float

    @classmethod
    def of_attack(cls, norm: object) -> DualNorm:
        """From the attack's order, as NumPy's ``ord``."""
        number = np.asarray(norm)
        if number.ndim != 0 or number.dtype.kind not in "fiu" or not number >= 1:
            raise InvalidProblemError(
                f"norm must be the order of the attack's l_p norm, a number of at least 1: 2, numpy.inf, 1 or any "
                f"between them (quasi-norms below 1 have no dual); got {norm!r}"
            )
        p = float(number)
        q = 1.0 if np.isinf(p) else float("inf") if p == 1.0 else p / (p - 1.0)
        return cls(p, q)

    def of(self, w: Array) -> Array:
        """The norm, over the last axis."""
        return np.asarray(np.linalg.norm(w, ord=self.q, axis=-1)) if w.shape[-1] else np.zeros(w.shape[:-1])

    def attack_norm(self, delta: Array) -> float:
        """The attack's own norm of a vector."""
        return float(np.linalg.norm(delta, ord=self.p)) if delta.size else 0.0

    def gradient(self, w: Array) -> Array:
        """A subgradient over the last axis; 0 where w is 0, its coordinates 0 where those of w are."""
        size = self.of(w)[..., None]
        safe = np.where(size > 0, size, 1.0)
        scaled = w / safe
        if self.q == 1.0:
            return np.sign(w)
        if np.isinf(self.q):
            top = (np.abs(scaled) == 1.0) * np.sign(w)
            return np.asarray(top / np.maximum(np.abs(top).sum(axis=-1, keepdims=True), 1.0))
        if self.q == 2.0:
            return np.asarray(scaled)
        return np.asarray(np.sign(w) * np.abs(scaled) ** (self.q - 1.0))

    def hessian(self, w: Array) -> Array:
        """The Hessian at a point w != 0 off the kinks, shape (d, d); 0 for q = 1 and q = inf."""
        d = len(w)
        if self.q == 1.0 or np.isinf(self.q):
            return np.zeros((d, d))
        size = float(self.of(w))
        g = self.gradient(w)
        if self.q == 2.0:
            return np.asarray((np.eye(d) - np.outer(g, g)) / size)
        scaled = np.abs(w / size)
        if self.q < 2.0:
            # infinite at coordinates of 0, which callers keep out
            curvature = np.where(scaled > 0, np.where(scaled > 0, scaled, 1.0) ** (self.q - 2.0), 0.0)
        else:
            curvature = scaled ** (self.q - 2.0)
        return np.asarray((self.q - 1.0) / size * (np.diag(curvature) - np.outer(g, g)))

    def terms(self, w: Array) -> NormTerms:
        """Value, gradient and Hessian."""
        return float(self.of(w)), self.gradient(w), self.hessian(w)

    def smoothed(self, w: Array, mu: float) -> NormTerms:
        """Those of a convex function without kinks that differs from the norm by O(mu)."""
        d = len(w)
        if self.q == 2.0:
            size = float(np.sqrt(w @ w + mu * mu))
            g = w / size
            return size, g, (np.eye(d) - np.outer(g, g)) / size
        if np.isinf(self.q):
            both = np.concatenate([w, -w]) / mu
            weights = scipy.special.softmax(both)
            g = weights[:d] - weights[d:]
            return (
                float(mu * scipy.special.logsumexp(both)),
                g,
                (np.diag(weights[:d] + weights[d:]) - np.outer(g, g)) / mu,
            )
        rho = np.sqrt(w * w + mu * mu)
        slope, bend = w / rho, (mu / rho) ** 2 / rho
        if self.q == 1.0:
            return float(rho.sum()), slope, np.diag(bend)
        size = float(np.linalg.norm(rho, ord=self.q))
        scaled = rho / size
        g = scaled ** (self.q - 1.0)
        curvature = (self.q - 1.0) / size * scaled ** (self.q - 2.0) * slope**2 + g * bend
        total = g * slope
        return size, total, np.diag(curvature) - (self.q - 1.0) / size * np.outer(total, total)

    def kinked_coordinates(self, w: Array) -> NDArray[np.intp]:
        """Where the norm has no Hessian: coordinates of 0 (q < 2), or the largest ones if they tie (q = inf)."""
        if self.q < 2.0:
            return np.flatnonzero(w == 0.0)
        if np.isinf(self.q):
            top = np.flatnonzero(np.abs(w) == np.abs(w).max())
            return top if len(top) > 1 else top[:0]
        return np.zeros(0, dtype=np.intp)
