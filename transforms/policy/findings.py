"""Findings: the conditions of rules that hold for a patient.

A condition is evaluated beside the state that it needs (adherence, quality, work queue), always as a function
of the *set* of events in the state. So findings do not depend on the order of arrival.
"""

from typing import Any, NamedTuple

from transforms.policy.rules import RULES

_REVIEWED_KINDS = ("alert", "emergency")


class Finding(NamedTuple):
    """A rule's condition that holds for a patient.

    `occasion` tells one finding of a rule from the next (a day, a session, an event); `at_us` is
    since when it holds, and like everything but `triggered_by` a function of the set of events;
    `newest_us` is the time of the newest event behind it, against which its age is judged;
    `repeat_days` is how long the rule then stays silent (0: no limit); `is_open` whether it lasts until
    an event ends it, however long that takes.
    """

    rule: str
    occasion: str
    at_us: int
    newest_us: int
    exercise_id: str
    session_id: str | None
    data: dict[str, Any]
    triggered_by: str | None
    repeat_days: int = 0
    is_open: bool = False


def needs_review(finding: Finding) -> bool:
    """Whether the finding also becomes a work-queue item."""
    return RULES[finding.rule].kind in _REVIEWED_KINDS


def scope_of(finding: Finding) -> str:
    """Within one patient, the rule and exercise to which `repeat_days` applies."""
    return f"{RULES[finding.rule].type}/{finding.exercise_id}"
