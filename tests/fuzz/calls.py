"""The one table through which the fuzz reaches numerics: name -> (weight, how a case is made).

A new public function is one line in `CALLS`.  A maker draws arguments and says what is true of the result: a number
from the oracle, or a property.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from mpmath import mp, mpf

from sgdcov import numerics as nm
from sgdcov import theory

from . import oracle as o
from .judge import EPS, Case, Wrong, law, near, require

HUGE = mpf(10) ** 150


def optimizer(spec, **unbind):
    """The product's optimizer of a `Spec`; names in ``unbind`` left unbound."""
    rule = getattr(theory, spec.name)
    values = {k: v for k, v in spec.values if k not in unbind}
    if spec.ema is not None:
        rule, values = theory.with_ema(rule), {**values, "ema_decay": spec.ema}
    return rule(**values)


def level(plain):
    """Up to which size an eigenvalue is what rounding makes of 0."""
    if plain.diagonal:
        return mpf(0)
    return 8 * len(plain.h) * EPS * max((abs(h) for h in plain.h), default=mpf(0))


def verdict(spec, plain, noise=None):
    """(law or None, whether the question is decided by the inputs rather than by their rounding)."""
    blur = level(plain)
    flat, sure = [], True
    for i, h in enumerate(plain.h):
        if not spec.forgets and h == 0:
            flat.append(i)
            if plain.c[i][i]:
                return None, plain.diagonal
            continue
        inside = {spec.stable(h), spec.stable(h - blur), spec.stable(h + blur)}
        sure &= len(inside) == 1
        if not spec.forgets and 0 < abs(h) <= 100 * blur:
            sure = False
        if not spec.stable(h):
            return None, sure
    return o.stationary(spec, plain, flat), sure


def flat_by_rounding(spec, plain):
    """Directions whose eigenvalue and whose noise are both what rounding makes of 0."""
    if spec.forgets or plain.diagonal:
        return []
    blur, top = level(plain), max(abs(x) for row in plain.c for x in row)
    return [i for i, h in enumerate(plain.h) if abs(h) <= blur and plain.c[i][i] <= 64 * len(plain.h) * EPS * top]


def slack(spec, plain, of, right, hessian):
    """What rounding of eigenvalues and of the rotated noise does to a result, where it has no error of its own.

    ``of(plain)`` is the result again; eigenvalues of a matrix that is not diagonal are known to d eps of the largest.
    """
    values = dict(spec.values)
    # Near momentum 1 what is left of a step cancels: up to so many digits are allowed to be lost to it.
    ends = [1 - values.get(k, 0.0) for k in ("momentum", "beta", "dampening")] + [1 - (spec.ema or 0.0)]
    base = 2e-13 + 2e-15 / min(ends)
    if plain.diagonal:
        return base
    whole, most = size_of(right), max(abs(h) for h in plain.h)
    if not whole:
        return base
    probe = mpf(2) ** -44 * most
    moved = 0
    for signs in ((1, 1), (-1, -1), (1, -1)):
        h = [h + signs[i % 2] * probe for i, h in enumerate(plain.h)]
        other = of(o.Plain(h, plain.c, plain.basis, plain.inverse, False))
        moved = max(moved, size_of(o.add(other, right, -1)) / whole if other is not None else mp.inf)
    d, top = len(plain.h), max(abs(x) for row in plain.c for x in row)
    unit = of(o.Plain(plain.h, o.scaled(o.eye(d), top), plain.basis, plain.inverse, False))
    return base + 20 * d * EPS * (moved * most / probe + (size_of(unit) / whole if unit is not None else mp.inf))


def size_of(a):
    return mp.sqrt(sum((x * x for row in a for x in row), mpf(0)))


def ordinary(spec, plain, right):
    """Whether a problem has to be answered: nothing in it is extreme."""
    values = dict(spec.values)
    numbers = [values["lr"], *(float(h) for h in plain.h), float(size_of(right))]
    ends = [1 - values.get(k, 0.0) for k in ("momentum", "beta", "dampening")]
    return (
        all(1e-6 < x < 1e6 for x in numbers)
        and min(ends) > 1e-4
        and max(plain.h) < 1e6 * min(plain.h)
        and all(spec.stable(h * (1 + mpf("1e-6"))) for h in plain.h)
        and 1e-6 < float(max(plain.c[i][i] for i in range(len(plain.c)))) < 1e6
    )


def setup(draw, *names, rotated=None, preconditioned=False):
    """A rule, a Hessian and a noise, as floats and in plain coordinates."""
    spec = draw.spec(*names)
    hessian = draw.hessian(spec, rotated=rotated)
    noise = draw.noise(len(hessian), hessian)
    p = None
    if preconditioned:
        d = len(hessian)
        p = 10.0 ** draw.rng.uniform(-2, 0, d)
        if draw.chance(0.4) and d > 1:
            p = draw.rotated(p)
    o.enough_digits([spec], hessian)
    return spec, hessian, noise, p, o.Plain.of(hessian, noise, p)


def expect(case, spec, plain, right, sure, hessian, of):
    """Fill in what a covariance has to be."""
    if right is None:
        case.answer = False if sure else None
        case.judge = lambda r: require(not sure, "an answer where there is no law")
        return case
    if sure and ordinary(spec, plain, right):
        case.answer = True
    exceeds = size_of(right) > HUGE or (right and 0 < size_of(right) < 1 / HUGE)

    blurred = flat_by_rounding(spec, plain)

    def judge(result):
        bound = lambda: slack(spec, plain, of, right, hessian)  # noqa: E731
        try:
            law(case, result, right, bound, hessian=hessian)
        except Wrong:
            if not blurred:
                raise
            # An eigenvalue that is 0 to rounding, and noise along it that is none to rounding: such a direction may
            # as well be flat and quiet, if the law says so.
            others = [i for i in range(len(plain.h)) if i not in blurred]
            quiet = [[x if i in others and j in others else mpf(0) for j, x in enumerate(row)]
                     for i, row in enumerate(plain.c)]  # fmt: skip
            again = of(o.Plain(plain.h, quiet, plain.basis, plain.inverse, False))
            if again is None or not getattr(result, "flat", blurred):
                raise
            law(case, result, again, bound, hessian=hessian)

    case.judge = judge
    if exceeds:
        case.answer = None
    return case


def stationary_covariance(draw):
    kind = draw.rng.integers(10)
    if kind == 0:
        return epoch_covariance(draw)
    spec, hessian, noise, p, plain = setup(draw, preconditioned=kind == 1)
    arguments = {"optimizer": optimizer(spec), "hessian": hessian, "noise": noise}
    if p is not None:
        arguments["preconditioner"] = p
    if kind in (2, 3):
        arguments["method"] = draw.pick("spectral", "doubling", "kronecker")
    case = Case(nm.stationary_covariance, arguments)
    found, sure = verdict(spec, plain)
    case = expect(case, spec, plain, None if found is None else found.value, sure, hessian,
                  lambda q: _stationary_value(spec, q))  # fmt: skip
    if found is not None and spec.size > 1 and case.answer:
        inner = case.judge

        def judge(result):
            inner(result)
            a, b = draw.rng.integers(spec.size, size=2)
            near(result.block(spec.slots[a], spec.slots[b]), found.block(a, b), 1e-6, f"block {a}, {b}")

        case.judge = judge
    return case


def _stationary_value(spec, plain):
    if any((h == 0 and not spec.forgets) or not spec.stable(h) for h in plain.h):
        return None
    return o.stationary(spec, plain).value


def epoch_covariance(draw):
    spec, hessian, noise, _, plain = setup(draw)
    batches = int(draw.pick(2, 3, 5))
    correlation = draw.pick(None, Fraction(0), Fraction(-1, 8))
    position = draw.pick("average", *range(batches + 1))
    source = nm.EpochNoise(noise, batches) if correlation is None else nm.EpochNoise(noise, batches, correlation)
    case = Case(nm.stationary_covariance,
                {"optimizer": optimizer(spec), "hessian": hessian, "noise": source, "position": position})  # fmt: skip
    rho = Fraction(-1, batches - 1) if correlation is None else correlation
    found, sure = verdict(spec, plain)
    if found is None or any(h == 0 for h in plain.h):
        case.judge = lambda r: require(bool(np.isfinite(r.value).all()), "not finite")
        return case

    def of(q):
        if any(not spec.stable(h) or (h <= 0 and not spec.forgets) for h in q.h):
            return None
        return o.epoch_law(spec, q, batches, rho, position).value

    return expect(case, spec, plain, of(plain), sure, hessian, of)


def transient_covariance(draw):
    spec, hessian, noise, _, plain = setup(draw)
    steps = draw.steps()
    start = draw.noise(len(hessian), hessian) if draw.chance(0.4) else None
    arguments = {"optimizer": optimizer(spec), "hessian": hessian, "noise": noise, "steps": steps}
    if start is not None:
        arguments["start"] = start
    case = Case(nm.transient_covariance, arguments)
    growth = max(spec.radius(h) for h in plain.h)
    if steps * mp.log10(max(growth, 1)) > 140:
        case.judge = lambda r: require(bool(np.isfinite(r.value).all()), "not finite")
        return case
    found, left = o.run([(spec, steps)], plain, start)
    case = expect(case, spec, plain, found.value, True, hessian, lambda q: o.run([(spec, steps)], q, start)[0].value)
    if case.answer:
        inner, kept = case.judge, left.value

        def judge(result):
            inner(result)
            room = 1e-6 * size_of(found.value)
            off = size_of(o.add(o.matrix(result.propagated), kept, -1))
            require(off <= room, "propagated")

        case.judge = judge
    return case


def trajectory(draw):
    spec, hessian, noise, _, plain = setup(draw)
    phases = [
        (o.Spec(spec.name, tuple((k, v * f if k == "lr" else v) for k, v in spec.values), spec.ema), n)
        for f, n in ((1.0, int(draw.pick(1, 3, 100, 10**6))), (draw.pick(0.5, 0.1, 1.0), int(draw.pick(1, 2, 50))))
    ]
    schedule = nm.Schedule([nm.Phase(n, lr=dict(s.values)["lr"]) for s, n in phases])
    start = draw.noise(len(hessian), hessian) if draw.chance(0.3) else None
    optimum = draw.rng.normal(size=len(hessian))
    begin = draw.rng.normal(size=len(hessian))
    case = Case(nm.trajectory, {"optimizer": optimizer(spec), "schedule": schedule, "hessian": hessian, "noise": noise,
                                "start": start, "mean": begin, "optimum": optimum})  # fmt: skip
    growth = sum(n * float(mp.log10(max(max(s.radius(h) for h in plain.h), 1))) for s, n in phases)
    if growth > 140 or not all(v > 1e-300 for s, _ in phases for k, v in s.values if k == "lr"):
        return case
    found, _ = o.run(phases, plain, start)
    case = expect(case, spec, plain, found.value, True, None, lambda q: o.run(phases, q, start)[0].value)
    inner = case.judge

    def judge(result):
        inner(result.final)
        require(list(result.times) == [0, phases[0][1], phases[0][1] + phases[1][1]], "times")
        if case.answer and plain.diagonal and phases[1][0].values == phases[0][0].values:
            right = o.mean_after(spec, plain, begin, optimum, result.times[-1])[0]
            near(result.mean[-1], right, 1e-9, "mean")

    case.judge = judge
    return case


def periodic_covariance(draw):
    spec, hessian, noise, _, plain = setup(draw)
    phases = [
        (o.Spec(spec.name, tuple((k, v * f if k == "lr" else v) for k, v in spec.values), spec.ema), int(n))
        for f, n in ((1.0, draw.pick(1, 2, 30)), (draw.pick(0.5, 0.25), draw.pick(1, 3)))
    ]
    schedule = nm.Schedule([nm.Phase(n, lr=dict(s.values)["lr"]) for s, n in phases])
    case = Case(nm.periodic_covariance,
                {"optimizer": optimizer(spec), "schedule": schedule, "hessian": hessian, "noise": noise})  # fmt: skip
    blur = level(plain)
    if (
        any(h <= 100 * blur and not spec.forgets for h in plain.h)
        or not all(s.stable(h) and s.stable(h + blur) for s, _ in phases for h in plain.h)
        or spec.size > 2
    ):  # a period can ring although each of its phases is stable
        case.judge = lambda r: require(bool(np.isfinite(r.trace).all()), "not finite")
        return case

    def of(q):
        found = o.periodic(phases, q, 1)
        return None if found is None else found.value

    right = of(plain)
    if right is None or (spec.size == 2 and _rings(phases, plain)):
        return case
    case = expect(case, spec, plain, right, True, None, of)
    inner = case.judge
    case.judge = lambda result: inner(result.laws[1])
    return case


def _rings(phases, plain):
    for h in plain.h:
        a = o.eye(2)
        for s, n in phases:
            a = o.mul(o.pair_walk(s.step(h), s.step(h), n)[0], a)
        trace, det = a[0][0] + a[1][1], a[0][0] * a[1][1] - a[0][1] * a[1][0]
        if not (abs(det) < 1 and abs(trace) < 1 + det - mpf(10) ** -20):
            return True
    return False


def autocovariance(draw):
    spec, hessian, noise, _, plain = setup(draw)
    lag, slots = int(draw.pick(0, 1, 2, 7, 1000)), draw.rng.integers(spec.size, size=2)
    case = Case(nm.autocovariance, {"optimizer": optimizer(spec), "hessian": hessian, "noise": noise, "lag": lag,
                                    "slots": tuple(spec.slots[k] for k in slots)})  # fmt: skip
    return _array_of_law(case, spec, plain, hessian, lambda q, flat=(): o.lagged(spec, q, lag, slots, flat))


def average_covariance(draw):
    spec, hessian, noise, _, plain = setup(draw)
    window = int(draw.pick(1, 2, 5, 100, 10**6, 10**9))
    case = Case(nm.average_covariance,
                {"optimizer": optimizer(spec), "hessian": hessian, "noise": noise, "window": window})  # fmt: skip
    return _array_of_law(case, spec, plain, hessian, lambda q, flat=(): o.averaged(spec, q, window, flat))


def _array_of_law(case, spec, plain, hessian, of):
    found, sure = verdict(spec, plain)
    if found is None:
        return expect(case, spec, plain, None, sure, hessian, None)
    flat = tuple(i for i, h in enumerate(plain.h) if h == 0 and not spec.forgets)
    right = of(plain, flat)
    if sure and ordinary(spec, plain, found.value):
        case.answer = True

    def safely(q):
        return None if any((h <= 0 and not spec.forgets) or not spec.stable(h) for h in q.h) else of(q)

    def judge(result):
        error = getattr(result, "error", None)
        if error is None:
            error = slack(spec, plain, safely, right, hessian) if not flat else 1e-9
            # Entries of a lag may cancel: what is known is relative to the law that they belong to.
            error = error * max(1, size_of(found.value) / size_of(right)) if size_of(right) else mp.inf
        if not error < 1:
            return
        try:
            near(result, right, error)
        except Wrong:
            again = safely_quiet(plain)
            if again is None:
                raise
            near(result, again, error)

    def safely_quiet(q):
        """The same without directions that are flat and quiet up to rounding, as the law may take them."""
        out = flat_by_rounding(spec, q)
        if not out:
            return None
        c = [[mpf(0) if i in out or j in out else x for j, x in enumerate(row)] for i, row in enumerate(q.c)]
        h = [mpf(0) if i in out else h for i, h in enumerate(q.h)]
        if any(not spec.stable(x) for i, x in enumerate(h) if i not in out):
            return None
        return of(o.Plain(h, c, q.basis, q.inverse, False), tuple(sorted({*flat, *out})))

    case.judge = judge
    return case
