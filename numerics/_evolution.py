r"""The law of pairs of eigen-directions after any number of steps, in double-double arithmetic.

Along the eigenvalues x and y the state follows :math:`z' = A z + b \xi`.  After n steps a covariance Z between the two
directions, and gradient noise of covariance c, have become

.. math:: A(x)^n Z A(y)^{n\top} + c\,K_n , \qquad K_n = \sum_{t<n} A(x)^t\, b(x) b(y)^\top A(y)^{t\top} .

Both are built by doubling, :math:`K_{2n} = K_n + A^n K_n A^{n\top}`, so :math:`10^9` steps take thirty doublings and
carry an error of about :math:`10^9 \cdot 10^{-31}`.  No root of A is ever taken: critical damping is no special case.
Steps with other hyper-parameters continue from where the last ones ended, without a rounding in between.

Where :math:`A^n - I` is small it is what is doubled, :math:`(A^{2n} - I) = 2 (A^n - I) + (A^n - I)^2`: a learning rate
so small that A itself rounds to I is nothing special.

Behind the matrix axes there may be one of time, so that a thousand phases of a schedule cost a few operations on large
arrays (`running`): maps of phases are composed within blocks, block after block, and then the blocks with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..theory import Optimizer, recursion
from ._extended import Extended, identity, joined, polynomial_values, stacked
from ._kernel import to_fraction

__all__ = ["Evolution", "Steps", "mirror", "running", "step_coefficients", "step_matrices", "steps_of", "still", "unit"]

Array: TypeAlias = NDArray[np.float64]
Tile: TypeAlias = tuple[slice, slice]

#: Entries of the matrices of all pairs of a tile: small enough for the temporaries to stay in cache.
_TILE = 16384
#: A product of two powers below this adds nothing, in whatever units the slots are.
_FORGOTTEN = 2.0**-240
#: Squarings after which a contracting mode, however slow, is forgotten: no double is closer to 0 than 2^-1074.
_SQUARINGS = 1100
#: Up to this size the change A^n - I is doubled, not A^n.
_SMALL = 0.25


@dataclass(frozen=True, eq=False)
class Steps:
    """D = A - I and b of one step at n eigenvalues: shapes (m, m, n) and (m, 1, n), or (m, m, times, n) and so on."""

    increment: Extended
    gain: Extended

    @cached_property
    def transition(self) -> Extended:
        """A."""
        return self.increment + unit(self.increment)


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
    return Steps(increments, gains)


@dataclass(frozen=True, eq=False)
class Evolution:
    """What any number of steps have made of a start (``power``) and of unit noise (``kernels``, one for each tile).

    Only one triangle of the pairs is kept: a tile is a slice of rows and the columns from its first row on.  ``change``
    is ``power`` minus the unit matrix, with its own digits; ``pushed`` what a drive of the mean in every step has made.
    """

    power: Extended
    tiles: tuple[Tile, ...]
    kernels: tuple[Extended, ...] | None
    change: Extended | None = None
    pushed: Extended | None = None

    @classmethod
    def of(cls, tiles: tuple[Tile, ...], steps: Steps, count: int, push: Extended | None = None) -> Evolution:
        """``count`` equal steps, and a drive of the mean in each.  Infinities and NaN tell of an overflow: `finite`."""
        with np.errstate(over="ignore", invalid="ignore"):
            power, change, pushed, rungs = _ladder(steps, count, push)
            kernels = []
            for rows, columns in tiles:
                kernel = _pairs(steps.gain, steps.gain, rows, columns)
                for half, gain in rungs:
                    if _reach(half, rows) * _reach(half, columns) < _FORGOTTEN:
                        break
                    kernel = kernel + _carried(half, kernel, rows, columns)
                    if gain is not None:
                        kernel = kernel + _pairs(gain, gain, rows, columns)
                kernels.append(kernel)
            return cls(power, tiles, tuple(kernels), change, pushed)

    def advance(self, steps: Steps, count: int) -> Evolution:
        """``count`` more steps, all the same."""
        return self.then(Evolution.of(self.tiles, steps, count))

    def then(self, later: Evolution) -> Evolution:
        """What these steps and then others make; either may be of many times at once."""
        with np.errstate(over="ignore", invalid="ignore"):
            kernels = later.kernels
            if kernels is None:
                kernels = self.kernels  # nothing has happened since
            elif self.kernels is not None:
                kernels = tuple(
                    new + _carried(later.power, old, *tile)
                    for tile, new, old in zip(self.tiles, kernels, self.kernels, strict=True)
                )
            power, change = _composed(later.power, later.change, self.power, self.change)
            pushed = later.pushed
            if self.pushed is not None:
                carried = later.power @ self.pushed
                pushed = carried if pushed is None else pushed + carried
            return Evolution(power, self.tiles, kernels, change, pushed)

    def repeated_forever(self) -> tuple[Evolution, NDArray[np.bool_]]:
        """The same steps again and again: a law without memory, and which eigenvalues do not forget their start.

        If there are any, the law is not meaningful.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            powers, change = [self.power], self.change
            while len(powers) <= (_SQUARINGS if change is not None else 64) and powers[-1].finite():
                kept = ~(np.max(np.abs(powers[-1].hi), axis=(0, 1)) < _FORGOTTEN)
                if not kept.any():
                    break
                power, squared = _composed(powers[-1], change, powers[-1], change)
                still_there = np.array_equal(power.hi[:, :, kept], powers[-1].hi[:, :, kept])
                if change is not None and squared is not None:
                    still_there &= np.array_equal(squared.hi[:, :, kept], change.hi[:, :, kept])
                if still_there:
                    break  # as squaring changes nothing more, it never will be forgotten
                powers.append(power)
                change = squared
            kept = ~(np.max(np.abs(powers[-1].hi), axis=(0, 1)) < _FORGOTTEN)
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
            return replace(
                self, power=Extended.of(np.zeros_like(self.power.hi)), kernels=tuple(kernels), change=None
            ), kept

    def without(self, directions: NDArray[np.bool_]) -> Evolution:
        """The same, but along these directions nothing is left of a start."""
        power = _where(directions, Extended.of(np.zeros_like(self.power.hi)), self.power)
        change = None if self.change is None else _where(directions, -unit(self.power), self.change)
        return replace(self, power=power, change=change)

    def finite(self) -> bool:
        """Whether nothing has overflowed."""
        pushed = self.pushed is None or self.pushed.finite()
        return pushed and self.power.finite() and all(kernel.finite() for kernel in self.kernels or ())

    def injected(self, a: int, b: int, noise: Array) -> Array:
        """The covariance of slots a and b that noise of this covariance (in the eigenbasis) has built."""
        out = np.zeros((*self.power.hi.shape[2:-1], *noise.shape))
        for (rows, columns), kernel in self.parts():
            out[..., rows, columns] = kernel.hi[a, b] * noise[rows, columns]
            mirror(out, rows, columns, kernel.hi[b, a] * noise[rows, columns])
        return out

    def propagated(self, a: int, b: int, start: Extended) -> Array:
        """What is left, in slots a and b, of the covariance ``start`` of shape (m, m, n, n) in the eigenbasis."""
        times = self.power.hi.shape[2:-1]
        out = np.empty((*times, *start.hi.shape[2:]))
        for rows, columns in self.tiles:
            law = start[(slice(None), slice(None), *(None,) * len(times), rows, columns)]
            for first, second in ((a, b), (b, a)) if a != b else ((a, b),):
                left = self.power[first : first + 1][..., rows, None]
                right = self.power[second : second + 1][..., None, columns]
                part = (left @ law @ right.transposed).hi[0, 0]
                if (first, second) == (a, b):
                    out[..., rows, columns] = part
                if (second, first) == (a, b):
                    mirror(out, rows, columns, part)
        return out

    def at(self, times: int | slice | NDArray[np.intp]) -> Evolution:
        """Of many times, some (or one, without the axis)."""
        return self._each(lambda part: part[:, :, times])

    def stacked(self, others: Sequence[Evolution]) -> Evolution:
        """One of several times, of this and others of one time each."""
        return self._each(lambda *parts: stacked(parts, 2), *others)

    def joined(self, others: Sequence[Evolution]) -> Evolution:
        """One of all times of this and others."""
        return self._each(lambda *parts: joined(parts, 2), *others)

    def _each(self, change: Callable[..., Extended], *others: Evolution) -> Evolution:
        every = (self, *others)

        def of(*parts: Extended | None) -> Extended | None:
            return None if any(part is None for part in parts) else change(*parts)

        kernels = None
        if self.kernels is not None:
            kernels = tuple(change(*parts) for parts in zip(*(e.kernels or () for e in every), strict=True))
        moved, pushed = of(*(e.change for e in every)), of(*(e.pushed for e in every))
        return Evolution(change(*(e.power for e in every)), self.tiles, kernels, moved, pushed)

    def parts(self) -> Iterator[tuple[Tile, Extended]]:
        """Every tile of pairs with its kernel."""
        return zip(self.tiles, self.kernels or (), strict=False)


def still(size: int, count: int, times: int = 1) -> Evolution:
    """No step yet, for ``size`` slots at ``count`` eigenvalues; tiles small enough for so many ``times`` at once."""
    nothing = Extended.of(np.zeros((size, size, count)))
    return Evolution(identity(size, count), tuple(_tiles(count, size, _TILE // times)), None, nothing)


def running(phases: Evolution, start: Evolution, wanted: NDArray[np.bool_]) -> tuple[Evolution | None, Evolution]:
    """The state at the ends of the phases that are wanted, from what each phase does and a start; and after all."""
    count = phases.power.hi.shape[2]
    length = math.isqrt(count) if count > 8 else 1
    blocks = -(-count // length)
    # Phase t is place t % length of block t // length; the last block may be short, and is filled up.
    order = np.arange(blocks * length).reshape(blocks, length)
    within = [phases.at(order[:, 0])]
    for place in range(1, length):
        within.append(within[-1].then(phases.at(np.minimum(order[:, place], count - 1))))
    starts = [start]
    for block in range(blocks):
        ends = (count - 1) % length if block == blocks - 1 else length - 1
        starts.append(starts[-1].then(within[ends].at(block)))
    last = starts.pop()
    if not wanted.any():
        return None, last
    begun = _complete(starts[0], last).stacked(starts[1:])
    found, times = [], []
    for place, part in enumerate(within):
        here = np.flatnonzero(wanted[np.minimum(order[:, place], count - 1)] & (order[:, place] < count))
        if here.size:
            found.append(begun.at(here).then(part.at(here)))
            times.append(order[here, place])
    return found[0].joined(found[1:]).at(np.argsort(np.concatenate(times))), last


def _complete(start: Evolution, like: Evolution) -> Evolution:
    """A start at which nothing has happened yet, with zeros for what later states hold."""
    if start.kernels is None and like.kernels is not None:
        start = replace(start, kernels=tuple(Extended.of(np.zeros_like(kernel.hi)) for kernel in like.kernels))
    if start.pushed is None and like.pushed is not None:
        start = replace(start, pushed=Extended.of(np.zeros_like(like.pushed.hi)))
    return start


def _tiles(count: int, size: int, entries: int) -> Iterator[Tile]:
    start = 0
    while start < count:
        stop = min(count, start + max(1, entries // (size * size * (count - start))))
        yield slice(start, stop), slice(start, count)
        start = stop


def _ladder(
    steps: Steps, count: int, push: Extended | None
) -> tuple[Extended, Extended | None, Extended | None, list[tuple[Extended, Extended | None]]]:
    """A^n, A^n - I and the sum of A^t push for n = count, and what the doubling of every binary digit of it needs.

    That is A^n, and A^2n b for a 1.
    """
    power, pushed = steps.transition, push
    change: Extended | None = steps.increment
    rungs: list[tuple[Extended, Extended | None]] = []
    for digit in bin(count)[3:]:
        half, odd = power, digit == "1"
        power, change = _composed(power, change, power, change)
        rungs.append((half, power @ steps.gain if odd else None))
        if pushed is not None and push is not None:
            pushed = pushed + half @ pushed
            pushed = pushed + power @ push if odd else pushed
        if odd:
            power, change = _composed(power, change, steps.transition, steps.increment)
    return power, change, pushed, rungs


def _composed(
    power: Extended, change: Extended | None, first: Extended, first_change: Extended | None
) -> tuple[Extended, Extended | None]:
    """The product of two powers, and it minus the unit matrix, from that of each: the smaller of the two is exact."""
    product = power @ first
    if change is None or first_change is None:
        return product, None
    sum_ = change + first_change + change @ first_change
    one = unit(product)
    small = np.max(np.abs(sum_.hi), axis=(0, 1)) <= _SMALL
    return _where(small, sum_ + one, product), _where(small, sum_, product - one)


def _where(condition: NDArray[np.bool_], a: Extended, b: Extended) -> Extended:
    return Extended(np.where(condition, a.hi, b.hi), np.where(condition, a.lo, b.lo))


def unit(like: Extended) -> Extended:
    """The unit matrix, as often as there are matrices here."""
    m, behind = like.hi.shape[0], like.hi.ndim - 2
    return Extended.of(np.eye(m).reshape(m, m, *(1,) * behind) + np.zeros(like.hi.shape[2:]))


def _pairs(left: Extended, right: Extended, rows: slice, columns: slice) -> Extended:
    return left[..., rows, None] @ right[..., None, columns].transposed


def _carried(power: Extended, kernel: Extended, rows: slice, columns: slice) -> Extended:
    return power[..., rows, None] @ kernel @ power[..., None, columns].transposed


def _reach(power: Extended, part: slice) -> float:
    return float(np.max(np.abs(power.hi[..., part])))


def mirror(out: Array, rows: slice, columns: slice, values: Array) -> None:
    """Fill the other triangle: ``values[..., i, j]`` belongs at (j, i), below the diagonal."""
    size = rows.stop - rows.start
    out[..., columns.start + size :, rows] = values[..., size:].swapaxes(-1, -2)
    square = out[..., rows, rows]
    first, second = np.tril_indices(size, -1)
    square[..., first, second] = values[..., second, first]
