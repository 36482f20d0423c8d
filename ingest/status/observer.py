"""What is observed about a job, whichever runner it runs on."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from pipeline.reporting.metrics import Metrics


class ObserverError(Exception):
    """The job's state cannot be observed; the message is one sentence for the operator."""


class Job(NamedTuple):
    """The job, and how far behind its runner says it is; `started_at` is in RFC 3339."""

    name: str
    id: str
    state: str
    started_at: str | None
    system_lag_seconds: float | None = None
    watermark_age_seconds: float | None = None


class Subscription(NamedTuple):
    """One subscription that the job reads.

    None means unknown. `backlog` counts unacknowledged messages; `oldest_seconds` is how long ago the
    oldest of them was published.
    """

    path: str
    reachable: bool | None
    backlog: int | None
    oldest_seconds: float | None


class Observation(NamedTuple):
    """A job at one moment, `metrics.updated_us`.

    `subscriptions` are by role. `stopped` says why the job is not running, if so. `troubles` are the
    faults of a running job: one sentence each, without a value from any event.
    """

    job: Job
    metrics: Metrics
    subscriptions: Mapping[str, Subscription]
    config: Mapping[str, Any]
    stopped: str | None
    troubles: tuple[str, ...]


class Observer(Protocol):
    """Where a job's state comes from.

    It is asked every `interval_seconds`. Metrics older than `fresh_seconds` mean that the job does not
    report. `measured` says what a backlog counts, and how late it may be.
    """

    interval_seconds: float
    fresh_seconds: float
    measured: str

    def observe(self) -> Observation:
        """The job's state now, within a few seconds whatever happens. Raises ObserverError."""


class NoJob:
    """For an API whose settings name no job."""

    interval_seconds = 3600.0
    fresh_seconds = 0.0
    measured = "nothing"

    def observe(self) -> Observation:
        """Always raises ObserverError."""
        raise ObserverError("No job is named: set REHAB_METRICS_FILE, or REHAB_JOB_ID for a job on Dataflow.")
