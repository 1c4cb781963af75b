r"""Measure the stationary covariance: many independent replicas of a real run, stepped at once.

The state is one (replicas, d) tensor per slot. Every step calls the rule's own plain function (or the real
``torch.optim.SGD``) with gradients that carry fresh noise for each replica. After the burn-in, each replica contributes

.. math:: P_r = \frac1S \sum_{s=1}^{S} (z_{rs} - \bar z)(z_{rs} - \bar z)^\top

from S snapshots. Replicas are independent, whatever the law of the iterates and however the snapshots of one replica
depend on each other, so the spread of P_r between replicas gives standard errors that need neither normality nor an
autocorrelation time.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from .. import numerics
from ..errors import HyperparameterError, InvalidProblemError, InvalidRuleError, NonStationaryError
from ..numerics import LeastSquares, Quadratic
from ..theory import Optimizer
from ._forgetting import Forgetting
from ._gradients import Gradient, gradient_source
from ._progress import progress_bar
from .torch_optimizers import torch_optimizer

__all__ = ["Estimate", "stationary_covariance"]

Array = NDArray[np.float64]

#: What the burn-in leaves of the transient, as a fraction of the Monte-Carlo standard error of a variance.
TRANSIENT_FRACTION = 0.01
#: Snapshots are so far apart that the squared correlation between neighbours is at most this in every eigendirection.
SNAPSHOT_SHARE = float(np.exp(-2.0))
#: Snapshots where the caller names none: past eight, more replicas buy more than more snapshots.
SNAPSHOTS = 8
#: The longest burn-in that is chosen without being asked for.
LARGEST_AUTOMATIC_BURN_IN = 1_000_000
#: Numbers below which PyTorch shares no elementwise operation between threads. Matrix products it does share, and then
#: the threads cost more than they do: twice the time of a step, and tens of times on a busy machine.
TOO_SMALL_TO_SHARE = 32_768
#: How often a run looks for iterates that left the finite numbers.
STEPS_PER_CHECK = 256


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A measured stationary law: `value` is what ``numpy.asarray(estimate)`` gives.

    Attributes
    ----------
    value : ndarray, shape (k*d, k*d)
        Unbiased estimate of the covariance of the ``k`` stacked slots.
    standard_error : ndarray, shape (k*d, k*d)
        Of each entry, from the spread between replicas.
    mean, mean_standard_error : ndarray, shape (k*d,)
    samples : ndarray, shape (snapshots, replicas, k*d)
        The states themselves. Replicas are independent, snapshots of one replica are not.
    replicas : int
    steps : int
        Steps that every replica took: ``burn_in + (snapshots - 1)*spacing``.
    burn_in, spacing : int
        Steps before the first snapshot, and from one to the next.
    transient : float
        Bound on the bias that the burn-in left in the variance along an eigenvector of the Hessian, in units of the
        standard error it would have with independent Gaussian samples.
    slots : tuple of str
    optimizer : Optimizer
    engine : str
        "rule" or "torch.optim".
    gradients : str
        What kind of gradients the run saw, in words.
    seed : int
        ``rng=seed`` repeats the run on the same device and version of PyTorch.
    """

    value: Array
    standard_error: Array
    mean: Array
    mean_standard_error: Array
    samples: Array = field(repr=False)
    replicas: int
    steps: int
    burn_in: int
    spacing: int
    transient: float
    slots: tuple[str, ...]
    optimizer: Optimizer
    engine: str
    gradients: str
    seed: int

    @property
    def relative_standard_error(self) -> float:
        """Frobenius norm of the standard errors relative to that of the estimate."""
        size = float(np.linalg.norm(self.value))
        return float(np.linalg.norm(self.standard_error)) / size if size else 0.0

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.value, dtype=dtype)

    def _rows(self) -> list[tuple[str, str]]:
        snapshots, replicas, size = self.samples.shape
        stepper = "its rule" if self.engine == "rule" else "torch.optim.SGD"
        return [
            ("optimizer", f"{self.optimizer!r}, stepped by {stepper}"),
            ("gradients", self.gradients),
            ("covariance of", f"{', '.join(self.slots)} ({size} x {size})"),
            ("sample", f"{replicas} replicas x {snapshots} snapshots, {self.spacing} steps apart"),
            ("burn-in", f"{self.burn_in} steps, leaving a bias of at most {self.transient:.2g} standard errors"),
            ("relative error", f"{self.relative_standard_error:.2%} expected (Frobenius norm)"),
            ("seed", str(self.seed)),
        ]

    def __repr__(self) -> str:
        return "\n".join(["Estimate", *(f"  {name:<14} {text}" for name, text in self._rows())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._rows())
        return f"<table><caption>Measured covariance</caption>{rows}</table>"


def stationary_covariance(
    optimizer: Optimizer,
    problem: Quadratic | LeastSquares,
    *,
    replicas: int,
    steps: int | Literal["auto"] = "auto",
    snapshots: int | Literal["auto"] = "auto",
    slots: tuple[str, ...] = ("w",),
    batch_size: int | None = None,
    replacement: bool = True,
    engine: Literal["rule", "torch.optim"] = "rule",
    rng: np.random.Generator | int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Estimate:
    r"""Measure the stationary covariance of an optimizer on a problem.

    All replicas start at the fixed point of the step without noise, in every slot (numerics' `stationary_mean`; a slot
    that holds weights, like Polyak's ``w_prev``, starts at weights). The mean is then right from the first step and
    only the spread has to build up.

    Parameters
    ----------
    optimizer : Optimizer
        Every hyper-parameter bound.
    problem : Quadratic or LeastSquares
        With a `Quadratic`, gradients are ``H (w - optimum)`` plus Gaussian noise of covariance ``problem.noise``. With
        a `LeastSquares` and ``batch_size``, every replica draws true minibatches; the noise then depends on the state,
        and theory's additive model is an approximation.
    replicas : int
        Independent runs, at least 2 (`compare` wants 100).
    steps : int or "auto"
        Total steps of each replica. "auto" burns in until the variance still missing along any eigenvector of the
        Hessian is at most 1% of its Monte-Carlo standard error, by theory's recursion (and twice as long for
        minibatches, whose second moments may decay more slowly), then goes on to the last snapshot.
    snapshots : int or "auto"
        States to use of each replica, so far apart that the squared correlation between neighbours is at most exp(-2).
        "auto": 8; with explicit ``steps``, at most 8 and no more than fit into the second half of the run.
    slots : tuple of str
        Slots to report, stacked in this order.
    batch_size : int, optional
        For `LeastSquares` only.
    replacement : bool
        Whether the examples of one minibatch are drawn with replacement.
    engine : {"rule", "torch.optim"}
        What steps: the rule's own function, or the real ``torch.optim.SGD`` (see `torch_optimizer`).
    rng : numpy.random.Generator or int, optional
        An int seeds torch's generator directly; a Generator gives up one integer; None asks the operating system.
    device : str or torch.device
    progress : bool
        Show a progress bar, if standard error is a terminal and rich is installed. An interrupt (Ctrl-C) removes the
        bar, discards the run and is passed on; nothing global was changed.

    Returns
    -------
    Estimate

    Raises
    ------
    InvalidProblemError
        If an argument does not fit, or "auto" would need more than a million steps.
    UnstableError, NonStationaryError
        If there is no stationary law (numerics decides), or iterates left the finite numbers.
    InvalidRuleError
        If ``engine="torch.optim"`` has no object for the rule.
    HyperparameterError
        If a hyper-parameter is not bound.

    Examples
    --------
    >>> from sgdcov.numerics import Quadratic
    >>> from sgdcov.theory import sgd
    >>> problem = Quadratic(hessian=[[1.0]], noise=[[1.0]], optimum=[3.0])
    >>> estimate = stationary_covariance(sgd(lr=0.5), problem, replicas=20_000, rng=0)
    >>> exact = 0.5 / (2 - 0.5)  # lr c / (2 h - lr h^2)
    >>> bool(abs(estimate.value[0, 0] - exact) < 4 * estimate.standard_error[0, 0])
    True
    """
    seed = _seed(rng)
    if not isinstance(optimizer, Optimizer):
        raise InvalidRuleError(f"expected an optimizer such as sgd(lr=0.1), got {optimizer!r}.")
    optimizer.require_bound()
    _check_count("replicas", replicas, 2)
    if engine not in _ENGINES:
        raise InvalidProblemError(f"engine must be one of {tuple(_ENGINES)}, got {engine!r}.")
    slots = _check_slots(optimizer, slots)
    generator = torch.Generator(device=device).manual_seed(seed)
    source = gradient_source(problem, replicas, generator, batch_size=batch_size, replacement=replacement)
    quadratic = source.additive

    predicted = numerics.stationary_covariance(optimizer, quadratic.hessian, quadratic.noise)
    moving = np.delete(np.asarray(predicted.eigenvalues), np.asarray(predicted.flat, dtype=int))
    forgetting = Forgetting.of(optimizer, moving, slots)
    burn_in, spacing, count = _schedule(forgetting, replicas, steps, snapshots, margin=1 if source.exact else 2)

    known = optimizer.rule.slots
    fixed = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum, slots=known)
    rows = [torch.tensor(row, device=device).unsqueeze(1) for row in np.split(fixed, len(known))]
    # Transposes of (d, replicas) tensors: elementwise steps keep the layout, and products are fastest in it.
    state = [row.repeat(1, replicas).T for row in rows]
    run = _ENGINES[engine](optimizer, state)
    total = burn_in + (count - 1) * spacing
    samples = np.empty((count, replicas, len(slots) * len(quadratic.hessian)))
    taken = 0
    small = samples[0].size <= TOO_SMALL_TO_SHARE
    with torch.no_grad(), _one_thread(small), progress_bar(total, repr(optimizer), progress) as advance:
        for step in range(1, total + 1):
            run.step(next(source.gradients))
            advance(step)
            if step >= burn_in and (step - burn_in) % spacing == 0:
                samples[taken] = torch.cat([run.read(slot) for slot in slots], dim=1).cpu().numpy()
                taken += 1
            if (step % STEPS_PER_CHECK == 0 or step == total) and not bool(torch.isfinite(run.read("w")).all()):
                raise NonStationaryError(
                    f"{optimizer!r} with {source.kind} diverged: iterates are no longer finite after {step} of {total} "
                    f"steps, although the law with additive noise is stationary. Noise that grows with the distance "
                    f"from the optimum needs a smaller learning rate or a larger batch."
                )
    value, standard_error, mean, mean_standard_error = _moments(samples)
    gaussian_error = np.sqrt(2.0 / (replicas * count))
    return Estimate(
        value=value,
        standard_error=standard_error,
        mean=mean,
        mean_standard_error=mean_standard_error,
        samples=samples,
        replicas=replicas,
        steps=total,
        burn_in=burn_in,
        spacing=spacing,
        transient=forgetting.share(burn_in) / gaussian_error,
        slots=slots,
        optimizer=optimizer,
        engine=engine,
        gradients=source.kind,
        seed=seed,
    )


class _RuleRun:
    """The rule's own function on tensors."""

    def __init__(self, optimizer: Optimizer, state: list[torch.Tensor]) -> None:
        # A Fraction or a SymPy number does not multiply a tensor; its float does.
        self.optimizer = optimizer.replace(**{name: float(value) for name, value in optimizer.values.items()})
        self.state: tuple[Any, ...] = tuple(state)

    def step(self, grad: Gradient) -> None:
        self.state = self.optimizer.step(self.state, grad)

    def read(self, slot: str) -> torch.Tensor:
        return self.state[self.optimizer.rule.slots.index(slot)]  # type: ignore[no-any-return]


class _TorchRun:
    """The real ``torch.optim`` object on one (replicas, d) parameter whose gradient is set here."""

    def __init__(self, optimizer: Optimizer, state: list[torch.Tensor]) -> None:
        self.parameter, *buffers = state
        self.optim = torch_optimizer(optimizer, [self.parameter])
        for buffer in buffers:  # the one further slot of PyTorch's rules, where momentum is not 0
            if "momentum_buffer" in self.optim.state[self.parameter]:
                self.optim.state[self.parameter]["momentum_buffer"].copy_(buffer)

    def step(self, grad: Gradient) -> None:
        self.parameter.grad = grad(self.parameter)
        self.optim.step()

    def read(self, slot: str) -> torch.Tensor:
        if slot == "w":
            return self.parameter
        buffer = self.optim.state[self.parameter].get("momentum_buffer")
        if buffer is None:
            raise HyperparameterError(
                f"torch.optim.SGD keeps no momentum buffer (slot {slot!r}) when momentum is 0.", name="momentum"
            )
        return buffer  # type: ignore[no-any-return]


_ENGINES: dict[str, type[_RuleRun] | type[_TorchRun]] = {"rule": _RuleRun, "torch.optim": _TorchRun}


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """One thread for the calling thread's operations, put back on leaving."""
    before = torch.get_num_threads()
    if wanted and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _schedule(
    forgetting: Forgetting, replicas: int, steps: int | str, snapshots: int | str, margin: int
) -> tuple[int, int, int]:
    """Burn-in, spacing and number of snapshots."""
    if snapshots != "auto":
        _check_count("snapshots", snapshots, 1)
    spacing = forgetting.steps(SNAPSHOT_SHARE, LARGEST_AUTOMATIC_BURN_IN)
    if steps == "auto":
        count = SNAPSHOTS if snapshots == "auto" else int(snapshots)
        share = TRANSIENT_FRACTION * np.sqrt(2.0 / (replicas * count))
        burn_in = forgetting.steps(share, LARGEST_AUTOMATIC_BURN_IN)
        if burn_in is None or spacing is None:
            left = forgetting.share(LARGEST_AUTOMATIC_BURN_IN)
            raise InvalidProblemError(
                f"the slowest direction still misses a share {left:.3g} of its variance after "
                f"{LARGEST_AUTOMATIC_BURN_IN:,} steps, and at most {share:.3g} may be missing. Give steps=... to run "
                f"anyway, or take a larger learning rate or a better conditioned problem."
            )
        return margin * burn_in, spacing, count
    _check_count("steps", steps, 1)
    total = int(steps)
    spacing = total if spacing is None else spacing
    fitting = 1 + (total // 2) // spacing
    count = min(SNAPSHOTS, fitting) if snapshots == "auto" else int(snapshots)
    burn_in = total - (count - 1) * spacing
    if burn_in < 1:
        raise InvalidProblemError(
            f"{count} snapshots that are {spacing} steps apart do not fit into steps={total}; "
            f"take at least {(count - 1) * spacing + 1} steps or at most {1 + (total - 1) // spacing} snapshots."
        )
    return burn_in, spacing, count


def _moments(samples: Array) -> tuple[Array, Array, Array, Array]:
    """Covariance, its standard error, mean, its standard error; replicas are the independent unit."""
    replicas = samples.shape[1]
    own_mean = samples.mean(axis=0)
    mean = own_mean.mean(axis=0)
    spread = own_mean - mean
    mean_covariance = spread.T @ spread / (replicas * (replicas - 1))
    centred = samples - mean
    # E[P_r] = Sigma - Cov(mean): centring at the sample mean takes away exactly what is added back here.
    product = sum((snapshot.T @ snapshot for snapshot in centred), np.zeros_like(mean_covariance)) / (
        len(samples) * replicas
    )
    squares = np.zeros_like(product)
    for part in _parts(replicas, samples.shape[2]):
        rows = centred[:, part].transpose(1, 2, 0)  # (part of the replicas, k*d, snapshots)
        own = rows @ rows.transpose(0, 2, 1) / len(samples)
        squares += np.square(own - product).sum(axis=0)
    standard_error = np.sqrt(squares / (replicas * (replicas - 1)))
    return product + mean_covariance, standard_error, mean, np.sqrt(np.diag(mean_covariance))


def _parts(replicas: int, size: int) -> Iterator[slice]:
    """Slices of the replicas whose (size, size) products fit into a few tens of megabytes."""
    length = max(1, (1 << 22) // (size * size))
    return (slice(first, first + length) for first in range(0, replicas, length))


def _seed(rng: np.random.Generator | int | None) -> int:
    if isinstance(rng, int | np.integer):
        if not 0 <= rng < 2**63:
            raise InvalidProblemError(f"rng={rng} is no seed; an integer from 0 to 2**63 - 1 is.")
        return int(rng)
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise InvalidProblemError(f"rng must be a numpy.random.Generator, an int or None, got {type(rng).__name__}.")
    # torch's generator on the CPU reads 32 bits of its seed.
    return int(np.random.default_rng(rng).integers(2**32))


def _check_count(name: str, count: object, least: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
        raise InvalidProblemError(f"{name} must be an integer of at least {least}, got {count!r}.")


def _check_slots(optimizer: Optimizer, slots: tuple[str, ...]) -> tuple[str, ...]:
    known = optimizer.rule.slots
    asked = (slots,) if isinstance(slots, str) else tuple(slots)
    if not asked or len(set(asked)) != len(asked) or not set(asked) <= set(known):
        raise InvalidProblemError(f"slots must be distinct names among {known}, got {asked}.")
    return asked
