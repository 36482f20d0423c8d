"""Where messages come from: Pub/Sub subscriptions, or files of JSON lines."""

import sys
import time
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
from apache_beam.io import ReadFromPubSub
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.api_core.exceptions import GoogleAPIError
from google.pubsub_v1.types import PubsubMessage
from msgspec.structs import replace

from pipeline.cloud.files import InputFile
from pipeline.errors import InputFileError
from pipeline.options import RehabOptions, runner_name
from pipeline.reporting.meter import UNMETERED, Meter
from pipeline.sources.compression import DAMAGE, decompressed, is_compressed
from transforms.message import PUBLISH_ID_ATTRIBUTE, Message
from transforms.steps.telemetry import count
from transforms.times import MICROS

# What one worker reads of a file at a time, and what it hands on at a time.
_PART_BYTES = 2 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024

# What is gathered of a subscription's messages at most: a message may be of 10 MB, and the more objects there
# are at a time, the longer Python takes to look for those that are not used any more.
_GATHERED_MESSAGES = 100
_GATHERED_BYTES = 4 * 1024 * 1024


class ReadMessages(beam.PTransform[Any, Any]):
    """PBegin → [Message, …], from the subscriptions that the options name, or from files."""

    def __init__(self, options: RehabOptions, files: Sequence[InputFile], meter: Meter = UNMETERED) -> None:
        """With checked options; a bounded run reads `files`, and tells `meter` how much it has read."""
        super().__init__()
        self._options = options
        self._files = files
        self._meter = meter

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        if self._options.is_bounded:
            return pipeline | "Read files" >> ReadFiles(self._files, self._meter)
        messages = [
            _read(pipeline, role, subscription, self._options)
            for role, subscription in self._options.subscriptions.items()
        ]
        return messages | "Both subscriptions" >> beam.Flatten()


def _read(pipeline: beam.pvalue.PBegin, role: str, subscription: str, options: RehabOptions) -> Any:
    runner = runner_name(options)
    if runner.endswith("DirectRunner"):
        # Imported here because it is tied to one version of Beam, which other runners need not be.
        from pipeline.direct.runner import ReadFromPubSubDirect

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

    def __init__(self, files: Sequence[InputFile], meter: Meter = UNMETERED) -> None:
        """`files` are on any file system that Beam knows; `meter` is told how much has been read."""
        super().__init__()
        self._files = files
        self._meter = meter

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        return (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "Parts" >> beam.FlatMap(file_parts).with_output_types(tuple[str, int, int])
            | "Spread" >> beam.Reshuffle()
            | "Lines" >> _giving_chunks(ReadLines(self._meter))
        )


def file_parts(file: InputFile) -> list[tuple[str, int, int]]:
    """(path, begin, end) of parts to read in parallel, in bytes; a compressed file or a pipe is one part."""
    if file.size is None or is_compressed(file.path):
        return [(file.path, 0, sys.maxsize)]
    return [(file.path, begin, begin + _PART_BYTES) for begin in range(0, file.size, _PART_BYTES)]


class ReadLines(beam.DoFn):
    """(path, begin, end) → the messages of the lines that begin in that part of the file, many at a time.

    Beam's own read hands over each line by itself, which costs more than to parse it.
    """

    def __init__(self, meter: Meter = UNMETERED) -> None:
        """`meter` is told how much has been read."""
        self._meter = meter

    def process(self, part: tuple[str, int, int]) -> Iterator[list[Message]]:
        path, begin, end = part
        with _opened(path) as file:
            at = _first_line(file, path, begin)
            rest = b""
            blocks = _blocks(file, path, self._meter)
            while at < end and (block := next(blocks, b"")):
                rest += block
                # The line in which the part ends is this part's.
                cut = rest.rfind(b"\n") if at + len(rest) < end else rest.find(b"\n", end - at - 1)
                if cut >= 0:
                    yield self._read(_messages(path, rest[:cut], at), cut + 1, path)
                    at, rest = at + cut + 1, rest[cut + 1 :]
            if rest and at < end:
                yield self._read(_messages(path, rest, at), len(rest), path)

    def _read(self, messages: list[Message], text_bytes: int, path: str) -> list[Message]:
        count("line.read", len(messages))
        self._meter.read(0 if is_compressed(path) else text_bytes, len(messages))
        return messages


def _opened(path: str) -> BinaryIO:
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (OSError, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _first_line(file: BinaryIO, path: str, begin: int) -> int:
    """Where the first line begins that begins in a part; the file is left there."""
    if not begin:
        return 0
    try:
        # A line that begins before is another part's; its end may be the byte before this part.
        file.seek(begin - 1)
        return begin - 1 + len(file.readline())
    except (OSError, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _blocks(file: BinaryIO, path: str, meter: Meter) -> Iterator[bytes]:
    """What follows in the file, decompressed, in blocks of which none is empty."""
    try:
        if is_compressed(path):
            yield from filter(None, decompressed(file, path, meter.read))
        else:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
    except EOFError:
        raise InputFileError(f"The input file {path} is truncated: its compressed data ends early.") from None
    except (*DAMAGE, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> InputFileError:
    if is_compressed(path) and isinstance(error, DAMAGE) and getattr(error, "strerror", None) is None:
        return InputFileError(f"The input file {path} is damaged: it is not what its name says.")
    cause = getattr(error, "strerror", None) or type(error).__name__
    return InputFileError(f"The input file {path} cannot be read ({cause}).")


def _messages(path: str, lines: bytes, at: int) -> list[Message]:
    """The messages of whole lines that begin at a place in the file."""
    # Spreadsheets and editors put a byte order mark at a file's start; it is no part of the first event.
    text = lines if at else lines.removeprefix(BOM_UTF8)
    now_us = int(time.time() * MICROS)
    stripped = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    return [Message(line, {}, path, "", now_us) for line in stripped if line and not line.isspace()]
