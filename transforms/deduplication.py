"""Deduplication: an event id that was seen before, by whichever subscription, is dropped and counted."""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import msgpack
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer

from transforms.dead_letters import REPLAY_ATTRIBUTE, was_admitted
from transforms.events import KINDS, Event
from transforms.grouping import ByEventId, gather
from transforms.tagging import tagged
from transforms.telemetry import count

REMEMBERED_SECONDS = 24 * 3600
_CLEAN_UP_EVERY_SECONDS = 3600

_VERSION = b"\x01"


class SeenIds:
    """The ids that a shard has seen: a digest of each, and when (seconds since the epoch)."""

    def __init__(self, seen: dict[bytes, int] | None = None) -> None:
        """Of a new shard, or as they were."""
        self.seen = seen or {}

    @classmethod
    def decode(cls, encoded: bytes | None) -> "SeenIds":
        """From `encode`'s bytes; of a new shard if there are none."""
        return cls(msgpack.unpackb(encoded[1:], strict_map_key=False) if encoded else None)

    def encode(self) -> bytes:
        """A version byte and msgpack."""
        return _VERSION + bytes(msgpack.packb(self.seen))

    def is_new(self, event_id: str, now: int) -> bool:
        """Whether the id is seen for the first time; it is remembered."""
        digest = hashlib.blake2b(event_id.encode(), digest_size=16).digest()
        if digest in self.seen:
            return False
        self.seen[digest] = now
        return True

    def admit(self, event: Event, now: int) -> Event | None:
        """The event, or null if it is a duplicate.

        A projection that failed came after this, so the event's id has been seen, and its replay goes on as
        what it is: the projections know which of them has failed. If the id has not been seen (the job
        has no memory of it, or the failure is replayed before the event itself), it is an event as any other.
        """
        is_replay = was_admitted(event.message)
        if self.is_new(event.event_id, now):
            return _as_first(event) if is_replay else event
        return event if is_replay else None

    def forget_before(self, moment: int) -> None:
        """Drops the ids seen before that."""
        self.seen = {digest: seen for digest, seen in self.seen.items() if seen >= moment}


def _as_first(event: Event) -> Event:
    attributes = dict(event.message.attributes)
    del attributes[REPLAY_ATTRIBUTE]
    return event._replace(message=event.message._replace(attributes=attributes))


class Deduplicated(beam.PTransform[Any, Any]):
    """(PCollection of Event, …) → each event id once, on the output named after the event's kind."""

    def __init__(self, shards: int, bounded: bool, clock: Callable[[], float] = time.time) -> None:
        """`shards` is in how many groups ids are remembered."""
        super().__init__()
        self._shards = shards
        self._deduplicate = Deduplicate(bounded, clock)

    def expand(self, events: Any) -> Any:
        return (
            events
            | "All kinds" >> beam.Flatten().with_output_types(Event)
            | "Gather by event id" >> gather(ByEventId(self._shards), int)
            | "Drop seen" >> tagged(self._deduplicate, dict.fromkeys(KINDS, Event))
        )


class Deduplicate(beam.DoFn):
    """(shard, [Event, …]) → each new Event, on the output named after its kind."""

    SEEN = ReadModifyWriteStateSpec("seen", BytesCoder())
    CLEAN_UP = TimerSpec("clean_up", TimeDomain.REAL_TIME)

    def __init__(self, bounded: bool, clock: Callable[[], float] = time.time) -> None:
        """In a `bounded` run ids are remembered for ever; `clock` gives seconds since the epoch."""
        self._bounded = bounded
        self._clock = clock

    def process(
        self,
        element: tuple[int, list[Event]],
        cell: Any = beam.DoFn.StateParam(SEEN),
        timer: Any = beam.DoFn.TimerParam(CLEAN_UP),
    ) -> Iterator[Any]:
        shard, events = element
        now = int(self._clock())
        seen = SeenIds.decode(cell.read())
        admitted = (seen.admit(event, now) for event in events)
        unique = [event for event in admitted if event]
        if len(unique) < len(events):
            count("event.duplicate", len(events) - len(unique))
        if unique:
            cell.write(seen.encode())
            self._plan_clean_up(shard, now, timer)
        for event in unique:
            yield TaggedOutput(event.kind, event)

    @on_timer(CLEAN_UP)
    def clean_up(
        self,
        shard: Any = beam.DoFn.KeyParam,
        cell: Any = beam.DoFn.StateParam(SEEN),
        timer: Any = beam.DoFn.TimerParam(CLEAN_UP),
    ) -> None:
        """Forgets what was seen too long ago."""
        now = int(self._clock())
        seen = SeenIds.decode(cell.read())
        seen.forget_before(now - REMEMBERED_SECONDS)
        if seen.seen:
            cell.write(seen.encode())
            self._plan_clean_up(shard, now, timer)
        else:
            cell.clear()

    def _plan_clean_up(self, shard: int, now: int, timer: Any) -> None:
        if self._bounded:
            return
        # A fixed moment of each hour, so that new arrivals do not put it off, and another one for each
        # shard, so that they do not all fire at once.
        offset = shard % _CLEAN_UP_EVERY_SECONDS
        timer.set(now - (now - offset) % _CLEAN_UP_EVERY_SECONDS + _CLEAN_UP_EVERY_SECONDS)
