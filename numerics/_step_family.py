r"""The steps of one rule for many values of its hyper-parameters, traced once, in units in which they are of order 1.

A schedule of a hundred thousand learning rates is as many recursions; tracing a rule takes milliseconds.  Traced with
the changing hyper-parameters free, the entries of the step are polynomials in them and in h, evaluated for all phases
at once in double-double.

H is measured in a power of two of its largest eigenvalue, and every slot in a power of two of what a unit of gradient
noise makes of it in a step: a learning rate of :math:`10^{-180}` beside a curvature of :math:`10^{170}` is nothing
special.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ..theory import Optimizer, recursion
from ._evolution import Steps, step_coefficients
from ._extended import Extended, joined, stacked
from ._kernel import to_fraction
from ._polynomial import binary_exponent
from ._second_moment import gradient_point, point_of_step

__all__ = ["StepFamily"]

Array: TypeAlias = NDArray[np.float64]
#: Coefficients of h^k, as polynomials in the hyper-parameters that change: their exponents, and the factor.
Polynomial: TypeAlias = list[tuple[int, tuple[int, ...], Fraction]]

#: Up to so many optimizers are traced one by one.
_FEW = 4


class StepFamily:
    """Gives the steps of any of these optimizers, all of one rule, at eigenvalues h, and the drive of their mean.

    ``units`` are the binary exponents of the slots' units; 0, the caller's own, where not ``scaled``.
    """

    def __init__(
        self, optimizers: Iterable[Optimizer], h: Array, rest: Sequence[Fraction] | None = None, *, scaled: bool = True
    ) -> None:
        self._scale = binary_exponent(h)
        self._x, self._rest = np.ldexp(h, -self._scale), rest
        distinct = list(dict.fromkeys(optimizers))
        first = distinct[0]
        self._slots = len(first.rule.slots)
        changing = [pair[0] for k, pair in enumerate(first.bound) if any(o.bound[k] != pair for o in distinct)]
        self._names = changing if len(distinct) > _FEW else []
        self._entries: list[Polynomial] | None = None
        if self._names:
            self._trace(first)
        self._known: dict[Optimizer, list[list[Fraction]]] = {}
        self.units = self._units(distinct) if scaled else (0,) * self._slots

    def __call__(self, optimizers: Sequence[Optimizer]) -> tuple[Steps, Extended | None]:
        """One step of each of the optimizers, shapes (m, m, times, n) and (m, 1, times, n).

        And the drive of the mean per unit of the optimum, (m, 1, times, n); None where it is 0.
        """
        m, coefficients = self._slots, self._coefficients(optimizers)
        step = self._at_eigenvalues(coefficients)
        increment, gain = step[: m * m].reshaped(m, m, *step.hi.shape[1:]), step[m * m :][:, None]
        push = self._drive(coefficients)
        unit = np.array(self.units).reshape(m, 1, 1, 1)
        return (
            Steps(increment.shifted(unit.swapaxes(0, 1) - unit), gain.shifted(-unit)),
            None if push is None else push[:, None].shifted(-unit),
        )

    @property
    def scale(self) -> int:
        """The binary exponent of the unit of H."""
        return self._scale

    def slopes(self, optimizers: Sequence[Optimizer]) -> tuple[Array, Array]:
        """Bounds on the divided differences of A and of b, for every optimizer, in these units."""
        m, unit = self._slots, np.array(self.units)[:, None, None]
        with np.errstate(over="ignore", invalid="ignore"):
            coefficients = np.abs(self._coefficients(optimizers).hi)
            summed = np.tensordot(np.arange(len(coefficients)), coefficients, axes=1)
            increment = np.ldexp(summed[: m * m].reshape(m, m, -1), unit.swapaxes(0, 1) - unit)
            gain = np.ldexp(summed[m * m :], -unit[:, 0])
            return np.linalg.norm(increment, axis=(0, 1)), np.linalg.norm(gain, axis=0)

    def gradient_point(self, optimizer: Optimizer) -> Array:
        """The slots' weights in the point of the optimizer's one gradient, which may change with the phase."""
        exact, m = self._exact(optimizer), self._slots
        point = point_of_step(exact[: m * m], exact[m * m :])
        return np.array(gradient_point(optimizer) if point is None else point)  # which refuses, by name

    def _units(self, distinct: Sequence[Optimizer]) -> tuple[int, ...]:
        """The largest noise gain of any phase; of a slot that noise reaches later, what the others make of it."""
        m = self._slots
        largest = np.zeros(m * m + m)
        for begin in range(0, len(distinct), 4096):
            coefficients = self._coefficients(distinct[begin : begin + 4096])
            largest = np.maximum(largest, np.abs(coefficients.hi).sum(axis=0).max(axis=-1))
        moved, sizes = largest[: m * m].reshape(m, m), largest[m * m :]
        for _ in range(m):
            with np.errstate(over="ignore", invalid="ignore"):
                passed_on = np.nan_to_num(np.max(moved * sizes, axis=1), posinf=0.0)
            sizes = np.where(sizes > 0, sizes, passed_on)
        # A slot that no noise reaches keeps its unit.
        return tuple(int(np.frexp(size)[1]) if size > 0 else 0 for size in sizes)

    def _at_eigenvalues(self, coefficients: Extended) -> Extended:
        """Polynomials (powers, entries, times) at the eigenvalues: (entries, times, n)."""
        value = coefficients[-1][..., None]
        for k in range(len(coefficients.hi) - 2, -1, -1):
            value = value.scaled(self._x) + coefficients[k][..., None]
        return value + Extended.of(np.zeros_like(self._x))

    def _drive(self, coefficients: Extended) -> Extended | None:
        """D r - h b of every slot; shape (m, times, n)."""
        if self._rest is None:
            return None
        m = self._slots
        nothing = Extended.of(np.zeros_like(coefficients.hi[:1, :1]))
        rows = []
        for p in range(m):
            gain = coefficients[:, m * m + p : m * m + p + 1]
            # h in units of 2^scale: b stands with the next power, and so in the next unit.
            row = joined([nothing, -gain.shifted(self._scale)], 0)
            for q, factor in enumerate(self._rest):
                entry = joined([coefficients[:, m * p + q : m * p + q + 1], nothing], 0)
                hi = float(factor)
                row = row + entry.scaled(Extended(np.asarray(hi), np.asarray(float(factor - Fraction(hi)))))
            rows.append(row)
        whole = joined(rows, 1)
        return self._at_eigenvalues(whole) if np.any(whole.hi) else None

    def _coefficients(self, optimizers: Sequence[Optimizer]) -> Extended:
        """Of D, row by row, and b: shape (powers of h in units of 2^scale, entries, times)."""
        if self._entries is None:
            each = [self._exact(optimizer) for optimizer in optimizers]
            powers = max(len(entry) for exact in each for entry in exact)
            unit = [Fraction(2) ** (self._scale * k) for k in range(powers)]
            entries = zip(*each, strict=True)  # of every step
            table = [
                [_exactly([(e[k] if k < len(e) else 0) * unit[k] for e in steps]) for k in range(powers)]
                for steps in entries
            ]
            return stacked([stacked(row, 0) for row in zip(*table, strict=True)], 0)
        bound = [o.values for o in optimizers]
        values = [_numbers([each[name] for each in bound]) for name in self._names]
        powers = 1 + max(k for entry in self._entries for k, _, _ in entry)
        zero = Extended.of(np.zeros(len(optimizers)))
        table = [[zero] * len(self._entries) for _ in range(powers)]
        for index, entry in enumerate(self._entries):
            for k, exponents, factor in entry:
                term = _exactly([factor * Fraction(2) ** (self._scale * k)])
                for value, exponent in zip(values, exponents, strict=True):
                    for _ in range(exponent):
                        term = term.scaled(value)
                table[k][index] = table[k][index] + term
        return stacked([stacked(row, 0) for row in table], 0)

    def _exact(self, optimizer: Optimizer) -> list[list[Fraction]]:
        """The ascending coefficients in h of the entries of D, row by row, and of b."""
        if optimizer not in self._known:
            if self._entries is None:
                increment, gain = step_coefficients(optimizer)
                self._known[optimizer] = [*increment, *gain]
            else:
                values = [_fraction(optimizer.values[name]) for name in self._names]
                self._known[optimizer] = [_in_h(entry, values) for entry in self._entries]
        return self._known[optimizer]

    def _trace(self, first: Optimizer) -> None:
        step = recursion(first.free(*self._names))
        symbols = [step.h, *(first.rule[name].symbol for name in self._names)]
        try:
            self._entries = [_terms(entry, symbols) for entry in (*step.increment, *step.noise_gain)]
        except sp.PolynomialError:  # a rule that divides by one of them: trace each by itself
            return


def _terms(entry: sp.Expr, symbols: list[sp.Symbol]) -> Polynomial:
    polynomial = sp.Poly(entry, *symbols, domain="QQ")
    return [(int(k), tuple(int(e) for e in powers), to_fraction(c)) for (k, *powers), c in polynomial.terms()]


def _in_h(polynomial: Polynomial, values: list[Fraction]) -> list[Fraction]:
    """Ascending coefficients in h, once the other variables have these values."""
    out = [Fraction(0)] * (1 + max(k for k, _, _ in polynomial))
    for k, powers, c in polynomial:
        for value, exponent in zip(values, powers, strict=True):
            c *= value**exponent
        out[k] += c
    return out


def _fraction(value: Any) -> Fraction:
    return Fraction(value) if isinstance(value, int | float | Fraction) else to_fraction(value)


def _numbers(values: Sequence[Any]) -> Extended:
    if all(type(value) is float for value in values):  # most of a schedule's, without a fraction for each
        return Extended.of(np.array(values))
    return _exactly([_fraction(value) for value in values])


def _exactly(numbers: Sequence[Fraction]) -> Extended:
    """Fractions to twice the digits of a double."""
    hi = [float(x) for x in numbers]
    return Extended(np.array(hi), np.array([float(x - Fraction(h)) for x, h in zip(numbers, hi, strict=True)]))
