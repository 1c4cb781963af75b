r"""Checked conversion of a caller's arrays: finite, real, float64, of the stated shape, symmetric, semidefinite.

Every helper takes the argument's ``name`` first, so that the error shows the caller's own word for it, and returns
a new float64 array: the input is neither changed nor aliased.

Rounding is forgiven, nothing else is.  With :math:`u` the unit of the precision the array *came in* (float32 data
is symmetric to float32 rounding only) an asymmetry or a negative eigenvalue of at most

.. math:: 8\, d\, u\, \max_{ij} |a_{ij}|

counts as rounding.  Below it a matrix is replaced by its symmetric part; above it the call is refused with the size and
the place.  Eigenvalues are never clipped.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError

__all__ = [
    "matrix",
    "nonnegative",
    "points",
    "positive_semidefinite",
    "rounding_level",
    "square",
    "symmetric",
    "vector",
    "whole_number",
]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
#: The multiple of ``d * unit * max|a|`` up to which a defect counts as rounding.
ROUNDING = 8.0


def _numbers(name: str, a: ArrayLike) -> NDArray[Any]:
    """The array as it came, once it is known to hold real numbers."""
    try:
        raw = np.asarray(a)
    except ValueError as error:  # ragged nested lists
        raise InvalidProblemError(f"{name} is not an array: {error}") from error
    if raw.dtype == object:
        try:
            raw = raw.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidProblemError(f"{name} must hold real numbers: {error}") from error
    if raw.dtype.kind not in "fiu":
        raise InvalidProblemError(f"{name} must hold real numbers, got dtype {raw.dtype}")
    return raw


def _finite(name: str, raw: NDArray[Any]) -> Array:
    out = np.array(raw, dtype=np.float64, order="C")
    finite = np.isfinite(out)
    if not finite.all():
        bad = np.argwhere(~finite)
        where = tuple(int(i) for i in bad[0])
        place = f"{name}[{', '.join(map(str, where))}] = {out[where]}"
        raise InvalidProblemError(f"{name} must be finite: {place} ({len(bad)} of {out.size} entries are not finite)")
    return out


def _real(name: str, a: ArrayLike, ndim: int, shape: tuple[int | None, ...]) -> tuple[Array, float]:
    """A new float64 array of the given shape (None: any length), and the rounding unit it came in."""
    raw = _numbers(name, a)
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if ndim == 1 else "") + ")"
    if raw.ndim != ndim:
        kind = "vector" if ndim == 1 else "matrix"
        raise InvalidProblemError(f"{name} must be a {kind} of shape {wanted}, got shape {raw.shape}")
    if any(n is not None and n != m for n, m in zip(shape, raw.shape, strict=True)):
        raise InvalidProblemError(f"{name} must have shape {wanted}, got {raw.shape}")
    if raw.size == 0:
        raise InvalidProblemError(f"{name} is empty: shape {raw.shape}")
    unit = max(float(np.finfo(raw.dtype).eps), _EPS) if raw.dtype.kind == "f" else _EPS
    return _finite(name, raw), unit


def points(name: str, a: ArrayLike, dim: int) -> Array:
    """Finite float64 points, shape (..., dim); any number of them, none included.

    Examples
    --------
    >>> points("w", [[1, 2], [3, 4]], dim=2)
    array([[1., 2.],
           [3., 4.]])
    """
    raw = _numbers(name, a)
    if raw.ndim == 0 or raw.shape[-1] != dim:
        raise InvalidProblemError(f"{name} must have shape (..., {dim}), got {raw.shape}")
    return _finite(name, raw)


def rounding_level(a: Array, unit: float = _EPS) -> float:
    """The size ``8 d unit max|a|`` up to which a defect of the square matrix ``a`` counts as rounding."""
    return float(ROUNDING * a.shape[0] * unit) * float(np.max(np.abs(a)))


def vector(name: str, a: ArrayLike, *, dim: int | None = None) -> Array:
    """A finite float64 vector, of length ``dim`` where given.

    Examples
    --------
    >>> vector("optimum", [1, 2])
    array([1., 2.])
    """
    return _real(name, a, 1, (dim,))[0]


def matrix(name: str, a: ArrayLike, *, rows: int | None = None, columns: int | None = None) -> Array:
    """A finite float64 matrix, with the number of rows and columns given.

    Examples
    --------
    >>> matrix("X", [[1, 2]], columns=2)
    array([[1., 2.]])
    """
    return _real(name, a, 2, (rows, columns))[0]


def nonnegative(name: str, value: float) -> float:
    """A finite real number, at least 0.

    Examples
    --------
    >>> nonnegative("damping", 1)
    1.0
    """
    number = np.asarray(value)
    if number.ndim != 0 or number.dtype.kind not in "fiu" or not np.isfinite(number) or number < 0:
        raise InvalidProblemError(f"{name} must be a finite number, at least 0, got {value!r}")
    return float(number)


def whole_number(name: str, value: object, *, least: int = 0) -> int:
    """An integer that is at least ``least``; neither a float nor a bool is one.

    Examples
    --------
    >>> whole_number("steps", 10)
    10
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_) or number < least:
        raise InvalidProblemError(f"{name} must be a whole number, at least {least}, got {value!r}")
    return number


def _square(name: str, a: ArrayLike, dim: int | None) -> tuple[Array, float]:
    out, unit = _real(name, a, 2, (dim, dim))
    if out.shape[0] != out.shape[1]:
        raise InvalidProblemError(f"{name} must be square, got shape {out.shape}")
    return out, unit


def square(name: str, a: ArrayLike, *, dim: int | None = None) -> Array:
    """A finite float64 square matrix, symmetric or not."""
    return _square(name, a, dim)[0]


def _symmetric(name: str, a: ArrayLike, dim: int | None) -> tuple[Array, float]:
    out, unit = _square(name, a, dim)
    gap = np.abs(out - out.T)
    worst = float(gap.max())
    if worst == 0.0:
        return out, unit
    if not worst <= rounding_level(out, unit):
        i, j = (int(k) for k in np.unravel_index(int(gap.argmax()), gap.shape))
        i, j = min(i, j), max(i, j)
        raise InvalidProblemError(
            f"{name} is not symmetric: {name}[{i}, {j}] = {out[i, j]:.17g} but {name}[{j}, {i}] = {out[j, i]:.17g}, "
            f"a difference of {worst:.3g} where rounding explains at most {rounding_level(out, unit):.3g}"
        )
    return 0.5 * out + 0.5 * out.T, unit


def symmetric(name: str, a: ArrayLike, *, dim: int | None = None) -> Array:
    """A finite float64 symmetric matrix; an asymmetry above rounding is refused with its size and place.

    Parameters
    ----------
    name : str
        What the caller calls the array.
    a : array_like, shape (d, d)
    dim : int, optional
        The d it must have.

    Returns
    -------
    ndarray, shape (d, d)
        New, exactly symmetric; equal to ``a`` where ``a`` is exactly symmetric.

    Raises
    ------
    InvalidProblemError
        Not real, not finite, not square, or not symmetric up to rounding.

    Examples
    --------
    >>> symmetric("hessian", [[2, 1], [1, 2]])
    array([[2., 1.],
           [1., 2.]])
    """
    return _symmetric(name, a, dim)[0]


def positive_semidefinite(name: str, a: ArrayLike, *, dim: int | None = None) -> Array:
    """A finite float64 symmetric matrix whose eigenvalues are at least 0 up to rounding.

    A diagonal matrix is held to the exact sign of its diagonal.  Otherwise a Cholesky factorisation of the matrix,
    shifted by the rounding level, decides (a third of d^3 operations); eigenvalues are computed only where that fails.

    Parameters
    ----------
    name : str
        What the caller calls the array.
    a : array_like, shape (d, d)
    dim : int, optional
        The d it must have.

    Returns
    -------
    ndarray, shape (d, d)
        New, exactly symmetric; eigenvalues that are negative by rounding are left as they are.

    Raises
    ------
    InvalidProblemError
        Not real, finite, square or symmetric; or indefinite, with the most negative eigenvalue.

    Examples
    --------
    >>> positive_semidefinite("noise", [[1, 2], [2, 1]])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    sgdcov.errors.InvalidProblemError: noise is not positive semidefinite: its smallest eigenvalue is -1 ...
    """
    out, unit = _symmetric(name, a, dim)
    diagonal = np.diagonal(out)
    if np.count_nonzero(out) == np.count_nonzero(diagonal):
        smallest, level = float(diagonal.min()), 0.0
    else:
        level = rounding_level(out, unit)
        shifted = out.copy()
        shifted[np.diag_indices_from(shifted)] += level
        try:
            scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            smallest = float(scipy.linalg.eigvalsh(out, check_finite=False)[0])
        else:
            return out
    if smallest < -level:
        raise InvalidProblemError(
            f"{name} is not positive semidefinite: its smallest eigenvalue is {smallest:.6g} "
            f"(largest entry {float(np.max(np.abs(out))):.6g}; rounding explains at most {level:.3g} below 0)"
        )
    return out
