"""A job's metrics as plain values, for other processes.

The names are those of `transforms.steps.telemetry`. This module does not import it, because that would load
Beam.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from transforms.times import to_micros

BROADWAY = "rehab_tracking.broadway."
POLICY = "rehab_tracking.policy."

LATENCY = BROADWAY + "event_to_write_ms.le"
_FAULTS = ("projection_failed", "write_rejected")


class Spread(NamedTuple):
    """A distribution: the number of values and their sum."""

    number: int
    sum: int

    @property
    def mean(self) -> float | None:
        """The mean, or None without values."""
        return self.sum / self.number if self.number else None


class Metrics(NamedTuple):
    """The job's counters and distributions by full name, as of `updated_us` (0 before the first report).

    `state_bytes` is the size of its state, if the runner reports it.
    """

    counters: Mapping[str, int] = {}
    distributions: Mapping[str, Spread] = {}
    updated_us: int = 0
    state_bytes: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Metrics":
        """From the content of a metrics file. Raises KeyError, TypeError or ValueError if it is invalid."""
        spreads = {
            name: Spread(value["count"], value["sum"]) for name, value in content["distributions"].items()
        }
        updated_us = to_micros(datetime.fromisoformat(content["updated_at"]))
        return cls(content["counters"], spreads, updated_us, content["state_bytes"])

    def by(self, name: str) -> dict[str, int]:
        """The counters under `name`, by their label (kind, reason, table or type)."""
        prefix = name + "."
        return {key.removeprefix(prefix): n for key, n in self.counters.items() if key.startswith(prefix)}

    def counter(self, name: str) -> int:
        """One counter; 0 if it has not counted yet."""
        return self.counters.get(name, 0)

    @property
    def moving_parts(self) -> tuple[Mapping[str, int], Mapping[str, Spread]]:
        """The values that change when the job does anything."""
        return self.counters, self.distributions

    @property
    def dead_letters(self) -> dict[str, int]:
        """Dead letters by reason."""
        return self.by(BROADWAY + "event.dead_letter")

    @property
    def faults(self) -> dict[str, int]:
        """Dead letters that the job itself caused, by reason: no input may cause them."""
        return {reason: n for reason, n in self.dead_letters.items() if reason in _FAULTS and n}

    @property
    def outcomes(self) -> dict[str, int]:
        """The number of events by outcome; each event has exactly one."""
        letters = self.dead_letters
        return {
            "processed": sum(self.processed.values()),
            "duplicates": self.counter(BROADWAY + "event.duplicate"),
            "withheld": self.counter(BROADWAY + "event.withheld"),
            "too_late": self.counter(BROADWAY + "event.too_late"),
            # The event of a rejected row is already counted as processed.
            "dead_letters": sum(letters.values()) - letters.get("write_rejected", 0),
        }

    @property
    def arrived(self) -> int:
        """Events found in messages or lines, valid or not."""
        return self.counter(BROADWAY + "event.arrived")

    @property
    def lines(self) -> int:
        """Non-blank lines read from files."""
        return self.counter(BROADWAY + "line.read")

    @property
    def processed(self) -> dict[str, int]:
        """Events applied to a projection, by kind."""
        return self.by(BROADWAY + "event.processed")

    @property
    def events(self) -> int:
        """Events that have an outcome."""
        return sum(self.outcomes.values())

    @property
    def nudges(self) -> dict[str, int]:
        """Nudges that the policy generated, by kind (nudge, alert, feedback, emergency)."""
        totals: dict[str, int] = {}
        for name, n in self.counters.items():
            if name.startswith(POLICY):
                kind = name.removeprefix(POLICY).split(".")[0]
                totals[kind] = totals.get(kind, 0) + n
        return totals

    @property
    def nudge_types(self) -> dict[tuple[str, str], int]:
        """Nudges that the policy generated, by kind and type."""
        types: dict[tuple[str, str], int] = {}
        for name, n in self.counters.items():
            if name.startswith(POLICY):
                kind, _, type_ = name.removeprefix(POLICY).partition(".generated.")
                types[kind, type_] = n
        return types

    @property
    def rows(self) -> dict[str, int]:
        """Rows that projectors emitted, by table."""
        return self.by(BROADWAY + "row.projected")

    @property
    def batches(self) -> dict[str, Spread]:
        """Batches written to BigQuery and their rows, by table."""
        prefix = BROADWAY + "batch.size."
        spreads = self.distributions.items()
        return {key.removeprefix(prefix): spread for key, spread in spreads if key.startswith(prefix)}

    @property
    def written(self) -> dict[str, int]:
        """Rows written to BigQuery, by table."""
        return {table: spread.sum for table, spread in self.batches.items()}

    @property
    def unwritten(self) -> dict[str, int]:
        """Rows emitted but not yet written, by table; without tables that have none."""
        written = self.written
        behind = {table: n - written.get(table, 0) for table, n in self.rows.items()}
        return {table: n for table, n in behind.items() if n}

    @property
    def writes(self) -> Spread:
        """Durations of the writes, in milliseconds."""
        return self.distributions.get(BROADWAY + "write_ms", Spread(0, 0))

    def latency(self, share: float, since: "Metrics | None" = None) -> float | None:
        """The `share` quantile of the milliseconds from publish to write; None without rows.

        With `since`, only for rows written after those metrics. Interpolated between the bounds that the job
        counts by; beyond the last bound, that bound.
        """
        earlier = since.by(LATENCY) if since else {}
        counts = self.by(LATENCY)
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
    """The account of events: `arrived` must equal the sum of the outcomes."""

    arrived: int
    processed: int
    duplicates: int
    withheld: int
    too_late: int
    dead_letters: int

    @property
    def open(self) -> int:
        """Events without an outcome yet; negative if some were counted twice."""
        return self.arrived - sum(self[1:])

    @property
    def accounted(self) -> int:
        """Events that have an outcome."""
        return sum(self[1:])
