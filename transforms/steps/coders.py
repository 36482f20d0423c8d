"""Coders for values between steps: msgpack, many times cheaper than pickling."""

import threading
from collections.abc import Iterable
from typing import ClassVar, cast

import msgspec
from apache_beam import coders
from zstandard import ZstdCompressor, ZstdDecompressor

from transforms.dead_letters import DeadLetter
from transforms.events import Event
from transforms.message import Message

_encode = msgspec.msgpack.encode
_VERSION = 1
# Stands before compressed bytes, which then begin with the version.
_COMPRESSED = b"\x00"
_COMPRESSED_FROM_BYTES = 2048


_decode_events = msgspec.msgpack.Decoder(list[Event]).decode


class _Zstandard(threading.local):
    """One pair per thread: they are not thread-safe, and creating them takes longer than most packs."""

    def __init__(self) -> None:
        # The fastest level compresses as well as the third.
        self.compress = ZstdCompressor(level=1).compress
        self.decompress = ZstdDecompressor().decompress


_zstandard = _Zstandard()


def encoded(event: Event) -> msgspec.Raw:
    """The event, encoded in a form that `pack` accepts."""
    return msgspec.Raw(_encode(event))


def pack(events: Iterable[Event | msgspec.Raw]) -> bytes:
    """Several events as bytes: a version byte, so that later releases can read it, then msgpack.

    Long packs are compressed, to a fifth or less, which takes less time than moving them.
    """
    packed = bytes((_VERSION,)) + _encode(list(events))
    if len(packed) < _COMPRESSED_FROM_BYTES:
        return packed
    return _COMPRESSED + _zstandard.compress(packed)


def unpack(packed: bytes) -> list[Event]:
    """The events in bytes from `pack`. Raises ValueError if a later release wrote them."""
    if packed[:1] == _COMPRESSED:
        packed = _zstandard.decompress(memoryview(packed)[1:])
    if packed[0] > _VERSION:
        raise ValueError(
            f"This release reads events of version {_VERSION}: it cannot read version {packed[0]}"
        )
    return _decode_events(memoryview(packed)[1:])


class _PlainCoder[T](coders.Coder):
    """Encodes a value of one type, which Beam would pickle."""

    TYPE: ClassVar[type]

    def encode(self, value: T) -> bytes:
        return _encode(value)

    def decode(self, encoded: bytes) -> T:
        return cast(T, msgspec.msgpack.decode(encoded, type=self.TYPE))

    def is_deterministic(self) -> bool:
        """These values are never keys."""
        return False


class MessageCoder(_PlainCoder[Message]):
    """One message."""

    TYPE = Message


class DeadLetterCoder(_PlainCoder[DeadLetter]):
    """One dead letter."""

    TYPE = DeadLetter
