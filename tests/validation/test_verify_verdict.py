"""Every condition of the verdict: a result with just that fault disagrees."""

import dataclasses

import pytest

from sgdcov.validation.verify import questions
from sgdcov.validation.verify.adversarial_cases import adversarial_cases
from sgdcov.validation.verify.adversarial_result import AdversarialMeasurement, AdversarialRow, AttackOracle
from sgdcov.validation.verify.cases import cases
from sgdcov.validation.verify.controls import controls
from sgdcov.validation.verify.minibatch_cases import minibatch_cases
from sgdcov.validation.verify.minibatch_result import MinibatchMeasurement, MinibatchRow, OracleCheck
from sgdcov.validation.verify.result import (
    FALSE_ALARM_RATE,
    ControlResult,
    Measurement,
    Row,
    TheoryCheck,
    TimeMeasurement,
    TimeRow,
    TimeTheoryCheck,
    Verification,
)
from sgdcov.validation.verify.time_cases import time_cases

QUICK = {"quick": True, "seed": 0}
SHARED = {"relative_error": 0.01, "expected_relative_error": 0.01, "replicas": 1000, "seconds": 1.0}


def row():
    theory = TheoryCheck(1e-16, 1e-15, 1e-15, 1e-15, 1e-14, 1e-16, 1e-15, 1.0, 1.0)
    measurement = Measurement(
        p_value=0.5, mean_p_value=0.5, flat=3, moved=0.0, snapshots=8, steps=10, burn_in=2,
        predicted=None, measured=None, standard_error=None, **SHARED,
    )  # fmt: skip
    return Row(cases(**QUICK, only=["sgdw/digits"])[0], theory=theory, measurement=measurement)


def timed():
    (case, *_) = time_cases(**QUICK, only=["*/*/cosine"])
    assert len(case.record) == 3
    measurement = TimeMeasurement(p_values=(0.5,) * 3, mean_p_values=(0.5,) * 3, start="", **SHARED)
    return TimeRow(case, theory=TimeTheoryCheck(1e-15, 1e-14, 1e-15, 1e-14, 1.0), measurement=measurement)


def minibatches():
    case = next(c for c in minibatch_cases(**QUICK) if c.question == "epochs")
    measurement = MinibatchMeasurement(
        p_values=(0.5,) * 2, mean_p_values=(0.5,) * 2, withheld=None, additive_error=0.3, **SHARED
    )
    return MinibatchRow(case, oracle=OracleCheck("theory", 1e-15, 1e-14, 1.0), measurement=measurement)


def attacked():
    (case,) = adversarial_cases(**QUICK, only=["sgd/unhinged"])
    measurement = AdversarialMeasurement(p_value=0.5, mean_p_value=0.5, withheld=None, attack=None, left=None, **SHARED)
    return AdversarialRow(case, oracle=AttackOracle("theory", 1e-16, 1e-15, 3, 1.0), measurement=measurement)


def control():
    return ControlResult(controls(**QUICK, only=["sgd/noncommuting"])[0], 1e-30, 0.5, 0.1, 1.0)


def verification():
    return Verification(
        rows=(row(),), timed=(timed(),), minibatches=(minibatches(),), attacked=(attacked(),), controls=(control(),),
        planned=5, interrupted=False, seed=0, quick=True, seconds=1.0, versions={},
    )  # fmt: skip


def changed(thing, path, value):
    """The same with one field, found along a path of names and positions, of another value."""
    name, *rest = path
    if isinstance(thing, tuple):
        entries = list(thing)
        entries[name] = changed(entries[name], rest, value) if rest else value
        return tuple(entries)
    return dataclasses.replace(thing, **{name: changed(getattr(thing, name), rest, value) if rest else value})


def test_without_a_fault_it_agrees():
    found = verification()
    assert found.disagreements == ()
    assert (found.status, found.exit_code) == ("agree", 0)
    assert found.comparisons == 2 + 6 + 4 + 2 + 1
    assert found.threshold == pytest.approx(FALSE_ALARM_RATE / 15)


ROW, TIMED, BATCHES, ATTACKED, CONTROL = (
    (name, 0) for name in ("rows", "timed", "minibatches", "attacked", "controls")
)
SMALL = FALSE_ALARM_RATE / 15 / 2
NAN = float("nan")
FAULTS = [
    *((where, "refusal", "UnstableError: lr=3") for where in (ROW, TIMED, BATCHES, ATTACKED)),
    *((ROW, f"theory.{name}_error", 1e-13) for name in ("pair", "array", "doubling", "mean")),
    *((ROW, f"theory.{name}_error", NAN) for name in ("pair", "array", "doubling", "mean")),
    *((TIMED, f"theory.{name}", 1e-13) for name in ("error", "mean_error")),
    *((TIMED, f"theory.{name}", NAN) for name in ("error", "mean_error")),
    *((where, "oracle.error", error) for where in (BATCHES, ATTACKED) for error in (1e-13, NAN)),
    *((where, f"measurement.{name}", SMALL) for where in (ROW, ATTACKED) for name in ("p_value", "mean_p_value")),
    *((TIMED, f"measurement.{name}.{k}", SMALL) for name in ("p_values", "mean_p_values") for k in range(3)),
    *((TIMED, f"measurement.{name}.{k}", NAN) for name in ("p_values", "mean_p_values") for k in range(3)),
    *((BATCHES, f"measurement.{name}.{k}", SMALL) for name in ("p_values", "mean_p_values") for k in range(2)),
    *((ROW, f"measurement.{name}", NAN) for name in ("p_value", "mean_p_value")),
    *((where, "measurement.p_value", NAN) for where in (ATTACKED,)),
    *((BATCHES, f"measurement.{name}.{k}", NAN) for name in ("p_values", "mean_p_values") for k in range(2)),
    (ROW, "measurement.moved", 1e-20),
    *((CONTROL, "p_value", p) for p in (10 * SMALL, NAN)),
    *((CONTROL, "right_p_value", p) for p in (SMALL, NAN)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "field", "value"), FAULTS, ids=lambda x: str(x[0]) if isinstance(x, tuple) else str(x)
)
def test_one_fault_is_a_disagreement(where, field, value):
    names = [int(name) if name.isdigit() else name for name in field.split(".")]
    found = changed(verification(), [*where, *names], value)
    assert len(found.disagreements) == 1
    assert (found.status, found.exit_code) == ("disagree", 1)
    assert found.verdict.startswith("DISAGREEMENT")


def test_what_is_just_not_below_the_threshold_is_no_fault():
    threshold = FALSE_ALARM_RATE / 15
    found = changed(verification(), [*TIMED, "measurement", "mean_p_values", 2], threshold)
    assert found.status == "agree"


class Agreed:
    """An agreement whose replicas can claim no p-value below a tenth."""

    withheld = None
    least_p_value = 0.1

    def detectable_error(self, level, *, where):
        return float("inf") if level < 0.1 else 0.5


@pytest.mark.parametrize("where", [ROW, TIMED, BATCHES, ATTACKED], ids=lambda x: x[0])
def test_a_row_that_could_reject_nothing_is_a_disagreement(where):
    found = changed(verification(), [*where, "measurement", "agreed"], (Agreed(),))
    (text,) = found.disagreements
    assert "no p-value below 1.0e-01" in text
    assert found.exit_code == 1


def test_every_other_public_question_has_a_row_that_agrees():
    asked = questions.questions(**QUICK)
    assert {q.name for q in asked} == {
        "stein", "preconditioned", "tails", "mean-square", "reshuffling", "injected", "robust", "features", "vector",
        "local", "correlation",
    }  # fmt: skip
    rows = [questions.run_question(question) for question in asked]
    assert [text for row in rows for text in row.disagreements(1e-5)] == []
    assert sum(len(row.p_values) for row in rows) == 4
    # Tolerances are within 20 times the largest error there is.
    assert max(row.answers.tolerance for row in rows) < 20 * 2.3e-15


QUESTION = questions.QuestionRow(questions.questions(**QUICK)[0], questions.Answers(1e-16, 1e-15, 0.5))


@pytest.mark.parametrize(
    ("field", "value"),
    [("refusal", "UnstableError"), *((f"answers.{name}", x) for name in ("error", "p_value") for x in (1e-14, NAN))],
)
def test_one_fault_in_a_question_is_a_disagreement(field, value):
    value = 1e-30 if (field, value) == ("answers.p_value", 1e-14) else value
    found = dataclasses.replace(verification(), asked=(QUESTION,))
    assert (found.status, found.comparisons) == ("agree", 16)
    found = changed(found, ["asked", 0, *field.split(".")], value)
    assert len(found.disagreements) == 1
    assert found.exit_code == 1
