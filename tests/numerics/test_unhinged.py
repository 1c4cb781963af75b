"""The robust unhinged loss: its closed forms, by differences and a general solver."""

import numpy as np
import pytest
import scipy.optimize

from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import RobustUnhinged, stationary_covariance
from sgdcov.theory import sgd

EPS = np.finfo(float).eps


def problem(radius=0.3, l2=0.5, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 3))
    y = np.where(X @ [1.0, -1.0, 0.5] + rng.normal(size=40) > 0, 1.0, -1.0)
    return RobustUnhinged(X, y, radius, l2)


def differences(function, w, step=1e-5):
    return np.array([(function(w + h) - function(w - h)) / (2 * step) for h in step * np.eye(len(w))])


def test_the_loss_is_the_worst_over_the_ball():
    p, w = problem(), np.array([0.5, -1.0, 0.2])
    worst = p.X - p.radius * p.y[:, None] * w / np.linalg.norm(w)
    assert float(p.loss(w)) == pytest.approx(np.mean(1 - p.y * (worst @ w)) + 0.25 * w @ w, rel=20 * EPS)


def test_derivatives_are_those_of_the_loss():
    p, w = problem(), np.array([0.5, -1.0, 0.2])
    assert p.gradient(w) == pytest.approx(differences(p.loss, w), abs=1e-9)
    assert p.hessian == pytest.approx(differences(p.gradient, p.optimum), abs=1e-8)
    assert p.loss(np.zeros((4, 2, 3))).shape == (4, 2)


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.3])
def test_the_optimum_is_that_of_a_general_solver(radius):
    p = problem(radius)
    found = scipy.optimize.minimize(p.loss, np.ones(3), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15})
    assert p.optimum == pytest.approx(found.x, abs=1e-6)
    assert np.abs(p.gradient(p.optimum)).max() <= 10 * EPS


def test_robustness_narrows_the_law_across_and_leaves_it_along():
    plain, robust = problem(0.0), problem(0.3)
    u = robust.optimum / np.linalg.norm(robust.optimum)
    assert robust.noise(4) == pytest.approx(plain.noise(4), rel=1e-12)
    share = plain.collapse_radius / (plain.collapse_radius - 0.3)
    across = np.array([u[1], -u[0], 0.0]) / np.hypot(u[0], u[1])
    assert u @ robust.hessian @ u == pytest.approx(0.5, rel=20 * EPS)
    assert across @ robust.hessian @ across == pytest.approx(0.5 * share, rel=50 * EPS)
    laws = [stationary_covariance(sgd(lr=0.1), p.hessian, p.noise(4)).value for p in (plain, robust)]
    assert u @ laws[1] @ u == pytest.approx(u @ laws[0] @ u, rel=1e-12)
    assert across @ laws[1] @ across < across @ laws[0] @ across
    assert u @ laws[0] @ u == pytest.approx(0.1 * (u @ plain.noise(4) @ u) / (0.5 * (2 - 0.05)), rel=1e-12)


def test_from_the_collapse_radius_on_the_optimum_is_0():
    edge = problem().collapse_radius
    assert not problem(edge * (1 + 1e-12)).optimum.any()
    assert problem(edge * 0.99).optimum.any()
    beyond = problem(2 * edge)
    for ask in (lambda: beyond.hessian, lambda: beyond.noise(1)):
        with pytest.raises(InvalidProblemError, match="not below collapse_radius"):
            ask()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: problem(radius=-1.0), "radius must be"),
        (lambda: problem(l2=0.0), "l2 must be positive"),
        (lambda: RobustUnhinged([[1.0]], [2.0], 0.1, 1.0), r"labels must be -1 or 1, got y\[0\] = 2"),
        (lambda: RobustUnhinged([[1.0]], [1.0, 1.0], 0.1, 1.0), "one entry per row of X"),
        (lambda: problem().noise(41), "batch_size must be from 1 to the number of examples, 40"),
    ],
)
def test_bad_input_is_named(build, says):
    with pytest.raises(InvalidProblemError, match=says):
        build()
