"""How the job starts, ends and comes back."""

import signal
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from google.pubsub_v1.types import Subscription

from pipeline.cloud.clients import bigquery, subscriber
from pipeline.operations.provisioning import Resources
from tests.integration.conftest import PROJECT
from tests.integration.streaming import (
    WAIT_SECONDS,
    Job,
    check_views,
    command,
    encoded,
    event,
    publish,
    recent,
    sessions,
    view,
)
from tests.support.oracle import KEYS, Arrival, event_time, parse_time
from tests.support.strategies import random_arrivals

Start = Callable[..., Job]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_and_the_next_one_goes_on(
    start: Start, provisioned: Resources, signum: signal.Signals
) -> None:
    arrivals = sessions(20)
    # What waits in a batch is not acknowledged.
    job = start("--batch_timeout_ms=600000")
    publish(provisioned.primary_topic, *encoded(arrivals[:10]))
    publish(provisioned.secondary_topic, *encoded(arrivals[10:]))
    job.eventually(lambda: processed(job, 20))
    assert view(provisioned, "adherence") == []

    assert job.send(signum) == 128 + signum

    assert "Traceback" not in job.log.read_text()
    start().eventually(lambda: check_views(provisioned, arrivals))


def processed(job: Job, count: int) -> None:
    assert job.counter("event.processed.exercise_session") == count


def test_a_signal_ends_a_job_that_waits_for_bigquery(start: Start, provisioned: Resources) -> None:
    job = start()
    publish(provisioned.primary_topic, *encoded(sessions(1)))
    job.until_settled(1)
    # To the job it looks as one that was created a moment ago: it tries again for minutes.
    bigquery(PROJECT).delete_table(f"{provisioned.dataset}.adherence")
    publish(provisioned.primary_topic, *encoded(sessions(2)))
    job.eventually(lambda: said(job, "Writing to adherence again after NotFound"))

    assert job.send(signal.SIGTERM) == 128 + signal.SIGTERM


def said(job: Job, text: str) -> None:
    assert text in job.log.read_text()


@pytest.mark.long
def test_a_killed_job_is_rebuilt_from_the_events(
    start: Start, provisioned: Resources, no_silence: str
) -> None:
    come_back_soon(provisioned)
    rng = Random(5)
    arrivals = of_last_days(recent(random_arrivals(rng, consents="harmless", patients=6)), 27)
    rng.shuffle(arrivals)
    middle = len(arrivals) // 2
    killed = start(no_silence)
    publish(provisioned.primary_topic, *encoded(arrivals[:middle]))
    killed.eventually(lambda: some_written(killed))
    publish(provisioned.secondary_topic, *encoded(arrivals[middle:]))
    killed.kill()

    job = start(no_silence, "--rebuild_days=28")

    job.until_settled(len(arrivals))
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert {row["item_type"] for row in view(provisioned, "work_queue")} >= {"alert", "review"}
    assert job.counter("event.duplicate") == len(arrivals) - len(distinct(arrivals))


@pytest.mark.long
def test_readers_of_a_rebuild_see_the_rows_of_before_until_they_see_all_of_it(
    start: Start, provisioned: Resources, no_silence: str
) -> None:
    come_back_soon(provisioned)
    rng = Random(7)
    arrivals = of_last_days(recent(random_arrivals(rng, consents="harmless", patients=6)), 27)
    first = start(no_silence)
    publish(provisioned.primary_topic, *encoded(arrivals[::2]))
    publish(provisioned.secondary_topic, *encoded(arrivals[1::2]))
    first.until_settled(len(arrivals))
    first.eventually(lambda: check_views(provisioned, arrivals))
    first.kill()
    before = versions(provisioned)

    job = start(no_silence, "--rebuild_days=28")

    def written_again() -> None:
        shown = versions(provisioned)
        assert all(shown[key] > version for key, version in before.items())

    readers_see = ReadOften(lambda: check_views(provisioned, arrivals))
    with readers_see:
        job.eventually(written_again)
    assert readers_see.times > 3
    assert readers_see.failures == []
    assert "Rebuild: all messages are taken in" in job.log.read_text()


def versions(resources: Resources) -> dict[tuple[str, ...], int]:
    """The version of each key of the views."""
    return {
        (table, *(str(row[column]) for column in KEYS[table])): row["version"]
        for table in KEYS.keys() - {"consents"}
        for row in view(resources, table)
    }


class ReadOften:
    """While entered, reads again and again and notes what is not as it should be."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.times = 0
        self.failures: list[str] = []
        self._check = check
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._ended.is_set():
            self.times += 1
            try:
                self._check()
            except AssertionError as error:
                self.failures.append(str(error))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_a_consent_withdrawn_before_the_log_begins_still_holds_after_a_rebuild(
    start: Start, provisioned: Resources
) -> None:
    long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    first = start()
    publish(provisioned.primary_topic, *encoded([event("consent", "c", ts=long_ago, status="revoked")]))
    first.until_settled(1)
    first.kill()
    # What the topic no longer retains cannot be read again.
    for path in (provisioned.primary_subscription, provisioned.secondary_subscription):
        subscriber().seek(request={"subscription": path, "time": datetime.now(UTC)})

    job = start()
    publish(provisioned.primary_topic, *encoded(sessions(3)))

    job.until_settled(3)
    assert job.counter("event.withheld") == 3
    assert view(provisioned, "adherence") == []


def come_back_soon(resources: Resources) -> None:
    """Has Pub/Sub deliver again what a killed job held after 10 s, its shortest."""
    for path in (resources.primary_subscription, resources.secondary_subscription):
        soon = Subscription(name=path, ack_deadline_seconds=10)
        mask = {"paths": ["ack_deadline_seconds"]}
        subscriber().update_subscription(request={"subscription": soon, "update_mask": mask})


def of_last_days(arrivals: list[Arrival], days: int) -> list[Arrival]:
    """Those about the last days: what a rebuild of so many days, and one more, can prove again."""
    since = datetime.now(UTC) - timedelta(days=days)
    return [arrival for arrival in arrivals if began(arrival) >= since]


def began(arrival: Arrival) -> datetime:
    start = arrival.envelope["body"].get("start_time")
    return min(event_time(arrival), parse_time(start)) if start else event_time(arrival)


def distinct(arrivals: list[Arrival]) -> set[str]:
    return {arrival.envelope["event_id"] for arrival in arrivals}


def some_written(job: Job) -> None:
    assert job.counter("batch.processed.adherence")


MISSING = {
    "primary_subscription": "The subscription {} does not exist",
    "secondary_subscription": "The subscription {} does not exist",
    "nudge_topic": "The topic {} does not exist",
    "dataset": "The table {}.adherence does not exist",
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("more", [[], ["--rebuild_days=28"]])
def test_what_is_missing_is_told_in_a_sentence(unchanged: Resources, name: str, more: list[str]) -> None:
    missing = getattr(unchanged, name) + "_missing"
    problem = MISSING[name].format(missing)
    check_refused(
        unchanged._replace(**{name: missing}),
        f"{problem}: create it with `python -m pipeline.provision`.",
        *more,
    )


def test_a_server_that_does_not_answer_is_told_in_a_sentence(
    unchanged: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        environment.setenv("BIGQUERY_EMULATOR_HOST", "http://127.0.0.1:1")
        problem = f"The table {unchanged.dataset}.adherence cannot be reached (ConnectionError)."
        check_refused(unchanged, problem)
    with monkeypatch.context() as environment:
        environment.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
        subscription = unchanged.primary_subscription
        check_refused(unchanged, f"The subscription {subscription} cannot be reached (ServiceUnavailable).")


def check_refused(resources: Resources, sentence: str, *more: str) -> None:
    """Fails unless the job ends by itself, with just that sentence after what it logs."""
    ended = subprocess.run(
        [*command(resources), *more], capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )
    assert ended.stderr.splitlines()[-1:] == [f"pipeline.main: {sentence}"]
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.returncode == 1
