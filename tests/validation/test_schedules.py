"""A schedule read off a real scheduler is what that scheduler does to a real optimizer, and reading leaves no trace."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from sgdcov.errors import HyperparameterError, InvalidProblemError, InvalidRuleError
from sgdcov.numerics import Phase, Schedule
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd
from sgdcov.validation import schedule_from_torch

EPS = np.finfo(np.float64).eps

SCHEDULERS = {
    "constant": lambda optim: lr_scheduler.ConstantLR(optim, factor=0.5, total_iters=4),
    "step": lambda optim: lr_scheduler.StepLR(optim, step_size=7, gamma=0.3),
    "multi-step": lambda optim: lr_scheduler.MultiStepLR(optim, milestones=[2, 5, 5, 11]),
    "exponential": lambda optim: lr_scheduler.ExponentialLR(optim, gamma=0.9),
    "polynomial": lambda optim: lr_scheduler.PolynomialLR(optim, total_iters=30, power=2.0),
    "cosine": lambda optim: lr_scheduler.CosineAnnealingLR(optim, T_max=10, eta_min=0.01),
    "warm restarts": lambda optim: lr_scheduler.CosineAnnealingWarmRestarts(optim, T_0=4, T_mult=2, eta_min=0.01),
    "linear": lambda optim: lr_scheduler.LinearLR(optim, start_factor=0.2, total_iters=6),
    "lambda": lambda optim: lr_scheduler.LambdaLR(optim, lambda step: 1 / (1 + step / 3)),
    "multiplicative": lambda optim: lr_scheduler.MultiplicativeLR(optim, lambda step: 0.95),
    "cyclic": lambda optim: lr_scheduler.CyclicLR(optim, 0.01, 0.2, step_size_up=3, cycle_momentum=False),
    "cyclic momentum": lambda optim: lr_scheduler.CyclicLR(optim, 0.01, 0.2, step_size_up=3),
    "cyclic, one momentum": lambda optim: lr_scheduler.CyclicLR(
        optim, 0.01, 0.2, step_size_up=3, base_momentum=0.8, max_momentum=0.8
    ),
    "one cycle, one momentum": lambda optim: lr_scheduler.OneCycleLR(
        optim, max_lr=0.3, total_steps=40, base_momentum=0.95, max_momentum=0.95
    ),
    "warm-up from 0": lambda optim: lr_scheduler.LambdaLR(optim, lambda step: min(1.0, step / 5)),
    "cosine past its end": lambda optim: lr_scheduler.CosineAnnealingLR(optim, T_max=10),
    "linear to 0": lambda optim: lr_scheduler.LinearLR(optim, 1.0, 0.0, total_iters=10),
    "one cycle": lambda optim: lr_scheduler.OneCycleLR(optim, max_lr=0.3, total_steps=40),
    "sequential": lambda optim: lr_scheduler.SequentialLR(
        optim, [lr_scheduler.LinearLR(optim, total_iters=5), lr_scheduler.CosineAnnealingLR(optim, 20)], [5]
    ),
    "chained": lambda optim: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optim, total_iters=4), lr_scheduler.ExponentialLR(optim, 0.9)], optimizer=optim
    ),
}
EACH = pytest.mark.parametrize("factory", SCHEDULERS.values(), ids=SCHEDULERS.keys())
# SequentialLR steps its parts with an epoch, which PyTorch itself deprecates.
QUIET = pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")

BEFORE = heavy_ball(lr=0.1, momentum=0.9)


def scheduler(factory, **settings):
    return factory(torch.optim.SGD([torch.zeros(2)], **{"lr": 0.1, "momentum": 0.9, **settings}))


def walked(made, steps):
    """Learning rate and momentum of every step that a training loop takes with this scheduler."""
    for _ in range(steps):
        (group,) = made.optimizer.param_groups
        yield float(group["lr"]), group["momentum"]
        made.optimizer.step()
        made.step()


def unrolled(schedule):
    return [
        (phase.values["lr"], phase.values.get("momentum", 0.9)) for phase in schedule.phases for _ in range(phase.steps)
    ]


@QUIET
@EACH
def test_every_step_has_the_settings_of_a_real_training_loop(factory):
    schedule = schedule_from_torch(factory, 35, optimizer=BEFORE)
    assert schedule.steps == 35
    assert unrolled(schedule) == list(walked(scheduler(factory), 35))


@QUIET
@EACH
@pytest.mark.parametrize("already", [0, 3])
def test_a_scheduler_is_read_from_where_it_stands_and_left_there(factory, already):
    read, untouched = scheduler(factory), scheduler(factory)
    for made in (read, untouched):
        list(walked(made, already))
    schedule = schedule_from_torch(read, 25)
    assert unrolled(schedule) == list(walked(untouched, 25))
    assert unrolled(schedule) == unrolled(schedule_from_torch(read, 25))
    assert list(walked(read, 25)) == unrolled(schedule)  # it goes on as if nothing had been read


def test_reading_steps_no_parameter_and_keeps_a_learning_rate_in_its_tensor():
    parameter, rate = torch.ones(2, requires_grad=True), torch.tensor(0.5, dtype=torch.float64)
    optim = torch.optim.SGD([parameter], lr=rate)
    parameter.grad = torch.ones(2)
    made = lr_scheduler.ExponentialLR(optim, gamma=0.5)
    schedule = schedule_from_torch(made, 3)
    assert schedule == Schedule([Phase(1, lr=0.5), Phase(1, lr=0.25), Phase(1, lr=0.125)])
    assert optim.param_groups[0]["lr"] is rate
    assert (float(rate), parameter.tolist()) == (0.5, [1.0, 1.0])


def test_equal_steps_make_one_phase_and_momentum_is_named_only_where_it_changes():
    assert schedule_from_torch(lambda optim: lr_scheduler.StepLR(optim, 4, gamma=0.5), 10, optimizer=BEFORE) == (
        Schedule([Phase(4, lr=0.1), Phase(4, lr=0.05), Phase(2, lr=0.025)])
    )
    cycled = schedule_from_torch(SCHEDULERS["cyclic momentum"], 6, optimizer=BEFORE)
    assert [set(phase.values) for phase in cycled.phases] == [{"lr", "momentum"}] * 6
    assert min(phase.values["momentum"] for phase in cycled.phases) == pytest.approx(0.8)


def test_whatever_a_scheduler_sets_is_part_of_the_schedule():
    def decaying(optim):
        """Learning rate and weight decay together, as schedulers of other packages have it."""

        class Both(lr_scheduler.ExponentialLR):
            def step(self, epoch=None):
                super().step(epoch)
                for group in self.optimizer.param_groups:
                    group["weight_decay"] = 0.5 * group["lr"]

        return Both(optim, gamma=0.5)

    read = schedule_from_torch(decaying, 2, optimizer=heavy_ball(lr=0.5, momentum=0.9))
    assert read == Schedule([Phase(1, lr=0.5, weight_decay=0.25), Phase(1, lr=0.25, weight_decay=0.125)])
    for name in ("step", "cosine", "cyclic"):
        assert {*schedule_from_torch(SCHEDULERS[name], 9, optimizer=BEFORE).phases[0].values} == {"lr"}


@pytest.mark.parametrize(
    ("ours", "factory"),
    [
        (Schedule.step_decay(35, 0.1, every=7, factor=0.3), SCHEDULERS["step"]),
        (Schedule.cosine(10, 0.1, final=0.01), SCHEDULERS["cosine"]),
        (Schedule.linear_warmup(6, 0.1, start=0.02), SCHEDULERS["linear"]),
        (Schedule.cyclic(0.01, 0.2, up=3, cycles=2), SCHEDULERS["cyclic"]),
        (Schedule.inverse_time(20, 0.1, timescale=3.0), SCHEDULERS["lambda"]),
    ],
)
def test_the_schedules_of_numerics_are_those_of_pytorch(ours, factory):
    theirs = schedule_from_torch(factory, ours.steps, optimizer=BEFORE)
    ours, theirs = (np.array([lr for lr, _ in unrolled(schedule)]) for schedule in (ours, theirs))
    # PyTorch goes from each learning rate to the next: a handful of roundings of numbers up to 0.2 in every step.
    assert np.abs(ours - theirs).max() <= 10 * len(ours) * EPS * 0.2


@pytest.mark.parametrize("optimizer", [sgd(lr=0.1), nesterov(lr=0.1, momentum=0.9), polyak(lr=0.1, momentum=0.9)])
def test_any_rule_with_a_learning_rate_has_schedules(optimizer):
    schedule = schedule_from_torch(SCHEDULERS["exponential"], 3, optimizer=optimizer)
    assert schedule == schedule_from_torch(SCHEDULERS["exponential"], 3, optimizer=BEFORE)


def two_groups():
    optim = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.2}], lr=0.1)
    return lr_scheduler.StepLR(optim, 3)


@pytest.mark.parametrize(
    ("made", "steps", "options", "error", "message"),
    [
        (SCHEDULERS["step"], 0, {"optimizer": BEFORE}, InvalidProblemError, "steps must be a whole number, at least 1"),
        (SCHEDULERS["step"], 2.0, {"optimizer": BEFORE}, InvalidProblemError, "got 2.0"),
        (SCHEDULERS["step"], 5, {}, HyperparameterError, "needs optimizer=..., .*got None"),
        (SCHEDULERS["step"], 5, {"optimizer": heavy_ball(lr=0.1)}, HyperparameterError, "momentum"),
        (SCHEDULERS["one cycle"], 50, {"optimizer": BEFORE}, InvalidProblemError, "OneCycleLR has no .* of 50 steps"),
        (scheduler(SCHEDULERS["step"]), 5, {"optimizer": BEFORE}, InvalidProblemError, "has its own"),
        (two_groups(), 5, {}, InvalidRuleError, r"group 1 has .*0.2.* but group 0 has .*0.1.* at step 0"),
        (lr_scheduler.ReduceLROnPlateau, 5, {"optimizer": BEFORE}, InvalidRuleError, "follows the loss"),
        (0.1, 5, {"optimizer": BEFORE}, InvalidRuleError, "expected a torch lr_scheduler, .* got 0.1"),
        (lambda optim: 0.1, 5, {"optimizer": BEFORE}, InvalidRuleError, "the function made float"),
        (lambda optim: two_groups(), 5, {"optimizer": BEFORE}, InvalidRuleError, "for another optimizer"),
    ],
)
def test_what_has_no_schedule_is_refused(made, steps, options, error, message):
    with pytest.raises(error, match=message):
        schedule_from_torch(made, steps, **options)


def test_a_scheduler_that_is_refused_is_left_where_it_stood():
    made = scheduler(SCHEDULERS["one cycle"])
    with pytest.raises(InvalidProblemError):
        schedule_from_torch(made, 50)
    assert list(walked(made, 30)) == list(walked(scheduler(SCHEDULERS["one cycle"]), 30))
