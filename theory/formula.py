"""A formula with its passport: equation, assumptions, defining equations, derivation, references, and a proof."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import sympy as sp

from ..errors import HyperparameterError, ProofError
from ._exact import is_zero, present
from .assumptions import Assumption
from .references import bibtex

__all__ = ["Formula", "Proof", "Step"]


@dataclass(frozen=True)
class Step:
    """One step of a derivation: what is done, and what it gives."""

    text: str
    equation: sp.Basic | None = None


@dataclass(frozen=True, repr=False)
class Proof:
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


def _complex_root(x: Any) -> Any:
    return (x + 0j) ** 0.5


def _count(claims: tuple[str, ...]) -> str:
    return "1 claim holds" if len(claims) == 1 else f"{len(claims)} claims hold"


@dataclass(frozen=True, eq=False)
class Formula:
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

    def specialise(self, **values: Any) -> Formula:
        """Return the formula with symbols replaced, by role: ``formula.specialise(h_j="h_i", momentum=0)``.

        A value may be a number, an expression, or the role of another symbol.
        """
        unknown = sorted(set(values) - set(self.symbols))
        if unknown:
            raise KeyError(f"{self.id} has no symbol {unknown[0]!r}; it has {', '.join(self.symbols)}.")
        swap = {self.symbols[role]: self._value(value) for role, value in values.items()}
        note = ", ".join(f"{self.symbols[role]} = {self._value(value)}" for role, value in values.items())
        expression = self.expression.subs(swap, simultaneous=True)
        if not self.where:
            expression = present(expression, self._sorted_by())
        return replace(
            self,
            id=f"{self.id}[{note}]",
            equation=sp.Eq(self.equation.lhs, expression, evaluate=False),
            symbols={r: s for r, s in self.symbols.items() if r not in values},
            assumptions=tuple(
                replace(a, conditions=tuple(c.subs(swap, simultaneous=True) for c in a.conditions))
                for a in self.assumptions
            ),
            defining=tuple(
                sp.Eq(e.lhs.subs(swap, simultaneous=True), e.rhs.subs(swap, simultaneous=True), evaluate=False)
                for e in self.defining
            ),
            solution={k: v.subs(swap, simultaneous=True) for k, v in self.solution.items()},
            where={k.subs(swap, simultaneous=True): v.subs(swap, simultaneous=True) for k, v in self.where.items()},
            parts={k: v.subs(swap, simultaneous=True) for k, v in self.parts.items()},
            identities=tuple((text, e.subs(swap, simultaneous=True)) for text, e in self.identities),
            derivation=(*self.derivation, Step(f"Specialise to {note}.", sp.Eq(self.equation.lhs, expression))),
            exact=self.exact.specialise(**{r: v for r, v in values.items() if r in self.exact.symbols})
            if self.exact
            else None,
        )

    def limit(self, role: str, value: Any, *, scale: sp.Expr | str | int = 1) -> sp.Expr:
        """Return the limit of ``scale`` times the right-hand side as one symbol tends to a value.

        Parameters
        ----------
        role : str
            Which symbol.
        value : number or expression
        scale : expression or role, optional
            Factor that keeps the limit finite, for example ``scale="1/lr"`` as lr tends to 0.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> stationary_covariance(sgd).limit("lr", 0, scale="1/lr")
        c_ij/(h_i + h_j)
        """
        factor = sp.sympify(scale, locals=dict(self.symbols)) if isinstance(scale, str) else sp.sympify(scale)
        target, symbol = sp.sympify(value), self.symbols[role]
        expression = sp.cancel(sp.together(self.expression * factor))
        numerator, denominator = sp.fraction(expression)
        if target.is_finite and not is_zero(denominator.subs(symbol, target)):
            return present(expression.subs(symbol, target), self._sorted_by())
        return sp.factor(sp.limit(numerator / denominator, symbol, target))

    def series(self, role: str, order: int = 2) -> sp.Expr:
        """Return the first ``order`` non-zero terms of the expansion of the right-hand side about ``role`` = 0.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> stationary_covariance(sgd).series("lr", 2)
        c_ij*h_i*h_j*lr**2/(h_i + h_j)**2 + c_ij*lr/(h_i + h_j)
        """
        x = self.symbols[role]
        numerator, denominator = (sp.Poly(part, x) for part in sp.fraction(sp.together(self.expression)))
        above, below = (list(reversed(part.all_coeffs())) for part in (numerator, denominator))
        lowest_above, lowest_below = (next(k for k, c in enumerate(part) if c != 0) for part in (above, below))
        above, below = above[lowest_above:], below[lowest_below:]
        quotient: list[sp.Expr] = []
        while sum(c != 0 for c in quotient) < order and len(quotient) < order + len(above) + len(below):
            k = len(quotient)
            known = sum((below[k - m] * quotient[m] for m in range(max(0, k + 1 - len(below)), k)), sp.Integer(0))
            coefficient = ((above[k] if k < len(above) else 0) - known) / below[0]
            quotient.append(present(coefficient, self._sorted_by()) if not is_zero(coefficient) else sp.Integer(0))
        return sp.Add(*(c * x ** (k + lowest_above - lowest_below) for k, c in enumerate(quotient)))

    def explicit(self, expression: sp.Expr | None = None) -> sp.Expr:
        """Return the right-hand side (or a part of it) with everything in ``where`` written out."""
        written = self.expression if expression is None else expression
        for name, meaning in self.where.items():
            written = written.xreplace({name: meaning})
        return written

    def lambdify(self, modules: str | list[Any] = "numpy") -> Callable[..., Any]:
        """Return the right-hand side as a function of keyword arguments named by role.

        Characteristic roots may be complex; what is made of them is real, and its real part is returned.

        Raises
        ------
        HyperparameterError
            By the function, where the right-hand side is undefined: the form for distinct roots at critical damping.

        Examples
        --------
        >>> from sgdcov.theory import sgd, stationary_covariance
        >>> float(stationary_covariance(sgd).lambdify()(h_i=1.0, h_j=1.0, c_ij=1.0, lr=1.0))
        1.0
        """
        roles = tuple(self.symbols)
        given: list[Any] = [modules] if isinstance(modules, str) else list(modules)
        # mpmath's own root is complex where it must be, and keeps every digit of a constant.
        known = [{"sqrt": _complex_root}, *given] if self.where and "mpmath" not in given else given
        function = sp.lambdify([self.symbols[r] for r in roles], self.explicit(), modules=known)

        def evaluate(**values: Any) -> Any:
            if set(values) != set(roles):
                raise TypeError(f"{self.id} is a function of {', '.join(roles)}; got {', '.join(values) or 'nothing'}.")
            if not self.where:
                return function(*(values[r] for r in roles))
            try:
                value = function(*(values[r] for r in roles)).real
                undefined = value != value
            except ZeroDivisionError:
                undefined = True
            if bool(undefined.any() if hasattr(undefined, "any") else undefined):
                message = f"{self.id} is undefined at {values}"
                if any(str(symbol).startswith("r") for symbol in self.where):
                    message += ": two characteristic roots are equal; ask for the form with roots='repeated'"
                raise HyperparameterError(f"{message}.", name="roots")
            return value

        return evaluate

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
            return str(sp.latex(expression, symbol_names=dict(self.symbol_latex)))
        relation = r" \approx " if self.kind == "approximation" else " = "
        sides = (sp.latex(side, symbol_names=dict(self.symbol_latex)) for side in (self.equation.lhs, self.expression))
        return relation.join(sides)

    def bibtex(self) -> str:
        """Return the BibTeX entries of the references."""
        return bibtex(key.split(",")[0].strip() for key in self.references)

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"

    def __str__(self) -> str:
        sign = "~" if self.kind == "approximation" else "="
        return f"{self.equation.lhs} {sign} {self.expression}"

    def __repr__(self) -> str:
        return f"<Formula {self.id}: {self}>"

    def __post_init__(self) -> None:
        for name in ("symbols", "solution", "where", "parts", "symbol_latex"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def _value(self, value: Any) -> sp.Expr:
        return self.symbols[value] if isinstance(value, str) and value in self.symbols else sp.sympify(value)

    def _sorted_by(self) -> tuple[sp.Symbol, ...]:
        return tuple(self.symbols[r] for r in ("h_i", "h_j") if r in self.symbols)
