"""Feedback on single reps: docs/contract.md, 5.2. Each example is worked out by hand."""

from typing import Any

import pytest

from tests.support.examples import Calculation, day, rep
from tests.support.oracle import REP_FEEDBACK


@pytest.mark.parametrize(
    ("issues", "severity"),
    [
        (["lean"], "low"),
        ([{"type": "lean"}], "low"),
        ([{"type": "lean", "severity": "minor"}], "low"),
        (["lean", {"type": "knee", "severity": "moderate"}], "medium"),
        ([{"type": "knee", "severity": "major"}, {"type": "lean", "severity": "minor"}], "high"),
    ],
)
def test_form_correction(calculated: Calculation, issues: list[Any], severity: str) -> None:
    assert calculated.rep_feedback(rep(day(3), 0.9, form_issues=issues)) == [
        ("form_correction", "feedback", severity)
    ]


def test_rep_feedback_waits_30_seconds(calculated: Calculation) -> None:
    quality = ("rep_quality", "feedback", "low")
    first = rep("2025-03-03T12:00:00Z", 0.59, exercise="a")
    assert calculated.rep_feedback(rep(day(3), 0.6, form_issues=[])) == []
    assert calculated.rep_feedback(first, rep("2025-03-03T12:00:29.999Z", 0.5, exercise="a")) == [quality]
    assert calculated.rep_feedback(first, rep("2025-03-03T12:00:30Z", 0.5, exercise="a")) == [quality] * 2
    assert calculated.rep_feedback(first, rep("2025-03-03T12:00:01Z", 0.5, exercise="b")) == [quality] * 2
    assert (
        calculated.rep_feedback(first, rep("2025-03-03T12:00:01Z", 0.5, exercise="a", patient="q"))
        == [quality] * 2
    )


def test_one_rep_may_cause_both_kinds_of_feedback(calculated: Calculation) -> None:
    assert [name for name, _, _ in calculated.rep_feedback(rep(day(3), 0.1, form_issues=["x"]))] == sorted(
        REP_FEEDBACK
    )


@pytest.mark.parametrize(("score", "wanted"), [(0.599, [("rep_quality", "feedback", "low")]), (0.6, [])])
def test_rep_quality_is_under_0_60(
    calculated: Calculation, score: float, wanted: list[tuple[str, str, str]]
) -> None:
    assert calculated.rep_feedback(rep(day(3), score)) == wanted


@pytest.mark.parametrize(("second", "times"), [("29.999999", 1), ("30", 2)])
@pytest.mark.parametrize("kind", sorted(REP_FEEDBACK))
def test_each_kind_of_feedback_waits_30_seconds(
    calculated: Calculation, kind: str, second: str, times: int
) -> None:
    score, issues = (0.5, []) if kind == "rep_quality" else (0.9, ["lean"])
    both = [rep(f"2025-03-03T12:00:{each}Z", score, form_issues=issues) for each in ("00", second)]
    assert calculated.rep_feedback(*both) == [(kind, "feedback", "low")] * times


def test_one_kind_of_feedback_does_not_silence_the_other(calculated: Calculation) -> None:
    both = [rep(day(3), 0.5), rep("2025-03-03T12:00:01Z", 0.9, form_issues=["lean"])]
    assert [name for name, _, _ in calculated.rep_feedback(*both)] == sorted(REP_FEEDBACK)
