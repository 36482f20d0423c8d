"""Gathering events by key within a bundle: a keyed step is then handed many at once, packed."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.chunks import EventChunk, events_of
from transforms.coders import AnyEvent, pack

# A bounded run's bundle may hold a whole file: what is gathered must stay small whatever the bundle's size.
MAX_GATHERED = 100_000

Key = str | int


def by_event_id(event: AnyEvent) -> str:
    """The event's id."""
    return event.event_id


def by_patient(event: AnyEvent) -> str:
    """The patient's id."""
    return event.patient_id


class InShards:
    """Spreads events over a bounded number of shards; those of one id land in the same."""

    def __init__(self, id_of: Callable[[AnyEvent], str], shards: int) -> None:
        """`id_of` gives the id, `shards` is how many there are."""
        self._id_of = id_of
        self._shards = shards

    def __call__(self, event: AnyEvent) -> int:
        """The event's shard."""
        return zlib.crc32(self._id_of(event).encode()) % self._shards


class GatherByKey(beam.DoFn):
    """Event or EventChunk → (key, packed events), at most one per key and bundle while a bundle is small.

    Packed here and not by a coder: a runner may decode and encode what it groups, and copies bytes.
    """

    def __init__(self, key_of: Callable[[AnyEvent], Key]) -> None:
        """`key_of` gives an event's key."""
        self._key_of = key_of

    def start_bundle(self) -> None:
        self._gathered: dict[Key, list[AnyEvent]] = {}
        self._count = 0
        self._oldest: Timestamp = MAX_TIMESTAMP

    def process(
        self, element: AnyEvent | EventChunk, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterable[tuple[Key, bytes]]:
        key_of, gathered = self._key_of, self._gathered
        events = events_of(element)
        for event in events:
            key = key_of(event)
            if key in gathered:
                gathered[key].append(event)
            else:
                gathered[key] = [event]
        self._count += len(events)
        self._oldest = min(self._oldest, timestamp)
        if self._count < MAX_GATHERED:
            return ()
        packed = [(key, pack(events)) for key, events in gathered.items()]
        self.start_bundle()
        return packed

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for key, events in self._gathered.items():
            yield WindowedValue((key, pack(events)), self._oldest, (GlobalWindow(),))


def gather[K: (str, int)](key_of: Callable[[AnyEvent], K], key_type: type[K]) -> Any:
    """The step that gathers by keys of that type."""
    return beam.ParDo(GatherByKey(key_of)).with_output_types(tuple[key_type, bytes])  # type: ignore[valid-type]
