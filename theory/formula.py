"""A formula with its passport: equation, assumptions, defining equations, derivation, references, and a proof."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import sympy as sp

from ..errors import HyperparameterError, InvalidProblemError, ProofError
from ._evaluation import Outside, admits, evaluator, kind
from ._exact import exact_numbers, is_zero, present
from ._expansion import Undecided, after_long, approach, by_continuity, expand_about, tidied
from ._immutable import Immutable
from ._print import text, typeset
from .assumptions import Assumption
from .references import bibtex

__all__ = ["Formula", "Proof", "Step"]


@dataclass(frozen=True)
class Step(Immutable):
    """One step of a derivation: what is done, and what it gives."""

    text: str
    equation: sp.Basic | None = None


@dataclass(frozen=True, repr=False)
class Proof(Immutable):
    """What `Formula.prove` checked: each claim held exactly, as an identity of rational functions.

    Attributes
    ----------
    formula : str
    claims : tuple of str
    seconds : float
    """

    formula: str
    claims: tuple[str, ...]
    seconds: float

    def __repr__(self) -> str:
        return f"<Proof of {self.formula}: {_count(self.claims)} exactly>"


def _count(claims: tuple[str, ...]) -> str:
    return "1 claim holds" if len(claims) == 1 else f"{len(claims)} claims hold"


@dataclass(frozen=True, eq=False)
class Formula(Immutable):
    """A statement that papers can cite and that proves itself.

    Attributes
    ----------
    id : str
        For example ``"heavy_ball.stationary_covariance"``.
    equation : sympy.Eq
        The statement as it is written.
    symbols : mapping of str to sympy.Symbol
        The free symbols of the right-hand side by role (``h_i``, ``h_j``, ``c_ij``, ``lr``, ...).
    assumptions : tuple of Assumption
    defining : tuple of sympy.Eq
        The equations that define the answer, in the unknowns of ``solution``.
    solution : mapping of sympy.Symbol to sympy.Expr
        The value of every unknown; ``equation`` shows one of them.
    references : tuple of str
        BibTeX keys, with the place in the source after a comma where it is known.
    derivation : tuple of Step
    kind : {"exact", "approximation"}
    exact : Formula or None
        For an approximation, the exact law it approximates.
    where : mapping of sympy.Expr to sympy.Expr
        What the auxiliary quantities on the right-hand side stand for, in the order of their use.
    parts : mapping of str to sympy.Expr
        The right-hand side taken apart, where its parts have names of their own.
    identities : tuple of (str, sympy.Expr)
        Further claims, each with a rational expression that must vanish identically.
    lemmas : tuple of Formula
        Formulas that this one rests on; `prove` proves them as well.
    """

    id: str
    equation: sp.Eq
    symbols: Mapping[str, sp.Symbol]
    assumptions: tuple[Assumption, ...]
    defining: tuple[sp.Eq, ...]
    solution: Mapping[sp.Symbol, sp.Expr]
    references: tuple[str, ...] = ()
    derivation: tuple[Step, ...] = ()
    kind: Literal["exact", "approximation"] = "exact"
    exact: Formula | None = None
    where: Mapping[sp.Expr, sp.Expr] = field(default_factory=dict)
    parts: Mapping[str, sp.Expr] = field(default_factory=dict)
    identities: tuple[tuple[str, sp.Expr], ...] = ()
    lemmas: tuple[Formula, ...] = ()
    symbol_latex: Mapping[sp.Symbol, str] = field(default_factory=dict, repr=False)

    @property
    def expression(self) -> sp.Expr:
        """The right-hand side."""
        return self.equation.rhs

    @property
    def relative_error(self) -> sp.Expr:
        """For an approximation: (approximation - exact)/exact, in closed form; 0 for an exact formula.

        Not a number for an approximation without an exact law in closed form.
        """
        if self.exact is None:
            return sp.nan if self.kind == "approximation" else sp.Integer(0)
        if self.where or self.exact.where:
            return self.explicit() / self.exact.explicit() - 1
        return present(self.expression / self.exact.expression - 1, self._sorted_by())

    def prove(self) -> Proof:
        """Substitute the solution into every defining equation and reduce to exactly zero.

        The arithmetic is that of rational functions: an identity holds for all values of the symbols or not at all, and
        no simplification heuristic or number is involved. Of an approximation it is proved that it solves its own
        defining equations, and nothing more. A formula does not change, so it is proved once.

        Raises
        ------
        ProofError
            If one of the identities fails.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> stationary_covariance(sgd).prove()
        <Proof of sgd.stationary_covariance: 2 claims hold exactly>
        """
        return self._proof

    @functools.cached_property
    def _proof(self) -> Proof:
        started = time.perf_counter()
        claims: list[str] = []
        shown = self.equation.lhs
        if shown in self.solution:
            self._claim(claims, f"{shown} as written equals the solution", self.expression - self.solution[shown])
        for equation in self.defining:
            self._claim(claims, str(equation), self._residual(equation))
        for statement, residual in self.identities:
            self._claim(claims, statement, residual)
        for lemma in self.lemmas:
            claims += [f"{lemma.id}: {claim}" for claim in lemma.prove().claims]
        return Proof(self.id, tuple(claims), time.perf_counter() - started)

    def _residual(self, equation: sp.Eq) -> sp.Expr:
        """Substitute the solution, one term for each unknown: nested sums of large quotients are slow to decide."""
        unknowns = sorted(equation.free_symbols & set(self.solution), key=str)
        polynomial = sp.Poly(equation.lhs - equation.rhs, *unknowns) if unknowns else equation.lhs - equation.rhs
        if not unknowns:
            return polynomial
        values = [self.solution[unknown] for unknown in unknowns]
        return sp.Add(
            *(sp.Mul(c, *(v**k for v, k in zip(values, powers, strict=True))) for powers, c in polynomial.terms())
        )

    def _claim(self, claims: list[str], statement: str, residual: sp.Expr) -> None:
        if not is_zero(residual):
            raise ProofError(self.id, statement, sp.factor(residual))
        claims.append(statement)

    @property
    def conditions(self) -> tuple[sp.Rel, ...]:
        """When the formula holds: the conditions of all assumptions, domains of hyper-parameters included."""
        return tuple(dict.fromkeys(c for a in self.assumptions for c in a.conditions if c != sp.true))

    def specialise(self, **values: Any) -> Formula:
        """Return the formula with symbols replaced, by role: ``formula.specialise(h_j="h_i", momentum=0)``.

        A value may be a number, an expression, or text in the roles of other symbols (``lr="1/(2*h_i)"``). A float is
        taken at its exact value and printed as it was given. Symbols that are new become roles under their own name.

        Raises
        ------
        HyperparameterError
            If there is no such role, or a value lies outside the domain of its symbol or violates a condition.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> print(stationary_covariance(sgd).specialise(lr=0.1))
        Sigma_ij = 0.1*c_ij/(-0.1*h_i*h_j + h_i + h_j)
        """
        given = {role: self._value(role, value) for role, value in values.items()}
        swap = {self.symbols[role]: value for role, value in given.items()}
        note = ", ".join(f"{self.symbols[role]} = {text(value)}" for role, value in given.items())

        def put(expression: Any) -> Any:
            return expression.subs(swap, simultaneous=True)

        expression = put(self.expression)
        if not self.where and not expression.has(sp.MatrixSymbol) and expression.is_rational_function():
            expression = present(expression, self._sorted_by())
        kept = {role: s for role, s in self.symbols.items() if role not in values}
        known = set(self.symbols.values())
        new = sorted({s for v in swap.values() for s in v.free_symbols} - known, key=str)
        special = replace(
            self,
            id=f"{self.id}[{note}]",
            equation=sp.Eq(self.equation.lhs, expression, evaluate=False),
            symbols={**kept, **{s.name: s for s in new}},
            assumptions=tuple(replace(a, conditions=self._conditions_after(a, put, note)) for a in self.assumptions),
            defining=tuple(sp.Eq(put(e.lhs), put(e.rhs), evaluate=False) for e in self.defining),
            solution={k: put(v) for k, v in self.solution.items()},
            where={put(k): put(v) for k, v in self.where.items()},
            parts={k: put(v) for k, v in self.parts.items()},
            identities=tuple((claim, put(e)) for claim, e in self.identities),
            derivation=(*self.derivation, Step(f"Specialise to {note}.", sp.Eq(self.equation.lhs, expression))),
            exact=self.exact.specialise(**{r: v for r, v in given.items() if r in self.exact.symbols})
            if self.exact
            else None,
        )
        for condition in special.conditions:
            if special.explicit(condition) == sp.false:
                special._refuse(condition, note)
        return special

    def _conditions_after(self, assumption: Assumption, put: Callable[[Any], Any], note: str) -> tuple[sp.Basic, ...]:
        after = []
        for condition in assumption.conditions:
            new = put(condition)
            if new == sp.false:
                self._refuse(condition, note)
            if new != sp.true:
                after.append(new)
        return tuple(after)

    def _refuse(self, condition: sp.Basic, note: str) -> None:
        raise HyperparameterError(f"{self.id} does not hold at {note}: it needs {text(condition)}.", name=note)

    def limit(self, role: str, value: Any, *, scale: Any = 1) -> sp.Expr:
        """Return the limit of ``scale`` times the right-hand side, `where` written out, as one symbol tends to a value.

        Parameters
        ----------
        role : str
            Which symbol.
        value : number or expression
            May lie on the edge of the formula's domain; it is approached from inside. ``sympy.oo`` for infinity.
        scale : expression or role, optional
            Factor that keeps the limit finite, for example ``scale="1/lr"`` as lr tends to 0.

        Raises
        ------
        HyperparameterError
            If there is no such role, the value lies outside the domain, or the limit is not decided by exact arithmetic
            on power series.

        Examples
        --------
        >>> from sgdcov.theory import average_covariance, sgd, stationary_covariance
        >>> stationary_covariance(sgd).limit("lr", 0, scale="1/lr")
        c_ij/(h_i + h_j)
        >>> average_covariance(sgd).limit("lr", 0)
        0
        """
        symbol, target, factor = self._symbol(role), self._expression(value), self._expression(scale)
        start, inner = approach(self, role, target)
        if target.is_finite:
            self._require_scalar()
            value = by_continuity(self.explicit() * factor, symbol, target)
            if value is not None:
                return tidied(value, self._sorted_by())
        terms = self._terms(role, f"limit at {role} = {text(target)}", factor, start, 1)
        if not terms or terms[0][0] > 0:
            return sp.Integer(0)
        (power, coefficient), by = terms[0], self._sorted_by()
        if power == 0:
            return tidied(coefficient, by)
        if inner and power % 2:
            raise HyperparameterError(f"{self.id} has different limits from either side of {symbol} = {target}.",
                                      name=role)  # fmt: skip
        return sp.oo * sp.sign(tidied(coefficient, by))

    def series(self, role: str, order: int = 2) -> sp.Expr:
        """Return the first ``order`` non-zero terms of the expansion, `where` written out, about ``role`` = 0.

        Raises
        ------
        HyperparameterError
            If there is no such role, it is an integer, or exact arithmetic on power series does not give the terms.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> stationary_covariance(sgd).series("lr", 2)
        c_ij*h_i*h_j*lr**2/(h_i + h_j)**2 + c_ij*lr/(h_i + h_j)
        """
        x = self._symbol(role)
        if x.is_integer or isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise HyperparameterError(
                f"{self.id}: a series has order 1, 2, ... in a symbol that is no integer; got {order!r} in {role}.",
                name=role,
            )
        start, _ = approach(self, role, sp.Integer(0))
        terms = self._terms(role, f"series in {role}", sp.Integer(1), (start[0], [start[1][0], sp.Integer(1)]), order)
        return sp.Add(*(tidied(c, self._sorted_by()) * x**k for k, c in terms))

    def _terms(
        self, role: str, what: str, factor: sp.Expr, start: tuple[int, list[sp.Expr]], wanted: int
    ) -> list[tuple[int, sp.Expr]]:
        self._require_scalar()
        expression, where = self.expression * factor, dict(self.where)
        if start[0] < 0 and self.symbols[role].is_integer:
            expression, where = after_long(self, role, expression)
        try:
            return expand_about(expression, where, self.symbols[role], start, wanted)
        except Undecided as error:
            raise HyperparameterError(
                f"the {what} of {self.id} is not decided exactly: {error}. Specialise more symbols, or expand "
                f"formula.explicit() by sympy.limit or sympy.series.",
                name=role,
            ) from error

    def explicit(self, expression: Any = None) -> Any:
        """Return the right-hand side (or a part of it, or a condition) with everything in ``where`` written out."""
        written = self.expression if expression is None else expression
        for name, meaning in self.where.items():
            written = written.xreplace({name: meaning})
        return written

    def lambdify(
        self, modules: Literal["numpy", "mpmath"] = "numpy", *, outside: Outside = "raise"
    ) -> Callable[..., Any]:
        """Return the right-hand side as a function of keyword arguments named by role.

        Parameters
        ----------
        modules : {"numpy", "mpmath"}
            With "numpy" the arguments are numbers or arrays that broadcast, taken at their exact value, and a float or
            an array of doubles is returned: numbers are right to the last digits, elements of arrays to a relative
            error of 1e-8. Where double precision cannot promise that, more digits are used. With "mpmath" the
            arguments are numbers, and the value is right to the working precision.
        outside : {"raise", "nan"}
            What happens where a condition of the formula (`Formula.conditions`) or the kind of a symbol (integer,
            positive, ...) is violated, or the right-hand side is undefined, in arrays at any element: an error that
            names it, or nan at that element.

        Raises
        ------
        HyperparameterError
            By the function: if the roles are not those of the formula, an argument is no real number, or a condition
            is violated. An equality (critical damping) counts as met up to the rounding of the arguments.
        InvalidProblemError
            If the formula states an equation between matrices, or, by the function, its value is no double.

        Notes
        -----
        Characteristic roots may be complex; what is made of them is real. A value that is 0 to hundreds of digits is
        returned as 0.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> variance = stationary_covariance(sgd).lambdify()
        >>> variance(h_i=1.0, h_j=1.0, c_ij=1.0, lr=1.0)
        1.0
        >>> variance(h_i=1.0, h_j=1.0, c_ij=1.0, lr=5.0)
        Traceback (most recent call last):
        ...
        sgdcov.errors.HyperparameterError: sgd.stationary_covariance does not hold at h_i=1.0, lr=5.0: it needs \
h_i*lr < 2.
        """
        return evaluator(self, modules, outside)

    def latex(self, expression: sp.Basic | None = None) -> str:
        r"""Return the equation in LaTeX, with the letters that papers use.

        Parameters
        ----------
        expression : sympy.Basic, optional
            Typeset this in the same letters instead: a step of the derivation, a limit, a series.

        Examples
        --------
        >>> from sgdcov.theory import heavy_ball, stability, stationary_covariance
        >>> stationary_covariance(heavy_ball).latex(stability(heavy_ball).largest_lr)
        '\\frac{2 \\left(\\mu + 1\\right)}{h}'
        """
        if expression is not None:
            return typeset(expression, self.symbol_latex)
        relation = r" \approx " if self.kind == "approximation" else " = "
        return relation.join(typeset(side, self.symbol_latex) for side in (self.equation.lhs, self.expression))

    def bibtex(self) -> str:
        """Return the BibTeX entries of the references."""
        return bibtex(key.split(",")[0].strip() for key in self.references)

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        sign = "~" if self.kind == "approximation" else "="
        return f"{self.equation.lhs} {sign} {text(self.expression)}"

    def __repr__(self) -> str:
        return f"<Formula {self.id}: {self}>"

    def __post_init__(self) -> None:
        for name in ("symbols", "solution", "where", "parts", "symbol_latex"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        self._require_distinct_names()

    def _require_distinct_names(self) -> None:
        """Refuse two symbols with one name: they would read as one, and one keyword would stand for both."""
        shown = {*self.symbols.values(), *self.equation.free_symbols}
        for name, meaning in self.where.items():
            shown |= name.free_symbols | meaning.free_symbols
        named: dict[str, sp.Symbol] = {}
        for symbol in sorted(shown, key=str):
            if named.setdefault(symbol.name, symbol) != symbol:
                raise HyperparameterError(
                    f"{self.id}: {symbol.name!r} is a name that this formula uses; bind or rename the hyper-parameter, "
                    f"or the symbol that is put in.",
                    name=symbol.name,
                )

    def _require_scalar(self) -> None:
        """Refuse what has no value at numbers: a statement about matrices."""
        written = self.explicit()
        if written.has(sp.MatrixSymbol) or written.free_symbols - set(self.symbols.values()):
            raise InvalidProblemError(
                f"{self.id} states an equation between matrices; numbers for its symbols make no number: {self}."
            )

    def _value(self, role: str, value: Any) -> sp.Expr:
        """Return what is put for a symbol, exactly; refuse what no symbol of this kind can be."""
        symbol = self._symbol(role)
        known = self._expression(value)
        if known.is_number and not admits(symbol, known):
            raise HyperparameterError(
                f"{self.id}: {role}={text(known)} is not what {role} stands for: {kind(symbol)}.", name=role
            )
        return known

    def _symbol(self, role: str) -> sp.Symbol:
        if role not in self.symbols:
            raise HyperparameterError(
                f"{self.id} has no symbol {role!r}; it has {', '.join(self.symbols) or 'none'}.", name=role
            )
        return self.symbols[role]

    def _expression(self, value: Any) -> sp.Expr:
        """Return a number, an expression or text in the roles as an expression with exact numbers."""
        if isinstance(value, str) and value in self.symbols:
            return self.symbols[value]
        try:
            known = sp.sympify(value, locals=dict(self.symbols)) if isinstance(value, str) else sp.sympify(value)
        except (sp.SympifyError, TypeError, AttributeError, SyntaxError, ValueError) as error:
            raise HyperparameterError(f"{self.id}: {value!r} is no number or expression.", name=str(value)) from error
        if not isinstance(known, sp.Expr):
            raise HyperparameterError(f"{self.id}: {value!r} is no number or expression.", name=str(value))
        strangers = sorted(known.free_symbols - set(self.symbols.values()), key=str) if isinstance(value, str) else []
        if strangers:
            raise HyperparameterError(
                f"{self.id} has no symbol {strangers[0].name!r}, as in {value!r}; it has {', '.join(self.symbols)}.",
                name=strangers[0].name,
            )
        return exact_numbers(known)

    def _sorted_by(self) -> tuple[sp.Symbol, ...]:
        return tuple(self.symbols[r] for r in ("h_i", "h_j") if r in self.symbols)
