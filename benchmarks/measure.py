"""One measurement in its own process: `python -m benchmarks.measure WAY EVENTS_FILE WORKERS`.

Prints a JSON object: seconds and CPU seconds of the run and of a start-up (a run over a single event), peak
memory, the count of each outcome, and digests of the results.
"""

import contextlib
import hashlib
import json
import logging
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from apache_beam.runners.runner import PipelineResult

from pipeline.reporting.metrics_file import snapshot
from transforms.projections.projector import RuleSettings

_KEYS = {
    "adherence": ("patient_id", "week_start"),
    "consents": ("patient_id",),
    "quality": ("patient_id", "exercise_id"),
    "work_queue": ("patient_id", "item_id"),
    "dead_letters": ("dead_letter_id",),
}
# Columns that differ from run to run, or with the order of arrival.
_INCIDENTAL = {
    *("version", "updated_at", "source_event_id"),
    *("failed_at", "publish_time", "subscription", "message_id", "attributes", "job_name"),
}
_OUTCOMES = ("processed", "duplicate", "withheld", "too_late", "dead_letter")


class Spent(NamedTuple):
    """Wall-clock and CPU seconds, including those of child processes that have ended."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def so_far(cls) -> "Spent":
        """Since this process began."""
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages))

    def since(self, before: "Spent") -> "Spent":
        """The difference."""
        return Spent(self.seconds - before.seconds, self.cpu_seconds - before.cpu_seconds)


Lines = dict[str, list[bytes]]
# Runs over a file. Returns the output lines by table (as a function), and the count of each outcome.
Way = Callable[[Path, Path], tuple[Callable[[], Lines], Counter[str]]]


def _bare(events_file: Path, output: Path) -> tuple[Callable[[], Lines], Counter[str]]:
    from benchmarks import bare

    account = bare.run(events_file, output, RuleSettings(nudge_max_age_hours=0))
    return lambda: _lines(output), account


def _bounded(workers: int) -> Way:
    def run(events_file: Path, output: Path) -> tuple[Callable[[], Lines], Counter[str]]:
        from pipeline.main import launch
        from pipeline.options import parse_options

        arguments = [f"--input_files={events_file}", f"--output_dir={output}", "--nudge_max_age_hours=0"]
        arguments.append(f"--direct_num_workers={workers}")
        if workers > 1:
            arguments.append("--direct_running_mode=multi_processing")
        result = launch(parse_options(arguments))
        result.wait_until_finish()
        return lambda: _lines(output), account_of(result)

    return run


def _streaming(naive: bool) -> Way:
    def run(_events_file: Path, _output: Path) -> tuple[Callable[[], Lines], Counter[str]]:
        from benchmarks import streaming_shape

        return streaming_shape.written, account_of(streaming_shape.run(naive))

    return run


def account_of(result: PipelineResult) -> Counter[str]:
    """The count of each outcome."""
    account = Counter[str]()
    for name, number in snapshot(result)["counters"].items():
        outcome = name.removeprefix("rehab_tracking.broadway.event.").partition(".")[0]
        if outcome in _OUTCOMES:
            account[outcome] += number
    return account


def _lines(output: Path) -> Lines:
    names = ("nudges", *_KEYS)
    return {
        name: [line for file in output.glob(f"{name}*.jsonl") for line in file.read_bytes().splitlines()]
        for name in names
    }


def digest(lines: Lines) -> dict[str, str]:
    """Of each table's newest rows, without what differs from run to run, and of the nudges."""
    found = {}
    for table, key in _KEYS.items():
        newest: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in map(orjson.loads, lines.get(table, [])):
            name = tuple(row[column] for column in key)
            if row.get("version", 0) >= newest.get(name, {}).get("version", 0):
                newest[name] = row
        found[table] = _digest(
            {column: row[column] for column in row if column not in _INCIDENTAL} for row in newest.values()
        )
    found["nudges"] = _digest(orjson.loads(nudge)["nudge_id"] for nudge in lines.get("nudges", []))
    return found


def _digest(values: Iterable[Any]) -> str:
    texts = sorted(orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for value in values)
    return f"{len(texts)} {hashlib.blake2b(b' '.join(texts), digest_size=8).hexdigest()}"


def measure(way: Way, prepare: Callable[[Path], None], events_file: Path, workers: int) -> dict[str, Any]:
    """Measures one run, and before it a start-up: the second run over a single event.

    Peak memory is that of this process plus, for each worker process, that of the largest.
    """
    with tempfile.TemporaryDirectory() as directory:
        single = Path(directory, "single.jsonl")
        with events_file.open("rb") as lines:
            single.write_bytes(next(line for line in lines if line.startswith(b'{"event_id"')))
        prepare(single)
        for number in range(2):
            before = Spent.so_far()
            way(single, Path(directory, f"single-{number}"))
        start = Spent.so_far().since(before)
        prepare(events_file)
        began = Spent.so_far()
        written, account = way(events_file, Path(directory, "out"))
        ended = Spent.so_far()
        peak, largest_child = (
            resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        if workers > 1:
            peak += workers * largest_child
        return {
            "start": start._asdict(),
            "run": ended.since(began)._asdict(),
            "peak_mib": round(peak / 1024),
            "account": account,
            "results": digest(written()),
        }


def way_for(name: str, workers: int) -> Way:
    """The way called `name`: bare, bounded, streaming or naive."""
    ways = {
        "bare": _bare,
        "bounded": _bounded(workers),
        "streaming": _streaming(naive=False),
        "naive": _streaming(naive=True),
    }
    return ways[name]


def prepare_for(name: str) -> Callable[[Path], None]:
    """What prepares an events file before the way is measured."""
    if name in ("streaming", "naive"):
        from benchmarks.streaming_shape import load

        return load
    return lambda _events_file: None


def main(arguments: list[str]) -> None:
    """Runs the measurement."""
    name, events_file, workers = arguments
    logging.disable(logging.WARNING)
    # Results go to standard output alone.
    with contextlib.redirect_stdout(sys.stderr):
        measured = measure(way_for(name, int(workers)), prepare_for(name), Path(events_file), int(workers))
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
