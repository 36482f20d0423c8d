"""Dead letters on their way back into the stream."""

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from google.cloud.bigquery import SchemaField

from pipeline.cloud.clients import bigquery
from pipeline.operations.provisioning import Resources, table_definition
from pipeline.replay import main
from pipeline.sinks.bigquery import TableWriter
from tests.integration.conftest import PROJECT
from tests.integration.streaming import PATIENT, SECRET, Job, check_views, encoded, event, publish, view
from tests.support.oracle import Arrival
from transforms.dead_letters import DeadLetter, dead_letter_row
from transforms.message import Message

Start = Callable[..., Job]
Replay = Callable[..., int]

UNKNOWN = orjson.dumps({"kind": SECRET, "subject_id": PATIENT, "body": {}})


@pytest.fixture
def replay(provisioned: Resources, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must succeed; gives what it prints."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        dataset, topic = f"--dataset={provisioned.dataset}", f"--topic={provisioned.secondary_topic}"
        assert main([dataset, topic, *arguments]) == 0
        printed = capsys.readouterr()
        assert PATIENT not in printed.out + printed.err
        assert SECRET not in printed.out + printed.err
        return printed.out

    return run


def leave(resources: Resources, reason: str, arrivals: list[Arrival], **attributes: str) -> None:
    """Leaves the events as dead letters, as a release did that could not use them."""
    letters = [
        DeadLetter(reason, "Validate", "body: not known", Message(payload, attributes, "s", "m", 1))
        for payload in encoded(arrivals)
    ]
    rows = [
        dead_letter_row(letter, arrival.publish_us, "older")
        for letter, arrival in zip(letters, arrivals, strict=True)
    ]
    assert TableWriter(resources.dataset, "dead_letters").write(rows) == []


def repetitions(count: int) -> list[Arrival]:
    return [event("rep_observation", f"rep-{number}", quality_score=0.5) for number in range(count)]


def shown(resources: Resources, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(letter[name] for name in columns) for letter in view(resources, "dead_letters"))


def test_what_a_release_learns_to_accept_is_projected_once(
    start: Start, provisioned: Resources, replay: Callable[..., str]
) -> None:
    arrivals = repetitions(30)
    leave(provisioned, "invalid_schema", arrivals, note=SECRET)
    job = start()

    assert "Events published: 30." in replay()
    assert "No dead letter is to be replayed" in replay()

    job.until_settled(30)
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert job.counter("event.processed.rep_observation") == 30
    assert all(letter["replayed_at"] > letter["failed_at"] for letter in view(provisioned, "dead_letters"))


def test_a_crash_before_the_marks_counts_nothing_twice(
    start: Start, provisioned: Resources, replay: Callable[..., str]
) -> None:
    arrivals = repetitions(5)
    leave(provisioned, "invalid_schema", arrivals)
    job = start()
    publish(provisioned.primary_topic, *encoded(arrivals), replay_of="invalid_schema", attempts="1")
    job.until_settled(5)

    replay()

    job.until_settled(10)
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert job.counter("event.duplicate") == 5


def test_what_fails_again_is_tried_so_often_and_no_more(
    start: Start, provisioned: Resources, replay: Callable[..., str]
) -> None:
    job = start()
    publish(provisioned.primary_topic, UNKNOWN, note=SECRET)
    job.eventually(lambda: failed(provisioned, 1))
    assert "Events published: 1." in replay("--max_attempts=3")
    job.eventually(lambda: failed(provisioned, 2))
    assert "Events published: 1." in replay("--max_attempts=3")
    job.eventually(lambda: failed(provisioned, 3))

    assert "Left out, because tried 3 times or more: 1." in replay("--max_attempts=3")

    (letter,) = view(provisioned, "dead_letters")
    assert (letter["payload"], letter["attributes"]["note"]) == (UNKNOWN, SECRET)


def failed(resources: Resources, attempts: int) -> None:
    assert shown(resources, "attempts", "replayed_at") == [(attempts, None)]


def test_a_dry_run_shows_counts_and_nothing_of_a_payload(
    provisioned: Resources, replay: Callable[..., str]
) -> None:
    leave(provisioned, "invalid_schema", repetitions(7), note=SECRET)
    leave(provisioned, "unknown_kind", [event(SECRET, "strange", note=SECRET)])

    printed = replay("--dry_run")

    assert re.search(r"invalid_schema +│ 7 ", printed)
    assert re.search(r"unknown_kind +│ 1 ", printed)
    assert printed.count("  attempts 1  body: not known\n") == 5
    assert shown(provisioned, "replayed_at") == [(None,)] * 8


@pytest.mark.parametrize(
    "choice",
    [
        ["--reason=unknown_kind"],
        ["--since=2026-03-02T00:00:00Z", "--until=2026-03-03"],
        ["--where=reason = 'unknown_kind' AND attempts < 2 -- only these"],
        ["--where=BYTE_LENGTH(payload) = 1 OR FALSE"],
        ["--id={}"],
    ],
)
def test_letters_are_chosen(provisioned: Resources, replay: Callable[..., str], choice: list[str]) -> None:
    march_us = 1772445600000000
    chosen = dead_letter_row(
        DeadLetter("unknown_kind", "Validate", "", Message(b"x", {}, "s", "m", 1)), march_us, "j"
    )
    other = dead_letter_row(
        DeadLetter("malformed_json", "Validate", "", Message(b"{{", {}, "s", "m", 1)),
        2 * march_us // 2 - 10**12,
        "j",
    )
    TableWriter(provisioned.dataset, "dead_letters").write([chosen, other])

    assert "Events published: 1." in replay(*(part.format(chosen.key) for part in choice))

    replayed = {
        letter["payload"]: letter["replayed_at"] is not None for letter in view(provisioned, "dead_letters")
    }
    assert replayed == {b"x": True, b"{{": False}


@pytest.mark.parametrize("condition", ["reason ==", "no_such_column = 1"])
def test_a_condition_that_does_not_work_gets_one_sentence(
    unchanged: Resources, condition: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--dataset={unchanged.dataset}", f"--where={condition}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("pipeline.replay: --where does not work: ")
    assert printed.count("\n") == 1


def test_what_is_missing_is_told_in_a_sentence(
    provisioned: Resources, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(provisioned, "invalid_schema", repetitions(1))
    dataset = f"--dataset={provisioned.dataset}"

    assert main([dataset]) == 2
    assert capsys.readouterr().err == "pipeline.replay: --topic is required: events are published to it.\n"
    assert main([dataset, f"--topic={provisioned.primary_topic}_missing"]) == 1
    assert "_missing" in capsys.readouterr().err.splitlines()[-1]
    assert main([f"{dataset}_missing"]) == 1
    assert "_missing" in capsys.readouterr().err.splitlines()[-1]
    assert shown(provisioned, "replayed_at") == [(None,)]


def test_a_refused_row_is_written_once_the_table_takes_it(
    start: Start, provisioned: Resources, replay: Callable[..., str]
) -> None:
    client, table = bigquery(PROJECT), table_definition(provisioned.dataset, "quality")
    wanted = list(table.schema)
    table.schema = [
        SchemaField(field.name, field.field_type, "REQUIRED")
        if field.name == "last_session_quality"
        else field
        for field in wanted
    ]
    client.delete_table(table)
    client.create_table(table)
    job = start()
    publish(provisioned.primary_topic, *encoded(repetitions(1)))
    job.eventually(lambda: failed(provisioned, 1))

    assert "Rows refused again: 1." in replay()
    failed(provisioned, 2)
    client.delete_table(table)
    table.schema = wanted
    client.create_table(table)
    assert "Events published: 0. Rows written: 1." in replay()

    assert "No dead letter is to be replayed" in replay()
    (row,) = view(provisioned, "quality")
    (letter,) = view(provisioned, "dead_letters")
    assert row["version"] == json.loads(letter["payload"])["version"]
