"""The projection step of a bounded run: each patient's whole history at once, without state and timers."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam

from transforms.deduplication import deduplication_key
from transforms.events import Event, ReviewItemFact
from transforms.projections.advancing import advance
from transforms.projections.ordering import in_order, in_periods
from transforms.projections.projector import Output, Projector
from transforms.steps.coders import unpack
from transforms.steps.metering import Meter
from transforms.steps.outputs import emitted, failed, without_duplicates
from transforms.steps.tagging import Tagged
from transforms.times import MICROS


class BoundedProjectFn(beam.DoFn):
    """(shard, all packed events of its patients) → the outputs of `StreamingProjectFn`.

    Shards hold many patients: one patient has few events, and would cost more to move and compress alone.
    """

    def __init__(
        self,
        projector: Projector[Any],
        clock: Callable[[], float] = time.time,
        meter: Meter | None = None,
    ) -> None:
        """The arguments are those of `Projection`."""
        self._projector = projector
        self._clock = clock
        self._meter = meter

    def default_label(self) -> str:
        """The name of this step in earlier releases."""
        return "ProjectHistories"

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        histories: dict[str, list[Event]] = defaultdict(list)
        for packed in element[1]:
            for event in unpack(packed):
                histories[event.patient_id].append(event)
        for history in histories.values():
            if events := without_duplicates(self._projector, _without_outdated(history), _FirstOfEach()):
                yield from self._project(events)
        if self._meter:
            self._meter.projected(sum(map(len, histories.values())))

    def _project(self, events: list[Event]) -> Iterable[Tagged]:
        now_us = int(self._clock() * MICROS)
        state, output = self._projector.state_type(), Output()
        try:
            counted = [
                each
                for period in in_periods(events)
                for each in advance(self._projector, state, period, now_us, output)
            ]
        except Exception:
            # One event must not take its neighbours down with it.
            return self._one_by_one(events, now_us)
        return emitted(output, counted)

    def _one_by_one(self, events: list[Event], now_us: int) -> Iterator[Tagged]:
        encoded = None
        for event in (event for period in in_periods(events) for event in in_order(period)):
            state, output = self._projector.state_type.decode(encoded), Output()
            try:
                counted = advance(self._projector, state, [event], now_us, output)
            except Exception as error:
                yield failed(self._projector, event, error)
            else:
                encoded = state.encode()
                yield from emitted(output, counted)


def _without_outdated(events: list[Event]) -> list[Event]:
    """The events without outdated review items, which would be applied by time, not by revision."""
    newest: dict[str, int] = {}
    for event in events:
        if isinstance(event.fact, ReviewItemFact):
            known = newest.get(event.fact.nudge_id, 0)
            newest[event.fact.nudge_id] = max(known, event.fact.revision)
    if not newest:
        return events
    return [
        event
        for event in events
        if not isinstance(event.fact, ReviewItemFact) or event.fact.revision == newest[event.fact.nudge_id]
    ]


class _FirstOfEach:
    """Tells whether an event is the first with its deduplication key, for ever."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, event: Event) -> bool:
        before = len(self._seen)
        self._seen.add(deduplication_key(event))
        return len(self._seen) > before
