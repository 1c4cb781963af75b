"""Adversarial regression on Gaussian data against quadrature at 30 digits: no Monte Carlo, no shared formulas."""

import functools
from dataclasses import replace

import mpmath as mp
import pytest
import sympy as sp

from sgdcov.errors import InvalidProblemError, ProofError
from sgdcov.theory import (
    absolute_gaussian_moments,
    collapse_radius,
    heavy_ball,
    isotropic_covariance,
    isotropic_excess_risk,
    isotropic_hessian,
    isotropic_noise,
    isotropic_onset,
    isotropic_radius,
    isotropic_shrinkage,
    mean_example_hessian,
    noiseless_shrinkage,
    robust_gradient,
    robust_hessian,
    robust_kink,
    robust_minimiser,
    robust_noise,
    robust_onset,
    robust_radius,
    robust_risk,
    sgd,
    sgdw,
    stationary_covariance,
)

INF = float("inf")
DIGITS = 40
POPULATION = (robust_risk, robust_gradient, robust_hessian, mean_example_hessian, robust_kink, robust_noise)
ALONG = (robust_radius, collapse_radius, robust_onset)
#: S = L L', true weights, label noise, and weights off every kink.
ROOT = ((sp.Rational(1), sp.Rational(0)), (sp.Rational(2, 5), sp.Rational(3, 4)))
TRUE, LABEL_NOISE, RADIUS = (sp.Rational(1), sp.Rational(-3, 5)), sp.Rational(1, 2), sp.Rational(3, 10)
WEIGHTS = (sp.Rational(4, 5), sp.Rational(-1, 3))


def mpf(value):
    exact = sp.Rational(value)
    return mp.mpf(exact.p) / exact.q


def size_of(w, norm):
    return mp.fsum(abs(a) for a in w) if norm == INF else mp.sqrt(mp.fsum(a * a for a in w))


def slope_of(w, norm):
    return [mp.sign(a) for a in w] if norm == INF else [a / size_of(w, norm) for a in w]


@functools.cache
def grid():
    """The trapezoidal rule in two standard normal coordinates: its error is exp(-2 pi^2/(step^2 v^2/sigma^2)) or so."""
    step = mp.mpf(9) / 20
    nodes = [step * k for k in range(-28, 29)]
    weights = [step * mp.npdf(z) for z in nodes]
    root = [[mpf(a) for a in row] for row in ROOT]
    return [
        (root[0][0] * a + root[0][1] * b, root[1][0] * a + root[1][1] * b, p * q)
        for a, p in zip(nodes, weights, strict=True)
        for b, q in zip(nodes, weights, strict=True)
    ]


def measured(norm, w, radius, gradient_only=False):
    """Average one example over inputs (quadrature) and label noise (folded normal moments, by hand)."""
    size = size_of(w, norm)
    true, noise = [mpf(a) for a in TRUE], mpf(LABEL_NOISE)
    t, u = radius * size_of(w, norm), slope_of(w, norm)
    total = {"risk": mp.mpf(0), "g": mp.zeros(2, 1), "mean_hessian": mp.zeros(2), "second": mp.zeros(2)}
    for x0, x1, p in grid():
        x = (x0, x1)
        m = x0 * (true[0] - w[0]) + x1 * (true[1] - w[1])  # mean of the residual given x
        sign = mp.erf(m / (noise * mp.sqrt(2)))
        bell = noise * mp.sqrt(2 / mp.pi) * mp.exp(-(m**2) / (2 * noise**2))
        absolute, square = m * sign + bell, m**2 + noise**2
        for i in range(2):
            total["g"][i] += p * (-x[i] * (m + t * sign) + radius * u[i] * (absolute + t))
        if gradient_only:
            continue
        sign_square = square * sign + m * bell  # E[sgn(r) r^2]
        pull2 = square + 2 * t * absolute + t * t
        sign_pull2 = sign_square + 2 * t * m + t * t * sign
        total["risk"] += p * pull2 / 2
        for i in range(2):
            for j in range(2):
                cross = x[i] * u[j] + u[i] * x[j]
                total["second"][i, j] += p * (pull2 * (x[i] * x[j] + radius**2 * u[i] * u[j])
                                              - radius * sign_pull2 * cross)  # fmt: skip
                curved = 0 if norm == INF else ((i == j) - u[i] * u[j]) / size
                total["mean_hessian"][i, j] += p * (x[i] * x[j] - radius * sign * cross + radius**2 * u[i] * u[j]
                                                    + (absolute + t) * radius * curved)  # fmt: skip
    return total


def given_at(norm, w, radius, i, j, gradient=(0, 0)):
    """What the symbols of the formulas are: v, a and the norm, from the problem."""
    root = [[mpf(a) for a in row] for row in ROOT]
    s = [[root[a][0] * root[b][0] + root[a][1] * root[b][1] for b in range(2)] for a in range(2)]
    e = [a - mpf(b) for a, b in zip(w, TRUE, strict=True)]
    a = [s[k][0] * e[0] + s[k][1] * e[1] for k in range(2)]
    v = mp.sqrt(e[0] * a[0] + e[1] * a[1] + mpf(LABEL_NOISE) ** 2)
    return {"S_ij": s[i][j], "a_i": a[i], "a_j": a[j], "v": v, "norm_w": size_of(w, norm), "radius": radius,
            "w_i": w[i], "w_j": w[j], "sign_w_i": mp.sign(w[i]), "sign_w_j": mp.sign(w[j]),
            "delta_ij": mp.mpf(int(i == j)), "g_i": gradient[i], "g_j": gradient[j]}  # fmt: skip


def evaluate(formula, given):
    return formula.lambdify("mpmath")(**{role: given[role] for role in formula.symbols})


def entries(make, norm, w, radius, **more):
    return mp.matrix(2, 2).apply(lambda _: 0) + mp.matrix(
        [[evaluate(make(norm), given_at(norm, w, radius, i, j, **more)) for j in range(2)] for i in range(2)]
    )


def gradient_at(norm, w, radius):
    return mp.matrix([evaluate(robust_gradient(norm), given_at(norm, w, radius, i, i)) for i in range(2)])


def gap(a, b):
    return max(abs(x) for x in a - b)


@pytest.mark.parametrize("norm", [2, INF, 3, "p"], ids=str)
@pytest.mark.parametrize("make", [*POPULATION, *ALONG], ids=lambda make: make.__name__)
def test_formulas_prove_themselves(make, norm):
    formula = make(norm)
    assert formula.prove().claims
    assert formula.explicit().free_symbols == set(formula.symbols.values())


def test_wrong_formulas_do_not_prove_themselves():
    hessian, kink = robust_hessian(), robust_kink()
    without = tuple((text, e + kink.expression) for text, e in hessian.identities)
    with pytest.raises(ProofError):  # the examples' mean Hessian in place of the Hessian
        replace(hessian, identities=without).prove()
    moments = absolute_gaussian_moments()
    m3 = sp.Symbol("m3", positive=True)
    with pytest.raises(ProofError):
        replace(moments, solution={**moments.solution, m3: moments.solution[m3] * sp.Rational(3, 2)}).prove()


@pytest.mark.parametrize("norm", [2, INF], ids=str)
def test_risk_gradient_hessian_and_noise_are_those_of_quadrature(norm):
    """To 30 digits; the Hessian by finite differences of the *measured* gradient, which the kink is part of."""
    with mp.workdps(DIGITS):
        w, radius = [mpf(a) for a in WEIGHTS], mpf(RADIUS)
        exact = measured(norm, w, radius)
        tolerance = mp.mpf(10) ** -30
        assert abs(evaluate(robust_risk(norm), given_at(norm, w, radius, 0, 0)) - exact["risk"]) < tolerance
        assert gap(gradient_at(norm, w, radius), exact["g"]) < tolerance
        assert gap(entries(mean_example_hessian, norm, w, radius), exact["mean_hessian"]) < tolerance
        noise = exact["second"] - exact["g"] * exact["g"].T
        assert gap(entries(robust_noise, norm, w, radius, gradient=tuple(exact["g"])), noise) < tolerance

        step = mp.mpf(10) ** -11
        columns = []
        for k in range(2):
            ahead, behind = list(w), list(w)
            ahead[k] += step
            behind[k] -= step
            slopes = [measured(norm, at, radius, gradient_only=True)["g"] for at in (ahead, behind)]
            columns.append((slopes[0] - slopes[1]) / (2 * step))
        differences = mp.matrix([[columns[j][i] for j in range(2)] for i in range(2)])
        assert gap(entries(robust_hessian, norm, w, radius), differences) < mp.mpf(10) ** -18
        # Negative control: without the kink the curvature is far too small.
        missing = differences - exact["mean_hessian"]
        assert gap(entries(robust_kink, norm, w, radius), missing) < mp.mpf(10) ** -18
        assert min(mp.eigsy(missing, eigvals_only=True)) > mp.mpf(1) / 20


def test_at_radius_zero_everything_is_ordinary_least_squares():
    s, a, b, v = (robust_noise().symbols[role] for role in ("S_ij", "a_i", "a_j", "v"))
    g, h = (robust_noise().symbols[role] for role in ("g_i", "g_j"))
    assert robust_gradient().specialise(radius=0).explicit() == a
    assert robust_hessian().specialise(radius=0).explicit() == s
    assert robust_kink().specialise(radius=0).explicit() == 0
    assert sp.expand(robust_noise().specialise(radius=0).explicit() - (s * v**2 + 2 * a * b - g * h)) == 0


@pytest.mark.parametrize("ridge", ["1/10", "1", "30"])
def test_a_ridge_solution_is_robust_to_the_radius_stated(ridge):
    """Any covariance, l2: at w = (S + ridge)^-1 S w0 the gradient vanishes at that radius, and not at another."""
    with mp.workdps(DIGITS):
        root = mp.matrix([[mpf(a) for a in row] for row in ROOT])
        s, true, level = root * root.T, mp.matrix([mpf(a) for a in TRUE]), mpf(ridge)
        w = list(mp.lu_solve(s + level * mp.eye(2), s * true))
        v = given_at(2, w, 0, 0, 0)["v"]
        radius = robust_radius().lambdify("mpmath")(penalty=level * size_of(w, 2), norm_w=size_of(w, 2), v=v)
        assert gap(gradient_at(2, w, radius), mp.zeros(2, 1)) < mp.mpf(10) ** -35
        assert gap(gradient_at(2, w, radius * mp.mpf("1.01")), mp.zeros(2, 1)) > mp.mpf(10) ** -4
        assert mp.eigsy(entries(robust_hessian, 2, w, radius), eigvals_only=True)[0] > 0
        penalty = robust_minimiser().explicit(robust_minimiser().parts["penalty"])
        roles = {str(x): x for x in penalty.free_symbols}
        back = sp.lambdify([roles[n] for n in ("radius", "norm_w", "v")], penalty, "mpmath")
        assert abs(back(radius, size_of(w, 2), v) - level * size_of(w, 2)) < mp.mpf(10) ** -30


def test_the_linf_minimiser_is_a_soft_threshold():
    """Uncorrelated inputs, three weights of which the attack drops one: the subgradient condition, by hand."""
    with mp.workdps(DIGITS):
        variance, true = [mp.mpf(1), mp.mpf(2), mp.mpf(1) / 2], [mp.mpf(1), mp.mpf(-2), mp.mpf(1) / 5]
        penalty = mp.mpf(3) / 10
        law = robust_minimiser(INF)
        w = [b - penalty * mp.sign(b) / s if s * abs(b) > penalty else mp.mpf(0)
             for s, b in zip(variance, true, strict=True)]  # fmt: skip
        size = mp.fsum(map(abs, w))
        errors = zip(variance, w, true, strict=True)
        v = mp.sqrt(mp.fsum(s * (a - b) ** 2 for s, a, b in errors) + mp.mpf(1) / 4)
        radius = robust_radius(INF).lambdify("mpmath")(penalty=penalty, norm_w=size, v=v)
        stated = [law.lambdify("mpmath")(variance_i=s, w0_i=b, sign_w_i=mp.sign(b), radius=radius, norm_w=size, v=v)
                  for s, b in zip(variance, true, strict=True)]  # fmt: skip
        assert [abs(a - b) < mp.mpf(10) ** -30 for a, b in zip(stated, w, strict=True)] == [True, True, False]
        c0 = mp.sqrt(2 / mp.pi)

        def risk(at):
            spread = mp.sqrt(mp.fsum(s * (a - b) ** 2 for s, a, b in zip(variance, at, true, strict=True)) + 0.25)
            t = radius * mp.fsum(map(abs, at))
            return (spread**2 + 2 * c0 * spread * t + t * t) / 2

        for k in range(3):
            for step in (mp.mpf("1e-4"), -mp.mpf("1e-4")):
                moved = list(w)
                moved[k] += step
                assert risk(moved) > risk(w)


@pytest.mark.parametrize("norm", [2, INF], ids=str)
def test_weights_collapse_at_the_radius_stated(norm):
    """Just below it some small step from zero lowers the measured risk; just above it none of many does."""
    with mp.workdps(20):
        root = mp.matrix([[mpf(a) for a in row] for row in ROOT])
        true = mp.matrix([mpf(a) for a in TRUE])
        pulled = root * root.T * true
        v = mp.sqrt((true.T * pulled)[0] + mpf(LABEL_NOISE) ** 2)
        signal = max(map(abs, pulled)) if norm == INF else mp.norm(pulled)
        radius = collapse_radius(norm).lambdify("mpmath")(signal=signal, v=v)
        steps = [[mp.cos(k * mp.pi / 60) / 10**4, mp.sin(k * mp.pi / 60) / 10**4] for k in range(120)]

        def risk(w, size):
            return evaluate(robust_risk(norm), given_at(norm, w, size, 0, 0))

        for factor, falls in ((mp.mpf("0.99"), True), (mp.mpf("1.01"), False)):
            at_zero = risk([mp.mpf(10) ** -25] * 2, radius * factor)  # a norm has to be positive
            assert any(risk(w, radius * factor) < at_zero for w in steps) == falls


@pytest.mark.parametrize("norm", [2, INF], ids=str)
def test_the_hessian_sets_in_linearly(norm):
    """Differences in the radius along the minimiser, which is found by Newton steps on the gradient."""
    with mp.workdps(DIGITS):
        tiny = mp.mpf(10) ** -12
        true = [mpf(a) for a in TRUE]
        w = mp.matrix(true)
        for _ in range(6):
            w -= mp.lu_solve(entries(robust_hessian, norm, list(w), tiny), gradient_at(norm, list(w), tiny))
        moved = list(w)
        hessian = (entries(robust_hessian, norm, moved, tiny) - entries(robust_hessian, norm, true, 0 * tiny)) / tiny
        noise = (entries(robust_noise, norm, moved, tiny) - entries(robust_noise, norm, true, 0 * tiny)) / tiny
        law = robust_onset(norm)
        for i in range(2):
            for j in range(2):
                given = given_at(norm, true, mp.mpf(0), i, j)
                assert abs(evaluate(law, given) - hessian[i, j]) < mp.mpf(10) ** -10
                grown = law.explicit(law.parts["noise"])
                grown = sp.lambdify([law.symbols["S_ij"], law.symbols["norm_w"], law.symbols["v"]], grown, "mpmath")
                assert abs(grown(given["S_ij"], given["norm_w"], given["v"]) - noise[i, j]) < mp.mpf(10) ** -10
        assert min(mp.eigsy(hessian, eigvals_only=True)) > mp.mpf(1) / 10  # linear, not quadratic


def isotropic(shrinkage, std, length, noise):
    """The radius of a shrinkage, and what the symbols of the general formulas are there, with w0 = (length, 0)."""
    radius = isotropic_radius().lambdify("mpmath")(shrinkage=shrinkage, std=std, weight_norm=length, label_noise=noise)
    v = mp.sqrt(std**2 * (1 - shrinkage) ** 2 * length**2 + noise**2)
    pulled = [-(std**2) * (1 - shrinkage) * length, mp.mpf(0)]
    w = [shrinkage * length, mp.mpf(0)]

    def at(i, j):
        return {"S_ij": std**2 * int(i == j), "a_i": pulled[i], "a_j": pulled[j], "v": v, "norm_w": w[0], "w_i": w[i],
                "w_j": w[j], "radius": radius, "delta_ij": mp.mpf(int(i == j)), "g_i": 0, "g_j": 0}  # fmt: skip

    return radius, at


ISOTROPIC = [("9/10", 1, 1, 1), ("1/2", 2, "3/2", "1/3"), ("1/100", "1/2", 3, 2), ("7/10", 1, 1, 0)]


@pytest.mark.parametrize("point", ISOTROPIC, ids=str)
def test_isotropic_forms_are_the_general_ones(point):
    with mp.workdps(DIGITS):
        shrinkage, std, length, noise = map(mpf, point)
        radius, at = isotropic(shrinkage, std, length, noise)
        given = {"radius": radius, "shrinkage": shrinkage, "std": std, "weight_norm": length, "label_noise": noise}
        for k, direction in enumerate(("radial", "transverse")):
            assert abs(evaluate(robust_gradient(), at(k, k))) < mp.mpf(10) ** -35
            for make, general in ((isotropic_hessian, robust_hessian), (isotropic_noise, robust_noise)):
                assert abs(evaluate(make(direction), given) - evaluate(general(), at(k, k))) < mp.mpf(10) ** -34
        assert abs(evaluate(robust_hessian(), at(0, 1))) < mp.mpf(10) ** -35


@pytest.mark.parametrize("radius", ["1/1000", "1/2", "4/5", "1"])
@pytest.mark.parametrize("noise", [0, "1/10", 1])
def test_the_shrinkage_is_where_the_risk_is_least(radius, noise):
    with mp.workdps(DIGITS):
        found = isotropic_shrinkage(sp.Rational(radius), label_noise=sp.Rational(noise), digits=25)
        alpha, size, spread = mp.mpf(str(found)), mpf(radius), mpf(noise)
        c0 = mp.sqrt(2 / mp.pi)

        def risk(a):
            v, t = mp.sqrt((1 - a) ** 2 + spread**2), size * a
            return v * v / 2 + c0 * v * t + t * t / 2

        for step in (mp.mpf(10) ** -9, -mp.mpf(10) ** -9):
            assert risk(alpha + step) > risk(alpha) or alpha == 0 > step
        if 0 < alpha < 1:
            back = isotropic_radius().lambdify("mpmath")(shrinkage=alpha, std=1, weight_norm=1, label_noise=spread)
            assert abs(back - size) < mp.mpf(10) ** -21
        if spread == 0 and mp.sqrt(2 / mp.pi) < size:
            closed = noiseless_shrinkage().lambdify("mpmath")(radius=size, std=mp.mpf(1))
            assert abs(closed - alpha) < mp.mpf(10) ** -23


def test_the_shrinkage_at_its_ends():
    assert float(isotropic_shrinkage(0)) == 1
    assert float(isotropic_shrinkage(2)) == 0
    assert float(isotropic_shrinkage(sp.Rational(1, 2), label_noise=0)) == 1  # below c0: the true weights
    for wrong in ({"radius": -1}, {"radius": 1, "std": 0}, {"radius": 1, "weight_norm": sp.pi}, {"radius": "x"}):
        with pytest.raises(InvalidProblemError):
            isotropic_shrinkage(**wrong)


@pytest.mark.parametrize("rule", [sgd, heavy_ball], ids=lambda rule: rule.name)
@pytest.mark.parametrize("direction", ["radial", "transverse"])
def test_the_isotropic_covariance_is_the_additive_law_of_its_direction(rule, direction):
    point = {"shrinkage": 0.6, "std": 1.0, "weight_norm": 1.0, "label_noise": 0.8}
    point["radius"] = isotropic_radius().lambdify()(**point)
    own = {"lr": 0.1, "momentum": 0.9} if rule is heavy_ball else {"lr": 0.1}
    h, c = (evaluate(make(direction), point) for make in (isotropic_hessian, isotropic_noise))
    plain = stationary_covariance(rule).lambdify()(h_i=float(h), h_j=float(h), c_ij=float(c) / 8, **own)
    law = isotropic_covariance(rule, direction)
    assert law.lambdify()(**point, **own, batch_size=8) == pytest.approx(plain, rel=1e-12)
    assert law.kind == "approximation"
    assert law.prove().claims


@pytest.mark.parametrize("optimizer", [sgd(lr=0.1, weight_decay=0.2), sgdw(lr=0.1, momentum=0.5, weight_decay=0.4)],
                         ids=lambda o: o.rule.name)  # fmt: skip
def test_weight_decay_of_a_rule_moves_the_robust_mean(optimizer):
    """The mean minimises risk + pull |w|^2/2, by differences of the risk; curvature and noise are those there."""
    with mp.workdps(40):
        one, pull, alpha, s, length, sigma = mp.mpf(1), mp.mpf(0.2), mp.mpf(3) / 5, mp.mpf(2), mp.mpf(1.5), mp.mpf(0.5)
        point = {"shrinkage": alpha, "std": s, "weight_norm": length, "label_noise": sigma}
        law = isotropic_covariance(optimizer)
        radius = evaluate(isotropic_radius(law.parts["pull"]), point)

        def risk(along, across):
            v = mp.sqrt(s**2 * ((along - length) ** 2 + across**2) + sigma**2)
            t = radius * mp.sqrt(along**2 + across**2)
            return (v**2 + 2 * mp.sqrt(2 / mp.pi) * v * t + t**2) / 2

        at, step = alpha * length, mp.mpf(10) ** -12
        slope = (risk(at + step, 0) - risk(at - step, 0)) / (2 * step)
        assert abs(slope + pull * at) < mp.mpf(10) ** -20
        moved = {"radial": (step, 0 * one), "transverse": (0 * one, step)}
        for direction, (dx, dy) in moved.items():
            bent = (risk(at + dx, dy) + risk(at - dx, -dy) - 2 * risk(at, 0)) / step**2
            v = mp.sqrt(s**2 * (at - length) ** 2 + sigma**2)
            own = {"u_i": 1, "a_i": s**2 * (at - length), "g_i": -pull * at} if direction == "radial" else {}
            entries = {f"{name}_{k}": own.get(f"{name}_i", 0) for name in "uag" for k in "ij"}
            noise = robust_noise()
            given = {noise.symbols[r]: x for r, x in {"norm_w": at, "radius": radius, "v": v, "S_ij": s**2}.items()}
            given |= {noise.symbols[r]: entries[r] for r in ("a_i", "a_j", "g_i", "g_j")}
            given |= {noise.symbols[f"w_{k}"]: entries[f"u_{k}"] * at for k in "ij"}
            drawn = mp.mpf(sp.N(noise.explicit().subs(given), 30))
            plain = stationary_covariance(optimizer).lambdify("mpmath")(h_i=bent, h_j=bent, c_ij=drawn / 8)
            closed = isotropic_covariance(optimizer, direction).lambdify("mpmath")(**point, radius=radius, batch_size=8)
            assert abs(closed / plain - 1) < mp.mpf(10) ** -12
        assert law.prove().claims


@pytest.mark.parametrize(("noise", "widens"), [("1/2", True), ("3", False)])
def test_a_small_radius_widens_or_narrows_the_law_as_stated(noise, widens):
    """Differences along the path of minimisers; across the weights std*weight_norm against label_noise decides."""
    problem = {"std": mp.mpf(2), "weight_norm": mp.mpf(3) / 4, "label_noise": mpf(noise)}
    with mp.workdps(DIGITS):
        alpha = 1 - mp.mpf(10) ** -10
        radius = evaluate(isotropic_radius(), {**problem, "shrinkage": alpha})
        for direction in ("radial", "transverse"):
            ratio = []
            for point in ({"radius": mp.mpf(0), "shrinkage": mp.mpf(1)}, {"radius": radius, "shrinkage": alpha}):
                given = {**problem, **point}
                noise_there, curvature = (evaluate(f(direction), given) for f in (isotropic_noise, isotropic_hessian))
                ratio.append(noise_there / curvature)
            stated = evaluate(isotropic_onset(direction), problem)
            assert abs((ratio[1] / ratio[0] - 1) / radius / stated - 1) < mp.mpf(10) ** -8
            assert (stated > 0) == (widens or direction == "radial")


def test_the_excess_risk_adds_up_the_directions():
    point = {"shrinkage": 0.7, "std": 1.0, "weight_norm": 1.2, "label_noise": 0.8}
    point["radius"] = isotropic_radius().lambdify()(**point)
    step = {"lr": 0.2, "batch_size": 4}
    total = 0.0
    for direction, count in (("radial", 1), ("transverse", 6)):
        h = isotropic_hessian(direction).lambdify()(**point)
        total += count * h * isotropic_covariance(sgd, direction).lambdify()(**point, **step) / 2
    law = isotropic_excess_risk(sgd)
    assert law.lambdify()(**point, **step, dim=7) == pytest.approx(total, rel=1e-12)
    assert law.prove().claims
    curvature = [isotropic_hessian(direction).lambdify()(**point) for direction in ("radial", "transverse")]
    assert curvature[1] > curvature[0]
    largest = isotropic_covariance(sgd).parts["largest_lr"]
    assert largest == 2 / sp.Symbol("h", positive=True)


@pytest.mark.parametrize("make", [isotropic_hessian, isotropic_noise, isotropic_onset])
def test_isotropic_formulas_prove_themselves(make):
    for direction in ("radial", "transverse"):
        assert make(direction).prove().claims
    with pytest.raises(InvalidProblemError, match="'radial' or 'transverse'"):
        make("sideways")
    assert isotropic_radius().prove().claims
    assert noiseless_shrinkage().prove().claims
    with pytest.raises(InvalidProblemError, match="explicit for the l2 and the linf"):
        robust_minimiser(3)
