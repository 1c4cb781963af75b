"""The error bounds of stationary laws, against 60 digits; noise as a factor; noise on flat directions."""

import warnings

import numpy as np
import pytest
import scipy.linalg

from sgdcov.errors import AccuracyWarning, NonStationaryError
from sgdcov.numerics import stationary_covariance
from sgdcov.theory import heavy_ball, nesterov, polyak, qhm, sam, sgd, sgdw
from tests.support.high_precision import relative_error, stationary_law

EPS = np.finfo(float).eps
OPTIMIZERS = (
    sgd(lr=0.1),
    sgd(lr=0.1, weight_decay=0.01),
    heavy_ball(lr=0.05, momentum=0.9),
    nesterov(lr=0.05, momentum=0.8),
    polyak(lr=0.1, momentum=0.5),
    qhm(lr=0.3, beta=0.95, nu=0.7),
    sgdw(lr=0.05, momentum=0.9, weight_decay=0.02),
    sam(lr=0.1, rho=0.2),
)


def symmetric(a):
    return (a + a.T) / 2


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def ordinary(rng, d):
    """Curvatures over two decades in a rotated basis, full-rank noise."""
    u, root = orthogonal(rng, d), rng.normal(size=(d, d))
    return symmetric((u * 10 ** -rng.uniform(0, 2, d)) @ u.T), symmetric(root @ root.T)


def hard(rng, d):
    """Curvatures over up to thirteen decades; units far apart; noise of any rank, which may follow the curvature."""
    u = orthogonal(rng, d)
    h = 10 ** -rng.uniform(0, rng.choice([3, 6, 10, 13]), d)
    root = rng.normal(size=(d, rng.integers(1, d + 1)))
    if rng.uniform() < 0.5:
        root = np.sqrt(h)[:, None] * root
    scale = 10 ** rng.uniform(-5, 0, d) if rng.uniform() < 0.4 else np.ones(d)
    hessian, noise = ((scale[:, None] * (u @ a @ u.T)) * scale for a in (np.diag(h), root @ root.T))
    return symmetric(hessian), symmetric(noise)


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        return stationary_covariance(*arguments, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_the_error_is_a_bound_and_no_more_than_a_thousand_times_too_large(optimizer):
    rng = np.random.default_rng(11)
    for _ in range(2):
        hessian, noise = ordinary(rng, 3)
        law = stationary_covariance(optimizer, hessian, noise)
        true = relative_error(law.value, stationary_law(optimizer, hessian, noise))
        assert true <= law.error <= 1e3 * max(true, EPS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[::2], ids=repr)
def test_the_error_is_a_bound_on_hard_problems(optimizer):
    rng = np.random.default_rng(12)
    for _ in range(4):
        hessian, noise = hard(rng, int(rng.integers(2, 4)))
        law = quietly(optimizer, hessian, noise)
        assert relative_error(law.value, stationary_law(optimizer, hessian, noise)) <= law.error
        if np.isfinite(law.error):
            np.linalg.cholesky(law.value + law.error * np.linalg.norm(law.value) * np.eye(len(hessian)))


@pytest.mark.parametrize("dense", [False, True])
def test_the_error_counts_the_preconditioner(dense):
    rng, optimizer = np.random.default_rng(13), heavy_ball(lr=0.01, momentum=0.8)
    hessian, noise = ordinary(rng, 3)
    u, sizes = orthogonal(rng, 3), np.array([1.0, 1e-3, 30.0])
    preconditioner = symmetric((u * sizes) @ u.T) if dense else sizes
    law = stationary_covariance(optimizer, hessian, noise, preconditioner=preconditioner)
    true = relative_error(law.value, stationary_law(optimizer, hessian, noise, preconditioner))
    assert true <= law.error <= (1e-6 if dense else 1e-11)


@pytest.mark.parametrize("method", ["doubling", "kronecker"])
def test_the_other_methods_keep_to_their_error(method):
    hessian, noise = ordinary(np.random.default_rng(14), 3)
    optimizer = heavy_ball(lr=0.05, momentum=0.9)
    law = stationary_covariance(optimizer, hessian, noise, method=method)
    assert relative_error(law.value, stationary_law(optimizer, hessian, noise)) <= law.error <= 1e-10


def test_nearly_collinear_features_are_warned_of():
    """Two features that differ in the eighth digit: the Gram matrix knows their difference to a per cent or so."""
    rng = np.random.default_rng(15)
    x = rng.normal(size=(40, 3))
    x[:, 1] = x[:, 0] + 3e-7 * rng.normal(size=40)
    gram = symmetric(x.T @ x / 40)
    with pytest.warns(AccuracyWarning, match="relative error may be|no bound"):
        law = stationary_covariance(sgd(lr=0.1), gram, gram)
    assert 1e-6 < relative_error(law.value, stationary_law(sgd(lr=0.1), gram, gram)) <= law.error
    assert law.condition > 1e9


def test_the_condition_bounds_what_small_changes_do():
    rng = np.random.default_rng(16)
    for optimizer in OPTIMIZERS[::3]:
        hessian, noise = ordinary(rng, 3)
        law = stationary_covariance(optimizer, hessian, noise)
        worst = 0.0
        for _ in range(10):
            changes = [symmetric(rng.normal(size=(3, 3))) for _ in range(2)]
            size = 1e-7
            dh, dc = (
                size * np.linalg.norm(a, 2) * e / np.linalg.norm(e, 2)
                for a, e in zip((hessian, noise), changes, strict=True)
            )
            sides = [stationary_covariance(optimizer, hessian + s * dh, noise + s * dc).value for s in (1, -1)]
            worst = max(worst, float(np.linalg.norm(sides[0] - sides[1]) / np.linalg.norm(law.value)) / (2 * size))
        assert worst <= law.condition <= 1e2 * worst


class TestSemidefinite:
    @pytest.mark.parametrize(
        "optimizer", [sgd(lr=0.1, weight_decay=1e-8), heavy_ball(lr=0.1, momentum=0.9, weight_decay=1e-8)]
    )
    def test_fewer_examples_than_parameters(self, optimizer):
        rng = np.random.default_rng(17)
        x = rng.normal(size=(20, 40))
        gradients = x * rng.normal(size=(20, 1))
        hessian, noise = symmetric(x.T @ x / 20), symmetric(gradients.T @ gradients / 20)
        law = quietly(optimizer, hessian, noise)
        size = np.linalg.norm(law.value)
        # The shift is a tenth of what an entrywise rotation left below 0 (1e-8 of the largest eigenvalue).
        np.linalg.cholesky(law.value + min(law.error, 1e-9) * size * np.eye(40))

    def test_curvatures_of_ratio_1e14(self):
        rng = np.random.default_rng(18)
        u = orthogonal(rng, 6)
        h = np.array([1e-14 * 4, 0.1, 0.2, 0.5, 0.8, 1.0])
        root = rng.normal(size=(6, 3))
        root[0] = 0.0
        law = quietly(sgd(lr=0.1), symmetric((u * h) @ u.T), symmetric(u @ root @ root.T @ u.T))
        np.linalg.cholesky(law.value + min(law.error, 1e-12) * np.linalg.norm(law.value) * np.eye(6))


class TestNoiseOnFlatDirections:
    @pytest.mark.parametrize(
        "hessian",
        [scipy.linalg.hilbert(15), np.exp(-0.5 * (np.subtract.outer(np.arange(50), np.arange(50)) / 4.9) ** 2)],
        ids=["Hilbert", "RBF"],
    )
    @pytest.mark.parametrize("preconditioned", [False, True])
    def test_a_spectrum_that_decays_through_rounding_has_no_law_under_isotropic_noise(self, hessian, preconditioned):
        d = len(hessian)
        options = {"preconditioner": np.linspace(1, 2, d)} if preconditioned else {}
        with pytest.raises(NonStationaryError, match="0 up to rounding"):
            stationary_covariance(sgd(lr=1 / d), hessian, 3.0 * np.eye(d), **options)

    def test_noise_on_a_flat_direction_is_not_excused_by_a_small_curvature_beside_it(self):
        u = orthogonal(np.random.default_rng(19), 3)
        hessian = symmetric((u * [1.0, 1e-14, 0.0]) @ u.T)
        noise = symmetric((u * [1.0, 0.0, 1e-3]) @ u.T)
        with pytest.raises(NonStationaryError, match="random walk"):
            stationary_covariance(sgd(lr=0.1), hessian, noise)

    def test_noise_that_cannot_be_told_from_that_of_a_small_curvature_is_refused(self):
        """Noise along the curvature 1e-10 only: the flat eigenvector is known to an angle of 1e-6, and not better."""
        u = orthogonal(np.random.default_rng(20), 3)
        hessian, noise = symmetric((u * [1.0, 1e-10, 0.0]) @ u.T), symmetric((u * [0.0, 1.0, 1e-12]) @ u.T)
        with pytest.raises(NonStationaryError, match="do not tell from the flat ones"):
            stationary_covariance(sgd(lr=0.1), hessian, noise)
