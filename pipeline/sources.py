"""Where messages come from: Pub/Sub subscriptions, or files of JSON lines."""

import time
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io import ReadAllFromText, ReadFromPubSub
from apache_beam.io.gcp.pubsub import PubsubMessage

from pipeline.options import RehabOptions, runner_name
from transforms.message import PUBLISH_ID_ATTRIBUTE, Message
from transforms.times import MICROS, to_micros


class ReadMessages(beam.PTransform[Any, Any]):
    """PBegin → Message, from the source that the options name."""

    def __init__(self, options: RehabOptions) -> None:
        """With checked options."""
        super().__init__()
        self._options = options

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Message]:
        if self._options.is_bounded:
            return pipeline | "Read files" >> ReadFiles(self._options.input_patterns)
        messages = [
            pipeline | f"Read {role}" >> _read_subscription(subscription, self._options)
            for role, subscription in self._options.subscriptions.items()
        ]
        return messages | "Both subscriptions" >> beam.Flatten()


def _read_subscription(subscription: str, options: RehabOptions) -> beam.PTransform[Any, Any]:
    runner = runner_name(options)
    if runner.endswith("DirectRunner"):
        # Imported here because it is tied to one version of Beam, which other runners need not be.
        from pipeline.direct import ReadFromPubSubDirect

        return ReadFromPubSubDirect(subscription, hold_seconds=options.batch_timeout_ms / 1000)
    return ReadSubscription(subscription, PUBLISH_ID_ATTRIBUTE if runner.endswith("DataflowRunner") else None)


class ReadSubscription(beam.PTransform[Any, Any]):
    """PBegin → Message, by Beam's own read."""

    def __init__(self, subscription: str, id_label: str | None) -> None:
        """`id_label` is the attribute by which the runner drops duplicates, if it can."""
        super().__init__()
        self._subscription = subscription
        self._id_label = id_label

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Message]:
        return (
            pipeline
            | "Pull"
            >> ReadFromPubSub(subscription=self._subscription, id_label=self._id_label, with_attributes=True)
            | "To message" >> beam.ParDo(_ToMessage(self._subscription)).with_output_types(Message)
        )


class _ToMessage(beam.DoFn):
    def __init__(self, subscription: str) -> None:
        self._subscription = subscription

    def process(self, message: PubsubMessage, timestamp: Any = beam.DoFn.TimestampParam) -> list[Message]:
        # Not every runner passes the publish time on; then it is the element's timestamp.
        publish_us = to_micros(message.publish_time) if message.publish_time else timestamp.micros
        return [
            Message(
                message.data or b"",
                dict(message.attributes or {}),
                self._subscription,
                message.message_id or "",
                publish_us,
            )
        ]


class ReadFiles(beam.PTransform[Any, Any]):
    """PBegin → Message, one for each line that is not blank; they count as published when they are read."""

    def __init__(self, patterns: list[str]) -> None:
        """`patterns` are paths or globs of any file system that Beam knows."""
        super().__init__()
        self._patterns = patterns

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Message]:
        return (
            pipeline
            | "Patterns" >> beam.Create(self._patterns)
            | "Lines" >> ReadAllFromText(coder=BytesCoder(), with_filename=True)
            | "To message" >> beam.FlatMap(_line_message).with_output_types(Message)
        )


def _line_message(line: tuple[str, bytes]) -> list[Message]:
    file_name, payload = line
    return [Message(payload, {}, file_name, "", int(time.time() * MICROS))] if payload.strip() else []
