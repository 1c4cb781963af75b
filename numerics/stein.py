r"""The Stein equation :math:`A X A^\top - X + Q = 0` for any real square A, with an honest verdict.

A linear recursion :math:`z_{t+1} = A z_t + \xi_t` whose noise is white with covariance Q has the stationary covariance
X, if it has one.  The equation can be solvable where there is none; :class:`SteinSolution` keeps the cases apart and
hands out a covariance only where X is one.

Methods
-------
``"schur"``
    Complex Schur form of :math:`D = A - I` and back substitution, column by column; O(m^3), for every A (Kitagawa
    1977).
``"doubling"``
    Squared Smith iteration in increments (Smith 1968), stable A only.  It sums :math:`\sum_k A^k Q A^{k\top}`, so
    nothing cancels where Q is positive semidefinite.
``"kronecker"``
    The m^2 linear equations as a dense system (least squares where it is singular); the oracle for small m.
``"auto"``
    ``"schur"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, NonStationaryError
from . import _arrays
from . import _stein_methods as methods
from . import _triangular_stein as tri
from ._result import Frozen

__all__ = ["SteinSolution", "Verdict", "solve_stein"]

Array = NDArray[np.float64]
Method = Literal["auto", "schur", "doubling", "kronecker"]
_Chosen = Literal["schur", "doubling", "kronecker"]
Verdict = Literal["stationary", "unstable", "marginal", "none"]

#: The largest m for which ``"kronecker"`` forms its m^2 x m^2 matrix.
LARGEST_KRONECKER = 40
#: The largest m for which the condition is exact, from the singular values of the m^2 x m^2 matrix.
LARGEST_EXACT_CONDITION = 16
#: Products of four entries of A stay finite below this.
LARGEST_ENTRY = 1e70


@dataclass(frozen=True, eq=False)
class SteinSolution(Frozen):
    r"""What is known about the solutions of :math:`A X A^\top - X + Q = 0`.

    Attributes
    ----------
    value : ndarray, shape (m, m), or None
        The symmetric solution X; the one of least Frobenius norm where there are many; None where there is none.
        It solves the equation and need not be a covariance: ask :attr:`covariance` for one.
    verdict : {"stationary", "unstable", "marginal", "none"}
        ``"stationary"``: the spectral radius is below 1, X is unique.
        ``"unstable"``: X solves the equation, but A has a mode that grows.
        ``"marginal"``: modes of modulus 1 which Q does not excite; many solutions.
        ``"none"``: no solution.
    residual : float
        :math:`\|A X A^\top - X + Q\|_F / (\|A X A^\top\|_F + \|X\|_F + \|Q\|_F)`; nan where there is no X.
    rho : float
        Spectral radius of A.
    modes : tuple of complex
        The eigenvalues behind a verdict other than ``"stationary"``.
    method : str
        The method that computed ``value``.
    status : str
        The verdict in words.
    """

    value: Array | None
    verdict: Verdict
    residual: float
    rho: float
    modes: tuple[complex, ...]
    method: str
    status: str
    _covariance: Array | None = field(repr=False)
    _indefinite: str | None = field(repr=False)
    _form: tri.SchurForm = field(repr=False)
    _matrix: Array = field(repr=False)

    @property
    def covariance(self) -> Array:
        """The stationary covariance of ``z' = A z + noise``, where it exists.

        For a marginal verdict it is the law of a start at 0 in the marginal modes: the limit of ``sum_k A^k Q A^kT``,
        the smallest semidefinite solution.  It differs from ``value`` where marginal modes are not orthogonal to the
        others; there the solution of least norm need not be semidefinite.

        Raises
        ------
        NonStationaryError
            The verdict is ``"unstable"`` or ``"none"``.
        InvalidProblemError
            Q is not positive semidefinite, hence no covariance of noise.
        """
        if self.verdict in ("unstable", "none"):
            raise NonStationaryError(f"no stationary covariance: {self.status}", rho=self.rho, modes=self.modes)
        if self._indefinite is not None or self._covariance is None:
            raise InvalidProblemError(f"the solution is not a covariance: {self._indefinite}")
        return self._covariance

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The covariance (a copy), under the same conditions as :attr:`covariance`."""
        return np.array(self.covariance, dtype=dtype)

    @property
    def condition_norm(self) -> str:
        """In which norm, and how, :attr:`condition` is computed."""
        return "2-norm" if self._form.dim <= LARGEST_EXACT_CONDITION else "1-norm, estimated"

    @cached_property
    def condition(self) -> float:
        r"""The condition number of the operator :math:`X \mapsto A X A^\top - X`; inf where it is singular.

        Up to m = 16 in the 2-norm, from all singular values; above, in the 1-norm of the vectorised operator: its norm
        exactly, that of its inverse by Higham and Tisseur's estimator through a few solves.  Computed on first use.
        """
        if np.any(tri.mirrored_modes(self._form)[0]):
            return math.inf
        if self._form.dim <= LARGEST_EXACT_CONDITION:
            s = scipy.linalg.svdvals(methods.kronecker_matrix(self._matrix))
            return float(s[0] / s[-1]) if s[-1] > 0 else math.inf
        return methods.norm_1(self._matrix) * methods.inverse_norm_1(self._form)


def solve_stein(A: ArrayLike, Q: ArrayLike, /, *, method: Method = "auto") -> SteinSolution:
    r"""Solve :math:`A X A^\top - X + Q = 0` for symmetric X.

    Parameters
    ----------
    A : array_like, shape (m, m)
        Any real square matrix.
    Q : array_like, shape (m, m)
        Symmetric.  Positive semidefinite if X is to be a covariance; an indefinite Q is solved all the same, but then
        ``.covariance`` refuses.
    method : {"auto", "schur", "doubling", "kronecker"}
        See the module; ``"doubling"`` needs a spectral radius below 1, ``"kronecker"`` m <= 40.

    Returns
    -------
    SteinSolution
        With ``value``, ``verdict``, ``residual``, ``condition``, ``rho``, ``method`` and ``status``.

    Raises
    ------
    InvalidProblemError
        Arrays that are not what they claim, an unknown method, m too large for the method.
    NonStationaryError
        ``method="doubling"`` where the spectral radius is not below 1.

    Notes
    -----
    *Whether a mode is on the unit circle* is exact for a triangular A. For another A it is decided up to the rounding
    of its Schur form, 4 m eps ||A||. Likewise an excitation of a marginal mode by Q counts as none up to 4 m eps ||Q||
    and to what the rounding of the invariant subspace of the mode makes of Q. So "stationary" next to the circle and
    "none" are statements to working precision.

    *Mirrored pairs.* Where an eigenvalue outside the circle mirrors one inside (2 and 1/2), the operator is singular
    though no mode is marginal.  The verdict is ``"unstable"`` where a solution exists (``value`` is the one of least
    norm) and ``"none"`` where not.

    *Defective modes.* A Jordan block on the circle can have solutions although the noise excites it; none is a
    covariance, for the powers of A grow.  The verdict is ``"unstable"``.

    References
    ----------
    .. [1] G. Kitagawa, An algorithm for solving the matrix equation X = FXF^T + S, Int. J. Control 25, 1977.
    .. [2] R. A. Smith, Matrix equation XA + BX = C, SIAM J. Appl. Math. 16, 1968.

    Examples
    --------
    >>> solve_stein([[0.5]], [[0.75]]).value
    array([[1.]])

    An unstable recursion has an algebraic solution, which is not a covariance:

    >>> solution = solve_stein([[2.0]], [[3.0]])
    >>> solution.verdict, solution.value
    ('unstable', array([[-1.]]))

    A mode that is neither damped nor excited keeps its start; Q must not touch it:

    >>> solve_stein([[1.0, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.75]]).verdict
    'marginal'
    >>> solve_stein([[1.0, 0.0], [0.0, 0.5]], [[0.1, 0.0], [0.0, 0.75]]).verdict
    'none'
    """
    if method not in get_args(Method):
        raise InvalidProblemError(f"unknown method {method!r}; choose one of {', '.join(map(repr, get_args(Method)))}")
    a = _arrays.square("A", A)
    m = a.shape[0]
    q = _arrays.symmetric("Q", Q, dim=m)
    if method == "kronecker" and m > LARGEST_KRONECKER:
        raise InvalidProblemError(f"method 'kronecker' solves at most m = {LARGEST_KRONECKER}, got {m}; use 'schur'")
    if np.max(np.abs(a)) > LARGEST_ENTRY:
        raise InvalidProblemError(f"A is too large for float64: max|A| = {np.max(np.abs(a)):.3g} > {LARGEST_ENTRY:.0e}")
    chosen: _Chosen = "schur" if method == "auto" else method
    scale = math.ldexp(1.0, math.frexp(float(np.max(np.abs(q))))[1] - 1) if np.any(q) else 1.0
    indefinite = _indefinite(q)
    q = q / scale  # a power of two: exact, and X is linear in Q
    a, form, sign = tri.signed_schur_form(a)
    mirrored, unit = tri.mirrored_modes(form)
    modulus = np.where(unit, 1.0, np.abs(form.eigenvalues))
    outside = modulus > 1.0
    rho = float(modulus.max())
    if chosen == "doubling" and np.any(mirrored | outside):
        modes = tuple(sign * complex(z) for z in form.eigenvalues[mirrored | outside])
        raise NonStationaryError(
            f"method 'doubling' sums A^k Q A^kT and needs a spectral radius below 1, got {rho:.17g} "
            f"(modes {_listed(modes)}); use method='schur'",
            rho=rho,
            modes=modes,
        )
    if mirrored.any():
        found = _singular_case(form, a, q, chosen, mirrored, outside, indefinite is None)
    else:
        found = _regular_case(form, a, q, chosen, outside, rho)
    modes = tuple(sign * complex(z) for z in form.eigenvalues[found.which])
    return SteinSolution(
        value=_frozen(found.value, scale),
        verdict=found.verdict,
        residual=math.nan if found.value is None else _relative_residual(a, found.value, q),
        rho=rho,
        modes=modes,
        method=chosen,
        status=found.text.format(modes=_listed(modes), size=found.size * scale, level=found.level * scale),
        _covariance=_frozen(found.covariance, scale),
        _indefinite=indefinite,
        _form=form,
        _matrix=a,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """A verdict with what belongs to it; the size of Q that no X balances, and what rounding explains of it."""

    verdict: Verdict
    which: tri.Mask
    text: str
    value: Array | None = None
    covariance: Array | None = None
    size: float = 0.0
    level: float = 0.0


def _regular_case(form: tri.SchurForm, a: Array, q: Array, method: _Chosen, outside: tri.Mask, rho: float) -> _Found:
    if method == "doubling":
        value = methods.doubling(a, q, rho)
    elif method == "kronecker":
        value = methods.kronecker(a, q)
    else:
        value = _real(form, tri.back_substitute(form.increment, _transformed(form, q)))
    if not outside.any():
        return _Found("stationary", outside, f"stationary: spectral radius {rho:.6g} < 1", value, value)
    text = "unstable: the modes {modes} grow; value solves the equation and is not a covariance"
    return _Found("unstable", outside, text, value)


def _singular_case(
    form: tri.SchurForm, a: Array, q: Array, method: _Chosen, mirrored: tri.Mask, outside: tri.Mask, semidefinite: bool
) -> _Found:
    dense = method == "kronecker"
    excitation = _excitation(form, q, mirrored)
    if semidefinite and not outside.any() and excitation.none:
        covariance = _unexcited_covariance(excitation, q)
        value = methods.least_squares(a, q) if dense else _without_kernel(form, covariance, mirrored)
        text = (
            "marginal: the modes {modes} are on the unit circle and not excited by Q; value is the solution of least "
            "norm, the variance in these modes is that of their start"
        )
        return _Found("marginal", mirrored, text, value, covariance)
    size, level = excitation.left_over(), excitation.block_level
    if size > level:
        text = (
            f"no solution: Q excites the modes {{modes}}, which {'are mirrored in' if outside.any() else 'are on'} the "
            "unit circle, by {size:.3g} (rounding explains at most {level:.3g})"
        )
        return _Found("none", mirrored, text, size=size, level=level)
    value = methods.least_squares(a, q) if dense else _singular(form, q, mirrored)
    if outside.any():
        text = "unstable: the modes {modes} grow or are mirrored; value is the solution of least norm, not a covariance"
        return _Found("unstable", mirrored | outside, text, value)
    if semidefinite:
        text = (
            "unstable: Q excites the defective modes {modes} on the unit circle, so the powers of A grow; value is the "
            "solution of least norm, not a covariance"
        )
        return _Found("unstable", mirrored, text, value)
    text = "marginal: the modes {modes} are on the unit circle; Q is indefinite, value is the solution of least norm"
    return _Found("marginal", mirrored, text, value)


def _indefinite(q: Array) -> str | None:
    try:
        _arrays.positive_semidefinite("Q", q)
    except InvalidProblemError as error:
        return str(error)
    return None


def _frozen(x: Array | None, scale: float) -> Array | None:
    if x is not None:
        x = x * scale
        x.flags.writeable = False
    return x


def _listed(modes: tuple[complex, ...]) -> str:
    shown = [f"{z.real:.6g}" if z.imag == 0 else f"{z.real:.6g}{z.imag:+.6g}i" for z in modes[:4]]
    return ", ".join(shown) + (f" and {len(modes) - 4} more" if len(modes) > 4 else "")


def _relative_residual(a: Array, x: Array, q: Array) -> float:
    left = np.linalg.norm(tri.residual(a - np.eye(a.shape[0]), x, q))
    size = np.linalg.norm(a @ x @ a.T) + np.linalg.norm(x) + np.linalg.norm(q)
    return float(left / size) if size > 0 else 0.0


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


def _unexcited_covariance(excitation: _Excitation, q: Array) -> Array:
    """The sum over A^k Q A^kT where Q is semidefinite and Q U = 0: the damped modes by themselves."""
    form, n = excitation.ordered.form, excitation.ordered.split
    y = np.zeros((form.dim, form.dim), dtype=np.complex128)
    y[:n, :n] = tri.back_substitute(form.increment[:n, :n], _transformed(form, q)[:n, :n])
    return _real(form, y)


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
