"""The layout of a run's report: its tables and its account of events."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pipeline.reporting.metrics import Account

WIDTH = 100
# Between a table's columns.
_GAP = 2

type Cells = Mapping[str, Any]


class Listing(NamedTuple):
    """The first rows of a list, and the total number of its rows."""

    rows: Sequence[Cells]
    total: int


def make_console() -> Console:
    """The console on standard output; its width is fixed if that is not a terminal."""
    if sys.stdout.isatty():
        console = Console(highlight=False)
        return Console(highlight=False, width=min(console.width, WIDTH))
    return Console(highlight=False, width=WIDTH)


def outcomes(sums: Account) -> dict[str, int]:
    """The number of events by outcome, with the outcome's display name."""
    return {
        "processed": sums.processed,
        "duplicates": sums.duplicates,
        "withheld": sums.withheld,
        "too late": sums.too_late,
        "dead letters": sums.dead_letters,
    }


def account_table(
    sums: Account, arrived: str = "published", kinds: Mapping[str, int] | None = None
) -> RenderableType:
    """The account of events; `arrived` labels its first line, `kinds` has the processed events by kind."""
    table = pairs("Account of events")
    table.columns[1].justify = "right"
    table.add_row(arrived, f"{sums.arrived:,}")
    for name, count in outcomes(sums).items():
        table.add_row(f"  {name}", f"{count:,}")
        for kind, number in sorted((kinds or {}).items()) if name == "processed" else ():
            table.add_row(Text(f"    {kind}", "dim"), Text(f"{number:,}", "dim"))
    table.add_row("unaccounted for", f"{sums.open:,}")
    return table


def figure_table(figures: Mapping[str, str]) -> RenderableType:
    """The run's figures, one per line."""
    table = pairs("Figures")
    for name, value in figures.items():
        table.add_row(name, value)
    return table


def account_sentence(sums: Account) -> str:
    """The account as an equation; unaccounted events come last, if there are any."""
    parts = [f"{count:,} {name}" for name, count in outcomes(sums).items()]
    if sums.open > 0:
        parts.append(f"{sums.open:,} unaccounted for")
    tail = f" - {-sums.open:,} counted twice" if sums.open < 0 else ""
    return f"{sums.arrived:,} = {' + '.join(parts)}{tail}"


class Listed:
    """A table that drops its last columns, the least important ones, if there is no room."""

    def __init__(
        self, title: str, columns: Mapping[str, Callable[[Cells], Any]], listing: Listing, noun: str
    ) -> None:
        """`columns` computes each column's cell for a row; `>` at the end of a name aligns it right."""
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


def pairs(title: str) -> Table:
    """An empty table of names and values."""
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
        # Otherwise a title longer than its table would wrap.
        min_width=len(title),
    )


def plural(kind: str) -> str:
    """The plural of a nudge kind."""
    return {"nudge": "nudges", "alert": "alerts", "emergency": "emergencies"}.get(kind, kind)


def shortened(text: str, length: int) -> str:
    """The text, truncated to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
