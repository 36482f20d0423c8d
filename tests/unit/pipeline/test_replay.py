"""What the replay command refuses, and what it sends."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.operations.replaying import ReplayError, replay_attributes
from pipeline.replay import main, parse_arguments
from transforms.dead_letters import DeadLetter, dead_letter_row, failed_in_projection
from transforms.events import parse_event
from transforms.message import Message

DATASET = "--dataset=rehab-local.d"
FAILED_AT = datetime(2026, 3, 2, 10, tzinfo=UTC)
HOUR_US = 3_600_000_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: --dataset."),
        (["--dataset=d"], "--dataset must have the form PROJECT.DATASET."),
        ([DATASET, "--topic=events"], "--topic must have the form projects/PROJECT/topics/NAME."),
        ([DATASET, "--max_attempts=0"], "--max_attempts must be at least 1."),
        ([DATASET, "--max_attempts=x"], "--max_attempts: invalid int value: 'x'."),
        ([DATASET, "--since=yesterday"], "--since: must be a time such as 2026-03-02T14:30:00Z."),
        ([DATASET, "--since=2026-03-02", "--until=2026-03-01"], "--since must be before --until."),
        ([DATASET, "--where= "], "--where is empty."),
        ([DATASET, "--where=TRUE; DROP TABLE t"], "--where must be one condition, without a semicolon."),
        ([DATASET, "--resaon=too_large"], "unrecognized arguments: --resaon=too_large."),
    ],
)
def test_bad_arguments_get_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"pipeline.replay: {sentence}\n"


def test_a_reason_is_one_of_the_list() -> None:
    with pytest.raises(ReplayError, match="invalid choice: 'bad'"):
        parse_arguments([DATASET, "--reason=bad"])
    assert parse_arguments([DATASET, "--reason=too_large", "--reason=invalid_schema"]).reason == [
        "too_large",
        "invalid_schema",
    ]


def test_a_time_without_a_zone_is_utc() -> None:
    assert parse_arguments([DATASET, "--since=2026-03-02T10:00"]).since == FAILED_AT


def letter(**columns: Any) -> dict[str, Any]:
    return {
        "dead_letter_id": "d",
        "reason": "invalid_schema",
        "attributes": {"site": "north", "event_id": "e", "attempts": "1"},
        "publish_time": FAILED_AT,
        "failed_at": FAILED_AT,
        "attempts": 2,
        **columns,
    }


def test_the_attributes_are_those_of_the_original_and_what_the_job_should_know() -> None:
    assert replay_attributes(letter()) == {
        "event_id": "e",
        "site": "north",
        "attempts": "2",
        "replay_of": "invalid_schema",
        "first_publish_us": "1772445600000000",
        "publish_id": "d-2",
    }
    without = replay_attributes(letter(attributes=None, publish_time=None))
    assert without["first_publish_us"] == "1772445600000000"


def test_an_event_without_a_time_keeps_the_one_at_which_it_was_first_published() -> None:
    first_us = 1772445600000000
    content = {"kind": "alert", "subject_id": "p", "body": {"alert_type": "x"}}
    replayed = Message(b"", replay_attributes(letter()), "s", "m", first_us + HOUR_US)
    assert parse_event(content, replayed, first_us + HOUR_US).ts_us == first_us


@pytest.mark.parametrize("stated", ["", "x", "-1", "9" * 1000, "٣"])
def test_a_first_publish_time_that_cannot_be_true_is_not_believed(stated: str) -> None:
    message = Message(b"", {"first_publish_us": stated}, "s", "m", HOUR_US)
    assert message.first_publish_us == HOUR_US


def test_a_replay_that_fails_again_counts_its_attempts_and_keeps_its_first_time() -> None:
    message = Message(b"", replay_attributes(letter()), "s", "m", 1772445600000000 + HOUR_US)
    row = dead_letter_row(DeadLetter("malformed_json", "Validate", "", message), 0, "job").body
    assert b'"attempts":3' in row
    assert b'"publish_time":"2026-03-02T10:00:00Z"' in row


def test_only_what_failed_in_a_projection_had_been_admitted() -> None:
    for reason, admitted in (("projection_failed", True), ("invalid_schema", False)):
        message = Message(b"", replay_attributes(letter(reason=reason)), "s", "m", 0)
        assert failed_in_projection(message) is admitted
