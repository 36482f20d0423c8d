"""The graph's pure parts wired by hand: what the steps do to events, fast and without Beam."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import orjson

from tests.support.oracle import Arrival
from transforms.dead_letters import DeadLetter
from transforms.deduplication import SeenIds, deduplication_key
from transforms.events import REVIEW, Event
from transforms.message import Message
from transforms.projections.adherence import Adherence
from transforms.projections.advancing import advance, project
from transforms.projections.projector import Output, Projector, RuleSettings
from transforms.projections.quality import Quality
from transforms.projections.state import Trigger
from transforms.projections.work_queue import WorkQueue
from transforms.steps.routing import ROUTES
from transforms.steps.validation import validate

RECEIVES = {
    Adherence: ROUTES["adherence"],
    Quality: ROUTES["quality"],
    WorkQueue: (*ROUTES["work_queue"], REVIEW),
}


class BeamlessJob:
    """Takes arrivals in and collects everything that comes out."""

    def __init__(self, settings: RuleSettings, now_us: int) -> None:
        self.projectors: list[Projector[Any]] = [Adherence(settings), Quality(settings), WorkQueue(settings)]
        self.now_us = now_us
        self.seen: dict[str, SeenIds] = defaultdict(SeenIds)
        self.states: dict[tuple[int, str], bytes] = {}
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.nudges: list[dict[str, Any]] = []
        self.dead_letters: list[DeadLetter] = []
        self.outcomes: dict[str, str] = {}

    def take(self, messages: Iterable[Message]) -> None:
        """One bundle: what arrives together is projected together."""
        events: list[Event] = []
        for message in messages:
            for outcome in validate(message, self.now_us):
                if isinstance(outcome, DeadLetter):
                    self.dead_letters.append(outcome)
                elif self.seen[outcome.patient_id].is_new(
                    deduplication_key(outcome), self.now_us // 1_000_000
                ):
                    events.append(outcome)
        for number, projector in enumerate(self.projectors):
            events += self._project(number, projector, events)

    def wake(self, now_us: int) -> None:
        """Time alone has passed, up to `now_us`: each patient's timer fires."""
        self.now_us = now_us
        for (number, patient_id), stored in list(self.states.items()):
            projector, output = self.projectors[number], Output()
            state = projector.wake(projector.state_type.decode(stored), now_us)
            project(projector, state, Trigger(patient_id, None, now_us), now_us, output)
            self.states[number, patient_id] = state.encode()
            self._collect(output)
            self._project(len(self.projectors) - 1, self.projectors[-1], output.review_items)

    def _project(self, number: int, projector: Projector[Any], events: Sequence[Event]) -> list[Event]:
        by_patient: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            if event.kind in RECEIVES[type(projector)]:
                by_patient[event.patient_id].append(event)
        output = Output()
        for patient_id, chunk in by_patient.items():
            state = projector.state_type.decode(self.states.get((number, patient_id)))
            self.now_us += 1
            for event, outcome in advance(projector, state, chunk, self.now_us, output):
                self.outcomes[event.event_id] = outcome
            self.states[number, patient_id] = state.encode()
        self._collect(output)
        return output.review_items

    def _collect(self, output: Output) -> None:
        for table, row in output.rows:
            self.rows[table].append(json.loads(row.body))
        self.nudges += [orjson.loads(nudge.body) for nudge in output.nudges]


def message_of(arrival: Arrival, number: int = 0) -> Message:
    """The arrival as it is received, `number` in its message id."""
    return Message(orjson.dumps(arrival.envelope), {}, "test", str(number), arrival.publish_us)


def bundles(arrivals: Sequence[Arrival], rng: Random) -> list[list[Message]]:
    """The arrivals as messages, cut into bundles of random sizes."""
    messages = [message_of(arrival, number) for number, arrival in enumerate(arrivals)]
    cut: list[list[Message]] = []
    while messages:
        size = rng.choice((1, 2, 5, 50, 1000))
        cut.append(messages[:size])
        messages = messages[size:]
    return cut
