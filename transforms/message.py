"""What a source yields: one message, or one line of a file, as it arrived."""

from transforms.values import Value

# Longer messages and arrays become dead letters.
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_ARRAY_LENGTH = 1000

# A publisher sets this attribute to a new value per publication, the same for its retries: Dataflow drops the
# retries by it. The event's id would not do: Dataflow would also drop the corrected event that follows a dead
# letter, or the dead letter's replay.
PUBLISH_ID_ATTRIBUTE = "publish_id"

# A replay sets this attribute to the time of the first publication, in microseconds since the epoch.
FIRST_PUBLISH_ATTRIBUTE = "first_publish_us"


class Message(Value, frozen=True):
    """One message or line, as it arrived.

    `payload` has the bytes unchanged; `subscription` is the subscription's path or the file's name;
    `publish_us` is the publish time in microseconds since the epoch.
    """

    payload: bytes
    attributes: dict[str, str]
    subscription: str
    message_id: str
    publish_us: int

    @property
    def first_publish_us(self) -> int:
        """When the message, or the original of a replayed one, was published."""
        first = self.attributes.get(FIRST_PUBLISH_ATTRIBUTE, "")
        stated_us = int(first) if first.isascii() and first.isdecimal() else self.publish_us
        return min(stated_us, self.publish_us)
