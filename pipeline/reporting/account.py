"""The account that a bounded run prints at its end: what became of its input."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

import orjson
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.runners.runner import PipelineResult
from rich.console import RenderableType
from rich.filesize import decimal

from pipeline.cloud.files import usable_path
from pipeline.reporting.display import (
    Cells,
    Listed,
    Listing,
    account_sentence,
    account_table,
    figure_table,
    make_console,
    pairs,
    shortened,
)
from pipeline.reporting.metrics import Account, Metrics
from pipeline.reporting.metrics_file import snapshot
from pipeline.reporting.progress import Progress
from pipeline.sinks.results import result_paths
from pipeline.tables import TABLES

# The exit status for dead letters with `--fail_on_dead_letters`.
UNUSABLE = 3


class Example(NamedTuple):
    """One dead letter: its error, which names fields and rules, and the file that it came from."""

    error: str
    file: str


def tell_outcome(
    result: PipelineResult,
    output_dir: str | None,
    dataset: str | None,
    progress: Progress | None,
    seconds: float,
) -> int:
    """Prints the account of a finished run; returns the number of its dead letters.

    The results are in `output_dir` or `dataset`. The account goes to standard output, unless `progress` is
    None; problems go to standard error.
    """
    metrics = Metrics(snapshot(result)["counters"])
    sums = Account(metrics.arrived, **metrics.outcomes)
    letters = {reason: n for reason, n in metrics.dead_letters.items() if n}
    place = usable_path("--output_dir", output_dir).rstrip("/") if output_dir else None
    if progress:
        console = make_console()
        for table in _tables(metrics, sums, letters, _examples(place, letters)):
            console.print(table, "")
        console.print(figure_table(_figures(metrics, progress, seconds)), "")
        # On one line, so that it can be copied.
        console.print(
            f"Results: {' and '.join(filter(None, (place, dataset)))}", markup=False, soft_wrap=True
        )
    if letters:
        where = f"{place}/dead_letters*.jsonl" if place else f"{dataset}.dead_letters"
        _complain(f"{sum(letters.values()):,} dead letters: what could not be used is in {where}.")
    if sums.open:
        _complain(f"The account does not balance: {account_sentence(sums)}.")
    return sum(letters.values())


def _complain(sentence: str) -> None:
    print(f"pipeline.main: {sentence}", file=sys.stderr)


def _tables(
    metrics: Metrics, sums: Account, letters: Mapping[str, int], examples: Mapping[str, Example]
) -> list[RenderableType]:
    tables = []
    if letters:
        tables.append(_dead_letter_table(letters, examples))
    if metrics.nudge_types:
        tables.append(_nudge_table(metrics.nudge_types))
    tables.append(_row_table(metrics.rows))
    tables.append(account_table(sums, f"events in {metrics.lines:,} lines", metrics.processed))
    return tables


def _dead_letter_table(letters: Mapping[str, int], examples: Mapping[str, Example]) -> RenderableType:
    rows: list[Cells] = [
        {"reason": reason, "number": number, "example": examples.get(reason, Example("–", "–"))}
        for reason, number in sorted(letters.items(), key=lambda each: (-each[1], each[0]))
    ]
    columns = {
        "reason": lambda row: row["reason"],
        "events >": lambda row: f"{row['number']:,}",
        "for example": lambda row: shortened(row["example"].error, 46),
        "in": lambda row: row["example"].file.rpartition("/")[2],
    }
    return Listed("Dead letters by reason", columns, Listing(rows, len(rows)), "reasons")


def _nudge_table(types: Mapping[tuple[str, str], int]) -> RenderableType:
    rows = [{"kind": kind, "type": type_, "number": n} for (kind, type_), n in sorted(types.items())]
    columns = {
        "kind": lambda row: row["kind"],
        "type": lambda row: row["type"],
        "nudges >": lambda row: f"{row['number']:,}",
    }
    return Listed("Nudges by type", columns, Listing(rows, len(rows)), "types")


def _row_table(rows: Mapping[str, int]) -> RenderableType:
    table = pairs("Rows by table")
    table.columns[1].justify = "right"
    for name in TABLES:
        table.add_row(name, f"{rows.get(name, 0):,}")
    return table


def _figures(metrics: Metrics, progress: Progress, seconds: float) -> dict[str, str]:
    number, size = len(progress.files), decimal(progress.measured().bytes)
    return {
        "read": f"{number:,} {'file' if number == 1 else 'files'}, {size}",
        "took": f"{seconds:,.1f} s, {metrics.arrived / seconds:,.0f} events/s",
    }


def _examples(place: str | None, letters: Mapping[str, int]) -> dict[str, Example]:
    """The first dead letter of each reason in the result files, if there are files."""
    examples: dict[str, Example] = {}
    for path in result_paths(place, "dead_letters") if place and letters else ():
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as lines:
            for line in lines:
                row = orjson.loads(line)
                examples.setdefault(row["reason"], Example(row["error_message"], row["subscription"]))
                if examples.keys() >= letters.keys():
                    return examples
    return examples
