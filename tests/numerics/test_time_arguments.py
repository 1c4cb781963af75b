"""Transients, trajectories, schedules and shuffled epochs refuse what is no argument of theirs, by a typed error."""

import itertools

import numpy as np
import pytest
import scipy.sparse

from sgdcov.errors import InvalidProblemError, SgdcovError
from sgdcov.numerics import (
    LeastSquares,
    MinibatchNoise,
    Phase,
    Schedule,
    periodic_covariance,
    reshuffling_law,
    trajectory,
    transient_covariance,
    transient_mean,
)
from sgdcov.theory import sgd

DATA = LeastSquares([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0], [0.5, 0.2]], [1.0, 2.0, 0.0, 1.0])
NOISE, H, C = MinibatchNoise(DATA, 2), DATA.hessian, np.eye(2)
OPTIMIZER, SCHEDULE = sgd(lr=0.01), Schedule.constant(3, 0.1)
LAW, SHUFFLED = transient_covariance(OPTIMIZER, H, C, 3), reshuffling_law(OPTIMIZER, DATA, 1)


def _tensor(**options):
    import torch

    return torch.eye(2, **options)


GARBAGE = {
    "text": "no",
    "bytes": b"x",
    "negative": -(10**400),
    "ragged": [[1, 2], [3]],
    "dict": {},
    "object": object(),
    "complex": np.eye(2) * 1j,
    "array": np.full((2, 2), np.nan),
    "sparse": scipy.sparse.csr_matrix(np.eye(2)),
    "masked": np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    "nan": float("nan"),
    "function": len,
    "empty": [],
    "tensor that requires grad": lambda: _tensor(requires_grad=True),
}
CALLS = {
    "transient optimizer": lambda g: transient_covariance(g, H, C, 3),
    "transient steps": lambda g: transient_covariance(OPTIMIZER, H, C, g),
    "transient start": lambda g: transient_covariance(OPTIMIZER, H, C, 3, start=g),
    "mean": lambda g: transient_covariance(OPTIMIZER, H, NOISE, 3, mean=g),
    "hessian of noise that moves": lambda g: transient_covariance(OPTIMIZER, g, NOISE, 3),
    "slots": lambda g: transient_mean(OPTIMIZER, H, 3, start=[1.0, 1.0], slots=g),
    "joint": LAW.joint,
    "slot mean": SHUFFLED.slot_mean,
    "block": lambda g: LAW.block(g, "w"),
    "schedule": lambda g: trajectory(OPTIMIZER, g, H, C),
    "record": lambda g: trajectory(OPTIMIZER, SCHEDULE, H, C, record=g),
    "a time": lambda g: trajectory(OPTIMIZER, SCHEDULE, H, NOISE, record=[g]),
    "optimum": lambda g: trajectory(OPTIMIZER, SCHEDULE, H, C, optimum=g),
    "position in a period": lambda g: periodic_covariance(OPTIMIZER, SCHEDULE, H, C, record=g),
    "problem": lambda g: reshuffling_law(OPTIMIZER, g, 1),
    "batch size": lambda g: reshuffling_law(OPTIMIZER, DATA, g),
    "position": lambda g: reshuffling_law(OPTIMIZER, DATA, 1, position=g),
    "method": lambda g: reshuffling_law(OPTIMIZER, DATA, 1, method=g),
    "drop_last": lambda g: reshuffling_law(OPTIMIZER, DATA, 1, drop_last=g),
    "steps of a phase": lambda g: Phase(g, lr=0.1),
    "value of a phase": lambda g: Schedule([Phase(2, lr=g)]).bind(OPTIMIZER),
    "phases": Schedule,
    "phase": lambda g: Schedule([g]),
    "bind": SCHEDULE.bind,
    "repetitions": lambda g: SCHEDULE * g,
    "repetitions from the left": lambda g: g * SCHEDULE,
    "learning rates": Schedule.from_learning_rates,
    "constant steps": lambda g: Schedule.constant(g, 0.1),
    "step decay": lambda g: Schedule.step_decay(g, 0.1, every=2),
    "step decay lr": lambda g: Schedule.step_decay(3, g, every=2),
    "every": lambda g: Schedule.step_decay(3, 0.1, every=g),
    "factor": lambda g: Schedule.step_decay(3, 0.1, every=2, factor=g),
    "cosine steps": lambda g: Schedule.cosine(g, 0.1),
    "cosine lr": lambda g: Schedule.cosine(3, g),
    "final": lambda g: Schedule.cosine(3, 0.1, final=g),
    "warm-up steps": lambda g: Schedule.linear_warmup(g, 0.1, start=0.0),
    "warm-up lr": lambda g: Schedule.linear_warmup(3, g, start=0.0),
    "warm-up start": lambda g: Schedule.linear_warmup(3, 0.1, start=g),
    "low": lambda g: Schedule.cyclic(g, 0.1, up=2),
    "high": lambda g: Schedule.cyclic(0.1, g, up=2),
    "up": lambda g: Schedule.cyclic(0.1, 0.2, up=g),
    "down": lambda g: Schedule.cyclic(0.1, 0.2, up=1, down=g),
    "cycles": lambda g: Schedule.cyclic(0.1, 0.2, up=1, cycles=g),
    "inverse time steps": lambda g: Schedule.inverse_time(g, 0.1, timescale=1.0),
    "inverse time lr": lambda g: Schedule.inverse_time(3, g, timescale=1.0),
    "timescale": lambda g: Schedule.inverse_time(3, 0.1, timescale=g),
}


@pytest.mark.parametrize("name", CALLS)
def test_garbage_is_refused(name):
    for what, garbage in GARBAGE.items():
        given = garbage() if what.startswith("tensor") else garbage
        with pytest.raises(SgdcovError):
            CALLS[name](given)


@pytest.mark.parametrize("many", [10**8, 10**18, 10**400], ids=["1e8", "1e18", "1e400"])
def test_schedules_that_memory_does_not_hold_are_refused(many):
    for make in (
        lambda: SCHEDULE * many,
        lambda: many * SCHEDULE,
        lambda: Schedule.step_decay(many, 0.1, every=2),
        lambda: Schedule.cosine(many, 0.1),
        lambda: Schedule.linear_warmup(many, 0.1, start=0.0),
        lambda: Schedule.cyclic(0.1, 0.2, up=many),
        lambda: Schedule.cyclic(0.1, 0.2, up=1, down=many),
        lambda: Schedule.cyclic(0.1, 0.2, up=1, cycles=many),
        lambda: Schedule.inverse_time(many, 0.1, timescale=1.0),
    ):
        with pytest.raises(InvalidProblemError, match="at most 10,000,000 phases"):
            make()
    assert Schedule.constant(many, 0.1).steps == Schedule.step_decay(many, 0.1, every=many).steps == many


def test_an_iterator_of_phases_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("sgdcov.numerics.schedules._MOST_PHASES", 1000)
    with pytest.raises(InvalidProblemError, match="at most 1,000 phases"):
        Schedule(itertools.repeat(Phase(1, lr=0.1)))


def test_learning_rates_beyond_the_range_of_doubles_are_refused():
    for make in (
        lambda: Schedule.step_decay(1000, 0.1, every=1, factor=10.0),
        lambda: Schedule.inverse_time(3, 0.1, timescale=5e-324),
        lambda: Schedule.cosine(3, 1e308, final=-1e308),
    ):
        with pytest.raises(InvalidProblemError, match="must be finite"):
            make()


def test_numbers_of_numpy_repeat_a_schedule():
    assert np.int64(2) * SCHEDULE == SCHEDULE * np.int64(2) == SCHEDULE + SCHEDULE
