"""Heavy tails: moment polynomials against integrals, thresholds, and the published tail index."""

from dataclasses import replace

import mpmath
import pytest
import sympy as sp

from sgdcov.errors import InvalidProblemError, ProofError
from sgdcov.theory import (
    kesten_equation,
    mean_square_threshold,
    moment_growth,
    moment_threshold,
    sgd,
    tail_index_statement,
)

R = sp.Rational


def chi_squared(degrees, function):
    """The mean of a function of a chi-squared variable, by quadrature (in the square root: no pole at 0)."""
    norm = 2 ** (mpmath.mpf(degrees) / 2) * mpmath.gamma(mpmath.mpf(degrees) / 2)
    return 2 / norm * mpmath.quad(
        lambda u: u ** (degrees - 1) * mpmath.exp(-u * u / 2) * function(u * u), [0, 1, 2, 4, 8, 16, 32]
    )  # fmt: skip


def polynomial(order, **values):
    formula = moment_growth(order)
    return formula.expression.subs({formula.symbols[role]: value for role, value in values.items()})


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("dim", [1, 4])
def test_growth_of_moments_is_the_integral_over_batches(order, dim):
    lr, h, size = R(2, 5), R(3, 2), 3
    step, half = mpmath.mpf(3) / 5 / size, order // 2

    def along(j):
        """The mean of what multiplies y^j in the power of (1 - step x)^2 + step^2 x y."""
        return chi_squared(size, lambda x: (step**2 * x) ** j * (1 - step * x) ** (order - 2 * j))

    with mpmath.workdps(20):
        across = [1, *(chi_squared(dim - 1, lambda y, j=j: y**j) if dim > 1 else 0 for j in range(1, half + 1))]
        exact = sum(mpmath.binomial(half, j) * along(j) * across[j] for j in range(half + 1))
        found = polynomial(order, lr=lr, h_i=h, batch_size=size, d=dim)
        assert abs(exact / mpmath.mpf(int(found.p)) * int(found.q) - 1) < 1e-12


@pytest.mark.parametrize("order", [2, 4, 6])
def test_every_polynomial_proves_itself_and_a_forgery_does_not(order):
    formula = moment_growth(order)
    assert formula.prove().claims
    lr = formula.symbols["lr"]
    shown = formula.equation.lhs
    wrong = formula.expression + lr**order / 10**9
    with pytest.raises(ProofError):
        replace(formula, equation=sp.Eq(shown, wrong), solution={shown: wrong}).prove()
    gaussian = tuple((text, e + (1 if "t^1" in text else 0)) for text, e in formula.identities)
    with pytest.raises(ProofError, match="degrees g"):
        replace(formula, identities=gaussian).prove()


def test_thresholds_of_one_direction():
    assert moment_threshold(2, 1) == R(2, 3)
    fourth = moment_threshold(4, 1)
    e = sp.Symbol("e")
    assert sp.Poly(105 * e**3 - 60 * e**2 + 18 * e - 4, e).eval(sp.N(fourth, 40)) < 1e-35
    assert str(sp.N(fourth, 10)) == "0.3834510059"
    assert moment_threshold(6, 1) < fourth < moment_threshold(2, 1)


@pytest.mark.parametrize(("batch_size", "dim"), [(1, 1), (3, 1), (2, 5)])
def test_order_two_is_mean_square_stability(batch_size, dim):
    h = R(3, 2)
    threshold = moment_threshold(2, batch_size, eigenvalue=h, dim=dim)
    assert (
        threshold == mean_square_threshold(sgd, [h] * dim, batch_size) == 2 * batch_size / (h * (dim + batch_size + 1))
    )


def test_kestens_equation():
    formula = kesten_equation()
    assert formula.prove().claims
    growth = formula.lambdify("mpmath")
    with mpmath.workdps(20):
        for order in (2, 4):
            found = polynomial(order, lr=R(1, 3), h_i=1, batch_size=3, d=1)
            value = growth(alpha=order, h_i=1, lr=mpmath.mpf(1) / 3, batch_size=3)
            assert abs(value - mpmath.mpf(int(found.p)) / int(found.q)) < 1e-9
    (text, residual) = formula.identities[0]
    with pytest.raises(ProofError):
        replace(formula, identities=((text, residual + 1),)).prove()


@pytest.mark.parametrize(("size", "index"), [(1, 1.091), (2, 2), (4, 3.505), (8, 6.202)])
def test_the_published_tail_index_is_exact_only_at_two(size, index):
    """At lr h = 1, where it says B."""
    statement = tail_index_statement()
    assert statement.prove().claims
    assert statement.kind == "approximation"
    values = {"h_i": 1, "lr": 1, "batch_size": size}
    assert statement.expression.subs({statement.symbols[r]: v for r, v in values.items()}) == size
    with mpmath.workdps(15):
        exact = mpmath.findroot(
            lambda a: chi_squared(size, lambda x: abs(1 - x / size) ** a) - 1, (index - 0.01, index + 0.01), tol=1e-8
        )
    assert float(exact) == pytest.approx(index, abs=1e-3)
    growth = statement.parts["growth at 4"]
    assert growth.subs(statement.symbols["batch_size"], size) != 1


def test_odd_orders_and_sizes_are_refused():
    for order in (0, 3, 2.5, True):
        with pytest.raises(InvalidProblemError, match="even integer"):
            moment_growth(order)
    with pytest.raises(InvalidProblemError, match="positive integer"):
        moment_threshold(2, 0)
    with pytest.raises(InvalidProblemError, match="dim must be"):
        moment_threshold(2, 1, dim=0)
    with pytest.raises(InvalidProblemError, match="eigenvalues"):
        moment_threshold(2, 1, eigenvalue=-1)
