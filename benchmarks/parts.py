"""Where the stream's CPU time goes, by part: `python -m benchmarks.parts EVENTS_FILE`, in its own process.

Prints a JSON object with each part's share of the worker's time, in percent. Building the graph and the
runner's own work are not included.
"""

import json
import logging
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from benchmarks.profile import Stack, profile


class Part(NamedTuple):
    """A part of the work, the functions that do it, and why it remains."""

    name: str
    functions: re.Pattern[str]
    why: str


# A stack belongs to the first part that matches one of its functions.
PARTS = tuple(
    Part(name, re.compile(f"^({functions})", re.MULTILINE), why)
    for name, functions, why in (
        (
            "output",
            r"transforms/(steps/batching|(steps/)?dead_letters)\.py"
            r"|apache_beam/transforms/util\.py .*_GroupIntoBatches"
            r"|apache_beam/io/gcp/pubsub\.py|pipeline/sinks/"
            r"|benchmarks/streaming_shape\.py _(Write|Publish)",
            "a row waits in state until its batch is full, and is encoded; a nudge becomes a message",
        ),
        (
            "timers",
            r"apache_beam/runners/worker/bundle_processor\.py (OutputTimer|FnApiUserStateContext.get_timer)"
            r"|.* .*wake_times_us",
            "a patient's wake-up is set through Beam's own Python code",
        ),
        (
            "state: read, written",
            r"apache_beam/runners/worker/bundle_processor\.py (.*State\b|.*RuntimeState|FnApiUserState)"
            r"|apache_beam/runners/worker/sdk_worker\.py .*StateHandler",
            "each key of a bundle costs a request to read and one to write, per step",
        ),
        (
            "state: decoded, encoded",
            r"transforms/(projections/.* (Patient|Adherence|Quality|WorkQueue)State"
            r"|steps/patient_record\.py PatientRecord)"
            r".*\.(decode|encode|to_stored|restore|read|write)\b",
            "a patient's 28 days are one value, however little of it an event concerns",
        ),
        (
            "rules: projections",
            r"transforms/(projections/.*|policy/.*|rows)\.py",
            "the rules themselves, once per patient and bundle; in the plain loop once per patient",
        ),
        (
            "rules: validation",
            r"transforms/(steps/validation|decoding|events)\.py",
            "as in the plain loop",
        ),
        (
            "rules: deduplication",
            r"transforms/deduplication\.py"
            r"|transforms/steps/(patient_record\.py PatientRecord\.admitting|outputs\.py without_dup)",
            "each id is hashed and looked up in each projection that receives its event",
        ),
        (
            "events: packed, encoded",
            r"transforms/steps/(coders|chunks)\.py",
            "an event is encoded and decoded each time it is sent to the worker that has its key",
        ),
        (
            "this project's steps",
            r"(transforms|pipeline)/",
            "messages are decoded, events gathered by key, outputs tagged and counted",
        ),
        (
            "Beam's steps and harness",
            "",
            "each element (several per event) is decoded, handed from step to step and encoded",
        ),
    )
)


def shares(stacks: Counter[Stack]) -> dict[str, float]:
    """Each part's share of the worker's samples, in percent."""
    counts = Counter[str]()
    for stack, number in stacks.items():
        text = "\n".join(map(str, stack))
        if "SdkWorker.process_bundle" in text:
            # Cuts off the worker's callers, among which is the benchmark's own code.
            within = text.partition("\napache_beam/runners/worker/sdk_worker.py SdkWorker.process_bundle")[0]
            counts[next(part.name for part in PARTS if part.functions.search(within))] += number
    return {part.name: round(100 * counts[part.name] / counts.total(), 1) for part in PARTS}


def main(arguments: list[str]) -> None:
    """Runs the measurement."""
    logging.disable(logging.WARNING)
    print(json.dumps(shares(profile("streaming", Path(arguments[0])))))


if __name__ == "__main__":
    main(sys.argv[1:])
