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


def relative_error(value, exact):
    """In the Frobenius norm, as a double; ``exact`` may be the covariance of all slots, the weights first."""
    d = len(value)
    with mpmath.workdps(DIGITS):
        return float(
            mpmath.norm(list((exactly(value) - exact[:d, :d]).ravel())) / mpmath.norm(list(exact[:d, :d].ravel()))
        )
