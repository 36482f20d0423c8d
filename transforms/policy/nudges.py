"""What a finding leads to: a message for the nudge topic, and a review item for the work queue."""

import hashlib
from typing import NamedTuple

import orjson

from transforms.events import REVIEW, Event, ReviewItemFact
from transforms.message import Message
from transforms.policy.findings import Finding
from transforms.policy.rules import RULES
from transforms.times import to_rfc3339


class Nudge(NamedTuple):
    """A message for the nudge topic."""

    attributes: dict[str, str]
    body: bytes


class PolicyOutput(NamedTuple):
    """What findings lead to: messages for the nudge topic, and review items for the work queue."""

    nudges: list[Nudge]
    review_items: list[Event]


class Origin(NamedTuple):
    """Where findings come from: the patient and the site, and the event that triggered the projection.

    A timer has no `source_event_id`, and its `publish_us` is the present. The time is in microseconds since
    the epoch.
    """

    patient_id: str
    site_id: str | None
    source_event_id: str | None
    publish_us: int


def nudge_id(patient_id: str, finding: Finding) -> str:
    """The id of a finding's nudge and review item: equal findings have equal ids."""
    rule = RULES[finding.rule]
    parts = (rule.type, rule.kind, patient_id, finding.exercise_id, finding.occasion)
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def announce(origin: Origin, finding: Finding, now_us: int) -> Nudge:
    """The nudge that announces a finding."""
    rule = RULES[finding.rule]
    identifier = nudge_id(origin.patient_id, finding)
    attributes = {"nudge_id": identifier, "kind": rule.kind, "type": rule.type, "severity": rule.severity}
    body = attributes | {
        "subject_id": origin.patient_id,
        "exercise_id": finding.exercise_id or None,
        "session_id": finding.session_id,
        "site_id": origin.site_id,
        "data": finding.data,
        "triggered_by": finding.triggered_by,
        "generated_at": to_rfc3339(now_us),
    }
    return Nudge(attributes, orjson.dumps(body))


def review_item(origin: Origin, finding: Finding, revision: int) -> Event:
    """The event that puts an alert or emergency into the patient's work queue, as a review item."""
    rule = RULES[finding.rule]
    context = {
        "type": rule.type,
        "exercise_id": finding.exercise_id or None,
        "session_id": finding.session_id,
        "data": finding.data,
    }
    fact = ReviewItemFact(
        nudge_id=nudge_id(origin.patient_id, finding),
        revision=revision,
        withdrawn=False,
        urgency=rule.severity,
        description=rule.description,
        context=orjson.dumps(context, option=orjson.OPT_SORT_KEYS).decode(),
    )
    return _review_event(origin, finding.at_us, fact)


def withdrawal(origin: Origin, identifier: str, revision: int) -> Event:
    """The event that withdraws a review item from the work queue."""
    return _review_event(origin, 0, ReviewItemFact(identifier, revision, True, "", "", ""))


def _review_event(origin: Origin, at_us: int, fact: ReviewItemFact) -> Event:
    return Event(
        event_id=origin.source_event_id or "",
        kind=REVIEW,
        ts_us=at_us,
        patient_id=origin.patient_id,
        exercise_id="",
        site_id=origin.site_id,
        fact=fact,
        message=Message(fact.context.encode(), {}, "", "", origin.publish_us),
    )
