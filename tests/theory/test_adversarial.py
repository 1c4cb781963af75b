"""Adversarial losses of one example: proved, and equal to corners of the ball, differences and listed batches."""

import functools
import itertools
from dataclasses import replace

import mpmath as mp
import pytest
import sympy as sp

from sgdcov.errors import InvalidProblemError, ProofError
from sgdcov.theory import (
    adversarial_gradient,
    adversarial_hessian,
    adversarial_loss,
    adversarial_noise,
    dual_norm_curvature,
    shifted_least_squares,
    worst_case_shift,
)

INF = float("inf")
LOSSES = ("squared", "logistic", "hinge")
NORMS = (2, INF, 1, sp.Rational(3, 2), 3, "p")
NUMBERED = (2, INF, 1, sp.Rational(3, 2), 3)
RADIUS = sp.Rational(3, 10)
#: Exact data: inputs, labels (real for least squares, signs otherwise) and weights, no residual or margin at a kink.
X = sp.Matrix([[2, -1, 3], [-1, 4, 1], [1, 1, -2], [3, 0, 1]]) / 2
Y = {"squared": (3, -2, 4, sp.Rational(1, 2)), "logistic": (1, -1, 1, -1), "hinge": (1, -1, 1, -1)}
W = sp.Matrix([2, -3, 1]) / 6


def mpf(value):
    exact = sp.Rational(value)
    return mp.mpf(exact.p) / exact.q


def dual_of(norm):
    return sp.oo if norm == 1 else sp.Integer(1) if norm == INF else sp.Rational(norm) / (sp.Rational(norm) - 1)


def dual_norm(w, norm):
    q = dual_of(norm)
    return max(abs(a) for a in w) if q == sp.oo else mp.fsum(abs(a) ** mpf(q) for a in w) ** (1 / mpf(q))


def attacked(loss, norm, x, y, w, radius):
    """The loss of an example written out by hand, in mpmath."""
    product = mp.fdot(x, w)
    lost = radius * dual_norm(w, norm)
    if loss == "squared":
        return (abs(y - product) + lost) ** 2 / 2
    margin = y * product - lost
    return mp.log(1 + mp.exp(-margin)) if loss == "logistic" else max(mp.mpf(0), 1 - margin)


def values(loss, norm, n, i, j, radius):
    """What the symbols of the formulas are at an example and two entries."""
    x, w = [mpf(a) for a in X.row(n)], [mpf(a) for a in W]
    y = mpf(Y[loss][n])
    product = mp.fdot(x, w)
    size, margin = dual_norm(w, norm), y * product
    sign = [mp.sign(a) for a in w]
    if norm == 1:
        top = max(range(3), key=lambda k: abs(w[k]))
        sign = [s if k == top else mp.mpf(0) for k, s in enumerate(sign)]
    return {
        "x_i": x[i], "x_j": x[j], "w_i": w[i], "w_j": w[j], "abs_w_i": abs(w[i]), "abs_w_j": abs(w[j]),
        "sign_w_i": sign[i], "sign_w_j": sign[j], "delta_ij": mp.mpf(int(i == j)), "norm_w": size,
        "radius": mpf(radius), "abs_residual": abs(y - product), "sign": mp.sign(y - product), "margin": margin, "y": y,
        "active": mp.mpf(int(margin - mpf(radius) * size < 1)),
    }  # fmt: skip


def evaluate(formula, given):
    with_roles = {role: given[role] for role in formula.symbols}
    return formula.lambdify("mpmath")(**with_roles)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_formulas_prove_themselves(loss, norm):
    for make in (adversarial_loss, adversarial_gradient, adversarial_hessian, adversarial_noise):
        formula = make(loss, norm)
        assert formula.prove().claims
        assert formula.explicit().free_symbols == set(formula.symbols.values())


def test_wrong_formulas_do_not_prove_themselves():
    for formula, wrong in (
        (adversarial_hessian("squared"), lambda f: f.parts["rank_one"]),  # without the curvature of the norm
        (adversarial_hessian("logistic"), lambda f: f.parts["norm"]),
        (adversarial_gradient("squared"), lambda f: -f.expression),
    ):
        off = formula.expression - wrong(formula)
        forged = replace(formula, identities=tuple((text, e + off) for text, e in formula.identities))
        with pytest.raises(ProofError):
            forged.prove()
    curved = dual_norm_curvature(2)
    with pytest.raises(ProofError):
        replace(curved, equation=sp.Eq(curved.equation.lhs, curved.expression * 2, evaluate=False)).prove()


@pytest.mark.parametrize("dim", [1, 3, 6])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_linf_maximum_is_that_over_the_corners(loss, dim):
    """A convex loss is largest at a corner of the cube: list all 2^d of them, in exact arithmetic."""
    x = [sp.Rational((-1) ** k * (k + 2), k + 3) for k in range(dim)]
    w = [sp.Rational((-2) ** k + 3, k + 5) for k in range(dim)]
    y = sp.Rational(7, 4) if loss == "squared" else sp.Integer(-1)
    product, size = sum(a * b for a, b in zip(x, w, strict=True)), sum(abs(b) for b in w)
    reached = []
    for corner in itertools.product((-1, 1), repeat=dim):
        moved = product + sum(RADIUS * c * b for c, b in zip(corner, w, strict=True))
        reached.append((y - moved) ** 2 / 2 if loss == "squared" else -y * moved)
    stated = adversarial_loss(loss, INF)
    given = {"radius": RADIUS, "norm_w": size}
    if loss == "squared":
        assert stated.specialise(**given, abs_residual=abs(y - product)).expression == max(reached)
        return
    worst = max(reached)  # minus the least margin; the loss falls with the margin
    direct = sp.log(1 + sp.exp(worst)) if loss == "logistic" else sp.Max(0, 1 + worst)
    given |= {"margin": y * product} | ({"active": int(bool(1 + worst > 0))} if loss == "hinge" else {})
    closed = stated.specialise(**given).expression
    assert closed == direct if loss == "hinge" else abs((closed - direct).evalf(30)) < 1e-28


@pytest.mark.parametrize("norm", NUMBERED, ids=str)
def test_the_worst_shift_is_on_the_ball_and_no_other_is_worse(norm):
    w = [mpf(a) for a in W]
    given = [values("squared", norm, 0, i, i, RADIUS) for i in range(3)]
    shift = [evaluate(worst_case_shift(norm), g) for g in given]

    def length(vector):
        return max(map(abs, vector)) if norm == INF else mp.fsum(abs(a) ** mpf(norm) for a in vector) ** (1 / mpf(norm))

    assert abs(length(shift) - mpf(RADIUS)) < 1e-14
    raised = mp.fdot(shift, w)
    assert abs(raised - mpf(RADIUS) * dual_norm(w, norm)) < 1e-14
    for other in itertools.product(range(-4, 5), repeat=3):
        if any(other):
            scaled = [mpf(RADIUS) * a / length(other) for a in other]
            assert mp.fdot(scaled, w) <= raised * (1 + mp.mpf(10) ** -14)


@pytest.mark.parametrize("radius", [RADIUS, 0], ids=str)
@pytest.mark.parametrize("norm", NUMBERED, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_and_hessian_are_those_of_finite_differences(loss, norm, radius):
    with mp.workdps(40):
        for n, i, j in ((0, 0, 0), (1, 0, 2), (2, 1, 1), (3, 2, 1)):
            x, y, w = [mpf(a) for a in X.row(n)], mpf(Y[loss][n]), [mpf(a) for a in W]
            given = values(loss, norm, n, i, j, radius)
            value = functools.partial(attacked, loss, norm, x, y, radius=mpf(radius))

            def moved(a, b, value=value, w=w, i=i, j=j):
                there = list(w)
                there[i] += a
                there[j] += b
                return value(there)

            h = mp.mpf(10) ** -10
            slope = (moved(h, 0) - moved(-h, 0)) / (2 * h)
            curvature = (moved(h, h) - moved(h, -h) - moved(-h, h) + moved(-h, -h)) / (4 * h * h)
            assert abs(value(w) - evaluate(adversarial_loss(loss, norm), given)) < 1e-35
            assert abs(slope - evaluate(adversarial_gradient(loss, norm), given)) < 1e-17
            assert abs(curvature - evaluate(adversarial_hessian(loss, norm), given)) < 1e-17


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("norm", [2, INF, 3], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_noise_is_that_of_all_batches_listed(loss, norm, replacement):
    """All batches of two of the four examples, with the gradient formula for each example."""
    gradients = []
    rho, tau = [], []
    for n in range(4):
        given = [values(loss, norm, n, i, i, RADIUS) for i in range(3)]
        gradients.append([evaluate(adversarial_gradient(loss, norm), g) for g in given])
        g = given[0]
        lost = g["radius"] * g["norm_w"]
        pull = {"squared": g["abs_residual"] + lost, "logistic": 1 / (1 + mp.exp(g["margin"] - lost))}
        rho.append(pull.get(loss, g["active"]))
        tau.append(g["sign"] if loss == "squared" else g["y"])
    batches = list(itertools.product(range(4), repeat=2) if replacement else itertools.permutations(range(4), 2))

    def mean(entries):
        return mp.fsum(entries) / len(entries)

    i, j = 0, 2
    means = [[(gradients[a][k] + gradients[b][k]) / 2 for k in range(3)] for a, b in batches]
    listed = mean([m[i] * m[j] for m in means]) - mean([m[i] for m in means]) * mean([m[j] for m in means])
    given = values(loss, norm, 0, i, j, RADIUS)
    x = [[mpf(a) for a in X.row(n)] for n in range(4)]
    given |= {
        "M_ij": mean([rho[n] ** 2 * x[n][i] * x[n][j] for n in range(4)]),
        "k_i": mean([tau[n] * rho[n] ** 2 * x[n][i] for n in range(4)]),
        "k_j": mean([tau[n] * rho[n] ** 2 * x[n][j] for n in range(4)]),
        "m2": mean([r**2 for r in rho]),
        "g_i": mean([g[i] for g in gradients]),
        "g_j": mean([g[j] for g in gradients]),
        "batch_size": mp.mpf(2),
        "num_examples": mp.mpf(4),
    }
    formula = adversarial_noise(loss, norm, replacement=replacement)
    assert abs(evaluate(formula, given) - listed) < 1e-14
    if loss != "hinge":  # what the attack adds is not small
        assert abs(evaluate(formula, {**given, "radius": mp.mpf(0)}) - listed) > 1e-3


@pytest.mark.parametrize("norm", NUMBERED, ids=str)
def test_at_radius_zero_losses_are_the_ordinary_ones(norm):
    residual, x, z = sp.symbols("residual x_i x_j", real=True)
    sign, size = (adversarial_gradient("squared").symbols[role] for role in ("sign", "abs_residual"))
    gradient = adversarial_gradient("squared", norm).specialise(radius=0).explicit()
    assert gradient.subs({sign: -1, size: -residual}) == -residual * x
    assert adversarial_hessian("squared", norm).specialise(radius=0).explicit().subs(sign, -1) == x * z
    margin, y = (adversarial_gradient("logistic").symbols[role] for role in ("margin", "y"))
    pull = 1 / (1 + sp.exp(margin))
    assert adversarial_gradient("logistic", norm).specialise(radius=0).explicit() == -pull * y * x
    hessian = adversarial_hessian("logistic", norm).specialise(radius=0).explicit()
    assert sp.cancel(hessian - pull * (1 - pull) * y**2 * x * z) == 0


def test_a_cell_is_ordinary_least_squares_and_ends_with_a_sign():
    """At weights of the same signs the shifted features reproduce the loss exactly; beyond a sign they do not."""
    n = 0
    x, y = list(X.row(n)), Y["squared"][n]
    z_formula = shifted_least_squares()

    def loss(w):
        r = y - sum(a * b for a, b in zip(x, w, strict=True))
        return (abs(r) + RADIUS * sum(abs(b) for b in w)) ** 2 / 2

    sign = sp.sign(y - sum(a * b for a, b in zip(x, W, strict=True)))
    z = [z_formula.specialise(x_i=a, sign=sign, sign_w_i=sp.sign(b), radius=RADIUS).expression
         for a, b in zip(x, W, strict=True)]  # fmt: skip

    def shifted(w):
        return (y - sum(a * b for a, b in zip(z, w, strict=True))) ** 2 / 2

    inside = [W, W * 2, W * 4, sp.Matrix([1, -5, 1]) / 7, sp.Matrix([1, -1, 30]) / 100]
    for w in inside:
        assert [sp.sign(b) for b in w] == [sp.sign(b) for b in W]
        r = y - sum(a * b for a, b in zip(x, w, strict=True))
        assert (loss(w) == shifted(w)) == (sp.sign(r) == sign)
    beyond = sp.Matrix([2, 3, 1]) / 6
    assert loss(beyond) != shifted(beyond)
    assert z_formula.prove().claims


def test_what_is_no_attack_is_refused():
    for norm in (sp.Rational(1, 2), 0, -1, "l7", True, sp.I):
        with pytest.raises(InvalidProblemError, match="norm"):
            adversarial_loss("squared", norm)
    with pytest.raises(InvalidProblemError, match="'squared', 'logistic' or 'hinge'"):
        adversarial_hessian("absolute")


def test_one_norm_has_one_formula():
    assert adversarial_hessian("squared", "inf") is adversarial_hessian("squared", INF)
    assert adversarial_hessian("squared", 2.0) is adversarial_hessian("squared", 2)
