"""Which projections receive an event: each gets the kinds that it needs, and nothing is moved in vain."""

from collections.abc import Iterable, Iterator
from typing import Any

from apache_beam.pvalue import TaggedOutput

from transforms.chunks import EventChunk
from transforms.events import Event

ROUTES = {
    "adherence": ("exercise_session", "consent"),
    "quality": ("exercise_session", "rep_observation", "consent"),
    "work_queue": ("alert", "feedback", "consent"),
}
_ROUTES_OF = {
    kind: tuple(route for route, received in ROUTES.items() if kind in received)
    for kind in {kind for received in ROUTES.values() for kind in received}
}


def routed(event: Event) -> list[Any]:
    """The event, for every output that is named after a route of its kind."""
    return [TaggedOutput(route, event) for route in _ROUTES_OF[event.kind]]


def routed_together(events: Iterable[Event]) -> Iterator[Any]:
    """A chunk for each such output."""
    chunks: dict[str, EventChunk] = {}
    for event in events:
        for route in _ROUTES_OF[event.kind]:
            if route in chunks:
                chunks[route].append(event)
            else:
                chunks[route] = EventChunk((event,))
    for route, chunk in chunks.items():
        yield TaggedOutput(route, chunk)
