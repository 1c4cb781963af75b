"""Expansions about a point that see through `where`: power series with exact coefficients, for limits and series.

An expression is followed operation by operation, so that nothing is simplified on the way and the work is bounded by
its size. A coefficient counts as 0 only if it vanishes identically, its roots, powers and functions taken as symbols of
their own; one that counts as other than 0 is seen to be so at a point. What neither decides is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import sympy as sp

from ..errors import HyperparameterError
from ._evaluation import admits
from ._exact import is_zero, present
from ._print import text

if TYPE_CHECKING:
    from .formula import Formula

__all__ = ["Undecided", "after_long", "approach", "by_continuity", "expand_about", "is_same_as_zero", "tidied"]

_OPERATIONS = 500  # of a coefficient, beyond which an expansion is given up
_LARGEST = 400  # operations of an expression that is expanded, all auxiliaries written out
_LONG = 150  # of a coefficient, beyond which it is put in lowest terms
_TERMS = 12  # how many terms of a series may cancel before the first that stays


class Undecided(Exception):
    """Exact arithmetic on power series does not decide; `Formula.limit` and `Formula.series` say of what."""


class _Series:
    """The sum of ``coefficients[k] t^(low + k)``, known up to the power low + len(coefficients)."""

    def __init__(self, low: int, coefficients: list[sp.Expr]) -> None:
        while coefficients and is_same_as_zero(coefficients[0]):
            low, coefficients = low + 1, coefficients[1:]
        self.low = low
        self.coefficients = [_compact(c) for c in coefficients]

    @property
    def known(self) -> int:
        return self.low + len(self.coefficients)

    def __getitem__(self, power: int) -> sp.Expr:
        inside = 0 <= power - self.low < len(self.coefficients)
        return self.coefficients[power - self.low] if inside else sp.Integer(0)

    def __add__(self, other: _Series) -> _Series:
        low, known = min(self.low, other.low), min(self.known, other.known)
        return _Series(low, [self[k] + other[k] for k in range(low, known)])

    def __mul__(self, other: _Series) -> _Series:
        size = min(len(self.coefficients), len(other.coefficients))
        a, b = self.coefficients, other.coefficients
        return _Series(self.low + other.low, [sp.Add(*(a[m] * b[k - m] for m in range(k + 1))) for k in range(size)])

    def scaled(self, factor: sp.Expr) -> _Series:
        return _Series(self.low, [factor * c for c in self.coefficients])

    def power(self, exponent: sp.Expr) -> _Series:
        """Return (c t^low (1 + delta))^exponent, by the recurrence of its coefficients."""
        if not self.coefficients:
            raise _OutOfTerms("a power or a quotient of what vanishes to the order computed")
        shift = exponent * self.low
        if not shift.is_Integer:
            raise Undecided(f"it has no expansion in whole powers ({exponent} of a power {self.low})")
        first, size = self.coefficients[0], len(self.coefficients)
        delta = [c / first for c in self.coefficients]
        out: list[sp.Expr] = [sp.Integer(1)]
        for k in range(1, size):
            out.append(sp.Add(*((exponent * m - (k - m)) * delta[m] * out[k - m] for m in range(1, k + 1))) / k)
        return _Series(int(shift), out).scaled(_root(first) if exponent == sp.Rational(1, 2) else first**exponent)


def expand_about(
    expression: sp.Expr, where: Mapping[sp.Expr, sp.Expr], x: sp.Symbol, start: tuple[int, list[sp.Expr]], wanted: int
) -> list[tuple[int, sp.Expr]]:
    """Return the first terms other than 0, as (power, coefficient), of the expansion in t.

    ``start`` is x in t: (0, [a, 1]) about a from above, (0, [a, -1]) from below, (-1, [1]) about infinity. Fewer terms
    than ``wanted`` come back where what follows vanishes, to the order that is tried if no rational function tells.
    """
    written = expression
    for name, meaning in where.items():
        written = written.xreplace({name: meaning})
    if sp.count_ops(written) > _LARGEST:
        raise Undecided(f"it is written in more than {_LARGEST} operations")
    names: dict[sp.Expr, sp.Symbol] = {}
    form = _rational_form(written, names)
    if not any(part.has(x) for part in names):
        back = {symbol: part for part, symbol in names.items()}
        terms = [(power, c.xreplace(back)) for power, c in _rational_terms(form, x, start, wanted)]
        return [term for term in terms if not is_same_as_zero(term[1])]
    found: list[tuple[int, sp.Expr]] = []
    for size in (wanted, wanted + 3, wanted + _TERMS):
        padded = [*start[1], *[sp.Integer(0)] * size][:size]
        try:
            series = _Expander(where, x, _Series(start[0], padded), size).of(expression)
        except _OutOfTerms:
            continue
        found = [(series.low + k, c) for k, c in enumerate(series.coefficients) if not is_same_as_zero(c)]
        if len(found) >= wanted:
            return found[:wanted]
    if not found:
        raise Undecided("its first terms vanish")
    return found


class _OutOfTerms(Undecided):
    """So much has cancelled that more terms are needed."""


def _rational_terms(
    expression: sp.Expr, x: sp.Symbol, start: tuple[int, list[sp.Expr]], wanted: int
) -> list[tuple[int, sp.Expr]]:
    t = sp.Dummy("t", positive=True)
    moved = expression.subs(x, sp.Add(*(c * t ** (start[0] + k) for k, c in enumerate(start[1]))))
    numerator, denominator = (sp.Poly(part, t) for part in sp.fraction(sp.cancel(sp.together(moved))))
    if numerator.is_zero:
        return []
    above, below = (list(reversed(part.all_coeffs())) for part in (numerator, denominator))
    lowest_above, lowest_below = (next(k for k, c in enumerate(part) if not is_zero(c)) for part in (above, below))
    above, below = above[lowest_above:], below[lowest_below:]
    quotient: list[sp.Expr] = []
    # A quotient that is a polynomial ends; no more zeros can follow each other than the degrees together.
    while sum(c != 0 for c in quotient) < wanted and len(quotient) < wanted + len(above) + len(below):
        k = len(quotient)
        known = sum((below[k - m] * quotient[m] for m in range(max(0, k + 1 - len(below)), k)), sp.Integer(0))
        coefficient = ((above[k] if k < len(above) else 0) - known) / below[0]
        quotient.append(sp.cancel(sp.together(coefficient)))
    return [(k + lowest_above - lowest_below, c) for k, c in enumerate(quotient) if c != 0]


class _Expander:
    """Expansions of an expression and of what its auxiliaries stand for, each worked out once."""

    def __init__(self, where: Mapping[sp.Expr, sp.Expr], x: sp.Symbol, start: _Series, size: int) -> None:
        self.where, self.x, self.start, self.size = where, x, start, size
        self.done: dict[sp.Expr, _Series] = {}
        self.varying: dict[sp.Expr, bool] = {}

    def of(self, e: sp.Expr) -> _Series:
        if e not in self.done:
            self.done[e] = self._worked_out(e)
        return self.done[e]

    def _constant(self, e: sp.Expr) -> _Series:
        return _Series(0, [e] + [sp.Integer(0)] * (self.size - 1))

    def _worked_out(self, e: sp.Expr) -> _Series:
        if e == self.x:
            return self.start
        if not self._varies(e):
            return self._constant(self._written_out(e))
        if e in self.where:
            return self.of(self.where[e])
        if e.is_Add:
            return functools.reduce(_Series.__add__, (self.of(a) for a in e.args))
        if e.is_Mul:
            return functools.reduce(_Series.__mul__, (self.of(a) for a in e.args))
        if e.is_Pow:
            base, exponent = e.as_base_exp()
            if not self._varies(exponent):
                return self.of(base).power(self._written_out(exponent))
            return self._function(sp.exp, self.of(exponent) * self._logarithm(base))
        if isinstance(e, (sp.exp, sp.log, sp.sin, sp.cos, sp.acos, sp.erf)):
            return self._function(e.func, self.of(e.args[0]))
        raise Undecided(f"{type(e).__name__} has no expansion here")

    def _logarithm(self, base: sp.Expr) -> _Series:
        return self._function(sp.log, self.of(base))

    def _function(self, function: type[sp.Function], inner: _Series) -> _Series:
        """Return the Taylor series of a function at the value that its argument tends to."""
        if inner.known < 1:
            raise _OutOfTerms("the argument of a function is not known to order 0")
        if inner.low < 0:
            raise Undecided(f"the argument of {function.__name__} is unbounded")
        y, at = sp.Dummy("y"), inner[0]
        delta = _Series(1, [inner[k] for k in range(1, inner.known)])
        total, power, factor = self._constant(_value(function(y), y, at)), self._constant(sp.Integer(1)), sp.Integer(1)
        derived = function(y)
        for k in range(1, self.size):
            derived, power, factor = sp.diff(derived, y), power * delta, factor * k
            if not power.coefficients:
                break
            total = total + power.scaled(_value(derived, y, at) / factor)
        return total

    def _varies(self, e: sp.Expr) -> bool:
        if e not in self.varying:
            inside = self._varies(self.where[e]) if e in self.where else any(map(self._varies, e.args))
            self.varying[e] = inside or e == self.x
        return self.varying[e]

    def _written_out(self, e: sp.Expr) -> sp.Expr:
        for name, meaning in self.where.items():
            e = e.xreplace({name: meaning})
        return e


def _value(expression: sp.Expr, y: sp.Dummy, at: sp.Expr) -> sp.Expr:
    value = expression.subs(y, at)
    if value.has(sp.zoo, sp.oo, sp.nan, -sp.oo):
        raise Undecided("a function is singular there")
    return value


def _root(square: sp.Expr) -> sp.Expr:
    """Return the square root; of a perfect square the one that is positive where all symbols are small and positive."""
    numerator, denominator = sp.fraction(sp.factor(square))
    roots = []
    for part in (numerator, denominator):
        content, factors = sp.factor_list(part) if part.free_symbols else (part, [])
        if any(power % 2 for _, power in factors):
            return sp.sqrt(square)
        half = sp.Mul(*(f ** (power // 2) for f, power in factors))
        sample = half.subs({s: sp.Rational(1, 97 + k) for k, s in enumerate(sorted(half.free_symbols, key=str))})
        roots.append(sp.sqrt(content) * (half if sample.is_positive else -half))
    return roots[0] / roots[1]


def is_same_as_zero(expression: sp.Expr) -> bool:
    """Decide whether an expression vanishes identically; refuse where that cannot be told from its form."""
    if expression.is_Rational:
        return bool(expression == 0)
    names: dict[sp.Expr, sp.Symbol] = {}
    try:
        if is_zero(_rational_form(expression, names)):
            return True
    except ValueError as error:
        raise Undecided(str(error)) from error
    if names and _vanishes_at_a_point(expression):
        raise Undecided(f"whether {expression} is 0 is not decided by its form")
    return False


def _compact(coefficient: sp.Expr) -> sp.Expr:
    """Return a long coefficient in lowest terms; give up where that does not make it short."""
    if sp.count_ops(coefficient) <= _LONG:
        return coefficient
    if sp.count_ops(coefficient) > _OPERATIONS:
        raise Undecided("the coefficients of its expansion grow too large")
    names: dict[sp.Expr, sp.Symbol] = {}
    short = sp.cancel(sp.together(_rational_form(coefficient, names)))
    return short.xreplace({symbol: part for part, symbol in names.items()})


def _rational_form(e: sp.Expr, names: dict[sp.Expr, sp.Symbol]) -> sp.Expr:
    """Put a symbol for every part that is no rational function, the same for the same part."""
    if not e.args:
        return e if e.is_Rational or e.is_Symbol else names.setdefault(e, sp.Dummy("g"))
    if e.is_Add or e.is_Mul:
        return e.func(*(_rational_form(a, names) for a in e.args))
    if e.is_Pow:
        base, exponent = e.as_base_exp()
        if exponent.is_Integer:
            return _rational_form(base, names) ** exponent
        whole, rest = exponent.as_coeff_Add()
        times, unit = rest.as_coeff_Mul()
        if not times.is_Integer:
            times, unit = sp.Integer(times.p), unit / times.q
        if not whole.is_Integer:
            whole, unit, times = sp.Integer(0), exponent, sp.Integer(1)
        if unit.could_extract_minus_sign():
            unit, times = -unit, -times
        written = sp.factor(base)
        return _rational_form(written, names) ** whole * names.setdefault(written**unit, sp.Dummy("g")) ** times
    return names.setdefault(e.func(*(sp.factor(a) for a in e.args)), sp.Dummy("g"))


def _vanishes_at_a_point(expression: sp.Expr) -> bool:
    point = {}
    for k, s in enumerate(sorted(expression.free_symbols, key=str)):
        point[s] = sp.Integer(3 + k) if s.is_integer else sp.Rational(7 + 2 * k, 31 + 5 * k)
    value = sp.N(expression.subs(point), 40, maxn=200)
    return not (value.is_finite and abs(value) > sp.Float(10) ** -30)


def by_continuity(expression: sp.Expr, x: sp.Symbol, target: sp.Expr) -> sp.Expr | None:
    """Return the value at a point of an expression that is written out, where it is continuous; None where not sure.

    What is divided by, or taken the logarithm of, is seen to be other than 0 there at a point of the other symbols.
    """
    if not expression.has(x):
        return expression
    parts = [e.base for e in expression.atoms(sp.Pow) if not e.exp.is_nonnegative]
    parts += [e.args[0] for e in expression.atoms(sp.log)]
    known = (sp.Pow, sp.exp, sp.log, sp.sin, sp.cos, sp.erf)
    if any(not isinstance(f, known) for f in expression.atoms(sp.Function, sp.Integral)):
        return None
    if any(_vanishes_at_a_point(part.subs(x, target)) for part in parts):
        return None
    value = expression.subs(x, target)
    return None if value.has(sp.nan, sp.zoo, sp.oo) else value


def tidied(coefficient: sp.Expr, by: tuple[sp.Symbol, ...]) -> sp.Expr:
    """Write a coefficient the way papers do, if it is a rational function."""
    if sp.count_ops(coefficient) > _OPERATIONS:
        return coefficient
    names: dict[sp.Expr, sp.Symbol] = {}
    _rational_form(coefficient, names)
    return sp.powsimp(sp.factor_terms(coefficient)) if names else present(coefficient, by)


def approach(formula: Formula, role: str, target: sp.Expr) -> tuple[tuple[int, list[sp.Expr]], bool]:
    """Return how a symbol tends to a value from inside the domain, and whether it could from either side.

    Raises
    ------
    HyperparameterError
        If the value lies outside.
    """
    symbol = formula.symbols[role]
    if target == sp.oo:
        if _violated(formula, symbol, sp.Integer(10) ** 30):
            raise HyperparameterError(f"{formula.id} does not hold for large {role}.", name=role)
        return (-1, [sp.Integer(1)]), False
    sides = []
    for side in (1, -1):
        near = target + side * sp.Rational(1, 10**9)
        closure = target if symbol.is_integer else near
        if not target.is_number or (admits(symbol, closure) and not _violated(formula, symbol, closure)):
            sides.append(side)
    if not sides or target.is_finite is False or target.is_extended_real is False:
        raise HyperparameterError(f"{formula.id} does not hold near {role} = {text(target)}.", name=role)
    return (0, [target, sp.Integer(sides[0])]), len(sides) == 2


def _violated(formula: Formula, symbol: sp.Symbol, value: sp.Expr) -> bool:
    """Return whether a condition on the symbol fails there: on it alone, or with all others small, as far as tried."""
    for condition in formula.conditions:
        written = formula.explicit(condition)
        if written.free_symbols == {symbol} and written.subs(symbol, value) == sp.false:
            return True
        if value > 10**20 and symbol in written.free_symbols and not isinstance(written, (sp.Eq, sp.Ne)):
            free = written.free_symbols - {symbol}
            others = {s: sp.Integer(1) if s.is_integer else sp.Rational(1, 1000) for s in free}
            if written.subs(others).subs(symbol, value) == sp.false:
                return True
    return False


def after_long(formula: Formula, role: str, expression: sp.Expr) -> tuple[sp.Expr, dict[sp.Expr, sp.Expr]]:
    """Return an expression and its auxiliaries without the powers of stable roots that vanish as an integer grows."""
    n = formula.symbols[role]
    if not any(a.name == "stable" for a in formula.assumptions):
        raise HyperparameterError(f"{formula.id} has no limit in {role} unless its roots lie inside the unit disc.",
                                  name=role)  # fmt: skip
    roots = {s for s in formula.where if isinstance(s, sp.Symbol) and s.name.startswith("r")}

    def vanishes(e: sp.Basic) -> bool:
        if not (e.is_Pow and e.base in roots):
            return False
        slope = sp.diff(e.exp, n)
        return bool(slope.is_positive) and n in e.exp.free_symbols

    def settled(e: sp.Expr) -> sp.Expr:
        return e.replace(vanishes, lambda power: sp.Integer(0))

    return settled(expression), {name: settled(meaning) for name, meaning in formula.where.items()}
