"""What every measurement needs: checked arguments, a run that steps all replicas at once, and the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import DivergenceError, HyperparameterError, InvalidProblemError, InvalidRuleError, NonStationaryError
from ..numerics import Quadratic
from ..numerics._arrays import choice, flag, random_generator, shown, tuple_of, whole_number
from ..theory import Optimizer
from ._draws import Gradient
from ._forgetting import growth
from ._gradients import GradientSource, Measurable, gradient_source
from ._memory import refuse_too_much, run_bytes, text_of
from ._progress import progress_bar
from ._tensors import checked_device
from .torch_optimizers import torch_optimizer

__all__ = [
    "ENGINES",
    "Engine",
    "Run",
    "Setup",
    "advance",
    "check_count",
    "check_engine",
    "check_optimizer",
    "check_slots",
    "is_auto",
    "read_slots",
    "seed_of",
    "set_up",
]

Engine = Literal["rule", "torch.optim"]

#: Numbers below which PyTorch shares no elementwise operation between threads. Matrix products it does share, and then
#: the threads cost more than they do: twice the time of a step, and tens of times on a busy machine.
TOO_SMALL_TO_SHARE = 32_768
#: How often a run looks for iterates that left the finite numbers.
STEPS_PER_CHECK = 256
#: A count above it is a slip: so many of the quickest steps take a month.
MOST = 10**12


class RuleRun:
    """The rule's own function on tensors."""

    def __init__(self, optimizer: Optimizer, state: list[torch.Tensor]) -> None:
        self.state: tuple[Any, ...] = tuple(state)
        self.change(optimizer)

    def change(self, optimizer: Optimizer) -> None:
        """Go on with other hyper-parameters."""
        unfit = {name: float(value) for name, value in optimizer.values.items() if not isinstance(value, int | float)}
        # A Fraction or a SymPy number does not multiply a tensor; its float does.
        self.optimizer = optimizer.replace(**unfit) if unfit else optimizer

    def step(self, grad: Gradient) -> None:
        self.state = self.optimizer.step(self.state, grad)

    def read(self, slot: str) -> torch.Tensor:
        return self.state[self.optimizer.rule.slots.index(slot)]  # type: ignore[no-any-return]


class TorchRun:
    """The real ``torch.optim`` object on one (replicas, d) parameter whose gradient is set here."""

    def __init__(self, optimizer: Optimizer, state: list[torch.Tensor]) -> None:
        self.parameter, *buffers = state
        self.optim = torch_optimizer(optimizer, [self.parameter])
        for buffer in buffers:  # the one further slot of PyTorch's rules, where momentum is not 0
            if "momentum_buffer" in self.optim.state[self.parameter]:
                self.optim.state[self.parameter]["momentum_buffer"].copy_(buffer)

    def change(self, optimizer: Optimizer) -> None:
        """Go on with other hyper-parameters."""
        (group,) = self.optim.param_groups
        group.update({name: float(value) for name, value in optimizer.values.items()})

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


Run = RuleRun | TorchRun
ENGINES: dict[str, type[RuleRun] | type[TorchRun]] = {"rule": RuleRun, "torch.optim": TorchRun}


@dataclass(frozen=True)
class Setup:
    """The arguments that all measurements share, checked."""

    optimizer: Optimizer
    source: GradientSource
    replicas: int
    slots: tuple[str, ...]
    engine: Engine
    generator: torch.Generator
    seed: int
    batch_size: int = 0

    def needed(self, snapshots: int, records: int) -> int:
        """Bytes that the run takes: see `run_memory`."""
        return run_bytes(
            replicas=self.replicas, dim=self.quadratic.dim, slots=len(self.optimizer.rule.slots),
            reported=len(self.slots), snapshots=snapshots, records=records, batch_size=self.batch_size,
        )  # fmt: skip

    def refuse_too_much(self, snapshots: int, records: int) -> None:
        """Refuse a run that takes more memory than there is."""
        what = f"{self.replicas:,} replicas of {self.quadratic.dim} weights"
        refuse_too_much(self.needed(snapshots, records), what)

    @property
    def quadratic(self) -> Quadratic:
        """The mean loss, with the noise at its minimum."""
        return self.source.quadratic

    def new_run(self, optimizer: Optimizer, state: list[torch.Tensor]) -> Run:
        """A run from a state; it owns the state."""
        return ENGINES[self.engine](optimizer, state)


def set_up(
    optimizer: Optimizer,
    problem: Measurable,
    *,
    replicas: int,
    slots: tuple[str, ...],
    batch_size: int | None,
    replacement: bool,
    engine: Engine,
    rng: np.random.Generator | int | None,
    device: str | torch.device,
) -> Setup:
    """Check the arguments that all measurements share."""
    seed = seed_of(rng)
    check_optimizer(optimizer)
    optimizer.require_bound()
    check_count("replicas", replicas, 2)
    check_engine(engine, ENGINES)
    slots = check_slots(optimizer, slots)
    generator = torch.Generator(device=checked_device(device)).manual_seed(seed)
    source = gradient_source(
        problem, replicas, generator, optimizer=optimizer, batch_size=batch_size, replacement=replacement
    )
    setup = Setup(optimizer, source, replicas, slots, engine, generator, seed, batch_size or 0)
    setup.refuse_too_much(1, 1)
    return setup


def advance(
    run: Run,
    setup: Setup,
    steps: int,
    after: Callable[[int], None],
    *,
    progress: bool,
    before: Callable[[int], None] | None = None,
    stepping: Callable[[int], Optimizer] | None = None,
    recorded: Container[int] = (),
    snapshots: int = 1,
    records: int = 1,
) -> None:
    """Take steps; ``before`` is called with the number of steps done before each, ``after`` after each.

    ``stepping`` tells which optimizer makes the step of a number, where it is not the setup's. Iterates are looked at
    from time to time, at the end, and after every step in ``recorded``: their squares must be finite. ``snapshots`` and
    ``records`` are how many states of all replicas are taken, for the memory that they need: the progress bar tells it.

    Raises
    ------
    InvalidProblemError
        If the machine has less memory than that, before anything runs.
    DivergenceError
        If iterates of an unstable optimizer are no longer finite.
    NonStationaryError
        If those of another are not, which the noise of minibatches can do.
    """
    setup.refuse_too_much(snapshots, records)
    gradients = setup.source.gradients
    optimizer = setup.optimizer if stepping is None else stepping(1)
    small = run.read("w").numel() <= TOO_SMALL_TO_SHARE
    label = f"{optimizer!r}, about {text_of(setup.needed(snapshots, records))}"
    with torch.no_grad(), _one_thread(small), progress_bar(steps, label, flag("progress", progress)) as show:
        for step in range(1, steps + 1):
            if before is not None:
                before(step - 1)
            run.step(next(gradients))
            show(step)
            looked_at = step % STEPS_PER_CHECK == 0 or step == steps or step in recorded
            if looked_at and not bool(torch.isfinite(torch.square(run.read("w"))).all()):
                last = optimizer if stepping is None else stepping(step)
                raise _diverged(setup, last, f"after {step} of {steps} steps")
            after(step)


def _diverged(setup: Setup, optimizer: Optimizer, when: str) -> DivergenceError | NonStationaryError:
    eigenvalue, factor = growth(optimizer, np.asarray(np.linalg.eigvalsh(setup.quadratic.hessian), dtype=np.float64))
    if factor > 1.0:
        return DivergenceError(f"{optimizer!r} {when}", eigenvalue, factor)
    return NonStationaryError(
        f"{optimizer!r} with {setup.source.kind} diverged: iterates are no longer finite {when}, although the law with "
        f"additive noise is stationary. Noise that grows with the distance from the optimum needs a smaller learning "
        f"rate or a larger batch."
    )


def read_slots(run: Run, slots: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A copy of the slots of every replica, side by side: shape (replicas, k*d)."""
    return torch.cat([run.read(slot) for slot in slots], dim=1).cpu().numpy()


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


def seed_of(rng: np.random.Generator | int | None) -> int:
    """The integer that seeds torch's generator."""
    generator = random_generator(rng)
    if rng is not None and not isinstance(rng, np.random.Generator):
        if rng >= 2**63:
            raise InvalidProblemError(f"rng={shown(rng)} is no seed; an integer from 0 to 2**63 - 1 is.")
        return int(rng)
    # torch's generator on the CPU reads 32 bits of its seed.
    return int(generator.integers(2**32))


def check_count(name: str, count: object, least: int) -> None:
    """Refuse what is not an integer from ``least`` to what anybody could wait for."""
    if whole_number(name, count, least=least) > MOST:
        whole_number(name, count, least=least, most=MOST)


def is_auto(name: str, count: object, least: int) -> bool:
    """Whether a count is left to us; refuses what is neither "auto" nor a count."""
    if isinstance(count, str):
        return choice(name, count, ("auto",)) == "auto"
    check_count(name, count, least)
    return False


def check_engine(engine: Any, known: Iterable[str]) -> None:
    """Refuse what steps nothing."""
    choice("engine", engine, tuple(known))


def check_optimizer(optimizer: object) -> None:
    """Refuse what is not an optimizer, a bare rule for one."""
    if not isinstance(optimizer, Optimizer):
        raise InvalidRuleError(f"expected an optimizer such as sgd(lr=0.1), got {shown(optimizer)}.")


def check_slots(optimizer: Optimizer, slots: tuple[str, ...]) -> tuple[str, ...]:
    """The slots asked for, as a tuple of distinct names that the rule has."""
    known = optimizer.rule.slots
    asked = (slots,) if isinstance(slots, str) else tuple_of("slots", slots)
    if not asked or not all(isinstance(name, str) for name in asked):
        raise InvalidProblemError(f"slots must be distinct names among {known}, got {shown(asked)}.")
    if len(set(asked)) != len(asked) or not set(asked) <= set(known):
        raise InvalidProblemError(f"slots must be distinct names among {known}, got {asked}.")
    return asked
