"""Routes events to the projections that need their kind, so that nothing is moved needlessly."""

from collections.abc import Iterable

from transforms.events import Event, Kind
from transforms.steps.chunks import EventChunk

ROUTES: dict[str, tuple[Kind, ...]] = {
    "adherence": ("exercise_session", "consent"),
    "quality": ("exercise_session", "rep_observation", "consent"),
    "work_queue": ("alert", "feedback", "consent"),
}
_ROUTES_OF: dict[str, tuple[str, ...]] = {
    kind: tuple(route for route, received in ROUTES.items() if kind in received)
    for kind in {kind for received in ROUTES.values() for kind in received}
}


def routed(events: Iterable[Event]) -> dict[str, EventChunk]:
    """The events of each route; routes without events are left out."""
    chunks: dict[str, EventChunk] = {}
    for event in events:
        for route in _ROUTES_OF[event.kind]:
            if route in chunks:
                chunks[route].append(event)
            else:
                chunks[route] = EventChunk((event,))
    return chunks
