"""The Stein equation: forward error against a 50-digit oracle, and every verdict."""

from __future__ import annotations

import re
import warnings

import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sgdcov.errors import AccuracyWarning, InvalidProblemError, NonStationaryError
from sgdcov.numerics import _triangular_stein as tri
from sgdcov.numerics.stein import solve_stein

EPS = np.finfo(np.float64).eps
METHODS = ["auto", "schur", "kronecker", "doubling"]
FOR_EVERY_A = ["schur", "kronecker"]
#: Forward errors are bounded by this times m * eps * condition: a Schur form or an LU of D costs a few m * eps each.
SAFETY = 10.0


def oracle(a, q):
    """The unique solution in 50 digits, from the m^2 linear equations."""
    m = len(a)
    with mpmath.workdps(50):
        exact = mpmath.matrix(a.tolist())
        system = mpmath.matrix(m * m, m * m)
        for i, j, k, n in np.ndindex(m, m, m, m):
            system[i * m + j, k * m + n] = exact[i, k] * exact[j, n] - (1 if (i, j) == (k, n) else 0)
        x = mpmath.lu_solve(system, mpmath.matrix((-q).ravel().tolist()))
        return np.array([float(entry) for entry in x]).reshape(m, m)


def relative(x, exact):
    return np.linalg.norm(x - exact) / np.linalg.norm(exact)


def orthogonal(rng, m):
    return np.linalg.qr(rng.normal(size=(m, m)))[0]


def gram(rng, m):
    g = rng.normal(size=(m, m))
    return g @ g.T


def with_radius(a, rho):
    return a * (rho / np.abs(np.linalg.eigvals(a)).max())


def random_a(kind, rng, m):
    a, u = rng.normal(size=(m, m)), orthogonal(rng, m)
    match kind:
        case "contractive":
            return with_radius(a, rng.uniform(0.1, 0.95))
        case "near the circle":
            return with_radius(a, 1.0 - 10.0 ** rng.uniform(-11, -3))
        case "triangular":
            return np.triu(a, 1) + np.diag(1.0 - 10.0 ** rng.uniform(-15, -1, size=m))
        case "nearly flat":
            return np.eye(m) - 10.0 ** rng.uniform(-12, -3) * (gram(rng, m) + np.eye(m))
        case "non-normal":
            return u @ (100.0 * np.triu(a, 1) + np.diag(rng.uniform(-0.5, 0.5, size=m))) @ u.T
        case "defective":
            return u @ (0.5 * np.eye(m) + np.diag(np.ones(m - 1), 1)) @ u.T
        case "unstable":
            return with_radius(a, rng.uniform(1.5, 4.0))


KINDS = ["contractive", "near the circle", "triangular", "nearly flat", "non-normal", "defective", "unstable"]


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in KINDS for method in METHODS if (kind, method) != ("unstable", "doubling")],
)
def test_forward_error_is_within_the_condition(kind, method):
    rng = np.random.default_rng(KINDS.index(kind))
    for m in (1, 2, 3, 4) * 5:
        a, q = random_a(kind, rng, m), gram(rng, m)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = solve_stein(a, q, method=method)
        assert solution.verdict == ("unstable" if kind == "unstable" else "stationary")
        error = relative(solution.value, oracle(a, q))
        assert error <= solution.error + EPS
        assert error <= SAFETY * m * EPS * max(solution.condition, 1.0)
        # a Lyapunov matrix of condition 1e16 cannot be seen to be positive
        assert solution.error <= 1e-11 or solution.condition > 1e14
        assert [w.category for w in caught] == ([AccuracyWarning] if solution.error > 1e-6 else [])
        assert np.array_equal(solution.value, solution.value.T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("distance", [1e-3, 1e-8, 1e-12, 2.0**-53])
def test_a_scalar_near_the_circle_keeps_every_digit(method, sign, distance):
    a = sign * (1.0 - distance)
    exact = oracle(np.array([[a]]), np.eye(1))
    # the doubling's error grows with the number of doublings, log2(1 / distance)
    assert relative(solve_stein([[a]], [[1.0]], method=method).value, exact) <= 4 * EPS * (1 - np.log2(distance))


def test_flat_and_steep_directions_side_by_side_keep_every_digit():
    lr_h = np.array([1e-14, 1e-10, 1e-5, 0.3, 1.9])
    q = gram(np.random.default_rng(0), 5)
    m = 1.0 - lr_h
    d = m - 1.0  # exact: what float64 made of lr * h
    exact = q / -(d[:, None] + d[None, :] + d[:, None] * d[None, :])
    assert np.max(np.abs(solve_stein(np.diag(m), q).value / exact - 1)) <= 8 * EPS


@pytest.mark.parametrize("m", [20, 60, 150])
def test_agrees_with_scipy(m):
    rng = np.random.default_rng(m)
    a, q = with_radius(rng.normal(size=(m, m)), 0.97), gram(rng, m)
    peer = scipy.linalg.solve_discrete_lyapunov(a, q)
    for method in ("schur", "doubling"):
        solution = solve_stein(a, q, method=method)
        assert relative(solution.value, peer) <= SAFETY * m * EPS * solution.condition
        assert solution.residual <= m * EPS


@pytest.mark.parametrize("m", [1, 5, 16])
def test_the_estimated_condition_brackets_the_exact_one(m, monkeypatch):
    rng = np.random.default_rng(m)
    a = with_radius(rng.normal(size=(m, m)), 0.9)
    exact = solve_stein(a, np.eye(m))
    assert exact.condition_norm == "2-norm"
    full = np.kron(a, a) - np.eye(m * m)
    assert np.all(exact.units == 1.0)  # balanced as it is
    assert exact.condition == pytest.approx(np.linalg.cond(full))
    monkeypatch.setattr("sgdcov.numerics.stein.LARGEST_EXACT_CONDITION", 0)
    estimated = solve_stein(a, np.eye(m))
    assert estimated.condition_norm == "1-norm, estimated"
    one_norm = np.linalg.cond(full, 1)
    # the estimator gives a lower bound, in practice within a small factor
    assert one_norm / 10 <= estimated.condition <= one_norm * (1 + 1e3 * EPS * one_norm)


def test_condition_does_not_touch_the_global_random_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    a = 0.5 * orthogonal(np.random.default_rng(0), 20)
    first, second = (solve_stein(a, np.eye(20)).condition for _ in range(2))
    assert first == pytest.approx(second, rel=1e3 * EPS)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


# Verdicts: (name, Jordan-like matrix J, Q in its coordinates, verdict), each also in rotated and skew coordinates.

JORDAN = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
TURN = np.array([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.5]])  # a rotation: a complex pair on the circle
VERDICTS = [
    ("stable", np.diag([0.5, -0.9, 0.1]), np.ones((3, 3)), "stationary"),
    ("growing", np.diag([1.5, -0.9, 0.1]), np.ones((3, 3)), "unstable"),
    ("growing, not excited", np.diag([1.5, -0.9, 0.1]), np.diag([0.0, 1.0, 1.0]), "unstable"),
    ("all growing", np.diag([1.5, -2.0, 3.0]), np.ones((3, 3)), "unstable"),
    ("1, not excited", np.diag([1.0, 0.5, 0.1]), np.diag([0.0, 1.0, 2.0]), "marginal"),
    ("1, excited", np.diag([1.0, 0.5, 0.1]), np.diag([1e-6, 1.0, 2.0]), "none"),
    ("-1, not excited", np.diag([-1.0, 0.5, 0.1]), np.diag([0.0, 1.0, 2.0]), "marginal"),
    ("-1, excited", np.diag([-1.0, 0.5, 0.1]), np.ones((3, 3)), "none"),
    ("1 twice, not excited", np.diag([1.0, 1.0, 0.1]), np.diag([0.0, 0.0, 2.0]), "marginal"),
    ("1 and -1, not excited", np.diag([1.0, -1.0, 0.1]), np.diag([0.0, 0.0, 2.0]), "marginal"),
    ("1 and -1, one excited", np.diag([1.0, -1.0, 0.1]), np.diag([0.0, 1.0, 2.0]), "none"),
    ("rotation, not excited", TURN, np.diag([0.0, 0.0, 2.0]), "marginal"),
    ("rotation, excited", TURN, np.ones((3, 3)), "none"),
    ("no noise at all", np.diag([1.0, 0.5, 0.1]), np.zeros((3, 3)), "marginal"),
    ("Jordan, not excited", JORDAN, np.diag([0.0, 0.0, 1.0]), "marginal"),
    ("Jordan, excited, solvable", JORDAN, np.diag([1.0, 0.0, 1.0]), "unstable"),
    ("Jordan, excited, not solvable", JORDAN, np.diag([0.0, 1.0, 1.0]), "none"),
    ("mirrored, solvable", np.diag([2.0, 0.5, 0.1]), np.diag([1.0, 1.0, 1.0]), "unstable"),
    ("mirrored, not solvable", np.diag([2.0, 0.5, 0.1]), np.ones((3, 3)), "none"),
    ("mirrored near the circle", np.diag([1.001, 1 / 1.001, 0.1]), np.ones((3, 3)), "none"),
    ("growing, and 1 not excited", np.diag([2.0, 1.0, 0.1]), np.diag([1.0, 0.0, 1.0]), "unstable"),
    ("growing, and 1 excited", np.diag([2.0, 1.0, 0.1]), np.diag([1.0, 1.0, 1.0]), "none"),
]


def coordinates(kind):
    rng = np.random.default_rng(7)
    return {"plain": np.eye(3), "rotated": orthogonal(rng, 3), "skew": rng.normal(size=(3, 3))}[kind]


@pytest.mark.parametrize("method", FOR_EVERY_A)
@pytest.mark.parametrize("where", ["plain", "rotated", "skew"])
@pytest.mark.parametrize(("name", "j", "qj", "verdict"), VERDICTS, ids=[row[0] for row in VERDICTS])
def test_verdict(name, j, qj, verdict, where, method):
    t = coordinates(where)
    a, q = t @ j @ np.linalg.inv(t), t @ qj @ t.T
    q = 0.5 * (q + q.T)
    solution = solve_stein(a, q, method=method)
    assert solution.verdict == verdict
    unique = not tri.mirrored_modes(tri.schur_form(a))[0].any()
    assert (solution.condition < np.inf) == unique
    if verdict == "none":
        assert solution.value is None
        assert np.isnan(solution.residual)
    else:
        assert solution.residual <= 1e3 * EPS * np.linalg.cond(t) ** 2
    if verdict in ("none", "unstable"):
        with pytest.raises(NonStationaryError, match=r"no stationary covariance: ") as caught:
            np.asarray(solution)
        assert caught.value.modes == solution.modes
        assert caught.value.rho == solution.rho
        assert solution.modes
    else:
        covariance = np.asarray(solution)
        # A split double eigenvalue (Jordan) leaves about sqrt(eps) in its subspace, squared in the covariance.
        level = 1e4 * EPS * np.linalg.cond(t) ** 2 * max(1.0, np.abs(covariance).max())
        assert np.max(np.abs(a @ covariance @ a.T - covariance + q)) <= level
        assert np.linalg.eigvalsh(covariance)[0] >= -level


@pytest.mark.parametrize("where", ["plain", "rotated", "skew"])
@pytest.mark.parametrize(
    ("name", "j", "qj", "verdict"),
    [row for row in VERDICTS if row[3] in ("marginal", "unstable")],
    ids=lambda v: str(v)[:25],
)
def test_value_is_the_solution_of_least_norm(name, j, qj, verdict, where):
    t = coordinates(where)
    a, q = t @ j @ np.linalg.inv(t), t @ qj @ t.T
    operator = np.kron(a, a) - np.eye(9)
    u, s, vt = np.linalg.svd(operator)
    keep = s > 1e-12 * s[0]  # the singular values of these operators are above 1e-6 or below 1e-14 times the largest
    assert not np.any((s > 1e-14 * s[0]) & (s < 1e-6 * s[0]))
    expected = -(vt[keep].T @ ((u.T @ q.ravel())[keep] / s[keep])).reshape(3, 3)
    condition = s[0] / s[keep].min()
    found = solve_stein(a, 0.5 * (q + q.T), method="schur").value
    assert np.linalg.norm(found - expected) <= 100 * EPS * condition * max(1.0, np.linalg.norm(expected))


def test_the_marginal_covariance_is_the_limit_of_a_start_at_zero():
    t = coordinates("skew")
    a, q = t @ np.diag([1.0, 0.5, 0.1]) @ np.linalg.inv(t), t @ np.diag([0.0, 1.0, 2.0]) @ t.T
    solution = solve_stein(a, 0.5 * (q + q.T))
    x = np.zeros((3, 3))
    for _ in range(100):
        x = a @ x @ a.T + q
    assert relative(solution.covariance, x) <= 1e3 * EPS * np.linalg.cond(t) ** 2
    # the solution of least norm is another one here, and not semidefinite
    assert np.linalg.eigvalsh(solution.value)[0] < -1e-3
    assert np.linalg.norm(solution.value) < np.linalg.norm(solution.covariance)


def test_many_marginal_modes_not_excited():
    rng = np.random.default_rng(3)
    u = orthogonal(rng, 80)
    a = (u * np.r_[np.ones(50), rng.uniform(-0.9, 0.9, 30)]) @ u.T
    x = np.zeros((80, 80))
    x[50:, 50:] = gram(rng, 30)
    q = u @ x @ u.T
    solution = solve_stein(a, 0.5 * (q + q.T))
    assert np.linalg.eigvalsh(a)[-1] == pytest.approx(1.0)
    assert solution.verdict == "marginal"
    assert solution.residual <= 80 * EPS
    assert len(solution.modes) == 50


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("rotated", [False, True])
def test_heavy_ball_with_flat_directions(momentum, rotated):
    """The companion recursion of 30 directions, 26 of them flat: the closed form where noise spares them, else none."""
    rng = np.random.default_rng(11)
    d, flat, lr = 30, 26, 0.3
    u = orthogonal(rng, d) if rotated else np.eye(d)
    h = np.r_[np.zeros(flat), np.geomspace(1e-3, 1.0, d - flat)]
    c = np.zeros((d, d))
    c[flat:, flat:] = gram(rng, d - flat)
    eye = np.eye(d)
    hessian, drive = (u * h) @ u.T, np.vstack([-lr * eye, eye])
    a = np.block([[eye - lr * hessian, -lr * momentum * eye], [hessian, momentum * eye]])

    def companion_noise(covariance):
        q = drive @ (u @ covariance @ u.T) @ drive.T
        return 0.5 * (q + q.T)

    solution = solve_stein(a, companion_noise(c))
    assert solution.verdict == "marginal"
    assert len(solution.modes) == flat
    h_i, h_j = np.meshgrid(h[flat:], h[flat:], indexing="ij")
    denominator = (1 - momentum) * ((1 + momentum) * (h_i + h_j) - lr * h_i * h_j)
    denominator += lr * momentum * (h_i - h_j) ** 2 / (1 - momentum)
    exact = np.zeros((d, d))
    exact[flat:, flat:] = lr * (1 + momentum) * c[flat:, flat:] / denominator
    found = u.T @ solution.covariance[:d, :d] @ u
    # the damped modes by themselves: the condition of the operator is that of the smallest pivot
    slowest = 1.0 - np.sort(np.abs(np.linalg.eigvals(a)))[: 2 * d - flat].max()
    assert relative(found, exact) <= SAFETY * 2 * d * EPS * np.linalg.norm(a, 2) ** 2 / slowest
    excited = c + 1e-3 * np.outer(eye[0], eye[0])
    assert solve_stein(a, companion_noise(excited)).verdict == "none"


def test_an_excitation_at_the_level_of_rounding_is_forgiven_and_above_it_is_not():
    c, s = np.cos(0.3), np.sin(0.3)
    u = np.array([[c, -s], [s, c]])

    def rotated(x):
        out = u @ np.diag(x) @ u.T
        return 0.5 * (out + out.T)

    assert solve_stein(rotated([1.0, 0.5]), rotated([EPS, 1.0])).verdict == "marginal"
    refused = solve_stein(rotated([1.0, 0.5]), rotated([1e-13, 1.0]))
    assert refused.verdict == "none"
    assert re.search(r"by [0-9.]+e-13 in units", refused.status)
    # where nothing was rounded nothing is forgiven: a mode that is coupled to no other has units of its own
    assert solve_stein(np.diag([1.0, 0.5]), np.diag([EPS, 1.0])).verdict == "none"


def test_a_triangular_matrix_is_judged_exactly():
    below = np.nextafter(1.0, 0.0)
    assert solve_stein([[below, 1.0], [0.0, 0.5]], np.eye(2)).verdict == "stationary"
    assert solve_stein([[1.0, 0.0], [1.0, 0.5]], np.eye(2)).verdict == "none"
    with pytest.warns(AccuracyWarning):
        assert solve_stein([[np.nextafter(1.0, 2.0), 0.0], [1.0, 0.5]], np.eye(2)).verdict == "unstable"


def test_an_indefinite_q_is_solved_but_is_no_covariance():
    q = np.array([[1.0, 2.0], [2.0, 1.0]])
    a = np.array([[0.5, 0.2], [-0.1, 0.3]])
    solution = solve_stein(a, q)
    assert relative(solution.value, oracle(a, q)) <= SAFETY * 2 * EPS * solution.condition
    with pytest.raises(InvalidProblemError, match=r"not a covariance: Q is not positive semidefinite.* -1 "):
        np.asarray(solution)


@given(
    a=hnp.arrays(np.float64, (3, 3), elements=st.floats(-2, 2, width=16)),
    g=hnp.arrays(np.float64, (3, 3), elements=st.floats(-2, 2, width=16)),
)
def test_the_verdict_never_lies(a, g):
    """Whatever A: a covariance is semidefinite and solves the equation; a refusal has a mode not inside the circle."""
    q = g @ g.T
    solution = solve_stein(a, q)
    # an upper bound of what the rounding of A does to an eigenvalue of a 3 x 3 matrix: the cube root (Jordan)
    margin = 10.0 * (EPS * (1.0 + np.linalg.norm(a))) ** (1 / 3)
    radius = np.abs(np.linalg.eigvals(a)).max()
    if solution.verdict == "stationary":
        assert radius < 1.0 + margin
        scale = max(1.0, np.abs(solution.covariance).max())
        level = 100.0 * EPS * min(solution.condition, 1 / EPS) * scale
        assert np.linalg.eigvalsh(solution.covariance)[0] >= -level
    else:
        assert radius > 1.0 - margin
    if solution.value is not None:
        assert solution.residual <= 1e-13 * (1.0 + np.linalg.norm(a)) ** 2
        assert np.array_equal(solution.value, solution.value.T)


@given(exponent=st.integers(-250, 250))
def test_the_solution_scales_with_q_exactly(exponent):
    rng = np.random.default_rng(0)
    a, q = with_radius(rng.normal(size=(3, 3)), 0.9), gram(rng, 3)
    scaled = solve_stein(a, np.ldexp(q, exponent)).value
    assert np.array_equal(scaled, np.ldexp(solve_stein(a, q).value, exponent))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_neither_changed_nor_aliased(method):
    rng = np.random.default_rng(0)
    a, q = with_radius(rng.normal(size=(4, 4)), 0.9), gram(rng, 4)
    a_before, q_before = a.copy(), q.copy()
    solution = solve_stein(a, q, method=method)
    assert np.array_equal(a, a_before)
    assert np.array_equal(q, q_before)
    assert a.flags.writeable
    assert not np.shares_memory(solution.value, q)
    assert not solution.value.flags.writeable
    copy = np.asarray(solution)
    copy[0, 0] = 7.0
    assert solution.value[0, 0] != 7.0


def test_doubling_refuses_what_it_cannot_sum():
    with pytest.raises(NonStationaryError, match=r"spectral radius below 1, got 2 \(modes 2\); use method='schur'"):
        solve_stein([[2.0]], [[1.0]], method="doubling")
    with pytest.raises(NonStationaryError, match="modes -1"):
        solve_stein([[-1.0]], [[0.0]], method="doubling")


@pytest.mark.parametrize(
    ("a", "q", "method", "says"),
    [
        (
            [[0.5]],
            [[1.0]],
            "bilinear",
            r"method must be one of 'auto', 'schur', 'doubling', 'kronecker', got 'bilinear'",
        ),
        ([[0.5, 0.0]], [[1.0]], "auto", r"A must be square, got shape \(1, 2\)"),
        ([[0.5]], np.eye(2), "auto", r"Q must have shape \(1, 1\), got \(2, 2\)"),
        ([[np.nan]], [[1.0]], "auto", r"A must be finite: A\[0, 0\] = nan"),
        (np.eye(2) / 2, [[1.0, 0.5], [0.4, 1.0]], "auto", r"Q is not symmetric: Q\[0, 1\] = 0.5"),
        (np.eye(41) / 2, np.eye(41), "kronecker", r"at most m = 40, got 41"),
        ([[1e200]], [[1.0]], "auto", r"A is too large for float64"),
    ],
)
def test_bad_input_is_named(a, q, method, says):
    with pytest.raises(InvalidProblemError, match=says):
        solve_stein(a, q, method=method)
