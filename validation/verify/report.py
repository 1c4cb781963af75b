"""The result as files: ``report.md`` for readers, ``report.json`` with every number, and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from .adversarial_problems import load_adversarial_problems
from .adversarial_result import AdversarialRow
from .cases import SETUPS
from .figures import FIGURES, draw_figures
from .minibatch_cases import MINIBATCH_QUESTIONS
from .minibatch_problems import load_noisy_problems
from .minibatch_result import MinibatchRow
from .problems import load_problems
from .questions import QuestionRow
from .result import FALSE_ALARM_RATE, ControlResult, Row, TimeRow, Verification
from .sensitivity import Sensitive
from .table import adversarial_grid, control_grid, minibatch_grid, notes, question_grid, row_grid, time_grid
from .time_cases import PLAIN, QUESTIONS

__all__ = ["FILES", "write_report"]

#: What a report's folder may hold.
FILES = frozenset({"report.json", "report.md", *FIGURES})


def write_report(
    verification: Verification, folder: Path, *, show: Callable[[str, int, int], None] = lambda *_: None
) -> list[Path]:
    """Write ``report.json``, ``report.md`` and, unless the verification was interrupted, the figures.

    Parameters
    ----------
    verification : Verification
    folder : Path
        Which exists.
    show : callable
        Called with what is being drawn, how many figures are done, and how many there are.

    Returns
    -------
    list of Path
        What was written.
    """
    data, text = folder / "report.json", folder / "report.md"
    data.write_text(json.dumps(as_json(verification), indent=1, allow_nan=False) + "\n", "utf-8")
    text.write_text(as_markdown(verification, figures=[]), "utf-8")
    if verification.interrupted:
        return [text, data]
    drawn = draw_figures(verification, folder, show=show)
    text.write_text(as_markdown(verification, figures=drawn), "utf-8")
    return [text, data, *drawn]


def as_markdown(verification: Verification, figures: list[Path]) -> str:
    """The report that a person reads: verdict first."""
    threshold = verification.threshold
    size = "quick" if verification.quick else "default"
    parts = ["# sgdcov verify", f"**{verification.verdict}**"]
    if verification.disagreements:
        parts.append("\n".join(f"- {text}" for text in verification.disagreements))
    parts += [
        "Every rule has three answers to the question how widely its iterates scatter: a derived and proved formula "
        "(theory), a solved equation (numerics), a measured run (validation).",
    ]
    grids = (
        row_grid(verification.rows, threshold),
        time_grid(verification.timed, threshold),
        minibatch_grid(verification.minibatches, threshold),
        adversarial_grid(verification.attacked, threshold),
        question_grid(verification.asked, threshold),
        control_grid(verification.controls, threshold),
    )
    for grid in grids:
        parts += [f"## {grid.title}", grid.markdown() if grid.rows else "None."]
    parts.append("\n".join(f"- {note}" for note in notes(verification)))
    parts += [f"![{FIGURES[path.name]}]({path.name})\n\n{FIGURES[path.name]}" for path in figures]
    parts += ["## Problems", "\n".join(f"- {_described(problem)}" for problem in load_problems())]
    parts.append("\n".join(f"- `{name}`: {p.description}" for name, p in load_noisy_problems().items()))
    attacked = load_adversarial_problems().items()
    parts.append("\n".join(f"- `{name}`: {p.description}, radius {p.radius:g}" for name, p in attacked))
    named = [*((f"`{setup.rule.name}`", setup) for setup in SETUPS), ("schedules, and means of `heavy_ball`", PLAIN)]
    parts += ["## Hyper-parameters", "\n".join(f"- {name}: {_values(setup)}" for name, setup in named)]
    versions = ", ".join(f"{name} {version}" for name, version in verification.versions.items())
    command = f"sgdcov verify{' --quick' if verification.quick else ''} --seed {verification.seed}"
    parts.append(f"`{command}` ({size} size, {verification.seconds:.0f} s) with {versions}.")
    return "\n\n".join(parts) + "\n"


def as_json(verification: Verification) -> dict[str, Any]:
    """Every number, seed and version; what is not finite is null."""
    threshold = verification.threshold
    found = {
        "verdict": verification.verdict,
        "status": verification.status,
        "exit_code": verification.exit_code,
        "disagreements": list(verification.disagreements),
        "false_alarm_rate": FALSE_ALARM_RATE,
        "comparisons": verification.comparisons,
        "threshold": threshold,
        "seed": verification.seed,
        "quick": verification.quick,
        "seconds": verification.seconds,
        "versions": verification.versions,
        "problems": {
            p.name: {
                "description": p.description,
                "dim": p.quadratic.dim,
                "flat": [int(k) for k in p.flat],
                "commutator": p.commutator,
            }
            for p in load_problems()
        },
        "rows": [_row(row, threshold) for row in verification.rows],
        "questions": dict(QUESTIONS),
        "over_time": [_time_row(row, threshold) for row in verification.timed],
        "minibatch_questions": dict(MINIBATCH_QUESTIONS),
        "minibatches": [_minibatch_row(row, threshold) for row in verification.minibatches],
        "attacked": [_adversarial_row(row, threshold) for row in verification.attacked],
        "asked": [_question_row(row, threshold) for row in verification.asked],
        "controls": [_control(control) for control in verification.controls],
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _row(row: Row, threshold: float) -> dict[str, Any]:
    return {
        **_run(row.case),
        "engine": row.case.engine,
        "disagreements": row.disagreements(threshold),
        "proof": _numbers(row.proof),
        "theory_vs_numerics": _numbers(row.theory),
        "numerics_vs_measured": _numbers(row.measurement),
        "would_catch": _caught(row, threshold),
    }


def _time_row(row: TimeRow, threshold: float) -> dict[str, Any]:
    m = row.measurement
    return {
        **_run(row.case),
        "question": row.case.question,
        "steps": row.case.steps,
        "lr_before": None if row.case.before is None else float(row.case.before.values["lr"]),
        "record": list(row.case.record),
        "engine": row.case.engine,
        "disagreements": row.disagreements(threshold),
        "proof": _numbers(row.proof),
        "theory_vs_numerics": _numbers(row.theory),
        "numerics_vs_measured": {
            **_numbers(m),
            "p_values": list(m.p_values) if m else [],
            "mean_p_values": list(m.mean_p_values) if m else [],
        },
        "would_catch": _caught(row, threshold),
    }


def _minibatch_row(row: MinibatchRow, threshold: float) -> dict[str, Any]:
    m = row.measurement
    return {
        **_run(row.case),
        "question": row.case.question,
        "steps": row.case.steps,
        "positions": list(row.case.positions) if row.case.question == "epochs" else [],
        "engine": row.case.engine,
        "disagreements": row.disagreements(threshold),
        "claims": row.claims,
        "oracle_vs_numerics": _numbers(row.oracle),
        "numerics_vs_measured": {
            **_numbers(m),
            "p_values": list(m.p_values) if m else [],
            "mean_p_values": list(m.mean_p_values) if m else [],
        },
        "would_catch": _caught(row, threshold),
    }


def _adversarial_row(row: AdversarialRow, threshold: float) -> dict[str, Any]:
    return {
        **_run(row.case),
        "radius": row.case.problem.radius,
        "batch_size": row.case.problem.batch_size,
        "engine": row.case.engine,
        "disagreements": row.disagreements(threshold),
        "oracle_vs_numerics": _numbers(row.oracle),
        "numerics_vs_measured": _numbers(row.measurement),
        "would_catch": _caught(row, threshold),
    }


def _question_row(row: QuestionRow, threshold: float) -> dict[str, Any]:
    case = row.case
    return {
        "name": case.name,
        "asks": case.asks,
        "oracle": case.oracle,
        "seed": case.seed,
        "replicas": case.replicas[case.quick],
        "disagreements": row.disagreements(threshold),
        **_numbers(row.answers),
    }


def _caught(row: Sensitive, threshold: float) -> dict[str, float]:
    """What the row would have caught: a relative error of the whole, and of one eigen-direction."""
    return dict(zip(("whole", "one_direction"), row.caught(threshold) or (), strict=False))


def _control(control: ControlResult) -> dict[str, Any]:
    return {
        **_run(control.case),
        "name": control.case.name,
        "supposes": control.case.statement,
        "quantity": control.case.quantity,
        **_numbers(control),
    }


def _run(case: Any) -> dict[str, Any]:
    optimizer = case.optimizer
    return {
        "rule": optimizer.rule.name,
        "problem": case.problem.name,
        "hyperparameters": {name: float(value) for name, value in optimizer.values.items()},
        "replicas": case.replicas,
        "seed": case.seed,
    }


def _numbers(thing: Any) -> dict[str, Any]:
    """The fields of a result that are numbers or text; empty for None."""
    if thing is None:
        return {}
    values = {f.name: getattr(thing, f.name) for f in fields(thing)}
    return {name: value for name, value in values.items() if value is None or isinstance(value, int | float | str)}


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _described(problem: Any) -> str:
    flat = f", {len(problem.flat)} flat directions" if len(problem.flat) else ""
    return (
        f"`{problem.name}`: {problem.description}; d = {problem.quadratic.dim}{flat}, "
        f"|HC - CH| / |HC| = {problem.commutator:.2f}"
    )


def _values(setup: Any) -> str:
    values = ", ".join(f"{name} = {value:g}" for name, value in setup.values.items())
    return f"{values + ', ' if values else ''}lr about {setup.share:g} of the largest stable one"
