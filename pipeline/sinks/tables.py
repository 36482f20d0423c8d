"""Where results go: BigQuery tables and the nudge topic, or files."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io import WriteToPubSub, WriteToText
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.pubsub_v1 import types as pubsub

from pipeline.cloud.clients import publisher
from pipeline.options import RehabOptions, runner_name
from pipeline.provision import TABLES
from pipeline.sinks.bigquery import TableWriter
from pipeline.sinks.results import unfinished_path
from transforms.dead_letters import WRITE_REJECTED, DeadLetter
from transforms.message import Message
from transforms.rows import Row, unpack_row
from transforms.steps.batching import Batch, newest_versions
from transforms.steps.chunks import NudgeChunk
from transforms.steps.tagging import together
from transforms.steps.telemetry import count, observe, observe_latency

PUBLISH_TIMEOUT_SECONDS = 600
# As BigQuery recommends for a request.
ROWS_AT_ONCE = 500
LINES_AT_ONCE = 1000


class WriteTable(beam.PTransform[Any, Any]):
    """Row → DeadLetter for each row that BigQuery refuses, by way of batches."""

    def __init__(self, table: str, options: RehabOptions, last_resort: bool = False) -> None:
        """With checked options; a `last_resort` has nowhere to put what BigQuery refuses, and fails."""
        super().__init__()
        self._table = table
        self._options = options
        self._last_resort = last_resort

    def expand(self, rows: beam.PCollection[Row]) -> beam.PCollection[DeadLetter]:
        options, table = self._options, self._table
        if options.output_dir:
            (rows,) | WriteLines(os.path.join(options.output_dir, table), _is_direct(options))
        if not options.dataset:
            return rows.pipeline | "None refused" >> beam.Create([])
        timeout = options.batch_timeout_ms / 1000
        # Each table has a moment of its own, so that they do not wait for each other.
        began = time.time() + timeout * TABLES.index(table) / len(TABLES)
        write = WriteBatch(options.dataset, table, self._last_resort)
        return (
            rows
            | "Batch" >> Batch(options.batch_size, timeout, options.batchers, began=began)
            | "Write" >> beam.ParDo(write).with_output_types(DeadLetter)
        )


class _Batch(NamedTuple):
    rows: list[Row]
    timestamp: Timestamp


class WriteBatch(beam.DoFn):
    """(shard, packed rows) → DeadLetter for each row that BigQuery refuses.

    The batches of a bundle are written together: a request of several takes about as long as that of one.
    """

    def __init__(self, dataset: str, table: str, last_resort: bool = False) -> None:
        """`dataset` is PROJECT.DATASET."""
        self._dataset = dataset
        self._table = table
        self._last_resort = last_resort

    def setup(self) -> None:
        self._writer = TableWriter(self._dataset, self._table)

    def start_bundle(self) -> None:
        self._batches: list[_Batch] = []

    def process(
        self, batch: tuple[int, Iterable[bytes]], timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[WindowedValue]:
        self._batches.append(_Batch([unpack_row(row) for row in batch[1]], timestamp))
        if sum(len(batch.rows) for batch in self._batches) >= ROWS_AT_ONCE:
            yield from self._write()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._batches:
            yield from self._write()

    def _write(self) -> Iterator[WindowedValue]:
        batches, self._batches = self._batches, []
        rows = [row for batch in batches for row in batch.rows]
        began = time.time()
        rejections = self._writer.write(newest_versions(rows))
        ended = time.time()
        observe("write_ms", int((ended - began) * 1000))
        for batch in batches:
            count(f"batch.processed.{self._table}")
            observe(f"batch.size.{self._table}", len(batch.rows))
        for row in rows:
            observe_latency(max(0, int(ended * 1000 - row.publish_us / 1000)))
        if rejections and self._last_resort:
            raise RuntimeError(
                f"BigQuery refuses rows of {self._table} ({rejections[0].error}): "
                "its schema is not this release's; run pipeline.provision."
            )
        earliest = min(batch.timestamp for batch in batches)
        for row, error in rejections:
            message = Message(row.body, {"table": self._table}, "", "", row.publish_us)
            letter = DeadLetter(WRITE_REJECTED, f"Write {self._table}", error, message)
            yield GlobalWindows.windowed_value(letter, timestamp=earliest)


class WriteLines(beam.PTransform[Any, Any]):
    """(PCollection of Row or NudgeChunk, …) → a line of `<prefix>*.jsonl` for each row or nudge."""

    def __init__(self, prefix: str, in_process: bool) -> None:
        """`prefix` is of any file system that Beam knows; `in_process`: the DirectRunner runs it."""
        super().__init__()
        self._prefix = prefix
        self._in_process = in_process

    def expand(self, written: Any) -> Any:
        lines = [
            each | f"Lines {number}" >> beam.ParDo(_JoinLines()).with_output_types(bytes)
            for number, each in enumerate(written, start=1)
        ]
        written_lines = together(lines, bytes)
        if self._in_process:
            return written_lines | "Files" >> beam.ParDo(WriteFile(self._prefix))
        return written_lines | "Files" >> WriteToText(self._prefix, ".jsonl", coder=BytesCoder())


class WriteFile(beam.DoFn):
    """Lines → nothing: writes those of a bundle to a file of its own, for `results_folder` to name.

    For the DirectRunner, where no bundle is run twice. Beam's own write takes its path for a pattern when it
    moves its files, and leaves them behind when the run is stopped.
    """

    def __init__(self, prefix: str) -> None:
        """`prefix` is a folder and the name of the results."""
        self._prefix = prefix

    def start_bundle(self) -> None:
        self._file: BinaryIO | None = None

    def process(self, lines: bytes) -> None:
        if self._file is None:
            self._file = FileSystems.create(unfinished_path(self._prefix))
        self._file.write(lines + b"\n")

    def finish_bundle(self) -> None:
        if self._file is not None:
            self._file.close()


class _JoinLines(beam.DoFn):
    """Many lines in one value: writing costs as much for one as for many."""

    def start_bundle(self) -> None:
        self._lines: list[bytes] = []

    def process(self, written: Row | NudgeChunk) -> Iterable[bytes]:
        self._lines += (
            [nudge.body for nudge in written] if isinstance(written, NudgeChunk) else [written.body]
        )
        if len(self._lines) < LINES_AT_ONCE:
            return ()
        joined = b"\n".join(self._lines)
        self.start_bundle()
        return (joined,)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._lines:
            yield GlobalWindows.windowed_value(b"\n".join(self._lines))


class WriteNudges(beam.PTransform[Any, Any]):
    """{projection: PCollection of NudgeChunk} → the nudge topic, or files of each projection."""

    def __init__(self, options: RehabOptions) -> None:
        """With checked options."""
        super().__init__()
        self._options = options

    def expand(self, sources: Any) -> None:
        options = self._options
        if options.output_dir:
            # Not joined first: in several processes, all nudges would pass through the runner's.
            for projection, source in sources.items():
                prefix = os.path.join(options.output_dir, f"nudges-{projection}")
                (source,) | f"Of {projection}" >> WriteLines(prefix, _is_direct(options))
            return
        nudges = together(tuple(sources.values()), NudgeChunk)
        if options.nudge_topic and _is_direct(options):
            nudges | "Publish" >> beam.ParDo(PublishNudges(options.nudge_topic))
        elif options.nudge_topic:
            (
                nudges
                | "To messages" >> beam.FlatMap(nudge_messages)
                | "Publish" >> WriteToPubSub(options.nudge_topic, with_attributes=True)
            )


def _is_direct(options: RehabOptions) -> bool:
    return runner_name(options).endswith("DirectRunner")


class _Outgoing(PubsubMessage):
    """Encoded as a plain protocol buffer: Beam's wrappers take longer than what leads to a nudge."""

    def _to_proto_str(self, for_publish: bool = False) -> bytes:
        encoded: bytes = pubsub.PubsubMessage.pb()(
            data=self.data, attributes=self.attributes
        ).SerializeToString()
        return encoded


def nudge_messages(nudges: NudgeChunk) -> list[PubsubMessage]:
    """The messages for the nudge topic."""
    return [_Outgoing(nudge.body, nudge.attributes) for nudge in nudges]


class PublishNudges(beam.DoFn):
    """NudgeChunk → nothing: publishes each nudge; the bundle ends when Pub/Sub has confirmed them all.

    For the DirectRunner, where Beam's own write makes a new client for every bundle.
    """

    def __init__(self, topic: str) -> None:
        """`topic` is projects/PROJECT/topics/NAME."""
        self._topic = topic

    def start_bundle(self) -> None:
        self._pending: list[Any] = []

    def process(self, nudges: NudgeChunk) -> None:
        for nudge in nudges:
            attributes: dict[str, Any] = dict(nudge.attributes)
            self._pending.append(publisher().publish(self._topic, nudge.body, **attributes))

    def finish_bundle(self) -> None:
        for future in self._pending:
            future.result(PUBLISH_TIMEOUT_SECONDS)
