"""Sources of noise, tails and Stein equations refuse what is no argument of theirs, by a typed error."""

import numpy as np
import pytest

from sgdcov.errors import SgdcovError
from sgdcov.numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    langevin_noise,
    mean_square_stability,
    moment_growth,
    one_gradient_form,
    solve_stein,
)
from sgdcov.theory import sgd

DATA = LeastSquares([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0]], [1.0, 2.0, 0.0])
NOISE = MinibatchNoise(DATA, 2)
GARBAGE = ["no", "a", 10**400, -(10**400), [[1, 2], [3]], {}, object(), np.eye(2) * 1j, b"x", len, float("nan"), {1, 2}]
CALLS = {
    "replacement": lambda g: MinibatchNoise(DATA, 1, g),
    "dropout replacement": lambda g: DropoutNoise(DATA, 0.1, 1, replacement=g),
    "input replacement": lambda g: InputNoise(DATA, 0.1, 1, replacement=g),
    "problem": lambda g: MinibatchNoise(g, 1),
    "batch size": lambda g: MinibatchNoise(DATA, g),
    "spread": lambda g: NOISE.covariance(spread=g),
    "added": lambda g: NOISE + g,
    "label noise": NOISE.label_noise,
    "rate": lambda g: DropoutNoise(DATA, g, 1),
    "std": lambda g: InputNoise(DATA, g, 1),
    "covariance": lambda g: GaussianMinibatchNoise(g, 1.0, 1),
    "optimizer": lambda g: langevin_noise(g, 2, 1.0),
    "dim": lambda g: langevin_noise(sgd(lr=0.1), g, 1.0),
    "inverse temperature": lambda g: langevin_noise(sgd(lr=0.1), 2, g),
    "rule": lambda g: one_gradient_form(g, NOISE),
    "batches": lambda g: one_gradient_form(sgd(lr=0.1), g),
    "stability": lambda g: mean_square_stability(g, NOISE),
    "noise": lambda g: mean_square_stability(sgd(lr=0.1), g),
    "order": lambda g: moment_growth(sgd(lr=0.1), NOISE, g),
    "particles": lambda g: moment_growth(sgd(lr=0.1), NOISE, 3.0, particles=g),
    "rng": lambda g: moment_growth(sgd(lr=0.1), NOISE, 3.0, rng=g),
    "A": lambda g: solve_stein(g, np.eye(2)),
    "Q": lambda g: solve_stein(np.eye(2) / 2, g),
    "method": lambda g: solve_stein(np.eye(2) / 2, np.eye(2), method=g),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda g: repr(g)[:12])
def test_garbage_is_refused(name, garbage):
    if name == "rng" and isinstance(garbage, int) and garbage > 0:
        return  # a seed of any length is one
    with pytest.raises(SgdcovError):
        CALLS[name](garbage)


@pytest.mark.parametrize("name", ["replacement", "dropout replacement", "input replacement"])
@pytest.mark.parametrize("value", [0, 1, None, "no", "yes"])
def test_only_true_and_false_say_whether_examples_are_replaced(name, value):
    with pytest.raises(SgdcovError, match="replacement must be"):
        CALLS[name](value)


def test_a_bool_is_no_seed():
    with pytest.raises(SgdcovError, match="rng"):
        CALLS["rng"](True)


def test_deviations_whose_powers_double_precision_does_not_hold_are_refused():
    for call in (
        lambda: NOISE.label_noise(1e300),
        lambda: InputNoise(DATA, 1e100, 1),
        lambda: NOISE.label_noise(1e-300),
    ):
        with pytest.raises(SgdcovError, match="beyond double precision"):
            call()
    with pytest.raises(SgdcovError, match="does not hold"):
        langevin_noise(sgd(lr=1e-200), 2, 1e-200)
