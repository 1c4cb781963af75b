"""Numbers for a formula: inside its conditions only, and with digits that are known to be right.

A number is worked out at two precisions, the second twice the first, and again at twice that until they agree. Arrays
first go through double precision with a running error bound; elements whose bound is too large, or that lie close to
the edge of a condition, are worked out one by one.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import mpmath
import sympy as sp

from ..errors import HyperparameterError, InvalidProblemError
from ._print import text
from ._rounding import Rounded, functions

if TYPE_CHECKING:
    from .formula import Formula

__all__ = ["Outside", "admits", "evaluator", "kind"]

Outside = Literal["raise", "nan"]

_DIGITS = 17  # what a double can tell apart
_FAST = 1e-8  # relative error up to which a double is taken as it is
_TRIES = 4  # precisions of 30, 60, 120 and 240 digits for a double
#: How far a double may lie from an equality that it is meant to meet: a few roundings of its terms.
_ROUNDINGS = 8


def evaluator(formula: Formula, modules: str, outside: str) -> Callable[..., Any]:
    """Return the function that `Formula.lambdify` returns."""
    if modules not in ("numpy", "mpmath"):
        raise InvalidProblemError(
            f"modules must be 'numpy' or 'mpmath', got {modules!r}. For another library compile the expression, as in "
            f"sympy.lambdify(arguments, formula.explicit(), modules): that checks neither conditions nor digits."
        )
    if outside not in ("raise", "nan"):
        raise InvalidProblemError(f"outside must be 'raise' or 'nan', got {outside!r}.")
    return _Evaluator(formula, modules, outside)


def admits(symbol: sp.Symbol, value: Any) -> bool:
    """Return whether a number may stand for a symbol: integer, positive, non-negative or real as that is."""
    known = sp.sympify(value)
    return not (
        (symbol.is_integer and known.is_integer is False)
        or (symbol.is_positive and known.is_positive is False)
        or (symbol.is_nonnegative and known.is_nonnegative is False)
        or (symbol.is_real and known.is_real is False)
        or known.is_finite is False
    )


class _Evaluator:
    """The right-hand side of a formula as a function of keyword arguments."""

    def __init__(self, formula: Formula, modules: str, outside: str) -> None:
        formula._require_scalar()
        self.formula, self.modules, self.outside = formula, modules, outside
        self.roles = tuple(formula.symbols)
        self.conditions = _checkable(formula)
        margins = [_margin(c) for c in self.conditions]
        sizes = [_size(c) for c in self.conditions]
        self._targets = [formula.expression, *margins, *sizes]
        self._precise = _compiled(formula, self._targets[:1], "mpmath")
        self._margins = _compiled(formula, [*margins, *sizes], "mpmath") if margins else None
        self._compiled_fast: Callable[..., Any] | None = None

    def __call__(self, **values: Any) -> Any:
        if set(values) != set(self.roles):
            raise HyperparameterError(
                f"{self.formula.id} is a function of {', '.join(self.roles) or 'nothing'}; "
                f"got {', '.join(values) or 'nothing'}.",
                name=next(iter(set(values) ^ set(self.roles))),
            )
        ordered = [values[role] for role in self.roles]
        if any(getattr(v, "ndim", 0) or isinstance(v, (list, tuple)) for v in ordered):
            return self._array(ordered)
        number = self._number([_exact(self.formula, r, v) for r, v in zip(self.roles, ordered, strict=True)])
        return number if self.modules == "mpmath" else _double(self.formula, number)

    def _array(self, values: Sequence[Any]) -> Any:
        if self.modules == "mpmath":
            raise InvalidProblemError(f"{self.formula.id}: with modules='mpmath' arguments are numbers, not arrays.")
        np: Any = sys.modules.get("numpy")  # arrays come from there; theory itself does without
        if np is None:
            raise InvalidProblemError(f"{self.formula.id}: the arguments are numbers, or arrays of NumPy.")
        try:
            arrays = np.broadcast_arrays(*(_real_array(np, v) for v in values))
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidProblemError(
                f"{self.formula.id}: the arguments do not make arrays of real numbers: {error}"
            ) from error
        # The arithmetic on arrays may meet what is refused below; a warning of it would name no element.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value, sure = self._fast(np, arrays, float)
            if not sure.all() and sure.any():
                # Where the machine has more than a double, its digits decide many of the others without further work.
                again, better = self._fast(np, [a[~sure] for a in arrays], np.longdouble)
                value[~sure], sure[~sure] = again, better
        for index in zip(*np.nonzero(~sure), strict=True):
            exact = [_exact(self.formula, r, float(a[index])) for r, a in zip(self.roles, arrays, strict=True)]
            value[index] = _double(self.formula, self._number(exact))
        return value

    def _fast(self, np: Any, arrays: Sequence[Any], kind: Any) -> tuple[Any, Any]:
        """Evaluate in a precision of the machine; return the values, and which of them are surely right and inside."""
        shape = arrays[0].shape
        nothing = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        if any(isinstance(c, sp.Eq) for c in self.conditions):
            return nothing
        if self._compiled_fast is None:
            count = 1 + len(self.conditions)
            self._compiled_fast = _compiled(self.formula, self._targets[:count], [functions(), "numpy"])
        try:
            result, *margins = self._compiled_fast(*(Rounded(a.astype(kind)) for a in arrays))
        except (TypeError, AttributeError, NameError, ValueError, ZeroDivisionError):
            return nothing  # a function that is not followed there
        if not isinstance(result, Rounded):  # nothing but numbers
            return nothing
        sure = result.error <= _FAST * abs(result.value)
        for condition, margin in zip(self.conditions, margins, strict=True):
            if not isinstance(margin, Rounded):
                return nothing
            away = abs(margin.value) if isinstance(condition, sp.Ne) else np.real(margin.value)
            sure = sure & (away > margin.error)
        for symbol, a in zip(self.formula.symbols.values(), arrays, strict=True):
            sure = sure & np.isfinite(a) & (a > 0 if symbol.is_positive else a >= 0 if symbol.is_nonnegative else True)
            sure = sure & (a == np.floor(a) if symbol.is_integer else True)
        sure = np.broadcast_to(sure & np.isfinite(result.value), shape).copy()
        value = np.real(np.broadcast_to(result.value, shape)).astype(float)
        sure = sure & np.isfinite(value) & ((abs(value) >= sys.float_info.min) | (result.value == 0))
        return np.where(sure, value, np.nan), sure

    def _number(self, values: Sequence[Any]) -> Any:
        """Evaluate at exact arguments: inside the conditions, and until two precisions agree."""
        try:
            self._require_inside(values)
        except HyperparameterError:
            if self.outside == "nan":
                return mpmath.nan
            raise
        digits = _DIGITS if self.modules == "numpy" else mpmath.mp.dps
        found: list[Any] = []
        for attempt in range(_TRIES):
            with mpmath.workdps((digits + 13) * 2**attempt):
                try:
                    found.append(mpmath.mpmathify(self._precise(*(_at_precision(v) for v in values))[0]))
                except ZeroDivisionError:
                    found.append(mpmath.nan)
                if len(found) > 1 and abs(found[-1] - found[-2]) <= mpmath.mpf(10) ** -digits * abs(found[-1]):
                    return +self._real(found[-1], digits, values)
        # What shrinks with every precision, down to the last, is 0 as far as hundreds of digits can tell.
        if all(abs(b) <= abs(a) * mpmath.mpf(10) ** -digits for a, b in itertools.pairwise(found)):
            return mpmath.mpf(0)
        return self._undefined(values)

    def _real(self, value: Any, digits: int, values: Sequence[Any]) -> Any:
        if abs(mpmath.im(value)) > mpmath.mpf(10) ** (1 - digits) * abs(value):
            return self._undefined(values)
        return mpmath.re(value)

    def _undefined(self, values: Sequence[Any]) -> Any:
        if self.outside == "nan":
            return mpmath.nan
        message = f"{self.formula.id} is undefined at {self._shown(self.roles, values)}"
        raise HyperparameterError(f"{message}.", name=self.roles[0] if self.roles else "")

    def _require_inside(self, values: Sequence[Any]) -> None:
        for (role, symbol), value in zip(self.formula.symbols.items(), values, strict=True):
            if not _admits_number(symbol, value):
                raise HyperparameterError(
                    f"{self.formula.id} does not hold at {role}={_short(value)}: it must be {kind(symbol)}.", name=role
                )
        if self._margins is None:
            return
        digits = _DIGITS if self.modules == "numpy" else mpmath.mp.dps
        with mpmath.workdps(2 * (digits + 13)):
            try:
                numbers = self._margins(*(_at_precision(v) for v in values))
            except ZeroDivisionError:
                numbers = [mpmath.nan] * (2 * len(self.conditions))
            count = len(self.conditions)
            for condition, margin, size in zip(self.conditions, numbers[:count], numbers[count:], strict=True):
                if not _holds(condition, mpmath.mpmathify(margin), mpmath.mpmathify(size), digits):
                    self._refuse(condition, values)

    def _refuse(self, condition: sp.Rel, values: Sequence[Any]) -> None:
        inside = self.formula.explicit(condition).free_symbols
        roles = [r for r, s in self.formula.symbols.items() if s in inside]
        known = dict(zip(self.roles, values, strict=True))
        advice = ""
        if isinstance(condition, sp.Ne):
            advice = ": two characteristic roots are equal; ask for the form with roots='repeated'"
        raise HyperparameterError(
            f"{self.formula.id} does not hold at {self._shown(roles, [known[r] for r in roles])}: "
            f"it needs {text(condition)}{advice}.",
            name=roles[-1] if roles else "",
        )

    @staticmethod
    def _shown(roles: Sequence[str], values: Sequence[Any]) -> str:
        return ", ".join(f"{role}={_short(value)}" for role, value in zip(roles, values, strict=True)) or "nothing"


def _checkable(formula: Formula) -> tuple[sp.Rel, ...]:
    """Return the conditions that numbers for the formula's own symbols decide."""
    known = set(formula.symbols.values())
    return tuple(c for c in formula.conditions if formula.explicit(c).free_symbols <= known)


def _margin(condition: sp.Rel) -> sp.Expr:
    if isinstance(condition, (sp.Eq, sp.Ne)):
        return condition.lhs - condition.rhs
    return condition.gts - condition.lts


def _size(condition: sp.Rel) -> sp.Expr:
    """Return the size of the terms of an equality, against which its rounding is measured."""
    if not isinstance(condition, sp.Eq):
        return sp.Integer(1)
    return sp.Add(*(sp.Abs(term) for term in sp.Add.make_args(sp.expand(_margin(condition)))))


def _holds(condition: sp.Rel, margin: Any, size: Any, digits: int) -> bool:
    if margin != margin or abs(mpmath.im(margin)) > 0:
        return False
    slack = mpmath.mpf(10) ** (-digits - 10)  # zero, as far as this precision tells
    if isinstance(condition, sp.Eq):
        # The arguments are doubles next to those meant.
        return bool(abs(margin) <= _ROUNDINGS * mpmath.mpf(2) ** (1 - 53) * size)
    if isinstance(condition, sp.Ne):
        return bool(abs(margin) > slack)
    if isinstance(condition, (sp.StrictLessThan, sp.StrictGreaterThan)):
        return bool(margin > 0)
    return bool(margin >= -slack)


def _compiled(formula: Formula, targets: Sequence[sp.Expr], modules: Any) -> Callable[..., Any]:
    """Compile expressions with what ``where`` says as steps before them, the last one first."""
    arguments = {s: sp.Dummy(role) for role, s in formula.symbols.items()}
    # Numbers are put in at once: a curvature of 0 takes with it symbols that the formula is not asked for.
    constant = {key: meaning for key, meaning in formula.where.items() if not meaning.free_symbols}
    where = {key: m.xreplace(constant) for key, m in formula.where.items() if key not in constant}
    targets = [target.xreplace(constant) for target in targets]
    names = {key: sp.Dummy("part") for key in where}
    swap = {**arguments, **names}
    used: list[sp.Basic] = []
    for key in where:  # in the order of their use: what an auxiliary needs comes after it
        if any(part.has(key) for part in (*targets, *(where[k] for k in used))):
            used.append(key)
    steps = [(names[key], where[key].xreplace(swap)) for key in reversed(used)]

    def written_out(expressions: Any) -> tuple[list[tuple[sp.Dummy, sp.Expr]], Any]:
        return steps, expressions

    wanted = [target.xreplace(swap) for target in targets]
    return sp.lambdify(list(arguments.values()), wanted, modules=modules, cse=written_out)  # type: ignore[no-any-return]


def _real_array(np: Any, value: Any) -> Any:
    array = np.asarray(value)
    if np.iscomplexobj(array):
        if np.any(array.imag != 0):
            raise ValueError("one is complex")
        array = array.real
    return array.astype(float, casting="same_kind") if array.dtype.kind in "iuf" else np.asarray(value, dtype=float)


def _exact(formula: Formula, role: str, value: Any) -> Any:
    """Return a number that stands for itself at every precision; refuse what is no real number."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        raise HyperparameterError(f"{formula.id}: {role}={value!r} is not a number.", name=role)
    if isinstance(value, (int, mpmath.mpf)):
        return value
    if isinstance(value, float):
        return float(value)
    try:
        known = sp.sympify(getattr(value, "item", lambda: value)())
    except (sp.SympifyError, TypeError, ValueError, AttributeError) as error:
        raise HyperparameterError(f"{formula.id}: {role}={value!r} is not a number.", name=role) from error
    if not (isinstance(known, sp.Expr) and known.is_number and known.is_extended_real):
        raise HyperparameterError(f"{formula.id}: {role}={value!r} is not a real number.", name=role)
    return known


def _at_precision(value: Any) -> Any:
    if isinstance(value, sp.Expr):
        return mpmath.mpf(value._to_mpmath(mpmath.mp.prec))
    return mpmath.mpf(value)


def _admits_number(symbol: sp.Symbol, value: Any) -> bool:
    number = _at_precision(value)
    return bool(
        mpmath.isfinite(number)
        and (number > 0 or not symbol.is_positive)
        and (number >= 0 or not symbol.is_nonnegative)
        and (mpmath.isint(number) or not symbol.is_integer)
    )


def kind(symbol: sp.Symbol) -> str:
    """Return in words what numbers a symbol stands for."""
    sign = "positive" if symbol.is_positive else "non-negative" if symbol.is_nonnegative else "finite"
    return f"{'an integer, and ' if symbol.is_integer else ''}{sign}"


def _short(value: Any) -> str:
    if isinstance(value, mpmath.mpf):
        return str(mpmath.nstr(value, 17))
    return text(value) if isinstance(value, sp.Expr) else repr(value)


def _double(formula: Formula, number: Any) -> float:
    if mpmath.isnan(number):
        return math.nan
    value = float(number)
    if math.isinf(value) or (number != 0 and abs(value) < sys.float_info.min):
        raise InvalidProblemError(
            f"{formula.id} is {mpmath.nstr(number, 6)}, outside the range of doubles; lambdify('mpmath') returns it."
        )
    return value


