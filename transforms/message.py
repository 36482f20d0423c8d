"""What a source yields: one message, or one line of a file, as it arrived."""

from transforms.values import Value

# What is longer becomes a dead letter.
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_ARRAY_LENGTH = 1000

# The attribute that a publisher sets anew whenever it publishes, the same for all retries of a publication:
# by it Dataflow drops those retries. Not the event's id: under that one, the corrected event that follows a
# dead letter, or a dead letter's replay, would be dropped unseen.
PUBLISH_ID_ATTRIBUTE = "publish_id"

# The attribute in which a replay tells when the message was first published, in microseconds.
FIRST_PUBLISH_ATTRIBUTE = "first_publish_us"


class Message(Value, frozen=True):
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
