r"""Every other public question, each with answers that share nothing, and measured where that is cheap.

A question is one function: it asks numerics, and somebody who does not use numerics' way (theory, a sum over all cases
in exact fractions, a dense system, a plain loop), and returns how far they are apart, what rounding explains, and the
p-value of a measured run where there is one.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import sympy as sp
import torch
from numpy.typing import ArrayLike, NDArray

from ... import numerics, theory
from ...errors import SgdcovError
from ...numerics import GaussianMinibatchNoise, QuadraticExamples, VectorLeastSquares, VectorMinibatchNoise
from ...theory import heavy_ball, sgd
from .. import agreement, epochs, tails
from .._chained_test import SecondMoments, combined, second_moment_tests
from ..local_quadratic import local_quadratic
from .cases import seed_of
from .minibatch_cases import wanted

__all__ = ["Answers", "Question", "QuestionRow", "questions", "run_question"]

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
#: Within 20 times the largest error of any row (2.3e-15): a few hundred operations on well-conditioned numbers.
FEW_ULP = 100 * EPS


@dataclass(frozen=True)
class Answers:
    """How far the answers to a question are apart.

    Attributes
    ----------
    error, tolerance : float
        Of numerics against the other answer, relative to its largest entry, and what explains that much.
    p_value : float or None
        Of a measured run against numerics' answer; where the features themselves are drawn, against theory's.
    """

    error: float
    tolerance: float
    p_value: float | None = None


@dataclass(frozen=True)
class Question:
    """A public question, who answers it beside numerics, and how to ask.

    ``ask(replicas, seed)`` returns the `Answers`.
    """

    name: str
    asks: str
    oracle: str
    ask: Callable[[int, int], Answers]
    replicas: tuple[int, int]
    quick: bool
    seed: int
    engine: str = "rule"

    @property
    def key(self) -> str:
        """For example ``question/public/tails``: what ``--only`` matches."""
        return f"question/public/{self.name}"


@dataclass(frozen=True)
class QuestionRow:
    """One row of the table of questions."""

    case: Question
    answers: Answers | None = None
    refusal: str | None = None
    seconds: float = 0.0

    @property
    def p_values(self) -> tuple[float, ...]:
        """The p-values that count: the one, where something was measured."""
        return () if self.answers is None or self.answers.p_value is None else (self.answers.p_value,)

    def disagreements(self, threshold: float) -> list[str]:
        """What does not agree, in words."""
        found = [] if self.refusal is None else [self.refusal]
        a = self.answers
        if a is not None and not a.error <= a.tolerance:
            found.append(f"{self.case.oracle} and numerics differ by {a.error:.1e} (tolerance {a.tolerance:.1e})")
        if a is not None and a.p_value is not None and not a.p_value >= threshold:
            found.append(f"measured and predicted answers differ: p = {a.p_value:.1e}")
        return found

    def blind(self, level: float) -> list[str]:
        """Nothing: what these rows measure is fixed, and large enough."""
        return []


def run_question(case: Question) -> QuestionRow:
    """Ask; where a layer refuses to answer, the row says so."""
    started = time.perf_counter()
    try:
        answers = case.ask(case.replicas[case.quick], case.seed)
    except SgdcovError as error:
        return QuestionRow(case, refusal=f"{type(error).__name__}: {error}")
    return QuestionRow(case, answers, seconds=time.perf_counter() - started)


def questions(*, quick: bool, seed: int, only: Sequence[str] = ()) -> list[Question]:
    """List the questions."""
    return [
        Question(name, asks, oracle, ask, replicas, quick, seed_of(seed, "question", name))
        for name, asks, oracle, ask, replicas in _ASKED
        if wanted("question", "public", name, only)
    ]


def _apart(answer: ArrayLike, other: ArrayLike) -> float:
    answer, other = np.asarray(answer, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return float(np.max(np.abs(answer - other)) / np.max(np.abs(other)))


def _dense_stein(step: Array, added: Array) -> Array:
    """X = E step X step^T + added, by the linear system of all entries; ``step`` may be several, equally likely."""
    size = len(added)
    maps = np.mean([np.kron(a, a) for a in step.reshape(-1, size, size)], axis=0)
    return np.asarray(np.linalg.solve(np.eye(size**2) - maps, added.reshape(-1)).reshape(size, size))


def _stein(replicas: int, seed: int) -> Answers:
    rng = np.random.default_rng(7)
    a, factor = 0.35 * rng.standard_normal((5, 5)), rng.standard_normal((5, 3))
    solved = numerics.solve_stein(a, factor @ factor.T)
    # Entries of the dense system are products of two of A's; its own condition says what rounding of them does.
    condition = float(np.linalg.cond(np.eye(25) - np.kron(a, a)))
    return Answers(_apart(np.asarray(solved.value), _dense_stein(a, factor @ factor.T)), 5 * EPS * condition)


def _preconditioned(replicas: int, seed: int) -> Answers:
    hessian, noise = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 0.5]])
    p, lr = numerics.damped_newton(hessian, damping=0.5), 0.7
    direct = np.linalg.inv(hessian + 0.5 * np.eye(2))
    law = numerics.stationary_covariance(sgd(lr=lr), hessian, noise, preconditioner=p)
    other = _dense_stein(np.eye(2) - lr * direct @ hessian, lr**2 * direct @ noise @ direct)
    return Answers(max(_apart(p, direct), _apart(law.value, other)), FEW_ULP)


def _tails(replicas: int, seed: int) -> Answers:
    noise = GaussianMinibatchNoise([[1.0]], label_noise=1.0, batch_size=1)
    lrs = {order: float(theory.moment_threshold(order, 1)) for order in (2, 4)}
    error = max(abs(float(numerics.tail_index(sgd(lr=lr), noise)) - order) / order for order, lr in lrs.items())
    measured = tails.tail_index(sgd(lr=lrs[2]), noise, replicas=replicas, steps=100, rng=seed)
    return Answers(error, FEW_ULP, measured.p_value(2.0))


def _mean_square(replicas: int, seed: int) -> Answers:
    exact = float(theory.mean_square_threshold(sgd, (1, 2), 1))
    noise = GaussianMinibatchNoise(np.diag([1.0, 2.0]), label_noise=1.0, batch_size=1)
    return Answers(_apart(numerics.mean_square_stability(sgd(lr=0.1), noise).largest_lr, exact), FEW_ULP)


def _shuffled(replicas: int, seed: int) -> Answers:
    curvatures, slopes, lr = (1, 2, 3), (1, -3, 2), Fraction(1, 8)
    orders = list(itertools.permutations(range(3)))
    maps = []
    for order in orders:  # w -> a w + b of an epoch: w - lr (h_k w + g_k) for one example after another
        a, b = Fraction(1), Fraction(0)
        for k in order:
            a, b = a * (1 - lr * curvatures[k]), b * (1 - lr * curvatures[k]) - lr * slopes[k]
        maps.append((a, b))
    count = len(maps)
    mean = sum(b for _, b in maps) / count / (1 - sum(a for a, _ in maps) / count)
    crossed, added = 2 * mean * sum(a * b for a, b in maps), sum(b * b for _, b in maps)
    second = (crossed + added) / (count - sum(a * a for a, _ in maps))
    problem = QuadraticExamples([[[float(h)]] for h in curvatures], [[float(g)] for g in slopes])
    law = numerics.reshuffling_law(sgd(lr=float(lr)), problem, 1)
    error = max(_apart(law.mean, float(mean)), _apart(law.value, float(second - mean**2)))
    (measured,) = epochs.epoch_covariance(
        sgd(lr=float(lr)), problem, batch_size=1, positions=(0,), replicas=replicas, rng=seed, progress=False
    )
    compared = agreement.compare(measured, law.value, mean=law.mean)
    return Answers(error, FEW_ULP, _both(compared.p_value, compared.mean_p_value))


def _both(p_value: float, mean_p_value: float | None) -> float:
    """Bonferroni's p-value of two."""
    return p_value if mean_p_value is None else min(1.0, 2.0 * min(p_value, mean_p_value))


def _injected(replicas: int, seed: int) -> Answers:
    optimizer, h, beta = heavy_ball(lr=0.125, momentum=0.5), np.array([1.0, 3.0]), 16.0
    formula = theory.langevin_covariance(heavy_ball).specialise(lr=sp.Rational(1, 8), momentum=sp.Rational(1, 2))
    evaluate = formula.specialise(inverse_temperature=16, delta_ij=1, c_ij=0).lambdify("mpmath")
    exact = np.diag([float(evaluate(h_i=x, h_j=x)) for x in h])
    added = numerics.langevin_noise(optimizer, 2, beta)
    return Answers(_apart(numerics.stationary_covariance(optimizer, np.diag(h), added).value, exact), FEW_ULP)


def _robust(replicas: int, seed: int) -> Answers:
    variances, true, penalty, std = np.array([2.0, 1.0, 0.5]), np.array([1.0, -0.5, 2.0]), 0.25, 0.3
    # The penalised path w_i = s_i w0_i / (s_i + k), k = penalty/|w|, by a plain fixed point, and then the radius.
    ratio = penalty
    for _ in range(200):
        w = variances * true / (variances + ratio)
        ratio = penalty / float(np.linalg.norm(w))
    norm, c0 = float(np.linalg.norm(w)), math.sqrt(2 / math.pi)
    v = math.sqrt(float(np.sum(variances * (w - true) ** 2)) + std**2)
    # penalty = r (r n + c0 v) / (1 + c0 r n / v): a quadratic in the radius r.
    radius = max(np.roots([norm, c0 * v - penalty * c0 * norm / v, -penalty]).real)
    problem = numerics.GaussianAdversarialRegression(np.diag(variances), true, label_noise=std, radius=float(radius))
    return Answers(_apart(problem.optimum, w), FEW_ULP)


def _features(replicas: int, seed: int) -> Answers:
    """Cho and Saul's kernel: E relu(u.x) relu(u.y) = |x| |y| (sin t + (pi - t) cos t)/(2 pi D) for u on the sphere."""
    x, y = np.array([3.0, 4.0, 0.0]), np.array([1.0, -2.0, 2.0])
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    angle = math.acos(float(x @ y) / length)
    exact = length * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi * 3)
    features = numerics.random_features(replicas, 3, rng=seed)
    products = replicas * features(x) * features(y)
    z = (float(products.mean()) - exact) / (float(products.std(ddof=1)) / math.sqrt(replicas))
    rows = features.first_layer
    direct = np.maximum(rows @ x, 0) / math.sqrt(replicas)
    return Answers(_apart(features(x), direct), 4 * EPS, math.erfc(abs(z) / math.sqrt(2)))


def _vector(replicas: int, seed: int) -> Answers:
    rng = np.random.default_rng(3)
    inputs, labels, lr = rng.standard_normal((4, 2, 2)), rng.standard_normal((4, 2)), 0.05
    problem = VectorLeastSquares(inputs, labels)
    noise = VectorMinibatchNoise(problem, batch_size=1)
    # One example a step, each listed: w - w* -> (I - lr H_k)(w - w*) - lr g_k at the minimum.
    hessians = np.einsum("nok,nol->nkl", inputs, inputs)
    slopes = np.einsum("nok,no->nk", inputs, inputs @ problem.optimum - labels)
    steps = np.eye(2) - lr * hessians
    # The mean stays at the minimum; E X = mean of (A X A^T + lr^2 g g^T), the cross terms having mean 0.
    other = _dense_stein(steps, lr**2 * np.einsum("nk,nl->kl", slopes, slopes) / 4)
    law = numerics.stationary_covariance(sgd(lr=lr), problem.hessian, noise)
    draw, w = np.random.default_rng(seed), np.tile(problem.optimum, (replicas, 1))
    for _ in range(400):  # (1 - lr h)^800 < 1e-12 of the start is left in a variance
        k = draw.integers(4, size=replicas)
        w = w - lr * np.einsum("rok,ro->rk", inputs[k], np.einsum("rok,rk->ro", inputs[k], w) - labels[k])
    rows, whole = np.linalg.solve(np.linalg.cholesky(law.value), w.T).T[None], np.eye(2)
    tests, _ = second_moment_tests(SecondMoments(rows, rows, whole, np.ones(2), whole))
    return Answers(_apart(law.value, other), FEW_ULP, combined([test.p_value for test in tests.values()]))


def _local(replicas: int, seed: int) -> Answers:
    """Logistic regression at its minimum, by the textbook's formulas."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((30, 2)), rng.integers(0, 2, 30) * 2.0 - 1.0
    w = np.zeros(2)
    for _ in range(50):  # Newton
        s = 1.0 / (1.0 + np.exp(y * (x @ w)))
        hessian = (x * (s * (1 - s))[:, None]).T @ x / 30
        w = w + np.linalg.solve(hessian, x.T @ (y * s)) / 30
    gradients = -(y * s)[:, None] * x
    local = local_quadratic(
        lambda v, row: torch.nn.functional.softplus(-row[2] * (row[:2] @ v)),
        w,
        np.column_stack([x, y]),
        batch_size=4,
    )
    noise = gradients.T @ gradients / 30 / 4
    return Answers(max(_apart(local.hessian, hessian), _apart(local.noise, noise)), FEW_ULP)


def _correlation(replicas: int, seed: int) -> Answers:
    optimizer, h, noise = heavy_ball(lr=0.5, momentum=0.5), np.diag([1.0]), np.eye(1)
    now = float(numerics.stationary_covariance(optimizer, h, noise).trace)
    lags = [float(np.asarray(numerics.autocovariance(optimizer, h, noise, k))[0, 0]) / now for k in range(1, 110)]
    time_of = np.asarray(numerics.autocorrelation_time(optimizer, h), dtype=np.float64)
    return Answers(_apart(np.max(time_of), 1.0 + 2.0 * math.fsum(lags)), FEW_ULP)


_ASKED: tuple[tuple[str, str, str, Callable[[int, int], Answers], tuple[int, int]], ...] = (
    ("stein", "A X A' - X + Q = 0", "a dense system", _stein, (0, 0)),
    ("preconditioned", "the law with a damped Newton step", "a dense system", _preconditioned, (0, 0)),
    ("tails", "the tail index at theory's thresholds", "theory", _tails, (60_000, 20_000)),
    ("mean-square", "the largest lr with a covariance", "theory", _mean_square, (0, 0)),
    ("reshuffling", "bias and covariance of shuffled epochs", "all orders in fractions", _shuffled, (4_000, 1_000)),
    ("injected", "Langevin noise with momentum", "theory", _injected, (0, 0)),
    ("robust", "the robust minimiser", "the penalised path", _robust, (0, 0)),
    ("features", "random features, their mean kernel", "the formula", _features, (100_000, 20_000)),
    ("vector", "least squares with two outputs", "all batches", _vector, (4_000, 1_000)),
    ("local", "a logistic loss at its minimum", "its formulas", _local, (0, 0)),
    ("correlation", "the autocorrelation time", "the sum over lags", _correlation, (0, 0)),
)  # fmt: skip
