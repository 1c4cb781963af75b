"""Every error reaches whoever waits for it: it survives pickle and copy, and processes."""

import copy
import inspect
import multiprocessing
import pickle

import numpy as np
import pytest

from sgdcov import errors, numerics
from sgdcov.theory import sgd

ERRORS = [
    errors.AccuracyWarning("the error bound is 0.1"),
    errors.SlowWarning("about 90 s more"),
    errors.DivergenceError("phase 1", 1.0, 2.0),
    errors.HyperparameterError("lr=-1 is outside its domain", name="lr"),
    errors.InvalidProblemError("hessian is not symmetric"),
    errors.InvalidRuleError("expected an update rule"),
    errors.MeanSquareUnstableError(1.0, 2.0, 0.5, None),
    errors.NonStationaryError("a random walk", rho=1.0, modes=(0, 3)),
    errors.NonlinearRuleError("rule", "w**2", "a square"),
    errors.ProofError("formula", "equation", "x + 1"),
    errors.ScaleError("the variance is 1e-400"),
    errors.SgdcovError("something"),
    errors.UnstableError(3.0, 1.0, 2.0),
]


def test_the_list_is_complete():
    classes = {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)}
    assert {type(error) for error in ERRORS} == classes
    assert {kind.__name__ for kind in classes} == set(errors.__all__)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickle_and_copy(error, copied):
    other = copied(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert repr(vars(other)) == repr(vars(error))


def test_an_unstable_setting_of_a_sweep_does_not_hang_its_processes():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        settings = [(sgd(lr=lr), np.eye(2), np.eye(2)) for lr in (0.5, 3.0)]
        law, fault = (pool.apply_async(numerics.stationary_covariance, setting) for setting in settings)
        assert law.get(timeout=60).trace == pytest.approx(2 * 0.5 / 1.5)
        with pytest.raises(errors.UnstableError) as caught:
            fault.get(timeout=60)
    assert caught.value.largest_lr == pytest.approx(2.0)
