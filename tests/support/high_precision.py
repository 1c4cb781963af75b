"""Stationary laws in 60 digits, from the rule's own step function run on such numbers: independent of numerics."""

import mpmath
import numpy as np

DIGITS = 60


def exactly(a):
    """Doubles as numbers of many digits."""
    return np.vectorize(mpmath.mpf, otypes=[object])(np.asarray(a, dtype=float))


def recursion(optimizer, hessian):
    """A and B of the stacked slots, ``z' = A z + B xi``."""
    d, m = len(hessian), len(optimizer.rule.slots)
    values = {name: mpmath.mpf(value) for name, value in optimizer.values.items()}
    zero = np.array([mpmath.mpf(0)] * d, dtype=object)

    def step(state, noise):
        moved = optimizer.rule.function(tuple(state), lambda w: hessian.dot(w) + noise, **values)
        return np.concatenate([slot + zero for slot in moved])

    def unit(k, size):
        return np.array([mpmath.mpf(int(i == k)) for i in range(size)], dtype=object)

    transition = [step(unit(k, m * d).reshape(m, d), zero) for k in range(m * d)]
    gain = [step([zero] * m, unit(k, d)) for k in range(d)]
    return np.array(transition, dtype=object).T, np.array(gain, dtype=object).T


def stationary_law(optimizer, hessian, noise, preconditioner=None, digits=DIGITS + 40):
    """The covariance of all slots for the very doubles given, by doubling; a slow rule takes more digits."""
    with mpmath.workdps(digits):
        h, c = exactly(hessian), exactly(noise)
        if preconditioner is not None:
            p = exactly(preconditioner)
            p = np.diag(p) if p.ndim == 1 else p
            h, c = p.dot(h), p.dot(c).dot(p)
        a, b = recursion(optimizer, h)
        z = b.dot(c).dot(b.T)
        for _ in range(1200):
            z, a = z + a.dot(z).dot(a.T), a.dot(a)
            if max(abs(x) for x in a.ravel()) < mpmath.mpf(10) ** (-DIGITS // 2):
                return z
    raise AssertionError("the recursion does not contract")


def autocovariance(optimizer, hessian, noise, lag):
    """``A^lag Z`` for all slots."""
    z = stationary_law(optimizer, hessian, noise)
    with mpmath.workdps(DIGITS + 40):
        a, _ = recursion(optimizer, exactly(hessian))
        for _ in range(lag):
            z = a.dot(z)
        return z


def average_covariance(optimizer, hessian, noise, window):
    """Of the mean of so many states: the sum over all pairs of times."""
    z = stationary_law(optimizer, hessian, noise)
    with mpmath.workdps(DIGITS + 40):
        a, _ = recursion(optimizer, exactly(hessian))
        total, lagged = window * z, z
        for lag in range(1, window):
            lagged = a.dot(lagged)
            total = total + (window - lag) * (lagged + lagged.T)
        return total / window**2


def epoch_law(optimizer, hessian, noise, batches):
    """The state at the ends of epochs whose noises sum to zero: every pair of their steps, epoch after epoch."""
    with mpmath.workdps(DIGITS + 40):
        a, b = recursion(optimizer, exactly(hessian))
        gains, power = [b], a
        for _ in range(batches - 1):
            gains.append(a.dot(gains[-1]))
            power = power.dot(a)
        mean = sum(gains) / batches
        z = sum((g - mean).dot(exactly(noise)).dot((g - mean).T) for g in gains) * batches / (batches - 1)
        for _ in range(1200):
            z, power = z + power.dot(z).dot(power.T), power.dot(power)
            if max(abs(x) for x in power.ravel()) < mpmath.mpf(10) ** (-DIGITS // 2):
                return z
    raise AssertionError("the recursion does not contract")


def relative_error(value, exact):
    """In the Frobenius norm, as a double; ``exact`` may be the covariance of all slots, the weights first."""
    d = len(value)
    with mpmath.workdps(DIGITS):
        return float(
            mpmath.norm(list((exactly(value) - exact[:d, :d]).ravel())) / mpmath.norm(list(exact[:d, :d].ravel()))
        )
