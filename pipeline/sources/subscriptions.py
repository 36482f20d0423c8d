"""Reads Pub/Sub subscriptions with Beam's own read, and gathers messages into lists."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io import ReadFromPubSub
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.pubsub_v1.types import PubsubMessage
from msgspec.structs import replace

from transforms.message import Message
from transforms.times import MICROS

# Limits of a gathered list: a message may have 10 MB, and the more objects are alive at a time, the longer
# Python's garbage collection takes.
_GATHERED_MESSAGES = 100
_GATHERED_BYTES = 4 * 1024 * 1024


def giving_chunks(dofn: beam.DoFn) -> Any:
    """The ParDo of a DoFn that emits lists of messages."""
    return beam.ParDo(dofn).with_output_types(list[Message])


class ReadSubscription(beam.PTransform[beam.pvalue.PBegin, beam.PCollection[list[Message]]]):
    """PBegin → [Message, …], by Beam's own read."""

    def __init__(self, subscription: str, id_label: str | None) -> None:
        """`id_label` is the attribute for the runner's own deduplication, None if it has none."""
        super().__init__()
        self._subscription = subscription
        self._id_label = id_label

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        return (
            pipeline
            | "Pull" >> _Pull(subscription=self._subscription, id_label=self._id_label, with_attributes=True)
            | "To messages" >> giving_chunks(_ToMessages(self._subscription))
            | "Date" >> giving_chunks(_Date())
        )


class _Pull(ReadFromPubSub):
    """Beam's read without its last step: messages stay encoded as plain protocol buffers.

    Beam decodes them through wrappers that take longer than our validation.
    """

    def expand_continued(self, pcoll: beam.PCollection[bytes]) -> beam.PCollection[bytes]:
        return pcoll


class _Gather(beam.DoFn):
    """→ [Message, …]: the messages of a bundle, in lists of limited size."""

    def start_bundle(self) -> None:
        self._messages: list[Message] = []
        self._bytes = 0

    def _take(self, message: Message) -> Iterable[WindowedValue]:
        self._messages.append(message)
        self._bytes += len(message.payload)
        if len(self._messages) < _GATHERED_MESSAGES and self._bytes < _GATHERED_BYTES:
            return ()
        gathered = list(self.finish_bundle())
        self.start_bundle()
        return gathered

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._messages:
            # The oldest publish time, so that the list holds the watermark back while in flight.
            oldest = Timestamp(micros=min(message.publish_us for message in self._messages))
            yield WindowedValue(self._messages, oldest, (GlobalWindow(),))


class GatherMessages(_Gather):
    """Message → [Message, …]."""

    def process(self, message: Message) -> Iterable[WindowedValue]:
        return self._take(message)


class _ToMessages(_Gather):
    def __init__(self, subscription: str) -> None:
        self._subscription = subscription

    def process(self, encoded: bytes) -> Iterable[WindowedValue | list[Message]]:
        arrived = PubsubMessage.pb().FromString(encoded)
        publish_us = arrived.publish_time.seconds * MICROS + arrived.publish_time.nanos // 1000
        attributes = dict(arrived.attributes)
        message = Message(arrived.data, attributes, self._subscription, arrived.message_id, publish_us)
        # Not every runner passes on the publish time. Without it, the message goes on alone, to be dated.
        return self._take(message) if publish_us else ([message],)


class _Date(beam.DoFn):
    """[Message, …] → the same; a message without a publish time gets the element's timestamp.

    This is a separate step because Beam takes longer to pass each message's timestamp than to decode it.
    """

    def process(
        self, messages: list[Message], timestamp: Any = beam.DoFn.TimestampParam
    ) -> tuple[list[Message]]:
        if messages[0].publish_us:
            return (messages,)
        return ([replace(message, publish_us=timestamp.micros) for message in messages],)
