"""How cost grows with events and patients: `python -m benchmarks.growth --help`.

Measures the bounded pipeline on the DirectRunner, in one process and on all cores, each run in a process
of its own, without its start-up.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import RESULTS, machine, measure, rates
from benchmarks.workload import events_file


def cell(events: int, patients: int, workers: int) -> dict[str, Any]:
    """One measurement."""
    run = measure("bounded", events_file(events, patients), workers)
    count = sum(run["account"].values())
    per_second, per_cpu_second = rates(run, count)
    return {
        "events": count,
        "patients": patients,
        "workers": workers,
        "events_per_second": round(per_second),
        "events_per_cpu_second": round(per_cpu_second),
        "peak_mib": run["peak_mib"],
    }


def plot(cells: list[dict[str, Any]]) -> None:
    """Events per second and peak memory over the number of events, a line for each number of patients."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = sorted({(of["patients"], of["workers"]) for of in cells})
    for axis, name, label in zip(
        axes, ("events_per_second", "peak_mib"), ("events per second", "peak memory, MiB"), strict=True
    ):
        for patients, workers in lines:
            members = [of for of in cells if (of["patients"], of["workers"]) == (patients, workers)]
            style = "-" if workers == 1 else "--"
            processes = "1 process" if workers == 1 else f"{workers} processes"
            points = [of["events"] for of in members], [of[name] for of in members]
            axis.plot(*points, style, marker="o", label=f"{patients:,} patients, {processes}")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("events")
        axis.set_ylabel(label)
    axes[0].legend(fontsize="small")
    figure.savefig(RESULTS / "growth.svg")
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--patients", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    options = parser.parse_args(arguments)
    table = Table("events", "patients", "processes", "events/s", "events/CPU-s", "peak MiB", box=None)
    cells = []
    for events, patients in itertools.product(options.events, options.patients):
        for workers in dict.fromkeys((1, os.cpu_count() or 1)):
            measured = cell(events, patients, workers)
            cells.append(measured)
            table.add_row(*(f"{value:,}" for value in measured.values()))
            print(*measured.values(), file=sys.stderr, flush=True)
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    plot(cells)
    (RESULTS / "growth.json").write_text(json.dumps({"machine": machine(), "cells": cells}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
