r"""The distance of the spectral radius from 1, however small.

With :math:`\delta = \lambda - 1` a zero of ``det(delta I - D)``, whose coefficients at an eigenvalue h are known to the
last bit, :math:`1 - |\lambda| = -(2 \operatorname{Re}\delta + |\delta|^2) / (1 + |1 + \delta|)`.  In double precision
that finds the eigenvalues of H at which the gap may be smallest; there the zeros are found once more, from the exact
coefficients, in as many digits as cancel.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

import mpmath
import numpy as np
from numpy.typing import NDArray

from ..errors import ScaleError
from ..theory import Optimizer
from ._margins import characteristic
from ._polynomial import ExactPolynomial, same_size

__all__ = ["smallest_gap"]

Array: TypeAlias = NDArray[np.float64]

#: Gaps in double precision are uncertain by this much where nothing is small, and relative to themselves.
_UNCERTAIN = 1e-13
_RELATIVE = 1e-6
#: At most so many eigenvalues are looked at once more.
_CANDIDATES = 32


def smallest_gap(optimizer: Optimizer, eigenvalues: Array) -> float:
    """The smallest ``1 - |lambda|`` over the eigenvalues of A(h), negative where it does not contract."""
    coefficients = characteristic(optimizer)
    h = np.unique(eigenvalues)
    rough = _rough(coefficients, h)
    least = float(np.min(rough))
    close = np.flatnonzero(rough <= least + _RELATIVE * abs(least) + (_UNCERTAIN if abs(least) > 1e-10 else 0.0))
    # Slow directions have small gaps relative to what the others are uncertain by.
    edges = np.flatnonzero(rough <= max(least, 0.0) + _UNCERTAIN)
    chosen = np.unique(np.concatenate([close, edges, [0, h.size - 1]]))
    chosen = chosen[np.argsort(rough[chosen], kind="stable")][:_CANDIDATES]
    gap = min(_exact_gap(coefficients, float(x)) for x in h[np.unique([*chosen, 0, h.size - 1])])
    out = float(gap)
    if gap != 0 and not np.finfo(np.float64).tiny <= abs(out) <= np.finfo(np.float64).max:
        raise ScaleError(f"1 - rho = {mpmath.nstr(gap, 6)} is beyond double precision")
    return out


def _rough(coefficients: tuple[ExactPolynomial, ...], h: Array) -> Array:
    """Gaps in double precision, per eigenvalue of H."""
    out = np.empty(h.size)
    n = len(coefficients) - 1
    for part in same_size(h):
        values = [np.ldexp(*c(h[part])) for c in coefficients]
        rows = np.stack([np.broadcast_to(v / values[0], part.shape) for v in values[1:]], axis=-1)
        matrices = np.zeros((part.size, n, n))
        matrices[:, 0, :] = -rows
        matrices[:, range(1, n), range(n - 1)] = 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            shift = (
                matrices[:, 0].astype(np.complex128) if n == 1 else np.linalg.eigvals(matrices).astype(np.complex128)
            )
            if n > 1:
                shift = _polished(rows, shift)
            gaps = -(2.0 * shift.real + np.abs(shift) ** 2) / (1.0 + np.abs(1.0 + shift))
        out[part] = np.min(np.where(np.isnan(gaps), -np.inf, gaps), axis=-1)
    return out


def _polished(rows: NDArray[np.float64], zeros: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """A few Newton steps: small zeros get digits of their own."""
    for _ in range(3):
        value, slope = np.ones_like(zeros), np.zeros_like(zeros)
        for k in range(rows.shape[-1]):
            slope = slope * zeros + value
            value = value * zeros + rows[:, k, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = value / slope
        zeros = np.where(np.isfinite(step) & (np.abs(step) <= 0.5 * np.abs(zeros)), zeros - step, zeros)
    return zeros


def _exact_gap(coefficients: tuple[ExactPolynomial, ...], h: float) -> mpmath.mpf:
    """The gap at one eigenvalue of H from exact coefficients."""
    exact = [c.exactly(h, 0.0) for c in coefficients]
    span = max((abs(_bits(c / exact[0])) for c in exact if c), default=0)
    with mpmath.workprec(400 + 4 * span):
        values = [mpmath.mpf(c.numerator) / c.denominator for c in exact]
        several = len(values) > 2
        shifts = (
            mpmath.polyroots(values, maxsteps=400, extraprec=400 + 4 * span) if several else [-values[1] / values[0]]
        )
        gaps = [-(2 * mpmath.re(z) + abs(z) ** 2) / (1 + abs(1 + z)) for z in shifts]
        return min(gaps)


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() - number.denominator.bit_length()
