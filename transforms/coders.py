"""How values cross a shuffle and rest in state: msgpack, several times cheaper than pickling.

Every encoding begins with a version byte, so that a later release can read what an earlier one
wrote. `register` ties them to their types; the graph's module calls it once.
"""

from typing import Any

import msgpack
from apache_beam import coders

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

_FACT_TYPES: dict[str, type[Fact]] = {
    "exercise_session": SessionFact,
    "rep_observation": RepFact,
    "feedback": FeedbackFact,
    "alert": AlertFact,
    "consent": ConsentFact,
    REVIEW: ReviewFact,
}


class VersionedCoder[T](coders.Coder):
    """A version byte and msgpack; subclasses turn their type into plain values and back."""

    VERSION = 1

    def encode(self, value: T) -> bytes:
        """The version byte and the plain values."""
        return bytes((self.VERSION,)) + bytes(msgpack.packb(self.to_plain(value), use_bin_type=True))

    def decode(self, encoded: bytes) -> T:
        """The value of any version up to this one; ValueError for a later one."""
        version = encoded[0]
        if version > self.VERSION:
            raise ValueError(f"{type(self).__name__} {self.VERSION} cannot read version {version}")
        return self.from_plain(msgpack.unpackb(memoryview(encoded)[1:], strict_map_key=False), version)

    def is_deterministic(self) -> bool:
        """Never used for keys."""
        return False

    def to_plain(self, value: T) -> Any:
        """Lists, dicts, strings, bytes and numbers that hold the value."""
        raise NotImplementedError

    def from_plain(self, plain: Any, version: int) -> T:
        """The value that plain values of that version hold."""
        raise NotImplementedError


class EventCoder(VersionedCoder[Event]):
    """Events."""

    def to_plain(self, value: Event) -> Any:
        """The event's fields; tuples become arrays."""
        return value

    def from_plain(self, plain: Any, version: int) -> Event:
        """The event with its fact and message in their types."""
        event_id, kind, ts_us, patient_id, exercise_id, site_id, fact, message = plain
        if kind == "rep_observation":
            fact[2] = tuple(tuple(issue) for issue in fact[2])
        fact = _FACT_TYPES[kind](*fact)
        return Event(event_id, kind, ts_us, patient_id, exercise_id, site_id, fact, Message(*message))
