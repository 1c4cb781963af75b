"""The local quadratic of a loss is its own where it is quadratic, and says by how much it is not where it is not."""

import contextlib

import numpy as np
import pytest
import scipy.optimize
import torch

from sgdcov import numerics
from sgdcov.errors import InvalidProblemError
from sgdcov.numerics import LeastSquares, MinibatchNoise, Quadratic
from sgdcov.theory import sgd
from sgdcov.validation import LinearizedNetwork, digits, flat_loss, local_optimum, local_quadratic, mlp
from sgdcov.validation._minimum import curvature_of
from sgdcov.validation._pointwise_loss import PointwiseLoss

EPS = np.finfo(np.float64).eps


def squared(w, x, y):
    return 0.5 * (y - x @ w) ** 2


def regression(examples=9, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.standard_normal((examples, dim)), rng.standard_normal(examples))


@pytest.mark.parametrize(("batch_size", "replacement"), [(1, True), (3, False)])
def test_least_squares_is_its_own_local_quadratic(batch_size, replacement):
    problem = regression()
    local = local_quadratic(
        squared, problem.optimum, (problem.X, problem.y), batch_size=batch_size, replacement=replacement
    )
    close = {"rtol": 0, "atol": 1000 * EPS}
    np.testing.assert_allclose(local.quadratic.hessian, problem.hessian, **close)
    np.testing.assert_allclose(local.quadratic.noise, problem.noise(batch_size, replacement), **close)
    np.testing.assert_allclose(local.value, problem.loss(problem.optimum), **close)
    np.testing.assert_allclose(local.noise_root @ local.noise_root.T, local.noise, **close)
    mine, theirs = local.minibatch_noise(), MinibatchNoise(problem, batch_size, replacement)
    spread = np.diag([1.0, 2.0, 3.0, 4.0])
    scale = np.abs(theirs.covariance(spread=spread)).max()
    np.testing.assert_allclose(
        mine.covariance(spread=spread), theirs.covariance(spread=spread), atol=1000 * EPS * scale
    )
    remainder = local.remainder(spread, samples=50, rng=0)
    assert remainder.relative < 1000 * EPS
    np.testing.assert_allclose(remainder.scale, 0.5 * np.trace(problem.hessian @ spread), rtol=1e-12)


@pytest.mark.parametrize("form", ["covariance", "root"])
def test_the_remainder_of_a_quartic_is_its_gaussian_moment(form):
    """E|c d^3| = 2 sqrt(2/pi) c s^3 and E k d^4 = 3 k s^4."""
    s, c, k = 0.3, 0.7, 0.2
    given = {"covariance": [[s**2]]} if form == "covariance" else {"root": [[s]]}
    cubic = local_quadratic(lambda w, x: w[0] ** 2 + c * w[0] ** 3 + x * w[0], [0.0], [1.0, -1.0], batch_size=1)
    found = cubic.remainder(**given, samples=20_000, rng=1)
    assert abs(found.value - 2 * np.sqrt(2 / np.pi) * c * s**3) < 4.5 * found.standard_error
    assert abs(found.bias) < 4.5 * found.bias_standard_error
    assert abs(found.value - 1.2 * 2 * np.sqrt(2 / np.pi) * c * s**3) > 4.5 * found.standard_error
    quartic = local_quadratic(lambda w, x: w[0] ** 2 + k * w[0] ** 4 + x * w[0], [0.0], [1.0, -1.0], batch_size=1)
    found = quartic.remainder(**given, samples=20_000, rng=2)
    assert abs(found.bias - 3 * k * s**4) < 4.5 * found.bias_standard_error
    np.testing.assert_allclose([found.value, found.scale], [found.bias, s**2])


def logistic_problem():
    """Ridge logistic regression at its minimum."""
    rng = np.random.default_rng(3)
    X, w = rng.standard_normal((40, 3)), np.array([1.0, -1.0, 0.5])
    y = np.sign(X @ w + rng.logistic(size=40))

    def loss(w, x, y):
        return torch.nn.functional.softplus(-y * (x @ w)) + 0.05 * (w @ w)

    def mean(w):
        s = 1 / (1 + np.exp(y * (X @ w)))
        return np.mean(np.log1p(np.exp(-y * (X @ w)))) + 0.05 * w @ w, -(y * s) @ X / 40 + 0.1 * w

    found = scipy.optimize.minimize(mean, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-12})
    return loss, found.x, X, y


def test_logistic_regression_has_its_textbook_hessian_and_noise():
    loss, w, X, y = logistic_problem()
    local = local_quadratic(loss, w, (X, y), batch_size=2, gradient_tolerance=1e-6)
    p = 1 / (1 + np.exp(y * (X @ w)))
    np.testing.assert_allclose(local.hessian, (X.T * (p * (1 - p))) @ X / 40 + 0.1 * np.eye(3), atol=1e-13)
    gradients = -(y * p)[:, None] * X + 0.1 * w
    np.testing.assert_allclose(local.noise, np.cov(gradients.T, bias=True) / 2, atol=1e-13)
    np.testing.assert_allclose(local.examples.hessian, local.hessian, atol=1e-13)
    np.testing.assert_allclose(local.examples.optimum, w, atol=1e-6)
    assert "40 examples" in repr(local)


def test_the_remainder_tells_a_narrow_law_from_a_wide_one():
    loss, w, X, y = logistic_problem()
    local = local_quadratic(loss, w, (X, y), batch_size=2)
    narrow, wide = (
        local.remainder(numerics.stationary_covariance(sgd(lr=lr), local.hessian, local.noise), rng=0)
        for lr in (0.01, 1.0)
    )
    # The cubic part is as the standard deviation to the quadratic one, which is as the root of the learning rate.
    assert 5 * narrow.relative < wide.relative
    assert "tr(H Sigma)/2" in str(wide)


def test_a_trained_network_has_a_local_quadratic():
    x, y = digits(20, classes=(1, 4, 7))
    loss, start = flat_loss(mlp((64, 2, 3)), "cross_entropy", l2=0.02)
    w = local_optimum(loss, start, (x, y))
    local = local_quadratic(loss, w, (x, y), batch_size=4)
    assert local.gradient_norm <= 0.1 * local.allowed_gradient_norm
    assert np.linalg.eigvalsh(local.hessian)[0] > -1e-10
    law = numerics.stationary_covariance(sgd(lr=0.05), local.hessian, local.noise)
    found = local.remainder(law, samples=200, rng=0)
    assert 0 < found.relative < 0.5
    with pytest.raises(InvalidProblemError, match="no optimum"):
        local_quadratic(loss, w + 1e-3, (x, y), batch_size=4)


def test_an_optimum_is_found_where_there_is_one():
    loss, w, X, y = logistic_problem()
    np.testing.assert_allclose(local_optimum(loss, np.full(3, 4.0), (X, y)), w, atol=1e-6)
    # A saddle at 0, minima at +-1: the gradient at the start is 0.
    found = local_optimum(lambda w, x: 0.25 * (w[0] ** 2 - 1) ** 2 + 1e-3 * x * w[0], [0.0], [-1.0, 1.0])
    np.testing.assert_allclose(np.abs(found), [1.0], atol=1e-6)
    with pytest.raises(InvalidProblemError, match="no minimum after 5 Newton steps"):
        local_optimum(lambda w, x: torch.nn.functional.softplus(-x * w[0]), [0.0], [1.0, 2.0], steps=5)
    with pytest.raises(InvalidProblemError, match="steps"):
        local_optimum(loss, w, (X, y), steps=0)


def test_a_network_at_its_own_fit_by_matrix_and_by_products():
    x, _ = digits(6)
    model = mlp((64, 2, 1))
    loss, w = flat_loss(model, "squared")
    rng = np.random.default_rng(0)
    # Labels in pairs about the outputs on repeated inputs: the weights it has are optimal, with residuals.
    noise = torch.tensor(rng.standard_normal(6))
    outputs = model(x).detach().squeeze(1)
    data = (x.repeat(2, 1), torch.cat([outputs + 0.01 * noise, outputs - 0.01 * noise]))
    matrix = local_quadratic(loss, w, data, batch_size=3)
    products = local_quadratic(loss, w, data, batch_size=3, hessian="products")
    v = rng.standard_normal((len(w), 2))
    np.testing.assert_allclose(products.hessian @ v, matrix.hessian @ v, atol=1e-12)
    np.testing.assert_allclose(products.hessian @ v[:, 0], matrix.hessian @ v[:, 0], atol=1e-12)
    root = 0.01 * v
    found = [local.remainder(root=root, samples=20, rng=1) for local in (matrix, products)]
    np.testing.assert_allclose(found[0].value, found[1].value, rtol=1e-9)
    assert (matrix.explicit, products.explicit) == (True, False)
    np.testing.assert_allclose(products.noise, matrix.noise)
    with pytest.raises(InvalidProblemError, match=r"held as products, .* 133 x 133 fits. Give hessian='explicit'"):
        _ = products.quadratic


def test_products_with_the_hessian_are_those_of_the_whole_matrix():
    x, y = digits(8)
    model = mlp((64, 3, 10))
    loss, w = flat_loss(model, "cross_entropy")
    hessian = PointwiseLoss.of(loss, w, (x, y), "cpu").hessian_operator()  # curvature anywhere: this is no optimum
    v = np.random.default_rng(0).standard_normal(len(w))
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def mean_loss(flat):  # of PyTorch's own module, by its own loss, on all examples at once
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return torch.nn.CrossEntropyLoss()(torch.func.functional_call(model, values, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    whole = torch.autograd.functional.hessian(mean_loss, flat)
    np.testing.assert_allclose(hessian @ v, whole.numpy() @ v, atol=1e-12)


def test_the_linearised_softmax_has_the_quadratic_that_differentiation_finds():
    x, y = digits(20, classes=(1, 4, 7))
    net = LinearizedNetwork(mlp((64, 6, 3)), x, y, loss="cross_entropy", l2=0.05)
    local, noise = net.local_quadratic(2, False), net.noise(2, False)
    # Newton's method stops at a gradient of 1e-10.
    np.testing.assert_allclose(local.hessian, noise.hessian, atol=1e-8)
    np.testing.assert_allclose(local.noise, noise.covariance(), atol=1e-8)
    spread = np.eye(net.rank)
    np.testing.assert_allclose(local.minibatch_noise().multiplicative(spread), noise.multiplicative(spread), atol=1e-7)


def rotated(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (basis * values) @ basis.T


@pytest.mark.parametrize("hessian", ["explicit", "products"])
@pytest.mark.parametrize("worst", [-1.0, -1e-3, -1e-6], ids=["deep", "shallow", "slight"])
def test_a_saddle_is_no_minimum_for_matrices_and_products_alike(hessian, worst):
    curvature = torch.tensor(rotated(np.append(np.geomspace(1e-3, 1.0, 149), worst)))

    def loss(w, x):
        return 0.5 * w @ curvature @ w + x * w[0]

    arguments = {"optimum": np.zeros(150), "data": [-1.0, 1.0], "batch_size": 1, "hessian": hessian}
    with pytest.raises(InvalidProblemError, match="no minimum: the smallest eigenvalue of the Hessian is -"):
        local_quadratic(loss, **arguments)
    with pytest.raises(InvalidProblemError, match="no minimum"):  # and no maximum is one
        local_quadratic(lambda w, x: -0.5 * w @ w + x * w[0], **arguments)
    flat = local_quadratic(lambda w, x: 0.5 * (w[:9] @ w[:9]) + x * w[0], **arguments)
    assert abs(flat.smallest_eigenvalue) < 1e-12


def test_a_hessian_is_repaired_within_the_rounding_of_its_derivatives_only():
    exact = rotated(np.append(np.linspace(0.1, 1.0, 20), 0.0))
    rounded = rotated(np.append(np.linspace(0.1, 1.0, 20), -3e-13))
    rounded[0, 1] += 1e-13  # derivatives rounded so much explain it
    found = curvature_of(rounded)
    assert found.smallest == pytest.approx(-3e-13, rel=0.3)
    np.testing.assert_allclose(found.hessian, exact, atol=1e-12)
    Quadratic(found.hessian, np.eye(21), np.zeros(21))  # numerics takes what is accepted
    with pytest.raises(InvalidProblemError, match="positive semidefinite"):
        Quadratic(rotated(np.append(np.linspace(0.1, 1.0, 20), -3e-13)), np.eye(21), np.zeros(21))
    beyond = curvature_of(rotated(np.append(np.linspace(0.1, 1.0, 20), -3e-13)))
    assert not beyond.minimal


def test_what_is_accepted_as_a_minimum_numerics_accepts():
    """A network without weight decay, whose flat directions have curvatures of either sign."""
    torch.manual_seed(0)
    x, y = torch.randn(24, 4, dtype=torch.float64), torch.randint(0, 3, (24,))
    found = []
    for seed in range(3):
        loss, start = flat_loss(mlp((4, 3, 3), rng=seed), "cross_entropy")
        with contextlib.suppress(InvalidProblemError):  # some have none
            found.append(local_quadratic(loss, local_optimum(loss, start, (x, y), steps=30), (x, y), batch_size=4))
    assert found
    for local in found:
        Quadratic(local.hessian, local.noise, local.optimum)


def test_the_remainder_of_the_noise_is_its_gaussian_moment():
    """Gradients h w + x (1 + a w + b w^2) at x = -1, 1: a spread of (1 + a w + b w^2)^2, of quadratics (1 + a w)^2."""
    a, b, s = 0.6, 0.4, 0.5

    def loss(w, x):
        return w[0] ** 2 + x * (w[0] + a * w[0] ** 2 / 2 + b * w[0] ** 3 / 3)

    found = local_quadratic(loss, [0.0], [-1.0, 1.0], batch_size=1).remainder([[s**2]], rng=3)
    real, own = 1 + (a**2 + 2 * b) * s**2 + 3 * b**2 * s**4, 1 + a**2 * s**2
    assert abs(found.noise - (real - 1)) < 4.5 * found.noise_standard_error
    assert abs(found.own_noise - (real / own - 1)) < 4.5 * found.own_noise_standard_error
    assert min(real - 1, real / own - 1) > 0.1
    # Where examples are quadratic there is none.
    exact = local_quadratic(lambda w, x: (1 + x / 2) * w[0] ** 2 + x * w[0], [0.0], [-1.0, 1.0], batch_size=1)
    assert abs(exact.remainder([[s**2]], rng=0).own_noise) < 100 * EPS
    assert exact.remainder([[s**2]], rng=0).noise > 0.01


def test_a_minimum_on_kinks_is_called_that():
    torch.manual_seed(1)
    x, y = torch.randn(24, 4, dtype=torch.float64), torch.randint(0, 3, (24,))
    loss, start = flat_loss(mlp((4, 3, 3), activation="relu"), "cross_entropy", l2=0.01)
    with pytest.raises(InvalidProblemError, match=r"examples jump right there: .* Take a smooth activation") as refused:
        local_optimum(loss, start, (x, y), steps=20)
    assert "weight decay" not in str(refused.value)


def test_gradients_that_take_too_much_memory_are_refused_before_they_are_taken():
    problem = regression()
    with pytest.raises(InvalidProblemError, match=r"9 examples by 4 weights take 288 bytes, and 287 are allowed"):
        local_quadratic(squared, problem.optimum, (problem.X, problem.y), batch_size=1, gradient_bytes=287)


def kinked(w, x):
    return (w[0] - x).abs() + 0.5 * w[0] ** 2


@pytest.mark.parametrize(
    ("loss", "optimum", "data", "says"),
    [
        (lambda w, x: (w[0] - x) ** 2, [1.0], [-1.0, 1.0], r"no optimum: .* norm 2, .* lower the loss by about 1\."),
        (lambda w, x: w[0] ** 2 - w[1] ** 2 + x * w[0], [0.0, 0.0], [-1.0, 1.0], "smallest eigenvalue .* is -2"),
        (lambda w, x: torch.log(x + w[0]), [0.0], [1.0, -1.0, 2.0], "loss is not finite for 1 of 3 .* number 1"),
        (lambda w, x: (x * w[0] ** 2).sqrt(), [0.0], [1.0, 2.0], "gradient is not finite for 2 of 2"),
        (kinked, [0.0], [-1.0, 0.0, 1.0], "for 1 of 3 examples its slope jumps"),
        (lambda w, x: (w[0] > x).double(), [0.5], [0.0, 1.0], "gradient of every example is exactly 0"),
        (lambda w, x: torch.tensor(float(w[0].item() + x.item())), [0.5], [0.0, 1.0], "cannot be differentiated"),
        (lambda w, x: w * x, [0.5, 0.5], [0.0, 1.0], r"scalar tensor for ONE example, got shape \(2,\)"),
        (lambda w, x: w[0] * x, [np.nan], [0.0, 1.0], "point must be finite"),
        (lambda w, x: w[0] * x, [1.0], ([0.0, 1.0], [1.0]), "one entry per example"),
    ],
    ids=["slope", "saddle", "nan", "inf gradient", "kink", "step", "item", "vector", "point", "data"],
)
def test_what_has_no_local_quadratic_is_refused_with_the_reason(loss, optimum, data, says):
    with pytest.raises(InvalidProblemError, match=says):
        local_quadratic(loss, optimum, data, batch_size=1)


def test_a_kink_elsewhere_is_none_of_its_business():
    local = local_quadratic(kinked, [0.0], [-1.0, -0.001, 0.001, 1.0], batch_size=1)
    np.testing.assert_allclose(local.hessian, [[1.0]])


def test_bad_arguments_are_refused():
    problem = regression()
    data = (problem.X, problem.y)
    for batch_size in (0, 10, True):
        with pytest.raises(InvalidProblemError, match="batch_size"):
            local_quadratic(squared, problem.optimum, data, batch_size=batch_size)
    with pytest.raises(InvalidProblemError, match="'products'"):
        local_quadratic(squared, problem.optimum, data, batch_size=1, hessian="dense")
    local = local_quadratic(squared, problem.optimum, data, batch_size=1)
    for arguments in ({}, {"covariance": np.eye(3)}, {"root": np.ones(4)}, {"covariance": np.eye(4), "samples": 1}):
        with pytest.raises(InvalidProblemError):
            local.remainder(**arguments)
    with pytest.raises(InvalidProblemError, match="eval"):
        flat_loss(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
