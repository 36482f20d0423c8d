"""Low and excellent adherence: docs/contract.md, 5.2. Each example is worked out by hand."""

from tests.oracle import Options
from tests.support.examples import Calculation, at, day, session, weekly


def test_low_weekly_adherence(calculated: Calculation) -> None:
    low = ("low_weekly_adherence", "alert", "medium")
    assert low not in calculated.fired(*weekly(3, 6, 9))
    arrivals = weekly(3, 6, 9, 10, 13, 16, 17, 20)
    # Candidates are all days from 10 March on (at most 3 of 7): 10, then 17 March.
    assert calculated.fired(*arrivals) == [low, low]
    assert calculated.item_times("low_weekly_adherence", *arrivals) == [at(10), at(17)]


def test_low_weekly_adherence_starts_below_half(calculated: Calculation) -> None:
    # The 7 days that end on 10 March have 2 completed sessions.
    arrivals = [*weekly(3, 7, 10), session(day(5), "aborted")]
    assert calculated.fired(*arrivals, options=Options(prescribed_sessions_per_week=4)) == []
    low = ("low_weekly_adherence", "alert", "medium")
    assert calculated.fired(*arrivals, options=Options(prescribed_sessions_per_week=5)) == [low]


def test_low_weekly_adherence_counts_up_to_the_session_itself(calculated: Calculation) -> None:
    arrivals = [
        *weekly(3, 6, 9),
        session(day(10, "08:00"), "aborted", prescribed_sessions_per_week=5),
        session(day(10, "09:00")),
        session(day(10, "10:00")),
    ]
    assert calculated.item_times("low_weekly_adherence", *arrivals) == [at(10, 8)]


def test_session_that_only_started_is_no_occasion(calculated: Calculation) -> None:
    assert calculated.fired(*weekly(3, 6, 9), session(day(12), None)) == []


def test_adherence_excellence(calculated: Calculation) -> None:
    options = Options(prescribed_sessions_per_week=5)
    first, last = session(day(1, "23:00")), session(day(29, "01:00"))
    between = weekly(*range(4, 26, 3), *range(4, 26, 3), 28)
    excellence = ("adherence_excellence", "nudge", "low")
    # 2 to 29 March: 17 sessions and the last one are 18 of 20, which is 90 %.
    assert len(between) == 17
    assert calculated.fired(first, *between, last, options=options) == []
    assert calculated.fired(first, *between, session(day(27)), options=options) == []
    assert calculated.fired(first, *between, session(day(27)), last, options=options) == [excellence]
