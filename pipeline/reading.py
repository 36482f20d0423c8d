"""Reads the job's messages from Pub/Sub subscriptions or from files of JSON lines."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline.cloud.files import InputFile
from pipeline.direct.subscription import ReadFromPubSubDirect
from pipeline.options import RehabOptions
from pipeline.reporting.meter import UNMETERED, Meter
from pipeline.runners import Runner
from pipeline.sources.lines import ReadFiles
from pipeline.sources.subscriptions import GatherMessages, ReadSubscription, giving_chunks
from transforms.message import PUBLISH_ID_ATTRIBUTE, Message


class ReadMessages(beam.PTransform[beam.pvalue.PBegin, beam.PCollection[list[Message]]]):
    """PBegin → [Message, …], from the subscriptions or the files."""

    def __init__(self, options: RehabOptions, files: Sequence[InputFile], meter: Meter = UNMETERED) -> None:
        """The options must have been checked. A bounded run reads `files` and reports to `meter`."""
        super().__init__()
        self._options = options
        self._files = files
        self._meter = meter

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        if self._options.is_bounded:
            return pipeline | "Read files" >> ReadFiles(self._files, self._meter)
        messages = [
            _read(pipeline, role, subscription, self._options)
            for role, subscription in self._options.subscriptions.items()
        ]
        return messages | "Both subscriptions" >> beam.Flatten()


def _read(pipeline: beam.pvalue.PBegin, role: str, subscription: str, options: RehabOptions) -> Any:
    if options.runs_on is Runner.DIRECT:
        read = ReadFromPubSubDirect(subscription, hold_seconds=options.batch_timeout_ms / 1000)
        return pipeline | f"Read {role}" >> read | f"Gather {role}" >> giving_chunks(GatherMessages())
    id_label = PUBLISH_ID_ATTRIBUTE if options.runs_on is Runner.DATAFLOW else None
    return pipeline | f"Read {role}" >> ReadSubscription(subscription, id_label)
