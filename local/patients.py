"""Simulated patients, and what their devices and therapists send in 28 days."""

import heapq
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, NamedTuple

from transforms.times import DAY_US, HOUR_US, MICROS, MINUTE_US, day_of

# One hour less than the 28 days of state: an event without a time gets its publish time, and must not expire
# the patient's first events.
HISTORY_US = 28 * DAY_US - HOUR_US
_DAYS = 28

# Events close to a change of consent might overtake it on the other subscription.
_QUIET_BEFORE_US = 2 * HOUR_US
_QUIET_AFTER_US = 2 * DAY_US

_MIN_REPS = 3
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (only a base for text; the zone is each device's own)

Event = dict[str, Any]


class Dialect(NamedTuple):
    """How one make of device spells times, and fields that have aliases."""

    ts: str
    zone: str
    subject: str
    score: str
    confidence: str
    issues: str
    session_quality: str
    target: str
    content: str
    priority: str
    urgency: str
    status: str
    description: str
    # How it spells two values.
    critical: str
    pending: str


_DIALECTS = (
    Dialect(
        ts="ts",
        zone="Z",
        subject="subject_id",
        score="quality_score",
        confidence="confidence_rating",
        issues="form_issues",
        session_quality="overall_quality",
        target="target_session_id",
        content="content",
        priority="priority",
        urgency="urgency",
        status="resolution_status",
        description="description",
        critical="critical",
        pending="pending",
    ),
    Dialect(
        ts="timestamp",
        zone="",
        subject="patient_id",
        score="form_score",
        confidence="confidence",
        issues="form_errors",
        session_quality="quality_score",
        target="session_id",
        content="message",
        priority="severity",
        urgency="severity",
        status="status",
        description="title",
        critical="urgent",
        pending="active",
    ),
    Dialect(
        ts="timestamp",
        zone="+02:00",
        subject="subject_id",
        score="rep_quality",
        confidence="confidence",
        issues="anomalies",
        session_quality="overall_quality",
        target="target_session_id",
        content="content",
        priority="severity_level",
        urgency="priority",
        status="status",
        description="description",
        critical="critical",
        pending="pending",
    ),
)


class Patient(NamedTuple):
    """One patient; quality changes from `quality_from` to `quality_to` over the 28 days."""

    id: str
    site_id: str
    therapist_id: str
    dialect: Dialect
    quality_from: float
    quality_to: float
    pain: float
    rhythm: str
    sessions_per_week: int
    exercises: tuple[str, ...]
    usual_hour_us: int
    # Each change of consent: (time in microseconds, status).
    consents: tuple[tuple[int, str], ...]


class Upload(NamedTuple):
    """One message: an event, or several of one session. `ts_us` is the newest event's time."""

    ts_us: int
    patient: Patient
    events: list[Event]


class _Session(NamedTuple):
    start_us: int
    end_us: int
    patient: Patient
    exercise: str
    # completed, partial, aborted; unfinished: never ended; practice: repetitions without a session event.
    outcome: str
    begins: bool
    feedback_us: tuple[int, ...]

    @property
    def own_events(self) -> int:
        ends = self.outcome in ("completed", "partial", "aborted")
        return self.begins + ends + len(self.feedback_us)

    @property
    def cost(self) -> int:
        return self.own_events + _MIN_REPS


class _Alert(NamedTuple):
    start_us: int
    patient: Patient
    alert_type: str
    urgency: str
    # Each later (time, status).
    steps: tuple[tuple[int, str], ...]

    @property
    def cost(self) -> int:
        return 1 + len(self.steps)


class _Consent(NamedTuple):
    start_us: int
    patient: Patient
    status: str

    @property
    def cost(self) -> int:
        return 1


_Episode = _Session | _Alert | _Consent

# Quality at the beginning and the end of the 28 days, and usual pain.
_TRAJECTORIES = {
    "improving": (0.55, 0.92, 2.5),
    "declining": (0.88, 0.46, 4.5),
    "poor": (0.46, 0.46, 6.0),
    "excellent": (0.94, 0.94, 0.5),
    "steady": (0.77, 0.77, 2.0),
}
# Share of the prescribed sessions that a patient does, and the shortest and longest gap in days.
_RHYTHMS = {
    "adherent": (1.0, 0, 0),
    "regular": (0.85, 0, 0),
    "sporadic": (0.55, 4, 9),
    "lapsed": (0.8, 8, 14),
}
_EXERCISES = {
    "knee_extension": ("incomplete_extension", "hip_compensation", "too_fast"),
    "shoulder_abduction": ("shoulder_hike", "trunk_lean", "elbow_bent"),
    "squat": ("knee_valgus", "forward_lean", "insufficient_depth"),
    "hip_bridge": ("uneven_hips", "lumbar_arch", "too_fast"),
    "calf_raise": ("incomplete_range", "ankle_roll", "loss_of_balance"),
}
_ALERTS = (
    ("fall_detected", "critical"),
    ("pain_spike", "high"),
    ("form_deterioration", "high"),
    ("unusual_movement", "medium"),
    ("device_offline", "low"),
)
_OUTCOMES = ("completed", "partial", "aborted", "unfinished", "practice")
_OUTCOME_WEIGHTS = (82, 8, 4, 3, 3)
_ADHERENT_OUTCOME_WEIGHTS = (96, 1, 1, 1, 1)
_REMARKS = (
    "Good work today",
    "Slow down on the way back",
    "Keep the knee over the foot",
    "See you on Friday",
)


def make_patients(rng: Random, count: int, now_us: int) -> list[Patient]:
    """The patients; if there are enough, one has revoked consent and one has granted it again."""
    begin_us = now_us - HISTORY_US
    trajectories, rhythms, exercises = tuple(_TRAJECTORIES), tuple(_RHYTHMS), tuple(_EXERCISES)
    # Five trajectories and four rhythms: the first twenty places have every combination.
    order = rng.sample(range(count), count)
    patients = []
    for number, place in enumerate(order, start=1):
        low, high, pain = _TRAJECTORIES[trajectories[place % len(trajectories)]]
        patients.append(
            Patient(
                id=f"patient-{number:04d}",
                site_id=f"site-{1 + place % 3}",
                therapist_id=f"therapist-{1 + place % 7}",
                dialect=_DIALECTS[0 if rng.random() < 0.6 else rng.randrange(1, len(_DIALECTS))],
                quality_from=low,
                quality_to=high,
                pain=pain,
                rhythm=rhythms[place % len(rhythms)],
                sessions_per_week=7 if place % 4 == 0 else rng.choice((3, 5, 7)),
                exercises=tuple(rng.sample(exercises, 1 + place % 3)),
                usual_hour_us=rng.randrange(7, 20) * HOUR_US,
                consents=_consents(rng, place, begin_us),
            )
        )
    return patients


def _consents(rng: Random, place: int, begin_us: int) -> tuple[tuple[int, str], ...]:
    granted = (begin_us + rng.randrange(MINUTE_US), "granted")
    # Both patients exercise regularly, so that there is something to withhold.
    if place == 1:
        return granted, (begin_us + HISTORY_US * 60 // 100, "revoked")
    if place == 5:
        return (
            granted,
            (begin_us + HISTORY_US * 40 // 100, "revoked"),
            (begin_us + HISTORY_US * 65 // 100, "granted"),
        )
    return () if place % 10 == 9 else (granted,)


def history(rng: Random, patients: Sequence[Patient], now_us: int, events: int) -> Iterator[Upload]:
    """The patients' uploads, with `events` events in total, ordered by `Upload.ts_us`.

    They lie within `HISTORY_US` before `now_us`. The number of repetitions per session follows from `events`;
    if that is small, sessions are left out.
    """
    return _merged(rng, _plan(rng, patients, now_us, events), now_us)


def _merged(rng: Random, plan: list[tuple[_Episode, int]], now_us: int) -> Iterator[Upload]:
    waiting: list[tuple[int, int, Upload]] = []
    sequence = 0
    for episode, reps in plan:
        while waiting and waiting[0][0] <= episode.start_us:
            yield heapq.heappop(waiting)[2]
        for upload in _uploads(rng, episode, reps, now_us):
            heapq.heappush(waiting, (upload.ts_us, sequence, upload))
            sequence += 1
    while waiting:
        yield heapq.heappop(waiting)[2]


def _plan(rng: Random, patients: Sequence[Patient], now_us: int, events: int) -> list[tuple[_Episode, int]]:
    """The episodes by start, each with its number of repetitions; `events` events in total."""
    episodes = [episode for patient in patients for episode in _episodes(rng, patient, now_us)]
    rng.shuffle(episodes)
    chosen, left = [], events
    for episode in episodes:
        if episode.cost <= left:
            chosen.append(episode)
            left -= episode.cost
    sessions = [episode for episode in chosen if isinstance(episode, _Session)]
    if left and not sessions:
        practice = _practice(patients[0], now_us)
        chosen.append(practice)
        left -= practice.cost
    chosen.sort(key=lambda episode: episode.start_us)
    weights = [rng.uniform(0.5, 1.5) if isinstance(episode, _Session) else 0.0 for episode in chosen]
    total, share, given = sum(weights), 0.0, 0
    plan = []
    for episode, weight in zip(chosen, weights, strict=True):
        share += weight
        extra = round(left * share / total) - given if weight else 0
        given += extra
        plan.append((episode, extra + (_MIN_REPS if isinstance(episode, _Session) else 0)))
    return plan


def _practice(patient: Patient, now_us: int) -> _Session:
    start_us = now_us - HOUR_US
    return _Session(start_us, now_us, patient, patient.exercises[0], "practice", False, ())


def _episodes(rng: Random, patient: Patient, now_us: int) -> Iterator[_Episode]:
    begin_us = now_us - HISTORY_US
    for at_us, status in patient.consents:
        yield _Consent(at_us, patient, status)
    for start_us in _session_starts(rng, patient, begin_us, now_us):
        session = _session(rng, patient, start_us, now_us)
        if session.end_us <= now_us and not _quiet(patient, start_us):
            yield session
    troubled = patient.quality_to < 0.6
    for _ in range(rng.randrange(4) if troubled else rng.random() < 0.3):
        alert = _alert(rng, patient, begin_us + rng.randrange(HISTORY_US), now_us)
        if not _quiet(patient, alert.start_us):
            yield alert


def _session_starts(rng: Random, patient: Patient, begin_us: int, now_us: int) -> Iterator[int]:
    share, shortest, longest = _RHYTHMS[patient.rhythm]
    gap = rng.randint(shortest, longest)
    gap_from = _DAYS + 1 - gap if patient.rhythm == "lapsed" else rng.randrange(7, _DAYS - 7)
    chance = share * patient.sessions_per_week / 7
    if patient.rhythm == "adherent":
        # 28 full days of perfect adherence need a session at either end.
        yield begin_us + rng.randrange(20 * MINUTE_US)
    for day in range(_DAYS + 1):
        at_us = (day_of(begin_us) + day) * DAY_US + patient.usual_hour_us + rng.randrange(HOUR_US)
        if begin_us <= at_us < now_us and rng.random() < chance and not gap_from <= day < gap_from + gap:
            yield at_us
    if patient.rhythm == "adherent":
        yield now_us - rng.randrange(60, 100) * MINUTE_US


def _session(rng: Random, patient: Patient, start_us: int, now_us: int) -> _Session:
    minutes = rng.uniform(4, 9) if rng.random() < 0.08 else rng.uniform(15, 45)
    end_us = start_us + int(minutes * MINUTE_US)
    weights = _ADHERENT_OUTCOME_WEIGHTS if patient.rhythm == "adherent" else _OUTCOME_WEIGHTS
    outcome = rng.choices(_OUTCOMES, weights)[0]
    delivered_us = end_us + rng.randrange(HOUR_US, 12 * HOUR_US)
    feedback = [delivered_us] if rng.random() < 0.2 else []
    if feedback and rng.random() < 0.6:
        feedback.append(delivered_us + rng.randrange(HOUR_US, 30 * HOUR_US))
    return _Session(
        start_us=start_us,
        end_us=end_us,
        patient=patient,
        exercise=rng.choice(patient.exercises),
        outcome=outcome,
        begins=outcome == "unfinished" or (outcome != "practice" and rng.random() < 0.95),
        feedback_us=tuple(at for at in feedback if at <= now_us and not _quiet(patient, at)),
    )


def _alert(rng: Random, patient: Patient, start_us: int, now_us: int) -> _Alert:
    alert_type, urgency = rng.choice(_ALERTS)
    steps, at_us = [], start_us
    for status in ("acknowledged", "in_review", rng.choice(("resolved", "resolved", "dismissed"))):
        at_us += rng.randrange(HOUR_US // 4, 30 * HOUR_US)
        if rng.random() < 0.25 or at_us > now_us:
            break
        if not _quiet(patient, at_us):
            steps.append((at_us, status))
    return _Alert(start_us, patient, alert_type, urgency, tuple(steps))


def _quiet(patient: Patient, at_us: int) -> bool:
    """Whether the time is close to a change of the patient's consent."""
    return any(
        changed_us - _QUIET_BEFORE_US <= at_us <= changed_us + _QUIET_AFTER_US
        for changed_us, _ in patient.consents[1:]
    )


def _uploads(rng: Random, episode: _Episode, reps: int, now_us: int) -> Iterator[Upload]:
    if isinstance(episode, _Session):
        yield from _session_uploads(rng, episode, reps, now_us)
    elif isinstance(episode, _Alert):
        yield from _alert_uploads(rng, episode)
    else:
        yield _consent_upload(rng, episode)


def _session_uploads(rng: Random, session: _Session, reps: int, now_us: int) -> Iterator[Upload]:
    patient = session.patient
    session_id = None
    if session.begins or rng.random() < 0.5:
        session_id = f"session-{session.start_us // 1000:x}-{rng.getrandbits(32):08x}"
    timed = _session_events(rng, session, session_id, reps, now_us)
    # Some devices send several events at once.
    size = rng.choice((4, 8, 20)) if rng.random() < 0.12 else 1
    for first in range(0, len(timed), size):
        part = timed[first : first + size]
        yield Upload(part[-1][0], patient, [event for _, event in part])
    if session.feedback_us:
        yield from _feedback_uploads(rng, session, session_id)


def _session_events(
    rng: Random, session: _Session, session_id: str | None, reps: int, now_us: int
) -> list[tuple[int, Event]]:
    prescribed = max(10, reps)
    timed = []
    if session.begins:
        body = _start_body(rng, session, session_id, prescribed)
        timed.append((session.start_us, _session_event(rng, session, session.start_us, body)))
    step = (session.end_us - session.start_us) / (reps + 1)
    for number in range(1, reps + 1):
        at_us = session.start_us + int(step * (number + rng.uniform(-0.4, 0.4)))
        event = rep_event(rng, session.patient, session.exercise, at_us, now_us, number, session_id)
        # A device without a clock; the publish time is about right only for recent events.
        if at_us > now_us - 6 * HOUR_US and rng.random() < 0.02:
            del event[session.patient.dialect.ts]
        timed.append((at_us, event))
    if session.outcome in ("completed", "partial", "aborted"):
        body = _end_body(rng, session, session_id, prescribed, now_us)
        timed.append((session.end_us, _session_event(rng, session, session.end_us, body)))
    return timed


def _session_event(rng: Random, session: _Session, ts_us: int, body: Event) -> Event:
    return _event(rng, session.patient, "exercise_session", ts_us, body, session.exercise)


def _start_body(rng: Random, session: _Session, session_id: str | None, prescribed: int) -> Event:
    patient = session.patient
    body: Event = {
        "session_id": session_id,
        "prescribed_exercise_id": session.exercise,
        "start_time": stamp(session.start_us, patient.dialect.zone),
        "prescribed_reps": prescribed,
        "device_info": {"model": "motion-2", "firmware": f"4.{rng.randrange(8)}"},
    }
    if rng.random() < 0.5:
        body["prescribed_sessions_per_week"] = patient.sessions_per_week
    return body


def _end_body(rng: Random, session: _Session, session_id: str | None, prescribed: int, now_us: int) -> Event:
    patient, dialect = session.patient, session.patient.dialect
    completed = prescribed
    if session.outcome != "completed":
        completed = rng.randrange(1, prescribed)
    body: Event = {
        "start_time": stamp(session.start_us, dialect.zone),
        "end_time": stamp(session.end_us, dialect.zone),
        "prescribed_reps": prescribed,
        "completed_reps": completed,
        "prescribed_sessions_per_week": patient.sessions_per_week,
        dialect.session_quality: _score(rng, patient, session.end_us, now_us, 0.05),
    }
    if session_id:
        body["session_id"] = session_id
    if session.outcome == "aborted" or rng.random() < 0.7:
        body["completion_status"] = session.outcome
    if rng.random() < 0.2:
        body["duration_minutes"] = round((session.end_us - session.start_us) / MINUTE_US, 1)
    if rng.random() < 0.4:
        body["pain_level"] = _pain(rng, patient)
    return body


def rep_event(
    rng: Random,
    patient: Patient,
    exercise: str,
    ts_us: int,
    now_us: int,
    number: int,
    session_id: str | None,
) -> Event:
    """One observed repetition, with the patient's quality at that time."""
    dialect = patient.dialect
    score = _score(rng, patient, ts_us, now_us, 0.08)
    body: Event = {
        "rep_number": number,
        dialect.score: score,
        dialect.confidence: round(rng.uniform(0.7, 1.0), 3),
        "duration_ms": rng.randrange(1200, 4800),
        "range_of_motion": round(60 + 80 * score + rng.uniform(-5, 5), 1),
    }
    if session_id:
        body["session_id"] = session_id
    if rng.random() < 0.2:
        body["peak_velocity"] = round(rng.uniform(0.3, 1.8), 2)
        body["joint_angles"] = {"knee": rng.randrange(60, 140), "hip": rng.randrange(20, 90)}
    if rng.random() < 1.4 * (0.9 - score):
        body[dialect.issues] = _issues(rng, exercise, score)
    return _event(rng, patient, "rep_observation", ts_us, body, exercise)


def _issues(rng: Random, exercise: str, score: float) -> list[Any]:
    types = _EXERCISES[exercise]
    found = [types[0] if rng.random() < 0.6 else types[1]]
    if score < 0.5 and rng.random() < 0.5:
        found.append(types[2])
    if rng.random() < 0.3:
        return found
    severity = "major" if score < 0.5 else "moderate" if score < 0.7 else "minor"
    return [
        {"type": issue, "severity": severity, "keypoint_deviation": round(1 - score, 3)} for issue in found
    ]


def _feedback_uploads(rng: Random, session: _Session, session_id: str | None) -> Iterator[Upload]:
    patient, dialect = session.patient, session.patient.dialect
    feedback_id = f"feedback-{session.feedback_us[0] // 1000:x}-{rng.getrandbits(32):08x}"
    from_patient = rng.random() < 0.3
    for number, at_us in enumerate(session.feedback_us):
        body: Event = {"feedback_id": feedback_id, "therapist_id": patient.therapist_id}
        if number:
            body["acknowledged_at"] = stamp(at_us, dialect.zone)
        else:
            body["feedback_type"] = "pain_report" if from_patient else "encouragement"
            body[dialect.priority] = rng.choice(("low", "medium", "medium", "high"))
            body["delivered_at"] = stamp(at_us, dialect.zone)
            remark = rng.choice(_REMARKS)
            body[dialect.content] = remark if rng.random() < 0.7 else {"text": remark, "language": "en"}
            if session_id:
                body[dialect.target] = session_id
            if from_patient:
                body["pain_level"] = _pain(rng, patient)
        yield Upload(at_us, patient, [_event(rng, patient, "feedback", at_us, body, session.exercise)])


def _alert_uploads(rng: Random, alert: _Alert) -> Iterator[Upload]:
    patient, dialect = alert.patient, alert.patient.dialect
    alert_id = f"alert-{alert.start_us // 1000:x}-{rng.getrandbits(32):08x}"
    first: Event = {
        "alert_id": alert_id,
        "alert_type": alert.alert_type,
        dialect.urgency: dialect.critical if alert.urgency == "critical" else alert.urgency,
        "assigned_to": patient.therapist_id,
        dialect.description: alert.alert_type.replace("_", " ").capitalize(),
        "trigger_criteria": {"rule": alert.alert_type, "threshold": round(rng.uniform(0.5, 0.9), 2)},
    }
    if rng.random() < 0.5:
        first[dialect.status] = dialect.pending
    yield Upload(alert.start_us, patient, [_event(rng, patient, "alert", alert.start_us, first)])
    for at_us, status in alert.steps:
        body: Event = {"alert_id": alert_id, "alert_type": alert.alert_type, dialect.status: status}
        if status == "resolved" and rng.random() < 0.5:
            body["resolved_at"] = stamp(at_us, dialect.zone)
        yield Upload(at_us, patient, [_event(rng, patient, "alert", at_us, body)])


def _consent_upload(rng: Random, consent: _Consent) -> Upload:
    patient, zone = consent.patient, consent.patient.dialect.zone
    body: Event = {"consent_id": f"consent-{patient.id}-{consent.start_us // 1000:x}"}
    if rng.random() < 0.5:
        body["granted"] = consent.status == "granted"
    else:
        body["status"] = consent.status
    if consent.status == "granted":
        body["expires_at"] = stamp(consent.start_us + 365 * DAY_US, zone)
        body["scope"] = {"research": rng.random() < 0.5}
    event = _event(rng, patient, "consent", consent.start_us, body)
    return Upload(consent.start_us, patient, [event])


def _event(
    rng: Random, patient: Patient, kind: str, ts_us: int, body: Event, exercise: str | None = None
) -> Event:
    dialect = patient.dialect
    event: Event = {
        "event_id": _event_id(rng, ts_us),
        "kind": kind,
        dialect.ts: stamp(ts_us, dialect.zone),
        dialect.subject: patient.id,
        "body": body,
        "meta": {"phi": True, "site_id": patient.site_id, "version": 1},
    }
    if exercise:
        event["exercise_id"] = exercise
    if rng.random() < 0.003:
        del event["event_id"]
    return event


def _event_id(rng: Random, ts_us: int) -> str:
    """A version 7 UUID: its time keeps two runs with one seed apart."""
    millis, bits = ts_us // 1000, rng.getrandbits(74)
    return (
        f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7{bits >> 62:03x}"
        f"-{0x8000 | (bits >> 48) & 0x3FFF:04x}-{bits & 0xFFFFFFFFFFFF:012x}"
    )


def stamp(us: int, zone: str) -> str:
    """RFC 3339 with milliseconds, in a zone: `Z`, `+02:00`, or `` for unmarked UTC."""
    if zone == "+02:00":
        us += 2 * HOUR_US
    seconds, rest = divmod(us, MICROS)
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()}.{rest // 1000:03d}{zone}"


def _score(rng: Random, patient: Patient, ts_us: int, now_us: int, spread: float) -> float:
    passed = min(1.0, max(0.0, 1 - (now_us - ts_us) / HISTORY_US))
    level = patient.quality_from + (patient.quality_to - patient.quality_from) * passed
    return round(min(1.0, max(0.0, rng.gauss(level, spread))), 3)


def _pain(rng: Random, patient: Patient) -> int:
    return round(min(10.0, max(0.0, rng.gauss(patient.pain, 1.5))))
