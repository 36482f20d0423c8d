"""What both projection steps put on their outputs, and what they count."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from apache_beam.pvalue import TaggedOutput

from transforms.dead_letters import PROJECTION_FAILED, DeadLetter
from transforms.events import REVIEW, Event
from transforms.projections.advancing import Counted
from transforms.projections.projector import PROCESSED, Output, Projector
from transforms.projections.state import PatientState
from transforms.steps.chunks import EventChunk, NudgeChunk
from transforms.steps.tagging import Tagged
from transforms.steps.telemetry import POLICY, count
from transforms.steps.validation import DEAD_LETTERS

NUDGES = "nudges"
REVIEW_ITEMS = "reviews"


def without_duplicates[S: PatientState](
    projector: Projector[S], events: Iterable[Event], admits: Callable[[Event], bool]
) -> list[Event]:
    """The events that are to be projected; the others are counted as duplicates."""
    admitted, duplicates = [], 0
    for event in events:
        # A review item arrives again whenever its finding changes.
        if event.kind == REVIEW or admits(event):
            admitted.append(event)
        elif event.kind in projector.counted_kinds:
            duplicates += 1
    if duplicates:
        count("event.duplicate", duplicates)
    return admitted


def emitted(output: Output, counted: Iterable[Counted] = ()) -> list[Tagged]:
    """Rows on the outputs of their tables, nudges and review items on theirs.

    Counts them and the outcomes of events, so call this only once nothing else can fail.
    """
    _count_outcomes(counted)
    outputs: list[Tagged] = []
    for table, row in output.rows:
        count(f"row.projected.{table}")
        outputs.append(TaggedOutput(table, row))
    for nudge in output.nudges:
        count(f"{nudge.attributes['kind']}.generated.{nudge.attributes['type']}", namespace=POLICY)
    if output.nudges:
        outputs.append(TaggedOutput(NUDGES, NudgeChunk(output.nudges)))
    if output.review_items:
        outputs.append(TaggedOutput(REVIEW_ITEMS, EventChunk(output.review_items)))
    return outputs


def _count_outcomes(counted: Iterable[Counted]) -> None:
    numbers = Counter((event.kind, outcome) for event, outcome in counted)
    for (kind, outcome), number in numbers.items():
        count(f"event.processed.{kind}" if outcome == PROCESSED else f"event.{outcome}", number)


def failed(projector: Projector[Any], event: Event, error: Exception) -> Tagged:
    """The dead letter of an event on which a projection failed."""
    # The type alone: an exception's text may quote a value.
    problem = f"event: {type(error).__name__} in the projection"
    stage = f"Project {projector.tables[0]}"
    letter = DeadLetter(PROJECTION_FAILED, stage, problem, event.message, event.event_id, event.kind)
    return TaggedOutput(DEAD_LETTERS, letter)
