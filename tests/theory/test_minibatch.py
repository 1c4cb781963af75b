"""Laws under minibatches: proved, and equal in exact arithmetic to enumerating every batch of tiny data."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from cases import bound

from sgdcov.errors import HyperparameterError, InvalidProblemError, InvalidRuleError, ProofError
from sgdcov.theory import (
    RULES,
    additive_minibatch_limit,
    finite_data_covariance,
    gaussian_fourth_moment,
    gaussian_minibatch_covariance,
    gaussian_minibatch_second_moment,
    heavy_ball,
    isotropic_threshold,
    largest_linear_scaling,
    linear_scaling_gap,
    mean_square_share,
    mean_square_threshold,
    minibatch_noise,
    minibatch_second_moment,
    momentum_minibatch_covariance,
    mulayoff_michaeli_covariance,
    mulayoff_michaeli_threshold,
    nesterov,
    polyak,
    qhm,
    sam,
    sgd,
    sgdw,
    spectrally_expressible_covariance,
    stationary_covariance,
    tail_index_statement,
    update_rule,
)
from sgdcov.theory._exact import is_zero

R = sp.Rational
ONCE = [rule for rule in RULES if rule is not sam]
KEPT = [sgd, heavy_ball, nesterov, polyak, qhm]  # rules whose mean is the optimum
SMALL = R(1, 40)


@update_rule(slots=("w", "u"))
def look_ahead(state, grad, *, lr, momentum):
    """Sutskever's form of Nesterov's momentum: the gradient is taken away from the weights."""
    w, u = state
    u = momentum * u - lr * grad(w + momentum * u)
    return w + u, u


def batches(num_examples, batch_size, replacement):
    if replacement:
        return list(itertools.product(range(num_examples), repeat=batch_size))
    return list(itertools.combinations(range(num_examples), batch_size))


def mean(values):
    values = list(values)
    return sum(values[1:], values[0]) * Fraction(1, len(values))


def exact(matrix):
    return np.array([[R(x) for x in row] for row in matrix], dtype=object)


class OneCall:
    """z' = keep z + gain G with G the gradient at point z: read off the rule's own function."""

    def __init__(self, optimizer):
        self.slots = len(optimizer.rule.slots)
        seen = []

        def gradient(value):
            def grad(w):
                seen.append(w)
                return value

            return grad

        units = [tuple(R(int(m == n)) for m in range(self.slots)) for n in range(self.slots)]
        optimizer = optimizer.replace(**{name: R(v) for name, v in optimizer.values.items()})
        self.keep = np.array([optimizer.step(unit, gradient(R(0))) for unit in units], dtype=object).T
        self.point = np.array(seen, dtype=object)
        self.gain = np.array(optimizer.step((R(0),) * self.slots, gradient(R(1))), dtype=object)


# --- the noise of one batch -----------------------------------------------------------------------


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_the_noise_of_a_batch_is_that_of_all_batches(replacement, batch_size):
    u = [
        (Fraction(3), Fraction(-1, 2)),
        (Fraction(1, 7), Fraction(2)),
        (Fraction(-5, 3), Fraction(4)),
        (Fraction(1),) * 2,
    ]
    drawn = [tuple(mean(u[n][a] for n in batch) for a in (0, 1)) for batch in batches(4, batch_size, replacement)]
    covariance = mean(a * b for a, b in drawn) - mean(a for a, _ in drawn) * mean(b for _, b in drawn)
    sums = {"sum_a": sum(a for a, _ in u), "sum_b": sum(b for _, b in u), "sum_ab": sum(a * b for a, b in u)}
    values = {**{role: R(v) for role, v in sums.items()}, "batch_size": batch_size, "num_examples": 4}

    def predicted(formula):
        return formula.expression.subs({formula.symbols[role]: v for role, v in values.items()})

    assert predicted(minibatch_noise(replacement=replacement)) == R(covariance)
    if batch_size > 1:
        assert predicted(minibatch_noise(replacement=not replacement)) != R(covariance)


def test_a_wrong_factor_does_not_prove_itself():
    formula = minibatch_noise(replacement=False)
    shown, size, total = formula.equation.lhs, formula.symbols["batch_size"], formula.symbols["num_examples"]
    wrong = formula.expression * (total - 1) / total  # the factor (N - B)/(B N)
    forged = replace(formula, equation=sp.Eq(shown, wrong), solution={**formula.solution, shown: wrong})
    with pytest.raises(ProofError):
        forged.prove()
    assert formula.parts["factor"].subs(size, total) == 0


# --- finite data: the one-step equation -----------------------------------------------------------

CURVATURES = [
    exact(m) for m in ([[3, 1], [1, 2]], [[1, -2], [-2, 5]], [[R(1, 2), 1], [1, 1]])
]  # their mean is diagonal
GRADIENTS = [np.array(g, dtype=object) for g in ((R(1), R(-2)), (R(1, 3), R(1)), (R(-4, 3), R(1)))]


def one_step_by_enumeration(optimizer, states, batch_size, replacement):
    """Mean of z z' over equally likely states and all batches, slot-major, for the rule's own step."""
    optimizer = optimizer.replace(**{name: R(v) for name, v in optimizer.values.items()})
    total = []
    for batch in batches(3, batch_size, replacement):
        curvature, gradient = mean(CURVATURES[n] for n in batch), mean(GRADIENTS[n] for n in batch)
        for state in states:
            after = np.concatenate(optimizer.step(state, lambda w, h=curvature, g=gradient: h @ w + g))
            total.append(np.outer(after, after))
    return mean(total)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("rule", [*ONCE, look_ahead], ids=lambda rule: rule.name)
def test_one_step_of_finite_data_is_the_mean_over_all_batches(rule, replacement):
    optimizer, size = bound(rule), len(rule.slots)
    states = [
        [np.array([R(2 * k + n + 1, k + 2), R(n - k, 3)], dtype=object) for n in range(size)] for k in range(3)
    ]  # their mean is not the optimum
    after = one_step_by_enumeration(optimizer, states, 2, replacement)
    hessian = mean(CURVATURES)
    assert hessian[0, 1] == 0
    stacked = [np.array(state) for state in states]  # (slot, direction)
    point = OneCall(optimizer).point
    points = [point @ z for z in stacked]
    moment = mean(np.outer(y, y) for y in points)
    curvature = mean(h @ moment @ h for h in CURVATURES)
    gradient = mean(np.outer(g, g) for g in GRADIENTS)
    cross = mean(np.outer(h @ mean(points), g) for h, g in zip(CURVATURES, GRADIENTS, strict=True))
    for a, b in itertools.product(range(size), repeat=2):
        formula = minibatch_second_moment(optimizer, (rule.slots[a], rule.slots[b]), replacement=replacement)
        for i, j in ((0, 0), (0, 1), (1, 0)):
            values = {"h_i": hessian[i, i], "h_j": hessian[j, j], "batch_size": 2, "num_examples": 3}
            values |= {"curvature_ij": curvature[i, j], "gradient_ij": gradient[i, j]}
            values |= {"cross_ij": cross[i, j], "cross_ji": cross[j, i]}
            for m, n in itertools.product(range(size), repeat=2):
                name = f"moment_{rule.slots[m]}_{rule.slots[n]}"
                values[name] = mean(z[m][i] * z[n][j] for z in stacked)
            swap = {symbol: values[role] for role, symbol in formula.symbols.items()}
            found = formula.expression.subs(swap)
            assert found == after[2 * a + i, 2 * b + j]
            without_cross = {**swap, formula.symbols["cross_ij"]: 0, formula.symbols["cross_ji"]: 0}
            if formula.parts["noise"] != 0:
                assert formula.expression.subs(without_cross) != found


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("rule", KEPT, ids=lambda rule: rule.name)
def test_the_stationary_variance_of_finite_data_is_that_of_all_batches(rule, replacement):
    """One direction: Z = mean over batches of A_B Z A_B' + b_B b_B', solved exactly."""
    optimizer = bound(rule).replace(lr=SMALL, **({"weight_decay": 0} if rule["weight_decay"] else {}))
    h, g = (R(1), R(4), R(2)), (R(1), R(1), R(-2))
    call = OneCall(optimizer)
    size = call.slots
    operator, drive = sp.eye(size**2), sp.zeros(size**2, 1)
    drawn = batches(3, 2, replacement)
    for batch in drawn:
        curvature, gradient = R(mean(h[n] for n in batch)), R(mean(g[n] for n in batch))
        step = sp.Matrix(call.keep + curvature * np.outer(call.gain, call.point))
        kick = sp.Matrix(call.gain) * gradient
        operator -= sp.kronecker_product(step, step) / len(drawn)
        drive += sp.kronecker_product(kick, kick) / len(drawn)
    settled = operator.LUsolve(drive)
    slots = rule.slots
    for a, b in itertools.product(range(size), repeat=2):
        formula = finite_data_covariance(optimizer, (slots[a], slots[b]), replacement=replacement)
        values = {"h_i": R(7, 3), "mean_square_h": R(7), "mean_square_g": R(2), "batch_size": 2, "num_examples": 3}
        assert formula.expression.subs({s: values[r] for r, s in formula.symbols.items()}) == settled[size * a + b]
    assert formula.prove().claims


@pytest.mark.parametrize("replacement", [True, False])
def test_mulayoff_and_michaeli(replacement):
    law, limit = (f(replacement=replacement) for f in (mulayoff_michaeli_covariance, mulayoff_michaeli_threshold))
    assert law.prove().claims
    assert limit.prove().claims
    denominator = 2 * law.symbols["h_i"] - limit.expression * law.parts["D"]
    assert is_zero(denominator)
    wrong = limit.expression * (1 + limit.symbols["batch_size"])
    with pytest.raises(ProofError):
        replace(limit, equation=sp.Eq(limit.equation.lhs, wrong), solution={limit.equation.lhs: wrong}).prove()


# --- Gaussian examples ----------------------------------------------------------------------------


def isserlis(cov, i, j, k, m):
    return cov[i, j] * cov[k, m] + cov[i, k] * cov[j, m] + cov[i, m] * cov[j, k]


def second_moment_operator(call, cov, batch_size):
    """The map of the second moments of all slots and directions (slot-major) by one Gaussian batch, without noise."""
    d, size = len(cov), call.slots
    keep = np.kron(call.keep, np.eye(d, dtype=int))
    gain = np.kron(call.gain[:, None], np.eye(d, dtype=int))
    point = np.kron(call.point[None, :], np.eye(d, dtype=int))
    fourth = np.array([[[[isserlis(cov, i, j, k, m) for m in range(d)] for k in range(d)] for j in range(d)]
                       for i in range(d)], dtype=object)  # fmt: skip
    pair = np.einsum("ij,km->ijkm", cov, cov)
    drawn = (fourth + (batch_size - 1) * pair) / R(batch_size)  # E (H_B)_ij (H_B)_km

    def apply(z):
        seen = point @ z @ point.T
        gradient = np.einsum("ijkm,jm->ik", drawn, seen)
        crossed = keep @ z @ point.T @ cov @ gain.T + gain @ cov @ point @ z @ keep.T
        return keep @ z @ keep.T + crossed + gain @ gradient @ gain.T

    return apply, gain, size * d


def settled_exactly(call, cov, batch_size, noise):
    """Solve Z = apply(Z) + drive as one dense linear system."""
    apply, gain, n = second_moment_operator(call, cov, batch_size)
    drive = gain @ (noise * cov / R(batch_size)) @ gain.T
    columns = []
    for k in range(n**2):
        unit = np.zeros(n**2, dtype=object) + R(0)
        unit[k] = R(1)
        columns.append(unit - (apply(unit.reshape(n, n))).ravel())
    system = sp.Matrix(np.array(columns).T.tolist())
    return np.array((system.LUsolve(sp.Matrix(drive.ravel().tolist()))).tolist(), dtype=object).reshape(n, n)


@pytest.mark.parametrize("rule", [*KEPT, look_ahead], ids=lambda rule: rule.name)
def test_gaussian_law_solves_the_dense_second_moment_equation(rule):
    decay = {"weight_decay": 0} if any(p.name == "weight_decay" for p in rule.hyperparameters) else {}
    optimizer = bound(rule).replace(lr=SMALL, **decay)
    spectrum, noise, size = (R(1), R(5, 2)), R(9, 4), 2
    settled = settled_exactly(OneCall(optimizer), np.diag(spectrum), size, noise)
    for a, b in itertools.product(range(len(rule.slots)), repeat=2):
        formula = gaussian_minibatch_covariance(optimizer, (rule.slots[a], rule.slots[b]), eigenvalues=spectrum)
        for i in (0, 1):
            values = {"h_i": spectrum[i], "label_noise": R(3, 2), "batch_size": size}
            found = formula.explicit().subs({s: values[r] for r, s in formula.symbols.items()})
            assert found == settled[2 * a + i, 2 * b + i]
            assert settled[2 * a + i, 2 * b + 1 - i] == 0
    additive = additive_minibatch_limit(optimizer)
    values = {"h_i": 1, "label_noise": R(3, 2), "batch_size": size, "U": 0}
    stated = additive.expression.subs({s: values[r] for r, s in additive.symbols.items()})
    assert 0 < stated < settled[0, 0]


@pytest.mark.parametrize("rule", [*ONCE, look_ahead], ids=lambda rule: rule.name)
def test_one_gaussian_step_is_the_dense_operator(rule):
    optimizer, size = bound(rule), 3
    spectrum, noise = np.diag((R(1), R(5, 2))), R(9, 4)
    call = OneCall(optimizer)
    apply, gain, n = second_moment_operator(call, spectrum, size)
    root = np.array([[R((3 * k + 2 * m) % 5 - 1, k + 1) for m in range(n)] for k in range(n)], dtype=object)
    before = root @ root.T
    after = apply(before) + gain @ (noise * spectrum / R(size)) @ gain.T
    point = np.kron(call.point[None, :], np.eye(2, dtype=int))
    total = np.trace(spectrum @ point @ before @ point.T)
    for a, b in itertools.product(range(call.slots), repeat=2):
        formula = gaussian_minibatch_second_moment(optimizer, (rule.slots[a], rule.slots[b]))
        for i, j in ((0, 0), (0, 1)):
            values = {"h_i": spectrum[i, i], "h_j": spectrum[j, j], "delta_ij": int(i == j), "T": total}
            values |= {"label_noise": R(3, 2), "batch_size": size}
            for m, k in itertools.product(range(call.slots), repeat=2):
                values[f"moment_{rule.slots[m]}_{rule.slots[k]}"] = before[2 * m + i, 2 * k + j]
            found = formula.expression.subs({symbol: values[role] for role, symbol in formula.symbols.items()})
            assert found == after[2 * a + i, 2 * b + j]


def test_weight_decay_moves_the_mean_and_correlates_directions():
    """Oracle: mean and second moment with the constant 1 as one more slot, solved exactly."""
    spectrum, star, sigma, size = (R(1), R(5, 2)), (R(3), R(-2)), R(3, 2), 2
    for rule in (sgd, heavy_ball, sgdw):
        values = {"lr": SMALL, "momentum": R(1, 2), "weight_decay": R(1, 3)}
        optimizer = rule(**{p.name: values.get(p.name, 0) for p in rule.hyperparameters})
        call, d = OneCall(optimizer), 2
        apply, gain, n = second_moment_operator(call, np.diag(spectrum), size)
        # In coordinates about the optimum the step adds (keep - I) of the optimum in the weights and its copies.
        origin = np.concatenate([np.array(star) * call.point[k] for k in range(call.slots)])
        keep = np.kron(call.keep, np.eye(d, dtype=int))
        push = keep @ origin - origin
        transition = keep + gain @ np.diag(spectrum) @ np.kron(call.point[None, :], np.eye(d, dtype=int))
        centre = sp.Matrix((np.eye(n, dtype=int) - transition).tolist()).LUsolve(sp.Matrix(push.tolist()))
        centre = np.array(centre.tolist(), dtype=object)[:, 0]
        drive = gain @ (sigma**2 * np.diag(spectrum) / R(size)) @ gain.T
        drive = drive + np.outer(transition @ centre, push) + np.outer(push, transition @ centre) + np.outer(push, push)
        units = [np.array([R(int(k == m)) for m in range(n**2)], dtype=object).reshape(n, n) for k in range(n**2)]
        system = sp.Matrix(np.array([(u - apply(u)).ravel() for u in units]).T.tolist())
        second = np.array(system.LUsolve(sp.Matrix(drive.ravel().tolist())).tolist(), dtype=object).reshape(n, n)
        covariance = second - np.outer(centre, centre)

        formula = gaussian_minibatch_covariance(optimizer)
        assert formula.prove().claims
        h, w_star = formula.symbols["h_i"], formula.symbols["w_star"]
        at = {formula.symbols["batch_size"]: size}
        share, displaced = (
            sum(formula.parts[part].subs({**at, h: spectrum[i], w_star: star[i]}) for i in (0, 1))
            for part in ("share", "displaced")
        )
        at |= {formula.symbols["U"]: share, formula.symbols["V"]: displaced, formula.symbols["label_noise"]: sigma}
        for i in (0, 1):
            assert formula.expression.subs({**at, h: spectrum[i], w_star: star[i]}) == covariance[i, i]
        mixed = formula.parts["off_diagonal"]
        named = {"h_i": spectrum[0], "h_j": spectrum[1], "w_star": star[0], "w_star_j": star[1], "batch_size": size}
        found = mixed.subs({s: named[s.name] for s in mixed.free_symbols})
        assert found == covariance[0, 1] != 0


def test_the_additive_law_is_the_limit_of_large_batches():
    formula = additive_minibatch_limit(heavy_ball)
    share = formula.exact.parts["share"]
    size = formula.symbols["batch_size"]
    error = formula.specialise(U=share).relative_error
    assert sp.limit(error, size, sp.oo) == 0
    assert is_zero(sp.limit(error * size, size, sp.oo) - sp.limit(-2 * share * size, size, sp.oo))


def test_isserlis_with_the_wrong_sign_does_not_prove_itself():
    formula = gaussian_fourth_moment()
    diagonal = formula.defining[0].lhs
    for change in (-2, 1):
        wrong = formula.solution[diagonal] + change * sp.Symbol("a_i", nonnegative=True) ** 2 * sp.Symbol(
            "M_ii", real=True
        )
        with pytest.raises(ProofError):
            replace(formula, solution={**formula.solution, diagonal: wrong}).prove()


# --- thresholds -----------------------------------------------------------------------------------


def test_the_threshold_of_two_directions_is_bulatovs():
    threshold = mean_square_threshold(sgd, (1, 2), 1)
    assert sp.simplify(threshold - 4 / (9 + sp.sqrt(17))) == 0
    assert str(sp.N(threshold, 12)) == "0.304805898399"


@pytest.mark.parametrize("rule", [sgd, heavy_ball, nesterov, qhm, sgdw], ids=lambda rule: rule.name)
def test_at_the_threshold_the_second_moment_operator_has_spectral_radius_one(rule):
    """Spectral radius of the dense operator in double precision, from the rule's own step."""
    values = {"momentum": R(4, 5), "dampening": 0, "beta": R(4, 5), "nu": R(1, 2), "weight_decay": R(1, 50)}
    optimizer = rule(**{p.name: values[p.name] for p in rule.hyperparameters if p.name != "lr"})
    optimizer = optimizer.replace(weight_decay=0) if rule is not sgdw else optimizer
    spectrum, size = (R(1), R(2)), 3
    threshold = mean_square_threshold(optimizer, spectrum, size)

    def radius(factor):
        at = optimizer.replace(lr=sp.Rational(sp.N(threshold, 40)) * factor)
        apply, _, n = second_moment_operator(OneCall(at), np.diag(spectrum), size)
        units = np.eye(n**2, dtype=int).reshape(n**2, n, n)
        matrix = np.array([(apply(u)).ravel() for u in units]).T.astype(float)
        return max(abs(np.linalg.eigvals(matrix)))

    assert radius(1) == pytest.approx(1, abs=1e-9)
    assert radius(R(99, 100)) < 1 < radius(R(101, 100))


@pytest.mark.parametrize("rule", [sgd, heavy_ball, polyak], ids=lambda rule: rule.name)
def test_isotropic_thresholds(rule):
    formula = isotropic_threshold(rule)
    assert formula.prove().claims
    h, d, size = (formula.symbols[r] for r in ("h_i", "d", "batch_size"))
    mu = formula.symbols.get("momentum", sp.Integer(0))
    assert is_zero(formula.expression - 2 * (1 - mu) / (h * ((1 - mu) / (1 + mu) + (d + 1) / size)))
    bound_rule = rule() if rule is sgd else rule(momentum=R(1, 3))
    numbers = formula.expression.subs({h: 3, d: 4, size: 2, mu: R(1, 3)})
    assert mean_square_threshold(bound_rule, [3] * 4, 2) == numbers
    with pytest.raises(InvalidRuleError, match="degree 2"):
        isotropic_threshold(nesterov)


def test_beyond_the_threshold_the_formula_is_no_variance():
    """The linear system goes on having a solution; its U > 1 says that it is none."""
    formula = gaussian_minibatch_covariance(sgd, eigenvalues=(1, 2))
    threshold = mean_square_threshold(sgd, (1, 2), 1)
    values = {"h_i": 1, "label_noise": 1, "batch_size": 1}
    for factor, sign in ((R(99, 100), 1), (R(101, 100), -1)):
        at = {formula.symbols[r]: v for r, v in {**values, "lr": sp.Rational(sp.N(threshold, 30)) * factor}.items()}
        assert sp.sign(formula.explicit().subs(at)) == sign
        assert (formula.where[sp.Symbol("U", nonnegative=True)].subs(at) < 1) == (sign == 1)


def test_linear_scaling():
    optimizer = heavy_ball(momentum=R(1, 2))
    formula = linear_scaling_gap(optimizer)
    assert formula.prove().claims
    law = gaussian_minibatch_covariance(optimizer, eigenvalues=[R(3, 2)])
    at = {"h_i": R(3, 2), "label_noise": 1}

    def variance(lr, size):
        values = {**at, "lr": lr, "batch_size": size}
        return law.explicit().subs({s: values[r] for r, s in law.symbols.items()})

    values = {"h_i": R(3, 2), "k": 4, "lr": R(1, 20), "batch_size": 8}
    gap = formula.expression.subs({s: values[r] for r, s in formula.symbols.items()})
    assert gap == variance(R(1, 5), 32) / variance(R(1, 20), 8) - 1 > 0
    largest = largest_linear_scaling(optimizer.replace(lr=R(1, 20)), [R(3, 2), 1], 8)
    k = sp.Rational(sp.N(largest, 40))
    share = mean_square_share(optimizer)
    swap = {share.symbols["lr"]: R(1, 20) * k, share.symbols["batch_size"]: 8 * k}
    total = sum(share.expression.subs({**swap, share.symbols["h_i"]: h}) for h in (R(3, 2), 1))
    assert abs(total - 1) < R(1, 10**30)
    assert largest_linear_scaling(sgd(lr=R(1, 10)), [1], 8) == 2 / R(1, 10) - R(2, 8)


# --- the literature -------------------------------------------------------------------------------


def test_literature_on_gaussian_minibatches():
    assert momentum_minibatch_covariance().prove().claims
    law = spectrally_expressible_covariance(heavy_ball)
    assert law.prove().claims
    h, lr, mu, size, sigma, total, tau1, tau2 = (
        law.symbols[r] for r in ("h_i", "lr", "momentum", "batch_size", "label_noise", "U", "tau1", "tau2")
    )
    g = 2 * (1 - mu) - ((1 - mu) / (1 + mu) - tau2 / size) * lr * h
    assert is_zero(law.expression - lr * sigma**2 / (size * g * (1 - total)))  # Velikanov et al., with T = U
    assert is_zero(law.parts["share"] - tau1 * lr * h / (size * g))
    gaussian = gaussian_minibatch_covariance(heavy_ball)
    assert is_zero(law.specialise(tau1=1, tau2=-1).expression - gaussian.expression)
    minus = law.specialise(tau1=1, tau2=1)  # tr(AS)A - ASA, the sign of Ziyin et al.'s Proposition 4
    assert not is_zero(minus.expression - gaussian.expression)


# --- the rest -------------------------------------------------------------------------------------


# With all symbols free the rules of many hyper-parameters take seconds each: those are proved in the slow run.
SYMBOLIC = [
    sgd,
    heavy_ball,
    nesterov,
    polyak,
    qhm(beta=R(5, 7), nu=R(2, 3)),
    sgdw(momentum=R(4, 5), weight_decay=R(1, 9)),
]
LONG = [pytest.param(rule, marks=pytest.mark.slow, id=rule.name) for rule in (qhm, sgdw)]


@pytest.mark.parametrize("rule", [*SYMBOLIC, *LONG], ids=repr)
def test_every_formula_proves_itself(rule):
    made = [
        minibatch_second_moment(rule, replacement=False),
        gaussian_minibatch_second_moment(rule),
        gaussian_minibatch_covariance(rule),
        mean_square_share(rule),
    ]
    for formula in made:
        assert formula.prove().claims
        assert formula.explicit().free_symbols <= set(formula.symbols.values())


def test_a_wrong_law_does_not_prove_itself():
    formula = gaussian_minibatch_covariance(heavy_ball)
    shown = formula.equation.lhs
    commuting = stationary_covariance(heavy_ball).specialise(h_j="h_i").expression  # as if the noise did not know w
    drawn = formula.symbols["label_noise"] ** 2 * formula.symbols["h_i"] / formula.symbols["batch_size"]
    wrong = commuting.subs(sp.Symbol("c_ij", real=True), drawn)
    with pytest.raises(ProofError):
        replace(formula, equation=sp.Eq(shown, wrong), solution={**formula.solution, shown: wrong}).prove()


def test_the_one_step_equation_says_where_weight_decay_pulls():
    for make in (minibatch_second_moment, gaussian_minibatch_second_moment):
        assert "optimum at the origin" in [a.name for a in make(sgdw).assumptions]
        assert "optimum at the origin" not in [a.name for a in make(heavy_ball).assumptions]


def test_an_approximation_without_a_closed_exact_law_has_no_error():
    assert tail_index_statement().relative_error is sp.nan
    assert additive_minibatch_limit(sgd).relative_error != 0
    assert gaussian_minibatch_covariance(sgd).relative_error == 0


def test_at_the_threshold_itself_the_law_is_undefined():
    law = gaussian_minibatch_covariance(sgd, eigenvalues=[1]).lambdify()
    with pytest.raises(HyperparameterError, match=r"does not hold at batch_size=2, lr=1.0: it needs U < 1\.$"):
        law(h_i=1.0, label_noise=1.0, batch_size=2, lr=1.0)


def test_what_is_not_closed_is_refused():
    for make in (minibatch_second_moment, finite_data_covariance, gaussian_minibatch_covariance, mean_square_share):
        with pytest.raises(InvalidRuleError, match="more than once a step"):
            make(sam)
    with pytest.raises(InvalidRuleError, match="not the optimum"):
        finite_data_covariance(sgdw)
    with pytest.raises(InvalidRuleError, match="weight_decay=0"):
        additive_minibatch_limit(sgd.free("weight_decay"))
    with pytest.raises(InvalidRuleError, match="has the slots"):
        gaussian_minibatch_covariance(sgd, ("w", "v"))

    @update_rule(slots=("w",))
    def clash(state, grad, *, batch_size):
        (w,) = state
        return (w - batch_size * grad(w),)

    with pytest.raises(HyperparameterError, match="a name that this formula uses"):
        minibatch_second_moment(clash)


def test_thresholds_refuse_what_they_cannot_take():
    with pytest.raises(HyperparameterError, match="must have lr unbound"):
        mean_square_threshold(heavy_ball, (1, 2), 1)
    with pytest.raises(InvalidProblemError, match="got -1"):
        mean_square_threshold(sgd, (1, -1), 1)
    with pytest.raises(InvalidProblemError, match="positive integer"):
        mean_square_threshold(sgd, (1,), 0)
    with pytest.raises(HyperparameterError, match="no value for momentum"):
        largest_linear_scaling(heavy_ball(lr=1), (1,), 1)

    @update_rule(slots=("w",))
    def ascent(state, grad, *, lr):
        """Climbs until a step is so long that it overshoots: stable for no learning rate near 0."""
        (w,) = state
        return (w - (lr - 1) * grad(w),)

    with pytest.raises(InvalidRuleError, match="not stable in the mean"):
        mean_square_threshold(ascent, (1,), 8)
