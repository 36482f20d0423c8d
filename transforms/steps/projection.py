"""A projection's part of the graph: gather by patient, then project."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam

from transforms.dead_letters import DeadLetter
from transforms.projections.projector import Projector
from transforms.projections.state import KnownPatient
from transforms.rows import Row
from transforms.steps.bounded import BoundedProjectFn
from transforms.steps.chunks import EventChunk, NudgeChunk
from transforms.steps.gathering import Gather, InShards, by_patient
from transforms.steps.metering import Meter
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.rebuilding import Rebuild
from transforms.steps.streaming import StreamingProjectFn
from transforms.steps.tagging import tagged
from transforms.steps.validation import DEAD_LETTERS


class Projection(beam.PTransform[Any, Any]):
    """(PCollection of EventChunk, …) → outputs named after the tables, NUDGES, REVIEW_ITEMS, DEAD_LETTERS."""

    def __init__(
        self,
        projector: Projector[Any],
        bounded: bool,
        rebuild: Rebuild | None = None,
        known_patients: Callable[[], Mapping[str, KnownPatient]] = dict,
        clock: Callable[[], float] = time.time,
        shards: int = 1,
        meter: Meter | None = None,
    ) -> None:
        """The end of a `bounded` run's input is not the end of treatment: no timer is set.

        A bounded run moves patients in `shards` shards, and reports its progress to `meter`.
        `known_patients` returns what the tables know of patients without state, by patient; each worker
        process calls it about once. `clock` returns the present in seconds since the epoch.
        """
        super().__init__()
        self._projector = projector
        self._bounded = bounded
        self._rebuild = rebuild
        self._memories = known_patients
        self._clock = clock
        self._shards = shards
        self._meter = meter

    def expand(self, events: Any) -> Any:
        rows = dict.fromkeys(self._projector.tables, Row)
        outputs = {NUDGES: NudgeChunk, REVIEW_ITEMS: EventChunk, DEAD_LETTERS: DeadLetter} | rows
        # Beam groups a collection only at the end of time if it cannot tell that it is bounded.
        if self._bounded and all(each.is_bounded for each in events):
            gathered = events | "Gather by patient" >> Gather(InShards(self._shards), int, self._meter)
            bounded = BoundedProjectFn(self._projector, self._clock, self._meter)
            return gathered | "Group" >> beam.GroupByKey() | "Project" >> tagged(bounded, outputs)
        gathered = events | "Gather by patient" >> Gather(by_patient, str)
        streaming = StreamingProjectFn(
            self._projector, self._bounded, self._rebuild, self._memories, self._clock
        )
        return gathered | "Project" >> tagged(streaming, outputs)
