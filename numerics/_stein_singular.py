"""The Stein equation where its operator is singular: modes on the unit circle, or mirrored in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from . import _stein_methods as methods
from . import _triangular_stein as tri

__all__ = ["LARGEST_EXACT_CONDITION", "Caller", "Found", "Verdict", "singular_case"]

Array = NDArray[np.float64]
Verdict = Literal["stationary", "unstable", "marginal", "none"]

#: The largest m for which the condition is exact, from the singular values of the m^2 x m^2 matrix.
LARGEST_EXACT_CONDITION = 16


@dataclass(frozen=True, eq=False)
class Caller:
    """The equation in the units of the caller, for what depends on them: which of many solutions has the least norm."""

    a: Array
    q: Array
    units: Array


@dataclass(frozen=True, eq=False)
class Found:
    """A verdict with what belongs to it; the size of Q that no X balances, and what rounding explains of it.

    ``error`` bounds the error of the entries of ``value``.
    """

    verdict: Verdict
    which: tri.Mask
    text: str
    value: Array | None = None
    covariance: Array | None = None
    error: Array | float = 0.0
    size: float = 0.0
    level: float = 0.0
    rho: float | None = None


def singular_case(
    form: tri.SchurForm,
    q: Array,
    method: str,
    mirrored: tri.Mask,
    outside: tri.Mask,
    semidefinite: bool,
    caller: Caller,
) -> Found:
    excitation = _excitation(form, q, mirrored)
    if semidefinite and not outside.any() and excitation.none:
        covariance, error = _unexcited_covariance(excitation, q)
        value = _least_norm(form, q, mirrored, method, caller, covariance)
        text = (
            "marginal: the modes {modes} are on the unit circle and not excited by Q; value is the solution of least "
            "norm, the variance in these modes is that of their start"
        )
        return Found("marginal", mirrored, text, value, covariance, error)
    size, level = excitation.left_over(), excitation.block_level
    if size > level:
        text = (
            f"no solution: Q excites the modes {{modes}}, which {'are mirrored in' if outside.any() else 'are on'} the "
            "unit circle, by {size:.3g} in units in which Q is of the order of 1 (rounding explains at most "
            "{level:.3g})"
        )
        return Found("none", mirrored, text, size=size, level=level)
    value = _least_norm(form, q, mirrored, method, caller, None)
    error = _singular_error(form, q, value)
    if outside.any():
        text = "unstable: the modes {modes} grow or are mirrored; value is the solution of least norm, not a covariance"
        return Found("unstable", mirrored | outside, text, value, error=error)
    if semidefinite:
        text = (
            "unstable: Q excites the defective modes {modes} on the unit circle, so the powers of A grow; value is the "
            "solution of least norm, not a covariance"
        )
        return Found("unstable", mirrored, text, value, error=error)
    text = "marginal: the modes {modes} are on the unit circle; Q is indefinite, value is the solution of least norm"
    return Found("marginal", mirrored, text, value, error=error)


def _singular_error(form: tri.SchurForm, q: Array, value: Array) -> float:
    """What the inverse on the range of a singular operator makes of the residual and of the rounding of A."""
    if form.dim > LARGEST_EXACT_CONDITION:
        return math.inf
    d = (form.vectors @ form.increment @ form.vectors.conj().T).real
    s = scipy.linalg.svdvals(methods.kronecker_matrix(d))
    left = float(np.linalg.norm(tri.residual(d, value, q))) + form.rounding * float(np.linalg.norm(value))
    # the singular values of a mirrored pair are of the size of the rounding, to the power 1/k in a Jordan block
    return left / float(np.min(s[s > math.sqrt(tri.EPS) * s[0]], initial=math.inf))


def _least_norm(
    form: tri.SchurForm, q: Array, mirrored: tri.Mask, method: str, caller: Caller, covariance: Array | None
) -> Array:
    """The solution of least norm in the caller's units, as a solution in balanced ones.

    Where the caller's units hide the singular modes, it is the one of least norm in the balanced units.
    """
    outer, inner = np.outer(caller.units, caller.units), np.ones_like(q)
    plain, plain_q, plain_mirrored = form, q, mirrored
    if np.any(caller.units != 1.0):
        _, other, _ = tri.signed_schur_form(caller.a)
        seen = tri.mirrored_modes(other)[0]
        if np.ptp(np.log2(caller.units)) <= 10.0 and seen.sum() == mirrored.sum():
            plain, plain_q, plain_mirrored, inner = other, caller.q, seen, outer
    if method == "kronecker":
        d = (plain.vectors @ plain.increment @ plain.vectors.conj().T).real
        return methods.least_squares(d, plain_q) / inner
    if covariance is None:
        return _singular(plain, plain_q, plain_mirrored) / inner
    return _without_kernel(plain, covariance * inner, plain_mirrored) / inner


def _transformed(form: tri.SchurForm, x: Array) -> tri.Complex:
    out: tri.Complex = form.vectors.conj().T @ x @ form.vectors
    return out


def _real(form: tri.SchurForm, y: tri.Complex) -> Array:
    x = (form.vectors @ y @ form.vectors.conj().T).real
    return 0.5 * (x + x.T)


@dataclass(frozen=True, eq=False)
class _Excitation:
    """How Q meets the mirrored modes, which come last in ``ordered``.

    The last Schur vectors U span the left invariant subspace of these modes.  A semidefinite Q leaves them alone where
    Q U = 0.  An error of angle t in U changes Q U by t |Q| but U* Q U by 2 t |Q U| + t^2 |Q| only.
    """

    ordered: tri.Ordered
    touch: float
    touch_level: float
    block: tri.Complex
    block_level: float

    @property
    def none(self) -> bool:
        return self.touch <= self.touch_level and float(np.linalg.norm(self.block)) <= self.block_level

    def left_over(self) -> float:
        """The part of Q that no X can balance."""
        increment = self.ordered.form.increment[self.ordered.split :, self.ordered.split :]
        return tri.singular_solve(increment, self.block, self.ordered.block_rounding)[1]


def _excitation(form: tri.SchurForm, q: Array, mirrored: tri.Mask) -> _Excitation:
    ordered = form.reordered(~mirrored)
    u = ordered.form.vectors[:, ordered.split :]
    size, angle = float(np.linalg.norm(q)), ordered.subspace_rounding
    level = tri.SAFETY * form.dim * tri.EPS * size
    product = q @ u
    touch = float(np.linalg.norm(product))
    block_level = level + 2.0 * angle * touch + angle**2 * size
    return _Excitation(ordered, touch, level + angle * size, u.conj().T @ product, block_level)


def _unexcited_covariance(excitation: _Excitation, q: Array) -> tuple[Array, float]:
    """The sum over A^k Q A^kT where Q is semidefinite and Q U = 0, the damped modes by themselves; and its error."""
    form, n = excitation.ordered.form, excitation.ordered.split
    damped = form.increment[:n, :n]
    y = np.zeros((form.dim, form.dim), dtype=np.complex128)
    y[:n, :n] = tri.back_substitute(damped, _transformed(form, q)[:n, :n])
    left = float(np.linalg.norm(tri.residual(damped, y[:n, :n], _transformed(form, q)[:n, :n])))
    inverse = tri.back_substitute(damped, np.eye(n, dtype=np.complex128))
    gain = float(np.linalg.norm(inverse, 2)) if n else 0.0
    return _real(form, y), left * gain + 2.0 * excitation.ordered.subspace_rounding * float(np.linalg.norm(y))


def _singular(form: tri.SchurForm, q: Array, mirrored: tri.Mask) -> Array:
    """The solution of least norm: the kernel lies in the leading block, once the mirrored modes come first."""
    ordered = form.reordered(mirrored)
    form, k = ordered.form, ordered.split
    f = _transformed(form, q)
    y = tri.back_substitute(form.increment, f, start=k)
    rest = tri.residual(form.increment, y, f)[:k, :k]
    y[:k, :k] = tri.singular_solve(form.increment[:k, :k], np.asarray(rest), ordered.block_rounding)[0]
    return _real(form, y)


def _without_kernel(form: tri.SchurForm, x: Array, mirrored: tri.Mask) -> Array:
    ordered = form.reordered(mirrored)
    form, k = ordered.form, ordered.split
    y = _transformed(form, x)
    y[:k, :k] -= tri.kernel_part(form.increment[:k, :k], y[:k, :k], ordered.block_rounding)
    return _real(form, y)
