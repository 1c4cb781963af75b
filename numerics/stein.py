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

Every method works in units of the state in which A is balanced and Q of the order of 1 (powers of two, so that nothing
is rounded), and its solution is refined by residuals of twice the working precision.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import AccuracyWarning, InvalidProblemError, NonStationaryError, ScaleError
from . import _arrays
from . import _stein_methods as methods
from . import _triangular_stein as tri
from ._accurate import Pair, difference
from ._result import Frozen
from ._state_units import state_units
from ._stein_singular import LARGEST_EXACT_CONDITION, Caller, Found, Verdict, singular_case

__all__ = ["SteinSolution", "Verdict", "solve_stein"]

Array = NDArray[np.float64]
Method = Literal["auto", "schur", "doubling", "kronecker"]
_Chosen = Literal["schur", "doubling", "kronecker"]

#: The largest m for which ``"kronecker"`` forms its m^2 x m^2 matrix.
LARGEST_KRONECKER = 40
#: Products of four entries of A, in balanced units, stay finite below this.
LARGEST_ENTRY = 1e70
#: Above this relative error a solution comes with a warning.
WARNED = 1e-6
#: What the estimated norm of an inverse is multiplied by for a bound; the estimator finds a third of it or more.
ESTIMATE = 3.0
#: Solutions whose largest entry is below this have lost digits to underflow.
SMALLEST = 2.0**-969


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
    error : float
        A bound of :math:`\|X - X_{exact}\|_F / \|X_{exact}\|_F` for the A and Q given, as the doubles they are.  For
        ``"stationary"`` it is rigorous: from the residual, evaluated to twice the working precision, and a Lyapunov
        matrix that proves the verdict.  For ``"unstable"`` above m = 16 it rests on an estimated norm of the inverse,
        and for a singular operator on the rounding of invariant subspaces.  nan where there is no X.
    residual : float
        :math:`\|A X A^\top - X + Q\|_F / (\|A\|_F^2 \|X\|_F + \|X\|_F + \|Q\|_F)` in :attr:`units`; nan where there is
        no X.
    rho : float
        Spectral radius of A.
    modes : tuple of complex
        The eigenvalues behind a verdict other than ``"stationary"``.
    method : str
        The method that computed ``value``.
    status : str
        The verdict in words.
    units : ndarray, shape (m,)
        Powers of two: the state divided by them is what was solved for.
    """

    value: Array | None
    verdict: Verdict
    error: float
    residual: float
    rho: float
    modes: tuple[complex, ...]
    method: str
    status: str
    units: Array
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
        r"""The condition number of :math:`X \mapsto A X A^\top - X` in :attr:`units`; inf where it is singular.

        Up to m = 16 in the 2-norm, from all singular values; above, in the 1-norm of the vectorised operator: its norm
        exactly, that of its inverse by Higham and Tisseur's estimator through a few solves.  Computed on first use.
        """
        if np.any(tri.mirrored_modes(self._form)[0]):
            return math.inf
        if self._form.dim <= LARGEST_EXACT_CONDITION:
            s = scipy.linalg.svdvals(methods.kronecker_matrix(self._matrix - np.eye(self._form.dim)))
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
    ScaleError
        Double precision does not hold the solution in the units given.

    Warns
    -----
    AccuracyWarning
        If the error bound is above 1e-6.

    Notes
    -----
    *Units.* The state is divided by powers of two that balance A and bring the Q of each uncoupled part of the state to
    the order of 1; what follows is said in these units.

    *Whether a mode is on the unit circle* is exact for a triangular A. For another A it is decided up to the rounding
    of its Schur form, 4 m eps ||A||. Likewise an excitation of a marginal mode by Q counts as none up to 4 m eps ||Q||
    and to what the rounding of the invariant subspace of the mode makes of Q. So "marginal" and "none" are statements
    to working precision. Elsewhere a Lyapunov matrix decides between "stationary" and "unstable", which proves it.

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
    chosen: _Chosen = "schur" if (picked := _arrays.choice("method", method, get_args(Method))) == "auto" else picked
    given_a = _arrays.square("A", A)
    m = given_a.shape[0]
    given_q = _arrays.symmetric("Q", Q, dim=m)
    if chosen == "kronecker" and m > LARGEST_KRONECKER:
        raise InvalidProblemError(f"method 'kronecker' solves at most m = {LARGEST_KRONECKER}, got {m}; use 'schur'")
    indefinite = _indefinite(given_q)
    units = state_units(given_a, given_q if indefinite is None else None)
    # X is linear in Q: a power of two goes to the end, where the units do not hold it
    largest = float(np.max(np.abs(given_q)))
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if indefinite is not None and largest > 0.0 else 1.0
    a, q = given_a * (units / units[:, None]), given_q / scale / units / units[:, None]
    if not np.max(np.abs(a)) <= LARGEST_ENTRY:
        raise InvalidProblemError(
            f"A is too large for float64: max|A| = {np.max(np.abs(given_a)):.3g}, and {np.max(np.abs(a)):.3g} > "
            f"{LARGEST_ENTRY:.0e} in units in which it is balanced"
        )
    if indefinite is None and np.ptp(np.log2(units)) > 10.0:  # a small unit is seen only in its own
        indefinite = _indefinite(q)
    plain = Caller(given_a, given_q / scale, units)
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
        found = singular_case(form, q, chosen, mirrored, outside, indefinite is None, plain)
    else:
        found = _regular_case(form, a, q, chosen, outside, rho)
    modes = tuple(sign * complex(z) for z in form.eigenvalues[found.which])
    solution = SteinSolution(
        value=_in_units(found.value, units, scale),
        verdict=found.verdict,
        error=math.nan if found.value is None else _relative_error(found, units),
        residual=math.nan if found.value is None else _relative_residual(a, found.value, q),
        rho=rho if found.rho is None else found.rho,
        modes=modes,
        method=chosen,
        status=found.text.format(modes=_listed(modes), size=found.size, level=found.level),
        units=units,
        _covariance=_in_units(found.covariance, units, scale),
        _indefinite=indefinite,
        _form=form,
        _matrix=a,
    )
    if solution.error > WARNED:
        warnings.warn(
            f"the solution of the Stein equation may be off by {solution.error:.2g} of its size: {solution.status}; "
            f"the condition of the equation is {solution.condition:.2g}",
            AccuracyWarning,
            stacklevel=2,
        )
    return solution


def _regular_case(form: tri.SchurForm, a: Array, q: Array, method: _Chosen, outside: tri.Mask, rho: float) -> Found:
    d = difference(a, np.eye(len(a)))
    solve = methods.solver(method, form, d.high)
    if solve is None:
        raise NonStationaryError(
            f"doubling did not converge in {methods.MOST_DOUBLINGS} steps although the computed spectral radius is "
            f"{rho:.17g}: A is too far from normal; use method='schur'",
            rho=rho,
        )
    # In units of its own deviations the state has no large variance that hides a small one.
    t = methods.deviations(solve, q)
    solve, d, q = methods.in_units(solve, d, q, t)
    y, defect, definite = methods.certificate(solve, d)
    if defect <= methods.LARGEST_DEFECT:  # Y decides, not the eigenvalues
        stable = definite
        if definite and rho >= 1.0:  # A Y A' <= Y - (1 - defect) I
            proven = math.sqrt(max(0.0, 1.0 - (1.0 - defect) / float(np.linalg.norm(y, 2))))
            rho = min(proven, float(np.nextafter(1.0, 0.0)))
    else:
        stable = not outside.any()
    if stable:
        solution = methods.bounded(solve, d, Pair.of(q), proof=(y, defect, definite))
        value, error = solution.value * np.outer(t, t), solution.error * np.outer(t, t)
        which, text = np.zeros_like(outside), f"stationary: spectral radius {rho:.6g} < 1"
        if not solution.certified:
            text += ", which double precision does not prove"
        found = Found("stationary", which, text, value, value, error, rho=rho)
    else:
        rough = methods.refined(solve, d, Pair.of(q))
        value = rough.value.high * np.outer(t, t)
        left = float(np.linalg.norm((np.abs(rough.residual) + rough.rounding) * np.outer(t, t)))
        error = np.abs(rough.value.low) * np.outer(t, t)
        error = error + (_inverse_norm(form) * left if rough.converged else math.inf)
        which = outside if outside.any() else np.abs(form.eigenvalues) == np.abs(form.eigenvalues).max()
        text = "unstable: the modes {modes} grow; value solves the equation and is not a covariance"
        found = Found("unstable", which, text, value, error=error)
    if not np.all(np.isfinite(value)):
        raise InvalidProblemError(f"A X A^T - X is singular to working precision for method {method!r}; use 'schur'")
    return found


def _inverse_norm(form: tri.SchurForm) -> float:
    """A bound of what the inverse of the operator makes of a matrix of norm 1."""
    if form.dim > LARGEST_EXACT_CONDITION:
        return ESTIMATE * form.dim * methods.inverse_norm_1(form)  # from the sum of all entries to the Frobenius norm
    d = (form.vectors @ form.increment @ form.vectors.conj().T).real
    s = scipy.linalg.svdvals(methods.kronecker_matrix(d))
    least = float(s[-1]) - form.dim**2 * tri.EPS * float(s[0])
    return 1.0 / least if least > 0.0 else math.inf


def _indefinite(q: Array) -> str | None:
    try:
        _arrays.positive_semidefinite("Q", q)
    except InvalidProblemError as error:
        return str(error)
    return None


def _in_units(x: Array | None, units: Array, scale: float) -> Array | None:
    """A solution in the caller's units; refused where they do not hold it."""
    if x is None:
        return None
    with np.errstate(over="ignore", under="ignore"):
        out = np.asarray(x * units * units[:, None] * scale)
    size = float(np.max(np.abs(out)))
    if not np.all(np.isfinite(out)) or (np.any(x) and size < SMALLEST):
        power = float(np.max(np.log10(np.abs(np.diagonal(x)) + 1e-300) + 2.0 * np.log10(units))) + math.log10(scale)
        raise ScaleError(
            f"the solution has entries of some 1e{power:.0f}, which double precision does not hold; give Q in other "
            f"units (the solution is linear in it)"
        )
    return out


def _listed(modes: tuple[complex, ...]) -> str:
    shown = [f"{z.real:.6g}" if z.imag == 0 else f"{z.real:.6g}{z.imag:+.6g}i" for z in modes[:4]]
    return ", ".join(shown) + (f" and {len(modes) - 4} more" if len(modes) > 4 else "")


def _relative_residual(a: Array, x: Array, q: Array) -> float:
    """Of the solution in balanced units, where no square of an entry that counts underflows."""
    left = np.linalg.norm(methods.stein_residual(difference(a, np.eye(len(a))), Pair.of(x), Pair.of(q)))
    size = (np.linalg.norm(a) ** 2 + 1.0) * np.linalg.norm(x) + np.linalg.norm(q)
    return float(left / size) if size > 0 else 0.0


def _relative_error(found: Found, units: Array) -> float:
    """The error bound of all entries, relative to the size of the solution, in the caller's units."""
    assert found.value is not None
    outer = np.outer(units, units) / float(np.max(units)) ** 2
    off = float(np.linalg.norm(found.error * outer))
    size = float(np.linalg.norm(found.value * outer))
    if off == 0.0:
        return 0.0
    # |X| >= size - off: the bound is relative to the exact solution; 2 eps for the unit in the last place itself
    return off / (size - off) if off < 0.5 * size else math.inf
