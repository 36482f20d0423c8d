"""What a local run's job and simulator report about themselves, and the account drawn from it."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.reporting.metrics import Account, Metrics
from transforms.times import to_micros


class Published(NamedTuple):
    """The simulator's report: events, bad ones among them, and when the last was confirmed.

    `last_us` and `written_us`, when the report was written, are in microseconds since the epoch (0: not yet).
    """

    events: int = 0
    bad: int = 0
    last_us: int = 0
    finished: bool = False
    written_us: int = 0

    def rate_since(self, earlier: "Published") -> float | None:
        """Events a second from an earlier report on; None if nothing has been published since."""
        passed = self.last_us - earlier.written_us
        more = self.events - earlier.events
        return more * 1e6 / passed if more and passed > 0 else None


def account(published: Published, metrics: Metrics) -> Account:
    """Sets what was published against what the job made of it."""
    return Account(published.events, **metrics.outcomes)


class Settling:
    """Finds since when everything that was published has been written.

    The job counts an event before its rows, and a row before its batch, so a balanced account may be
    one that has not heard of all rows yet: it must also have stayed as it is for `calm_us`.
    """

    def __init__(self, calm_us: int) -> None:
        """`calm_us`, in microseconds, is longer than a row waits in a batch."""
        self._calm_us = calm_us
        self._state: tuple[int, ...] = ()
        self._since_us = 0

    def update(self, published: Published, metrics: Metrics) -> int | None:
        """The moment (microseconds since the epoch), once it is known."""
        state = (*account(published, metrics), sum(metrics.rows.values()), sum(metrics.written.values()))
        if state != self._state:
            self._state, self._since_us = state, metrics.updated_us
        balanced = published.finished and not account(published, metrics).open and not metrics.unwritten
        if balanced and metrics.updated_us - self._since_us >= self._calm_us:
            return self._since_us
        return None


def read_published(path: Path) -> Published:
    """The simulator's report; that of a simulator that has published nothing while there is no file."""
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
    """The job's metrics; empty ones while there is no file."""
    content = _read(path)
    return Metrics.of(content) if content else Metrics()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content
