"""Arrays that are not what they claim are refused, by name and by how much."""

from __future__ import annotations

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import _arrays

EPS = np.finfo(np.float64).eps
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
