"""How seldom a step of the stream sets a timer, which costs as much as many a rule."""

from collections.abc import Iterable
from typing import Any

from apache_beam.utils.timestamp import Timestamp

from tests.releases.recording import Cell
from transforms.adherence import Adherence
from transforms.coders import pack
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projecting import Project
from transforms.projection import Settings
from transforms.times import DAY_US, MICROS, MINUTE_US, to_rfc3339

# Midnight.
START_US = 1_772_409_600 * MICROS


class Timer:
    """Remembers what it was set to, in microseconds since the epoch, in place of the runner's."""

    def __init__(self) -> None:
        self.set_to: list[int] = []

    def set(self, timestamp: Any) -> None:
        self.set_to.append(Timestamp.of(timestamp).micros)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> float:
        return self.now_us / MICROS


def session(ts_us: int) -> Event:
    content: dict[str, Any] = {"event_id": f"e{ts_us}", "kind": "exercise_session", "ts": to_rfc3339(ts_us)}
    content |= {"subject_id": "p1", "body": {"completion_status": "completed"}}
    return parse_event(content, Message(b"", {}, "s", "m", ts_us), ts_us)


def wakes(arrivals: Iterable[tuple[int, int]]) -> list[int]:
    """What a patient's wake-up is set to by sessions, given as (now, the session's time)."""
    clock, cell, timer = Clock(), Cell(), Timer()
    project = Project(Adherence(Settings()), False, None, dict, clock)
    project.setup()
    for now_us, ts_us in arrivals:
        clock.now_us = now_us
        list(project.process(("p1", pack([session(ts_us)])), cell, timer, Timer()))
    return timer.set_to


def test_a_wake_that_would_only_be_put_off_is_left_where_it_is() -> None:
    daily = [START_US + day * DAY_US for day in range(3)]
    assert wakes((ts_us, ts_us) for ts_us in daily) == [START_US + 3 * DAY_US]


def test_a_wake_is_set_again_when_it_has_passed() -> None:
    later = START_US + 4 * DAY_US
    assert wakes([(START_US, START_US), (later, later)]) == [START_US + 3 * DAY_US, later + 3 * DAY_US]


def test_a_wake_within_the_hour_is_put_off_as_long_as_events_come() -> None:
    long_ago = START_US - 5 * DAY_US
    times = [START_US, START_US + MINUTE_US // 2]
    assert wakes((now_us, long_ago + now_us % DAY_US) for now_us in times) == [
        now_us + MINUTE_US for now_us in times
    ]


def test_the_ids_of_a_patient_of_whom_nothing_may_be_used_are_forgotten() -> None:
    clock, cell, timer = Clock(), Cell(), Timer()
    project = Project(Adherence(Settings(consent="require")), False, None, dict, clock)
    project.setup()
    assert list(project.process(("p1", pack([session(START_US)])), cell, timer, Timer())) == []
    assert cell.read()
    (wake_us,) = timer.set_to
    assert wake_us > START_US + DAY_US
    clock.now_us = wake_us
    assert project.wake("p1", cell, timer) == []
    assert (cell.read(), timer.set_to) == (None, [wake_us])
