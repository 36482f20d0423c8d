"""The events that every benchmark runs over: simulated patients, the same bytes for the same numbers."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import orjson

from pipeline.simulation import Scenario, simulate
from transforms.times import to_micros

# Fixed, so that equal seeds give equal files whenever they are made.
END = datetime(2026, 6, 1, tzinfo=UTC)


def events_file(events: int, patients: int, seed: int = 1) -> Path:
    """A file of JSON lines with so many events, made unless it is there.

    Duplicates, late events, bad ones and arrays are among them, as in the simulated stream; but no event
    without a time, which would count as new whenever it is read.
    """
    directory = Path(tempfile.gettempdir()) / "rehab-benchmarks"
    directory.mkdir(exist_ok=True)
    path = directory / f"events-{events}-{patients}-{seed}.jsonl"
    if not path.exists():
        part = path.with_suffix(".part")
        with part.open("wb") as lines:
            for emission in simulate(Scenario(events, patients, seed, to_micros(END))):
                if emission.payload and (emission.bad or _has_times(emission.payload)):
                    lines.write(emission.payload + b"\n")
        part.rename(path)
    return path


def _has_times(payload: bytes) -> bool:
    content = orjson.loads(payload)
    events = content if isinstance(content, list) else [content]
    return all("ts" in event or "timestamp" in event for event in events)
