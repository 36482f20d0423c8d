"""What the stream does with what it cannot use, with what BigQuery refuses, and with outages."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.cloud.bigquery import SchemaField

from local.emulators import bigquery_emulator
from pipeline.cloud.clients import bigquery, publisher
from pipeline.operations.provisioning import Resources, provision, table_definition
from tests.integration.conftest import PROJECT
from tests.integration.streaming import (
    PATIENT,
    SECRET,
    Job,
    check_views,
    encoded,
    event,
    publish,
    sessions,
    view,
)
from transforms.dead_letters import REASONS

Start = Callable[..., Job]

REP = {"kind": "rep_observation", "subject_id": PATIENT}
UNUSABLE = {
    b"\x00": "malformed_json",
    b"\xff\xfe" + SECRET.encode("utf-16-le"): "malformed_json",
    b'\xef\xbb\xbf{"kind": "alert"}': "malformed_json",
    b'{"note": "' + SECRET.encode() + b'\xc3"}': "malformed_json",
    b'{"note": "\xed\xa0\x80"}': "malformed_json",
    b'{"note": "\\ud800"}': "malformed_json",
    b'{"note": NaN}': "malformed_json",
    b'{"note": 1e999}': "malformed_json",
    b'{"note": "' + SECRET.encode() + b'"': "malformed_json",
    b"{} {}": "malformed_json",
    b" \n": "malformed_json",
    b"[" * 5000: "malformed_json",
    b"null": "not_an_event",
    b" 17 ": "not_an_event",
    b'"' + SECRET.encode() + b'"': "not_an_event",
    b"[]": "not_an_event",
    b"{}": "invalid_schema",
    orjson.dumps({"kind": SECRET, "subject_id": PATIENT, "body": {}}): "unknown_kind",
    orjson.dumps({**REP, "body": {"quality_score": SECRET}}): "invalid_schema",
    orjson.dumps({**REP, "body": {"quality_score": 1.5}}): "invalid_schema",
    orjson.dumps({**REP, "body": [SECRET]}): "invalid_schema",
    orjson.dumps({**REP, "ts": SECRET, "body": {"quality_score": 1}}): "invalid_schema",
    orjson.dumps({**REP, "ts": "1999-12-31T23:59:59Z", "body": {"quality_score": 1}}): (
        "timestamp_out_of_range"
    ),
    b'{"body": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"}": "invalid_schema",
    b"[" + b",".join([orjson.dumps({**REP, "body": {"quality_score": 1}})] * 1001) + b"]": "too_large",
    b'"' + SECRET.encode() * 90_000 + b'"': "too_large",
}


# As much as Pub/Sub takes.
BEYOND_NUMBERS = "9" * 1024


def test_what_cannot_be_used_is_kept_byte_for_byte_and_stops_nothing(
    start: Start, provisioned: Resources
) -> None:
    arrivals = sessions(3)
    job = start()

    publish(provisioned.primary_topic, *UNUSABLE, note=SECRET, attempts="2")
    # Pub/Sub takes no empty message without attributes.
    publish(provisioned.primary_topic, b"", note=SECRET)
    publish(provisioned.primary_topic, b"}", note=SECRET, attempts=BEYOND_NUMBERS)
    publish(provisioned.primary_topic, *encoded(arrivals))

    wanted = UNUSABLE | {b"": "malformed_json", b"}": "malformed_json"}
    job.until_settled(len(wanted) + len(arrivals))
    job.eventually(lambda: check_views(provisioned, arrivals))
    letters = view(provisioned, "dead_letters")
    assert {letter["payload"]: letter["reason"] for letter in letters} == wanted
    assert len(letters) == len(wanted)
    for letter in letters:
        check_letter(letter, provisioned.primary_subscription)
    for reason in REASONS:
        count = list(wanted.values()).count(reason)
        assert job.counter(f"event.dead_letter.{reason}") == count
    assert job.counter("event.unknown") == 1


def check_letter(letter: dict[str, Any], subscription: str) -> None:
    attributes = letter["attributes"]
    stated = attributes.pop("attempts", None)
    assert attributes == {"note": SECRET}
    assert letter["attempts"] == {None: 1, "2": 3, BEYOND_NUMBERS: 1_000_001}[stated]
    assert (letter["stage"], letter["subscription"]) == ("Validate", subscription)
    assert letter["message_id"]
    assert letter["publish_time"] <= letter["failed_at"]
    assert SECRET not in letter["error_message"]
    assert PATIENT not in letter["error_message"]


def test_each_element_of_an_array_stands_or_falls_alone(start: Start, provisioned: Resources) -> None:
    arrivals = sessions(2)
    good, other = encoded(arrivals)
    bad = b'{ "kind" : "' + SECRET.encode() + b'" }'
    job = start()

    publish(provisioned.secondary_topic, b"[" + good + b" ,\n" + bad + b", 17," + other + b"]")

    job.until_settled(4)
    job.eventually(lambda: check_views(provisioned, arrivals))
    letters = {letter["payload"]: letter["reason"] for letter in view(provisioned, "dead_letters")}
    assert letters == {bad: "unknown_kind", b"17": "not_an_event"}


def test_strange_text_is_text(start: Start, provisioned: Resources) -> None:
    strange = "\u0000 \x1b[31m \u2028 \"'`\\ {dataset} %s 𝕏 é\r\n"
    arrivals = [
        event(
            "rep_observation", f"rep {strange}", f"{PATIENT} {strange}", quality_score=1, exercise_id=strange
        ),
        event("exercise_session", f"session {strange}", f"{PATIENT} {strange}", duration_minutes=20),
        event(
            "alert",
            f"alert {strange}",
            f"{PATIENT} {strange}",
            alert_type=strange,
            context={strange: strange},
        ),
    ]
    job = start()

    publish(provisioned.primary_topic, *encoded(arrivals))

    job.eventually(lambda: check_views(provisioned, arrivals))


def test_an_event_that_fails_again_is_one_dead_letter(start: Start, provisioned: Resources) -> None:
    job = start()

    publish(provisioned.primary_topic, b"no event", note="1")
    publish(provisioned.secondary_topic, b"no event", attempts="1")

    job.until_settled(2)
    [letter] = view(provisioned, "dead_letters")
    assert (letter["payload"], letter["reason"]) == (b"no event", "malformed_json")


def test_a_row_that_bigquery_refuses_is_kept_and_its_neighbours_are_written(
    start: Start, provisioned: Resources
) -> None:
    require_session_quality(provisioned.dataset)
    refused = event("rep_observation", "refused", f"{PATIENT}-refused", quality_score=0.5)
    accepted = [
        event("exercise_session", "first", f"{PATIENT}-first", overall_quality=0.875),
        event("exercise_session", "last", f"{PATIENT}-last", overall_quality=0.75),
    ]
    job = start()

    publish(provisioned.primary_topic, *encoded([accepted[0], refused, accepted[1]]))

    def check() -> None:
        letters = view(provisioned, "dead_letters")
        assert len(letters) == 1
        letter = letters[0]
        row = json.loads(letter["payload"])
        assert (row["patient_id"], row["average_quality"]) == (f"{PATIENT}-refused", 0.5)
        assert (letter["reason"], letter["stage"]) == ("write_rejected", "Write quality")
        assert "last_session_quality" in letter["error_message"]
        assert letter["attributes"] == {"table": "quality"}
        assert written(provisioned) == {f"{PATIENT}-first", f"{PATIENT}-last"}
        assert len(view(provisioned, "adherence")) == 2

    def check_later() -> None:
        assert f"{PATIENT}-later" in written(provisioned)

    job.eventually(check)
    later = event("exercise_session", "later", f"{PATIENT}-later", overall_quality=1)
    publish(provisioned.primary_topic, *encoded([later]))
    job.eventually(check_later)
    assert job.counter("event.dead_letter.write_rejected") == 1


def require_session_quality(dataset: str) -> None:
    """Makes the quality table again, as one that refuses rows without a session's quality."""
    client = bigquery(PROJECT)
    table = table_definition(dataset, "quality")
    required = SchemaField("last_session_quality", "FLOAT", "REQUIRED")
    table.schema = [required if field.name == required.name else field for field in table.schema]
    client.delete_table(table)
    client.create_table(table)


def written(resources: Resources) -> set[str]:
    return {row["patient_id"] for row in view(resources, "quality")}


def test_an_outage_of_bigquery_is_waited_for(
    start: Start, provisioned: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = sessions(20)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with bigquery_emulator(tmp_path, tmp_path / "bigquery", port):
        provision(provisioned, report=lambda line: None)
        job = start()
        publish(provisioned.primary_topic, *encoded(arrivals[:10]), b"no event")
        job.until_settled(11)

    publish(provisioned.primary_topic, *encoded(arrivals[10:]))

    job.eventually(lambda: said(job, "again after ConnectionError"))
    with bigquery_emulator(tmp_path, tmp_path / "bigquery", port):
        job.eventually(lambda: check_views(provisioned, arrivals))
        assert [letter["payload"] for letter in view(provisioned, "dead_letters")] == [b"no event"]
    # The fixtures take away what they have made at the emulator that they know.
    monkeypatch.undo()


def said(job: Job, text: str) -> None:
    assert text in job.log.read_text()


def test_a_topic_that_disappears_ends_the_job_with_a_sentence(start: Start, provisioned: Resources) -> None:
    job = start()
    publish(provisioned.primary_topic, *encoded(sessions(1)))
    job.until_settled(1)
    publisher().delete_topic(topic=provisioned.nudge_topic)

    publish(provisioned.primary_topic, *encoded([event("feedback", "pain", pain_level=9)]))

    assert job.process.wait(120) == 1
    assert job.log.read_text().splitlines()[-1] == (
        "pipeline.main: Google refused: 404 Topic not found [while running 'Write nudges/Publish']"
    )
    publisher().create_topic(name=provisioned.nudge_topic)
