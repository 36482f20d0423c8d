"""Chunks: in a bounded run an element is several events, so that a step's overhead is paid once for many."""

from apache_beam import coders

from transforms.coders import AnyEvent, pack, unpack_sealed
from transforms.events import Event


class EventChunk(list[AnyEvent]):
    """Several events."""


class EventChunkCoder(coders.Coder):
    """A chunk as one value."""

    def encode(self, chunk: EventChunk) -> bytes:
        return pack(chunk)

    def decode(self, encoded: bytes) -> EventChunk:
        return EventChunk(unpack_sealed(encoded))

    def is_deterministic(self) -> bool:
        """Chunks are never keys."""
        return False


def element_type(bounded: bool) -> type:
    """What an element of a collection of events is."""
    return EventChunk if bounded else Event
