"""Gathering events by key within a bundle: a stateful step then touches its state once for many."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from transforms.events import Event

# A bounded run's bundle may hold a whole file: what is gathered must stay small whatever the bundle's size.
MAX_GATHERED = 10_000

Key = str | int


def by_patient(event: Event) -> str:
    """The patient's id."""
    return event.patient_id


class ByEventId:
    """Spreads events over a bounded number of shards; every event with one id lands in the same."""

    def __init__(self, shards: int) -> None:
        """How many shards there are."""
        self._shards = shards

    def __call__(self, event: Event) -> int:
        """The event's shard."""
        return zlib.crc32(event.event_id.encode()) % self._shards


class GatherByKey(beam.DoFn):
    """Event → (key, [Event, …]), at most one per key and bundle while a bundle is small."""

    def __init__(self, key_of: Callable[[Event], Key]) -> None:
        """`key_of` gives an event's key."""
        self._key_of = key_of

    def start_bundle(self) -> None:
        self._gathered: dict[Key, list[Event]] = {}
        self._count = 0
        self._oldest: Timestamp = MAX_TIMESTAMP

    def process(
        self, event: Event, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[Key, list[Event]]]:
        self._gathered.setdefault(self._key_of(event), []).append(event)
        self._count += 1
        self._oldest = min(self._oldest, timestamp)
        if self._count >= MAX_GATHERED:
            yield from self._gathered.items()
            self.start_bundle()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for group in self._gathered.items():
            yield WindowedValue(group, self._oldest, (GlobalWindow(),))


def gather[K: (str, int)](key_of: Callable[[Event], K], key_type: type[K]) -> Any:
    """The step that gathers by keys of that type."""
    return beam.ParDo(GatherByKey(key_of)).with_output_types(tuple[key_type, list[Event]])  # type: ignore[valid-type]
