"""A runner in at-least-once mode may hand a step again what it has handed it: the projections stay right."""

import json
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.releases.recording import NOW_US, PROJECTORS, gathered, run_step
from tests.support.oracle import Arrival
from tests.support.strategies import arrival_sets
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projections.adherence import CONSENTS_TABLE
from transforms.rows import Row
from transforms.steps.chunks import NudgeChunk
from transforms.steps.outputs import REVIEW_ITEMS

HISTORY = ("version", "updated_at", "source_event_id")


class Seen:
    """What readers and consumers make of a step's outputs, and what goes on to the work queue."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self.nudges: set[str] = set()
        self.review_items: list[Event] = []

    def take(self, outputs: Iterable[tuple[str, Any]]) -> None:
        for tag, value in outputs:
            if isinstance(value, Row):
                known = self.rows.get((tag, value.key))
                if known is None or value.version > known[0]:
                    columns = json.loads(value.body)
                    shown = {name: columns[name] for name in columns if name not in HISTORY}
                    self.rows[tag, value.key] = (value.version, shown)
            elif isinstance(value, NudgeChunk):
                self.nudges |= {nudge.attributes["nudge_id"] for nudge in value}
            elif tag == REVIEW_ITEMS:
                self.review_items += value

    @property
    def current(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the views show; of consents, which have none, everything."""
        return {
            key: columns
            for key, (_, columns) in self.rows.items()
            if columns["visible"] or key[0] == CONSENTS_TABLE
        }


def seen_of(step: str, elements: list[Any]) -> Seen:
    seen, states = Seen(), dict[str, bytes | None]()
    for element in elements:
        outcome = run_step(step, element, states.get(element[0]))
        states[element[0]] = outcome.state
        seen.take(outcome.outputs)
    return seen


def with_redeliveries(elements: list[Any], rng: Random) -> list[Any]:
    """Each element, and now and then one of those before it once more."""
    delivered: list[Any] = []
    for index, element in enumerate(elements):
        delivered.append(element)
        while rng.random() < 0.5:
            delivered.append(elements[rng.randint(max(0, index - 5), index)])
    return delivered


def elements_of(arrivals: list[Arrival], kinds: tuple[str, ...], rng: Random) -> list[Any]:
    """The events in groups of a few, as a step gets them."""
    events = [parse_event(a.envelope, Message(b"{}", {}, "s", "m", a.publish_us), NOW_US) for a in arrivals]
    return grouped([event for event in events if event.kind in kinds], rng)


def grouped(events: list[Event], rng: Random) -> list[Any]:
    elements: list[Any] = []
    while events:
        size = rng.randint(1, 4)
        elements += gathered(events[:size]).values()
        events = events[size:]
    return elements


@pytest.mark.parametrize("step", PROJECTORS)
@given(
    arrivals=arrival_sets(consents="harmless", duplicates=False, patients=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_handed_over_again_changes_nothing(step: str, arrivals: list[Arrival], seed: int) -> None:
    rng = Random(seed)
    elements = elements_of(arrivals, PROJECTORS[step][1], rng)
    once, again = seen_of(step, elements), seen_of(step, with_redeliveries(elements, rng))
    assert again.current == once.current
    assert again.nudges == once.nudges
    # So do the findings that go on to the work queue.
    queue = list(PROJECTORS)[-1]
    reviewed = [seen_of(queue, grouped(seen.review_items, rng)).current for seen in (once, again)]
    assert reviewed[0] == reviewed[1]
