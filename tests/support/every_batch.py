"""An oracle for minibatches without any theory: every batch listed, its step read off the rule's own function, exactly.

All arithmetic is with fractions, so moments and stationary laws are exact numbers, not accurate ones.
"""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


def fractions(a):
    """The exact values of an array of floats."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(a, dtype=float))


def batches(num_examples, batch_size, replacement):
    """Every batch, each as likely as any other."""
    indices = range(num_examples)
    if replacement:
        return [list(batch) for batch in itertools.product(indices, repeat=batch_size)]
    return [list(batch) for batch in itertools.combinations(indices, batch_size)]


@dataclass(frozen=True)
class EveryBatch:
    """z' = transitions[k] z + pushes[k] for batch k, of all slots stacked."""

    transitions: np.ndarray  # (K, n, n)
    pushes: np.ndarray  # (K, n)

    @classmethod
    def of(cls, optimizer, hessians, gradients, batch_size, replacement):
        """From per-example gradients H_n w + r_n; exact if the arrays hold fractions."""
        slots, d = len(optimizer.rule.slots), hessians.shape[1]
        values = {name: Fraction(value) for name, value in optimizer.values.items()}
        one, zero = Fraction(1), Fraction(0)
        units = np.where(np.eye(slots * d, dtype=bool), one, zero)

        def stepped(states, hessian, slope):
            parts = optimizer.rule.function(
                tuple(np.split(states, slots, axis=1)), lambda w: w @ hessian + slope, **values
            )
            return np.hstack(parts)

        transitions, pushes = [], []
        for batch in batches(len(hessians), batch_size, replacement):
            hessian, slope = hessians[batch].sum(axis=0) / batch_size, gradients[batch].sum(axis=0) / batch_size
            push = stepped(units[:1] * zero, hessian, slope)[0]
            transitions.append((stepped(units, hessian, slope) - push).T)
            pushes.append(push)
        return cls(np.array(transitions), np.array(pushes))

    @property
    def mean(self):
        """The stationary mean."""
        n = self.pushes.shape[1]
        transition = self.transitions.sum(axis=0) / len(self.transitions)
        return solve(np.eye(n, dtype=int) - transition, self.pushes.sum(axis=0) / len(self.pushes))

    @property
    def covariance(self):
        """The stationary covariance, from one dense system for the triangle."""
        n, mean = self.pushes.shape[1], self.mean
        kicks = self.transitions @ mean + self.pushes - mean
        source = sum(np.outer(u, u) for u in kicks) / len(kicks)
        pairs = [(i, j) for i in range(n) for j in range(i, n)]
        columns = []
        for i, j in pairs:
            unit = np.full((n, n), Fraction(0))
            unit[i, j] = unit[j, i] = Fraction(1)
            image = sum(a @ unit @ a.T for a in self.transitions) / len(self.transitions)
            columns.append([unit[p] - image[p] for p in pairs])
        entries = solve(np.array(columns).T, np.array([source[p] for p in pairs]))
        out = np.empty((n, n), dtype=object)
        for (i, j), value in zip(pairs, entries, strict=True):
            out[i, j] = out[j, i] = value
        return out

    def after(self, steps, mean, covariance):
        """Mean and covariance a number of steps after a start."""
        second = covariance + np.outer(mean, mean)
        count = len(self.transitions)
        for _ in range(steps):
            cross = sum(np.outer(a @ mean, c) for a, c in zip(self.transitions, self.pushes, strict=True)) / count
            second = (
                sum(a @ second @ a.T for a in self.transitions) / count
                + cross
                + cross.T
                + sum(np.outer(c, c) for c in self.pushes) / count
            )
            mean = self.transitions.sum(axis=0) @ mean / count + self.pushes.sum(axis=0) / count
        return mean, second - np.outer(mean, mean)

    @property
    def spectral_radius(self):
        """Of the second-moment operator, as a dense matrix of floats."""
        floats = self.transitions.astype(float)
        operator = np.mean([np.kron(a, a) for a in floats], axis=0)
        return float(np.max(np.abs(np.linalg.eigvals(operator))))


def solve(matrix, right):
    """Gaussian elimination, exact for fractions."""
    a = np.column_stack([matrix, right])
    n = len(a)
    for k in range(n):
        pivot = next(i for i in range(k, n) if a[i, k] != 0)
        a[[k, pivot]] = a[[pivot, k]]
        a[k] = a[k] / a[k, k]
        for i in range(n):
            if i != k and a[i, k] != 0:
                a[i] = a[i] - a[i, k] * a[k]
    return a[:, -1]
