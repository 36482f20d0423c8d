"""Deduplication: an event id that was seen before, by whichever subscription, is dropped and counted."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from msgspec.structs import replace

from transforms.chunks import element_type
from transforms.coders import AnyEvent, SealedEvent, unpack_sealed
from transforms.dead_letters import REPLAY_ATTRIBUTE, was_admitted
from transforms.events import Event
from transforms.grouping import Gathered, InShards, by_event_id
from transforms.routing import ROUTES, routed, routed_together
from transforms.tagging import tagged
from transforms.telemetry import count

REMEMBERED_SECONDS = 24 * 3600

_HOUR_SECONDS = 3600
# So few that a day of ids is small, so many that no two ids of a shard ever have the same.
_DIGEST_BYTES = 12

_VERSION = b"\x01"
_decode = msgspec.msgpack.Decoder(dict[int, bytearray]).decode


class SeenIds:
    """The ids that a shard has seen: for each hour (since the epoch) the digests of those first seen then."""

    def __init__(self, hours: dict[int, bytearray] | None = None) -> None:
        """Of a new shard, or as they were."""
        self.hours = hours or {}

    @classmethod
    def decode(cls, encoded: bytes | None) -> "SeenIds":
        """From `encode`'s bytes; of a new shard if there are none."""
        return cls(_decode(memoryview(encoded)[1:]) if encoded else None)

    def encode(self) -> bytes:
        """A version byte and msgpack."""
        return _VERSION + msgspec.msgpack.encode(self.hours)

    def is_new(self, event_id: str, now: int) -> bool:
        """Whether the id is seen for the first time; it is remembered."""
        digest = hashlib.blake2b(event_id.encode(), digest_size=_DIGEST_BYTES).digest()
        # Found across two digests is as unlikely as found by chance.
        if any(digest in digests for digests in self.hours.values()):
            return False
        self.hours.setdefault(now // _HOUR_SECONDS, bytearray()).extend(digest)
        return True

    def admit(self, event: SealedEvent, now: int) -> AnyEvent | None:
        """The event, or null if it is a duplicate.

        A projection that failed came after this, so the event's id has been seen, and its replay goes on as
        what it is: the projections know which of them has failed. If the id has not been seen (the job
        has no memory of it, or the failure is replayed before the event itself), it is an event as any other.
        """
        is_replay = was_admitted(event.message)
        if self.is_new(event.event_id, now):
            return _as_first(event.open()) if is_replay else event
        return event if is_replay else None

    def forget_before(self, moment: int) -> None:
        """Drops the ids of the hours that ended before that."""
        oldest = moment // _HOUR_SECONDS
        for hour in [hour for hour in self.hours if hour < oldest]:
            del self.hours[hour]


def _as_first(event: Event) -> Event:
    attributes = dict(event.message.attributes)
    del attributes[REPLAY_ATTRIBUTE]
    return replace(event, message=replace(event.message, attributes=attributes))


class Deduplicated(beam.PTransform[Any, Any]):
    """(PCollection of Event, …) → each event id once, on the output of every route that its kind takes."""

    def __init__(self, shards: int, bounded: bool, clock: Callable[[], float] = time.time) -> None:
        """`shards` is in how many groups ids are remembered: for 24 hours, in a `bounded` run for ever."""
        super().__init__()
        self._shards = shards
        self._bounded = bounded
        self._clock = clock

    def expand(self, events: Any) -> Any:
        element = element_type(self._bounded)
        shard = InShards(by_event_id, self._shards)
        gathered = events | "Gather by event id" >> Gathered(shard, int)
        outputs = dict.fromkeys(ROUTES, element)
        if self._bounded:
            return gathered | "Group" >> beam.GroupByKey() | "Drop seen" >> tagged(DeduplicateAll(), outputs)
        return gathered | "Drop seen" >> tagged(Deduplicate(self._clock), outputs)


class DeduplicateAll(beam.DoFn):
    """(shard, all its packed events) → an EventChunk for each route: for a bounded run, without state."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        seen: set[str] = set()
        for packed in element[1]:
            events = unpack_sealed(packed)
            unique = []
            for event in events:
                if event.event_id not in seen:
                    seen.add(event.event_id)
                    unique.append(event)
            count_duplicates(len(events) - len(unique))
            yield from routed_together(unique)


def count_duplicates(number: int) -> None:
    """Counts them, if there are any."""
    if number:
        count("event.duplicate", number)


class Deduplicate(beam.DoFn):
    """(shard, packed events) → each new event, on the output of every route that its kind takes."""

    SEEN = ReadModifyWriteStateSpec("seen", BytesCoder())

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        self._clock = clock

    def process(self, element: tuple[int, bytes], cell: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[Any]:
        events, now = unpack_sealed(element[1]), int(self._clock())
        seen = SeenIds.decode(cell.read())
        # Here and not by a timer, which would cost more than all the rest; so what nothing reaches any more
        # keeps its last few bytes.
        seen.forget_before(now - REMEMBERED_SECONDS)
        admitted = (seen.admit(event, now) for event in events)
        unique = [event for event in admitted if event]
        count_duplicates(len(events) - len(unique))
        if unique:
            cell.write(seen.encode())
        yield from routed(unique)
