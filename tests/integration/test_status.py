"""What the API tells of a real job: figures that are true, and faults within the time that is promised."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from local.emulators import bigquery_emulator
from pipeline.cloud.clients import bigquery, subscriber
from pipeline.operations.provisioning import Resources, provision
from tests.integration.api import Api, bearer, token
from tests.integration.conftest import PROJECT
from tests.integration.streaming import PATIENT, WAIT_SECONDS, Job, encoded, event, publish, sessions
from tests.integration.test_stream_failures import require_session_quality

Start = Callable[..., Job]

STATUS = "/api/v1/events/broadway/status"
LATENCY = "rehab_tracking.broadway.event_to_write_ms"

# What is promised: a fault is told of within this time.
PROMISED_SECONDS = 10.0


class Watching:
    """An API that watches one job, as seen by somebody who may read the status."""

    def __init__(self, api: Api) -> None:
        self.url = api.url
        self._client = httpx.Client(base_url=api.url, headers=bearer(token(scope="status:read")), timeout=5.0)

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def status(self) -> dict[str, Any]:
        """The status, whose code must go with it."""
        answer = self.get(STATUS)
        content: dict[str, Any] = answer.json()
        assert answer.status_code == (503 if content["status"] == "down" else 200)
        return content

    def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The first status of which that holds."""
        deadline = time.monotonic() + seconds
        while not holds(told := self.status()):
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        return told


@pytest.fixture
def watch(serve: Callable[..., Api]) -> Callable[[Job], Watching]:
    """Starts an API that watches a job."""
    return lambda job: Watching(serve(REHAB_METRICS_FILE=str(job.metrics_path)))


Watch = Callable[[Job], Watching]


def is_healthy(told: dict[str, Any]) -> bool:
    return bool(told["status"] == "healthy")


def says(*words: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the pipeline is not well for a reason that has all these words."""
    return lambda told: (
        told["status"] != "healthy"
        and any(all(word in reason for word in words) for reason in told["reasons"])
    )


def processed(count: int) -> Callable[[dict[str, Any]], bool]:
    name = "rehab_tracking.broadway.event.processed.exercise_session"
    return lambda told: bool(told["metrics"]["counters"][name]["total"] == count)


def test_a_job_that_is_well(start: Start, watch: Watch, provisioned: Resources) -> None:
    job = start("--batchers=3", "--batch_timeout_ms=500")
    api = watch(job)
    api.until(is_healthy)

    publish(provisioned.primary_topic, *encoded(sessions(5)), b"no event")
    publish(provisioned.secondary_topic, *encoded(sessions(1)))

    job.until_settled(7)
    told = api.until(
        lambda told: (
            processed(5)(told)
            and told["metrics"]["events_per_second"] is not None
            and all(producer["backlog"] == 0 for producer in told["producers"].values())
        )
    )
    assert (told["status"], told["reasons"]) == ("healthy", [])
    assert told["job"]["id"] == f"process {job.process.pid}"
    assert told["job"]["state"] == "running"
    assert {
        role: (producer["subscription"], producer["reachable"], producer["oldest_unacknowledged_seconds"])
        for role, producer in told["producers"].items()
    } == {
        "primary": (provisioned.primary_subscription, True, None),
        "secondary": (provisioned.secondary_subscription, True, None),
    }
    config = told["config"]
    assert (config["batchers"], config["batch_timeout_ms"], config["processors"]) == (3, 500, 10)
    assert config["dataset"] == provisioned.dataset
    assert told["target_throughput"] == "1000 events/sec"

    metrics, counters = told["metrics"], told["metrics"]["counters"]
    broadway = "rehab_tracking.broadway."
    assert counters[broadway + "event.duplicate"]["total"] == 1
    assert counters[broadway + "event.dead_letter.malformed_json"]["total"] == 1
    assert counters[broadway + "event.dead_letter.write_rejected"] == {"total": 0, "per_second": 0}
    written = metrics["distributions"]
    batches = [written[f"{broadway}batch.size.{table}"] for table in ("adherence", "dead_letters")]
    assert [round(batch["count"] * batch["mean"]) for batch in batches] == [
        counters[f"{broadway}row.projected.{table}"]["total"] for table in ("adherence", "dead_letters")
    ]
    assert metrics["batches"]["count"] == sum(
        count["total"] for name, count in counters.items() if ".batch.processed." in name
    )
    assert 0 < metrics["event_to_write_ms"]["p50"] <= metrics["event_to_write_ms"]["p95"]
    assert 0 < metrics["events_per_second"] < 7
    assert api.get("/api/v1/broadway/status").json()["config"] == config


def test_the_status_is_for_those_who_may_see_it(start: Start, watch: Watch) -> None:
    api = watch(start())
    for path in (STATUS, "/api/v1/broadway/status"):
        assert api.get(path).status_code in (200, 503)
        assert httpx.get(api.url + path).status_code == 401
        assert httpx.get(api.url + path, headers=bearer(token())).status_code == 403


def test_a_backlog_is_what_the_job_holds(start: Start, watch: Watch, provisioned: Resources) -> None:
    # Nothing is acknowledged before its batch is written.
    api = watch(start("--batch_timeout_ms=600000"))
    api.until(is_healthy)

    publish(provisioned.secondary_topic, *encoded(sessions(4)))

    told = api.until(lambda told: bool(told["producers"]["secondary"]["backlog"] == 4))
    assert told["producers"]["secondary"]["oldest_unacknowledged_seconds"] >= 0
    assert told["producers"]["primary"]["backlog"] == 0


def test_prometheus_reads_the_same(start: Start, watch: Watch, provisioned: Resources) -> None:
    job = start()
    api = watch(job)
    publish(
        provisioned.primary_topic, *encoded([*sessions(2), event("feedback", "pain", pain_level=9)]), b"no"
    )
    job.until_settled(4)
    rows_written = job.metrics()["distributions"][LATENCY]["count"]
    api.until(lambda told: bool(told["metrics"]["distributions"][LATENCY]["count"] == rows_written))

    answer = httpx.get(api.url + "/metrics")

    assert answer.status_code == 200
    samples = {
        (sample.name, *sample.labels.items()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    broadway, policy = "rehab_tracking_broadway", "rehab_tracking_policy"
    assert samples[f"{broadway}_event_processed_total", ("kind", "exercise_session")] == 2
    assert samples[f"{broadway}_event_dead_letter_total", ("reason", "malformed_json")] == 1
    assert samples[f"{broadway}_event_dead_letter_total", ("reason", "write_rejected")] == 0
    assert samples[(f"{broadway}_event_duplicate_total",)] == 0
    assert samples[f"{policy}_emergency_generated_total", ("type", "pain_reported")] == 1
    rows = samples[f"{broadway}_row_projected_total", ("table", "adherence")]
    assert samples[f"{broadway}_batch_size_sum", ("table", "adherence")] == rows > 0
    all_rows = [value for name, value in samples.items() if name[0] == f"{broadway}_row_projected_total"]
    assert samples[f"{broadway}_event_to_write_ms_bucket", ("le", "+Inf")] == sum(all_rows)
    assert samples["rehab_tracking_pipeline_status", ("status", "healthy")] == 1
    assert samples["rehab_tracking_subscription_reachable", ("role", "primary")] == 1
    assert PATIENT not in answer.text


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_that_is_killed_or_stands_still(start: Start, watch: Watch, signum: signal.Signals) -> None:
    job = start()
    api = watch(job)
    api.until(is_healthy)

    job.process.send_signal(signum)

    told = api.until(says("The job has reported nothing since"), PROMISED_SECONDS)
    assert told["status"] == "down"


def test_a_job_that_is_stopped(start: Start, watch: Watch) -> None:
    job = start()
    api = watch(job)
    api.until(is_healthy)

    job.send(signal.SIGTERM)

    told = api.until(says("The job ended at", "It was stopped by SIGTERM."), PROMISED_SECONDS)
    assert (told["status"], told["job"]["state"]) == ("down", "ended")


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_a_subscription_that_is_deleted(
    start: Start, watch: Watch, provisioned: Resources, role: str
) -> None:
    api = watch(start())
    api.until(is_healthy)
    path = getattr(provisioned, f"{role}_subscription")

    subscriber().delete_subscription(subscription=path)

    told = api.until(says(path), PROMISED_SECONDS)
    assert told["status"] in ("degraded", "down")
    api.until(lambda told: told["producers"][role]["reachable"] is False or told["job"]["state"] == "ended")
    # The fixture deletes what it has made.
    topic = getattr(provisioned, f"{role}_topic")
    subscriber().create_subscription(name=path, topic=topic)


def test_a_table_that_refuses_writes(start: Start, watch: Watch, provisioned: Resources) -> None:
    job = start()
    api = watch(job)
    api.until(is_healthy)
    bigquery(PROJECT).delete_table(f"{provisioned.dataset}.adherence")

    publish(provisioned.primary_topic, *encoded(sessions(1)))

    told = api.until(says("BigQuery: cannot write to the table", ".adherence (NotFound)"), PROMISED_SECONDS)
    assert told["status"] == "degraded"


def test_bigquery_is_out_and_comes_back(
    start: Start, watch: Watch, provisioned: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with bigquery_emulator(tmp_path, tmp_path / "bigquery", port):
        provision(provisioned, report=lambda line: None)
        api = watch(start())
        api.until(is_healthy)

    # Although there is nothing to write.
    told = api.until(says("BigQuery: cannot look up the table"), PROMISED_SECONDS)

    assert told["status"] == "degraded"
    with bigquery_emulator(tmp_path, tmp_path / "bigquery", port):
        publish(provisioned.primary_topic, *encoded(sessions(3)))
        api.until(lambda told: is_healthy(told) and processed(3)(told))
    # The fixtures take away what they have made at the emulator that they know.
    monkeypatch.undo()


def test_a_row_that_bigquery_refuses(start: Start, watch: Watch, provisioned: Resources) -> None:
    job = start()
    api = watch(job)
    api.until(is_healthy)
    require_session_quality(provisioned.dataset)

    publish(provisioned.primary_topic, *encoded([event("rep_observation", "refused", quality_score=0.5)]))

    told = api.until(says("BigQuery refuses rows", "write_rejected"))
    assert told["status"] == "degraded"
