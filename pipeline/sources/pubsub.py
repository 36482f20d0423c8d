"""A Pub/Sub subscription as a `Source`."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.pubsub_v1.types import PullResponse

from pipeline.cloud.clients import PUBSUB_TRANSIENT, subscriber
from pipeline.cloud.outages import OUTAGES, Call
from pipeline.errors import OperatorError
from pipeline.sources.source import RECEIVE_SECONDS, Received
from transforms.message import Message
from transforms.times import MICROS

_LOGGER = logging.getLogger(__name__)

# Shorter during an outage, to notice its end soon.
_OUTAGE_SECONDS = 1.0

_REQUEST_SECONDS = 10.0


class SubscriptionError(OperatorError):
    """A subscription cannot be read."""


class PubSubSource:
    """Pulls from one subscription.

    Deadlines are not extended: the pipeline holds a message for a few seconds, and the subscription's
    deadline is longer. During a longer outage of BigQuery, Pub/Sub redelivers the waiting messages, and
    deduplication drops them.
    """

    def __init__(self, path: str) -> None:
        """`path` is projects/PROJECT/subscriptions/NAME."""
        self.path = path
        self._pulling = Call("Pub/Sub", f"subscription {path}", "pull from")

    def receive(self, limit: int, is_stopped: Callable[[], bool]) -> Received:
        """See `Source`. Raises SubscriptionError."""
        retry = Retry(
            predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT) and not is_stopped(),
            initial=0.1,
            maximum=10.0,
            timeout=None,
            on_error=self._note_failure,
        )
        try:
            received: Received = retry(self._pull)(limit)
        except Exception as error:
            raise SubscriptionError(_explanation(self.path, error)) from error
        OUTAGES.answered(self._pulling)
        return received

    def acknowledge(self, ack_ids: Sequence[str], patience: float) -> None:
        """See `Source`."""
        self._request(subscriber().acknowledge, ack_ids, patience)

    def give_back(self, ack_ids: Sequence[str], patience: float) -> None:
        """See `Source`."""
        self._request(subscriber().modify_ack_deadline, ack_ids, patience, ack_deadline_seconds=0)

    def _note_failure(self, error: Exception) -> None:
        _LOGGER.warning("Pulling from %s failed (%s); retrying.", self.path, type(error).__name__)
        OUTAGES.failed(self._pulling, error)

    def _pull(self, limit: int) -> Received:
        timeout = _OUTAGE_SECONDS if self._pulling in OUTAGES.current() else RECEIVE_SECONDS
        began_us = int(time.time() * MICROS)
        try:
            response = subscriber().pull(
                subscription=self.path, max_messages=limit, retry=None, timeout=timeout
            )
        except exceptions.DeadlineExceeded:
            response = PullResponse()
        # The plain protocol buffer: reading the wrapper's fields takes longer than the pull.
        messages = [self._message(received) for received in PullResponse.pb(response).received_messages]
        # Pub/Sub delivers the oldest messages first, and an empty answer means that none are left.
        return Received(messages, max((message.publish_us for message, _ in messages), default=began_us))

    def _message(self, received: Any) -> tuple[Message, str]:
        message = received.message
        publish_us = message.publish_time.seconds * MICROS + message.publish_time.nanos // 1000
        return (
            Message(message.data, dict(message.attributes), self.path, message.message_id, publish_us),
            received.ack_id,
        )

    def _request(
        self, call: Callable[..., object], ack_ids: Sequence[str], patience: float, **arguments: Any
    ) -> None:
        retry = Retry(
            predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT),
            initial=0.1,
            maximum=10.0,
            timeout=patience,
        )
        ids = list(ack_ids)
        retry(call)(subscription=self.path, ack_ids=ids, **arguments, retry=None, timeout=_REQUEST_SECONDS)


def _explanation(path: str, error: Exception) -> str:
    if isinstance(error, exceptions.NotFound):
        return f"The subscription {path} does not exist: create it with `python -m pipeline.provision`."
    if isinstance(error, exceptions.PermissionDenied):
        return f"The subscription {path} may not be read with these credentials: they lack a role for it."
    return f"The subscription {path} cannot be read: {str(error).partition('\n')[0]}"
