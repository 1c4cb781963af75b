"""Every public name of numerics, how often it is drawn, and what makes its cases.  A new one is a line."""

from __future__ import annotations

import inspect

import numpy as np
from mpmath import mp, mpf

from sgdcov import numerics as nm
from sgdcov import theory

from . import calls, calls_problems, calls_small, calls_sources
from . import oracle as o
from . import oracle_data as data
from .calls import optimizer, size_of
from .judge import EPS, Case, faithful, near, require


def _damped(function, name):
    def maker(draw):
        d = draw.dim()
        h = 10.0 ** -draw.rng.uniform(0, draw.pick(1, 10), d)
        a = draw.rotated(h) if draw.chance(0.5) else np.diag(h)
        damping = draw.pick(0.0, 0.1, 1e-6)
        mp.dps = 80
        case = Case(function, {name: a, "damping": damping})
        whole = o.add(o.matrix(a), o.eye(d), o.exact(damping))
        right = o.solve(whole, o.eye(d))
        spread = float(size_of(whole) * size_of(right))
        case.judge = lambda r: near(r, right, 1e-15 * (10 + d * spread))
        return case

    return maker


def _inverse_root(function):
    def maker(draw):
        v = 10.0 ** draw.rng.uniform(-20, 20, draw.dim())
        v[0] = draw.pick(v[0], 0.0)
        eps = draw.pick(1e-8, 0.0, 1.0)
        case = Case(function, {"second_moment": v, "eps": eps})
        if v[0] == 0 and eps == 0:
            case.answer = False
            return case
        mp.dps = 60
        right = [1 / (mp.sqrt(mpf(float(x))) + o.exact(eps)) for x in v]

        def judge(result):
            for got, x in zip(result, right, strict=True):
                near(got, x, 4 * EPS)

        case.judge = judge
        return case

    return maker


def langevin_noise(draw):
    spec, d, beta = draw.spec(), draw.dim(), draw.log(-6, 6)
    case = Case(nm.langevin_noise, {"optimizer": optimizer(spec), "dim": d, "inverse_temperature": beta})
    mp.dps = 60
    case.judge = lambda r: near(r, o.scaled(o.eye(d), 2 / (o.exact(beta) * spec["lr"])), 4 * EPS)
    return case


def epoch_noise_class(draw):
    d = draw.dim()
    noise, batches = draw.noise(d), int(draw.pick(2, 3, 10, 10**6))
    case = Case(nm.EpochNoise, {"noise": noise, "batches_per_epoch": batches}, answer=True)

    def judge(source):
        require(source.sums_to_zero and source.correlation * (batches - 1) == -1, "correlation")
        faithful(source, np.asarray(source.noise))

    case.judge = judge
    return case


def epoch_noise(draw):
    X, y = draw.rng.normal(size=(6, 2)), draw.rng.normal(size=6)
    size = int(draw.pick(1, 2, 3))
    problem = nm.LeastSquares(X, y)
    case = Case(nm.epoch_noise, {"problem": problem, "batch_size": size}, answer=True)

    def judge(source):
        mp.dps = 60
        hessians, slopes = data.examples_of(X, y, 0.0)
        best = data.minimiser(data.mean(hessians), data.mean(slopes))
        gradients = [[data.dot(row, best) + r for row, r in zip(h, s, strict=True)]
                     for h, s in zip(hessians, slopes, strict=True)]  # fmt: skip
        right = data.covariance_of(gradients, data.factor(size, 6, False))
        near(source.noise, right, 1e-9 * float(size_of(o.matrix([y])) ** 2 / size_of(right) + 1))
        require(source.batches_per_epoch == 6 // size, "batches")

    case.judge = judge
    return case


def one_gradient_form(draw):
    """SAM as plain SGD on the batches: each of its examples is a batch, with the curvature that a step of SAM sees."""
    mp.dps = 60
    n, d = int(draw.pick(2, 3)), int(draw.pick(1, 2))
    X, y = draw.rng.normal(size=(n, d)), draw.rng.normal(size=n)
    spec = draw.spec("sam", ema=False)
    spec = o.Spec("sam", (("lr", 0.05), ("rho", float(draw.pick(0.0, 0.1, 0.5)))))
    size, replacement = draw.batch(min(n, 2))
    noise = nm.MinibatchNoise(nm.LeastSquares(X, y), size, replacement)
    case = Case(nm.one_gradient_form, {"optimizer": optimizer(spec), "noise": noise}, answer=True)
    moments = data.Moments(spec, data.drawn(*data.examples_of(X, y, 0.0), size, replacement))

    def judge(result):
        plain, batches = result
        step, push = data.mean(moments.matrices, moments.chances), data.mean(moments.pushes, moments.chances)
        lr = o.exact(plain.values["lr"])
        near(batches.hessian, o.scaled(o.add(o.eye(d), step, -1), 1 / lr), 1e-12, "hessian")
        w = np.zeros(d)
        off = size_of([[a + lr * mpf(float(b)) for a, b in zip(push, batches.problem.gradient(w), strict=True)]])
        require(off <= 1e-12 * (1 + size_of([push])), "gradient")

    case.judge = judge
    return case


def adaptive_covariance(draw):
    d = int(draw.pick(1, 2))
    g = draw.rng.normal(size=(d, d))
    hessian, noise = draw.rotated(10.0 ** draw.rng.uniform(-1, 1, d)), g @ g.T + 0.1 * np.eye(d)
    noise, eps = (noise + noise.T) / 2, draw.pick(1e-8, 0.0, 0.1)
    spec = o.Spec(*draw.pick(("sgd", (("lr", 0.01),)), ("heavy_ball", (("lr", 0.01), ("momentum", 0.9)))))
    case = Case(nm.adaptive_covariance, {"optimizer": optimizer(spec), "hessian": hessian, "noise": noise, "eps": eps})
    mp.dps = 60

    def judge(result):
        v = [mpf(float(x)) for x in result.second_moment]
        p = [float(1 / (mp.sqrt(x) + o.exact(eps))) for x in v]
        right = o.stationary(spec, o.Plain.of(hessian, noise, p)).value
        near(result.value, right, 1e-9)
        moved = o.congruent(o.matrix(hessian), right)
        for k in range(d):
            require(abs((moved[k][k] + mpf(float(noise[k, k]))) / v[k] - 1) < 1e-8, f"second moment {k}")

    case.judge = judge
    return case


def kink_corrected_covariance(draw):
    """Consistent: the law is that of the curvature and noise it reports; at radius 0 that of least squares."""
    mp.dps = 60
    n, d = int(draw.pick(3, 5)), int(draw.pick(1, 2))
    X, y, radius = draw.rng.normal(size=(n, d)), draw.rng.normal(size=n), draw.pick(0.0, 0.05, 0.2)
    problem = nm.AdversarialLeastSquares(X, y, radius, l2=draw.pick(0.0, 0.1))
    spec = o.Spec("sgd", (("lr", float(0.1 / np.max(np.sum(X**2, axis=1)))),))
    case = Case(nm.kink_corrected_covariance, {"optimizer": optimizer(spec), "problem": problem, "batch_size": 1})

    def judge(result):
        plain = o.Plain.of(result.hessian, result.noise)
        if min(plain.h) > 1e-3 * max(plain.h):
            near(result.value, o.stationary(spec, plain).value, 1e-8)
        if not radius:
            near(result.hessian, o.matrix(nm.LeastSquares(X, y, problem.l2).hessian), 1e-10, "hessian")

    case.judge = judge
    return case


def radius_path(draw):
    g = draw.rng.normal(size=(2, 2))
    A, w0 = g @ g.T + 0.2 * np.eye(2), draw.rng.normal(size=2)
    radii, lr = [0.0, float(draw.rng.uniform(0.01, 0.3))], 0.05 / float(np.trace(A))
    spec = o.Spec("sgd", (("lr", lr),))
    case = Case(
        nm.radius_path,
        {"problem_at": lambda r: nm.GaussianAdversarialRegression(A, w0, 1.0, r), "radii": radii,
         "optimizer": optimizer(spec), "batch_size": int(draw.pick(1, 4))},
        free=("problem_at",), answer=True,
    )  # fmt: skip
    mp.dps = 60

    def judge(path):
        for k, radius in enumerate(radii):
            problem = nm.GaussianAdversarialRegression(A, w0, 1.0, radius)
            if path.laws[k] is None:
                continue
            noise = problem.noise(case.arguments["batch_size"])
            right = o.stationary(spec, o.Plain.of(problem.hessian, noise)).value
            near(path.spread[k], sum(right[i][i] for i in range(2)), 1e-9, "spread")
            h = o.matrix(problem.hessian)
            risk = sum(h[i][j] * right[i][j] for i in range(2) for j in range(2)) / 2
            near(path.excess_risk[k], risk, 1e-9, "excess_risk")

    case.judge = judge
    return case


def random_features(draw):
    k, d, seed = int(draw.pick(1, 5, 50)), int(draw.pick(1, 3)), int(draw.rng.integers(100))
    case = Case(nm.random_features, {"num_features": k, "input_dim": d, "rng": seed}, answer=True)

    def judge(features):
        rows = features.first_layer
        require(rows.shape == (k, d) and np.allclose(np.linalg.norm(rows, axis=1), 1, rtol=8 * EPS, atol=0), "rows")
        faithful(features, rows)

    case.judge = judge
    return case


def random_features_class(draw):
    k, d = int(draw.pick(1, 3)), int(draw.pick(1, 2))
    layer, x, w = draw.rng.normal(size=(k, d)), draw.rng.normal(size=d), draw.rng.normal(size=k)
    kind = draw.pick("relu", "tanh", "linear")
    case = Case(nm.RandomFeatures, {"first_layer": layer, "activation": kind}, answer=True)
    mp.dps = 60

    def outputs(v):
        z = [data.dot(row, v) for row in o.matrix(layer)]
        return [(max(a, mpf(0)) if kind == "relu" else mp.tanh(a) if kind == "tanh" else a) / mp.sqrt(k) for a in z]

    def judge(features):
        right = outputs(o.vector(x))
        room = 8 * d * EPS * (float(np.linalg.norm(layer) * np.linalg.norm(x)) + 1)
        require(
            size_of([[a - mpf(float(b)) for a, b in zip(right, features([x])[0], strict=True)]]) <= room, "features"
        )
        slope = data.gradient(lambda v: data.dot(o.vector(w), outputs(v)), o.vector(x))
        got, scale = float(features.input_reach([x], w)[0]), float(np.linalg.norm(layer) * np.linalg.norm(w))
        require(abs(mpf(got) - size_of([slope])) <= 1e-12 * scale, "input_reach")

    case.judge = judge
    return case


def phase(draw):
    steps, lr = int(draw.pick(1, 5, 10**9)), draw.log(-8, 0)
    case = Case(nm.Phase, {"steps": steps, "lr": lr}, answer=True, free=("lr",))
    case.judge = lambda p: require(p.steps == steps and p.values["lr"] == lr, "phase")
    return case


def schedule(draw):
    phases = [nm.Phase(int(n), lr=0.1) for n in draw.rng.integers(1, 50, size=3)]
    case = Case(nm.Schedule, {"phases": phases}, answer=True)
    case.judge = lambda s: require(s.steps == sum(p.steps for p in phases) and s.ends[-1] == s.steps, "steps")
    return case


def made(by, get=lambda r: r):
    """A result type: made by a call and asked to be what every result is, kept from writing and fit to be pickled."""

    def maker(draw):
        case = by(draw)
        inner = case.judge

        def judge(result):
            if inner is not None:
                inner(result)
            part = get(result)
            faithful(part, np.asarray(part.value if hasattr(part, "value") else 0.0))

        case.judge = judge
        case.fixed = True
        return case

    return maker


#: name -> (weight, maker).
CALLS = {
    "stationary_covariance": (14, calls.stationary_covariance),
    "transient_covariance": (6, calls.transient_covariance),
    "trajectory": (3, calls.trajectory),
    "periodic_covariance": (3, calls.periodic_covariance),
    "autocovariance": (3, calls.autocovariance),
    "average_covariance": (3, calls.average_covariance),
    "autocorrelation_time": (2, calls_small.autocorrelation_time),
    "stationary_mean": (3, calls_small.stationary_mean),
    "transient_mean": (3, calls_small.transient_mean),
    "pair_covariance": (3, calls_small.pair_covariance),
    "max_learning_rate": (2, calls_small.max_learning_rate),
    "spectral_radius": (2, calls_small.spectral_radius),
    "spectral_gap": (2, calls_small.spectral_gap),
    "crossover_curvature": (1, calls_small.crossover_curvature),
    "solve_stein": (6, calls_small.solve_stein),
    "Quadratic": (2, calls_problems.quadratic),
    "LeastSquares": (4, calls_problems.least_squares),
    "QuadraticExamples": (2, calls_problems.quadratic_examples),
    "VectorLeastSquares": (1, calls_problems.vector_least_squares),
    "AdversarialLeastSquares": (2, calls_problems.adversarial_least_squares),
    "AdversarialLogistic": (2, calls_problems.adversarial_logistic),
    "RobustUnhinged": (1, calls_problems.robust_unhinged),
    "GaussianAdversarialRegression": (1, calls_problems.gaussian_adversarial),
    "MinibatchNoise": (2, calls_sources.minibatch_noise),
    "GaussianMinibatchNoise": (1, calls_sources.gaussian_minibatch_noise),
    "VectorMinibatchNoise": (1, calls_sources.vector_minibatch_noise),
    "DropoutNoise": (1, calls_sources.dropout_noise),
    "InputNoise": (1, calls_sources.input_noise),
    "EpochNoise": (1, epoch_noise_class),
    "epoch_noise": (1, epoch_noise),
    "mean_square_stability": (3, calls_sources.mean_square_stability),
    "moment_growth": (1, calls_sources.moment_growth),
    "tail_index": (1, calls_sources.tail_index),
    "reshuffling_law": (1, calls_sources.reshuffling_law),
    "one_gradient_form": (1, one_gradient_form),
    "adaptive_covariance": (1, adaptive_covariance),
    "kink_corrected_covariance": (1, kink_corrected_covariance),
    "radius_path": (0.5, radius_path),
    "random_features": (1, random_features),
    "RandomFeatures": (1, random_features_class),
    "damped_newton": (1, _damped(nm.damped_newton, "hessian")),
    "natural_gradient": (1, _damped(nm.natural_gradient, "fisher")),
    "adam": (1, _inverse_root(nm.adam)),
    "rmsprop": (1, _inverse_root(nm.rmsprop)),
    "langevin_noise": (1, langevin_noise),
    "Phase": (0.5, phase),
    "Schedule": (0.5, schedule),
    # Results: never made by a caller, so nothing but what makes them can go wrong.
    "StationaryCovariance": (3, made(calls_sources.minibatch_law)),
    "EpochCovariance": (2, made(calls.epoch_covariance)),
    "TransientCovariance": (2, made(calls_sources.minibatch_transient)),
    "Trajectory": (0.5, made(calls.trajectory)),
    "PeriodicCovariance": (0.5, made(calls.periodic_covariance)),
    "SteinSolution": (0.5, made(calls_small.solve_stein)),
    "MeanSquareStability": (0.5, made(calls_sources.mean_square_stability)),
    "MomentGrowth": (0.5, made(calls_sources.moment_growth)),
    "TailIndex": (0.5, made(calls_sources.tail_index)),
    "ReshufflingLaw": (0.5, made(calls_sources.reshuffling_law)),
    "AdaptiveCovariance": (0.5, made(adaptive_covariance)),
    "KinkCorrectedCovariance": (0.5, made(kink_corrected_covariance)),
    "RadiusPath": (0.25, made(radius_path)),
    "Certificate": (0.5, made(calls_problems.adversarial_logistic, lambda p: p.certificate)),
    "Kinks": (0.5, made(calls_problems.adversarial_least_squares, lambda p: p.kinks)),
    "LeavingProbability": (
        0.5, made(calls_problems.adversarial_least_squares, lambda p: p.leaving_probability(np.eye(p.dim) * 0.01)),
    ),
}  # fmt: skip

#: The abstract base of the sources: not called, but subclassed.
ABSTRACT = {"GradientNoise"}


def missing():
    """Public callables of numerics that the table does not know, and names of it that are gone."""
    public = {name for name in nm.__all__ if callable(getattr(nm, name)) and not inspect.ismodule(getattr(nm, name))}
    return (public - ABSTRACT) ^ set(CALLS)


__all__ = ["CALLS", "missing", "theory"]
