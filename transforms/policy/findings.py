"""Findings: the conditions of rules that hold for a patient.

A condition is evaluated beside the state that it needs (adherence, quality, work queue), always as a function
of the *set* of events in the state. So findings do not depend on the order of arrival.
"""

from typing import Any, NamedTuple

from transforms.policy.rules import RULES, NudgeKind, RuleName

_REVIEWED_KINDS: tuple[NudgeKind, ...] = ("alert", "emergency")


class Finding(NamedTuple):
    """A rule's condition that holds for a patient.

    `occasion` distinguishes findings of one rule: a day, a session or an event. The condition holds since
    `at_us`. The finding's age counts from `newest_us`, the time of the newest event behind it. After it, the
    rule is silent for `repeat_days` (0: no limit). An `is_open` finding lasts until an event ends it, however
    long that takes. Every field except `triggered_by` depends only on the set of events. Times are
    microseconds since the epoch.
    """

    rule: RuleName
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
    """Whether the finding also becomes a review item in the work queue."""
    return RULES[finding.rule].kind in _REVIEWED_KINDS


def scope_of(finding: Finding) -> str:
    """What `repeat_days` applies to, within one patient: the type of nudge and the exercise."""
    return f"{RULES[finding.rule].type}/{finding.exercise_id}"
