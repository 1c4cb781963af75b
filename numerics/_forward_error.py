r"""How wrong a law can be: first-order bounds of what the rounding of an eigen-decomposition does to a covariance.

**Theorem.**  Let the computed eigenbasis be that of :math:`H + E`, and the noise in it be known up to dC.  The state
covariance Z of :math:`z' = A z + B\xi` then changes, to first order, by the solution of the Stein equation with

.. math:: R = dA\,Z\,A^\top + A\,Z\,dA^\top + dB\,C\,B^\top + B\,C\,dB^\top + B\,dC\,B^\top

on its right, :math:`dA_{ik} = A[h_i, h_k]\,E_{ik}` with divided differences, and likewise dB.  In the eigenbasis the
solution is :math:`\sum_t A_i^t R_{ij} A_j^{t\top}`, and for its entry between the slots a and b

.. math:: |dZ_{ij}^{ab}| \le \sum_{pq} |R_{ij}^{pq}| \sum_n k_n^{ap}(i)\, k_n^{bq}(j) , \qquad
          k_n^{ap}(i)^2 = \sum_{2^{n-1} \le t < 2^n} (A_i^t)_{ap}^2

by the Cauchy-Schwarz inequality within each block of times.  Unlike one inequality for all times, this knows that a
fast direction and a slow one overlap for a short time only.  The blocks are summed exactly by doubling, and the sum
over n is a product of two d x blocks matrices.  Likewise, with the blocks of :math:`A^t b` and of :math:`A^{t+1} b`,
:math:`|(Z A^\top)_{kj}^{sq}| \le |c_{kj}| \sum_n r_n^s(k)\, {r'}_n^q(j)`.

What is of second order is at most :math:`\theta/(1-\theta)` times the first, in the norm of all slots, with
:math:`\theta` the norm of the map that E puts into the equation times that of the solution operator; where
:math:`\theta > 1/10` nothing is claimed.

Slots are measured in powers of two of the size of b, and H in a power of two, so that nothing overflows.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import AccuracyWarning
from ..theory import Optimizer
from ._evolution import step_coefficients
from ._polynomial import binary_exponent

__all__ = ["ACCURATE", "LARGEST_THETA", "HessianError", "Responses", "frobenius", "warn_if_inaccurate"]

Array: TypeAlias = NDArray[np.float64]
Lagged: TypeAlias = Callable[[int, int], Array]

#: Error bounds above this are warned of.
ACCURATE = 1e-6
#: Above this the first order says nothing.
LARGEST_THETA = 0.1
#: Doublings until the rounding of the increment of so many steps shows (in one dimension there is none).
_DOUBLINGS = 40
_DOUBLINGS_1D = 1100


@dataclass(frozen=True, eq=False)
class HessianError:
    r"""A bound on the error E of a Hessian in its computed eigenbasis.

    :math:`E = E_0 + E_1` with :math:`\|E_0\|_2 \le` ``spectral`` (what `eigh` guarantees) and
    :math:`|E_{1,ij}| \le \sum l_i r_j` over ``terms`` of pairs (l, r), symmetrised by the caller where it should be.
    """

    spectral: float = 0.0
    terms: tuple[tuple[Array, Array], ...] = ()

    @property
    def none(self) -> bool:
        """Whether there is no error."""
        return self.spectral == 0.0 and not self.terms

    def scaled(self, factor: float) -> HessianError:
        """Of a Hessian times a number."""
        return HessianError(self.spectral * factor, tuple((left * factor, right) for left, right in self.terms))

    def times(self, sizes: Array) -> Array:
        """Bounds on the entries of E X, from those of X."""
        out = np.zeros_like(sizes)
        if self.spectral:
            # Scaled first, since squares may overflow or underflow.
            exponent = binary_exponent(sizes)
            out += self.spectral * np.ldexp(np.linalg.norm(np.ldexp(sizes, -exponent), axis=0), exponent)
        for left, right in self.terms:
            out += left[:, None] * (right @ sizes)
        return out

    @property
    def entries(self) -> float | Array:
        """Bounds on the entries of E."""
        total: float | Array = self.spectral
        for left, right in self.terms:
            total = total + np.outer(left, right)
        return total


@dataclass(frozen=True, eq=False)
class Responses:
    """What kicks become, for the eigenvalues h of a Hessian: of bound rule, over all times or for ``steps`` of them.

    ``flat`` are the directions that are never forgotten; kicks along them leave the directions that move by turning
    the basis, and are not propagated among themselves.
    """

    optimizer: Optimizer
    h: Array
    flat: NDArray[np.intp]
    steps: int | None = None

    @cached_property
    def _exponent(self) -> int:
        return binary_exponent(self.h)

    @cached_property
    def _exact(self) -> tuple[list[list[list[Fraction]]], list[list[Fraction]]]:
        """Coefficients of D and b in units of ``2**exponent`` for h."""
        increment, gain = _step(self.optimizer)
        m, unit = len(gain), Fraction(2) ** self._exponent
        shifted = [[c * unit**k for k, c in enumerate(entry)] for entry in (*increment, *gain)]
        return [shifted[m * p : m * (p + 1)] for p in range(m)], shifted[m * m :]

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Exponents of the slots' units: the size of b, or of what one more step makes of it where that is 0."""
        increment, gain = self._exact
        sizes = [sum((abs(c) for c in entry), Fraction(0)) for entry in gain]
        for _ in gain:
            sizes = [
                own or sum((sum((abs(c) for c in e), Fraction(0)) * s for e, s in zip(row, sizes, strict=True)), own)
                for own, row in zip(sizes, increment, strict=True)
            ]
        return tuple(_exponent_of(size) for size in sizes)

    def in_units(self) -> tuple[list[list[Fraction]], list[list[Fraction]], Array]:
        """The exact coefficients of the entries of D, row by row, and of b in these units, and h in its own."""
        increment, gain = self._exact
        size = [Fraction(2) ** u for u in self.units]
        rows = [
            [c * size[q] / size[p] for c in entry] for p, row in enumerate(increment) for q, entry in enumerate(row)
        ]
        return rows, [[c / size[p] for c in entry] for p, entry in enumerate(gain)], self._local

    @cached_property
    def _coefficients(self) -> tuple[Array, Array]:
        """Coefficients of D, shape (degree + 1, m, m), and of b, shape (degree + 1, m), in the slots' units."""
        increment, gain = self._exact
        m, unit = len(gain), [Fraction(2) ** u for u in self.units]
        degree = max(len(e) for row in (*increment, gain) for e in row)
        d, b = np.zeros((degree, m, m)), np.zeros((degree, m))
        for p in range(m):
            for k, c in enumerate(gain[p]):
                b[k, p] = float(c / unit[p])
            for q in range(m):
                for k, c in enumerate(increment[p][q]):
                    d[k, p, q] = float(c * unit[q] / unit[p])
        return d, b

    @cached_property
    def _local(self) -> Array:
        return np.ldexp(self.h, -self._exponent)

    @cached_property
    def _increments(self) -> Array:
        """D at every eigenvalue, shape (n, m, m)."""
        return _horner(self._coefficients[0], self._local)

    @property
    def increments(self) -> Array:
        """D at every eigenvalue in the units of the slots, shape (n, m, m)."""
        return self._increments

    @cached_property
    def _gains(self) -> Array:
        """The gains b at every eigenvalue, shape (n, m)."""
        return _horner(self._coefficients[1], self._local)

    @cached_property
    def _transitions(self) -> Array:
        return self._increments + np.eye(len(self.units))

    @cached_property
    def kicks(self) -> Array:
        """k: root sums of squares of the entries of A^t, shape (m to, m from, n, blocks)."""
        m = len(self.units)
        columns = [self._blocks(np.broadcast_to(np.eye(m)[:, p : p + 1], (self.h.size, m, 1))) for p in range(m)]
        return _stacked(columns).swapaxes(0, 1)

    @cached_property
    def noise(self) -> tuple[Array, Array]:
        """The blocks r and r': root sums of squares of the slots of A^t b and A^(t+1) b, shape (m, n, blocks)."""
        kick = self._gains[:, :, None]
        both = _stacked([self._blocks(kick), self._blocks(self._transitions @ kick)])
        return both[0], both[1]

    def overlap(self, a: int, p: int, b: int, q: int) -> Array:
        """Bounds on what kicks of slots p and q make of the covariance of a and b, for every pair of directions."""
        return self._kept(self.kicks[a, p] @ self.kicks[b, q].T)

    @cached_property
    def _overlap_of_all(self) -> Array:
        """For all slots together."""
        every = np.sqrt(np.sum(self.kicks**2, axis=(0, 1)))
        return self._kept(every @ every.T)

    def _kept(self, overlap: Array) -> Array:
        if self.flat.size:
            overlap[np.ix_(self.flat, self.flat)] = 0.0
        return overlap

    @cached_property
    def _slopes(self) -> tuple[Array, Array]:
        """The largest divided differences of D and b, entry by entry, in units of H."""
        d, b = self._coefficients
        powers = np.arange(len(d), dtype=np.float64)
        return np.asarray(np.tensordot(powers, np.abs(d), axes=1)), np.asarray(powers @ np.abs(b))

    def right_hand_side(
        self, hessian: HessianError, noise: Array, noise_error: Array | float, lagged: Lagged | None = None
    ) -> dict[tuple[int, int], Array]:
        """Bounds on the entries of R for pairs of slots, from those of C and dC in the eigenbasis.

        ``lagged(s, q)`` bounds the entries of (Z A') between the slots s and q, where Z is not the law of all times.
        """
        error = hessian.scaled(2.0**-self._exponent)
        (slopes, bends), gains, m = self._slopes, np.abs(self._gains), len(self.units)
        before, after = self.noise
        absolute = np.abs(noise)
        one_sided: dict[tuple[int, int], Array] = {}

        def add(entries: Array, weights: Array, q: int) -> None:
            for p in np.flatnonzero(weights).tolist():
                term = weights[p] * entries
                one_sided[p, q] = one_sided[p, q] + term if (p, q) in one_sided else term

        for q in range(m) if not error.none else ():
            for s in np.flatnonzero(slopes.any(axis=0)).tolist():
                sizes = absolute * (before[s] @ after[q].T) if lagged is None else lagged(s, q)
                add(error.times(sizes), slopes[:, s], q)
            if bends.any():
                add(error.times(absolute) * gains[:, q], bends, q)
        out: dict[tuple[int, int], Array] = {}
        for p, q in itertools.product(range(m), repeat=2):
            total = np.outer(gains[:, p], gains[:, q]) * noise_error
            if (p, q) in one_sided:
                total = total + one_sided[p, q]
            if (q, p) in one_sided:
                total = total + one_sided[q, p].T
            if np.any(total):
                out[p, q] = total
        return out

    def power(self, count: int) -> Array:
        """A to a power at every eigenvalue, shape (n, m, m), well enough for a bound."""
        identity = np.eye(len(self.units))
        total, factor = np.zeros_like(self._increments), self._increments
        while count:
            if count & 1:
                total = total + factor + total @ factor
            count >>= 1
            factor = 2.0 * factor + factor @ factor if count else factor
        return total + identity

    def damped(self, rate: float, steps: int) -> Responses:
        """For so many steps of ``A exp(-rate)``."""
        out = replace(self, steps=steps)
        shift = (self._increments - np.expm1(rate) * np.eye(len(self.units))) * np.exp(-rate)
        vars(out)["_increments"] = shift
        return out

    def durations(self, a: int, p: int, count: int) -> Array:
        """Bounds on the sums of ``|(A^t)_ap|`` over the first ``count`` times, shape (n,)."""
        blocks = self.kicks.shape[-1]
        starts = np.concatenate([[0.0], 2.0 ** np.arange(blocks - 1.0)])
        times = np.minimum(np.maximum(count - starts, 0.0), np.maximum(starts, 1.0))
        # Cauchy-Schwarz within each block; the last may stand for all that come after it.
        times[-1] = max(count - starts[-1], 0.0)
        return np.asarray(self.kicks[a, p] @ np.sqrt(times))

    def slope(self, p: int, q: int) -> float:
        """The largest divided difference of an entry of D, in units of H."""
        return float(self._slopes[0][p, q])

    def times(self, hessian: HessianError, sizes: Array) -> Array:
        """Bounds on the entries of E X in units of H, from those of X."""
        return hessian.scaled(2.0**-self._exponent).times(sizes)

    def theta(self, hessian: HessianError) -> float:
        """The size of the change relative to what is changed: the second order is this small against the first."""
        if hessian.none:
            return 0.0
        size = max(1.0, float(np.max(np.linalg.norm(self._transitions, axis=(1, 2)))))
        entries = hessian.scaled(2.0**-self._exponent).entries
        change = float(np.sum(self._slopes[0])) * size * (entries + np.transpose(entries))
        return float(np.max(self._overlap_of_all * change, initial=0.0))

    def first_order(self, right: Mapping[tuple[int, int], Array], a: int = 0, b: int = 0) -> Array:
        """Bounds on the entries of dZ between two slots, in units of ``2**(units[a] + units[b])``."""
        n = self.h.size
        return sum((self.overlap(a, p, b, q) * entries for (p, q), entries in right.items()), np.zeros((n, n)))

    def change(
        self,
        hessian: HessianError,
        noise: Array,
        noise_error: Array,
        *,
        a: int = 0,
        b: int = 0,
        lagged: Lagged | None = None,
    ) -> Array | None:
        """Bounds on the entries of dZ between two slots, in units of ``2**(units[a] + units[b])``; None: nothing known.

        ``noise`` and ``noise_error`` bound the entries of C and dC in the eigenbasis.  What is of second order is added
        to the diagonal, as a whole: only the Frobenius norm of the result is a bound.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            theta = self.theta(hessian)
            if not theta <= LARGEST_THETA:
                return None
            right = self.right_hand_side(hessian, noise, noise_error, lagged)
            entries = self.first_order(right, a, b)
            if theta and right:
                rest = theta / (1.0 - theta) * frobenius(self._overlap_of_all * sum(right.values()))
                entries = entries + rest * np.eye(self.h.size)
        return entries if np.isfinite(entries).all() else None

    def _blocks(self, kicks: Array) -> Array:
        """Root sums of squares of every slot over the times 0, 1, 2-3, 4-7, ...: shape (m, n, blocks)."""
        m = len(self.units)
        moving = np.setdiff1d(np.arange(self.h.size), self.flat)
        d, total = self._increments, kicks @ kicks.swapaxes(1, 2)
        last = (_DOUBLINGS_1D if m == 1 else _DOUBLINGS) if self.steps is None else _DOUBLINGS_1D
        if self.steps is not None:
            last = min(last, max(self.steps - 1, 0).bit_length())
        blocks = [np.diagonal(total, axis1=1, axis2=2)]
        largest = blocks[0].sum(axis=1)
        for n in range(last):
            if m > 1 and n >= _DOUBLINGS:
                # What is left after so many steps is constant, or nearly so: as many times more of the same.
                blocks.append(2.0 * blocks[-1])
                continue
            moved = total + d @ total
            moved = moved + moved @ d.swapaxes(1, 2)
            total = total + moved
            d = 2.0 * d + d @ d
            blocks.append(np.maximum(np.diagonal(moved, axis1=1, axis2=2), 0.0))
            sums = blocks[-1].sum(axis=1)
            largest = largest + sums
            forgotten = not moving.size or np.all(sums[moving] <= 2.0**-60 * largest[moving])
            if forgotten and (self.steps is None or not self.flat.size):
                break
        else:
            if self.steps is None and m > 1 and moving.size:
                blocks.append(self._tail(kicks, blocks, moving))
        return np.sqrt(np.moveaxis(np.stack(blocks, axis=-1), 1, 0))

    def _tail(self, kicks: Array, blocks: Sequence[Array], moving: NDArray[np.intp]) -> Array:
        """The squares after the last block, from the exact sums over all times."""
        # Imported here: a kernel is what the laws, whose errors these are, are made of.
        from ._kernel import kicked_variances

        total = np.zeros_like(blocks[0])
        for p, (mantissas, exponents) in enumerate(kicked_variances(self.optimizer, self.h[moving])):
            for a, unit in enumerate(self.units):
                total[moving, a] += np.ldexp(mantissas[a], exponents[a] + 2 * self.units[p] - 2 * unit)
        # Of unit kicks in every slot; these are at most so large.
        total *= np.sum(kicks**2, axis=(1, 2))[:, None] if kicks.shape[2] == 1 else 1.0
        rest = np.maximum(total - sum(blocks), 0.0) + 1e-3 * total
        rest[self.flat] = 4.0 * np.max(rest, axis=0, initial=0.0)
        return np.asarray(rest)


def _stacked(parts: Sequence[Array]) -> Array:
    """Arrays of different numbers of blocks, the last axis, as one."""
    most = max(part.shape[-1] for part in parts)
    return np.stack([np.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, most - p.shape[-1])]) for p in parts])


def frobenius(a: Array) -> float:
    """The Frobenius norm, of whatever size the entries are: their squares may overflow or underflow."""
    exponent = binary_exponent(a)
    return float(np.ldexp(np.linalg.norm(np.ldexp(a, -exponent)), exponent))


def warn_if_inaccurate(what: str, error: float, cause: str, *, stacklevel: int = 3) -> None:
    """Warn of an error bound that is too large to be passed over."""
    if not error <= ACCURATE:
        known = f"its relative error may be {error:.1e}"
        bound = "no bound on its relative error is known" if math.isinf(error) else known
        warnings.warn(f"{what}: {bound}. {cause}", AccuracyWarning, stacklevel=stacklevel)


def _horner(coefficients: Array, x: Array) -> Array:
    out = np.broadcast_to(coefficients[-1], (x.size, *coefficients.shape[1:]))
    point = x.reshape(-1, *(1,) * (coefficients.ndim - 1))
    for layer in coefficients[-2::-1]:
        out = out * point + layer
    return np.asarray(out)


@functools.lru_cache(maxsize=256)
def _step(optimizer: Optimizer) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    return step_coefficients(optimizer)


def _exponent_of(size: Fraction) -> int:
    """The binary exponent of a positive rational, 0 for 0, whatever its size."""
    return size.numerator.bit_length() - size.denominator.bit_length() if size else 0
