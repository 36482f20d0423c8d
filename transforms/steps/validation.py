"""Validation: messages in, valid events out by route, everything else to the dead letters."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from transforms.dead_letters import DeadLetter
from transforms.decoding import STAGE, decode
from transforms.events import Event, InvalidEventError, parse_event
from transforms.message import Message
from transforms.steps.chunks import EventChunk
from transforms.steps.routing import ROUTES, routed
from transforms.steps.tagging import Tagged
from transforms.steps.telemetry import count
from transforms.times import MICROS

DEAD_LETTERS = "dead_letters"
OUTPUTS: dict[str, type] = {DEAD_LETTERS: DeadLetter} | dict.fromkeys(ROUTES, EventChunk)


def validate(message: Message, now_us: int) -> list[Event | DeadLetter]:
    """The events and dead letters in a message; `now_us` is the present in microseconds since the epoch."""
    return [
        decoded if isinstance(decoded, DeadLetter) else _event(*decoded, now_us)
        for decoded in decode(message)
    ]


def _event(message: Message, content: dict[str, Any], now_us: int) -> Event | DeadLetter:
    try:
        return parse_event(content, message, now_us)
    except InvalidEventError as error:
        event_id, kind = content.get("event_id"), content.get("kind")
        return DeadLetter(
            error.reason,
            STAGE,
            str(error),
            message,
            event_id if isinstance(event_id, str) else None,
            kind if isinstance(kind, str) else None,
        )


class Validate(beam.DoFn):
    """[Message, …] → an EventChunk on the output of each route, each DeadLetter on `DEAD_LETTERS`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns the present in seconds since the epoch."""
        self._clock = clock

    def process(self, messages: list[Message]) -> Iterator[Any]:
        """Validates each event in the messages."""
        now_us = int(self._clock() * MICROS)
        events: list[Event] = []
        refused = 0
        for message in messages:
            for outcome in validate(message, now_us):
                if isinstance(outcome, DeadLetter):
                    refused += 1
                    yield _refused(outcome)
                else:
                    events.append(outcome)
        count("event.arrived", len(events) + refused)
        for route, chunk in routed(events).items():
            yield TaggedOutput(route, chunk)


def _refused(letter: DeadLetter) -> Tagged:
    if letter.reason == "unknown_kind":
        count("event.unknown")
    return TaggedOutput(DEAD_LETTERS, letter)
