"""Gathers the events of a bundle by key, so that a keyed step receives many at once, packed."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from transforms.events import Event
from transforms.steps.chunks import EventChunk
from transforms.steps.coders import encoded, pack
from transforms.steps.metering import Meter
from transforms.steps.tagging import together

# A bundle of a bounded run may hold a whole file, so the number of events in memory is limited.
MAX_GATHERED = 100_000

Key = str | int


def by_patient(event: Event) -> str:
    """The patient's id."""
    return event.patient_id


class InShards:
    """Spreads patients over a fixed number of shards."""

    def __init__(self, shards: int) -> None:
        """`shards` is their number."""
        self._shards = shards

    def __call__(self, event: Event) -> int:
        """The shard of the event's patient."""
        return zlib.crc32(event.patient_id.encode()) % self._shards


class PackByKey(beam.DoFn):
    """EventChunk → (key, packed events), one element per key and bundle unless the bundle is large.

    Packed here rather than by a coder: when a runner groups elements, it may decode and encode them, but it
    only copies bytes.
    """

    def __init__(self, key_of: Callable[[Event], Key], meter: Meter | None = None) -> None:
        """`key_of` returns an event's key."""
        self._key_of = key_of
        self._meter = meter

    def start_bundle(self) -> None:
        self._gathered: dict[Key, list[msgspec.Raw]] = {}
        self._count = 0
        # Packs have the timestamp of the oldest chunk, so that the watermark does not pass their events.
        self._oldest = MAX_TIMESTAMP

    def process(
        self, events: EventChunk, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterable[WindowedValue]:
        for event in events:
            key = self._key_of(event)
            # Encoded at once, because bytes take less memory than events.
            if key in self._gathered:
                self._gathered[key].append(encoded(event))
            else:
                self._gathered[key] = [encoded(event)]
        self._count += len(events)
        if self._meter:
            self._meter.gathered(len(events))
        self._oldest = min(self._oldest, timestamp)
        if self._count < MAX_GATHERED:
            return ()
        packed = list(self.finish_bundle())
        self.start_bundle()
        return packed

    def finish_bundle(self) -> Iterator[WindowedValue]:
        windows = (GlobalWindow(),)
        for key, events in self._gathered.items():
            yield WindowedValue((key, pack(events)), self._oldest, windows)


class Gather[K: (str, int)](beam.PTransform[Any, Any]):
    """(PCollection of EventChunk, …) → (key, packed events).

    Each collection is packed before they are merged, so that only packs are moved.
    """

    def __init__(self, key_of: Callable[[Event], K], key_type: type[K], meter: Meter | None = None) -> None:
        """`key_of` returns an event's key, which has the type `key_type`."""
        super().__init__()
        self._meter = meter
        self._key_of: Callable[[Event], K] = key_of
        self._packed = tuple[key_type, bytes]  # type: ignore[valid-type]

    def expand(self, collections: Any) -> Any:
        gathered = [
            events
            | f"Pack {number}"
            >> beam.ParDo(PackByKey(self._key_of, self._meter)).with_output_types(self._packed)
            for number, events in enumerate(collections, start=1)
        ]
        return together(gathered, self._packed)
