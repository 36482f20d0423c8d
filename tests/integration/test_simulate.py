"""The simulator's command against the real Pub/Sub emulator."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from google.pubsub_v1.types import PubsubMessage

from pipeline.cloud.clients import subscriber
from pipeline.operations.provisioning import Resources
from tests.integration.conftest import PROJECT
from transforms.message import PUBLISH_ID_ATTRIBUTE

WAIT_SECONDS = 60

# A pull that waits would hold up the other subscription's.
pytestmark = pytest.mark.filterwarnings("ignore:The return_immediately flag")


def command(resources: Resources, report: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "local.simulate",
        f"--primary_topic={resources.primary_topic}",
        f"--secondary_topic={resources.secondary_topic}",
        f"--report={report}",
        *more,
    ]


def read(report: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report.read_bytes()) if report.exists() else {"published": 0}
    return content


def wait_for_first(report: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not read(report)["published"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pull(subscription: str) -> dict[str, PubsubMessage]:
    """What is there now, acknowledged, by message id."""
    answer = subscriber().pull(subscription=subscription, max_messages=1000, return_immediately=True)
    if ids := [message.ack_id for message in answer.received_messages]:
        subscriber().acknowledge(subscription=subscription, ack_ids=ids)
    return {message.message.message_id: message.message for message in answer.received_messages}


def pull_both(resources: Resources, count: int) -> tuple[list[PubsubMessage], list[PubsubMessage]]:
    """What arrived on the primary and the secondary subscription, `count` messages or more in all."""
    primary: dict[str, PubsubMessage] = {}
    secondary: dict[str, PubsubMessage] = {}
    deadline = time.monotonic() + WAIT_SECONDS
    while len(primary) + len(secondary) < count and time.monotonic() < deadline:
        primary |= pull(resources.primary_subscription)
        secondary |= pull(resources.secondary_subscription)
    primary |= pull(resources.primary_subscription)
    secondary |= pull(resources.secondary_subscription)
    return list(primary.values()), list(secondary.values())


def test_what_is_reported_has_arrived_on_both_subscriptions(subscribed: Resources, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ended = subprocess.run(
        command(subscribed, report, "--rate=600", "--seconds=2", "--seed=7"),
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    content = read(report)
    assert content["finished"]
    assert (content["published"], content["failed"]) == (1200, 0)
    assert (content["bad"], content["duplicates"]) == (24, 60)
    assert 55 <= content["late"] <= 60
    primary, secondary = pull_both(subscribed, content["messages"])
    assert len(primary) + len(secondary) == content["messages"]
    assert len(primary) > len(secondary) > 0
    # One for each publication, duplicates and messages of several events included.
    assert (
        len({message.attributes[PUBLISH_ID_ATTRIBUTE] for message in primary + secondary})
        == content["messages"]
    )
    kinds = {message.attributes.get("kind") for message in primary}
    assert kinds >= {"exercise_session", "rep_observation"}
    # Of what is spoilt, some is cut short within its id.
    whole = [message for message in primary if message.data.startswith(b"{") and message.data.endswith(b"}")]
    named = [message for message in whole if message.attributes.get("event_id")]
    assert len(named) > 500
    for message in named:
        assert message.attributes["event_id"].encode() in message.data


def test_a_signal_ends_it_with_everything_reported(subscribed: Resources, tmp_path: Path) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT):
        report = tmp_path / f"{signum.name}.json"
        with subprocess.Popen(command(subscribed, report, "--rate=100", "--seconds=3600")) as process:
            wait_for_first(report)
            process.send_signal(signum)
            assert process.wait(WAIT_SECONDS) == 0
        content = read(report)
        assert content["finished"]
        assert 0 < content["published"] < 100 * WAIT_SECONDS
        primary, secondary = pull_both(subscribed, content["messages"])
        assert len(primary) + len(secondary) == content["messages"]


def test_a_topic_that_does_not_exist_is_a_failure(resources: Resources, tmp_path: Path) -> None:
    missing = resources._replace(
        primary_topic=f"projects/{PROJECT}/topics/missing",
        secondary_topic=f"projects/{PROJECT}/topics/missing",
    )
    report = tmp_path / "report.json"
    ended = subprocess.run(
        command(missing, report, "--rate=50", "--seconds=1"), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "local.simulate: Pub/Sub did not confirm 50 events.\n"
    content = read(report)
    assert (content["published"], content["failed"], content["finished"]) == (0, 50, True)
