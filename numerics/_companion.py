r"""The whole recursion as one matrix, solved without the eigenbasis.

The slots of all coordinates stacked, slot after slot, follow :math:`Z' = (I + D) Z + B \xi` with
:math:`D = \sum_k D_k \otimes H^k` and :math:`B = \sum_k b_k \otimes H^k`.  The stationary covariance solves the Stein
equation in increments,

.. math:: D Z + Z D^\top + D Z D^\top + B C B^\top = 0 ,

by the same doubling and the same dense system as `solve_stein`.  D is formed to twice the working precision: with
momentum near 1 its entries hide a rate of the size of their own rounding.  Directions that are flat, and reached by no
noise, are taken out first, for they are never forgotten.

H and C come in units of powers of two, and so do the slots, so that nothing on the way overflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError, NonStationaryError
from ..theory import Recursion, recursion
from . import _stein_methods as methods
from ._accurate import Pair, product
from ._forward_error import frobenius
from ._kernel import to_fraction
from ._polynomial import binary_exponent
from ._problem import Problem
from ._spectral_law import in_doubles

__all__ = ["KRONECKER_LIMIT", "StackedLaw", "equation_residual", "stacked_law"]

Array: TypeAlias = NDArray[np.float64]

#: Largest number of stacked coordinates for which the dense Kronecker system (its fourth power) is formed.
KRONECKER_LIMIT = 64


@dataclass(frozen=True, eq=False)
class StackedLaw:
    """The covariance of all slots of a problem along ``basis``, slots in units of powers of two."""

    problem: Problem
    value: Array
    basis: Array | None
    exponents: Sequence[int]

    def block(self, a: int, b: int) -> Array:
        """The covariance of two slots, in the caller's coordinates and units."""
        d = self.value.shape[0] // (len(self.exponents) - 1)
        block = self.value[a * d : (a + 1) * d, b * d : (b + 1) * d]
        if self.basis is not None:
            block = self.basis @ block @ self.basis.T
        return in_doubles(self.problem.leave(block), self.exponents[a] + self.exponents[b] + self.exponents[-1])


def stacked_law(problem: Problem, method: str) -> StackedLaw:
    """Solve for all slots of a checked problem by "doubling" or "kronecker".

    Raises
    ------
    NonStationaryError
        If the method does not converge in double precision.
    InvalidProblemError
        If the dense system is too large.
    """
    step = recursion(problem.optimizer)
    slots, d = len(step.slots), problem.hessian.shape[0]
    if method == "kronecker" and slots * d > KRONECKER_LIMIT:
        raise InvalidProblemError(
            f"method='kronecker' forms a dense system of size (slots * d)^2 = {(slots * d) ** 2}; it is meant for "
            f"slots * d <= {KRONECKER_LIMIT}, here slots * d = {slots * d}. Use 'spectral' or 'doubling'."
        )
    hessian, noise, basis = problem.plain_hessian, problem.plain_noise, None
    directions = problem.directions
    if directions.flat.size:
        basis = np.eye(d) if directions.basis is None else directions.basis
        basis = basis[:, directions.moving]
        hessian, noise = basis.T @ hessian @ basis, basis.T @ noise @ basis
        hessian, noise = 0.5 * (hessian + hessian.T), 0.5 * (noise + noise.T)
    if not hessian.size:
        return StackedLaw(problem, np.zeros((0, 0)), basis, [0] * (slots + 1))
    increment, excitation, exponents = _stacked(step, hessian, noise)
    solve = methods.doubling(increment.high) if method == "doubling" else methods.kronecker(increment.high)
    found = None if solve is None else methods.refined(solve, increment, Pair.of(excitation))
    if found is None or not found.converged:
        raise NonStationaryError(
            f"method={method!r} did not converge for {problem.optimizer!r}: the recursion is too close to the "
            f"stability edge, or forgets too slowly, for double precision; use method='spectral'"
        )
    return StackedLaw(problem, found.value.high, basis, exponents)


def _stacked(step: Recursion, hessian: Array, noise: Array) -> tuple[Pair, Array, list[int]]:
    """D, B C B' and the exponents of the slots' units, the last that of the noise."""
    size, d = len(step.slots), hessian.shape[0]
    unit, noise_exponent = binary_exponent(hessian), binary_exponent(noise)
    hessian, noise = np.ldexp(hessian, -unit), np.ldexp(noise, -noise_exponent)
    increments = _in_unit(
        [[to_fraction(c) for row in layer for c in row] for layer in step.increment_coefficients], unit
    )
    gains = _in_unit([[to_fraction(c) for c in layer] for layer in step.noise_gain_coefficients], unit)
    sizes = np.array([float(sum(abs(c) for c in entry)) for entry in zip(*increments, strict=True)]).reshape(size, size)
    scale = np.frexp(scipy.linalg.lapack.dgebal(sizes, scale=1, permute=0)[3])[1] - 1
    # the slots' units: those that balance D, times one that makes the largest gain 1
    reach = [max(abs(layer[a]) for layer in gains) / Fraction(2) ** int(scale[a]) for a in range(size)]
    largest = max(reach)
    common = largest.numerator.bit_length() - largest.denominator.bit_length() if largest else 0
    exponents = [int(e) + common for e in scale]
    powers = [Pair.of(np.eye(d))]
    for _ in range(max(len(increments), len(gains)) - 1):
        powers.append(product(powers[-1], Pair.of(hessian)))
    high, low = np.zeros((size, d, size, d)), np.zeros((size, d, size, d))
    gain = np.zeros((size, d, d))
    for a in range(size):
        for layer, power in zip(gains, powers, strict=False):
            gain[a] += float(layer[a] / Fraction(2) ** exponents[a]) * power.high
        for b in range(size):
            entry = Pair.of(np.zeros((d, d)))
            for layer, power in zip(increments, powers, strict=False):
                if layer[a * size + b]:
                    entry = entry + power.times(layer[a * size + b] * Fraction(2) ** (exponents[b] - exponents[a]))
            high[a, :, b], low[a, :, b] = entry.high, entry.low
    stacked = gain.reshape(size * d, d)
    excitation = stacked @ noise @ stacked.T
    increment = Pair(high.reshape(size * d, -1), low.reshape(size * d, -1))
    return increment, 0.5 * (excitation + excitation.T), [*exponents, noise_exponent]


def _in_unit(layers: list[list[Fraction]], unit: int) -> list[list[Fraction]]:
    """Coefficients of the powers of H as those of the powers of H / 2^unit."""
    return [[c * Fraction(2) ** (unit * k) for c in layer] for k, layer in enumerate(layers)]


def equation_residual(step: Recursion, hessian: Array, noise: Array, blocks: list[list[Array]]) -> float:
    r"""The relative residual of the Stein equation, recomputed from H, C and the slot blocks of a solution.

    The largest, over the pairs of slots, of :math:`\|DZ + ZD^\top + DZD^\top + BCB^\top\|_F` over the sum of the
    norms of the four terms, each restricted to that pair of slots (slots have units of their own).
    """
    size = len(step.slots)
    layers = [np.array(layer, dtype=np.float64) for layer in step.increment_coefficients]
    gains = [np.array(layer, dtype=np.float64) for layer in step.noise_gain_coefficients]

    def apply(columns: list[Array]) -> list[Array]:
        """``sum_k sum_s D_k[a, s] H^k columns[s]`` for each slot a."""
        out = [np.zeros_like(noise) for _ in range(size)]
        for s, column in enumerate(columns):
            for k, layer in enumerate(layers):
                if not any(later[:, s].any() for later in layers[k:]):
                    break
                column = hessian @ column if k else column
                for a in np.flatnonzero(layer[:, s]):
                    out[a] += layer[a, s] * column
        return out

    def excitation(a: int, b: int) -> Array:
        """``sum_kl b_k[a] b_l[b] H^k C (H^l)'``."""
        left = _powers_sum(hessian, [g[a] for g in gains], noise)
        return _powers_sum(hessian, [g[b] for g in gains], left.T).T

    moved = [apply([blocks[s][b] for s in range(size)]) for b in range(size)]
    worst = 0.0
    for a in range(size):
        row = apply([moved[s][a].T for s in range(size)])
        for b in range(size):
            terms = (moved[b][a], moved[a][b].T, row[b].T, excitation(a, b))
            total = sum(frobenius(t) for t in terms)
            if total > 0.0:
                worst = max(worst, frobenius(np.asarray(sum(terms))) / total)
    return worst


def _powers_sum(hessian: Array, coefficients: list[float], right: Array) -> Array:
    """``sum_k coefficients[k] H^k right`` by Horner's rule."""
    out = coefficients[-1] * right
    for c in coefficients[-2::-1]:
        out = hessian @ out + c * right if out.any() else c * right
    return out
