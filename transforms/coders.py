"""How events cross a shuffle: msgpack, several times cheaper than pickling."""

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


class EventCoder(coders.Coder):
    """A version byte, so that a later release can read what an earlier one wrote, and msgpack."""

    VERSION = 1

    def encode(self, event: Event) -> bytes:
        return bytes((self.VERSION,)) + bytes(msgpack.packb(event))

    def decode(self, encoded: bytes) -> Event:
        """The event; ValueError if a later version wrote it."""
        if encoded[0] > self.VERSION:
            raise ValueError(f"EventCoder {self.VERSION} cannot read version {encoded[0]}")
        event_id, kind, ts_us, patient_id, exercise_id, site_id, fact, message = msgpack.unpackb(
            memoryview(encoded)[1:]
        )
        if kind == "rep_observation":
            fact[2] = tuple(tuple(issue) for issue in fact[2])
        fact = _FACT_TYPES[kind](*fact)
        return Event(event_id, kind, ts_us, patient_id, exercise_id, site_id, fact, Message(*message))

    def is_deterministic(self) -> bool:
        """Events are never keys."""
        return False
