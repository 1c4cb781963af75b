r"""Checked conversion of a caller's arrays: finite, real, float64, of the stated shape, symmetric, semidefinite.

Every helper takes the argument's ``name`` first, so that the error shows the caller's own word for it, and returns
a new float64 array: the input is neither changed nor aliased.

Rounding is forgiven, nothing else is.  With :math:`u` the unit of the precision the array *came in* (float32 data
is symmetric to float32 rounding only) an asymmetry or a negative eigenvalue of at most

.. math:: 8\, d\, u\, \max_{ij} |a_{ij}|

counts as rounding.  Below it a matrix is replaced by its symmetric part; above it the call is refused with the size and
the place.  Eigenvalues are never clipped.

Arguments that are no arrays (whole numbers, flags, choices, random generators) are checked here as well, so that
every function refuses the same things in the same words.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from ..errors import InvalidProblemError, ScaleError, SgdcovError

__all__ = [
    "choice",
    "finite_array",
    "flag",
    "matrix",
    "nonnegative",
    "number",
    "points",
    "positive_semidefinite",
    "random_generator",
    "rounding_level",
    "shown",
    "square",
    "symmetric",
    "tuple_of",
    "variance",
    "vector",
    "whole_number",
]

Choice = TypeVar("Choice", bound=str)
Item = TypeVar("Item")

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
#: The multiple of ``d * unit * max|a|`` up to which a defect counts as rounding.
ROUNDING = 8.0


#: What an object that pretends to be an array may raise when it is asked for its entries.
_CONVERSION_ERRORS = (
    ArithmeticError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def shown(value: object) -> str:
    """What the caller gave, for an error message: never more than a line, even of a number of 400 digits."""
    short = reprlib.Repr()
    short.maxother = short.maxlong = short.maxstring = 60
    try:
        return " ".join(short.repr(value).split())
    except _CONVERSION_ERRORS:
        return f"<{type(value).__name__}>"


def _numbers(name: str, a: object) -> NDArray[Any]:
    """The array as it came, once it is known to hold real numbers."""
    if scipy.sparse.issparse(a):
        raise InvalidProblemError(f"{name} is a sparse matrix; give it as an array, {name}.toarray()")
    if isinstance(a, np.ma.MaskedArray):
        if np.ma.is_masked(a):
            many = int(np.count_nonzero(np.ma.getmaskarray(a)))
            raise InvalidProblemError(f"{name} has {many} masked entries, which have no value; fill or drop them")
        a = a.data
    try:
        raw = np.asarray(a)
        if raw.dtype == object:
            # float() would read the text "1.5" and the truth value True; neither was meant as a number
            odd = [x for x in raw.ravel() if isinstance(x, str | bytes | bool | np.bool_)]
            if odd:
                raise InvalidProblemError(f"{name} must hold real numbers, got {shown(odd[0])}")
            raw = raw.astype(np.float64)
    except SgdcovError:
        raise  # a result of ours that has no value says so itself
    except _CONVERSION_ERRORS as error:
        hint = "; detach() it first" if getattr(a, "requires_grad", False) is True else ""
        reason = str(error).split("\n")[0][:120]
        raise InvalidProblemError(f"{name} is not an array of real numbers: {reason} (got {shown(a)}){hint}") from error
    if raw.dtype.kind not in "fiu":
        raise InvalidProblemError(f"{name} must hold real numbers, got dtype {raw.dtype} ({shown(a)})")
    return raw


def _finite(name: str, raw: NDArray[Any]) -> Array:
    with np.errstate(over="ignore"):  # a long double beyond the range becomes infinite, and is refused as such
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


def finite_array(name: str, a: ArrayLike) -> Array:
    """Finite float64 numbers of any shape.

    Examples
    --------
    >>> finite_array("radii", 2)
    array(2.)
    """
    return _finite(name, _numbers(name, a))


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


def number(name: str, value: object, *, least: float = -np.inf, most: float = np.inf, open: bool = False) -> float:
    """A finite real number in [least, most], or strictly between the two where ``open``.

    Examples
    --------
    >>> number("probability", 0.5, least=0, most=1)
    0.5
    >>> number("probability", "half", least=0, most=1)
    Traceback (most recent call last):
        ...
    sgdcov.errors.InvalidProblemError: probability must be a finite number in [0, 1], got 'half'
    """
    try:
        raw = _numbers(name, value)
    except SgdcovError:
        raw = np.zeros(2)
    inside = raw.ndim == 0 and bool(np.isfinite(raw))
    inside = inside and bool(least < raw < most if open else least <= raw <= most)
    if not inside:
        if most < np.inf:
            domain = f" in ({least:g}, {most:g})" if open else f" in [{least:g}, {most:g}]"
        else:
            domain = "" if least == -np.inf else f" greater than {least:g}" if open else f", at least {least:g}"
        raise InvalidProblemError(f"{name} must be a finite number{domain}, got {shown(value)}")
    return float(raw)


def nonnegative(name: str, value: object) -> float:
    """A finite real number, at least 0.

    Examples
    --------
    >>> nonnegative("damping", 1)
    1.0
    """
    return number(name, value, least=0)


def variance(name: str, value: object, power: int = 2) -> float:
    """An even power of a standard deviation; `ScaleError` where double precision does not hold it.

    Examples
    --------
    >>> variance("std", 3.0)
    9.0
    """
    deviation = np.float64(nonnegative(name, value))
    with np.errstate(over="ignore", under="ignore"):
        out = float(deviation**power)
    if not np.isfinite(out) or (out == 0.0 and deviation > 0.0):
        raise ScaleError(f"{name}={deviation:.3g} to the power {power} is beyond double precision: rescale the data")
    return out


def whole_number(name: str, value: object, *, least: int = 0, most: int | None = None) -> int:
    """An integer from ``least`` to ``most``; neither a float nor a bool is one.

    Examples
    --------
    >>> whole_number("steps", 10)
    10
    """
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool | np.bool_) or whole < least or (most is not None and whole > most):
        top = str(most) if most is None or most < 10**15 else f"{most:.0e}"
        domain = f"at least {least}" if most is None else f"from {least} to {top}"
        raise InvalidProblemError(f"{name} must be a whole number, {domain}, got {shown(value)}")
    return whole


def flag(name: str, value: object) -> bool:
    """True or False; no other value counts as one of them.

    Examples
    --------
    >>> flag("replacement", "no")
    Traceback (most recent call last):
        ...
    sgdcov.errors.InvalidProblemError: replacement must be True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidProblemError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(name: str, value: Choice, options: Sequence[Choice]) -> Choice:
    """One of the words offered.

    Examples
    --------
    >>> choice("method", "spectral", ("auto", "spectral"))
    'spectral'
    """
    if not isinstance(value, str) or value not in options:
        words = ", ".join(map(repr, options))
        raise InvalidProblemError(f"{name} must be one of {words}, got {shown(value)}")
    return value


def tuple_of(name: str, values: Iterable[Item] | object) -> tuple[Any, ...]:
    """The items of a sequence; a text and what cannot be iterated are none.

    Examples
    --------
    >>> tuple_of("slots", ["w", "v"])
    ('w', 'v')
    """
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        return tuple(values)  # type: ignore[arg-type]
    except _CONVERSION_ERRORS as error:
        raise InvalidProblemError(f"{name} must be a sequence, got {shown(values)}") from error


def random_generator(rng: object, name: str = "rng") -> np.random.Generator:
    """A caller's generator itself, one seeded by an integer, or a fresh one for None.

    Examples
    --------
    >>> random_generator(True)
    Traceback (most recent call last):
        ...
    sgdcov.errors.InvalidProblemError: rng must be a numpy.random.Generator, an integer of at least 0 or None, got True
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and (isinstance(rng, bool | np.bool_) or not isinstance(rng, int | np.integer) or rng < 0):
        raise InvalidProblemError(
            f"{name} must be a numpy.random.Generator, an integer of at least 0 or None, got {shown(rng)}"
        )
    return np.random.default_rng(None if rng is None else int(rng))


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
