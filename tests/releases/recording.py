"""What a running job holds that the next release must be able to take over: `--update` hands it on.

A recording of a release is two files. `graph.json`: the names of the steps, and of each step with state its
input's coder, its states and its timers. `held.json`: what such a job may hold, in the bytes of that release:
states, elements on their way to a step, and what came of them.
"""

import base64
import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from tests.support.strategies import WINDOW_END, random_arrivals
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.projector import Projector, RuleSettings
from transforms.projections.quality import Quality
from transforms.projections.work_queue import WorkQueue
from transforms.rows import Row, pack_row
from transforms.steps.chunks import EventChunk
from transforms.steps.gathering import PackByKey, by_patient
from transforms.steps.outputs import REVIEW_ITEMS
from transforms.steps.routing import ROUTES
from transforms.steps.streaming import StreamingProjectFn
from transforms.times import HOUR_US, to_micros

RELEASES = Path(__file__).parent
ROOT = RELEASES.parents[1]

PROJECTORS: dict[str, tuple[type[Projector[Any]], tuple[str, ...]]] = {
    "Adherence/Project/ParDo(Project)": (Adherence, ROUTES["adherence"]),
    "Quality/Project/ParDo(Project)": (Quality, ROUTES["quality"]),
    "Work queue/Project/ParDo(Project)": (WorkQueue, ROUTES["work_queue"]),
}
BATCHES = tuple(
    f"Write {table}/Batch/Group/ParDo(_GroupIntoBatchesDoFn)"
    for table in ("adherence", "consents", "quality", "work_queue", "dead_letters")
)
# (shard, row), with what a coder might stumble over.
ROWS = [
    (0, Row('["p","2026-11-16"]', 2**53 + 1, 1_800_000_000_000_000, b'{"visible":true}')),
    (2**31, Row("é\x00", -1, 0, b"\xff\x00")),
]
NOW_US = to_micros(WINDOW_END) + HOUR_US
# So much of each patient's history is in the state; the rest is on its way.
_HISTORY = 0.8
# So many of the events in the state are on their way once more.
_SEEN_AGAIN = 20


def this_version() -> str:
    """The version that the project states."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(content["project"]["version"])


def recorded_versions() -> list[str]:
    """Every recorded version, the newest last."""
    versions = [path.name for path in RELEASES.iterdir() if path.is_dir() and path.name[0].isdecimal()]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def read(version: str, name: str) -> Any:
    """The content of a recording's file."""
    return json.loads((RELEASES / version / name).read_text(encoding="utf-8"))


# --- The graph


def graph_of(job: Any) -> dict[str, Any]:
    """Names, and what holds state, of a Dataflow job."""
    components = job.proto_pipeline.components
    steps = [t.unique_name for t in components.transforms.values() if not t.subtransforms]
    return {
        "steps": sorted(steps),
        "stateful": dict(sorted(_stateful(components))),
    }


def coder_of(job: Any, step: str) -> Any:
    """The coder of a step's input."""
    components = job.proto_pipeline.components
    (transform,) = [t for t in components.transforms.values() if t.unique_name == step]
    (collection,) = transform.inputs.values()
    return PipelineContext(components).coders.get_by_id(components.pcollections[collection].coder_id)


def _stateful(components: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    coders = PipelineContext(components).coders
    for transform in components.transforms.values():
        if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
            continue
        payload = protos.ParDoPayload.FromString(transform.spec.payload)
        if not payload.state_specs:
            continue
        (collection,) = transform.inputs.values()
        yield (
            transform.unique_name,
            {
                "input": repr(coders.get_by_id(components.pcollections[collection].coder_id)),
                "states": {name: _state(spec, coders) for name, spec in sorted(payload.state_specs.items())},
                "timers": {
                    name: protos.TimeDomain.Enum.Name(spec.time_domain)
                    for name, spec in sorted(payload.timer_family_specs.items())
                },
            },
        )


def _state(spec: Any, coders: Any) -> str:
    kind = spec.WhichOneof("spec")
    (coder_id,) = [
        value for field, value in getattr(spec, kind).ListFields() if field.name.endswith("coder_id")
    ]
    return f"{kind.removesuffix('_spec')} of {coders.get_by_id(coder_id)!r}"


# --- What a job holds


class Cell:
    """A state cell that is kept in memory, in place of the runner's."""

    def __init__(self, value: bytes | None = None) -> None:
        self.value = value

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def clear(self) -> None:
        self.value = None


class Outcome(NamedTuple):
    """What a step gives for an element, by the output's name."""

    outputs: list[tuple[str, Any]]
    state: bytes | None


def _clock() -> float:
    return NOW_US / 1_000_000


def run_step(step: str, element: Any, state: bytes | None) -> Outcome:
    """Has a step with state process an element."""
    cell = Cell(state)
    project = StreamingProjectFn(
        PROJECTORS[step][0](RuleSettings()), bounded=True, rebuild=None, known_patients=dict, clock=_clock
    )
    project.setup()
    told = [(output.tag, output.value) for output in project.process(element, cell, None, None)]
    return Outcome(told, cell.value)


def rows_of(outcome: Outcome) -> list[Any]:
    """Table and columns of each row among a step's outputs, by table and key."""
    rows = sorted((table, row.key, row.body) for table, row in outcome.outputs if isinstance(row, Row))
    return [[table, json.loads(body)] for table, _, body in rows]


def gathered(events: Iterable[Event]) -> dict[str, Any]:
    """The elements that events make on their way to a step with state, by patient."""
    gather = PackByKey(by_patient)
    gather.start_bundle()
    gather.process(EventChunk(events), MAX_TIMESTAMP)
    elements = [windowed.value for windowed in gather.finish_bundle()]
    return {element[0]: element for element in elements}


def held_by(job: Any) -> dict[str, Any]:
    """What a job of this code holds after some patients' four weeks, on every step that has state."""
    events = _events()
    held: dict[str, Any] = {}
    reviews: list[Event] = []
    for step in PROJECTORS:
        held[step] = list(_projections(job, step, [*events, *reviews], reviews))
    for step in BATCHES:
        coder = coder_of(job, step)
        held[step] = [
            {
                "on_its_way": _text(coder.encode((shard, pack_row(row)))),
                "row": [shard, *row[:3], _text(row.body)],
            }
            for shard, row in ROWS
        ]
    return held


def _events() -> list[Event]:
    arrivals = random_arrivals(Random(41), consents="harmless", duplicates=False)
    return [
        parse_event(
            a.envelope, Message(json.dumps(a.envelope).encode(), {"k": "v"}, "s", "m", a.publish_us), NOW_US
        )
        for a in arrivals
    ]


def _projections(job: Any, step: str, events: list[Event], reviews: list[Event]) -> Iterator[dict[str, Any]]:
    kinds, coder = PROJECTORS[step][1], coder_of(job, step)
    own = sorted((e for e in events if e.kind in kinds or e in reviews), key=lambda e: (e.ts_us, e.event_id))
    for patient in sorted({event.patient_id for event in own}):
        mine = [event for event in own if event.patient_id == patient]
        split = int(len(mine) * _HISTORY)
        (history,) = gathered(mine[:split]).values()
        (coming,) = gathered(mine[split:]).values()
        (seen,) = gathered([event for event in mine[:split] if event not in reviews][-_SEEN_AGAIN:]).values()
        before = run_step(step, history, None)
        after = run_step(step, coming, before.state)
        reviews += [event for tag, chunk in before.outputs if tag == REVIEW_ITEMS for event in chunk]
        yield {
            "state": _text(before.state),
            "on_its_way": _text(coder.encode(coming)),
            "rows": rows_of(after),
            "seen": _text(coder.encode(seen)),
        }


def _text(encoded: bytes | None) -> str:
    return base64.b64encode(encoded or b"").decode()
