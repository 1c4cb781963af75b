"""Schedules as data: the named ones are PyTorch's, errors name the phase."""

import numpy as np
import pytest

from sgdcov.errors import HyperparameterError, InvalidProblemError
from sgdcov.numerics import Phase, Schedule
from sgdcov.theory import heavy_ball

EPS = np.finfo(float).eps


def rates(schedule):
    return np.concatenate([np.full(phase.steps, phase.values["lr"]) for phase in schedule])


@pytest.fixture
def lr_scheduler():
    from torch.optim import lr_scheduler

    return lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Schedule.constant(20, lr=0.1), lambda s, o: s.ConstantLR(o, factor=1.0)),
        (Schedule.step_decay(23, lr=0.1, every=5, factor=0.5), lambda s, o: s.StepLR(o, 5, 0.5)),
        (Schedule.cosine(20, lr=0.1), lambda s, o: s.CosineAnnealingLR(o, 20)),
        (Schedule.cosine(20, lr=0.1, final=0.01), lambda s, o: s.CosineAnnealingLR(o, 20, eta_min=0.01)),
        (Schedule.linear_warmup(20, lr=0.1, start=0.025), lambda s, o: s.LinearLR(o, 0.25, total_iters=20)),
        (Schedule.inverse_time(20, lr=0.1, timescale=3.0), lambda s, o: s.LambdaLR(o, lambda t: 1 / (1 + t / 3))),
        (Schedule.cyclic(0.02, 0.1, up=4, down=6, cycles=2), lambda s, o: s.CyclicLR(o, 0.02, 0.1, 4, 6)),
    ],
    ids=["constant", "step", "cosine", "cosine to", "warm-up", "inverse time", "cyclic"],
)
def test_the_named_schedules_are_those_of_pytorch(lr_scheduler, schedule, make):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.5)
    scheduler = make(lr_scheduler, optimizer)
    expected = []
    for _ in range(schedule.steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates(schedule), expected, rtol=100 * EPS)  # PyTorch multiplies its way along


def test_learning_rates_become_as_few_phases_as_possible():
    schedule = Schedule.from_learning_rates([0.5, 0.5, 0.25, 0.5])
    assert schedule.phases == (Phase(2, lr=0.5), Phase(1, lr=0.25), Phase(1, lr=0.5))
    np.testing.assert_array_equal(rates(schedule), [0.5, 0.5, 0.25, 0.5])


def test_they_add_up_and_repeat():
    one, two = Schedule.constant(2, lr=0.1), Schedule([Phase(3, lr=0.2, momentum=0.5)])
    assert (one + two).ends == (2, 5)
    assert 2 * (one + two) == (one + two) * 2 == Schedule([*one, *two, *one, *two])
    assert hash(one) == hash(Schedule.constant(2, lr=0.1))
    assert repr(9 * one).endswith("... 3 more])")
    assert len(9 * one) == 9


def test_bound_to_an_optimizer():
    schedule = Schedule([Phase(2, lr=0.1), Phase(3, momentum=0.5), Phase(4)])
    base = heavy_ball(lr=0.2, momentum=0.9)
    assert schedule.bind(base) == ((base.replace(lr=0.1), 2), (base.replace(momentum=0.5), 3), (base, 4))
    without = heavy_ball(momentum=0.9)
    assert Schedule([Phase(2, lr=0.1)]).bind(without) == ((base.replace(lr=0.1), 2),)
    assert Schedule([Phase(2, lr=1)]).bind(without)[0][0].values["lr"] == 1


@pytest.mark.parametrize(
    ("phase", "name", "message"),
    [
        (Phase(5, lr=-1.0), "lr", r"phase 1 \(steps 3 to 8\): lr=-1.0 is outside its domain"),
        (Phase(5, momentum=1.0), "momentum", r"phase 1 \(steps 3 to 8\): momentum=1.0 is outside"),
        (Phase(5, lr=float("nan")), "lr", "phase 1 .* finite real number"),
        (Phase(5, rate=0.1), "rate", "phase 1 "),
        (Phase(5), "lr", "phase 1 .*no value for lr"),
    ],
)
def test_a_phase_outside_the_domain_is_named(phase, name, message):
    with pytest.raises(HyperparameterError, match=message) as caught:
        Schedule([Phase(3, lr=0.1), phase]).bind(heavy_ball(momentum=0.5))
    assert caught.value.name == name


@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float64(0)])
def test_a_learning_rate_may_be_zero_in_a_phase_but_not_of_an_optimizer(zero):
    """As where a warm-up begins and a cosine ends; a rule that stands still has no stationary law."""
    bound = Schedule([Phase(3, lr=0.1), Phase(2, lr=zero)]).bind(heavy_ball(momentum=0.5))
    assert [(optimizer.values["lr"], count) for optimizer, count in bound] == [(0.1, 3), (0, 2)]
    assert bound[1][0].replace(momentum=0.25).values == {**bound[1][0].values, "momentum": 0.25}
    for refused in (lambda: heavy_ball(lr=zero), lambda: bound[0][0].replace(lr=zero)):
        with pytest.raises(HyperparameterError, match=r"lr=-?0(\.0)? is outside its domain \(0, inf\)"):
            refused()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule([]), "the schedule is empty"),
        (lambda: Schedule.from_learning_rates([]), "learning_rates is empty"),
        (lambda: Schedule.from_learning_rates([0.1, np.inf]), r"learning_rates must be finite: learning_rates\[1\]"),
        (lambda: Schedule([0.1]), "made of phases.*got 0.1"),
        (lambda: Schedule(3), "made of a list of phases, got 3"),
        (lambda: Phase(0, lr=0.1), "steps of a phase must be a whole number, at least 1, got 0"),
        (lambda: Phase(2.5, lr=0.1), "at least 1, got 2.5"),
        (lambda: Schedule.cosine(-1, lr=0.1), "steps must be a whole number, at least 1, got -1"),
        (lambda: 0 * Schedule.constant(1, lr=0.1), "repetitions of a schedule"),
        (lambda: Schedule.inverse_time(3, lr=0.1, timescale=0), "timescale must be a finite number greater than 0"),
        (lambda: Schedule.step_decay(3, lr=0.1, every=0), "every must be a whole number"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InvalidProblemError, match=message):
        make()
