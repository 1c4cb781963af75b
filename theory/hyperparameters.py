"""Hyper-parameters: a name, a domain, perhaps a default; numbers are taken at their exact value.

A float is a rational number: ``0.1`` is 3602879701896397/36028797018963968, and that is what theory works with,
because it is also what NumPy and PyTorch step with. Write ``Rational(1, 10)`` to mean one tenth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational as RationalNumber
from numbers import Real
from typing import TypeAlias

import sympy as sp

from ..errors import HyperparameterError

__all__ = ["Hyperparameter", "Number"]

Number: TypeAlias = int | float | Fraction | sp.Rational | sp.Float

POSITIVE = sp.Interval.open(0, sp.oo)
NONNEGATIVE = sp.Interval.Ropen(0, sp.oo)
FRACTION = sp.Interval.Ropen(0, 1)

#: Domains of the names that mean the same in every rule; a rule may override them.
COMMON_DOMAINS: Mapping[str, sp.Interval] = {
    "lr": POSITIVE,
    "momentum": FRACTION,
    "dampening": FRACTION,
    "weight_decay": NONNEGATIVE,
}

#: The hyper-parameters of the shipped rules, whose symbols no formula uses for anything else.
_SHIPPED: Mapping[str, sp.Interval] = {
    **COMMON_DOMAINS,
    "beta": FRACTION,
    "nu": sp.Interval(0, 1),
    "rho": NONNEGATIVE,
    "ema_decay": FRACTION,
}

_GREEK = {
    "lr": r"\eta",
    "momentum": r"\mu",
    "dampening": r"\tau",
    "weight_decay": r"\lambda",
    "beta": r"\beta",
    "nu": r"\nu",
    "rho": r"\rho",
    "ema_decay": r"\delta",
}


@dataclass(frozen=True)
class Hyperparameter:
    """One hyper-parameter of an update rule.

    Parameters
    ----------
    name : str
        The keyword under which the rule takes it.
    domain : sympy.Interval
        The values for which the rule is defined.
    default : number, optional
        The value it has unless another is bound; None if it must be bound.

    Examples
    --------
    >>> momentum = Hyperparameter("momentum", sp.Interval.Ropen(0, 1))
    >>> momentum.exact(0.5)
    1/2
    >>> momentum.exact(1.5)
    Traceback (most recent call last):
    ...
    sgdcov.errors.HyperparameterError: momentum=1.5 is outside its domain [0, 1).
    """

    name: str
    domain: sp.Interval
    default: Number | None = None

    @property
    def symbol(self) -> sp.Symbol:
        """The symbol that stands for it while it is unbound, with the sign its domain implies.

        It differs from every symbol of the same name that a formula uses for something else.
        """
        own = {} if _SHIPPED.get(self.name) == self.domain else {"hyperparameter": True}
        if self.domain.inf > 0 or (self.domain.inf == 0 and self.domain.left_open):
            return sp.Symbol(self.name, positive=True, **own)
        if self.domain.inf == 0:
            return sp.Symbol(self.name, nonnegative=True, **own)
        return sp.Symbol(self.name, real=True, **own)

    @property
    def conditions(self) -> tuple[sp.Rel, ...]:
        """The domain as conditions on the symbol, without what the sign of the symbol says."""
        bounds: list[sp.Rel] = []
        if self.domain.inf not in (0, -sp.oo):
            bounds.append((sp.StrictLessThan if self.domain.left_open else sp.LessThan)(self.domain.inf, self.symbol))
        if self.domain.sup != sp.oo:
            bounds.append((sp.StrictLessThan if self.domain.right_open else sp.LessThan)(self.symbol, self.domain.sup))
        return tuple(bounds)

    @property
    def latex(self) -> str:
        """The letter papers use for it, where there is one."""
        return _GREEK.get(self.name, rf"\mathrm{{{self.name.replace('_', chr(92) + '_')}}}")

    @property
    def step_domain(self) -> sp.Interval:
        """The values in a single step of a schedule: there a learning rate may be 0, as where a warm-up begins."""
        if self.name == "lr" and self.domain.inf == 0:
            return sp.Interval(0, self.domain.sup, False, self.domain.right_open)
        return self.domain

    def exact(self, value: object, *, domain: sp.Interval | None = None) -> sp.Rational:
        """Return ``value`` as an exact rational inside the domain (inside another, where one is given).

        Raises
        ------
        HyperparameterError
            If ``value`` is no finite real number, or lies outside the domain.
        """
        domain = self.domain if domain is None else domain
        rational = _exact_rational(value)
        if rational is None:
            raise HyperparameterError(
                f"{self.name}={value!r} is not a finite real number; it must lie in {_interval(domain)}.",
                name=self.name,
            )
        if rational not in domain:
            raise HyperparameterError(f"{self.name}={value} is outside its domain {_interval(domain)}.", name=self.name)
        return rational


def _exact_rational(value: object) -> sp.Rational | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, sp.Rational):
        return value if value.is_finite else None
    if isinstance(value, sp.Float):
        return sp.Rational(value)
    if isinstance(value, RationalNumber):
        return sp.Rational(int(value.numerator), int(value.denominator))
    if isinstance(value, Real):
        return sp.Rational(float(value)) if math.isfinite(float(value)) else None
    return None


def _interval(domain: sp.Interval) -> str:
    left = "(" if domain.left_open else "["
    right = ")" if domain.right_open else "]"
    return f"{left}{domain.inf}, {domain.sup}{right}".replace("oo", "inf")
