"""Which projections receive an event: each gets the kinds that it needs, and nothing is moved in vain."""

from collections.abc import Iterable

from transforms.events import Event
from transforms.steps.chunks import EventChunk

ROUTES = {
    "adherence": ("exercise_session", "consent"),
    "quality": ("exercise_session", "rep_observation", "consent"),
    "work_queue": ("alert", "feedback", "consent"),
}
_ROUTES_OF = {
    kind: tuple(route for route, received in ROUTES.items() if kind in received)
    for kind in {kind for received in ROUTES.values() for kind in received}
}


def routed(events: Iterable[Event]) -> dict[str, EventChunk]:
    """By route, the events of the kinds that take it; routes without any are left out."""
    chunks: dict[str, EventChunk] = {}
    for event in events:
        for route in _ROUTES_OF[event.kind]:
            if route in chunks:
                chunks[route].append(event)
            else:
                chunks[route] = EventChunk((event,))
    return chunks
