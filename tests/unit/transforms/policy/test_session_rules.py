"""Rules about one session: docs/contract.md, 5.2. Each example is worked out by hand."""

import pytest

from tests.support.examples import Calculation, at, day, session
from tests.support.oracle import Nudge, Row


@pytest.mark.parametrize(
    ("body", "short"),
    [
        ({"duration_minutes": 9.9}, True),
        ({"duration_minutes": 10}, False),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:09")}, True),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:10")}, False),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:50"), "duration_minutes": 5}, True),
        ({}, False),
        ({"duration_minutes": 5, "status": "partial"}, False),
    ],
)
def test_short_session(calculated: Calculation, body: Row, short: bool) -> None:
    assert calculated.fired(session(day(3), **body)) == ([("short_session", "nudge", "low")] if short else [])


def test_short_session_goes_by_the_newest_duration(calculated: Calculation) -> None:
    long = session(day(4), None, session_id="s", duration_minutes=30)
    assert calculated.fired(session(day(3), session_id="s", duration_minutes=5), long) == []


@pytest.mark.parametrize(
    ("quality", "outcome"),
    [
        (0.499, [("poor_quality", "alert", "medium")]),
        (0.5, [("quality_reminder", "nudge", "low")]),
        (0.699, [("quality_reminder", "nudge", "low")]),
        (0.7, []),
    ],
)
def test_session_quality(
    calculated: Calculation, quality: float, outcome: list[tuple[str, str, str]]
) -> None:
    assert calculated.fired(session(day(3), overall_quality=quality)) == outcome


def test_poor_quality_is_about_the_newest_statement(calculated: Calculation) -> None:
    arrivals = [
        session(day(3), session_id="s", exercise="squat", overall_quality=0.6),
        session(day(4), session_id="s", exercise="squat", quality_score=0.3),
        session(day(5), session_id="s", exercise="squat"),
    ]
    assert calculated.expected(arrivals).nudges == [
        Nudge("alert", "poor_quality", "medium", "p", "squat", "s", created_at=at(4))
    ]
