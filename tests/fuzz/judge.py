"""What a result has to satisfy: its own error bound, and what is true of every law."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import numpy as np
from mpmath import mp, mpf

from sgdcov.errors import SgdcovError

from . import oracle as o

EPS = 2.0**-52
#: Bounds above this have to be announced by an `AccuracyWarning`.
ANNOUNCED = 1e-6


class Wrong(Exception):
    """A result that is not true."""


@dataclass
class Case:
    """One call: what is called with which arguments by name, and what is true of its result."""

    call: object
    arguments: dict
    judge: object = None
    #: True: an ordinary problem, which must be answered.  False: there is no answer, it must be refused.
    answer: bool | None = None
    #: Arguments that may be anything of the caller's own (a callable, say).
    free: tuple = ()
    positional: tuple = ()
    warned: list = field(default_factory=list)

    def __call__(self, **changed):
        given = {**self.arguments, **changed}
        first = [given.pop(name) for name in self.positional]
        return self.call(*first, **given)


def require(truth, message):
    if not truth:
        raise Wrong(message() if callable(message) else message)


def size(a):
    """The Frobenius norm of a matrix or vector of mpf."""
    rows = a if a and isinstance(a[0], list) else [a]
    return mp.sqrt(sum((x * x for row in rows for x in row), mpf(0)))


def relative(got, exact):
    """The relative Frobenius distance of floats from what is exact."""
    got = np.asarray(got, dtype=float)
    rows = exact if exact and isinstance(exact[0], list) else [exact]
    got = got.reshape(len(rows), -1)
    require(got.shape == (len(rows), len(rows[0])), f"shape {got.shape}")
    require(bool(np.isfinite(got).all()), f"not finite: {got.tolist()}")
    off = size([[mpf(float(g)) - x for g, x in zip(r, s, strict=True)] for r, s in zip(got, rows, strict=True)])
    whole = size(rows)
    if not off or (not got.any() and whole < mpf(2) ** -1075):  # what is nearer to 0 than to any other double
        return mpf(0)
    return off / whole if whole else mp.inf


def near(got, exact, allowed, what="value"):
    """Within a relative bound; ``exact`` a number, vector or matrix of mpf."""
    if not isinstance(exact, list):
        got, exact = np.reshape(np.asarray(got, dtype=float), (1,)), [exact]
    off = relative(got, exact)
    require(
        off <= allowed,
        lambda: (
            f"{what}: off by {mp.nstr(off, 3)}, allowed {mp.nstr(mpf(allowed), 3)}; got {np.asarray(got).tolist()}, "
            f"right {[[float(x) for x in r] for r in (exact if isinstance(exact[0], list) else [exact])]}"
        ),
    )
    return off


def law(case, result, exact, slack, *, hessian=None, value=None):
    """A covariance against the exact one: within its own error, semidefinite to that, and a faithful object."""
    value = np.asarray(result.value if value is None else value, dtype=float)
    error = getattr(result, "error", None)
    if error is None:
        error = slack() if callable(slack) else slack
    error = float(error)
    require(error >= 0, f"error = {error}")
    if error > ANNOUNCED:
        require(any(w == "AccuracyWarning" for w in case.warned) or getattr(result, "error", None) is None,
                f"error = {error:.3g} without an AccuracyWarning")  # fmt: skip
        if not np.isfinite(error):
            return
    near(value, exact, error)
    require(np.array_equal(value, value.T), "not symmetric")
    whole = float(np.linalg.norm(value))
    if 0 < whole < np.inf and 1e-290 < whole < 1e290:
        scaled = value / whole
        least = float(np.linalg.eigvalsh(scaled)[0])
        require(least >= -(error + 4 * len(value) * EPS), f"eigenvalue {least:.3g} of the norm, error {error:.3g}")
    faithful(result, value)
    if hessian is not None and hasattr(result, "excess_risk") and 1e-140 < whole < 1e140:
        h = o.matrix(hessian)
        right = sum((h[i][j] * exact[i][j] for i in range(len(h)) for j in range(len(h))), mpf(0)) / 2
        room = size(h) * size(exact) / 2 * (error + 4 * len(h) * EPS)
        off = abs(mpf(float(result.excess_risk)) - right)
        require(off <= room, lambda: f"excess_risk {result.excess_risk} right {mp.nstr(right, 12)}")
    if hasattr(result, "trace") and whole < 1e300:
        right = sum((exact[i][i] for i in range(len(exact))), mpf(0))
        off = abs(mpf(float(result.trace)) - right)
        require(off <= len(exact) * (size(exact) * (error + 4 * EPS) + mpf(2) ** -1074),
                lambda: f"trace {result.trace} right {mp.nstr(right, 12)}")  # fmt: skip
    if hasattr(result, "log_det") and 1e-140 < whole < 1e140 and error < 1e-9:
        spectrum, _ = o.directions(exact)
        least, most = min(spectrum), max(spectrum)
        # An eigenvalue of doubles is known to a rounding of the largest, even where the law itself has no error.
        reach = (error + EPS) * len(exact) * float(most / least) if least > 0 else np.inf
        if reach < 1e-4:
            right = sum(mp.log(s) for s in spectrum)
            require(abs(float(result.log_det) - float(right)) <= 10 * reach + 1e-12 * (1 + abs(float(right))),
                    lambda: f"log_det {result.log_det} right {mp.nstr(right, 12)}")  # fmt: skip
            require(result.rank == len(exact), f"rank {result.rank} of {len(exact)}")


def faithful(result, value):
    """It survives pickle, and cannot be written through."""
    again = pickle.loads(pickle.dumps(result))
    require(repr(again) == repr(result), "changed by pickle")
    if not hasattr(result, "value") or not isinstance(result.value, np.ndarray):
        return
    require(np.array_equal(again.value, value), "value changed by pickle")
    try:
        seen = np.asarray(result)
    except SgdcovError:
        return
    require(not seen.flags.writeable or not np.shares_memory(seen, result.value), "np.asarray can be written through")
