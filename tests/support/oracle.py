"""A second, naive calculation of the projections and of the policy's nudges, for tests to compare with.

It looks at the whole set of events at once, keeps no state, and shares no code with the pipeline. Events must
be valid, must carry an `event_id`, and those of one patient must lie within 28 days, unless `Options` say
otherwise: only there is the result independent of the order of arrival. Consents count as known before any
other event arrives.

Times are aware datetimes in UTC, days and weeks are dates, scores are exact fractions until the last step.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, NamedTuple

type Row = dict[str, Any]

KEYS = {
    "adherence": ("patient_id", "week_start"),
    "quality": ("patient_id", "exercise_id"),
    "work_queue": ("patient_id", "item_id"),
    "consents": ("patient_id",),
}
REVIEW_COLUMNS = "patient_id item_type urgency priority status created_at sla_deadline resolved_at visible"
REP_FEEDBACK = frozenset({"form_correction", "rep_quality"})

_HISTORY = {"version", "updated_at", "source_event_id", "decisions"}
_TIMES = {"last_session_at", "created_at", "sla_deadline", "resolved_at"}
_PER_EXERCISE = {
    "poor_quality",
    "quality_reminder",
    "quality_degradation",
    "quality_improvement",
} | REP_FEEDBACK
_PER_SESSION = {"short_session", "poor_quality", "quality_reminder"}

_PRIORITY = {"critical": 1, "high": 2, "medium": 3, "low": 4}
_SLA = {
    "critical": timedelta(hours=4),
    "high": timedelta(hours=24),
    "medium": timedelta(hours=48),
    "low": timedelta(days=7),
}
_ITEM_RANK = {"pending": 0, "acknowledged": 1, "in_review": 2, "resolved": 3, "dismissed": 3}
_SESSION_RANK = {"started": 0, "aborted": 1, "partial": 2, "completed": 3}
# Only a feedback has content.
_PAIN = ("pain_level", "content/pain_level", "message/pain_level")
_ISSUE_SEVERITY = ["minor", "moderate", "major"]
_ISSUE_FEEDBACK = {"minor": "low", "moderate": "medium", "major": "high"}


class Arrival(NamedTuple):
    """One event as it arrives: the raw JSON envelope, and its publish time in microseconds since 1970."""

    envelope: dict[str, Any]
    publish_us: int


class Options(NamedTuple):
    """What the result depends on besides the events.

    `now` (default: the clock) decides which consent is the newest in effect. `rep_feedback` also works out
    `form_correction` and `rep_quality`, whose limit of 30 s follows the order of arrival: rep observations
    must then be given in the order of their `ts`. `any_span` takes events that are more than 28 days apart,
    as a bounded run does; of those, only adherence and its nudges are worked out for any set, and only if no
    event states a prescription and no session has events more than 28 days apart.
    """

    consent: Literal["enforce", "require", "off"] = "enforce"
    prescribed_sessions_per_week: int = 7
    now: datetime | None = None
    rep_feedback: bool = False
    any_span: bool = False


class Nudge(NamedTuple):
    """One output of the policy. `exercise_id` and `session_id` are '' where the type is not about one;
    `created_at` is the time of its work-queue item, so None for nudges and feedback. `occasion` tells it from
    the next of its type: an event, a session or an item by id, a day by `day_occasion`."""

    kind: str
    type: str
    severity: str
    patient_id: str
    exercise_id: str = ""
    session_id: str = ""
    created_at: datetime | None = None
    occasion: str = ""


class Expected(NamedTuple):
    """What a bounded run over the events must leave: the rows of the three `_current` views without their
    history columns (work queue: with the policy's `review` items, whose `item_id`, `description`, `context`,
    `therapist_id` and `site_id` are left out), every nudge, and the ids of the withheld events."""

    adherence: list[Row]
    quality: list[Row]
    work_queue: list[Row]
    nudges: list[Nudge]
    withheld: frozenset[str]


class Event(NamedTuple):
    """An event, its `ts` in UTC, its `exercise_id` '' if absent, its body as stated."""

    event_id: str
    kind: str
    ts: datetime
    patient_id: str
    exercise_id: str
    site_id: str | None
    body: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The field's value under its name or the first of its aliases that is stated, else None; `a/b` is
        what the object `a` states of `b`."""
        return first_stated(self.body, *names)

    def time(self, *names: str) -> datetime | None:
        """The field's value as a time, else None."""
        value = self.get(*names)
        return None if value is None else parse_time(value)

    @property
    def order(self) -> tuple[datetime, str]:
        """What the earliest and the newest of several events go by."""
        return self.ts, self.event_id

    @property
    def session_id(self) -> str:
        """Of a session event: the session that it tells of."""
        return self.get("session_id") or self.event_id

    @property
    def start(self) -> datetime:
        """Of a session event: when it says that the session began."""
        return self.time("start_time", "started_at") or self.ts


class _Consent(NamedTuple):
    effective_from: datetime
    ts: datetime
    event_id: str
    status: str
    expires_at: datetime | None


class _Session(NamedTuple):
    session_id: str
    start: datetime
    day: date
    status: str
    exercise_id: str
    minutes: float | None
    quality: float | None
    quality_ts: datetime | None
    newest_ts: datetime


class Rep(NamedTuple):
    """A repetition; `issues` are pairs of type and severity."""

    event_id: str
    ts: datetime
    day: date
    exercise_id: str
    score: Fraction
    issues: list[tuple[str, str]]


def expected(arrivals: Sequence[Arrival], options: Options | None = None) -> Expected:
    """Work out every projection and nudge from the whole set of events. A repeated event counts once.

    Raises ValueError for a set whose result SPEC leaves open.
    """
    options = options or Options()
    now = options.now or datetime.now(UTC)
    events = distinct_events(arrivals)
    total = Expected([], [], [], [], frozenset())
    for patient_id in sorted({event.patient_id for event in events}):
        one = _patient([event for event in events if event.patient_id == patient_id], options, now)
        total = Expected(
            total.adherence + one.adherence,
            total.quality + one.quality,
            total.work_queue + one.work_queue,
            total.nudges + one.nudges,
            total.withheld | one.withheld,
        )
    return total


def _patient(events: list[Event], options: Options, now: datetime) -> Expected:
    if not options.any_span:
        _check_span(events)
    consents = _consents(events)
    others = [event for event in events if event.kind != "consent"]
    withheld = frozenset(event.event_id for event in others if _is_withheld(event, consents, options.consent))
    kept = [event for event in others if not _is_withheld(event, consents, options.consent)]
    consent_status = _consent_status(consents, now)
    visible = options.consent == "off" or consent_status not in ("revoked", "expired")

    session_events = [event for event in kept if event.kind == "exercise_session"]
    sessions = _sessions(session_events)
    reps = [rep_of(event) for event in kept if event.kind == "rep_observation"]
    alerts = [event for event in kept if event.kind == "alert"]
    feedback = [event for event in kept if event.kind == "feedback"]
    prescribed = _prescribed(session_events, options)
    patient_id = events[0].patient_id

    nudges = [
        *_gap_nudges(patient_id, sessions),
        *_short_session_nudges(patient_id, sessions),
        *_adherence_nudges(patient_id, sessions, prescribed),
        *_session_quality_nudges(patient_id, sessions),
        *_exercise_nudges(patient_id, reps),
        *_pain_nudges(patient_id, session_events + feedback + alerts),
        *_critical_alert_nudges(patient_id, alerts),
    ]
    if options.rep_feedback:
        nudges += _rep_nudges(patient_id, reps)
    if not visible:
        return Expected([], [], [], nudges, withheld)
    return Expected(
        _adherence(patient_id, sessions, prescribed, consent_status),
        _quality(patient_id, session_events, sessions, reps),
        _work_queue(patient_id, alerts, feedback, nudges),
        nudges,
        withheld,
    )


# --- Reading events


def parse_time(text: str) -> datetime:
    """An RFC 3339 date-time as an aware datetime in UTC; without an offset it is UTC already, and a second 60
    is the next minute's first."""
    if text[16:19] == ":60":
        return parse_time(f"{text[:16]}:00{text[19:]}") + timedelta(minutes=1)
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def event_time(arrival: Arrival) -> datetime:
    """The event's own time: `ts`, else `timestamp`, else the publish time."""
    text = first_stated(arrival.envelope, "ts", "timestamp")
    if text is None:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=arrival.publish_us)
    return parse_time(text)


def first_stated(fields: Any, *names: str) -> Any:
    """The first of the names under which something is stated that is not null, else None."""
    for name in names:
        value = fields
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def distinct_events(arrivals: Iterable[Arrival]) -> list[Event]:
    """The events that arrive, each once: of a patient, an id stands for one event of a kind, or one item."""
    events: dict[tuple[str, str, str], Event] = {}
    for arrival in arrivals:
        event = _event(arrival)
        space = "item" if event.kind in ("alert", "feedback") else event.kind
        events.setdefault((event.patient_id, space, event.event_id), event)
    return list(events.values())


def _event(arrival: Arrival) -> Event:
    envelope = arrival.envelope
    if "event_id" not in envelope:
        raise ValueError("the oracle does not know the id of an event that states none")
    return Event(
        event_id=envelope["event_id"],
        kind=envelope["kind"],
        ts=event_time(arrival),
        patient_id=first_stated(envelope, "subject_id", "patient_id"),
        exercise_id=first_stated(envelope, "exercise_id", "body/exercise_id", "body/exercise_type") or "",
        site_id=(envelope.get("meta") or {}).get("site_id"),
        body=envelope["body"],
    )


def _check_span(events: list[Event]) -> None:
    oldest = []
    for event in events:
        if event.kind != "consent":
            oldest.append(event.ts)
        if event.kind == "exercise_session":
            oldest.append(event.start)
    if oldest and max(event.ts for event in events) - min(oldest) > timedelta(days=28):
        raise ValueError("events of one patient more than 28 days apart: the result depends on their order")


def _newest(events: Iterable[Event], *names: str) -> Any:
    """The field as the newest event that states it has it, else None."""
    stated = [event for event in events if event.get(*names) is not None]
    return max(stated, key=lambda event: event.order).get(*names) if stated else None


# --- Consent


def _consents(events: list[Event]) -> list[_Consent]:
    return [
        _Consent(
            effective_from=event.time("effective_from") or event.ts,
            ts=event.ts,
            event_id=event.event_id,
            status=event.get("status") or ("granted" if event.body["granted"] else "revoked"),
            expires_at=event.time("expires_at", "expiry"),
        )
        for event in events
        if event.kind == "consent" and (event.get("consent_type") or "data_collection") == "data_collection"
    ]


def _consent_status(consents: list[_Consent], at: datetime) -> str:
    effective = [consent for consent in consents if consent.effective_from <= at]
    if not effective:
        return "unknown"
    newest = max(effective, key=lambda consent: (consent.effective_from, consent.ts, consent.event_id))
    if newest.expires_at is not None and newest.expires_at <= at:
        return "expired"
    return "unknown" if newest.status == "pending" else newest.status


def _is_withheld(event: Event, consents: list[_Consent], mode: str) -> bool:
    status = _consent_status(consents, event.ts)
    if mode == "off":
        return False
    if mode == "require":
        return status != "granted"
    return status in ("revoked", "expired")


# --- Sessions and reps


def _sessions(events: list[Event]) -> list[_Session]:
    """The patient's sessions by start, then id."""
    by_id: dict[str, list[Event]] = {}
    for event in events:
        by_id.setdefault(event.session_id, []).append(event)
    sessions = [_session(session_id, same) for session_id, same in by_id.items()]
    return sorted(sessions, key=lambda session: (session.start, session.session_id))


def _session(session_id: str, events: list[Event]) -> _Session:
    events = sorted(events, key=lambda event: event.order)
    earliest = events[0]
    minutes = [minutes_of(event) for event in events if minutes_of(event) is not None]
    qualities = [(quality_of(event), event.ts) for event in events if quality_of(event) is not None]
    return _Session(
        session_id=session_id,
        start=earliest.start,
        day=earliest.start.date(),
        status=max((status_of(event) for event in events), key=lambda status: _SESSION_RANK[status]),
        exercise_id=earliest.exercise_id,
        minutes=minutes[-1] if minutes else None,
        quality=qualities[-1][0] if qualities else None,
        quality_ts=qualities[-1][1] if qualities else None,
        newest_ts=events[-1].ts,
    )


def status_of(event: Event) -> str:
    """The status that a session event gives its session."""
    stated = event.get("completion_status", "status")
    if stated is not None:
        return str(stated)
    completed = event.get("completed_reps", "completion_summary/total_reps")
    prescribed = event.get("prescribed_reps", "target_reps")
    sets, reps = event.get("prescription/sets"), event.get("prescription/reps")
    if prescribed is None and sets is not None and reps is not None:
        prescribed = sets * reps
    if completed is not None and prescribed is not None:
        if completed >= prescribed > 0:
            return "completed"
        if 0 < completed < prescribed:
            return "partial"
    has_ended = event.get("end_time", "ended_at") is not None or minutes_of(event) is not None
    return "completed" if has_ended else "started"


def minutes_of(event: Event) -> float | None:
    """The duration that a session event states, if any."""
    stated, seconds = event.get("duration_minutes"), event.get("completion_summary/session_duration")
    if stated is not None:
        return float(stated)
    if seconds is not None:
        return float(seconds) / 60
    start, end = event.time("start_time", "started_at"), event.time("end_time", "ended_at")
    return None if start is None or end is None else (end - start).total_seconds() / 60


def quality_of(event: Event) -> float | None:
    """The quality that a session event states, if any."""
    quality = event.get("overall_quality", "quality_score", "completion_summary/average_quality")
    return None if quality is None else float(quality)


def rep_of(event: Event) -> Rep:
    """The repetition that an event tells of."""
    issues = event.get("form_issues", "form_errors", "anomalies") or []
    return Rep(
        event_id=event.event_id,
        ts=event.ts,
        day=event.ts.date(),
        exercise_id=event.exercise_id,
        score=Fraction(
            str(event.get("quality_score", "rep_quality", "form_score", "form_analysis/overall_score"))
        ),
        issues=[
            (issue, "minor") if isinstance(issue, str) else (issue["type"], issue.get("severity") or "minor")
            for issue in issues
        ],
    )


def _prescribed(session_events: list[Event], options: Options) -> int:
    stated = _newest(session_events, "prescribed_sessions_per_week")
    return options.prescribed_sessions_per_week if stated is None else int(stated)


def ending_on(day: date, days: int, what: date) -> bool:
    """Whether `what` is one of the `days` days that end on `day`."""
    return day - timedelta(days=days - 1) <= what <= day


# --- Adherence


def _adherence(patient_id: str, sessions: list[_Session], prescribed: int, consent_status: str) -> list[Row]:
    weeks = sorted({_monday(session.day) for session in sessions})
    return [_adherence_week(patient_id, week, sessions, prescribed, consent_status) for week in weeks]


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _adherence_week(
    patient_id: str, week: date, sessions: list[_Session], prescribed: int, consent_status: str
) -> Row:
    of_week = [session for session in sessions if _monday(session.day) == week]
    newest_day = max(session.day for session in of_week)
    completed = sum(session.status == "completed" for session in of_week)
    partial = sum(session.status == "partial" for session in of_week)
    attended = [session.start for session in of_week if session.status in ("completed", "partial")]
    attended_days = [
        session.day
        for session in sessions
        if session.status in ("completed", "partial") and session.day <= newest_day
    ]
    return {
        "patient_id": patient_id,
        "week_start": week,
        "prescribed_sessions": prescribed,
        "completed_sessions": completed,
        "partial_sessions": partial,
        "missed_sessions": max(0, prescribed - completed - partial),
        "adherence_percentage": _rounded(_percentage(completed, prescribed)),
        "rolling_7day_avg": _rounded(_rolling(sessions, newest_day, 7, prescribed)),
        "rolling_28day_avg": _rounded(_rolling(sessions, newest_day, 28, prescribed)),
        "last_session_at": max(attended, default=None),
        "consecutive_missed_days": (newest_day - max(attended_days)).days if attended_days else None,
        "consent_status": consent_status,
        "visible": True,
    }


def _percentage(completed: int, prescribed: int) -> Fraction:
    return 100 * min(Fraction(1), Fraction(completed, prescribed))


def _rolling(sessions: Iterable[_Session], day: date, days: int, prescribed: int) -> Fraction:
    completed = [
        session for session in sessions if session.status == "completed" and ending_on(day, days, session.day)
    ]
    return _percentage(len(completed), prescribed * days // 7)


def _rounded(value: Fraction) -> float:
    return round(float(value), 6)


# --- Quality


def _quality(
    patient_id: str, session_events: list[Event], sessions: list[_Session], reps: list[Rep]
) -> list[Row]:
    exercises = {rep.exercise_id for rep in reps}
    exercises |= {event.exercise_id for event in session_events if quality_of(event) is not None}
    return [
        _quality_row(
            patient_id,
            exercise_id,
            [session for session in sessions if session.exercise_id == exercise_id],
            [rep for rep in reps if rep.exercise_id == exercise_id],
        )
        for exercise_id in sorted(exercises)
    ]


def _quality_row(patient_id: str, exercise_id: str, sessions: list[_Session], reps: list[Rep]) -> Row:
    newest_day = max((rep.day for rep in reps), default=None)
    window = [rep for rep in reps if newest_day is not None and ending_on(newest_day, 7, rep.day)]
    scores = sorted(rep.score for rep in window)
    critical = sum(score < Fraction(1, 2) for score in scores)
    rated = [session for session in sessions if session.quality is not None]
    last_rated = max(
        rated, key=lambda session: (session.start, session.newest_ts, session.session_id), default=None
    )
    return {
        "patient_id": patient_id,
        "exercise_id": exercise_id,
        "total_reps": len(scores),
        "average_quality": _rounded(_average(window)) if window else None,
        "critical_issues_count": critical,
        "critical_issues_percentage": _rounded(Fraction(100 * critical, len(scores))) if scores else 0.0,
        "percentile_25": _nearest_rank(scores, 25),
        "percentile_50": _nearest_rank(scores, 50),
        "percentile_75": _nearest_rank(scores, 75),
        "quality_trend": _trend(reps, newest_day),
        "form_issue_frequency": _issue_frequency(window),
        "last_session_quality": None if last_rated is None else last_rated.quality,
        "visible": True,
    }


def _average(reps: list[Rep]) -> Fraction:
    return sum((rep.score for rep in reps), Fraction(0)) / len(reps)


def _nearest_rank(ascending: list[Fraction], percent: int) -> float | None:
    """The smallest score with at least that share of all scores at or below it."""
    for position, score in enumerate(ascending, start=1):
        if 100 * position >= percent * len(ascending):
            return float(score)
    return None


def _trend(reps: list[Rep], newest_day: date | None) -> str:
    if newest_day is None:
        return "stable"
    week = [rep for rep in reps if ending_on(newest_day, 7, rep.day)]
    week_before = [rep for rep in reps if ending_on(newest_day - timedelta(days=7), 7, rep.day)]
    if not week_before:
        return "stable"
    change = _average(week) - _average(week_before)
    if change >= Fraction("0.05"):
        return "improving"
    return "declining" if change <= Fraction("-0.05") else "stable"


def _issue_frequency(reps: list[Rep]) -> list[Row]:
    counts = Counter(issue_type for rep in reps for issue_type, _severity in rep.issues)
    return [
        {"type": issue_type, "count": count}
        for issue_type, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


# --- Work queue


def _work_queue(
    patient_id: str, alerts: list[Event], feedback: list[Event], nudges: list[Nudge]
) -> list[Row]:
    alert_items = _grouped(alerts, "alert_id")
    feedback_items = _grouped(feedback, "feedback_id")
    if alert_items.keys() & feedback_items.keys():
        raise ValueError("an alert and a feedback event of one patient share an item id")
    return [
        *(_alert_item(patient_id, item_id, events) for item_id, events in alert_items.items()),
        *(_feedback_item(patient_id, item_id, events) for item_id, events in feedback_items.items()),
        *(_review_item(nudge) for nudge in nudges if nudge.kind in ("alert", "emergency")),
    ]


def _grouped(events: list[Event], id_field: str) -> dict[str, list[Event]]:
    items: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event.order):
        items.setdefault(event.get(id_field) or event.event_id, []).append(event)
    return items


def _alert_item(patient_id: str, item_id: str, events: list[Event]) -> Row:
    alert_type = _newest(events, "alert_type")
    context = {"alert_type": alert_type}
    for name in ("trigger_criteria", "pain_level"):
        if (stated := _newest(events, name)) is not None:
            context[name] = stated
    context |= _newest(events, "context") or {}
    stated_urgency = _newest(events, "urgency", "severity", "priority")
    description = _newest(events, "description", "title", "message")
    return {
        "patient_id": patient_id,
        "item_id": item_id,
        "item_type": "alert",
        "therapist_id": _newest(events, "assigned_to"),
        "description": alert_type if description is None else description,
        "context": context,
        **_item_fields(events, _urgency(stated_urgency), [_alert_status(event) for event in events]),
    }


def _feedback_item(patient_id: str, item_id: str, events: list[Event]) -> Row:
    contents = [event.get("content", "message") for event in events]
    texts = [content for content in contents if isinstance(content, str)]
    objects = [content for content in contents if isinstance(content, dict)]
    if texts and objects:
        raise ValueError("the content of one feedback item is text in one event and an object in another")
    delivered_at = _newest(events, "delivered_at")
    context = {
        "feedback_type": _newest(events, "feedback_type"),
        "target_session_id": _newest(events, "target_session_id", "session_id"),
        "content": objects[-1] if objects else None,
        "pain_level": _newest(events, *_PAIN),
        "delivered_at": None if delivered_at is None else parse_time(delivered_at),
    }
    stated_urgency = _newest(events, "priority", "severity", "severity_level")
    return {
        "patient_id": patient_id,
        "item_id": item_id,
        "item_type": "feedback_needed",
        "therapist_id": _newest(events, "therapist_id"),
        "description": texts[-1] if texts else None,
        "context": {name: value for name, value in context.items() if value is not None} or None,
        **_item_fields(events, _urgency(stated_urgency), [_feedback_status(event) for event in events]),
    }


def _item_fields(events: list[Event], urgency: str, statuses: list[str | None]) -> Row:
    """The columns that alerts and feedback share; `events` ascend, `statuses` are what each states."""
    created_at = events[0].ts
    status, status_ts = "pending", None
    for event, stated in zip(events, statuses, strict=True):
        if stated is not None and _ITEM_RANK[stated] > _ITEM_RANK[status]:
            status, status_ts = stated, event.ts
    sites = [event.site_id for event in events if event.site_id is not None]
    resolved_at = _newest(events, "resolved_at")
    sla_deadline = _newest(events, "sla_deadline")
    return {
        "site_id": sites[-1] if sites else None,
        "urgency": urgency,
        "priority": _PRIORITY[urgency],
        "status": status,
        "created_at": created_at,
        "sla_deadline": created_at + _SLA[urgency] if sla_deadline is None else parse_time(sla_deadline),
        "resolved_at": _resolved_at(resolved_at, status, status_ts),
        "visible": True,
    }


def _resolved_at(stated: str | None, status: str, status_ts: datetime | None) -> datetime | None:
    if stated is not None:
        return parse_time(stated)
    return status_ts if status in ("resolved", "dismissed") else None


def _urgency(stated: str | None) -> str:
    return {None: "medium", "urgent": "critical"}.get(stated) or str(stated)


def _alert_status(event: Event) -> str | None:
    stated = event.get("resolution_status", "status")
    return "pending" if stated == "active" else stated


def _feedback_status(event: Event) -> str | None:
    return None if event.get("acknowledged_at") is None else "acknowledged"


def _review_item(nudge: Nudge) -> Row:
    assert nudge.created_at is not None
    return {
        "patient_id": nudge.patient_id,
        "item_type": "review",
        "urgency": nudge.severity,
        "priority": _PRIORITY[nudge.severity],
        "status": "pending",
        "created_at": nudge.created_at,
        "sla_deadline": nudge.created_at + _SLA[nudge.severity],
        "resolved_at": None,
        "visible": True,
    }


# --- Policy


def _gap_nudges(patient_id: str, sessions: list[_Session]) -> list[Nudge]:
    days = sorted({session.day for session in sessions})
    nudges = []
    for before, after in pairwise(days):
        gap = (after - before).days
        if 3 < gap <= 7:
            nudges.append(Nudge("nudge", "missed_sessions", "low", patient_id, occasion=day_occasion(after)))
        if gap > 7:
            silent_until = datetime.combine(before + timedelta(days=8), time(tzinfo=UTC))
            occasion = day_occasion(before)
            nudges.append(
                Nudge("alert", "extended_absence", "high", patient_id, "", "", silent_until, occasion)
            )
    return nudges


def absences(arrivals: Iterable[Arrival]) -> list[tuple[str, Row]]:
    """Patient and `data` of each extended absence, if no consent withholds anything."""
    events = [event for event in distinct_events(arrivals) if event.kind == "exercise_session"]
    found = []
    for patient_id in sorted({event.patient_id for event in events}):
        own = [event for event in events if event.patient_id == patient_id]
        days = sorted({session.day for session in _sessions(own)})
        for before, after in pairwise(days):
            if after - before > timedelta(days=60):
                found.append((patient_id, {"absence": "more than 60 days"}))
            elif after - before > timedelta(days=7):
                found.append((patient_id, {"last_session_day": before.isoformat()}))
    return found


def _short_session_nudges(patient_id: str, sessions: list[_Session]) -> list[Nudge]:
    return [
        Nudge("nudge", "short_session", "low", patient_id, "", session.session_id, None, session.session_id)
        for session in sessions
        if session.status == "completed" and session.minutes is not None and session.minutes < 10
    ]


def _adherence_nudges(patient_id: str, sessions: list[_Session], prescribed: int) -> list[Nudge]:
    low: dict[date, datetime] = {}
    excellent: dict[date, datetime] = {}
    for position, session in enumerate(sessions):
        if session.status == "started":
            continue
        until_now = sessions[: position + 1]
        age = (session.day - sessions[0].day).days
        if age >= 7 and _rolling(until_now, session.day, 7, prescribed) < 50:
            low.setdefault(session.day, session.start)
        if age >= 28 and _rolling(until_now, session.day, 28, prescribed) > 90:
            excellent.setdefault(session.day, session.start)
    return [
        *(
            Nudge("alert", "low_weekly_adherence", "medium", patient_id, "", "", low[day], day_occasion(day))
            for day in _spaced(low, 7)
        ),
        *(
            Nudge("nudge", "adherence_excellence", "low", patient_id, occasion=day_occasion(day))
            for day in _spaced(excellent, 28)
        ),
    ]


def day_occasion(day: date) -> str:
    """The days since 1970 in digits."""
    return str((day - date(1970, 1, 1)).days)


def _spaced(candidates: Iterable[date], days: int) -> list[date]:
    """The first candidate, then each next one at least `days` days after the last one taken."""
    taken: list[date] = []
    for day in sorted(candidates):
        if not taken or (day - taken[-1]).days >= days:
            taken.append(day)
    return taken


def _session_quality_nudges(patient_id: str, sessions: list[_Session]) -> list[Nudge]:
    nudges = []
    for session in sessions:
        about = (patient_id, session.exercise_id, session.session_id)
        if session.quality is not None and session.quality < 0.5:
            nudges.append(
                Nudge("alert", "poor_quality", "medium", *about, session.quality_ts, session.session_id)
            )
        if session.quality is not None and 0.5 <= session.quality < 0.7:
            nudges.append(Nudge("nudge", "quality_reminder", "low", *about, occasion=session.session_id))
    return nudges


def _exercise_nudges(patient_id: str, reps: list[Rep]) -> list[Nudge]:
    nudges = []
    for exercise_id in sorted({rep.exercise_id for rep in reps}):
        about = (patient_id, exercise_id, "")
        own = [rep for rep in reps if rep.exercise_id == exercise_id]
        days = sorted({rep.day for rep in own})
        for day in _spaced((day for day in days if _is_degraded(own, day)), 7):
            first = min(rep.ts for rep in own if rep.day == day)
            nudges.append(Nudge("alert", "quality_degradation", "high", *about, first, day_occasion(day)))
        improved = _spaced((day for day in days if _is_improved(own, days, day)), 14)
        nudges += [
            Nudge("nudge", "quality_improvement", "low", *about, occasion=day_occasion(day))
            for day in improved
        ]
    return nudges


def _is_degraded(reps: list[Rep], day: date) -> bool:
    window = [rep for rep in reps if ending_on(day, 7, rep.day)]
    critical = [rep for rep in window if rep.score < Fraction(1, 2)]
    if len(window) < 20:
        return False
    return _average(window) < Fraction("0.7") or Fraction(len(critical), len(window)) >= Fraction("0.3")


def _is_improved(reps: list[Rep], days: list[date], day: date) -> bool:
    recent = [rep_day for rep_day in days if ending_on(day, 14, rep_day)]
    return days[0] <= day - timedelta(days=13) and all(
        _average([rep for rep in reps if ending_on(rep_day, 7, rep.day)]) > Fraction("0.85")
        for rep_day in recent
    )


def _pain_nudges(patient_id: str, events: list[Event]) -> list[Nudge]:
    nudges = []
    for event in events:
        names = _PAIN if event.kind == "feedback" else _PAIN[:1]
        pain, about = event.get(*names), (patient_id, "", "", event.ts, event.event_id)
        if pain is not None and pain >= 7:
            nudges.append(Nudge("emergency", "pain_reported", "critical", *about))
        elif pain is not None and pain >= 4:
            nudges.append(Nudge("alert", "pain_reported", "high", *about))
    return nudges


def _critical_alert_nudges(patient_id: str, alerts: list[Event]) -> list[Nudge]:
    nudges = []
    for item_id, events in _grouped(alerts, "alert_id").items():
        critical = [
            event for event in events if _urgency(event.get("urgency", "severity", "priority")) == "critical"
        ]
        if critical:
            about = (patient_id, "", "", critical[0].ts, item_id)
            nudges.append(Nudge("emergency", "critical_alert", "critical", *about))
    return nudges


def _rep_nudges(patient_id: str, reps: list[Rep]) -> list[Nudge]:
    """Feedback on single reps, which are in the order of arrival."""
    if [rep.ts for rep in reps] != sorted(rep.ts for rep in reps):
        raise ValueError("feedback on reps needs them in the order of their ts")
    nudges = []
    last_fired: dict[tuple[str, str], datetime] = {}
    for rep in reps:
        due = []
        if rep.issues:
            worst = max((severity for _type, severity in rep.issues), key=_ISSUE_SEVERITY.index)
            due.append(("form_correction", _ISSUE_FEEDBACK[worst]))
        if rep.score < Fraction("0.6"):
            due.append(("rep_quality", "low"))
        for nudge_type, severity in due:
            last = last_fired.get((nudge_type, rep.exercise_id))
            if last is None or rep.ts - last >= timedelta(seconds=30):
                last_fired[nudge_type, rep.exercise_id] = rep.ts
                about = (patient_id, rep.exercise_id, "", None, rep.event_id)
                nudges.append(Nudge("feedback", nudge_type, severity, *about))
    return nudges


# --- Too late

_COUNTED_OF = {
    "exercise_session": {"exercise_session"},
    "exercise_session rep_observation": {"rep_observation"},
    "alert feedback": {"alert", "feedback"},
}


def too_late(bundles: Iterable[Iterable[Arrival]], options: Options | None = None) -> set[str]:
    """The ids of the events that come too late in a stream, given as what arrives together, in its order.

    Each projection judges by the events that it receives. No event may occur twice.
    """
    options = options or Options()
    arrived: list[Event] = []
    taken_in: dict[str, list[Event]] = {kinds: [] for kinds in _COUNTED_OF}
    late = set()
    for bundle in bundles:
        together = distinct_events(bundle)
        arrived += together
        withheld = [event for event in together if _withheld_by(arrived, event, options)]
        for kinds, counted in _COUNTED_OF.items():
            received = [event for event in together if event.kind in (*kinds.split(), "consent")]
            usable = taken_in[kinds] + [event for event in received if event not in withheld]
            too_old = [event for event in received if _is_too_old(event, usable)]
            late |= {event.event_id for event in too_old if event.kind in counted}
            taken_in[kinds] = [event for event in usable if event not in too_old]
    return late


def _withheld_by(arrived: list[Event], event: Event, options: Options) -> bool:
    consents = _consents([other for other in arrived if other.patient_id == event.patient_id])
    return event.kind != "consent" and _is_withheld(event, consents, options.consent)


def _is_too_old(event: Event, known: list[Event]) -> bool:
    times = [_about(other) for other in known if other.patient_id == event.patient_id]
    return event.kind != "consent" and bool(times) and max(times) - _about(event) > timedelta(days=28)


def _about(event: Event) -> datetime:
    """A session is about the time when it began, however much later it is reported."""
    return min(event.ts, event.start) if event.kind == "exercise_session" else event.ts


# --- Comparing with what a run wrote


def current_rows(rows: Iterable[Mapping[str, Any]], table: str, consents: Iterable[Row] = ()) -> list[Row]:
    """What the view `<table>_current` shows of the table's rows: the newest of each key unless it is hidden,
    and nothing of a patient whose newest row in `consents` is hidden. Columns are kept as they are.

    Raises AssertionError when two different rows have the same key and version.
    """
    newest: dict[tuple[Any, ...], Row] = {}
    for row in map(dict, rows):
        key = tuple(row[column] for column in KEYS[table])
        known = newest.get(key)
        if known is not None and known["version"] == row["version"]:
            assert normalize(known) == normalize(row), f"{table}: two rows of {key} have one version"
        if known is None or known["version"] < row["version"]:
            newest[key] = row
    hidden = set()
    if table != "consents":
        consent_rows = list(consents)
        shown = {row["patient_id"] for row in current_rows(consent_rows, "consents")}
        hidden = {row["patient_id"] for row in consent_rows} - shown
    return [row for row in newest.values() if row["visible"] and row["patient_id"] not in hidden]


def normalize(row: Mapping[str, Any]) -> Row:
    """The row in a form that compares: without history columns, timestamps as aware datetimes in UTC, dates
    as dates, JSON decoded, floats rounded to 6 digits, and an empty `context` as None."""
    result = {name: _plain(name, value) for name, value in row.items() if name not in _HISTORY}
    context = result.get("context")
    if result.get("item_type") == "feedback_needed" and isinstance(context, dict):
        result["context"] = {name: _plain(name, value) for name, value in context.items()}
    return result


def _plain(name: str, value: Any) -> Any:
    if name in _TIMES or name == "delivered_at":
        return parse_time(value) if isinstance(value, str) else value
    if name == "week_start":
        return date.fromisoformat(value) if isinstance(value, str) else value
    if name == "context":
        return (json.loads(value) if isinstance(value, str) else value) or None
    if name == "form_issue_frequency":
        return [dict(entry) for entry in value or []]
    return round(value, 6) if isinstance(value, float) else value


def assert_rows_equal(
    actual: Iterable[Mapping[str, Any]], expected_rows: Iterable[Mapping[str, Any]], table: str
) -> None:
    """Fail with a line for each row and column that differs.

    `actual` are the rows that the view shows. Percentiles may differ by 0.01, other floats by the last
    rounded digit. The policy's `review` items are compared as a multiset, without what SPEC leaves open in
    them.
    """
    left, right = [normalize(row) for row in actual], [normalize(row) for row in expected_rows]
    problems = _key_differences(_keyed(left, table), _keyed(right, table))
    if table == "work_queue":
        problems += _multiset_differences("review item", _reviews(left), _reviews(right))
    assert not problems, f"{table}: {len(problems)} differences\n" + "\n".join(problems)


def _keyed(rows: list[Row], table: str) -> dict[tuple[Any, ...], Row]:
    plain = [row for row in rows if row.get("item_type") != "review"]
    keyed = {tuple(row[column] for column in KEYS[table]): row for row in plain}
    assert len(keyed) == len(plain), f"{table}: a key occurs more than once"
    return keyed


def _reviews(rows: list[Row]) -> Counter[str]:
    reviews = [row for row in rows if row.get("item_type") == "review"]
    return Counter(", ".join(f"{name}={row.get(name)}" for name in REVIEW_COLUMNS.split()) for row in reviews)


def _key_differences(actual: dict[tuple[Any, ...], Row], wanted: dict[tuple[Any, ...], Row]) -> list[str]:
    problems = [f"  missing row {key}: {wanted[key]}" for key in wanted if key not in actual]
    problems += [f"  unexpected row {key}: {actual[key]}" for key in actual if key not in wanted]
    for key in actual.keys() & wanted.keys():
        for column in wanted[key] | actual[key]:
            got, want = actual[key].get(column), wanted[key].get(column)
            if not _same(column, got, want):
                problems.append(f"  {key} {column}: got {got!r}, expected {want!r}")
    return sorted(problems)


def _same(column: str, got: Any, want: Any) -> bool:
    if isinstance(got, bool) or isinstance(want, bool):
        return got is want
    if isinstance(got, int | float) and isinstance(want, int | float):
        tolerance = 0.01 if column.startswith("percentile_") else 1e-6
        return abs(got - want) <= tolerance + 1e-9
    return bool(got == want)


def assert_nudges_equal(
    actual: Iterable[Mapping[str, Any]], expected_nudges: Iterable[Nudge], *, rep_feedback: bool = False
) -> None:
    """Fail with a line for each nudge that is missing or too many. `actual` are messages of the nudge topic;
    unless `rep_feedback`, feedback on single reps is left out on both sides."""
    left, right = [nudge_of(message) for message in actual], list(expected_nudges)
    skipped = frozenset() if rep_feedback else REP_FEEDBACK
    problems = _multiset_differences("nudge", _nudge_counts(left, skipped), _nudge_counts(right, skipped))
    assert not problems, f"nudges: {len(problems)} differences\n" + "\n".join(problems)


def nudge_of(message: Mapping[str, Any]) -> Nudge:
    """What a message of the nudge topic is about; it does not state its occasion."""
    return Nudge(
        kind=message["kind"],
        type=message["type"],
        severity=message["severity"],
        patient_id=message["subject_id"],
        exercise_id=(message.get("exercise_id") or "") if message["type"] in _PER_EXERCISE else "",
        session_id=(message.get("session_id") or "") if message["type"] in _PER_SESSION else "",
    )


def _nudge_counts(nudges: list[Nudge], skipped: frozenset[str]) -> Counter[str]:
    plain = [nudge._replace(created_at=None, occasion="") for nudge in nudges]
    return Counter(str(nudge) for nudge in plain if nudge.type not in skipped)


def _multiset_differences(what: str, actual: Counter[str], wanted: Counter[str]) -> list[str]:
    missing = [f"  missing {what} ({count} times): {text}" for text, count in (wanted - actual).items()]
    extra = [f"  unexpected {what} ({count} times): {text}" for text, count in (actual - wanted).items()]
    return sorted(missing) + sorted(extra)
