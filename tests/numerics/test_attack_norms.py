"""Attack norms from next to 1 to huge, and data of every size: right, or refused with the reason."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from sgdcov.errors import InvalidProblemError, ScaleError
from sgdcov.numerics import (
    AdversarialLeastSquares,
    AdversarialLogistic,
    GaussianAdversarialRegression,
    RobustUnhinged,
)
from sgdcov.numerics._dual_norm import DualNorm

ORDERS = [1 + 1e-15, 1 + 1e-8, 1.0001, 1.001, 1.01, 1.2, 1.5, 2, 2.5, 3, 10, 100, 1e4, 1e8]


def near_tie(q, scale, seed=0):
    """Weights whose three largest nearly tie, by about 1/q: where the norm of a large order bends."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(4) * scale
    w[1], w[2] = w[0] * (1 - rng.uniform() / q), -w[0] * (1 - rng.uniform() / q)
    return w


def exact_norm(w, q):
    """Value, gradient and Hessian, in 60 digits."""
    x = [mpmath.mpf(v) for v in w]
    size = mpmath.power(mpmath.fsum(mpmath.power(abs(v), q) for v in x), 1 / q)
    gradient = [mpmath.sign(v) * mpmath.power(abs(v) / size, q - 1) for v in x]
    hessian = [
        [(q - 1) / size * ((mpmath.power(abs(a) / size, q - 2) if i == j else 0) - gradient[i] * gradient[j])
         for j in range(len(x))]
        for i, a in enumerate(x)
    ]  # fmt: skip
    return size, gradient, hessian


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_the_dual_norm_is_right_for_every_order_and_size(p, scale):
    norm = DualNorm.of_attack(p)
    with mpmath.workdps(60):
        q = mpmath.mpf(p) / (mpmath.mpf(p) - 1)
        w = near_tie(float(q), scale)
        size, gradient, hessian = exact_norm(w, q)
        assert abs(norm.of(w) / size - 1) < 1e-14
        assert max(abs(a - b) for a, b in zip(norm.gradient(w), gradient, strict=True)) < 1e-14
        largest = max(abs(v) for row in hessian for v in row)
        error = max(abs(a - b) for row, exact in zip(norm.hessian(w), hessian, strict=True)
                    for a, b in zip(row, exact, strict=True))  # fmt: skip
        assert error < 1e-13 * largest
        attack = mpmath.power(mpmath.fsum(mpmath.power(abs(mpmath.mpf(v)), p) for v in w), 1 / mpmath.mpf(p))
        assert abs(norm.attack_norm(w) / attack - 1) < 1e-14


A = np.array([[1.0, 0.2, 0.0], [0.2, 2.0, 0.1], [0.0, 0.1, 0.5]])


def exact_law(weights, p, start):
    """Optimum and Hessian of the population's risk, in 40 digits; ``start`` only tells the signs and where to begin."""
    q = mpmath.mpf(p) / (mpmath.mpf(p) - 1)
    c0, eps, sigma = mpmath.sqrt(2 / mpmath.pi), mpmath.mpf(0.2), mpmath.mpf(0.3)
    a, w0 = mpmath.matrix(A.tolist()), mpmath.matrix(list(weights))

    def gradient(w):
        e = mpmath.matrix(w) - w0
        pull = a * e
        v = mpmath.sqrt((e.T * pull)[0] + sigma**2)
        size = mpmath.power(mpmath.fsum(mpmath.power(abs(x), q) for x in w), 1 / q)
        t = eps * size
        return [(1 + c0 * t / v) * pull[i] + eps * (c0 * v + t) * mpmath.sign(x) * mpmath.power(abs(x) / size, q - 1)
                for i, x in enumerate(w)]  # fmt: skip

    signs = [mpmath.sign(x) for x in start]
    logs = mpmath.findroot(
        lambda *u: gradient([s * mpmath.e**x for s, x in zip(signs, u, strict=True)]),
        [mpmath.log(abs(mpmath.mpf(x))) for x in start],
        tol=1e-60,
    )
    w = [s * mpmath.e**x for s, x in zip(signs, logs, strict=True)]
    columns = []
    for j, x in enumerate(w):
        h = abs(x) * mpmath.mpf(10) ** -15 / q
        up, down = ([v + s * h * (i == j) for i, v in enumerate(w)] for s in (1, -1))
        columns.append([(b - c) / (2 * h) for b, c in zip(gradient(up), gradient(down), strict=True)])
    return np.array(w, dtype=float), np.array(columns, dtype=float).T


@pytest.mark.parametrize("weights", [(1.0, -0.5, 0.3), (1.0, -0.99, 0.3)], ids=["apart", "tied"])
@pytest.mark.parametrize("p", [1.0001, 1.001, 1.2, 3, 100])
def test_optimum_and_hessian_under_attacks_of_every_norm(weights, p):
    problem = GaussianAdversarialRegression(A, weights, label_noise=0.3, radius=0.2, norm=p)
    with mpmath.workdps(40):
        w, hessian = exact_law(weights, p, problem.optimum)
    assert problem.optimum == pytest.approx(w, rel=1e-13)
    # a Hessian that bends within 1/q of the weights' size knows q * eps of itself
    q = p / (p - 1)
    assert np.abs(problem.hessian - hessian).max() <= 10 * (q + 10) * np.finfo(float).eps * np.abs(hessian).max()


def data(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((12, 3))
    return X, X @ [1.0, -0.5, 0.3] + 0.1 * rng.standard_normal(12)


@pytest.mark.parametrize("p", [1 + 1e-15, 1.0001, 10, 1e4, 1e300])
def test_near_the_limits_of_the_norm_the_optimum_is_that_of_the_limit(p):
    X, y = data()
    problem = AdversarialLogistic(X, np.sign(y), 0.3, p, l2=0.1)
    assert problem.certificate.relative <= 1e-8
    limit = 1 if p < 1.01 else np.inf if p > 100 else None
    if limit:
        assert problem.optimum == pytest.approx(AdversarialLogistic(X, np.sign(y), 0.3, limit, 0.1).optimum, abs=1e-5)
    assert AdversarialLogistic(X, np.sign(y), 10.0, p, l2=0.1).kinks.collapsed  # and not before, at 0.3
    assert not problem.kinks.collapsed
    assert np.isfinite(AdversarialLeastSquares(X, y, 0.05, p).loss(problem.optimum * 1e6))


def test_a_curvature_beyond_double_precision_is_refused():
    """Weights that the attack leaves at about 1e-300, where the curvature is about 1e+300, are found as about 1e-13."""
    X, y = data()
    problem = AdversarialLogistic(X, np.sign(y), 0.3, 1000, l2=0.1)
    for ask in (lambda: problem.hessian, lambda: problem.noise(1), problem.cell):
        with pytest.raises(InvalidProblemError, match=r"in double precision: under an attack of norm 1000 .*norm=inf"):
            ask()
    tied = GaussianAdversarialRegression(A, [1.0, -0.99, 0.3], label_noise=0.3, radius=0.2, norm=1 + 1e-10)
    with pytest.raises(
        InvalidProblemError, match=r"in double precision: under an attack of norm 1\.0000000001.*norm=1 "
    ):
        tied.hessian  # noqa: B018


def scaled(kind, x, y):
    """A problem with inputs in units of x and labels (weights, for the population) in units of y; its unscaled laws."""
    X, labels = data()
    if kind == "least squares":
        return AdversarialLeastSquares(X * x, labels * y, 0.02 * x, 3, l2=0.01 * x * x), (y / x, (x, x), (x, y, x, y))
    if kind == "logistic":
        return AdversarialLogistic(X * x, np.sign(labels), 0.1 * x, l2=0.1 * x * x), (1 / x, (x, x), (x, x))
    if kind == "unhinged":
        problem = RobustUnhinged(X * x, np.sign(labels), 0.1 * x, l2=0.5 * x / y)
        return problem, (y, (x, 1 / y), (x, x))
    weights = np.array([1.0, -0.5, 0.4]) * y
    return GaussianAdversarialRegression(A * x * x, weights, 0.3 * x * y, 0.1 * x), (y, (x, x), (x, x, y, x, x, y))


def in_units(value, units):
    for unit in units:  # one by one, since their product may not be a double
        value = value / unit
    return value


KINDS = ["least squares", "logistic", "unhinged", "population"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", [1e-150, 1e-30, 1e70, 1e150])
@pytest.mark.parametrize("y", [1e-150, 1.0, 1e30])
def test_every_size_is_right_or_refused_as_such(kind, x, y):
    base, _ = scaled(kind, 1.0, 1.0)
    try:
        problem, (w, h, c) = scaled(kind, x, y)
        assert problem.optimum / w == pytest.approx(base.optimum, rel=1e-6)
        assert in_units(problem.hessian, h) == pytest.approx(base.hessian, rel=1e-6)
        assert in_units(problem.noise(2), c) == pytest.approx(base.noise(2), rel=1e-5, abs=1e-9)
    except ScaleError:
        sizes = [abs(np.log10(x)), abs(np.log10(y)), abs(np.log10(x) + np.log10(y)), abs(np.log10(x) - np.log10(y))]
        assert max(sizes) > 65, "nothing here is beyond double precision"
