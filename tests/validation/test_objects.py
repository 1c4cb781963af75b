"""Every object that validation hands out goes through pickle, copy and another process, its arrays read-only."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import LeastSquares, Quadratic, Schedule
from sgdcov.theory import sgd
from sgdcov.validation import (
    FourthMoment,
    LinearizedNetwork,
    autocovariance,
    average_covariance,
    compare,
    epoch_covariance,
    flat_loss,
    local_quadratic,
    mlp,
    radius_path,
    stationary_covariance,
    tail_index,
    trajectory,
    transient_covariance,
)

QUIET = {"rng": 0, "progress": False}
X = np.random.default_rng(0).standard_normal((6, 2))
EXAMPLES = LeastSquares(X, X @ [1.0, 2.0] + [0.1, -0.1, 0.3, -0.3, 0.2, -0.2])
PROBLEM = Quadratic(np.diag([0.5, 1.0]), np.eye(2), np.ones(2))


def robust(radius):
    return numerics.GaussianAdversarialRegression([[1.0]], [1.0], 1.0, radius)


def local(hessian, loss=None):
    made, w = flat_loss(mlp((2, 1)), "squared")
    data = (torch.tensor(X), torch.zeros(6, dtype=torch.float64))
    return local_quadratic(loss or made, w, data, batch_size=2, gradient_tolerance=1e9, hessian=hessian)


def network():
    return LinearizedNetwork(mlp((2, 3, 1)), X, X[:, 0], l2=0.1)


def estimate():
    return stationary_covariance(sgd(lr=0.3), PROBLEM, replicas=200, **QUIET)


OBJECTS = {
    "Estimate": estimate,
    "TransientEstimate": lambda: transient_covariance(sgd(lr=0.3), PROBLEM, 3, replicas=100, **QUIET),
    "Trajectory": lambda: trajectory(sgd(lr=0.3), Schedule.constant(3, 0.3), PROBLEM, replicas=100, **QUIET),
    "AutocovarianceEstimate": lambda: autocovariance(sgd(lr=0.3), PROBLEM, 1, replicas=100, **QUIET),
    "AverageEstimate": lambda: average_covariance(sgd(lr=0.3), PROBLEM, 2, replicas=100, **QUIET),
    "EpochEstimate": lambda: epoch_covariance(
        sgd(lr=0.1), EXAMPLES, batch_size=2, replicas=100, positions=0, **QUIET
    ),
    "Agreement": lambda: compare(estimate(), np.eye(2)),
    "LinearizedNetwork": network,
    "LinearizedEstimate": lambda: network().measure(sgd(lr=0.1), batch_size=2, steps=2, replicas=100, **QUIET),
    "LocalQuadratic": lambda: local("explicit"),
    "LocalQuadratic, products": lambda: local("products"),
    "CubicRemainder": lambda: local("explicit").remainder(0.01 * np.eye(3), samples=5, rng=0),
    "MeasuredRadiusPath": lambda: radius_path(robust, [0.0, 0.2], sgd(lr=0.1), 4, replicas=100, **QUIET),
    "TailEstimate": lambda: tail_index(
        sgd(lr=0.2), numerics.MinibatchNoise(EXAMPLES, 1), replicas=1000, steps=20, **QUIET
    ),
    "FourthMoment": lambda: FourthMoment("exists", 0.9, 0.01),
}  # fmt: skip


def same(one, other):
    """Whether two objects say the same, array by array."""
    assert type(one) is type(other)
    assert repr(one) == repr(other)
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(other, name), value)


@pytest.fixture(scope="module")
def objects():
    return {name: make() for name, make in OBJECTS.items()}


@pytest.mark.parametrize("name", OBJECTS)
def test_it_survives_pickle_and_copies(objects, name):
    thing = objects[name]
    for through in (lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy):
        same(thing, through(thing))


def test_all_arrive_in_another_process(objects):
    here = "import pickle, sys; print([type(x).__name__ for x in pickle.load(sys.stdin.buffer).values()])"
    done = subprocess.run([sys.executable, "-c", here], input=pickle.dumps(objects), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == str([type(thing).__name__ for thing in objects.values()])


def test_what_was_measured_cannot_be_overwritten(objects):
    for name in ("Estimate", "Trajectory", "AutocovarianceEstimate", "MeasuredRadiusPath", "TailEstimate"):
        for thing in (objects[name], pickle.loads(pickle.dumps(objects[name]))):
            arrays = [value for value in vars(thing).values() if isinstance(value, np.ndarray)]
            assert arrays
            assert not any(array.flags.writeable for array in arrays)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(objects["Estimate"])[0, 0] = 1.0


def test_a_network_that_was_pickled_works_on(objects):
    net = pickle.loads(pickle.dumps(objects["LinearizedNetwork"]))
    np.testing.assert_allclose(net.problem.optimum, objects["LinearizedNetwork"].problem.optimum)
    products = pickle.loads(pickle.dumps(objects["LocalQuadratic, products"]))
    np.testing.assert_allclose(products.hessian @ np.ones(3), objects["LocalQuadratic"].hessian @ np.ones(3))


def test_a_loss_that_pickle_cannot_name_is_missed_when_it_is_needed():
    found = pickle.loads(pickle.dumps(local("explicit", lambda w, x, y: (w[:2] @ x - y) ** 2 + w[2] ** 2)))
    assert found.quadratic.dim == 3
    with pytest.raises(InvalidProblemError, match="without its loss"):
        found.remainder(np.eye(3))
