"""How a local run looks: its progress while it runs, its tables and figures at the end."""

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.local.figures import Account, Published, account
from pipeline.metrics import Metrics

WIDTH = 100
# Between a table's columns.
_GAP = 2
# What "now" means in rates and lags.
_RECENT_US = 5_000_000
_KINDS = ("nudge", "alert", "feedback", "emergency")
_URGENCY_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "green"}

type Cells = Mapping[str, Any]


class Check(NamedTuple):
    """Something that must hold at the end of a run, and the sentence to say when it does not."""

    what: str
    holds: bool
    problem: str


class Listing(NamedTuple):
    """The first rows of a longer list, and how many there are in all."""

    rows: Sequence[Cells]
    total: int


class NudgeType(NamedTuple):
    """What tells one sort of nudge from another."""

    kind: str
    type: str
    severity: str


class Tally(NamedTuple):
    """Nudges of one type: messages received, and how many distinct ids they had."""

    distinct: int
    received: int


def make_console() -> Console:
    """The console on standard output; a fixed width where that is no terminal."""
    if sys.stdout.isatty():
        console = Console(highlight=False)
        return Console(highlight=False, width=min(console.width, WIDTH))
    return Console(highlight=False, width=WIDTH)


class Progress:
    """The run's state from one look at it to the next."""

    def __init__(self, rate: float, seconds: float) -> None:
        """`rate` (events a second) and `seconds` are what the simulator was asked for."""
        self._rate = rate
        self._seconds = seconds
        self._published = Published()
        self._received = 0
        self._looks: deque[tuple[Metrics, int]] = deque([(Metrics(), 0)])

    def update(self, published: Published, metrics: Metrics, nudges_received: int) -> None:
        """Takes in the newest reports."""
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
        """Events that came out somewhere, a second, over the last few seconds."""
        (first, before), (last, after) = self._looks[0], self._looks[-1]
        passed = last.updated_us - first.updated_us
        return (after - before) * 1e6 / passed if first.updated_us and passed else 0.0

    def _lag(self) -> str:
        oldest = self._looks[0][0]
        p50, p95 = (self._newest.latency(share, since=oldest) for share in (0.50, 0.95))
        return f"p50 {milliseconds(p50)}, p95 {milliseconds(p95)}"

    def line(self, elapsed: float) -> str:
        """The state in one line, for where there is no terminal."""
        sums = account(self._published, self._newest)
        parts = [
            f"{elapsed:4.0f} s",
            f"published {sums.published:,}",
            *(f"{name} {count:,}" for name, count in _outcomes(sums).items()),
            f"rows {sum(self._newest.written.values()):,}",
            *(f"{_plural(kind)} {self._newest.nudges.get(kind, 0):,}" for kind in _KINDS),
            f"{self.events_per_second:,.0f} events/s",
            f"lag {self._lag()}",
        ]
        return "  ".join(parts)

    def panel(self, elapsed: float) -> RenderableType:
        """The state as it stands on a terminal; `elapsed` seconds since the first event was due."""
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


def _outcomes(sums: Account) -> dict[str, int]:
    return {
        "processed": sums.processed,
        "duplicates": sums.duplicates,
        "withheld": sums.withheld,
        "too late": sums.too_late,
        "dead letters": sums.dead_letters,
    }


def _events(sums: Account) -> Table:
    # The simulator's report is a little older than the job's now and then.
    return _counts(
        "events", {"published": sums.published} | _outcomes(sums) | {"on their way": max(0, sums.open)}
    )


def _rows(metrics: Metrics) -> Table:
    written = metrics.written
    waiting = sum(metrics.unwritten.values())
    return _counts("rows written", dict(sorted(written.items())) | {"waiting": waiting})


def _nudges(metrics: Metrics, received: int) -> Table:
    generated = metrics.nudges
    return _counts(
        "nudges", {_plural(kind): generated.get(kind, 0) for kind in _KINDS} | {"received": received}
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
    return _Listed("Adherence by patient, newest week, lowest first", columns, listing, "patients")


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
    return _Listed("Quality by patient and exercise, lowest mean first", columns, listing, "exercises")


def work_queue_table(listing: Listing, open_items: Mapping[str, int]) -> RenderableType:
    """The open items, from rows of `work_queue_current`; `open_items` counts all of them by urgency."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "priority": lambda row: Text(f"{row['priority']} {row['urgency']}", _URGENCY_STYLE[row["urgency"]]),
        "item": lambda row: row["item_type"],
        "patient": lambda row: row["patient_id"],
        "description": lambda row: _shortened(row["description"] or "–", 40),
        "status": lambda row: row["status"],
        "due (UTC)": lambda row: f"{row['sla_deadline']:%m-%d %H:%M}",
    }
    counts = ", ".join(f"{urgency} {count:,}" for urgency, count in open_items.items())
    return _Listed(f"Work queue: open items by priority ({counts})", columns, listing, "open items")


def nudge_table(tallies: Mapping[NudgeType, Tally]) -> RenderableType:
    """What arrived on the nudge topic, by type."""
    order = sorted(tallies, key=lambda key: (_KINDS.index(key.kind), key.type, key.severity))
    rows = [key._asdict() | tallies[key]._asdict() for key in order]
    columns: dict[str, Callable[[Cells], Any]] = {
        "kind": lambda row: row["kind"],
        "type": lambda row: row["type"],
        "severity": lambda row: Text(row["severity"], _URGENCY_STYLE[row["severity"]]),
        "nudges >": lambda row: f"{row['distinct']:,}",
        "messages >": lambda row: f"{row['received']:,}",
    }
    return _Listed("Nudges by type, as received from the topic", columns, Listing(rows, len(rows)), "types")


def dead_letter_table(listing: Listing, counted: Mapping[str, int]) -> RenderableType:
    """Dead letters by reason: rows of reason, distinct, example; `counted` are the job's own counts."""
    columns: dict[str, Callable[[Cells], Any]] = {
        "reason": lambda row: row["reason"],
        "arrived >": lambda row: f"{counted.get(row['reason'], 0):,}",
        "distinct >": lambda row: f"{row['distinct']:,}",
        "for example": lambda row: _shortened(row["example"], 54),
    }
    return _Listed("Dead letters by reason", columns, listing, "reasons")


def account_table(sums: Account) -> RenderableType:
    """Where the published events went."""
    table = _pairs("Account of events")
    table.columns[1].justify = "right"
    table.add_row("published", f"{sums.published:,}")
    for name, count in _outcomes(sums).items():
        table.add_row(f"  {name}", f"{count:,}")
    table.add_row("unaccounted for", f"{sums.open:,}")
    return table


def figure_table(figures: Mapping[str, str]) -> RenderableType:
    """The run's figures, one a line."""
    table = _pairs("Figures")
    for name, value in figures.items():
        table.add_row(name, value)
    return table


def check_table(checks: Sequence[Check]) -> RenderableType:
    """What was checked, and how it came out."""
    table = _pairs("Checks")
    for check in checks:
        mark = Text("ok", "green") if check.holds else Text("FAILED", "bold red")
        table.add_row(mark, check.what if check.holds else check.problem)
    return table


def change(before: Metrics, after: Metrics, received: int) -> str:
    """What has happened between two looks at the metrics, in one line; `received` nudges have arrived."""
    then, now = (_outcomes(account(Published(), metrics)) for metrics in (before, after))
    counts = {name: now[name] - then[name] for name in now}
    counts["rows written"] = sum(after.written.values()) - sum(before.written.values())
    counts["nudges received"] = received
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def account_sentence(sums: Account) -> str:
    """The account as an equation; what is open comes last, if anything is."""
    parts = [f"{count:,} {name}" for name, count in _outcomes(sums).items()]
    if sums.open > 0:
        parts.append(f"{sums.open:,} unaccounted for")
    tail = f" - {-sums.open:,} counted twice" if sums.open < 0 else ""
    return f"{sums.published:,} = {' + '.join(parts)}{tail}"


def milliseconds(value: float | None) -> str:
    """A duration for people; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:,.2f} s"


class _Listed:
    """A table of as many columns as there is room for: the last ones are the least."""

    def __init__(
        self, title: str, columns: Mapping[str, Callable[[Cells], Any]], listing: Listing, noun: str
    ) -> None:
        """`columns` gives each column's cell for a row; a name that ends with `>` is that of a number."""
        self._title = title
        self._columns = {name: [_text(cell(row)) for row in listing.rows] for name, cell in columns.items()}
        rest = listing.total - len(listing.rows)
        self._caption = f"and {rest:,} more of {listing.total:,} {noun}" if rest > 0 else None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown: dict[str, list[Text]] = {}
        room = options.max_width
        for name, cells in self._columns.items():
            room -= max(cell.cell_len for cell in (Text(name.removesuffix(" >")), *cells)) + _GAP
            if room < 0:
                break
            shown[name] = cells
        table = _plain(self._title)
        table.caption = self._caption
        for name in shown:
            justify: JustifyMethod = "right" if name.endswith(" >") else "left"
            table.add_column(name.removesuffix(" >"), justify=justify, no_wrap=True)
        for row in zip(*shown.values(), strict=True):
            table.add_row(*row)
        yield table


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _pairs(title: str) -> Table:
    table = _plain(title)
    table.show_header = False
    table.add_column()
    table.add_column()
    return table


def _plain(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        caption_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
        # A title that is longer than its table would be broken.
        min_width=len(title),
    )


def _plural(kind: str) -> str:
    return {"nudge": "nudges", "alert": "alerts", "emergency": "emergencies"}.get(kind, kind)


def _day(value: date) -> str:
    return value.isoformat()


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _first_issue(issues: Sequence[Cells]) -> str:
    return str(issues[0]["type"]) if issues else "–"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
