"""The events of every benchmark: simulated patients, the same bytes for the same arguments."""

import tempfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson

from local.simulation import Emission, Scenario, simulate
from transforms.times import to_micros

# Fixed, so that equal seeds give equal files whenever they are made.
END = datetime(2026, 6, 1, tzinfo=UTC)

# A simulated patient needs at least this many.
_EVENTS_PER_PATIENT = 20


def events_file(events: int, patients: int, seed: int = 1) -> Path:
    """A file of JSON lines with so many events, created if it does not exist.

    Like the simulated stream it has duplicates, late and bad events, and arrays. It has no event without a
    time, because that would be dated by when it is read. If there are few events per patient, those of one
    simulated patient are spread over several.
    """
    directory = Path(tempfile.gettempdir()) / "rehab-benchmarks"
    directory.mkdir(exist_ok=True)
    path = directory / f"events-{events}-{patients}-{seed}.jsonl"
    if not path.exists():
        simulated = min(patients, max(1, events // _EVENTS_PER_PATIENT))
        part = path.with_suffix(".part")
        with part.open("wb") as lines:
            for emission in simulate(Scenario(events, simulated, seed, to_micros(END))):
                lines.writelines(line + b"\n" for line in _lines(emission, patients // simulated))
        part.rename(path)
    return path


def _lines(emission: Emission, spread: int) -> Iterator[bytes]:
    payload = emission.payload
    if emission.bad:
        if payload:
            yield payload
        return
    content = orjson.loads(payload)
    events = content if isinstance(content, list) else [content]
    if not all("ts" in event or "timestamp" in event for event in events):
        return
    if spread > 1:
        for event in events:
            name = "subject_id" if "subject_id" in event else "patient_id"
            event[name] += f"-{zlib.crc32(event.get('event_id', '').encode()) % spread}"
        payload = orjson.dumps(content)
    yield payload
