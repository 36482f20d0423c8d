"""Where results go: BigQuery tables and the nudge topic, or files."""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io import WriteToPubSub, WriteToText
from apache_beam.io.gcp.pubsub import PubsubMessage

from pipeline.bigquery import TableWriter
from pipeline.clients import publisher
from pipeline.options import RehabOptions, runner_name
from transforms.batching import Batch, newest_versions
from transforms.dead_letters import DeadLetter
from transforms.message import Message
from transforms.policy import Nudge
from transforms.rows import Row
from transforms.telemetry import count, observe, observe_latency

PUBLISH_TIMEOUT_SECONDS = 600


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
            (
                rows
                | "Lines" >> beam.Map(_line)
                | "Files" >> WriteToText(os.path.join(options.output_dir, table), ".jsonl")
            )
        if not options.dataset:
            return rows.pipeline | "None refused" >> beam.Create([])
        write = WriteBatch(options.dataset, table, self._last_resort)
        return (
            rows
            | "Batch" >> Batch(options.batch_size, options.batch_timeout_ms / 1000, options.batchers)
            | "Write" >> beam.ParDo(write).with_output_types(DeadLetter)
        )


class WriteBatch(beam.DoFn):
    """(shard, rows as tuples) → DeadLetter for each row that BigQuery refuses."""

    def __init__(self, dataset: str, table: str, last_resort: bool = False) -> None:
        """`dataset` is PROJECT.DATASET."""
        self._dataset = dataset
        self._table = table
        self._last_resort = last_resort

    def setup(self) -> None:
        self._writer = TableWriter(self._dataset, self._table)

    def process(self, batch: tuple[int, Iterable[tuple[Any, ...]]]) -> Iterator[DeadLetter]:
        rows = [Row(*row) for row in batch[1]]
        started = time.time()
        rejections = self._writer.write(newest_versions(rows))
        ended = time.time()
        observe("write_ms", int((ended - started) * 1000))
        count(f"batch.processed.{self._table}")
        observe(f"batch.size.{self._table}", len(rows))
        for row in rows:
            observe_latency(max(0, int(ended * 1000 - row.publish_us / 1000)))
        if rejections and self._last_resort:
            raise RuntimeError(
                f"BigQuery refuses rows of {self._table} ({rejections[0].error}): "
                "its schema is not this release's; run pipeline.provision."
            )
        for rejection in rejections:
            row = rejection.row
            message = Message(row.body, {"table": self._table}, "", "", row.publish_us)
            yield DeadLetter("write_rejected", f"Write {self._table}", rejection.error, message)


def _line(written: Row | Nudge) -> str:
    return written.body.decode()


class WriteNudges(beam.PTransform[Any, Any]):
    """Nudge → the nudge topic, or files."""

    def __init__(self, options: RehabOptions) -> None:
        """With checked options."""
        super().__init__()
        self._options = options

    def expand(self, nudges: beam.PCollection[Nudge]) -> None:
        options = self._options
        if options.output_dir:
            (
                nudges
                | "Lines" >> beam.Map(_line)
                | "Files" >> WriteToText(os.path.join(options.output_dir, "nudges"), ".jsonl")
            )
        elif options.nudge_topic and runner_name(options).endswith("DirectRunner"):
            nudges | "Publish" >> beam.ParDo(PublishNudges(options.nudge_topic))
        elif options.nudge_topic:
            (
                nudges
                | "To message" >> beam.Map(_pubsub_message)
                | "Publish" >> WriteToPubSub(options.nudge_topic, with_attributes=True)
            )


def _pubsub_message(nudge: Nudge) -> PubsubMessage:
    return PubsubMessage(nudge.body, nudge.attributes)


class PublishNudges(beam.DoFn):
    """Publishes each Nudge; the bundle ends when Pub/Sub has confirmed them all.

    For the DirectRunner, where Beam's own write makes a new client for every bundle.
    """

    def __init__(self, topic: str) -> None:
        """`topic` is projects/PROJECT/topics/NAME."""
        self._topic = topic

    def start_bundle(self) -> None:
        self._pending: list[Any] = []

    def process(self, nudge: Nudge) -> None:
        attributes: dict[str, Any] = dict(nudge.attributes)
        self._pending.append(publisher().publish(self._topic, nudge.body, **attributes))

    def finish_bundle(self) -> None:
        for future in self._pending:
            future.result(PUBLISH_TIMEOUT_SECONDS)
