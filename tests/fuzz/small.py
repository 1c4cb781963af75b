"""Exact numbers and small matrices of them, as lists of mpf: what the oracle calculates with."""

from __future__ import annotations

from fractions import Fraction

from mpmath import mp, mpf


def exact(x):
    """The exact value of a number, as mpf."""
    if isinstance(x, Fraction):
        return mpf(x.numerator) / x.denominator
    return mpf(x)


def matrix(a):
    """The exact values of an array, as lists."""
    return [[mpf(float(x)) for x in row] for row in a]


def vector(a):
    """The exact values of a vector."""
    return [mpf(float(x)) for x in a]


def eye(n):
    return [[mpf(int(i == j)) for j in range(n)] for i in range(n)]


def transpose(a):
    return [list(row) for row in zip(*a, strict=True)]


def mul(a, b):
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True) if x and y), mpf(0)) for column in columns]
            for row in a]  # fmt: skip


def add(a, b, factor=1):
    return [[x + factor * y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def scaled(a, factor):
    return [[factor * x for x in row] for row in a]


def outer(u, v):
    return [[x * y for y in v] for x in u]


def congruent(u, a, v=None):
    """``u a v'``."""
    return mul(mul(u, a), transpose(u if v is None else v))


def solve(a, b):
    """Gaussian elimination with partial pivoting; None where the matrix is singular.  ``b`` is a matrix."""
    n = len(a)
    rows = [list(a[i]) + list(b[i]) for i in range(n)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        if not rows[pivot][k]:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        top = rows[k]
        for i in range(k + 1, n):
            if rows[i][k]:
                f = rows[i][k] / top[k]
                row = rows[i]
                for j in range(k + 1, len(row)):
                    if top[j]:
                        row[j] -= f * top[j]
                row[k] = mpf(0)
    out = [None] * n
    for k in reversed(range(n)):
        row = rows[k]
        right = row[n:]
        for j in range(k + 1, n):
            if row[j]:
                right = [r - row[j] * x for r, x in zip(right, out[j], strict=True)]
        out[k] = [r / row[k] for r in right]
    return out


def eigen(a):
    """Eigenvalues and the matrix of eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations."""
    n, a, u = len(a), [list(row) for row in a], eye(len(a))
    size = max((abs(x) for row in a for x in row), default=mpf(0))
    for _ in range(60):
        off = max((abs(a[i][j]) for i in range(n) for j in range(i)), default=mpf(0))
        if off <= size * mpf(2) ** (-mp.prec + 8):
            break
        for p in range(n):
            for q in range(p + 1, n):
                if not a[p][q]:
                    continue
                theta = (a[q][q] - a[p][p]) / (2 * a[p][q])
                t = (1 if theta >= 0 else -1) / (abs(theta) + mp.sqrt(theta * theta + 1))
                c = 1 / mp.sqrt(t * t + 1)
                s = t * c
                for k in range(n):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(n):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
                for k in range(n):
                    u[k][p], u[k][q] = c * u[k][p] - s * u[k][q], s * u[k][p] + c * u[k][q]
    return [a[i][i] for i in range(n)], u


def is_diagonal(a):
    return all(not a[i][j] for i in range(len(a)) for j in range(len(a)) if i != j)


def directions(a):
    """`eigen`, but the coordinates themselves where the matrix is diagonal."""
    return ([a[i][i] for i in range(len(a))], eye(len(a))) if is_diagonal(a) else eigen(a)
