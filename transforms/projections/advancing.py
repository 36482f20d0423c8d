"""Apply, then project: how a projection takes in a patient's events, wherever it runs."""

from collections.abc import Sequence
from typing import NamedTuple

from transforms.events import Event
from transforms.projections.ordering import in_order
from transforms.projections.projector import Output, Projector
from transforms.projections.state import PatientState, Trigger


class Counted(NamedTuple):
    """The outcome of an event that the projector counts."""

    event: Event
    outcome: str


def advance[S: PatientState](
    projector: Projector[S],
    state: S,
    events: Sequence[Event],
    now_us: int,
    output: Output,
    arrived_together: Sequence[Event] = (),
) -> list[Counted]:
    """Applies one patient's events to the patient's state, then projects the state once.

    There is at least one event; `now_us` is the present in microseconds since the epoch. What follows is
    added to `output`. `arrived_together` are all events of the delivery, if `events` are only some of them:
    the newest of the delivery decides which events are too late.

    Raises what a rule raises. `state` and `output` are then incomplete: discard them.
    """
    ordered = in_order(events)
    projector.expect(state, in_order(arrived_together) if arrived_together else ordered)
    apply, counted_kinds = projector.apply, projector.counted_kinds
    counted = []
    for event in ordered:
        trigger = Trigger(event.patient_id, event.event_id, event.message.publish_us)
        outcome = apply(state, event, trigger, now_us, output)
        if event.kind in counted_kinds:
            counted.append(Counted(event, outcome))
    last = ordered[-1]
    trigger = Trigger(last.patient_id, last.event_id, min(event.message.publish_us for event in ordered))
    project(projector, state, trigger, now_us, output)
    return counted


def project[S: PatientState](
    projector: Projector[S], state: S, trigger: Trigger, now_us: int, output: Output
) -> None:
    """Adds what a patient's state leads to; during a rebuild's hold-back, only what must not wait."""
    if state.held_until_us:
        projector.project_urgent(state, trigger, now_us, output)
    else:
        projector.project(state, trigger, now_us, output)
