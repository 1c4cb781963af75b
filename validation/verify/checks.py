r"""The checks themselves: a proof, theory against numerics, numerics against a measured run.

Rounding may move an entry of the covariance, relative to the standard deviations it belongs to, by

.. math:: \varepsilon\, n \Big(\kappa\,\frac{h_{\max}}{h_{\min}} + \frac{\lambda_{\max}(S)}{\min_i S_{ii}}\Big) :

n ulp of the largest entry of the Hessian move its smallest eigenvalue by the quotient of the h and the covariance by
the condition :math:`\kappa` times that; the products that rotate S into place bring the second part. That, and not a
number that happens to pass, is the tolerance.
"""

from __future__ import annotations

import time

import numpy as np

from ... import numerics, theory
from ...errors import SgdcovError
from ...numerics import StationaryCovariance
from ...theory import UpdateRule
from .. import agreement, stationary
from ..stationary import Estimate
from . import closed_form
from .cases import Case
from .controls import ControlCase
from .result import ControlResult, Measurement, ProofCheck, Row, TheoryCheck

__all__ = ["check_against_theory", "measure", "prove", "run_control", "run_row"]

EPS = float(np.finfo(np.float64).eps)
#: What numerics promises of an entry in the eigenbasis: a few units in the last place.
PAIR_TOLERANCE = 8 * EPS
#: What rounding may do at worst is a thousand times what it does on these problems. A tolerance is therefore at most
#: this: less than 20 times the largest error of any row, 2.9e-14 for arrays and 2.2e-15 for means.
LARGEST_ARRAY, LARGEST_MEAN = 5e-13, 4e-14


def prove(rule: UpdateRule) -> ProofCheck:
    """Prove the formulas of the covariance of all slots and of the mean, every hyper-parameter a symbol."""
    started = time.perf_counter()
    formulas = (theory.stationary_covariance(rule.free()), theory.stationary_mean(rule.free()))
    claims = sum(len(formula.prove().claims) for formula in formulas)
    return ProofCheck(rule.name, claims, time.perf_counter() - started)


def run_row(case: Case, proof: ProofCheck | None) -> Row:
    """Run one row; where a layer refuses to answer, the row says so."""
    try:
        return Row(
            case=case,
            proof=proof,
            theory=check_against_theory(case) if case.engine == "rule" else None,
            measurement=measure(case),
        )
    except SgdcovError as error:
        return Row(case=case, proof=proof, refusal=f"{type(error).__name__}: {error}")


def check_against_theory(case: Case) -> TheoryCheck:
    """Compare theory's formulas with numerics' arrays, in all slots."""
    started = time.perf_counter()
    optimizer, quadratic = case.optimizer, case.problem.quadratic
    formula, kernel = closed_form.joint_covariance(optimizer, case.problem)
    h, _ = closed_form.eigenbasis(case.problem)
    pairs = numerics.pair_covariance(optimizer, h[:, None], h)
    solved = _solve(case)
    doubled = numerics.stationary_covariance(optimizer, quadratic.hessian, quadratic.noise, method="doubling")
    size = quadratic.dim * len(optimizer.rule.slots)
    variances = np.diag(formula).reshape(len(optimizer.rule.slots), -1)[:, case.problem.live]
    spread = max(np.linalg.norm(own, 2) for own in _own_blocks(formula, quadratic.dim)) / variances.min()
    mean = closed_form.mean(optimizer, case.problem)
    shift = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum) - mean
    return TheoryCheck(
        pair_error=float(np.max(np.abs(pairs - kernel) / np.abs(kernel))),
        pair_tolerance=PAIR_TOLERANCE,
        array_error=_largest(solved.joint() - formula, formula),
        doubling_error=_largest(doubled.joint() - formula, formula),
        array_tolerance=min(LARGEST_ARRAY, EPS * size * (solved.condition * h[-1] / h[0] + spread)),
        mean_error=float(np.max(np.abs(shift)) / np.max(np.abs(mean))),
        mean_tolerance=min(LARGEST_MEAN, EPS * size * h[-1] / h[0]),
        condition=solved.condition,
        seconds=time.perf_counter() - started,
    )


def measure(case: Case) -> Measurement:
    """Measure the covariance of all slots and compare it with numerics' prediction."""
    started = time.perf_counter()
    optimizer, problem = case.optimizer, case.problem
    slots = optimizer.rule.slots
    estimate = _run(case, slots)
    solved = _solve(case)
    quadratic, d = problem.quadratic, problem.quadratic.dim
    moves = optimizer.values.get("weight_decay", 0) != 0
    mean = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum, slots=slots) if moves else None
    agreed = agreement.compare(estimate, solved, mean=mean)
    predicted, measured, error = (a[:d, :d] for a in (solved.joint(), estimate.value, estimate.standard_error))
    still = np.concatenate([k * d + problem.flat for k in range(len(slots))]) if len(problem.flat) else problem.flat
    return Measurement(
        p_value=agreed.p_value,
        mean_p_value=agreed.mean_p_value,
        relative_error=float(np.linalg.norm(measured - predicted) / np.linalg.norm(predicted)),
        expected_relative_error=float(np.linalg.norm(error) / np.linalg.norm(predicted)),
        flat=len(problem.flat),
        moved=float(np.max(np.ptp(estimate.samples[..., still], axis=1), initial=0.0)),
        replicas=estimate.replicas,
        snapshots=len(estimate.samples),
        steps=estimate.steps,
        burn_in=estimate.burn_in,
        seconds=time.perf_counter() - started,
        predicted=predicted.copy(),
        measured=measured.copy(),
        standard_error=error.copy(),
        agreed=(agreed,),
    )


def run_control(control: ControlCase) -> ControlResult:
    """Measure a run and compare it with a wrong and with the right prediction."""
    started = time.perf_counter()
    optimizer, problem = control.optimizer, control.problem
    quadratic = problem.quadratic
    estimate = _run(control, ("w",))
    right = np.asarray(_solve(control))
    wrong = control.wrong(optimizer, problem)
    if control.quantity == "mean":
        mean = numerics.stationary_mean(optimizer, quadratic.hessian, quadratic.optimum)
        rejected = agreement.compare(estimate, right, mean=wrong).mean_p_value
        accepted = agreement.compare(estimate, right, mean=mean).mean_p_value
        size = np.linalg.norm(wrong - mean) / np.linalg.norm(mean)
    else:
        rejected = agreement.compare(estimate, wrong).p_value
        accepted = agreement.compare(estimate, right).p_value
        size = np.linalg.norm(wrong - right) / np.linalg.norm(right)
    return ControlResult(
        case=control,
        p_value=float("nan") if rejected is None else rejected,
        right_p_value=float("nan") if accepted is None else accepted,
        size=float(size),
        seconds=time.perf_counter() - started,
    )


def _run(case: Case | ControlCase, slots: tuple[str, ...]) -> Estimate:
    return stationary.stationary_covariance(
        case.optimizer,
        case.problem.quadratic,
        replicas=case.replicas,
        slots=slots,
        engine=case.engine if isinstance(case, Case) else "rule",
        rng=case.seed,
        progress=False,
    )


def _solve(case: Case | ControlCase) -> StationaryCovariance:
    quadratic = case.problem.quadratic
    return numerics.stationary_covariance(case.optimizer, quadratic.hessian, quadratic.noise)


def _own_blocks(joint: np.ndarray, d: int) -> list[np.ndarray]:
    return [joint[k : k + d, k : k + d] for k in range(0, len(joint), d)]


def _largest(difference: np.ndarray, joint: np.ndarray) -> float:
    """Largest entry in units of the standard deviations it belongs to; along flat coordinates, of the largest ones."""
    deviation = np.sqrt(np.diag(joint))
    deviation = np.where(deviation > 0.0, deviation, np.max(deviation))
    return float(np.max(np.abs(difference) / np.outer(deviation, deviation)))
