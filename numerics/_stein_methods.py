r"""Solving the Stein equation by doubling or as one dense system, refining any solution of it, and bounding its error.

Everything is said in D = A - I, and D and Q may be known to more than double precision (`Pair`).  Write

.. math:: \mathcal L(X) = X - A X A^\top , \qquad \mathcal L^{-1}(Q) = \sum_k A^k Q A^{k\top}

where the spectral radius is below 1; then :math:`\mathcal L^{-1}` keeps the order of symmetric matrices.

*Refinement.*  A solver that is right to a digit or two is applied to the residual, evaluated to twice the working
precision, until nothing changes; the solution is kept with the part that double precision does not hold.

*Certificate.*  Y > 0 with :math:`|\mathcal L(Y) - I| \le \delta < 1` is Lyapunov's proof that A is stable, whatever
eigenvalues an algorithm found, and :math:`\mathcal L^{-1}(I) \le Y / (1 - \delta)`.

*Error.*  :math:`-W \le R \le W` for the residual R gives :math:`|\mathcal L^{-1}(R)_{ij}| \le \sqrt{Z_{ii} Z_{jj}}`,
:math:`Z = \mathcal L^{-1}(W)`; W is diagonal with row sums of |R|, in units in which X has the diagonal 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, onenormest

from ._accurate import SLICES, Pair, slice_bits, stein_residual
from ._triangular_stein import EPS, Array, SchurForm, back_substitute

__all__ = [
    "Bounded",
    "Solver",
    "bounded",
    "certificate",
    "deviations",
    "doubling",
    "in_units",
    "inverse_norm_1",
    "kronecker",
    "kronecker_matrix",
    "least_squares",
    "norm_1",
    "refined",
    "schur",
    "solver",
    "stein_residual",
]

#: Maps a symmetric Q to an approximate solution X of A X A' - X + Q = 0.
Solver: TypeAlias = Callable[[Array], Array]

#: 2^64 terms of the sum; more than the slowest float64 mode below 1 needs.
MOST_DOUBLINGS = 64
#: Refinements after which a solver that still improves is taken for one that does not converge.
MOST_REFINEMENTS = 8
#: Refinement has arrived when a correction is below this, relatively.
SETTLED = EPS**2
#: A certificate is accepted up to this defect.
LARGEST_DEFECT = 0.5


def doubling(d: Array) -> Solver | None:
    """Squared Smith: S <- S + A S A^T, A <- A^2, in D = A - I; None if the powers of A do not tend to 0.

    The powers are kept, so that every further right-hand side costs two products a step.
    """
    eye = np.eye(d.shape[0])
    steps: list[Array] = []
    with np.errstate(over="ignore", invalid="ignore"):  # powers of an unstable A: None below
        for _ in range(MOST_DOUBLINGS):
            steps.append(d)
            d = 2.0 * d + d @ d
            if not np.all(np.isfinite(d)):
                return None
            # what is left of the sum is A^n S A^nT, of the size of |A^n|^2
            if np.linalg.norm(d + eye) ** 2 <= 0.1 * EPS:
                return lambda q: _summed(steps, q)
    return None


def _summed(steps: list[Array], q: Array) -> Array:
    s = q
    for d in steps:
        left = d @ s
        s = 2.0 * s + left + left.T + left @ d.T
        s = 0.5 * (s + s.T)
    return s


def kronecker_matrix(d: Array) -> Array:
    """The m^2 x m^2 matrix of X -> A X A^T - X on the rows of X, from D = A - I."""
    eye = np.eye(d.shape[0])
    return np.asarray(np.kron(d, eye) + np.kron(eye, d) + np.kron(d, d))


def kronecker(d: Array) -> Solver:
    """One dense linear system; infinite where it is exactly singular."""
    m = d.shape[0]
    factors, pivots, _ = scipy.linalg.lapack.dgetrf(kronecker_matrix(d))

    def solve(q: Array) -> Array:
        x, _ = scipy.linalg.lapack.dgetrs(factors, pivots, -q.ravel())
        x = x.reshape(m, m)
        return np.asarray(0.5 * (x + x.T))

    return solve


def schur(form: SchurForm) -> Solver:
    """Back substitution in the complex Schur form of D."""

    def solve(q: Array) -> Array:
        f = form.vectors.conj().T @ q @ form.vectors
        x = (form.vectors @ back_substitute(form.increment, f) @ form.vectors.conj().T).real
        return np.asarray(0.5 * (x + x.T))

    return solve


def solver(method: str, form: SchurForm, d: Array) -> Solver | None:
    """The solver of a method's name; None where doubling does not converge."""
    return doubling(d) if method == "doubling" else kronecker(d) if method == "kronecker" else schur(form)


def deviations(solve: Solver, q: Array) -> Array:
    """Powers of two of the size of the deviations of the solution; 1 where there are none."""
    with np.errstate(all="ignore"):
        variances = np.abs(np.diagonal(solve(q)))
        known = np.isfinite(variances) & (variances > 0.0)
        exponents = np.frexp(np.sqrt(np.where(known, variances, 1.0)))[1]
        return np.asarray(np.ldexp(1.0, np.clip(exponents, -300, 300)))


def in_units(solve: Solver, d: Pair, q: Array, units: Array) -> tuple[Solver, Pair, Array]:
    """The solver, D and Q of the state divided by powers of two."""
    both, ratio = np.outer(units, units), units / units[:, None]
    return lambda r: solve(r * both) / both, Pair(d.high * ratio, d.low * ratio), q / both


@dataclass(frozen=True)
class Refined:
    """A solution with what double precision does not hold of it, and what it leaves of the equation.

    ``rounding`` bounds, entry by entry, how far ``residual`` itself is from the exact one.
    """

    value: Pair
    residual: Array
    rounding: Array
    converged: bool


def refined(solve: Solver, d: Pair, q: Pair) -> Refined:
    """Apply a solver to the residual until nothing changes."""
    with np.errstate(all="ignore"):  # a solver that fails gives what is not finite, and does not converge
        x = Pair.of(solve(q.high))
        if not np.all(np.isfinite(x.high)):
            return Refined(x, np.full_like(x.high, np.inf), np.full_like(x.high, np.inf), converged=False)
        r = stein_residual(d, x, q)
        before = math.inf
        for _ in range(MOST_REFINEMENTS):
            size = float(np.linalg.norm(x.high))
            step = solve(r)
            change = float(np.linalg.norm(step))
            if not change < 0.5 * before or not math.isfinite(change):
                break
            x = x + Pair.of(step)
            r = stein_residual(d, x, q)
            before = change
            if change <= SETTLED * size:
                break
    converged = before <= math.sqrt(EPS) * float(np.linalg.norm(x.high))
    return Refined(x, r, _rounding(d.high, x.high, q.high), converged)


def _rounding(d: Array, x: Array, q: Array) -> Array:
    """A bound of the rounding of `stein_residual`, and of D and Q beyond their pairs, entry by entry."""
    m = d.shape[0]
    unit = 8.0 * m * 2.0 ** (-SLICES * (slice_bits(m) - 1))  # slices are cut from the largest entry of a row
    rows = np.max(np.abs(d), axis=1)
    left = np.outer(rows, np.max(np.abs(x), axis=0))
    both = np.outer(np.max(left, axis=1), rows)
    return np.asarray(unit * m * (left + left.T + m * both) + EPS**2 * np.abs(q))


def certificate(solve: Solver, d: Pair) -> tuple[Array, float, bool]:
    """``(Y, defect, definite)``: Y is about L^-1(I), and proves that A is stable where definite and defect < 1.

    Where Y is indefinite and the defect below 1, A has as many eigenvalues outside the circle as Y has below 0.
    """
    eye = np.eye(d.high.shape[0])
    found = refined(solve, d, Pair.of(eye))
    if not np.all(np.isfinite(found.residual)):
        return found.value.high, math.inf, False
    y = found.value.high
    # the low part of Y is dropped here, which the residual of the high part alone knows
    left = stein_residual(d, Pair.of(y), Pair.of(eye))
    defect = float(np.linalg.norm(np.abs(left) + _rounding(d.high, y, eye)))
    try:
        scipy.linalg.cholesky(y - 4.0 * EPS * len(y) * np.diag(np.diagonal(y)), check_finite=False)
    except np.linalg.LinAlgError:
        return y, defect, False
    return y, defect, True


@dataclass(frozen=True)
class Bounded:
    """A solution and a bound of the error of each entry; infinite where nothing is certified."""

    value: Array
    error: Array
    residual: Array

    @property
    def certified(self) -> bool:
        """Whether there is a bound."""
        return bool(np.all(np.isfinite(self.error)))


def bounded(
    solve: Solver, d: Pair, q: Pair, *, further: Array | None = None, proof: tuple[Array, float, bool] | None = None
) -> Bounded:
    """A refined solution of a stable equation with its error, infinite where A is not proved stable.

    ``further`` bounds, entry by entry, what else the right-hand side may be off by; ``proof`` is the certificate.
    """
    y, defect, definite = certificate(solve, d) if proof is None else proof
    found = refined(solve, d, q)
    x = found.value
    if not (definite and defect <= LARGEST_DEFECT and found.converged):
        return Bounded(x.high, np.full_like(x.high, math.inf), found.residual)
    off = np.abs(found.residual) + found.rounding
    if further is not None:
        off = off + further
    deviation = np.sqrt(np.abs(np.diagonal(x.high)))
    deviation = np.where(deviation > 0.0, deviation, 1.0)
    # -diag(w) <= E <= diag(w) for |E_ij| <= off_ij: Gershgorin after scaling by the deviations
    w = deviation * (off @ (1.0 / deviation))
    bound = refined(solve, d, Pair.of(np.diag(w)))
    missing = float(np.linalg.norm(np.abs(bound.residual) + bound.rounding))
    z = np.diagonal(bound.value.high) * (1.0 + EPS) + missing * np.diagonal(y) / (1.0 - defect)
    spread = np.sqrt(np.maximum(z, 0.0))
    return Bounded(x.high, np.abs(x.low) + np.outer(spread, spread), found.residual)


def least_squares(d: Array, q: Array) -> Array:
    """The solution of least norm of a singular equation, densely."""
    m = d.shape[0]
    norm = 1.0 + float(np.linalg.norm(d + np.eye(m), 2)) ** 2
    u, s, vt = np.linalg.svd(kronecker_matrix(d))
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
    """The 1-norm of the inverse of the operator, by Higham and Tisseur's estimator."""
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
