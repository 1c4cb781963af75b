"""A run through a schedule, by our rules and by real torch objects, has the law of the recursion step by step."""

import brute_force
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch.optim import lr_scheduler

from sgdcov import numerics
from sgdcov.errors import DivergenceError, HyperparameterError, InvalidProblemError, InvalidRuleError
from sgdcov.numerics import LeastSquares, Phase, Quadratic, Schedule
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw, with_ema
from sgdcov.validation import compare, schedule_from_torch, trajectory

EPS = np.finfo(np.float64).eps

OPTIMIZERS = [
    sgd(lr=0.3, weight_decay=0.1),
    heavy_ball(lr=0.2, momentum=0.8, dampening=0.4),
    nesterov(lr=0.1, momentum=0.8),
    polyak(lr=0.1, momentum=0.8, weight_decay=0.1),
    qhm(lr=0.4, beta=0.9, nu=0.7),
    sgdw(lr=0.1, momentum=0.8, weight_decay=0.2),
    sam(lr=0.2, rho=0.3),
    with_ema(heavy_ball)(lr=0.1, momentum=0.8, ema_decay=0.9),
]
#: Real schedulers and an optimizer to drive: the learning rate drops, falls, and (with the momentum) rises and falls.
SCHEDULERS = {
    "step": (heavy_ball(lr=0.4, momentum=0.9), lambda optim: lr_scheduler.StepLR(optim, 10, gamma=0.125)),
    "cosine": (sgd(lr=0.6, weight_decay=0.1), lambda optim: lr_scheduler.CosineAnnealingLR(optim, 30)),
    "one cycle": (nesterov(lr=0.3, momentum=0.9), lambda optim: lr_scheduler.OneCycleLR(optim, 0.3, total_steps=30)),
    "warm-up": (
        heavy_ball(lr=0.2, momentum=0.8, dampening=0.3),
        lambda optim: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(optim, 0.1, total_iters=8), lr_scheduler.ExponentialLR(optim, 0.95)], optimizer=optim
        ),
    ),
}
RECORD = (0, 10, 17, 28)


def non_commuting(dim=3, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    factor = rng.standard_normal((dim, dim))
    hessian = turn @ np.diag(np.linspace(0.5, 2.0, dim)) @ turn.T
    return Quadratic((hessian + hessian.T) / 2, factor @ factor.T, 3.0 * rng.standard_normal(dim))


def stationary(optimizer, problem):
    step = brute_force.OneStep.of(optimizer, problem)
    covariance = scipy.linalg.solve_discrete_lyapunov(step.transition, step.gain @ problem.noise @ step.gain.T)
    return (covariance + covariance.T) / 2, np.linalg.solve(np.eye(len(step.push)) - step.transition, step.push)


def one_by_one(optimizer, schedule):
    """The optimizer of every step."""
    return [optimizer.replace(**phase.values) for phase in schedule.phases for _ in range(phase.steps)]


def driven(optimizer, factory, steps):
    """The optimizer of every step of a real training loop, read off the real torch objects."""
    settings = {name: float(value) for name, value in optimizer.values.items() if name != "dampening"}
    nesterov_form = optimizer.rule is nesterov
    optim = torch.optim.SGD([torch.zeros(1)], nesterov=nesterov_form, **settings)
    scheduler = factory(optim)
    found = []
    for _ in range(steps):
        (group,) = optim.param_groups
        found.append(optimizer.replace(**{name: group[name] for name in ("lr", "momentum") if name in settings}))
        optim.step()
        scheduler.step()
    return found


def assert_agrees(run, optimizers, problem, start):
    """Every record agrees in covariance and mean, and so do the excess risk and the trace."""
    # Fixed seeds; each comparison has one false alarm in 10,000 seeds, and 4 standard errors one in 16,000.
    laws = list(brute_force.propagate(optimizers, problem, *start))
    for index, (step, estimate) in enumerate(zip(run.times, run.estimates, strict=True)):
        covariance, mean = (brute_force.block(part, estimate.optimizer, estimate.slots) for part in laws[step])
        found = compare(estimate, covariance, mean=mean)
        assert found.p_value > 1e-4
        assert found.mean_p_value > 1e-4
        weights, centre = laws[step][0][:3, :3], laws[step][1][:3] - problem.optimum
        risk = (np.vdot(problem.hessian, weights) + centre @ problem.hessian @ centre) / 2
        assert abs(run.excess_risk[index] - risk) <= 4 * run.excess_risk_standard_error[index] + 1e-12
        assert abs(run.trace[index] - np.trace(weights)) <= 4 * run.trace_standard_error[index]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_a_run_through_phases_has_the_law_of_the_recursion_in_every_slot(optimizer):
    problem, lr = non_commuting(), optimizer.values["lr"]
    schedule = Schedule([Phase(10), Phase(8, lr=lr / 4), Phase(10, lr=lr / 2)])
    before = optimizer.replace(lr=lr / 2)
    run = trajectory(
        optimizer, schedule, problem, start=before, record=RECORD, slots=optimizer.rule.slots, replicas=2000, rng=1,
        progress=False,
    )  # fmt: skip
    assert_agrees(run, one_by_one(optimizer, schedule), problem, stationary(before, problem))


@pytest.mark.parametrize(("optimizer", "factory"), SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("engine", ["torch.optim", "rule"])
def test_real_torch_objects_side_by_side_have_it_too(engine, optimizer, factory):
    problem, point = non_commuting(), np.array([1.0, -1.0, 2.0])
    slots = optimizer.rule.slots
    run = trajectory(
        optimizer, factory, problem, start=point, record=RECORD, slots=slots, replicas=2000, engine=engine, rng=2,
        progress=False,
    )  # fmt: skip
    start = np.zeros((3 * len(slots), 3 * len(slots))), brute_force.rest(optimizer, point)
    assert_agrees(run, driven(optimizer, factory, RECORD[-1]), problem, start)
    assert run.schedule == schedule_from_torch(factory, RECORD[-1], optimizer=optimizer)


@pytest.mark.parametrize(("optimizer", "factory"), SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_scheduler_its_schedule_and_both_engines_walk_the_same_path(optimizer, factory):
    schedule = schedule_from_torch(factory, RECORD[-1], optimizer=optimizer)
    runs = [
        trajectory(
            optimizer, given, non_commuting(), start=optimizer.replace(lr=0.1), record=RECORD,
            slots=optimizer.rule.slots, replicas=10, engine=engine, rng=3, progress=False,
        )
        for engine in ("torch.optim", "rule")
        for given in (factory, schedule)
    ]  # fmt: skip
    for index, estimate in enumerate(runs[0].estimates):
        scale, steps = np.abs(estimate.samples).max(), estimate.steps
        for other in runs[1:]:
            # They differ by the rounding of fused operations, kept small by contraction.
            difference = np.abs(other.estimates[index].samples - estimate.samples).max()
            assert difference <= 100 * EPS * steps * scale


def test_the_scheduler_itself_steps_beside_the_optimizer_that_makes_the_run():
    """What a scheduler sees of the weights, each time it steps, is what the run records."""
    seen = []

    class Watching(lr_scheduler.StepLR):
        def step(self, *args):
            (weights,) = self.optimizer.param_groups[0]["params"]
            seen.append(weights.detach().clone().numpy())
            super().step(*args)

    run = trajectory(
        heavy_ball(lr=0.4, momentum=0.9), lambda optim: Watching(optim, 2, gamma=0.5), non_commuting(),
        record=range(1, 6), replicas=7, engine="torch.optim", rng=0, progress=False,
    )  # fmt: skip
    # Not of the scheduler that the schedule is read off, whose optimizer has one weight. Being made, one steps.
    made, *beside = (weights for weights in seen if weights.shape == (7, 3))
    np.testing.assert_array_equal(made, np.tile(non_commuting().optimum, (7, 1)))
    for weights, estimate in zip(beside, run.estimates, strict=True):
        np.testing.assert_array_equal(weights, estimate.samples[0])


def test_wrong_schedules_and_the_other_momentum_convention_are_rejected():
    problem, optimizer = non_commuting(), heavy_ball(lr=0.4, momentum=0.9)
    factory = SCHEDULERS["step"][1]
    run = trajectory(
        optimizer, factory, problem, start=optimizer, record=(17,), replicas=2000, engine="torch.optim", rng=4,
        progress=False,
    )  # fmt: skip

    def law(optimizers):
        *_, (covariance, _) = brute_force.propagate(optimizers, problem, *stationary(optimizers[0], problem))
        return covariance[:3, :3]

    right = [optimizer] * 10 + [optimizer.replace(lr=0.05)] * 7
    other = polyak(lr=0.4, momentum=0.9)
    assert compare(run.at(17), law(right)).p_value > 1e-4
    wrong = {
        "Polyak's momentum": law([other] * 10 + [other.replace(lr=0.05)] * 7),
        "stepped before the optimizer": law(right[1:] + right[-1:]),
        "stepped a step late": law(right[:1] + right[:-1]),
        "no drop": law(right[:1] * 17),
        "stationary at once": stationary(right[-1], problem)[0][:3, :3],
    }
    for prediction in wrong.values():
        assert compare(run.at(17), prediction).p_value < 1e-6


def test_what_numerics_predicts_is_measured():
    problem, optimizer = non_commuting(), heavy_ball(lr=0.4, momentum=0.9)
    arrays = problem.hessian, problem.noise
    factory = SCHEDULERS["step"][1]
    schedule, record = schedule_from_torch(factory, 28, optimizer=optimizer), np.array([0, 10, 13, 28])
    law, point = numerics.stationary_covariance(optimizer, *arrays), np.array([1.0, -1.0, 2.0])
    predicted = numerics.trajectory(
        optimizer, schedule, *arrays, start=law, mean=point, optimum=problem.optimum, record=record
    )
    run = trajectory(
        optimizer, factory, problem, start=law, mean=point, record=record, replicas=4000, engine="torch.optim", rng=8,
        progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(run.times, predicted.times)
    for estimate, covariance, mean in zip(run.estimates, predicted.covariance, predicted.mean, strict=True):
        found = compare(estimate, covariance, mean=mean)
        assert found.p_value > 1e-4
        assert found.mean_p_value > 1e-4
    assert (np.abs(run.excess_risk - predicted.excess_risk) < 4 * run.excess_risk_standard_error).all()
    assert (np.abs(run.trace - predicted.trace) < 4 * run.trace_standard_error).all()
    default = trajectory(optimizer, schedule, problem, replicas=2, rng=8, progress=False)
    assert default.times.tolist() == [0, 10, 20, 28]


def test_a_phase_may_be_unstable():
    problem = non_commuting()
    schedule = Schedule([Phase(6, lr=1.3), Phase(20, lr=0.2)])
    run = trajectory(sgd(), schedule, problem, record=(6, 26), replicas=2000, rng=5, progress=False)
    assert_agrees(run, one_by_one(sgd(), schedule), problem, (np.zeros((3, 3)), problem.optimum))
    assert run.trace[0] > 10 * run.trace[1]
    growing = Schedule([Phase(6, lr=0.1), Phase(1200, lr=1.5), Phase(5, lr=0.1)])
    for record in (None, (1200,), (600,)):  # 2^600 is finite, its square is not
        with pytest.raises(DivergenceError, match=r"sgd\(lr=1.5\) after .* factor 2 in every step"):
            trajectory(sgd(), growing, problem, record=record, replicas=2, rng=5, progress=False)


def test_a_cycle_that_is_repeated_has_its_periodic_law_at_every_position():
    problem, optimizer = non_commuting(), heavy_ball(momentum=0.5)
    cycle = Schedule.cyclic(0.1, 0.9, up=3)
    predicted = numerics.periodic_covariance(optimizer, cycle, problem.hessian, problem.noise, record=range(6))
    once = np.linalg.multi_dot([brute_force.OneStep.of(o, problem).transition for o in one_by_one(optimizer, cycle)])
    assert np.abs(np.linalg.eigvals(once)).max() ** 30 < 1e-6  # the start is forgotten after 30 cycles
    run = trajectory(optimizer, 31 * cycle, problem, record=range(180, 186), replicas=4000, rng=9, progress=False)
    for index, estimate in enumerate(run.estimates):
        assert compare(estimate, predicted.covariance[index]).p_value > 1e-4
        assert compare(estimate, predicted.covariance[(index + 3) % 6]).p_value < 1e-6


def test_minibatches_agree_at_small_learning_rates():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) * np.linspace(1.0, 0.5, 3)
    problem = LeastSquares(X, X @ np.ones(3) + rng.standard_exponential(60))
    additive, schedule = problem.quadratic(20), Schedule([Phase(100, lr=0.04), Phase(40, lr=0.01)])
    run = trajectory(
        sgd(), schedule, problem, record=(140,), replicas=1000, batch_size=20, rng=6, progress=False
    )
    *_, (covariance, _) = brute_force.propagate(
        one_by_one(sgd(), schedule), additive, np.zeros((3, 3)), additive.optimum
    )
    # The state-dependent part of the noise is of relative order lr; Monte Carlo sees 5%.
    found = compare(run.at(140), covariance)
    assert found.relative_error < 3 * found.expected_relative_error
    risk = np.vdot(additive.hessian, covariance) / 2
    assert abs(run.excess_risk[0] - risk) < 0.04 * risk + 4 * run.excess_risk_standard_error[0]


def test_standard_errors_of_risk_and_trace_are_true():
    problem, replicas = non_commuting(2), 200
    schedule = Schedule([Phase(5, lr=0.5), Phase(5, lr=0.1)])
    options = {"start": [1.0, 2.0], "record": (10,), "replicas": replicas, "progress": False}
    runs = [trajectory(sgd(), schedule, problem, rng=seed, **options) for seed in range(400)]
    for name in ("excess_risk", "trace"):
        values = np.array([getattr(run, name)[0] for run in runs])
        stated = np.array([getattr(run, f"{name}_standard_error")[0] for run in runs])
        # The spread of 400 values is known to 1/sqrt(800), times at most 2 for what is more peaked than a Gaussian.
        assert np.sqrt(np.mean(stated**2)) == pytest.approx(np.std(values), rel=4 * 2 / np.sqrt(800))


def test_a_trajectory_is_what_it_recorded():
    problem, schedule = non_commuting(), Schedule([Phase(4, lr=0.4), Phase(4, lr=0.1)])
    run = trajectory(
        heavy_ball(momentum=0.5), schedule, problem, record=[0, 4, 5], slots=("v", "w"), replicas=50, rng=7,
        progress=False,
    )  # fmt: skip
    assert run.times.tolist() == [0, 4, 5]
    assert run.covariance.shape == run.covariance_standard_error.shape == (3, 6, 6)
    assert run.mean.shape == run.mean_standard_error.shape == (3, 6)
    assert [estimate.optimizer.values["lr"] for estimate in run.estimates] == [0.4, 0.4, 0.1]
    assert run.at(5) is run.estimates[2]
    assert run.trace[1] == pytest.approx(np.trace(run.at(4).value[3:, 3:]), rel=1e-12)
    assert max(run.excess_risk[0], run.trace[0]) <= (50 * EPS * np.abs(problem.optimum).max()) ** 2
    for text in (repr(run), run._repr_html_()):
        for part in ("50 replicas, 3 records of steps 0 to 5", "at rest at the optimum", "momentum=0.5"):
            assert part in text
    with pytest.raises(InvalidProblemError, match=r"time 3 was not recorded; those that were are \[0, 4, 5\]"):
        run.at(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"record": ()}, InvalidProblemError, "record is empty"),
        ({"record": (3, 2)}, InvalidProblemError, "record must ascend"),
        ({"record": (-1,)}, InvalidProblemError, "record must be a whole number, at least 0"),
        ({"record": (5, 11)}, InvalidProblemError, "record asks for step 11, but the schedule ends after 10"),
        ({"schedule": Schedule([Phase(5), Phase(5, lr=-1.0)])}, HyperparameterError, "phase 1 .*-1"),
        ({"schedule": Schedule([Phase(5), Phase(5, beta=0.5)])}, HyperparameterError, "phase 1 .*beta"),
        ({"schedule": SCHEDULERS["step"][1], "record": None}, InvalidProblemError, "has no end: give record"),
        ({"schedule": [0.1] * 10}, InvalidRuleError, "expected a torch lr_scheduler"),
        ({"schedule": lambda optim: None}, InvalidRuleError, "the function made NoneType"),
        ({"optimizer": heavy_ball(lr=0.1)}, HyperparameterError, "momentum"),
        ({"optimizer": heavy_ball}, InvalidRuleError, "expected an optimizer"),
        ({"engine": "jax"}, InvalidProblemError, "got 'jax'"),
        ({"optimizer": polyak(lr=0.1, momentum=0.5), "engine": "torch.optim"}, InvalidRuleError, "torch.optim has no"),
        (
            {"schedule": Schedule([Phase(5), Phase(5, momentum=0.0)]), "engine": "torch.optim"},
            HyperparameterError,
            "phase 1: momentum goes from 0.5 to 0",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(options, error, message):
    arguments = {
        "optimizer": heavy_ball(lr=0.1, momentum=0.5), "schedule": Schedule.constant(10, lr=0.1), "record": (5,),
        "replicas": 10, "progress": False, **options,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        trajectory(arguments.pop("optimizer"), arguments.pop("schedule"), non_commuting(), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["rule", "torch.optim"])
def test_p_is_uniform_all_along_a_true_trajectory(engine):
    # One false alarm in 1000 seeds for each Kolmogorov-Smirnov test; it sees a distance of 0.1 from uniform.
    problem, optimizer, record = non_commuting(2), heavy_ball(lr=0.4, momentum=0.9), (1, 10, 12, 20)
    factory = SCHEDULERS["step"][1]
    before = optimizer.replace(lr=0.2)
    laws = list(brute_force.propagate(driven(optimizer, factory, 20), problem, *stationary(before, problem)))
    p = []
    for seed in range(300):
        run = trajectory(
            optimizer, factory, problem, start=before, record=record, replicas=300, engine=engine, rng=seed,
            progress=False,
        )  # fmt: skip
        found = [
            compare(run.at(time), laws[time][0][:2, :2], mean=laws[time][1][:2]) for time in record
        ]
        p.append([agreement.p_value for agreement in found] + [agreement.mean_p_value for agreement in found])
    for kind in zip(*p, strict=True):
        assert scipy.stats.kstest(kind, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("engine", ["rule", "torch.optim"])
def test_a_learning_rate_of_0_moves_nothing_and_is_passed_through(engine):
    """Warm-up from 0 by a real scheduler, against numerics; and a schedule that is 0 throughout."""
    problem, optimizer = Quadratic(np.diag([1.0, 0.3]), np.eye(2), np.ones(2)), heavy_ball(lr=0.3, momentum=0.9)
    run = trajectory(
        optimizer, lambda optim: torch.optim.lr_scheduler.LambdaLR(optim, lambda step: min(1.0, step / 3)), problem,
        record=(0, 1, 6), start=np.eye(2), replicas=4000, engine=engine, rng=3, progress=False,
    )  # fmt: skip
    exact = numerics.trajectory(
        optimizer, run.schedule, problem.hessian, problem.noise, start=np.eye(2), record=[0, 1, 6]
    )  # fmt: skip
    np.testing.assert_array_equal(run.covariance[0], run.covariance[1])
    for measured, law in zip(run.covariance, exact.covariance, strict=True):
        assert np.abs(measured - law).max() < 5 * run.covariance_standard_error.max()
    examples = LeastSquares(np.eye(2) + 0.1, [1.0, 2.0])
    still = trajectory(
        sgd(lr=0.1), Schedule.constant(3, 0.0), examples, batch_size=1, start=np.eye(2), replicas=50, engine=engine,
        rng=0, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(still.covariance[0], still.covariance[-1])
