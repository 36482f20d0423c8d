"""What a step keeps of a patient, and how seldom it sets a timer, which costs as much as many a rule."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from apache_beam.utils.timestamp import Timestamp

from tests.releases.recording import Cell
from transforms.dead_letters import PROJECTION_FAILED
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projections.adherence import Adherence, AdherenceState
from transforms.projections.projector import Outcome, Output, RuleSettings
from transforms.projections.quality import Quality, QualityState
from transforms.projections.state import Trigger
from transforms.projections.work_queue import WorkQueue, WorkQueueState
from transforms.steps import patient_record, streaming
from transforms.steps.coders import pack
from transforms.steps.patient_record import PatientRecord
from transforms.steps.streaming import StreamingProjectFn
from transforms.steps.validation import DEAD_LETTERS
from transforms.times import DAY_US, MICROS, MINUTE_US, day_of, iso_date, to_rfc3339, week_start_of

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
    project = StreamingProjectFn(Adherence(RuleSettings()), False, None, dict, clock)
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


def test_a_wake_that_comes_too_early_is_set_to_what_is_due_by_then() -> None:
    """An absence already due waits a minute for events on their way, counted from the last of them."""
    clock, cell, timer = Clock(), Cell(), Timer()
    project = StreamingProjectFn(Adherence(RuleSettings()), False, None, dict, clock)
    project.setup()
    first, second = START_US + MINUTE_US, START_US + MINUTE_US * 3 // 2
    for now_us in (START_US, START_US + MINUTE_US // 2):
        clock.now_us = now_us
        list(project.process(("p1", pack([session(now_us - 5 * DAY_US)])), cell, timer, Timer()))
    assert timer.set_to == [first]
    # A runner's clock may be a little ahead.
    for now_us in (first - 1, first, second - 1):
        clock.now_us = now_us
        assert project.wake("p1", cell, timer) == []
        assert timer.set_to[-1] == second
    clock.now_us = second
    outputs = project.wake("p1", cell, timer)
    rows = [json.loads(output.value.body) for output in outputs if output.tag == "adherence"]
    assert [row["consecutive_missed_days"] for row in rows] == [4]
    assert timer.set_to[-1] == START_US + DAY_US


class Broken(Adherence):
    def apply(self, state: Any, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("projector", "left"),
    [(Adherence(RuleSettings(consent="require")), False), (Broken(RuleSettings()), True)],
    ids=["withheld", "failed"],
)
def test_the_ids_of_a_patient_of_whom_nothing_could_be_used_are_forgotten(
    projector: Adherence, left: bool
) -> None:
    clock, cell, timer = Clock(), Cell(), Timer()
    project = StreamingProjectFn(projector, False, None, dict, clock)
    project.setup()
    list(project.process(("p1", pack([session(START_US)])), cell, timer, Timer()))
    assert PatientRecord.read(cell).seen.hours
    (wake_us,) = timer.set_to
    assert wake_us > START_US + DAY_US
    clock.now_us = wake_us
    assert project.wake("p1", cell, timer) == []
    assert not PatientRecord.read(cell).seen.hours
    # What failed may be replayed later still.
    assert (bool(cell.read()), timer.set_to) == (left, [wake_us])


class Stumbling(Adherence):
    """Breaks on one day's session."""

    broken_us = 0

    def apply(self, state: Any, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        outcome = super().apply(state, event, trigger, now_us, output)
        if event.ts_us == self.broken_us:
            raise ZeroDivisionError
        return outcome


DAYS_AGO = (80, 60, 40, 20, 0)


def sessions_taken_in(projector: Adherence, order: Iterable[int]) -> tuple[list[int], list[int]]:
    """Of sessions that arrive together, how many days ago each was: those in state, those with a row."""
    cell = Cell()
    project = StreamingProjectFn(projector, False, None, dict, Clock())
    project.setup()
    together = [session(START_US - days * DAY_US) for days in order]
    outputs = project.process(("p1", pack(together)), cell, Timer(), Timer())
    state = AdherenceState.decode(PatientRecord.read(cell).state)
    rows = [json.loads(output.value.body) for output in outputs if output.tag == "adherence"]
    weeks = {row["week_start"] for row in rows if row["completed_sessions"]}
    shown = [days for days in DAYS_AGO if _week_of(START_US - days * DAY_US) in weeks]
    known = [(START_US - each.start_us) // DAY_US for each in state.sessions.values()]
    return sorted(known, reverse=True), shown


def _week_of(ts_us: int) -> str:
    return iso_date(week_start_of(day_of(ts_us)))


@pytest.mark.parametrize("order", [DAYS_AGO, DAYS_AGO[::-1], (40, 0, 80, 20, 60)], ids=str)
def test_an_array_of_old_history_is_judged_by_its_newest(order: tuple[int, ...]) -> None:
    assert sessions_taken_in(Adherence(RuleSettings()), order) == ([20, 0], [20, 0])


@pytest.mark.parametrize(
    ("broken", "left"), [(80, [20, 0]), (40, [20, 0]), (20, [0]), (0, [20])], ids=["80", "40", "20", "0"]
)
def test_it_is_judged_alike_when_one_of_it_fails(broken: int, left: list[int]) -> None:
    projector = Stumbling(RuleSettings())
    projector.broken_us = START_US - broken * DAY_US
    assert sessions_taken_in(projector, DAYS_AGO) == (left, left)


def test_what_fails_makes_nothing_later_too_late() -> None:
    """It is judged with what it came with, but the state does not take it in."""
    cell, projector = Cell(), Stumbling(RuleSettings())
    projector.broken_us = START_US
    project = StreamingProjectFn(projector, False, None, dict, Clock())
    project.setup()
    for days_ago in ((20, 0), (40,)):
        together = [session(START_US - days * DAY_US) for days in days_ago]
        list(project.process(("p1", pack(together)), cell, Timer(), Timer()))
    state = AdherenceState.decode(PatientRecord.read(cell).state)
    assert len(state.sessions) == 2


class Untimely(Quality):
    """Breaks when it is too late: when the state has been encoded."""

    def wake_times_us(self, state: QualityState, now_us: int) -> list[int | None]:
        if sum(day.reps for days in state.days.values() for day in days.values()) > 1:
            raise ZeroDivisionError
        return super().wake_times_us(state, now_us)


def test_what_fails_late_leaves_the_state_as_it_was() -> None:
    content = {"kind": "rep_observation", "subject_id": "p1", "body": {"quality_score": 1}}
    reps = [
        parse_event(content | {"event_id": name}, Message(b"", {}, "s", "m", START_US), START_US)
        for name in ("r1", "r2", "r3")
    ]
    clock, cell = Clock(), Cell()
    project = StreamingProjectFn(Untimely(RuleSettings()), False, None, dict, clock)
    project.setup()
    outputs = project.process(("p1", pack(reps)), cell, Timer(), Timer())
    assert [output.value.event_id for output in outputs if output.tag == DEAD_LETTERS] == ["r2", "r3"]
    state = QualityState.decode(PatientRecord.read(cell).state)
    assert [day.reps for days in state.days.values() for day in days.values()] == [1]


def test_an_event_for_which_a_patient_has_no_room_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are kept, those that come with it and those that come later."""
    monkeypatch.setattr(streaming, "_MAX_STATE_BYTES", 100_000)
    monkeypatch.setattr(patient_record, "_MAX_FAILED", 1)

    def alert(name: str, size: int) -> Event:
        content = {"event_id": name, "kind": "alert", "subject_id": "p1"}
        body = {"alert_type": "fall", "context": {"note": "x" * size}}
        return parse_event(content | {"body": body}, Message(b"", {}, "s", "m", START_US), START_US)

    cell, timer = Cell(), Timer()
    project = StreamingProjectFn(WorkQueue(RuleSettings()), False, None, dict, Clock())
    project.setup()
    large = [alert(f"a{number}", 15_000) for number in range(8)]
    outputs = project.process(("p1", pack([*large, alert("small", 10)])), cell, timer, Timer())
    letters = [output.value for output in outputs if output.tag == DEAD_LETTERS]
    assert {(letter.reason, letter.error) for letter in letters} == {
        (PROJECTION_FAILED, "event: StateTooLargeError in the projection")
    }
    assert [letter.event_id for letter in letters] == ["a6", "a7"]
    outputs = project.process(("p1", pack([alert("later", 10)])), cell, timer, Timer())
    assert [output.tag for output in outputs] == ["work_queue"]
    record = PatientRecord.read(cell)
    assert list(WorkQueueState.decode(record.state).items) == [
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
        "a5",
        "small",
        "later",
    ]
    # Nor is there room for the names of all that ever failed.
    assert record.failed == ["item a7"]


def test_for_a_consent_there_is_always_room(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell()
    project = StreamingProjectFn(Adherence(RuleSettings()), False, None, dict, Clock())
    project.setup()
    project.process(("p1", pack([session(START_US)])), cell, Timer(), Timer())
    monkeypatch.setattr(streaming, "_MAX_STATE_BYTES", 1)
    content = {"event_id": "c1", "kind": "consent", "subject_id": "p1", "body": {"granted": False}}
    consent = parse_event(content, Message(b"", {}, "s", "m", START_US), START_US)
    outputs = project.process(("p1", pack([session(START_US + 1), consent])), cell, Timer(), Timer())
    (letter,) = [output.value for output in outputs if output.tag == DEAD_LETTERS]
    assert letter.event_kind == "exercise_session"
    rows = [json.loads(output.value.body) for output in outputs if output.tag == "adherence"]
    assert [row["visible"] for row in rows] == [False]
