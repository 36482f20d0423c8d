"""A patient's whole history, projected at once in a bounded run."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.oracle import (
    Arrival,
    Options,
    absences,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
)
from tests.support.strategies import long_histories, random_history
from transforms.events import REVIEW, Event, ReviewItemFact, parse_event
from transforms.message import Message
from transforms.policy.nudges import withdrawal
from transforms.projections.adherence import Adherence
from transforms.projections.ordering import in_periods
from transforms.projections.projector import Outcome, Output, Projector, RuleSettings
from transforms.projections.state import Trigger
from transforms.projections.work_queue import WorkQueue
from transforms.steps.bounded import BoundedProjectFn
from transforms.steps.coders import pack
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.validation import DEAD_LETTERS
from transforms.times import DAY_US, iso_date, to_micros, to_rfc3339

MONDAY_US = 20_150 * DAY_US - 6 * DAY_US
NOW_US = MONDAY_US + 20_000 * DAY_US


def session(day: int, patient: str = "p1", **body: Any) -> Event:
    ts_us = MONDAY_US + day * DAY_US
    content = {
        "event_id": f"day {day}",
        "kind": "exercise_session",
        "ts": to_rfc3339(ts_us),
        "subject_id": patient,
        "body": {"completion_status": "completed"} | body,
    }
    return parse_event(content, Message(b"{}", {}, "s", "m", ts_us), NOW_US)


def outputs(events: list[Event], projector: Projector[Any] | None = None) -> list[tuple[str, Any]]:
    project = BoundedProjectFn(projector or Adherence(RuleSettings()), lambda: NOW_US / 1e6)
    packs = [pack(events[start : start + 10]) for start in range(0, len(events), 10)]
    return [(output.tag, output.value) for output in project.process((0, packs))]


def weeks(found: list[tuple[str, Any]]) -> dict[str, int]:
    rows = [json.loads(row.body) for tag, row in found if tag == "adherence"]
    newest = {row["week_start"]: row for row in sorted(rows, key=lambda row: row["version"])}
    return {week: row["completed_sessions"] for week, row in newest.items()}


def bodies(events: list[Event]) -> list[bytes]:
    return sorted(row.body for tag, row in outputs(events) if tag == "adherence")


def test_patients_of_one_shard_are_projected_each_by_itself() -> None:
    first = [session(day) for day in range(0, 60, 2)]
    second = [session(day, "p2") for day in range(0, 60, 3)]
    mixed = sorted(first + second, key=lambda event: event.ts_us)
    assert bodies(mixed) == sorted(bodies(first) + bodies(second))


def test_every_week_of_a_long_history_has_its_row_whatever_the_order() -> None:
    events = [session(day) for day in range(0, 200, 2)]
    found = weeks(outputs(events))
    assert len(found) == 29
    assert sum(found.values()) == len(events)
    assert weeks(outputs(events[::-1])) == found


def test_no_period_is_longer_than_state_and_none_is_lost() -> None:
    events = [session(day) for day in (0, 28, 29, 57, 58, 150)]
    periods = list(in_periods(reversed(events)))
    assert [[event.event_id for event in period] for period in periods] == [
        ["day 0", "day 28"],
        ["day 29", "day 57"],
        ["day 58"],
        ["day 150"],
    ]


class Stumbling(Adherence):
    def apply(self, state: Any, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        outcome = super().apply(state, event, trigger, now_us, output)
        if event.event_id == "day 2":
            raise ZeroDivisionError("about patient p1")
        return outcome


def test_a_fault_takes_down_one_event_and_not_its_neighbors() -> None:
    found = outputs([session(day) for day in range(4)], Stumbling(RuleSettings()))
    (letter,) = [value for tag, value in found if tag == DEAD_LETTERS]
    assert (letter.reason, letter.event_id) == ("projection_failed", "day 2")
    assert "p1" not in letter.error
    assert list(weeks(found).values()) == [3]


# --- Absences


LATER = datetime(2080, 1, 1, tzinfo=UTC)


def day(number: int) -> str:
    return iso_date(MONDAY_US // DAY_US + number)


def of_type(found: Iterable[tuple[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Data of the nudges of a type."""
    bodies = [orjson.loads(nudge.body) for tag, chunk in found if tag == NUDGES for nudge in chunk]
    return [body["data"] for body in bodies if body["type"] == kind]


@pytest.mark.parametrize(
    ("days", "wanted"),
    [
        ((0, 7), []),
        ((0, 8), [{"last_session_day": day(0)}]),
        ((0, 39, 65), [{"last_session_day": day(0)}, {"last_session_day": day(39)}]),
        ((0, 60), [{"last_session_day": day(0)}]),
        ((0, 61), [{"absence": "more than 60 days"}]),
        ((0, 63), [{"absence": "more than 60 days"}]),
        ((0, 300), [{"absence": "more than 60 days"}]),
        ((0, 63, 64, 127, 135), [{"absence": "more than 60 days"}] * 2 + [{"last_session_day": day(127)}]),
    ],
    ids=str,
)
def test_every_absence_is_reported(days: Sequence[int], wanted: list[dict[str, str]]) -> None:
    found = outputs([session(each) for each in days], Adherence(RuleSettings(nudge_max_age_hours=0)))
    assert of_type(found, "extended_absence") == wanted


@pytest.mark.parametrize("seed", range(3))
def test_every_gap_of_several_years_is_reported_once(seed: int) -> None:
    rng = Random(seed)
    days, day_number = [0], 0
    for _ in range(600):
        day_number += rng.choice([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, rng.randrange(10, 121)])
        days.append(day_number)
    gaps = [later - earlier for earlier, later in pairwise(days)]
    events = [session(each) for each in days]
    rng.shuffle(events)
    found = outputs(events, Adherence(RuleSettings(nudge_max_age_hours=0)))
    short = sorted(data["gap_days"] for data in of_type(found, "missed_sessions"))
    assert short == sorted(gap for gap in gaps if 3 < gap <= 7)
    long = of_type(found, "extended_absence")
    assert len(long) == sum(gap > 7 for gap in gaps)
    assert long.count({"absence": "more than 60 days"}) == sum(gap > 60 for gap in gaps)
    filed = [event.fact for tag, chunk in found if tag == REVIEW_ITEMS for event in chunk]
    assert not [fact for fact in filed if fact.withdrawn]
    assert sum("extended_absence" in fact.context for fact in filed) == len(long)


def check_history(arrivals: list[Arrival], rng: Random) -> None:
    now_us = to_micros(LATER)
    order = list(arrivals)
    rng.shuffle(order)
    events = [
        parse_event(each.envelope, Message(b"", {}, "s", "m", each.publish_us), now_us) for each in order
    ]
    settings = RuleSettings(nudge_max_age_hours=0)
    found = outputs(events, Adherence(settings))
    wanted = expected(arrivals, Options(now=LATER, any_span=True))
    rows = [json.loads(row.body) for tag, row in found if tag == "adherence"]
    assert_rows_equal(current_rows(rows, "adherence"), wanted.adherence, "adherence")
    messages = [orjson.loads(nudge.body) for tag, chunk in found if tag == NUDGES for nudge in chunk]
    assert_nudges_equal(messages, wanted.nudges)
    said = [json.dumps(data) for data in of_type(found, "extended_absence")]
    assert sorted(said) == sorted(json.dumps(data) for _, data in absences(arrivals))
    reviews = [event for tag, chunk in found if tag == REVIEW_ITEMS for event in chunk]
    items = [
        json.loads(row.body) for tag, row in outputs(reviews, WorkQueue(settings)) if tag == "work_queue"
    ]
    assert_rows_equal(current_rows(items, "work_queue"), wanted.work_queue, "work_queue")


@given(arrivals=long_histories("exercise_session"), rng=st.randoms(use_true_random=False))
def test_a_history_of_any_length_equals_the_independent_calculation(
    arrivals: list[Arrival], rng: Random
) -> None:
    check_history(arrivals, rng)


@pytest.mark.parametrize("seed", range(5))
def test_years_of_sessions_equal_the_independent_calculation(seed: int) -> None:
    rng = Random(seed)
    check_history(random_history(rng, 300), rng)


def test_sessions_that_are_reported_years_later_are_none_too_late() -> None:
    """As an export writes them that states the time of the export as every event's own."""
    starts = [to_rfc3339(MONDAY_US + each * DAY_US) for each in range(0, 200, 2)]
    exported = [session(390, session_id=start, start_time=start) for start in starts]
    events = [Event(**_fields(event) | {"event_id": f"e{n}"}) for n, event in enumerate(exported)]
    found = weeks(outputs(events))
    assert len(found) == 29
    assert sum(found.values()) == 100


def _fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in Event.__struct_fields__}


def test_missed_days_are_counted_from_the_last_session_done_however_long_ago() -> None:
    events = [session(0), *(session(each, completion_status="aborted") for each in (39, 65, 100, 130))]
    rows = [json.loads(row.body) for tag, row in outputs(events) if tag == "adherence"]
    missed = {row["week_start"]: row["consecutive_missed_days"] for row in rows}
    assert [missed[week] for week in sorted(missed)] == [0, 39, 65, 100, 130]


def test_what_has_been_withdrawn_stays_so_whenever_its_item_began() -> None:
    origin = Adherence.origin(Adherence.state_type(), Trigger("p1", "e", 0))
    fact = ReviewItemFact("n1", 1, False, "high", "Pain reported", "{}")
    at_us = MONDAY_US + 100 * DAY_US
    said = Event("e", REVIEW, at_us, "p1", "", None, fact, Message(b"", {}, "", "", 0))
    alerts = [
        parse_event(
            {"event_id": f"a{each}", "kind": "alert", "subject_id": "p1", "body": {"alert_type": "fall"}}
            | {"ts": to_rfc3339(MONDAY_US + each * DAY_US)},
            Message(b"", {}, "s", "m", 0),
            NOW_US,
        )
        for each in (0, 50)
    ]
    found = outputs([said, withdrawal(origin, "n1", 2), *alerts], WorkQueue(RuleSettings()))
    items = [json.loads(row.body) for tag, row in found if tag == "work_queue"]
    assert {item["item_id"] for item in current_rows(items, "work_queue")} == {"a0", "a50"}
