"""The result as text: cells that the terminal's table and the Markdown report share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from .adversarial_result import AdversarialRow
from .minibatch_result import MinibatchRow
from .questions import QuestionRow
from .result import FALSE_ALARM_RATE, ControlResult, Row, TimeRow, Verification
from .sensitivity import Sensitive
from .time_cases import DROP

__all__ = [
    "Grid",
    "adversarial_grid",
    "control_grid",
    "minibatch_grid",
    "notes",
    "print_verification",
    "question_grid",
    "row_grid",
    "time_grid",
]

RUN_BY = {"rule": "its rule", "torch.optim": "torch.optim"}


@dataclass(frozen=True)
class Grid:
    """A table: header, alignment of each column, rows of text, and which rows are bad."""

    title: str
    header: tuple[str, ...]
    right: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    bad: tuple[bool, ...]

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---:" if right else "---" for right in self.right]
        header = tuple(name.replace("\n", " ") for name in self.header)
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *self.rows))

    @property
    def width(self) -> int:
        """Columns that the table needs."""
        return sum(
            max(len(line) for text in column for line in text.split("\n"))
            for column in zip(self.header, *self.rows, strict=True)
        ) + 2 * len(self.header)  # a space on either side

    def show(self, console: Console) -> None:
        """Print the table; on a terminal that is too narrow, each row as a paragraph, so that nothing is cut."""
        if not console.is_terminal or console.width >= self.width:
            wide = console if console.width >= self.width else Console(file=console.file, width=self.width)
            wide.print(self.rich())
            return
        console.print(f"\n{self.title}\n", style="bold", highlight=False, markup=False)
        names = [name.replace("\n", " ") for name in self.header]
        for cells, bad in zip(self.rows, self.bad, strict=True):
            parts = [f"{name} {cell}".strip() for name, cell in zip(names, cells, strict=True) if cell]
            console.print("; ".join(parts), style="bold red" if bad else None, highlight=False, markup=False)

    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(
            title=self.title, title_justify="left", title_style="bold",
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        for name, right in zip(self.header, self.right, strict=True):
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        previous = ""
        for cells, bad in zip(self.rows, self.bad, strict=True):
            if previous and cells[0] != previous:
                table.add_section()
            shown = ("", *cells[1:]) if cells[0] == previous else cells
            style = "bold red" if bad else "dim" if cells[-1] in {"approx.", "no p"} else None
            table.add_row(*shown, style=style)
            previous = cells[0]
        return table


def row_grid(rows: Sequence[Row], threshold: float) -> Grid:
    """The rows as a table."""
    header = (
        "rule", "problem", "run by", "lr", "claims\nproved", "theory vs\nnumerics",
        "measured error\n(by chance)", "would\ncatch", "p", "p of\nmean", "time", "",
    )  # fmt: skip
    right = (False, False, False, True, True, True, True, True, True, True, True, False)
    lines, bad = [], []
    for row in rows:
        wrong = bool(row.disagreements(threshold) or row.blind(threshold))
        m, t, proof = row.measurement, row.theory, row.proof
        lines.append(
            (
                row.case.optimizer.rule.name,
                row.case.problem.name,
                RUN_BY[row.case.engine],
                f"{row.case.optimizer.values['lr']:.2g}",
                f"{proof.claims} in {proof.seconds:.1f} s" if proof else "",
                f"{t.error:.1e}" if t else "",
                f"{m.relative_error:.2%} ({m.expected_relative_error:.2%})" if m else "",
                _caught(row, threshold),
                p_text(m.p_value) if m else "",
                p_text(m.mean_p_value) if m and m.mean_p_value is not None else "",
                f"{(m.seconds if m else 0.0) + (t.seconds if t else 0.0):.1f} s",
                "DIFFERS" if wrong else "agrees",
            )
        )
        bad.append(wrong)
    return Grid("Derived, solved, measured", header, right, tuple(lines), tuple(bad))


def time_grid(rows: Sequence[TimeRow], threshold: float) -> Grid:
    """The rows over time as a table."""
    header = (
        "question", "rule", "problem", "run by", "lr", "claims", "theory vs\nnumerics",
        "measured error\n(by chance)", "would\ncatch", "p", "p of\nmean", "",
    )  # fmt: skip
    right = (False, False, False, False, True, True, True, True, True, True, True, False)
    lines, bad = [], []
    for row in rows:
        wrong = bool(row.disagreements(threshold) or row.blind(threshold))
        m, t, case = row.measurement, row.theory, row.case
        lr = f"{case.optimizer.values['lr']:.2g}"
        lines.append(
            (
                case.text,
                case.optimizer.rule.name,
                case.problem.name,
                RUN_BY[case.engine],
                lr if case.before is None else f"{case.before.values['lr']:.2g}/{DROP}",
                str(row.proof.claims) if row.proof else "",
                f"{t.error:.1e}" if t else "",
                f"{m.relative_error:.2%} ({m.expected_relative_error:.2%})" if m else "",
                _caught(row, threshold),
                p_text(min(m.p_values)) if m else "",
                p_text(min(m.mean_p_values)) if m and m.mean_p_values else "",
                "DIFFERS" if wrong else "agrees",
            )
        )
        bad.append(wrong)
    return Grid("Over time", header, right, tuple(lines), tuple(bad))


def minibatch_grid(rows: Sequence[MinibatchRow], threshold: float) -> Grid:
    """The rows with minibatches as a table."""
    header = (
        "problem", "rule", "run by", "lr", "oracle vs\nnumerics", "additive\noff by",
        "measured error\n(by chance)", "would\ncatch", "p", "p of\nmean", "",
    )  # fmt: skip
    right = (False, False, False, True, True, True, True, True, True, True, False)
    lines, bad = [], []
    for row in rows:
        wrong = bool(row.disagreements(threshold) or row.blind(threshold))
        m, o, case = row.measurement, row.oracle, row.case
        verdict = "agrees" if row.counts else "approx."
        loader = case.question == "epochs" and case.engine == "torch.optim"
        lines.append(
            (
                case.text,
                case.optimizer.rule.name,
                "DataLoader" if loader else case.adaptive_name or RUN_BY[case.engine],
                f"{case.optimizer.values['lr']:.2g}",
                f"{o.error:.1e}" if o else "",
                f"{m.additive_error:.1%}" if m else "",
                f"{m.relative_error:.2%} ({m.expected_relative_error:.2%})" if m else "",
                _caught(row, threshold),
                "" if not m else "none" if m.withheld else p_text(min(m.p_values)),
                p_text(min(m.mean_p_values)) if m and m.mean_p_values else "",
                "DIFFERS" if wrong else "no p" if m and m.withheld else verdict,
            )
        )
        bad.append(wrong)
    return Grid("Minibatches, the noise exact at all weights", header, right, tuple(lines), tuple(bad))


def adversarial_grid(rows: Sequence[AdversarialRow], threshold: float) -> Grid:
    """The rows with attacks as a table."""
    header = (
        "problem", "rule", "run by", "lr", "oracle", "claims", "oracle vs\nnumerics", "no attack\noff by",
        "measured error\n(by chance)", "would\ncatch", "p", "p of\nmean", "",
    )  # fmt: skip
    right = (False, False, False, True, False, True, True, True, True, True, True, True, False)
    lines, bad = [], []
    for row in rows:
        wrong = bool(row.disagreements(threshold) or row.blind(threshold))
        m, o, case = row.measurement, row.oracle, row.case
        lines.append(
            (
                case.problem.name,
                case.optimizer.rule.name,
                RUN_BY[case.engine],
                f"{case.optimizer.values['lr']:.2g}",
                o.kind if o else "",
                str(o.claims) if o else "",
                f"{o.error:.1e}" if o else "",
                f"{m.attack:.0%}" if m and m.attack is not None else "",
                f"{m.relative_error:.2%} ({m.expected_relative_error:.2%})" if m else "",
                _caught(row, threshold),
                "" if not m else "none" if m.withheld else p_text(m.p_value),
                p_text(m.mean_p_value) if m and m.mean_p_value is not None else "",
                "DIFFERS" if wrong else "no p" if m and m.withheld else "agrees",
            )
        )
        bad.append(wrong)
    return Grid("Attacked inputs and weights", header, right, tuple(lines), tuple(bad))


def question_grid(rows: Sequence[QuestionRow], threshold: float) -> Grid:
    """The rows of other public questions as a table."""
    header = ("question", "it asks for", "numerics against", "they differ by", "p", "time", "")
    right = (False, False, False, True, True, True, False)
    lines, bad = [], []
    for row in rows:
        wrong, a = bool(row.disagreements(threshold)), row.answers
        lines.append(
            (
                row.case.name,
                row.case.asks,
                row.case.oracle,
                f"{a.error:.1e}" if a else "",
                p_text(a.p_value) if a and a.p_value is not None else "",
                f"{row.seconds:.1f} s",
                "DIFFERS" if wrong else "agrees",
            )
        )
        bad.append(wrong)
    return Grid("Other public questions", header, right, tuple(lines), tuple(bad))


def control_grid(controls: Sequence[ControlResult], threshold: float) -> Grid:
    """The wrong predictions as a table."""
    header = ("wrong prediction", "it supposes", "rule", "problem", "wrong by", "p", "p of the\nright one", "time", "")
    right = (False, False, False, False, True, True, True, True, False)
    lines, bad = [], []
    for c in controls:
        wrong = not (c.p_value < threshold <= c.right_p_value)
        lines.append(
            (
                c.case.name,
                c.case.statement,
                c.case.optimizer.rule.name,
                c.case.problem.name,
                f"{c.size:.1%}",
                p_text(c.p_value),
                p_text(c.right_p_value),
                f"{c.seconds:.1f} s",
                "rejected" if c.p_value < threshold else "NOT REJECTED",
            )
        )
        bad.append(wrong)
    return Grid("Wrong predictions, each of which must be rejected", header, right, tuple(lines), tuple(bad))


def _caught(row: Sensitive, threshold: float) -> str:
    """The error of the whole and of one direction that the row would have caught."""
    caught = row.caught(threshold)
    if caught is None:
        return ""
    return " / ".join(
        "-" if error == float("inf") else f"{error:.1%}" if error < 0.1 else f"{error:.0%}" for error in caught
    )


def notes(verification: Verification) -> list[str]:
    """What a reader of the tables has to know."""
    found = [
        f"p is uniform on (0, 1) where the prediction is true. {verification.comparisons} p-values count, and one "
        f"below {verification.threshold:.1e} rejects: at most {FALSE_ALARM_RATE:.1%} of all verifications are false "
        f"alarms (Bonferroni). p is for all slots jointly; errors are those of the covariance of the weights "
        f"(Frobenius norm), beside what a run of this length gives by chance. torch.optim is the real "
        f"torch.optim.SGD.",
        "would catch: 95% of such runs reject a covariance of all slots that is wrong by this share as a whole / along "
        "one eigen-direction only (-: none is large enough).",
    ]
    measured = [row for row in verification.rows if row.measurement is not None]
    checked = [row.theory for row in verification.rows if row.theory is not None]
    if checked:
        closest = max(max(t.array_error, t.doubling_error) / t.array_tolerance for t in checked)
        found.append(
            f"theory vs numerics: the largest error of any entry in any slot, relative to the standard deviations it "
            f"belongs to; at most {closest:.0%} of what rounding explains. For pairs of eigenvalues, numerics' entries "
            f"are off by at most {max(t.pair_error for t in checked):.1e} of themselves."
        )
    found += _time_notes(verification.timed)
    flat = [row for row in measured if row.measurement and row.measurement.flat]
    if flat:
        moved = max(row.measurement.moved for row in flat if row.measurement)
        where = ", ".join(sorted({f"{row.case.problem.name} has {len(row.case.problem.flat)}" for row in flat}))
        still = "no replica moved along them, exactly" if moved == 0.0 else f"replicas moved along them by {moved:.1e}"
        found.append(f"Flat directions that no noise reaches: {where}; {still}.")
    return found + _minibatch_notes(verification.minibatches) + _adversarial_notes(verification.attacked)


def _time_notes(rows: Sequence[TimeRow]) -> list[str]:
    if not rows:
        return []
    text = (
        "Over time: so many steps after the learning rate of a stationary run drops to a quarter (drop), or after "
        "w = 0 (start); weights with themselves so many steps earlier (lag); the mean of so many stationary iterates. "
        "Schedules start at w = 0 and are looked at three times, of which the table shows the least p and the last "
        "error; in torch.optim a real lr_scheduler makes them. Drop and start are tested in all slots, the others in "
        "the weights."
    )
    closest = [row.theory.error / row.theory.tolerance for row in rows if row.theory is not None]
    return [text + (f" Theory vs numerics is at most {max(closest):.0%} of what rounding explains." if closest else "")]


def _minibatch_notes(rows: Sequence[MinibatchRow]) -> list[str]:
    if not rows:
        return []
    text = (
        "Minibatches: the law under noise that depends on the weights, beside it how far off the law with the noise at "
        "the minimum is. Batches of gaussian are made afresh, those of examples are distinct and all listed; the "
        "epochs of shared and examples are shuffled, and looked at at their ends and on average. The oracle is "
        "the sum over every batch for examples, for gaussian theory's formula"
    )
    claims = sum(row.claims or 0 for row in rows)
    text += f", proved in {claims} claims." if claims else "."
    checks = [row.oracle for row in rows if row.oracle is not None]
    if checks:
        largest: dict[str, float] = {}
        for check in checks:
            largest[check.kind] = max(check.error, largest.get(check.kind, 0.0))
        text += " Largest errors: " + ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(largest.items())) + "."
    if any(not row.counts for row in rows):
        text += (
            " The real Adam and RMSprop follow a law with frozen second moments only approximately; those rows are "
            "shown and do not count."
        )
    measured = [(row.case.key, row.measurement.withheld) for row in rows if row.measurement is not None]
    return [text, *(f"{key}: no p-value, {why}." for key, why in measured if why is not None)]


def _adversarial_notes(rows: Sequence[AdversarialRow]) -> list[str]:
    if not rows:
        return []
    text = (
        "Attacks: every replica's minibatches are attacked anew, exactly, at its own weights. The law is exact for "
        "cell (while no sign changes), perturbed (gradients at perturbed weights) and network (linearised, inputs "
        "attacked once), self-consistent with the curvature of kinks for sample, theory's Gaussian closure for "
        "normalised, and linear-noise for the others, where batches are large enough for it. Beside it is how far off "
        "the law without the attack is."
    )
    checks = [row.oracle for row in rows if row.oracle is not None]
    if checks:
        largest: dict[str, float] = {}
        for check in checks:
            largest[check.kind] = max(check.error, largest.get(check.kind, 0.0))
        text += " Largest errors: " + ", ".join(f"{kind} {error:.1e}" for kind, error in sorted(largest.items())) + "."
    left = [(row.case.key, row.measurement.left) for row in rows if row.measurement is not None]
    out = ", ".join(f"{share:.2%} of {key}" for key, share in left if share is not None)
    if out:
        text += f" States outside the smooth piece: {out}."
    withheld = [(row.case.key, row.measurement.withheld) for row in rows if row.measurement is not None]
    return [text, *(f"{key}: no p-value, {why}." for key, why in withheld if why is not None)]


def print_verification(verification: Verification, console: Console) -> None:
    """Print the tables, the notes, what disagrees, and last the verdict."""
    threshold = verification.threshold
    grids = (
        row_grid(verification.rows, threshold),
        time_grid(verification.timed, threshold),
        minibatch_grid(verification.minibatches, threshold),
        adversarial_grid(verification.attacked, threshold),
        question_grid(verification.asked, threshold),
        control_grid(verification.controls, threshold),
    )
    for grid in grids:
        if grid.rows:
            grid.show(console)
    for note in notes(verification):
        console.print(note, style="dim", highlight=False)
    for text in verification.disagreements:
        console.print(text, style="bold red", highlight=False, markup=False)
    style = {"agree": "bold green", "disagree": "bold red", "interrupted": "bold yellow"}[verification.status]
    console.print()
    console.print(verification.verdict, style=style, highlight=False, soft_wrap=True)


def p_text(p_value: float) -> str:
    """A p-value in few digits.

    Examples
    --------
    >>> p_text(0.0421), p_text(3.2e-7), p_text(1e-40)
    ('0.042', '3.2e-07', '< 1e-12')
    """
    return f"{p_value:.3f}" if p_value >= 0.001 else "< 1e-12" if p_value < 1e-12 else f"{p_value:.1e}"
