"""``sgdcov verify`` with minibatches: what runs, what must be rejected, and what a wrong law looks like."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from sgdcov import numerics
from sgdcov.theory import RULES, heavy_ball, with_ema
from sgdcov.validation.verify import main, minibatch_cases, minibatch_checks, minibatch_controls, report, table
from sgdcov.validation.verify.command import verify
from sgdcov.validation.verify.minibatch_problems import load_noisy_problems

QUICK = {"quick": True, "seed": 0}


def cases(*only):
    return minibatch_cases.minibatch_cases(**QUICK, only=only)


def test_every_rule_runs_on_listed_batches_and_every_problem_in_torch():
    planned = minibatch_cases.minibatch_cases(quick=False, seed=0)
    assert {c.key for c in cases()} < {c.key for c in planned}
    assert {c.optimizer.rule for c in planned if c.problem.name == "examples" and c.engine == "rule"} == {
        *RULES, with_ema(heavy_ball),
    }  # fmt: skip
    assert {c.problem.name for c in planned if c.engine == "torch.optim"} == set(load_noisy_problems())
    assert {c.question for c in planned} == set(minibatch_cases.MINIBATCH_QUESTIONS)
    assert len({c.seed for c in planned}) == len(planned)


def test_the_problems_are_what_they_say():
    problems = load_noisy_problems()
    examples, shared = problems["examples"], problems["shared"]
    first, second = examples.examples.hessians[:2]
    assert np.linalg.norm(first @ second - second @ first) > 0.1 * np.linalg.norm(first @ second)
    assert np.abs(shared.batches.multiplicative(np.eye(4))).max() < 1e-15
    assert problems["dropout"].hessian.trace() > problems["diabetes"].hessian.trace()
    (case,) = cases("heavy_ball/langevin")
    assert case.noise.covariance().trace() > case.problem.batches.covariance().trace()


def test_rows_and_controls_of_listed_batches_agree(capsys):
    assert main(["--quick", "--only", "sgd/examples", "sgd/examples/*", "nesterov/examples", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "Minibatches, the noise exact at all weights" in out
    assert "no cross term" in out
    assert "DataLoader" in out
    assert "AGREEMENT" in out
    assert "\u2026" not in out  # no column is cut


def test_the_report_has_the_minibatches():
    found = verify(**QUICK, only=["sam/examples"])
    data = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    (row,) = data["minibatches"]
    assert row["oracle_vs_numerics"]["error"] <= row["oracle_vs_numerics"]["tolerance"] < 1e-13
    assert len(row["numerics_vs_measured"]["p_values"]) == 1
    assert data["comparisons"] == 2
    assert "9 examples with Hessians of their own" in report.as_markdown(found, figures=[])


@pytest.mark.parametrize("key", ["sgd/gaussian/minibatch", "nesterov/examples/minibatch"])
def test_a_law_that_is_off_by_ten_percent_fails(monkeypatch, key):
    solve = numerics.stationary_covariance

    def off(*args, **kwargs):
        result = solve(*args, **kwargs)
        return dataclasses.replace(result, value=1.1 * result.value)

    case = next(c for c in cases(key) if c.engine == "rule")
    assert minibatch_checks.check_against_oracle(case).agrees
    monkeypatch.setattr(numerics, "stationary_covariance", off)
    row = minibatch_checks.run_minibatch_row(case)
    assert any("numerics differ by" in text for text in row.disagreements(1e-6))


def test_a_wrong_law_is_rejected_by_the_run(monkeypatch):
    (case,) = cases("heavy_ball/diabetes/minibatch")
    solve = minibatch_checks.solve
    assert minibatch_checks.measure(case).p_values[0] > 1e-4

    def additive(case):
        (law,) = solve(case)
        d = case.noise.dim
        covariance = law.covariance.copy()
        covariance[:d, :d] = law.additive
        return [dataclasses.replace(law, covariance=covariance)]

    monkeypatch.setattr(minibatch_checks, "solve", additive)
    row = minibatch_checks.run_minibatch_row(case)
    assert any("measured and predicted covariance differ" in text for text in row.disagreements(1e-6))


def test_a_rule_beyond_mean_square_stability_is_refused_in_its_row():
    (case,) = cases("sgd/dropout/minibatch")
    case = dataclasses.replace(case, optimizer=case.optimizer.replace(lr=3 * case.optimizer.values["lr"]))
    row = minibatch_checks.run_minibatch_row(case)
    assert row.refusal.startswith("MeanSquareUnstableError")
    assert row.p_values == ()
    assert row.disagreements(0.0) == [row.refusal]


def test_a_control_that_is_right_is_not_rejected():
    (control,) = minibatch_controls.minibatch_controls(**QUICK, only=["sgd/examples/start"])

    def right(case):
        return minibatch_checks.solve(case)[0].covariance

    assert minibatch_checks.run_minibatch_control(control).p_value < 1e-9
    result = minibatch_checks.run_minibatch_control(dataclasses.replace(control, wrong=right))
    assert result.p_value == result.right_p_value > 1e-4
    found = dataclasses.replace(verify(**QUICK, only=["sam/examples"]), controls=(result,))
    assert (found.status, found.exit_code) == ("disagree", 1)


def test_a_withheld_p_value_does_not_count_and_is_shown():
    found = verify(**QUICK, only=["sam/examples"])
    (row,) = found.minibatches
    measurement = dataclasses.replace(row.measurement, p_values=(float("nan"),), withheld="no fourth moment")
    found = dataclasses.replace(found, minibatches=(dataclasses.replace(row, measurement=measurement),))
    assert found.comparisons == 1  # that of the mean
    assert found.status == "agree"
    (line,) = table.minibatch_grid(found.minibatches, found.threshold).rows
    assert (line[8], line[-1]) == ("none", "no p")
    assert any("no p-value, no fourth moment" in note for note in table.notes(found))


def test_without_a_fourth_moment_the_row_has_no_p_value():
    planned = minibatch_cases.minibatch_cases(quick=False, seed=0, only=["sgd/gaussian"])
    case = max((c for c in planned if c.question == "minibatch"), key=lambda c: c.optimizer.values["lr"])
    row = minibatch_checks.run_minibatch_row(dataclasses.replace(case, replicas=300))
    assert "fourth moment of the iterates does not exist" in row.measurement.withheld
    assert len(row.p_values) == 1  # that of the mean
    assert row.disagreements(1e-6) == []


def test_frozen_second_moments_are_an_approximation_that_does_not_count():
    (case,) = minibatch_cases.minibatch_cases(quick=False, seed=0, only=["heavy_ball/gaussian/adaptive"])
    row = minibatch_checks.run_minibatch_row(dataclasses.replace(case, replicas=150))
    assert row.measurement.relative_error < 3 * row.measurement.expected_relative_error
    assert row.p_values == ()
    wrong = dataclasses.replace(row, measurement=dataclasses.replace(row.measurement, p_values=(0.0,)))
    assert wrong.disagreements(1e-6) == []
    (line,) = table.minibatch_grid([row], 1e-6).rows
    assert (line[2], line[-1]) == ("Adam", "approx.")


def test_the_table_fits_its_width():
    planned = minibatch_cases.minibatch_cases(quick=False, seed=0, only=["*/gaussian", "*/examples/*"])
    row = minibatch_checks.run_minibatch_row(next(c for c in planned if c.key == "sgd/examples/start"))
    longest = dataclasses.replace(
        row.measurement, p_values=(1.2e-7,), mean_p_values=(3.4e-8,), relative_error=12.3456, additive_error=0.123,
        expected_relative_error=12.3456,
    )  # fmt: skip
    oracle = minibatch_checks.check_against_oracle(next(c for c in planned if c.key == "sgd/examples/minibatch"))
    rows = [dataclasses.replace(row, case=case, measurement=longest, oracle=oracle) for case in planned]
    for terminal, width in ((False, 80), (True, 80), (True, 200)):
        console = Console(width=width, file=io.StringIO(), force_terminal=terminal, color_system=None)
        grid = table.minibatch_grid(rows, 1e-6)
        grid.show(console)
        text = console.file.getvalue()
        assert "\u2026" not in text
        flat = " ".join(text.split())
        assert all(cell in flat for cells in grid.rows for cell in cells)
        assert not terminal or max(map(len, text.splitlines())) <= width
