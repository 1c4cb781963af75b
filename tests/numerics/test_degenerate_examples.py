"""Mean-square stability and laws where examples agree, vanish, interpolate or curve down: every batch listed."""

import numpy as np
import pytest
from every_batch import EveryBatch, fractions

from sgdcov.errors import MeanSquareUnstableError, NonStationaryError
from sgdcov.numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    mean_square_stability,
    stationary_covariance,
    tail_index,
)
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd

RULES = (
    sgd(lr=0.25),
    sgd(lr=0.125, weight_decay=0.5),
    heavy_ball(lr=0.125, momentum=0.5),
    nesterov(lr=0.0625, momentum=0.75, weight_decay=0.25),
    polyak(lr=0.125, momentum=0.5),
)
OUTER = [np.outer(x, x) for x in ([1.0, 0.5], [0.5, -1.0], [0.0, 0.0], [2.0, 1.0])]
#: (name, Hessians, gradients at 0): two directions, none of them flat in every batch.
SETS = [
    ("equal Hessians", [np.diag([1.0, 2.0])] * 3, [[1.0, 0.0], [0.0, 2.0], [-1.0, -2.0]]),
    ("equal examples", [np.diag([1.0, 2.0])] * 2, [[1.0, 0.0]] * 2),
    ("one example", [np.diag([1.0, 2.0])], [[1.0, -1.0]]),
    ("an example of 0", [OUTER[0], OUTER[2], OUTER[1]], [[-1.0, -0.5], [0.0, 0.0], [1.0, -2.0]]),
    ("interpolated", [OUTER[0], OUTER[1], OUTER[3]], [-h @ [1.0, 2.0] for h in (OUTER[0], OUTER[1], OUTER[3])]),
    ("equal along one direction", [np.diag([1.0, 2.0]), np.diag([1.0, 0.0])], [[1.0, 0.0], [-1.0, 0.0]]),
    ("curving down", [np.diag([2.0, 2.0]), np.diag([2.0, -1.0])], [[1.0, 1.0], [-1.0, 1.0]]),
]
cases = pytest.mark.parametrize(("name", "hessians", "gradients"), SETS, ids=[name for name, *_ in SETS])
over_rules = pytest.mark.parametrize("optimizer", RULES, ids=repr)


@cases
@over_rules
@pytest.mark.parametrize("batch_size", [1, "all"])
def test_radius_and_law_are_those_of_every_batch_listed(name, hessians, gradients, optimizer, batch_size):
    hessians, gradients = np.array(hessians), np.array(gradients)
    size = len(hessians) if batch_size == "all" else 1
    noise = MinibatchNoise(QuadraticExamples(hessians, gradients), size, replacement=False)
    listed = EveryBatch.of(optimizer, fractions(hessians), fractions(gradients), size, False)
    stability = mean_square_stability(optimizer, noise)
    # a defective double root, which polyak and nesterov have here, is known to sqrt(eps) by a dense eigensolver
    assert stability.spectral_radius == pytest.approx(listed.spectral_radius, rel=1e-7)
    assert stability.stable == (listed.spectral_radius < 1.0)
    if stability.stable:
        exact = listed.covariance.astype(float)
        law = stationary_covariance(optimizer, noise.hessian, noise).joint()
        assert np.max(np.abs(law - exact)) <= 1e-12 * np.max(np.abs(exact)) + 1e-30
    edge = stability.largest_lr
    assert mean_square_stability(optimizer.replace(lr=0.999999 * edge), noise).stable
    assert not mean_square_stability(optimizer.replace(lr=1.000001 * edge), noise).stable


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
def test_equal_examples_are_as_stable_as_their_mean(scale):
    noise = MinibatchNoise(LeastSquares([[0.1 * scale]] * 3, [1.0, 2.0, 3.0]), 1)
    stability = mean_square_stability(sgd(lr=50.0 / scale**2), noise)
    assert stability.spectral_radius == pytest.approx(0.25, rel=1e-14)
    assert stability.largest_lr == pytest.approx(200.0 / scale**2, rel=1e-12)
    # the rounding of mean H_n S H_n - H S H, times what the law makes of noise: lr h / (2 - lr h) < 1
    assert 0.0 <= stability.feedback_radius <= 8 * np.finfo(float).eps


def test_one_example_without_corruption_is_deterministic():
    noise = DropoutNoise(LeastSquares([[0.1]], [1.0]), 0.0, 1)
    stability = mean_square_stability(sgd(lr=0.27, weight_decay=0.1), noise)
    assert stability.spectral_radius == pytest.approx((1 - 0.27 * 0.11) ** 2, rel=1e-14)
    assert stability.largest_lr == pytest.approx(2 / 0.11, rel=1e-12)


# Flat in the mean, curved up and down by the batches: E (w - lr h w)^2 = (1 + lr^2 h^2) w^2.
UP_AND_DOWN = [
    ("beside a curved direction", [np.diag([1.0, 1.0]), np.diag([1.0, -1.0])], [[1.0, 0.0], [-1.0, 0.0]]),
    ("without gradients", [np.diag([1.0, 1.0]), np.diag([1.0, -1.0])], np.zeros((2, 2))),
    ("alone", [[[1.0]], [[-1.0]]], [[0.0], [0.0]]),
]


@pytest.mark.parametrize("angle", [0.0, 0.7])
@pytest.mark.parametrize(("name", "hessians", "gradients"), UP_AND_DOWN, ids=[name for name, *_ in UP_AND_DOWN])
def test_a_direction_that_batches_curve_up_and_down_is_unstable_at_every_lr(name, hessians, gradients, angle):
    hessians, gradients = np.array(hessians), np.array(gradients)
    if hessians.shape[1] == 2:
        u = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        hessians, gradients = u @ hessians @ u.T, gradients @ u.T
        hessians = 0.5 * (hessians + hessians.transpose(0, 2, 1))
    noise = MinibatchNoise(QuadraticExamples(hessians, gradients), 1)
    for lr in (0.1, 1e-3):
        stability = mean_square_stability(sgd(lr=lr), noise)
        assert stability.spectral_radius == pytest.approx(1 + lr**2, rel=1e-12)
        assert not stability.stable
        assert stability.largest_lr == stability.mulayoff_michaeli == 0.0
        assert stability.feedback_radius == np.inf
    # E |1 - lr h|^s = 1 at s = 1 already
    assert float(tail_index(sgd(lr=0.1), noise)) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(MeanSquareUnstableError, match="at any learning rate"):
        stationary_covariance(sgd(lr=0.1), noise.hessian, noise)
    momentum = mean_square_stability(heavy_ball(lr=0.1, momentum=0.5), noise)
    assert momentum.spectral_radius > 1.0
    # weight decay damps it: (1 - lr*decay)^2 + lr^2 < 1
    damped = mean_square_stability(sgd(lr=0.1, weight_decay=0.5), noise)
    assert damped.spectral_radius == pytest.approx(0.95**2 + 0.01, rel=1e-12)
    assert damped.stable


def test_a_random_walk_along_it_is_one_all_the_same():
    noise = MinibatchNoise(QuadraticExamples([[[1.0]], [[-1.0]]], [[1.0], [-1.0]]), 1)
    with pytest.raises(NonStationaryError, match="random walk"):
        stationary_covariance(sgd(lr=0.1), noise.hessian, noise)
    assert float(tail_index(sgd(lr=0.1), noise)) == pytest.approx(1.0, abs=1e-9)


def test_no_data_at_all_has_a_law_of_nothing():
    noise = MinibatchNoise(LeastSquares(np.zeros((3, 2)), np.zeros(3)), 1)
    assert np.all(stationary_covariance(sgd(lr=0.1), noise.hessian, noise).value == 0)
    assert mean_square_stability(sgd(lr=0.1), noise).largest_lr == np.inf


def test_every_attribute_has_its_known_value_for_one_gaussian_input():
    r"""One input of variance 2 a step: the noise adds 2 a^2 S, so :math:`\rho = (1 - lr a)^2 + 2 (lr a)^2`."""
    a, lr = 2.0, 0.125
    stability = mean_square_stability(sgd(lr=lr), GaussianMinibatchNoise([[a]], label_noise=1.0, batch_size=1))
    assert stability.feedback_radius == pytest.approx(2 * lr * a / (2 - lr * a), rel=1e-14)
    assert stability.spectral_radius == pytest.approx((1 - lr * a) ** 2 + 2 * (lr * a) ** 2, rel=1e-14)
    assert stability.largest_lr == pytest.approx(2 / (3 * a), rel=1e-13)
    assert stability.mulayoff_michaeli == pytest.approx(2 / (3 * a), rel=1e-13)
    assert stability.largest_mean_lr == pytest.approx(2 / a, rel=1e-14)


def test_corrupted_inputs_are_drawn_with_replacement_unless_told():
    problem = LeastSquares([[1.0], [2.0], [-1.0]], [1.0, 0.0, 3.0])
    for cls in (InputNoise, DropoutNoise):
        default, without = cls(problem, 0.5, 2), cls(problem, 0.5, 2, replacement=False)
        assert default.replacement is True
        assert default.covariance()[0, 0] == cls(problem, 0.5, 2, replacement=True).covariance()[0, 0]
        # between examples the factor is 1/2 with replacement, (3 - 2) / (2 * 2) without
        fresh = cls(problem, 0.5, 1)
        within = 2 * default.covariance() - fresh.covariance()  # 0: both halve at B = 2
        assert np.abs(within).max() <= 1e-12 * fresh.covariance().max()
        assert without.covariance()[0, 0] < default.covariance()[0, 0]


@pytest.mark.parametrize("kind", ["minibatch", "dropout", "input"])
def test_the_table_of_curvatures_is_the_sum_over_examples(kind, monkeypatch):
    rng = np.random.default_rng(0)
    problem = LeastSquares(rng.normal(size=(9, 3)), rng.normal(size=9))
    noise = {
        "minibatch": lambda: MinibatchNoise(problem, 2, False),
        "dropout": lambda: DropoutNoise(problem, 0.25, 2, False),
        "input": lambda: InputNoise(problem, 0.5, 2, False),
    }[kind]()
    g = rng.normal(size=(3, 3))
    table = noise.multiplicative(g @ g.T)
    for module in ("noise", "corruption"):
        monkeypatch.setattr(f"sgdcov.numerics.{module}.LARGEST_TABLE", 0)
    assert np.linalg.norm(noise.multiplicative(g @ g.T) - table) <= 1e-13 * np.linalg.norm(table)
