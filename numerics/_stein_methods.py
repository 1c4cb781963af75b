"""The Stein equation without a Schur form (doubling, dense), and the norms behind its condition number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, onenormest

from ..errors import InvalidProblemError, NonStationaryError
from ._triangular_stein import EPS, Array, SchurForm, back_substitute

#: 2^64 terms of the sum; more than the slowest float64 mode below 1 needs.
MOST_DOUBLINGS = 64


def doubling(a: Array, q: Array, rho: float) -> Array:
    """Squared Smith: S <- S + A S A^T, A <- A^2, in D = A - I as long as A is nearer to I than to 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # powers of a matrix far from normal: the error below
        total = _doubled(a, q)
    if total is None:
        raise NonStationaryError(
            f"doubling did not converge in {MOST_DOUBLINGS} steps although the computed spectral radius is {rho:.17g}: "
            "A is too far from normal; use method='schur'",
            rho=rho,
        )
    return total


def _doubled(a: Array, q: Array) -> Array | None:
    m = a.shape[0]
    d, s = a - np.eye(m), q
    for _ in range(MOST_DOUBLINGS):
        if np.linalg.norm(d) < 0.5 * math.sqrt(m):
            left = d @ s
            step = s + left + left.T + left @ d.T
            d = 2.0 * d + d @ d
            a = d + np.eye(m)
        else:
            step = a @ s @ a.T
            a = a @ a
            d = a - np.eye(m)
        s = s + 0.5 * (step + step.T)
        if not np.all(np.isfinite(s)):
            return None
        if np.linalg.norm(a) ** 2 <= 0.1 * EPS:
            return np.asarray(s)
    return None


def kronecker_matrix(a: Array) -> Array:
    """The m^2 x m^2 matrix of X -> A X A^T - X on the rows of X, from D = A - I."""
    eye = np.eye(a.shape[0])
    d = a - eye
    return np.asarray(np.kron(d, eye) + np.kron(eye, d) + np.kron(d, d))


def kronecker(a: Array, q: Array) -> Array:
    m = a.shape[0]
    try:
        x = np.linalg.solve(kronecker_matrix(a), -q.ravel()).reshape(m, m)
    except np.linalg.LinAlgError as error:
        raise InvalidProblemError("A X A^T - X is singular to working precision; use method='schur'") from error
    return np.asarray(0.5 * (x + x.T))


def least_squares(a: Array, q: Array) -> Array:
    m = a.shape[0]
    norm = 1.0 + float(np.linalg.norm(a, 2)) ** 2
    u, s, vt = np.linalg.svd(kronecker_matrix(a))
    keep = s > 8.0 * m * EPS * norm
    x = -(vt[keep].T @ ((u[:, keep].T @ q.ravel()) / s[keep])).reshape(m, m)
    return np.asarray(0.5 * (x + x.T))


def norm_1(a: Array) -> float:
    """The 1-norm of kron(A, A) - I: its largest column sum, with the identity's entry put right."""
    columns = np.abs(a).sum(axis=0)
    diagonal = np.diagonal(a)
    both = np.outer(diagonal, diagonal)
    return float(np.max(np.outer(columns, columns) - np.abs(both) + np.abs(both - 1.0)))


def inverse_norm_1(form: SchurForm) -> float:
    m = form.dim

    def solve_with(this: SchurForm) -> Callable[[Array], Array]:
        def solve(vectors: Array) -> Array:
            out = np.empty((m * m, vectors.shape[1]))
            for k in range(vectors.shape[1]):
                r = vectors[:, k].reshape(m, m)
                # symmetric and antisymmetric part are one Hermitian matrix, hence one solve
                hermitian = 0.5 * (r + r.T) + 0.5j * (r - r.T)
                f = this.vectors.conj().T @ hermitian @ this.vectors
                x = this.vectors @ back_substitute(this.increment, -f) @ this.vectors.conj().T
                out[:, k] = (x.real + x.imag).ravel()
            return out

        return solve

    forward, adjoint = solve_with(form), solve_with(form.adjoint())
    operator = LinearOperator(
        (m * m, m * m),
        matvec=lambda v: forward(np.asarray(v).reshape(-1, 1)),
        rmatvec=lambda v: adjoint(np.asarray(v).reshape(-1, 1)),
        matmat=forward,
        rmatmat=adjoint,
        dtype=np.float64,
    )
    return float(onenormest(operator, t=1))  # t > 1 would draw from the global random state
