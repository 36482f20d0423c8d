"""A patient's whole history, projected at once in a bounded run."""

import json
from typing import Any

from transforms.adherence import Adherence
from transforms.coders import pack
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projecting import ProjectHistories
from transforms.projection import Cause, Output, Settings, in_periods
from transforms.times import DAY_US, to_rfc3339
from transforms.validation import DEAD_LETTERS

MONDAY_US = 20_150 * DAY_US - 6 * DAY_US
NOW_US = MONDAY_US + 400 * DAY_US


def session(day: int, patient: str = "p1") -> Event:
    ts_us = MONDAY_US + day * DAY_US
    content = {
        "event_id": f"day {day}",
        "kind": "exercise_session",
        "ts": to_rfc3339(ts_us),
        "subject_id": patient,
        "body": {"completion_status": "completed"},
    }
    return parse_event(content, Message(b"{}", {}, "s", "m", ts_us), NOW_US)


def outputs(events: list[Event], projector: Adherence | None = None) -> list[tuple[str, Any]]:
    project = ProjectHistories(projector or Adherence(Settings()), lambda: NOW_US / 1e6)
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
    def apply(self, state: Any, event: Event, cause: Cause, now_us: int, output: Output) -> str:
        outcome = super().apply(state, event, cause, now_us, output)
        if event.event_id == "day 2":
            raise ZeroDivisionError("about patient p1")
        return outcome


def test_a_fault_takes_down_one_event_and_not_its_neighbors() -> None:
    found = outputs([session(day) for day in range(4)], Stumbling(Settings()))
    (letter,) = [value for tag, value in found if tag == DEAD_LETTERS]
    assert (letter.reason, letter.event_id) == ("projection_failed", "day 2")
    assert "p1" not in letter.error
    assert list(weeks(found).values()) == [3]
