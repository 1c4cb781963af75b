"""Injected noise: proved, and equal to enumerating every corruption of an input."""

import itertools
from dataclasses import replace

import pytest
import sympy as sp

from sgdcov.errors import HyperparameterError, InvalidRuleError, ProofError
from sgdcov.theory import (
    RULES,
    corrupted_fourth_moment,
    dropout_moments,
    heavy_ball,
    input_noise_moments,
    label_noise_covariance,
    langevin_covariance,
    qhm,
    sam,
    sgd,
    sgdw,
    stationary_covariance,
    update_rule,
)
from sgdcov.theory._exact import is_zero

R = sp.Rational
X = (R(2), R(-1, 3), R(5, 2))
M = sp.Matrix([[2, -1, R(1, 2)], [-1, 3, 1], [R(1, 2), 1, R(7, 3)]])
RATE, STD = R(1, 4), R(2, 3)

# Per entry: (probability, value of the corrupted entry) for an entry x. The three-point law has the moments of a
# Gaussian up to order 5; its width sqrt(3) STD is kept rational by enumerating a Gaussian of variance 3 STD^2.
CORRUPTIONS = {
    "dropout": (dropout_moments(), {"rate": RATE}, lambda x: ((1 - RATE, x / (1 - RATE)), (RATE, R(0)))),
    "Gaussian": (
        input_noise_moments(),
        {"std": sp.sqrt(3) * STD},
        lambda x: ((R(1, 6), x - 3 * STD), (R(2, 3), x), (R(1, 6), x + 3 * STD)),
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_moments_of_corrupted_inputs(name):
    """All corruptions of one example with three entries, in exact arithmetic."""
    formula, parameters, outcomes = CORRUPTIONS[name]
    curvature, fourth = sp.zeros(3), sp.zeros(3)
    for drawn in itertools.product(*(outcomes(x) for x in X)):
        probability = sp.Mul(*(p for p, _ in drawn))
        seen = sp.Matrix([value for _, value in drawn])
        curvature += probability * seen * seen.T
        fourth += probability * (seen.T * M * seen)[0] * seen * seen.T
    x, clean = sp.Matrix(X), sp.Matrix(X) * sp.Matrix(X).T
    moments = [
        {order: sp.nsimplify(part.subs(_by_name(part, {**parameters, "x": entry})))
         for order, part in formula.parts.items()}
        for entry in X
    ]  # fmt: skip
    for k, j in itertools.product(range(3), repeat=2):
        values = {**parameters, "A_kl": clean[k, j], "delta_kl": int(k == j)}
        assert sp.expand(formula.expression.subs(_by_name(formula.expression, values))) == curvature[k, j]
        entry = corrupted_fourth_moment(diagonal=k == j)
        values = {"x_k": x[k], "x_l": x[j], "v_k": (M * x)[k], "v_l": (M * x)[j], "Q": (x.T * M * x)[0]}
        values |= {"t": sum(M[n, n] * moments[n]["m2"] for n in range(3))}
        values |= {"M_kk": M[k, k], "M_ll": M[j, j], "M_kl": M[k, j]}
        values |= {f"{order}_k": value for order, value in moments[k].items()}
        values |= {f"{order}_l": value for order, value in moments[j].items()}
        assert entry.expression.subs(_by_name(entry.expression, values)) == fourth[k, j]
        without_third = {**values, "m3_k": 0, "m3_l": 0}
        assert (entry.expression.subs(_by_name(entry.expression, without_third)) == fourth[k, j]) == (
            name == "Gaussian"
        )


def _by_name(expression, values):
    return {symbol: values[symbol.name] for symbol in expression.free_symbols}


@pytest.mark.parametrize("diagonal", [False, True])
def test_corruption_formulas_prove_themselves_and_forgeries_do_not(diagonal):
    formula = corrupted_fourth_moment(diagonal=diagonal)
    assert formula.prove().claims
    (text, residual) = formula.identities[0]
    assert is_zero(residual)
    forged = replace(
        formula, identities=((text, residual + sp.Symbol("m2_0", real=True) * sp.Symbol("M00", real=True)),)
    )
    with pytest.raises(ProofError):
        forged.prove()


def test_moments_prove_themselves_and_another_third_moment_does_not():
    for formula in (dropout_moments(), input_noise_moments()):
        assert formula.prove().claims
    formula = dropout_moments()
    q, x = sp.Symbol("rate", nonnegative=True), sp.Symbol("x", real=True)
    claims = tuple(
        (text, residual + 2 * x**3 * q * (2 * q - 1) / (1 - q) ** 2 if text == "central moment 3" else residual)
        for text, residual in formula.identities
    )
    with pytest.raises(ProofError, match="central moment 3"):
        replace(formula, identities=claims).prove()


def test_langevin_dynamics_as_published():
    formula = langevin_covariance(sgd)
    h_i, h_j, lr, c, same, beta = (
        formula.symbols[r] for r in ("h_i", "h_j", "lr", "c_ij", "delta_ij", "inverse_temperature")
    )
    assert is_zero(formula.expression - (lr * c + 2 / beta * same) / (h_i + h_j - lr * h_i * h_j))
    # Without gradient noise and with a small learning rate: the Gibbs measure, H^(-1)/beta.
    gibbs = formula.specialise(c_ij=0, delta_ij=1, h_j="h_i").limit("lr", 0)
    assert is_zero(gibbs - 1 / (beta * h_i))


def test_label_noise_as_published():
    formula = label_noise_covariance(sgd).specialise(h_j="h_i", delta_ij=1)
    h, lr, sigma, size = (formula.symbols[r] for r in ("h_i", "lr", "label_noise", "batch_size"))
    assert is_zero(formula.expression - lr * sigma**2 / size / (2 - lr * h))


@pytest.mark.parametrize("rule", [*RULES[:4], qhm(beta=R(5, 7), nu=R(2, 3)), sgdw(momentum=R(4, 5)), sam], ids=repr)
def test_every_formula_proves_itself(rule):
    for make in (langevin_covariance, label_noise_covariance):
        formula = make(rule)
        assert formula.prove().claims
        assert formula.explicit().free_symbols <= set(formula.symbols.values())


def test_langevin_noise_in_the_wrong_units_does_not_prove_itself():
    formula = langevin_covariance(heavy_ball)
    lr, beta, same = (formula.symbols[r] for r in ("lr", "inverse_temperature", "delta_ij"))
    law = stationary_covariance(heavy_ball)
    wrong = law.expression.subs(law.symbols["c_ij"], law.symbols["c_ij"] + 2 * same * lr / beta)  # as if added to w
    shown = formula.equation.lhs
    with pytest.raises(ProofError):
        replace(formula, equation=sp.Eq(shown, wrong), solution={**formula.solution, shown: wrong}).prove()


def test_what_cannot_be_scaled_is_refused():
    @update_rule(slots=("w",))
    def fixed(state, grad, *, rate):
        (w,) = state
        return (w - rate * grad(w),)

    with pytest.raises(InvalidRuleError, match="no hyper-parameter lr"):
        langevin_covariance(fixed)

    @update_rule(slots=("w",))
    def clash(state, grad, *, lr, inverse_temperature):
        (w,) = state
        return (w - lr * inverse_temperature * grad(w),)

    with pytest.raises(HyperparameterError, match="a name that this formula uses"):
        langevin_covariance(clash)
