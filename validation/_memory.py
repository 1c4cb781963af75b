r"""How much memory a measurement takes: said, and refused where there is not so much, before anything runs.

A covariance and its standard error need every state of a replica once, so they are taken a few replicas at a time as
soon as the states are there. The test behind `compare` looks at the states themselves, in coordinates that only the
prediction gives; of these a bounded number of replicas is kept, and the others are forgotten.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidProblemError, InvalidRuleError
from ..numerics._arrays import shown, whole_number
from ..theory import Optimizer
from ._gradients import Measurable, dim_of

__all__ = ["Keeper", "refuse_too_much", "run_bytes", "run_memory", "snapshots_within", "text_of"]

Array = NDArray[np.float64]

#: Memory that the states kept for later tests may take, in all of one call.
KEPT_BYTES = 1 << 27
#: Replicas that are kept at least: two blocks of the test.
FEWEST_KEPT = 400
#: Tensors of the size of the weights that a step has at the same time: gradient, noise, their drawn block, the result.
WORKING = 6
#: Memory that the moments take beside the states.
MOMENT_BYTES = 1 << 26


class Keeper:
    """Keeps of every one of so many records the states of the first replicas, as many as fit.

    They go into one array that is there from the first record on: allocated one by one, between the much larger states
    of all replicas, they would hold the memory of these as well.
    """

    def __init__(self, records: int = 1) -> None:
        self.records, self.count = records, 0
        self.store: Array | None = None

    def keep(self, states: Array) -> Array:
        """Of states (snapshots, replicas, n) those that are kept."""
        snapshots, replicas, size = states.shape
        most = max(FEWEST_KEPT, KEPT_BYTES // (8 * snapshots * size * self.records))
        if most >= replicas and self.records == 1:
            return states
        if self.store is None:
            self.store = np.empty((self.records, snapshots, min(most, replicas), size))
        found: Array = self.store[self.count]
        found[:] = states[:, : found.shape[1]]
        self.count += 1
        return found


def snapshots_within(wanted: int, replicas: int, size: int) -> int:
    """How many snapshots of all replicas fit into what may be kept, at least one and at most those wanted."""
    return max(1, min(wanted, KEPT_BYTES // (8 * replicas * size)))


def run_bytes(
    *, replicas: int, dim: int, slots: int, reported: int, snapshots: int, records: int, batch_size: int | None
) -> int:
    """Bytes that a run takes at most, to about a factor of two; see `run_memory`."""
    vectors = (slots + WORKING) * dim + (batch_size or 0) * (4 + dim)
    states = snapshots * reported * dim
    others = min(8 * (records - 1) * reported * dim * replicas, KEPT_BYTES)
    return 8 * replicas * (vectors + states) + others + MOMENT_BYTES


def run_memory(
    optimizer: Optimizer,
    problem: Measurable,
    *,
    replicas: int,
    batch_size: int | None = None,
    snapshots: int = 8,
    records: int = 1,
    slots: int = 1,
) -> int:
    """Bytes of memory that a measurement takes, beside PyTorch itself: at most, to about a factor of two.

    Parameters
    ----------
    optimizer : Optimizer
    problem : Quadratic, LeastSquares, QuadraticExamples, GradientNoise or an adversarial problem
        As in `stationary_covariance`.
    replicas : int
    batch_size : int, optional
    snapshots : int, default 8
        Of each replica; 1 of everything but `stationary_covariance`.
    records : int, default 1
        Times that are recorded: those of a `trajectory`, the steps of `transient_covariance`, lags, positions.
    slots : int, default 1
        How many slots are reported.

    Returns
    -------
    int

    Raises
    ------
    InvalidProblemError, InvalidRuleError
        If an argument does not fit.

    Examples
    --------
    A hundred weights in 20,000 replicas are 16 megabytes:

    >>> import numpy as np
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(np.eye(100), np.eye(100), np.zeros(100))
    >>> run_memory(sgd(lr=0.1), problem, replicas=20_000, snapshots=1) // 10**6
    195
    """
    if not isinstance(optimizer, Optimizer):
        raise InvalidRuleError(f"expected an optimizer such as sgd(lr=0.1), got {shown(optimizer)}.")
    replicas, snapshots = whole_number("replicas", replicas, least=2), whole_number("snapshots", snapshots, least=1)
    records, slots = whole_number("records", records, least=1), whole_number("slots", slots, least=1)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size, least=1)
    return run_bytes(
        replicas=replicas, dim=dim_of(problem), slots=len(optimizer.rule.slots), reported=slots,
        snapshots=snapshots_within(snapshots, replicas, slots * dim_of(problem)), records=records,
        batch_size=batch_size,
    )  # fmt: skip


def refuse_too_much(needed: int, what: str) -> None:
    """Refuse what the machine has not got.

    Raises
    ------
    InvalidProblemError
    """
    there = physical_bytes()
    if needed > there:
        raise InvalidProblemError(
            f"{what} take about {text_of(needed)} of memory, and this machine has {text_of(there)}; take fewer "
            f"replicas, or fewer times to record."
        )


def physical_bytes() -> int:
    """The memory of this machine; 64 GB where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 36


def text_of(size: int) -> str:
    """A number of bytes, as people say it."""
    for unit in ("kB", "MB", "GB", "TB"):
        size_in = size / 1000.0 ** (1 + ("kB", "MB", "GB", "TB").index(unit))
        if size_in < 1000.0 or unit == "TB":
            return f"{size_in:.3g} {unit}"
    return f"{size} bytes"
