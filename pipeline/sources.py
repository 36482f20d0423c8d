"""Where messages come from: Pub/Sub subscriptions, or files of JSON lines."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io import ReadFromPubSub
from apache_beam.io.fileio import MatchAll
from apache_beam.io.filesystem import CompressionTypes, FileMetadata
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.pubsub_v1.types import PubsubMessage
from msgspec.structs import replace

from pipeline.options import RehabOptions, runner_name
from transforms.message import PUBLISH_ID_ATTRIBUTE, Message
from transforms.times import MICROS

# What one worker reads of a file at a time, and what it hands on at a time.
_PART_BYTES = 2 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024

# What is gathered of a subscription's messages at most: a message may be of 10 MB, and the more objects there
# are at a time, the longer Python takes to look for those that are not used any more.
_GATHERED_MESSAGES = 100
_GATHERED_BYTES = 4 * 1024 * 1024


class ReadMessages(beam.PTransform[Any, Any]):
    """PBegin → [Message, …], from the subscriptions or the files that the options name."""

    def __init__(self, options: RehabOptions) -> None:
        """With checked options."""
        super().__init__()
        self._options = options

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        if self._options.is_bounded:
            return pipeline | "Read files" >> ReadFiles(self._options.input_patterns)
        messages = [
            _read(pipeline, role, subscription, self._options)
            for role, subscription in self._options.subscriptions.items()
        ]
        return messages | "Both subscriptions" >> beam.Flatten()


def _read(pipeline: beam.pvalue.PBegin, role: str, subscription: str, options: RehabOptions) -> Any:
    runner = runner_name(options)
    if runner.endswith("DirectRunner"):
        # Imported here because it is tied to one version of Beam, which other runners need not be.
        from pipeline.direct import ReadFromPubSubDirect

        read = ReadFromPubSubDirect(subscription, hold_seconds=options.batch_timeout_ms / 1000)
        return pipeline | f"Read {role}" >> read | f"Gather {role}" >> _giving_chunks(_GatherMessages())
    id_label = PUBLISH_ID_ATTRIBUTE if runner.endswith("DataflowRunner") else None
    return pipeline | f"Read {role}" >> ReadSubscription(subscription, id_label)


def _giving_chunks(dofn: beam.DoFn) -> Any:
    return beam.ParDo(dofn).with_output_types(list[Message])


class ReadSubscription(beam.PTransform[Any, Any]):
    """PBegin → [Message, …], by Beam's own read."""

    def __init__(self, subscription: str, id_label: str | None) -> None:
        """`id_label` is the attribute by which the runner drops duplicates, if it can."""
        super().__init__()
        self._subscription = subscription
        self._id_label = id_label

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        return (
            pipeline
            | "Pull" >> _Pull(subscription=self._subscription, id_label=self._id_label, with_attributes=True)
            | "To messages" >> _giving_chunks(_ToMessages(self._subscription))
            | "Date" >> _giving_chunks(_Date())
        )


class _Pull(ReadFromPubSub):
    """Beam's read, but for its last step: each message stays encoded as a plain protocol buffer.

    Beam would decode it through wrappers that take longer than its validation.
    """

    def expand_continued(self, pcoll: beam.PCollection[bytes]) -> beam.PCollection[bytes]:
        return pcoll


class _Gather(beam.DoFn):
    """→ [Message, …], those of a bundle, but not too many at a time."""

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
            # As old as the oldest of them, so that they hold back the watermark while they are on their way.
            oldest = Timestamp(micros=min(message.publish_us for message in self._messages))
            yield WindowedValue(self._messages, oldest, (GlobalWindow(),))


class _GatherMessages(_Gather):
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
        # Not every runner passes the publish time on; then the message goes on alone, to be dated.
        return self._take(message) if publish_us else ([message],)


class _Date(beam.DoFn):
    """[Message, …] → the same; a message without publish time gets the element's timestamp for it.

    A step of its own, because to be told the timestamp of each message takes Beam longer than to decode it.
    """

    def process(
        self, messages: list[Message], timestamp: Any = beam.DoFn.TimestampParam
    ) -> tuple[list[Message]]:
        if messages[0].publish_us:
            return (messages,)
        return ([replace(message, publish_us=timestamp.micros) for message in messages],)


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
            | "Lines" >> _giving_chunks(ReadLines())
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
