r"""For which hyper-parameters the recursion contracts: the exact Schur-Cohn/Jury conditions, as plain inequalities.

The roots of :math:`p(z) = \det(zI - A(h))`, degree n, lie inside the unit disc exactly when those of
:math:`(s-1)^n\, p\big((s+1)/(s-1)\big)` lie in the left half plane. That polynomial has the coefficient p(1) in
front and :math:`(-1)^n p(-1)` at the end; the Lienard-Chipart form of the Hurwitz criterion asks that all its
coefficients, and every second Hurwitz minor, be positive. Each irreducible factor of p is treated by itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sympy as sp

from ._immutable import Immutable
from ._positivity import sign_on_box
from ._print import text, typeset
from .recursion import as_optimizer, recursion
from .update_rule import Optimizer, UpdateRule

__all__ = ["Stability", "stability"]


@dataclass(frozen=True)
class Stability(Immutable):
    """Exact conditions for a stationary law along a direction with Hessian eigenvalue h.

    Attributes
    ----------
    optimizer : Optimizer
    h : sympy.Symbol
    characteristic_polynomial : sympy.Poly
        ``det(z I - A(h))`` in z.
    margins : tuple of sympy.Expr
        Polynomials in h and the unbound hyper-parameters. All positive if and only if A(h) has spectral radius < 1.
    """

    optimizer: Optimizer
    h: sp.Symbol
    characteristic_polynomial: sp.Poly
    margins: tuple[sp.Expr, ...]

    @property
    def conditions(self) -> tuple[sp.Rel, ...]:
        """The margins as plain inequalities, without what is positive anyway on the domain of the hyper-parameters."""
        return self._plainly[0]

    @property
    def largest_lr(self) -> sp.Expr | None:
        """Least upper bound of the stable learning rates at h, if a free ``lr`` enters every condition linearly.

        Otherwise None; `sgdcov.numerics.max_learning_rate` then finds it for given numbers.
        """
        return self._plainly[1]

    @functools.cached_property
    def _plainly(self) -> tuple[tuple[sp.Rel, ...], sp.Expr | None]:
        unbound = {p.symbol: p.domain for p in self.optimizer.rule.hyperparameters if p.name in self.optimizer.unbound}
        box = {**unbound, self.h: sp.Interval.Ropen(0, sp.oo)}
        conditions, bounds = [], []
        solvable = self.lr is not None
        for remaining in (_essential(margin, box) for margin in self.margins):
            if remaining is None:
                continue
            condition, bound = _inequality(remaining, self.h, self.lr, box)
            if condition not in conditions:
                conditions.append(condition)
            if bound is not None:
                bounds.append(bound)
            solvable = solvable and (bound is not None or not remaining.has(self.lr))
        conditions.sort(key=lambda c: getattr(c, "lhs", 0) != 0)  # a condition that cannot hold is sympy.false
        return tuple(conditions), sp.Min(*bounds) if solvable and bounds else None

    @property
    def lr(self) -> sp.Symbol | None:
        """The symbol of the learning rate, if the rule has one and it is unbound."""
        return self.optimizer.rule["lr"].symbol if "lr" in self.optimizer.unbound else None

    @property
    def unit_root(self) -> sp.Expr:
        """``det(I - A(h))``: zero exactly where A(h) has the eigenvalue 1, a direction that never forgets its start."""
        return sp.expand(self.characteristic_polynomial.eval(1))

    @property
    def margin_coefficients(self) -> tuple[tuple[sp.Rational, ...], ...]:
        """Coefficients of each margin in ascending powers of h, exact.

        Raises
        ------
        HyperparameterError
            If a hyper-parameter is unbound.
        """
        self.optimizer.require_bound()
        return tuple(_ascending(margin, self.h) for margin in self.margins)

    @property
    def unit_root_coefficients(self) -> tuple[sp.Rational, ...]:
        """Coefficients of `unit_root` in ascending powers of h; nothing may be unbound."""
        self.optimizer.require_bound()
        return _ascending(self.unit_root, self.h)

    def __str__(self) -> str:
        return ", ".join(text(c) for c in self.conditions)

    def _repr_latex_(self) -> str:
        names = {p.symbol: p.latex for p in self.optimizer.rule.hyperparameters}
        return r"$\displaystyle " + r",\quad ".join(typeset(c, names) for c in self.conditions) + "$"


def stability(rule: UpdateRule | Optimizer) -> Stability:
    """Derive the exact stability conditions of a rule.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Bound hyper-parameters enter as exact rationals, unbound ones as symbols on their domain.

    Returns
    -------
    Stability

    Raises
    ------
    NonlinearRuleError
        If the rule is not linear.

    References
    ----------
    jury1964; for heavy ball, polyak1964.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, nesterov
    >>> print(stability(heavy_ball))
    0 < h*lr, h*lr < 2*(momentum + 1)
    >>> stability(nesterov).largest_lr
    2*(momentum + 1)/(h*(2*momentum + 1))
    """
    return _derive(as_optimizer(rule))


@functools.lru_cache(maxsize=512)
def _derive(optimizer: Optimizer) -> Stability:
    step = recursion(optimizer)
    z = sp.Symbol("z")
    characteristic = step.transition.charpoly(z)
    polynomial = sp.Poly(sp.expand(characteristic.as_expr()), z)
    margins: list[sp.Expr] = []
    # Coefficients may be quotients of hyper-parameters; factors are those of the numerator.
    for factor, _ in sp.factor_list(sp.fraction(sp.together(polynomial.as_expr()))[0])[1]:
        if factor.has(z):
            monic = sp.Poly(sp.Poly(factor, z).as_expr() / sp.Poly(factor, z).LC(), z)
            margins += _hurwitz_margins(monic)
    return Stability(optimizer, step.h, polynomial, tuple(margins))


def _hurwitz_margins(polynomial: sp.Poly) -> list[sp.Expr]:
    n = polynomial.degree()
    coefficients = polynomial.all_coeffs()
    s = sp.Dummy("s")
    moebius = sum(c * (s + 1) ** (n - k) * (s - 1) ** k for k, c in enumerate(coefficients))
    image = [sp.expand(sp.together(c)) for c in sp.Poly(sp.expand(moebius), s).all_coeffs()]
    image = [sp.Integer(0)] * (n + 1 - len(image)) + image
    hurwitz = sp.Matrix(n, n, lambda i, j: image[2 * j + 1 - i] if 0 <= 2 * j + 1 - i <= n else 0)
    minors = [hurwitz[:k, :k].det(method="berkowitz") for k in range(n - 1, 1, -2)]
    return [sp.factor(m) for m in (*image, *minors)]


def _essential(margin: sp.Expr, box: dict[sp.Symbol, sp.Interval]) -> sp.Expr | None:
    """Strip a margin of every factor with a certified sign; None if it is positive on the whole box."""
    numerator, denominator = sp.fraction(sp.together(margin))
    content, factors = sp.factor_list(numerator)
    for factor, multiplicity in sp.factor_list(denominator)[1]:
        factors.append((factor, multiplicity))
    sign = 1 if content * sp.factor_list(denominator)[0] > 0 else -1
    remaining = []
    for factor, multiplicity in factors:
        certified = sign_on_box(factor, box)
        if certified == 0:
            remaining.append(factor ** (1 if multiplicity % 2 else 2))
        elif multiplicity % 2:
            sign *= certified
    if not remaining and sign > 0:
        return None
    return sp.Mul(sign, *remaining)


def _inequality(
    margin: sp.Expr, h: sp.Symbol, lr: sp.Symbol | None, box: dict[sp.Symbol, sp.Interval]
) -> tuple[sp.Rel, sp.Expr | None]:
    """Write ``margin > 0`` plainly; if it bounds ``lr`` from above, return that bound as well."""
    if lr is not None and not margin.has(lr):
        return sp.StrictLessThan(0, lr * margin), None
    if lr is None or sp.degree(sp.expand(margin), lr) != 1:
        return sp.StrictLessThan(0, margin), None
    polynomial = sp.Poly(sp.expand(margin), lr)
    slope, offset = sp.factor(-polynomial.coeff_monomial(lr)), sp.factor(polynomial.coeff_monomial(1))
    if sign_on_box(offset, box) != 1 or sign_on_box(slope, {**box, h: sp.Interval.open(0, sp.oo)}) != 1:
        return sp.StrictLessThan(0, margin), None
    content, factors = sp.factor_list(slope)
    about_h = sp.Mul(*(f**k for f, k in factors if f.has(h)))
    about_rest = content * sp.Mul(*(f**k for f, k in factors if not f.has(h)))
    return sp.StrictLessThan(lr * about_h, offset / about_rest), offset / slope


def _ascending(polynomial: sp.Expr, h: sp.Symbol) -> tuple[sp.Rational, ...]:
    return tuple(reversed(sp.Poly(polynomial, h).all_coeffs()))
