"""A local job's metrics in a file, for other processes to watch."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import orjson
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from pipeline.cloud.outages import OUTAGES
from pipeline.errors import OperatorError
from pipeline.interruption import Stopped
from pipeline.options import RehabOptions
from transforms.steps.telemetry import BROADWAY, POLICY
from transforms.times import MICROS, to_rfc3339

INTERVAL_SECONDS = 0.5


@runtime_checkable
class _Streaming(Protocol):
    """A result that knows what the job has in flight.

    `unacknowledged` has for each subscription the number of messages and the oldest's publish time (µs);
    `state_bytes` is the size of all state.
    """

    def unacknowledged(self) -> dict[str, tuple[int, int | None]]: ...

    def state_bytes(self) -> int: ...


def snapshot(result: PipelineResult) -> dict[str, Any]:
    """Every metric of the job by full name, summed over the steps that report it."""
    metrics = result.metrics().query(MetricsFilter().with_namespaces([BROADWAY, POLICY]))
    counters: dict[str, int] = {}
    for counter in metrics["counters"]:
        name = f"{counter.key.metric.namespace}.{counter.key.metric.name}"
        counters[name] = counters.get(name, 0) + int(counter.committed or 0)
    distributions: dict[str, dict[str, int]] = {}
    for measured in metrics["distributions"]:
        if (value := measured.committed) is None or not value.count:
            continue
        name = f"{measured.key.metric.namespace}.{measured.key.metric.name}"
        known = distributions.get(name)
        distributions[name] = {
            "count": value.count + (known["count"] if known else 0),
            "sum": value.sum + (known["sum"] if known else 0),
            "min": min(value.min, known["min"]) if known else value.min,
            "max": max(value.max, known["max"]) if known else value.max,
        }
    return {"counters": counters, "distributions": distributions}


class MetricsFile:
    """A context manager that keeps a file up to date with a job's metrics and its current outages.

    The final content states when and why the job ended. A killed job leaves no such statement; only
    `updated_at` stops changing.
    """

    def __init__(self, path: str, options: RehabOptions, result: PipelineResult) -> None:
        """`options` are those that the job runs with."""
        self._path = Path(path)
        self._job_name = options.job_name
        self._config = options.as_dict()
        self._paths = options.subscriptions
        self._result = result
        self._started_us = _now_us()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="metrics file", daemon=True)

    def __enter__(self) -> "MetricsFile":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write({"at": to_rfc3339(_now_us()), "why": _reason(error)})

    def _keep_up(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            # A new metric may appear while the runner is being queried; the next interval will have it.
            with contextlib.suppress(RuntimeError):
                self._write(None)

    def _write(self, ended: dict[str, str] | None) -> None:
        content = {
            **snapshot(self._result),
            "updated_at": to_rfc3339(_now_us()),
            "job": {
                "name": self._job_name,
                "pid": os.getpid(),
                "started_at": to_rfc3339(self._started_us),
                "ended": ended,
            },
            "config": self._config,
            "subscriptions": self._subscriptions(),
            "state_bytes": self._result.state_bytes() if isinstance(self._result, _Streaming) else 0,
            "outages": [
                {**call._asdict(), "since": to_rfc3339(outage.since_us), "error": outage.error}
                for call, outage in OUTAGES.current().items()
            ],
        }
        # Atomic: a reader sees the old content or the new one, never a part.
        part = self._path.with_name(self._path.name + ".part")
        part.write_bytes(orjson.dumps(content))
        os.replace(part, self._path)

    def _subscriptions(self) -> dict[str, dict[str, Any]]:
        unacknowledged = self._result.unacknowledged() if isinstance(self._result, _Streaming) else {}
        states = {}
        for role, path in self._paths.items():
            messages, oldest_us = unacknowledged[path]
            oldest = to_rfc3339(oldest_us) if oldest_us is not None else None
            states[role] = {"path": path, "unacknowledged": messages, "oldest_published_at": oldest}
        return states


def _now_us() -> int:
    return int(time.time() * MICROS)


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "Its input came to an end."
    if isinstance(error, Stopped):
        return f"It was stopped by {signal.Signals(error.signum).name}."
    # The message of any other error may quote a payload.
    return str(error) if isinstance(error, OperatorError) else f"It failed with {type(error).__name__}."
