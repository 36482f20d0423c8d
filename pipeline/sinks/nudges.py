"""Publishes nudges to the nudge topic, or writes them to files."""

import os
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam.io import WriteToPubSub
from apache_beam.io.gcp.pubsub import PubsubMessage
from google.pubsub_v1 import types as pubsub

from pipeline.cloud.clients import publisher
from pipeline.options import RehabOptions
from pipeline.runners import Runner
from pipeline.sinks.lines import WriteLines
from transforms.steps.chunks import NudgeChunk
from transforms.steps.tagging import together

PUBLISH_TIMEOUT_SECONDS = 600


class WriteNudges(beam.PTransform[Mapping[str, beam.PCollection[NudgeChunk]], None]):
    """{projection: PCollection of NudgeChunk} → nothing: writes to the nudge topic, or to a file set each."""

    def __init__(self, options: RehabOptions) -> None:
        """The options must have been checked."""
        super().__init__()
        self._options = options

    def expand(self, sources: Mapping[str, beam.PCollection[NudgeChunk]]) -> None:
        options, in_process = self._options, self._options.runs_on is Runner.DIRECT
        if options.output_dir:
            # Not flattened first: with several processes, all nudges would pass through the runner's process.
            for projection, source in sources.items():
                prefix = os.path.join(options.output_dir, f"nudges-{projection}")
                (source,) | f"Of {projection}" >> WriteLines(prefix, in_process)
            return
        nudges = together(tuple(sources.values()), NudgeChunk)
        if options.nudge_topic and in_process:
            nudges | "Publish" >> beam.ParDo(PublishNudges(options.nudge_topic))
        elif options.nudge_topic:
            (
                nudges
                | "To messages" >> beam.FlatMap(nudge_messages)
                | "Publish" >> WriteToPubSub(options.nudge_topic, with_attributes=True)
            )


class _Outgoing(PubsubMessage):
    """Encodes as a plain protocol buffer: Beam's wrappers take longer than computing a nudge."""

    def _to_proto_str(self, for_publish: bool = False) -> bytes:
        encoded: bytes = pubsub.PubsubMessage.pb()(
            data=self.data, attributes=self.attributes
        ).SerializeToString()
        return encoded


def nudge_messages(nudges: NudgeChunk) -> list[PubsubMessage]:
    """The messages for the nudge topic."""
    return [_Outgoing(nudge.body, nudge.attributes) for nudge in nudges]


class PublishNudges(beam.DoFn):
    """NudgeChunk → nothing: publishes each nudge. A bundle ends when Pub/Sub has confirmed them all.

    For the DirectRunner, on which Beam's own write creates a client for every bundle.
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
