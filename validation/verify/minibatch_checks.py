r"""The answers to a question about minibatches: an oracle where there is one, numerics' exact law, a measured run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import numerics
from ...errors import SgdcovError
from ...numerics import GaussianMinibatchNoise, MinibatchNoise
from .. import adaptive, agreement, epochs, stationary, transient
from ..stationary import Estimate
from . import minibatch_closed_form as closed_form
from .minibatch_cases import BETA2, MinibatchCase
from .minibatch_controls import MinibatchControl
from .minibatch_result import MinibatchMeasurement, MinibatchRow, OracleCheck
from .result import ControlResult

__all__ = ["check_against_oracle", "measure", "run_minibatch_control", "run_minibatch_row", "solve"]

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
#: By how much of its largest eigenvalue the inputs' covariance is moved to see what rounding of it can do.
MOVE = 2.0**-26


@dataclass(frozen=True, eq=False)
class Law:
    """A predicted covariance and mean of the slots that are measured, and the additive covariance of the weights."""

    covariance: Array
    mean: Array
    additive: Array


def run_minibatch_row(case: MinibatchCase) -> MinibatchRow:
    """Run one row; where a layer refuses to answer, the row says so."""
    try:
        claims = None
        if case.problem.name == "gaussian" and case.engine == "rule":
            claims = len(closed_form.formula(case.optimizer).prove().claims)
        return MinibatchRow(case, claims, check_against_oracle(case), measure(case))
    except SgdcovError as error:
        return MinibatchRow(case, refusal=f"{type(error).__name__}: {error}")


def check_against_oracle(case: MinibatchCase) -> OracleCheck | None:
    """Compare numerics' stationary law with one that shares nothing with it, where there is one."""
    if case.engine != "rule" or case.question != "minibatch":
        return None
    started = time.perf_counter()
    noise = case.noise
    if isinstance(noise, GaussianMinibatchNoise):
        formula = closed_form.gaussian_covariance(case.optimizer, noise)
        solved, moved = (_gaussian_law(case, noise, move) for move in (0.0, MOVE))
        largest = float(np.max(np.diag(formula)))
        error = float(np.max(np.abs(solved - formula))) / largest
        # n ulp of the largest eigenvalue move the law by this, and the products that rotate it by n ulp.
        tolerance = EPS * noise.dim * (float(np.max(np.abs(moved - solved))) / MOVE / largest + 1.0)
        return OracleCheck("theory", error, tolerance, time.perf_counter() - started)
    if case.problem.name == "examples" and isinstance(noise, MinibatchNoise):
        listed, mean, rounding = closed_form.listed_covariance(case.optimizer, noise)
        law = _stationary_law(case)
        error = float(np.max(np.abs(law.covariance - listed)) / np.max(np.diag(listed)))
        off = float(np.max(np.abs(law.mean - mean)) / np.max(np.abs(mean)))
        return OracleCheck("every batch", max(error, off), rounding, time.perf_counter() - started)
    return None


def _gaussian_law(case: MinibatchCase, noise: GaussianMinibatchNoise, move: float) -> Array:
    """The covariance of the weights where the whole covariance of the inputs is moved by a share of its largest."""
    hessian = noise.hessian + move * float(np.linalg.norm(noise.hessian, 2)) * np.eye(noise.dim)
    moved = GaussianMinibatchNoise(hessian, noise.noise_std, noise.batch_size, noise.optimum)
    return np.asarray(numerics.stationary_covariance(case.optimizer, moved.hessian, moved).value)


def measure(case: MinibatchCase) -> MinibatchMeasurement:
    """Measure the run and compare it with numerics' exact law."""
    started = time.perf_counter()
    estimates, laws, d = run(case), solve(case), case.noise.dim
    agreed = [agreement.compare(e, law.covariance, mean=law.mean) for e, law in zip(estimates, laws, strict=True)]
    last, law = estimates[-1], laws[-1]
    exact = law.covariance[:d, :d]
    scale = np.linalg.norm(exact)
    return MinibatchMeasurement(
        p_values=tuple(a.p_value for a in agreed),
        mean_p_values=tuple(a.mean_p_value for a in agreed if a.mean_p_value is not None),
        withheld=next((a.withheld for a in agreed if a.withheld is not None), None),
        relative_error=float(np.linalg.norm(last.value[:d, :d] - exact) / scale),
        expected_relative_error=float(np.linalg.norm(last.standard_error[:d, :d]) / scale),
        additive_error=float(np.linalg.norm(law.additive - exact) / scale),
        replicas=case.replicas,
        seconds=time.perf_counter() - started,
        agreed=tuple(agreed),
    )


def run_minibatch_control(control: MinibatchControl) -> ControlResult:
    """Measure a run and compare it with a wrong and with the right prediction, of the weights."""
    started = time.perf_counter()
    case, d = control.case, control.case.noise.dim
    estimate, law = run(case, slots=("w",))[0], solve(case)[0]
    right, wrong = law.covariance[:d, :d], control.wrong(case)
    return ControlResult(
        case=control,
        p_value=agreement.compare(estimate, wrong).p_value,
        right_p_value=agreement.compare(estimate, right).p_value,
        size=float(np.linalg.norm(wrong - right) / np.linalg.norm(right)),
        seconds=time.perf_counter() - started,
    )


def solve(case: MinibatchCase) -> list[Law]:
    """Numerics' exact law, one for each position that is looked at."""
    if case.question == "epochs":
        return [_epoch_law(case, position) for position in case.positions]
    if case.question == "adaptive":
        return [_adaptive_law(case)]
    return [_stationary_law(case) if case.question == "minibatch" else _law_after_start(case)]


def _stationary_law(case: MinibatchCase) -> Law:
    optimizer, noise = case.solvable
    slots = optimizer.rule.slots
    return Law(
        numerics.stationary_covariance(optimizer, noise.hessian, noise).joint(slots),
        numerics.stationary_mean(optimizer, noise.hessian, noise.optimum, slots=slots),
        np.asarray(numerics.stationary_covariance(optimizer, noise.hessian, noise.covariance()).value),
    )


def _law_after_start(case: MinibatchCase) -> Law:
    optimizer, noise, steps = case.optimizer, case.noise, case.steps
    slots, start = optimizer.rule.slots, np.zeros(noise.dim)
    path: dict[str, Any] = {"start": start, "optimum": noise.optimum, "slots": slots}
    return Law(
        numerics.transient_covariance(optimizer, noise.hessian, noise, steps, mean=start).joint(slots),
        numerics.transient_mean(optimizer, noise.hessian, steps, **path),
        np.asarray(numerics.transient_covariance(optimizer, noise.hessian, noise.covariance(), steps).value),
    )


def _epoch_law(case: MinibatchCase, position: epochs.Position) -> Law:
    """Exact: the additive law where all examples have one Hessian, every order of the batches where they have not."""
    optimizer, examples, size = case.optimizer, case.problem.examples, case.problem.batch_size
    noise = numerics.epoch_noise(examples, size)
    slots = optimizer.rule.slots
    additive = numerics.stationary_covariance(optimizer, examples.hessian, noise, position=position)
    if case.problem.name == "shared":
        mean = numerics.stationary_mean(optimizer, examples.hessian, examples.optimum, slots=slots)
        return Law(additive.joint(slots), mean, np.asarray(additive.value))
    law = numerics.reshuffling_law(optimizer, examples, size, position=position)
    return Law(law.joint(slots), law.slot_mean(slots), np.asarray(additive.value))


def _adaptive_law(case: MinibatchCase) -> Law:
    """Second moments frozen where their own stationary law has them: an approximation."""
    optimizer, noise = case.optimizer, case.noise
    law = numerics.adaptive_covariance(optimizer, noise.hessian, noise)
    additive = numerics.adaptive_covariance(optimizer, noise.hessian, noise.covariance())
    return Law(np.asarray(law.value), noise.optimum, np.asarray(additive.value))


def run(case: MinibatchCase, slots: tuple[str, ...] | None = None) -> Sequence[Estimate]:
    """Measured laws, one for each position that is looked at; of all slots unless told."""
    slots = slots or case.optimizer.rule.slots
    shared: dict[str, Any] = {"replicas": case.replicas, "slots": slots, "rng": case.seed, "progress": False}
    if case.question == "epochs":
        return epochs.epoch_covariance(
            case.optimizer,
            case.problem.examples,
            batch_size=case.problem.batch_size,
            positions=case.positions,
            engine="dataloader" if case.engine == "torch.optim" else "rule",
            **shared,
        )
    if case.question == "adaptive":
        measured: Estimate = adaptive.adaptive_covariance(
            case.optimizer, case.noise, beta2=BETA2, replicas=case.replicas, rng=case.seed, progress=False
        )
        return [measured]
    if case.question == "start":
        start = np.zeros(case.noise.dim)
        found: Estimate = transient.transient_covariance(
            case.optimizer, case.noise, case.steps, start=start, engine=case.engine, **shared
        )
        return [found]
    return [stationary.stationary_covariance(case.optimizer, case.noise, engine=case.engine, **shared)]
