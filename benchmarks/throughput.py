"""How many events a second: `python -m benchmarks.throughput --help`.

Measures in turn, each in its own process: the rules in a plain loop (`bare`, the upper limit), the bounded
pipeline on the DirectRunner in one process and on all cores, the graph of the stream in the SDK harness, and
that graph as one would first write it (`naive`). The start-up (a run over a single event) is measured
separately and subtracted. Then it shows where the stream's CPU time goes, and why.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks.parts import PARTS
from benchmarks.workload import events_file

RESULTS = Path(__file__).with_name("results")

Run = dict[str, Any]


# Tables that depend neither on the order of arrival nor on how far back state goes. For the others, a stream
# finds events withheld or too late that the plain loop does not.
_ALIKE_IN_STREAMS = ("consents", "dead_letters")


def measure(way: str, events: Path, workers: int) -> Run:
    """One measurement in a new process."""
    return _in_new_process("benchmarks.measure", way, str(events), str(workers))


def _in_new_process(module: str, *arguments: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=False, capture_output=True, text=True
    )
    if finished.returncode:
        raise RuntimeError(f"{module} {arguments[0]} failed:\n{finished.stderr[-4000:]}")
    printed: dict[str, Any] = json.loads(finished.stdout)
    return printed


def rates(run: Run, events: int) -> tuple[float, float]:
    """Events per second and per CPU-second, without the start-up."""
    spent = [run["run"][name] - run["start"][name] for name in ("seconds", "cpu_seconds")]
    return events / spent[0], events / spent[1]


def summarize(runs: dict[str, list[Run]], events: int) -> dict[str, Any]:
    """The medians of each way's runs, and their ratios to the bare loop's run of the same round."""
    summary: dict[str, Any] = {}
    for way, measured in runs.items():
        per_second, per_cpu_second = zip(*(rates(run, events) for run in measured), strict=True)
        ratios = [
            own / rates(bare, events)[1] for own, bare in zip(per_cpu_second, runs["bare"], strict=True)
        ]
        summary[way] = {
            "events_per_second": round(median(per_second)),
            "events_per_cpu_second": round(median(per_cpu_second)),
            "ratio_to_bare": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "start_seconds": round(median(run["start"]["seconds"] for run in measured), 2),
            "peak_mib": max(run["peak_mib"] for run in measured),
        }
    return summary


def ratio(runs: dict[str, list[Run]], events: int) -> float:
    """The median ratio of the stream's to the naive graph's events per CPU-second, round by round."""
    both = zip(runs["streaming"], runs["naive"], strict=True)
    return median(rates(own, events)[1] / rates(naive, events)[1] for own, naive in both)


def machine() -> dict[str, Any]:
    """The machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    return {"cores": os.cpu_count(), "cpu": model, "python": platform.python_version()}


def differing(runs: dict[str, list[Run]]) -> list[str]:
    """The ways and tables whose newest rows should be those of the bare loop and are not."""
    wanted = runs["bare"][0]["results"]
    return [
        f"{way}: {table}"
        for way, measured in runs.items()
        for table in (_ALIKE_IN_STREAMS if way in ("streaming", "naive") else wanted)
        if any(run["results"][table] != wanted[table] for run in measured)
    ]


def plot(summary: dict[str, Any], title: str, path: Path) -> None:
    """A bar for each way: events per CPU-second."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    bars = axes.barh(list(summary), [way["events_per_cpu_second"] for way in summary.values()])
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("events per CPU-second")
    axes.set_title(title)
    figure.savefig(path)
    pyplot.close(figure)


def show(summary: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table("way", *("events/s", "events/CPU-s", "of bare", "start s", "peak MiB"), box=None)
    for way, of in summary.items():
        numbers = (f"{of[name]:,}" for name in ("events_per_second", "events_per_cpu_second"))
        rest = (f"{of['ratio_to_bare']:.2f}", f"{of['start_seconds']:.1f}", f"{of['peak_mib']:,}")
        table.add_row(way, *numbers, *rest)
    Console().print(table)


def show_parts(parts: dict[str, float]) -> None:
    """Prints where the stream's CPU time goes."""
    table = Table("%", "of the stream's CPU time", "why it remains", box=None)
    for part in sorted(PARTS, key=lambda part: -parts[part.name]):
        table.add_row(f"{parts[part.name]:.1f}", part.name, part.why)
    Console(width=150).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if a way's results are not those of the bare loop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--events", type=int, default=100_000, help="How many events (default 100000).")
    parser.add_argument("--patients", type=int, default=1000, help="How many patients (default 1000).")
    parser.add_argument("--runs", type=int, default=3, help="How often each way is measured (default 3).")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the simulation (default 1).")
    parser.add_argument("--ways", nargs="+", help="Besides the bare loop (default: all).")
    options = parser.parse_args(arguments)
    cores = os.cpu_count() or 1
    ways = {"bounded": 1, f"bounded, {cores} processes": cores, "streaming": 1, "naive": 1}
    ways = {"bare": 1} | {way: n for way, n in ways.items() if way in (options.ways or ways)}
    events = events_file(options.events, options.patients, options.seed)
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for _ in range(options.runs):
        for way, workers in ways.items():
            runs[way].append(measure(way.partition(",")[0], events, workers))
    count = sum(runs["bare"][0]["account"].values())
    summary = summarize(runs, count)
    show(summary)
    title = f"{count:,} events of {options.patients:,} patients, {cores} cores"
    RESULTS.mkdir(exist_ok=True)
    plot(summary, title, RESULTS / "throughput.svg")
    report = {"events": count, "patients": options.patients, "machine": machine(), "ways": summary}
    if {"streaming", "naive"} <= ways.keys():
        report["streaming_to_naive"] = round(ratio(runs, count), 2)
        print(f"Events per CPU-second, streaming to naive: {report['streaming_to_naive']}")
    if "streaming" in ways:
        report["parts"] = _in_new_process("benchmarks.parts", str(events))
        show_parts(report["parts"])
    (RESULTS / "throughput.json").write_text(json.dumps(report, indent=1) + "\n")
    for difference in differing(runs):
        print(f"Not the results of the bare loop: {difference}", file=sys.stderr)
    return 1 if differing(runs) else 0


if __name__ == "__main__":
    sys.exit(main())
