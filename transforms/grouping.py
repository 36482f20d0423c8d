"""Gathering events by key within a bundle: a keyed step is then handed many at once, packed."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.chunks import EventChunk
from transforms.coders import AnyEvent, encoded, pack
from transforms.tagging import together

# A bounded run's bundle may hold a whole file: what is gathered must stay small whatever the bundle's size.
MAX_GATHERED = 100_000

Key = str | int


def by_patient(event: AnyEvent) -> str:
    """The patient's id."""
    return event.patient_id


class InShards:
    """Spreads patients over a bounded number of shards."""

    def __init__(self, shards: int) -> None:
        """`shards` is how many there are."""
        self._shards = shards

    def __call__(self, event: AnyEvent) -> int:
        """The shard of the event's patient."""
        return zlib.crc32(event.patient_id.encode()) % self._shards


class GatherByKey(beam.DoFn):
    """Event or EventChunk → (key, packed events), at most one per key and bundle while a bundle is small.

    Packed here and not by a coder: a runner may decode and encode what it groups, and copies bytes.
    """

    def __init__(self, key_of: Callable[[AnyEvent], Key]) -> None:
        """`key_of` gives an event's key."""
        self._key_of = key_of

    def start_bundle(self) -> None:
        self._gathered: dict[Key, list[msgspec.Raw]] = {}
        self._count = 0
        self._oldest_us = MAX_TIMESTAMP.micros

    def process(self, element: AnyEvent | EventChunk) -> Iterable[WindowedValue]:
        if isinstance(element, EventChunk):
            return self._take(element, MIN_TIMESTAMP.micros)
        # Never before the element's timestamp, which Beam takes longer to hand over than all the rest takes.
        return self._take((element,), element.message.publish_us)

    def _take(self, events: Sequence[AnyEvent], timestamp_us: int) -> Iterable[WindowedValue]:
        for event in events:
            self._gather(event)
        self._count += len(events)
        self._oldest_us = min(self._oldest_us, timestamp_us)
        if self._count < MAX_GATHERED:
            return ()
        packed = list(self.finish_bundle())
        self.start_bundle()
        return packed

    def _gather(self, event: AnyEvent) -> None:
        key = self._key_of(event)
        # Encoded at once: a sealed event keeps the whole pack in memory that it came with.
        if key in self._gathered:
            self._gathered[key].append(encoded(event))
        else:
            self._gathered[key] = [encoded(event)]

    def finish_bundle(self) -> Iterator[WindowedValue]:
        oldest, windows = Timestamp(micros=self._oldest_us), (GlobalWindow(),)
        for key, events in self._gathered.items():
            yield WindowedValue((key, pack(events)), oldest, windows)


class GatherFindings(GatherByKey):
    """As `GatherByKey`, of findings too: one of a timer is older than the time at which it was made.

    So it holds back the watermark for as long as it is on its way.
    """

    def process(
        self, element: AnyEvent | EventChunk, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterable[WindowedValue]:
        events = element if isinstance(element, EventChunk) else (element,)
        return self._take(events, timestamp.micros)


class Gathered[K: (str, int)](beam.PTransform[Any, Any]):
    """(PCollection of Event or EventChunk, …) → (key, packed events).

    Each collection is gathered where it is made, so that only packs are moved.
    """

    def __init__(
        self, key_of: Callable[[AnyEvent], K], key_type: type[K], with_findings: bool = False
    ) -> None:
        """`key_of` gives an event's key, of that type; `with_findings`: not of events from outside alone."""
        super().__init__()
        self._key_of: Callable[[AnyEvent], K] = key_of
        self._gather = GatherFindings if with_findings else GatherByKey
        self._packed = tuple[key_type, bytes]  # type: ignore[valid-type]

    def expand(self, collections: Any) -> Any:
        gathered = [
            events
            | f"Pack {number}" >> beam.ParDo(self._gather(self._key_of)).with_output_types(self._packed)
            for number, events in enumerate(collections, start=1)
        ]
        return together(gathered, self._packed)
