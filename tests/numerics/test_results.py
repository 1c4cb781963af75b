"""Results are frozen: their arrays are read-only, and pickle and copy keep all that they say."""

import copy
import pickle
from dataclasses import fields, is_dataclass
from functools import cached_property

import numpy as np
import pytest

from sgdcov import numerics as nm
from sgdcov.errors import SgdcovError
from sgdcov.theory import heavy_ball, sgd

HESSIAN, NOISE = np.array([[1.0, 0.2], [0.2, 0.5]]), np.array([[1.0, 0.3], [0.3, 2.0]])
OPTIMIZER = heavy_ball(lr=0.05, momentum=0.9)
ROWS = np.array([[1.0, 0.5], [-0.3, 1.0], [0.2, -0.7], [1.5, 0.1], [-1.0, 0.4], [0.3, 0.9]])
DATA = nm.LeastSquares(ROWS, [1.0, -0.5, 0.3, 0.8, -1.0, 0.2])
SCHEDULE = nm.Schedule([nm.Phase(5, lr=0.1), nm.Phase(5, lr=0.05)])
RESULTS = {
    "stationary": lambda: nm.stationary_covariance(OPTIMIZER, HESSIAN, NOISE),
    "minibatch": lambda: nm.stationary_covariance(OPTIMIZER, DATA.hessian, nm.MinibatchNoise(DATA, 2)),
    "transient": lambda: nm.transient_covariance(OPTIMIZER, HESSIAN, NOISE, 5, start=np.eye(2)),
    "trajectory": lambda: nm.trajectory(OPTIMIZER, SCHEDULE, HESSIAN, NOISE, mean=[1.0, 1.0]),
    "periodic": lambda: nm.periodic_covariance(OPTIMIZER, SCHEDULE, HESSIAN, NOISE),
    "epochs": lambda: nm.stationary_covariance(OPTIMIZER, DATA.hessian, nm.epoch_noise(DATA, 2)),
    "reshuffling": lambda: nm.reshuffling_law(sgd(lr=0.05), DATA, 2),
    "mean square": lambda: nm.mean_square_stability(OPTIMIZER, nm.MinibatchNoise(DATA, 2)),
    "adaptive": lambda: nm.adaptive_covariance(sgd(lr=0.1), HESSIAN, NOISE),
    "stein": lambda: nm.solve_stein([[0.5, 0.1], [0.0, 0.3]], np.eye(2)),
    "tail": lambda: nm.tail_index(sgd(lr=2 / 3), nm.GaussianMinibatchNoise([[1.0]], 1.0, 1)),
    "growth": lambda: nm.moment_growth(sgd(lr=0.5), nm.GaussianMinibatchNoise([[1.0]], 1.0, 1), order=2),
    "kinks": lambda: nm.kink_corrected_covariance(
        sgd(lr=0.01), nm.AdversarialLeastSquares([[1.0], [1.0], [1.0]], [0.0, 4.0, 1.5], radius=0.25), batch_size=1
    ),
    "radius": lambda: nm.radius_path(
        lambda radius: nm.GaussianAdversarialRegression([[1.0]], [1.0], 1.0, radius), [0.0, 0.5], sgd(lr=0.1), 1
    ),
    "problem": lambda: DATA,
    "schedule": lambda: SCHEDULE,
    "source": lambda: nm.MinibatchNoise(DATA, 2, replacement=False),
}
EVERY = pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)


def told(thing):
    """All that it says: fields and properties, as plain values; arrays as lists, what it is made of likewise."""
    if isinstance(thing, np.ndarray | np.generic):
        return thing.tolist()
    if isinstance(thing, tuple | list):
        return [told(item) for item in thing]
    if isinstance(thing, np.random.Generator) or callable(thing):
        return type(thing).__name__
    if not is_dataclass(thing):
        return repr(thing)
    properties = {name for kind in type(thing).__mro__ for name, item in vars(kind).items() if is_property(name, item)}
    names = properties | {field.name for field in fields(thing) if not field.name.startswith("_")}
    return {name: told(answer(thing, name)) for name in sorted(names)}


def is_property(name, item):
    return not name.startswith("_") and isinstance(item, property | cached_property)


def answer(thing, name):
    try:
        return getattr(thing, name)
    except SgdcovError as error:
        return str(error)


@EVERY
@pytest.mark.parametrize("copied", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.copy, copy.deepcopy])
def test_a_copy_says_the_same(make, copied):
    fresh, other = make(), copied(make())
    assert type(other) is type(fresh)
    assert repr(told(other)) == repr(told(fresh))
    again = copied(other)
    assert repr(told(again)) == repr(told(fresh))


@EVERY
def test_a_pickled_law_still_knows_every_slot(make):
    law = make()
    if hasattr(law, "joint"):
        assert np.array_equal(pickle.loads(pickle.dumps(make())).joint(), law.joint())


@EVERY
def test_no_array_of_a_result_can_be_written(make):
    for thing in (make(), pickle.loads(pickle.dumps(make()))):
        public = {name: item for name, item in vars(thing).items() if not name.startswith("_")}
        arrays = {name: item for name, item in public.items() if isinstance(item, np.ndarray)}
        assert [name for name, item in arrays.items() if item.flags.writeable] == []


def test_writing_to_a_law_changes_nothing():
    law = RESULTS["stationary"]()
    trace = law.trace
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(law)[0, 0] = 7.0
    with pytest.raises(ValueError, match="read-only"):
        law.block("w", "v")[0, 0] = 7.0
    own = np.array(law)
    own[0, 0] = 7.0
    assert law.trace == trace
    assert np.asarray(law, dtype=np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="needs a copy"):
        law.__array__(np.float32, copy=False)
