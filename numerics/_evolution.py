r"""The law of pairs of eigen-directions after any number of steps, in double-double arithmetic.

Along the eigenvalues x and y the state follows :math:`z' = A z + b \xi`.  After n steps a covariance Z between the two
directions, and gradient noise of covariance c, have become

.. math:: A(x)^n Z A(y)^{n\top} + c\,K_n , \qquad K_n = \sum_{t<n} A(x)^t\, b(x) b(y)^\top A(y)^{t\top} .

Both are built by doubling, :math:`K_{2n} = K_n + A^n K_n A^{n\top}`, so :math:`10^9` steps take thirty doublings and
carry an error of about :math:`10^9 \cdot 10^{-31}`.  No root of A is ever taken: critical damping is no special case.
Steps with other hyper-parameters continue from where the last ones ended, without a rounding in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..theory import Optimizer, recursion
from ._extended import Extended, identity, polynomial_values
from ._kernel import to_fraction

__all__ = ["Evolution", "Steps", "mirror", "step_coefficients", "step_matrices", "steps_of", "still"]

Array: TypeAlias = NDArray[np.float64]
Tile: TypeAlias = tuple[slice, slice]

#: Entries of the matrices of all pairs of a tile: small enough for the temporaries to stay in cache.
_TILE = 16384
#: A product of two powers below this adds nothing, in whatever units the slots are.
_FORGOTTEN = 2.0**-240
#: Squarings after which a contracting mode, however slow in double precision, is forgotten.
_SQUARINGS = 64


@dataclass(frozen=True, eq=False)
class Steps:
    """A and b of one step at n eigenvalues: shapes (m, m, n) and (m, 1, n)."""

    transition: Extended
    gain: Extended


def step_matrices(optimizer: Optimizer, h: Array) -> Steps:
    """A(h) = I + D(h) and b(h) of a bound optimizer, from their exact coefficients."""
    return steps_of(*step_coefficients(optimizer), h)


def step_coefficients(optimizer: Optimizer) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """The exact ascending coefficients in h of the entries of D, row by row, and of b."""
    step = recursion(optimizer)
    layers, gains = step.increment_coefficients, step.noise_gain_coefficients
    m = len(step.slots)
    increment = [[to_fraction(layer[p][q]) for layer in layers] for p in range(m) for q in range(m)]
    return increment, [[to_fraction(gain[p]) for gain in gains] for p in range(m)]


def steps_of(increment: Sequence[Sequence[Fraction]], gain: Sequence[Sequence[Fraction]], h: Array) -> Steps:
    """A step from the ascending coefficients in h of the entries of D, row by row, and of b."""
    m, n = len(gain), h.size
    values = polynomial_values([*increment, *gain], h)
    increments, gains = (
        Extended(v.hi.reshape(m, columns, n), v.lo.reshape(m, columns, n))
        for v, columns in ((values[: m * m], m), (values[m * m :], 1))
    )
    return Steps(increments + identity(m, n), gains)


@dataclass(frozen=True, eq=False)
class Evolution:
    """What any number of steps have made of a start (``power``) and of unit noise (``kernels``, one for each tile).

    Only one triangle of the pairs is kept: a tile is a slice of rows and the columns from its first row on.
    """

    power: Extended
    tiles: tuple[Tile, ...]
    kernels: tuple[Extended, ...] | None

    def advance(self, steps: Steps, count: int) -> Evolution:
        """``count`` more steps, all the same.  Infinities and NaN tell of an overflow: see `finite`."""
        with np.errstate(over="ignore", invalid="ignore"):
            power, rungs = _ladder(steps, count)
            kernels = []
            for index, (rows, columns) in enumerate(self.tiles):
                kernel = _pairs(steps.gain, steps.gain, rows, columns)
                for half, gain in rungs:
                    if _reach(half, rows) * _reach(half, columns) < _FORGOTTEN:
                        break
                    kernel = kernel + _carried(half, kernel, rows, columns)
                    if gain is not None:
                        kernel = kernel + _pairs(gain, gain, rows, columns)
                if self.kernels is not None:
                    kernel = kernel + _carried(power, self.kernels[index], rows, columns)
                kernels.append(kernel)
            return replace(self, power=power @ self.power, kernels=tuple(kernels))

    def repeated_forever(self) -> tuple[Evolution, NDArray[np.bool_]]:
        """The same steps again and again: a law without memory, and which eigenvalues do not forget their start.

        If there are any, the law is not meaningful.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            powers = [self.power]
            reach = np.max(np.abs(self.power.hi), axis=(0, 1))
            while len(powers) <= _SQUARINGS and np.any(reach >= _FORGOTTEN) and powers[-1].finite():
                powers.append(powers[-1] @ powers[-1])
                reach = np.max(np.abs(powers[-1].hi), axis=(0, 1))
            kept = ~(reach < _FORGOTTEN)
            if kept.any() or self.kernels is None:
                return self, kept
            kernels = []
            for (rows, columns), start in zip(self.tiles, self.kernels, strict=True):
                kernel = start
                for power in powers:
                    if _reach(power, rows) * _reach(power, columns) < _FORGOTTEN:
                        break
                    kernel = kernel + _carried(power, kernel, rows, columns)
                kernels.append(kernel)
            return replace(self, power=Extended.of(np.zeros_like(self.power.hi)), kernels=tuple(kernels)), kept

    def finite(self) -> bool:
        """Whether nothing has overflowed."""
        return self.power.finite() and all(kernel.finite() for kernel in self.kernels or ())

    def injected(self, a: int, b: int, noise: Array) -> Array:
        """The covariance of slots a and b that noise of this covariance (in the eigenbasis) has built."""
        out = np.zeros_like(noise)
        for (rows, columns), kernel in self.parts():
            out[rows, columns] = kernel.hi[a, b] * noise[rows, columns]
            mirror(out, rows, columns, kernel.hi[b, a] * noise[rows, columns])
        return out

    def propagated(self, a: int, b: int, start: Extended) -> Array:
        """What is left, in slots a and b, of the covariance ``start`` of shape (m, m, n, n) in the eigenbasis."""
        out = np.empty(start.hi.shape[2:])
        for rows, columns in self.tiles:
            law = start[:, :, rows, columns]
            for first, second in ((a, b), (b, a)) if a != b else ((a, b),):
                left = self.power[first : first + 1, :, rows, None]
                right = self.power[second : second + 1, :, None, columns]
                part = (left @ law @ right.transposed).hi[0, 0]
                if (first, second) == (a, b):
                    out[rows, columns] = part
                if (second, first) == (a, b):
                    mirror(out, rows, columns, part)
        return out

    def parts(self) -> Iterator[tuple[Tile, Extended]]:
        """Every tile of pairs with its kernel."""
        return zip(self.tiles, self.kernels or (), strict=False)


def still(size: int, count: int) -> Evolution:
    """No step yet, for ``size`` slots at ``count`` eigenvalues."""
    return Evolution(identity(size, count), tuple(_tiles(count, size)), None)


def _tiles(count: int, size: int) -> Iterator[Tile]:
    start = 0
    while start < count:
        stop = min(count, start + max(1, _TILE // (size * size * (count - start))))
        yield slice(start, stop), slice(start, count)
        start = stop


def _ladder(steps: Steps, count: int) -> tuple[Extended, list[tuple[Extended, Extended | None]]]:
    """A to the power count, and for every binary digit of it what its doubling needs: A^n, and A^2n b for a 1."""
    power = steps.transition
    rungs: list[tuple[Extended, Extended | None]] = []
    for digit in bin(count)[3:]:
        doubled = power @ power
        odd = digit == "1"
        rungs.append((power, doubled @ steps.gain if odd else None))
        power = doubled @ steps.transition if odd else doubled
    return power, rungs


def _pairs(left: Extended, right: Extended, rows: slice, columns: slice) -> Extended:
    return left[:, :, rows, None] @ right[:, :, None, columns].transposed


def _carried(power: Extended, kernel: Extended, rows: slice, columns: slice) -> Extended:
    return power[:, :, rows, None] @ kernel @ power[:, :, None, columns].transposed


def _reach(power: Extended, part: slice) -> float:
    return float(np.max(np.abs(power.hi[:, :, part])))


def mirror(out: Array, rows: slice, columns: slice, values: Array) -> None:
    """Fill the other triangle: ``values[i, j]`` belongs at (j, i), below the diagonal."""
    size = rows.stop - rows.start
    out[columns.start + size :, rows] = values[:, size:].T
    square = out[rows, rows]
    lower = np.tril_indices(size, -1)
    square[lower] = values[:, :size].T[lower]
