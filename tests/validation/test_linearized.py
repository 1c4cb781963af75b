"""Real SGD in all parameters of a linearised network has the exact law on the range of its Jacobian, and only there."""

import functools
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torch.func import functional_call, grad

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError, MeanSquareUnstableError
from sgdcov.theory import heavy_ball, nesterov, polyak, sgd, sgdw, with_ema
from sgdcov.validation import LinearizedNetwork, cnn, compare, digits, fgsm, mlp, pgd

EPS = np.finfo(np.float64).eps
FORCE_PRODUCTS = {"jacobian_bytes": 0}


@functools.cache
def single(examples=40, l2=0.1, **options):
    """1,057 parameters, one output."""
    x, y = digits(examples, classes=(3, 8))
    return LinearizedNetwork(mlp((64, 16, 1)), x, y, l2=l2, **options)


def tiny(l2=0.1, loss="squared", **options):
    """Two inputs of six are the same, so that the rank is less than the number of rows."""
    x, y = digits(6, classes=(1, 4, 7))
    x = torch.cat([x[:5], x[:1]])
    targets = y if loss == "cross_entropy" else torch.nn.functional.one_hot(y, 3).double()
    return LinearizedNetwork(mlp((64, 2, 3)), x, targets, loss=loss, l2=l2, **options)


def stable_share(optimizer, noise, share):
    largest = numerics.mean_square_stability(optimizer, noise).largest_lr
    return optimizer.replace(lr=float(f"{share * largest:.2g}"))


def laws(optimizer, noise):
    """The exact stationary law and the additive one."""
    exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    return exact, numerics.stationary_covariance(optimizer, noise.hessian, noise.covariance())


# The reduction -----------------------------------------------------


def finite_differences(model, x, step=1e-5):
    """The Jacobian of outputs by all parameters, central differences of the module itself."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])

    def outputs(w):
        parts = torch.split(w, [p.numel() for p in parameters])
        values = {n: part.view_as(p) for n, part, p in zip(names, parts, parameters, strict=True)}
        return functional_call(model, values, (x,)).reshape(-1)

    with torch.no_grad():
        columns = [(outputs(flat + step * e) - outputs(flat - step * e)) / (2 * step) for e in torch.eye(len(flat))]
    return torch.stack(columns, dim=1).numpy(), flat.numpy(), outputs(flat).numpy()


@pytest.mark.parametrize("options", [{}, FORCE_PRODUCTS], ids=["matrix", "products"])
def test_outputs_are_the_tangent_of_the_network(options):
    net, model = tiny(**options), mlp((64, 2, 3))
    J, w0, f0 = finite_differences(model, net.x)
    w = w0 + np.random.default_rng(0).standard_normal(len(w0))
    expected = (f0 + J @ (w - w0)).reshape(6, 3)
    # Differences of step h are off by h^2 and eps/h, times third derivatives and values of order 1.
    np.testing.assert_allclose(net.predictions(net.coordinates(w)), expected, atol=1e-7)
    x, _ = digits(4, rng=5)
    J, _, f0 = finite_differences(model, x)
    inside = net.weights(net.coordinates(w)) + net.complement  # elsewhere the complement counts
    expected = (f0 + J @ (inside - w0)).reshape(4, 3)
    np.testing.assert_allclose(net.predictions(net.coordinates(w), x), expected, atol=1e-7)
    np.testing.assert_allclose(net.features(x) @ np.ones(net.rank), (J @ net.weights(np.ones(net.rank))).reshape(4, 3),
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("options", [{}, FORCE_PRODUCTS], ids=["matrix", "products"])
def test_the_loss_in_the_coordinates_is_that_in_all_parameters(options):
    net, model = tiny(**options), mlp((64, 2, 3))
    # Two hidden units move two combinations of the outputs on five inputs freely, the third by the three top weights.
    assert (net.parameters, net.rank, net.num_examples, net.outputs) == (139, 2 * 5 + 3, 6, 3)
    J, w0, f0 = finite_differences(model, net.x)
    w = w0 + np.random.default_rng(1).standard_normal(len(w0))
    a = net.coordinates(w)
    outside = w - net.weights(a)
    full = 0.5 * np.sum((net.y.numpy().ravel() - f0 - J @ (w - w0)) ** 2) / 6 + 0.05 * w @ w
    np.testing.assert_allclose(net.problem.loss(a) + 0.05 * outside @ outside, full, rtol=1e-7)
    np.testing.assert_allclose(net.coordinates(net.weights(a)), a, atol=1e-9)  # orthonormal
    np.testing.assert_allclose(net.weights(net.start) + net.complement, w0, atol=1e-9)
    assert np.abs(J @ net.complement).max() < 1e-7
    assert net.dropped < net.rank_tolerance < net.singular_values[-1] / net.singular_values[0]
    assert "rank 13" in repr(net)


def test_products_and_matrix_are_one_network():
    matrix, products = single(20), single(20, **FORCE_PRODUCTS)
    assert (matrix.explicit, products.explicit) == (True, False)
    # Rounding of the Gram matrix is eps times the square of the condition of J.
    close = {"rtol": 100 * EPS * (matrix.singular_values[0] / matrix.singular_values[-1]) ** 2}
    np.testing.assert_allclose(matrix.singular_values, products.singular_values, **close)
    x, _ = digits(3, classes=(3, 8), rng=9)
    optimizer = heavy_ball(lr=0.02, momentum=0.9)
    found = []
    for net in (matrix, products):
        noise = net.noise(4)
        law = numerics.stationary_covariance(optimizer, noise.hessian, noise)
        run = net.measure(optimizer, batch_size=4, replicas=5, steps=8, rng=0, progress=False)
        found.append((net.function_covariance(law, x), net.weights(run.samples[0])))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-8)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-10)


def test_a_gradient_is_that_of_autograd_on_the_tangent():
    for loss in ("squared", "cross_entropy"):
        net = tiny(loss=loss)
        measured = []
        for own in (net, tiny(loss=loss, **FORCE_PRODUCTS)):
            run = own.measure(
                sgd(lr=0.5), batch_size=6, replacement=False, replicas=2, steps=1, rng=0, progress=False
            )  # fmt: skip
            measured.append(own.weights(own.start - run.samples[0][0]))
        features, offsets = torch.tensor(net.features()), torch.tensor(net.predictions(0 * net.start))

        def mean(a, features=features, offsets=offsets, y=net.y, loss=loss):
            f = offsets + features @ a
            each = (
                0.5 * (f - y).square().sum(dim=1)
                if loss == "squared"
                else torch.nn.functional.cross_entropy(f, y, reduction="none")
            )
            return each.mean() + 0.05 * (a @ a)

        expected = 0.5 * grad(mean)(torch.tensor(net.start)).numpy()
        for found in measured:
            np.testing.assert_allclose(found, net.weights(expected), atol=1e-10)


def test_a_linear_model_is_its_own_tangent():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 4)), rng.standard_normal(12)
    net = LinearizedNetwork(mlp((4, 1)), X, y, l2=0.3)
    plain = numerics.LeastSquares(np.hstack([X, np.ones((12, 1))]), y, l2=0.3)
    assert (net.parameters, net.rank) == (5, 5)  # more rows than parameters: nothing is left over
    np.testing.assert_allclose(net.weights(net.problem.optimum), plain.optimum, atol=1e-13)
    basis = net.weights(np.eye(5))
    np.testing.assert_allclose(basis.T @ net.noise(3).covariance() @ basis, plain.noise(3), atol=1e-13)
    assert np.abs(net.complement).max() < 1e-14


def test_a_network_with_the_weights_of_coordinates_is_its_tangent_to_first_order():
    net = tiny()
    step = 1e-4 * np.random.default_rng(2).standard_normal(net.rank)
    with torch.no_grad():
        start, near = (net.network(net.start + delta)(net.x).numpy() for delta in (0 * step, step))
    np.testing.assert_allclose(start, net.predictions(net.start), atol=1e-12)
    np.testing.assert_allclose(near, net.predictions(net.start + step), atol=1e-6)  # second order
    assert np.abs(near - start).max() > 1e-5


class Recurrent(torch.nn.Module):
    """A network that torch.func cannot vectorise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = torch.nn.GRU(8, 3, batch_first=True), torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.layer(x.view(len(x), 8, 8))[0][:, -1])


def test_a_recurrent_network_by_rows_of_its_jacobian():
    x, y = digits(5, classes=(3, 8))
    with torch.random.fork_rng():
        model = Recurrent().double()
    net = LinearizedNetwork(model, x, y, l2=0.1)
    J, *_ = finite_differences(model, x)
    np.testing.assert_allclose(net.features()[:, 0] @ net.weights(np.eye(net.rank)), J, atol=1e-7)
    run = net.measure(sgd(lr=0.1), batch_size=2, replicas=2, steps=2, rng=0, progress=False)
    assert run.complement_error <= run.complement_tolerance
    products = LinearizedNetwork(model, x, y, l2=0.1, **FORCE_PRODUCTS)
    with pytest.raises(InvalidProblemError, match=r"cannot vectorise this model .* jacobian_bytes"):
        products.measure(sgd(lr=0.1), batch_size=2, replicas=2, steps=2, rng=0, progress=False)


def test_fixed_parameters_are_constants_and_the_model_is_left_alone():
    x, y = digits(5, classes=(3, 8))
    model = mlp((64, 3, 1)).float()
    model[1].requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    net = LinearizedNetwork(model, x, y)
    assert net.names == ("3.weight", "3.bias")
    assert net.parameters == 4
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(model.parameters(), before, strict=True))


# The law -----------------------------------------------------


@pytest.mark.parametrize("engine", ["rule", "torch.optim"])
def test_momentum_in_a_thousand_parameters_has_the_exact_law(engine):
    net = single()
    noise = net.noise(4)
    assert (net.parameters, net.rank) == (1057, 40)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.9), noise, 0.5)
    exact, additive = laws(optimizer, noise)
    run = net.measure(optimizer, batch_size=4, replicas=400, snapshots=2, engine=engine, rng=1, progress=False)
    found = compare(run, exact, mean=noise.optimum)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert found.relative_error < 1.5 * found.expected_relative_error
    assert compare(run, additive).p_value < 1e-4
    assert run.complement_error <= run.complement_tolerance
    assert abs(run.complement_factor) < 0.1  # l2 has all but wiped it out


def test_without_weight_decay_nothing_leaves_the_range():
    net = single(l2=0.0)
    noise = net.noise(4, False)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.9), noise, 0.5)
    run = net.measure(optimizer, batch_size=4, replacement=False, replicas=400, steps=25, rng=2, progress=False)
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, 25, mean=net.start)
    mean = numerics.transient_mean(optimizer, noise.hessian, 25, start=net.start, optimum=noise.optimum)
    found = compare(run, exact, mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert run.complement_factor == 1.0
    assert run.complement_error <= run.complement_tolerance < 1e-10
    # It fits its data: at the optimum there is no noise, and the additive law would be no law at all.
    assert np.trace(noise.covariance()) < 1e-20 * np.trace(noise.covariance(net.start))


def test_label_noise_keeps_an_interpolating_network_moving():
    net = single(20, l2=0.0)
    noise = net.noise(4, label_noise=0.5)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.8), noise, 0.5)
    exact, additive = laws(optimizer, noise)
    # From the exact law, which must stay: the flattest direction would take millions of steps to it.
    run = net.measure(optimizer, batch_size=4, label_noise=0.5, replicas=1500, steps=40, start=exact, rng=3,
                      progress=False)  # fmt: skip
    found = compare(run, exact, mean=noise.optimum)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(run, additive).p_value < 1e-6


def test_ten_outputs_have_the_exact_law():
    x, y = digits(8)
    net = LinearizedNetwork(mlp((64, 14, 10)), x, torch.nn.functional.one_hot(y, 10), l2=0.1)
    assert (net.parameters, net.rank) == (1060, 80)
    noise = net.noise(2)
    # Small beside the largest stable one, which takes several seconds to find at this rank.
    optimizer = heavy_ball(lr=0.02, momentum=0.8)
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, 30, mean=net.start)
    mean = numerics.transient_mean(optimizer, noise.hessian, 30, start=net.start, optimum=noise.optimum)
    additive = numerics.transient_covariance(optimizer, noise.hessian, noise.covariance(), 30)
    run = net.measure(optimizer, batch_size=2, replicas=400, steps=30, rng=4, engine="torch.optim", progress=False)
    found = compare(run, exact, mean=mean)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(run, additive).p_value < 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [
        nesterov(lr=0.05, momentum=0.7, weight_decay=0.05),
        polyak(lr=0.05, momentum=0.7),
        sgdw(lr=0.05, momentum=0.7, weight_decay=0.1),
        with_ema(sgd)(lr=0.1, ema_decay=0.7),
    ],
    ids=repr,
)
def test_every_rule_moves_the_complement_by_its_weight_decay_alone(optimizer):
    net = tiny()
    noise, slots = net.noise(2), optimizer.rule.slots
    run = net.measure(optimizer, batch_size=2, replicas=1000, steps=12, slots=slots, rng=5, progress=False)
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, 12, mean=net.start)
    assert compare(run, exact).p_value > 1e-4
    assert run.complement_error <= run.complement_tolerance
    assert run.complement_factor == net.complement_factor(optimizer, 12)
    assert 0 < run.complement_factor < 0.99
    assert abs(run.complement_factor - 1.01 * run.complement_factor) > run.complement_tolerance  # it would show


def test_a_convolutional_network_by_products():
    x, y = digits(10, classes=(3, 8), images=True)
    net = LinearizedNetwork(cnn((1, 3, 4)), x, y, l2=0.1, **FORCE_PRODUCTS)
    noise = net.noise(2)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.8), noise, 0.5)
    exact = numerics.transient_covariance(optimizer, noise.hessian, noise, 8, mean=net.start)
    run = net.measure(optimizer, batch_size=2, replicas=400, steps=8, rng=6, progress=False)
    assert compare(run, exact).p_value > 1e-4
    assert run.complement_error <= run.complement_tolerance
    measured = net.function_covariance(run.value)
    np.testing.assert_allclose(measured, np.cov(net.predictions(run.samples[0])[..., 0].T), rtol=1e-6)


def test_cross_entropy_has_the_law_of_its_quadratic_for_small_steps_only():
    net = tiny(loss="cross_entropy")
    noise, local = net.noise(2), net.local_quadratic(2)
    small, large = (heavy_ball(lr=lr, momentum=0.8) for lr in (0.002, 0.15))
    found, remainders = [], []
    for optimizer in (small, large):
        exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
        # Started from the predicted law: after so many steps the large one has forgotten it.
        run = net.measure(optimizer, batch_size=2, replicas=1500, steps=60, start=exact, rng=7, progress=False)
        found.append(compare(run, exact))
        remainders.append(local.remainder(exact, rng=0).relative)
        assert run.complement_error <= run.complement_tolerance
    assert found[0].p_value > 1e-4
    # The law is so skewed that its p-value can claim little.
    assert found[1].relative_error > 4 * found[1].expected_relative_error
    assert found[0].relative_error < 2 * found[0].expected_relative_error
    assert remainders[0] < 0.05 < remainders[1]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "share"), [("rule", 0.1), ("torch.optim", 0.5)])
def test_a_hundred_digits_at_length(engine, share):
    net = single(100, l2=0.05)
    noise = net.noise(4)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.9), noise, share)
    exact, additive = laws(optimizer, noise)
    run = net.measure(optimizer, batch_size=4, replicas=2000, snapshots=2, engine=engine, rng=1, progress=False)
    found = compare(run, exact, mean=noise.optimum)
    assert min(found.p_value, found.mean_p_value) > 1e-4
    assert found.relative_error < 0.1
    assert compare(run, additive).p_value < 1e-12
    # Excess risk, a single number, is known better: 4.5 standard errors of it.
    deviations = run.samples - run.mean
    risks = np.einsum("sri,ij,srj->r", deviations, noise.hessian, deviations) / len(run.samples)
    exact_risk = np.trace(noise.hessian @ exact.value)
    assert abs(risks.mean() - exact_risk) < 4.5 * risks.std() / np.sqrt(run.replicas)
    assert abs(risks.mean() - np.trace(noise.hessian @ additive.value)) > 4 * risks.std() / np.sqrt(run.replicas)


@pytest.mark.slow
def test_p_values_are_spread_evenly_over_seeds():
    net = single(20)
    noise = net.noise(4)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.8), noise, 0.5)
    exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    p_values = [
        compare(
            net.measure(optimizer, batch_size=4, replicas=400, snapshots=2, rng=seed, progress=False), exact
        ).p_value
        for seed in range(60)
    ]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3


# Adversarial inputs -----------------------------------------------------


def test_attacked_inputs_have_the_exact_law_while_they_are_fixed_and_not_if_attacked_again():
    attack = partial(fgsm, domain=(0, 1))
    net = single(20, radius=0.1, attack=attack)
    clean = single(20)
    assert 0 < (net.x - clean.x).abs().max() <= 0.1 + 1e-15
    noise = net.noise(4)
    optimizer = stable_share(heavy_ball(lr=0.1, momentum=0.8), noise, 0.4)
    exact = numerics.stationary_covariance(optimizer, noise.hessian, noise)
    settings = {"batch_size": 4, "steps": 25, "start": exact, "replicas": 200, "rng": 8, "progress": False}
    fixed, again = (net.measure(optimizer, attack=which, **settings) for which in ("fixed", "again"))
    found = compare(fixed, exact, mean=noise.optimum)
    assert found.p_value > 1e-4
    assert found.mean_p_value > 1e-4
    assert compare(again, exact, mean=noise.optimum).mean_p_value < 1e-6
    assert "attacked anew" in repr(again)


def test_the_radius_is_an_axis():
    x, y = digits(20, classes=(3, 8))
    attack = partial(fgsm, domain=(0, 1))

    def problem_at(radius):
        return LinearizedNetwork(mlp((64, 16, 1)), x, y, radius=radius, attack=attack, l2=0.1).problem

    path = numerics.radius_path(problem_at, [0.0, 0.05], heavy_ball(lr=0.03, momentum=0.9), 4)
    clean, noise = single(20).noise(4), problem_at(0.05).noise(4)
    np.testing.assert_allclose(path.curvature[0], np.linalg.eigvalsh(clean.hessian)[-1])
    np.testing.assert_allclose(path.gradient_noise, [np.trace(clean.covariance()), np.trace(noise)])
    assert path.gradient_noise[0] != pytest.approx(path.gradient_noise[1], rel=0.05)


def test_attacking_again_without_any_freedom_is_not_attacking():
    """An attack that returns what it is given makes the same run, whatever path its gradients take."""
    net = single(10, radius=0.1, attack=lambda model, x, y, radius, loss: x)
    settings = {"batch_size": 2, "steps": 5, "replicas": 3, "rng": 9, "progress": False}
    fixed, again = (net.measure(sgd(lr=0.1), attack=which, **settings) for which in ("fixed", "again"))
    np.testing.assert_allclose(fixed.samples, again.samples, atol=1e-12)


def test_the_attack_is_on_the_network_as_it_is():
    x, y = digits(8)
    model = mlp((64, 5, 10))
    net = LinearizedNetwork(model, x, y, radius=0.2, attack=partial(pgd, norm=2, steps=5), loss="cross_entropy", l2=0.1)
    torch.testing.assert_close(net.x, pgd(model, x, y, 0.2, norm=2, steps=5), rtol=0, atol=1e-12)


# Bad input -----------------------------------------------------


class Mixing(torch.nn.Module):
    """Its output for one input depends on the others, without any known module that says so."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x - x.mean(dim=0))


class Noisy(Mixing):
    def forward(self, x):
        return self.layer(x + torch.rand(x.shape))


X, Y = torch.linspace(-1, 1, 12).view(3, 4).double(), torch.tensor([1.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout(0.5)), r"1 \(Dropout\) .* Call model.eval\(\)"),
        (torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)), r"0 \(BatchNorm1d\) .*model.eval\(\)"),
        (torch.nn.BatchNorm1d(4, track_running_stats=False).eval(), "track_running_stats=True"),
        (Mixing(), "depends on the rest of the batch"),
        (Noisy(), "something in it is random"),
        (torch.nn.ReLU(), "no parameter"),
        (lambda x: x, "torch.nn.Module"),
    ],
    ids=["dropout", "batch norm", "no statistics", "mixing", "noisy", "no parameters", "no module"],
)
def test_a_model_that_is_no_function_of_one_input_is_refused(model, says):
    with pytest.raises(InvalidProblemError, match=says):
        LinearizedNetwork(model, X, Y)


def test_batch_normalisation_in_evaluation_mode_is_a_function():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1), torch.nn.Dropout(0.5)).eval()
    assert LinearizedNetwork(model, X, Y).rank == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"radius": -1.0}, "radius must be a finite number, at least 0"),
        ({"l2": -1.0}, "l2"),
        ({"loss": "hinge"}, "'cross_entropy'"),
        ({"y": torch.tensor([0, 1])}, r"y must have shape \(3, 1\)"),
        ({"model": mlp((4, 2)), "y": torch.tensor([0, 1, 1])}, "one_hot"),
        ({"loss": "cross_entropy", "y": torch.tensor([0, 1, 1])}, "at least 2 outputs"),
        ({"model": mlp((4, 2)), "loss": "cross_entropy", "y": torch.tensor([0, 1, 2])}, "from 0 to 1"),
        ({"x": X * np.nan}, "not finite"),
        ({"y": Y * np.inf}, "not finite"),
        ({"rank_tolerance": 1e-20}, "rank_tolerance"),
        ({"radius": 0.1, "attack": lambda *a, **k: None}, "must return inputs"),
    ],
)
def test_bad_arguments_are_refused(options, says):
    with pytest.raises(InvalidProblemError, match=says):
        LinearizedNetwork(**{"model": mlp((4, 1)), "x": X, "y": Y, **options})


def test_what_has_no_law_is_refused_before_it_runs():
    net = single(10)
    fast = heavy_ball(lr=0.3, momentum=0.9)  # the mean would settle
    with pytest.raises(MeanSquareUnstableError):
        net.measure(fast, batch_size=1, replicas=2, progress=False)
    run = {"batch_size": 2, "replicas": 2, "progress": False}
    for options, says in (
        ({"attack": "again"}, "radius"),
        ({"attack": "never"}, "'again'"),
        ({"start": net.start}, "steps='auto'"),
        ({"engine": "jax"}, "engine"),
        ({"slots": ("x",)}, "slots"),
    ):
        with pytest.raises(InvalidProblemError, match=says):
            net.measure(sgd(lr=0.1), **run, **options)
    with pytest.raises(InvalidProblemError, match="l2 > 0"):
        tiny(l2=0.0, loss="cross_entropy").noise(1)
    with pytest.raises(InvalidProblemError, match="label_noise"):
        tiny(loss="cross_entropy").noise(1, label_noise=1.0)
    for call in (net.weights, net.coordinates):
        with pytest.raises(InvalidProblemError, match="shape"):
            call(np.ones(3))
    with pytest.raises(InvalidProblemError, match="covariance"):
        net.function_covariance(np.eye(3))
