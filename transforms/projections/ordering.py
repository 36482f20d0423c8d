"""The order in which a patient's events are applied."""

from collections.abc import Iterable, Iterator, Sequence

from transforms.events import Event, SessionFact
from transforms.projections.state import STATE_DAYS
from transforms.times import DAY_US


def in_periods(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Splits a patient's events by time into periods no longer than state covers.

    So a projection after each period misses nothing, however long the history is.
    """
    period: list[Event] = []
    begins_us = 0
    for event in sorted(events, key=about_us):
        if period and about_us(event) - begins_us > STATE_DAYS * DAY_US:
            yield period
            period = []
        begins_us = begins_us if period else about_us(event)
        period.append(event)
    yield period


def about_us(event: Event) -> int:
    """The time that an event is about: a session's start, if it was reported later."""
    if isinstance(event.fact, SessionFact) and event.fact.start_us is not None:
        return min(event.ts_us, event.fact.start_us)
    return event.ts_us


def consents_first(event: Event) -> tuple[bool, int, str]:
    """Sort key: consents come before the events that they may withhold, then by time."""
    return (event.kind != "consent", event.ts_us, event.event_id)


def in_order(events: Sequence[Event]) -> Sequence[Event]:
    """A patient's events in the order in which they are applied."""
    return sorted(events, key=consents_first) if len(events) > 1 else events
