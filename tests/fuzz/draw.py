"""Problems, hard ones above all: whatever has been seen to lose digits, signs or verdicts is drawn often."""

from __future__ import annotations

import numpy as np

from .oracle import Spec

#: Successive problems that share their optimizers: the exact kernels of a rule are derived once for each of them.
SHARED = 25
RULES = ("sgd", "heavy_ball", "nesterov", "polyak", "qhm", "sgdw", "sam")


class Draw:
    """Everything random about one problem, from (seed, index) alone."""

    def __init__(self, seed, index):
        self.index = index
        self.rng = np.random.default_rng([seed, index])
        block = np.random.default_rng([seed, index // SHARED, 1])
        self.specs = [_spec(block) for _ in range(3)]

    def chance(self, p):
        return self.rng.random() < p

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def log(self, low, high):
        return float(10.0 ** self.rng.uniform(low, high))

    def spec(self, *names, ema=True):
        """One of the block's rules, of these names where any is."""
        fitting = [s for s in self.specs if (not names or s.name in names) and (ema or s.ema is None)]
        if fitting:
            return fitting[self.rng.integers(len(fitting))]
        return Spec(names[0] if names else "sgd", tuple(v for v in self.specs[0].values if v[0] == "lr"))

    def dim(self):
        return int(self.rng.choice([1, 2, 3, 5], p=[0.3, 0.45, 0.2, 0.05]))

    def sizes(self, spec, d):
        """Eigenvalues, in units in which the learning rate is 1."""
        kind = self.rng.integers(10)
        limit = 2.0 if spec.name not in ("nesterov",) else 1.3
        if kind < 4:
            h = 10.0 ** self.rng.uniform(-3, 0, d)
        elif kind == 4:
            h = 10.0 ** -np.linspace(0, self.rng.uniform(2, 18), d)
        elif kind == 5:
            h = 10.0 ** -self.rng.uniform(0, 30, d)
        elif kind == 6:
            h = np.where(self.rng.random(d) < 0.5, 0.0, 10.0 ** self.rng.uniform(-2, 0, d))
        elif kind == 7:
            h = 10.0 ** self.rng.uniform(-3, 0, d)
            values = dict(spec.values)
            most = 2.0 * (1 + values.get("momentum", 0.0)) / (1 - values.get("dampening", 0.0))
            h[0] = most * (1 - self.pick(1, 1, 1, -1) * self.log(-16, -1))
        elif kind == 8:
            h = np.full(d, self.rng.uniform(0.01, 1.0)) * (1 + self.pick(0.0, 1e-15, 1e-8) * self.rng.random(d))
        else:
            h = self.rng.uniform(0.0, limit * 1.1, d)
        return h

    def hessian(self, spec, d=None, rotated=None):
        """A Hessian and its dimension."""
        d = d or self.dim()
        lr = dict(spec.values).get("lr", 0.1)
        h = np.clip(self.sizes(spec, d) / lr, 0.0, 1e300)
        if d == 1 or (self.chance(0.5) if rotated is None else not rotated):
            return np.diag(h)
        return self.rotated(h)

    def rotated(self, h):
        u = np.linalg.qr(self.rng.normal(size=(len(h), len(h))))[0]
        a = (u * h) @ u.T
        return (a + a.T) / 2

    def noise(self, d, hessian=None):
        """A noise covariance."""
        kind, size = self.rng.integers(9), self.pick(1.0, 1.0, 1.0, 1.0, 1e-6, 1e6, self.log(-150, 150))
        if kind < 3:
            g = self.rng.normal(size=(d, d))
        elif kind == 3:
            g = self.rng.normal(size=(d, max(1, d - 1)))
        elif kind == 4:
            return np.eye(d) * size
        elif kind == 5:
            return np.diag(np.where(self.rng.random(d) < 0.4, 0.0, self.rng.random(d))) * size
        elif kind == 6 and hessian is not None and np.any(hessian):
            return hessian / np.max(np.abs(hessian)) * size
        elif kind == 7:
            g = self.rng.normal(size=(d, d)) * 10.0 ** -self.rng.uniform(0, 12, d)
        else:
            g = np.diag(10.0 ** -self.rng.uniform(0, 8, d))
        c = g @ g.T
        return (c + c.T) / 2 * size

    def steps(self):
        return int(self.pick(0, 1, 2, 3, self.rng.integers(4, 100), self.rng.integers(100, 10**6), 10**9, 10**15))

    def data(self, d=None, n=None):
        """Inputs and labels of few examples: ordinary, equal, rank-deficient, collinear, of unequal units."""
        d, n = d or int(self.pick(1, 1, 2, 2, 3)), n or int(self.pick(1, 2, 3, 4))
        X, kind = self.rng.normal(size=(n, d)), self.rng.integers(9)
        if kind == 0:
            X[:] = X[0]
        elif kind == 1:
            X[:, -1] = X[:, 0]
        elif kind == 2:
            X[:, -1] = X[:, 0] * (1 + self.log(-14, -2) * self.rng.normal(size=n))
        elif kind == 3:
            X *= 10.0 ** self.rng.uniform(-8, 8, d)
        elif kind == 4:
            X *= self.log(-60, 60)
        elif kind == 5:
            X = np.round(X)
        return X, self.rng.normal(size=n) * self.pick(1.0, 1.0, 1e-8, 1e8, 0.0)

    def weights(self, n):
        """Sample weights, with zeros among them, or None."""
        if self.chance(0.6):
            return None
        return np.where(self.rng.random(n) < 0.3, 0.0, self.rng.random(n) * 2)

    def batch(self, n):
        """A batch size and whether it is drawn with replacement."""
        return int(self.rng.integers(1, n + 1)), bool(self.chance(0.5))


def _spec(rng):
    name = RULES[rng.choice(len(RULES), p=[0.35, 0.2, 0.1, 0.1, 0.1, 0.08, 0.07])]
    kind = rng.integers(10)
    lr = 10.0 ** (rng.uniform(-4, 0) if kind < 6 else rng.uniform(-30, -8) if kind < 8 else rng.uniform(-140, 140))
    values = {"lr": float(lr) if kind != 5 else 0.1}

    def fraction():
        k = rng.integers(6)
        return float([0.0, 0.5, 0.9, 0.99, 1 - 10.0 ** -rng.uniform(2, 15), rng.random()][k])

    if name in ("heavy_ball", "nesterov", "polyak", "sgdw"):
        values["momentum"] = fraction()
    if name == "heavy_ball" and rng.random() < 0.3:
        values["dampening"] = fraction()
    if name == "qhm":
        values |= {"beta": fraction(), "nu": float([0.0, 1.0, 0.7, rng.random()][rng.integers(4)])}
    if name == "sam":
        values["rho"] = float([0.0, 0.1, 1.0][rng.integers(3)]) * values["lr"]
    if name == "sgdw" or (name != "sam" and rng.random() < 0.2):
        values["weight_decay"] = float([0.0, 0.1, 1e-8, 1e-15][rng.integers(4)] / values["lr"])
    ema = float([0.5, 0.9, 0.999, 1 - 1e-9][rng.integers(4)]) if rng.random() < 0.12 else None
    return Spec(name, tuple(values.items()), ema)
