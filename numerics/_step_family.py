"""The steps of one rule for many values of its hyper-parameters, traced once.

A schedule of ten thousand learning rates is ten thousand recursions; tracing a rule takes milliseconds.  Traced with
the changing hyper-parameters free, the entries of the step are polynomials in them, whose exact values are arithmetic
with fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ..theory import Optimizer, recursion
from ._evolution import Steps, step_coefficients, steps_of
from ._extended import Extended
from ._initial import drive
from ._kernel import to_fraction
from ._second_moment import gradient_point, point_of_step

__all__ = ["StepFamily"]

Array: TypeAlias = NDArray[np.float64]
Polynomial: TypeAlias = list[tuple[tuple[int, ...], Fraction]]

#: Up to so many optimizers are traced one by one.
_FEW = 4


class StepFamily:
    """Gives the steps of any of these optimizers, all of one rule, at eigenvalues h, and the drive of their mean."""

    def __init__(self, optimizers: Iterable[Optimizer], h: Array, rest: Sequence[Fraction] | None = None) -> None:
        self._h, self._rest = h, rest
        distinct = list(dict.fromkeys(optimizers))
        first = distinct[0]
        changing = [name for name, value in first.bound if any(o.values[name] != value for o in distinct)]
        self._names = changing if len(distinct) > _FEW else []
        self._increment: list[Polynomial] | None = None
        self._gain: list[Polynomial] = []
        if self._names:
            self._trace(first)
        self._last: tuple[Optimizer, Steps, Extended | None] | None = None

    def __call__(self, optimizer: Optimizer) -> tuple[Steps, Extended | None]:
        """One step of the optimizer, and the drive of the mean per unit of the optimum (None where it is 0)."""
        if self._last is None or self._last[0] != optimizer:
            exact = self._coefficients(optimizer)
            push = None if self._rest is None else drive(*exact, self._rest, self._h)
            self._last = optimizer, steps_of(*exact, self._h), push
        return self._last[1:]

    def gradient_point(self, optimizer: Optimizer) -> Array:
        """The slots' weights in the point of the optimizer's one gradient, which may change with the phase."""
        point = point_of_step(*self._coefficients(optimizer))
        return np.array(gradient_point(optimizer) if point is None else point)  # which refuses, by name

    def _coefficients(self, optimizer: Optimizer) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
        if self._increment is None:
            return step_coefficients(optimizer)
        values = [_fraction(optimizer.values[name]) for name in self._names]
        increment = [_in_h(polynomial, values) for polynomial in self._increment]
        return increment, [_in_h(polynomial, values) for polynomial in self._gain]

    def _trace(self, first: Optimizer) -> None:
        step = recursion(first.free(*self._names))
        symbols = [step.h, *(first.rule[name].symbol for name in self._names)]
        try:
            increment = [_terms(entry, symbols) for entry in step.increment]
            self._gain = [_terms(entry, symbols) for entry in step.noise_gain]
        except sp.PolynomialError:  # a rule that divides by one of them: trace each by itself
            return
        self._increment = increment


def _terms(entry: sp.Expr, symbols: list[sp.Symbol]) -> Polynomial:
    polynomial = sp.Poly(entry, *symbols, domain="QQ")
    return [(tuple(int(e) for e in exponents), to_fraction(c)) for exponents, c in polynomial.terms()]


def _in_h(polynomial: Polynomial, values: list[Fraction]) -> list[Fraction]:
    """Ascending coefficients in h, once the other variables have these values."""
    out = [Fraction(0)] * (1 + max(exponents[0] for exponents, _ in polynomial))
    for (k, *powers), c in polynomial:
        for value, exponent in zip(values, powers, strict=True):
            c *= value**exponent
        out[k] += c
    return out


def _fraction(value: Any) -> Fraction:
    return Fraction(value) if isinstance(value, int | float | Fraction) else to_fraction(value)
