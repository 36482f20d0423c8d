"""A local job's metrics in a file, for those who watch it from outside."""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from transforms.telemetry import BROADWAY, POLICY
from transforms.times import MICROS, to_rfc3339

INTERVAL_SECONDS = 0.5


def snapshot(result: PipelineResult) -> dict[str, Any]:
    """Every metric of the job by its full name, added up over the steps that report it."""
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
    """While entered, keeps a file up to date with a job's metrics; without a path it does nothing."""

    def __init__(self, path: str | None, result: PipelineResult) -> None:
        """`path` is where to write."""
        self._path = Path(path) if path else None
        self._result = result
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, args=(self._path,), daemon=True)

    def __enter__(self) -> "MetricsFile":
        if self._path:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._path:
            self._thread.join()
            self._write(self._path)

    def _keep_up(self, path: Path) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            # The runner may come to count something new in the middle of being asked: then next time.
            with contextlib.suppress(RuntimeError):
                self._write(path)

    def _write(self, path: Path) -> None:
        # A reader sees the old content or the new, never half of it.
        part = path.with_name(path.name + ".part")
        part.write_bytes(
            orjson.dumps(snapshot(self._result) | {"updated_at": to_rfc3339(int(time.time() * MICROS))})
        )
        os.replace(part, path)
