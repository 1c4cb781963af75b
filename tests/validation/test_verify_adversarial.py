"""``sgdcov verify`` under attacks: what runs, what must be rejected, and what a wrong law looks like."""

import dataclasses
import json

import numpy as np
import pytest

from sgdcov import numerics
from sgdcov.numerics import AdversarialLeastSquares
from sgdcov.validation.verify import adversarial_checks, adversarial_controls, adversarial_oracles, main, report, table
from sgdcov.validation.verify.adversarial_cases import adversarial_cases
from sgdcov.validation.verify.adversarial_figures import draw_network, draw_radius
from sgdcov.validation.verify.adversarial_problems import load_adversarial_problems
from sgdcov.validation.verify.command import verify

QUICK = {"quick": True, "seed": 0}


def case_of(key):
    return next(c for c in adversarial_cases(quick=False, seed=0, only=[key]))


def test_every_problem_runs_and_some_in_the_real_torch_optim():
    full, quick = (adversarial_cases(quick=q, seed=0) for q in (False, True))
    problems = set(load_adversarial_problems())
    assert {c.problem.name for c in full} == {c.problem.name for c in quick} == problems
    assert {c.key for c in quick} < {c.key for c in full}
    assert {c.engine for c in quick} == {"rule", "torch.optim"}
    assert len({c.seed for c in full}) == len(full)
    controls = adversarial_controls.adversarial_controls(quick=False, seed=0)
    assert {c.name for c in controls} == {"no kink", "additive", "no attack", "no perturbation"}
    assert {c.name for c in adversarial_controls.adversarial_controls(quick=True, seed=0)} == {c.name for c in controls}


def test_the_problems_are_what_they_say():
    problems = load_adversarial_problems()
    cell, sample = problems["cell"].problem, problems["sample"].problem
    np.testing.assert_allclose(np.abs(cell.y - cell.X @ cell.optimum), 1.0, rtol=1e-9)
    assert problems["network"].problem.parameters >= 1000
    assert problems["network"].ordinary.radius == 0.0
    for name in ("logistic-linf", "gaussian-linf"):
        case = case_of(f"*/{name}/adversarial")
        deviations = np.sqrt(np.diag(case.problem.law(case.optimizer).value))
        assert (np.abs(case.problem.problem.optimum) > 6 * deviations).all()  # no kink of the norm within reach
    blunt, law = sample.mean_ae_hessian(sample.optimum), numerics.kink_corrected_covariance(
        case_of("sgd/sample/adversarial").optimizer, sample, 8
    )  # fmt: skip
    assert np.trace(law.hessian) > 1.15 * np.trace(blunt)


@pytest.mark.parametrize("name", sorted(set(load_adversarial_problems()) - {"network"}))
def test_every_problem_has_an_oracle(name):
    for case in (c for c in adversarial_cases(quick=True, seed=0) if c.problem.name == name):
        check = adversarial_oracles.check_against_oracle(case)
        assert check.agrees
        assert check.error < (1e-7 if name == "normalised" else 1e-12)  # a slope of finite difference
        assert check.claims > 0


def test_the_oracles_notice_what_is_off_by_a_millionth(monkeypatch):
    case = case_of("sgd/gaussian-l2/adversarial")
    hessian_at = type(case.problem.problem).hessian_at
    monkeypatch.setattr(type(case.problem.problem), "hessian_at", lambda self, w: (1 + 1e-6) * hessian_at(self, w))
    assert not adversarial_oracles.check_against_oracle(case).agrees
    case, loss = case_of("sgd/cell/adversarial"), AdversarialLeastSquares.loss
    monkeypatch.setattr(AdversarialLeastSquares, "loss", lambda self, w: (1 + 1e-6) * loss(self, w))
    assert not adversarial_oracles.check_against_oracle(case).agrees


def test_rows_and_controls_agree_and_are_printed(capsys):
    assert main(["--quick", "--only", "sgd/unhinged", "sgd/cell/adversarial", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "Attacked inputs and weights" in out
    assert "corners" in out
    assert "States outside the smooth piece" in " ".join(out.split())
    assert "the radius is 0" in out
    assert "AGREEMENT" in out
    assert "2 rows, 2 controls" in out
    assert "…" not in out  # no column is cut


def test_the_report_has_the_attacks():
    found = verify(**QUICK, only=["sgd/unhinged"])
    data = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    (row,) = data["attacked"]
    assert row["radius"] == 0.5
    assert row["oracle_vs_numerics"]["error"] <= row["oracle_vs_numerics"]["tolerance"]
    assert row["numerics_vs_measured"]["p_value"] > 1e-4
    assert data["comparisons"] == 2  # the row and its control
    assert "the robust unhinged loss, batches of 16, radius 0.5" in report.as_markdown(found, figures=[])


def test_a_law_without_the_kink_fails(monkeypatch):
    (case,) = adversarial_cases(**QUICK, only=["sgd/gaussian-l2/adversarial"])
    problem = case.problem
    without = dataclasses.replace(
        problem,
        law_of=lambda optimizer, p, size: dataclasses.replace(
            problem.law(optimizer),
            stationary=numerics.stationary_covariance(optimizer, p.mean_ae_hessian(), p.noise(size)),
        ),
    )  # fmt: skip
    assert not adversarial_checks.run_adversarial_row(case).disagreements(1e-5)
    row = adversarial_checks.run_adversarial_row(dataclasses.replace(case, problem=without))
    assert any("measured and predicted covariance differ" in text for text in row.disagreements(1e-5))


def test_what_a_layer_refuses_is_in_its_row():
    (case,) = adversarial_cases(**QUICK, only=["sgd/unhinged"])
    row = adversarial_checks.run_adversarial_row(dataclasses.replace(case, optimizer=case.optimizer.replace(lr=50.0)))
    # The formula knows its own domain, and theory is asked first.
    assert row.refusal.startswith("HyperparameterError: sgd.unhinged_covariance")
    assert row.refusal.endswith("it needs h*lr < 2.")
    assert row.p_values == ()
    (line,) = table.adversarial_grid([row], 1e-5).rows
    assert line[-1] == "DIFFERS"


def test_a_control_that_is_right_is_not_rejected():
    (control,) = adversarial_controls.adversarial_controls(**QUICK, only=["sgd/unhinged"])
    right = dataclasses.replace(control, wrong=lambda case: case.problem.law(case.optimizer).value)
    result = adversarial_checks.run_adversarial_control(right)
    assert result.p_value == result.right_p_value > 1e-4
    found = dataclasses.replace(verify(**QUICK, only=["sgd/unhinged"]), controls=(result,))
    assert (found.status, found.exit_code) == ("disagree", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "panels"), [(draw_radius, 4), (draw_network, 2)])
def test_the_figures_have_their_lines_and_dots(draw, panels):
    figure = draw(0, quick=True)
    assert len(figure.axes) == panels
    assert all(len(axis.lines) > 2 for axis in figure.axes)
    assert figure.axes[-1].containers
