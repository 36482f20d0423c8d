"""What a source yields: one message, or one line of a file, as it arrived."""

from typing import NamedTuple

# What is longer becomes a dead letter.
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_ARRAY_LENGTH = 1000

# The attribute that a publisher sets anew whenever it publishes, the same for all retries of a publication:
# by it Dataflow drops those retries. Not the event's id: under that one, the corrected event that follows a
# dead letter, or a dead letter's replay, would be dropped unseen.
PUBLISH_ID_ATTRIBUTE = "publish_id"


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
