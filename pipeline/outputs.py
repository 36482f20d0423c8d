"""The outputs of the graph's steps, typed, and the collector of their dead letters."""

from typing import NamedTuple

from apache_beam import PCollection
from apache_beam.pvalue import DoOutputsTuple

from transforms.dead_letters import DeadLetter
from transforms.rows import Row
from transforms.steps.chunks import EventChunk, NudgeChunk
from transforms.steps.outputs import NUDGES, REVIEW_ITEMS
from transforms.steps.validation import DEAD_LETTERS


class Validated(NamedTuple):
    """Valid events, by the projection that receives them."""

    adherence: PCollection[EventChunk]
    quality: PCollection[EventChunk]
    work_queue: PCollection[EventChunk]


class Projected:
    """What a projection emits besides its dead letters."""

    def __init__(self, outputs: DoOutputsTuple) -> None:
        """`outputs` are those of the transform."""
        self._outputs = outputs
        self.nudges: PCollection[NudgeChunk] = outputs[NUDGES]
        self.review_items: PCollection[EventChunk] = outputs[REVIEW_ITEMS]

    def rows(self, table: str) -> PCollection[Row]:
        """The rows of one of its tables. Raises ValueError if it has no such table."""
        return self._outputs[table]


class DeadLetters:
    """Collects the dead letters of every step that can fail.

    The graph gets a step's typed outputs only from here, so it cannot use a step and lose its dead letters.
    """

    def __init__(self) -> None:
        """Empty."""
        self._collected: list[PCollection[DeadLetter]] = []

    def validated(self, outputs: DoOutputsTuple) -> Validated:
        """Collects the dead letters of the validation; returns its valid events."""
        self.add(outputs[DEAD_LETTERS])
        return Validated(*(outputs[route] for route in Validated._fields))

    def projected(self, outputs: DoOutputsTuple) -> Projected:
        """Collects the dead letters of a projection; returns its other outputs."""
        self.add(outputs[DEAD_LETTERS])
        return Projected(outputs)

    def add(self, letters: PCollection[DeadLetter]) -> None:
        """Collects dead letters, such as the rows that a sink rejects."""
        self._collected.append(letters)

    def all(self) -> tuple[PCollection[DeadLetter], ...]:
        """Everything collected so far."""
        return tuple(self._collected)
