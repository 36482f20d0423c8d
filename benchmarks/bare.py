"""The upper limit: this project's rules in a plain loop, without Beam.

It does the same work as the bounded pipeline, from the same input to the same files: validate, drop
duplicates, route by kind, project each patient, write rows and nudges as JSON lines.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transforms.dead_letters import DeadLetter, dead_letter_row
from transforms.deduplication import deduplication_key
from transforms.events import REVIEW, Event
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.advancing import advance
from transforms.projections.ordering import in_periods
from transforms.projections.projector import Output, Projector, RuleSettings
from transforms.projections.quality import Quality
from transforms.projections.work_queue import WorkQueue
from transforms.steps.routing import ROUTES
from transforms.steps.validation import validate
from transforms.times import MICROS

_CHUNK_BYTES = 1024 * 1024
_BATCH_ROWS = 100

_RECEIVES: dict[type[Projector[Any]], set[str]] = {
    Adherence: {*ROUTES["adherence"]},
    Quality: {*ROUTES["quality"]},
    WorkQueue: {*ROUTES["work_queue"], REVIEW},
}


def run(events_file: Path, output_dir: Path, settings: RuleSettings) -> Counter[str]:
    """Runs over the file and writes `<table>.jsonl` and `nudges.jsonl`. Returns the count of each outcome."""
    output_dir.mkdir(parents=True)
    account: Counter[str] = Counter()
    events, letters = _validated(events_file)
    unique = list(_unique(events))
    account["duplicate"] = len(events) - len(unique)
    account["dead_letter"] = len(letters)
    output = Output()
    for projector in (Adherence(settings), Quality(settings), WorkQueue(settings)):
        received = (
            event for event in [*unique, *output.review_items] if event.kind in _RECEIVES[type(projector)]
        )
        if isinstance(projector, WorkQueue):
            output.review_items = []
        _project(projector, received, output, account)
    now_us = int(time.time() * MICROS)
    rows = [*output.rows, *(("dead_letters", dead_letter_row(letter, now_us, "bare")) for letter in letters)]
    bodies: dict[str, list[bytes]] = {"nudges": [nudge.body for nudge in output.nudges]}
    for table, row in rows:
        bodies.setdefault(table, []).append(row.body)
    for name, lines in bodies.items():
        _write(output_dir / f"{name}.jsonl", lines)
    return account


def _validated(path: Path) -> tuple[list[Event], list[DeadLetter]]:
    events: list[Event] = []
    letters: list[DeadLetter] = []
    with path.open("rb") as file:
        while lines := file.readlines(_CHUNK_BYTES):
            now_us = int(time.time() * MICROS)
            for line in lines:
                for outcome in validate(Message(line.rstrip(b"\r\n"), {}, str(path), "", now_us), now_us):
                    if isinstance(outcome, DeadLetter):
                        letters.append(outcome)
                    else:
                        events.append(outcome)
    return events, letters


def _unique(events: Iterable[Event]) -> Iterator[Event]:
    seen: dict[str, set[str]] = {}
    for event in events:
        names, name = seen.setdefault(event.patient_id, set()), deduplication_key(event)
        if name not in names:
            names.add(name)
            yield event


def _project(
    projector: Projector[Any], events: Iterable[Event], output: Output, account: Counter[str]
) -> None:
    by_patient: dict[str, list[Event]] = {}
    for event in events:
        by_patient.setdefault(event.patient_id, []).append(event)
    for members in by_patient.values():
        state, now_us = projector.state_type(), int(time.time() * MICROS)
        for period in in_periods(members):
            for _, outcome in advance(projector, state, period, now_us, output):
                account[outcome] += 1


def _write(path: Path, bodies: list[bytes]) -> None:
    with path.open("wb") as file:
        for start in range(0, len(bodies), _BATCH_ROWS):
            file.write(b"\n".join(bodies[start : start + _BATCH_ROWS]) + b"\n")
