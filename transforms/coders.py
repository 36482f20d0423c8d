"""How values cross a shuffle: msgpack, many times cheaper than pickling."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import msgspec
from apache_beam import coders
from zstandard import ZstdCompressor, ZstdDecompressor

from transforms.dead_letters import DeadLetter
from transforms.events import (
    REVIEW,
    AlertFact,
    ConsentFact,
    Event,
    Fact,
    FeedbackFact,
    RepFact,
    ReviewFact,
    SessionFact,
)
from transforms.message import Message
from transforms.policy import Nudge
from transforms.values import Value

_encode = msgspec.msgpack.encode
_VERSION = 1
# In place of the version, which then is the first byte within.
_COMPRESSED = b"\x00"
_COMPRESSED_FROM_BYTES = 2048


class SealedEvent(Value, frozen=True):
    """An event whose fact and message are still encoded: enough to tell where it goes."""

    event_id: str
    kind: str
    ts_us: int
    patient_id: str
    exercise_id: str
    site_id: str | None
    sealed_fact: msgspec.Raw
    sealed_message: msgspec.Raw

    def open(self) -> Event:
        """The event."""
        return Event(
            self.event_id,
            self.kind,
            self.ts_us,
            self.patient_id,
            self.exercise_id,
            self.site_id,
            _DECODE_FACT[self.kind](self.sealed_fact),
            self.message,
        )

    @property
    def message(self) -> Message:
        """The event's."""
        return _decode_message(self.sealed_message)


_DECODE_FACT: dict[str, Callable[[msgspec.Raw], Fact]] = {
    kind: msgspec.msgpack.Decoder(fact).decode
    for kind, fact in {
        "exercise_session": SessionFact,
        "rep_observation": RepFact,
        "feedback": FeedbackFact,
        "alert": AlertFact,
        "consent": ConsentFact,
        REVIEW: ReviewFact,
    }.items()
}
_decode_message = msgspec.msgpack.Decoder(Message).decode
_decode_sealed = msgspec.msgpack.Decoder(SealedEvent).decode
_decode_chunk = msgspec.msgpack.Decoder(list[SealedEvent]).decode


AnyEvent = Event | SealedEvent


class _Zstandard(threading.local):
    """A thread's own: they are not thread-safe, and to make them takes longer than most packs."""

    def __init__(self) -> None:
        # The fastest level packs as tightly as the third.
        self.compress = ZstdCompressor(level=1).compress
        self.decompress = ZstdDecompressor().decompress


_zstandard = _Zstandard()


def encoded(event: AnyEvent) -> msgspec.Raw:
    """The event as `pack` takes it too."""
    return msgspec.Raw(_encode(event))


def pack(events: Iterable[AnyEvent | msgspec.Raw]) -> bytes:
    """Several events: a version byte, by which a later release knows who wrote it, and msgpack.

    What is long is compressed, to a fifth or less: it takes less time than to move it.
    """
    packed = _versioned(list(events))
    if len(packed) < _COMPRESSED_FROM_BYTES:
        return packed
    return _COMPRESSED + _zstandard.compress(packed)


def unpack_sealed(packed: bytes) -> list[SealedEvent]:
    """The events in `pack`'s bytes, still sealed; ValueError if a later version wrote them."""
    if packed[:1] == _COMPRESSED:
        packed = _zstandard.decompress(memoryview(packed)[1:])
    return _decode_chunk(_unversioned(packed))


def unpack(packed: bytes) -> list[Event]:
    """The events in `pack`'s bytes; ValueError if a later version wrote them."""
    return [sealed.open() for sealed in unpack_sealed(packed)]


class EventCoder(coders.Coder):
    """One event, as `pack` does."""

    VERSION = _VERSION

    def encode(self, event: AnyEvent) -> bytes:
        return _versioned(event)

    def decode(self, encoded: bytes) -> Event:
        """The event; ValueError if a later version wrote it."""
        return _decode_sealed(_unversioned(encoded)).open()

    def is_deterministic(self) -> bool:
        """Events are never keys."""
        return False


class _PlainCoder[T](coders.Coder):
    """Plain values with names, which Beam would pickle."""

    TYPE: ClassVar[type]

    def encode(self, value: T) -> bytes:
        return _encode(value)

    def decode(self, encoded: bytes) -> T:
        return cast(T, msgspec.msgpack.decode(encoded, type=self.TYPE))

    def is_deterministic(self) -> bool:
        """They are never keys."""
        return False


class MessageCoder(_PlainCoder[Message]):
    """One message."""

    TYPE = Message


class NudgeCoder(_PlainCoder[Nudge]):
    """One nudge."""

    TYPE = Nudge


class DeadLetterCoder(_PlainCoder[DeadLetter]):
    """One dead letter."""

    TYPE = DeadLetter


def _versioned(value: Any) -> bytes:
    return bytes((_VERSION,)) + _encode(value)


def _unversioned(encoded: bytes) -> memoryview:
    if encoded[0] > _VERSION:
        raise ValueError(
            f"This release reads events of version {_VERSION}: it cannot read version {encoded[0]}"
        )
    return memoryview(encoded)[1:]
