r"""What numerics knows of attacked problems, by ways that share nothing with it.

For Gaussian data and for single examples theory's formulas are evaluated on arrays. For an attack of norm inf every
corner of the ball is tried: the maximum over the ball of a loss that is convex in the input lies in one of them.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import numerics, theory
from ...numerics import AdversarialLeastSquares, AdversarialLogistic, LeastSquares, MinibatchNoise
from ...theory import Formula
from .adversarial_cases import AdversarialCase
from .adversarial_result import AttackOracle

__all__ = ["check_against_oracle", "corners"]

Array: TypeAlias = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
#: Sums of some tens of products, each to an ulp of the largest.
ROUNDING = 200 * EPS
#: Problems that no row runs by the rule's own function.
ONLY_TORCH = ("gaussian-linf", "logistic-l2")


def check_against_oracle(case: AdversarialCase) -> AttackOracle | None:
    """Compare numerics with an oracle, where there is one for the problem; once for all of its optimizers."""
    found = _ORACLES.get(case.problem.name)
    if found is None or (case.engine != "rule" and case.problem.name not in ONLY_TORCH):
        return None
    started = time.perf_counter()
    kind, oracle = found
    error, tolerance, formulas = oracle(case)
    claims = sum(len(formula.prove().claims) for formula in formulas)
    return AttackOracle(kind, error, tolerance, claims, time.perf_counter() - started)


def _worst(pairs: list[tuple[Any, Any]]) -> float:
    """The largest error, relative to the largest entry of the numerical one."""
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs)


def _points(case: AdversarialCase) -> list[Array]:
    """The optimum, and two points off it."""
    w = case.problem.problem.optimum
    rng = np.random.default_rng(35)
    return [w, *(w + 0.2 * np.abs(w).max() * rng.normal(size=len(w)) for _ in range(2))]


def _entries(formula: Formula, **values: Any) -> Array:
    """A formula of entries i, j on arrays; what it does not contain is left out."""
    return np.asarray(formula.lambdify()(**{name: v for name, v in values.items() if name in formula.symbols}))


def _pair(name: str, vector: Array) -> dict[str, Array]:
    return {f"{name}_i": vector[:, None], f"{name}_j": vector[None, :]}


def _gaussian(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    p = case.problem.problem
    norm = p.norm
    slope, hessian = theory.robust_gradient(norm), theory.robust_hessian(norm)
    blunt, noise = theory.mean_example_hessian(norm), theory.robust_noise(norm)
    pairs = []
    for w in _points(case):
        a = p.covariance @ (w - p.weights)
        v = float(np.sqrt((w - p.weights) @ a + p.label_noise**2))
        shared: dict[str, Any] = {"radius": p.radius, "v": v, "norm_w": float(np.linalg.norm(w, ord=p.dual))}
        shared |= _pair("w", w) | _pair("sign_w", np.sign(w)) | _pair("a", a)
        shared |= {"S_ij": p.covariance, "delta_ij": np.eye(p.dim)}
        g = _entries(slope, **shared)[:, 0]
        # At the optimum the gradient is 0, and its rounding is that of the two parts that cancel.
        pairs.append((p.gradient(w) + a, g + a))
        pairs.append((p.hessian_at(w), _entries(hessian, **shared)))
        pairs.append((p.mean_ae_hessian(w), _entries(blunt, **shared)))
        pairs.append((p.noise(1, w), _entries(noise, **shared, **_pair("g", g))))
    return _worst(pairs), ROUNDING, [slope, hessian, blunt, noise]


def corners(problem: AdversarialLeastSquares | AdversarialLogistic, w: Array) -> tuple[float, Array]:
    """The mean loss at the worst corners of the examples' balls, and its gradient with these inputs held."""
    ball = problem.radius * np.array(list(itertools.product((-1.0, 1.0), repeat=problem.dim)))
    z = (problem.X[:, None, :] + ball) @ w
    y = problem.y[:, None]
    squared = isinstance(problem, AdversarialLeastSquares)
    losses = 0.5 * (y - z) ** 2 if squared else np.logaddexp(0.0, -y * z)
    rows, worst = np.arange(problem.num_examples), losses.argmax(axis=1)
    inputs, at = problem.X + ball[worst], z[rows, worst]
    slopes = at - problem.y if squared else -problem.y / (1.0 + np.exp(problem.y * at))
    gradient = slopes @ inputs / problem.num_examples + problem.l2 * w
    return float(losses[rows, worst].mean() + 0.5 * problem.l2 * w @ w), gradient


def _corners(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    p = case.problem.problem
    pairs = []
    for w in _points(case):
        loss, gradient = corners(p, w)
        scale = np.abs(p.per_example_gradients(w)).max()
        pairs += [(p.loss(w), loss), (p.gradient(w) + scale, gradient + scale)]
    return _worst(pairs), ROUNDING, [theory.worst_case_shift(np.inf)]


def _examples(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    p = case.problem.problem
    kind: Any = "squared" if isinstance(p, AdversarialLeastSquares) else "logistic"
    slope, hessian = theory.adversarial_gradient(kind, 2), theory.adversarial_hessian(kind, 2)
    pairs = []
    for w in _points(case):
        z = p.X @ w
        r = p.y - z
        shared: dict[str, Any] = {"radius": p.radius, "norm_w": float(np.linalg.norm(w)), "delta_ij": np.eye(p.dim)}
        shared |= {f"w_{k}": v for k, v in (("i", w[:, None]), ("j", w[None, :]))}
        each = {"abs_residual": np.abs(r), "sign": np.sign(r), "margin": p.y * z, "label": p.y, "y": p.y}
        own = {name: v[:, None, None] for name, v in each.items()}
        inputs = {"x_i": p.X[:, :, None], "x_j": p.X[:, None, :]}
        decay = p.l2 * np.eye(p.dim)
        pairs.append((p.per_example_gradients(w), _entries(slope, **shared, **own, **inputs)[:, :, 0] + p.l2 * w))
        pairs.append((p.mean_ae_hessian(w), _entries(hessian, **shared, **own, **inputs).mean(axis=0) + decay))
    return _worst(pairs), ROUNDING, [slope, hessian]


def _unhinged(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    p = case.problem.problem
    pull = p.y @ p.X / p.num_examples
    shared: dict[str, Any] = {"decay": p.l2, "radius": p.radius, "norm_m": float(np.linalg.norm(pull))}
    shared |= _pair("m", pull) | {"delta_ij": np.eye(p.dim)}
    least, hessian = theory.unhinged_minimiser(), theory.unhinged_hessian()
    u = p.optimum / np.linalg.norm(p.optimum)
    noise = p.noise(case.problem.batch_size)
    across = np.eye(p.dim) - np.outer(u, u)
    law = theory.unhinged_covariance(theory.sgd)
    predicted = _entries(law, **shared, lr=float(case.optimizer.values["lr"]), noise=across @ noise @ across)
    solved = across @ case.problem.law(case.optimizer).value @ across
    pairs = [
        (p.optimum, _entries(least, **shared)[:, 0]),
        (p.hessian, _entries(hessian, **shared)),
        (solved, predicted),
    ]
    return _worst(pairs), 10 * ROUNDING, [least, hessian, law]


def _closure(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    """Its slope at rho = 0 against the first-order law, which is exact there."""
    small, p = 1e-4, case.problem.problem.quadratic
    plain, moved = (case.problem.law_of(case.optimizer, case.problem.make(rho), 1).value[0, 0] for rho in (0.0, small))
    first = theory.normalised_perturbation_covariance()
    numbers = {"h_i": p.hessian[0, 0], "c_ii": p.noise[0, 0], "lr": float(case.optimizer.values["lr"])}
    kappa = first.parts["isotropic"]
    inverse = float(kappa.subs({s: {**numbers, "dim": p.dim}[str(s)] for s in kappa.free_symbols}))
    predicted = float(first.lambdify()(**numbers, rho=small, inverse_length=inverse))
    solved = float(numerics.stationary_covariance(case.optimizer, p.hessian, p.noise).value[0, 0])
    pairs = [(plain, solved), (moved, predicted)]
    return _worst(pairs), 10 * small**2, [first, theory.normalised_perturbation_closure()]


def _re_weighted(case: AdversarialCase) -> tuple[float, float, list[Formula]]:
    cell = case.problem.problem.cell()
    weight = theory.perturbed_example_weight()
    rho, lr = float(case.optimizer.values["rho"]), float(case.optimizer.values["lr"])
    weights = _entries(weight, rho=rho, norm_x=np.linalg.norm(cell.X, axis=1))
    noise = MinibatchNoise(LeastSquares(cell.X, cell.y, sample_weight=weights), 1)
    plain = theory.sgd(lr=lr)
    law = numerics.stationary_covariance(plain, noise.hessian, noise)
    kept = 1.0 - numerics.mean_square_stability(plain, noise).spectral_radius  # what rounding is divided by
    solved = case.problem.law(case.optimizer).value
    return _worst([(solved, np.asarray(law.value))]), ROUNDING / kept, [weight]


_ORACLES: dict[str, tuple[str, Any]] = {
    "gaussian-l2": ("theory", _gaussian),
    "gaussian-linf": ("theory", _gaussian),
    "cell": ("corners", _corners),
    "sample": ("theory", _examples),
    "logistic-l2": ("theory", _examples),
    "logistic-linf": ("corners", _corners),
    "unhinged": ("theory", _unhinged),
    "perturbed": ("re-weighted", _re_weighted),
    "normalised": ("first order", _closure),
}
