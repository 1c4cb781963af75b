r"""The oracle of data: losses by their definition, derivatives by differences at many digits, batches one by one.

A step's gradient is ``H_B w + r_B`` with a batch B drawn from a list of atoms ``(chance, H_B, r_B)``.  Gaussian inputs
enter as the three-point rule, which has all their moments up to the fifth; the laws need those up to the fourth.
"""

from __future__ import annotations

import itertools

import numpy as np
from mpmath import mp, mpf

from . import oracle as o


def examples_of(X, y, l2, weights=None):
    """H_n and r_n of least squares."""
    X, y = o.matrix(X), o.vector(y)
    a = [mpf(1)] * len(y) if weights is None else o.vector(weights)
    decay = o.scaled(o.eye(len(X[0])), o.exact(l2))
    hessians = [o.add(decay, o.outer(x, x), c) for x, c in zip(X, a, strict=True)]
    return hessians, [[-c * t * v for v in x] for x, t, c in zip(X, y, a, strict=True)]


def mean(matrices, chances=None):
    """The mean of matrices or vectors."""
    chances = chances or [mpf(1) / len(matrices)] * len(matrices)
    if not isinstance(matrices[0][0], list):
        return [
            sum((c * v[i] for c, v in zip(chances, matrices, strict=True)), mpf(0)) for i in range(len(matrices[0]))
        ]
    total = o.scaled(matrices[0], chances[0])
    for c, m in zip(chances[1:], matrices[1:], strict=True):
        total = o.add(total, m, c)
    return total


def minimiser(hessian, slope):
    """Of ``w'Hw/2 + slope'w``; of least norm where there are many.  Flat is what is 0 to half the digits."""
    h, u = o.directions(hessian)
    level = max((abs(x) for x in h), default=mpf(0)) * mpf(10) ** (-mp.dps // 2)
    along = [sum(u[k][i] * slope[k] for k in range(len(slope))) for i in range(len(h))]
    return [sum((-u[k][i] * along[i] / h[i] for i in range(len(h)) if h[i] > level), mpf(0)) for k in range(len(slope))]


def drawn(hessians, slopes, size, replacement, chances=None):
    """The atoms of batches: every batch listed."""
    n = len(hessians)
    chances = chances or [mpf(1) / n] * n
    batches = itertools.product(range(n), repeat=size) if replacement else itertools.combinations(range(n), size)
    out = []
    for batch in batches:
        chance = mpf(1)
        for k in batch:
            chance *= chances[k]
        out.append((chance, mean([hessians[k] for k in batch]), mean([slopes[k] for k in batch])))
    if not replacement:
        total = sum(c for c, _, _ in out)
        out = [(c / total, h, r) for c, h, r in out]
    return out


def corrupted(X, y, l2, masks):
    """For every example, what its corrupted inputs can be: lists of (chance, H, r)."""
    decay = o.scaled(o.eye(len(X[0])), o.exact(l2))
    out = []
    for x, target in zip(o.matrix(X), o.vector(y), strict=True):
        draws = []
        for entries in itertools.product(*(masks(v) for v in x)):
            chance, inputs = mpf(1), []
            for c, v in entries:
                chance *= c
                inputs.append(v)
            draws.append((chance, o.add(decay, o.outer(inputs, inputs)), [-target * v for v in inputs]))
        out.append(draws)
    return out


def corrupted_atoms(per_example, size, replacement):
    """Batches of examples, each with a corruption of its own."""
    n, out = len(per_example), []
    index = list(itertools.product(range(n), repeat=size) if replacement else itertools.combinations(range(n), size))
    for batch in index:
        for parts in itertools.product(*(per_example[k] for k in batch)):
            chance = mpf(1) / len(index)
            for c, _, _ in parts:
                chance *= c
            out.append((chance, mean([h for _, h, _ in parts]), mean([r for _, _, r in parts])))
    return out


def gaussian_atoms(covariance, noise_std, centre, size):
    """Fresh Gaussian inputs and labels."""
    p, u = o.directions(o.matrix(covariance))
    root = [[x * mp.sqrt(max(s, mpf(0))) for x, s in zip(row, p, strict=True)] for row in u]
    points = [(mpf(2) / 3, mpf(0)), (mpf(1) / 6, mp.sqrt(3)), (mpf(1) / 6, -mp.sqrt(3))]
    target, sigma = o.vector(centre), o.exact(noise_std)
    draws = []
    for entries in itertools.product(points, repeat=len(p)):
        chance, z = mpf(1), []
        for c, v in entries:
            chance *= c
            z.append([v])
        x = [row[0] for row in o.mul(root, z)]
        along = sum(a * b for a, b in zip(x, target, strict=True))
        for sign in (1, -1):
            draws.append((chance / 2, o.outer(x, x), [-(along + sign * sigma) * v for v in x]))
    return corrupted_atoms([draws], size, True)


def noise_at(atoms, w, spread=None):
    """The covariance of one step's gradient, averaged over weights of mean w and covariance ``spread``."""
    gradients = [
        [sum((a * b for a, b in zip(row, w, strict=True)), r) for row, r in zip(h, slope, strict=True)]
        for _, h, slope in atoms
    ]
    chances = [c for c, _, _ in atoms]
    centre = mean(gradients, chances)
    total = [[mpf(0)] * len(w) for _ in w]
    for c, g in zip(chances, gradients, strict=True):
        gap = [a - b for a, b in zip(g, centre, strict=True)]
        total = o.add(total, o.outer(gap, gap), c)
    if spread is not None:
        h = mean([m for _, m, _ in atoms], chances)
        for c, m, _ in atoms:
            gap = o.add(m, h, -1)
            total = o.add(total, o.congruent(gap, spread), c)
    return total


class Moments:
    """First and second moments of all slots under batches, from the matrices of every batch."""

    def __init__(self, spec, atoms, additive=None):
        zero, one, minus = (spec.step(mpf(x)) for x in (0, 1, -1))
        d, m = len(atoms[0][2]), spec.size

        def parts(at):  # A(h) = A0 + A1 h + A2 h^2
            a0, a1, a2 = at(zero), o.scaled(o.add(at(one), at(minus), -1), mpf(1) / 2), None
            a2 = o.add(o.scaled(o.add(at(one), at(minus)), mpf(1) / 2), a0, -1)
            return a0, a1, a2

        step = parts(lambda s: s[0])
        gain = parts(lambda s: [[x] for x in s[1]])

        def whole(layers, h):
            powers = [o.eye(d), h, o.mul(h, h)]
            rows, columns = len(layers[0]), len(layers[0][0])
            return [
                [sum((layers[k][p][q] * powers[k][i][j] for k in range(3)), mpf(0)) for q in range(columns)
                 for j in range(d)]
                for p in range(rows) for i in range(d)
            ]  # fmt: skip

        self.spec, self.d, self.n = spec, d, m * d
        self.chances = [c for c, _, _ in atoms]
        self.matrices = [whole(step, h) for _, h, _ in atoms]
        gains = [whole(gain, h) for _, h, _ in atoms]
        self.pushes = [
            [r[0] for r in o.mul(g, [[x] for x in slope])] for g, (_, _, slope) in zip(gains, atoms, strict=True)
        ]
        self.added = [[mpf(0)] * self.n for _ in range(self.n)]
        if additive is not None:
            for c, g in zip(self.chances, gains, strict=True):
                self.added = o.add(self.added, o.congruent(g, additive), c)

    def operator(self):
        """Of the second moment, on the upper triangle."""
        upper = [(i, j) for i in range(self.n) for j in range(i, self.n)]
        rows = []
        for i, j in upper:
            row = []
            for k, l in upper:  # noqa: E741
                total = mpf(0)
                for c, a in zip(self.chances, self.matrices, strict=True):
                    term = a[i][k] * a[j][l]
                    if k != l:
                        term += a[i][l] * a[j][k]
                    total += c * term
                row.append(total)
            rows.append(row)
        return upper, rows

    def radius(self):
        """The spectral radius of the second moment's recursion: in floats, near 1 by squaring at many digits."""
        _, rows = self.operator()
        found = float(np.max(np.abs(np.linalg.eigvals(np.array([[float(x) for x in r] for r in rows])))))
        if not 0.99 < found < 1.01:
            return found
        logarithm, power = mpf(0), 1
        for _ in range(90):
            size = max(abs(x) for row in rows for x in row)
            logarithm += mp.log(size) / power
            rows = o.scaled(rows, 1 / size)
            rows, power = o.mul(rows, rows), 2 * power
        return mp.exp(logarithm + mp.log(max(abs(x) for row in rows for x in row)) / power)

    def stationary(self):
        """Mean and covariance of all slots."""
        a = mean(self.matrices, self.chances)
        centre = o.solve(o.add(o.eye(self.n), a, -1), [[x] for x in mean(self.pushes, self.chances)])
        if centre is None:
            return None
        centre = [x[0] for x in centre]
        injected = self.injected(centre)
        upper, rows = self.operator()
        system = [[int(k == q) - x for q, x in enumerate(row)] for k, row in enumerate(rows)]
        found = o.solve(system, [[injected[i][j]] for i, j in upper])
        if found is None:
            return None
        out = [[mpf(0)] * self.n for _ in range(self.n)]
        for (i, j), x in zip(upper, found, strict=True):
            out[i][j] = out[j][i] = x[0]
        return centre, out

    def injected(self, centre):
        """What one step adds to the covariance about a mean."""
        after = [
            [sum((x * z for x, z in zip(row, centre, strict=True)), p) for row, p in zip(a, push, strict=True)]
            for a, push in zip(self.matrices, self.pushes, strict=True)
        ]
        middle, total = mean(after, self.chances), self.added
        for c, z in zip(self.chances, after, strict=True):
            gap = [a - b for a, b in zip(z, middle, strict=True)]
            total = o.add(total, o.outer(gap, gap), c)
        return total

    def after(self, steps, centre, covariance):
        """Mean and covariance after so many steps, one by one."""
        a, push = mean(self.matrices, self.chances), mean(self.pushes, self.chances)
        for _ in range(steps):
            moved = self.injected(centre)
            for c, m in zip(self.chances, self.matrices, strict=True):
                moved = o.add(moved, o.congruent(m, covariance), c)
            covariance = moved
            centre = [sum((x * z for x, z in zip(row, centre, strict=True)), p) for row, p in zip(a, push, strict=True)]
        return centre, covariance

    def block(self, whole, a=0, b=0):
        d = self.d
        return [row[b * d : (b + 1) * d] for row in whole[a * d : (a + 1) * d]]


# -- losses ---------------------------------------------------------------------------------------------------------


def norm(w, q):
    """The q-norm of a vector."""
    if q == 1:
        return sum(abs(x) for x in w)
    if q == mp.inf:
        return max(abs(x) for x in w)
    q = o.exact(q) if not isinstance(q, mpf) else q
    return sum(abs(x) ** q for x in w) ** (1 / q) if any(w) else mpf(0)


def dual(p):
    """1/p + 1/q = 1."""
    return mp.inf if p == 1 else mpf(1) if p == float("inf") else o.exact(p) / (o.exact(p) - 1)


def dot(x, w):
    return sum((a * b for a, b in zip(x, w, strict=True)), mpf(0))


def losses(kind, X, y, radius, p, l2, weights):
    """Every example's own loss as a function of w, its weight decay included."""
    X, y, eps, q = o.matrix(X), o.vector(y), o.exact(radius), dual(p)
    a = [mpf(1)] * len(y) if weights is None else o.vector(weights)

    def one(n):
        def loss(w):
            size = eps * norm(w, q) if eps else mpf(0)
            decay = o.exact(l2) / 2 * dot(w, w)
            along = dot(X[n], w)
            if kind == "squares":
                return a[n] / 2 * (abs(y[n] - along) + size) ** 2 + decay
            if kind == "logistic":
                return a[n] * mp.log1p(mp.exp(-(y[n] * along - size))) + decay
            return a[n] * (1 - y[n] * along + size) + decay

        return loss

    return [one(n) for n in range(len(y))]


def gaussian_loss(A, w0, sigma, radius, p):
    """The risk of robust regression on fresh Gaussian data."""
    A, w0, s, eps, q = o.matrix(A), o.vector(w0), o.exact(sigma), o.exact(radius), dual(p)
    c0 = mp.sqrt(2 / mp.pi)

    def loss(w):
        e = [a - b for a, b in zip(w, w0, strict=True)]
        v = mp.sqrt(dot(e, [dot(row, e) for row in A]) + s * s)
        t = eps * norm(w, q) if eps else mpf(0)
        return (v * v + 2 * c0 * t * v + t * t) / 2

    return loss


def total(parts):
    """The mean of losses."""
    return lambda w: sum((f(w) for f in parts), mpf(0)) / len(parts)


def gradient(f, w):
    """By central differences of 20 digits, of which 40 are right."""
    scale = max((abs(x) for x in w), default=mpf(1)) or mpf(1)
    h = scale * mpf(10) ** -20
    out = []
    for i in range(len(w)):
        up, down = list(w), list(w)
        up[i], down[i] = up[i] + h, down[i] - h
        out.append((f(up) - f(down)) / (2 * h))
    return out


def hessian(f, w):
    """By second differences of 15 digits."""
    scale = max((abs(x) for x in w), default=mpf(1)) or mpf(1)
    h = scale * mpf(10) ** -15
    d = len(w)

    def at(i, j, s, t):
        z = list(w)
        z[i] += s * h
        z[j] += t * h
        return f(z)

    out = [[mpf(0)] * d for _ in range(d)]
    for i in range(d):
        for j in range(i, d):
            out[i][j] = out[j][i] = (at(i, j, 1, 1) - at(i, j, 1, -1) - at(i, j, -1, 1) + at(i, j, -1, -1)) / (
                4 * h * h
            )
    return out


def covariance_of(gradients, factor):
    """Of per-example gradients, times a batch factor."""
    centre = mean(gradients)
    out = [[mpf(0)] * len(centre) for _ in centre]
    for g in gradients:
        gap = [a - b for a, b in zip(g, centre, strict=True)]
        out = o.add(out, o.outer(gap, gap), mpf(1) / len(gradients))
    return o.scaled(out, factor)


def factor(size, count, replacement):
    """p of a batch: 1/B, or with distinct examples (N - B)/(B (N - 1))."""
    if replacement:
        return mpf(1) / size
    return mpf(0) if size == count else mpf(count - size) / (size * (count - 1))
