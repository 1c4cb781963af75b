r"""The tests behind `compare`: Student statistics of linear functionals of first and second moments.

Under a true prediction the mean of a functional :math:`\langle D,\, x y^\top\rangle` of each replica is known. Where
its direction D does not depend on the replicas that test it, Student's statistic is calibrated for any law of the
iterates and in any dimension. D is chosen in two ways:

fixed
    and tested on all replicas: the prediction itself, in whitened and in its own units. The first sees the size of the
    whole covariance, the second its largest eigen-directions.
chained
    The replicas are cut into K blocks, and those before the k-th propose what the k-th tests: the whole deviation that
    they saw, or its largest entry among eigen-directions or among coordinates. The K - 1 statistics are independent of
    each other; their normal scores are added with the weights :math:`\sqrt{k-1}`, as well as their direction is known.

*Skewness.* Squares are skewed. Hall's cubic corrects Student's statistic to second order, but only where it is
monotone, and with a skewness that the replicas before help to estimate: that of a sample which misses the tail is
small just when the statistic is large. And n replicas cannot rule out a value that none of them happened to take. Of
all laws of skewness :math:`\gamma` the one with two values takes the rarer with probability
:math:`q = \frac12 - \frac12 |\gamma| / \sqrt{\gamma^2 + 4}`, and n replicas miss it with probability
:math:`(1-q)^n`: no smaller p is claimed.

The p-values are combined by the Cauchy distribution, which is exact where they are independent, exact where they are
equal, and right in the tail whatever their dependence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["Outcome", "SecondMoments", "chained_shares", "combined", "mean_test", "second_moment_tests"]

Array = NDArray[np.float64]
#: Scalars of the replicas of a block, what centring at the block's own mean took from their mean.
Scores = tuple[Array, float]
Block = slice

#: Replicas per block, where there are enough for two such blocks; and blocks, at most.
REPLICAS_PER_BLOCK = 200
MOST_BLOCKS = 8
#: Where there are only two blocks the first, which only proposes, is this share of the replicas.
PROPOSING = 1 / 3
#: Smaller tails are reported as this: no approximation vouches for them, and normal scores stay finite.
SMALLEST_TAIL = 1e-300
#: A value that one replica in ten takes can always have been missed: a sample's skewness does not rule that out.
COMMONEST_MISSED = 0.1
#: By how much a sample's skewness may fall short where the tail was hardly seen.
UNDERESTIMATED = 2.0
#: A p-value nearer to 1 than this is taken for it, so that one that agrees too well hides none that does not.
LARGEST_COMBINED = 0.99


@dataclass(frozen=True)
class Outcome:
    """A p-value, and the least that so many replicas can claim."""

    p_value: float
    least: float


@dataclass(frozen=True)
class SecondMoments:
    """Rows x and y, (snapshots, replicas, rank), with E x y^T = ``target`` under the prediction.

    ``sizes`` are the standard deviations of the whitened directions, and ``coordinates``, (n, rank), their
    contributions to each coordinate, with rows of length 1.
    """

    later: Array
    earlier: Array
    target: Array
    sizes: Array
    coordinates: Array

    def deviation(self, block: Block) -> Array:
        """Unbiased E x y^T of these replicas, minus the target."""
        (x, x_spread), (y, y_spread) = self._centred(self.later, block), self._centred(self.earlier, block)
        rank, count = len(self.target), len(x_spread)
        product = x.reshape(-1, rank).T @ y.reshape(-1, rank) / (len(x) * count)
        return np.asarray(product + x_spread.T @ y_spread / (count * (count - 1)) - self.target)

    def scores(self, block: Block, left: Array, right: Array | None = None) -> Scores:
        """<D, x y^T - target> for D = left right^T, each replica's mean over its snapshots."""
        (x, x_spread), (y, y_spread) = self._centred(self.later, block), self._centred(self.earlier, block)
        if right is not None:
            y, y_spread = y @ right, y_spread @ right
        expected = float(np.vdot(left if right is None else left @ right.T, self.target))
        scalars = np.einsum("srk,srk->r", x @ left, y) / len(x) - expected
        taken = float(np.sum((x_spread @ left) * y_spread)) / (len(x_spread) * (len(x_spread) - 1))
        return np.asarray(scalars), taken

    def largest_standard_error(self) -> float:
        """Of the (co)variances along eigen-directions."""
        if not len(self.target):
            return 0.0
        (x, _), (y, _) = (self._centred(rows, slice(None)) for rows in (self.later, self.earlier))
        own = np.einsum("srk,srk->rk", x, y) / len(x)
        return float(np.max(np.std(own, axis=0, ddof=1))) / float(np.sqrt(len(own)))

    @staticmethod
    def _centred(rows: Array, block: Block) -> tuple[Array, Array]:
        own = rows[:, block]
        own_mean = own.mean(axis=0)
        mean = own_mean.mean(axis=0)
        return own - mean, own_mean - mean


def second_moment_tests(moments: SecondMoments) -> tuple[dict[str, Outcome], float]:
    """Every test, by name, and the standard error of the size of the whole, relative to the prediction."""
    rank, replicas = len(moments.target), moments.later.shape[1]
    if rank == 0:
        return {}, 0.0
    everyone = slice(0, replicas)
    whole = moments.scores(everyone, moments.target)
    found = {"whole": _fixed(whole, 0.0)}
    if rank > 1:  # with one direction all of them ask the same
        own_units = moments.sizes[:, None] * moments.target * moments.sizes
        seen = abs(_skewness(whole[0]))
        found["largest directions"] = _fixed(moments.scores(everyone, own_units), seen)
        found |= _chained(
            replicas, lambda before: _directions(moments.deviation(before), moments.coordinates), moments.scores, seen
        )
    squared = float(np.vdot(moments.target, moments.target))
    return found, float(np.std(whole[0], ddof=1)) / float(np.sqrt(replicas)) / squared if squared else float("inf")


def _directions(deviation: Array, coordinates: Array) -> dict[str, tuple[Array, Array | None]]:
    """What the replicas so far propose: everything they saw, or its largest entry, as factors of D = left right^T."""
    # Entries of a Gaussian covariance have variances in proportion to 1 + correlation^2.
    in_directions = deviation / np.sqrt(1.0 + np.eye(len(deviation)))
    i, j = np.unravel_index(np.argmax(np.abs(in_directions)), deviation.shape)
    unit = np.eye(len(deviation))
    found: dict[str, tuple[Array, Array | None]] = {
        "everything": (deviation, None),
        "one eigen-direction": (unit[:, [i]] * deviation[i, j], unit[:, [j]]),
    }
    entries = coordinates @ deviation @ coordinates.T
    a, b = np.unravel_index(
        np.argmax(np.abs(entries) / np.sqrt(1.0 + (coordinates @ coordinates.T) ** 2)), entries.shape
    )
    found["one entry"] = (coordinates[[a]].T * entries[a, b], coordinates[[b]].T)
    return found


def mean_test(rows: Array) -> Outcome:
    """Whether (snapshots, replicas, rank) rows have mean 0."""
    if rows.shape[2] == 0:
        return Outcome(1.0, 1.0)
    means = rows.mean(axis=0)
    return _chained(
        len(means),
        lambda before: {"mean": (means[before].mean(axis=0), None)},
        lambda block, left, _: (means[block] @ left, 0.0),
    )["mean"]


def _chained(
    replicas: int,
    propose: Callable[[Block], dict[str, tuple[Array, Array | None]]],
    scores: Callable[[Block, Array, Array | None], Scores],
    seen: float = 0.0,
) -> dict[str, Outcome]:
    """One-sided p-values, by the name of what is proposed."""
    totals: dict[str, Array] = {}
    weight = 0.0
    for k, (earlier, previous, block) in enumerate(_blocks(replicas), start=1):
        for name, factors in propose(earlier).items():
            scalars, taken = scores(block, *factors)
            normal, most = _student(scalars, taken, np.concatenate([scores(previous, *factors)[0], scalars]), seen)
            totals[name] = totals.get(name, np.zeros(2)) + np.sqrt(k) * np.array([normal, most])
        weight += k
    return {
        name: Outcome(*(float(p) for p in scipy.stats.norm.sf(total / np.sqrt(weight))))
        for name, total in totals.items()
    }


def _blocks(replicas: int) -> Iterator[tuple[Block, Block, Block]]:
    """All replicas before, the block before, the block, from the second block on."""
    count = min(MOST_BLOCKS, max(2, replicas // REPLICAS_PER_BLOCK))
    edges = np.linspace(0, replicas, count + 1).astype(int).tolist()
    if count == 2:
        edges[1] = int(PROPOSING * replicas)
    for k in range(1, count):
        yield slice(0, edges[k]), slice(edges[k - 1], edges[k]), slice(edges[k], edges[k + 1])


def chained_shares(replicas: int) -> tuple[float, float]:
    """How far a deviation shows in the normal score of the tests, and to half of those who propose.

    Relative to a test of known direction with all replicas.
    """
    tested = weight = 0.0
    blocks = list(_blocks(replicas))
    for k, (_, _, block) in enumerate(blocks, start=1):
        tested += float(np.sqrt(k * (block.stop - block.start) / replicas))
        weight += k
    return tested / float(np.sqrt(weight)), float(np.sqrt(blocks[len(blocks) // 2][0].stop / replicas))


def _fixed(scores: Scores, seen: float) -> Outcome:
    """Two-sided p-value."""
    normal, most = _student(*scores, scores[0], seen)
    return Outcome(2.0 * float(scipy.stats.norm.sf(abs(normal))), 2.0 * float(scipy.stats.norm.sf(most)))


def _student(scalars: Array, correction: float, pool: Array, seen: float) -> tuple[float, float]:
    """Student's statistic of the corrected mean as a normal score, and the largest that may be claimed.

    ``pool`` are the scalars, and more like them, whose skewness is taken; ``seen`` is one seen in another direction.
    """
    count, spread, skewness = len(scalars), float(np.std(scalars, ddof=1)), _skewness(pool)
    feared = UNDERESTIMATED * max(abs(skewness), seen)
    rare = min(COMMONEST_MISSED, 0.5 - 0.5 * feared / float(np.sqrt(feared**2 + 4.0)))
    claim = max(float(np.exp(count * np.log1p(-rare))), SMALLEST_TAIL)
    most = max(float(scipy.stats.norm.isf(claim)), 0.0)
    if spread == 0.0:
        return 0.0, most
    a = skewness / float(np.sqrt(count))
    t = (float(scalars.mean()) + correction) / spread * float(np.sqrt(count))
    # Hall's cubic is ((1 + a t/3)^3 - 1)/a + a/6; expanded, it keeps its digits for small a. Where 1 + a t/3 < 0 it
    # turns and would make a claim out of the sample that missed the tail.
    t = max(t, -3.0 / a) if a > 0.0 else min(t, -3.0 / a) if a < 0.0 else t
    corrected = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    tail = max(float(scipy.stats.t.sf(abs(corrected), count - 1)), SMALLEST_TAIL)
    return float(np.copysign(min(scipy.stats.norm.isf(tail), most), corrected)), most


def _skewness(scalars: Array) -> float:
    centred = scalars - scalars.mean()
    variance = float(np.mean(centred**2))
    return float(np.mean(centred**3)) / variance**1.5 if variance > 0.0 else 0.0


def combined(p_values: Sequence[float]) -> float:
    """One p-value for several of whatever dependence, by the Cauchy distribution."""
    if not p_values:
        return 1.0
    p = np.asarray(p_values, dtype=np.float64)
    # cot(pi p) = tan(pi (1/2 - p)) keeps its digits for small p, and so does the tail of arctan(1/mean)/pi.
    mean = float(np.mean(1.0 / np.tan(np.pi * np.clip(p, SMALLEST_TAIL, LARGEST_COMBINED))))
    return float(np.arctan2(1.0, mean) / np.pi)
