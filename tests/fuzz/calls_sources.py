"""Makers of cases for gradient sources, whose noise depends on the weights, and for what is asked of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
from mpmath import mp, mpf

from sgdcov import numerics as nm

from . import oracle as o
from . import oracle_data as data
from .calls import optimizer, size_of
from .judge import Case, faithful, law, near, require


def source(draw, kinds=("minibatch", "gaussian", "dropout", "input", "vector", "examples"), most=2):
    """A gradient source and its atoms."""
    kind = draw.pick(*kinds)
    d, n = int(draw.pick(1, 1, 2)), int(draw.pick(1, 2, 3))
    if kind == "gaussian":
        d = 1
        A, sigma, centre = np.diag(draw.rng.uniform(0.2, 2, d)), draw.pick(0.0, 1.0), draw.rng.normal(size=d)
        size = int(draw.pick(1, 1, 2))
        given = {"covariance": A, "label_noise": sigma, "batch_size": size, "optimum": centre}
        return nm.GaussianMinibatchNoise, given, data.gaussian_atoms(A, sigma, centre, size)
    X, y, l2 = draw.rng.normal(size=(n, d)), draw.rng.normal(size=n), draw.pick(0.0, 0.2)
    if draw.chance(0.15):
        X[:] = X[0]
    size, replacement = draw.batch(min(n, most))
    batches = {"batch_size": size, "replacement": replacement}
    if kind == "minibatch":
        weights = draw.weights(n)
        weights = weights if weights is not None and weights.any() else None
        atoms = data.drawn(*data.examples_of(X, y, l2, weights), size, replacement)
        return nm.MinibatchNoise, {"problem": nm.LeastSquares(X, y, l2, weights), **batches}, atoms
    if kind == "examples":
        g = draw.rng.normal(size=(n, d, d))
        hessians, slopes = (g + g.transpose(0, 2, 1)) / 2 + 1.5 * np.eye(d), draw.rng.normal(size=(n, d))
        if np.linalg.eigvalsh(hessians.mean(axis=0))[0] > 0.05:
            atoms = data.drawn([o.matrix(h) for h in hessians], [o.vector(s) for s in slopes], size, replacement)
            return nm.MinibatchNoise, {"problem": nm.QuadraticExamples(hessians, slopes), **batches}, atoms
        return source(draw, ("minibatch",))
    if kind == "vector":
        X3, y2 = draw.rng.normal(size=(n, 2, d)), draw.rng.normal(size=(n, 2))
        each = [data.examples_of(X3[k], y2[k], 0.0) for k in range(n)]
        decay = o.scaled(o.eye(d), o.exact(l2))
        hs = [o.add(o.add(h[0], h[1]), decay) for h, _ in each]
        rs = [[a + b for a, b in zip(r[0], r[1], strict=True)] for _, r in each]
        problem = nm.VectorLeastSquares(X3, y2, l2)
        return nm.VectorMinibatchNoise, {"problem": problem, **batches}, data.drawn(hs, rs, size, replacement)
    size = batches["batch_size"] = 1
    if kind == "dropout":
        rate = draw.pick(0.0, 0.2, 0.5)
        q = o.exact(rate)

        def masks(v):
            return [(q, mpf(0)), (1 - q, v / (1 - q))] if q else [(mpf(1), v)]

        given = {"rate": rate}
    else:
        std = draw.pick(0.0, 0.5, 1.0)
        s = o.exact(std) * mp.sqrt(3)

        def masks(v):
            return [(mpf(2) / 3, v), (mpf(1) / 6, v + s), (mpf(1) / 6, v - s)] if s else [(mpf(1), v)]

        given = {"std": std}
    atoms = data.corrupted_atoms(data.corrupted(X, y, l2, masks), size, replacement)
    make = nm.DropoutNoise if kind == "dropout" else nm.InputNoise
    return make, {"problem": nm.LeastSquares(X, y, l2), **given, **batches}, atoms


def _source_of(*kinds):
    def maker(draw):
        mp.dps = 70
        make, arguments, atoms = source(draw, kinds)
        case = Case(make, arguments, answer=True)
        d = len(atoms[0][2])
        w = draw.rng.normal(size=d)
        g = draw.rng.normal(size=(d, d))
        spread = (g @ g.T + (g @ g.T).T) / 2

        def judge(noise):
            h, r = data.mean([m for _, m, _ in atoms], [c for c, _, _ in atoms]), data.mean(
                [s for _, _, s in atoms], [c for c, _, _ in atoms])  # fmt: skip
            near(noise.hessian, h, 1e-12, "hessian")
            spectrum = np.linalg.eigvalsh(noise.hessian)
            if spectrum[0] > 1e-4 * spectrum[-1]:
                best = data.minimiser(h, r)
                off = size_of([[a - mpf(float(b)) for a, b in zip(best, noise.optimum, strict=True)]])
                require(off <= 1e-9 * (1 + size_of([best])), lambda: f"optimum {noise.optimum} right {best}")
            for s in (None, spread):
                right = data.noise_at(atoms, o.vector(w), None if s is None else o.matrix(s))
                scale = 1 + sum(size_of(m) for _, m, _ in atoms) ** 2 * (1 + size_of([o.vector(w)]) ** 2)
                off = size_of(o.add(right, o.matrix(noise.covariance(mean=w, spread=s)), -1))
                require(off <= 1e-12 * scale, lambda s=s, right=right: f"covariance at {w}, {s}: right {right}")
            faithful(noise, np.asarray(noise.hessian))

        case.judge = judge
        return case

    return maker


minibatch_noise = _source_of("minibatch", "examples")
gaussian_minibatch_noise = _source_of("gaussian")
dropout_noise = _source_of("dropout")
input_noise = _source_of("input")
vector_minibatch_noise = _source_of("vector")


def _minibatch_problem(draw, ema=True):
    """A source, a rule whose state with it stays small, and the moments of every batch."""
    mp.dps = 80
    make, arguments, atoms = source(draw)
    d = len(atoms[0][2])
    top = max(float(size_of(h)) for _, h, _ in atoms) or 1.0
    names = ("sgd", "heavy_ball", "nesterov", "polyak", "qhm", "sgdw") if d == 1 and len(atoms) < 20 else ("sgd",)
    base = draw.spec(*names, ema=ema and d == 1)
    if base.size * d > 3:
        base = o.Spec("sgd", ())
    rest = tuple((k, v) for k, v in base.values if k not in ("lr", "weight_decay", "rho"))
    lr = draw.rng.uniform(0.01, draw.pick(1.0, 1.0, 2.5)) / top
    if base.name == "sgdw":
        rest = (*rest, ("weight_decay", draw.pick(0.0, 0.1)))
    spec = o.Spec(base.name, (("lr", float(lr)), *rest), base.ema)
    return make(**arguments), atoms, spec, data.Moments(spec, atoms)


def minibatch_law(draw):
    noise, atoms, spec, moments = _minibatch_problem(draw)
    case = Case(nm.stationary_covariance, {"optimizer": optimizer(spec), "hessian": noise.hessian, "noise": noise})
    radius = moments.radius()
    flat = np.linalg.eigvalsh(noise.hessian)[0] < 1e-6 * np.linalg.eigvalsh(noise.hessian)[-1]
    if radius > 1 + 1e-7 and not flat:
        case.answer = False
        case.judge = lambda r: require(False, f"a law although second moments grow by {radius}")
        return case
    if flat or radius > 1 - 1e-7:
        return case
    centre, whole = moments.stationary()
    right = moments.block(whole)
    if radius < 1 - 1e-3:
        case.answer = True

    def judge(result):
        error = getattr(result, "error", None)
        # Rounding of the gradients at the optimum is relative to the largest of them.
        scale = max(size_of([[data.dot(row, centre[: moments.d]) for row in h]]) + size_of([r]) for _, h, r in atoms)
        off = 1e-12 / (1 - radius) * (1 + float(spec["lr"] ** 2 * scale**2 / (size_of(right) or mp.inf)))
        if size_of(right) > (spec["lr"] * scale) ** 2 * mpf(10) ** -20:
            law(case, result, right, off, hessian=noise.hessian)
        elif error is None:
            require(float(np.linalg.norm(result.value)) <= 1e-20 * float(spec["lr"] * scale) ** 2, "should be 0")

    case.judge = judge
    return case


def minibatch_transient(draw):
    noise, _, spec, moments = _minibatch_problem(draw, ema=False)
    steps, d = int(draw.pick(0, 1, 2, 5)), moments.d
    w = draw.rng.normal(size=d)
    case = Case(nm.transient_covariance, {"optimizer": optimizer(spec), "hessian": noise.hessian, "noise": noise,
                                          "steps": steps, "mean": w}, answer=True)  # fmt: skip
    rest = [r * x for r in spec.rest for x in o.vector(w)]
    _, whole = moments.after(steps, rest, [[mpf(0)] * moments.n for _ in range(moments.n)])
    right = moments.block(whole)

    def judge(result):
        top = max(size_of(a) for a in moments.matrices) ** 2 + 1
        room = 1e-12 * top**steps * (1 + size_of([rest]) ** 2 + max(size_of([p]) for p in moments.pushes) ** 2)
        off = size_of(o.add(right, o.matrix(result.value), -1))
        require(off <= room, lambda: f"{result.value} right {right}")

    case.judge = judge
    return case


def mean_square_stability(draw):
    noise, atoms, spec, moments = _minibatch_problem(draw, ema=False)
    case = Case(nm.mean_square_stability, {"optimizer": optimizer(spec), "noise": noise}, answer=True)
    spectrum = np.linalg.eigvalsh(noise.hessian)

    def judge(result):
        if spectrum[0] < 1e-6 * spectrum[-1]:
            if result.stable:
                require(moments.radius() < 1 + 1e-9, "called stable")
            repr(result)
            return
        radius = moments.radius()
        require(abs(result.spectral_radius - radius) <= 1e-6 * radius, f"{result.spectral_radius} right {radius}")
        if abs(radius - 1) > 1e-7:
            require(result.stable == (radius < 1), f"stable={result.stable} at {radius}")
            require((result.feedback_radius < 1) == (radius < 1), f"feedback_radius {result.feedback_radius}")
        edge = result.largest_lr
        if 1e-300 < edge < 1e300:
            for factor in (1 - 1e-5, 1 + 1e-5):
                values = tuple((k, edge * factor if k == "lr" else v) for k, v in spec.values)
                at = data.Moments(o.Spec(spec.name, values, spec.ema), atoms).radius()
                require((at < 1) == (factor < 1), f"largest_lr {edge}: radius {at} at {factor} of it")
            if spec.name == "sgd" and not spec.forgets:
                require(
                    abs(result.mulayoff_michaeli / edge - 1) < 1e-6, f"mulayoff_michaeli {result.mulayoff_michaeli}"
                )

    case.judge = judge
    return case


def _one_dimension(draw):
    mp.dps = 60
    n = int(draw.pick(2, 3))
    X, y = draw.rng.normal(size=(n, 1)), draw.rng.normal(size=n)
    size, replacement = draw.batch(2)
    noise = nm.MinibatchNoise(nm.LeastSquares(X, y), size, replacement)
    atoms = data.drawn(*data.examples_of(X, y, 0.0), size, replacement)
    lr = float(draw.rng.uniform(0.05, 2.5) / max(h[0][0] for _, h, _ in atoms))
    factors = [(c, abs(1 - o.exact(lr) * h[0][0])) for c, h, _ in atoms]
    return noise, o.Spec("sgd", (("lr", lr),)), factors


def moment_growth(draw):
    noise, spec, factors = _one_dimension(draw)
    order = draw.pick(1.0, 2.0, 3.0, 4, 6.5)
    case = Case(nm.moment_growth, {"optimizer": optimizer(spec), "noise": noise, "order": order}, answer=None)
    right = sum(c * f ** o.exact(order) for c, f in factors)

    def judge(result):
        require(abs(mpf(result.value) - right) <= 1e-10 * right, f"{result.value} right {right}")
        if abs(right - 1) > 1e-9:
            require(result.verdict == ("exists" if right < 1 else "does not exist"), result.verdict)

    case.judge = judge
    return case


def tail_index(draw):
    noise, spec, factors = _one_dimension(draw)
    case = Case(nm.tail_index, {"optimizer": optimizer(spec), "noise": noise}, answer=None)

    def judge(result):
        if max(f for _, f in factors) <= 1:
            require(result.value == math.inf, f"{result.value} where nothing stretches")
        elif 0 < result.value < 64:
            at = sum(c * f ** mpf(result.value) for c, f in factors)
            slope = sum(c * f ** mpf(result.value) * mp.log(f) for c, f in factors if f)
            require(abs((at - 1) / slope) <= 1e-6 * result.value + result.error, f"k({result.value}) = {at}")

    case.judge = judge
    return case


def reshuffling_law(draw):
    mp.dps = 80
    n, d = int(draw.pick(2, 3)), 1
    X, y = draw.rng.normal(size=(n, d)), draw.rng.normal(size=n)
    spec = draw.spec("sgd", "heavy_ball", ema=False)
    lr = float(draw.rng.uniform(0.05, 0.5) / np.max(X**2))
    spec = o.Spec(
        spec.name, (("lr", lr), *((k, min(v, 0.9)) for k, v in spec.values if k in ("momentum", "dampening")))
    )
    position = draw.pick("average", *range(n + 1))
    problem = nm.LeastSquares(X, y)
    case = Case(nm.reshuffling_law, {"optimizer": optimizer(spec), "problem": problem, "batch_size": 1,
                                     "position": position}, answer=None)  # fmt: skip
    hessians, slopes = data.examples_of(X, y, 0.0)
    steps = [data.Moments(spec, [(mpf(1), h, r)]) for h, r in zip(hessians, slopes, strict=True)]

    def after(order, z):
        for k in order:
            a, p = steps[k].matrices[0], steps[k].pushes[0]
            z = ([[data.dot(row, [r[c] for r in z]) + (p[i] if c == 0 else 0) for c in range(len(z[0]))]
                  for i, row in enumerate(a)])  # fmt: skip
        return z

    orders = list(itertools.permutations(range(n)))
    m = spec.size
    # Column 0 carries the affine part, the others the matrix.
    epochs = [after(q, [[mpf(0)] + [mpf(int(i == j)) for j in range(m)] for i in range(m)]) for q in orders]
    whole = data.Moments.__new__(data.Moments)
    whole.spec, whole.d, whole.n = spec, 1, m
    whole.chances = [mpf(1) / len(orders)] * len(orders)
    whole.matrices, whole.pushes = [[row[1:] for row in e] for e in epochs], [[row[0] for row in e] for e in epochs]
    whole.added = [[mpf(0)] * m for _ in range(m)]
    if whole.radius() > 1 - 1e-6:
        case.judge = lambda r: require(whole.radius() < 1 + 1e-6, "a law although second moments grow")
        return case
    centre, covariance = whole.stationary()
    firsts = []
    for count in range(n):
        parts = [after(q[:count], [[mpf(0)] + [mpf(int(i == j)) for j in range(m)] for i in range(m)]) for q in orders]
        z = [([data.dot(row[1:], centre) + row[0] for row in e], o.congruent([row[1:] for row in e], covariance))
             for e in parts]  # fmt: skip
        middle = data.mean([u for u, _ in z])
        second = data.mean([o.add(c, o.outer(u, u)) for u, c in z])
        firsts.append((middle, second))
    if position == "average":
        middle, second = data.mean([a for a, _ in firsts]), data.mean([b for _, b in firsts])
    else:
        middle, second = firsts[position % n]
    right = o.add(second, o.outer(middle, middle), -1)
    best = data.minimiser(data.mean(hessians), data.mean(slopes))

    def judge(law_):
        allowed = 1e-9
        scale = size_of(second) or mpf(1)
        require(abs(mpf(float(law_.value[0, 0])) - right[0][0]) <= allowed * scale, f"{law_.value} right {right}")
        require(
            abs(mpf(float(law_.mean[0])) - middle[0]) <= allowed * mp.sqrt(scale), f"mean {law_.mean} right {middle}"
        )
        gap = middle[0] - best[0]
        require(abs(mpf(float(law_.bias[0])) - gap) <= allowed * (abs(best[0]) + mp.sqrt(scale)), "bias")
        risk = data.mean(hessians)[0][0] / 2 * (right[0][0] + gap**2)
        require(abs(mpf(law_.excess_risk) - risk) <= allowed * (risk + scale), f"excess_risk {law_.excess_risk}")

    case.judge = judge
    return case
