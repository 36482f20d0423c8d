"""The validating ParDo: messages in, valid events out by route, everything else to the dead letters."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from transforms.dead_letters import DeadLetter
from transforms.decoding import STAGE, decode
from transforms.events import Event, InvalidEventError, parse_event
from transforms.message import Message
from transforms.routing import routed, routed_together
from transforms.telemetry import count
from transforms.times import MICROS

DEAD_LETTERS = "dead_letters"


def validate(message: Message, now_us: int) -> Iterator[Event | DeadLetter]:
    """Each event in a message, or the dead letter it becomes; `now_us` is the present in microseconds."""
    for decoded in decode(message):
        if isinstance(decoded, DeadLetter):
            yield decoded
            continue
        element, content = decoded
        try:
            yield parse_event(content, element, now_us)
        except InvalidEventError as error:
            event_id, kind = content.get("event_id"), content.get("kind")
            yield DeadLetter(
                error.reason,
                STAGE,
                str(error),
                element,
                event_id if isinstance(event_id, str) else None,
                kind if isinstance(kind, str) else None,
            )


class Validate(beam.DoFn):
    """Message → Event on the output of every route that its kind takes, or DeadLetter on `DEAD_LETTERS`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives the present in seconds since the epoch."""
        self._clock = clock

    def process(self, message: Message) -> Iterator[Any]:
        """Validates each event in the message."""
        for outcome in validate(message, int(self._clock() * MICROS)):
            if isinstance(outcome, DeadLetter):
                yield _refused(outcome)
            else:
                yield from routed(outcome)


class ValidateChunk(beam.DoFn):
    """Messages → an EventChunk on the output of each route, and each DeadLetter on `DEAD_LETTERS`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """As `Validate`."""
        self._clock = clock

    def process(self, messages: list[Message]) -> Iterator[Any]:
        """Validates each event in the messages."""
        now_us = int(self._clock() * MICROS)
        events: list[Event] = []
        for message in messages:
            for outcome in validate(message, now_us):
                if isinstance(outcome, DeadLetter):
                    yield _refused(outcome)
                else:
                    events.append(outcome)
        yield from routed_together(events)


def _refused(letter: DeadLetter) -> Any:
    if letter.reason == "unknown_kind":
        count("event.unknown")
    return TaggedOutput(DEAD_LETTERS, letter)
