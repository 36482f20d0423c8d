"""The graph: an event's path from its subscription to the tables and the nudge topic, top to bottom.

Every step has an explicit name. Operators see these names, and a running job can be updated only if they stay
the same: tests/releases records them for each release.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import apache_beam as beam
from apache_beam import coders

from pipeline.cloud.files import InputFile
from pipeline.options import RehabOptions
from pipeline.outputs import DeadLetters
from pipeline.reading import ReadMessages
from pipeline.rebuild import KnownPatients
from pipeline.reporting.meter import UNMETERED, Meter
from pipeline.runners import Runner
from pipeline.sinks.nudges import WriteNudges
from pipeline.sinks.tables import WriteTable
from transforms.dead_letters import DeadLetter
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.quality import Quality
from transforms.projections.state import KnownPatient
from transforms.projections.work_queue import WorkQueue
from transforms.rows import Row
from transforms.steps.chunks import EventChunk, EventChunkCoder, NudgeChunk, NudgeChunkCoder
from transforms.steps.coders import DeadLetterCoder, MessageCoder
from transforms.steps.dead_letters import DeadLetterToRow
from transforms.steps.projection import Projection
from transforms.steps.rebuilding import Rebuild
from transforms.steps.tagging import tagged
from transforms.steps.validation import OUTPUTS, Validate

coders.registry.register_coder(Message, MessageCoder)
coders.registry.register_coder(EventChunk, EventChunkCoder)
coders.registry.register_coder(NudgeChunk, NudgeChunkCoder)
coders.registry.register_coder(DeadLetter, DeadLetterCoder)

# Shuffle shards in a bounded run. Few on one machine, so that batches are large; many on Dataflow, so that a
# shard fits in memory.
DIRECT_SHARDS = 512
SHARDS = 2**24


def build(
    pipeline: beam.Pipeline,
    options: RehabOptions,
    files: Sequence[InputFile] = (),
    meter: Meter = UNMETERED,
    rebuild: Rebuild | None = None,
) -> None:
    """Adds every step to the pipeline; the options must have been checked.

    A bounded run reads `files` and reports its progress to `meter`. `rebuild` is the plan of a job that
    rebuilds its state from the events that Pub/Sub retains.
    """
    settings = options.settings(rebuilt_since_us=rebuild.since_us if rebuild else None)
    dead_letters = DeadLetters()
    projection = partial(
        Projection,
        bounded=options.is_bounded,
        known_patients=_known_patients(options, rebuild),
        shards=DIRECT_SHARDS if options.runs_on is Runner.DIRECT else SHARDS,
        meter=meter,
    )

    messages = pipeline | "Read" >> ReadMessages(options, files, meter)

    valid = dead_letters.validated(messages | "Validate" >> tagged(Validate(), OUTPUTS))

    adherence = dead_letters.projected(
        (valid.adherence,) | "Adherence" >> projection(Adherence(settings), rebuild=rebuild)
    )
    quality = dead_letters.projected(
        (valid.quality,) | "Quality" >> projection(Quality(settings), rebuild=rebuild)
    )
    to_work_queue = (valid.work_queue, adherence.review_items, quality.review_items)
    after_findings = rebuild.after_findings() if rebuild else None
    work_queue = dead_letters.projected(
        to_work_queue | "Work queue" >> projection(WorkQueue(settings), rebuild=after_findings)
    )

    projections = {"adherence": adherence, "quality": quality, "work_queue": work_queue}
    nudges = {name: projected.nudges for name, projected in projections.items()}
    nudges | "Write nudges" >> WriteNudges(options)

    dead_letters.add(adherence.rows("adherence") | "Write adherence" >> WriteTable("adherence", options))
    dead_letters.add(adherence.rows("consents") | "Write consents" >> WriteTable("consents", options))
    dead_letters.add(quality.rows("quality") | "Write quality" >> WriteTable("quality", options))
    dead_letters.add(work_queue.rows("work_queue") | "Write work_queue" >> WriteTable("work_queue", options))

    letters = dead_letters.all() | "Dead letters" >> beam.Flatten()
    rows = letters | "To rows" >> beam.ParDo(DeadLetterToRow(options.job_name)).with_output_types(Row)
    rows | "Write dead_letters" >> WriteTable("dead_letters", options, last_resort=True)


def _known_patients(
    options: RehabOptions, rebuild: Rebuild | None
) -> Callable[[], Mapping[str, KnownPatient]]:
    if options.dataset and not options.is_bounded:
        return KnownPatients(options.dataset, rebuild)
    return dict
