"""Every alias, default, rule and range of docs/contract.md, 2."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace
from pydantic import TypeAdapter

from transforms.events import (
    KINDS,
    AlertFact,
    ConsentFact,
    Event,
    EventModel,
    FeedbackFact,
    InvalidEventError,
    RepFact,
    SessionFact,
    StatedConsent,
    content_id,
    parse_event,
)
from transforms.message import Message
from transforms.times import DAY_US, HOUR_US, MICROS, MINUTE_US, to_micros, to_rfc3339

NOW_US = to_micros(datetime(2025, 3, 20, 12, 0, tzinfo=UTC))
PUBLISH_US = NOW_US - 90 * MICROS
TS = "2025-03-20T10:00:00Z"
TS_US = to_micros(datetime(2025, 3, 20, 10, 0, tzinfo=UTC))

# The least that each kind's body must state.
LEAST: dict[str, dict[str, Any]] = {
    "exercise_session": {},
    "rep_observation": {"quality_score": 0.8},
    "feedback": {},
    "alert": {"alert_type": "fall_risk"},
    "consent": {"granted": True},
}


def envelope(kind: str, body: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A valid event of that kind; `body` is added to what it must state, null in `fields` takes one away."""
    stated = {
        "event_id": "e1",
        "kind": kind,
        "ts": TS,
        "subject_id": "p1",
        "body": LEAST[kind] | (body or {}),
    }
    return {name: value for name, value in (stated | fields).items() if value is not None}


def parse(content: dict[str, Any]) -> Event:
    return parse_event(content, Message(b"{}", {}, "s", "m", PUBLISH_US), NOW_US)


def fact(kind: str, body: dict[str, Any], **fields: Any) -> Any:
    return parse(envelope(kind, body, **fields)).fact


def refusal(content: dict[str, Any]) -> InvalidEventError:
    with pytest.raises(InvalidEventError) as caught:
        parse(content)
    return caught.value


# --- The envelope


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_that_is_an_event(kind: str) -> None:
    content = {"kind": kind, "subject_id": "p1", "body": LEAST[kind]}
    event = parse(content)
    assert (event.kind, event.patient_id, event.exercise_id, event.site_id) == (kind, "p1", "", None)
    assert event.ts_us == PUBLISH_US
    assert event.event_id == content_id(content)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_envelope(kind: str) -> None:
    meta = {"phi": False, "consent_id": "c1", "site_id": "north", "version": 3, "correlation_id": "x"}
    event = parse(envelope(kind, exercise_id="squat", meta=meta))
    assert astuple(event)[:6] == ("e1", kind, TS_US, "p1", "squat", "north")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "alias"), [("ts", "timestamp"), ("subject_id", "patient_id")])
def test_aliases_of_the_envelope(kind: str, name: str, alias: str) -> None:
    content = envelope(kind)
    content[alias] = content.pop(name)
    assert parse(content) == parse(envelope(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_and_nulls_are_kept_out_of_the_way(kind: str) -> None:
    noisy = envelope(kind, {"x": 1}, meta={"y": [2]}) | {"z": {"deep": None}, "exercise_id": None}
    assert parse(noisy) == parse(envelope(kind))


@pytest.mark.parametrize("field", ["subject_id", "body"])
@pytest.mark.parametrize("kind", KINDS)
def test_required_fields_of_the_envelope(kind: str, field: str) -> None:
    content = envelope(kind)
    del content[field]
    error = refusal(content)
    assert error.reason == "invalid_schema"
    assert [problem.field for problem in error.errors] == [field]


@pytest.mark.parametrize("length", [1, 128])
@pytest.mark.parametrize("field", ["event_id", "subject_id", "exercise_id"])
def test_lengths_of_ids(field: str, length: int) -> None:
    parse(envelope("feedback") | {field: "é" * length})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", ""),
        ("event_id", "x" * 129),
        ("event_id", 5),
        ("subject_id", ""),
        ("subject_id", "x" * 129),
        ("subject_id", 5),
        ("exercise_id", "x" * 129),
        ("exercise_id", 5),
        ("body", []),
        ("body", "{}"),
        ("meta", "m"),
        ("meta", [1]),
    ],
)
def test_wrong_values_in_the_envelope(field: str, value: object) -> None:
    error = refusal(envelope("feedback") | {field: value})
    assert error.reason == "invalid_schema"
    assert [problem.field for problem in error.errors] == [field]


@pytest.mark.parametrize(
    ("field", "value"),
    [("phi", "yes"), ("phi", 1), ("consent_id", 1), ("site_id", 7), ("version", "1"), ("version", 1.5)],
)
def test_wrong_values_in_meta(field: str, value: object) -> None:
    error = refusal(envelope("feedback", meta={field: value}))
    assert (error.reason, [problem.field for problem in error.errors]) == (
        "invalid_schema",
        [f"meta.{field}"],
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("session", "unknown_kind"),
        ("Alert", "unknown_kind"),
        ("", "unknown_kind"),
        ("review", "unknown_kind"),
        (None, "invalid_schema"),
        (5, "invalid_schema"),
        ([], "invalid_schema"),
        ({}, "invalid_schema"),
    ],
)
def test_kinds_that_are_none(kind: object, reason: str) -> None:
    error = refusal(envelope("feedback") | {"kind": kind})
    assert (error.reason, error.errors[0].field) == (reason, "kind")


# --- Times


@pytest.mark.parametrize(
    "text",
    [
        TS,
        "2025-03-20T10:00:00",
        "2025-03-20 10:00:00Z",
        "2025-03-20t10:00:00z",
        "2025-03-20T10:00:00.000000000Z",
        "2025-03-20T10:00:00+00:00",
        "2025-03-20T10:00:00-00:00",
        "2025-03-20T15:30:00+05:30",
        "2025-03-19T22:00:00-12:00",
    ],
)
def test_one_instant_in_every_form(text: str) -> None:
    assert parse(envelope("feedback", ts=text)).ts_us == TS_US


def test_microseconds_are_kept() -> None:
    assert parse(envelope("feedback", ts="2025-03-20T10:00:00.123456Z")).ts_us == TS_US + 123_456
    assert parse(envelope("feedback", ts="2025-03-20T10:00:00.5Z")).ts_us == TS_US + 500_000


@pytest.mark.parametrize(
    "value",
    [
        1_742_464_800,
        1_742_464_800.5,
        True,
        [],
        {},
        "",
        "now",
        "1742464800",
        "2025-03-20",
        "20250320T100000Z",
        "2025-W12-4T10:00:00Z",
        "2025-03-20T10:00Z",
        "2025-03-20T10Z",
        "2025-02-30T10:00:00Z",
        "2025-13-01T10:00:00Z",
        "2025-03-20T25:00:00Z",
        "2025-03-20T10:00:00+25:00",
        "2025-03-20T10:00:00 Z",
        " 2025-03-20T10:00:00Z",
        "2025-03-20T10:00:00Z\n",
        "٢٠٢٥-03-20T10:00:00Z",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:60:60Z",
        "2016-12-31T25:00:60Z",
        "2016-02-30T23:59:60Z",
        "9999-12-31T23:59:60Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
    ],
)
@pytest.mark.parametrize("field", ["ts", "timestamp"])
def test_what_is_no_time(field: str, value: object) -> None:
    content = envelope("feedback", ts=None) | {field: value}
    error = refusal(content)
    assert error.reason == "invalid_schema"
    assert error.errors[0].field in ("ts", "timestamp")


@pytest.mark.parametrize(
    ("text", "next_second"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.25Z"),
        ("2016-12-31t23:59:60z", "2017-01-01T00:00:00Z"),
        ("2016-12-31 23:59:60", "2017-01-01T00:00:00Z"),
        ("2016-12-31T15:59:60-08:00", "2017-01-01T00:00:00Z"),
        ("2017-01-01T05:29:60.999999+05:30", "2017-01-01T00:00:00.999999Z"),
        ("2016-12-31T10:30:60Z", "2016-12-31T10:31:00Z"),
    ],
)
def test_a_leap_second_is_the_next_second(text: str, next_second: str) -> None:
    assert parse(envelope("feedback", ts=text)).ts_us == to_micros(datetime.fromisoformat(next_second))


EARLIEST_US = to_micros(datetime(2000, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("time_us", [EARLIEST_US, NOW_US, NOW_US + 5 * MINUTE_US])
@pytest.mark.parametrize("kind", KINDS)
def test_times_just_in_range(kind: str, time_us: int) -> None:
    assert parse(envelope(kind, ts=to_rfc3339(time_us))).ts_us == time_us


@pytest.mark.parametrize("time_us", [EARLIEST_US - 1, NOW_US + 5 * MINUTE_US + 1, 0, NOW_US + 400 * DAY_US])
@pytest.mark.parametrize("kind", KINDS)
def test_times_out_of_range(kind: str, time_us: int) -> None:
    error = refusal(envelope(kind, ts=to_rfc3339(time_us)))
    assert (error.reason, [problem.field for problem in error.errors]) == ("timestamp_out_of_range", ["ts"])


def test_a_publish_time_out_of_range() -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse_event(envelope("feedback", ts=None), Message(b"", {}, "", "", EARLIEST_US - 1), NOW_US)
    assert caught.value.reason == "timestamp_out_of_range"


@pytest.mark.parametrize("time_us", [EARLIEST_US - 1, NOW_US + 5 * MINUTE_US + 1])
@pytest.mark.parametrize("field", ["start_time", "end_time"])
def test_a_session_cannot_begin_or_end_out_of_range(field: str, time_us: int) -> None:
    error = refusal(envelope("exercise_session", {field: to_rfc3339(time_us)}))
    assert error.reason == "timestamp_out_of_range"
    assert [problem.field for problem in error.errors] == [f"body.{field}"]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("alert", "sla_deadline"),
        ("alert", "resolved_at"),
        ("feedback", "delivered_at"),
        ("feedback", "acknowledged_at"),
        ("consent", "effective_from"),
        ("consent", "expires_at"),
    ],
)
def test_other_times_may_lie_in_the_future_but_must_be_times(kind: str, field: str) -> None:
    parse(envelope(kind, {field: to_rfc3339(NOW_US + 400 * DAY_US)}))
    error = refusal(envelope(kind, {field: "2025-03-20"}))
    assert [problem.field for problem in error.errors] == [f"body.{field}"]


# --- Bodies: aliases, defaults and ranges


@pytest.mark.parametrize(
    ("kind", "name", "aliases", "value"),
    [
        ("exercise_session", "overall_quality", ["quality_score"], 0.4),
        ("exercise_session", "start_time", ["started_at"], "2025-03-20T09:00:00Z"),
        ("exercise_session", "end_time", ["ended_at"], "2025-03-20T09:30:00Z"),
        ("exercise_session", "completion_status", ["status"], "aborted"),
        ("exercise_session", "completion_status", ["status"], "started"),
        ("rep_observation", "quality_score", ["rep_quality", "form_score"], 0.4),
        ("rep_observation", "confidence_rating", ["confidence"], 0.4),
        ("rep_observation", "form_issues", ["form_errors", "anomalies"], ["lean"]),
        ("feedback", "target_session_id", ["session_id"], "s1"),
        ("feedback", "content", ["message"], "well done"),
        ("feedback", "content", ["message"], {"text": "well done"}),
        ("feedback", "priority", ["severity", "severity_level"], "high"),
        ("alert", "urgency", ["severity", "priority"], "high"),
        ("alert", "resolution_status", ["status"], "in_review"),
        ("alert", "description", ["title", "message"], "fell"),
        ("consent", "expires_at", ["expiry"], "2025-05-20T09:30:00Z"),
    ],
)
def test_aliases_of_bodies(kind: str, name: str, aliases: list[str], value: object) -> None:
    required = {field: stated for field, stated in LEAST[kind].items() if field != name}

    def stating(field: str, stated: object) -> dict[str, Any]:
        return envelope(kind) | {"body": required | {field: stated}}

    wanted = parse(stating(name, value)).fact
    for alias in aliases:
        assert parse(stating(alias, value)).fact == wanted
        error = refusal(stating(alias, True))
        assert error.errors[0].field in {f"body.{field}" for field in (name, *aliases)}


# The names of each field, in the order in which they count; a dotted one lies inside another field.
NAMES: list[tuple[str, list[str], list[Any]]] = [
    (
        "exercise_session",
        ["body.start_time", "body.started_at"],
        [f"2025-03-20T09:0{n}:00Z" for n in range(2)],
    ),
    ("exercise_session", ["body.end_time", "body.ended_at"], [f"2025-03-20T09:0{n}:00Z" for n in range(2)]),
    ("exercise_session", ["body.completion_status", "body.status"], ["partial", "aborted"]),
    (
        "exercise_session",
        ["body.overall_quality", "body.quality_score", "body.completion_summary.average_quality"],
        [0.1, 0.2, 0.3],
    ),
    (
        "rep_observation",
        ["body.quality_score", "body.rep_quality", "body.form_score", "body.form_analysis.overall_score"],
        [0.1, 0.2, 0.3, 0.4],
    ),
    ("rep_observation", ["body.form_issues", "body.form_errors", "body.anomalies"], [["a"], ["b"], ["c"]]),
    ("feedback", ["body.target_session_id", "body.session_id"], ["s1", "s2"]),
    ("feedback", ["body.content", "body.message"], ["one", "two"]),
    ("feedback", ["body.priority", "body.severity", "body.severity_level"], ["low", "high", "critical"]),
    ("feedback", ["body.pain_level", "body.content.pain_level"], [1, 2]),
    ("feedback", ["body.pain_level", "body.message.pain_level"], [1, 2]),
    ("alert", ["body.urgency", "body.severity", "body.priority"], ["low", "high", "urgent"]),
    ("alert", ["body.resolution_status", "body.status"], ["in_review", "resolved"]),
    ("alert", ["body.description", "body.title", "body.message"], ["one", "two", "three"]),
    ("consent", ["body.expires_at", "body.expiry"], [f"2025-05-20T09:0{n}:00Z" for n in range(2)]),
    *(
        (kind, names, values)
        for kind in KINDS
        for names, values in (
            (["ts", "timestamp"], [f"2025-03-20T09:0{n}:00Z" for n in range(2)]),
            (["subject_id", "patient_id"], ["p2", "p3"]),
            (["exercise_id", "body.exercise_id", "body.exercise_type"], ["squat", "bridge", "lunge"]),
        )
    ),
]


def with_values(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """An event with just these values by path, and what it must state besides."""
    besides = {"event_id": "e1", "ts": TS, "subject_id": "p1"}
    besides |= {f"body.{name}": value for name, value in LEAST[kind].items()}
    if values.keys() & {"body.end_time", "body.ended_at"}:
        besides["body.start_time"] = "2025-03-20T08:00:00Z"
    for of_kind, names, _ in NAMES:
        if of_kind == kind and values.keys() & {*names}:
            besides.pop(names[0], None)
    content: dict[str, Any] = {"kind": kind, "body": {}}
    for path, value in (besides | values).items():
        *containers, name = path.split(".")
        inner = content
        for container in containers:
            inner = inner.setdefault(container, {})
        inner[name] = value
    return content


def read(kind: str, values: dict[str, Any]) -> tuple[Any, ...]:
    """All that such an event says, but for a feedback's text, which some paths lie in."""
    event = parse(with_values(kind, values))
    said = event.fact
    if isinstance(said, FeedbackFact) and any(path.endswith(".pain_level") for path in values):
        said = replace(said, details={}, description=None)
    return (*astuple(event)[:6], said)


@pytest.mark.parametrize(("kind", "names", "values"), NAMES, ids=lambda value: str(value)[:60])
def test_the_first_name_that_states_something_counts(kind: str, names: list[str], values: list[Any]) -> None:
    wanted = [read(kind, {names[0]: value}) for value in values]
    assert len({repr(each) for each in wanted}) == len(values)
    for first, path in enumerate(names):
        # Null hides no other name, whether it stands before or behind the one that counts.
        for others in ({}, dict.fromkeys(names, None)):
            assert read(kind, others | {path: values[first]}) == wanted[first]
        later = dict(zip(names[first:], values[first:], strict=True))
        assert read(kind, dict.fromkeys(names[:first]) | later) == wanted[first]


@pytest.mark.parametrize(("kind", "names", "values"), NAMES, ids=lambda value: str(value)[:60])
def test_a_name_is_refused_as_it_is_written_and_only_where_it_counts(
    kind: str, names: list[str], values: list[Any]
) -> None:
    for position, path in enumerate(names):
        error = refusal(with_values(kind, {names[0]: None} | {path: True}))
        assert error.reason == "invalid_schema"
        assert {problem.field for problem in error.errors} == {path}
        if position and path != "body.message.pain_level":
            assert read(kind, {names[0]: values[0], path: True}) == read(kind, {names[0]: values[0]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "alias"), [("ts", "timestamp")])
def test_a_time_out_of_range_is_named_as_it_is_written(kind: str, name: str, alias: str) -> None:
    content = envelope(kind, ts=None) | {name: None, alias: "1999-12-31T23:59:59Z"}
    assert [problem.field for problem in refusal(content).errors] == [alias]
    if kind == "exercise_session":
        error = refusal(envelope(kind, {"start_time": None, "started_at": "1999-12-31T23:59:59Z"}))
        assert [problem.field for problem in error.errors] == ["body.started_at"]


REQUIRED = [("subject_id",), ("body",), ("body", "quality_score"), ("body", "form_issues", 0, "type")]


@pytest.mark.parametrize("path", REQUIRED, ids=str)
def test_null_in_place_of_what_is_required_is_missing(path: tuple[Any, ...]) -> None:
    content = envelope("rep_observation", {"form_issues": [{"type": "lean", "severity": None}]})
    assert parse(content).fact == RepFact(0.8, None, (("lean", None),))
    inner: Any = content
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = None
    assert refusal(content).errors == [(".".join(map(str, path)), "Field required")]


def test_null_counts_as_absent_for_every_optional_field() -> None:
    for kind in KINDS:
        optional = {field for of_kind, field, _, _ in RANGES if of_kind == kind} - LEAST[kind].keys()
        body = dict.fromkeys(optional) | LEAST[kind]
        meta = dict.fromkeys(["phi", "consent_id", "site_id", "version", "correlation_id"])
        assert parse(envelope(kind) | {"body": body, "meta": meta}) == parse(envelope(kind))


def test_what_is_kept_as_it_is_sent_keeps_its_nulls() -> None:
    said = fact("alert", {"context": {"room": None}, "trigger_criteria": {"a": [None]}})
    assert (said.context, said.trigger_criteria) == ('{"room":null}', '{"a":[null]}')


WHOLE_FIELDS = [
    ("exercise_session", "body.prescribed_reps", "body.target_reps"),
    ("exercise_session", "body.completed_reps", "body.completion_summary.total_reps"),
    ("exercise_session", "body.prescribed_sessions_per_week", None),
    ("exercise_session", "body.prescription.sets", None),
    ("exercise_session", "body.prescription.reps", None),
    ("rep_observation", "body.rep_number", None),
    ("rep_observation", "meta.version", None),
]


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind, *paths in WHOLE_FIELDS for path in paths if path], ids=str
)
def test_a_whole_number_is_an_integer_however_it_is_written(kind: str, path: str) -> None:
    around = {
        "body.prescribed_reps": {"body.completed_reps": 7},
        "body.target_reps": {"body.completed_reps": 7},
        "body.completed_reps": {"body.prescribed_reps": 10},
        "body.completion_summary.total_reps": {"body.prescribed_reps": 10},
        "body.prescription.sets": {"body.prescription.reps": 1, "body.completed_reps": 7},
        "body.prescription.reps": {"body.prescription.sets": 1, "body.completed_reps": 7},
    }.get(path, {})

    def content(written: str) -> dict[str, Any]:
        stated = with_values(kind, around | {path: 4242})
        decoded: dict[str, Any] = orjson.loads(orjson.dumps(stated).replace(b"4242", written.encode()))
        return decoded

    wanted = parse(content("10"))
    for written in ("10.0", "1e1", "1E+1", "100e-1", "10.000"):
        assert parse(content(written)) == wanted
    for written in ("10.5", "1e-1", "true", '"10"', '"10.0"', "[10]", "-10.0"):
        if (path, written) != ("meta.version", "-10.0"):
            assert {problem.field for problem in refusal(content(written)).errors} == {path}


RANGES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("exercise_session", "session_id", ["s", "s" * 128], ["", "s" * 129, 1]),
    ("exercise_session", "prescribed_exercise_id", ["x"], [1]),
    (
        "exercise_session",
        "completion_status",
        ["completed", "partial", "aborted", "started"],
        ["Done", "active", 1, ""],
    ),
    ("exercise_session", "prescribed_reps", [0, 1, 10**6, 1.0, -0.0, 1e300], [-1, -1.0, 1.5, "1", True]),
    ("exercise_session", "completed_reps", [0, 1, 10**6, 1.0], [-1, 1.5, "1", True]),
    ("exercise_session", "overall_quality", [0, 1, 0.5], [-0.001, 1.001, "0.5", True, []]),
    ("exercise_session", "duration_minutes", [0, 0.5, 600], [-0.1, "5", True]),
    ("exercise_session", "pain_level", [0, 10, 6.5], [-0.1, 10.1, "7", False]),
    ("exercise_session", "prescribed_sessions_per_week", [1, 21, 2.0], [0, 0.0, 22, 22.0, 2.5, "2", True]),
    ("exercise_session", "device_info", [{}, {"a": {"b": 1}}], [[], "x", 1]),
    ("rep_observation", "quality_score", [0, 1, 0.5], [-0.001, 1.001, "0.5", True, None]),
    ("rep_observation", "rep_number", [1, 500, 1.0], [0, 0.0, -1, 1.5, "1", True]),
    ("rep_observation", "session_id", ["s", "s" * 128], ["", "s" * 129, 1]),
    ("rep_observation", "confidence_rating", [0, 1, 0.5], [-0.001, 1.001, "0.5", True]),
    ("rep_observation", "duration_ms", [1, 0.1], [0, -1, "1", True]),
    ("rep_observation", "range_of_motion", [-1.5, 0, 200], ["1", True]),
    ("rep_observation", "peak_velocity", [-1.5, 0, 200], ["1", True]),
    (
        "rep_observation",
        "form_issues",
        [[], ["lean"], [{"type": "lean"}], [{"type": "lean", "severity": "major"}, "x"]],
        ["lean", {}, [1], [{}], [{"type": 1}], [{"type": "lean", "severity": "severe"}], [None]],
    ),
    ("rep_observation", "keypoints", [[], [{"x": 1}], [1, "a"]], [{}, "x"]),
    ("rep_observation", "joint_angles", [{}, {"knee": 90}], [[], "x"]),
    ("feedback", "feedback_id", ["f", "f" * 128], ["", "f" * 129, 1]),
    ("feedback", "therapist_id", ["t"], [1]),
    ("feedback", "feedback_type", ["anything"], [1, {}]),
    ("feedback", "target_session_id", ["s"], [1]),
    ("feedback", "content", ["text", "", {}, {"a": 1}], [1, [], True]),
    ("feedback", "priority", ["low", "medium", "high", "critical"], ["urgent", "LOW", 1]),
    ("feedback", "pain_level", [0, 10, 6.5], [-0.1, 10.1, "7", False]),
    ("alert", "alert_id", ["a", "a" * 128], ["", "a" * 129, 1]),
    ("alert", "alert_type", ["fall_risk", ""], [1, None, []]),
    ("alert", "urgency", ["low", "medium", "high", "critical", "urgent"], ["Urgent", 1, ""]),
    ("alert", "trigger_criteria", [{}, {"a": 1}], [[], "x"]),
    ("alert", "context", [{}, {"a": 1}], [[], "x"]),
    ("alert", "assigned_to", ["t"], [1]),
    (
        "alert",
        "resolution_status",
        ["pending", "acknowledged", "in_review", "resolved", "dismissed", "active"],
        ["open", 1, ""],
    ),
    ("alert", "description", ["text"], [1, {}]),
    ("consent", "consent_id", ["c", "c" * 128], ["", "c" * 129, 1]),
    ("consent", "consent_type", ["research"], [1, []]),
    ("consent", "granted", [True], ["true", 1, 0]),
    ("consent", "status", ["granted"], ["active", 1, ""]),
    ("alert", "pain_level", [0, 10, 6.5], [-0.1, 10.1, "7", False]),
    ("consent", "scope", [{}, {"video": False}, [], ["video", {"of": "face"}]], [1, "x", True]),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, field, values, _ in RANGES for value in values],
    ids=str,
)
def test_values_in_range(kind: str, field: str, value: object) -> None:
    parse(envelope(kind, {field: value}))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, field, _, values in RANGES for value in values],
    ids=str,
)
def test_wrong_types_and_values_out_of_range(kind: str, field: str, value: object) -> None:
    error = refusal(envelope(kind, {field: value}))
    assert error.reason == "invalid_schema"
    assert all(
        problem.field == f"body.{field}" or problem.field.startswith(f"body.{field}.")
        for problem in error.errors
    ), error


@pytest.mark.parametrize(("kind", "field"), [("rep_observation", "quality_score"), ("alert", "alert_type")])
def test_required_fields_of_bodies(kind: str, field: str) -> None:
    error = refusal(envelope(kind) | {"body": {}})
    assert [problem.field for problem in error.errors] == [f"body.{field}"]


def test_every_problem_is_named() -> None:
    error = refusal(envelope("rep_observation", {"quality_score": 2, "rep_number": 0}, exercise_id=3))
    assert {problem.field for problem in error.errors} == {
        "exercise_id",
        "body.quality_score",
        "body.rep_number",
    }
    assert all(problem.message for problem in error.errors)
    assert "body.quality_score: " in str(error)


# --- Bodies: what follows from them


def test_the_json_schema_says_what_else_a_field_is_read_from() -> None:
    schemas = TypeAdapter(EventModel).json_schema()["$defs"]
    described: dict[str, set[str]] = {}
    for name in ("SessionBody", "RepBody", "FeedbackBody", "AlertBody", "ConsentBody", "Alert"):
        for field, schema in schemas[name]["properties"].items():
            described.setdefault(field, set()).update(re.findall("`(.+?)`", schema.get("description", "")))
    for _, (first, *others), _ in NAMES:
        assert {other.removeprefix("body.") for other in others} <= {
            other.removeprefix("body.") for other in described[first.removeprefix("body.")]
        }
    session = schemas["SessionBody"]["properties"]
    assert "`prescription.sets` × `prescription.reps`" in session["prescribed_reps"]["description"]
    assert "`completion_summary.session_duration`" in session["duration_minutes"]["description"]
    assert not {"prescription", "completion_summary"} & session.keys()
    assert not {"prescription_sets", "prescription_reps", "summary_seconds"} & session.keys()
    integer = {"type": "integer", "minimum": 0}
    assert session["prescribed_reps"]["anyOf"][0] == session["completed_reps"]["anyOf"][0] == integer
    assert session["prescribed_sessions_per_week"]["anyOf"][0] == integer | {"minimum": 1, "maximum": 21}


START, END = "2025-03-20T09:00:00Z", "2025-03-20T09:30:00Z"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, "started"),
        ({"start_time": START}, "started"),
        ({"prescribed_reps": 10}, "started"),
        ({"completed_reps": 10}, "started"),
        ({"prescribed_reps": 0, "completed_reps": 0}, "started"),
        ({"prescribed_reps": 0, "completed_reps": 5}, "started"),
        ({"prescribed_reps": 10, "completed_reps": 0}, "started"),
        ({"prescribed_reps": 10, "completed_reps": 0, "end_time": END}, "completed"),
        ({"prescribed_reps": 10, "completed_reps": 1}, "partial"),
        ({"prescribed_reps": 10, "completed_reps": 9, "end_time": END}, "partial"),
        ({"prescribed_reps": 10, "completed_reps": 9, "duration_minutes": 5}, "partial"),
        ({"prescribed_reps": 10, "completed_reps": 10}, "completed"),
        ({"prescribed_reps": 10, "completed_reps": 11}, "completed"),
        ({"end_time": END}, "completed"),
        ({"duration_minutes": 5}, "completed"),
        ({"duration_minutes": 0}, "completed"),
        ({"completion_status": "partial", "prescribed_reps": 10, "completed_reps": 10}, "partial"),
        ({"completion_status": "aborted", "end_time": END}, "aborted"),
        ({"completion_status": "completed"}, "completed"),
    ],
    ids=str,
)
def test_status_of_a_session(body: dict[str, Any], status: str) -> None:
    assert fact("exercise_session", body).status == status


@pytest.mark.parametrize(
    ("body", "minutes"),
    [
        ({}, None),
        ({"start_time": START}, None),
        ({"end_time": END}, None),
        ({"start_time": START, "end_time": END}, 30.0),
        ({"start_time": START, "end_time": START}, 0.0),
        ({"start_time": START, "end_time": END, "duration_minutes": 12}, 12.0),
        ({"start_time": START, "end_time": END, "duration_minutes": 0}, 0.0),
    ],
    ids=str,
)
def test_duration_of_a_session(body: dict[str, Any], minutes: float | None) -> None:
    assert fact("exercise_session", body).duration_minutes == minutes


@pytest.mark.parametrize("start", ["start_time", "started_at"])
@pytest.mark.parametrize("end", ["end_time", "ended_at"])
def test_a_session_cannot_end_before_it_begins(start: str, end: str) -> None:
    error = refusal(envelope("exercise_session", {start: END, end: START}))
    assert error.reason == "invalid_schema"
    assert error.errors == [(f"body.{end}", f"Input should not be before body.{start}")]


def test_a_session_in_full() -> None:
    body = {
        "session_id": "s1",
        "start_time": START,
        "end_time": END,
        "overall_quality": 0.75,
        "pain_level": 6.5,
        "prescribed_sessions_per_week": 5,
    }
    assert fact("exercise_session", body) == SessionFact(
        "s1", "completed", TS_US - HOUR_US, 0.75, 30.0, 6.5, 5
    )


def test_a_repetition_in_full() -> None:
    issues = ["lean", {"type": "valgus", "severity": "major", "keypoint_deviation": 0.2}, {"type": "fast"}]
    body = {"quality_score": 1, "session_id": "s1", "form_issues": issues}
    wanted = RepFact(1.0, "s1", (("lean", None), ("valgus", "major"), ("fast", None)))
    assert fact("rep_observation", body) == wanted


def test_ids_of_bodies_default_to_the_event_id() -> None:
    assert fact("exercise_session", {}).session_id == "e1"
    assert fact("feedback", {}).feedback_id == "e1"
    assert fact("alert", {}).alert_id == "e1"
    anonymous = envelope("alert", event_id=None)
    assert fact("alert", {}, event_id=None).alert_id == content_id(anonymous)


def test_what_a_feedback_states() -> None:
    assert fact("feedback", {}) == FeedbackFact("e1", None, None, None, {}, False, None)
    body = {
        "feedback_id": "f1",
        "therapist_id": "t1",
        "feedback_type": "correction",
        "target_session_id": "s1",
        "content": {"b": 1, "a": 2},
        "priority": "high",
        "delivered_at": START,
        "acknowledged_at": END,
        "pain_level": 4,
    }
    details = {
        "feedback_type": "correction",
        "target_session_id": "s1",
        "content": '{"a":2,"b":1}',
        "pain_level": 4.0,
        "delivered_at": START,
    }
    assert fact("feedback", body) == FeedbackFact("f1", "t1", "high", None, details, True, 4.0)
    assert fact("feedback", {"content": "text"}).description == "text"


def test_what_an_alert_states() -> None:
    # A default is no statement: an event that says nothing of the urgency must not lower it.
    least = AlertFact("e1", "fall_risk", None, None, None, None, None, None, None, None, None)
    assert fact("alert", {}) == least
    body = {
        "alert_id": "a1",
        "urgency": "urgent",
        "resolution_status": "active",
        "assigned_to": "t1",
        "description": "fell",
        "trigger_criteria": {"z": 1, "a": 2},
        "context": {"room": "A"},
        "pain_level": 5,
        "sla_deadline": END,
        "resolved_at": START,
    }
    assert fact("alert", body) == AlertFact(
        "a1",
        "fall_risk",
        "critical",
        "pending",
        "t1",
        "fell",
        '{"a":2,"z":1}',
        '{"room":"A"}',
        TS_US - HOUR_US // 2,
        TS_US - HOUR_US,
        5.0,
    )


# --- Consents


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"granted": True}, "granted"),
        ({"granted": False}, "revoked"),
        ({"status": "granted"}, "granted"),
        ({"status": "revoked"}, "revoked"),
        ({"status": "expired"}, "expired"),
        ({"status": "pending"}, "pending"),
        ({"granted": True, "status": "granted"}, "granted"),
        ({"granted": False, "status": "revoked"}, "revoked"),
        ({"granted": False, "status": "expired"}, "expired"),
        ({"granted": False, "status": "pending"}, "pending"),
        ({"granted": None, "status": "pending"}, "pending"),
    ],
    ids=str,
)
def test_status_of_a_consent(body: dict[str, Any], status: StatedConsent) -> None:
    event = parse(envelope("consent") | {"body": body})
    assert event.fact == ConsentFact("data_collection", status, TS_US, None)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"granted": None},
        {"status": None},
        {"granted": True, "status": "revoked"},
        {"granted": True, "status": "expired"},
        {"granted": True, "status": "pending"},
        {"granted": False, "status": "granted"},
    ],
    ids=str,
)
def test_a_consent_must_state_one_decision(body: dict[str, Any]) -> None:
    error = refusal(envelope("consent") | {"body": body})
    assert (error.reason, error.errors[0].field) == ("invalid_schema", "body")


def test_when_a_consent_is_in_force() -> None:
    body = {"consent_type": "research", "effective_from": START, "expires_at": END}
    wanted = ConsentFact("research", "granted", TS_US - HOUR_US, TS_US - HOUR_US // 2)
    assert fact("consent", body) == wanted


# --- The id of an event that has none

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=6), st.randoms(use_true_random=False))
def test_an_id_does_not_depend_on_the_order_of_keys(extra: dict[str, Any], rng: Any) -> None:
    content = {"kind": "alert", "subject_id": "p1", "ts": TS, "body": LEAST["alert"] | {"context": extra}}

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, shuffled(inner)) for key, inner in value.items()]
            rng.shuffle(items)
            return dict(items)
        return [shuffled(inner) for inner in value] if isinstance(value, list) else value

    assert parse(shuffled(content)).event_id == parse(content).event_id
    again = orjson.loads(json.dumps(content, indent=2))
    assert parse(again).event_id == parse(content).event_id


def test_different_content_has_different_ids() -> None:
    first = envelope("feedback", event_id=None)
    others = [
        envelope("feedback", event_id=None, subject_id="p2"),
        envelope("feedback", event_id=None, ts=START),
        envelope("feedback", {"content": "x"}, event_id=None),
        envelope("feedback", {"content": "X"}, event_id=None),
    ]
    ids = [parse(content).event_id for content in (first, *others)]
    assert len(set(ids)) == len(ids)
    assert all(1 <= len(event_id) <= 128 for event_id in ids)


# --- Errors never quote the payload

MARKER = "zq7SECRETzq7"


FIELDS: dict[str, list[str]] = {
    kind: sorted({field for of_kind, field, _, _ in RANGES if of_kind == kind})
    + {
        "exercise_session": [
            *("start_time", "started_at", "end_time", "ended_at", "quality_score", "status"),
            *("target_reps", "prescription", "completion_summary", "exercise_type"),
        ],
        "rep_observation": [
            *("rep_quality", "form_score", "form_analysis"),
            *("confidence", "form_errors", "anomalies", "exercise_id"),
        ],
        "feedback": ["delivered_at", "acknowledged_at", "message", "severity", "session_id"],
        "alert": ["sla_deadline", "resolved_at", "title", "message", "status", "severity", "priority"],
        "consent": ["effective_from", "expires_at", "expiry"],
    }[kind]
    for kind in KINDS
}
ENVELOPE_FIELDS = [
    "event_id",
    "ts",
    "timestamp",
    "subject_id",
    "patient_id",
    "exercise_id",
    "meta",
    "kind",
    "body",
]


INNER_FIELDS = [
    "type",
    "severity",
    "sets",
    "reps",
    "total_reps",
    "session_duration",
    "overall_score",
    "pain_level",
]


def marked() -> st.SearchStrategy[Any]:
    text = st.sampled_from([MARKER, MARKER * 20, f"2025-03-20T{MARKER}", f" {MARKER}\n"])
    return st.recursive(
        text,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3)
            | st.dictionaries(st.sampled_from([MARKER, *INNER_FIELDS]), inner, min_size=1, max_size=3)
        ),
        max_leaves=4,
    )


@st.composite
def contents_with_markers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    content = envelope(kind)
    for field in draw(st.sets(st.sampled_from(FIELDS[kind]), max_size=len(FIELDS[kind]))):
        content["body"][field] = draw(marked())
    content["body"][MARKER] = MARKER
    for field in draw(st.sets(st.sampled_from(ENVELOPE_FIELDS), max_size=3)):
        content[field] = draw(marked())
    if draw(st.booleans()):
        names = ["phi", "consent_id", "site_id", "version", "correlation_id", MARKER]
        content["meta"] = draw(st.dictionaries(st.sampled_from(names), marked(), max_size=6))
    return content


@given(contents_with_markers())
def test_an_error_names_fields_and_never_quotes_a_value(content: dict[str, Any]) -> None:
    try:
        event = parse(content)
    except InvalidEventError as invalid:
        error = invalid
    else:
        assert event.kind in KINDS
        return
    assert MARKER not in str(error)
    assert error.errors
    assert all(problem.field and problem.message for problem in error.errors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_in_every_field_at_once(kind: str) -> None:
    for value in (MARKER * 20, [MARKER], {MARKER: MARKER}):
        content = envelope(kind) | {"body": dict.fromkeys(FIELDS[kind], value)}
        content |= {"ts": value, "exercise_id": value, "meta": value}
        error = refusal(content)
        assert error.reason == "invalid_schema"
        assert MARKER not in str(error)
