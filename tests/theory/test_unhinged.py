"""The robust unhinged loss: minimiser, curvature and noise against differences and listed batches."""

import itertools
from dataclasses import replace

import mpmath as mp
import pytest
import sympy as sp
from cases import NUMBERS, bound

from sgdcov.errors import InvalidProblemError, InvalidRuleError, ProofError
from sgdcov.theory import (
    RULES,
    heavy_ball,
    isotropic_covariance,
    nesterov,
    qhm,
    sgd,
    sgdw,
    stationary_covariance,
    unhinged_covariance,
    unhinged_hessian,
    unhinged_loss,
    unhinged_minimiser,
    unhinged_noise,
    update_rule,
)

INF = float("inf")
#: Signed inputs y x of four examples, and their mean.
SIGNED = [(2, -1, 1), (1, 0, 3), (3, -2, -1), (0, 1, 1)]
MEAN = [sp.Rational(sum(x[k] for x in SIGNED), 4) for k in range(3)]
DECAY, RADIUS = sp.Rational(7, 10), sp.Rational(2, 5)
#: What weight decay adds to the gradient at rest: coupled, all of it; decoupled, times 1 - momentum; sam has none.
PULL = {"sgdw": (1 - NUMBERS["momentum"]) * NUMBERS["weight_decay"], "sam": 0}


def mpf(value):
    exact = sp.Rational(value)
    return mp.mpf(exact.p) / exact.q


def loss(w, norm, radius=RADIUS):
    """The mean loss, written out by hand."""
    size = mp.fsum(map(abs, w)) if norm == INF else mp.sqrt(mp.fsum(a * a for a in w))
    margin = mp.fdot([mpf(m) for m in MEAN], w)
    return 1 - margin + mpf(radius) * size + mpf(DECAY) * mp.fsum(a * a for a in w) / 2


def given(i, j=0, radius=RADIUS):
    m = [mpf(a) for a in MEAN]
    return {"m_i": m[i], "m_j": m[j], "norm_m": mp.norm(m), "radius": mpf(radius), "decay": mpf(DECAY),
            "delta_ij": mp.mpf(int(i == j)), "sign_w_i": mp.sign(m[i])}  # fmt: skip


def evaluate(formula, values):
    return formula.lambdify("mpmath")(**{role: values[role] for role in formula.symbols})


@pytest.mark.parametrize("norm", [2, INF])
def test_minimiser_and_hessian_are_those_of_differences(norm):
    """For linf the mean of the second entry is -1/2, that of the third 1: none below the radius."""
    with mp.workdps(40):
        w = [evaluate(unhinged_minimiser(norm), given(k)) for k in range(3)]
        h = mp.mpf(10) ** -10

        def moved(*steps):
            there = list(w)
            for k, step in steps:
                there[k] += step
            return loss(there, norm)

        for i in range(3):
            assert abs((moved((i, h)) - moved((i, -h))) / (2 * h)) < 1e-18
            assert moved((i, mp.mpf(1) / 100)) > moved() < moved((i, -mp.mpf(1) / 100))
            for j in range(3):
                mixed = sum(a * b * moved((i, a * h), (j, b * h)) for a in (1, -1) for b in (1, -1))
                assert abs(mixed / (4 * h * h) - evaluate(unhinged_hessian(norm), given(i, j))) < 1e-17


def test_the_two_eigenvalues():
    with mp.workdps(30):
        hessian = mp.matrix([[evaluate(unhinged_hessian(), given(i, j)) for j in range(3)] for i in range(3)])
        values = sorted(mp.eigsy(hessian, eigvals_only=True))
        parts = unhinged_hessian().parts
        roles = unhinged_hessian().symbols
        at = {roles["decay"]: DECAY, roles["radius"]: RADIUS, roles["norm_m"]: sp.sqrt(sum(m**2 for m in MEAN))}
        radial, transverse = (mp.mpf(str(sp.N(parts[name].subs(at), 30))) for name in ("radial", "transverse"))
        assert max(abs(a - b) for a, b in zip(values, [radial, transverse, transverse], strict=True)) < 1e-27
        assert transverse > radial * mp.mpf("1.1")


def test_weights_collapse_where_the_radius_reaches_the_mean():
    tiny = [mp.mpf(1) / 10**5 * mpf(m) for m in MEAN]
    length = sp.sqrt(sum(m**2 for m in MEAN))
    assert loss(tiny, 2, sp.nsimplify(sp.N(length * sp.Rational(99, 100), 20), rational=True)) < 1
    assert loss(tiny, 2, sp.nsimplify(sp.N(length * sp.Rational(101, 100), 20), rational=True)) > 1


@pytest.mark.parametrize("replacement", [True, False])
def test_noise_is_that_of_all_batches_at_any_weights_and_radius(replacement):
    batches = list(itertools.product(range(4), repeat=3) if replacement else itertools.permutations(range(4), 3))
    formula = unhinged_noise(replacement=replacement)
    for w, radius in (((3, -4), 0), ((3, 4), 2), ((-4, 3), sp.Rational(1, 3))):
        common = [radius * sp.Rational(a, 5) + DECAY * a for a in w]  # radius w/|w| + decay w
        means = [[-sp.Rational(sum(SIGNED[n][k] for n in batch), 3) + common[k] for k in range(2)] for batch in batches]
        mean = [sum(m[k] for m in means) / len(means) for k in range(2)]
        listed = sum((m[0] - mean[0]) * (m[1] - mean[1]) for m in means) / len(means)
        values = {"M_ij": sp.Rational(sum(x[0] * x[1] for x in SIGNED), 4), "m_i": MEAN[0], "m_j": MEAN[1],
                  "batch_size": 3, "num_examples": 4}  # fmt: skip
        assert formula.specialise(**{r: v for r, v in values.items() if r in formula.symbols}).expression == listed


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("direction", ["radial", "transverse"])
def test_the_covariance_is_the_additive_law_at_the_curvature(rule, direction):
    optimizer = bound(rule)
    law = unhinged_covariance(optimizer, direction)
    assert law.prove().claims
    values = {"decay": DECAY, "radius": RADIUS, "norm_m": sp.Integer(2), "noise": sp.Rational(3, 4)}
    closed = law.specialise(**{r: v for r, v in values.items() if r in law.symbols}).explicit()
    pull = PULL.get(rule.name, NUMBERS["weight_decay"])
    h = DECAY if direction == "radial" else DECAY + RADIUS * (DECAY + pull) / (2 - RADIUS)
    plain = stationary_covariance(optimizer).specialise(h_i=h, h_j=h, c_ij=sp.Rational(3, 4)).expression
    assert sp.cancel(closed - plain) == 0


@pytest.mark.parametrize(("rule", "half"), [(sgd, 1), (heavy_ball(momentum=sp.Rational(9, 10)), sp.Rational(19, 10))])
def test_the_transverse_variance_falls_with_the_radius_up_to_half_the_stable_limit(rule, half):
    """And rises beyond it: that it always falls is not true of discrete steps."""
    law = unhinged_covariance(rule)

    def variance(radius, lr):
        values = {"radius": radius, "lr": lr, "decay": sp.Integer(1), "norm_m": sp.Integer(2), "noise": sp.Integer(1)}
        return law.specialise(**values).explicit()

    slow, fast = half * sp.Rational(1, 10), half * sp.Rational(11, 10)
    radii = [sp.Rational(k, 10) for k in range(5)]
    falling = [variance(r, slow) for r in radii]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == len(falling)
    rising = [variance(r, fast) for r in radii]
    assert rising == sorted(rising)
    assert "radius" not in unhinged_covariance(rule, "radial").symbols  # along the minimiser nothing changes


DECAYING = [
    sgd(lr=0.3, weight_decay=0.25),
    sgdw(lr=0.3, momentum=0.5, weight_decay=0.25),
    nesterov(lr=0.2, momentum=0.5, weight_decay=0.25),
    qhm(lr=0.3, beta=0.5, nu=0.7, weight_decay=0.25),
]


@pytest.mark.parametrize("optimizer", DECAYING, ids=lambda o: o.rule.name)
def test_curvature_is_that_at_the_mean_to_which_weight_decay_pulls(optimizer):
    """The rule itself, stepped to rest on the loss's own gradient; the curvature there by differences."""
    with mp.workdps(30):
        m, decay, radius = mp.matrix([mp.mpf(2), mp.mpf(0)]), mpf(DECAY), mpf(RADIUS)

        def gradient(w):
            return -m + w * (radius / mp.norm(w)) + w * decay

        state = (mp.matrix([1, 1]), *[mp.matrix([0, 0])] * (len(optimizer.rule.slots) - 1))
        for _ in range(500):
            state = optimizer.step(state, gradient)
        step = mp.matrix([0, mp.mpf(10) ** -12])
        across = (gradient(state[0] + step) - gradient(state[0] - step))[1] / (2 * step[1])
        plain = stationary_covariance(optimizer).lambdify("mpmath")(h_i=across, h_j=across, c_ij=mp.mpf(3) / 4)
        law = unhinged_covariance(optimizer)
        closed = law.lambdify("mpmath")(decay=decay, radius=radius, norm_m=mp.mpf(2), noise=mp.mpf(3) / 4)
        assert abs(closed / plain - 1) < mp.mpf(10) ** -15
        assert law.prove().claims


def test_decoupled_weight_decay_has_the_variance_that_runs_have():
    """At radius 1/2 and decays of .01 a simulation measures 1.2665; curvature at the minimiser would give 1.669."""
    law = unhinged_covariance(sgdw(lr=0.1, momentum=0, weight_decay=0.01)).lambdify()
    assert law(noise=1, decay=0.01, norm_m=1, radius=0.5) == pytest.approx(0.1 / (0.04 * (2 - 0.004)), rel=1e-14)


def test_weight_decay_with_two_gradients_a_step_is_refused():
    @update_rule(slots=("w",))
    def ascent(state, grad, *, lr, rho, weight_decay):
        (w,) = state
        return (w - lr * (grad(w + rho * grad(w)) + weight_decay * w),)

    for make in (unhinged_covariance, isotropic_covariance):
        with pytest.raises(InvalidRuleError, match="weight decay and takes gradients at more than one point"):
            make(ascent)


def test_proofs_and_their_controls():
    for norm in (2, INF, "p", 3, 1):
        assert unhinged_loss(norm).prove().claims
    for formula in (unhinged_minimiser(), unhinged_minimiser(INF), unhinged_hessian(), unhinged_hessian(INF)):
        assert formula.prove().claims
    minimiser = unhinged_minimiser()
    w_i = minimiser.equation.lhs
    wrong = minimiser.expression.subs(minimiser.symbols["radius"], 2 * minimiser.symbols["radius"])
    with pytest.raises(ProofError):
        replace(minimiser, equation=sp.Eq(w_i, wrong), solution={w_i: wrong}).prove()
    for make in (unhinged_minimiser, unhinged_hessian):
        with pytest.raises(InvalidProblemError, match="explicit for the l2 and the linf"):
            make(3)
    with pytest.raises(InvalidProblemError, match="'radial' or 'transverse'"):
        unhinged_covariance(sgd, "sideways")
