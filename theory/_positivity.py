r"""Certificates that a polynomial is positive on a box, by substitution.

An interval becomes the half line through :math:`x = (l + u s)/(1 + s)` (or :math:`x = l + s` when it has no upper end).
A polynomial all of whose coefficients in the new variables are non-negative, and not all zero, is positive inside; ends
that belong to the interval are faces of the box and are certified in turn. The test can fail to find a certificate for
a positive polynomial; it never certifies one that is not positive.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

__all__ = ["sign_on_box"]


def sign_on_box(expression: sp.Expr, box: Mapping[sp.Symbol, sp.Interval]) -> int:
    """Return 1 or -1 if the polynomial has that sign everywhere on the box by a certificate, else 0.

    Examples
    --------
    >>> mu = sp.Symbol("momentum")
    >>> sign_on_box(2 * mu - 3, {mu: sp.Interval.Ropen(0, 1)})
    -1
    >>> sign_on_box(mu, {mu: sp.Interval.Ropen(0, 1)})
    0
    """
    used = {x: box[x] for x in sorted(expression.free_symbols, key=str)}
    for sign in (1, -1):
        if _is_positive(sp.expand(sign * expression), used):
            return sign
    return 0


def _is_positive(expression: sp.Expr, box: Mapping[sp.Symbol, sp.Interval]) -> bool:
    if not box:
        return bool(expression > 0)
    if not _has_nonnegative_coefficients(expression, box):
        return False
    for x, interval in box.items():
        rest = {y: other for y, other in box.items() if y != x}
        ends = [(interval.inf, interval.left_open), (interval.sup, interval.right_open)]
        if not all(is_open or _is_positive(sp.expand(expression.subs(x, end)), rest) for end, is_open in ends):
            return False
    return True


def _has_nonnegative_coefficients(expression: sp.Expr, box: Mapping[sp.Symbol, sp.Interval]) -> bool:
    for x, interval in box.items():
        if interval.inf == -sp.oo:
            return False
        if interval.sup == sp.oo:
            expression = expression.subs(x, interval.inf + x)
        else:
            degree = sp.degree(expression, x) if expression.has(x) else 0
            image = (interval.inf + interval.sup * x) / (1 + x)
            expression = sp.cancel(expression.subs(x, image) * (1 + x) ** degree)
        expression = sp.expand(expression)
    coefficients = sp.Poly(expression, *box).coeffs()
    return all(c >= 0 for c in coefficients) and any(c > 0 for c in coefficients)
