"""What a local run's job and simulator report about themselves, and the account drawn from it.

The names of the job's metrics are those of `transforms.telemetry`, which this module does not
import: that would load Beam into a process that only watches.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

BROADWAY = "rehab_tracking.broadway."
POLICY = "rehab_tracking.policy."

# A row that BigQuery refused stems from an event that was counted as processed before.
_REASONS_AFTER_PROCESSING = ("write_rejected",)
_FAULTS = ("projection_failed", "write_rejected")


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


class Spread(NamedTuple):
    """A distribution: how many values and their sum."""

    number: int
    sum: int

    @property
    def mean(self) -> float | None:
        """The mean, or None without values."""
        return self.sum / self.number if self.number else None


class Metrics(NamedTuple):
    """The job's counters and distributions by full name, as they stood at `updated_us` (0: none yet)."""

    counters: Mapping[str, int] = {}
    distributions: Mapping[str, Spread] = {}
    updated_us: int = 0

    def by(self, name: str) -> dict[str, int]:
        """The counters under `name`, by what follows it (kind, reason, table or type)."""
        prefix = name + "."
        return {key.removeprefix(prefix): n for key, n in self.counters.items() if key.startswith(prefix)}

    def counter(self, name: str) -> int:
        """One counter; 0 before it first counts."""
        return self.counters.get(name, 0)

    @property
    def moving_parts(self) -> tuple[Mapping[str, int], Mapping[str, Spread]]:
        """What changes when the job does anything."""
        return self.counters, self.distributions

    @property
    def dead_letters(self) -> dict[str, int]:
        """Dead letters by reason."""
        return self.by(BROADWAY + "event.dead_letter")

    @property
    def faults(self) -> dict[str, int]:
        """The dead letters by reason that no input may cause: those that the job itself is to blame for."""
        return {reason: n for reason, n in self.dead_letters.items() if reason in _FAULTS and n}

    @property
    def nudges(self) -> dict[str, int]:
        """What the policy generated, by kind (nudge, alert, feedback, emergency)."""
        totals: dict[str, int] = {}
        for name, n in self.counters.items():
            if name.startswith(POLICY):
                kind = name.removeprefix(POLICY).split(".")[0]
                totals[kind] = totals.get(kind, 0) + n
        return totals

    @property
    def rows(self) -> dict[str, int]:
        """Rows that projectors emitted, by table."""
        return self.by(BROADWAY + "row.projected")

    @property
    def written(self) -> dict[str, int]:
        """Rows in the batches that BigQuery has acknowledged, by table."""
        prefix = BROADWAY + "batch.size."
        spreads = self.distributions.items()
        return {key.removeprefix(prefix): spread.sum for key, spread in spreads if key.startswith(prefix)}

    @property
    def unwritten(self) -> dict[str, int]:
        """Rows emitted and not yet written, by table; tables with none are left out."""
        written = self.written
        behind = {table: n - written.get(table, 0) for table, n in self.rows.items()}
        return {table: n for table, n in behind.items() if n}

    @property
    def writes(self) -> Spread:
        """How long the writes took, in milliseconds."""
        return self.distributions.get(BROADWAY + "write_ms", Spread(0, 0))

    def latency(self, share: float, since: "Metrics | None" = None) -> float | None:
        """The milliseconds from publish to written within which `share` of the rows were; None without rows.

        With `since`, of the rows written after those metrics. Interpolated between the bounds that
        the job counts by; beyond the last bound it is that bound.
        """
        earlier = since.by(BROADWAY + "event_to_write_ms.le") if since else {}
        counts = self.by(BROADWAY + "event_to_write_ms.le")
        total = counts.pop("inf", 0) - earlier.get("inf", 0)
        if total <= 0:
            return None
        below, lower = 0, 0
        for bound in sorted(map(int, counts)):
            upto = counts[str(bound)] - earlier.get(str(bound), 0)
            if upto >= share * total:
                return lower + (bound - lower) * (share * total - below) / max(1, upto - below)
            below, lower = upto, bound
        return float(lower)


class Account(NamedTuple):
    """Where the published events went."""

    published: int
    processed: int
    duplicates: int
    withheld: int
    too_late: int
    dead_letters: int

    @property
    def open(self) -> int:
        """Events published and not yet accounted for; negative if some were counted twice."""
        return self.published - sum(self[1:])

    @property
    def accounted(self) -> int:
        """Events that have come out somewhere."""
        return sum(self[1:])


def account(published: Published, metrics: Metrics) -> Account:
    """Sets what was published against what the job made of it."""
    return Account(
        published.events,
        sum(metrics.by(BROADWAY + "event.processed").values()),
        metrics.counter(BROADWAY + "event.duplicate"),
        metrics.counter(BROADWAY + "event.withheld"),
        metrics.counter(BROADWAY + "event.too_late"),
        sum(n for reason, n in metrics.dead_letters.items() if reason not in _REASONS_AFTER_PROCESSING),
    )


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
        _micros(report["last_publish"]),
        report["finished"],
        path.stat().st_mtime_ns // 1000,
    )


def read_metrics(path: Path) -> Metrics:
    """The job's metrics; empty ones while there is no file."""
    content = _read(path)
    if not content:
        return Metrics()
    spreads = {name: Spread(value["count"], value["sum"]) for name, value in content["distributions"].items()}
    return Metrics(content["counters"], spreads, _micros(content["updated_at"]))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content


def _micros(moment: str | None) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1_000_000) if moment else 0
