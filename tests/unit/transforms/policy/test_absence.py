"""Missed sessions and extended absence: docs/contract.md, 5.2. Each example is worked out by hand."""

from datetime import timedelta

import pytest

from tests.support.examples import Calculation, at, day, said_in_silence, session
from tests.support.oracle import Options, Row


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


@pytest.mark.parametrize(
    ("gap", "wanted"),
    [
        (3, []),
        (4, [("missed_sessions", "nudge", "low")]),
        (7, [("missed_sessions", "nudge", "low")]),
        (8, [("extended_absence", "alert", "high")]),
    ],
)
@pytest.mark.parametrize(("before", "after"), [("00:00", "23:59"), ("23:59", "00:00")])
def test_a_gap_is_counted_in_days_whatever_the_hour(
    calculated: Calculation, gap: int, wanted: list[tuple[str, str, str]], before: str, after: str
) -> None:
    # A session that only started is no occasion for the other rules.
    assert calculated.fired(session(day(3, before)), session(day(3 + gap, after), "started")) == wanted


def test_one_absence_is_said_once_whatever_the_events_of_the_return(calculated: Calculation) -> None:
    back = [
        session(day(12, hour), "started", session_id=name) for hour, name in (("10:00", "a"), ("11:00", "b"))
    ]
    assert calculated.fired(session(day(3)), *back, back[0]) == [("extended_absence", "alert", "high")]


@pytest.mark.parametrize(
    ("days", "data"),
    [
        (7, []),
        (8, [{"last_session_day": "2025-03-03"}]),
        (60, [{"last_session_day": "2025-03-03"}]),
        (61, [{"absence": "more than 60 days"}]),
    ],
)
def test_an_absence_names_its_last_session_up_to_60_days(
    calculated: Calculation, days: int, data: list[Row]
) -> None:
    back = at(3) + timedelta(days=days)
    arrivals = [session(day(3)), session(back.isoformat())]
    assert calculated.absences(arrivals) == [("p", each) for each in data]


MOMENT = timedelta(microseconds=1)


def test_silence_is_reported_when_2_and_7_full_days_are_over() -> None:
    wakes = [at(6, 0) - MOMENT, at(6, 0), at(7, 0), at(11, 0) - MOMENT, at(11, 0), at(12, 0)]
    assert said_in_silence([session(day(3))], *wakes) == [
        (at(6, 0), "missed_sessions", "alert"),
        (at(11, 0), "extended_absence", "alert"),
    ]


def test_silence_begins_with_the_newest_session_of_any_status() -> None:
    arrivals = [session(day(3)), session(day(5), "started")]
    assert said_in_silence(arrivals, at(8, 0) - MOMENT) == []
    assert said_in_silence(arrivals, at(8, 0)) == [(at(8, 0), "missed_sessions", "alert")]
