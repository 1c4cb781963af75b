"""The real Adam and RMSprop against the self-consistent law: its error goes with 1 - beta2; noise alone is worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgdcov import numerics
from sgdcov.errors import HyperparameterError, InvalidProblemError, InvalidRuleError, UnstableError
from sgdcov.numerics import LeastSquares, MinibatchNoise, Quadratic
from sgdcov.theory import heavy_ball, nesterov, sgd
from sgdcov.validation import adaptive_covariance, compare
from sgdcov.validation.adaptive import AdaptiveRun

PROBLEM = Quadratic([[1.0, 0.3], [0.3, 2.0]], [[1.0, 0.4], [0.4, 2.0]], [1.0, -1.0])
ADAM = heavy_ball(lr=0.1, momentum=0.9, dampening=0.9)
RULES = [sgd(lr=0.3), ADAM, heavy_ball(lr=0.05, momentum=0.8)]


def error(optimizer, beta2, prediction=None, **options):
    """Relative error of the total variance, measured over predicted less one, and its standard error."""
    frozen = numerics.adaptive_covariance(optimizer, PROBLEM.hessian, PROBLEM.noise)
    predicted = frozen.value if prediction is None else prediction
    measured = adaptive_covariance(optimizer, PROBLEM, beta2=beta2, progress=False, **options)
    squares = np.square(measured.samples - measured.mean).sum(axis=2).mean(axis=0)
    total = float(np.trace(predicted))
    return squares.mean() / total - 1.0, squares.std() / np.sqrt(len(squares)) / total


@pytest.mark.parametrize("optimizer", RULES, ids=repr)
def test_the_run_is_pytorchs_own_step(optimizer):
    """Warm state apart: a few steps of the run are those of a plain torch.optim object that was started there."""
    values = {name: float(value) for name, value in optimizer.values.items()}
    generator = torch.Generator().manual_seed(0)
    start = [torch.ones((3, 2), dtype=torch.float64), torch.full((3, 2), 2.0, dtype=torch.float64)]
    rms = optimizer is not ADAM
    engine = "torch.optim.RMSprop" if rms else "torch.optim.Adam"
    run = AdaptiveRun(engine, values, 0.9, 1e-8, [s.clone() for s in start])
    w, v, m = start[0], start[1], torch.zeros((3, 2), dtype=torch.float64)
    mu = values.get("momentum", 0.0)
    for _ in range(5):
        g = torch.randn((3, 2), generator=generator, dtype=torch.float64)
        run.step(lambda x, g=g: g)
        v = 0.9 * v + 0.1 * g**2
        m = mu * m + g / (v.sqrt() + 1e-8) if rms else mu * m + (1 - mu) * g
        w = w - values["lr"] * (m if rms else m / (v.sqrt() + 1e-8))
        assert torch.allclose(run.read("w"), w, rtol=1e-13, atol=1e-14)


# Fixed seeds, thresholds of five standard errors.


@pytest.mark.parametrize("optimizer", RULES, ids=repr)
def test_the_error_is_of_the_order_of_one_minus_beta2(optimizer):
    found, standard_error = error(optimizer, 0.99, replicas=4000, snapshots=20, rng=1)
    assert abs(found) <= 0.01 + 5 * standard_error
    assert standard_error < 0.005


def test_the_error_falls_with_one_minus_beta2():
    coarse, coarse_error = error(sgd(lr=0.3), 0.8, replicas=4000, snapshots=20, rng=2)
    fine, fine_error = error(sgd(lr=0.3), 0.98, replicas=4000, snapshots=20, rng=3)
    assert coarse < -5 * coarse_error  # it is not exact ...
    assert abs(fine) < 0.25 * abs(coarse) + 5 * np.hypot(fine_error, coarse_error)  # ... but a tenth, at a tenth of it


def test_second_moments_of_the_noise_alone_are_rejected():
    optimizer = sgd(lr=0.8)
    frozen = numerics.adaptive_covariance(optimizer, PROBLEM.hessian, PROBLEM.noise)
    alone = numerics.stationary_covariance(
        optimizer, PROBLEM.hessian, PROBLEM.noise, preconditioner=numerics.adam(np.diagonal(PROBLEM.noise))
    )
    measured = adaptive_covariance(optimizer, PROBLEM, beta2=0.999, replicas=4000, rng=4, progress=False)
    assert compare(measured, frozen.value, mean=PROBLEM.optimum).p_value > 1e-4
    assert compare(measured, alone).p_value < 1e-6
    # ... and it is wrong by far more than the frozen one
    assert np.trace(alone.value) > 1.2 * np.trace(frozen.value)


def test_it_settles_where_the_second_moments_of_the_noise_alone_would_be_unstable():
    problem = Quadratic([[4.0]], [[1.0]], [0.0])
    optimizer = sgd(lr=1.0)
    with pytest.raises(UnstableError):
        numerics.stationary_covariance(optimizer, problem.hessian, problem.noise, preconditioner=[1.0])
    frozen = numerics.adaptive_covariance(optimizer, problem.hessian, problem.noise)
    measured = adaptive_covariance(optimizer, problem, beta2=0.999, replicas=2000, rng=5, progress=False)
    assert abs(measured.value[0, 0] / frozen.value[0, 0] - 1) < 0.02


def test_true_minibatches_under_adam_follow_the_law_of_their_own_noise():
    rng = np.random.default_rng(2)
    noise = MinibatchNoise(LeastSquares(rng.normal(size=(20, 3)), rng.normal(size=20)), batch_size=4)
    optimizer = heavy_ball(lr=0.05, momentum=0.9, dampening=0.9)
    laws = [numerics.adaptive_covariance(optimizer, noise.hessian, c) for c in (noise, noise.covariance())]
    measured = adaptive_covariance(optimizer, noise, beta2=0.99, replicas=2000, snapshots=30, rng=1, progress=False)
    assert compare(measured, laws[0].value, mean=noise.optimum).p_value > 1e-4
    assert compare(measured, laws[1].value).p_value < 1e-6  # the noise frozen at the optimum


def test_the_report_names_the_class_that_ran():
    measured = adaptive_covariance(ADAM, PROBLEM, beta2=0.9, replicas=10, steps=50, snapshots=2, rng=0, progress=False)
    assert measured.engine.startswith("torch.optim.Adam")
    assert "torch.optim.Adam, beta2=0.9" in repr(measured)
    assert (measured.steps, measured.samples.shape) == (50, (2, 10, 2))
    again = adaptive_covariance(ADAM, PROBLEM, beta2=0.9, replicas=10, steps=50, snapshots=2, rng=0, progress=False)
    assert np.array_equal(measured.samples, again.samples)


@pytest.mark.parametrize(
    ("options", "wrong", "says"),
    [
        ({"optimizer": nesterov(lr=0.1, momentum=0.9)}, InvalidRuleError, "neither torch.optim.Adam nor RMSprop"),
        ({"optimizer": sgd(lr=0.1, weight_decay=0.1)}, InvalidRuleError, "without weight decay"),
        ({"optimizer": ADAM, "engine": "torch.optim.RMSprop"}, InvalidRuleError, "RMSprop does not run"),
        ({"engine": "torch.optim.AdamW"}, InvalidProblemError, "engine must be one of"),
        ({"beta2": 1.0}, HyperparameterError, r"beta2 must be .* in \(0, 1\), got 1.0"),
        ({"steps": 5, "snapshots": 8}, InvalidProblemError, "do not fit into steps=5"),
        ({"optimizer": sgd()}, HyperparameterError, "lr"),
    ],
)
def test_bad_input_is_named(options, wrong, says):
    given = {"optimizer": sgd(lr=0.1), "problem": PROBLEM, "beta2": 0.9, "replicas": 4, "progress": False} | options
    with pytest.raises(wrong, match=says):
        adaptive_covariance(given.pop("optimizer"), given.pop("problem"), **given)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [sgd(lr=0.3), sgd(lr=1.5), ADAM], ids=repr)
def test_study_of_the_error_against_beta2(optimizer):
    """The relative error over 1 - beta2 stays bounded down to 1 - beta2 = 0.001, and so the error tends to 0."""
    scaled = []
    for beta2, snapshots in ((0.9, 100), (0.99, 400), (0.999, 2000)):
        found, standard_error = error(optimizer, beta2, replicas=4000, snapshots=snapshots, rng=6)
        scaled.append((found / (1 - beta2), standard_error / (1 - beta2)))
    for value, standard_error in scaled:
        assert abs(value) <= 1.0 + 4 * standard_error
