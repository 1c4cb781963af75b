"""``sgdcov verify`` passes on the truth, fails on what is wrong, and can be interrupted."""

import dataclasses
import io
import json
import time

import numpy as np
import pytest
from rich.console import Console
from torch.optim.lr_scheduler import ConstantLR

from sgdcov import numerics
from sgdcov.theory import RULES, heavy_ball, with_ema
from sgdcov.validation.verify import (
    cases,
    checks,
    controls,
    main,
    progress,
    time_cases,
    time_checks,
    time_closed_form,
    time_controls,
)
from sgdcov.validation.verify.cases import DEFAULT_SEED, SETUPS
from sgdcov.validation.verify.command import verify
from sgdcov.validation.verify.figures import FIGURES
from sgdcov.validation.verify.problems import load_problems
from sgdcov.validation.verify.result import FALSE_ALARM_RATE

SMALL = ("--quick", "--only", "sgd/noncommuting")
TIMED = ("--quick", "--only", "heavy_ball/noncommuting/*")


def test_a_true_law_agrees(capsys):
    assert main(SMALL) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].startswith("AGREEMENT")
    assert any("torch.optim" in line and "agrees" in line for line in lines)
    assert any("SDE limit" in line and "rejected" in line for line in lines)
    assert not any("\u2026" in line for line in lines)  # no column is cut


def test_every_rule_runs_on_every_problem_and_some_in_torch():
    planned = cases.cases(quick=True, seed=0)
    by_rule = {(c.optimizer.rule, c.problem.name) for c in planned if c.engine == "rule"}
    assert by_rule == {(rule, p.name) for rule in (*RULES, with_ema(heavy_ball)) for p in load_problems()}
    in_torch = {c.optimizer.rule.name for c in planned if c.engine == "torch.optim"}
    assert in_torch == {"sgd", "heavy_ball", "nesterov"}
    assert len({c.seed for c in planned}) == len(planned)
    bound = {name for setup in SETUPS for name, value in setup.values.items() if value}
    assert bound == {p.name for rule in (*RULES, with_ema(heavy_ball)) for p in rule.hyperparameters} - {"lr"}


def test_digits_has_flat_directions_without_any_noise():
    digits = load_problems()[2]
    assert digits.flat.tolist() == [0, 32, 39]
    assert not digits.quadratic.noise[digits.flat].any()
    assert not digits.quadratic.hessian[digits.flat].any()


def test_no_problem_commutes_and_the_one_made_for_it_least():
    noncommuting, diabetes, digits = (problem.commutator for problem in load_problems())
    assert noncommuting > 0.4
    assert min(diabetes, digits) > 0.1


@pytest.mark.parametrize("factor", [1.03, 0.97])
def test_numerics_that_is_off_by_three_percent_fails_everywhere(monkeypatch, capsys, factor):
    solve = numerics.stationary_covariance

    def off(*args, **kwargs):
        result = solve(*args, **kwargs)
        return dataclasses.replace(result, value=factor * result.value)

    monkeypatch.setattr(numerics, "stationary_covariance", off)
    assert main(SMALL) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "DISAGREEMENT" in out
    assert "theory and numerics differ" in out
    assert "measured and predicted covariance differ" in out
    assert "the right prediction was rejected" in out


def test_a_run_with_another_learning_rate_than_predicted_fails(monkeypatch):
    solve = checks._solve

    def other(case):
        return solve(dataclasses.replace(case, optimizer=case.optimizer.replace(lr=1.03 * case.optimizer.values["lr"])))

    monkeypatch.setattr(checks, "_solve", other)
    (case,) = [c for c in cases.cases(quick=True, seed=0, only=["sgd/noncommuting"]) if c.engine == "torch.optim"]
    assert checks.measure(case).p_value < 1e-6


def test_a_wrong_mean_fails(monkeypatch):
    find = numerics.stationary_mean
    (case,) = [c for c in cases.cases(quick=True, seed=0, only=["sgdw/noncommuting"]) if c.engine == "rule"]
    assert checks.measure(case).mean_p_value > 1e-3
    run = checks._run
    estimate = run(case, case.optimizer.rule.slots)
    monkeypatch.setattr(checks, "_run", lambda *args, **kwargs: estimate)
    monkeypatch.setattr(numerics, "stationary_mean", lambda *args, **kwargs: 1.03 * find(*args, **kwargs))
    assert checks.measure(case).mean_p_value < 1e-6


def test_a_control_that_is_not_rejected_fails(monkeypatch, capsys):
    def right(optimizer, problem):
        return numerics.stationary_covariance(optimizer, problem.quadratic.hessian, problem.quadratic.noise)

    def harmless(**kwargs):
        return [dataclasses.replace(c, wrong=right) for c in controls.controls(**kwargs)]

    monkeypatch.setattr("sgdcov.validation.verify.command.controls", harmless)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "NOT REJECTED" in out
    assert "the wrong prediction was not rejected" in out


def test_a_layer_that_refuses_to_answer_fails(monkeypatch, capsys):
    setup = dataclasses.replace(SETUPS[0], share=1.5)
    monkeypatch.setattr(cases, "SETUPS", (setup,))
    monkeypatch.setattr("sgdcov.validation.verify.command.controls", lambda **kwargs: [])
    assert main(SMALL) == 1
    assert "UnstableError: lr=1.5" in capsys.readouterr().out


def test_movement_along_a_flat_direction_fails(monkeypatch):
    (case,) = [c for c in cases.cases(quick=True, seed=0, only=["polyak/digits"]) if c.engine == "rule"]
    case = dataclasses.replace(case, replicas=100)
    estimate = checks._run(case, case.optimizer.rule.slots)
    monkeypatch.setattr(checks, "_run", lambda *args, **kwargs: estimate)
    assert checks.run_row(case, None).measurement.moved == 0.0
    samples = estimate.samples.copy()
    samples[0, 0, case.problem.flat[1]] += 1e-20
    estimate = dataclasses.replace(estimate, samples=samples)
    row = checks.run_row(case, None)
    assert "flat directions moved by 1.0e-20" in row.disagreements(threshold=0.0)


def test_an_interrupt_keeps_what_is_finished(monkeypatch, capsys, tmp_path):
    measure = checks.measure

    def interrupted(case):
        if case.engine == "torch.optim":
            raise KeyboardInterrupt
        return measure(case)

    monkeypatch.setattr(checks, "measure", interrupted)
    assert main([*SMALL, "--report", str(tmp_path)]) == 130
    out = capsys.readouterr().out
    assert "INTERRUPTED after 1 of 8 runs" in out
    assert "agrees" in out
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["status"] == "interrupted"


def test_an_interrupt_does_not_hide_a_disagreement(monkeypatch):
    def interrupted(control):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run_control", interrupted)
    found = verify(quick=True, seed=0, only=["sgd/noncommuting"])
    assert found.interrupted
    assert (found.status, found.exit_code) == ("interrupted", 130)
    wrong = dataclasses.replace(found.rows[0].measurement, p_value=0.0)
    found = dataclasses.replace(found, rows=(dataclasses.replace(found.rows[0], measurement=wrong),))
    assert (found.status, found.exit_code) == ("disagree", 1)


def test_the_report_can_be_read(tmp_path):
    folder = tmp_path / "new" / "report"
    assert main([*SMALL, "--report", str(folder), "--seed", "7"]) == 0
    assert {f.name for f in folder.iterdir()} == {
        "report.md", "report.json", "entries.png", "ellipses.png", "learning_rates.png", "over_time.png",
        "minibatch_risk.png", "shuffled_epochs.png", "radius.png", "network.png",
    }  # fmt: skip
    data = json.loads((folder / "report.json").read_text("utf-8"))
    assert data["status"] == "agree"
    assert data["seed"] == 7
    assert data["threshold"] == pytest.approx(FALSE_ALARM_RATE / data["comparisons"])
    assert {"numpy", "torch", "sympy", "scikit-learn"} <= set(data["versions"])
    (row, in_torch), (control,) = data["rows"], data["controls"]
    assert row["theory_vs_numerics"]["array_error"] <= row["theory_vs_numerics"]["array_tolerance"]
    assert row["proof"]["claims"] >= 4
    assert in_torch["engine"] == "torch.optim"
    assert control["p_value"] < data["threshold"] < control["right_p_value"]
    assert [row["question"] for row in data["over_time"]] == ["drop", "drop", "start", "lag", "average"]
    first = data["over_time"][0]
    assert first["lr_before"] == 4 * first["hyperparameters"]["lr"]
    assert 0 < first["theory_vs_numerics"]["error"] <= first["theory_vs_numerics"]["tolerance"] < 1e-13
    text = (folder / "report.md").read_text("utf-8")
    assert data["verdict"] in text
    for name in FIGURES:
        assert f"]({name})" in text
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_seed_repeats_a_run_whatever_else_runs():
    alone = cases.cases(quick=True, seed=3, only=["sam/diabetes"])
    (same,) = [c for c in cases.cases(quick=True, seed=3) if c.key == "sam/diabetes"]
    assert alone[0].seed == same.seed
    assert cases.cases(quick=True, seed=4, only=["sam/diabetes"])[0].seed != same.seed


def test_every_rule_is_asked_about_a_drop_and_schedules_run_in_torch():
    planned = time_cases.time_cases(quick=True, seed=0)
    by_rule = {(c.optimizer.rule, c.problem.name) for c in planned if c.question == "drop" and c.engine == "rule"}
    assert by_rule == {(r, p) for r in (*RULES, with_ema(heavy_ball)) for p in ("noncommuting", "diabetes")}
    assert {c.question for c in planned} == set(time_cases.QUESTIONS)
    in_torch = {(c.question, c.problem.name) for c in planned if c.engine == "torch.optim" and c.schedule is not None}
    assert in_torch == {(q, p) for q in ("step-decay", "cosine") for p in ("noncommuting", "diabetes")}
    assert len({c.seed for c in planned}) == len(planned)


def test_questions_about_time_can_be_asked_alone(capsys):
    assert main(TIMED) == 0
    out = capsys.readouterr().out
    assert "Over time" in out
    assert "Derived, solved, measured" not in out
    assert "AGREEMENT" in out
    assert "9 rows, 2 controls" in out
    assert "\u2026" not in out  # no column is cut


def test_a_law_over_time_that_is_off_by_three_percent_fails(monkeypatch):
    solve = time_checks.solve
    monkeypatch.setattr(time_checks, "solve", lambda *args: [1.03 * np.asarray(law) for law in solve(*args)])
    found = verify(quick=True, seed=0, only=["sgd/noncommuting/*"])
    assert all(any("theory and numerics differ" in text for text in row.disagreements(0.0)) for row in found.timed[::2])


def test_a_schedule_that_torch_does_not_follow_fails(monkeypatch):
    (case,) = (
        c for c in time_cases.time_cases(quick=True, seed=0, only=["heavy_ball/noncommuting/cosine"])
        if c.engine == "torch.optim"
    )  # fmt: skip
    assert min(time_checks.measure(case).p_values) > 1e-4
    constant = dataclasses.replace(case, scheduler=lambda optim: ConstantLR(optim, factor=1.0))
    assert min(time_checks.measure(constant).p_values) < 1e-12


def test_a_wrong_prediction_over_time_that_is_not_rejected_fails():
    (control,) = time_controls.time_controls(quick=True, seed=0, only=["heavy_ball/diabetes/average"])
    assert time_checks.run_time_control(control).p_value < 1e-12

    def right(case):
        return time_checks.solve(case, case.problem.quadratic.hessian)[0]

    result = time_checks.run_time_control(dataclasses.replace(control, wrong=right))
    assert result.p_value == result.right_p_value > 1e-4
    found = verify(quick=True, seed=0, only=["sgd/noncommuting/lag"])
    found = dataclasses.replace(found, controls=(result,))
    assert (found.status, found.exit_code) == ("disagree", 1)


def test_the_surrogate_with_one_rate_is_exact_without_momentum():
    (control,) = time_controls.time_controls(quick=True, seed=0, only=["heavy_ball/noncommuting/drop"])[1:]
    case = control.case
    after, before = (o.replace(momentum=0.0) for o in (case.optimizer, case.before))
    stated, exact = time_closed_form.early_phase_variances(after, before, case.steps, case.problem)
    np.testing.assert_allclose(stated, exact, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "adagrad"], "the rules are sgd"), (["--only", "sgd/mnist"], "noncommuting, diabetes, digits")],
)
def test_a_pattern_that_fits_nothing_is_refused(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("seed", ["-1", "x"])
def test_a_seed_that_is_none_is_refused(capsys, seed):
    with pytest.raises(SystemExit) as stop:
        main(["--seed", seed])
    assert stop.value.code == 2
    assert "--seed" in capsys.readouterr().err


def instead(monkeypatch, found):
    """The command, with this result in the place of all runs."""
    monkeypatch.setattr("sgdcov.validation.verify.command.verify", lambda **kwargs: found)


@pytest.fixture(scope="module")
def agreeing():
    """A verification with a row, a control and no disagreement."""
    found = verify(quick=True, seed=0, only=["sgd/noncommuting"])
    assert found.status == "agree"
    return found


def test_a_folder_that_cannot_be_written_is_code_3_and_one_line(capsys, tmp_path, monkeypatch, agreeing):
    instead(monkeypatch, agreeing)
    (tmp_path / "file").write_text("")
    assert main(["--report", str(tmp_path / "file" / "folder")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sgdcov.validation.verify.command.write_report", full)
    assert main(["--report", str(tmp_path / "folder")]) == 3
    captured = capsys.readouterr()
    assert "AGREEMENT" in captured.out
    (line,) = captured.err.splitlines()
    assert "folder: No space left on device" in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]  # nothing half written


def test_a_report_takes_the_place_of_an_earlier_one_whole(capsys, tmp_path, monkeypatch, agreeing):
    instead(monkeypatch, dataclasses.replace(agreeing, interrupted=True))  # no figures
    folder = tmp_path / "report"
    folder.mkdir()
    assert main(["--report", str(folder)]) == 130
    before = (folder / "report.json").read_text("utf-8")
    (folder / "radius.png").write_bytes(b"of an earlier report")
    instead(monkeypatch, dataclasses.replace(agreeing, interrupted=True, seed=5))
    assert main(["--report", str(folder)]) == 130
    assert (folder / "report.json").read_text("utf-8") != before
    assert {entry.name for entry in folder.iterdir()} == {"report.json", "report.md"}
    (folder / "thesis.tex").write_text("mine")
    capsys.readouterr()
    assert main(["--report", str(folder)]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_an_interrupt_among_the_figures_leaves_a_report_without_them(tmp_path, monkeypatch, agreeing):
    def interrupted(verification, folder, *, show):
        (folder / "entries.png").write_bytes(b"half")
        raise KeyboardInterrupt

    instead(monkeypatch, agreeing)
    monkeypatch.setattr("sgdcov.validation.verify.report.draw_figures", interrupted)
    assert main(["--report", str(tmp_path / "report")]) == 130
    assert {entry.name for entry in (tmp_path / "report").iterdir()} == {"report.json", "report.md"}
    assert ".png" not in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_without_a_terminal_a_line_of_progress_comes_now_and_then(monkeypatch):
    assert progress.EVERY == 10.0
    monkeypatch.setattr(progress, "EVERY", 0.01)
    console = Console(file=io.StringIO(), width=20)
    with progress.progress(console) as show:
        show("[sgd]/a/problem/of/a/long/name", 3, 8)
        time.sleep(0.2)
    lines = console.file.getvalue().splitlines()
    assert len(lines) > 1
    assert lines[-1].startswith("sgdcov verify: 3 of 8 done, now [sgd]/a/problem/of/a/long/name (")


def test_the_default_seed_is_in_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert str(DEFAULT_SEED) in capsys.readouterr().out


def test_the_threshold_shares_the_false_alarm_rate():
    found = verify(quick=True, seed=1, only=["sgd/noncommuting"])
    # Rule and torch.optim; drop in both, start with its mean, lag and average; one wrong prediction.
    assert found.comparisons == 2 + (2 + 2 + 1 + 1) + 1
    np.testing.assert_allclose(found.threshold, FALSE_ALARM_RATE / 9)
