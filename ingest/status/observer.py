"""What a observer of a job's state has to tell, whichever runner the job runs on."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from pipeline.reporting.metrics import Metrics


class ObserverError(Exception):
    """The job's state cannot be told; the message is one sentence for the operator."""


class Job(NamedTuple):
    """Which job it is, and how far behind its runner says it is; `started_at` is in RFC 3339."""

    name: str
    id: str
    state: str
    started_at: str | None
    system_lag_seconds: float | None = None
    watermark_age_seconds: float | None = None


class Subscription(NamedTuple):
    """One subscription that the job reads.

    `reachable` is None where that cannot be told, and so are the others. `backlog` counts messages
    that are not acknowledged; `oldest_seconds` is how long ago the oldest of them was published.
    """

    path: str
    reachable: bool | None
    backlog: int | None
    oldest_seconds: float | None


class Observation(NamedTuple):
    """A job at one moment, `metrics.updated_us`.

    `subscriptions` are by role. `stopped` says why the job does not run, if it does not; `troubles`
    are what ails one that does: one sentence each, without a value from any event.
    """

    job: Job
    metrics: Metrics
    subscriptions: Mapping[str, Subscription]
    config: Mapping[str, Any]
    stopped: str | None
    troubles: tuple[str, ...]


class Observer(Protocol):
    """Where a job's state is learnt.

    It is asked every `interval_seconds`; what is older than `fresh_seconds` no longer tells how the
    job is. `measured` says what a backlog counts, and how late it may be.
    """

    interval_seconds: float
    fresh_seconds: float
    measured: str

    def observe(self) -> Observation:
        """The job's state now. Raises ObserverError. Answers within a few seconds, whatever happens."""


class NoJob:
    """For an API that was not told of any job."""

    interval_seconds = 3600.0
    fresh_seconds = 0.0
    measured = "nothing"

    def observe(self) -> Observation:
        """Never anything."""
        raise ObserverError("No job is named: set REHAB_METRICS_FILE, or REHAB_JOB_ID for a job on Dataflow.")
