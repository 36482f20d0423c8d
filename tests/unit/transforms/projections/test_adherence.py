"""Adherence: docs/contract.md, 4.4. Each example is worked out by hand."""

from datetime import date

import pytest

from tests.support.examples import Calculation, at, day, session
from tests.support.oracle import Options, Row


def test_adherence_row(calculated: Calculation) -> None:
    arrivals = [
        session(day(3), start_time=day(3, "11:30")),
        session(day(5), "partial", start_time=day(5, "11:30")),
        session(day(6), "aborted"),
        session(day(7), None),
    ]
    assert calculated.week(arrivals) == {
        "patient_id": "p",
        "week_start": date(2025, 3, 3),
        "prescribed_sessions": 7,
        "completed_sessions": 1,
        "partial_sessions": 1,
        "missed_sessions": 5,
        "adherence_percentage": 14.285714,
        "rolling_7day_avg": 14.285714,
        "rolling_28day_avg": 3.571429,
        "last_session_at": at(5, 11, 30),
        "consecutive_missed_days": 2,
        "consent_status": "unknown",
        "visible": True,
    }


def test_a_row_for_each_week_with_a_session_of_any_status(calculated: Calculation) -> None:
    rows = calculated.expected([session(day(3)), session(day(17), None)]).adherence
    assert [row["week_start"] for row in rows] == [date(2025, 3, 3), date(2025, 3, 17)]
    started = rows[1]
    assert (started["completed_sessions"], started["missed_sessions"]) == (0, 7)
    assert started["last_session_at"] is None
    assert started["consecutive_missed_days"] == 14


def test_missed_days_are_counted_from_the_newest_session_day(calculated: Calculation) -> None:
    assert calculated.week([session(day(3)), session(day(5), "partial")])["consecutive_missed_days"] == 0
    assert calculated.week([session(day(3)), session(day(5), None)])["consecutive_missed_days"] == 2
    assert (
        calculated.week([session(day(3)), session(day(5), None), session(day(12))])["consecutive_missed_days"]
        == 2
    )


def test_week_never_attended_so_far_has_no_missed_days(calculated: Calculation) -> None:
    assert calculated.week([session(day(3), "aborted")])["consecutive_missed_days"] is None


def test_rolling_averages_end_on_the_newest_session_day_of_the_week(calculated: Calculation) -> None:
    arrivals = [
        session(day(3), prescribed_sessions_per_week=4),
        session(day(4)),
        session(day(10)),
        session(day(12), "aborted"),
        session(day(17)),
    ]
    first, second, third = (
        calculated.week(arrivals, 3),
        calculated.week(arrivals, 10),
        calculated.week(arrivals, 17),
    )
    assert (first["rolling_7day_avg"], first["rolling_28day_avg"]) == (50.0, 12.5)
    # D = 12 March: the 7 days are 6 to 12 March.
    assert (second["rolling_7day_avg"], second["rolling_28day_avg"]) == (25.0, 18.75)
    assert (third["rolling_7day_avg"], third["rolling_28day_avg"]) == (25.0, 25.0)


def test_first_day_of_the_7_counts_and_the_day_before_does_not(calculated: Calculation) -> None:
    options = Options(prescribed_sessions_per_week=2)
    assert calculated.week([session(day(4)), session(day(10))], 10, options)["rolling_7day_avg"] == 100.0
    assert calculated.week([session(day(3)), session(day(10))], 10, options)["rolling_7day_avg"] == 50.0


def test_percentages_stop_at_100_and_nothing_is_missed_below_0(calculated: Calculation) -> None:
    row = calculated.week([session(day(3)), session(day(4)), session(day(5), prescribed_sessions_per_week=2)])
    assert (row["adherence_percentage"], row["rolling_7day_avg"], row["missed_sessions"]) == (100.0, 100.0, 0)
    assert row["rolling_28day_avg"] == 37.5


def test_newest_prescription_counts_for_every_week(calculated: Calculation) -> None:
    arrivals = [
        session(day(10), prescribed_sessions_per_week=3),
        session(day(3), prescribed_sessions_per_week=5),
        session(day(11)),
    ]
    assert [row["prescribed_sessions"] for row in calculated.expected(arrivals).adherence] == [3, 3]


def test_session_counts_once_with_its_highest_status_on_the_day_of_its_earliest_event(
    calculated: Calculation,
) -> None:
    arrivals = [
        session(day(11), "partial", session_id="s", start_time=day(11)),
        session(day(9, "23:50"), "completed", session_id="s"),
        session(day(12), "aborted", session_id="s"),
    ]
    (row,) = calculated.expected(arrivals).adherence
    assert row["week_start"] == date(2025, 3, 3)
    assert (row["completed_sessions"], row["partial_sessions"]) == (1, 0)
    assert row["last_session_at"] == at(9, 23, 50)


def test_event_id_decides_which_of_two_events_is_the_earliest(calculated: Calculation) -> None:
    later_start = session(day(5), session_id="s", event_id="b", start_time=day(4))
    earlier_id = session(day(5), session_id="s", event_id="a", start_time=day(3))
    assert calculated.week([later_start, earlier_id])["last_session_at"] == at(3)


def test_start_time_decides_the_day_in_utc(calculated: Calculation) -> None:
    (row,) = calculated.expected([session(day(12), start_time="2025-03-09T23:30:00-02:00")]).adherence
    assert (row["week_start"], row["last_session_at"]) == (date(2025, 3, 10), at(10, 1, 30))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"completed_reps": 10, "prescribed_reps": 10}, "completed"),
        ({"completed_reps": 4, "prescribed_reps": 10, "duration_minutes": 20}, "partial"),
        ({"completed_reps": 0, "prescribed_reps": 10}, "started"),
        ({"completed_reps": 0, "prescribed_reps": 10, "duration_minutes": 20}, "completed"),
        ({"completed_reps": 0, "prescribed_reps": 0}, "started"),
        ({"completed_reps": 1, "prescribed_reps": 1}, "completed"),
        ({"completed_reps": 1, "prescribed_reps": 2}, "partial"),
        ({"completed_reps": 5}, "started"),
        ({"duration_minutes": 0}, "completed"),
        ({"end_time": day(3, "12:30")}, "completed"),
        ({"completion_status": "aborted", "completed_reps": 10, "prescribed_reps": 10}, "aborted"),
        ({}, "started"),
    ],
)
def test_session_status(calculated: Calculation, body: Row, status: str) -> None:
    row = calculated.week([session(day(3), None, **body)])
    counts = (row["completed_sessions"], row["partial_sessions"])
    assert counts == {"completed": (1, 0), "partial": (0, 1)}.get(status, (0, 0))


def test_session_without_id_is_known_by_its_event(calculated: Calculation) -> None:
    assert calculated.week([session(day(3)), session(day(3))])["completed_sessions"] == 2


def test_one_late_session_counts_once_and_changes_the_week_after_it(calculated: Calculation) -> None:
    late = session(day(4))
    arrivals = [session(day(10), prescribed_sessions_per_week=4), late, late]
    first, second = calculated.week(arrivals, 3), calculated.week(arrivals, 10)
    assert (first["completed_sessions"], first["rolling_7day_avg"]) == (1, 25.0)
    assert (second["completed_sessions"], second["rolling_7day_avg"]) == (1, 50.0)


def test_a_week_begins_on_monday_at_midnight_in_utc(calculated: Calculation) -> None:
    rows = calculated.expected([session("2025-03-09T23:59:59.999999Z"), session(day(10, "00:00"))]).adherence
    assert [row["week_start"] for row in rows] == [date(2025, 3, 3), date(2025, 3, 10)]


def test_first_day_of_the_28_counts_and_the_day_before_does_not(calculated: Calculation) -> None:
    options = Options(prescribed_sessions_per_week=1)
    last = session(day(29, "01:00"))
    within, outside = session(day(2, "00:00")), session(day(1, "23:59"))
    assert calculated.week([within, last], 24, options)["rolling_28day_avg"] == 50.0
    assert calculated.week([outside, last], 24, options)["rolling_28day_avg"] == 25.0


@pytest.mark.parametrize(
    ("statuses", "counted"),
    [
        (["started", "aborted"], (0, 0)),
        (["aborted", "partial"], (0, 1)),
        (["partial", "completed"], (1, 0)),
        (["started", "completed"], (1, 0)),
    ],
)
def test_the_highest_status_counts_whichever_comes_last(
    calculated: Calculation, statuses: list[str], counted: tuple[int, int]
) -> None:
    for order in (statuses, statuses[::-1]):
        row = calculated.week([session(day(n), status, session_id="s") for n, status in enumerate(order, 3)])
        assert (row["completed_sessions"], row["partial_sessions"]) == counted


def test_missed_sessions_and_percentage_stop_exactly_at_the_prescription(calculated: Calculation) -> None:
    options = Options(prescribed_sessions_per_week=2)
    for sessions, wanted in ((1, (1, 50.0)), (2, (0, 100.0)), (3, (0, 100.0))):
        row = calculated.week([session(day(3 + number)) for number in range(sessions)], options=options)
        assert (row["missed_sessions"], row["adherence_percentage"]) == wanted
