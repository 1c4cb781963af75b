"""The command line of ``sgdcov verify``: progress, interruption, exit code."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console

from ... import __version__, verify_options
from ...errors import InvalidProblemError, SgdcovError
from . import adversarial_checks, checks, minibatch_checks, time_checks
from .adversarial_cases import ADVERSARIAL, adversarial_cases
from .adversarial_controls import AdversarialControl, adversarial_controls
from .adversarial_problems import load_adversarial_problems
from .adversarial_result import AdversarialRow
from .cases import SETUPS, Case, cases
from .controls import ControlCase, controls
from .minibatch_cases import MINIBATCH_QUESTIONS, minibatch_cases
from .minibatch_controls import MinibatchControl, minibatch_controls
from .minibatch_problems import load_noisy_problems
from .minibatch_result import MinibatchRow
from .problems import load_problems
from .progress import progress
from .questions import QuestionRow, questions, run_question
from .report import FILES, write_report
from .report_folder import new_folder
from .result import ControlResult, ProofCheck, Row, TimeRow, Verification
from .table import print_verification
from .time_cases import QUESTIONS, TimeCase, time_cases
from .time_controls import TimeControl, time_controls

__all__ = ["main", "verify"]

AnyControl: TypeAlias = ControlCase | TimeControl | MinibatchControl | AdversarialControl


def main(argv: Sequence[str]) -> int:
    """Run ``sgdcov verify`` and return its exit code.

    Parameters
    ----------
    argv : sequence of str
        The arguments after ``verify``.

    Returns
    -------
    int
        0 if every row agrees and every wrong prediction is rejected, 1 if not, 2 for a wrong call, 3 if the report
        cannot be written, 130 if interrupted.

    Examples
    --------
    >>> main(["--only", "adagrad/digits"])
    2
    """
    options = verify_options.parse(argv)
    errors, console = Console(stderr=True), Console()
    folder = nullcontext(None) if options.report is None else new_folder(options.report, FILES)
    try:
        with folder as written_to:
            with _one_thread(), progress(errors) as show:
                found = verify(quick=options.quick, seed=options.seed, only=options.only, show=show)
            print_verification(found, console)
            interrupted = written_to is not None and _write(found, written_to, errors)
        if options.report is not None:
            console.print(f"Report: {options.report}", highlight=False, soft_wrap=True)
    except InvalidProblemError as error:
        errors.print(f"sgdcov verify: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    except OSError as error:
        text = f"sgdcov verify: cannot write to {options.report or 'the output'}: {error.strerror or error}"
        errors.print(text, highlight=False, markup=False, soft_wrap=True)
        return 3
    if interrupted:
        console.print("INTERRUPTED while the figures were drawn; the report has none.", style="bold yellow")
        return 130
    return found.exit_code


def _write(found: Verification, folder: Path, errors: Console) -> bool:
    """Write the report; whether that was interrupted."""
    try:
        with _one_thread(), progress(errors) as show:
            write_report(found, folder, show=show)
    except KeyboardInterrupt:
        for figure in folder.glob("*.png"):
            figure.unlink()
        return True
    return False


def verify(
    *, quick: bool, seed: int, only: Sequence[str] = (), show: Callable[[str, int, int], None] = lambda *_: None
) -> Verification:
    """Run every check; an interrupt (Ctrl-C) ends it early and keeps what is finished.

    Parameters
    ----------
    quick : bool
        Fewer replicas, still every rule.
    seed : int
    only : sequence of str
        Patterns ``RULE``, ``RULE/PROBLEM`` or ``RULE/PROBLEM/QUESTION``, with wildcards; everything where there are
        none.
    show : callable
        Called with what is running, how many runs are done, and how many there are.

    Returns
    -------
    Verification

    Raises
    ------
    InvalidProblemError
        If no rule and problem fit the patterns.
    """
    started = time.perf_counter()
    rows_to_run = cases(quick=quick, seed=seed, only=only)
    timed_to_run = time_cases(quick=quick, seed=seed, only=only)
    minibatches_to_run = minibatch_cases(quick=quick, seed=seed, only=only)
    attacked_to_run = adversarial_cases(quick=quick, seed=seed, only=only)
    to_ask = questions(quick=quick, seed=seed, only=only)
    controls_to_run: tuple[AnyControl, ...] = (
        *controls(quick=quick, seed=seed, only=only),
        *time_controls(quick=quick, seed=seed, only=only),
        *minibatch_controls(quick=quick, seed=seed, only=only),
        *adversarial_controls(quick=quick, seed=seed, only=only),
    )
    rows_planned = len(rows_to_run) + len(timed_to_run) + len(minibatches_to_run) + len(attacked_to_run) + len(to_ask)
    if not rows_planned:
        raise InvalidProblemError(
            f"nothing fits --only {' '.join(only)}; the rules are {', '.join(s.rule.name for s in SETUPS)}, "
            f"the problems {', '.join(p.name for p in load_problems())}, "
            f"the questions about time {', '.join(QUESTIONS)}; with minibatches the problems "
            f"{', '.join(load_noisy_problems())}, the questions {', '.join(MINIBATCH_QUESTIONS)}; with attacks the "
            f"problems {', '.join(load_adversarial_problems())}, the question {ADVERSARIAL}; "
            f"others as question/public/NAME: {', '.join(q.name for q in questions(quick=quick, seed=seed))}"
        )
    planned = rows_planned + len(controls_to_run)
    rows: list[Row] = []
    timed: list[TimeRow] = []
    minibatches: list[MinibatchRow] = []
    attacked: list[AdversarialRow] = []
    asked: list[QuestionRow] = []
    results: list[ControlResult] = []
    interrupted = False
    try:
        _run_rows(rows_to_run, rows, lambda text: show(text, len(rows), planned))
        _run_time_rows(timed_to_run, timed, lambda text: show(text, len(rows) + len(timed), planned))
        for case in minibatches_to_run:
            show(f"{case.key}, {case.engine}", len(rows) + len(timed) + len(minibatches), planned)
            minibatches.append(minibatch_checks.run_minibatch_row(case))
        for under_attack in attacked_to_run:
            done = len(rows) + len(timed) + len(minibatches) + len(attacked)
            show(f"{under_attack.key}, {under_attack.engine}", done, planned)
            attacked.append(adversarial_checks.run_adversarial_row(under_attack))
        for question in to_ask:
            show(question.key, rows_planned - len(to_ask) + len(asked), planned)
            asked.append(run_question(question))
        for control in controls_to_run:
            show(f"{control.key}, wrong prediction: {control.name}", rows_planned + len(results), planned)
            results.append(_run_control(control))
    except KeyboardInterrupt:
        interrupted = True
    return Verification(
        rows=tuple(rows),
        controls=tuple(results),
        planned=planned,
        interrupted=interrupted,
        seed=seed,
        quick=quick,
        seconds=time.perf_counter() - started,
        versions=_versions(),
        timed=tuple(timed),
        minibatches=tuple(minibatches),
        attacked=tuple(attacked),
        asked=tuple(asked),
    )


def _run_control(control: AnyControl) -> ControlResult:
    if isinstance(control, TimeControl):
        return time_checks.run_time_control(control)
    if isinstance(control, MinibatchControl):
        return minibatch_checks.run_minibatch_control(control)
    if isinstance(control, AdversarialControl):
        return adversarial_checks.run_adversarial_control(control)
    return checks.run_control(control)


def _run_rows(cases_to_run: Sequence[Case], rows: list[Row], show: Callable[[str], None]) -> None:
    proofs: dict[str, ProofCheck] = {}
    for case in cases_to_run:
        rule = case.optimizer.rule
        proof = None
        if rule.name not in proofs:
            show(f"proving {rule.name}")
            try:
                proof = proofs[rule.name] = checks.prove(rule)
            except SgdcovError as error:
                rows.append(Row(case, refusal=f"{type(error).__name__}: {error}"))
                continue
        show(f"{case.key}, {case.engine}")
        rows.append(checks.run_row(case, proof))


def _run_time_rows(cases_to_run: Sequence[TimeCase], rows: list[TimeRow], show: Callable[[str], None]) -> None:
    proved: set[tuple[str, str]] = set()
    for case in cases_to_run:
        proof, name = None, (case.optimizer.rule.name, case.question)
        if name not in proved:
            show(f"proving {case.optimizer.rule.name}, {case.text}")
            try:
                proof = time_checks.prove(case)
            except SgdcovError as error:
                rows.append(TimeRow(case, refusal=f"{type(error).__name__}: {error}"))
                continue
            proved.add(name)
        show(f"{case.key}, {case.engine}")
        rows.append(time_checks.run_time_row(case, proof))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Step tensors on one thread: they are small, and threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    packages = ("numpy", "scipy", "sympy", "torch", "scikit-learn")
    return {
        "sgdcov": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "machine": platform.machine(),
    }
