"""What a source of messages must do, whatever it reads from."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from transforms.message import Message

# How long a source waits for a message. When it has received none, everything older has been read: a rebuild
# writes its rows that much later.
RECEIVE_SECONDS = 5.0

# Pub/Sub takes 512 KiB in a request; an acknowledgement id has a few hundred bytes.
IDS_PER_REQUEST = 500


class Received(NamedTuple):
    """Messages, each with its acknowledgement id.

    Every message published before `read_until_us` (µs since the epoch) is among them or came earlier.
    """

    messages: list[tuple[Message, str]]
    read_until_us: int


class Source(Protocol):
    """A queue that delivers a message again until it is acknowledged; any thread may call it."""

    @property
    def path(self) -> str:
        """The full name, as `Message.subscription` states it."""
        ...

    def receive(self, limit: int, is_stopped: Callable[[], bool]) -> Received:
        """Waits up to `RECEIVE_SECONDS` for messages; returns at most `limit`, none if there are none.

        Retries while the service cannot be reached, until `is_stopped`. Raises OperatorError when the source
        cannot be read.
        """
        ...

    def acknowledge(self, ack_ids: Sequence[str], patience: float) -> None:
        """Settles up to `IDS_PER_REQUEST` messages for good. Raises after `patience` seconds of failures."""
        ...

    def give_back(self, ack_ids: Sequence[str], patience: float) -> None:
        """Has up to `IDS_PER_REQUEST` messages delivered again at once. Raises as `acknowledge`."""
        ...
