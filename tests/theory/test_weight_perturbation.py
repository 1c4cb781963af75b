"""Perturbed weights against all batches listed, steps taken by hand, and the law of the true nonlinear chain."""

import itertools
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest
import sympy as sp

from sgdcov.errors import ProofError
from sgdcov.theory import (
    isotropic_covariance,
    isotropic_hessian,
    isotropic_radius,
    normalised_example_loss,
    normalised_perturbation_closure,
    normalised_perturbation_covariance,
    perturbed_curvature,
    perturbed_example_weight,
    sam,
    sgd,
    stability,
    stationary_covariance,
    weight_perturbation_gain,
)

MAKERS = (weight_perturbation_gain, perturbed_curvature, perturbed_example_weight, normalised_example_loss,
          normalised_perturbation_covariance, normalised_perturbation_closure)  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_formulas_prove_themselves(make):
    formula = make()
    assert formula.prove().claims
    forged = replace(formula, identities=tuple((t, e + sp.Rational(1, 10**20)) for t, e in formula.identities))
    with pytest.raises(ProofError):
        forged.prove()


@pytest.mark.parametrize(("h", "lr", "rho"), [("1", "1/10", "1/5"), ("3", "1/4", "1/10"), ("1/100", "1", "5")])
def test_the_gain_is_the_quotient_of_the_variances(h, lr, rho):
    """Each variance is added up, step by step, in exact arithmetic: sum of (1 - lr h f)^2k (lr f)^2, f = 1 + rho h."""
    h, lr, rho = map(sp.Rational, (h, lr, rho))

    def variance(factor):
        kept = 1 - lr * h * factor
        return (lr * factor) ** 2 / (1 - kept**2)

    law = weight_perturbation_gain()
    assert law.specialise(h_i=h, lr=lr, rho=rho).expression == variance(1 + rho * h) / variance(1)
    largest = law.parts["largest_lr"].subs({law.symbols["h_i"]: h, law.symbols["rho"]: rho})
    exact = stability(sam(rho=rho)).largest_lr
    assert exact is None or sp.cancel(exact.subs(stability(sam(rho=rho)).h, h) - largest) == 0


HESSIANS = [sp.Matrix([[2, 1], [1, 1]]), sp.Matrix([[1, -1], [-1, 3]]), sp.Matrix([[3, 0], [0, 2]])]
GRADIENTS = [sp.Matrix([1, -2]), sp.Matrix([0, 3]), sp.Matrix([-1, -1])]


@pytest.mark.parametrize("replacement", [True, False])
def test_the_curvature_seen_is_that_of_all_batches(replacement):
    """Mean of (I + rho H_B)(H_B w + g_B) over every batch of two; the mean Hessian of the data is diagonal."""
    rho = sp.Rational(1, 7)
    batches = list(itertools.product(range(3), repeat=2) if replacement else itertools.permutations(range(3), 2))
    seen, drift = sp.zeros(2), sp.zeros(2, 1)
    for a, b in batches:
        hessian, gradient = (HESSIANS[a] + HESSIANS[b]) / 2, (GRADIENTS[a] + GRADIENTS[b]) / 2
        lifted = sp.eye(2) + rho * hessian
        seen += lifted * hessian / len(batches)
        drift += lifted * gradient / len(batches)
    mean = sum(HESSIANS, sp.zeros(2)) / 3
    assert mean.is_diagonal()
    square = sum((h * h for h in HESSIANS), sp.zeros(2)) / 3
    mixed = sum((h * g for h, g in zip(HESSIANS, GRADIENTS, strict=True)), sp.zeros(2, 1)) / 3
    law = perturbed_curvature(replacement=replacement)
    sizes = {"batch_size": 2, "num_examples": 3, "rho": rho}
    sizes = {role: value for role, value in sizes.items() if role in law.symbols}
    for i in range(2):
        for j in range(2):
            entry = law.specialise(h_i=mean[i, i], Q_ij=square[i, j], delta_ij=int(i == j), **sizes)
            assert entry.expression == seen[i, j]
        values = {law.symbols[role]: value for role, value in sizes.items()} | {sp.Symbol("m_i", real=True): mixed[i]}
        assert law.parts["drift_i"].subs(values) == drift[i]
    assert seen != (sp.eye(2) + rho * mean) * mean  # not the mean Hessian's: the batches' spread counts
    assert drift != sp.zeros(2, 1)


def test_with_batches_of_one_it_is_sgd_on_weighted_examples():
    rng = np.random.default_rng(1)
    x, w, y, rho = rng.normal(size=4), rng.normal(size=4), 0.7, 0.3

    def gradient(at):
        return -(y - x @ at) * x

    unnormalised = gradient(w + rho * gradient(w))
    weight = perturbed_example_weight().lambdify()(rho=rho, norm_x=float(np.linalg.norm(x)))
    np.testing.assert_allclose(unnormalised, weight * gradient(w), rtol=1e-13)

    def loss(at):
        return normalised_example_loss().lambdify()(abs_residual=abs(y - x @ at), rho=rho, norm_x=np.linalg.norm(x))

    normalised = gradient(w + rho * gradient(w) / np.linalg.norm(gradient(w)))
    steps = 1e-6 * np.eye(4)
    np.testing.assert_allclose(normalised, [(loss(w + e) - loss(w - e)) / 2e-6 for e in steps], rtol=1e-8)
    others = rng.normal(size=(2000, 4))
    worst = max((y - x @ (w + rho * v / np.linalg.norm(v))) ** 2 / 2 for v in others)
    assert 0.97 * loss(w) < worst <= loss(w)


def true_second_moment(h, c, lr, rho, order=48):
    """E w^2 of the chain w' = w - lr g - lr rho h sgn(g), g ~ N(h w, c): backward iteration in a polynomial basis.

    The mean of a smooth function after one step is smooth; integrals on either side of the kink are exact to rounding.
    """
    sigma = np.sqrt(lr * c / (h * (2 - lr * h)))
    reach = 11 * sigma
    nodes = np.cos(np.pi * (np.arange(order) + 0.5) / order)
    points, weights = np.polynomial.legendre.leggauss(120)
    g = 10 * np.sqrt(c) * (points + 1) / 2 * 1.8
    rows = np.zeros((order, order))
    for sign in (1, -1):
        density = np.exp(-((sign * g[None] - h * reach * nodes[:, None]) ** 2) / (2 * c)) / np.sqrt(2 * np.pi * c)
        after = reach * nodes[:, None] - lr * sign * (g[None] + rho * h)
        basis = np.polynomial.chebyshev.chebvander(np.clip(after / reach, -1, 1), order - 1)
        rows += np.einsum("nk,k,nkj->nj", density, weights * 9 * np.sqrt(c), basis)
    step = rows @ np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, order - 1))
    values = (reach * nodes) ** 2
    for _ in range(400):
        values = step @ values
    assert np.ptp(values) < 1e-9 * values.max()
    return values.mean()


@pytest.mark.parametrize(("h", "c", "lr"), [(1.0, 0.5, 0.3), (2.0, 1.0, 0.1), (1.0, 2.0, 0.8)])
def test_normalised_perturbation_to_first_order(h, c, lr):
    """One direction: the slope in rho of the true chain's variance is the one stated, with kappa = c0/sqrt(E g^2)."""
    law = normalised_perturbation_covariance()
    isotropic = sp.lambdify([law.symbols["h_i"], law.symbols["c_ii"], law.symbols["lr"],
                             sp.Symbol("dim", integer=True, positive=True)], law.parts["isotropic"])  # fmt: skip
    kappa = isotropic(h, c, lr, 1)
    assert kappa == pytest.approx(np.sqrt(2 / np.pi) / np.sqrt(2 * c / (2 - lr * h)), rel=1e-12)

    def stated(rho):
        return law.lambdify()(h_i=h, c_ii=c, lr=lr, rho=rho, inverse_length=kappa)

    assert true_second_moment(h, c, lr, 0.0) == pytest.approx(stated(0.0), rel=1e-9)
    slope = (stated(1.0) - stated(0.0)) / stated(0.0)
    errors = []
    for rho in (0.02, 0.01):
        measured = (true_second_moment(h, c, lr, rho) - true_second_moment(h, c, lr, -rho)) / (2 * rho) / stated(0.0)
        errors.append(abs(measured / slope - 1))
    assert errors[1] < 3e-4
    assert errors[1] < errors[0] / 3 or errors[1] < 1e-7  # of second order in rho
    # Negative control: with one over the root mean square length in place of kappa the slope is a fifth too large.
    assert abs(measured / (slope / np.sqrt(2 / np.pi)) - 1) > 0.19


@pytest.mark.parametrize(("h", "c", "lr"), [(1.0, 0.5, 0.3), (2.0, 1.0, 0.1)])
def test_the_gaussian_closure_follows_the_true_chain_far_beyond_first_order(h, c, lr):
    law, linear = normalised_perturbation_closure(), normalised_perturbation_covariance()
    cubic, push = (law.parts[name] for name in ("cubic", "a"))
    names = {s.name: s for s in (cubic.free_symbols | push.free_symbols)}
    for rho in (0.1, 0.4):
        exact = true_second_moment(h, c, lr, rho)
        values = {names["h_i"]: h, names["c_ii"]: c, names["lr"]: lr, names["rho"]: rho, names["dim"]: 1}
        polynomial = sp.Poly(cubic.subs(names["a"], push).subs(values), names["length"])
        roots = np.roots([float(a) for a in polynomial.all_coeffs()])
        (length,) = (r.real for r in roots if abs(r.imag) < 1e-12 and r.real > 0)
        closed = law.lambdify()(h_i=h, c_ii=c, length=length)
        kappa = np.sqrt(2 / np.pi) / np.sqrt(2 * c / (2 - lr * h))
        first = linear.lambdify()(h_i=h, c_ii=c, lr=lr, rho=rho, inverse_length=kappa)
        assert abs(closed / exact - 1) < 1e-3
        assert abs(first / exact - 1) > 50 * abs(closed / exact - 1)


def exact_kappa(spectrum, i):
    """E[g_i^2/|g|]/E g_i^2 as one integral: 1/|g| = 2/sqrt(pi) int exp(-s^2 |g|^2) ds."""
    def integrand(s):
        product = mp.fprod(1 / mp.sqrt(1 + 2 * s * s * g) for g in spectrum)
        return product / (1 + 2 * s * s * spectrum[i])

    return 2 / mp.sqrt(mp.pi) * mp.quad(integrand, [0, 0.2, 1, 5, mp.inf])


def test_the_mean_inverse_length_to_second_order_in_the_spread():
    law = normalised_perturbation_covariance()
    spread = law.parts["spread"]
    g, total, squares = (sp.Symbol(name, positive=True) for name in ("G_i", "T", "T2"))
    stated = sp.lambdify([g, total, squares], spread, "mpmath")
    errors, naive = [], []
    for dim in (12, 48):
        spectrum = [mp.mpf(1) + mp.mpf(k) / dim for k in range(dim)]
        exact = exact_kappa(spectrum, dim - 1)
        t, t2 = mp.fsum(spectrum), mp.fsum(a * a for a in spectrum)
        errors.append(abs(stated(spectrum[-1], t, t2) / exact - 1))
        naive.append(abs(1 / mp.sqrt(t) / exact - 1))
    assert errors[1] < errors[0] / 12  # of second order in 1/dim
    assert naive[1] > naive[0] / 6  # negative control: without the spread, of first order only
    assert errors[0] < 0.02
    dims = sp.Symbol("dim", integer=True, positive=True)
    chosen = {law.symbols["h_i"]: 1, law.symbols["lr"]: 1, law.symbols["c_ii"]: sp.Rational(1, 2)}  # E g_i^2 = 1
    for dim in (1, 2, 3, 7):
        closed = mp.mpf(str(sp.N(law.parts["isotropic"].subs(chosen).subs(dims, dim), 20)))
        assert abs(closed / exact_kappa([mp.mpf(1)] * dim, 0) - 1) < 1e-12


def test_it_composes_with_the_radius():
    """`isotropic_covariance(sam)` is the gain times plain SGD's, at the curvature of the radius."""
    point = {"shrinkage": 0.7, "std": 1.0, "weight_norm": 1.0, "label_noise": 1.0}
    point["radius"] = isotropic_radius().lambdify()(**point)
    for direction in ("radial", "transverse"):
        h = isotropic_hessian(direction).lambdify()(**point)
        gain = weight_perturbation_gain().lambdify()(h_i=h, lr=0.1, rho=0.2)
        with_it = isotropic_covariance(sam, direction).lambdify()(**point, lr=0.1, rho=0.2, batch_size=4)
        without = isotropic_covariance(sgd, direction).lambdify()(**point, lr=0.1, batch_size=4)
        assert with_it == pytest.approx(gain * without, rel=1e-12)
        assert with_it > without
    assert sp.cancel(stationary_covariance(sam(rho=0)).expression - stationary_covariance(sgd).expression) == 0
