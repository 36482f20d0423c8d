"""What the steps of a stream do as processing time goes on, told with TestStream."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import PickleCoder
from apache_beam.runners.direct import direct_runner
from apache_beam.testing.test_stream import TestStream as Stream
from msgspec.structs import replace

from tests.support import stream_clock
from tests.support.stream_clock import Listen, StreamClock, heard
from transforms.events import REVIEW, Event, ReviewItemFact, StatedConsent, parse_event
from transforms.message import Message
from transforms.policy.nudges import Nudge
from transforms.projections.adherence import Adherence
from transforms.projections.consent import Decision
from transforms.projections.projector import Outcome, Output, Projector, RuleSettings
from transforms.projections.quality import Quality
from transforms.projections.state import KnownPatient, KnownReviewItem, Trigger
from transforms.projections.work_queue import WorkQueue
from transforms.rows import Row, unpack_row
from transforms.steps.batching import Batch
from transforms.steps.chunks import EventChunk
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.projection import Projection
from transforms.steps.rebuilding import Rebuild
from transforms.steps.validation import DEAD_LETTERS
from transforms.times import MICROS, to_rfc3339

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


def test_no_row_waits_longer_than_a_second() -> None:
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


def test_what_fills_no_batch_comes_out_when_the_round_ends() -> None:
    stream = Stream().advance_processing_time(START).advance_processing_time(0.5).add_elements(rows(5))
    for _ in range(4):
        stream.advance_processing_time(0.25)
    assert batches(stream.advance_watermark_to_infinity()) == [(1.0, 5)]


def test_batches_of_all_shards_come_out_at_the_same_moment() -> None:
    stream = Stream().advance_processing_time(START)
    for first in range(0, 60, 20):
        stream.add_elements(rows(20, first)).advance_processing_time(0.25)
    stream.advance_processing_time(0.25).advance_processing_time(1000).advance_watermark_to_infinity()
    found = batches(stream, shards=4)
    assert {moment for moment, _ in found} == {1.0}
    assert (len(found), sum(count for _, count in found)) == (4, 60)


def test_every_version_of_a_key_lands_in_one_shard() -> None:
    stream = Stream().advance_processing_time(START)
    for version in range(1, 4):
        stream.add_elements([row._replace(version=version) for row in rows(60)])
    stream.advance_processing_time(2).advance_watermark_to_infinity()
    assert [moment for moment, _ in batches(stream, shards=4)] != []
    shards_of: dict[str, set[int]] = {}
    for _, (shard, members) in heard("batch"):
        for row in map(unpack_row, members):
            shards_of.setdefault(row.key, set()).add(shard)
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
    return Stream(coder=PickleCoder()).advance_processing_time(START)


class Stumbling(Adherence):
    """Breaks on one event, as a fault in a rule would."""

    def apply(self, state: Any, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        outcome = super().apply(state, event, trigger, now_us, output)
        if event.event_id == "broken":
            raise ZeroDivisionError("about patient p1")
        return outcome


def project(
    stream: Stream,
    projector: Projector[Any] | None = None,
    *,
    bounded: bool = False,
    rebuild: Rebuild | None = None,
    known: dict[str, KnownPatient] | None = None,
) -> Any:
    """Runs a stream of events, or of tuples of events, through a projection (adherence), and listens."""
    projector = projector or Adherence(RuleSettings())
    with pipeline() as p:
        source = p | stream.with_output_types(Any) | beam.Map(_chunk).with_output_types(EventChunk)
        outputs = (source,) | Projection(
            projector, bounded, rebuild, partial(dict, known or {}), stream_clock.now
        )
        for name in (*projector.tables, NUDGES, REVIEW_ITEMS, DEAD_LETTERS):
            outputs[name] | f"Listen to {name}" >> beam.ParDo(Listen(name))
    return p.result


def _chunk(arrived: Event | tuple[Event, ...]) -> EventChunk:
    return EventChunk((arrived,) if isinstance(arrived, Event) else arrived)


def columns(table: str, *names: str) -> list[tuple[Any, ...]]:
    """(processing time, columns …) of a table's rows."""
    found = [(moment, json.loads(row.body)) for moment, row in heard(table)]
    return [(moment, *(body[name] for name in names)) for moment, body in found]


def nudges() -> list[tuple[float, Nudge]]:
    return [(moment, nudge) for moment, chunk in heard(NUDGES) for nudge in chunk]


def announced() -> list[tuple[float, str, str]]:
    return [(moment, nudge.attributes["type"], nudge.attributes["severity"]) for moment, nudge in nudges()]


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
    assert [moment for moment, _ in heard(REVIEW_ITEMS)] == [two_days, seven_days]
    grown = columns("adherence", "consecutive_missed_days", "source_event_id")
    assert grown[:3] == [(START, 0, "e1"), (two_days, 2, None), (two_days + DAY, 3, None)]
    assert [json.loads(nudge.body)["triggered_by"] for _, nudge in nudges()] == [None, None]


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
    project(stream, Adherence(RuleSettings(nudge_max_age_hours=0)))
    timers = [nudge for nudge in nudges() if nudge[1].attributes["severity"] == "medium"]
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


def test_one_array_of_old_history_is_too_late_but_for_the_last_28_days() -> None:
    history = tuple(session(f"e{days}", START - days * DAY) for days in (80, 60, 40, 20, 0))
    stream = Stream(coder=PickleCoder()).advance_processing_time(START).add_elements([history])
    result = project(stream.advance_watermark_to_infinity())
    assert counted(result) == {"event.too_late": 3, "event.processed.exercise_session": 2}
    assert columns("adherence", "week_start", "completed_sessions") == [
        (START, "2025-02-10", 1),
        (START, "2025-03-03", 1),
    ]


def counted(result: Any) -> dict[str, int]:
    """What came of the events."""
    counters = result.metrics().query()["counters"]
    names = {counter.key.metric.name: counter.committed for counter in counters}
    return {name: number for name, number in names.items() if name.startswith("event.")}


def test_a_fault_takes_down_one_event_and_not_its_neighbors() -> None:
    stream = events().add_elements(
        [session("e1", START - HOUR), session("broken", START - 60), session("e2", START)]
    )
    project(stream.advance_watermark_to_infinity(), Stumbling(RuleSettings()))
    ((_, letter),) = heard(DEAD_LETTERS)
    assert (letter.reason, letter.event_id, letter.event_kind) == (
        "projection_failed",
        "broken",
        "exercise_session",
    )
    assert letter.message.payload == b"broken"
    assert "p1" not in letter.error
    assert columns("adherence", "completed_sessions")[-1] == (START, 2)


# --- A rebuild

UNTIL = START + HOUR
REBUILD = Rebuild(int((START - 31 * DAY) * MICROS), int(UNTIL * MICROS))


def consent(event_id: str, at: float, status: str) -> Event:
    return event(event_id, at, {"status": status}, "consent")


def test_rows_are_held_back_until_all_older_messages_are_read_and_then_written_once() -> None:
    stream = (
        events()
        .add_elements([session("e1", START - DAY)])
        .advance_processing_time(MINUTE)
        .add_elements([session("e2", START)])
        .advance_watermark_to(UNTIL - 1)
        .advance_processing_time(MINUTE)
        .add_elements([session("e3", START + MINUTE)])
        .advance_watermark_to(UNTIL + 1)
        .advance_processing_time(MINUTE)
        .add_elements([session("e4", START + 2 * MINUTE)])
        .add_elements([event("e5", START + 3 * MINUTE, {"completion_status": "completed"}, patient_id="p2")])
        .advance_processing_time(MINUTE)
        .advance_watermark_to_infinity()
    )
    project(stream, rebuild=REBUILD)
    caught_up, later = START + 2 * MINUTE, START + 3 * MINUTE
    written = columns("adherence", "patient_id", "week_start", "completed_sessions", "source_event_id")
    assert sorted(written, key=lambda row: row[:3]) == [
        (caught_up, "p1", "2025-02-24", 1, None),
        (caught_up, "p1", "2025-03-03", 2, None),
        (later, "p1", "2025-03-03", 3, "e4"),
        (later, "p2", "2025-03-03", 1, None),
    ]
    assert min(row.version for _, row in heard("adherence")) >= int(caught_up * MICROS)


def test_what_is_held_back_is_announced_once_and_only_if_it_is_recent() -> None:
    stream = (
        events()
        .add_elements([session("old", START - 5 * DAY, duration_minutes=3)])
        .add_elements([session("new", START, duration_minutes=4)])
        .advance_watermark_to(UNTIL + 1)
        .advance_processing_time(1)
        .advance_watermark_to_infinity()
    )
    project(stream, rebuild=REBUILD)
    assert [kind for _, kind, _ in announced() if kind == "short_session"] == ["short_session"]


def test_severe_pain_is_announced_at_once_in_a_rebuild() -> None:
    stream = events().add_elements([session("e1", START, pain_level=9)]).advance_processing_time(MINUTE)
    stream.advance_watermark_to(UNTIL + 1).advance_processing_time(MINUTE).advance_watermark_to_infinity()
    project(stream, rebuild=REBUILD)
    assert announced() == [(START, "pain_reported", "critical")]


def test_a_critical_alert_is_announced_at_once_in_a_rebuild_and_shown_after_it() -> None:
    alert = event("a1", START, {"alert_type": "fall", "urgency": "critical"}, "alert")
    stream = events().add_elements([alert]).advance_processing_time(MINUTE)
    stream.advance_watermark_to(UNTIL + 1).advance_processing_time(MINUTE).advance_watermark_to_infinity()
    project(stream, WorkQueue(RuleSettings()), rebuild=REBUILD)
    assert announced() == [(START, "critical_alert", "critical")]
    assert sorted(columns("work_queue", "item_type", "visible")) == [
        (START + MINUTE, "alert", True),
        (START + MINUTE, "review", True),
    ]


def test_a_revocation_hides_at_once_in_a_rebuild_and_a_grant_waits() -> None:
    stream = (
        events()
        .add_elements([session("e1", START - DAY), consent("c1", START - HOUR, "granted")])
        .advance_processing_time(MINUTE)
        .add_elements([consent("c2", START, "revoked")])
        .advance_processing_time(MINUTE)
        .add_elements([consent("c3", START + MINUTE, "granted")])
        .advance_processing_time(MINUTE)
        .advance_watermark_to(UNTIL + 1)
        .advance_processing_time(1)
        .advance_watermark_to_infinity()
    )
    project(stream, rebuild=REBUILD)
    assert columns("consents", "visible") == [(START + MINUTE, False), (START + 3 * MINUTE, True)]
    assert [moment for moment, _ in heard("adherence")] == [START + 3 * MINUTE]


def test_consents_that_the_table_knows_hold_from_the_first_event_on() -> None:
    def decision(days: int, event_id: str, status: StatedConsent) -> Decision:
        at_us = int((START - days * DAY) * MICROS)
        return Decision(at_us, at_us, event_id, status, None)

    known = {
        "p1": KnownPatient((decision(40, "c1", "granted"), decision(35, "c2", "revoked"))),
        "p2": KnownPatient((decision(40, "c1", "granted"),)),
    }
    stream = (
        events()
        .add_elements([session("e1", START), event("e2", START, {}, patient_id="p2")])
        .add_elements([event("e3", START, {}, patient_id="p3")])
        .advance_processing_time(MINUTE)
        .advance_watermark_to_infinity()
    )
    project(stream, Adherence(RuleSettings(consent="require")), known=known)
    assert {row[1] for row in columns("adherence", "patient_id")} == {"p2"}
    assert {row[1:] for row in columns("consents", "patient_id", "visible")} == {("p1", False), ("p2", True)}


def test_the_decisions_in_a_row_are_those_that_may_still_matter() -> None:
    stream = events().add_elements(
        [
            consent("c1", START - 40 * DAY, "granted"),
            event("c2", START - 30 * DAY, {"granted": True, "expires_at": "2025-04-01T00:00:00Z"}, "consent"),
            consent("c3", START, "revoked"),
        ]
    )
    project(stream.advance_watermark_to_infinity())
    ((_, decisions),) = columns("consents", "decisions")
    assert [(d["event_id"], d["status"], d["expires_at"]) for d in decisions] == [
        ("c2", "granted", "2025-04-01T00:00:00Z"),
        ("c3", "revoked", None),
    ]
    assert decisions[1]["effective_from"] == decisions[1]["decided_at"] == "2025-03-03T10:00:00Z"


def test_items_that_a_rebuild_does_not_prove_again_are_taken_out_when_it_has_caught_up() -> None:
    review = ReviewItemFact("proven", int(START * MICROS), False, "high", "Pain reported", "{}")
    found = Event("e1", REVIEW, int(START * MICROS), "p1", "", None, review, Message(b"", {}, "", "", 0))
    created_us = int((START - DAY) * MICROS)
    known = {
        patient: KnownPatient(
            (), (KnownReviewItem("proven", created_us, "low"), KnownReviewItem("gone", created_us, "low"))
        )
        for patient in ("p1", "p2")
    }
    stream = events().add_elements([found]).advance_processing_time(MINUTE)
    stream.advance_watermark_to(UNTIL + 1).advance_processing_time(1).advance_watermark_to_infinity()
    project(stream, WorkQueue(RuleSettings()), rebuild=REBUILD, known=known)
    assert sorted(columns("work_queue", "item_id", "visible", "urgency")) == [
        (START + MINUTE, "gone", False, "low"),
        (START + MINUTE, "proven", True, "high"),
    ]


# --- The replay of what failed in a projection


def replayed(found: Event) -> Event:
    return replace(found, message=replace(found.message, attributes={"replay_of": "projection_failed"}))


class Mended(Adherence):
    """Breaks on one event the first time, as a fault in a rule would that the next release mends."""

    def apply(self, state: Any, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        if event.event_id == "broken" and not event.message.attributes:
            raise ZeroDivisionError("about patient p1")
        return super().apply(state, event, trigger, now_us, output)


def test_a_replay_reaches_once_the_projection_that_failed() -> None:
    broken, fine = session("broken", START, pain_level=9), session("fine", START - 60, pain_level=9)
    stream = (
        events()
        .add_elements([broken, fine])
        .advance_processing_time(HOUR)
        .add_elements([replayed(broken), replayed(fine)])
        .advance_processing_time(HOUR)
        .add_elements([replayed(broken)])
        .advance_watermark_to_infinity()
    )
    project(stream, Mended(RuleSettings()))
    assert columns("adherence", "completed_sessions") == [(START, 1), (START + HOUR, 2)]
    pain = [moment for moment, kind, _ in announced() if kind == "pain_reported"]
    assert pain == [START, START + HOUR]


def test_a_replay_that_fails_again_is_a_dead_letter_and_may_come_once_more() -> None:
    broken = session("broken", START)
    stream = (
        events()
        .add_elements([broken])
        .advance_processing_time(HOUR)
        .add_elements([replayed(broken)])
        .advance_processing_time(HOUR)
        .add_elements([replayed(broken)])
        .advance_watermark_to_infinity()
    )
    project(stream, Stumbling(RuleSettings()))
    assert [moment for moment, _ in heard(DEAD_LETTERS)] == [START, START + HOUR, START + 2 * HOUR]


def test_a_replay_that_comes_before_its_event_is_the_first_of_its_id() -> None:
    rep = repetition("r1", START)
    stream = (
        events()
        .add_elements([replayed(rep)])
        .advance_processing_time(HOUR)
        .add_elements([rep, replayed(rep)])
        .advance_watermark_to_infinity()
    )
    project(stream, Quality(RuleSettings()))
    assert columns("quality", "total_reps") == [(START, 1)]


# --- Deduplication


def repetition(event_id: str, at: float, patient_id: str = "p1") -> Event:
    return event(event_id, at, {"quality_score": 0.9}, "rep_observation", patient_id=patient_id)


def test_an_id_counts_once_within_24_hours() -> None:
    e1, e2, e3 = (repetition(event_id, START) for event_id in ("e1", "e2", "e3"))
    stream = (
        events()
        .add_elements([e1, e2, e1])
        .advance_processing_time(HOUR)
        .add_elements([e1, e3])
        .advance_processing_time(22.5 * HOUR)
        .add_elements([e1, e2])
        .advance_processing_time(3 * HOUR)
        .add_elements([e1])
        .advance_watermark_to_infinity()
    )
    project(stream, Quality(RuleSettings()))
    assert columns("quality", "total_reps") == [(START, 2), (START + HOUR, 3), (START + 26.5 * HOUR, 4)]


def test_what_was_withheld_has_been_seen() -> None:
    rep = repetition("r1", START)
    stream = (
        events()
        .add_elements([rep])
        .advance_processing_time(HOUR)
        .add_elements([rep])
        .advance_processing_time(HOUR)
        .add_elements([consent("c1", START - HOUR, "granted"), rep])
        .advance_processing_time(3 * DAY)
        .add_elements([rep])
        .advance_watermark_to_infinity()
    )
    project(stream, Quality(RuleSettings(consent="require")))
    assert columns("quality", "total_reps") == [(START + 2 * HOUR + 3 * DAY, 1)]


def test_what_is_no_duplicate() -> None:
    """An id that another patient's phone has used too, or that stands for an event of another kind."""
    stream = events().add_elements(
        [
            repetition("1", START),
            repetition("1", START, "p2"),
            event("1", START, {"overall_quality": 0.8}),
            repetition("1", START),
        ]
    )
    project(stream.advance_watermark_to_infinity(), Quality(RuleSettings()))
    assert sorted(columns("quality", "patient_id", "total_reps", "last_session_quality")) == [
        (START, "p1", 1, 0.8),
        (START, "p2", 1, None),
    ]


def test_an_alert_and_a_feedback_of_one_id_are_not_mixed_up_in_one_item() -> None:
    fall = event("1", START, {"alert_type": "fall", "urgency": "high"}, "alert")
    thanks = event("1", START, {"priority": "low", "acknowledged_at": "2025-03-03T10:00:00Z"}, "feedback")
    stream = events().add_elements([fall]).advance_processing_time(MINUTE).add_elements([thanks])
    project(stream.advance_watermark_to_infinity(), WorkQueue(RuleSettings()))
    assert columns("work_queue", "item_type", "urgency", "status") == [(START, "alert", "high", "pending")]
