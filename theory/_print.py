"""Numbers as they were given: a float is exact inside an expression, and is printed as the decimal that means it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp

__all__ = ["decimals", "text", "typeset"]

# A denominator with more digits than this was hardly written by hand: it is that of a float, or comes from one.
_LONGEST = 10**9


def text(expression: Any) -> str:
    """Return an expression as text, with decimals for what came from floats.

    Examples
    --------
    >>> text(sp.Rational(0.1) * sp.Symbol("x") + sp.Rational(1, 3))
    '0.1*x + 1/3'
    """
    return str(decimals(expression)[0])


def typeset(expression: Any, names: Mapping[sp.Symbol, str]) -> str:
    """Return an expression in LaTeX, with decimals for what came from floats."""
    shown, latex = decimals(expression)
    return str(sp.latex(shown, symbol_names={**names, **latex}))


def decimals(expression: Any) -> tuple[Any, dict[sp.Symbol, str]]:
    """Put a symbol that reads as a decimal for every long quotient; return it with the LaTeX of these symbols."""
    if isinstance(expression, sp.core.relational.Relational):
        (left, names), (right, more) = decimals(expression.lhs), decimals(expression.rhs)
        return expression.func(left, right, evaluate=False), {**names, **more}
    if not isinstance(expression, sp.Basic):
        return expression, {}
    swap: dict[sp.Basic, sp.Expr] = {}
    latex: dict[sp.Symbol, str] = {}
    for number in expression.atoms(sp.Rational):
        if number.q > _LONGEST:
            written = repr(float(abs(number)))
            symbol = sp.Symbol(written, positive=True)
            mantissa, _, exponent = written.partition("e")
            latex[symbol] = rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else written
            swap[number] = symbol if number > 0 else -symbol
    return expression.xreplace(swap), latex
