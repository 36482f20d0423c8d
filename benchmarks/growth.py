"""How cost grows with events and patients: `python -m benchmarks.growth --help`.

Measures the bounded pipeline on the DirectRunner, in one process and on all cores, each run in its own
process. It fails if anything grows faster than linearly: if n times the events, or n times the patients, cost
more than 1.25 n times as much. Cost is CPU-seconds without the start-up, and peak memory above that of the
smallest run. Costs that cannot be told from noise (below 0.5 CPU-seconds or 64 MiB) are not a base of
comparison.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import RESULTS, machine, measure
from benchmarks.workload import events_file

_TOLERANCE = 1.25
_LEAST = {"cpu_seconds": 0.5, "memory_mib": 64.0}


class Cell(NamedTuple):
    """One measurement. Seconds exclude the start-up.

    With few events they may be negative, because start-ups differ.
    """

    events: int
    patients: int
    processes: int
    seconds: float
    cpu_seconds: float
    peak_mib: int

    @classmethod
    def measured(cls, events: int, patients: int, processes: int) -> "Cell":
        """Measures a run over so many events of so many patients."""
        run = measure("bounded", events_file(events, patients), processes)
        seconds, cpu_seconds = (run["run"][name] - run["start"][name] for name in ("seconds", "cpu_seconds"))
        return cls(events, patients, processes, seconds, cpu_seconds, run["peak_mib"])

    @property
    def label(self) -> str:
        """The run in words."""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.events:,} events of {self.patients:,} patients in {processes}"


def steep(cells: Sequence[Cell]) -> list[str]:
    """Describes each step from one size to the next in which a cost grows faster than linearly."""
    smallest = {cell.processes: min(_memory(cells, cell.processes)) for cell in cells}
    costs = {
        cell: {"cpu_seconds": cell.cpu_seconds, "memory_mib": cell.peak_mib - smallest[cell.processes]}
        for cell in cells
    }
    return [
        f"{name} {costs[small][name]:,.1f} → {costs[large][name]:,.1f}: {small.label} → {large.label}"
        for small, large, growth in _steps(cells)
        for name, least in _LEAST.items()
        if costs[small][name] >= least and costs[large][name] > _TOLERANCE * growth * costs[small][name]
    ]


def _memory(cells: Sequence[Cell], processes: int) -> Iterator[int]:
    return (cell.peak_mib for cell in cells if cell.processes == processes)


def _steps(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell, float]]:
    """Each cell, the cell with the next number of events (or patients) and all else equal, and the factor."""
    for axis in ("events", "patients"):
        for small in cells:
            larger = [
                cell
                for cell in cells
                if getattr(cell, axis) > getattr(small, axis) and _beside(cell, axis) == _beside(small, axis)
            ]
            if larger:
                large = min(larger, key=lambda cell: getattr(cell, axis))
                yield small, large, getattr(large, axis) / getattr(small, axis)


def _beside(cell: Cell, axis: str) -> tuple[int, int]:
    return cell.patients if axis == "events" else cell.events, cell.processes


def plot(cells: Sequence[Cell]) -> None:
    """CPU-seconds and peak memory over the number of events, a line for each number of patients."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = sorted({(cell.patients, cell.processes) for cell in cells})
    for axis, name, label in zip(
        axes, ("cpu_seconds", "peak_mib"), ("CPU-seconds", "peak memory, MiB"), strict=True
    ):
        for patients, processes in lines:
            members = [cell for cell in cells if (cell.patients, cell.processes) == (patients, processes)]
            points = [cell.events for cell in members], [getattr(cell, name) for cell in members]
            number = "1 process" if processes == 1 else f"{processes} processes"
            style = "-" if processes == 1 else "--"
            axis.plot(*points, style, marker="o", label=f"{patients:,} patients, {number}")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("events")
        axis.set_ylabel(label)
    axes[0].legend(fontsize="small")
    figure.savefig(RESULTS / "growth.svg")
    pyplot.close(figure)


def show(cells: Sequence[Cell]) -> None:
    """Prints the table."""
    names = ("events", "patients", "processes", "seconds", "events/s", "events/CPU-s", "peak MiB")
    table = Table(box=None)
    for name in names:
        table.add_column(name, justify="right")
    for cell in cells:
        rates = (_rate(cell.events, spent) for spent in (cell.seconds, cell.cpu_seconds))
        sizes = (f"{number:,}" for number in cell[:3])
        table.add_row(*sizes, f"{cell.seconds:.1f}", *rates, f"{cell.peak_mib:,}")
    Console().print(table)


def _rate(events: int, seconds: float) -> str:
    # A shorter run is mostly start-up, which varies.
    return f"{events / seconds:,.0f}" if seconds >= 0.1 else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if anything grows faster than linearly."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = {"events": [1000, 10_000, 100_000, 1_000_000], "patients": [100, 10_000, 1_000_000]}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, help=f"Numbers of {name}.")
    options = parser.parse_args(arguments)
    cells = []
    processes = dict.fromkeys((1, os.cpu_count() or 1))
    for events, patients, number in itertools.product(options.events, options.patients, processes):
        cells.append(Cell.measured(events, patients, number))
        print(f"{cells[-1].label}: {cells[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    show(cells)
    RESULTS.mkdir(exist_ok=True)
    plot(cells)
    report = {"machine": machine(), "cells": [cell._asdict() for cell in cells]}
    (RESULTS / "growth.json").write_text(json.dumps(report, indent=1) + "\n")
    faster = steep(cells)
    for line in faster:
        print(f"Faster than linear: {line}", file=sys.stderr)
    print("Something grows faster than linearly." if faster else "Nothing grows faster than linearly.")
    return 1 if faster else 0


if __name__ == "__main__":
    sys.exit(main())
