"""The projection step of a stream: stateful, with timers, one patient at a time."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from transforms.events import REVIEW, Event
from transforms.projections.advancing import advance, project
from transforms.projections.ordering import in_order
from transforms.projections.projector import Output, Projector
from transforms.projections.state import KnownPatient, PatientState, Trigger
from transforms.steps.coders import unpack
from transforms.steps.outputs import emitted, failed, without_duplicates
from transforms.steps.patient_record import Cell, PatientRecord
from transforms.steps.rebuilding import Rebuild, progress
from transforms.steps.tagging import Tagged
from transforms.steps.telemetry import count
from transforms.steps.timers import Timer
from transforms.times import MICROS

_LOGGER = logging.getLogger(__name__)

# Many times what four weeks of one patient need. Dataflow commits at most 180 MB, everything else included:
# a larger state would fail again and again, and stop the stream.
_MAX_STATE_BYTES = 16 * 1024 * 1024


class StateTooLargeError(Exception):
    """A patient's state has no room for an event."""


class StreamingProjectFn(beam.DoFn):
    """(patient, packed events) → rows on the outputs of their tables, NUDGES, REVIEW_ITEMS, DEAD_LETTERS."""

    STATE = ReadModifyWriteStateSpec("state", BytesCoder())
    WAKE = TimerSpec("wake", TimeDomain.REAL_TIME)
    # In publish time: due when every message published before a rebuild began has been read.
    CATCH_UP = TimerSpec("catch_up", TimeDomain.WATERMARK)

    def __init__(
        self,
        projector: Projector[Any],
        bounded: bool = False,
        rebuild: Rebuild | None = None,
        known_patients: Callable[[], Mapping[str, KnownPatient]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """The arguments are those of `Projection`."""
        self._projector = projector
        self._bounded = bounded
        self._rebuild = rebuild
        self._memories = known_patients
        self._clock = clock

    def default_label(self) -> str:
        """The name of this step in running jobs, which can be updated only while it stays."""
        return "Project"

    def setup(self) -> None:
        self._known = self._memories()

    def process(
        self,
        element: tuple[str, bytes],
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
        catch_up: Any = beam.DoFn.TimerParam(CATCH_UP),
    ) -> list[Any]:
        call = self._call(element[0], cell, wake_up, catch_up)
        record = self._read(call)
        admits = record.admitting(call.now_us)
        events = without_duplicates(self._projector, unpack(element[1]), admits)
        if not events:
            return []
        before = record.state
        try:
            return self._advance(call, record, events)
        except Exception:
            # One event must not take its neighbours down with it, nor stop the stream.
            record.state = before
            return list(self._one_by_one(call, record, in_order(events)))

    def _call(self, patient_id: str, cell: Cell, wake_up: Timer, catch_up: Timer | None = None) -> "_Call":
        return _Call(patient_id, int(self._clock() * MICROS), cell, wake_up, catch_up)

    def _read(self, call: "_Call") -> PatientRecord:
        record = PatientRecord.read(call.cell)
        if not self._bounded:
            record.seen.forget(call.now_us // MICROS)
        return record

    def _one_by_one(self, call: "_Call", record: PatientRecord, events: Sequence[Event]) -> Iterator[Tagged]:
        for event in events:
            before = record.state
            try:
                yield from self._advance(call, record, [event], events)
            except Exception as error:
                record.state = before
                self._store_failure(call, record, event)
                yield failed(self._projector, event, error)

    def _store_failure(self, call: "_Call", record: PatientRecord, event: Event) -> None:
        if event.kind != REVIEW:
            record.add_failed(event)
        if not self._bounded:
            record.wake_at(record.due_us or record.ids_expire_us(call.now_us), call.now_us, call.wake_up)
        record.write(call.cell)

    def _advance(
        self,
        call: "_Call",
        record: PatientRecord,
        events: Sequence[Event],
        arrived_together: Sequence[Event] = (),
    ) -> list[Tagged]:
        state, output = self._state(call.patient_id, record.state), Output()
        counted = advance(self._projector, state, events, call.now_us, output, arrived_together)
        self._store(call, record, state)
        if record.state and len(record.state) > _MAX_STATE_BYTES and not _only_consents(events):
            raise StateTooLargeError
        if state.held_until_us and call.catch_up:
            call.catch_up.set(Timestamp(micros=state.held_until_us))
            self._note_progress(min(event.message.publish_us for event in events))
        return emitted(output, counted)

    def _state(self, patient_id: str, encoded: bytes | None) -> PatientState:
        state: PatientState = self._projector.state_type.decode(encoded)
        if not encoded:
            if memory := self._known.get(patient_id):
                state.start_from(memory)
            if self._rebuild:
                state.held_until_us = self._rebuild.until_us
                count("rebuild.held")
        return state

    def _note_progress(self, publish_us: int) -> None:
        if self._rebuild:
            progress.note(self._rebuild, publish_us)

    @on_timer(WAKE)
    def wake(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> list[Tagged]:
        """Projects again because time has passed."""
        call = self._call(patient_id, cell, wake_up)
        record = self._read(call)
        record.wake_us = 0
        if call.now_us < record.due_us:
            # Events have arrived since the timer was set.
            record.wake_at(record.due_us, call.now_us, wake_up)
            record.write(cell)
            return []
        return self._pass_time(call, record, self._projector.wake)

    @on_timer(CATCH_UP)
    def catch_up(
        self,
        patient_id: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(STATE),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
    ) -> list[Tagged]:
        """Projects what a rebuild has held back, now that it is complete."""
        progress.finish()
        call = self._call(patient_id, cell, wake_up)
        return self._pass_time(call, self._read(call), _released)

    def _pass_time(
        self, call: "_Call", record: PatientRecord, change: Callable[[Any, int], PatientState]
    ) -> list[Tagged]:
        output = Output()
        try:
            state = change(self._projector.state_type.decode(record.state), call.now_us)
            project(self._projector, state, Trigger(call.patient_id, None, call.now_us), call.now_us, output)
        except Exception as error:
            # One patient's state must not stop the stream; the patient's next event tries again.
            _LOGGER.error("%s failed at a timer (%s).", self._projector.tables[0], type(error).__name__)
            return []
        if state.held_until_us:
            self._note_progress(call.now_us)
        self._store(call, record, state)
        return emitted(output)

    def _store(self, call: "_Call", record: PatientRecord, state: PatientState) -> None:
        record.state = None if state.is_spent(call.now_us) else state.encode()
        if not self._bounded:
            due_us = self._due_us(call.now_us, state) or record.ids_expire_us(call.now_us)
            record.wake_at(due_us, call.now_us, call.wake_up)
        record.write(call.cell)

    def _due_us(self, now_us: int, state: PatientState) -> int:
        """When the passing of time may next change something; 0 if never."""
        due_us = 0
        for time_us in self._projector.wake_times_us(state, now_us):
            if time_us and time_us > now_us and (not due_us or time_us < due_us):
                due_us = time_us
        return due_us


class _Call(NamedTuple):
    """One call of the step: the patient, the present, and the runner's cell and timers of the patient."""

    patient_id: str
    now_us: int
    cell: Cell
    wake_up: Timer
    catch_up: Timer | None


def _released(state: PatientState, _now_us: int) -> PatientState:
    if state.held_until_us:
        count("rebuild.released")
    state.release()
    return state


def _only_consents(events: Sequence[Event]) -> bool:
    """A patient's decision is stored whatever the state's size."""
    return all(event.kind == "consent" for event in events)
