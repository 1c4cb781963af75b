"""Preconditioners invert what they say, their roots square to them, and the change of coordinates is one."""

from __future__ import annotations

import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics.preconditioners import adam, damped_newton, natural_gradient, preconditioner_sqrt, rmsprop
from sgdcov.numerics.stein import solve_stein

EPS = np.finfo(np.float64).eps


def definite(dim, condition, seed=0):
    u, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))
    a = (u * np.geomspace(1.0, 1.0 / condition, dim)) @ u.T
    return 0.5 * (a + a.T)


@pytest.mark.parametrize("dim", [1, 4, 40])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("build", [damped_newton, natural_gradient])
def test_the_damped_inverse_is_one(build, damping, dim):
    a = definite(dim, 1e6)
    p = build(a, damping)
    assert np.array_equal(p, p.T)
    damped = a + damping * np.eye(dim)
    bound = 10 * dim * EPS * np.linalg.cond(damped)
    assert np.abs(p @ damped - np.eye(dim)).max() <= bound


def test_the_inverse_of_a_diagonal_is_exact():
    h = np.array([3.0, 1e-20, 7e10])
    assert np.array_equal(damped_newton(np.diag(h), 0.0), np.diag(1.0 / h))


def test_a_singular_hessian_needs_damping():
    x = np.array([[1.0, 2.0]])
    with pytest.raises(InvalidProblemError, match=r"hessian is not positive definite.*damping makes it invertible"):
        damped_newton(x.T @ x, 0.0)
    assert damped_newton(x.T @ x, 1.0) == pytest.approx(np.linalg.inv(x.T @ x + np.eye(2)))


@pytest.mark.parametrize("build", [adam, rmsprop])
def test_second_moments_enter_by_their_root(build):
    assert build([4.0, 0.0], eps=0.5) == pytest.approx([0.4, 2.0], rel=2 * EPS)
    assert build([0.0]) == pytest.approx([1e8])


@pytest.mark.parametrize("dim", [1, 3, 30])
def test_roots_square_to_the_preconditioner_and_undo_each_other(dim):
    p = definite(dim, 1e6)
    root, inverse = preconditioner_sqrt(p, dim)
    assert np.array_equal(root, root.T)
    assert np.abs(root @ root - p).max() <= 10 * dim * EPS
    assert np.abs(root @ inverse - np.eye(dim)).max() <= 10 * dim * EPS * 1e6


def test_a_diagonal_stays_a_vector():
    root, inverse = preconditioner_sqrt(np.array([4.0, 1e-300]), 2)
    assert np.array_equal(root, [2.0, 1e-150])
    assert inverse == pytest.approx([0.5, 1e150])


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_change_of_coordinates_solves_the_preconditioned_recursion(diagonal):
    """Sgd with P before the gradient, solved as it stands and by w = P^{1/2} z."""
    rng = np.random.default_rng(1)
    h, c, lr = definite(3, 10.0, seed=2), definite(3, 5.0, seed=3), 0.3
    p = rng.uniform(0.5, 1.5, 3) if diagonal else definite(3, 4.0, seed=4)
    root, _ = preconditioner_sqrt(p, 3)
    full, r = (np.diag(p), np.diag(root)) if diagonal else (p, root)
    direct = solve_stein(np.eye(3) - lr * full @ h, lr**2 * full @ c @ full)
    whitened = solve_stein(np.eye(3) - lr * r @ h @ r, lr**2 * r @ c @ r)
    mapped = r @ whitened.covariance @ r
    assert np.linalg.norm(mapped - direct.covariance) <= 100 * EPS * direct.condition * np.linalg.norm(mapped)


def test_undamped_newton_is_the_sandwich():
    h, c, lr = definite(3, 100.0), definite(3, 5.0, seed=1), 0.4
    p = damped_newton(h, 0.0)
    found = solve_stein(np.eye(3) - lr * p @ h, lr**2 * p @ c @ p).covariance
    inverse = np.linalg.inv(h)
    expected = lr / (2 - lr) * inverse @ c @ inverse
    assert np.linalg.norm(found - expected) <= 100 * EPS * 100.0**2 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: damped_newton([[1.0, 0.0], [0.0, -1.0]], 2.0), r"hessian is not positive semidefinite.* is -1 "),
        (lambda: damped_newton([[1.0]], -0.5), r"damping must be a finite number, at least 0, got -0.5"),
        (lambda: damped_newton([[1.0]], np.nan), r"damping must be"),
        (
            lambda: damped_newton(np.diag([1e20, 0.0]) + 1e10 * np.eye(2)[::-1], 1e-3),
            r"\+ damping\*I with damping=0.001",
        ),
        (lambda: natural_gradient([[0.0]]), r"fisher is not positive definite.* is 0, "),
        (lambda: natural_gradient([[1.0, 2.0]]), r"fisher must be square"),
        (lambda: adam([1.0, -2.0]), r"second_moment\[1\] = -2"),
        (lambda: adam([1.0, 0.0], eps=0.0), r"second_moment\[1\] = 0 needs eps > 0, got eps=0"),
        (lambda: adam([[1.0]]), r"second_moment must be a vector"),
        (lambda: rmsprop([1.0], eps=-1e-8), r"eps must be"),
        (lambda: rmsprop([np.inf]), r"second_moment must be finite"),
        (lambda: preconditioner_sqrt([1.0, 0.0], 2), r"preconditioner\[1\] = 0"),
        (lambda: preconditioner_sqrt([1.0], 2), r"preconditioner must have shape \(2,\), got \(1,\)"),
        (lambda: preconditioner_sqrt(np.diag([1.0, -1.0]), 2), r"preconditioner is not positive definite.* is -1, "),
        (lambda: preconditioner_sqrt([[1.0, 0.5], [0.0, 1.0]], 2), r"preconditioner is not symmetric"),
        (lambda: preconditioner_sqrt(np.eye(3), 2), r"shape \(2, 2\), got \(3, 3\)"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(InvalidProblemError, match=says):
        call()
