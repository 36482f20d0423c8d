"""The step that turns dead letters into rows."""

import time
from collections.abc import Callable, Iterator

import apache_beam as beam

from transforms.dead_letters import DeadLetter, dead_letter_row
from transforms.rows import Row
from transforms.steps.telemetry import count
from transforms.times import MICROS


class DeadLetterToRow(beam.DoFn):
    """DeadLetter → Row of `dead_letters`; counts them by reason."""

    def __init__(self, job_name: str, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns the present in seconds since the epoch."""
        self._job_name = job_name
        self._clock = clock

    def process(self, letter: DeadLetter) -> Iterator[Row]:
        count(f"event.dead_letter.{letter.reason}")
        count("row.projected.dead_letters")
        yield dead_letter_row(letter, int(self._clock() * MICROS), self._job_name)
