r"""The three answers to a question about time: proved formula, solved arrays, measured run.

What rounding may do to an entry is looked up, not guessed: n ulp of the largest eigenvalue of the Hessian move the
others by as much. So the tolerance is what the answer moves when the whole Hessian does, scaled to n ulp, plus n ulp of
the largest entry for the products that rotate it into place; both relative to the standard deviations it belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...errors import SgdcovError
from ...numerics import StationaryCovariance, TransientCovariance
from ...theory import Optimizer
from .. import agreement, averages, transient
from ..averages import AutocovarianceEstimate
from ..stationary import Estimate
from ..trajectory import trajectory
from . import time_closed_form as closed_form
from .result import ControlResult, ProofCheck, TimeMeasurement, TimeRow, TimeTheoryCheck
from .time_cases import TimeCase
from .time_controls import TimeControl

__all__ = ["check_against_theory", "measure", "prove", "run_time_control", "run_time_row"]

Array = NDArray[np.float64]
Prediction = TransientCovariance | Array

EPS = float(np.finfo(np.float64).eps)
#: By how much of its largest eigenvalue the Hessian is moved to see what rounding of it can do.
MOVE = 2.0**-26


def prove(case: TimeCase) -> ProofCheck:
    """Prove the formulas that answer the question, every hyper-parameter that is not at its default a symbol."""
    started = time.perf_counter()
    claims = sum(len(formula.prove().claims) for formula in closed_form.formulas(case.question, case.optimizer))
    return ProofCheck(case.optimizer.rule.name, claims, time.perf_counter() - started)


def run_time_row(case: TimeCase, proof: ProofCheck | None) -> TimeRow:
    """Run one row; where a layer refuses to answer, the row says so."""
    try:
        checked = check_against_theory(case) if case.engine == "rule" else None
        return TimeRow(case=case, proof=proof, theory=checked, measurement=measure(case))
    except SgdcovError as error:
        return TimeRow(case=case, proof=proof, refusal=f"{type(error).__name__}: {error}")


def check_against_theory(case: TimeCase) -> TimeTheoryCheck:
    """Compare theory's formulas with numerics' arrays for the weights, at every time that is looked at."""
    started = time.perf_counter()
    hessian = case.problem.quadratic.hessian
    largest, size = float(np.linalg.norm(hessian, 2)), len(hessian)
    moved = solve(case, hessian + MOVE * largest * np.eye(size))
    errors, tolerances = [], []
    for formula, solved, other in zip(closed_form.covariances(case), solve(case, hessian), moved, strict=True):
        value, unit = np.asarray(solved), _units(case, formula)
        errors.append(float(np.max(np.abs(value - formula) / unit)))
        sensitivity = float(np.max(np.abs(np.asarray(other) - value) / unit)) / MOVE
        spread = float(np.linalg.norm(formula, 2) / np.min(unit))
        tolerances.append(EPS * size * (sensitivity + spread))
    mean_error, mean_tolerance = _check_mean(case)
    worst = int(np.argmax(np.divide(errors, tolerances)))
    seconds = time.perf_counter() - started
    return TimeTheoryCheck(errors[worst], tolerances[worst], mean_error, mean_tolerance, seconds)


def _check_mean(case: TimeCase) -> tuple[float, float]:
    """Largest error of the mean after a fixed start, relative to its largest entry, and what rounding explains."""
    if case.question != "start":
        return 0.0, 0.0
    hessian = case.problem.quadratic.hessian
    size, largest = len(hessian), float(np.linalg.norm(hessian, 2))
    formula = closed_form.mean(case)
    ((solved,), (moved,)) = (_means(case, h, ("w",)) for h in (hessian, hessian + MOVE * largest * np.eye(size)))
    scale = float(np.max(np.abs(formula)))
    tolerance = EPS * size * (float(np.max(np.abs(moved - solved))) / MOVE / scale + 1.0)
    return float(np.max(np.abs(solved - formula))) / scale, tolerance


def measure(case: TimeCase) -> TimeMeasurement:
    """Measure the run and compare it with numerics' prediction at every time that is looked at."""
    started = time.perf_counter()
    hessian, d = case.problem.quadratic.hessian, case.problem.quadratic.dim
    estimates, predictions = run(case), solve(case, hessian)
    means: Sequence[Array | None] = _means(case, hessian, estimates[0].slots) or [None] * len(estimates)
    agreed = [
        agreement.compare(estimate, prediction, mean=mean)
        for estimate, prediction, mean in zip(estimates, predictions, means, strict=True)
    ]
    predicted = [np.asarray(prediction)[:d, :d] for prediction in predictions]
    scale = np.linalg.norm(predicted[-1])
    last = estimates[-1]
    return TimeMeasurement(
        p_values=tuple(a.p_value for a in agreed),
        mean_p_values=tuple(a.mean_p_value for a in agreed if a.mean_p_value is not None),
        relative_error=float(np.linalg.norm(last.value[:d, :d] - predicted[-1]) / scale),
        expected_relative_error=float(np.linalg.norm(last.standard_error[:d, :d]) / scale),
        replicas=case.replicas,
        start=last.start if isinstance(last, AutocovarianceEstimate | transient.TransientEstimate) else "",
        seconds=time.perf_counter() - started,
        agreed=tuple(agreed),
    )


def run_time_control(control: TimeControl) -> ControlResult:
    """Measure a run and compare it with a wrong and with the right prediction."""
    started = time.perf_counter()
    case = control.case
    (estimate,) = run(case, slots=("w",))
    (right,) = (np.asarray(prediction) for prediction in solve(case, case.problem.quadratic.hessian))
    wrong = control.wrong(case)
    return ControlResult(
        case=control,
        p_value=agreement.compare(estimate, wrong).p_value,
        right_p_value=agreement.compare(estimate, right).p_value,
        size=float(np.linalg.norm(wrong - right) / np.linalg.norm(right)),
        seconds=time.perf_counter() - started,
    )


def solve(case: TimeCase, hessian: Array) -> list[Prediction]:
    """Numerics' covariances, one for each time that is looked at."""
    optimizer, noise, steps = case.optimizer, case.problem.quadratic.noise, case.steps
    if case.schedule is not None:
        return list(numerics.trajectory(optimizer, case.schedule, hessian, noise, record=case.record).covariance)
    if case.question == "lag":
        return [numerics.autocovariance(optimizer, hessian, noise, steps)]
    if case.question == "average":
        return [numerics.average_covariance(optimizer, hessian, noise, steps)]
    start = None if case.before is None else numerics.stationary_covariance(case.before, hessian, noise)
    return [numerics.transient_covariance(optimizer, hessian, noise, steps, start=start)]


def _means(case: TimeCase, hessian: Array, slots: tuple[str, ...]) -> list[Array]:
    """Numerics' means, one for each time, where the run does not start at the stationary law."""
    start, optimum = np.zeros(len(hessian)), case.problem.quadratic.optimum
    if case.question == "start":
        return [numerics.transient_mean(case.optimizer, hessian, case.steps, start=start, optimum=optimum, slots=slots)]
    if case.schedule is None:
        return []
    path = numerics.trajectory(
        case.optimizer, case.schedule, hessian, case.problem.quadratic.noise, mean=start, optimum=optimum,
        record=case.record,
    )  # fmt: skip
    return list(path.mean)


def run(case: TimeCase, slots: tuple[str, ...] | None = None) -> Sequence[Estimate | AutocovarianceEstimate]:
    """Measured covariances, one for each time that is looked at; of all slots after a drop or a start."""
    quadratic = case.problem.quadratic
    if case.schedule is not None:
        path = trajectory(
            case.optimizer,
            case.scheduler if case.engine == "torch.optim" and case.scheduler is not None else case.schedule,
            quadratic,
            mean=np.zeros(quadratic.dim),
            record=case.record,
            replicas=case.replicas,
            engine=case.engine,
            rng=case.seed,
            progress=False,
        )
        return path.estimates
    if case.question in ("lag", "average"):
        ask = averages.autocovariance if case.question == "lag" else averages.average_covariance
        found: AutocovarianceEstimate | Estimate = ask(
            case.optimizer,
            quadratic,
            case.steps,
            start="burn-in" if case.runs_in else "law",
            replicas=case.replicas,
            engine=case.engine,
            rng=case.seed,
            progress=False,
        )
        return [found]
    after = transient.transient_covariance(
        case.optimizer,
        quadratic,
        case.steps,
        start=_start(case),
        replicas=case.replicas,
        slots=slots or case.optimizer.rule.slots,
        engine=case.engine,
        rng=case.seed,
        progress=False,
    )
    return [after]


def _start(case: TimeCase) -> Optimizer | StationaryCovariance | Array:
    """Where replicas start: at w = 0, or at the stationary law before a drop, which they reach or are drawn from."""
    quadratic = case.problem.quadratic
    if case.before is None:
        return np.zeros(quadratic.dim)
    if case.runs_in:
        return case.before
    return numerics.stationary_covariance(case.before, quadratic.hessian, quadratic.noise)


def _units(case: TimeCase, covariance: Array) -> Array:
    """Products of the standard deviations that an entry belongs to; of an autocovariance, the stationary ones."""
    if case.question == "lag":
        quadratic = case.problem.quadratic
        covariance = np.asarray(numerics.stationary_covariance(case.optimizer, quadratic.hessian, quadratic.noise))
    deviation = np.sqrt(np.diag(covariance))
    return np.outer(deviation, deviation)
