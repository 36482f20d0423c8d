"""The state of a job on Dataflow, from Google's Dataflow, Monitoring and Pub/Sub APIs."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud import dataflow_v1beta3 as dataflow
from google.cloud.monitoring_v3 import MetricServiceClient

from ingest.status.monitoring import Backlog, Lag, Monitoring
from ingest.status.observer import Job, Observation, ObserverError, Subscription
from pipeline.cloud.clients import subscriber
from pipeline.reporting.metrics import BROADWAY, POLICY, Metrics, Spread
from transforms.times import MICROS, to_micros, to_rfc3339

# The pipeline's own options; a job states many of Beam's as well.
OPTIONS = (
    "primary_subscription",
    "secondary_subscription",
    "input_files",
    "dataset",
    "nudge_topic",
    "output_dir",
    "overwrite",
    "processors",
    "batchers",
    "batch_size",
    "batch_timeout_ms",
    "policy_config",
    "consent",
    "prescribed_sessions_per_week",
    "nudge_max_age_hours",
    "rebuild_days",
    "metrics_file",
    "quiet",
    "verbose",
    "fail_on_dead_letters",
)

_SECONDS = 4.0
_FAILURES = (GoogleAPICallError, GoogleAuthError)

# Dataflow lists these parts of each distribution as metrics of their own.
_PARTS = ("_MIN", "_MAX", "_MEAN", "_COUNT")
_NAMESPACES = (BROADWAY.removesuffix("."), POLICY.removesuffix("."))


class Clients(NamedTuple):
    """Google's clients for the APIs that report on a job."""

    jobs: dataflow.JobsV1Beta3Client
    metrics: dataflow.MetricsV1Beta3Client
    monitoring: MetricServiceClient


def google_clients() -> Clients:
    """Clients with the credentials of the environment. Raises GoogleAuthError without any."""
    return Clients(dataflow.JobsV1Beta3Client(), dataflow.MetricsV1Beta3Client(), MetricServiceClient())


class DataflowJob:
    """Observes a job on Dataflow and, after an update, the job that replaced it.

    Counters are the committed ones. Backlogs come from Cloud Monitoring and are up to 3 minutes old.
    Pub/Sub itself says whether a subscription exists.
    """

    interval_seconds = 5.0
    # Dataflow collects its workers' counters at long intervals.
    fresh_seconds = 60.0
    measured = "messages not acknowledged according to Cloud Monitoring, up to 3 minutes ago"

    def __init__(
        self, project: str, region: str, job_id: str, connect: Callable[[], Clients] = google_clients
    ) -> None:
        """`connect` is called at the first observation."""
        self._project = project
        self._region = region
        self._job_id = job_id
        self._connect = connect
        self._threads = ThreadPoolExecutor(thread_name_prefix="dataflow")
        self._clients: Clients | None = None
        self._monitoring: Monitoring | None = None
        self._config: dict[str, Any] = {}
        self._metrics = Metrics()

    def observe(self) -> Observation:
        """The job's state now. Raises ObserverError."""
        try:
            clients, monitoring = self._connected()
            job = self._job(clients.jobs)
        except NotFound:
            raise ObserverError(
                f"There is no job {self._job_id} in {self._project}, {self._region}."
            ) from None
        except _FAILURES as error:
            raise ObserverError(f"The Dataflow API does not tell of the job ({_kind(error)}).") from None
        paths = _subscriptions(self._config)
        counting = self._threads.submit(self._count, clients.metrics)
        measuring = self._threads.submit(monitoring.refresh, paths.values(), self._project, self._job_id)
        looks = {path: self._threads.submit(_look, path) for path in paths.values()}
        troubles = [
            *_state_troubles(job),
            *_trouble(counting, "Dataflow's metrics of the job cannot be read"),
            *_trouble(measuring, "Cloud Monitoring cannot be read, so backlogs are not known"),
            *(sentence for look in looks.values() if (sentence := look.result()[1])),
        ]
        return Observation(
            job=self._identity(job, monitoring.lag),
            metrics=self._metrics._replace(updated_us=int(time.time() * MICROS)),
            subscriptions={
                role: _subscription(path, looks[path].result()[0], monitoring.backlogs.get(path, Backlog()))
                for role, path in paths.items()
            },
            config=self._config,
            stopped=_stopped(job),
            troubles=tuple(troubles),
        )

    def _connected(self) -> tuple[Clients, Monitoring]:
        if not self._clients or not self._monitoring:
            self._clients = self._connect()
            self._monitoring = Monitoring(self._clients.monitoring, _SECONDS)
        return self._clients, self._monitoring

    def _job(self, client: dataflow.JobsV1Beta3Client) -> dataflow.Job:
        """The job as it is now, or the one that replaced it."""
        job = self._get(client)
        while job.current_state == dataflow.JobState.JOB_STATE_UPDATED and job.replaced_by_job_id:
            self._job_id, self._config, self._metrics = job.replaced_by_job_id, {}, Metrics()
            job = self._get(client)
        self._config = self._config or _config(job)
        return job

    def _get(self, client: dataflow.JobsV1Beta3Client) -> dataflow.Job:
        # Only the full view has the options. It is large, because it holds every step.
        view = dataflow.JobView.JOB_VIEW_SUMMARY if self._config else dataflow.JobView.JOB_VIEW_ALL
        request = dataflow.GetJobRequest(
            project_id=self._project, location=self._region, job_id=self._job_id, view=view
        )
        return client.get_job(request, retry=None, timeout=_SECONDS)

    def _count(self, client: dataflow.MetricsV1Beta3Client) -> None:
        request = dataflow.GetJobMetricsRequest(
            project_id=self._project, location=self._region, job_id=self._job_id
        )
        self._metrics = _metrics(client.get_job_metrics(request, retry=None, timeout=_SECONDS))

    def _identity(self, job: dataflow.Job, lag: Lag) -> Job:
        return Job(
            name=job.name,
            id=job.id,
            state=_state(job),
            started_at=_moment(job.start_time or job.create_time),
            system_lag_seconds=lag.system_seconds,
            watermark_age_seconds=lag.watermark_seconds,
        )


def _config(job: dataflow.Job) -> dict[str, Any]:
    stated = (job.environment.sdk_pipeline_options or {}).get("options") or {}
    # The options arrive as a protobuf Struct, whose numbers are all floats.
    return {name: _whole(stated.get(name)) for name in OPTIONS}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _subscriptions(config: dict[str, Any]) -> dict[str, str]:
    stated = {role: config.get(f"{role}_subscription") for role in ("primary", "secondary")}
    return {role: path for role, path in stated.items() if path}


def _subscription(path: str, reachable: bool | None, backlog: Backlog) -> Subscription:
    messages = None if backlog.messages is None else int(backlog.messages)
    return Subscription(path, reachable, messages, backlog.oldest_seconds)


def _state(job: dataflow.Job) -> str:
    return job.current_state.name.removeprefix("JOB_STATE_").lower()


def _stopped(job: dataflow.Job) -> str | None:
    """Why the job does not run; None if it does."""
    states = dataflow.JobState
    if job.current_state in (states.JOB_STATE_RUNNING, states.JOB_STATE_DRAINING):
        return None
    if job.current_state in (states.JOB_STATE_PENDING, states.JOB_STATE_QUEUED):
        return f"The job has not started yet: Dataflow says that it is {_state(job)}."
    since = _moment(job.current_state_time)
    return (
        f"The job does not run: Dataflow says that it is {_state(job)}{f', since {since}' if since else ''}."
    )


def _moment(time: datetime | None) -> str | None:
    return to_rfc3339(to_micros(time)) if time else None


def _state_troubles(job: dataflow.Job) -> Iterator[str]:
    if job.current_state == dataflow.JobState.JOB_STATE_DRAINING:
        yield "The job is draining: it finishes what it has read, and reads nothing more."


def _trouble(call: Future[None], what: str) -> Iterator[str]:
    try:
        call.result()
    except _FAILURES as error:
        yield f"{what} ({_kind(error)})."


def _look(path: str) -> tuple[bool | None, str | None]:
    """Whether the subscription can be read (None: unknown), and what is wrong."""
    try:
        subscriber().get_subscription(subscription=path, retry=None, timeout=_SECONDS)
    except Forbidden:
        # Permission to read a subscription does not include permission to look it up.
        return None, None
    except _FAILURES as error:
        return False, f"Pub/Sub: cannot look up the subscription {path} ({_kind(error)})."
    return True, None


def _kind(error: Exception) -> str:
    # Only the class: an error's message may quote anything.
    return type(error).__name__


def _metrics(answer: dataflow.JobMetrics) -> Metrics:
    """Our committed counters and distributions, added up over the steps that report them."""
    counters: dict[str, int] = {}
    spreads: dict[str, Spread] = {}
    for update in answer.metrics:
        context = update.name.context
        if context.get("namespace") not in _NAMESPACES or context.get("tentative") == "true":
            continue
        name = f"{context['namespace']}.{update.name.name}"
        if update.distribution is not None:
            known = spreads.get(name, Spread(0, 0))
            count, total = (int(update.distribution[field]) for field in ("count", "sum"))
            spreads[name] = Spread(known.number + count, known.sum + total)
        elif update.scalar is not None and not name.endswith(_PARTS):
            counters[name] = counters.get(name, 0) + int(update.scalar)
    return Metrics(counters, spreads)
