r"""What an epoch of correlated steps makes of pairs of eigen-directions, in double-double arithmetic.

Along the eigenvalues x and y the state follows :math:`z' = A z + b \xi`, where the noises of two steps of one epoch
have the covariance :math:`c\,\rho` and those of one step c.  With :math:`v_t = A^t b` and :math:`s_n = \sum_{t<n} v_t`,
n steps of one epoch inject

.. math:: c\,\Big[(1 - \rho)\, Q_n + \Big(\frac{1 - \rho}{n} + \rho\Big)\, s_n(x)\, s_n(y)^\top\Big] , \qquad
          Q_n = \sum_{t<n} (v_t - \bar v)(x)\, (v_t - \bar v)(y)^\top ,

and the factor of the second term is exactly 0 at the end of an epoch whose noises sum to zero.  What is left there is
the centred sum Q alone, which on a nearly flat direction is :math:`(lr\,h\,n)^2` times smaller than
:math:`\sum_t v_t v_t^\top`.  It is therefore never formed as a difference of the two: doubling adds up

.. math:: Q_{2n} = Q_n + A^n Q_n A^{n\top} + \tfrac{1}{2n}\, \delta\, \delta^\top , \qquad
          \delta = (A^n - I)\, s_n = D\, S_n s_n , \quad S_n = \sum_{t<n} A^t ,

with :math:`D = A - I` from its exact coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._evolution import Evolution, still
from ._extended import Extended, identity, polynomial_values
from ._forward_error import Responses

__all__ = ["Correlated", "EpochSteps", "Stretch", "epoch_steps", "exactly", "with_empty_sum"]

Array: TypeAlias = NDArray[np.float64]
Tile: TypeAlias = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class EpochSteps:
    """D and b of one step at n eigenvalues, shapes (m, m, n) and (m, 1, n)."""

    increment: Extended
    gain: Extended

    @property
    def transition(self) -> Extended:
        """A = I + D."""
        return self.increment + identity(*self.increment.hi.shape[1:])

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Slices of rows and columns that cover one triangle of the pairs."""
        return still(*self.increment.hi.shape[1:]).tiles


def epoch_steps(responses: Responses, *, summed: bool = False) -> EpochSteps:
    """A step at eigenvalues, in units of the slots; ``summed`` adds a last slot, the sum of the weights so far."""
    increment, gain, h = responses.in_units()
    m = len(gain)
    rows = [increment[m * p : m * (p + 1)] for p in range(m)]
    if summed:
        grown = [[c + (p == q == 0) for p, c in enumerate(entry)] for q, entry in enumerate(rows[0])]
        rows = [[*row, [Fraction(0)]] for row in [*rows, grown]]
        gain = [*gain, gain[0]]
        m += 1
    values = polynomial_values([*(entry for row in rows for entry in row), *gain], h)
    increments, gains = (
        Extended(v.hi.reshape(m, columns, h.size), v.lo.reshape(m, columns, h.size))
        for v, columns in ((values[: m * m], m), (values[m * m :], 1))
    )
    return EpochSteps(increments, gains)


@dataclass(frozen=True, eq=False)
class _Rung:
    """One doubling, or one further step, after n steps: A^n, s_n, s_0 + ... + s_(n-1), and n times the deviation."""

    doubles: bool
    count: int
    power: Extended
    response: Extended
    accumulated: Extended
    deviation: Extended


@dataclass(frozen=True, eq=False)
class Stretch:
    """A number of successive steps of one epoch: A^n, s_n, and how they came about."""

    steps: EpochSteps
    count: int
    power: Extended
    response: Extended
    _rungs: tuple[_Rung, ...]

    @classmethod
    def of(cls, steps: EpochSteps, count: int) -> Stretch:
        """``count`` steps, at least 1."""
        transition, gain = steps.transition, steps.gain
        total = identity(*transition.hi.shape[1:])
        power, response, accumulated = transition, gain, Extended.of(np.zeros_like(gain.hi))
        n, rungs = 1, []
        for digit in bin(count)[3:]:
            deviation = steps.increment @ (total @ response)
            rungs.append(_Rung(True, n, power, response, accumulated, deviation))
            accumulated = accumulated + response.scaled(exactly(n)) + power @ accumulated
            total = total + power @ total
            power, response = power @ power, total @ gain
            n *= 2
            if digit == "1":
                rungs.append(_Rung(False, n, power, response, accumulated, steps.increment @ (accumulated + response)))
                accumulated = accumulated + response
                total = total + power
                power, response = power @ transition, total @ gain
                n += 1
        return cls(steps, count, power, response, tuple(rungs))

    def centred(self, tile: Tile) -> Extended:
        """Q of the pairs of a tile."""
        transition, (rows, columns) = self.steps.transition, tile
        out = _nothing(self.power, tile)
        for rung in self._rungs:
            n = rung.count
            spread = pairs(rung.deviation, rung.deviation, tile)
            if rung.doubles:
                out = out + carried(rung.power, out, tile) + spread.scaled(exactly(Fraction(1, 2 * n)))
            else:  # one more step before the others
                out = carried(transition, out, (rows, columns)) + spread.scaled(exactly(Fraction(1, n * (n + 1))))
        return out

    def passed(self, start: Extended, correlation: Fraction, tile: Tile) -> Extended:
        """The sum of the covariances before each step, from that at the start, for unit noise."""
        power, gain = self.steps.transition, self.steps.gain
        kept, past, built = start, pairs(gain, gain, tile), _nothing(power, tile)
        share, rho = exactly(1 - correlation), exactly(correlation)
        for rung in self._rungs:
            power, response, n = rung.power, rung.response, rung.count
            together = pairs(response, response, tile)
            if rung.doubles:
                crossed = pairs(response, power @ rung.accumulated, tile)
                crossed = crossed + pairs(power @ rung.accumulated, response, tile)
                fresh = past.scaled(share) + together.scaled(rho)
                built = built + carried(power, built, tile) + fresh.scaled(exactly(n)) + crossed.scaled(rho)
                past = past + carried(power, past, tile)
                kept = kept + carried(power, kept, tile)
            else:
                built = built + past.scaled(share) + together.scaled(rho)
                late = power @ gain
                past = past + pairs(late, late, tile)
                kept = kept + carried(power, start, tile)
        return kept + built


@dataclass(frozen=True)
class Correlated:
    """The steps of an epoch: their number, and the correlation of the noises of any two of them."""

    count: int
    correlation: Fraction

    def injected(self, stretch: Stretch, tile: Tile) -> Extended:
        """What the first steps of an epoch have made of unit noise."""
        common = (1 - self.correlation) / stretch.count + self.correlation
        out = stretch.centred(tile).scaled(exactly(1 - self.correlation))
        if common:
            out = out + pairs(stretch.response, stretch.response, tile).scaled(exactly(common))
        return out

    def epoch(self, steps: EpochSteps, tiles: tuple[Tile, ...], keep: Extended | None = None) -> Evolution:
        """One epoch, as a step of its own; ``keep`` multiplies its power, for unit roots that noise does not reach."""
        stretch = Stretch.of(steps, self.count)
        kernels = tuple(self.injected(stretch, tile) for tile in tiles)
        return Evolution(stretch.power if keep is None else stretch.power @ keep, tiles, kernels)

    def after(self, law: Evolution, steps: EpochSteps, position: int) -> Evolution:
        """The law after so many steps of an epoch, from that at its start."""
        stretch = Stretch.of(steps, position)
        kernels = tuple(
            carried(stretch.power, start, tile) + self.injected(stretch, tile) for tile, start in law.parts()
        )
        return Evolution(law.power, law.tiles, kernels)

    def time_average(self, law: Evolution, steps: EpochSteps) -> Evolution:
        """The mean of the laws at all positions, from that at the start of an epoch."""
        stretch, share = Stretch.of(steps, self.count), exactly(Fraction(1, self.count))
        kernels = tuple(stretch.passed(start, self.correlation, tile).scaled(share) for tile, start in law.parts())
        return Evolution(law.power, law.tiles, kernels)

    def repeated(self, law: Evolution, steps: EpochSteps, epochs: int) -> Evolution:
        """The law after so many whole epochs, from that at the start of one."""
        once = self.epoch(steps, law.tiles)
        powers = [once.power]
        for digit in bin(epochs)[3:]:
            powers.append(powers[-1] @ powers[-1])
            if digit == "1":
                powers.append(powers[-1] @ once.power)
        kernels = []
        for (tile, start), one in zip(law.parts(), once.kernels or (), strict=True):
            built, used = one, iter(powers)
            for digit in bin(epochs)[3:]:
                built = built + carried(next(used), built, tile)
                if digit == "1":
                    next(used)
                    built = one + carried(once.power, built, tile)
            kernels.append(carried(powers[-1], start, tile) + built)
        return Evolution(law.power, law.tiles, tuple(kernels))


def exactly(number: Fraction | int) -> Extended:
    """A rational number to twice the digits of a double."""
    hi = float(number)
    return Extended(np.asarray(hi), np.asarray(float(Fraction(number) - Fraction(hi))))


def pairs(left: Extended, right: Extended, tile: Tile) -> Extended:
    """``left right'`` for every pair of a tile."""
    rows, columns = tile
    return left[:, :, rows, None] @ right[:, :, None, columns].transposed


def carried(power: Extended, kernel: Extended, tile: Tile) -> Extended:
    """``power kernel power'`` for every pair of a tile."""
    rows, columns = tile
    return power[:, :, rows, None] @ kernel @ power[:, :, None, columns].transposed


def with_empty_sum(law: Evolution) -> Evolution:
    """A law with one further slot, a sum that is still empty."""
    m, n = law.power.hi.shape[1:]
    kernels = []
    for _, kernel in law.parts():
        hi, lo = (np.zeros((m + 1, m + 1, *kernel.hi.shape[2:])) for _ in range(2))
        hi[:m, :m], lo[:m, :m] = kernel.hi, kernel.lo
        kernels.append(Extended(hi, lo))
    return Evolution(identity(m + 1, n), law.tiles, tuple(kernels))


def _nothing(power: Extended, tile: Tile) -> Extended:
    rows, columns = tile
    m = power.hi.shape[0]
    shape = (m, m, rows.stop - rows.start, columns.stop - columns.start)
    return Extended.of(np.zeros(shape))
