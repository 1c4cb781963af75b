r"""What the order of the examples adds to an epoch, summed over all orders in closed form.

To second order in the learning rate an epoch of plain SGD moves the weights by
:math:`\eta^2 \sum_{j<l} H_l g_j` beyond its contraction, j and l batches and g the gradients at the fixed point.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .problems import LeastSquares
from .quadratic_examples import QuadraticExamples

__all__ = ["hessians_in_parts", "order_sums"]

Array: TypeAlias = NDArray[np.float64]
Examples: TypeAlias = LeastSquares | QuadraticExamples

#: Numbers in the Hessians that are formed at once.
_PART = 1 << 20


def order_sums(problem: Examples, decay: float, gradients: Array, size: int) -> tuple[Array, Array]:
    r"""The mean of H_i g_i, and the covariance over orders of :math:`\sum_{j<l} H_l g_j`, sums of batches j and l.

    With :math:`X_{ab} = H_a g_b` for examples a and b, the sum is :math:`B^{-2} \sum X_{ab}` over the pairs with b in
    an earlier batch than a.  Half of it is symmetric in the order, :math:`-\frac12 \sum_{a \ne b} X_{ab} [a \sim b]` up
    to a constant (:math:`a \sim b`: same batch), half antisymmetric,
    :math:`\frac12 \sum_{a<b} (X_{ab} - X_{ba})\,\mathrm{sign}`, and reversing the order shows them uncorrelated.
    Their second moments are those of patterns of two, three and four examples, and as :math:`\sum_a g_a = 0` all their
    sums are sums over single examples.
    """
    total, d = gradients.shape
    spread = gradients.T @ gradients / total
    own = np.empty_like(gradients)  # H_a g_a
    squares = np.zeros((d, d))  # sum_a H_a C H_a
    mixed = np.zeros((d * d, d))  # sum_a H_a (x) g_a
    mean = np.zeros((d, d))
    for rows, part in hessians_in_parts(problem):
        own[rows] = np.einsum("nij,nj->ni", part, gradients[rows]) + decay * gradients[rows]
        stacked = part.reshape(-1, d * d)
        mixed += stacked.T @ gradients[rows]
        decayed = part + decay * np.eye(d)
        squares += np.einsum("nij,nkj->ik", decayed @ spread, decayed)
        mean += decayed.sum(axis=0)
    tensor = mixed.reshape(d, d, d)  # the decay adds nothing: the gradients sum to zero
    crossed = np.einsum("ijk,lkj->il", tensor, tensor)  # sum_ab H_a g_b g_a' H_b
    full = gradients @ mean  # N H g_a

    odd = 2.0 * (total * squares - crossed)  # sum of (X_ab - X_ba)(X_ab - X_ba)'
    odd_chains = full.T @ full - odd
    even = 2.0 * (total * squares + crossed) - 4.0 * own.T @ own
    even_rows = full - 2.0 * own
    even_chains = even_rows.T @ even_rows - even
    whole = np.outer(even_rows.sum(axis=0), even_rows.sum(axis=0))
    even_rest = whole - 2.0 * even - 4.0 * even_chains

    together, three, four, apart, chain = (float(f) for f in _patterns(total, size))
    covariance = 2.0 * together * even + 4.0 * three * even_chains + four * even_rest - together**2 * whole
    covariance += 2.0 * apart * odd + 4.0 * chain * odd_chains
    return own.mean(axis=0), covariance / (16.0 * float(size) ** 4)


def _patterns(total: int, size: int) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction]:
    """Means over orders of what two, three and four distinct examples do.

    Of a ~ b; of a ~ b ~ c; of a ~ b and c ~ d; of a and b apart; and of sign(a - b) sign(a - c), by the order of their
    batches: 1 where b ~ c, and a third of the time where all three are apart.
    """

    def share(numerator: int, denominator: int) -> Fraction:
        return Fraction(numerator, denominator) if numerator else Fraction(0)

    together = share(size - 1, total - 1)
    three = together * share(size - 2, total - 2) if size > 1 else Fraction(0)
    four = Fraction(0)
    if size > 1 and total > 3:
        pairs = (size - 2) * (size - 3) + (total - size) * (size - 1)
        four = together * share(pairs, (total - 2) * (total - 3))
    chain = Fraction(0)
    if total > 2:
        all_apart = Fraction((total - size) * (total - 2 * size), (total - 1) * (total - 2))
        chain = all_apart / 3 + together * Fraction(total - size, total - 2)
    return together, three, four, 1 - together, chain


def hessians_in_parts(problem: Examples) -> Iterator[tuple[slice, Array]]:
    """The examples' Hessians in parts, shape (., d, d)."""
    d = problem.dim
    length = max(1, _PART // (d * d))
    for first in range(0, problem.num_examples, length):
        rows = slice(first, min(first + length, problem.num_examples))
        if isinstance(problem, LeastSquares):
            inputs = problem.X[rows]
            yield rows, inputs[:, :, None] * inputs[:, None] + problem.l2 * np.eye(d)
        else:
            yield rows, np.asarray(problem.hessians[rows])
