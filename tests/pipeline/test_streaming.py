"""What the steps of a stream do as processing time goes on, told with TestStream."""

import json
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.direct import direct_runner
from apache_beam.testing.test_stream import TestStream as Stream

from tests import stream_clock
from tests.stream_clock import Listen, StreamClock, heard
from transforms.adherence import Adherence
from transforms.batching import Batch
from transforms.coders import EventCoder
from transforms.deduplication import Deduplicated
from transforms.events import KINDS, Event, parse_event
from transforms.message import Message
from transforms.projecting import NUDGES, REVIEWS, Projection
from transforms.projection import Cause, Output, Settings
from transforms.rows import Row
from transforms.times import MICROS, to_rfc3339
from transforms.validation import DEAD_LETTERS

# A Monday morning.
START = datetime(2025, 3, 3, 10, 0, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
MIDNIGHT = START - 10 * HOUR


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stream_clock.forget()
    monkeypatch.setattr(direct_runner, "TestClock", StreamClock)


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=direct_runner.BundleBasedDirectRunner(), argv=["--streaming"])


# --- Batches


def rows(count: int, first: int = 0) -> list[Row]:
    return [Row(f"k{number}", 1, 0, b"{}") for number in range(first, first + count)]


def batches(stream: Stream, shards: int = 1) -> list[tuple[float, int]]:
    """(seconds since the start, rows) of each batch that comes of a stream of rows."""
    with pipeline() as p:
        (
            p
            | stream.with_output_types(Row)
            | Batch(100, 1.0, shards, stream_clock.now)
            | beam.ParDo(Listen("batch"))
        )
    return [(moment - START, len(list(batch[1]))) for moment, batch in heard("batch")]


def test_the_hundredth_row_flushes_at_once() -> None:
    stream = (
        Stream()
        .advance_processing_time(START)
        .add_elements(rows(99))
        .advance_processing_time(0.5)
        .add_elements(rows(1, 99))
        .advance_processing_time(1000)
        .advance_watermark_to_infinity()
    )
    assert batches(stream) == [(0.5, 100)]


def test_ninety_nine_rows_flush_after_a_second() -> None:
    stream = (
        Stream()
        .advance_processing_time(START)
        .add_elements(rows(99))
        .advance_processing_time(0.75)
        .advance_processing_time(0.25)
        .advance_processing_time(1000)
        .advance_watermark_to_infinity()
    )
    assert batches(stream) == [(1.0, 99)]


def test_the_second_begins_with_a_batchs_first_row() -> None:
    stream = (
        Stream()
        .advance_processing_time(START)
        .add_elements(rows(150))
        .advance_processing_time(0.75)
        .add_elements(rows(10, 150))
        .advance_processing_time(0.25)
        .add_elements(rows(5, 160))
        .advance_processing_time(0.75)
        .advance_processing_time(0.25)
        .advance_processing_time(1000)
        .advance_watermark_to_infinity()
    )
    assert batches(stream) == [(0.0, 100), (1.0, 60), (2.0, 5)]


def test_every_version_of_a_key_lands_in_one_shard() -> None:
    stream = Stream().advance_processing_time(START)
    for version in range(1, 4):
        stream.add_elements([row._replace(version=version) for row in rows(60)])
    stream.advance_processing_time(2).advance_watermark_to_infinity()
    assert [moment for moment, _ in batches(stream, shards=4)] != []
    shards_of: dict[str, set[int]] = {}
    for _, (shard, members) in heard("batch"):
        for key, *_ in members:
            shards_of.setdefault(key, set()).add(shard)
    assert {len(shards) for shards in shards_of.values()} == {1}
    assert set.union(*shards_of.values()) == {0, 1, 2, 3}


# --- A projector in time


def event(
    event_id: str, at: float, body: dict[str, Any], kind: str = "exercise_session", patient_id: str = "p1"
) -> Event:
    micros = int(at * MICROS)
    content = {
        "event_id": event_id,
        "kind": kind,
        "ts": to_rfc3339(micros),
        "subject_id": patient_id,
        "body": body,
    }
    return parse_event(content, Message(event_id.encode(), {}, "s", "m", micros), micros)


def session(event_id: str, at: float, **body: Any) -> Event:
    return event(event_id, at, {"completion_status": "completed", "duration_minutes": 30} | body)


def events() -> Stream:
    return Stream(coder=EventCoder()).advance_processing_time(START)


class Stumbling(Adherence):
    """Breaks on one event, as a fault in a rule would."""

    def apply(self, state: Any, event: Event, cause: Cause, now_us: int, output: Output) -> str:
        outcome = super().apply(state, event, cause, now_us, output)
        if event.event_id == "broken":
            raise ZeroDivisionError("about patient p1")
        return outcome


def project(stream: Stream, projector: Adherence | None = None, *, bounded: bool = False) -> None:
    """Runs a stream of events through the adherence projection and listens to all its outputs."""
    projector = projector or Adherence(Settings())
    with pipeline() as p:
        source = p | stream.with_output_types(Event)
        outputs = (source,) | Projection(projector, bounded, stream_clock.now)
        for name in (*projector.tables, NUDGES, REVIEWS, DEAD_LETTERS):
            outputs[name] | f"Listen to {name}" >> beam.ParDo(Listen(name))


def columns(table: str, *names: str) -> list[tuple[Any, ...]]:
    """(processing time, columns …) of a table's rows."""
    found = [(moment, json.loads(row.body)) for moment, row in heard(table)]
    return [(moment, *(body[name] for name in names)) for moment, body in found]


def announced() -> list[tuple[float, str, str]]:
    return [
        (moment, nudge.attributes["type"], nudge.attributes["severity"]) for moment, nudge in heard(NUDGES)
    ]


def test_absence_timers_after_two_and_seven_days() -> None:
    stream = events().add_elements([session("e1", START)])
    stream.advance_processing_time(MIDNIGHT + 3 * DAY - 1 - START)
    for _ in range(10):
        stream.advance_processing_time(1).advance_processing_time(DAY - 1)
    stream.advance_watermark_to_infinity()
    project(stream)
    two_days, seven_days = MIDNIGHT + 3 * DAY, MIDNIGHT + 8 * DAY
    assert announced() == [
        (two_days, "missed_sessions", "medium"),
        (seven_days, "extended_absence", "high"),
    ]
    assert [moment for moment, _ in heard(REVIEWS)] == [two_days, seven_days]
    grown = columns("adherence", "consecutive_missed_days", "source_event_id")
    assert grown[:3] == [(START, 0, "e1"), (two_days, 2, None), (two_days + DAY, 3, None)]
    assert [json.loads(nudge.body)["triggered_by"] for _, nudge in heard(NUDGES)] == [None, None]


def test_a_session_in_time_puts_the_absence_off() -> None:
    second = MIDNIGHT + 2 * DAY + HOUR
    stream = (
        events()
        .add_elements([session("e1", START)])
        .advance_processing_time(second - START)
        .add_elements([session("e2", second)])
        .advance_processing_time(MIDNIGHT + 5 * DAY - 1 - second)
        .advance_processing_time(1)
        .advance_watermark_to_infinity()
    )
    project(stream)
    assert announced() == [(MIDNIGHT + 5 * DAY, "missed_sessions", "medium")]


def test_an_absence_already_due_waits_a_minute_for_events_on_their_way() -> None:
    before = START - 4 * DAY
    on_its_way = event("e3", START - HOUR, {"completion_status": "completed"}, patient_id="p2")
    stream = (
        events()
        .add_elements([session("e1", before), event("e2", before, {}, patient_id="p2")])
        .advance_processing_time(MINUTE - 1)
        .add_elements([on_its_way])
        .advance_processing_time(1)
        .advance_processing_time(MINUTE)
        .advance_watermark_to_infinity()
    )
    project(stream, Adherence(Settings(nudge_max_age_hours=0)))
    timers = [nudge for nudge in heard(NUDGES) if nudge[1].attributes["severity"] == "medium"]
    assert [(moment, json.loads(nudge.body)["subject_id"]) for moment, nudge in timers] == [
        (START + MINUTE, "p1")
    ]


def test_the_end_of_a_bounded_run_is_no_absence() -> None:
    stream = events().add_elements([session("e1", START)]).advance_processing_time(30 * DAY)
    project(stream.advance_watermark_to_infinity(), bounded=True)
    assert announced() == []
    assert [moment for moment, _ in heard("adherence")] == [START]


def test_an_expiring_consent_hides_the_rows() -> None:
    expiry = START + 90 * MINUTE
    consent = event("c1", START, {"granted": True, "expires_at": to_rfc3339(int(expiry * MICROS))}, "consent")
    stream = (
        events()
        .add_elements([consent, session("e1", START)])
        .advance_processing_time(90 * MINUTE - 1)
        .advance_processing_time(1)
        .advance_processing_time(HOUR)
        .advance_watermark_to_infinity()
    )
    project(stream)
    for table in ("adherence", "consents"):
        assert columns(table, "visible", "consent_status") == [
            (START, True, "granted"),
            (expiry, False, "expired"),
        ]


def test_sixty_silent_days_clear_the_state() -> None:
    later = START + 61 * DAY
    stream = events().add_elements([session("e1", START)]).advance_processing_time(61 * DAY)
    stream.add_elements([session("e2", START + HOUR)]).advance_watermark_to_infinity()
    project(stream)
    # Not two: the first one is forgotten.
    completed = columns("adherence", "completed_sessions")
    assert completed[0] == (START, 1)
    assert completed[-1] == (later, 1)


def test_late_data_is_projected() -> None:
    stream = (
        events()
        .advance_watermark_to(START)
        .add_elements([session("e1", START)])
        .advance_watermark_to(START + 5 * DAY)
        .advance_processing_time(HOUR)
        .add_elements([session("e2", START - 2 * HOUR)])
        .add_elements([session("e0", START - 29 * DAY)])
        .advance_watermark_to_infinity()
    )
    project(stream)
    assert columns("adherence", "completed_sessions", "source_event_id") == [
        (START, 1, "e1"),
        (START + HOUR, 2, "e2"),
    ]
    versions = [row.version for _, row in heard("adherence")]
    assert versions == sorted(set(versions))


def test_a_fault_takes_down_one_event_and_not_its_neighbors() -> None:
    stream = events().add_elements(
        [session("e1", START - HOUR), session("broken", START - 60), session("e2", START)]
    )
    project(stream.advance_watermark_to_infinity(), Stumbling(Settings()))
    ((_, letter),) = heard(DEAD_LETTERS)
    assert (letter.reason, letter.event_id, letter.event_kind) == (
        "projection_failed",
        "broken",
        "exercise_session",
    )
    assert letter.message.payload == b"broken"
    assert "p1" not in letter.error
    assert columns("adherence", "completed_sessions")[-1] == (START, 2)


# --- Deduplication


def unique(stream: Stream) -> list[tuple[float, str]]:
    with pipeline() as p:
        outputs = (p | stream.with_output_types(Event),) | Deduplicated(8, False, stream_clock.now)
        for kind in KINDS:
            outputs[kind] | f"Listen to {kind}" >> beam.ParDo(Listen(kind))
    return [(moment, e.event_id) for kind in KINDS for moment, e in heard(kind)]


def test_an_id_counts_once_within_24_hours() -> None:
    stream = (
        events()
        .add_elements([session("e1", START), session("e2", START), session("e1", START)])
        .advance_processing_time(HOUR)
        .add_elements([session("e1", START), session("e3", START)])
        .advance_processing_time(22.5 * HOUR)
        .add_elements([session("e1", START), session("e2", START)])
        .advance_processing_time(3 * HOUR)
        .add_elements([session("e1", START)])
        .advance_watermark_to_infinity()
    )
    found = unique(stream)
    assert sorted(found) == [
        (START, "e1"),
        (START, "e2"),
        (START + HOUR, "e3"),
        (START + 26.5 * HOUR, "e1"),
    ]


@pytest.fixture
def kinds() -> list[Event]:
    return [
        event("s", START, {}),
        event("r", START, {"quality_score": 1}, "rep_observation"),
        event("f", START, {}, "feedback"),
        event("a", START, {"alert_type": "x"}, "alert"),
        event("c", START, {"granted": True}, "consent"),
    ]


def test_each_kind_keeps_to_its_output(kinds: list[Event]) -> None:
    unique(events().add_elements([*kinds, *kinds]).advance_watermark_to_infinity())
    assert {kind: [e.event_id for _, e in heard(kind)] for kind in KINDS} == {
        "exercise_session": ["s"],
        "rep_observation": ["r"],
        "feedback": ["f"],
        "alert": ["a"],
        "consent": ["c"],
    }
