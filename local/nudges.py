"""Reads the nudges that arrive on the topic."""

from collections import Counter
from pathlib import Path

from local.dashboard import NudgeType, Tally
from pipeline.cloud import clients

_MESSAGES = 1000


class NudgeReader:
    """Reads the nudge topic through its own subscription, counts messages, and may write them to a file."""

    def __init__(self, topic: str, subscription: str, keep: Path | None) -> None:
        """Creates the subscription (both are full paths); `keep` gets one message per line."""
        clients.subscriber().create_subscription(name=subscription, topic=topic)
        self._subscription = subscription
        self._keep = keep
        self._types: dict[str, NudgeType] = {}
        self._messages: Counter[NudgeType] = Counter()

    @property
    def received(self) -> int:
        """The number of messages received."""
        return self._messages.total()

    @property
    def distinct(self) -> int:
        """The number of distinct nudges received."""
        return len(self._types)

    @property
    def tallies(self) -> dict[NudgeType, Tally]:
        """The nudges received, by type."""
        distinct = Counter(self._types.values())
        return {key: Tally(distinct[key], received) for key, received in self._messages.items()}

    def pull(self) -> None:
        """Reads what has arrived, without waiting for more."""
        while self._pull_some():
            pass

    def _pull_some(self) -> bool:
        subscriber = clients.subscriber()
        response = subscriber.pull(
            # Deprecated, because services should wait; a display must not.
            request={
                "subscription": self._subscription,
                "max_messages": _MESSAGES,
                "return_immediately": True,
            }
        )
        messages = [received.message for received in response.received_messages]
        for message in messages:
            attributes = message.attributes
            kind = NudgeType(attributes["kind"], attributes["type"], attributes["severity"])
            self._types[attributes["nudge_id"]] = kind
            self._messages[kind] += 1
        if not messages:
            return False
        if self._keep:
            with self._keep.open("ab") as lines:
                lines.writelines(message.data + b"\n" for message in messages)
        subscriber.acknowledge(
            subscription=self._subscription,
            ack_ids=[received.ack_id for received in response.received_messages],
        )
        return len(messages) == _MESSAGES
