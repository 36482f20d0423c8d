"""The state of a job on this machine, from its metrics file."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from ingest.status.observer import Job, Observation, ObserverError, Subscription
from pipeline.reporting.metrics import Metrics
from transforms.times import MICROS, to_micros

# A call that fails once and succeeds when tried again is no outage.
_GRACE_US = MICROS


class LocalJob:
    """Reads the file that `--metrics_file` of `pipeline.main` names.

    The backlog is what the job holds: pulled and not acknowledged. What it has not pulled is missing,
    because the emulator does not report what waits in a subscription; but the job pulls whenever it
    holds little.
    """

    interval_seconds = 0.5
    # The job writes twice a second, and may be busy.
    fresh_seconds = 5.0
    measured = "messages that the job has pulled and not acknowledged; more may wait in Pub/Sub"

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet."""
        self._path = path

    def observe(self) -> Observation:
        """The newest report. Raises ObserverError."""
        try:
            return _observation(orjson.loads(self._path.read_bytes()))
        except FileNotFoundError:
            raise ObserverError(f"No job has reported yet: there is no {self._path}.") from None
        except OSError as error:
            raise ObserverError(f"The job's report {self._path} cannot be read ({error.strerror}).") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ObserverError(f"{self._path} is not the metrics file of a job of this release.") from None


def _observation(content: dict[str, Any]) -> Observation:
    job, ended = content["job"], content["job"]["ended"]
    metrics = Metrics.of(content)
    outages = [outage for outage in content["outages"] if _lasts(outage, metrics.updated_us)]
    return Observation(
        job=Job(job["name"], f"process {job['pid']}", "ended" if ended else "running", job["started_at"]),
        metrics=metrics,
        subscriptions={
            role: _subscription(state, outages) for role, state in content["subscriptions"].items()
        },
        config=content["config"],
        stopped=f"The job ended at {ended['at']}. {ended['why']}" if ended else None,
        troubles=tuple(_sentence(outage) for outage in outages),
    )


def _subscription(state: Mapping[str, Any], outages: list[dict[str, str]]) -> Subscription:
    path, oldest = state["path"], state["oldest_published_at"]
    return Subscription(
        path,
        all(outage["resource"] != f"subscription {path}" for outage in outages),
        state["unacknowledged"],
        round(max(0.0, time.time() - _micros(oldest) / MICROS), 1) if oldest else None,
    )


def _lasts(outage: Mapping[str, str], now_us: int) -> bool:
    return now_us - _micros(outage["since"]) >= _GRACE_US


def _sentence(outage: Mapping[str, str]) -> str:
    return (
        f"{outage['service']}: cannot {outage['operation']} the {outage['resource']}"
        f" ({outage['error']}), since {outage['since']}."
    )


def _micros(moment: str) -> int:
    return to_micros(datetime.fromisoformat(moment))
