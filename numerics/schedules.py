r"""Schedules as data: which hyper-parameters hold for how many steps.

A `Schedule` is a sequence of `Phase`, each a number of steps with its own hyper-parameters; what a phase does not name
keeps the optimizer's own value.  The usual learning-rate schedules are constructors.  Schedules add up
(``warm_up + decay``) and repeat (``3 * cycle``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import HyperparameterError, InvalidProblemError
from ..theory import Optimizer, recursion
from ..theory.hyperparameters import Hyperparameter
from ._arrays import number, shown, tuple_of, vector, whole_number

__all__ = ["Phase", "Schedule"]

#: Ten million take some gigabytes.
_MOST_PHASES = 10**7


@dataclass(frozen=True, init=False, repr=False)
class Phase:
    """A number of steps with the same hyper-parameters.

    Parameters
    ----------
    steps : int
        At least 1.
    **values : number
        Hyper-parameters by name; any other keeps the optimizer's value.  Within their domains, but that ``lr`` may
        be 0: then the weights stand still, as where a warm-up begins.

    Raises
    ------
    InvalidProblemError
        If ``steps`` is no whole number of at least 1, or a value no real number that double precision holds.

    Examples
    --------
    >>> Phase(1000, lr=0.1, momentum=0.9)
    Phase(1000, lr=0.1, momentum=0.9)
    """

    steps: int
    bound: tuple[tuple[str, float], ...]

    def __init__(self, steps: int, **values: float) -> None:
        object.__setattr__(self, "steps", whole_number("steps of a phase", steps, least=1))
        object.__setattr__(self, "bound", tuple((name, _real(name, value)) for name, value in values.items()))

    @property
    def values(self) -> Mapping[str, float]:
        """The hyper-parameters it names."""
        return MappingProxyType(dict(self.bound))

    def __repr__(self) -> str:
        return f"Phase({', '.join([shown(self.steps), *(f'{name}={value}' for name, value in self.bound)])})"


@dataclass(frozen=True, init=False, repr=False)
class Schedule:
    """Phases, one after the other.

    Parameters
    ----------
    phases : iterable of Phase
        At least one, at most ten million.

    Raises
    ------
    InvalidProblemError
        If there is no phase, or something that is none, or more than memory holds.

    Examples
    --------
    >>> schedule = Schedule([Phase(1000, lr=0.1), Phase(500, lr=0.01)])
    >>> schedule.steps
    1500
    >>> 2 * Schedule.constant(10, lr=0.1) + Schedule.constant(5, lr=0.05)
    Schedule([Phase(10, lr=0.1), Phase(10, lr=0.1), Phase(5, lr=0.05)])
    """

    phases: tuple[Phase, ...]
    #: Numpy's numbers leave ``3 * schedule`` to the schedule.
    __array_ufunc__: ClassVar[None] = None

    def __init__(self, phases: Iterable[Phase]) -> None:
        try:
            first = itertools.islice(phases, _MOST_PHASES + 1)  # of an iterator without an end too
        except TypeError:
            raise InvalidProblemError(f"a schedule is made of a list of phases, got {shown(phases)}") from None
        given = tuple_of("phases", first)
        for phase in given:
            if not isinstance(phase, Phase):
                raise InvalidProblemError(f"a schedule is made of phases, as Phase(1000, lr=0.1), got {shown(phase)}")
        if not given:
            raise InvalidProblemError("the schedule is empty: it needs at least one phase")
        _check_phases(len(given))
        object.__setattr__(self, "phases", given)

    @property
    def steps(self) -> int:
        """Number of steps in all."""
        return sum(phase.steps for phase in self.phases)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of steps made at the end of every phase."""
        total, out = 0, []
        for phase in self.phases:
            total += phase.steps
            out.append(total)
        return tuple(out)

    def bind(self, optimizer: Optimizer) -> tuple[tuple[Optimizer, int], ...]:
        """The optimizer of every phase, and for how many steps it runs.

        Parameters
        ----------
        optimizer : Optimizer
            What the phases do not name it must have bound.

        Returns
        -------
        tuple of (Optimizer, int)

        Raises
        ------
        HyperparameterError
            If a value is outside its domain, missing, or none of the rule's; the message names the phase.

        Examples
        --------
        >>> from sgdcov.theory import sgd
        >>> Schedule([Phase(3, lr=0.1), Phase(2)]).bind(sgd(lr=0.5))
        ((sgd(lr=0.1), 3), (sgd(lr=0.5), 2))
        """
        if not isinstance(optimizer, Optimizer):
            optimizer = recursion(optimizer).optimizer  # of a bare rule; refuses anything else
        known: dict[tuple[tuple[str, float], ...], Optimizer] = {}
        out = []
        for index, (phase, end) in enumerate(zip(self.phases, self.ends, strict=True)):
            if phase.bound not in known:
                try:
                    known[phase.bound] = _rebound(optimizer, phase.values)
                    known[phase.bound].require_bound()
                except HyperparameterError as error:
                    where = phase_name(index, end - phase.steps, end)
                    raise HyperparameterError(f"{where}: {error}", name=error.name) from error
            out.append((known[phase.bound], phase.steps))
        return tuple(out)

    def __len__(self) -> int:
        return len(self.phases)

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __add__(self, other: Schedule) -> Schedule:
        return Schedule(self.phases + other.phases) if isinstance(other, Schedule) else NotImplemented

    def __mul__(self, times: int) -> Schedule:
        count = whole_number("repetitions of a schedule", times, least=1)
        _check_phases(count * len(self))
        return Schedule(self.phases * count)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.phases[:6]))
        more = f", ... {len(self) - 6} more" if len(self) > 6 else ""
        return f"Schedule([{shown}{more}])"

    @classmethod
    def from_learning_rates(cls, learning_rates: ArrayLike) -> Schedule:
        """One step for each learning rate; equal ones in a row make one phase.

        Parameters
        ----------
        learning_rates : array_like, shape (steps,)

        Returns
        -------
        Schedule

        Raises
        ------
        InvalidProblemError
            If it is empty, or no vector of finite numbers.

        Examples
        --------
        >>> Schedule.from_learning_rates([0.1, 0.1, 0.05])
        Schedule([Phase(2, lr=0.1), Phase(1, lr=0.05)])
        """
        rates = vector("learning_rates", learning_rates)
        return cls(Phase(len(list(run)), lr=lr) for lr, run in itertools.groupby(rates.tolist()))

    @classmethod
    def constant(cls, steps: int, lr: float) -> Schedule:
        """The same learning rate all the time.

        Examples
        --------
        >>> Schedule.constant(10**6, lr=0.1)
        Schedule([Phase(1000000, lr=0.1)])
        """
        return cls([Phase(steps, lr=lr)])

    @classmethod
    def step_decay(cls, steps: int, lr: float, *, every: int, factor: float = 0.1) -> Schedule:
        """The learning rate times ``factor`` after every ``every`` steps.

        Examples
        --------
        >>> Schedule.step_decay(250, lr=1.0, every=100, factor=0.5)
        Schedule([Phase(100, lr=1.0), Phase(100, lr=0.5), Phase(50, lr=0.25)])
        """
        steps, every = whole_number("steps", steps, least=1), whole_number("every", every, least=1)
        lr, decay = number("lr", lr), np.float64(number("factor", factor))
        _check_phases(-(-steps // every))
        starts = range(0, steps, every)
        with np.errstate(all="ignore"):  # what is beyond the range of doubles is refused as such
            rates = vector("the learning rate", [lr * float(decay**index) for index in range(len(starts))])
        return cls(Phase(min(every, steps - s), lr=rate) for s, rate in zip(starts, rates.tolist(), strict=True))

    @classmethod
    def cosine(cls, steps: int, lr: float, *, final: float = 0.0) -> Schedule:
        r"""From ``lr`` along half a cosine to ``final``, which would be that of the step after the last.

        Step t has :math:`final + (lr - final) (1 + \cos(\pi t / steps)) / 2`, as PyTorch's ``CosineAnnealingLR``.

        Examples
        --------
        >>> Schedule.cosine(2, lr=1.0)
        Schedule([Phase(1, lr=1.0), Phase(1, lr=0.5)])
        """
        t = _times("steps", steps) / steps
        lr, final = number("lr", lr), number("final", final)
        rates = final + (lr - final) * (0.5 + 0.5 * np.cos(math.pi * t))
        return cls.from_learning_rates(rates)

    @classmethod
    def linear_warmup(cls, steps: int, lr: float, *, start: float) -> Schedule:
        """From ``start`` on a straight line to ``lr``, which would be that of the step after the last.

        As PyTorch's ``LinearLR`` with ``start_factor=start/lr``.

        Examples
        --------
        >>> Schedule.linear_warmup(2, lr=1.0, start=0.5)
        Schedule([Phase(1, lr=0.5), Phase(1, lr=0.75)])
        """
        t = _times("steps", steps) / steps
        lr, start = number("lr", lr), number("start", start)
        return cls.from_learning_rates(start + (lr - start) * t)

    @classmethod
    def cyclic(cls, low: float, high: float, *, up: int, down: int | None = None, cycles: int = 1) -> Schedule:
        """From ``low`` in ``up`` steps on a straight line to ``high``, in ``down`` steps (as many) back, and again.

        As PyTorch's ``CyclicLR`` (triangular).

        Examples
        --------
        >>> Schedule.cyclic(0.25, 0.5, up=1, cycles=2)
        Schedule([Phase(1, lr=0.25), Phase(1, lr=0.5), Phase(1, lr=0.25), Phase(1, lr=0.5)])
        """
        low, high, down = number("low", low), number("high", high), up if down is None else down
        rising = low + (high - low) * (_times("up", up) / up)
        falling = high + (low - high) * (_times("down", down) / down)
        return cls.from_learning_rates(np.concatenate([rising, falling])) * cycles

    @classmethod
    def inverse_time(cls, steps: int, lr: float, *, timescale: float) -> Schedule:
        """Step t has ``lr / (1 + t / timescale)``.

        Examples
        --------
        >>> Schedule.inverse_time(2, lr=1.0, timescale=1.0)
        Schedule([Phase(1, lr=1.0), Phase(1, lr=0.5)])
        """
        lr, timescale = number("lr", lr), number("timescale", timescale, least=0, open=True)
        with np.errstate(over="ignore"):
            slowed = 1 + _times("steps", steps) / timescale
        return cls.from_learning_rates(lr / vector("1 + t / timescale", slowed))


def _times(name: str, steps: int) -> NDArray[np.int64]:
    """The steps 0, 1, ... of which each has a learning rate of its own."""
    count = whole_number(name, steps, least=1)
    _check_phases(count)
    return np.arange(count)


def _check_phases(count: int) -> None:
    if count > _MOST_PHASES:
        raise InvalidProblemError(
            f"a schedule holds at most {_MOST_PHASES:,} phases, and these would be more ({_number(count)}); steps "
            f"with the same hyper-parameters are one phase, however many"
        )


def _real(name: str, value: float) -> float:
    """A real number as it came, whose domain is that of the rule it will be bound to."""
    try:
        if isinstance(value, Real):
            float(value)
            return value
    except (ArithmeticError, TypeError, ValueError):
        pass
    raise InvalidProblemError(f"{name} of a phase must be a real number, got {shown(value)}")


def phase_name(index: int, start: int, end: int) -> str:
    """How errors speak of a phase."""
    return f"phase {index} (steps {_number(start)} to {_number(end)})"


def counted(steps: int) -> str:
    """How errors speak of a number of steps."""
    return f"{_number(steps)} steps"


def _number(steps: int) -> str:
    return str(steps) if steps < 10**18 else f"about 1e{int(math.log10(steps))}"


def _rebound(optimizer: Optimizer, values: Mapping[str, float]) -> Optimizer:
    """The optimizer of a phase, whose learning rate may be 0; a float well inside its domain needs no exact check."""
    for name, value in values.items():
        parameter = optimizer.rule[name]
        least, most = _ends(parameter)
        if not (isinstance(value, float) and least < value < most):
            parameter.exact(value, domain=parameter.step_domain)
    bound = {**optimizer.values, **values}
    known = (parameter.name for parameter in optimizer.rule.hyperparameters)
    return Optimizer(optimizer.rule, tuple((name, bound[name]) for name in known if name in bound))


@functools.lru_cache(maxsize=256)
def _ends(parameter: Hyperparameter) -> tuple[float, float]:
    return float(parameter.domain.inf), float(parameter.domain.sup)
