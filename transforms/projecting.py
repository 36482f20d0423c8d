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

from transforms.chunks import EventChunk, element_type
from transforms.coders import SealedEvent, unpack, unpack_sealed
from transforms.dead_letters import PROJECTION_FAILED, DeadLetter, was_admitted
from transforms.events import Event
from transforms.grouping import Gathered, InShards, by_patient
from transforms.policy import Nudge
from transforms.projection import (
    PROCESSED,
    Cause,
    Memory,
    Output,
    PatientState,
    Projector,
    consents_first,
    in_periods,
)
from transforms.rebuilding import Rebuild, progress
from transforms.rows import Row
from transforms.tagging import tagged
from transforms.telemetry import POLICY, count
from transforms.times import HOUR_US, MICROS
from transforms.validation import DEAD_LETTERS

_LOGGER = logging.getLogger(__name__)

# What is to happen so soon happens neither earlier nor later than it is due.
_WAKE_IS_NEAR_US = HOUR_US

# In place of a state's version, which is never 0.
_WITH_FAILED = 0

NUDGES = "nudges"
REVIEWS = "reviews"


class Projection(beam.PTransform[Any, Any]):
    """(PCollection of Event, …) → outputs named after the tables, NUDGES, REVIEWS, DEAD_LETTERS."""

    def __init__(
        self,
        projector: Projector[Any],
        bounded: bool,
        rebuild: Rebuild | None = None,
        memories: Callable[[], Mapping[str, Memory]] = dict,
        clock: Callable[[], float] = time.time,
        shards: int = 1,
    ) -> None:
        """A `bounded` run ends the input, not the treatment: it sets no timers, and moves patients in shards.

        `memories` gives, by patient, what is known of those without state; it is asked once a process or so.
        """
        super().__init__()
        self._projector = projector
        self._bounded = bounded
        self._rebuild = rebuild
        self._memories = memories
        self._clock = clock
        self._shards = shards

    def expand(self, events: Any) -> Any:
        element = element_type(self._bounded)
        outputs = {NUDGES: Nudge, REVIEWS: element, DEAD_LETTERS: DeadLetter} | dict.fromkeys(
            self._projector.tables, Row
        )
        # What Beam does not know to end would be grouped at the end of time.
        if self._bounded and all(each.is_bounded for each in events):
            gathered = events | "Gather by patient" >> Gathered(InShards(by_patient, self._shards), int)
            histories = ProjectHistories(self._projector, self._clock)
            return gathered | "Group" >> beam.GroupByKey() | "Project" >> tagged(histories, outputs)
        # What comes beside events is what other projections have found.
        gathered = events | "Gather by patient" >> Gathered(by_patient, str, with_findings=len(events) > 1)
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
    ) -> Iterator[Any]:
        patient_id, events = element[0], unpack(element[1])
        if any(was_admitted(event.message) for event in events):
            events = self._not_yet_projected(events, cell)
        if not events:
            return
        events = sorted(events, key=consents_first)
        timers = _Timers(wake_up, catch_up)
        try:
            outputs = self._advance(patient_id, events, cell, timers)
        except Exception:
            # One event must not take its neighbours down with it, nor stop the stream.
            alone = (self._advance_alone(patient_id, event, cell, timers) for event in events)
            outputs = [output for outcome in alone for output in outcome]
        yield from outputs

    def _not_yet_projected(self, events: list[Event], cell: Any) -> list[Event]:
        """Without the replays of what failed in another projection, or has been replayed already."""
        kept, due = _Kept.read(cell), []
        for event in events:
            if not was_admitted(event.message):
                due.append(event)
            elif event.event_id in kept.failed:
                kept.failed.remove(event.event_id)
                due.append(event)
            elif event.kind in self._projector.counted_kinds:
                count("event.duplicate")
        kept.write(cell)
        return due

    def _advance_alone(self, patient_id: str, event: Event, cell: Any, timers: "_Timers") -> list[Any]:
        try:
            return self._advance(patient_id, [event], cell, timers)
        except Exception as error:
            kept = _Kept.read(cell)
            kept.failed.append(event.event_id)
            kept.write(cell)
            return [_failed(self._projector, event, error)]

    def _advance(self, patient_id: str, events: list[Event], cell: Any, timers: "_Timers") -> list[Any]:
        now_us = int(self._clock() * MICROS)
        advance, kept = _Advance(), _Kept.read(cell)
        state = self._state(patient_id, kept.state)
        cause = advance.take(self._projector, state, patient_id, events, now_us)
        self._project(state, cause, now_us, advance.output)
        self._keep(state, kept, now_us, cell, timers.wake_up)
        if state.held_until_us:
            timers.catch_up.set(Timestamp(micros=state.held_until_us))
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
        return self._pass_time(patient_id, self._projector.wake, cell, wake_up)

    @on_timer(CATCH_UP)
    def catch_up(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> list[Any]:
        """Projects what has been held back, now that it is complete."""
        progress.finish()
        return self._pass_time(patient_id, _released, cell, wake_up)

    def _pass_time(
        self, patient_id: str, change: Callable[[Any, int], PatientState], cell: Any, wake_up: Any
    ) -> list[Any]:
        now_us = int(self._clock() * MICROS)
        output, kept = Output(), _Kept.read(cell)
        try:
            state = change(self._projector.state_type.decode(kept.state), now_us)
            self._project(state, Cause(patient_id, None, now_us), now_us, output)
        except Exception as error:
            # One patient's state must not stop the stream; the patient's next event brings this up again.
            _LOGGER.error("%s failed at a timer (%s).", self._projector.tables[0], type(error).__name__)
            return []
        self._keep(state, kept, now_us, cell, wake_up)
        return _Advance(output).outputs()

    def _keep(self, state: PatientState, kept: "_Kept", now_us: int, cell: Any, wake_up: Any) -> None:
        if state.is_spent(now_us):
            kept.state = None
        else:
            if not self._bounded:
                self._plan_wake(state, now_us, wake_up)
            kept.state = state.encode()
        kept.write(cell)

    def _plan_wake(self, state: PatientState, now_us: int, wake_up: Any) -> None:
        times = (time_us for time_us in self._projector.wake_times_us(state, now_us) if time_us)
        next_us = min((time_us for time_us in times if time_us > now_us), default=None)
        # To put off a timer costs more than to wake in vain, once in days and not at every event.
        if next_us and not now_us + _WAKE_IS_NEAR_US <= state.wake_us <= next_us:
            state.wake_us = next_us
            wake_up.set(Timestamp(micros=next_us))


class _Timers(NamedTuple):
    """A patient's timers in one step."""

    wake_up: Any
    catch_up: Any


class _Kept(msgspec.Struct, array_like=True):
    """What a cell holds: a patient's state as encoded, and the ids of the events that failed here.

    Of a patient without such ids, as nearly all are, that is the state's bytes alone.
    """

    state: bytes | None
    failed: list[str]

    @classmethod
    def read(cls, cell: Any) -> "_Kept":
        encoded = cell.read()
        if encoded and encoded[0] == _WITH_FAILED:
            return _decode_kept(memoryview(encoded)[1:])
        return cls(encoded or None, [])

    def write(self, cell: Any) -> None:
        if self.failed:
            cell.write(bytes((_WITH_FAILED,)) + msgspec.msgpack.encode(self))
        elif self.state:
            cell.write(self.state)
        else:
            cell.clear()


_decode_kept = msgspec.msgpack.Decoder(_Kept).decode


def _released(state: PatientState, _now_us: int) -> PatientState:
    if state.held_until_us:
        count("rebuild.released")
    state.release()
    return state


class ProjectHistories(beam.DoFn):
    """(shard, all packed events of its patients) → as `Project`: for a bounded run, without state and timers.

    In shards, because a patient by itself has few events at a time: moving and compressing would cost more.
    """

    def __init__(self, projector: Projector[Any], clock: Callable[[], float]) -> None:
        """As `Projection`."""
        self._projector = projector
        self._clock = clock

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        histories: dict[str, list[SealedEvent]] = defaultdict(list)
        for packed in element[1]:
            for event in unpack_sealed(packed):
                histories[event.patient_id].append(event)
        for patient_id, history in histories.items():
            yield from self._project(patient_id, [event.open() for event in history])

    def _project(self, patient_id: str, events: list[Event]) -> Iterable[Any]:
        now_us = int(self._clock() * MICROS)
        try:
            advance, state = _Advance(), self._projector.state_type()
            for period in in_periods(events):
                self._advance(advance, state, patient_id, period, now_us)
        except Exception:
            # One event must not take its neighbours down with it.
            return self._each_alone(patient_id, events, now_us)
        return advance.outputs(bounded=True)

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
                yield from advance.outputs(bounded=True)


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

    def outputs(self, bounded: bool = False) -> list[Any]:
        """Counts everything; gives rows on the outputs of their tables, nudges and reviews on theirs."""
        output, counts = self.output, self._counts
        for name, number in counts.items():
            count(name, number)
        for table, _ in output.rows:
            count(f"row.projected.{table}")
        for nudge in output.nudges:
            count(f"{nudge.attributes['kind']}.generated.{nudge.attributes['type']}", namespace=POLICY)
        reviews = [EventChunk(output.reviews)] if bounded and output.reviews else output.reviews
        return [
            *(TaggedOutput(table, row) for table, row in output.rows),
            *(TaggedOutput(NUDGES, nudge) for nudge in output.nudges),
            *(TaggedOutput(REVIEWS, review) for review in reviews),
        ]
