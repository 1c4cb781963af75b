r"""The chained test behind `compare`: earlier blocks of replicas propose the direction that the next one tests.

A block's Student statistic is calibrated for any law, because its direction does not depend on it; the K - 1 statistics
are independent of each other, and their normal scores are added with the weights :math:`\sqrt{k-1}`. The text of
`sgdcov.validation.agreement` derives it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["chained_test", "covariance_direction", "covariance_score", "cross_test", "mean_direction", "mean_score"]

Array = NDArray[np.float64]

#: Replicas per block, where there are enough for two such blocks; and blocks, at most.
REPLICAS_PER_BLOCK = 200
MOST_BLOCKS = 8
#: Smaller tails are reported as this: no approximation vouches for them, and normal scores stay finite.
SMALLEST_TAIL = 1e-300


def chained_test(
    rows: Array, direction: Callable[[Array], Array], score: Callable[[Array, Array], tuple[Array, float]]
) -> float:
    """One-sided p-value of (snapshots, replicas, rank) rows; see the module's text."""
    replicas, rank = rows.shape[1:]
    if rank == 0:
        return 1.0
    blocks = min(MOST_BLOCKS, max(2, replicas // REPLICAS_PER_BLOCK))
    edges = np.linspace(0, replicas, blocks + 1).astype(int)
    total = weight = 0.0
    for k in range(1, blocks):
        scalars, correction = score(rows[:, edges[k] : edges[k + 1]], direction(rows[:, : edges[k]]))
        student = _student(scalars, correction)
        tail = max(float(scipy.stats.t.sf(abs(student), len(scalars) - 1)), SMALLEST_TAIL)
        total += np.sqrt(k) * np.copysign(scipy.stats.norm.isf(tail), student)
        weight += k
    return float(scipy.stats.norm.sf(total / np.sqrt(weight)))


def _student(scalars: Array, correction: float) -> float:
    """Student's statistic of the corrected mean; Hall's cubic removes the effect of skewness to second order."""
    centred = scalars - scalars.mean()
    spread = float(np.std(scalars, ddof=1))
    if spread == 0.0:
        return 0.0
    root = float(np.sqrt(len(scalars)))
    t = (float(scalars.mean()) + correction) / spread * root
    skewness = float(np.mean(centred**3)) / spread**3 / root
    return float(t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6)


def covariance_direction(rows: Array) -> Array:
    """Unbiased covariance minus the identity."""
    own_mean = rows.mean(axis=0)
    mean = own_mean.mean(axis=0)
    centred = (rows - mean).reshape(-1, rows.shape[2])
    spread = own_mean - mean
    covariance = centred.T @ centred / len(centred) + spread.T @ spread / (len(spread) * (len(spread) - 1))
    return np.asarray(covariance - np.eye(rows.shape[2]))


def covariance_score(rows: Array, direction: Array) -> tuple[Array, float]:
    """<M, y y^T - I> of each replica, and what centring at the block's own mean took from their mean."""
    own_mean = rows.mean(axis=0)
    mean = own_mean.mean(axis=0)
    centred, spread = rows - mean, own_mean - mean
    scalars = np.einsum("sri,sri->r", centred @ direction, centred) / len(rows) - np.trace(direction)
    taken = float(np.sum((spread @ direction) * spread)) / (len(spread) * (len(spread) - 1))
    return scalars, taken


def mean_direction(rows: Array) -> Array:
    return np.asarray(rows.mean(axis=(0, 1)))


def mean_score(rows: Array, direction: Array) -> tuple[Array, float]:
    return rows.mean(axis=0) @ direction, 0.0


def cross_test(later: Array, earlier: Array, target: Array) -> float:
    """The same test of E x y^T = target, for centred rows x of ``later`` and y of ``earlier``, (replicas, rank)."""
    rank = len(target)

    def centred(rows: Array) -> tuple[Array, Array]:
        moved = rows[0] - rows[0].mean(axis=0)
        return moved[:, :rank], moved[:, rank:]

    def direction(rows: Array) -> Array:
        x, y = centred(rows)
        return np.asarray(x.T @ y / (len(x) - 1) - target)

    def score(rows: Array, direction: Array) -> tuple[Array, float]:
        x, y = centred(rows)
        products = np.sum((x @ direction) * y, axis=1)
        # Centring at the block's own mean took a share 1/n of the covariance.
        return products - np.vdot(direction, target), float(np.sum(products)) / (len(x) * (len(x) - 1))

    return chained_test(np.concatenate([later, earlier], axis=1)[None], direction, score)
