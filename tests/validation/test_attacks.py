"""Attacks reach the exact maximum where there is one in closed form, and never leave the ball or the domain."""

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.optimize
import torch

from sgdcov.errors import InvalidProblemError
from sgdcov.validation import cnn, digits, fgsm, mlp, pgd
from sgdcov.validation.attacks import _Region

EPS = np.finfo(np.float64).eps
DUAL = {2: 2, np.inf: 1}
ATTACKS = [fgsm, partial(pgd, steps=5)]


def linear(examples=8, dim=6, seed=0):
    """Inputs inside the unit cube, weights, and a model."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(examples, dim, generator=generator, dtype=torch.float64)
    w = torch.randn(dim, 1, generator=generator, dtype=torch.float64)
    return x, w, lambda z: z @ w


def gain(model, x, y, attacked):
    """By how much the attack moved the output against the label."""
    return ((model(x) - model(attacked)).squeeze(1) * y).numpy()


@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("attack", ATTACKS, ids=["fgsm", "pgd"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_the_maximum_on_a_linear_model_is_radius_times_the_dual_norm(attack, norm, loss):
    x, w, model = linear()
    y = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    # For the squared loss a target that no output reaches, so that the sign of the residual is that of y.
    targets = y if loss == "logistic" else 100.0 * y
    for radius in (0.0, 0.1, 2.0):
        attacked = attack(model, x, targets, radius, loss=loss, norm=norm)
        exact = radius * float(w.flatten().norm(p=DUAL[norm]))
        np.testing.assert_allclose(gain(model, x, y, attacked), exact, rtol=0, atol=100 * EPS * (1 + exact))


@pytest.mark.parametrize("attack", ATTACKS, ids=["fgsm", "pgd"])
def test_the_maximum_within_a_domain_is_the_clipped_one(attack):
    x, w, model = linear()
    y = torch.ones(8, dtype=torch.float64)
    for radius in (0.1, 0.4, 3.0):
        attacked = attack(model, x, y, radius, loss="logistic", norm=np.inf, domain=(0, 1))
        room = torch.where(w.T > 0, x, 1 - x).clamp(max=radius)
        exact = (room * w.T.abs()).sum(dim=1).numpy()
        np.testing.assert_allclose(gain(model, x, y, attacked), exact, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("attack", ATTACKS, ids=["fgsm", "pgd"])
def test_the_euclidean_maximum_within_a_domain_is_the_convex_program_s(attack):
    x, w, model = linear(examples=3, dim=4)
    y = torch.ones(3, dtype=torch.float64)
    attacked = attack(model, x, y, 0.6, loss="logistic", norm=2, domain=(0, 1))
    for own, found in zip(x.numpy(), gain(model, x, y, attacked), strict=True):
        best = scipy.optimize.minimize(
            lambda z: float(z @ w.numpy()[:, 0]),
            own,
            jac=lambda z: w.numpy()[:, 0],
            bounds=[(0, 1)] * 4,
            constraints={
                "type": "ineq",
                "fun": lambda z, own=own: 0.36 - np.sum((z - own) ** 2),
                "jac": lambda z, own=own: -2 * (z - own),
            },
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(found, own @ w.numpy()[:, 0] - best.fun, atol=1e-6)  # SLSQP's own accuracy


@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("attack", ATTACKS, ids=["fgsm", "pgd"])
def test_the_worst_case_of_a_residual_of_zero_is_at_the_boundary(attack, norm):
    """(|r| + radius |w|_q)^2 / 2 at r = 0, where the gradient at the input names no direction."""
    w = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.25, 0.125], [0.25, 0.5, 0.25]], dtype=torch.float64)
    y = torch.tensor([0.0625, -0.625], dtype=torch.float64)  # dyadic: residuals are exactly 0
    exact = 0.5 * (0.1 * float(w.flatten().norm(p=DUAL[norm]))) ** 2
    attacked = attack(lambda z: z @ w, x, y, 0.1, loss="squared", norm=norm)
    np.testing.assert_allclose(0.5 * ((attacked @ w).squeeze(1) - y).square().numpy(), exact, rtol=1e-12)
    # One of two residuals: the other example is attacked as ever.
    mixed = attack(lambda z: z @ w, x, y + torch.tensor([0.0, 1.0]), 0.1, loss="squared", norm=norm)
    one = fgsm(lambda z: z @ w, x[1:], y[1:] + 1.0, 0.1, loss="squared", norm=norm)
    torch.testing.assert_close(mixed[1:], one)
    assert torch.equal(attack(lambda z: 0.0 * z @ w, x, 0.0 * y, 0.1, loss="squared", norm=norm), x)
    assert torch.equal(attack(lambda z: z @ w, x, y, 0.0, loss="squared", norm=norm), x)


def test_the_worst_case_may_lie_against_the_gradient_where_the_domain_ends():
    """One input at the lower end of its domain: the residual shrinks first, and is largest at the other side."""
    x, y = torch.tensor([[0.0]], dtype=torch.float64), torch.tensor([0.01], dtype=torch.float64)
    for targets in (y, 0.0 * y):
        attacked = pgd(lambda z: z, x, targets, 0.1, loss="squared", domain=(0.0, 1.0))
        assert attacked.item() == pytest.approx(0.1)
    assert fgsm(lambda z: z, x, 0.0 * y, 0.1, loss="squared", domain=(0.0, 1.0)).item() == pytest.approx(0.1)


def test_no_corner_of_the_cube_is_worse():
    x, _, model = linear()
    y = torch.linspace(-1, 1, 8, dtype=torch.float64)
    attacked = pgd(model, x, y, 0.3, loss="squared", norm=np.inf)
    corners = torch.tensor(list(itertools.product((-0.3, 0.3), repeat=6)), dtype=torch.float64)
    worst = ((model(x.unsqueeze(1) + corners).squeeze(2) - y.unsqueeze(1)) ** 2).max(dim=1).values
    np.testing.assert_allclose((model(attacked).squeeze(1) - y) ** 2, worst, rtol=1e-12)


def test_the_ascent_reaches_a_maximum_that_no_single_gradient_does():
    """Of -(z - c)'A(z - c)/2 in the ball about 0 the maximum is at (A + kI)^-1 A c with the k of the right length."""
    rng = np.random.default_rng(1)
    root = rng.standard_normal((5, 5))
    A, c, radius, step = root @ root.T + np.eye(5), 3 * rng.standard_normal(5), 1.0, 0.002

    def point(k):
        return np.linalg.solve(A + k * np.eye(5), A @ c)

    k = scipy.optimize.brentq(lambda k: np.linalg.norm(point(k)) - radius, 0, 1e4)
    z = point(k)
    exact = -0.5 * (z - c) @ A @ (z - c)

    def concave(inputs, _):
        gap = inputs - torch.tensor(c)
        return -0.5 * torch.einsum("ni,ij,nj->n", gap, torch.tensor(A), gap)

    x, y = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1)
    run = partial(pgd, lambda inputs: inputs, x, y, radius, loss=concave, norm=2)
    found = float(concave(run(steps=2000, step_size=step), y))
    # On the sphere a step of this length ends within as much of the maximum, where the loss is flat.
    curvature = np.linalg.eigvalsh(A)[-1] + k
    assert 0 <= exact - found <= 0.5 * curvature * step**2
    single = float(concave(fgsm(lambda inputs: inputs, x, y, radius, loss=concave, norm=2), y))
    assert exact - single > 100 * curvature * step**2


@pytest.mark.parametrize("norm", [2, np.inf])
def test_a_larger_radius_is_never_better_for_the_model(norm):
    x, _, model = linear()
    y = torch.ones(8, dtype=torch.float64)
    gains = [
        gain(model, x, y, pgd(model, x, y, radius, loss="logistic", norm=norm, steps=5, domain=(0, 1)))
        for radius in np.linspace(0, 2, 9)
    ]
    assert (np.diff(gains, axis=0) >= -100 * EPS).all()
    assert (gains[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [2, np.inf])
def test_no_attack_leaves_the_ball_or_the_domain(norm, dtype):
    x, y = digits(12, images=True)
    x, model = x.to(dtype), cnn(outputs=10).to(dtype)
    generator = torch.Generator().manual_seed(0)
    radius = 0.7 if norm == 2 else 0.1
    random = {"restarts": 2, "random_start": True, "generator": generator}
    clean = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    for attack, options in ((fgsm, {}), (pgd, {"steps": 4}), (pgd, {"steps": 4, **random})):
        attacked = attack(model, x, y, radius, norm=norm, domain=(0.0, 1.0), **options)
        assert attacked.dtype == dtype
        assert not attacked.requires_grad
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        length = (attacked - x).flatten(1).double().norm(p=norm, dim=1).max()
        # Sums of 64 squares, and the rounding of x + delta at numbers up to 1.
        assert length <= radius * (1 + 64 * torch.finfo(dtype).eps) + 8 * torch.finfo(dtype).eps
    losses = torch.nn.functional.cross_entropy(model(attacked), y, reduction="none")
    assert (losses >= clean).all()
    assert losses.mean() > clean.mean()


@pytest.mark.parametrize("norm", [2, np.inf])
def test_the_projection_is_the_nearest_point(norm):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(40, 7, generator=generator, dtype=torch.float64)
    region = _Region.of(x, 0.5, norm, (0.0, 1.0))
    far = 2 * torch.randn(40, 7, generator=generator, dtype=torch.float64)
    near = region.project(far)
    torch.testing.assert_close(region.project(near), near, rtol=0, atol=100 * EPS)
    for _ in range(50):  # the angle to any other point of a convex set is obtuse
        other = region.project(region.random(generator))
        assert (((far - near) * (other - near)).sum(dim=1) <= 1000 * EPS).all()


def test_random_starts_take_their_own_generator_only():
    x, y = digits(6)
    model = mlp((64, 8, 10))
    state = torch.get_rng_state()
    one, two, other = (
        pgd(model, x, y, 0.2, steps=2, restarts=2, random_start=True, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_the_textbook_loops_find_no_worse_points():
    x, y = digits(10, images=True)
    model = cnn(outputs=10).eval()
    losses = partial(torch.nn.functional.cross_entropy, reduction="none")

    def slope(at):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(losses(model(at), y).sum(), at)[0]

    def length(step):
        return step.flatten(1).norm(dim=1).view(-1, *[1] * (step.dim() - 1))

    signed = (x + 0.1 * slope(x).sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, 0.1, norm=np.inf, domain=(0, 1)), signed, rtol=0, atol=1e-12)
    for norm, radius, size in ((np.inf, 0.1, 0.02), (2, 1.0, 0.2)):
        other = x
        for _ in range(10):
            g = slope(other)
            moved = other + size * (g.sign() if norm == np.inf else g / length(g).clamp(min=1e-12)) - x
            within = moved.clamp(-radius, radius) if norm == np.inf else moved * (radius / length(moved)).clamp(max=1)
            other = (x + within).clamp(0, 1)
        mine = pgd(model, x, y, radius, steps=10, step_size=size, norm=norm, domain=(0, 1))
        # Ours keeps the worst iterate, the loop the last.
        assert (losses(model(mine), y) >= losses(model(other), y) - 1e-9).all()


class Dropping(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5))


X, Y = torch.full((2, 4), 0.5, dtype=torch.float64), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"radius": -0.1}, "radius must be a finite number, at least 0"),
        ({"norm": 3}, "norm must be 2 or numpy.inf, got 3"),
        ({"loss": "hinge"}, "'squared'"),
        ({"domain": (0.6, 1.0)}, "2 of 2 inputs are outside"),
        ({"x": X.long()}, "floating-point"),
        ({"loss": lambda out, y: (out.argmax(dim=1) != y).double()}, "not differentiable"),
        ({"loss": lambda out, y: out.sum()}, "one number per example"),
        ({"loss": lambda out, y: out[:, 0] / 0.0}, "not finite for 2 of 2"),
        ({"loss": lambda out, y: (out[:, 0] * 0.0).sqrt()}, "gradient of the loss is not finite"),
        ({"model": Dropping().double()}, r"drops a share 0.5 .* Call model.eval\(\)"),
    ],
)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_input_is_refused(attack, change, says):
    arguments = {"model": mlp((4, 2)), "x": X, "y": Y, "radius": 0.1, **change}
    with pytest.raises(InvalidProblemError, match=says):
        attack(**arguments)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"steps": 0}, "steps"), ({"restarts": 2}, "generator"), ({"step_size": -1.0}, "step_size")],
)
def test_bad_settings_of_the_ascent_are_refused(change, says):
    with pytest.raises(InvalidProblemError, match=says):
        pgd(mlp((4, 2)), X, Y, 0.1, **change)
