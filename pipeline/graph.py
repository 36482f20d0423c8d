"""The graph: the way of an event from its subscription to the tables and the nudge topic, top to bottom.

Every step has an explicit name. Operators see these names, and a running job can only be updated
while they stay: a recording of each release holds them (tests/releases).
"""

from collections.abc import Sequence

import apache_beam as beam
from apache_beam import coders

from pipeline.cloud.files import InputFile
from pipeline.options import RehabOptions, runner_name
from pipeline.rebuild import KnownPatients, planned_rebuild
from pipeline.reporting.meter import UNMETERED, Meter
from pipeline.sinks.tables import WriteNudges, WriteTable
from pipeline.sources.subscriptions import ReadMessages
from transforms.dead_letters import DeadLetter
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.quality import Quality
from transforms.projections.work_queue import WorkQueue
from transforms.rows import Row
from transforms.steps.chunks import EventChunk, EventChunkCoder, NudgeChunk, NudgeChunkCoder
from transforms.steps.coders import DeadLetterCoder, MessageCoder
from transforms.steps.dead_letters import DeadLetterToRow
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.projection import Projection
from transforms.steps.tagging import tagged
from transforms.steps.validation import DEAD_LETTERS, OUTPUTS, Validate

coders.registry.register_coder(Message, MessageCoder)
coders.registry.register_coder(EventChunk, EventChunkCoder)
coders.registry.register_coder(NudgeChunk, NudgeChunkCoder)
coders.registry.register_coder(DeadLetter, DeadLetterCoder)

# In how many shards a bounded run moves patients: so few on one machine that each has many events at a time,
# so many on Dataflow that the events of one fit in memory, however many there are.
DIRECT_SHARDS = 512
SHARDS = 2**24


def build(
    pipeline: beam.Pipeline,
    options: RehabOptions,
    files: Sequence[InputFile] = (),
    meter: Meter = UNMETERED,
) -> None:
    """Adds every step to the pipeline, as checked options say.

    `files` are what a bounded run reads, `meter` is told its progress.
    """
    settings, bounded = options.settings(), options.is_bounded
    rebuild = planned_rebuild(options)
    known_patients = KnownPatients(options.dataset, rebuild) if options.dataset and not bounded else dict
    shards = DIRECT_SHARDS if runner_name(options).endswith("DirectRunner") else SHARDS

    messages = pipeline | "Read" >> ReadMessages(options, files, meter)

    valid = messages | "Validate" >> tagged(Validate(), OUTPUTS)

    adherence = (valid.adherence,) | "Adherence" >> Projection(
        Adherence(settings), bounded, rebuild, known_patients, shards=shards, meter=meter
    )
    quality = (valid.quality,) | "Quality" >> Projection(
        Quality(settings), bounded, rebuild, known_patients, shards=shards, meter=meter
    )
    review_items = (adherence[REVIEW_ITEMS], quality[REVIEW_ITEMS])
    work_queue = (valid.work_queue, *review_items) | "Work queue" >> Projection(
        WorkQueue(settings),
        bounded,
        rebuild and rebuild.after_findings(),
        known_patients,
        shards=shards,
        meter=meter,
    )

    projections = {"adherence": adherence, "quality": quality, "work_queue": work_queue}
    nudges = {name: projection[NUDGES] for name, projection in projections.items()}
    nudges | "Write nudges" >> WriteNudges(options)

    refused = [
        adherence.adherence | "Write adherence" >> WriteTable("adherence", options),
        adherence.consents | "Write consents" >> WriteTable("consents", options),
        quality.quality | "Write quality" >> WriteTable("quality", options),
        work_queue.work_queue | "Write work_queue" >> WriteTable("work_queue", options),
    ]
    unusable = (valid[DEAD_LETTERS], adherence[DEAD_LETTERS], quality[DEAD_LETTERS], work_queue[DEAD_LETTERS])
    letters = (*unusable, *refused) | "Dead letters" >> beam.Flatten()
    rows = letters | "To rows" >> beam.ParDo(DeadLetterToRow(options.job_name)).with_output_types(Row)
    rows | "Write dead_letters" >> WriteTable("dead_letters", options, last_resort=True)
