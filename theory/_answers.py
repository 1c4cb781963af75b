r"""What a slot keeps of a unit of noise after n steps, as a sum over characteristic roots: sum_a phi_a r_a^n.

With distinct roots the weights phi are those of Lagrange interpolation through the first m answers. Where two roots
meet the answer is :math:`(\phi_0 + \phi_1\, \partial_r)\, r^n`, so that whatever is linear in the answers is got by
differentiating what one root gives.
"""

from __future__ import annotations

import sympy as sp

from ._epoch_kernels import Claims, Kernel
from .powers import MatrixPower, Roots, sequence
from .stationary import C_IJ

__all__ = ["Answer", "answer_latex", "root_weights", "sum_over_roots"]


class Answer:
    """What one slot keeps of a unit of noise: weights phi, roots, and how often to differentiate by the root."""

    def __init__(self, power: MatrixPower, slot: str, index: str, form: Roots) -> None:
        self.power, self.form, self.index = power, form, index
        self.row = power.slots.index(slot)
        vectors = [power.noise_gain]
        for _ in power.slots:
            vectors.append((power.transition * vectors[-1]).applyfunc(sp.expand))
        self.first = [sp.factor(v[self.row]) for v in vectors]  # the answers after 0, 1, ..., m steps
        self.roots = sequence(power, f"_{index}", form)[1]

    def terms(self) -> tuple[list[tuple[sp.Expr, sp.Expr, int]], dict[sp.Expr, sp.Expr]]:
        """Return (weight, root, order) for every term, and what the symbols of the weights stand for."""
        size = len(self.power.slots)
        symbols = list(self.roots)
        if size == 1:
            return [(self.first[0], symbols[0], 0)], {}
        weights = root_weights(symbols, self.first[:size], self.form)
        names = [sp.Symbol(f"phi{n}_{self.index}") for n in range(len(weights))]
        found = list(zip(names, symbols, [0] * size, strict=True)) if self.form == "distinct" else [
            (names[0], symbols[0], 0), (names[1], symbols[0], 1)
        ]  # fmt: skip
        return found, dict(zip(names, weights, strict=True))

    def claims(self) -> Claims:
        """Return what makes the sum the answer: its first values, and the recurrence that both obey."""
        size = len(self.power.slots)
        answers = sp.symbols(f"g0:{size}")
        roots = sp.symbols(f"r0:{size}" if self.form == "distinct" else "r0:1")
        weights = root_weights(list(roots), list(answers), self.form)
        if self.form == "distinct":
            kept = [sp.Add(*(w * r**n for w, r in zip(weights, roots, strict=True))) for n in range(size)]
        else:
            kept = [weights[0] * roots[0] ** n + weights[1] * n * roots[0] ** (n - 1) for n in range(size)]
        coefficients = (sp.Integer(1), *self.power.coefficients)
        recurrence = sum(d * g for d, g in zip(coefficients, reversed(self.first), strict=True))
        starts = [(f"the answer to noise after {n} steps", value - answers[n]) for n, value in enumerate(kept)]
        return (*starts, ("the answers obey the characteristic recurrence", sp.expand(recurrence)))


def root_weights(roots: list[sp.Expr], answers: list[sp.Expr], form: Roots) -> list[sp.Expr]:
    """Return the weight of every root, by Lagrange interpolation (with two equal roots: of r^n and of n r^(n-1))."""
    if form == "repeated":
        return [answers[0], answers[1] - roots[0] * answers[0]]
    z = sp.Symbol("z")
    weights = []
    for root in roots:
        others = [r for r in roots if r != root]
        numerator = sp.Poly(sp.Mul(*(z - r for r in others)), z).all_coeffs()[::-1]
        top = sp.Add(*(c * g for c, g in zip(numerator, answers, strict=True)))
        weights.append(top / sp.Mul(*(root - r for r in others)))
    return weights


def sum_over_roots(left: Answer, right: Answer, kernel: Kernel) -> tuple[sp.Expr, dict[sp.Expr, sp.Expr]]:
    """Return c times the sum over pairs of roots, and what its symbols stand for, in the order of use."""
    (terms_i, phi_i), (terms_j, phi_j) = left.terms(), right.terms()
    r, s = sp.symbols("r s")
    value = kernel(r, s)
    kernels: dict[sp.Expr, sp.Expr] = {}
    total: list[sp.Expr] = []
    for m, (weight_i, root_i, order_i) in enumerate(terms_i):
        for n, (weight_j, root_j, order_j) in enumerate(terms_j):
            derived = sp.diff(value, (r, order_i), (s, order_j))
            written = derived.subs({r: root_i, s: root_j}, simultaneous=True)
            single = len(terms_i) == len(terms_j) == 1
            name = written if single else sp.Symbol(f"G{m}{n}")
            if not single:
                kernels[name] = written
            total.append(weight_i * weight_j * name)
    return C_IJ * sp.Add(*total), {**kernels, **phi_i, **phi_j, **left.roots, **right.roots}


def answer_latex(where: dict[sp.Expr, sp.Expr]) -> dict[sp.Symbol, str]:
    names: dict[sp.Symbol, str] = {}
    for symbol in (s for s in where if isinstance(s, sp.Symbol)):
        if symbol.name.startswith("phi"):
            number, index = symbol.name.removeprefix("phi").split("_")
            names[symbol] = rf"\phi_{{{number},{index}}}"
        elif symbol.name.startswith("G"):
            names[symbol] = f"G_{{{symbol.name[1:]}}}"
    return names
