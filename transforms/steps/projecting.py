"""The stateful step that runs a projector: a patient's events in, rows, nudges and reviews out."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from transforms.dead_letters import PROJECTION_FAILED, DeadLetter, failed_in_projection
from transforms.deduplication import REMEMBERED_SECONDS, SeenIds, name_of
from transforms.events import REVIEW, Event, ReviewFact
from transforms.projections.projector import (
    PROCESSED,
    Cause,
    Memory,
    Output,
    PatientState,
    Projector,
    consents_first,
    in_periods,
)
from transforms.rows import Row
from transforms.steps.chunks import EventChunk, NudgeChunk
from transforms.steps.coders import unpack
from transforms.steps.gathering import Gathered, InShards, by_patient
from transforms.steps.metering import Meter
from transforms.steps.rebuilding import Rebuild, progress
from transforms.steps.tagging import tagged
from transforms.steps.telemetry import POLICY, count
from transforms.steps.timers import set_without_hold
from transforms.steps.validation import DEAD_LETTERS
from transforms.times import MICROS

_LOGGER = logging.getLogger(__name__)

NUDGES = "nudges"
REVIEWS = "reviews"

# Many times what four weeks of one patient make. What Dataflow cannot commit (180 MB with all else) would
# fail again and again, and stop the stream.
_MOST_STATE_BYTES = 16 * 1024 * 1024
# Of a patient, so that replays count: many times what a day of exercise makes.
_REMEMBERED_FAILURES = 2**12


class StateTooLargeError(Exception):
    """A patient's state has no room for an event."""


class Projection(beam.PTransform[Any, Any]):
    """(PCollection of EventChunk, …) → outputs named after the tables, NUDGES, REVIEWS, DEAD_LETTERS."""

    def __init__(
        self,
        projector: Projector[Any],
        bounded: bool,
        rebuild: Rebuild | None = None,
        memories: Callable[[], Mapping[str, Memory]] = dict,
        clock: Callable[[], float] = time.time,
        shards: int = 1,
        meter: Meter | None = None,
    ) -> None:
        """A `bounded` run ends the input, not the treatment: it sets no timers, and moves patients in shards.

        `memories` gives, by patient, what is known of those without state; it is asked once a process or so.
        `meter` is told the progress of a bounded run.
        """
        super().__init__()
        self._projector = projector
        self._bounded = bounded
        self._rebuild = rebuild
        self._memories = memories
        self._clock = clock
        self._shards = shards
        self._meter = meter

    def expand(self, events: Any) -> Any:
        rows = dict.fromkeys(self._projector.tables, Row)
        outputs = {NUDGES: NudgeChunk, REVIEWS: EventChunk, DEAD_LETTERS: DeadLetter} | rows
        # What Beam does not know to end would be grouped at the end of time.
        if self._bounded and all(each.is_bounded for each in events):
            gathered = events | "Gather by patient" >> Gathered(InShards(self._shards), int, self._meter)
            histories = ProjectHistories(self._projector, self._clock, self._meter)
            return gathered | "Group" >> beam.GroupByKey() | "Project" >> tagged(histories, outputs)
        gathered = events | "Gather by patient" >> Gathered(by_patient, str)
        project = Project(self._projector, self._bounded, self._rebuild, self._memories, self._clock)
        return gathered | "Project" >> tagged(project, outputs)


class Project(beam.DoFn):
    """(patient, packed events) → rows on the outputs of their tables, NUDGES, REVIEWS, DEAD_LETTERS."""

    STATE = ReadModifyWriteStateSpec("state", BytesCoder())
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)
    # In publish time: due when every message published before a rebuild began has been read.
    CATCH_UP = TimerSpec("catch_up", TimeDomain.WATERMARK)

    def __init__(
        self,
        projector: Projector[Any],
        bounded: bool,
        rebuild: Rebuild | None,
        memories: Callable[[], Mapping[str, Memory]],
        clock: Callable[[], float],
    ) -> None:
        """As `Projection`."""
        self._projector = projector
        self._bounded = bounded
        self._rebuild = rebuild
        self._memories = memories
        self._clock = clock

    def setup(self) -> None:
        self._known = self._memories()

    def process(
        self,
        element: tuple[str, bytes],
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
        catch_up: Any = beam.DoFn.TimerParam(CATCH_UP),
    ) -> list[Any]:
        step = self._step(element[0], cell, wake_up, catch_up)
        kept = self._kept(step)
        events = _new_ones(self._projector, unpack(element[1]), kept.admitting(step.now_us))
        if not events:
            return []
        if len(events) > 1:
            events.sort(key=consents_first)
        before = kept.state
        try:
            return self._advance(step, kept, events)
        except Exception:
            # One event must not take its neighbours down with it, nor stop the stream.
            kept.state = before
            alone = (self._advance_alone(step, kept, event, events) for event in events)
            return [output for outcome in alone for output in outcome]

    def _step(self, patient_id: str, cell: Any, wake_up: Any, catch_up: Any = None) -> "_Step":
        return _Step(patient_id, int(self._clock() * MICROS), cell, wake_up, catch_up)

    def _kept(self, step: "_Step") -> "_Kept":
        kept = _Kept.read(step.cell)
        if not self._bounded:
            kept.seen.forget(step.now_us // MICROS)
        return kept

    def _advance_alone(self, step: "_Step", kept: "_Kept", event: Event, at_hand: list[Event]) -> list[Any]:
        before = kept.state
        try:
            return self._advance(step, kept, [event], at_hand)
        except Exception as error:
            kept.state = before
            if event.kind != REVIEW:
                kept.failed.append(name_of(event))
                del kept.failed[:-_REMEMBERED_FAILURES]
            if not self._bounded:
                kept.wake_at(kept.due_us or _forgotten_us(step, kept), step)
            kept.write(step.cell)
            return [_failed(self._projector, event, error)]

    def _advance(
        self, step: "_Step", kept: "_Kept", events: list[Event], at_hand: list[Event] | None = None
    ) -> list[Any]:
        """Takes events in; `at_hand` are they and those that came with them, if there are more."""
        advance, state = _Advance(), self._state(step.patient_id, kept.state)
        self._projector.expect(state, at_hand or events)
        cause = advance.take(self._projector, state, step.patient_id, events, step.now_us)
        self._project(state, cause, step.now_us, advance.output)
        self._keep(step, kept, state)
        if kept.state and len(kept.state) > _MOST_STATE_BYTES and not _only_consents(events):
            raise StateTooLargeError
        if state.held_until_us:
            step.catch_up.set(Timestamp(micros=state.held_until_us))
        return advance.outputs()

    def _state(self, patient_id: str, encoded: bytes | None) -> PatientState:
        state: PatientState = self._projector.state_type.decode(encoded)
        if not encoded:
            if memory := self._known.get(patient_id):
                state.recall(memory)
            if self._rebuild:
                state.held_until_us = self._rebuild.until_us
                count("rebuild.held")
        return state

    def _project(self, state: PatientState, cause: Cause, now_us: int, output: Output) -> None:
        if state.held_until_us:
            self._projector.project_at_once(state, cause, now_us, output)
            if self._rebuild:
                progress.note(self._rebuild, cause.publish_us)
        else:
            self._projector.project(state, cause, now_us, output)

    @on_timer(WAKE)
    def wake(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> list[Any]:
        """Projects again because time has passed."""
        step = self._step(patient_id, cell, wake_up)
        kept = self._kept(step)
        kept.wake_us = 0
        if step.now_us < kept.due_us:
            # Events have come since it was set.
            kept.wake_at(kept.due_us, step)
            kept.write(cell)
            return []
        return self._pass_time(step, kept, self._projector.wake)

    @on_timer(CATCH_UP)
    def catch_up(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> list[Any]:
        """Projects what has been held back, now that it is complete."""
        progress.finish()
        step = self._step(patient_id, cell, wake_up)
        return self._pass_time(step, self._kept(step), _released)

    def _pass_time(
        self, step: "_Step", kept: "_Kept", change: Callable[[Any, int], PatientState]
    ) -> list[Any]:
        output = Output()
        try:
            state = change(self._projector.state_type.decode(kept.state), step.now_us)
            self._project(state, Cause(step.patient_id, None, step.now_us), step.now_us, output)
        except Exception as error:
            # One patient's state must not stop the stream; the patient's next event brings this up again.
            _LOGGER.error("%s failed at a timer (%s).", self._projector.tables[0], type(error).__name__)
            return []
        self._keep(step, kept, state)
        return _Advance(output).outputs()

    def _keep(self, step: "_Step", kept: "_Kept", state: PatientState) -> None:
        kept.state = None if state.is_spent(step.now_us) else state.encode()
        if not self._bounded:
            kept.wake_at(self._due_us(step, state) or _forgotten_us(step, kept), step)
        kept.write(step.cell)

    def _due_us(self, step: "_Step", state: PatientState) -> int:
        """When time alone may next change something, 0 if never."""
        now_us, due_us = step.now_us, 0
        for time_us in self._projector.wake_times_us(state, now_us):
            if time_us and time_us > now_us and (not due_us or time_us < due_us):
                due_us = time_us
        return due_us


class _Step(NamedTuple):
    """What happens now to a patient, and where the runner keeps what is known of the patient."""

    patient_id: str
    now_us: int
    cell: Any
    wake_up: Any
    catch_up: Any


class _Kept(msgspec.Struct, array_like=True):
    """What a cell holds of a patient: the projector's state as encoded, the events that have been seen.

    `failed` are those of them that failed here, `due_us` is when time alone may next change something, and
    `wake_us` what the timer is set to, which may be earlier; 0 is never.
    """

    state: bytes | None
    seen: SeenIds
    failed: list[str]
    due_us: int = 0
    wake_us: int = 0

    @classmethod
    def read(cls, cell: Any) -> "_Kept":
        encoded = cell.read()
        if not encoded:
            return cls(None, SeenIds(), [])
        if encoded[0] > _KEPT_VERSION:
            raise ValueError(f"This release cannot read a patient's state of version {encoded[0]}")
        return _decode_kept(memoryview(encoded)[1:])

    def write(self, cell: Any) -> None:
        if self.state or self.seen.hours or self.failed:
            cell.write(bytes((_KEPT_VERSION,)) + msgspec.msgpack.encode(self))
        else:
            cell.clear()

    def wake_at(self, due_us: int, step: _Step) -> None:
        """Has the step woken when something is due, or before."""
        self.due_us = due_us
        # To put a timer off at every event costs more than to look in vain, once, whether something is due.
        if due_us and not step.now_us < self.wake_us <= due_us:
            self.wake_us = due_us
            set_without_hold(step.wake_up, due_us)

    def admitting(self, now_us: int) -> Callable[[Event], bool]:
        """Whether an event is to be projected: it has not been seen, or failed and is replayed."""
        now, is_new, failed = now_us // MICROS, self.seen.is_new, self.failed

        def admits(event: Event) -> bool:
            name = name_of(event)
            new = is_new(name, now)
            if name in failed and (new or failed_in_projection(event.message)):
                failed.remove(name)
                return True
            return new

        return admits


def _only_consents(events: list[Event]) -> bool:
    """For a patient's will there is always room."""
    return all(event.kind == "consent" for event in events)


def _forgotten_us(step: _Step, kept: _Kept) -> int:
    """When the ids of a patient of whom nothing else is to come are too old, 0 if there are none."""
    return step.now_us + 2 * REMEMBERED_SECONDS * MICROS if kept.seen.hours else 0


_KEPT_VERSION = 1
_decode_kept = msgspec.msgpack.Decoder(_Kept).decode


def _new_ones(
    projector: Projector[Any], events: Iterable[Event], admits: Callable[[Event], bool]
) -> list[Event]:
    """Those that are to be projected; the others are counted as duplicates."""
    new, duplicates = [], 0
    for event in events:
        # What other projections find comes again when it has changed.
        if event.kind == REVIEW or admits(event):
            new.append(event)
        elif event.kind in projector.counted_kinds:
            duplicates += 1
    if duplicates:
        count("event.duplicate", duplicates)
    return new


def _released(state: PatientState, _now_us: int) -> PatientState:
    if state.held_until_us:
        count("rebuild.released")
    state.release()
    return state


class ProjectHistories(beam.DoFn):
    """(shard, all packed events of its patients) → as `Project`: for a bounded run, without state and timers.

    In shards, because a patient by itself has few events at a time: moving and compressing would cost more.
    """

    def __init__(
        self, projector: Projector[Any], clock: Callable[[], float], meter: Meter | None = None
    ) -> None:
        """As `Projection`."""
        self._projector = projector
        self._clock = clock
        self._meter = meter

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        histories: dict[str, list[Event]] = defaultdict(list)
        for packed in element[1]:
            for event in unpack(packed):
                histories[event.patient_id].append(event)
        for patient_id, history in histories.items():
            if events := _new_ones(self._projector, _newest_reviews(history), _FirstOfEach()):
                yield from self._project(patient_id, events)
        if self._meter:
            self._meter.projected(sum(map(len, histories.values())))

    def _project(self, patient_id: str, events: list[Event]) -> Iterable[Any]:
        now_us = int(self._clock() * MICROS)
        try:
            advance, state = _Advance(), self._projector.state_type()
            for period in in_periods(events):
                self._advance(advance, state, patient_id, period, now_us)
        except Exception:
            # One event must not take its neighbours down with it.
            return self._each_alone(patient_id, events, now_us)
        return advance.outputs()

    def _advance(
        self, advance: "_Advance", state: PatientState, patient_id: str, events: list[Event], now_us: int
    ) -> None:
        cause = advance.take(self._projector, state, patient_id, events, now_us)
        self._projector.project(state, cause, now_us, advance.output)

    def _each_alone(self, patient_id: str, events: list[Event], now_us: int) -> Iterator[Any]:
        encoded = None
        for event in (event for period in in_periods(events) for event in period):
            advance, state = _Advance(), self._projector.state_type.decode(encoded)
            try:
                self._advance(advance, state, patient_id, [event], now_us)
            except Exception as error:
                yield _failed(self._projector, event, error)
            else:
                encoded = state.encode()
                yield from advance.outputs()


def _newest_reviews(events: list[Event]) -> list[Event]:
    """Of what other projections found, the last word on each; they are taken in by time, not by revision."""
    newest: dict[str, int] = {}
    for event in events:
        if isinstance(event.fact, ReviewFact):
            known = newest.get(event.fact.nudge_id, 0)
            newest[event.fact.nudge_id] = max(known, event.fact.revision)
    if not newest:
        return events
    return [
        event
        for event in events
        if not isinstance(event.fact, ReviewFact) or event.fact.revision == newest[event.fact.nudge_id]
    ]


class _FirstOfEach:
    """Whether an event is the first of its name, for ever."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, event: Event) -> bool:
        before = len(self._seen)
        self._seen.add(name_of(event))
        return len(self._seen) > before


def _failed(projector: Projector[Any], event: Event, error: Exception) -> Any:
    # The type alone: an exception's text may quote what it stumbled over.
    problem = f"event: {type(error).__name__} in the projection"
    stage = f"Project {projector.tables[0]}"
    letter = DeadLetter(PROJECTION_FAILED, stage, problem, event.message, event.event_id, event.kind)
    return TaggedOutput(DEAD_LETTERS, letter)


class _Advance:
    """What events lead to, counted when it is certain."""

    def __init__(self, output: Output | None = None) -> None:
        self.output = output or Output()
        self._counts: dict[str, int] = {}

    def take(
        self,
        projector: Projector[Any],
        state: PatientState,
        patient_id: str,
        events: list[Event],
        now_us: int,
    ) -> Cause:
        """Takes a patient's events in; gives the cause to project them with, together."""
        apply, counted, counts = projector.apply, projector.counted_kinds, self._counts
        for event in events:
            cause = Cause(patient_id, event.event_id, event.message.publish_us)
            outcome = apply(state, event, cause, now_us, self.output)
            if event.kind in counted:
                name = f"event.processed.{event.kind}" if outcome == PROCESSED else f"event.{outcome}"
                counts[name] = counts.get(name, 0) + 1
        oldest_us = min(event.message.publish_us for event in events)
        return Cause(patient_id, events[-1].event_id, oldest_us)

    def outputs(self) -> list[Any]:
        """Counts everything; gives rows on the outputs of their tables, nudges and reviews on theirs."""
        output, counts = self.output, self._counts
        for name, number in counts.items():
            count(name, number)
        for table, _ in output.rows:
            count(f"row.projected.{table}")
        for nudge in output.nudges:
            count(f"{nudge.attributes['kind']}.generated.{nudge.attributes['type']}", namespace=POLICY)
        outputs: list[Any] = [TaggedOutput(table, row) for table, row in output.rows]
        if output.nudges:
            outputs.append(TaggedOutput(NUDGES, NudgeChunk(output.nudges)))
        if output.reviews:
            outputs.append(TaggedOutput(REVIEWS, EventChunk(output.reviews)))
        return outputs
