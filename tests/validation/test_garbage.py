"""Nothing that anybody might pass to a measurement ends in an error that is not sgdcov's own."""

import itertools

import numpy as np
import pytest
import torch

from sgdcov import numerics
from sgdcov.errors import SgdcovError
from sgdcov.numerics import LeastSquares, Quadratic, Schedule
from sgdcov.theory import sgd
from sgdcov.validation import (
    LinearizedNetwork,
    adaptive_covariance,
    autocovariance,
    average_covariance,
    cnn,
    digits,
    epoch_covariance,
    fgsm,
    flat_loss,
    local_optimum,
    local_quadratic,
    mlp,
    perturbed_covariance,
    pgd,
    radius_path,
    schedule_from_torch,
    stationary_covariance,
    tail_index,
    trajectory,
    transient_covariance,
)

GARBAGE = [[], {}, "a", object(), 1j, np.nan, -1, 10**13, 10**400, [[1.0], [1.0, 2.0]], np.ma.masked_all(2), True]
GARBAGE.append(np.broadcast_to(1.0, 2))  # read-only, of which torch warns
#: What any of these is for is taken, and what is not is refused before anything runs; of True, progress is a bar.
PROBLEM = Quadratic(np.diag([0.5, 1.0]), np.eye(2), np.ones(2))
EXAMPLES = LeastSquares(np.array([[1.0, 0.5], [0.2, 1.0], [1.0, -1.0], [0.3, 0.3]]), [1.0, 0.0, 2.0, 1.0])
X = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 0.5, 0.2], dtype=torch.float64)
RUN = {"replicas": 3, "rng": 0, "progress": False, "device": "cpu", "engine": "rule"}
BATCH = {"batch_size": 2, "replacement": True}
LOSS, WEIGHTS = flat_loss(mlp((2, 1)), "squared")


def robust(radius):
    return numerics.GaussianAdversarialRegression([[1.0]], [1.0], 1.0, radius)


NET = LinearizedNetwork(mlp((2, 1)), X, Y, l2=0.1)
#: Every function with arguments that it takes, each of which is then replaced by garbage.
CALLS = {
    "stationary_covariance": (
        stationary_covariance,
        {"optimizer": sgd(lr=0.3), "problem": EXAMPLES, "steps": 3, "snapshots": 1, "slots": ("w",), **RUN, **BATCH},
    ),
    "transient_covariance": (
        transient_covariance,
        {"optimizer": sgd(lr=0.3), "problem": PROBLEM, "steps": 2, "start": np.eye(2), "mean": np.ones(2), **RUN},
    ),
    "trajectory": (
        trajectory,
        {"optimizer": sgd(lr=0.3), "schedule": Schedule.constant(3, 0.3), "problem": PROBLEM, "record": (1, 2), **RUN},
    ),
    "autocovariance": (autocovariance, {"optimizer": sgd(lr=0.3), "problem": PROBLEM, "lag": 1, "start": "law", **RUN}),
    "average_covariance": (
        average_covariance,
        {"optimizer": sgd(lr=0.3), "problem": PROBLEM, "window": 2, "start": "law", **RUN},
    ),
    "epoch_covariance": (
        epoch_covariance,
        {
            "optimizer": sgd(lr=0.3), "problem": EXAMPLES, "batch_size": 2, "positions": 0, "epochs": 1, "snapshots": 1,
            "drop_last": False, **RUN,
        },
    ),
    "adaptive_covariance": (
        adaptive_covariance,
        {"optimizer": sgd(lr=0.3), "problem": PROBLEM, "beta2": 0.5, "eps": 1e-8, "steps": 60, "snapshots": 1, **RUN,
         "engine": "auto"},
    ),
    "perturbed_covariance": (
        perturbed_covariance,
        {"optimizer": sgd(lr=0.3), "problem": PROBLEM, "rho": 0.1, "perturbation": "gradient", "steps": 3, **RUN},
    ),
    "tail_index": (
        tail_index,
        {"optimizer": sgd(lr=0.2), "problem": numerics.MinibatchNoise(EXAMPLES, 1), "steps": 4, "level": 0.9, **RUN,
         "replicas": 1000},
    ),
    "radius_path": (
        radius_path,
        {"problem_at": robust, "radii": [0.0], "optimizer": sgd(lr=0.5), "batch_size": 2, "replicas": 100, "rng": 0,
         "progress": False, "engine": "rule"},
    ),
    "measure": (
        NET.measure,
        {"optimizer": sgd(lr=0.1), "batch_size": 2, "steps": 2, "replicas": 2, "label_noise": 0.0, "attack": "fixed",
         "rng": 0, "progress": False, "engine": "rule", "slots": ("w",)},
    ),
    "fgsm": (
        fgsm,
        {"model": mlp((2, 1)), "x": X, "y": Y, "radius": 0.1, "loss": "squared", "norm": 2, "domain": (0, 1)},
    ),
    "pgd": (
        pgd,
        {"model": mlp((2, 1)), "x": X, "y": Y, "radius": 0.1, "loss": "squared", "steps": 1, "restarts": 1,
         "step_size": 0.1, "random_start": False, "generator": None},
    ),
    "flat_loss": (flat_loss, {"model": mlp((2, 1)), "loss": "squared", "l2": 0.1, "device": "cpu"}),
    "local_quadratic": (
        local_quadratic,
        {"loss": LOSS, "optimum": WEIGHTS, "data": (X, Y), "batch_size": 1, "replacement": True,
         "gradient_tolerance": 1e9, "hessian": "explicit", "gradient_bytes": 10**9, "device": "cpu"},
    ),
    "local_optimum": (
        local_optimum, {"loss": LOSS, "start": WEIGHTS, "data": (X, Y), "tolerance": 1e-6, "steps": 5, "device": "cpu"}
    ),
    "LinearizedNetwork": (
        LinearizedNetwork,
        {"model": mlp((2, 1)), "x": X, "y": Y, "radius": 0.1, "loss": "squared", "l2": 0.1, "device": "cpu"},
    ),
    "mlp": (mlp, {"widths": (2, 1), "activation": "tanh", "rng": 0}),
    "cnn": (cnn, {"channels": (1, 2), "outputs": 1, "image": (8, 8), "kernel": 3, "stride": 2, "rng": 0}),
    "digits": (digits, {"examples": 5, "classes": (1, 2), "images": False, "rng": 0}),
    "schedule_from_torch": (
        schedule_from_torch,
        {"scheduler": lambda optim: torch.optim.lr_scheduler.StepLR(optim, 2), "steps": 3, "optimizer": sgd(lr=0.1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_garbage_is_refused_by_name(name):
    function, arguments = CALLS[name]
    function(**arguments)  # as it stands it is taken
    untyped = []
    for argument, bad in itertools.product(arguments, GARBAGE):
        if argument == "progress" and bad is True:  # a bar
            continue
        try:
            function(**{**arguments, argument: bad})
        except SgdcovError:
            pass
        except Exception as error:  # noqa: BLE001  # that is the question
            untyped.append(f"{argument}={bad!r:.40}: {type(error).__name__}: {str(error)[:80]}")
    assert not untyped, "\n".join(untyped)


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [
        ("stationary_covariance", "replicas", 10**13),
        ("stationary_covariance", "device", "abacus"),
        ("stationary_covariance", "engine", []),
        ("stationary_covariance", "rng", True),
        ("stationary_covariance", "replacement", "no"),
        ("stationary_covariance", "steps", 10**13),
        ("stationary_covariance", "snapshots", np.ma.masked_all(2)),
        ("trajectory", "engine", np.ma.masked_all(2)),
        ("epoch_covariance", "epochs", "soon"),
        ("epoch_covariance", "drop_last", 1),
        ("adaptive_covariance", "steps", "a"),
        ("perturbed_covariance", "rho", "a"),
        ("tail_index", "steps", 10**13),
        ("measure", "steps", np.ones(2)),
        ("pgd", "steps", 10**400),
        ("cnn", "outputs", 10**400),
        ("cnn", "kernel", 10**6),
        ("mlp", "widths", (10**5, 10**5)),
        ("schedule_from_torch", "steps", 10**13),
    ],
)
def test_what_is_refused_is_shown(name, argument, bad):
    function, arguments = CALLS[name]
    with pytest.raises(SgdcovError, match="weights" if name == "mlp" or argument == "kernel" else argument):
        function(**{**arguments, argument: bad})
