r"""The Stein operator in Schur form: which modes make it singular, and back substitution.

Everything is said in the increment :math:`D = A - I`, in which the equation :math:`A X A^\top - X + Q = 0` reads

.. math:: D X D^\top + D X + X D^\top + Q = 0 .

With the complex Schur form :math:`D = Z T Z^*` and :math:`Y = Z^* X Z`, :math:`F = Z^* Q Z` it becomes triangular, and
the pivot of the entry (i, j) is :math:`d_i + \bar d_j + d_i \bar d_j = \lambda_i\bar\lambda_j - 1`, formed without
cancellation for eigenvalues near 1.  The operator is singular exactly where a pivot is 0: at pairs of eigenvalues that
mirror each other in the unit circle, :math:`\lambda_i = 1/\bar\lambda_j`, above all at eigenvalues on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.lapack import ztrsen, ztrtrs

from ..errors import InvalidProblemError

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Mask = NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
#: The backward error of a Schur form is taken as this multiple of ``m * eps * norm(A)``.
SAFETY = 4.0
#: Pairs with a larger pivot than this are not examined for singularity.
CANDIDATE = 0.05
#: The most modes on the circle (or mirrored in it) for which the coupled problem is solved as a dense one.
LARGEST_COUPLED = 24


@dataclass(frozen=True, eq=False)
class SchurForm:
    """``A - I = vectors @ increment @ vectors^*`` with an upper triangular increment."""

    increment: Complex
    vectors: Complex
    eigenvalues: Complex
    norm: float
    exact: bool

    @property
    def dim(self) -> int:
        return int(self.increment.shape[0])

    @property
    def rounding(self) -> float:
        """The size of a perturbation of A that the computed Schur form cannot tell from A."""
        return SAFETY * self.dim * EPS * self.norm

    def adjoint(self) -> SchurForm:
        """The Schur form of the transpose of A (real), without a new factorisation."""
        flipped = np.asfortranarray(self.increment.conj().T[::-1, ::-1])
        vectors = np.asfortranarray(self.vectors[:, ::-1])
        return SchurForm(flipped, vectors, self.eigenvalues.conj()[::-1], self.norm, self.exact)

    def reordered(self, select: Mask) -> Ordered:
        """The form with the selected eigenvalues leading, and how well they are told from the rest."""
        k, m = int(select.sum()), self.dim
        if k in (0, m):
            return Ordered(self, k, self.rounding, 0.0)
        lwork = max(1, 2 * k * (m - k))
        t, z, w, _, s, sep, info = ztrsen(select.astype(np.int32), self.increment, self.vectors, job=b"B", lwork=lwork)
        if info != 0:  # two eigenvalues too close to swap: they are one cluster to working precision
            raise InvalidProblemError("the eigenvalues on the unit circle cannot be told from those near it")
        eigenvalues = np.concatenate([self.eigenvalues[select], self.eigenvalues[~select]]) if self.exact else 1.0 + w
        return Ordered(SchurForm(t, z, eigenvalues, self.norm, False), k, self.rounding / s, self.rounding / sep)


@dataclass(frozen=True, eq=False)
class Ordered:
    """A Schur form whose leading ``split`` eigenvalues are those asked for.

    ``block_rounding`` bounds the rounding of its two diagonal blocks, ``subspace_rounding`` the angle by which the two
    invariant subspaces are off; both from LAPACK's condition numbers of a cluster of eigenvalues.
    """

    form: SchurForm
    split: int
    block_rounding: float
    subspace_rounding: float


def schur_form(a: Array) -> SchurForm:
    """The Schur form of ``a - I``; a triangular ``a`` is its own, with exactly known eigenvalues."""
    m = a.shape[0]
    increment = a - np.eye(m)
    norm = float(np.sqrt(np.abs(a).sum(axis=0).max()) * np.sqrt(np.abs(a).sum(axis=1).max()))
    identity = np.eye(m, dtype=np.complex128, order="F")
    if not np.any(np.tril(a, -1)):
        diagonal = np.diagonal(a).astype(np.complex128)
        return SchurForm(np.asfortranarray(increment, dtype=np.complex128), identity, diagonal, norm, True)
    if not np.any(np.triu(a, 1)):
        t = np.asfortranarray(increment[::-1, ::-1], dtype=np.complex128)
        diagonal = np.diagonal(a)[::-1].astype(np.complex128)
        return SchurForm(t, np.asfortranarray(identity[:, ::-1]), diagonal, norm, True)
    t, z = scipy.linalg.schur(increment, output="complex", check_finite=False)
    t = np.asfortranarray(np.triu(t))
    return SchurForm(t, np.asfortranarray(z), 1.0 + np.diagonal(t), norm, False)


def signed_schur_form(a: Array) -> tuple[Array, SchurForm, float]:
    """``(a, form, 1)`` or, where the mode nearest the circle is nearer -1 than 1, the same of ``-a`` with -1.

    A and -A have one Stein equation; the increment is exact near 1 only.
    """
    form = schur_form(a)
    nearest = form.eigenvalues[int(np.abs(np.abs(form.eigenvalues) - 1.0).argmin())]
    if nearest.real >= 0.0:
        return a, form, 1.0
    return -a, schur_form(-a), -1.0


def pivots(increment: Complex) -> Complex:
    r"""The m x m matrix of :math:`\lambda_i\bar\lambda_j - 1` from the increments."""
    d = np.diagonal(increment)
    out: Complex = d[:, None] + d.conj()[None, :] + d[:, None] * d.conj()[None, :]
    return out


def _smallest_singular_value(t: Complex, shift: complex) -> float:
    """An estimate (from above, by four inverse iterations) for upper triangular ``t + shift * I``."""
    shifted = t.copy(order="F")
    shifted[np.diag_indices_from(shifted)] += shift
    x = np.exp(1j * np.arange(t.shape[0])).reshape(-1, 1)  # a fixed start with no special direction
    size = 0.0
    for trans in (0, 2) * 4:
        x /= np.linalg.norm(x)
        x, info = ztrtrs(shifted, x, trans=trans)
        size = float(np.linalg.norm(x))
        if info > 0 or not np.isfinite(size):
            return 0.0
    return 1.0 / size


def mirrored_modes(form: SchurForm) -> tuple[Mask, Mask]:
    """Which eigenvalues are mirrored in the unit circle by an eigenvalue, and which of those lie on it.

    For a triangular matrix the eigenvalues are known exactly, and so is the answer on the circle.  Otherwise the
    question is put to the pseudospectrum: an eigenvalue counts as mirrored where a perturbation of A of the size of
    the rounding of its Schur form gives A the mirrored eigenvalue.
    """
    lam, t = form.eigenvalues, form.increment
    modulus = np.abs(lam)
    gaps = np.abs(pivots(t))
    if form.exact:
        unit = modulus == 1.0
        products = np.abs(lam[:, None] * lam[None, :] - 1.0) <= 4.0 * EPS
        across = (modulus[:, None] > 1.0) != (modulus[None, :] > 1.0)
        return unit | np.any(products & across & ~unit[:, None] & ~unit[None, :], axis=1), unit
    mirrored = np.zeros(form.dim, dtype=bool)
    unit = np.zeros(form.dim, dtype=bool)
    for j in np.flatnonzero(gaps.min(axis=0) <= CANDIDATE):
        d = complex(t[j, j])
        image = 1.0 / np.conj(1.0 + d)
        if _smallest_singular_value(t, np.conj(d) * image) > form.rounding * (1.0 + abs(image) ** 2):
            continue
        mirrored[j] = mirrored[int(gaps[:, j].argmin())] = True
        unit[j] = _smallest_singular_value(t, 1.0 - lam[j] / modulus[j]) <= 2.0 * form.rounding
    return mirrored, unit


def residual(increment: Complex | Array, x: Complex | Array, q: Complex | Array) -> Complex | Array:
    """``D X D^* + D X + X D^* + Q``, which is ``A X A^* - X + Q``."""
    left = increment @ x
    out: Complex | Array = left @ increment.conj().T + left + x @ increment.conj().T + q
    return out


def back_substitute(increment: Complex, f: Complex, start: int = 0) -> Complex:
    """The Hermitian Y of the triangular equation, by columns from the last down to ``start``.

    Column j solves ``((1 + conj(d_j)) D + conj(d_j) I) y_j = -f_j - A sum_{k>j} y_k conj(D_jk)``; only its entries
    down to the diagonal are unknown.  The leading ``start`` x ``start`` block of Y stays 0.
    """
    m = increment.shape[0]
    y = np.zeros((m, m), dtype=np.complex128, order="F")
    for j in range(m - 1, start - 1, -1):
        n = j + 1
        pivot = np.conj(increment[j, j])
        rhs = -f[:n, j]
        if n < m:
            mixed = y[:, n:] @ increment[j, n:].conj()
            rhs = rhs - increment[:n] @ mixed - mixed[:n]
            rhs = rhs - (1.0 + pivot) * (increment[:n, n:] @ y[n:, j])
        matrix = (1.0 + pivot) * increment[:n, :n]
        matrix[np.diag_indices(n)] += pivot
        # the diagonal entry is real; rounding must not say otherwise before the entries above are made from it
        matrix[j, j] = 2.0 * pivot.real + abs(pivot) ** 2
        rhs[j] = rhs[j].real
        column, _ = ztrtrs(np.asfortranarray(matrix), rhs)
        y[:n, j] = column.ravel()
        y[j, :j] = y[:j, j].conj()
    return y


def singular_solve(increment: Complex, f: Complex, rounding: float) -> tuple[Complex, float]:
    """The minimum-norm least-squares Y of a singular triangular equation, and the norm of what it leaves over."""
    k = increment.shape[0]
    size = float(np.linalg.norm(increment + np.eye(k)))
    level = rounding * max(1.0, size)
    if np.linalg.norm(increment - np.diag(np.diagonal(increment))) <= level:
        den = pivots(increment)
        free = np.abs(den) <= 4.0 * level
        den[free] = 1.0
        return np.where(free, 0.0, -f / den), float(np.linalg.norm(f[free]))
    u, s, vh = _coupled_svd(increment)
    keep = s > 4.0 * level
    y = -(vh[keep].conj().T @ ((u[:, keep].conj().T @ f.ravel()) / s[keep])).reshape(k, k)
    return y, float(np.linalg.norm(u[:, ~keep].conj().T @ f.ravel()))


def kernel_part(increment: Complex, y: Complex, rounding: float) -> Complex:
    """The orthogonal projection of Y on the kernel of the triangular Stein operator."""
    k = increment.shape[0]
    level = rounding * max(1.0, float(np.linalg.norm(increment + np.eye(k))))
    if np.linalg.norm(increment - np.diag(np.diagonal(increment))) <= level:
        return np.where(np.abs(pivots(increment)) <= 4.0 * level, y, 0.0)
    _, s, vh = _coupled_svd(increment)
    null = vh[s <= 4.0 * level]
    return (null.conj().T @ (null @ y.ravel())).reshape(k, k)


def _coupled_svd(increment: Complex) -> tuple[Complex, Array, Complex]:
    k = increment.shape[0]
    if k > LARGEST_COUPLED:
        raise InvalidProblemError(
            f"A has {k} coupled modes on the unit circle or mirrored in it; the minimum-norm solution is "
            f"computed for at most {LARGEST_COUPLED} (any number where they are not coupled)"
        )
    eye = np.eye(k)
    operator = np.kron(increment, eye) + np.kron(eye, increment.conj()) + np.kron(increment, increment.conj())
    u, s, vh = np.linalg.svd(operator)
    return u, s, vh
