"""The graph as one would write it first, on Beam's defaults: what the stream's own graph is measured against.

Rules, steps, sinks and counters are the same. What is naive, and all that is:

- A valid event is a pydantic model, and goes from step to step by itself, with Beam's default coder, which
  pickles it. So do nudges, dead letters and messages.
- Each event's id is a key of its own, with a flag for its state and a timer that clears it.
- A patient's state is Python objects, pickled: for each event, in each projection that it concerns, it is
  read and written once.
- Each time, a projection calculates everything that the state holds, not only what the event may have
  changed.

Left out is what costs nothing where nothing fails or is rebuilt: replays and rebuilds.
"""

import time
from collections.abc import Iterator
from typing import Any, cast

import apache_beam as beam
from apache_beam.coders import BooleanCoder, PickleCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp
from pydantic import BaseModel, ConfigDict

from pipeline.options import RehabOptions
from pipeline.sinks import WriteNudges, WriteTable
from pipeline.sources import ReadMessages
from transforms.adherence import Adherence
from transforms.dead_letters import PROJECTION_FAILED, DeadLetter, ToRow
from transforms.deduplication import REMEMBERED_SECONDS
from transforms.events import KINDS, Event, Fact
from transforms.message import Message
from transforms.policy import Nudge
from transforms.projecting import NUDGES, REVIEWS
from transforms.projection import ALWAYS, PROCESSED, Cause, Output, PatientState, Projector
from transforms.quality import Quality
from transforms.routing import ROUTES
from transforms.rows import Row
from transforms.tagging import tagged
from transforms.telemetry import POLICY, count
from transforms.times import MICROS
from transforms.validation import DEAD_LETTERS, validate
from transforms.work_queue import WorkQueue


class EventModel(BaseModel):
    """A valid event, with the fields of `transforms.events.Event`, which the rules read."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    event_id: str
    kind: str
    ts_us: int
    patient_id: str
    exercise_id: str
    site_id: str | None
    fact: Fact
    message: Message

    @classmethod
    def of(cls, event: Event) -> "EventModel":
        """The model; what has been validated is not validated again."""
        return cls.model_construct(**{name: getattr(event, name) for name in cls.model_fields})


def build(pipeline: beam.Pipeline, options: RehabOptions) -> None:
    """Adds every step to the pipeline, as `pipeline.graph.build` does for a stream."""
    settings = options.settings()
    messages = pipeline | "Read" >> ReadMessages(options)
    valid = messages | "Validate" >> tagged(Validate(), {DEAD_LETTERS: DeadLetter} | _events(KINDS))
    unique = (
        tuple(valid[kind] for kind in KINDS)
        | "All kinds" >> beam.Flatten().with_output_types(EventModel)
        | "By event id" >> beam.Map(_by_event_id).with_output_types(tuple[str, EventModel])
        | "Deduplicate" >> tagged(Deduplicate(), _events(KINDS))
    )
    adherence = _received(unique, "adherence") | "Adherence" >> Projection(Adherence(settings))
    quality = _received(unique, "quality") | "Quality" >> Projection(Quality(settings))
    findings = (adherence[REVIEWS], quality[REVIEWS])
    work_queue = (*_received(unique, "work_queue"), *findings) | "Work queue" >> Projection(
        WorkQueue(settings)
    )
    projections = (adherence, quality, work_queue)
    tuple(each[NUDGES] for each in projections) | "Write nudges" >> WriteNudges(options)
    refused = [
        adherence.adherence | "Write adherence" >> WriteTable("adherence", options),
        adherence.consents | "Write consents" >> WriteTable("consents", options),
        quality.quality | "Write quality" >> WriteTable("quality", options),
        work_queue.work_queue | "Write work_queue" >> WriteTable("work_queue", options),
    ]
    letters = tuple(each[DEAD_LETTERS] for each in (valid, *projections))
    rows = (
        (*letters, *refused)
        | "Dead letters" >> beam.Flatten()
        | "To rows" >> beam.ParDo(ToRow(options.job_name)).with_output_types(Row)
    )
    rows | "Write dead_letters" >> WriteTable("dead_letters", options, last_resort=True)


def _events(names: tuple[str, ...]) -> dict[str, type]:
    return dict.fromkeys(names, EventModel)


def _received(unique: Any, route: str) -> tuple[Any, ...]:
    return tuple(unique[kind] for kind in ROUTES[route])


def _by_event_id(event: EventModel) -> tuple[str, EventModel]:
    return event.event_id, event


def _by_patient(event: EventModel) -> tuple[str, EventModel]:
    return event.patient_id, event


class Validate(beam.DoFn):
    """Message → EventModel on the output named after its kind, or DeadLetter on `DEAD_LETTERS`."""

    def process(self, message: Message) -> Iterator[Any]:
        for outcome in validate(message, int(time.time() * MICROS)):
            if isinstance(outcome, DeadLetter):
                yield TaggedOutput(DEAD_LETTERS, outcome)
            else:
                yield TaggedOutput(outcome.kind, EventModel.of(outcome))


class Deduplicate(beam.DoFn):
    """(event id, EventModel) → the first of each id, on the output named after its kind."""

    SEEN = ReadModifyWriteStateSpec("seen", BooleanCoder())
    CLEAN_UP = TimerSpec("clean_up", TimeDomain.REAL_TIME)

    def process(
        self,
        element: tuple[str, EventModel],
        seen: Any = beam.DoFn.StateParam(SEEN),
        clean_up: Any = beam.DoFn.TimerParam(CLEAN_UP),
    ) -> Iterator[Any]:
        event = element[1]
        if seen.read():
            count("event.duplicate")
            return
        seen.write(True)
        clean_up.set(Timestamp.now() + REMEMBERED_SECONDS)
        yield TaggedOutput(event.kind, event)

    @on_timer(CLEAN_UP)
    def forget(self, seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
        """Forgets the id."""
        seen.clear()


class Projection(beam.PTransform[Any, Any]):
    """(PCollection of EventModel, …) → outputs named after the tables, NUDGES, REVIEWS, DEAD_LETTERS."""

    def __init__(self, projector: Projector[Any]) -> None:
        super().__init__()
        self._projector = projector

    def expand(self, events: Any) -> Any:
        rows: dict[str, type] = dict.fromkeys(self._projector.tables, Row)
        outputs = {NUDGES: Nudge, REVIEWS: EventModel, DEAD_LETTERS: DeadLetter} | rows
        return (
            events
            | "All" >> beam.Flatten().with_output_types(EventModel)
            | "By patient" >> beam.Map(_by_patient).with_output_types(tuple[str, EventModel])
            | "Project" >> tagged(Project(self._projector), outputs)
        )


class Project(beam.DoFn):
    """(patient, EventModel) → rows on the outputs of their tables, NUDGES, REVIEWS, DEAD_LETTERS."""

    STATE = ReadModifyWriteStateSpec("state", PickleCoder())
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)

    def __init__(self, projector: Projector[Any]) -> None:
        self._projector = projector

    def process(
        self,
        element: tuple[str, EventModel],
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[Any]:
        event, projector = element[1], self._projector
        now_us, output = int(time.time() * MICROS), Output()
        cause = Cause(event.patient_id, event.event_id, event.message.publish_us)
        state = cell.read() or projector.state_type()
        try:
            outcome = projector.apply(state, cast(Event, event), cause, now_us, output)
            state.changed_since = ALWAYS
            projector.project(state, cause, now_us, output)
        except Exception as error:
            problem = f"event: {type(error).__name__} in the projection"
            letter = DeadLetter(PROJECTION_FAILED, "Project", problem, event.message, event.event_id)
            yield TaggedOutput(DEAD_LETTERS, letter)
            return
        if event.kind in projector.counted_kinds:
            count(f"event.processed.{event.kind}" if outcome == PROCESSED else f"event.{outcome}")
        self._keep(state, now_us, cell, wake_up)
        yield from _tagged(output)

    @on_timer(WAKE)
    def wake(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[Any]:
        """Projects again because time has passed."""
        now_us, output = int(time.time() * MICROS), Output()
        state = self._projector.wake(cell.read(), now_us)
        self._projector.project(state, Cause(patient_id, None, now_us), now_us, output)
        self._keep(state, now_us, cell, wake_up)
        yield from _tagged(output)

    def _keep(self, state: PatientState, now_us: int, cell: Any, wake_up: Any) -> None:
        if state.is_spent(now_us):
            cell.clear()
            return
        cell.write(state)
        times = self._projector.wake_times_us(state, now_us)
        coming = [time_us for time_us in times if time_us and time_us > now_us]
        if coming:
            wake_up.set(Timestamp(micros=min(coming)))


def _tagged(output: Output) -> Iterator[Any]:
    for table, row in output.rows:
        count(f"row.projected.{table}")
        yield TaggedOutput(table, row)
    for nudge in output.nudges:
        count(f"{nudge.attributes['kind']}.generated.{nudge.attributes['type']}", 1, POLICY)
        yield TaggedOutput(NUDGES, nudge)
    for review in output.reviews:
        yield TaggedOutput(REVIEWS, EventModel.of(review))
