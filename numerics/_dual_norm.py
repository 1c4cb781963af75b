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
from ._arrays import number, shown

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
        try:
            limit = isinstance(norm, float | np.floating) and norm == np.inf
            p = float("inf") if limit else number("norm", norm, least=1)
        except InvalidProblemError as error:
            raise InvalidProblemError(
                f"norm must be the order of the attack's l_p norm, a number of at least 1: 2, numpy.inf, 1 or any "
                f"between them (quasi-norms below 1 have no dual); got {shown(norm)}"
            ) from error
        q = 1.0 if np.isinf(p) else float("inf") if p == 1.0 else p / (p - 1.0)
        return cls(p, q)

    @property
    def excess(self) -> float:
        """``q - 1`` without the rounding of q."""
        return 0.0 if self.q == 1.0 else 1.0 / (self.p - 1.0) if self.p > 1.0 else float("inf")

    def of(self, w: Array) -> Array:
        """The norm, over the last axis."""
        return _norm(w, self.q)

    def attack_norm(self, delta: Array) -> float:
        """The attack's own norm of a vector."""
        return float(_norm(delta, self.p))

    def gradient(self, w: Array) -> Array:
        """A subgradient over the last axis; 0 where w is 0, its coordinates 0 where those of w are."""
        if self.q == 1.0:
            return np.sign(w)
        if np.isinf(self.q):
            top = (np.abs(w) == np.abs(w).max(axis=-1, keepdims=True, initial=0.0)) * np.sign(w)
            return np.asarray(top / np.maximum(np.abs(top).sum(axis=-1, keepdims=True), 1.0))
        if self.q == 2.0:
            size = self.of(w)[..., None]
            return np.asarray(w / np.where(size > 0, size, 1.0))
        total = _powers(w, self.q).sum(axis=-1, keepdims=True)
        return np.asarray(np.sign(w) * _powers(w, self.excess) / np.maximum(total, 1.0) ** (1.0 / self.p))

    def hessian(self, w: Array) -> Array:
        """The Hessian at a point w != 0 off the kinks, shape (d, d); 0 for q = 1 and q = inf."""
        d = len(w)
        if self.q == 1.0 or np.isinf(self.q):
            return np.zeros((d, d))
        # With x = w / |w|: (q - 1) / |w| times diag(|x|^(q-2)) - g g'.  The shares |x|^q add up to 1, so a diagonal
        # entry is |x_i|^(q-2) times the shares of the others, which no subtraction has to find.
        powers = _powers(w, self.q)
        shares = powers / powers.sum()
        # infinite at coordinates of 0 for q < 2, which callers keep out
        curvature = _powers(np.where(w == 0.0, np.inf, w) if self.q < 2.0 else w, self.q - 2.0, np.abs(w).max())
        curvature = curvature / powers.sum() ** ((self.q - 2.0) / self.q)
        g = self.gradient(w)
        out = -np.outer(g, g)
        out[np.diag_indices(d)] = curvature * ((1.0 - np.eye(d)) @ shares)
        return np.asarray(self.excess / float(self.of(w)) * out)

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
        size, g, curvature = self.terms(rho)
        return size, g * slope, curvature * np.outer(slope, slope) + np.diag(g * bend)

    def kinked_coordinates(self, w: Array) -> NDArray[np.intp]:
        """Where the norm has no Hessian: coordinates of 0 (q < 2), or the largest ones if they tie (q = inf)."""
        if self.q < 2.0:
            return np.flatnonzero(w == 0.0)
        if np.isinf(self.q):
            top = np.flatnonzero(np.abs(w) == np.abs(w).max())
            return top if len(top) > 1 else top[:0]
        return np.zeros(0, dtype=np.intp)


def _powers(w: Array, exponent: float, largest: float | Array | None = None) -> Array:
    """``(|w| / max |w|)^exponent`` over the last axis, accurate for any exponent; 0 where all is 0."""
    size = np.abs(w)
    top = np.max(size, axis=-1, keepdims=True, initial=0.0) if largest is None else np.asarray(largest)
    safe = np.where(top > 0, top, 1.0)
    # A high power magnifies the rounding of a ratio near 1; the difference to 1 is exact there.
    near = size > 0.5 * safe
    logarithm = np.log1p((np.where(near, size, safe) - safe) / safe)
    return np.asarray(np.where(near, np.exp(exponent * logarithm), (size / safe) ** exponent) * (top > 0))


def _norm(w: Array, order: float) -> Array:
    """The norm of any order over the last axis, without overflow or underflow on the way."""
    top = np.max(np.abs(w), axis=-1, initial=0.0)
    if np.isinf(order):
        return np.asarray(top)
    if order == 1.0:
        return np.asarray(np.abs(w).sum(axis=-1))
    if order == 2.0:
        return np.asarray(top * np.linalg.norm(w / np.where(top > 0, top, 1.0)[..., None], axis=-1))
    return np.asarray(top * np.maximum(_powers(w, order).sum(axis=-1), 1.0) ** (1.0 / order))
