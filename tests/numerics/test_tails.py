"""Which moments exist: exact roots, operators against enumeration, estimates against what is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sgdcov.errors import HyperparameterError, InvalidProblemError, NonStationaryError
from sgdcov.numerics import (
    DropoutNoise,
    GaussianMinibatchNoise,
    InputNoise,
    LeastSquares,
    MinibatchNoise,
    QuadraticExamples,
    mean_square_stability,
    moment_growth,
    tail_index,
)
from sgdcov.numerics._growth import circle_growth, fourth_growth, planar, scalar_growth
from sgdcov.numerics._products import Products
from sgdcov.theory import heavy_ball, nesterov, sam, sgd

EPS = np.finfo(np.float64).eps


def gaussian(batch_size=1, dim=1, variance=1.0):
    return GaussianMinibatchNoise(variance * np.eye(dim), label_noise=1.0, batch_size=batch_size)


def regression(num_examples=6, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(num_examples, dim)), rng.normal(size=num_examples))


def test_the_index_of_one_gaussian_input_has_known_values():
    assert tail_index(sgd(lr=2 / 3), gaussian()).value == pytest.approx(2.0, abs=1e-11)
    fourth = np.roots([105.0, -60.0, 18.0, -4.0])
    lr = float(fourth[np.abs(fourth.imag) < 1e-9].real[0])  # E (1 - lr x^2)^4 = 1
    found = tail_index(sgd(lr=lr), gaussian())
    assert found.value == pytest.approx(4.0, abs=1e-11)
    assert abs(found.value - 4.0) <= found.error + 1e-12
    assert (found.method, float(found)) == ("quadrature", found.value)


@pytest.mark.parametrize(
    ("batch_size", "root"), [(1, 1.09082647), (2, 2.0), (4, 3.50468361), (8, 6.20230077), (16, 11.41944380)]
)
def test_kesten_roots_where_lr_times_the_curvature_is_one(batch_size, root):
    assert tail_index(sgd(lr=1.0), gaussian(batch_size)).value == pytest.approx(root, abs=1e-8)


def test_the_quadrature_has_the_moments_of_the_chi_squared_law():
    # |A e|^2 = (1 - c X)^2 + c^2 X Y: its mean and mean square are polynomials
    lr, variance, batch, dim = 0.3, 1.5, 3, 4
    c, growth = lr * variance / batch, scalar_growth(Products(sgd(lr=lr), gaussian(batch, dim, variance)))
    x = [math.prod(batch + 2 * i for i in range(k)) for k in range(5)]
    y = [math.prod(dim - 1 + 2 * i for i in range(k)) for k in range(3)]
    second = 1 - 2 * c * x[1] + c**2 * (x[2] + x[1] * y[1])
    fourth = (
        (1 - 4 * c * x[1] + 6 * c**2 * x[2] - 4 * c**3 * x[3] + c**4 * x[4])
        + 2 * c**2 * y[1] * (x[1] - 2 * c * x[2] + c**2 * x[3])
        + c**4 * x[2] * y[2]
    )
    assert math.exp(growth.log_moment(2.0)) == pytest.approx(second, rel=1e-12)
    assert math.exp(growth.log_moment(4.0)) == pytest.approx(fourth, rel=1e-12)
    assert growth.log_moment(0.0) == pytest.approx(0.0, abs=1e-13)


def kronecker(products, order):
    """The spectral radius of the mean of the factors' Kronecker powers, over all batches."""
    atoms = products.batches
    powers = []
    for a in products.matrices(atoms.hessians):
        power = np.eye(1)
        for _ in range(order):
            power = np.kron(power, a)
        powers.append(power)
    return float(np.log(np.max(np.abs(np.linalg.eigvals(np.tensordot(atoms.chances, powers, 1))))))


BATCHED = [
    (optimizer, MinibatchNoise(regression(), size, replacement))
    for optimizer in (sgd(lr=0.6), sgd(lr=0.3, weight_decay=0.2), heavy_ball(lr=0.3, momentum=0.5))
    for size, replacement in ((1, True), (2, True), (2, False), (3, False), (5, True))
]


@pytest.mark.parametrize(("optimizer", "noise"), BATCHED, ids=repr)
def test_fourth_moments_are_those_of_all_batches(optimizer, noise):
    products = Products(optimizer, noise)
    assert fourth_growth(products) == pytest.approx(kronecker(products, 4), abs=1e-13)
    assert moment_growth(optimizer, noise, 4).method == "fourth moments"


@pytest.mark.parametrize(
    "noise",
    [
        DropoutNoise(regression(3), 0.3, 2),
        InputNoise(regression(3), 0.5, 1),
        MinibatchNoise(
            QuadraticExamples([[[1.0, 0.3], [0.3, 2.0]], [[0.5, -0.5], [-0.5, 1.0]]], [[1.0, 0.0], [-1.0, 0.0]]), 2
        ),
        gaussian(2, dim=2),
    ],
    ids=repr,
)
def test_the_draws_have_the_second_moments_of_the_noise(noise):
    """The mean and mean square of the factors, from the atoms, give the spectral radius that mean_square has."""
    products = Products(sgd(lr=0.3), noise)
    A, chances = products.matrices(products.draws.hessians), products.draws.chances
    mean = np.tensordot(chances, A, 1)
    square = np.einsum("k,kab,kcd->acbd", chances, A, A).reshape(4, 4)
    square = square / noise.batch_size + (1 - 1 / noise.batch_size) * np.kron(mean, mean)
    radius = np.max(np.abs(np.linalg.eigvals(square)))
    assert mean_square_stability(sgd(lr=0.3), noise).spectral_radius == pytest.approx(radius, rel=1e-12)


def test_isotropic_gaussian_data_agree_between_the_tensors_and_the_quadrature():
    for size, lr in ((1, 0.1), (3, 0.3)):
        products = Products(sgd(lr=lr), gaussian(size, dim=3, variance=2.0))
        assert fourth_growth(products) == pytest.approx(scalar_growth(products).log_moment(4.0), abs=1e-10)


PLANAR = [
    (sgd(lr=0.9), MinibatchNoise(regression(), 1)),
    (sgd(lr=0.9), MinibatchNoise(regression(), 2, replacement=False)),
    (heavy_ball(lr=0.3, momentum=0.5), gaussian()),
    (nesterov(lr=0.2, momentum=0.6), gaussian(2)),
]


@pytest.mark.parametrize(("optimizer", "noise"), PLANAR, ids=repr)
def test_the_operator_on_directions_has_the_even_moments(optimizer, noise):
    atoms = planar(Products(optimizer, noise))
    second = mean_square_stability(optimizer, noise).spectral_radius
    assert circle_growth(atoms, 2.0, 512) == pytest.approx(math.log(second), abs=1e-12)
    assert circle_growth(atoms, 4.0, 512) == pytest.approx(fourth_growth(Products(optimizer, noise)), abs=1e-12)


def test_an_odd_order_agrees_with_long_products():
    """k(3) of momentum in one dimension, against plain averages of the products' own norms."""
    optimizer, noise = heavy_ball(lr=0.1, momentum=0.5), gaussian()
    rng = np.random.default_rng(0)
    products = Products(optimizer, noise)
    states = np.tile([[1.0], [0.0]], (400_000, 1, 1))
    sizes = []
    for step in range(1, 9):
        states = products.step(states, noise.draw(rng, len(states)))
        if step in (4, 8):
            cubes = np.linalg.norm(states[:, :, 0], axis=1) ** 3
            sizes.append((cubes.mean(), cubes.std() / math.sqrt(len(cubes)) / cubes.mean()))
    atoms = planar(products)
    measured = (math.log(sizes[1][0]) - math.log(sizes[0][0])) / 4
    # Eight steps are not yet the limit; the operator's own powers say how far.
    slack = 5 * math.hypot(sizes[0][1], sizes[1][1]) / 4 + 0.02
    assert circle_growth(atoms, 3.0, 512) == pytest.approx(measured, abs=slack)


@pytest.mark.parametrize(("optimizer", "noise"), PLANAR[::2], ids=repr)
def test_the_covariance_exists_exactly_where_the_index_is_above_two(optimizer, noise):
    edge = mean_square_stability(optimizer, noise).largest_lr
    for factor in (0.98, 1.02):
        at = optimizer.replace(lr=factor * edge)
        index = tail_index(at, noise)
        assert (index.value > 2.0) is mean_square_stability(at, noise).stable
        assert moment_growth(at, noise, 2).verdict == ("exists" if factor < 1 else "does not exist")
    assert tail_index(optimizer.replace(lr=edge), noise).value == pytest.approx(2.0, abs=1e-7)


def test_finite_data_in_one_dimension_are_summed_over_all_batches():
    x = np.array([0.5, 1.0, 2.0])
    noise = MinibatchNoise(LeastSquares(x[:, None], [1.0, 0.0, -1.0]), 2, replacement=False)
    lr = 0.9
    index = tail_index(sgd(lr=lr), noise)
    h = np.array([x[0] ** 2 + x[1] ** 2, x[0] ** 2 + x[2] ** 2, x[1] ** 2 + x[2] ** 2]) / 2
    assert index.method == "batches"
    assert np.mean(np.abs(1 - lr * h) ** index.value) == pytest.approx(1.0, abs=1e-11)
    rho = 0.1
    steep = tail_index(sam(lr=lr, rho=rho), noise)
    assert np.mean(np.abs(1 - lr * h * (1 + rho * h)) ** steep.value) == pytest.approx(1.0, abs=1e-11)
    assert steep.value < index.value


@pytest.mark.parametrize("noise", [MinibatchNoise(regression(), 2), DropoutNoise(regression(), 0.2, 3)], ids=repr)
def test_where_no_batch_stretches_every_moment_exists(noise):
    lr = 1.9 / Products(sgd(lr=1.0), noise).largest_curvature
    index = tail_index(sgd(lr=lr), noise)
    assert (index.value, index.error, index.method) == (math.inf, 0.0, "bounded")
    assert moment_growth(sgd(lr=lr), noise, 7.5, method="particles", steps=20, particles=50).verdict == "exists"


def test_gaussian_inputs_are_never_bounded_however_far_from_the_edge():
    for noise in (gaussian(dim=2), gaussian()):
        index = tail_index(sgd(lr=1e-3), noise)
        assert (index.value, index.error) == (64.0, math.inf)
        assert "larger" in index.status
        assert moment_growth(sgd(lr=1e-3), noise, 64).status == "k(64) is below 1"


def test_a_flat_direction_plays_no_part():
    rng = np.random.default_rng(1)
    x = rng.normal(size=8)
    inclined = LeastSquares(np.outer(x, [0.6, 0.8]), rng.normal(size=8))
    straight = LeastSquares(x[:, None], inclined.y)
    for size in (1, 2):
        pair = [moment_growth(sgd(lr=0.8), MinibatchNoise(p, size), 3.0).log for p in (inclined, straight)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-10)


ESTIMATED = [
    (sgd(lr=0.9), MinibatchNoise(regression(), 2, replacement=False), 3.0),
    (heavy_ball(lr=0.3, momentum=0.5), MinibatchNoise(regression(), 2), 4.0),
    (sgd(lr=0.1), gaussian(1, dim=3, variance=2.0), 4.0),
    (sgd(lr=0.3), gaussian(), 4.0),
]


@pytest.mark.parametrize(("optimizer", "noise", "order"), ESTIMATED, ids=repr)
def test_particles_agree_with_what_is_exact(optimizer, noise, order):
    exact = moment_growth(optimizer, noise, order, method="exact")
    found = moment_growth(optimizer, noise, order, method="particles", steps=300)
    assert found.method == "particles"
    assert abs(found.log - exact.log) <= 4 * found.standard_error
    assert found.standard_error < 0.1
    assert found.verdict in (exact.verdict, "undecided")


def slow_and_steep(stretch):
    """Curvatures 1 and 0.001, and one example in twenty that stretches more or less."""
    rng = np.random.default_rng(3)
    X = rng.choice([-1.0, 1.0], size=(20, 2)) * [1.0, 0.03]
    X[0, 0] = stretch
    return MinibatchNoise(LeastSquares(X, rng.normal(size=20)), batch_size=1)


@pytest.mark.parametrize(("stretch", "verdict"), [(1.6, "exists"), (2.6, "does not exist")])
def test_the_sign_is_resolved_although_the_slowest_direction_decides(stretch, verdict):
    noise, optimizer = slow_and_steep(stretch), sgd(lr=0.5)
    exact = moment_growth(optimizer, noise, 4, method="exact")
    assert exact.verdict == verdict
    found = moment_growth(optimizer, noise, 4, method="particles", particles=400, steps=1500, repetitions=4)
    assert found.verdict == verdict
    if verdict == "exists":
        assert -0.01 < exact.log < 0
        assert found.log == pytest.approx(exact.log, abs=5 * found.standard_error)


def test_estimates_repeat():
    noise, options = slow_and_steep(2.0), {"method": "particles", "steps": 50, "particles": 50}
    first = moment_growth(sgd(lr=0.5), noise, 3, rng=5, **options)
    assert first == moment_growth(sgd(lr=0.5), noise, 3, rng=5, **options)
    assert first.log != moment_growth(sgd(lr=0.5), noise, 3, rng=6, **options).log
    assert first.error == pytest.approx(first.value * first.standard_error)


def test_added_noise_multiplies_nothing():
    noise = MinibatchNoise(regression(), 2)
    plain, added = (moment_growth(sgd(lr=0.6), n, 4).log for n in (noise, noise + np.eye(2)))
    assert plain == pytest.approx(added, rel=1e3 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "noise"), [PLANAR[0], PLANAR[2]], ids=repr)
def test_the_estimated_index_is_the_exact_one(optimizer, noise):
    exact = tail_index(optimizer, noise, method="exact")
    found = tail_index(optimizer, noise, method="particles")
    assert abs(found.value - exact.value) <= 4 * found.error
    assert found.error < 0.3 * found.value


def test_ten_directions_take_few_whole_populations_and_tell_of_each():
    rng = np.random.default_rng(0)
    noise = MinibatchNoise(LeastSquares(rng.normal(size=(50, 10)), rng.normal(size=50)), 4)
    lines = []
    options = {"particles": 64, "steps": 60, "repetitions": 4}
    tail_index(sgd(lr=0.25), noise, progress=lines.append, **options)
    whole = [line for line in lines if "4 populations of 64 for 60 steps" in line]
    assert 1 <= len(whole) <= 7
    assert 3 <= len(lines) <= 20
    assert all(" s" in line for line in lines[1:])  # and how long it may take


def test_moments_made_by_inputs_that_no_population_meets_are_not_claimed():
    """Isotropic Gaussian inputs, where k is known: 16th moments exist by far, say populations, and they do not."""
    noise = GaussianMinibatchNoise(np.eye(3), label_noise=1.0, batch_size=1)
    options = {"method": "particles", "particles": 200, "steps": 50, "repetitions": 4}
    assert moment_growth(sgd(lr=0.125), noise, 20).verdict == "does not exist"
    seen = moment_growth(sgd(lr=0.125), noise, 20, **options)
    assert seen.log < 0.0
    assert seen.verdict == "undecided"
    assert seen.standard_error == np.inf
    index = tail_index(sgd(lr=0.125), noise, **options)
    assert float(index) < float(tail_index(sgd(lr=0.125), noise))
    assert index.error == np.inf
    assert "so rare" in index.status


def test_an_example_too_rare_for_a_population_still_counts():
    """One steep example among 2,000: k(s) is at least p |1 - lr x^2|^s, whatever was drawn."""
    X = np.full((2000, 3), 0.1) + 0.1 * np.eye(3)[np.arange(2000) % 3]
    X[0] = [8.0, 0.0, 0.0]
    noise = MinibatchNoise(LeastSquares(X, np.zeros(2000)), 1)
    found = moment_growth(sgd(lr=0.05), noise, 20.0, method="particles", particles=10, steps=20, repetitions=2)
    assert found.log >= -np.log(2000) + 20 * np.log(0.05 * 64 - 1) - 1e-12


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tail_index(sgd(lr=8.0), gaussian()), NonStationaryError, "has no stationary law"),
        (lambda: tail_index(sgd(lr=0.1), np.eye(2)), InvalidProblemError, "noise must be a GradientNoise"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), 0), InvalidProblemError, "order must be positive"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), 65.0), InvalidProblemError, r"\[0, 64\], got 65"),
        (lambda: moment_growth(sgd(), gaussian(), 2), HyperparameterError, "lr"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), 2, method="fast"), InvalidProblemError, "must be one of"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), 2, particles=2), InvalidProblemError, "particles must be"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), 2, rng=True), InvalidProblemError, "rng"),
        (lambda: moment_growth(sgd(lr=0.1), gaussian(), "2"), InvalidProblemError, "order must be"),
        (lambda: tail_index(sgd(lr=0.1), gaussian(), progress=1), InvalidProblemError, "progress must be"),
        (
            lambda: moment_growth(sgd(lr=0.1), MinibatchNoise(regression(9, 3), 1), 3.0, method="exact"),
            InvalidProblemError,
            "is not known exactly",
        ),
        (
            lambda: tail_index(sgd(lr=0.1), MinibatchNoise(LeastSquares([[0.0]], [1.0]), 1)),
            NonStationaryError,
            "all directions are flat",
        ),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
