"""The stream at a steady rate for minutes or hours: rate, lag, memory, file handles and threads over time.

    python -m benchmarks.soak --rate=500 --minutes=30

Emulators, simulator and job run on this machine. The report, a table and a plot, is written to
benchmarks/results/soak.md and soak.svg.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from benchmarks.watched import MIB, Watched, job, machine, module, places
from local.figures import account, read_published
from pipeline.reporting.metrics import Metrics

_RESULTS = Path(__file__).resolve().parent / "results"
_SHARE = 0.95
# Approximate number of lines in the table.
_LINES = 30


class Sample(NamedTuple):
    """The state at `seconds` after the start: events published by then, and events `done` (with an outcome).

    `rate` is outcomes per second since the previous sample, `lag` the published events without an outcome,
    `p95` the 95th percentile of publish to written (ms) over rows since that sample; memory and state are in
    bytes.
    """

    seconds: float
    published: int
    done: int
    rate: float
    lag: int
    p95: float | None
    memory: int
    state: int
    handles: int
    threads: int


class Result(NamedTuple):
    """A soak: its samples, the events without an outcome and rows not written at the end, and failures."""

    rate: float
    minutes: float
    samples: list[Sample]
    lost: int
    failed_letters: int


def soak(rate: float, minutes: float, patients: int, every: float, folder: Path) -> Result:
    """Runs the soak, with a sample every `every` seconds."""
    with places(folder) as made, job(made, folder) as watched:
        report = folder / "report.json"
        arguments = (
            f"--primary_topic={made.resources.primary_topic}",
            f"--secondary_topic={made.resources.secondary_topic}",
            f"--rate={rate}",
            f"--seconds={minutes * 60}",
            f"--patients={patients}",
            f"--report={report}",
        )
        with module("local.simulate", folder, *arguments):
            samples = list(_samples(watched, report, every))
        lost = watched.until_done(read_published(report).events)
        return Result(rate, minutes, samples, lost, sum(watched.metrics().faults.values()))


def _samples(watched: Watched, report: Path, every: float) -> Iterator[Sample]:
    began, due = time.monotonic(), 0.0
    before: tuple[float, int, Metrics] = (began, 0, Metrics())
    while not (published := read_published(report)).finished:
        # The sampling interval; nothing is synchronised by it.
        time.sleep(max(0.0, began + due - time.monotonic()))
        due += every
        now, metrics, holding = time.monotonic(), watched.metrics(), watched.holding()
        published = read_published(report)
        where = account(published, metrics)
        then, done, earlier = before
        yield Sample(
            seconds=now - began,
            published=published.events,
            done=where.accounted,
            rate=(where.accounted - done) / max(now - then, 1e-9),
            # Events confirmed after the simulator's last report may already have an outcome.
            lag=max(0, where.open),
            p95=metrics.latency(_SHARE, since=earlier),
            memory=holding.memory,
            state=metrics.state_bytes,
            handles=holding.handles,
            threads=holding.threads,
        )
        before = now, where.accounted, metrics


def table(result: Result) -> str:
    """The report for people, in Markdown."""
    samples = result.samples[1:]
    shown = samples[:: max(1, len(samples) // _LINES)]
    if shown[-1] is not samples[-1]:
        shown.append(samples[-1])
    lines = [
        f"# Soak: {result.rate:g} events/s for {result.minutes:g} minutes",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, on {machine()}, with both emulators and the simulator on it:",
        f"`python -m benchmarks.soak --rate={result.rate:g} --minutes={result.minutes:g}`",
        "",
        f"Published {samples[-1].published:,} events; lost {result.lost:,}; dead letters caused by the"
        f" job itself: {result.failed_letters:,}.",
        "",
        "Lag: published events without an outcome yet. p95: publish to written, of the rows since the"
        " previous sample. Memory (resident), handles and threads: the job's process. State: what the job"
        " has to remember (ids for 24 hours, patients' last 28 days), as the runner holds it in memory.",
        "",
        "| minute | published | events/s | lag | p95, ms | memory, MiB | state, MiB | handles | threads |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(_line, shown),
        "",
        "![The same over time](soak.svg)",
        "",
    ]
    return "\n".join(lines)


def _line(sample: Sample) -> str:
    p95 = "" if sample.p95 is None else f"{sample.p95:,.0f}"
    return (
        f"| {sample.seconds / 60:.1f} | {sample.published:,} | {sample.rate:,.0f} | {sample.lag:,} | {p95}"
        f" | {sample.memory / MIB:,.0f} | {sample.state / MIB:,.1f} | {sample.handles} | {sample.threads} |"
    )


def plot(result: Result, path: Path) -> None:
    """Plots the samples: one panel per figure, over minutes."""
    samples = result.samples[1:]
    minutes = [sample.seconds / 60 for sample in samples]
    panels: dict[str, list[float]] = {
        "events/s": [sample.rate for sample in samples],
        "lag, events": [sample.lag for sample in samples],
        "p95, ms": [sample.p95 or 0 for sample in samples],
        "memory, MiB": [sample.memory / MIB for sample in samples],
        "state, MiB": [sample.state / MIB for sample in samples],
        "file handles": [sample.handles for sample in samples],
        "threads": [sample.threads for sample in samples],
    }
    figure = Figure(figsize=(10, 11), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.plot(minutes, values, linewidth=1)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.suptitle(f"{result.rate:g} events/s for {result.minutes:g} minutes")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--rate", type=float, default=500, help="events a second (default 500)")
    parser.add_argument("--minutes", type=float, default=30, help="how long (default 30)")
    parser.add_argument("--patients", type=int, default=1000, help="how many patients (default 1000)")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples (default 10)")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="where the report goes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rehab-soak-") as folder:
        result = soak(options.rate, options.minutes, options.patients, options.every, Path(folder))
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "soak.md").write_text(table(result))
    plot(result, options.results / "soak.svg")
    print(table(result))
    return 1 if result.lost or result.failed_letters else 0


if __name__ == "__main__":
    sys.exit(main())
