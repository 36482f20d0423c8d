"""What is told of a job on Dataflow: its APIs answer over the wire, subscriptions are the emulator's."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from apache_beam.runners.dataflow.internal import apiclient
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import dataflow_v1beta3 as dataflow

from ingest.status.assessment import assess
from ingest.status.dataflow import OPTIONS, Clients, DataflowJob
from ingest.status.model import Status
from ingest.status.monitor import Seen
from ingest.status.observer import ObserverError
from pipeline.cloud.clients import subscriber
from pipeline.main import launch
from pipeline.operations.provisioning import Resources
from pipeline.options import parse_options
from tests.integration.google_apis import GoogleApis, counted, distributed, serving

JOB = "2026-11-24_00_00_00-1234567890"
BROADWAY = "rehab_tracking.broadway"
STARTED = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
UNDELIVERED = "pubsub.googleapis.com/subscription/num_undelivered_messages"
OLDEST = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"


def dataflow_job(resources: Resources, job_id: str = JOB) -> dataflow.Job:
    """A running job with the environment that Beam submits, and Dataflow gives back."""
    options = parse_options(
        [
            "--runner=DataflowRunner",
            "--dry_run=True",
            "--project=rehab-local",
            "--region=europe-west1",
            "--temp_location=gs://my-bucket/temp",
            "--staging_location=gs://my-bucket/staging",
            f"--primary_subscription={resources.primary_subscription}",
            f"--secondary_subscription={resources.secondary_subscription}",
            f"--nudge_topic={resources.nudge_topic}",
            f"--dataset={resources.dataset}",
            "--batchers=4",
            "--nudge_max_age_hours=1.5",
        ]
    )
    result: Any = launch(options)
    environment = apiclient.Environment(
        proto_pipeline_staged_url="gs://my-bucket/staging/pipeline.pb",
        packages=[],
        options=result.job.options,
        environment_version="1",
        proto_pipeline=result.job.proto_pipeline,
    ).proto
    return dataflow.Job(
        id=job_id,
        name="rehab-tracking",
        current_state=dataflow.JobState.JOB_STATE_RUNNING,
        current_state_time=STARTED,
        start_time=STARTED,
        environment=environment,
    )


@pytest.fixture
def apis(subscribed: Resources) -> GoogleApis:
    """A job that is well."""
    apis = GoogleApis()
    apis.jobs[JOB] = dataflow_job(subscribed)
    apis.metrics[JOB] = [
        counted(f"{BROADWAY}/event.processed.alert", 5, "s7"),
        counted(f"{BROADWAY}/event.processed.alert", 2, "s9"),
        counted(f"{BROADWAY}/event.processed.alert", 1000, "s7", tentative="true"),
        counted(f"{BROADWAY}/row.projected.work_queue", 7),
        counted(f"{BROADWAY}/event_to_write_ms.le.500", 7),
        counted(f"{BROADWAY}/event_to_write_ms.le.inf", 7),
        counted("rehab_tracking.policy/alert.generated.pain_reported", 3),
        counted("somebody.else/event.processed.alert", 99),
        *distributed(f"{BROADWAY}/batch.size.work_queue", "s20", count=2, sum=4, min=1, max=3, mean=2),
        *distributed(f"{BROADWAY}/batch.size.work_queue", "s21", count=1, sum=3, min=3, max=3, mean=3),
    ]
    for path, backlog, oldest in (
        (subscribed.primary_subscription, 12, 3),
        (subscribed.secondary_subscription, 0, 0),
    ):
        apis.series[UNDELIVERED, path.rpartition("/")[2]] = backlog
        apis.series[OLDEST, path.rpartition("/")[2]] = oldest
    apis.series["dataflow.googleapis.com/job/system_lag", JOB] = 4
    apis.series["dataflow.googleapis.com/job/data_watermark_age", JOB] = 6
    return apis


@pytest.fixture
def clients(apis: GoogleApis) -> Iterator[Clients]:
    with serving(apis) as clients:
        yield clients


@pytest.fixture
def source(clients: Clients) -> DataflowJob:
    return DataflowJob("rehab-local", "europe-west1", JOB, lambda: clients)


def told(source: DataflowJob) -> Status:
    seen = Seen().after(source.observe())
    return assess(seen, source, int(time.time() * 1_000_000))


def test_a_job_that_is_well(source: DataflowJob, subscribed: Resources) -> None:
    status = told(source)
    assert (status.status, status.reasons) == ("healthy", [])
    assert status.job
    assert (status.job.id, status.job.name, status.job.state) == (JOB, "rehab-tracking", "running")
    assert status.job.started_at == "2026-11-24T08:00:00Z"
    assert (status.job.system_lag_seconds, status.job.watermark_age_seconds) == (4, 6)
    primary, secondary = status.producers["primary"], status.producers["secondary"]
    assert primary.subscription == subscribed.primary_subscription
    assert (primary.reachable, primary.backlog, primary.oldest_unacknowledged_seconds) == (True, 12, 3)
    assert (secondary.reachable, secondary.backlog, secondary.oldest_unacknowledged_seconds) == (True, 0, 0)
    counters = {name: count.total for name, count in status.metrics.counters.items() if count.total}
    assert counters == {
        f"{BROADWAY}.event.processed.alert": 7,
        f"{BROADWAY}.row.projected.work_queue": 7,
        "rehab_tracking.policy.alert.generated.pain_reported": 3,
    }
    batches = status.metrics.distributions[f"{BROADWAY}.batch.size.work_queue"]
    assert (batches.count, batches.mean) == (3, 2.3)


def test_the_options_are_those_that_the_job_runs_with(source: DataflowJob, subscribed: Resources) -> None:
    config = told(source).config
    options = parse_options(
        [
            f"--primary_subscription={subscribed.primary_subscription}",
            f"--nudge_topic={subscribed.nudge_topic}",
            f"--dataset={subscribed.dataset}",
        ]
    )
    assert tuple(config) == OPTIONS == tuple(options.as_dict())
    assert (config["batchers"], config["processors"], config["nudge_max_age_hours"]) == (4, 10, 1.5)
    assert config["dataset"] == subscribed.dataset


def test_rates_are_those_between_two_answers(apis: GoogleApis, source: DataflowJob) -> None:
    first = source.observe()
    apis.metrics[JOB].append(counted(f"{BROADWAY}/event.processed.feedback", 40))
    second = source.observe()
    started_us = second.metrics.updated_us - 20_000_000
    first = first._replace(metrics=first.metrics._replace(updated_us=started_us))
    status = assess(Seen().after(first).after(second), source, second.metrics.updated_us)
    assert status.metrics.events_per_second == 2
    assert status.achieved_throughput == "2 events/sec"
    assert status.metrics.counters[f"{BROADWAY}.event.processed.feedback"].per_second == 2


@pytest.mark.parametrize(
    ("state", "health", "words"),
    [
        ("JOB_STATE_DRAINING", "degraded", "draining"),
        ("JOB_STATE_DRAINED", "down", "drained, since 2026-11-24T08:00:00Z"),
        ("JOB_STATE_CANCELLING", "down", "cancelling"),
        ("JOB_STATE_CANCELLED", "down", "cancelled"),
        ("JOB_STATE_FAILED", "down", "failed"),
        ("JOB_STATE_DONE", "down", "done"),
        ("JOB_STATE_QUEUED", "down", "not started yet"),
    ],
)
def test_a_job_that_does_not_run(
    apis: GoogleApis, source: DataflowJob, state: str, health: str, words: str
) -> None:
    apis.jobs[JOB].current_state = getattr(dataflow.JobState, state)
    status = told(source)
    assert status.status == health
    assert words in " ".join(status.reasons)


def test_a_job_that_was_updated_is_followed(
    apis: GoogleApis, source: DataflowJob, subscribed: Resources
) -> None:
    assert told(source).status == "healthy"
    updated = dataflow.JobState.JOB_STATE_UPDATED
    apis.jobs[JOB] = dataflow.Job(id=JOB, current_state=updated, replaced_by_job_id="replacement")
    apis.jobs["replacement"] = dataflow_job(subscribed, "replacement")
    apis.metrics["replacement"] = [counted(f"{BROADWAY}/event.duplicate", 1)]

    status = told(source)

    assert status.status == "healthy"
    assert status.job
    assert status.job.id == "replacement"
    assert status.metrics.counters[f"{BROADWAY}.event.duplicate"].total == 1
    assert status.metrics.counters[f"{BROADWAY}.event.processed.alert"].total == 0


def test_a_subscription_that_is_deleted(source: DataflowJob, subscribed: Resources) -> None:
    path = subscribed.secondary_subscription
    subscriber().delete_subscription(subscription=path)
    status = told(source)
    assert status.status == "degraded"
    assert status.reasons == [f"Pub/Sub: cannot look up the subscription {path} (NotFound)."]
    assert (status.producers["primary"].reachable, status.producers["secondary"].reachable) == (True, False)
    subscriber().create_subscription(name=path, topic=subscribed.secondary_topic)


def test_a_backlog_that_is_old(apis: GoogleApis, source: DataflowJob, subscribed: Resources) -> None:
    apis.series[OLDEST, subscribed.primary_subscription.rpartition("/")[2]] = 600
    status = told(source)
    assert status.status == "degraded"
    assert "oldest message of the primary subscription" in status.reasons[0]
    assert "600 s ago" in status.reasons[0]


def test_what_may_not_be_read_is_said_and_the_rest_told(apis: GoogleApis, source: DataflowJob) -> None:
    apis.refuse_metrics()
    status = told(source)
    assert status.status == "degraded"
    assert status.reasons == [
        "Dataflow's metrics of the job cannot be read (PermissionDenied).",
        "Cloud Monitoring cannot be read, so backlogs are not known (PermissionDenied).",
    ]
    assert status.producers["primary"].backlog is None
    assert status.producers["primary"].reachable is True


def test_a_job_that_cannot_be_looked_up(apis: GoogleApis, source: DataflowJob, clients: Clients) -> None:
    missing = DataflowJob("rehab-local", "europe-west1", "missing", lambda: clients)
    with pytest.raises(ObserverError, match=r"^There is no job missing in rehab-local, europe-west1\.$"):
        missing.observe()
    apis.refuse_jobs()
    with pytest.raises(
        ObserverError, match=r"^The Dataflow API does not tell of the job \(PermissionDenied\)\.$"
    ):
        source.observe()


def test_without_credentials() -> None:
    def connect() -> Clients:
        raise DefaultCredentialsError("none")

    source = DataflowJob("rehab-local", "europe-west1", JOB, connect)
    with pytest.raises(ObserverError, match="DefaultCredentialsError"):
        source.observe()


def test_monitoring_is_asked_only_now_and_then(apis: GoogleApis, source: DataflowJob) -> None:
    for _ in range(3):
        told(source)
    questions = [type(request).__name__ for request in apis.asked]
    assert questions.count("GetJobRequest") == 3
    assert questions.count("ListTimeSeriesRequest") == 6
