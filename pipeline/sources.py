"""Where messages come from: Pub/Sub subscriptions, or files of JSON lines."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io import ReadFromPubSub
from apache_beam.io.fileio import MatchAll
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from google.pubsub_v1.types import PubsubMessage

from pipeline.options import RehabOptions, runner_name
from transforms.message import PUBLISH_ID_ATTRIBUTE, Message
from transforms.times import MICROS

# What one worker reads of a file at a time, and what it hands on at a time.
_PART_BYTES = 2 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024


class ReadMessages(beam.PTransform[Any, Any]):
    """PBegin → Message, from the subscriptions that the options name, or [Message, …] from the files."""

    def __init__(self, options: RehabOptions) -> None:
        """With checked options."""
        super().__init__()
        self._options = options

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Any]:
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
            | "Pull" >> _Pull(subscription=self._subscription, id_label=self._id_label, with_attributes=True)
            | "To message" >> beam.ParDo(_ToMessage(self._subscription)).with_output_types(Message)
        )


class _Pull(ReadFromPubSub):
    """Beam's read, but for its last step: each message stays encoded as a plain protocol buffer.

    Beam would decode it through wrappers that take longer than its validation.
    """

    def expand_continued(self, pcoll: beam.PCollection[bytes]) -> beam.PCollection[bytes]:
        return pcoll


class _ToMessage(beam.DoFn):
    def __init__(self, subscription: str) -> None:
        self._subscription = subscription

    def process(self, encoded: bytes, timestamp: Any = beam.DoFn.TimestampParam) -> list[Message]:
        message = PubsubMessage.pb().FromString(encoded)
        # Not every runner passes the publish time on; then it is the element's timestamp.
        published = message.publish_time
        publish_us = published.seconds * MICROS + published.nanos // 1000 or timestamp.micros
        return [
            Message(
                message.data, dict(message.attributes), self._subscription, message.message_id, publish_us
            )
        ]


class ReadFiles(beam.PTransform[Any, Any]):
    """PBegin → [Message, …]: one for each line that is not blank, published when it is read."""

    def __init__(self, patterns: list[str]) -> None:
        """`patterns` are paths or globs of any file system that Beam knows."""
        super().__init__()
        self._patterns = patterns

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        return (
            pipeline
            | "Patterns" >> beam.Create(self._patterns)
            | "Match" >> MatchAll()
            | "Parts" >> beam.FlatMap(_parts).with_output_types(tuple[str, int, int])
            | "Spread" >> beam.Reshuffle()
            | "Lines" >> beam.ParDo(ReadLines()).with_output_types(list[Message])
        )


def _parts(file: FileMetadata) -> list[tuple[str, int, int]]:
    """(path, begin, end) of parts that can be read side by side, in bytes; what is compressed is one."""
    path, size = file.path, file.size_in_bytes
    if CompressionTypes.detect_compression_type(path) != CompressionTypes.UNCOMPRESSED:
        return [(path, 0, sys.maxsize)]
    return [(path, begin, begin + _PART_BYTES) for begin in range(0, size, _PART_BYTES)]


class ReadLines(beam.DoFn):
    """(path, begin, end) → the messages of the lines that begin in that part of the file, many at a time.

    Beam's own read hands over each line by itself, which costs more than to parse it.
    """

    def process(self, part: tuple[str, int, int]) -> Iterator[list[Message]]:
        path, begin, end = part
        with FileSystems.open(path) as file:
            at = begin
            if begin:
                # A line that begins before is another part's; its end may be the byte before this part.
                file.seek(begin - 1)
                at += len(file.readline()) - 1
            rest = b""
            while at < end and (block := file.read(_BLOCK_BYTES)):
                rest += block
                # The line in which the part ends is this part's.
                cut = rest.rfind(b"\n") if at + len(rest) < end else rest.find(b"\n", end - at - 1)
                if cut >= 0:
                    yield _messages(path, rest[:cut])
                    at, rest = at + cut + 1, rest[cut + 1 :]
            if rest and at < end:
                yield _messages(path, rest)


def _messages(path: str, lines: bytes) -> list[Message]:
    now_us = int(time.time() * MICROS)
    stripped = (line.removesuffix(b"\r") for line in lines.split(b"\n"))
    return [Message(line, {}, path, "", now_us) for line in stripped if line and not line.isspace()]
