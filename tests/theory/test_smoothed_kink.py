"""The curvature of a kink over an ensemble of weights, against quadrature of the averaged loss itself."""

from dataclasses import replace

import mpmath as mp
import pytest
import sympy as sp

from sgdcov.errors import ProofError
from sgdcov.theory import adversarial_hessian, robust_kink, smoothed_hessian

INF = float("inf")
DIGITS = 40


def evaluate(formula, given):
    return formula.lambdify("mpmath")(**{role: given[role] for role in formula.symbols})


@pytest.mark.parametrize("norm", [2, INF, 1, 3, "p"], ids=str)
def test_formulas_prove_themselves(norm):
    formula = smoothed_hessian(norm)
    assert formula.prove().claims
    assert formula.kind == ("exact" if norm in (INF, 1) else "approximation")
    without = tuple((text, e + formula.parts["kink"]) for text, e in formula.identities)
    with pytest.raises(ProofError):
        replace(formula, identities=without).prove()


@pytest.mark.parametrize("label", ["3/10", "-1/5", "2"])
def test_it_is_the_hessian_of_the_averaged_loss(label):
    """linf, two weights of kept signs; the integral is split where the residual changes sign."""
    with mp.workdps(DIGITS):
        x, mean, signs = (mp.mpf(1), mp.mpf(-2)), (mp.mpf(3) / 5, mp.mpf(-1) / 4), (1, -1)
        y, radius = mp.mpf(sp.Rational(label).p) / sp.Rational(label).q + mp.fdot(x, mean), mp.mpf(1) / 5
        root = mp.matrix([[mp.mpf(3), mp.mpf(1)], [mp.mpf(-1), mp.mpf(2)]]) / 10
        along = [x[0] * root[0, k] + x[1] * root[1, k] for k in range(2)]
        spread = mp.sqrt(mp.fdot(along, along))
        # Rotate the coordinates so that r depends on the first only.
        c, s = along[0] / spread, along[1] / spread
        root = root * mp.matrix([[c, -s], [s, c]])
        second = [(-mp.sqrt(3), mp.mpf(1) / 6), (mp.mpf(0), mp.mpf(2) / 3), (mp.sqrt(3), mp.mpf(1) / 6)]

        def averaged(at):
            middle = y - mp.fdot(x, at)

            def integrand(z):
                r, total = middle - spread * z, mp.mpf(0)
                for other, p in second:  # exact for the square in it
                    w = [at[k] + root[k, 0] * z + root[k, 1] * other for k in range(2)]
                    total += p * (abs(r) + radius * mp.fdot(signs, w)) ** 2 / 2
                return total * mp.npdf(z)

            return mp.quad(integrand, sorted([middle / spread, *(mp.mpf(z) for z in (-14, -5, 0, 5, 14))]))

        covariance = root * root.T
        given = {"mean_residual": y - mp.fdot(x, mean), "spread": spread, "norm_w": mp.fdot(signs, mean),
                 "radius": radius, "coupling": -radius * sum(x[a] * covariance[a, b] * signs[b] for a in range(2)
                                                             for b in range(2))}  # fmt: skip
        step = mp.mpf(10) ** -8
        formula = smoothed_hessian(INF)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            difference = mp.mpf(0)
            for a in (1, -1):
                for b in (1, -1):
                    at = list(mean)
                    at[i] += a * step
                    at[j] += b * step
                    difference += a * b * averaged(at) / (4 * step**2)
            entry = {**given, "x_i": x[i], "x_j": x[j], "sign_w_i": mp.mpf(signs[i]), "sign_w_j": mp.mpf(signs[j])}
            assert abs(evaluate(formula, entry) - difference) < mp.mpf(10) ** -12
            one = {**entry, "sign": mp.sign(entry["mean_residual"])}
            if abs(entry["mean_residual"]) < 1:  # negative control: the example's own Hessian, or the average of it
                assert abs(evaluate(adversarial_hessian("squared", INF), one) - difference) > mp.mpf(1) / 100


@pytest.mark.parametrize("spread", ["1/10", "1/1000"])
def test_over_gaussian_data_the_kinks_add_up_to_that_of_the_population(spread):
    """Mean residuals N(0, v^2) over the data: 2t f averages to 2t times the density of sqrt(v^2 + spread^2) at 0."""
    with mp.workdps(20):
        small, v, end = mp.mpf(sp.Rational(spread).p) / sp.Rational(spread).q, mp.mpf(3) / 4, mp.mpf(2) / 5
        kink = smoothed_hessian(INF).parts["kink"]
        names = {s.name: s for s in kink.free_symbols}
        fixed = {names["coupling"]: 0, names["x_i"]: 1, names["x_j"]: 1, names["norm_w"]: end, names["radius"]: 1}
        density = smoothed_hessian(INF).where[names["density"]]
        of_mean = sp.lambdify([names["mean_residual"], names["spread"]],
                              kink.subs(fixed).subs(names["density"], density), "mpmath")  # fmt: skip
        reach = [-8 * small, 0, 8 * small]
        total = mp.quad(lambda m: of_mean(m, small) * mp.npdf(m, 0, v), [-8 * v, *reach, 8 * v])
        assert abs(total - 2 * end * mp.npdf(0, 0, mp.sqrt(v**2 + small**2))) < mp.mpf(10) ** -14
        population = robust_kink(INF).specialise(S_ij=1, a_i=0, a_j=0, norm_w=1).explicit()
        roles = robust_kink(INF).symbols
        limit = sp.lambdify([roles["radius"], roles["v"]], population, "mpmath")(end, v)
        assert abs(total / limit - 1) < (small / v) ** 2
