"""The display of a local run: its progress, then its tables and figures."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from local.figures import Published, account
from pipeline.reporting.display import Cells, Listed, Listing, outcomes, pairs, plural, shortened
from pipeline.reporting.metrics import Account, Metrics

# The period over which rates and lags are computed.
_RECENT_US = 5_000_000
_KINDS = ("nudge", "alert", "feedback", "emergency")
_URGENCY_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "green"}


class Check(NamedTuple):
    """Something that must hold at the end of a run, and the sentence to print if it does not."""

    what: str
    holds: bool
    problem: str


class NudgeType(NamedTuple):
    """The attributes by which nudges are grouped."""

    kind: str
    type: str
    severity: str


class Tally(NamedTuple):
    """Nudges of one type: the number of messages, and of their distinct ids."""

    distinct: int
    received: int


class Progress:
    """The run's state over time."""

    def __init__(self, rate: float, seconds: float) -> None:
        """`rate` (events per second) and `seconds` are the simulator's."""
        self._rate = rate
        self._seconds = seconds
        self._published = Published()
        self._received = 0
        self._looks: deque[tuple[Metrics, int]] = deque([(Metrics(), 0)])

    def update(self, published: Published, metrics: Metrics, nudges_received: int) -> None:
        """Adds the newest reports."""
        self._published, self._received = published, nudges_received
        if metrics.updated_us > self._newest.updated_us:
            self._looks.append((metrics, account(published, metrics).accounted))
        while len(self._looks) > 2 and self._looks[1][0].updated_us < self._newest.updated_us - _RECENT_US:
            self._looks.popleft()

    @property
    def _newest(self) -> Metrics:
        return self._looks[-1][0]

    @property
    def events_per_second(self) -> float:
        """Events that got an outcome, per second, over the last few seconds."""
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        passed = last.updated_us - first.updated_us
        return (after - before) * 1e6 / passed if first.updated_us and passed else 0.0

    def _lag(self) -> str:
        oldest = self._looks[0][0]
        p50, p95 = (self._newest.latency(share, since=oldest) for share in (0.50, 0.95))
        return f"p50 {milliseconds(p50)}, p95 {milliseconds(p95)}"

    def line(self, elapsed: float) -> str:
        """The state in one line, for output that is not a terminal."""
        sums = account(self._published, self._newest)
        parts = [
            f"{elapsed:4.0f} s",
            f"published {sums.arrived:,}",
            *(f"{name} {count:,}" for name, count in outcomes(sums).items()),
            f"rows {sum(self._newest.written.values()):,}",
            *(f"{plural(kind)} {self._newest.nudges.get(kind, 0):,}" for kind in _KINDS),
            f"{self.events_per_second:,.0f} events/s",
            f"lag {self._lag()}",
        ]
        return "  ".join(parts)

    def panel(self, elapsed: float) -> RenderableType:
        """The state for a terminal; `elapsed` is in seconds since the first event was due."""
        sums = account(self._published, self._newest)
        grid = Table.grid(padding=(0, 3))
        grid.add_row(_events(sums), _rows(self._newest), _nudges(self._newest, self._received))
        now = Text.assemble(
            ("rate ", "dim"),
            f"{self.events_per_second:,.0f} events/s",
            ("    publish to written ", "dim"),
            self._lag(),
            ("    a write ", "dim"),
            milliseconds(self._newest.writes.mean),
        )
        return Group("", self._bar(elapsed), "", grid, "", now)

    def _bar(self, elapsed: float) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        bar.add_column(width=44)
        shown = min(elapsed, self._seconds)
        ended = self._published.finished
        text = (
            "all published; waiting until everything is written"
            if ended
            else f"{shown:.0f} of {self._seconds:g} s at {self._rate:g} events/s"
        )
        bar.add_row(
            ProgressBar(total=self._seconds, completed=self._seconds if ended else shown, width=44), text
        )
        return bar


def _events(sums: Account) -> Table:
    # The simulator's report may be slightly older than the job's.
    return _counts(
        "events", {"published": sums.arrived} | outcomes(sums) | {"on their way": max(0, sums.open)}
    )


def _rows(metrics: Metrics) -> Table:
    written = metrics.written
    waiting = sum(metrics.unwritten.values())
    return _counts("rows written", dict(sorted(written.items())) | {"waiting": waiting})


def _nudges(metrics: Metrics, received: int) -> Table:
    generated = metrics.nudges
    return _counts(
        "nudges", {plural(kind): generated.get(kind, 0) for kind in _KINDS} | {"received": received}
    )


def _counts(title: str, counts: Mapping[str, int]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=0
    )
    table.add_column(min_width=14)
    table.add_column(justify="right", min_width=9)
    for name, count in counts.items():
        table.add_row(Text(name, "dim"), f"{count:,}")
    return table


def adherence_table(listing: Listing) -> RenderableType:
    """Each patient's newest week, from rows of `adherence_current`."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "patient": lambda row: row["patient_id"],
        "week": lambda row: _day(row["week_start"]),
        "done >": lambda row: f"{row['completed_sessions']}/{row['prescribed_sessions']}",
        "partial >": lambda row: row["partial_sessions"],
        "missed >": lambda row: row["missed_sessions"],
        "week % >": lambda row: f"{row['adherence_percentage']:.0f}",
        "7 days % >": lambda row: f"{row['rolling_7day_avg']:.0f}",
        "28 days % >": lambda row: f"{row['rolling_28day_avg']:.0f}",
        "days missed >": lambda row: _or_dash(row["consecutive_missed_days"]),
        "consent": lambda row: row["consent_status"],
    }
    return Listed("Adherence by patient, newest week, lowest first", columns, listing, "patients")


def quality_table(listing: Listing) -> RenderableType:
    """Each patient's exercises, from rows of `quality_current`."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "patient": lambda row: row["patient_id"],
        "exercise": lambda row: row["exercise_id"] or "(none)",
        "reps >": lambda row: f"{row['total_reps']:,}",
        "mean >": lambda row: _score(row["average_quality"]),
        "median >": lambda row: _score(row["percentile_50"]),
        "crit. % >": lambda row: f"{row['critical_issues_percentage']:.0f}",
        "trend": lambda row: row["quality_trend"],
        "most frequent issue": lambda row: _first_issue(row["form_issue_frequency"]),
    }
    return Listed("Quality by patient and exercise, lowest mean first", columns, listing, "exercises")


def work_queue_table(listing: Listing, open_items: Mapping[str, int]) -> RenderableType:
    """The open items, from rows of `work_queue_current`; `open_items` counts all of them by urgency."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "priority": lambda row: Text(f"{row['priority']} {row['urgency']}", _URGENCY_STYLE[row["urgency"]]),
        "item": lambda row: row["item_type"],
        "patient": lambda row: row["patient_id"],
        "description": lambda row: shortened(row["description"] or "–", 40),
        "status": lambda row: row["status"],
        "due (UTC)": lambda row: f"{row['sla_deadline']:%m-%d %H:%M}",
    }
    counts = ", ".join(f"{urgency} {count:,}" for urgency, count in open_items.items())
    return Listed(f"Work queue: open items by priority ({counts})", columns, listing, "open items")


def nudge_table(tallies: Mapping[NudgeType, Tally]) -> RenderableType:
    """The nudges received from the topic, by type."""
    order = sorted(tallies, key=lambda key: (_KINDS.index(key.kind), key.type, key.severity))
    rows = [key._asdict() | tallies[key]._asdict() for key in order]
    columns: dict[str, Callable[[Cells], Any]] = {
        "kind": lambda row: row["kind"],
        "type": lambda row: row["type"],
        "severity": lambda row: Text(row["severity"], _URGENCY_STYLE[row["severity"]]),
        "nudges >": lambda row: f"{row['distinct']:,}",
        "messages >": lambda row: f"{row['received']:,}",
    }
    return Listed("Nudges by type, as received from the topic", columns, Listing(rows, len(rows)), "types")


def dead_letter_table(listing: Listing, counted: Mapping[str, int]) -> RenderableType:
    """Dead letters by reason: rows of reason, distinct, example; `counted` are the job's own counts."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "reason": lambda row: row["reason"],
        "arrived >": lambda row: f"{counted.get(row['reason'], 0):,}",
        "distinct >": lambda row: f"{row['distinct']:,}",
        "for example": lambda row: shortened(row["example"], 54),
    }
    return Listed("Dead letters by reason", columns, listing, "reasons")


def check_table(checks: Sequence[Check]) -> RenderableType:
    """The checks and their results."""
    table = pairs("Checks")
    for check in checks:
        mark = Text("ok", "green") if check.holds else Text("FAILED", "bold red")
        table.add_row(mark, check.what if check.holds else check.problem)
    return table


def change(before: Metrics, after: Metrics, received: int) -> str:
    """The changes between two metrics, in one line; `received` nudges have arrived in between."""
    then, now = (outcomes(account(Published(), metrics)) for metrics in (before, after))
    counts = {name: now[name] - then[name] for name in now}
    counts["rows written"] = sum(after.written.values()) - sum(before.written.values())
    counts["nudges received"] = received
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def milliseconds(value: float | None) -> str:
    """A duration for display; a dash if there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:,.2f} s"


def _day(value: date) -> str:
    return value.isoformat()


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _first_issue(issues: Sequence[Cells]) -> str:
    return str(issues[0]["type"]) if issues else "–"
