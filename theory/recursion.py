r"""The linear recursion of an update rule, traced from its own code.

On a quadratic loss the gradient along a Hessian eigenvector with eigenvalue h is :math:`h\,(w - w^*) + \xi`. With the
optimum as origin one step of a linear rule is

.. math:: z' = A(h)\, z + b(h)\, \xi,

where z stacks the slots. The trace calls the rule with symbols and reads A and b off, exactly. Because every call of
the gradient carries :math:`\xi - h w^*` in place of :math:`\xi` once the origin moves, the drive by an optimum away
from zero is :math:`-h\,b(h)\,w^*`, with the same b.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import sympy as sp

from ..errors import InvalidRuleError, NonlinearRuleError
from ._immutable import Immutable
from .update_rule import Optimizer, UpdateRule

__all__ = ["Recursion", "as_optimizer", "recursion"]

Coefficients = tuple[tuple[tuple[sp.Rational, ...], ...], ...]


@dataclass(frozen=True)
class Recursion(Immutable):
    """The recursion ``z' = A(h) z + b(h) xi`` of one optimizer along one Hessian eigenvector.

    Attributes
    ----------
    optimizer : Optimizer
    h : sympy.Symbol
        The Hessian eigenvalue.
    transition : sympy.ImmutableMatrix, shape (m, m)
        A(h), one row and column per slot; polynomial in h.
    noise_gain : sympy.ImmutableMatrix, shape (m, 1)
        b(h).
    """

    optimizer: Optimizer
    h: sp.Symbol
    transition: sp.ImmutableMatrix
    noise_gain: sp.ImmutableMatrix

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the entries of z."""
        return self.optimizer.rule.slots

    @property
    def increment(self) -> sp.ImmutableMatrix:
        """D(h) = A(h) - I, in which a flat direction keeps its relative accuracy."""
        return (self.transition - sp.eye(len(self.slots))).applyfunc(sp.expand).as_immutable()

    @property
    def increment_coefficients(self) -> Coefficients:
        """The exact matrices D_k of D(h) = sum_k D_k h^k; raises HyperparameterError when something is unbound."""
        self.optimizer.require_bound()
        return tuple(
            tuple(tuple(row) for row in layer.tolist()) for layer in _powers(self.increment, self.h)
        )

    @property
    def noise_gain_coefficients(self) -> tuple[tuple[sp.Rational, ...], ...]:
        """The exact vectors b_k of b(h) = sum_k b_k h^k; raises HyperparameterError when something is unbound."""
        self.optimizer.require_bound()
        return tuple(tuple(layer) for layer in _powers(self.noise_gain, self.h))

    def _repr_latex_(self) -> str:
        names = {p.symbol: p.latex for p in self.optimizer.rule.hyperparameters}
        transition = sp.latex(self.transition, symbol_names=names)
        return rf"$\displaystyle z' = {transition} z + {sp.latex(self.noise_gain, symbol_names=names)} \xi$"


def as_optimizer(rule: UpdateRule | Optimizer) -> Optimizer:
    """Return a bare rule as an optimizer with nothing bound but its defaults."""
    if isinstance(rule, Optimizer):
        return rule
    if isinstance(rule, UpdateRule):
        return rule()
    raise InvalidRuleError(
        f"expected an update rule such as heavy_ball or heavy_ball(lr=0.1, momentum=0.9), got {rule!r}; "
        f"decorate a function of your own with update_rule."
    )


def recursion(rule: UpdateRule | Optimizer) -> Recursion:
    """Trace a rule into its linear recursion.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
        Unbound hyper-parameters become symbols, bound ones exact rationals.

    Returns
    -------
    Recursion

    Raises
    ------
    NonlinearRuleError
        If the step is not linear in (state, gradient); it names the term.
    InvalidRuleError
        If the step does not return one value per slot.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball
    >>> recursion(heavy_ball).transition
    Matrix([
    [-h*lr + 1, -lr*momentum],
    [        h,     momentum]])
    >>> recursion(heavy_ball).noise_gain
    Matrix([
    [-lr],
    [  1]])
    """
    return _trace(as_optimizer(rule))


@functools.lru_cache(maxsize=512)
def _trace(optimizer: Optimizer) -> Recursion:
    rule = optimizer.rule
    h = sp.Symbol("h", nonnegative=True)
    noise = sp.Dummy("xi", real=True)
    state = tuple(sp.Dummy(slot, real=True) for slot in rule.slots)
    try:
        stepped = rule.function(state, lambda x: h * x + noise, **optimizer.exact)
    except (TypeError, AttributeError, ValueError) as error:
        # The step ran on symbols; what symbols cannot do (branch, clamp, call into an array library) is not linear.
        term = str(error)
        if "truth value" in term and optimizer.unbound and not any(str(s) in term for s in (*state, noise)):
            raise InvalidRuleError(
                f"update rule {rule.name!r} decides on the value of a hyper-parameter ({term}), which is a symbol "
                f"while it is unbound; bind it first, as in {rule.name}({optimizer.unbound[0]}=...)."
            ) from error
        for symbol in (*state, noise):
            term = term.replace(str(symbol), symbol.name)
        raise NonlinearRuleError(rule.name, term, "it does more than add and scale") from error
    if not isinstance(stepped, tuple) or len(stepped) != len(state):
        raise InvalidRuleError(
            f"update rule {rule.name!r} must return a tuple with one entry per slot {rule.slots}, got {stepped!r}."
        )
    rows = [_linear_coefficients(rule, h, sp.sympify(entry), (*state, noise)) for entry in stepped]
    size = len(state)
    return Recursion(
        optimizer,
        h,
        sp.ImmutableMatrix(size, size, [c for row in rows for c in row[:-1]]),
        sp.ImmutableMatrix(size, 1, [row[-1] for row in rows]),
    )


def _linear_coefficients(
    rule: UpdateRule, h: sp.Symbol, entry: sp.Expr, generators: tuple[sp.Dummy, ...]
) -> list[sp.Expr]:
    entry = entry.replace(lambda e: isinstance(e, sp.Float), sp.Rational)
    terms = _split(sp.expand(entry), generators)
    if any(g not in generators for g, _ in terms):
        terms = _split(sp.expand(sp.cancel(entry)), generators)
    collected = dict.fromkeys(generators, sp.Integer(0))
    for variable, coefficient in terms:
        if variable not in generators:
            term = str((variable * coefficient).xreplace({g: sp.Symbol(g.name) for g in generators}))
            reason = "a constant is added" if variable == 1 else "a term has the wrong form"
            raise NonlinearRuleError(rule.name, term, reason)
        collected[variable] += coefficient
    for coefficient in collected.values():
        # The step is linear, but its matrices are not over the field in which theory and numerics are exact.
        irrational = [c for c in coefficient.atoms(sp.Pow, sp.NumberSymbol, sp.Function)
                      if not (c.is_Pow and c.exp.is_Integer) and not c.has(h)]  # fmt: skip
        if irrational or not coefficient.is_polynomial(h) or not coefficient.is_rational_function():
            what = irrational[0] if irrational else coefficient
            raise InvalidRuleError(
                f"update rule {rule.name!r} has the coefficient {coefficient}, and {what} is not a rational function "
                f"of the hyper-parameters with rational numbers, in which laws are exact. Write a constant as a float, "
                f"and make a function of a hyper-parameter a hyper-parameter of its own."
            )
    return [sp.expand(c) if c.is_polynomial() else sp.factor(c) for c in collected.values()]


def _split(entry: sp.Expr, generators: tuple[sp.Dummy, ...]) -> list[tuple[sp.Expr, sp.Expr]]:
    parts = (term.as_independent(*generators, as_Add=False) for term in sp.Add.make_args(entry) if term != 0)
    return [(variable, coefficient) for coefficient, variable in parts]


def _powers(matrix: sp.ImmutableMatrix, h: sp.Symbol) -> list[sp.ImmutableMatrix]:
    polynomials = [sp.Poly(entry, h) for entry in matrix]
    degree = max((p.degree() for p in polynomials if not p.is_zero), default=0)
    return [
        sp.ImmutableMatrix(*matrix.shape, [p.coeff_monomial(h**k) for p in polynomials]) for k in range(degree + 1)
    ]
