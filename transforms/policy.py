"""The policy: the table of rules, their thresholds, and how findings become nudges and reviews.

A rule's condition is evaluated beside the state it needs (adherence, quality, work queue), always as
a function of the *set* of events that the state holds. So the findings do not depend on the order of
arrival; what has been found before is announced once, and what a late event has made untrue is
withdrawn from the work queue.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transforms.events import REVIEW, Event, ReviewFact
from transforms.message import Message
from transforms.times import DAY_US, day_of, to_rfc3339


class _Thresholds(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class MissedSessions(_Thresholds):
    """A nudge after a gap of more than `gap_days`; an alert after `silent_days` full days of silence."""

    gap_days: int = Field(3, ge=1, le=27)
    silent_days: int = Field(2, ge=1, le=27)


class ExtendedAbsence(_Thresholds):
    """An alert after a gap of more than `days`, or as many full days of silence."""

    days: int = Field(7, ge=1, le=27)


class ShortSession(_Thresholds):
    """A nudge for a completed session under `minutes`."""

    minutes: float = Field(10, ge=0)


class AdherenceLevel(_Thresholds):
    """A threshold on a rolling average, applied `after_days` days from the first session on."""

    percent: float = Field(ge=0, le=100)
    after_days: int = Field(ge=0, le=365)
    repeat_days: int = Field(ge=1, le=28)


class SessionQuality(_Thresholds):
    """Scores under which a session counts as poor, or is worth a reminder."""

    poor: float = Field(0.50, ge=0, le=1)
    reminder: float = Field(0.70, ge=0, le=1)


class QualityDegradation(_Thresholds):
    """A 7-day average under `average`, or `critical_percent` of critical ones, of `min_reps` or more."""

    average: float = Field(0.70, ge=0, le=1)
    critical_percent: float = Field(30, ge=0, le=100)
    min_reps: int = Field(20, ge=1)
    repeat_days: int = Field(7, ge=1, le=28)


class QualityImprovement(_Thresholds):
    """A 7-day average over `average` on each repetition day of `days` days."""

    average: float = Field(0.85, ge=0, le=1)
    days: int = Field(14, ge=1, le=21)
    repeat_days: int = Field(14, ge=1, le=28)


class RepFeedback(_Thresholds):
    """Real-time feedback on repetitions: under `quality`, and how long it then stays silent."""

    quality: float = Field(0.60, ge=0, le=1)
    repeat_seconds: float = Field(30, ge=0, le=3600)


class Pain(_Thresholds):
    """Pain levels from which a report is an alert, or an emergency."""

    alert: float = Field(4, ge=0, le=10)
    emergency: float = Field(7, ge=0, le=10)


class Policy(_Thresholds):
    """Every threshold of the policy; a configuration file states those that differ."""

    missed_sessions: MissedSessions = MissedSessions()
    extended_absence: ExtendedAbsence = ExtendedAbsence()
    short_session: ShortSession = ShortSession()
    low_weekly_adherence: AdherenceLevel = AdherenceLevel(percent=50, after_days=7, repeat_days=7)
    adherence_excellence: AdherenceLevel = AdherenceLevel(percent=90, after_days=28, repeat_days=28)
    session_quality: SessionQuality = SessionQuality()
    quality_degradation: QualityDegradation = QualityDegradation()
    quality_improvement: QualityImprovement = QualityImprovement()
    rep_feedback: RepFeedback = RepFeedback()
    pain: Pain = Pain()


def policy_from(content: object) -> Policy:
    """The policy that a decoded configuration file states. Raises ValueError with one sentence."""
    try:
        return Policy.model_validate({} if content is None else content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{where}: {first['msg']}") from None


class Rule(NamedTuple):
    """What a finding is announced as."""

    type: str
    kind: str
    severity: str
    description: str


RULES = {
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


class Nudge(NamedTuple):
    """A message for the nudge topic."""

    attributes: dict[str, str]
    body: bytes


class Announcement(NamedTuple):
    """What findings lead to: messages for the nudge topic, events for the work queue."""

    nudges: list[Nudge]
    reviews: list[Event]


class Subject(NamedTuple):
    """Whom a projector's step is about, and by what it was set off (a timer: no event, publish time now)."""

    patient_id: str
    site_id: str | None
    source_event_id: str | None
    publish_us: int


def nudge_id(patient_id: str, finding: Finding) -> str:
    """The same for the same finding, whenever and however often it is made."""
    rule = RULES[finding.rule]
    parts = (rule.type, rule.kind, patient_id, finding.exercise_id, finding.occasion)
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()


def announce(subject: Subject, finding: Finding, now_us: int) -> Nudge:
    """The nudge of a finding."""
    rule = RULES[finding.rule]
    identifier = nudge_id(subject.patient_id, finding)
    attributes = {"nudge_id": identifier, "kind": rule.kind, "type": rule.type, "severity": rule.severity}
    body = attributes | {
        "subject_id": subject.patient_id,
        "exercise_id": finding.exercise_id or None,
        "session_id": finding.session_id,
        "site_id": subject.site_id,
        "data": finding.data,
        "triggered_by": finding.triggered_by,
        "generated_at": to_rfc3339(now_us),
    }
    return Nudge(attributes, orjson.dumps(body))


def review(subject: Subject, finding: Finding, revision: int) -> Event:
    """The event that puts an alert or emergency into the patient's work queue."""
    rule = RULES[finding.rule]
    context = {
        "type": rule.type,
        "exercise_id": finding.exercise_id or None,
        "session_id": finding.session_id,
        "data": finding.data,
    }
    fact = ReviewFact(
        nudge_id=nudge_id(subject.patient_id, finding),
        revision=revision,
        withdrawn=False,
        urgency=rule.severity,
        description=rule.description,
        context=orjson.dumps(context, option=orjson.OPT_SORT_KEYS).decode(),
    )
    return _review_event(subject, finding.at_us, fact)


def withdrawal(subject: Subject, identifier: str, revision: int) -> Event:
    """The event that takes an item out of the work queue again."""
    return _review_event(subject, 0, ReviewFact(identifier, revision, True, "", "", ""))


def _review_event(subject: Subject, at_us: int, fact: ReviewFact) -> Event:
    return Event(
        event_id=subject.source_event_id or "",
        kind=REVIEW,
        ts_us=at_us,
        patient_id=subject.patient_id,
        exercise_id="",
        site_id=subject.site_id,
        fact=fact,
        message=Message(fact.context.encode(), {}, "", "", subject.publish_us),
    )


def is_reviewed(finding: Finding) -> bool:
    """Whether the finding also becomes a work-queue item."""
    return RULES[finding.rule].kind in _REVIEWED_KINDS


def scope_of(finding: Finding) -> str:
    """Within one patient, the rule and exercise to which `repeat_days` applies."""
    return f"{RULES[finding.rule].type}/{finding.exercise_id}"


class _Found(msgspec.Struct, array_like=True, gc=False):
    """What the ledger keeps of a finding; `standing` until a late event makes it untrue.

    While it `is_open` it does not age.
    """

    at_us: int
    newest_us: int
    scope: str
    digest: bytes = b""
    revision: int = 0
    announced: bool = False
    standing: bool = True
    is_open: bool = False

    @property
    def day(self) -> int:
        return day_of(self.at_us)

    def is_old(self, horizon_us: int) -> bool:
        return self.newest_us < horizon_us and not self.is_open


class FindingLedger(msgspec.Struct, array_like=True):
    """What has been found for one patient by one projector, so that each thing is said once.

    `found` holds the findings since the horizon by nudge id; `last_days` the day of the newest
    finding of each scope that has passed it, so that a limit outlives the state it was found in.
    """

    found: dict[str, _Found] = {}
    last_days: dict[str, int] = {}

    def spaced(self, candidates: Iterable[Finding], since_day: int, horizon_us: int) -> list[Finding]:
        """Of one rule's candidates from a day on, by time, those that its `repeat_days` lets through."""
        since_us = _examined_since_us(since_day, horizon_us)
        chosen = []
        last_day: int | None = None
        for finding in candidates:
            day = day_of(finding.at_us)
            if last_day is None:
                last_day = self._last_day(scope_of(finding), since_us, horizon_us)
            if last_day is None or day - last_day >= finding.repeat_days:
                chosen.append(finding)
                last_day = day
        return chosen

    def _last_day(self, scope: str, since_us: int, horizon_us: int) -> int | None:
        """The day of the newest finding of a scope among those that are not said again from a time on."""
        days = [
            entry.day
            for entry in self.found.values()
            if entry.standing
            and entry.scope == scope
            and (entry.at_us < since_us or entry.is_old(horizon_us))
        ]
        if scope in self.last_days:
            days.append(self.last_days[scope])
        return max(days, default=None)

    def reconcile(
        self,
        subject: Subject,
        findings: Iterable[Finding],
        since_day: int,
        horizon_us: int,
        now_us: int,
        announce_since_us: int | None,
    ) -> Announcement:
        """Compares what holds now with what was said before.

        `findings` is everything that holds from `since_day` on, of which what is before `horizon_us`
        is left out; what holds for the first time is announced if it is not older than
        `announce_since_us` (null: nothing is announced), what changed is sent to the work queue again,
        what no longer holds is withdrawn from it. What began before `horizon_us` stays as it was, unless
        it is open: its evidence may have been forgotten, and no event that is not too late disproves it.
        """
        outcome = Announcement([], [])
        standing = {}
        for finding in findings:
            key = nudge_id(subject.patient_id, finding)
            if finding.newest_us >= horizon_us or (finding.is_open and key in self.found):
                standing[key] = finding
        since_us = _examined_since_us(since_day, horizon_us)
        for key, entry in self.found.items():
            is_examined = entry.is_open or (entry.at_us >= since_us and not entry.is_old(horizon_us))
            if is_examined and entry.standing and key not in standing:
                entry.standing = entry.is_open = False
                if entry.digest:
                    entry.digest, entry.revision = b"", max(now_us, entry.revision + 1)
                    outcome.reviews.append(withdrawal(subject, key, entry.revision))
        for key, finding in standing.items():
            entry = self.found.setdefault(key, _Found(0, 0, scope_of(finding)))
            has_ended = entry.is_open and not finding.is_open
            # What was said when it began is enough: the queue may have settled and forgotten it by now.
            stays = has_ended and finding.at_us < horizon_us
            entry.at_us, entry.newest_us, entry.standing = finding.at_us, finding.newest_us, True
            entry.is_open = finding.is_open
            if is_reviewed(finding) and self._is_news(subject, finding, entry) and not stays:
                entry.revision = max(now_us, entry.revision + 1)
                outcome.reviews.append(review(subject, finding, entry.revision))
            recent = announce_since_us is not None and finding.newest_us >= announce_since_us
            if recent and not entry.announced and not self._said_nearby(finding, entry):
                entry.announced = True
                outcome.nudges.append(announce(subject, finding, now_us))
        return outcome

    def has_old(self, horizon_us: int) -> bool:
        """Whether there is anything to age out."""
        return any(entry.is_old(horizon_us) for entry in self.found.values())

    def age_out(self, horizon_us: int) -> None:
        """Forgets what is before the horizon, except for the limits."""
        for key in [key for key, entry in self.found.items() if entry.is_old(horizon_us)]:
            entry = self.found.pop(key)
            if entry.standing:
                self.last_days[entry.scope] = max(entry.day, self.last_days.get(entry.scope, entry.day))

    def _said_nearby(self, finding: Finding, entry: _Found) -> bool:
        """Whether a late event has only moved a finding whose limit has been used up by its announcement."""
        return finding.repeat_days > 0 and any(
            other.announced
            and other.scope == entry.scope
            and abs(other.day - entry.day) < finding.repeat_days
            for other in self.found.values()
        )

    @staticmethod
    def _is_news(subject: Subject, finding: Finding, entry: _Found) -> bool:
        """Whether the work queue knows it otherwise, or not at all; from now on it counts as known."""
        content = orjson.dumps((finding.at_us, finding.session_id, finding.data, subject.site_id))
        known, entry.digest = entry.digest, hashlib.blake2b(content, digest_size=8).digest()
        return entry.digest != known


def _examined_since_us(since_day: int, horizon_us: int) -> int:
    """From when on the rules say everything that holds; what began before stays as it was."""
    return max(since_day * DAY_US, horizon_us)
