r"""The answers about an attacked problem: an oracle where there is one, numerics' law, a measured run."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...errors import SgdcovError
from .. import agreement, stationary, weight_perturbation
from ..linearized import LinearizedNetwork
from ..stationary import Estimate
from .adversarial_cases import AdversarialCase
from .adversarial_controls import AdversarialControl
from .adversarial_oracles import check_against_oracle
from .adversarial_problems import Perturbed
from .adversarial_result import AdversarialMeasurement, AdversarialRow
from .result import ControlResult

__all__ = ["measure", "run", "run_adversarial_control", "run_adversarial_row"]


def run_adversarial_row(case: AdversarialCase) -> AdversarialRow:
    """Run one row; where a layer refuses to answer, the row says so."""
    try:
        return AdversarialRow(case, check_against_oracle(case), measure(case))
    except SgdcovError as error:
        return AdversarialRow(case, refusal=f"{type(error).__name__}: {error}")


def measure(case: AdversarialCase) -> AdversarialMeasurement:
    """Measure the run and compare it with numerics' law."""
    started = time.perf_counter()
    slots = case.optimizer.rule.slots
    estimate, law = run(case, slots), case.problem.law(case.optimizer)
    compared = agreement.compare(estimate, law.joint(slots), mean=law.mean)
    exact = law.value
    d, scale = len(exact), float(np.linalg.norm(exact))
    ordinary = case.problem.law_without_attack(case.optimizer).value
    # Without the attack the network's features are others, and so are the coordinates of its range.
    comparable = not isinstance(case.problem.problem, LinearizedNetwork)
    return AdversarialMeasurement(
        p_value=compared.p_value,
        mean_p_value=compared.mean_p_value,
        withheld=compared.withheld,
        relative_error=float(np.linalg.norm(estimate.value[:d, :d] - exact)) / scale,
        expected_relative_error=float(np.linalg.norm(estimate.standard_error[:d, :d])) / scale,
        attack=float(np.linalg.norm(ordinary - exact)) / scale if comparable else None,
        left=_left(case, estimate) if case.problem.name in ("cell", "perturbed") else None,
        replicas=case.replicas,
        seconds=time.perf_counter() - started,
        agreed=(compared,),
    )


def run_adversarial_control(control: AdversarialControl) -> ControlResult:
    """Measure a run and compare it with a wrong and with the right prediction, of the weights."""
    started = time.perf_counter()
    case = control.case
    estimate = run(case, ("w",))
    right, wrong = case.problem.law(case.optimizer).value, control.wrong(case)
    return ControlResult(
        case=control,
        p_value=agreement.compare(estimate, wrong).p_value,
        right_p_value=agreement.compare(estimate, right).p_value,
        size=float(np.linalg.norm(wrong - right) / np.linalg.norm(right)),
        seconds=time.perf_counter() - started,
    )


def run(case: AdversarialCase, slots: tuple[str, ...]) -> Estimate:
    """The measured law of these slots."""
    problem = case.problem.problem
    shared: dict[str, Any] = {"replicas": case.replicas, "slots": slots, "rng": case.seed, "progress": False}
    shared |= {"batch_size": case.problem.batch_size, "engine": case.engine}
    if isinstance(problem, LinearizedNetwork):
        return problem.measure(case.optimizer, **shared)
    if isinstance(problem, Perturbed):
        del shared["slots"], shared["batch_size"]
        return weight_perturbation.perturbed_covariance(case.optimizer, problem.quadratic, problem.rho, **shared)
    return stationary.stationary_covariance(case.optimizer, problem, **shared)


def _left(case: AdversarialCase, estimate: Estimate) -> float:
    """The share of states in which a residual or a weight has another sign than at the optimum."""
    problem = case.problem.problem
    states = estimate.samples[..., : problem.dim]
    residuals = np.sign(problem.y - states @ problem.X.T) != np.sign(problem.y - problem.X @ problem.optimum)
    weights = np.sign(states) != np.sign(problem.optimum)
    return float((residuals.any(axis=2) | weights.any(axis=2)).mean())
