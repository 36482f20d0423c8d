"""Chunks: one element holds several events or nudges, so that Beam's overhead is paid once for many."""

import msgspec
from apache_beam import coders

from transforms.events import Event
from transforms.policy.nudges import Nudge
from transforms.steps.coders import pack, unpack


class EventChunk(list[Event]):
    """Several events."""


class EventChunkCoder(coders.Coder):
    """Encodes a chunk as one value."""

    def encode(self, chunk: EventChunk) -> bytes:
        return pack(chunk)

    def decode(self, encoded: bytes) -> EventChunk:
        return EventChunk(unpack(encoded))

    def is_deterministic(self) -> bool:
        """Chunks are never keys."""
        return False


class NudgeChunk(list[Nudge]):
    """Several nudges."""


class NudgeChunkCoder(coders.Coder):
    """Encodes a chunk as one value."""

    def encode(self, chunk: NudgeChunk) -> bytes:
        return msgspec.msgpack.encode(list(chunk))

    def decode(self, encoded: bytes) -> NudgeChunk:
        return NudgeChunk(msgspec.msgpack.decode(encoded, type=list[Nudge]))

    def is_deterministic(self) -> bool:
        """Chunks are never keys."""
        return False
