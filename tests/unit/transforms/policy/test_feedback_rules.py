"""Feedback on single reps: docs/contract.md, 5.2. Each example is worked out by hand."""

from typing import Any

import pytest

from tests.oracle import REP_FEEDBACK
from tests.support.examples import Calculation, day, rep


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
