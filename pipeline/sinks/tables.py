"""Writes rows to BigQuery tables, or to files."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.options import RehabOptions
from pipeline.runners import Runner
from pipeline.sinks.bigquery import TableWriter
from pipeline.sinks.lines import WriteLines
from pipeline.sinks.sink import TableSink
from pipeline.tables import TABLES
from transforms.dead_letters import WRITE_REJECTED, DeadLetter
from transforms.message import Message
from transforms.rows import Row, unpack_row
from transforms.steps.batching import Batch, newest_versions
from transforms.steps.telemetry import count, observe, observe_latency

# BigQuery's recommended maximum for a request.
ROWS_AT_ONCE = 500


class WriteTable(beam.PTransform[beam.PCollection[Row], beam.PCollection[DeadLetter]]):
    """Row → DeadLetter for each row that BigQuery refuses. Rows are written in batches."""

    def __init__(self, table: str, options: RehabOptions, last_resort: bool = False) -> None:
        """The options must have been checked. A `last_resort` fails when BigQuery refuses a row."""
        super().__init__()
        self._table = table
        self._options = options
        self._last_resort = last_resort

    def expand(self, rows: beam.PCollection[Row]) -> beam.PCollection[DeadLetter]:
        options, table = self._options, self._table
        if options.output_dir:
            prefix = os.path.join(options.output_dir, table)
            (rows,) | WriteLines(prefix, options.runs_on is Runner.DIRECT)
        if not options.dataset:
            return rows.pipeline | "None refused" >> beam.Create([])
        timeout = options.batch_timeout_ms / 1000
        # Staggered, so that the tables do not write at the same moment and wait for each other.
        began = time.time() + timeout * list(TABLES).index(table) / len(TABLES)
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

    The batches of a bundle are written together: a request for several takes about as long as for one.
    """

    def __init__(self, dataset: str, table: str, last_resort: bool = False) -> None:
        """`dataset` is PROJECT.DATASET."""
        self._dataset = dataset
        self._table = table
        self._last_resort = last_resort

    def setup(self) -> None:
        self._sink: TableSink = TableWriter(self._dataset, self._table)

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
        rejections = self._sink.write(newest_versions(rows))
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
