"""Makers of cases for means, stability, kernels of pairs and the Stein equation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from mpmath import mp, mpf

from sgdcov import numerics as nm

from . import oracle as o
from .calls import level, optimizer, setup, size_of
from .judge import EPS, Case, near, require


def stationary_mean(draw):
    spec, hessian, _, _, plain = setup(draw)
    optimum = draw.rng.normal(size=len(hessian))
    slots = tuple(draw.pick(spec.slots, spec.slots[:1]))
    case = Case(nm.stationary_mean,
                {"optimizer": optimizer(spec), "hessian": hessian, "optimum": optimum, "slots": slots})  # fmt: skip
    blur = level(plain)
    if not all(spec.stable(h) or (h == 0 and not spec.forgets) for h in plain.h):
        case.answer = False if plain.diagonal else None
        case.judge = lambda r: require(not plain.diagonal, "an answer where the mean does not settle")
        return case
    if any(0 < abs(h) <= 100 * blur for h in plain.h):
        return case
    right = o.stationary_mean(spec, plain, optimum)
    flat = [x for p in range(len(slots)) for x in right[p]]

    def judge(result):
        spread = 1 + float(max(plain.h)) / float(min((h for h in plain.h if h > 0), default=1)) * 64 * EPS / 1e-13
        near(result, flat, 1e-13 if plain.diagonal else 1e-13 * spread)

    case.judge = judge
    return case


def transient_mean(draw):
    spec, hessian, _, _, plain = setup(draw, rotated=False)
    steps, start, optimum = draw.steps(), draw.rng.normal(size=len(hessian)), draw.rng.normal(size=len(hessian))
    case = Case(nm.transient_mean, {"optimizer": optimizer(spec), "hessian": hessian, "steps": steps, "start": start,
                                    "optimum": optimum})  # fmt: skip
    if steps * mp.log10(max(*(spec.radius(h) for h in plain.h), 1)) > 140:
        return case
    right = o.mean_after(spec, plain, start, optimum, steps)[0]
    ends = min([1 - dict(spec.values).get(k, 0.0) for k in ("momentum", "beta")] + [1 - (spec.ema or 0)])

    def judge(result):
        room = (1e-12 + 1e-15 / ends) * float(np.linalg.norm(start) + np.linalg.norm(optimum) + size_of([right]))
        off = size_of([[mpf(float(g)) - x for g, x in zip(result, right, strict=True)]])
        require(off <= room, lambda: f"mean off by {mp.nstr(off, 3)} of {room:.3g}")

    case.judge = judge
    return case


def autocorrelation_time(draw):
    spec, hessian, _, _, plain = setup(draw, rotated=False)
    case = Case(nm.autocorrelation_time, {"optimizer": optimizer(spec), "hessian": hessian})
    if not all(spec.stable(h) or (h == 0 and not spec.forgets) for h in plain.h):
        case.answer = False
        return case
    right = [o.autocorrelation_time(spec, h) for h in plain.h]

    def judge(result):
        for got, x in zip(result, right, strict=True):
            require(np.isinf(got) if x == mp.inf else abs(mpf(float(got)) - x) <= 1e-13 * x, f"{got} right {x}")

    case.judge = judge
    return case


def pair_covariance(draw):
    spec = draw.spec()
    h = np.clip(draw.sizes(spec, 2) / dict(spec.values)["lr"], 0, 1e300)
    o.enough_digits([spec], h)
    case = Case(nm.pair_covariance, {"optimizer": optimizer(spec), "h_i": h[0], "h_j": h[1]})
    hs = [mpf(float(x)) for x in h]
    if not all(spec.stable(x) for x in hs) or (0 in hs and not spec.forgets):
        case.answer = False
        return case
    right = o.pair_law(spec.step(hs[0]), spec.step(hs[1]))

    def judge(result):
        for p in range(spec.size):
            for q in range(spec.size):
                off = abs(mpf(float(result[p, q])) - right[p][q])
                scale = mp.sqrt(abs(o.pair_law(spec.step(hs[0]), spec.step(hs[0]))[p][p]
                                    * o.pair_law(spec.step(hs[1]), spec.step(hs[1]))[q][q]))  # fmt: skip
                require(off <= 1e-13 * abs(right[p][q]) + 1e-14 * scale, lambda: f"{result} right {right}")

    case.judge = judge
    return case


def max_learning_rate(draw):
    spec, hessian, _, _, plain = setup(draw, rotated=False)
    case = Case(nm.max_learning_rate, {"optimizer": optimizer(spec), "hessian": hessian})

    def judge(result):
        hs = [h for h in plain.h if h > 0 or spec.forgets]
        if not hs:
            return require(result == np.inf, f"{result} where nothing bounds it")
        if not np.isfinite(result) or result == 0:
            return None

        def stable(factor):
            rest = tuple((k, v) for k, v in spec.values if k != "lr")
            at = o.Spec(spec.name, (("lr", Fraction(float(result)) * Fraction(factor)), *rest), spec.ema)
            return all(at.stable(h) for h in hs)

        mp.dps += 20
        require(not stable(1 + 1e-12), f"stable above {result}")
        require(stable(1 - 1e-12) and stable(0.5), f"unstable below {result}")
        return None

    case.judge = judge
    return case


def spectral_radius(draw):
    spec, hessian, _, _, plain = setup(draw, rotated=False)
    case = Case(nm.spectral_radius, {"optimizer": optimizer(spec), "hessian": hessian}, answer=None)
    hs = [h for h in plain.h if h or spec.forgets]
    right = max((spec.radius(h) for h in hs), default=mpf(0))

    def judge(result):
        # A double root moves by the root of what moves the matrix.
        off = abs(mpf(float(result)) - right)
        require(off <= (1e-7 if spec.size > 1 else 8 * EPS) * max(1, right), f"{result!r} right {mp.nstr(right, 17)}")
        if hs and all(spec.stable(h) for h in hs):
            require(result < 1, f"{result!r} of a stable recursion")

    case.judge = judge
    return case


def spectral_gap(draw):
    spec, hessian, _, _, plain = setup(draw, rotated=False)
    case = Case(nm.spectral_gap, {"optimizer": optimizer(spec), "hessian": hessian})
    mp.dps *= 2  # what is left of 1 is wanted to all its digits
    right = 1 - max((spec.radius(h) for h in plain.h if h or spec.forgets), default=mpf(0))

    def judge(result):
        off = abs(mpf(float(result)) - right)
        require(off <= 1e-13 * abs(right), f"{result!r} right {mp.nstr(right, 17)}")

    case.judge = judge
    return case


def crossover_curvature(draw):
    spec = draw.spec()
    batches = int(draw.pick(2, 3, 100, 10**6))
    case = Case(nm.crossover_curvature, {"optimizer": optimizer(spec), "batches_per_epoch": batches})
    if spec.forgets:
        case.answer = False
        return case
    o.enough_digits([spec], [1.0])
    share = (1 - spec["dampening"]) / (1 - spec["momentum"]) if spec.name != "qhm" else mpf(1)
    case.judge = lambda r: near(r, 3 / (spec["lr"] * share * batches), 1e-14)
    return case


def solve_stein(draw):
    m = int(draw.pick(1, 1, 2, 2, 3))
    A = draw.rng.normal(size=(m, m)) * draw.pick(0.3, 0.5, 1.0, draw.log(-20, 3))
    kind = draw.rng.integers(6)
    if kind == 0:
        A = np.diag(draw.pick(1.0, -1.0) * (1 - 10.0 ** -draw.rng.uniform(0, 17, m)))
    elif kind == 1:
        s = 10.0 ** draw.rng.uniform(-8, 8, m)
        A = A * s[:, None] / s
    elif kind == 2:
        A = np.triu(A)
        A[np.diag_indices(m)] = draw.rng.choice([0.0, 0.5, 1.0, -1.0, 0.999], m)
    Q = draw.noise(m)
    mp.dps = 120
    exact = o.matrix(A)
    found = o.sum_of_powers(exact, exact, o.matrix(Q))
    rho = float(np.max(np.abs(np.linalg.eigvals(A))))
    arguments = {"A": A, "Q": Q}
    if draw.chance(0.4):
        arguments["method"] = draw.pick("schur", "kronecker", "doubling")
    case = Case(nm.solve_stein, arguments, positional=("A", "Q"))

    def judge(result):
        if abs(rho - 1) > 1e-6:
            require((result.verdict in ("stationary",)) == (rho < 1), f"{result.verdict} at radius {rho}")
        if result.value is None or found is None or abs(rho - 1) < 1e-9 or result.verdict == "marginal":
            return
        error = getattr(result, "error", None)
        if error is None:
            error = 1e3 * m * m * EPS * result.condition
        if error < 1:
            near(result.value, found, error)
            if result.verdict == "stationary":
                whole = float(np.linalg.norm(result.value))
                if 0 < whole < np.inf:
                    least = np.linalg.eigvalsh(result.covariance / whole)[0]
                    require(least >= -(error + 8 * m * EPS), f"eigenvalue {least:.3g}, error {error:.3g}")

    case.judge = judge
    return case
