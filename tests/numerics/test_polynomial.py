"""Certified evaluation: within one unit in the last place of the exact value, whatever cancels."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdcov.numerics._doubledouble import from_integer, horner_step, split
from sgdcov.numerics._polynomial import ExactPolynomial, PreparedPolynomial

U = 2.0**-53
positive = st.floats(min_value=2.0**-40, max_value=2.0**40)
finite = st.one_of(positive, positive.map(lambda x: -x), st.just(0.0))
terms = st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.integers(-(2**200), 2**200), min_size=1)


def value(polynomial, x, y):
    mantissa, exponent = polynomial(np.array([x]), np.array([y]))
    return Fraction(float(mantissa[0])) * Fraction(2) ** exponent


@given(terms, finite, finite)
def test_values_are_within_one_ulp(terms, x, y):
    polynomial = ExactPolynomial(terms)
    exact = polynomial.exactly(x, y)
    assert abs(value(polynomial, x, y) - exact) <= 2 * Fraction(U) * abs(exact)


@given(st.floats(min_value=0.5, max_value=2.0), st.integers(1, 3))
def test_a_zero_of_high_multiplicity_cancels_to_the_exact_value(x, power):
    """(x - y)^(2 power) next to its zero: everything cancels, and the exact arithmetic takes over."""
    row = [1]
    for _ in range(2 * power):
        row = [a - b for a, b in zip([*row, 0], [0, *row], strict=True)]
    polynomial = ExactPolynomial({(2 * power - k, k): c for k, c in enumerate(row)})
    y = float(np.nextafter(x, 3.0))
    assert value(polynomial, x, y) == (Fraction(x) - Fraction(y)) ** (2 * power)
    assert value(polynomial, x, x) == 0


def test_without_the_repair_the_same_point_is_wrong(monkeypatch):
    monkeypatch.setattr(PreparedPolynomial, "_repair", lambda *arguments: None)
    polynomial = ExactPolynomial({(4, 0): 1, (3, 1): -4, (2, 2): 6, (1, 3): -4, (0, 4): 1})
    x, y = 1.1, float(np.nextafter(1.1, 2.0))
    exact = polynomial.exactly(x, y)
    assert abs(value(polynomial, x, y) - exact) > exact


@given(finite, finite, st.integers(-(2**150), 2**150), finite)
def test_a_horner_step_is_within_its_bound(hi, lo_share, q, y):
    lo = lo_share * U * abs(hi) / 2.0**40
    hi, lo = hi + lo, lo - ((hi + lo) - hi)
    q_hi, q_lo = from_integer(q, -100)
    y = np.float64(y)
    new_hi, new_lo = horner_step(np.float64(hi), np.float64(lo), y, split(y), q_hi, q_lo)
    product, addend = (Fraction(hi) + Fraction(lo)) * Fraction(float(y)), Fraction(q_hi) + Fraction(q_lo)
    error = abs(Fraction(float(new_hi)) + Fraction(float(new_lo)) - product - addend)
    assert error <= 16 * Fraction(U) ** 2 * (abs(product) + abs(addend))


@pytest.mark.parametrize("n", [0, 1, -1, 3**40, -(7**100), 10**300])
def test_an_integer_becomes_the_nearest_double_double(n):
    hi, lo = from_integer(n, -30)
    assert abs(Fraction(hi) + Fraction(lo) - Fraction(n, 2**30)) <= Fraction(2) ** -105 * abs(Fraction(n, 2**30))


def test_scales_far_apart():
    polynomial = ExactPolynomial({(2, 0): 1, (0, 1): 10**20})
    x, y = np.array([1e-150, 1e150]), np.array([1e-300, 1e-300])
    mantissa, exponent = polynomial(x, y)
    for m, a, b in zip(mantissa.tolist(), x.tolist(), y.tolist(), strict=True):
        exact = polynomial.exactly(a, b) / Fraction(2) ** exponent
        if exact > Fraction(2) ** -1000:
            assert abs(Fraction(m) - exact) <= 2 * Fraction(U) * exact
