"""Reads the reports of a local run's job and simulator, and compares them."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.reporting.metrics import Account, Metrics
from transforms.times import to_micros


class Published(NamedTuple):
    """The simulator's report: its events, and the bad ones among them.

    `last_us` is the time of the last confirmation, `written_us` that of the report, in microseconds since the
    epoch; 0 if there is none yet.
    """

    events: int = 0
    bad: int = 0
    last_us: int = 0
    finished: bool = False
    written_us: int = 0

    def rate_since(self, earlier: "Published") -> float | None:
        """Events per second since an earlier report; None if nothing has been published since."""
        passed = self.last_us - earlier.written_us
        more = self.events - earlier.events
        return more * 1e6 / passed if more and passed > 0 else None


def account(published: Published, metrics: Metrics) -> Account:
    """The account of the published events, by what the job did with them."""
    return Account(published.events, **metrics.outcomes)


class Settling:
    """Finds the time at which everything published had been written.

    The job counts an event before its rows, and a row before its batch. So a balanced account may still miss
    rows; it must also stay unchanged for `calm_us`.
    """

    def __init__(self, calm_us: int) -> None:
        """`calm_us` (microseconds) must be longer than a row waits in a batch."""
        self._calm_us = calm_us
        self._state: tuple[int, ...] = ()
        self._since_us = 0

    def update(self, published: Published, metrics: Metrics) -> int | None:
        """That time (microseconds since the epoch); None until it is known."""
        state = (*account(published, metrics), sum(metrics.rows.values()), sum(metrics.written.values()))
        if state != self._state:
            self._state, self._since_us = state, metrics.updated_us
        balanced = published.finished and not account(published, metrics).open and not metrics.unwritten
        if balanced and metrics.updated_us - self._since_us >= self._calm_us:
            return self._since_us
        return None


def read_published(path: Path) -> Published:
    """The simulator's report; an empty one if there is no file yet."""
    report = _read(path)
    if not report:
        return Published()
    return Published(
        report["published"],
        report["bad"],
        to_micros(datetime.fromisoformat(last)) if (last := report["last_publish"]) else 0,
        report["finished"],
        path.stat().st_mtime_ns // 1000,
    )


def read_metrics(path: Path) -> Metrics:
    """The job's metrics; empty if there is no file yet."""
    content = _read(path)
    return Metrics.of(content) if content else Metrics()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content
