"""What Cloud Monitoring measures about subscriptions and a Dataflow job."""

import time
from collections.abc import Iterable
from typing import NamedTuple

from google.cloud.monitoring_v3 import ListTimeSeriesRequest, MetricServiceClient, TimeInterval

# There is a value for each minute, visible after up to 3 minutes (4 for Dataflow's).
_EVERY_SECONDS = 30.0
_WINDOW_SECONDS = 360

_SUBSCRIPTION = 'resource.type = "pubsub_subscription" AND resource.labels.subscription_id = "{}"'
_JOB = 'resource.type = "dataflow_job" AND metric.labels.job_id = "{}"'


class Backlog(NamedTuple):
    """A subscription's unacknowledged messages, and the age of the oldest; None if unknown."""

    messages: float | None = None
    oldest_seconds: float | None = None


class Lag(NamedTuple):
    """The longest that an element of a job has waited, and the age of its watermark; None if unknown."""

    system_seconds: float | None = None
    watermark_seconds: float | None = None


class Monitoring:
    """Queries the newest values, but no more often than they change: each query is charged."""

    def __init__(self, client: MetricServiceClient, timeout: float) -> None:
        """`timeout` in seconds, for each of six queries."""
        self._client = client
        self._timeout = timeout
        self._asked_at = float("-inf")
        self.backlogs: dict[str, Backlog] = {}
        self.lag = Lag()

    def refresh(self, subscriptions: Iterable[str], project: str, job_id: str) -> None:
        """Queries the subscriptions (full paths) and the job. Raises GoogleAPICallError."""
        if time.monotonic() - self._asked_at < _EVERY_SECONDS:
            return
        self.backlogs, self.lag = {}, Lag()
        for path in subscriptions:
            _, owner, _, name = path.split("/")
            of = _SUBSCRIPTION.format(name)
            self.backlogs[path] = Backlog(
                self._newest(owner, "pubsub.googleapis.com/subscription/num_undelivered_messages", of),
                self._newest(owner, "pubsub.googleapis.com/subscription/oldest_unacked_message_age", of),
            )
        of = _JOB.format(job_id)
        self.lag = Lag(
            self._newest(project, "dataflow.googleapis.com/job/system_lag", of),
            self._newest(project, "dataflow.googleapis.com/job/data_watermark_age", of),
        )
        self._asked_at = time.monotonic()

    def _newest(self, project: str, metric: str, of: str) -> float | None:
        now = int(time.time())
        request = ListTimeSeriesRequest(
            name=f"projects/{project}",
            filter=f'metric.type = "{metric}" AND {of}',
            interval=TimeInterval(
                {"start_time": {"seconds": now - _WINDOW_SECONDS}, "end_time": {"seconds": now}}
            ),
            view=ListTimeSeriesRequest.TimeSeriesView.FULL,
        )
        series = self._client.list_time_series(request, retry=None, timeout=self._timeout)
        # Points come newest first. One with an integer value has no double value.
        values = [one.points[0].value for one in series if one.points]
        return max((value.double_value or float(value.int64_value) for value in values), default=None)
