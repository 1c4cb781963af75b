r"""The first two moments of an epoch whose steps are affine maps, exactly averaged over every order of the examples.

With :math:`\tilde z = (1, z)` and the affine map of a batch as a matrix :math:`\tilde A_S`, the second moment of the
state after k batches, averaged over all ordered choices of disjoint batches, is a linear function of that before:

.. math:: \mathcal F_k(Y) = \operatorname{mean}_{S_1, \dots, S_k}
          \tilde A_{S_k} \cdots \tilde A_{S_1}\, Y\, \tilde A_{S_1}^\top \cdots \tilde A_{S_k}^\top .

Orders that have used up the same set U of examples continue alike, so the sums are kept for sets, not for orders:
:math:`\mathcal F_U = \sum_{S \subset U} \tilde A_S\, \mathcal F_{U \setminus S}\, \tilde A_S^\top`.  Twelve examples
one by one are 24,576 products instead of 479,001,600 orders.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from ..errors import InvalidProblemError
from ..theory import Optimizer

__all__ = ["MomentMap", "affine_maps", "check_size", "epoch_moments"]

Array: TypeAlias = NDArray[np.float64]

#: The most products of a batch with a set of examples.
MOST_PRODUCTS = 600_000
#: And the most floating-point operations that they may take.
MOST_OPERATIONS = 2e10


@dataclass(frozen=True, eq=False)
class MomentMap:
    """A linear map of symmetric matrices Y of order n, as the images of the n(n+1)/2 unit ones, shape (., n, n)."""

    images: Array

    @property
    def order(self) -> int:
        """The n of the matrices."""
        return int(self.images.shape[1])

    def __call__(self, moments: Array) -> Array:
        """The image of a symmetric matrix, exactly symmetric."""
        image = np.tensordot(moments[np.triu_indices(self.order)], self.images, axes=1)
        return np.asarray(np.triu(image) + np.triu(image, 1).T)

    @property
    def mean(self) -> tuple[Array, Array]:
        """The affine map of the mean: its matrix and its shift."""
        first = np.flatnonzero(np.triu_indices(self.order)[0] == 0)
        return self.images[first[1:], 0, 1:].T, self.images[0, 0, 1:]

    @property
    def spread(self) -> Array:
        """The linear part, on the distinct entries of a covariance of the state."""
        rows, columns = np.triu_indices(self.order)
        inner = rows > 0
        return self.images[inner][:, rows[inner], columns[inner]].T


def affine_maps(
    optimizer: Optimizer, hessians: Array, gradients: Array, centre: Array, batch_size: int
) -> tuple[list[int], Array]:
    """Every batch as a set of bits, and its step on (1, z - centre) as a matrix, shape (., n, n).

    The rule's own function steps: ``hessians`` (N, d, d) and ``gradients`` (N, d) at w = 0 are the examples'.
    """
    total, d = gradients.shape
    m = len(optimizer.rule.slots)
    optimizer = optimizer.replace(**{name: float(value) for name, value in optimizer.values.items()})
    batches = list(itertools.combinations(range(total), batch_size))
    members = np.array(batches)
    curvature, slope = hessians[members].mean(axis=1), gradients[members].mean(axis=1)
    # The centre and the centre plus every unit vector, by slot, for every batch: (m, batches, 1 + m d, d).
    points = (centre + np.vstack([np.zeros(m * d), np.eye(m * d)])).reshape(1 + m * d, m, d)
    state = tuple(np.broadcast_to(points[:, slot], (len(batches), 1 + m * d, d)) for slot in range(m))
    stepped = optimizer.step(state, lambda w: w @ curvature + slope[:, None])
    after = np.concatenate(stepped, axis=2) - centre
    maps = np.zeros((len(batches), 1 + m * d, 1 + m * d))
    maps[:, 0, 0] = 1.0
    maps[:, 1:, 0] = after[:, 0]
    maps[:, 1:, 1:] = (after[:, 1:] - after[:, :1]).swapaxes(1, 2)
    return [sum(1 << i for i in batch) for batch in batches], maps


def check_size(total: int, batch_size: int, order: int) -> None:
    """Refuse what would take too long, with the counts."""
    batches = total // batch_size
    used = batch_size * np.arange(batches)
    # Logarithms: of thousands of examples the counts have thousands of digits, and exactly they would take minutes.
    products = float(logsumexp(_log_choices(total, used) + _log_choices(total - used, batch_size)))
    work = math.log(2.0 * order**4 * (order + 1))
    if products <= math.log(MOST_PRODUCTS) and products + work <= math.log(MOST_OPERATIONS):
        return
    last = total - batch_size * batches
    orders = float(gammaln(total + 1) - batches * gammaln(batch_size + 1) - gammaln(last + 1))
    raise InvalidProblemError(
        f"the {_number(orders)} orders of {total} examples in batches of {batch_size}, summed over sets of examples "
        f"used up, are {_number(products)} products of second moments of {order - 1} numbers, "
        f"{_number(products + work)} operations; at most {_number(math.log(MOST_PRODUCTS))} and "
        f"{_number(math.log(MOST_OPERATIONS))} are enumerated. Take fewer examples, or method='expansion'."
    )


def _log_choices(total: int | NDArray[np.int64], chosen: int | NDArray[np.int64]) -> Array:
    """Logarithm of the number of ways to choose so many of a total."""
    return np.asarray(gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1))


def _number(logarithm: float) -> str:
    """A number of this natural logarithm, in three digits: 1.23e+4567."""
    decades = logarithm / math.log(10.0)
    exponent = math.floor(decades)
    if exponent < 6:
        return f"{math.exp(logarithm):,.0f}"
    mantissa = round(10.0 ** (decades - exponent), 2)
    return f"{mantissa:g}e+{exponent}" if mantissa < 10 else f"1e+{exponent + 1}"


def epoch_moments(total: int, batch_size: int, batches: list[int], maps: Array) -> Iterator[MomentMap]:
    """The moments after 0, 1, ... batches of an epoch, to the last whole one."""
    order = maps.shape[1]
    rows, columns = np.triu_indices(order)
    units = np.zeros((1, len(rows), order, order))
    units[0, range(len(rows)), rows, columns] = units[0, range(len(rows)), columns, rows] = 1.0
    yield MomentMap(units[0])
    used, sums = np.zeros(1, dtype=np.int64), units
    for k in range(total // batch_size):
        choices = math.comb(total - k * batch_size, batch_size)
        reached = _sets(total, (k + 1) * batch_size)
        new = np.zeros((len(reached), *units.shape[1:]))
        for batch, step in zip(batches, maps, strict=True):
            sources = np.flatnonzero(used & batch == 0)
            targets = np.searchsorted(reached, used[sources] | batch)
            new[targets] += step @ sums[sources] @ step.T
        # Half the sum with the transpose: the antisymmetric part is rounding, which products would amplify.
        used, sums = reached, (new + new.swapaxes(2, 3)) / (2 * choices)
        yield MomentMap(sums.sum(axis=0))


def _sets(total: int, size: int) -> NDArray[np.int64]:
    """All sets of so many examples, as sorted numbers of bits."""
    bits = np.array(list(itertools.combinations(range(total), size)), dtype=np.int64)
    return np.sort(np.sum(1 << bits, axis=1))
