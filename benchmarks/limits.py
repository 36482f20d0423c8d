"""How much memory the streaming job takes under a stream's worst cases, and what it loses.

    python -m benchmarks.limits

Each case has its own job and emulators on this machine. Memory is that of the job's process.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchmarks.watched import MIB, job, machine, places
from local.places import Places
from local.simulation import Scenario, simulate
from pipeline.cloud.clients import publisher

_MESSAGE_BYTES = 1024 * 1024


class Case(NamedTuple):
    """What is published, all at once: messages, each with its number of events."""

    name: str
    messages: Callable[[], Iterator[tuple[bytes, int]]]
    dead_letters: int = 0


class Outcome(NamedTuple):
    """`lost` are events without an outcome and rows not written; memory is in bytes."""

    case: str
    events: int
    seconds: float
    memory_before: int
    memory_peak: int
    lost: int
    unexpected_letters: int


def _simulated(events: int, patients: int) -> Iterator[tuple[bytes, int]]:
    scenario = Scenario(events, patients, 1, time.time_ns() // 1000, duplicates=0, late=0, bad=0)
    for emission in simulate(scenario):
        yield emission.payload, emission.events


def _session(patient: int, number: int, ts: datetime, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"session-{patient}-{number}",
        "kind": "exercise_session",
        "ts": ts.isoformat(),
        "subject_id": f"patient-{patient:06d}",
        "body": {"duration_minutes": 20, "overall_quality": 0.8},
        **fields,
    }


def _many_patients(patients: int) -> Iterator[tuple[bytes, int]]:
    now = datetime.now(UTC)
    for patient in range(patients):
        yield orjson.dumps(_session(patient, 0, now)), 1


def _many_sessions(sessions: int) -> Iterator[tuple[bytes, int]]:
    now = datetime.now(UTC)
    for number in range(sessions):
        yield orjson.dumps(_session(0, number, now - number * timedelta(days=27) / sessions)), 1


def _late_flood(events: int) -> Iterator[tuple[bytes, int]]:
    now = datetime.now(UTC)
    patients = 500
    for patient in range(patients):
        yield orjson.dumps(_session(patient, 0, now)), 1
    for number in range(1, events - patients + 1):
        late = now - timedelta(hours=24, seconds=number % 3600)
        yield orjson.dumps(_session(number % patients, number, late)), 1


def _large_messages(count: int) -> Iterator[tuple[bytes, int]]:
    """So many events of 1 MiB, arrays of 1,000 events in 1 MiB, and messages that are a byte longer."""
    now = datetime.now(UTC)
    for number in range(count):
        yield _padded([_session(number, 0, now)]), 1
        yield _padded([_session(number, 1 + index, now) for index in range(1000)]), 1000
        yield _padded([_session(number, 2000, now)]) + b" ", 1


def _padded(events: list[dict[str, Any]]) -> bytes:
    plain = orjson.dumps(events)
    events[0]["filling"] = "x" * (_MESSAGE_BYTES - len(plain) - len(b',"filling":""'))
    payload = orjson.dumps(events)
    assert len(payload) == _MESSAGE_BYTES
    return payload


CASES = (
    Case("100,000 events at once", lambda: _simulated(100_000, 1000)),
    Case("50,000 events of one patient", lambda: _simulated(50_000, 1)),
    Case("50,000 sessions of one patient", lambda: _many_sessions(50_000)),
    Case("200,000 patients", lambda: _many_patients(200_000)),
    Case("messages of 1 MiB", lambda: _large_messages(50), dead_letters=50),
    Case("50,000 events a day late", lambda: _late_flood(50_000)),
)


def measure(case: Case, folder: Path) -> Outcome:
    """Runs one case."""
    with places(folder) as made, job(made, folder) as watched:
        before = watched.holding().memory
        began = time.monotonic()
        events = _publish(case, made, watched.holding)
        lost = watched.until_done(events)
        letters = sum(watched.metrics().dead_letters.values())
        return Outcome(
            case=case.name,
            events=events,
            seconds=time.monotonic() - began,
            memory_before=before,
            memory_peak=watched.peak_memory,
            lost=lost,
            unexpected_letters=letters - case.dead_letters,
        )


def _publish(case: Case, made: Places, look: Callable[[], object]) -> int:
    topics = (made.resources.primary_topic, made.resources.secondary_topic)
    events, futures = 0, []
    for number, (payload, count) in enumerate(case.messages()):
        futures.append(publisher().publish(topics[number % 2], payload))
        events += count
        if number % 1000 == 0:
            look()
    for future in futures:
        future.result(600)
    return events


def line(outcome: Outcome) -> str:
    """A row of the table."""
    return (
        f"{outcome.case:<32} {outcome.events:>8,} {outcome.seconds:>7.0f}"
        f" {outcome.memory_before / MIB:>8.0f} {outcome.memory_peak / MIB:>8.0f}"
        f" {outcome.lost:>6,} {outcome.unexpected_letters:>6,}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--only", default="", help="only the cases whose name has this in it")
    options = parser.parse_args(arguments)
    print(f"On {machine()}; MiB before and at the peak")
    print(f"{'':<32} {'events':>8} {'seconds':>7} {'before':>8} {'peak':>8} {'lost':>6} {'wrong':>6}")
    holds = True
    for case in CASES:
        if options.only not in case.name:
            continue
        with tempfile.TemporaryDirectory(prefix="rehab-limits-") as folder:
            outcome = measure(case, Path(folder))
        print(line(outcome), flush=True)
        holds = holds and not outcome.lost and not outcome.unexpected_letters
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
