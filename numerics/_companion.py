r"""The whole recursion as one matrix, solved without the eigenbasis.

The slots of all coordinates stacked, slot after slot, follow :math:`Z' = (I + D) Z + B \xi` with
:math:`D = \sum_k D_k \otimes H^k` and :math:`B = \sum_k b_k \otimes H^k`.  The stationary covariance solves the Stein
equation in increments,

.. math:: D Z + Z D^\top + D Z D^\top + B C B^\top = 0 .

Doubling squares the step map: after k squarings the increment is that of :math:`2^k` steps, and Z holds their noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ..errors import InvalidProblemError
from ..theory import Recursion

__all__ = ["KRONECKER_LIMIT", "Companion", "companion", "equation_residual", "solve_by_doubling", "solve_by_kronecker"]

Array: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)

#: Largest number of stacked coordinates for which the dense Kronecker system (its fourth power) is formed.
KRONECKER_LIMIT = 64
#: Squarings after which the slowest mode has had 2**60 steps to be forgotten.
_SQUARINGS = 60
_IDEMPOTENT = 1e-3


@dataclass(frozen=True)
class Companion:
    """D and Q = B C B' of the stacked recursion, each slot in units ``scale`` that balance D."""

    increment: Array
    excitation: Array
    scale: Array
    slots: int

    def block(self, z: Array, a: int, b: int) -> Array:
        """Slot block (a, b) of a solution, in the slots' own units."""
        d = z.shape[0] // self.slots
        return np.asarray(z[a * d : (a + 1) * d, b * d : (b + 1) * d] * (self.scale[a] * self.scale[b]))


def companion(step: Recursion, hessian: Array, noise: Array) -> Companion:
    """Stack the recursion of every coordinate."""
    size, d = len(step.slots), hessian.shape[0]
    layers = [np.array(layer, dtype=np.float64) for layer in step.increment_coefficients]
    gains = [np.array(layer, dtype=np.float64) for layer in step.noise_gain_coefficients]
    largest = float(np.max(np.abs(hessian)))
    sizes = sum(np.abs(layer) * largest**k for k, layer in enumerate(layers))
    _, (scale, _) = scipy.linalg.matrix_balance(sizes, permute=False, separate=True)
    powers = [np.eye(d)]
    for _ in range(max(len(layers), len(gains)) - 1):
        powers.append(powers[-1] @ hessian)
    increment, gain = np.zeros((size * d, size * d)), np.zeros((size * d, d))
    for k, layer in enumerate(layers):
        increment += np.kron(layer * scale / scale[:, None], powers[k])
    for k, layer in enumerate(gains):
        gain += np.kron((layer / scale)[:, None], powers[k])
    return Companion(increment, _symmetrised(gain @ noise @ gain.T), scale, size)


def solve_by_doubling(system: Companion) -> tuple[Array, int] | None:
    """Squared Smith iteration: the solution and the number of modes that are never forgotten; None where it diverges.

    The step map tends to the projector on the modes that are never forgotten (0 if there are none).  Once it is
    idempotent to three digits, three more squarings leave the eighth power of what is missing.  What rounding put
    into the modes that are never forgotten is projected out at the end.
    """
    d, z = system.increment, system.excitation
    left, settled = _SQUARINGS, False
    while left:
        with np.errstate(over="ignore", invalid="ignore"):
            dz = d @ z
            z = _symmetrised(2.0 * z + dz + dz.T + dz @ d.T)
            change = d + d @ d
            d = d + change
        if not (np.isfinite(z).all() and np.isfinite(d).all()):
            return None
        left -= 1
        if not settled and np.max(np.abs(change)) <= _IDEMPOTENT:
            left, settled = 3, True
    if not settled:
        return None
    kept = round(d.shape[0] + float(np.trace(d)))
    return (_symmetrised(d @ z @ d.T), kept) if kept else (z, 0)


def solve_by_kronecker(system: Companion, *, singular: bool) -> Array:
    """Solve the equation as one dense linear system, by least squares of minimum norm where it is ``singular``."""
    d = system.increment
    n = d.shape[0]
    if n > KRONECKER_LIMIT:
        raise InvalidProblemError(
            f"method='kronecker' forms a dense system of size (slots * d)^2 = {n**2}; it is meant for "
            f"slots * d <= {KRONECKER_LIMIT}, here slots * d = {n}. Use 'spectral' or 'doubling'."
        )
    eye = np.eye(n)
    operator = np.kron(d, eye) + np.kron(eye, d) + np.kron(d, d)
    right = -system.excitation.ravel()
    if singular:
        solution = scipy.linalg.lstsq(operator, right, cond=n**2 * EPS, check_finite=False)[0]
    else:
        solution = scipy.linalg.solve(operator, right, check_finite=False)
    return _symmetrised(solution.reshape(n, n))


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
            total = sum(float(np.linalg.norm(t)) for t in terms)
            if total > 0.0:
                worst = max(worst, float(np.linalg.norm(sum(terms))) / total)
    return worst


def _powers_sum(hessian: Array, coefficients: list[float], right: Array) -> Array:
    """``sum_k coefficients[k] H^k right`` by Horner's rule."""
    out = coefficients[-1] * right
    for c in coefficients[-2::-1]:
        out = hessian @ out + c * right if out.any() else c * right
    return out


def _symmetrised(a: Array) -> Array:
    return 0.5 * (a + a.T)
