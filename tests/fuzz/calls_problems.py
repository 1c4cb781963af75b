"""Makers of cases for problems, gradient sources and what is asked of them; see `table`."""

from __future__ import annotations

import numpy as np
from mpmath import mp, mpf

from sgdcov import numerics as nm

from . import oracle as o
from . import oracle_data as data
from .calls import size_of
from .judge import EPS, Case, near, require


def room(hessian, floor=1e-12):
    """What rounding does to a least-squares solution: the condition, of directions that are not exactly flat."""
    h, _ = o.directions(hessian)
    most = max(h)
    curved = [x for x in h if x > most * mpf(10) ** -50]
    return floor * float(min(mpf(10) ** 12, most / min(curved))) if curved else floor


def tame(*arrays):
    """Whether every number is of a size whose squares and products stay far from overflow and underflow."""
    return all(np.all((np.abs(a) < 1e60) & ((np.abs(a) > 1e-60) | (np.asarray(a) == 0))) for a in arrays)


def check_problem(problem, parts, w, allowed):
    """Loss, gradient and per-example gradients at a point, from every example's own loss."""
    point = o.vector(w)
    whole = data.total(parts)
    right = whole(point)
    if abs(right) > mpf(10) ** -300:
        near(float(problem.loss(w)), right, allowed, "loss")
    gradients = [data.gradient(f, point) for f in parts]
    scale = max(size_of([g]) for g in gradients)
    if scale < mpf(10) ** -290:
        return
    off = size_of(o.add([data.mean(gradients)], o.matrix([problem.gradient(w)]), -1))
    require(off <= allowed * scale, lambda: f"gradient off by {mp.nstr(off / scale, 3)}")
    if hasattr(problem, "per_example_gradients"):
        off = size_of(o.add(gradients, o.matrix(problem.per_example_gradients(w)), -1))
        require(off <= allowed * scale * len(parts), lambda: f"per_example_gradients off by {mp.nstr(off / scale, 3)}")


def check_least(whole, w, draw, allowed):
    """No other point is lower than a minimiser, up to rounding."""
    point, here = o.vector(w), whole(o.vector(w))
    for _ in range(4):
        step = draw.rng.normal(size=len(w)) * draw.log(-6, 0) * (float(np.linalg.norm(w)) or 1.0)
        there = whole([a + mpf(float(b)) for a, b in zip(point, step, strict=True)])
        require(here <= there + allowed * abs(here), f"{step} is lower than the optimum by {mp.nstr(here - there, 5)}")


def quadratic(draw):
    d = draw.dim()
    spec = draw.spec()
    hessian, optimum = draw.hessian(spec, d), draw.rng.normal(size=d)
    case = Case(nm.Quadratic, {"hessian": hessian, "noise": draw.noise(d), "optimum": optimum})
    w = draw.rng.normal(size=d)
    mp.dps = 80

    def judge(problem):
        gap = [mpf(float(a)) - mpf(float(b)) for a, b in zip(w, optimum, strict=True)]
        slope = [data.dot(row, gap) for row in o.matrix(hessian)]
        top = size_of(o.matrix(hessian))
        if 0 < top < mpf(10) ** 140 and top > mpf(10) ** -140:
            off = size_of(o.add([slope], o.matrix([problem.gradient(w)]), -1))
            require(off <= 8 * d * EPS * top * size_of([gap]), "gradient")
            off = abs(data.dot(slope, gap) / 2 - mpf(float(problem.loss(w))))
            require(off <= 8 * d * EPS * top * size_of([gap]) ** 2, "loss")

    case.judge = judge
    return case


def least_squares(draw):
    X, y = draw.data()
    n = len(X)
    l2, weights = draw.pick(0.0, 0.0, 0.3, 1e-8), draw.weights(n)
    case = Case(nm.LeastSquares, {"X": X, "y": y, "l2": l2, "sample_weight": weights})
    size, replacement = draw.batch(n)
    w = draw.rng.normal(size=X.shape[1])
    mp.dps = 110
    hessians, slopes = data.examples_of(X, y, l2, weights)
    case.judge = lambda problem: check_examples(problem, hessians, slopes, X, y, l2, weights, size, replacement, w)
    return case


def check_examples(problem, hessians, slopes, X, y, l2, weights, size, replacement, w):
    if not tame(X, y):
        return
    allowed = 1e-13
    h = data.mean(hessians)
    near(problem.hessian, h, 1e-14 * len(X) * 8, "hessian")
    if weights is None:
        check_problem(problem, data.losses("squares", X, y, 0.0, 2, l2, None), w, allowed * 10)
    best = data.minimiser(h, data.mean(slopes))
    loose = room(h)
    if loose < 1e-3 and size_of([best]):
        off = size_of([[a - mpf(float(b)) for a, b in zip(best, problem.optimum, strict=True)]])
        scale = size_of([best]) + size_of(o.matrix([y])) * float(np.linalg.norm(np.linalg.pinv(X)))
        require(off <= loose * scale, lambda: f"optimum {problem.optimum} right {best}")
    gradients = [[data.dot(row, best) + r for row, r in zip(m, s, strict=True)]
                 for m, s in zip(hessians, slopes, strict=True)]  # fmt: skip
    right = data.covariance_of(gradients, data.factor(size, len(X), replacement))
    scale = max(size_of([g]) for g in gradients) ** 2
    top = max(size_of([[m * abs(b) for m, b in zip(row, best, strict=True)] for row in h]) for h in hessians) ** 2
    off = size_of(o.add(right, o.matrix(problem.noise(size, replacement)), -1))
    require(off <= loose * (scale + top), lambda: f"noise {problem.noise(size, replacement)} right {right}")


def quadratic_examples(draw):
    n, d = int(draw.pick(1, 2, 3)), int(draw.pick(1, 2))
    g = draw.rng.normal(size=(n, d, d))
    hessians = g @ g.transpose(0, 2, 1)
    if draw.chance(0.3):
        hessians = (g + g.transpose(0, 2, 1)) / 2 + 3 * np.eye(d)
    slopes, weights = draw.rng.normal(size=(n, d)), draw.weights(n)
    case = Case(nm.QuadraticExamples, {"hessians": hessians, "gradients": slopes, "sample_weight": weights})
    w, (size, replacement) = draw.rng.normal(size=d), draw.batch(n)
    mp.dps = 90
    a = [mpf(1)] * n if weights is None else o.vector(weights)
    hs = [o.scaled(o.matrix(h), c) for h, c in zip(hessians, a, strict=True)]
    rs = [[c * x for x in o.vector(r)] for r, c in zip(slopes, a, strict=True)]

    def judge(problem):
        near(problem.hessian, data.mean(hs), 1e-14 * 8, "hessian")
        parts = [lambda v, h=h, r=r: data.dot(v, [data.dot(row, v) for row in h]) / 2 + data.dot(r, v)
                 for h, r in zip(hs, rs, strict=True)]  # fmt: skip
        point = o.vector(w)
        off = abs(data.total(parts)(point) - mpf(float(problem.loss(w))))
        require(off <= 1e-12 * (1 + sum(size_of(h) for h in hs)) * (1 + size_of([point])) ** 2, "loss")
        spectrum = np.linalg.eigvalsh(problem.hessian)
        if spectrum[0] > 1e-3 * spectrum[-1]:
            best = data.minimiser(data.mean(hs), data.mean(rs))
            near(problem.optimum, best, 1e-10, "optimum")
            grads = [
                [data.dot(row, best) + x for row, x in zip(h, r, strict=True)] for h, r in zip(hs, rs, strict=True)
            ]
            right = data.covariance_of(grads, data.factor(size, n, replacement))
            off = size_of(o.add(right, o.matrix(problem.noise(size, replacement)), -1))
            top = max(size_of(h) for h in hs) * size_of([best]) + max(size_of([r]) for r in rs)
            require(off <= 1e-10 * top**2, "noise")

    case.judge = judge
    return case


def vector_least_squares(draw):
    n, k, d = int(draw.pick(1, 2, 3)), int(draw.pick(1, 2)), int(draw.pick(1, 2))
    X, y, l2 = draw.rng.normal(size=(n, k, d)), draw.rng.normal(size=(n, k)), draw.pick(0.0, 0.3)
    case = Case(nm.VectorLeastSquares, {"X": X, "y": y, "l2": l2})
    w, (size, replacement) = draw.rng.normal(size=d), draw.batch(n)
    mp.dps = 90

    def judge(problem):
        def one(i):
            rows = [data.losses("squares", [X[i, j]], [y[i, j]], 0.0, 2, 0.0, None)[0] for j in range(k)]
            return lambda v: sum(f(v) for f in rows) + o.exact(l2) / 2 * data.dot(v, v)

        parts = [one(i) for i in range(n)]
        check_problem(problem, parts, w, 1e-12)
        whole = data.total(parts)
        near(problem.hessian, data.hessian(whole, o.vector(w)), 1e-12, "hessian")
        check_least(whole, problem.optimum, draw, 1e-12)
        if np.linalg.eigvalsh(problem.hessian)[0] > 1e-3:
            grads = [data.gradient(f, o.vector(problem.optimum)) for f in parts]
            right = data.covariance_of(grads, data.factor(size, n, replacement))
            off = size_of(o.add(right, o.matrix(problem.noise(size, replacement)), -1))
            top = float(np.linalg.norm(X) * (np.linalg.norm(X) * np.linalg.norm(problem.optimum) + np.linalg.norm(y)))
            require(off <= 1e-9 * top**2, "noise")

    case.judge = judge
    return case


def _robust(kind, make):
    def maker(draw):
        X, y = draw.data()
        n, d = X.shape
        if kind != "squares":
            y = np.where(y > 0, 1.0, -1.0)
        p = draw.pick(2, 2, np.inf, 1, 1.5, 3.0, 1.0001)
        if kind == "unhinged":
            p = 2
        radius = draw.pick(0.0, 0.1, 0.5, draw.log(-12, 3))
        l2 = draw.pick(0.1, 1.0, 1e-6) if kind == "unhinged" or draw.chance(0.4) else 0.0
        weights = draw.weights(n)
        arguments = {"X": X, "y": y, "radius": radius, "l2": l2, "sample_weight": weights}
        if kind != "unhinged":
            arguments["norm"] = p
        case = Case(make(), arguments)
        w, (size, replacement) = draw.rng.normal(size=d), draw.batch(n)
        mp.dps = 80

        def judge(problem):
            if not tame(X, y) or np.max(np.abs(X)) > 1e6 or np.max(np.abs(X)) < 1e-6:
                repr(problem.optimum)
                return
            parts = data.losses(kind, X, y, radius, p, l2, weights)
            check_problem(problem, parts, w, 1e-11)
            whole, best = data.total(parts), problem.optimum
            check_least(whole, best, draw, 1e-9)
            if not np.any(best) or (
                kind == "squares" and np.min(np.abs(X @ best - y)) < 1e-6 * (1 + np.max(np.abs(y)))
            ):
                return
            if (p in (1, np.inf) or p < 1.1) and (np.min(np.abs(best)) < 1e-6 or p < 1.1):
                return
            if p == 1 and d > 1 and np.min(np.diff(np.sort(np.abs(best)))) < 1e-6:
                return
            if p > 2 and np.min(np.abs(best)) < 1e-6:
                return  # the dual norm is not smooth enough there
            point = o.vector(best)
            right = data.hessian(whole, point)
            near(problem.hessian, right, 1e-7, "hessian")
            grads = [data.gradient(f, point) for f in parts]
            right = data.covariance_of(grads, data.factor(size, n, replacement))
            off = size_of(o.add(right, o.matrix(problem.noise(size, replacement)), -1))
            top = max(size_of([g]) for g in grads)
            # Where the rows are nearly collinear weights are huge, and residuals known to a rounding of their terms.
            sizes = np.linalg.norm(X, axis=1)
            share = np.ones(n) if weights is None else weights
            blur = np.max(share * sizes * (np.abs(X) @ np.abs(best) + np.abs(y)))
            blur *= (d + 1) * 2.0**-52
            require(off <= 1e-8 * (size_of(right) + top**2) + 2 * blur * top + blur**2, "noise")

        case.judge = judge
        return case

    return maker


adversarial_least_squares = _robust("squares", lambda: nm.AdversarialLeastSquares)
adversarial_logistic = _robust("logistic", lambda: nm.AdversarialLogistic)
robust_unhinged = _robust("unhinged", lambda: nm.RobustUnhinged)


def gaussian_adversarial(draw):
    d = int(draw.pick(1, 2, 3))
    g = draw.rng.normal(size=(d, d))
    A, w0, p = g @ g.T + 0.1 * np.eye(d), draw.rng.normal(size=d), draw.pick(2, np.inf, 1, 3.0)
    sigma, radius = draw.pick(0.5, 1.0, 1e-3), draw.pick(0.0, 0.1, 0.5, 3.0)
    case = Case(nm.GaussianAdversarialRegression,
                {"covariance": A, "weights": w0, "label_noise": sigma, "radius": radius, "norm": p})  # fmt: skip
    w = draw.rng.normal(size=d)
    mp.dps = 80

    def judge(problem):
        f = data.gaussian_loss(A, w0, sigma, radius, p)
        point = o.vector(w)
        near(float(problem.loss(w)), f(point), 1e-12, "loss")
        near(problem.gradient(w), data.gradient(f, point), 1e-10, "gradient")
        near(problem.hessian_at(w), data.hessian(f, point), 1e-9, "hessian_at")
        best = problem.optimum
        check_least(f, best, draw, 1e-9)
        if problem.kinks.smooth and np.min(np.abs(best)) > 1e-6:
            near(problem.hessian, data.hessian(f, o.vector(best)), 1e-7, "hessian")

    case.judge = judge
    return case
