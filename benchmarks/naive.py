"""The graph as one would first write it, with Beam's defaults: the baseline for the stream's own graph.

Rules, sinks and counters are the same. Only this is naive:

- Each message is one element, as Beam reads it.
- A valid event is the pydantic model that validation makes. It travels alone from step to step with Beam's
  default coder, which pickles it. So do nudges, dead letters and messages.
- Each event id is a key, with a flag as its state and a timer that clears it.
- A patient's state is pickled Python objects, read and written once per event and projection.
- Each time, a projection calculates everything that the state holds, not only what the event may have
  changed.

Replays and rebuilds are left out: they cost nothing when nothing fails or is rebuilt.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import BooleanCoder, PickleCoder
from apache_beam.io import PubsubMessage, ReadFromPubSub
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp
from pydantic import TypeAdapter, ValidationError

from pipeline.options import RehabOptions
from pipeline.sinks.nudges import WriteNudges
from pipeline.sinks.tables import WriteTable
from transforms.dead_letters import PROJECTION_FAILED, DeadLetter
from transforms.decoding import decode
from transforms.deduplication import REMEMBERED_SECONDS
from transforms.events import (
    _FACTS,
    EARLIEST_US,
    FUTURE_TOLERANCE_US,
    KINDS,
    Event,
    EventModel,
    content_id,
)
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.projector import PROCESSED, Output, Projector
from transforms.projections.quality import Quality
from transforms.projections.state import ALWAYS, PatientState, Trigger
from transforms.projections.work_queue import WorkQueue
from transforms.rows import Row
from transforms.steps.chunks import NudgeChunk
from transforms.steps.dead_letters import DeadLetterToRow
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.routing import ROUTES
from transforms.steps.tagging import tagged
from transforms.steps.telemetry import POLICY, count
from transforms.steps.validation import DEAD_LETTERS, validate
from transforms.times import MICROS, to_micros

_MODELS: TypeAdapter[Any] = TypeAdapter(EventModel)


@dataclass(frozen=True)
class Valid:
    """A valid event: `model` is the validated model, `message` the message that brought it."""

    event_id: str
    ts_us: int
    model: Any
    message: Message

    @property
    def patient_id(self) -> str:
        """The patient."""
        patient_id: str = self.model.subject_id
        return patient_id

    def event(self) -> Event:
        """The event as the rules read it."""
        model = self.model
        return Event(
            self.event_id,
            model.kind,
            self.ts_us,
            model.subject_id,
            model.exercise_id or "",
            model.meta.site_id if model.meta else None,
            _FACTS[model.kind](self.event_id, self.ts_us, model.body),
            self.message,
        )


def build(pipeline: beam.Pipeline, options: RehabOptions) -> None:
    """Adds every step to the pipeline, as `pipeline.graph.build` does for a stream."""
    settings = options.settings()
    messages = (
        pipeline
        | "Read" >> ReadFromPubSub(subscription=options.primary_subscription, with_attributes=True)
        | "To message" >> beam.Map(_to_message, options.primary_subscription)
    )
    valid = messages | "Validate" >> tagged(
        Validate(), {DEAD_LETTERS: DeadLetter} | dict.fromkeys(KINDS, Valid)
    )
    unique = (
        tuple(valid[kind] for kind in KINDS)
        | "All kinds" >> beam.Flatten().with_output_types(Valid)
        | "By event id" >> beam.Map(_by_event_id).with_output_types(tuple[str, Valid])
        | "Deduplicate" >> tagged(Deduplicate(), dict.fromkeys(KINDS, Valid))
    )
    adherence = _received(unique, "adherence") | "Adherence" >> Projection(Adherence(settings))
    quality = _received(unique, "quality") | "Quality" >> Projection(Quality(settings))
    review_items = (adherence[REVIEW_ITEMS], quality[REVIEW_ITEMS])
    work_queue = (*_received(unique, "work_queue"), *review_items) | "Work queue" >> Projection(
        WorkQueue(settings)
    )
    projections = {"adherence": adherence, "quality": quality, "work_queue": work_queue}
    nudges = {name: projection[NUDGES] for name, projection in projections.items()}
    nudges | "Write nudges" >> WriteNudges(options)
    refused = [
        adherence.adherence | "Write adherence" >> WriteTable("adherence", options),
        adherence.consents | "Write consents" >> WriteTable("consents", options),
        quality.quality | "Write quality" >> WriteTable("quality", options),
        work_queue.work_queue | "Write work_queue" >> WriteTable("work_queue", options),
    ]
    letters = tuple(each[DEAD_LETTERS] for each in (valid, *projections.values()))
    rows = (
        (*letters, *refused)
        | "Dead letters" >> beam.Flatten()
        | "To rows" >> beam.ParDo(DeadLetterToRow(options.job_name)).with_output_types(Row)
    )
    rows | "Write dead_letters" >> WriteTable("dead_letters", options, last_resort=True)


def _to_message(message: PubsubMessage, subscription: str) -> Message:
    published_us = to_micros(message.publish_time)
    return Message(message.data, message.attributes, subscription, message.message_id, published_us)


def _received(unique: Any, route: str) -> tuple[Any, ...]:
    return tuple(unique[kind] for kind in ROUTES[route])


def _by_event_id(event: Valid) -> tuple[str, Valid]:
    return event.event_id, event


def _by_patient(event: Valid | Event) -> tuple[str, Valid | Event]:
    return event.patient_id, event


class Validate(beam.DoFn):
    """Message → Valid on the output named after its kind, or DeadLetter on `DEAD_LETTERS`."""

    def process(self, message: Message) -> Iterator[Any]:
        now_us = int(time.time() * MICROS)
        for decoded in decode(message):
            if isinstance(decoded, DeadLetter):
                yield TaggedOutput(DEAD_LETTERS, decoded)
            elif valid := _valid(*decoded, now_us):
                yield TaggedOutput(valid.model.kind, valid)
            else:
                # Rare, and finding out what is wrong takes longer.
                yield from (TaggedOutput(DEAD_LETTERS, letter) for letter in validate(decoded[0], now_us))


def _valid(message: Message, content: dict[str, Any], now_us: int) -> Valid | None:
    try:
        model = _MODELS.validate_python(content)
    except ValidationError:
        return None
    ts_us = to_micros(model.ts) if model.ts else message.first_publish_us
    stated = (model.body.start_time, model.body.end_time) if model.kind == "exercise_session" else ()
    times = (ts_us, *(to_micros(time) for time in stated if time))
    if not EARLIEST_US <= min(times) <= max(times) <= now_us + FUTURE_TOLERANCE_US:
        return None
    event_id = model.event_id or content_id(content)
    return Valid(event_id, ts_us, model, message)


class Deduplicate(beam.DoFn):
    """(event id, Valid) → the first of each id, on the output named after its kind."""

    SEEN = ReadModifyWriteStateSpec("seen", BooleanCoder())
    CLEAN_UP = TimerSpec("clean_up", TimeDomain.REAL_TIME)

    def process(
        self,
        element: tuple[str, Valid],
        seen: Any = beam.DoFn.StateParam(SEEN),
        clean_up: Any = beam.DoFn.TimerParam(CLEAN_UP),
    ) -> Iterator[Any]:
        event = element[1]
        if seen.read():
            count("event.duplicate")
            return
        seen.write(True)
        clean_up.set(Timestamp.now() + REMEMBERED_SECONDS)
        yield TaggedOutput(event.model.kind, event)

    @on_timer(CLEAN_UP)
    def forget(self, seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
        """Forgets the id."""
        seen.clear()


class Projection(beam.PTransform[Any, Any]):
    """(PCollection of Valid or Event, …) → an output per table, NUDGES, REVIEW_ITEMS, DEAD_LETTERS."""

    def __init__(self, projector: Projector[Any]) -> None:
        super().__init__()
        self._projector = projector

    def expand(self, events: Any) -> Any:
        rows: dict[str, type] = dict.fromkeys(self._projector.tables, Row)
        outputs = {NUDGES: NudgeChunk, REVIEW_ITEMS: Event, DEAD_LETTERS: DeadLetter} | rows
        return (
            events
            | "All" >> beam.Flatten().with_output_types(Any)
            | "By patient" >> beam.Map(_by_patient).with_output_types(tuple[str, Any])
            | "Project" >> tagged(Project(self._projector), outputs)
        )


class Project(beam.DoFn):
    """(patient, Valid or Event) → rows on the outputs of their tables, NUDGES, REVIEW_ITEMS, DEAD_LETTERS.

    The policy's own findings come as Event.
    """

    STATE = ReadModifyWriteStateSpec("state", PickleCoder())
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)

    def __init__(self, projector: Projector[Any]) -> None:
        self._projector = projector

    def process(
        self,
        element: tuple[str, Valid | Event],
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> Iterator[Any]:
        projector, arrived = self._projector, element[1]
        event = arrived.event() if isinstance(arrived, Valid) else arrived
        now_us, output = int(time.time() * MICROS), Output()
        trigger = Trigger(event.patient_id, event.event_id, event.message.publish_us)
        state = cell.read() or projector.state_type()
        try:
            outcome = projector.apply(state, event, trigger, now_us, output)
            state.changed_since = ALWAYS
            projector.project(state, trigger, now_us, output)
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
        self._projector.project(state, Trigger(patient_id, None, now_us), now_us, output)
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
        yield TaggedOutput(NUDGES, NudgeChunk((nudge,)))
    yield from (TaggedOutput(REVIEW_ITEMS, review) for review in output.review_items)
