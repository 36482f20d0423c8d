"""The table of rules: what a finding of each rule is announced as."""

from typing import Literal, NamedTuple

from transforms.events import Priority

RuleName = Literal[
    "gap",
    "silence",
    "absence",
    "short_session",
    "low_weekly_adherence",
    "adherence_excellence",
    "poor_quality",
    "quality_reminder",
    "quality_degradation",
    "quality_improvement",
    "form_major",
    "form_moderate",
    "form_minor",
    "rep_quality",
    "pain_emergency",
    "pain_alert",
    "critical_alert",
]
NudgeKind = Literal["nudge", "alert", "feedback", "emergency"]


class Rule(NamedTuple):
    """The type, kind, severity and description of the nudges that a rule leads to."""

    type: str
    kind: NudgeKind
    severity: Priority
    description: str


RULES: dict[RuleName, Rule] = {
    "gap": Rule("missed_sessions", "nudge", "low", "Back after missing some days of sessions"),
    "silence": Rule("missed_sessions", "alert", "medium", "No session for days in a row"),
    "absence": Rule("extended_absence", "alert", "high", "No session for more than a week"),
    "short_session": Rule("short_session", "nudge", "low", "Completed session was short"),
    "low_weekly_adherence": Rule(
        "low_weekly_adherence", "alert", "medium", "Under half of the prescribed sessions in 7 days"
    ),
    "adherence_excellence": Rule(
        "adherence_excellence", "nudge", "low", "Nearly all prescribed sessions done in 28 days"
    ),
    "poor_quality": Rule("poor_quality", "alert", "medium", "Session of poor quality"),
    "quality_reminder": Rule("quality_reminder", "nudge", "low", "Session quality could be better"),
    "quality_degradation": Rule("quality_degradation", "alert", "high", "Quality of an exercise is slipping"),
    "quality_improvement": Rule("quality_improvement", "nudge", "low", "Steadily good quality for two weeks"),
    "form_major": Rule("form_correction", "feedback", "high", "Major form issue"),
    "form_moderate": Rule("form_correction", "feedback", "medium", "Moderate form issue"),
    "form_minor": Rule("form_correction", "feedback", "low", "Minor form issue"),
    "rep_quality": Rule("rep_quality", "feedback", "low", "Repetition of low quality"),
    "pain_emergency": Rule("pain_reported", "emergency", "critical", "Severe pain reported"),
    "pain_alert": Rule("pain_reported", "alert", "high", "Pain reported"),
    "critical_alert": Rule("critical_alert", "emergency", "critical", "Critical alert raised"),
}
