r"""The law of shuffled epochs for one pair of characteristic roots r and s, and the claims that prove it.

A state follows z' = r z + n; its partner follows s with the same noise of unit variance. Claims treat
:math:`R = r^M, S = s^M, x = r^k, y = s^k` as symbols of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import sympy as sp

__all__ = [
    "BATCHES",
    "EPOCHS",
    "POSITION",
    "Claims",
    "Kernel",
    "average_claims",
    "average_kernel",
    "flat_claims",
    "flat_kernel",
    "kernel_claims",
    "position_kernel",
    "run_after_claims",
    "run_after_kernel",
    "run_claims",
    "run_kernel",
]

Kernel: TypeAlias = Callable[[sp.Expr, sp.Expr], sp.Expr]
Claims: TypeAlias = tuple[tuple[str, sp.Expr], ...]

BATCHES = sp.Symbol("M", integer=True, positive=True)
POSITION = sp.Symbol("k", integer=True, nonnegative=True)
EPOCHS = sp.Symbol("E", integer=True, positive=True)
_R, _S, _RM, _SM, _X, _Y = sp.symbols("r s R S x y")


def position_kernel(r: sp.Expr, s: sp.Expr) -> sp.Expr:
    """Return the covariance after k steps of an epoch, per unit of noise variance."""
    return _position(r, s, r**BATCHES, s**BATCHES, r**POSITION, s**POSITION)


def average_kernel(r: sp.Expr, s: sp.Expr) -> sp.Expr:
    """Return the mean of the covariance over the positions of an epoch."""
    return _average(r, s, r**BATCHES, s**BATCHES)


def run_kernel(r: sp.Expr, s: sp.Expr) -> sp.Expr:
    """Return the covariance of the mean of all states before the steps of E whole epochs."""
    steps = EPOCHS * BATCHES
    return _run(r, s, r**BATCHES, s**BATCHES, r**steps, s**steps, steps)


def run_after_kernel(r: sp.Expr, s: sp.Expr) -> sp.Expr:
    """Return the covariance of the mean of all states after the steps of E whole epochs."""
    return r * s * run_kernel(r, s)


def flat_kernel(r: sp.Expr, s: sp.Expr) -> sp.Expr:
    """Return `average_kernel` where a root that equals 1 is the limit of a root below 1."""
    one = sp.Integer(1)
    if r == one and s == one:
        return (BATCHES + 1) / sp.Integer(6)
    if r == one or s == one:
        other = s if r == one else r
        return (sp.Rational(1, 2) - _weighted(other, other**BATCHES) / (BATCHES * (BATCHES - 1))) / (1 - other)
    return average_kernel(r, s)


def _start(r: sp.Expr, s: sp.Expr, r_m: sp.Expr, s_m: sp.Expr, batches: sp.Expr = BATCHES) -> sp.Expr:
    bridge = (1 - r_m) * (1 - s_m) / ((1 - r) * (1 - s) * (1 - r_m * s_m))
    return batches / (batches - 1) * (1 / (1 - r * s) - bridge / batches)


def _position(r: sp.Expr, s: sp.Expr, r_m: sp.Expr, s_m: sp.Expr, x: sp.Expr, y: sp.Expr) -> sp.Expr:
    left = x * y * (1 - r_m) * (1 - s_m) / (1 - r_m * s_m) + (1 - x) * (1 - y)
    return BATCHES / (BATCHES - 1) * (1 / (1 - r * s) - left / (BATCHES * (1 - r) * (1 - s)))


def _weighted(r: sp.Expr, r_m: sp.Expr) -> sp.Expr:
    """Return the sum over lags from 1 of (M - lag) r^lag."""
    return r / (1 - r) * (BATCHES - (1 - r_m) / (1 - r))


def _average(r: sp.Expr, s: sp.Expr, r_m: sp.Expr, s_m: sp.Expr) -> sp.Expr:
    lags = (_weighted(r, r_m) + _weighted(s, s_m)) / (BATCHES * (BATCHES - 1))
    return (1 - lags) / (1 - r * s)


def _run(r: sp.Expr, s: sp.Expr, r_m: sp.Expr, s_m: sp.Expr, r_end: sp.Expr, s_end: sp.Expr, steps: sp.Expr) -> sp.Expr:
    return _start(r, s, r_m, s_m) * (2 - r_end - s_end) / (steps**2 * (1 - r) * (1 - s))


def _noise_so_far(x: sp.Expr, y: sp.Expr) -> sp.Expr:
    """Return K - s s'/M, from the sums of powers in closed form."""
    return _sum(_R * _S, x * y) - _sum(_R, x) * _sum(_S, y) / BATCHES


def _sum(r: sp.Expr, power: sp.Expr) -> sp.Expr:
    """Return the geometric sum 1 + r + ... below the exponent of the given power of r."""
    return (1 - power) / (1 - r)


def kernel_claims() -> Claims:
    """Return the claims that the covariance at position k solves the equations of an epoch."""
    factor = BATCHES / (BATCHES - 1)
    start = _start(_R, _S, _RM, _SM)
    here = _position(_R, _S, _RM, _SM, _X, _Y)
    exchangeable = -1 / (BATCHES - 1)
    return (
        ("the sum of powers starts at 0", _sum(_R, sp.Integer(1))),
        ("the sum of powers grows by the next power", _sum(_R, _R * _X) - _sum(_R, _X) - _X),
        ("noise covariance: M/(M-1) (1 - 1/M) = 1 on the diagonal", factor * (1 - 1 / BATCHES) - 1),
        ("noise covariance: M/(M-1) (-1/M) = -1/(M-1) off it", -factor / BATCHES - exchangeable),
        ("Z_0 = A^M Z_0 A'^M + noise of an epoch", start - _RM * _SM * start - factor * _noise_so_far(_RM, _SM)),
        ("Z_k = A^k Z_0 A'^k + noise of k steps", here - _X * _Y * start - factor * _noise_so_far(_X, _Y)),
        ("an epoch ends as it began", here.subs({_X: _RM, _Y: _SM}, simultaneous=True) - start),
    )


def average_claims() -> Claims:
    """Return the claims that the average is the mean over positions, and that of the mean autocorrelation."""
    here = sp.Poly(_position(_R, _S, _RM, _SM, _X, _Y), _X, _Y)
    sums = {(0, 0): BATCHES, (1, 0): _sum(_R, _RM), (0, 1): _sum(_S, _SM), (1, 1): _sum(_R * _S, _RM * _SM)}
    mean = sp.Add(*(coefficient * sums[powers] / BATCHES for powers, coefficient in here.terms()))
    two = _average(_R, _S, _R**2, _S**2).subs(BATCHES, 2)
    first = _start(_R, _S, _R**2, _S**2).subs(BATCHES, 2)
    return (
        *kernel_claims(),
        ("the average is the mean over the M positions", _average(_R, _S, _RM, _SM) - mean),
        ("M = 2: the start, and one step from it", two - (first + _R * _S * first + 1) / 2),
    )


def run_claims() -> Claims:
    """Return the claims that prove the mean over whole epochs."""
    start = _start(_R, _S, _RM, _SM)
    steps, r_end, s_end = sp.symbols("n R_E S_E")
    run = _run(_R, _S, _RM, _SM, r_end, s_end, steps)
    # Cov[z_n - z_0, y_n - y_0], where later epochs are independent of z_0: Cov[z_n, y_0] = r^n Cov[z_0, y_0].
    ends = start * (2 - r_end - s_end)
    two = run.subs({_RM: _R**2, _SM: _S**2, r_end: _R**2, s_end: _S**2, steps: 2, BATCHES: 2}, simultaneous=True)
    first = _start(_R, _S, _R**2, _S**2).subs(BATCHES, 2)
    return (
        *kernel_claims(),
        ("(r - 1)(s - 1) n^2 Cov[mean] = Cov[z_n - z_0, y_n - y_0]", run * (_R - 1) * (_S - 1) * steps**2 - ends),
        ("one epoch of M = 2, added up directly", two - ((1 + _R) * (1 + _S) * first + 1) / 4),
    )


def run_after_claims() -> Claims:
    """Return the claims that prove the mean over whole epochs of the states after each step."""
    # Noise that sums to zero: the states after the steps add up to r times those before.
    before = _run(_R, _S, _R**2, _S**2, _R**2, _S**2, sp.Integer(2)).subs(BATCHES, 2)
    first = _start(_R, _S, _R**2, _S**2).subs(BATCHES, 2)
    directly = ((_R + _R**2) * (_S + _S**2) * first + (1 + _R - 1) * (1 + _S - 1)) / 4  # the noise is xi, then -xi
    return (*run_claims(), ("one epoch of M = 2, after its steps, added up directly", _R * _S * before - directly))


def flat_claims() -> Claims:
    """Return the claims behind the limits of the kernel as roots tend to 1, with sums over lags by induction."""
    sum_1, sum_2 = BATCHES * (BATCHES - 1) / 2, BATCHES * (BATCHES**2 - 1) / 6  # of (M - lag), and of lag (M - lag)
    step_1 = sum_1.subs(BATCHES, BATCHES + 1) - sum_1 - BATCHES
    step_2 = sum_2.subs(BATCHES, BATCHES + 1) - sum_2 - BATCHES * (BATCHES + 1) / 2
    one = sp.Integer(1)
    # Near r = s = 1 the numerator of the kernel is (1 - r + 1 - s) sum_2/(M(M-1)), the denominator 1 - r + 1 - s.
    return (
        ("sum over lags of M - lag, from M to M + 1", step_1),
        ("sum over lags of lag (M - lag), from M to M + 1", step_2),
        ("the numerator vanishes at r = s = 1", 1 - 2 * sum_1 / (BATCHES * (BATCHES - 1))),
        ("the slopes give the kernel at (1, 1)", flat_kernel(one, one) - sum_2 / (BATCHES * (BATCHES - 1))),
        (
            "the kernel at (1, s)",
            flat_kernel(one, _S).subs(_S**BATCHES, _SM)
            - (1 - (sum_1 + _weighted(_S, _SM)) / (BATCHES * (BATCHES - 1))) / (1 - _S),
        ),
    )
