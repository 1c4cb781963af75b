"""Limits and series see through `where`: known answers, and no answer that hides a dependence."""

import pytest
import sympy as sp

from sgdcov.errors import HyperparameterError, SgdcovError
from sgdcov.theory import (
    autocovariance,
    average_covariance,
    catalogue,
    epoch_covariance,
    heavy_ball,
    kesten_equation,
    learning_rate_change,
    momentum_matrix_equation,
    robust_hessian,
    robust_noise,
    sgd,
    stationary_covariance,
    transient_covariance,
)


def test_known_limits():
    mean = average_covariance(sgd)
    h_i, h_j, c, lr = (mean.symbols[r] for r in ("h_i", "h_j", "c_ij", "lr"))
    assert mean.limit("lr", 0) == 0
    assert sp.cancel(mean.limit("lr", 0, scale="1/lr") - c / (h_i + h_j)) == 0
    assert sp.cancel(mean.limit("K", sp.oo, scale="K") - c / (h_i * h_j)) == 0
    plateau = epoch_covariance(sgd, "average").specialise(h_j="h_i")
    batches = plateau.symbols["M"]
    assert sp.cancel(plateau.limit("h_i", 0) - c * lr**2 * (batches + 1) / 6) == 0
    hessian = robust_hessian()
    assert hessian.limit("radius", 0) == hessian.symbols["S_ij"]
    assert autocovariance(sgd).limit("s", sp.oo) == 0
    variance = stationary_covariance(heavy_ball).specialise(h_j="h_i")
    assert variance.limit("momentum", 1).has(sp.oo)
    assert stationary_covariance(heavy_ball).limit("momentum", 1) == 0
    slope = hessian.series("radius", 2).coeff(hessian.symbols["radius"])
    assert sp.simplify(slope - sp.diff(hessian.explicit(), hessian.symbols["radius"])
                       .subs(hessian.symbols["radius"], 0)) == 0  # fmt: skip


def test_what_is_outside_or_not_decided_is_refused():
    law = stationary_covariance(heavy_ball)
    for call in (lambda: law.limit("momentum", 2), lambda: law.limit("lr", -1), lambda: law.limit("nu", 0),
                 lambda: law.limit("lr", "rate"), lambda: stationary_covariance(sgd).limit("lr", sp.oo),
                 lambda: transient_covariance(sgd).limit("k", sp.oo), lambda: transient_covariance(sgd).series("k"),
                 lambda: law.series("lr", 0), lambda: kesten_equation().limit("lr", 0)):  # fmt: skip
        with pytest.raises(HyperparameterError):
            call()
    with pytest.raises(SgdcovError, match="between matrices"):
        momentum_matrix_equation().limit("lr", 0)


def walk(formula):
    """Take every limit and series; each answer speaks of the formula's other symbols only, or is refused by type."""
    answers = 0
    known = set(formula.symbols.values())
    for role, symbol in formula.symbols.items():
        for take in (lambda r=role: formula.limit(r, 0), lambda r=role: formula.limit(r, 1)):
            try:
                found = take()
            except SgdcovError:
                continue
            answers += 1
            assert found.free_symbols <= known - {symbol}
        try:
            series = formula.series(role, 1)
        except SgdcovError:
            continue
        assert series.free_symbols <= known
    return answers


@pytest.mark.parametrize("make", [transient_covariance, learning_rate_change, average_covariance, epoch_covariance],
                         ids=lambda make: make.__name__)  # fmt: skip
def test_no_answer_hides_a_dependence(make):
    assert walk(make(sgd)) > 3


def test_no_answer_on_attacked_models_hides_a_dependence():
    assert walk(robust_noise(float("inf"))) > 3


@pytest.mark.slow
def test_no_answer_of_the_catalogue_hides_a_dependence():
    assert sum(walk(formula) for formula in catalogue()) > 1000
