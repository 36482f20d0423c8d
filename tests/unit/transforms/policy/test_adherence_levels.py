"""Low and excellent adherence: docs/contract.md, 5.2. Each example is worked out by hand."""

from datetime import datetime, timedelta

import pytest

from tests.support.examples import Calculation, at, day, session, weekly
from tests.support.oracle import Options


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


LOW = ("low_weekly_adherence", "alert", "medium")
EXCELLENCE = ("adherence_excellence", "nudge", "low")


@pytest.mark.parametrize(("last", "wanted"), [(9, []), (10, [LOW])])
def test_adherence_is_low_from_7_days_after_the_first_session(
    calculated: Calculation, last: int, wanted: list[tuple[str, str, str]]
) -> None:
    assert calculated.fired(*weekly(3, 6, 8, last)) == wanted


@pytest.mark.parametrize(("again", "times"), [(16, [at(10)]), (17, [at(10), at(17)])])
def test_low_adherence_is_repeated_after_7_days(
    calculated: Calculation, again: int, times: list[datetime]
) -> None:
    assert calculated.item_times("low_weekly_adherence", *weekly(3, 7, 10, 13, again)) == times


@pytest.mark.parametrize(("days", "wanted"), [(27, 0), (28, 1), (55, 1), (56, 2)])
def test_excellence_is_said_after_28_days_and_again_after_28(
    calculated: Calculation, days: int, wanted: int
) -> None:
    arrivals = [session((at(3) + timedelta(days=number)).isoformat()) for number in range(days + 1)]
    assert calculated.fired(*arrivals, options=Options(any_span=True)) == [EXCELLENCE] * wanted


@pytest.mark.parametrize(("completed", "wanted"), [(18, []), (19, [EXCELLENCE])])
def test_excellence_is_more_than_90_percent(
    calculated: Calculation, completed: int, wanted: list[tuple[str, str, str]]
) -> None:
    days = [*range(4, 29, 3), *range(4, 29, 3)]
    started = session(day(1, "23:00"), "aborted")
    arrivals = [
        started,
        *weekly(*days[: completed - 1]),
        session(day(28)),
        session(day(29, "01:00"), "aborted"),
    ]
    assert calculated.fired(*arrivals, options=Options(prescribed_sessions_per_week=5)) == wanted
