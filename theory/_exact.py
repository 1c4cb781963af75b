"""Exact linear algebra over a field of rational functions: the kernel under every derivation and every proof.

Everything here is arithmetic in ``QQ(x_1, ..., x_n)``, where an element is zero only if it is identically zero.
Elements are kept as quotients of polynomials with integer coefficients (``ZZ.frac_field``), several times faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy as sp
from sympy.polys.matrices import DomainMatrix

__all__ = ["common_field", "exact_numbers", "is_zero", "present", "solve_pair_stein"]

# Coefficients beyond this come from floats: they are written as quotients near 1, not as integers.
_LONG = 2**40


def exact_numbers(expression: sp.Expr) -> sp.Expr:
    """Return the expression with every float as the binary fraction that it is."""
    floats = expression.atoms(sp.Float)
    return expression.xreplace({x: sp.Rational(x) for x in floats}) if floats else expression


def common_field(expressions: Iterable[sp.Expr]) -> sp.Domain:
    """Return the field of rational functions in all symbols of the expressions (QQ without any)."""
    symbols = sorted(set().union(*(sp.sympify(e).free_symbols for e in expressions)), key=str)
    return sp.ZZ.frac_field(*symbols) if symbols else sp.QQ


def is_zero(expression: sp.Expr) -> bool:
    """Decide exactly whether a rational expression vanishes identically, without simplification heuristics.

    Raises
    ------
    ValueError
        If the expression is not a rational function of its symbols.
    """
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        if not sp.sympify(expression).is_Rational:
            raise ValueError(f"{expression} is not a rational number; it cannot be decided exactly.")
        return bool(expression == 0)
    ring = sp.ZZ[tuple(symbols)].ring
    over: dict[Any, Any] = {}
    for term in sp.Add.make_args(sp.sympify(expression)):
        numerator, denominator = _integer_quotient(term, symbols, ring)
        over[denominator] = over.get(denominator, ring.zero) + numerator
    over = {denominator: numerator for denominator, numerator in over.items() if numerator}
    common = _lcm(over, ring)
    return not sum((n * common.exquo(d) for d, n in over.items()), ring.zero)


def _integer_quotient(term: sp.Expr, symbols: Sequence[sp.Symbol], ring: Any) -> tuple[Any, Any]:
    """Write a rational term as a quotient of two polynomials with integer coefficients, not necessarily reduced."""
    if not all(part.is_polynomial(*symbols) for part in sp.fraction(term)):
        term = sp.together(term)
    rationals = sp.QQ[tuple(symbols)].ring
    try:
        numerator, denominator = (rationals.from_expr(part) for part in sp.fraction(term))
    except ValueError as error:
        raise ValueError(f"{term} is not a rational function; it cannot be decided exactly.") from error
    (above, numerator), (below, denominator) = (part.clear_denoms() for part in (numerator, denominator))
    return numerator.set_ring(ring) * int(below), denominator.set_ring(ring) * int(above)


def _lcm(polynomials: Iterable[Any], ring: Any) -> Any:
    common = ring.one
    for polynomial in polynomials:
        common = common.lcm(polynomial)
    return common


def solve_pair_stein(
    left: sp.Matrix, right: sp.Matrix, drive: sp.Matrix
) -> tuple[dict[tuple[int, int], sp.Expr], list[tuple[tuple[int, int], ...]]]:
    r"""Solve :math:`S = A S B^\top + Q` exactly, block by block where A and B are block triangular.

    Parameters
    ----------
    left, right, drive : sympy.Matrix, shape (m, m)
        A, B and Q; A and B have the same pattern of zeros.

    Returns
    -------
    entries : dict
        ``entries[a, b]`` is the entry of S, in lowest terms.
    steps : list of tuple
        The entries that were solved for together, in order.

    Raises
    ------
    ZeroDivisionError
        If the system is singular for all values of the symbols (a direction that never forgets).
    """
    size = left.shape[0]
    field = common_field([*left, *right, *drive])
    a = [[field.from_sympy(left[i, j]) for j in range(size)] for i in range(size)]
    b = [[field.from_sympy(right[i, j]) for j in range(size)] for i in range(size)]
    entries: dict[tuple[int, int], Any] = {}
    steps = []
    groups = _triangular_groups(left, right)
    for rows in groups:
        for columns in groups:
            unknowns = [(i, j) for i in rows for j in columns]
            system = [
                [(field.one if u == k else field.zero) - a[u[0]][k[0]] * b[u[1]][k[1]] for k in unknowns]
                for u in unknowns
            ]
            known = [
                [field.from_sympy(drive[i, j]), *(a[i][k] * b[j][m] * s for (k, m), s in entries.items())]
                for i, j in unknowns
            ]
            rhs = [[_sum(field, terms)] for terms in known]
            matrix = DomainMatrix(system, (len(unknowns), len(unknowns)), field)
            try:
                solution = matrix.lu_solve(DomainMatrix(rhs, (len(unknowns), 1), field))
            except sp.polys.matrices.exceptions.DMNonInvertibleMatrixError as error:
                raise ZeroDivisionError(f"the system for the entries {unknowns} is singular identically.") from error
            entries.update(zip(unknowns, solution.to_list_flat(), strict=True))
            steps.append(tuple(unknowns))
    return {key: field.to_sympy(value) for key, value in entries.items()}, steps


def _sum(field: sp.Domain, terms: Sequence[Any]) -> Any:
    """Add field elements over one common denominator, with a single reduction at the end."""
    terms = [t for t in terms if t]
    if field.is_QQ or len(terms) < 2:
        return sum(terms, field.zero)
    common = _lcm({t.denom for t in terms}, terms[0].denom.ring)
    numerator = sum((t.numer * common.exquo(t.denom) for t in terms), common.ring.zero)
    return field.field.new(numerator, common)


def _triangular_groups(left: sp.Matrix, right: sp.Matrix) -> list[list[int]]:
    """Group the slots so that each group depends only on itself and on earlier groups."""
    size = left.shape[0]
    reach = [[i == j or left[i, j] != 0 or right[i, j] != 0 for j in range(size)] for i in range(size)]
    for k in range(size):
        for i in range(size):
            for j in range(size):
                reach[i][j] = reach[i][j] or (reach[i][k] and reach[k][j])
    groups: list[list[int]] = []
    for i in sorted(range(size), key=lambda i: (sum(reach[i]), i)):
        for group in groups:
            if reach[i][group[0]] and reach[group[0]][i]:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def present(expression: sp.Expr, by: Sequence[sp.Symbol]) -> sp.Expr:
    """Write a rational function the way papers do: factored, positive where its symbols are small, sorted in ``by``."""
    numerator, denominator = sp.fraction(sp.factor(sp.together(expression)))
    top, above = _positive_factors(numerator, by)
    bottom, below = _positive_factors(denominator, by)
    # One number for both signs: SymPy would otherwise multiply a lone -1 into a sum.
    return sp.Mul(top / bottom, *above) / sp.Mul(*below)


def _positive_factors(polynomial: sp.Expr, by: Sequence[sp.Symbol]) -> tuple[sp.Expr, list[sp.Expr]]:
    content, factors = sp.factor_list(polynomial)
    written: list[sp.Expr] = []
    for factor, power in factors:
        small = {x: sp.Rational(1, 97 + k) for k, x in enumerate(sorted(factor.free_symbols, key=str))}
        sign = -1 if factor.subs(small) < 0 else 1
        content *= sp.Integer(sign) ** power
        largest = max(abs(c) for c in sp.Poly(factor).coeffs())
        scale = largest if largest > _LONG else sp.Integer(1)
        content *= scale**power
        written.append(_sorted_terms(sp.expand(sign * factor / scale), by) ** power)
    return content, written


def _sorted_terms(polynomial: sp.Expr, by: Sequence[sp.Symbol]) -> sp.Expr:
    if not by:
        return polynomial
    terms = sp.Poly(polynomial, *by).terms()
    return sp.Add(*(sp.factor(c) * sp.Mul(*(x**k for x, k in zip(by, powers, strict=True))) for powers, c in terms))
