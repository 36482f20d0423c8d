"""Missed sessions and extended absence: docs/contract.md, 5.2. Each example is worked out by hand."""

from tests.oracle import Options
from tests.support.examples import Calculation, at, day, session


def test_gap_of_4_to_7_days(calculated: Calculation) -> None:
    nudge = ("missed_sessions", "nudge", "low")
    assert calculated.fired(session(day(3)), session(day(6))) == []
    assert calculated.fired(session(day(3)), session(day(7))) == [nudge]
    assert calculated.fired(session(day(3), "aborted"), session(day(10), None)) == [nudge]
    assert calculated.fired(session(day(3)), session(day(7)), session(day(7)), session(day(11), None)) == [
        nudge,
        nudge,
    ]


def test_gap_of_more_than_7_days(calculated: Calculation) -> None:
    arrivals = [session(day(3)), session(day(11), "started")]
    assert calculated.fired(*arrivals) == [("extended_absence", "alert", "high")]
    assert calculated.item_times("extended_absence", *arrivals) == [at(11, 0)]


def test_absences_of_a_long_history(calculated: Calculation) -> None:
    starts = ["2025-01-01", "2025-01-08", "2025-01-16", "2025-03-17", "2025-05-17", "2026-05-17"]
    arrivals = [session(f"{start}T12:00:00Z") for start in reversed(starts)]
    long = {"absence": "more than 60 days"}
    wanted = [{"last_session_day": "2025-01-08"}, {"last_session_day": "2025-01-16"}, long, long]
    assert calculated.absences(arrivals) == [("p", data) for data in wanted]
    nudges = calculated.expected(arrivals, Options(any_span=True)).nudges
    assert len([nudge for nudge in nudges if nudge.type == "extended_absence"]) == 4
