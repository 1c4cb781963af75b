r"""Theory's formulas over time evaluated on a problem, in 50 digits.

The formula is the proved one, with every hyper-parameter a symbol and k an exponent. Its auxiliary quantities (the
stationary law, the characteristic sequence, its roots) are evaluated one after the other, last first, at every pair of
eigenvalues; roots may be complex on the way. What is left to compare with numerics is numerics' own rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np
import sympy as sp
from numpy.typing import NDArray

from ... import theory
from ...numerics import Schedule
from ...theory import Formula, Optimizer
from .closed_form import DIGITS, eigenbasis, rotate_back, rotated_noise
from .problems import Problem
from .time_cases import Question, TimeCase

__all__ = ["after_change", "covariances", "early_phase_variances", "formulas", "mean"]

Array = NDArray[np.float64]
#: An (n, n) array of mpmath numbers: a quantity for unit c_ij at all pairs of eigenvalues.
Kernel = NDArray[np.object_]
Make = Callable[[Optimizer], tuple[Formula, ...]]


def formulas(question: Question, optimizer: Optimizer) -> tuple[Formula, ...]:
    """The formulas that answer a question, in symbols for every hyper-parameter that is not at its default."""
    free = _free(optimizer)
    return (*_MAKES[question](free), *(_mean(free) if question == "start" else ()))


def covariances(case: TimeCase) -> list[Array]:
    """The covariance of the weights that a question asks for, at every time that is looked at."""
    if case.schedule is not None:
        return _after_schedule(case.optimizer, case.schedule, case.record, case.problem)
    if case.before is not None:
        return [after_change(case.optimizer, case.before, case.steps, case.problem)]
    role = {"start": "k", "lag": "s", "average": "K"}[case.question]
    (kernel,) = _kernels(_MAKES[case.question], case.optimizer, case.problem, **{role: case.steps})
    return [_in_coordinates(kernel, case.problem)]


def mean(case: TimeCase) -> Array:
    """The mean of the weights after a start at w = 0 with a velocity of zero."""
    h, vectors = eigenbasis(case.problem)
    targets = vectors.T @ case.problem.quadratic.optimum
    with mpmath.workdps(DIGITS):
        program = _program(_mean, _free(case.optimizer))
        known = {**_numbers(case.optimizer), "k": case.steps}
        pairs = zip(h.tolist(), targets.tolist(), strict=True)
        values = [program({**known, "h_i": mpmath.mpf(x), "w_star": mpmath.mpf(target)})[0] for x, target in pairs]
    return np.asarray(vectors @ np.array(values, dtype=np.float64))


def after_change(optimizer: Optimizer, before: Optimizer, steps: int, problem: Problem) -> Array:
    """The covariance of the weights some steps after the learning rate of a stationary run changed."""
    (kernel,) = _kernels(_change, optimizer, problem, k=steps, lr_before=before.exact["lr"])
    return _in_coordinates(kernel, problem)


def early_phase_variances(optimizer: Optimizer, before: Optimizer, steps: int, problem: Problem) -> tuple[Array, Array]:
    """Variances for unit noise along the eigenvectors some steps after a change: the surrogate's, the exact ones."""
    known = {"k": steps, "lr_before": before.exact["lr"]}
    (stated,), (exact,) = (_kernels(make, optimizer, problem, **known) for make in (_surrogate, _change))
    return np.diag(stated).astype(np.float64), np.diag(exact).astype(np.float64)


def _after_schedule(optimizer: Optimizer, schedule: Schedule, record: Sequence[int], problem: Problem) -> list[Array]:
    """The covariance of the weights at some steps of a schedule from a start that does not vary, phase after phase."""
    slots = optimizer.rule.slots
    found: list[Array] = []
    state: dict[str, Kernel] = {}
    done = 0
    for end, (bound, _) in zip(schedule.ends, schedule.bind(optimizer), strict=True):
        for stop in sorted({end, *(step for step in record if done < step <= end)}):
            kernels = _kernels(_all_slots, bound, problem, k=stop - done, **state)
            state = dict(zip((f"start_{a}_{b}" for a in slots for b in slots), kernels, strict=True))
            done = stop
            if stop in record:
                found.append(_in_coordinates(kernels[0], problem))
    return found


def _surrogate(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.early_phase_surrogate(),)


def _change(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.learning_rate_change(rule),)


def _transient(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.transient_covariance(rule),)


def _mean(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.transient_mean(rule),)


def _autocovariance(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.autocovariance(rule),)


def _average(rule: Optimizer) -> tuple[Formula, ...]:
    return (theory.average_covariance(rule),)


def _all_slots(rule: Optimizer) -> tuple[Formula, ...]:
    slots = rule.rule.slots
    return tuple(theory.transient_covariance(rule, (a, b)) for a in slots for b in slots)


_MAKES: Mapping[Question, Make] = {
    "drop": _change,
    "start": _transient,
    "step-decay": _all_slots,
    "cosine": _all_slots,
    "lag": _autocovariance,
    "average": _average,
}


def _free(optimizer: Optimizer) -> Optimizer:
    """The rule with a symbol for what is not at its default."""
    defaults = {p.name: p.default for p in optimizer.rule.hyperparameters}
    return optimizer.free(*(name for name, value in optimizer.values.items() if value != defaults[name]))


def _numbers(optimizer: Optimizer) -> dict[str, Any]:
    return {name: mpmath.mpf(int(value.p)) / int(value.q) for name, value in optimizer.exact.items()}


def _kernels(make: Make, optimizer: Optimizer, problem: Problem, **known: Any) -> list[Kernel]:
    """The formulas for unit noise at all pairs of eigenvalues; a start that is not given is zero."""
    with mpmath.workdps(DIGITS):
        program = _program(make, _free(optimizer))
        h = [mpmath.mpf(x) for x in eigenbasis(problem)[0].tolist()]
        numbers: dict[str, Any] = {**_numbers(optimizer), "c_ij": mpmath.mpf(1)}
        for name, value in known.items():
            numbers[name] = mpmath.mpf(int(value.p)) / int(value.q) if isinstance(value, sp.Rational) else value
        arrays = {name: value for name, value in numbers.items() if isinstance(value, np.ndarray)}
        found = np.empty((len(program.outputs), len(h), len(h)), dtype=object)
        for i, j in np.ndindex(len(h), len(h)):
            own = {name: value[i, j] for name, value in arrays.items()}
            found[:, i, j] = program({**numbers, **own, "h_i": h[i], "h_j": h[j]})
    return list(found)


def _in_coordinates(kernel: Kernel, problem: Problem) -> Array:
    return rotate_back(np.asarray(kernel, dtype=np.float64) * rotated_noise(problem), problem)


class _Program:
    """The right-hand sides of formulas as a function of numbers by role, its parts evaluated in order."""

    def __init__(self, formulas: tuple[Formula, ...]) -> None:
        where = {name: meaning for formula in formulas for name, meaning in formula.where.items()}
        # p_i(k) is a number here, not a function of one.
        plain = {name: sp.Dummy() for name in where}
        self.roles = {symbol: role for formula in formulas for role, symbol in formula.symbols.items()}
        self.steps = [(plain[name], *_compiled(meaning.xreplace(plain))) for name, meaning in reversed(where.items())]
        self.outputs = [_compiled(formula.expression.xreplace(plain)) for formula in formulas]

    def __call__(self, numbers: Mapping[str, Any]) -> list[Any]:
        known: dict[sp.Basic, Any] = {symbol: numbers.get(role, 0) for symbol, role in self.roles.items()}
        for name, function, arguments in self.steps:
            known[name] = function(*(known[a] for a in arguments))
        return [mpmath.re(function(*(known[a] for a in arguments))) for function, arguments in self.outputs]


def _compiled(expression: sp.Expr) -> tuple[Callable[..., Any], tuple[sp.Basic, ...]]:
    """A function that remembers: what depends on one eigenvalue is asked for at every other one."""
    arguments = tuple(sorted(expression.free_symbols, key=str))
    return functools.lru_cache(maxsize=1024)(sp.lambdify(arguments, expression, "mpmath", cse=True)), arguments


@functools.lru_cache(maxsize=64)
def _program(make: Make, optimizer: Optimizer) -> _Program:
    return _Program(make(optimizer))
