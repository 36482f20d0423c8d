"""What a source yields: one message, or one line of a file, as it arrived."""

from typing import NamedTuple

# The attribute in which a replay tells when the message was first published, in microseconds.
FIRST_PUBLISH_ATTRIBUTE = "first_publish_us"


class Message(NamedTuple):
    """One arrival.

    `payload` is what arrived, byte for byte; `subscription` is the subscription's path or the
    file's name; `publish_us` is the publish time in microseconds since the epoch (UTC).
    """

    payload: bytes
    attributes: dict[str, str]
    subscription: str
    message_id: str
    publish_us: int

    @property
    def first_publish_us(self) -> int:
        """`publish_us`; of a replayed message that of the original."""
        first = self.attributes.get(FIRST_PUBLISH_ATTRIBUTE, "")
        stated_us = int(first) if first.isascii() and first.isdecimal() else self.publish_us
        return min(stated_us, self.publish_us)
