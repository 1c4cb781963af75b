r"""Powers of the recursion matrix with a symbolic exponent, through the characteristic roots.

Let :math:`\chi(z) = z^m + d_1 z^{m-1} + \dots + d_m` be the characteristic polynomial of A and p the solution of
:math:`p(k+m) + d_1 p(k+m-1) + \dots + d_m p(k) = 0` with :math:`p(0) = 1` and :math:`p(-1) = \dots = p(1-m) = 0`. Then

.. math:: A^k = \sum_{l=0}^{m-1} N_l\, p(k-l), \qquad N_0 = I, \quad N_l = A N_{l-1} + d_l I,

so that time enters through one scalar sequence. With distinct roots it is a sum of their powers; where two roots meet
(critical damping) and where they are complex (oscillation) it has forms of its own, real and without cancellation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sympy as sp

from ..errors import InvalidRuleError
from .assumptions import CONSTANT_HESSIAN, Assumption, domains
from .formula import Formula, Step
from .recursion import as_optimizer, recursion
from .update_rule import Optimizer, UpdateRule

__all__ = ["MatrixPower", "Roots", "characteristic_sequence", "matrix_power", "regime"]

Roots = Literal["distinct", "repeated", "complex"]

TIME = sp.Symbol("k", integer=True, nonnegative=True)


@dataclass(frozen=True)
class MatrixPower:
    """The k-th power of a recursion matrix, ``sum_l matrices[l] * p(k - l)``.

    Attributes
    ----------
    slots : tuple of str
        The slots it acts on: those asked for and all that feed them.
    transition : sympy.ImmutableMatrix
        A(h) on these slots.
    noise_gain : sympy.ImmutableMatrix
    coefficients : tuple of sympy.Expr
        d_1, ..., d_m.
    matrices : tuple of sympy.ImmutableMatrix
        N_0, ..., N_{m-1}.
    """

    slots: tuple[str, ...]
    transition: sp.ImmutableMatrix
    noise_gain: sp.ImmutableMatrix
    coefficients: tuple[sp.Expr, ...]
    matrices: tuple[sp.ImmutableMatrix, ...]

    def at(self, values: Sequence[sp.Expr]) -> sp.Matrix:
        """Return the power for given values of p(k), p(k-1), ..., p(k-m+1)."""
        total = sp.zeros(len(self.slots))
        for matrix, value in zip(self.matrices, values, strict=True):
            total += matrix * value
        return total

    def identities(self) -> tuple[tuple[str, sp.Expr], ...]:
        """Return what makes it the power: A times the k-th is the (k+1)-th, and the 0-th is I."""
        size = len(self.slots)
        now = sp.symbols(f"p0:{size}")
        later = (-sum(d * p for d, p in zip(self.coefficients, now, strict=True)), *now[:-1])
        step = self.transition * self.at(now) - self.at(later)
        start = self.at([1, *[0] * (size - 1)]) - sp.eye(size)
        claims = [(f"A A^k = A^(k+1), entry {n}", sp.expand(e)) for n, e in enumerate(step)]
        return (*claims, *((f"A^0 = I, entry {n}", sp.expand(e)) for n, e in enumerate(start)))


def matrix_power(rule: UpdateRule | Optimizer, h: sp.Symbol, slots: Sequence[str]) -> MatrixPower:
    """Return the power of the recursion matrix of a rule at the eigenvalue ``h``, restricted to what ``slots`` need."""
    step = recursion(as_optimizer(rule))
    kept = _closure(step.transition, [step.slots.index(name) for name in slots])
    transition = step.transition.extract(kept, kept).subs(step.h, h)
    size = len(kept)
    coefficients: list[sp.Expr] = []
    matrices = [sp.ImmutableMatrix(sp.eye(size))]
    for order in range(1, size + 1):
        moved = (transition * matrices[-1]).applyfunc(sp.expand)
        coefficients.append(sp.factor(-moved.trace() / order))
        matrices.append((moved + coefficients[-1] * sp.eye(size)).applyfunc(sp.expand).as_immutable())
    return MatrixPower(
        tuple(step.slots[n] for n in kept),
        transition.as_immutable(),
        step.noise_gain.extract(kept, [0]).subs(step.h, h).as_immutable(),
        tuple(coefficients),
        tuple(matrices[:-1]),
    )


def characteristic_sequence(
    rule: UpdateRule | Optimizer, roots: Roots = "distinct", *, slots: Sequence[str] | None = None
) -> Formula:
    r"""Solve the scalar sequence p(k) that carries all of a rule's time dependence.

    Parameters
    ----------
    rule : UpdateRule or Optimizer
    roots : {"distinct", "repeated", "complex"}
        Which form: sums of powers; the critically damped case; the real form of a complex pair.
    slots : sequence of str
        The sequence is that of these slots and all that feed them: an averaged copy of the weights adds a root to that
        of the weights.

    Returns
    -------
    Formula
        Proved to obey its recurrence and to start at p(0) = 1, p(-1) = 0.

    Raises
    ------
    InvalidRuleError
        If the roots have no closed form of degree 2, or "repeated" or "complex" is asked for anything but two roots.

    Examples
    --------
    >>> from sgdcov.theory import heavy_ball, sgd
    >>> print(characteristic_sequence(sgd))
    p(k) = r**k
    >>> print(characteristic_sequence(heavy_ball, "repeated"))
    p(k) = r**k*(k + 1)
    """
    optimizer = as_optimizer(rule)
    chosen = optimizer.rule.slots[:1] if slots is None else tuple(slots)
    if not chosen or not set(chosen) <= set(optimizer.rule.slots):
        raise InvalidRuleError(f"{optimizer.rule.name} has the slots {optimizer.rule.slots}; got {slots!r}.")
    return _sequence_formula(optimizer, roots, chosen)


@functools.lru_cache(maxsize=64)
def _sequence_formula(optimizer: Optimizer, roots: Roots, slots: tuple[str, ...]) -> Formula:
    h = sp.Symbol("h", nonnegative=True)
    power = matrix_power(optimizer, h, slots)
    closed, where = sequence(power, "", roots)
    p = sp.Function("p")(TIME)
    size = len(power.slots)
    recurrence = sp.Eq(
        sp.Function("p")(TIME + size),
        -sum(d * sp.Function("p")(TIME + size - n) for n, d in enumerate(power.coefficients, 1)),
        evaluate=False,
    )
    suffix = "" if set(slots) == {optimizer.rule.slots[0]} else f"({','.join(slots)})"
    return Formula(
        id=f"{optimizer.rule.name}.characteristic_sequence({roots}){suffix}",
        equation=sp.Eq(p, closed(TIME), evaluate=False),
        symbols={"k": TIME, "h": h, **optimizer.symbols},
        assumptions=(CONSTANT_HESSIAN, regime(power, roots), *domains(optimizer)),
        defining=(),
        solution={},
        references=optimizer.rule.references,
        derivation=(Step("Cayley-Hamilton: powers of A obey their characteristic recurrence.", recurrence),),
        where=where,
        identities=(*sequence_identities(size, roots), *root_identities(power, roots, where)),
        symbol_latex={p.symbol: p.latex for p in optimizer.rule.hyperparameters},
    )


def sequence_at(
    power: MatrixPower, index: str, roots: Roots, exponent: sp.Expr
) -> tuple[list[sp.Expr], dict[sp.Expr, sp.Expr]]:
    """Return p(k), ..., p(k-m+1) as named functions of one mode, and what they stand for, in the order of use."""
    closed, roots_mean = sequence(power, f"_{index}", roots)
    function = sp.Function(f"p_{index}")
    values = [function(exponent - shift) for shift in range(len(power.slots))]
    return values, {**{value: closed(exponent - shift) for shift, value in enumerate(values)}, **roots_mean}


def sequence(power: MatrixPower, index: str, roots: Roots) -> tuple[sp.Lambda, dict[sp.Expr, sp.Expr]]:
    """Return p as a function of the exponent, and what its root symbols stand for (``index`` tells modes apart)."""
    _check(power, roots)
    n = sp.Dummy("n")
    if roots == "distinct":
        where = _roots(power, index)
        return sp.Lambda(n, _sum_of_powers(list(where), n)), where
    trace, determinant = -power.coefficients[0], power.coefficients[1]
    if roots == "repeated":
        r = sp.Symbol(f"r{index}", real=True)
        return sp.Lambda(n, (n + 1) * r**n), {r: trace / 2}
    modulus, angle = sp.Symbol(f"rho{index}", positive=True), sp.Symbol(f"omega{index}", positive=True)
    written = modulus**n * sp.sin((n + 1) * angle) / sp.sin(angle)
    return sp.Lambda(n, written), {angle: sp.acos(trace / (2 * modulus)), modulus: sp.sqrt(determinant)}


def _sum_of_powers(roots: Sequence[sp.Expr], n: sp.Expr) -> sp.Expr:
    if len(roots) == 2:
        plus, minus = roots
        return (plus ** (n + 1) - minus ** (n + 1)) / (plus - minus)
    order = len(roots) - 1
    return sp.Add(*(r ** (n + order) / sp.Mul(*(r - other for other in roots if other != r)) for r in roots))


def _roots(power: MatrixPower, index: str) -> dict[sp.Expr, sp.Expr]:
    """Return a symbol for every characteristic root, with its closed form."""
    z = sp.Symbol("z")
    size = len(power.slots)
    polynomial = z**size + sum(d * z ** (size - n) for n, d in enumerate(power.coefficients, 1))
    found: dict[sp.Expr, sp.Expr] = {}
    for factor, multiplicity in sp.factor_list(sp.fraction(sp.together(polynomial))[0])[1]:
        if not factor.has(z):
            continue
        monic = sp.Poly(sp.Poly(factor, z).as_expr() / sp.Poly(factor, z).LC(), z)
        if monic.degree() > 2 or multiplicity > 1:
            raise InvalidRuleError(
                f"the characteristic polynomial of the slots {power.slots} has the factor ({factor})**{multiplicity}; "
                f"closed forms need distinct factors of degree 1 or 2. Numerics has no such limit."
            )
        if monic.degree() == 1:
            found[sp.Symbol(f"r{'' if size == 1 else len(found)}{index}", real=True)] = -monic.all_coeffs()[1]
        else:
            _, minus_trace, determinant = monic.all_coeffs()
            spread = sp.sqrt(sp.factor(minus_trace**2 - 4 * determinant))
            found[sp.Symbol(f"r_plus{index}")] = (-minus_trace + spread) / 2
            found[sp.Symbol(f"r_minus{index}")] = (-minus_trace - spread) / 2
    return found


def sequence_identities(size: int, roots: Roots) -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that a form obeys its recurrence and initial values, with powers as symbols of their own."""
    if roots == "repeated":
        r, x, k = sp.symbols("r x k")  # x = r^k, trace 2r, determinant r^2
        p = [(k + 1 + shift) * x * r**shift for shift in (1, 0, -1)]
        start = [(1 + shift) * r**shift - int(shift == 0) for shift in (0, -1)]
        return (
            ("p(k+1) = 2r p(k) - r^2 p(k-1)", p[0] - 2 * r * p[1] + r**2 * p[2]),
            ("p(0) = 1", start[0]),
            ("p(-1) = 0", start[1]),
        )
    if roots == "complex":
        # s, c are sine and cosine of omega; s_k, c_k those of k omega; all divided by rho^k / sin(omega).
        s, c, s_k, c_k = sp.symbols("s c s_k c_k")
        p_now, p_before = s_k * c + c_k * s, s_k
        p_next = s_k * (2 * c**2 - 1) + c_k * 2 * s * c  # sin((k+2) omega), with s^2 = 1 - c^2
        return (
            ("p(k+1) = 2 rho cos(omega) p(k) - rho^2 p(k-1)", p_next - 2 * c * p_now + p_before),
            ("p(0) = 1", (p_now / s - 1).subs({s_k: 0, c_k: 1})),
            ("p(-1) = 0", p_before.subs(s_k, 0)),
        )
    names, powers = sp.symbols(f"r0:{size}"), sp.symbols(f"x0:{size}")  # the roots and their k-th powers
    by_root = [x / sp.Mul(*(r - other for other in names if other != r)) for r, x in zip(names, powers, strict=True)]
    p = [sum(c * r ** (size - 1 - shift) for c, r in zip(by_root, names, strict=True)) for shift in range(-1, size)]
    z = sp.Symbol("z")
    coefficients = sp.Poly(sp.Mul(*(z - r for r in names)), z).all_coeffs()
    recurrence = sum(c * value for c, value in zip(coefficients, p, strict=True))
    at_zero = [value.subs(dict.fromkeys(powers, 1)) for value in p[1:]]
    return (
        ("the sum of powers obeys the recurrence of its roots", recurrence),
        ("p(0) = 1", at_zero[0] - 1),
        *((f"p({-shift}) = 0", value) for shift, value in enumerate(at_zero[1:], 1)),
    )


def root_identities(
    power: MatrixPower, roots: Roots, where: dict[sp.Expr, sp.Expr]
) -> tuple[tuple[str, sp.Expr], ...]:
    """Return the claims that the closed forms of the roots belong to the characteristic polynomial of this rule."""
    if roots == "repeated":
        (root,) = where.values()
        return (("2 r = trace", sp.expand(2 * root + power.coefficients[0])),)
    if roots == "complex":
        angle, modulus = where
        return (
            ("rho^2 = determinant", sp.expand(where[modulus] ** 2) - power.coefficients[1]),
            ("2 rho cos(omega) = trace", sp.expand(2 * modulus * sp.cos(where[angle]) + power.coefficients[0])),
        )
    z = sp.Symbol("z")
    product = sp.Poly(sp.expand(sp.Mul(*(z - root for root in where.values()))), z).all_coeffs()[1:]
    return tuple(
        (f"coefficient {n} of the product of z - root", sp.expand(found - known))
        for n, (found, known) in enumerate(zip(product, power.coefficients, strict=True), 1)
    )


def regime(power: MatrixPower, roots: Roots) -> Assumption:
    """Return what a form assumes of the characteristic roots."""
    if len(power.slots) == 1:
        return Assumption("one root", "the weights are the only slot")
    if len(power.slots) > 2:
        return Assumption("distinct roots", "no two characteristic roots are equal")
    discriminant = sp.factor(power.coefficients[0] ** 2 - 4 * power.coefficients[1])
    said = {"distinct": sp.Ne(discriminant, 0), "repeated": sp.Eq(discriminant, 0), "complex": discriminant < 0}
    names = {"distinct": "distinct roots", "repeated": "critical damping", "complex": "under-damping"}
    return Assumption(names[roots], "the discriminant of the characteristic polynomial decides", (said[roots],))


def _check(power: MatrixPower, roots: Roots) -> None:
    if roots not in ("distinct", "repeated", "complex"):
        raise InvalidRuleError(f"roots must be 'distinct', 'repeated' or 'complex', got {roots!r}.")
    if len(power.slots) != 2 and roots != "distinct":
        raise InvalidRuleError(
            f"the slots {power.slots} have {len(power.slots)} characteristic root(s); a form with {roots} roots is "
            f"there for two, others have the form for distinct roots only."
        )


def _closure(transition: sp.Matrix, wanted: Sequence[int]) -> list[int]:
    """Return the slots asked for and all that feed them, in order."""
    kept = set(wanted)
    while True:
        fed = {j for i in kept for j in range(transition.shape[1]) if transition[i, j] != 0}
        if fed <= kept:
            return sorted(kept)
        kept |= fed
