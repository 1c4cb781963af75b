"""Our rules are what PyTorch runs: both are stepped side by side."""

import itertools

import numpy as np
import pytest
import torch

from sgdcov.errors import HyperparameterError, InvalidRuleError
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, recursion, sam, sgd, sgdw, update_rule, with_ema
from sgdcov.validation import from_torch, torch_optimizer

STEPS = 400
EPS = np.finfo(np.float64).eps

# Powers of two: every product with one is exact, so a fused multiply-add rounds as a product and a sum do.
DYADIC = [
    sgd(lr=2**-3),
    sgd(lr=2**-3, weight_decay=2**-4),
    heavy_ball(lr=2**-3, momentum=0.5),
    heavy_ball(lr=2**-3, momentum=0.5, dampening=0.5, weight_decay=2**-5),
    nesterov(lr=2**-4, momentum=0.5),
    nesterov(lr=2**-4, momentum=0.5, weight_decay=2**-4),
]
GENERIC = [
    sgd(lr=0.1),
    sgd(lr=0.3, weight_decay=0.07),
    heavy_ball(lr=0.1, momentum=0.9),
    heavy_ball(lr=0.1, momentum=0.9, dampening=0.3),
    heavy_ball(lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.01),
    nesterov(lr=0.05, momentum=0.9),
    nesterov(lr=0.05, momentum=0.99, weight_decay=0.1),
]
CURVATURE = torch.linspace(0.0, 2.0, 101, dtype=torch.float64)  # odd: the vectorised loop of PyTorch has a tail


def quadratic_gradients(generator):
    while True:
        noise = torch.randn(101, generator=generator, dtype=torch.float64)
        yield lambda w, noise=noise: CURVATURE * (w - 1.0) + noise


def free_gradients(generator):
    for grad in quadratic_gradients(generator):
        noise = grad(torch.ones(101, dtype=torch.float64))
        yield lambda w, noise=noise: noise


def side_by_side(optimizer, gradients):
    """Yield the state of the rule and that of PyTorch, stepped from the same start with the same gradients."""
    start = torch.linspace(-1.0, 3.0, 101, dtype=torch.float64)
    state = (start.clone(), torch.zeros_like(start))[: len(optimizer.rule.slots)]
    parameter = start.clone()
    optim = torch_optimizer(optimizer, [parameter])
    assert type(optim) is torch.optim.SGD
    for grad in itertools.islice(gradients(torch.Generator().manual_seed(7)), STEPS):
        state = optimizer.step(state, grad)
        parameter.grad = grad(parameter)
        optim.step()
        buffer = optim.state[parameter].get("momentum_buffer")
        yield state, (parameter,) if buffer is None else (parameter, buffer)


@pytest.mark.parametrize("gradients", [quadratic_gradients, free_gradients])
@pytest.mark.parametrize("optimizer", DYADIC, ids=repr)
def test_bitwise_equal_where_the_hyperparameters_are_powers_of_two(optimizer, gradients):
    # The order of operations agrees; only PyTorch's fused multiply-adds could differ, and here they cannot.
    for ours, theirs in side_by_side(optimizer, gradients):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def accumulated(optimizer, curvature):
    """Bound of sum_j ||A(h)^j||_inf over the curvatures, the factor by which per-step rounding can build up."""
    traced = recursion(optimizer)
    total = 0.0
    for h in curvature:
        A = np.array(traced.transition.subs(traced.h, float(h)), dtype=float)
        power, norms = np.eye(len(A)), 0.0
        for _ in range(STEPS):
            norms += np.abs(power).sum(axis=1).max()
            power = power @ A
        total = max(total, norms)
    return total


@pytest.mark.parametrize(
    ("gradients", "curvature"), [(quadratic_gradients, CURVATURE[::10]), (free_gradients, CURVATURE[:1])]
)
@pytest.mark.parametrize("optimizer", GENERIC, ids=repr)
def test_equal_to_the_last_bits(optimizer, gradients, curvature):
    # One step rounds at most 9 times on each side (2 in g + wd*w, 3 in the buffer, 2 in Nesterov's look-ahead, 2 in w),
    # each by at most eps/2 of |w| + |g| + |v|: the two differ by 9 eps of that per step, carried on by A(h).
    bound, scale, worst = 9 * EPS * accumulated(optimizer, curvature), 0.0, 0.0
    for ours, theirs in side_by_side(optimizer, gradients):
        gradient_size = float(CURVATURE.max() * (ours[0].abs().max() + 1.0)) + 6.0
        scale = max(scale, sum(float(slot.abs().max()) for slot in ours) + gradient_size)
        worst = max(worst, max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)))
        assert worst <= bound * scale
    assert bound < 1e-10  # relative to the scale: it speaks of the last bits


def test_a_rule_that_pytorch_does_not_run_is_told_apart():
    nesterov_run = side_by_side(nesterov(lr=0.05, momentum=0.9), quadratic_gradients)
    heavy_ball_run = side_by_side(heavy_ball(lr=0.05, momentum=0.9), quadratic_gradients)
    (ours, _), (_, theirs) = next(nesterov_run), next(heavy_ball_run)
    assert float((ours[0] - theirs[0]).abs().max()) > 0.01


def test_pytorch_alone_skips_dampening_in_its_first_step():
    optimizer = heavy_ball(lr=0.5, momentum=0.5, dampening=0.5)
    bare, started = torch.zeros(1), torch.zeros(1)
    bare.grad, started.grad = torch.ones(1), torch.ones(1)
    torch.optim.SGD([bare], lr=0.5, momentum=0.5, dampening=0.5).step()
    torch_optimizer(optimizer, [started]).step()
    (ours, _) = optimizer.step((torch.zeros(1), torch.zeros(1)), lambda w: torch.ones(1))
    assert (float(bare), float(started), float(ours)) == (-0.5, -0.25, -0.25)


@pytest.mark.parametrize("optimizer", DYADIC + GENERIC, ids=repr)
def test_from_torch_is_the_reverse(optimizer):
    assert from_torch(torch_optimizer(optimizer, [torch.zeros(2)])) == optimizer


def test_from_torch_drops_what_pytorch_ignores():
    # Without momentum PyTorch never looks at dampening.
    assert from_torch(torch.optim.SGD([torch.zeros(2)], lr=0.1, dampening=0.5)) == sgd(lr=0.1)


def test_nesterov_without_momentum_is_sgd_to_pytorch_too():
    optim = torch_optimizer(nesterov(lr=0.1, momentum=0), [torch.zeros(2)])
    assert optim.param_groups[0]["nesterov"] is False


def test_groups_with_equal_settings_are_one_rule():
    groups = [{"params": [torch.zeros(2)]}, {"params": [torch.zeros(3)]}]
    assert from_torch(torch.optim.SGD(groups, lr=0.1, momentum=0.5)) == heavy_ball(lr=0.1, momentum=0.5)


@update_rule(slots=("w",))
def own_rule(state, grad, *, lr):
    (w,) = state
    return (w - lr * grad(w),)


@pytest.mark.parametrize(
    "optimizer",
    [
        polyak(lr=0.1, momentum=0.9),
        qhm(lr=0.1, beta=0.9, nu=0.7),
        sgdw(lr=0.1, momentum=0.9, weight_decay=0.1),
        sam(lr=0.1, rho=0.1),
        with_ema(sgd)(lr=0.1, ema_decay=0.9),
        own_rule(lr=0.1),
    ],
    ids=repr,
)
def test_a_rule_without_a_torch_object_is_refused_and_those_with_one_named(optimizer):
    with pytest.raises(InvalidRuleError, match="sgd, heavy_ball, nesterov"):
        torch_optimizer(optimizer, [torch.zeros(1)])


def test_dampening_that_pytorch_would_ignore_is_refused():
    with pytest.raises(HyperparameterError, match=r"sgd\(lr=0.05\)"):
        torch_optimizer(heavy_ball(lr=0.1, momentum=0, dampening=0.5), [torch.zeros(1)])


def test_an_unbound_hyperparameter_is_refused():
    with pytest.raises(HyperparameterError, match="momentum"):
        torch_optimizer(heavy_ball(lr=0.1), [torch.zeros(1)])


def two_groups(**other):
    return torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], **other}], lr=0.1)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (torch.optim.Adam([torch.zeros(1)]), "Adam"),
        (type("Mine", (torch.optim.SGD,), {})([torch.zeros(1)], lr=0.1), "Mine"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1, maximize=True), "maximize"),
        (two_groups(lr=0.2), "group 1 has lr=0.2 but group 0 has 0.1"),
        (two_groups(weight_decay=0.5), "weight_decay=0.5"),
    ],
)
def test_what_is_no_rule_is_refused(optim, message):
    with pytest.raises(InvalidRuleError, match=message):
        from_torch(optim)
