r"""An oracle of linear optimisers on quadratics, by hand and in mpmath: nothing of the product is in it.

The step of every shipped rule is written out here along one eigenvalue h, as ``z' = A z + b (xi - h w*)``; everything
else is solving, stepping and doubling small systems of numbers with as many digits as the inputs ask for.  A float is
the binary fraction that it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mpmath import mp, mpf

from .small import (
    add,
    congruent,
    directions,
    exact,
    eye,
    is_diagonal,
    matrix,
    mul,
    outer,
    scaled,
    solve,
    transpose,
    vector,
)

DIGITS = 60


# -- the shipped rules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A rule by name and the floats of its hyper-parameters; ``ema`` where an average of its weights joins it."""

    name: str
    values: tuple[tuple[str, float], ...]
    ema: float | None = None

    def __getitem__(self, name):
        return exact(dict(self.values).get(name, 0))

    @property
    def size(self):
        return (1 if self.name in ("sgd", "sam") else 2) + (self.ema is not None)

    @property
    def slots(self):
        own = {"sgd": ("w",), "sam": ("w",), "polyak": ("w", "w_prev"), "qhm": ("w", "b")}.get(self.name, ("w", "v"))
        return (*own, "ema") if self.ema is not None else own

    @property
    def rest(self):
        """The slots of weights 1 that see no gradient: copies are 1, velocities 0."""
        return [mpf(int(s in ("w", "w_prev", "ema"))) for s in self.slots]

    @property
    def forgets(self):
        """Whether a direction without curvature forgets its start."""
        return bool(self["weight_decay"])

    def step(self, h):
        """A and b of ``z' = A z + b (xi - h w*)``."""
        lr, mu, decay = self["lr"], self["momentum"], self["weight_decay"]
        k = h + decay  # what the gradient of the weights is multiplied by, weight decay in it
        if self.name == "sgd":
            a, b = [[1 - lr * k]], [-lr]
        elif self.name == "heavy_ball":
            damp = 1 - self["dampening"]
            a, b = [[1 - lr * damp * k, -lr * mu], [damp * k, mu]], [-lr * damp, damp]
        elif self.name == "nesterov":
            a, b = [[1 - lr * (1 + mu) * k, -lr * mu * mu], [k, mu]], [-lr * (1 + mu), mpf(1)]
        elif self.name == "polyak":
            a, b = [[1 + mu - lr * k, -mu], [mpf(1), mpf(0)]], [-lr, mpf(0)]
        elif self.name == "qhm":
            beta, nu = self["beta"], self["nu"]
            now = 1 - nu * beta
            a, b = [[1 - lr * now * k, -lr * nu * beta], [(1 - beta) * k, beta]], [-lr * now, 1 - beta]
        elif self.name == "sgdw":
            a, b = [[1 - lr * decay - lr * h, -lr * mu], [h, mu]], [-lr, mpf(1)]
        else:
            more = 1 + self["rho"] * h
            a, b = [[1 - lr * h * more]], [-lr * more]
        if self.ema is not None:
            d = exact(self.ema)
            a = [[*row, mpf(0)] for row in a] + [[(1 - d) * x for x in a[0]] + [d]]
            b = [*b, (1 - d) * b[0]]
        return a, b

    def stable(self, h):
        """Whether every eigenvalue of A(h) is inside the circle; by Jury's conditions, one root 0 < ema < 1 apart."""
        a, _ = self.step(h)
        if self.name in ("sgd", "sam"):
            return -1 < a[0][0] < 1
        trace, det = a[0][0] + a[1][1], a[0][0] * a[1][1] - a[0][1] * a[1][0]
        return abs(det) < 1 and abs(trace) < 1 + det

    def radius(self, h):
        """The spectral radius of A(h)."""
        a, _ = self.step(h)
        own = [abs(exact(self.ema))] if self.ema is not None else []
        if self.name in ("sgd", "sam"):
            return max([abs(a[0][0]), *own])
        half, det = (a[0][0] + a[1][1]) / 2, a[0][0] * a[1][1] - a[0][1] * a[1][0]
        inside = half * half - det
        return max([mp.sqrt(abs(det)) if inside < 0 else abs(half) + mp.sqrt(inside), *own])


def enough_digits(specs, *arrays):
    """Work with 60 digits beyond the smallest of what the inputs can make of 1."""
    least = 0
    hs = [abs(float(x)) for a in arrays for row in a for x in (row if hasattr(row, "__len__") else [row]) if x]
    for spec in specs:
        lr = float(dict(spec.values).get("lr", 1.0))
        for x in (*hs, float(dict(spec.values).get("weight_decay", 0.0))):
            if x:
                least = min(least, math.log10(lr) + math.log10(x))
    # The slots are of units of their own, lr apart, so that elimination works with numbers that far apart.
    apart = max((abs(math.log10(dict(spec.values).get("lr", 1.0))) for spec in specs), default=0)
    mp.dps = int(DIGITS + 50 - 2 * least + 2 * apart)


# -- pairs of directions --------------------------------------------------------------------------------------------


def pair_law(one, other):
    """S with ``S = A S B' + a b'`` for ``one = (A, a)``, ``other = (B, b)``; None where there is none."""
    (a, u), (b, v) = one, other
    m, n = len(a), len(b)
    if m == n == 1:
        gap = 1 - a[0][0] * b[0][0]
        return [[u[0] * v[0] / gap]] if gap else None
    system, right = [], []
    for p in range(m):
        for q in range(n):
            row = [-(a[p][r] * b[q][s]) for r in range(m) for s in range(n)]
            row[p * n + q] += 1
            system.append(row)
            right.append([u[p] * v[q]])
    x = solve(system, right)
    return None if x is None else [[x[p * n + q][0] for q in range(n)] for p in range(m)]


def pair_walk(one, other, steps):
    """A^k, B^k and the sum of A^t a b' B^t' over t < k, by doubling."""
    (a, u), (b, v) = one, other
    power_a, power_b = eye(len(a)), eye(len(b))
    total = [[mpf(0)] * len(b) for _ in a]
    for digit in bin(steps)[2:] if steps else "":
        total = add(total, congruent(power_a, total, power_b))
        power_a, power_b = mul(power_a, power_a), mul(power_b, power_b)
        if digit == "1":
            total = add(congruent(a, total, b), outer(u, v))
            power_a, power_b = mul(power_a, a), mul(power_b, b)
    return power_a, power_b, total


@dataclass
class Law:
    """The slot covariances of all pairs in the eigenbasis, and the way back."""

    spec: Spec
    basis: list
    pairs: dict
    rates: list = field(default_factory=list)

    def block(self, a=0, b=0):
        d = len(self.basis)
        inner = [[self.pairs[i, j][a][b] for j in range(d)] for i in range(d)]
        return congruent(self.basis, inner)

    @property
    def value(self):
        return self.block()


@dataclass
class Plain:
    """A problem in coordinates in which the Hessian is diagonal: eigenvalues h, noise c, and ``w = basis y``."""

    h: list
    c: list
    basis: list
    inverse: list
    diagonal: bool

    @classmethod
    def of(cls, hessian, noise, preconditioner=None):
        """With a preconditioner P = L L' the plain coordinates are those of ``L' H L``."""
        h, c = matrix(hessian), matrix(noise)
        root = inverse = None
        if preconditioner is not None:
            if not hasattr(preconditioner[0], "__len__"):
                root = [[mp.sqrt(mpf(float(p))) if i == j else mpf(0) for j in range(len(h))]
                        for i, p in enumerate(preconditioner)]  # fmt: skip
            else:
                p, v = directions(matrix(preconditioner))
                root = [[x * mp.sqrt(s) for x, s in zip(row, p, strict=True)] for row in v]
            inverse = solve(root, eye(len(h)))
            h, c = congruent(transpose(root), h), congruent(transpose(root), c)
        values, basis = directions(h)
        plain = congruent(transpose(basis), c)
        back = basis if root is None else mul(root, basis)
        into = transpose(basis) if root is None else mul(transpose(basis), inverse)
        return cls(values, plain, back, into, is_diagonal(h))

    def vector(self, w):
        """A point in these coordinates."""
        return [row[0] for row in mul(self.inverse, [[x] for x in vector(w)])]

    def point(self, y):
        return [row[0] for row in mul(self.basis, [[x] for x in y])]


def stationary(spec, plain, flat=()):
    """The law; directions in ``flat`` are left at 0."""
    d, m = len(plain.h), spec.size
    steps = [spec.step(h) for h in plain.h]
    pairs = {}
    for i in range(d):
        for j in range(i, d):
            if i in flat or j in flat or not plain.c[i][j]:
                s = [[mpf(0)] * m for _ in range(m)]
            else:
                s = scaled(pair_law(steps[i], steps[j]), plain.c[i][j])
            pairs[i, j], pairs[j, i] = s, transpose(s)
    return Law(spec, plain.basis, pairs)


def run(phases, plain, start=None):
    """The law after phases of (spec, steps), from a start: None, a covariance of the weights, or a `Law`."""
    d = len(plain.h)
    rest = phases[0][0].rest
    if isinstance(start, Law):
        joint = {
            (a, b): congruent(plain.inverse, start.block(a, b)) for a in range(len(rest)) for b in range(len(rest))
        }
    elif start is not None:
        inner = congruent(plain.inverse, matrix(start))
    pairs, left = {}, {}
    for i in range(d):
        for j in range(d):
            if start is None:
                z = [[mpf(0)] * len(rest) for _ in rest]
            elif isinstance(start, Law):
                z = [[joint[a, b][i][j] for b in range(len(rest))] for a in range(len(rest))]
            else:
                z = scaled(outer(rest, rest), inner[i][j])
            built = [[mpf(0)] * len(rest) for _ in rest]
            for spec, steps in phases:
                a, b, x = pair_walk(spec.step(plain.h[i]), spec.step(plain.h[j]), steps)
                z, built = congruent(a, z, b), add(congruent(a, built, b), scaled(x, plain.c[i][j]))
            left[i, j], pairs[i, j] = z, add(z, built)
    return Law(phases[-1][0], plain.basis, pairs), Law(phases[-1][0], plain.basis, left)


def periodic(phases, plain, position):
    """The law of phases repeated for ever, at the start of a phase; None where a period does not forget."""
    d, m = len(plain.h), phases[0][0].size
    turned = phases[position:] + phases[:position]
    pairs = {}
    for i in range(d):
        for j in range(d):
            a = b = eye(m)
            built = [[mpf(0)] * m for _ in range(m)]
            for spec, steps in turned:
                p, q, x = pair_walk(spec.step(plain.h[i]), spec.step(plain.h[j]), steps)
                a, b, built = mul(p, a), mul(q, b), add(congruent(p, built, q), scaled(x, plain.c[i][j]))
            pairs[i, j] = sum_of_powers(a, b, built)
            if pairs[i, j] is None:
                return None
    return Law(phases[-1][0], plain.basis, pairs)


def sum_of_powers(a, b, q):
    """X with ``X = a X b' + q``."""
    m, n = len(a), len(b)
    system, right = [], []
    for p in range(m):
        for r in range(n):
            row = [-(a[p][s] * b[r][t]) for s in range(m) for t in range(n)]
            row[p * n + r] += 1
            system.append(row)
            right.append([q[p][r]])
    x = solve(system, right)
    return None if x is None else [[x[p * n + r][0] for r in range(n)] for p in range(m)]


def mean_after(spec, plain, start, optimum, steps):
    """The mean of every slot, in the caller's coordinates, from weights at rest at ``start``."""
    at, to = plain.vector(start), plain.vector(optimum)
    columns = []
    for h, w, target in zip(plain.h, at, to, strict=True):
        a, b = spec.step(h)
        m = len(a)
        whole = [[*a[p], -h * b[p] * target] for p in range(m)] + [[mpf(0)] * m + [mpf(1)]]
        power = eye(m + 1)
        for digit in bin(steps)[2:]:
            power = mul(power, power)
            if digit == "1":
                power = mul(power, whole)
        z = [r * w for r in spec.rest] + [mpf(1)]
        columns.append([sum((x * y for x, y in zip(row, z, strict=True)), mpf(0)) for row in power[:m]])
    return [plain.point([column[p] for column in columns]) for p in range(spec.size)]


def stationary_mean(spec, plain, optimum):
    """The fixed point of the mean; a flat direction stays at the optimum."""
    columns = []
    for h, target in zip(plain.h, plain.vector(optimum), strict=True):
        if not h and not spec.forgets:
            columns.append([r * target for r in spec.rest])
            continue
        a, b = spec.step(h)
        x = solve(add(eye(len(a)), a, -1), [[-h * c * target] for c in b])
        columns.append([row[0] for row in x])
    return [plain.point([column[p] for column in columns]) for p in range(spec.size)]


def lagged(spec, plain, lag, slots=(0, 0), flat=()):
    """Cov(slot a ``lag`` steps later, slot b)."""
    law = stationary(spec, plain, flat)
    d = len(plain.h)
    a, b = slots
    powers = [pair_walk(spec.step(h), spec.step(h), lag)[0] for h in plain.h]
    inner = [[mul([powers[i][a]], law.pairs[i, j])[0][b] for j in range(d)] for i in range(d)]
    return congruent(plain.basis, inner)


def averaged(spec, plain, window, flat=()):
    """The covariance of the mean of ``window`` successive iterates: a slot that sums them joins the state."""
    law = stationary(spec, plain, flat)
    d, m = len(plain.h), spec.size

    def summing(h):
        a, b = spec.step(h)
        return [[*row, mpf(0)] for row in a] + [[*a[0], mpf(1)]], [*b, b[0]]

    inner = []
    for i in range(d):
        row = []
        for j in range(d):
            start = [[*r, mpf(0)] for r in law.pairs[i, j]] + [[mpf(0)] * (m + 1)]
            a, b, x = pair_walk(summing(plain.h[i]), summing(plain.h[j]), window)
            row.append((congruent(a, start, b)[m][m] + plain.c[i][j] * x[m][m]) / mpf(window) ** 2)
        inner.append(row)
    return congruent(plain.basis, inner)


def epoch_law(spec, plain, batches, correlation, position, flat=()):
    """Noise that is correlated within epochs of so many batches: written out batch by batch."""
    d, m = len(plain.h), spec.size
    steps = [spec.step(h) for h in plain.h]
    rho = exact(correlation)

    def injected(i, j, count):
        """Of the first ``count`` steps of an epoch, for unit covariance."""
        gains = []
        for a, b in (steps[i], steps[j]):
            column, out = [[x] for x in b], []
            for _ in range(count):
                out.append([x[0] for x in column])
                column = mul(a, column)
            gains.append(out)
        total = [[mpf(0)] * m for _ in range(m)]
        for s, u in enumerate(gains[0]):
            for t, v in enumerate(gains[1]):
                total = add(total, outer(u, v), 1 if s == t else rho)
        return total

    def at(i, j, start, count):
        a, b, _ = pair_walk(steps[i], steps[j], count)
        return add(congruent(a, start, b), scaled(injected(i, j, count), plain.c[i][j]))

    pairs = {}
    for i in range(d):
        for j in range(d):
            if i in flat or j in flat:
                pairs[i, j] = [[mpf(0)] * m for _ in range(m)]
                continue
            a, b, _ = pair_walk(steps[i], steps[j], batches)
            start = sum_of_powers(a, b, scaled(injected(i, j, batches), plain.c[i][j]))
            if position == "average":
                total = [[mpf(0)] * m for _ in range(m)]
                for count in range(batches):
                    total = add(total, at(i, j, start, count))
                pairs[i, j] = scaled(total, mpf(1) / batches)
            else:
                pairs[i, j] = at(i, j, start, position % batches)
    return Law(spec, plain.basis, pairs)


def autocorrelation_time(spec, h):
    """The variance of a long mean, times its length, over the variance of one iterate."""
    if not h and not spec.forgets:
        return mp.inf
    a, b = spec.step(h)
    gain = solve(add(eye(len(a)), a, -1), [[x] for x in b])[0][0]
    return gain**2 / pair_law((a, b), (a, b))[0][0]
