"""Arrays that are not what they claim are refused, by name and by how much."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
import torch

from sgdcov.errors import InvalidProblemError, NonStationaryError
from sgdcov.numerics import _arrays, solve_stein

EPS = np.finfo(np.float64).eps


class Unreadable:
    """Pretends to be an array, and fails when it is asked for its entries; its name has more than a line."""

    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError("no entries")

    def __repr__(self):
        return "a\n" * 200


CHECKS = [_arrays.symmetric, _arrays.positive_semidefinite, _arrays.square]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([[1.0, np.nan], [0.0, 1.0]], r"noise\[0, 1\] = nan \(1 of 4"),
        ([[1.0, np.inf], [np.inf, 1.0]], r"2 of 4"),
        ([[1.0, 2.0, 3.0]], r"square.*\(1, 3\)|shape"),
        ([1.0, 2.0], r"matrix of shape .* got shape \(2,\)"),
        (3.0, r"got shape \(\)"),
        ([[1.0], [1.0, 2.0]], "not an array"),
        ([[10**400]], "too large"),
        ([["1.5", None]], "real numbers"),
        (np.array([[1.0, True]], dtype=object), "real numbers, got True"),
        (np.ma.masked_array([[1.0]], mask=[[True]]), "1 masked"),
        (scipy.sparse.eye(2), r"noise\.toarray\(\)"),
        (torch.ones(1, 1, requires_grad=True), "detach"),
        (torch.ones(1, 1, dtype=torch.bfloat16), "not an array"),
        ({"a": 1}, "not an array"),
        (object(), "not an array"),
        (Unreadable(), "not an array"),
        (np.array([[1e300]], dtype=np.longdouble) ** 2, "finite"),
        ([["a"]], "real numbers"),
        ([[1.0 + 1j]], "complex"),
        ([[None]], "finite|real numbers"),
        ([[True]], "bool"),
        (np.zeros((0, 0)), "empty"),
    ],
)
def test_bad_matrices_are_refused_by_name(check, bad, says):
    with pytest.raises(InvalidProblemError, match=says) as caught:
        check("noise", bad)
    assert "noise" in str(caught.value)


def test_the_stated_dimension_is_enforced():
    with pytest.raises(InvalidProblemError, match=r"noise must have shape \(3, 3\), got \(2, 2\)"):
        _arrays.symmetric("noise", np.eye(2), dim=3)
    with pytest.raises(InvalidProblemError, match=r"optimum must have shape \(3,\), got \(2,\)"):
        _arrays.vector("optimum", np.ones(2), dim=3)
    with pytest.raises(InvalidProblemError, match=r"X must have shape \(any, 3\), got \(2, 2\)"):
        _arrays.matrix("X", np.ones((2, 2)), columns=3)


def test_asymmetry_above_rounding_is_named_with_its_place_and_size():
    a = np.eye(4)
    a[1, 3] = 1e-9
    with pytest.raises(InvalidProblemError, match=r"hessian\[1, 3\] = 1.0000.*e-09 .*hessian\[3, 1\] = 0.*1e-09"):
        _arrays.symmetric("hessian", a)


def test_the_asymmetry_of_a_product_is_rounding():
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    h = (u * np.geomspace(1e-12, 1, 200)) @ u.T
    out = _arrays.symmetric("hessian", h)
    assert np.array_equal(out, out.T)
    assert np.max(np.abs(out - h)) <= _arrays.rounding_level(h)


def test_an_exactly_symmetric_matrix_comes_back_bit_for_bit_and_unaliased():
    a = np.array([[2.0, 0.1], [0.1, 1.0]])
    out = _arrays.positive_semidefinite("noise", a)
    assert np.array_equal(out, a)
    assert not np.shares_memory(out, a)


def test_float32_rounding_is_measured_in_float32():
    a = np.array([[1.0, 0.3], [0.3, 1.0]], dtype=np.float32)
    a[0, 1] = np.nextafter(a[0, 1], np.float32(1))
    assert _arrays.symmetric("noise", a).dtype == np.float64
    with pytest.raises(InvalidProblemError):
        _arrays.symmetric("noise", a.astype(np.float64))


@pytest.mark.parametrize("dim", [2, 30, 300])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_rank_deficient_gram_matrices_are_semidefinite(dim, scale):
    x = np.random.default_rng(dim).normal(size=(max(dim // 3, 1), dim))
    _arrays.positive_semidefinite("noise", scale * (x.T @ x))


@pytest.mark.parametrize("dim", [2, 30, 300])
def test_an_indefinite_matrix_is_refused_with_its_smallest_eigenvalue(dim):
    rng = np.random.default_rng(dim)
    u, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    values = np.linspace(0.5, 1.0, dim)
    values[0] = -1e-9
    with pytest.raises(InvalidProblemError, match=r"smallest eigenvalue is -1(\.\d+)?e-09|is -9\.9\d*e-10"):
        _arrays.positive_semidefinite("noise", (u * values) @ u.T)


def test_a_diagonal_matrix_is_held_to_the_exact_sign():
    with pytest.raises(InvalidProblemError, match="-1e-30"):
        _arrays.positive_semidefinite("noise", np.diag([1.0, -1e-30]))
    _arrays.positive_semidefinite("noise", np.zeros((3, 3)))


def test_integers_and_lists_become_float64():
    assert _arrays.matrix("X", [[1, 2]]).dtype == np.float64
    assert _arrays.vector("y", (1, 2)).dtype == np.float64


def test_the_rounding_level_is_what_the_docstring_says():
    assert _arrays.rounding_level(np.array([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(8 * 2 * EPS * 3)


def test_a_result_without_a_value_says_so_itself():
    with pytest.raises(NonStationaryError, match="no stationary covariance"):
        _arrays.symmetric("noise", solve_stein([[2.0]], [[3.0]]))


def test_rationals_and_a_mask_that_hides_nothing_are_numbers():
    assert _arrays.vector("y", [Fraction(1, 2), 2]).tolist() == [0.5, 2.0]
    assert _arrays.vector("y", np.ma.masked_array([1.0], mask=[False])).tolist() == [1.0]


GARBAGE = [None, "no", b"1", True, [1, 2], {}, object(), float("nan"), 1j, Unreadable(), np.ones(3), 10**400, 0.5]


@pytest.mark.parametrize("bad", GARBAGE[:-1], ids=lambda bad: type(bad).__name__)
def test_a_number_is_a_finite_real_one(bad):
    with pytest.raises(InvalidProblemError, match="damping must be a finite number, at least 0") as caught:
        _arrays.nonnegative("damping", bad)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [*GARBAGE[:-2], 0.5], ids=lambda bad: type(bad).__name__)
def test_a_whole_number_is_an_integer(bad):
    with pytest.raises(InvalidProblemError, match="steps must be a whole number, at least 0"):
        _arrays.whole_number("steps", bad)


def test_a_number_beyond_its_domain_shows_the_domain():
    with pytest.raises(InvalidProblemError, match=r"p must be a finite number in \(0, 1\), got 1"):
        _arrays.number("p", 1, least=0, most=1, open=True)
    with pytest.raises(InvalidProblemError, match=r"position must be a whole number, from 0 to 3, got 4"):
        _arrays.whole_number("position", 4, most=3)
    with pytest.raises(InvalidProblemError, match=r"B must be a whole number, from 1 to 9, got 1000") as caught:
        _arrays.whole_number("B", 10**400, least=1, most=9)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bad", [bad for bad in GARBAGE if bad is not True], ids=lambda bad: type(bad).__name__)
def test_only_true_and_false_are_flags(bad):
    assert _arrays.flag("replacement", np.True_) is True
    with pytest.raises(InvalidProblemError, match="replacement must be True or False"):
        _arrays.flag("replacement", bad)


@pytest.mark.parametrize("bad", GARBAGE, ids=lambda bad: type(bad).__name__)
def test_only_the_words_offered_are_a_choice(bad):
    with pytest.raises(InvalidProblemError, match="method must be one of 'auto', 'schur'"):
        _arrays.choice("method", bad, ("auto", "schur"))


@pytest.mark.parametrize("bad", [None, "slots", b"1", 3, object()], ids=lambda bad: type(bad).__name__)
def test_only_what_can_be_iterated_is_a_sequence(bad):
    with pytest.raises(InvalidProblemError, match="slots must be a sequence"):
        _arrays.tuple_of("slots", bad)


NO_SEEDS = [True, -1, 0.5, "seed", [1], np.random.RandomState(0)]


@pytest.mark.parametrize("bad", NO_SEEDS, ids=lambda bad: type(bad).__name__)
def test_a_random_generator_is_one_or_an_integer_or_none(bad):
    with pytest.raises(InvalidProblemError, match=r"rng must be a numpy\.random\.Generator"):
        _arrays.random_generator(bad)


def test_the_random_generator_given_is_the_one_used():
    generator = np.random.default_rng(0)
    assert _arrays.random_generator(generator) is generator
    assert _arrays.random_generator(np.int64(7)).random() == np.random.default_rng(7).random()
    assert _arrays.random_generator(None).random() != _arrays.random_generator(None).random()
