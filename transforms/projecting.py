"""The stateful step that runs a projector: a patient's events in, rows, nudges and reviews out."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import msgpack
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from transforms.dead_letters import PROJECTION_FAILED, DeadLetter, was_admitted
from transforms.events import Event
from transforms.grouping import by_patient, gather
from transforms.policy import Nudge
from transforms.projection import PROCESSED, Cause, Memory, Output, PatientState, Projector
from transforms.rebuilding import Rebuild, progress
from transforms.rows import Row
from transforms.tagging import tagged
from transforms.telemetry import POLICY, count
from transforms.times import MICROS
from transforms.validation import DEAD_LETTERS

_LOGGER = logging.getLogger(__name__)

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
    ) -> None:
        """A `bounded` run ends the input, not the treatment: it sets no timers.

        `memories` gives, by patient, what is known of those without state; it is asked once a process or so.
        """
        super().__init__()
        self._projector = projector
        self._project = Project(projector, bounded, rebuild, memories, clock)

    def expand(self, events: Any) -> Any:
        outputs = {NUDGES: Nudge, REVIEWS: Event, DEAD_LETTERS: DeadLetter} | dict.fromkeys(
            self._projector.tables, Row
        )
        return (
            events
            | "Events" >> beam.Flatten().with_output_types(Event)
            | "Gather by patient" >> gather(by_patient, str)
            | "Project" >> tagged(self._project, outputs)
        )


class Project(beam.DoFn):
    """(patient, [Event, …]) → rows on the output named after their table, NUDGES, REVIEWS, DEAD_LETTERS."""

    STATE = ReadModifyWriteStateSpec("state", BytesCoder())
    FAILED = ReadModifyWriteStateSpec("failed", BytesCoder())
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
        element: tuple[str, list[Event]],
        cell: Any = beam.DoFn.StateParam(STATE),
        failed: Any = beam.DoFn.StateParam(FAILED),
        wake_up: Any = beam.DoFn.TimerParam(WAKE),
        catch_up: Any = beam.DoFn.TimerParam(CATCH_UP),
    ) -> Iterator[Any]:
        patient_id, events = element
        if any(was_admitted(event.message) for event in events):
            events = self._not_yet_projected(events, failed)
        if not events:
            return
        events = sorted(events, key=_consents_first)
        cells = _Cells(cell, failed, wake_up, catch_up)
        try:
            outputs = self._advance(patient_id, events, cells)
        except Exception:
            # One event must not take its neighbours down with it, nor stop the stream.
            alone = (self._advance_alone(patient_id, event, cells) for event in events)
            outputs = [output for outcome in alone for output in outcome]
        yield from outputs

    def _not_yet_projected(self, events: list[Event], failed: Any) -> list[Event]:
        """Without the replays of what failed in another projection, or has been replayed already."""
        ids, due = _unpacked(failed.read()), []
        for event in events:
            if not was_admitted(event.message):
                due.append(event)
            elif event.event_id in ids:
                ids.remove(event.event_id)
                due.append(event)
            elif event.kind in self._projector.counted_kinds:
                count("event.duplicate")
        failed.write(msgpack.packb(ids))
        return due

    def _advance_alone(self, patient_id: str, event: Event, cells: "_Cells") -> list[Any]:
        try:
            return self._advance(patient_id, [event], cells)
        except Exception as error:
            cells.failed.write(msgpack.packb([*_unpacked(cells.failed.read()), event.event_id]))
            # The type alone: an exception's text may quote what it stumbled over.
            problem = f"event: {type(error).__name__} in the projection"
            letter = DeadLetter(
                PROJECTION_FAILED,
                f"Project {self._projector.tables[0]}",
                problem,
                event.message,
                event.event_id,
                event.kind,
            )
            return [TaggedOutput(DEAD_LETTERS, letter)]

    def _advance(self, patient_id: str, events: list[Event], cells: "_Cells") -> list[Any]:
        now_us = int(self._clock() * MICROS)
        output = Output()
        state = self._state(patient_id, cells.state)
        outcomes: Counter[str] = Counter()
        for event in events:
            cause = Cause(patient_id, event.event_id, event.message.publish_us)
            outcome = self._projector.apply(state, event, cause, now_us, output)
            if event.kind in self._projector.counted_kinds:
                outcomes[f"event.processed.{event.kind}" if outcome == PROCESSED else f"event.{outcome}"] += 1
        oldest_us = min(event.message.publish_us for event in events)
        cause = Cause(patient_id, events[-1].event_id, oldest_us)
        self._project(state, cause, now_us, output)
        self._keep(state, now_us, cells.state, cells.wake_up)
        if state.held_until_us:
            cells.catch_up.set(Timestamp(micros=state.held_until_us))
        for name, amount in outcomes.items():
            count(name, amount)
        return _tagged(output)

    def _state(self, patient_id: str, cell: Any) -> PatientState:
        encoded = cell.read()
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
        output = Output()
        try:
            state = change(self._projector.state_type.decode(cell.read()), now_us)
            self._project(state, Cause(patient_id, None, now_us), now_us, output)
        except Exception as error:
            # One patient's state must not stop the stream; the patient's next event brings this up again.
            _LOGGER.error("%s failed at a timer (%s).", self._projector.tables[0], type(error).__name__)
            return []
        self._keep(state, now_us, cell, wake_up)
        return _tagged(output)

    def _keep(self, state: PatientState, now_us: int, cell: Any, wake_up: Any) -> None:
        if state.is_spent(now_us):
            cell.clear()
            return
        cell.write(state.encode())
        times = [time_us for time_us in self._projector.wake_times_us(state, now_us) if time_us]
        coming = [time_us for time_us in times if time_us > now_us]
        if coming and not self._bounded:
            wake_up.set(Timestamp(micros=min(coming)))


class _Cells(NamedTuple):
    """A patient's state cells and timers in one step."""

    state: Any
    failed: Any
    wake_up: Any
    catch_up: Any


def _released(state: PatientState, _now_us: int) -> PatientState:
    if state.held_until_us:
        count("rebuild.released")
    state.release()
    return state


def _unpacked(ids: bytes | None) -> list[str]:
    return list(msgpack.unpackb(ids)) if ids else []


def _consents_first(event: Event) -> tuple[bool, int, str]:
    """Of events that arrive together, a consent is known before the events that it may withhold."""
    return (event.kind != "consent", event.ts_us, event.event_id)


def _tagged(output: Output) -> list[Any]:
    for table, _ in output.rows:
        count(f"row.projected.{table}")
    for nudge in output.nudges:
        count(f"{nudge.attributes['kind']}.generated.{nudge.attributes['type']}", namespace=POLICY)
    return [
        *(TaggedOutput(table, row) for table, row in output.rows),
        *(TaggedOutput(NUDGES, nudge) for nudge in output.nudges),
        *(TaggedOutput(REVIEWS, event) for event in output.reviews),
    ]
