"""Sets of valid events of a few patients within 28 days: as hypothesis strategies and as a seeded generator.

Both make `Plan`s, short descriptions of something that happens (a visit, some feedback, a change of consent),
and `build` turns plans into events. Hypothesis shrinks plans; the details of each come from its seed.

Every event has its own `event_id`, and all that refers to one item or session agrees on what SPEC leaves
open: its kind, its exercise, and whether its content is text or an object. Fields come under all their names,
with nulls under the others, integers as floats, and seconds of 60.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Literal, NamedTuple

from hypothesis import strategies as st

from tests.support.oracle import Arrival, event_time

# Not at midnight, so that the 28 days touch 29 dates; a Monday, so that they touch five weeks.
WINDOW_START = datetime(2025, 3, 3, 6, 0, tzinfo=UTC)
WINDOW_END = WINDOW_START + timedelta(days=28)
EPOCH = "1970-01-01T00:00:00Z"
SLOT = timedelta(minutes=15)
SLOTS_PER_DAY = 96

type Body = dict[str, Any]
type Scene = Literal["visit", "reps", "feedback", "alert", "consent"]
type Consents = Literal["none", "harmless", "any"]
"""`none`: no consent events. `harmless`: consents that withhold nothing with `consent=enforce`, in whatever
order all events arrive (some hide a patient's rows, effective after the last event). `any`: all sorts; the
result is defined only when they arrive before the other events, see `arrival_orders`."""

_EXERCISES = ["squat", "bridge", None]
_ISSUES = ["knee_valgus", "trunk_lean", "short_range", "too_fast"]
_LOWEST_SCORE = [0.0, 0.45, 0.6, 0.86]
_HIGHEST_SCORE = [1.0, 0.72, 0.8, 1.0]
_PRESCRIBED = [[3, 5, 14], [7, 21], [1, 3], [1, 3]]
_ATTENDANCE = [0.7, 0.3, 0.15, 1.0]


class Plan(NamedTuple):
    """Something that happens to a patient, `slot` quarters of an hour into the day-th 24 h of the window."""

    scene: Scene
    patient: int
    day: int
    slot: int
    seed: int

    @property
    def at(self) -> datetime:
        return WINDOW_START + timedelta(days=self.day) + self.slot * SLOT


class _Draft(NamedTuple):
    """An event without the names, formats and optional fields that all kinds share."""

    kind: str
    ts: datetime
    body: Body
    exercise_id: str | None = None


def arrival_sets(
    *,
    consents: Consents = "any",
    patients: int = 4,
    max_plans: int = 25,
    duplicates: bool = True,
    ts_from_publish: bool = False,
) -> st.SearchStrategy[list[Arrival]]:
    """Small adversarial sets: many ties, shared ids, odd combinations. See `build` for the parameters."""
    scenes: list[Scene] = ["visit", "visit", "reps", "feedback", "alert"]
    if consents != "none":
        scenes.append("consent")
    plan = st.builds(
        Plan,
        scene=st.sampled_from(scenes),
        patient=st.integers(0, patients - 1),
        day=st.integers(0, 27),
        slot=st.integers(0, SLOTS_PER_DAY - 1),
        seed=st.integers(0, 2**32 - 1),
    )
    return st.lists(plan, max_size=max_plans).map(
        lambda plans: build(plans, consents=consents, duplicates=duplicates, ts_from_publish=ts_from_publish)
    )


def random_arrivals(
    rng: Random,
    *,
    consents: Consents = "any",
    patients: int = 4,
    duplicates: bool = True,
    ts_from_publish: bool = False,
) -> list[Arrival]:
    """A realistic set over the whole window: patients with habits of their own, by `patient % 4` (middling;
    absent and poor; rare and mediocre; every day and excellent). See `build` for the parameters."""
    plans: list[Plan] = []
    for patient in range(patients):
        plans += _patient_plans(rng, patient, consents)
    return build(plans, consents=consents, duplicates=duplicates, ts_from_publish=ts_from_publish)


def long_histories(*kinds: str, max_events: int = 30) -> st.SearchStrategy[list[Arrival]]:
    """One patient's events of those kinds, 0 to 120 days from one to the next, in order of time.

    Sessions may be reported weeks after they began, and in two events.
    """
    step = st.tuples(
        st.sampled_from(kinds),
        st.one_of(st.integers(0, 9), st.integers(0, 120)),
        st.integers(0, SLOTS_PER_DAY - 1),
        st.integers(0, 2**32 - 1),
    )
    return st.lists(step, max_size=max_events).map(_long_history)


def random_history(rng: Random, sessions: int) -> list[Arrival]:
    """The sessions of one patient over years; as `long_histories`."""
    gaps = (rng.choice([0, 1, 1, 2, 3, 4, 5, 7, 8, rng.randrange(121)]) for _ in range(sessions))
    return _long_history(
        [("exercise_session", gap, rng.randrange(SLOTS_PER_DAY), rng.getrandbits(32)) for gap in gaps]
    )


def _long_history(steps: Iterable[tuple[str, int, int, int]]) -> list[Arrival]:
    arrivals: list[Arrival] = []
    day = 0
    for number, (kind, gap, slot, seed) in enumerate(steps):
        rng = Random(seed)
        day += gap
        for piece, (ts, body) in enumerate(_occurrence(kind, number, day, slot, rng)):
            envelope = {
                "event_id": _event_id(number, piece),
                "kind": kind,
                "ts": _time(rng, ts),
                "subject_id": "p0",
                "body": body,
            }
            arrivals.append(Arrival(envelope, _microseconds(ts)))
    return arrivals


def _occurrence(kind: str, number: int, day: int, slot: int, rng: Random) -> list[tuple[datetime, Body]]:
    at = WINDOW_START + timedelta(days=day) + slot * SLOT
    if kind == "consent":
        return [(at, {"status": rng.choice(["granted", "granted", "pending", "revoked"])})]
    if kind != "exercise_session":
        required: dict[str, Body] = {
            "rep_observation": {"quality_score": 0.8},
            "alert": {"alert_type": "fall_risk"},
        }
        return [(at, required.get(kind, {}))]
    status = rng.choice(["completed", "completed", "completed", "partial", "aborted"])
    whole: Body = {
        "session_id": f"s{number}",
        "start_time": _time(rng, at),
        "completion_status": status,
        "duration_minutes": rng.choice([5, 30]),
    }
    reported_at = at + rng.choice([0, 0, 0, 1, 12, 27, 50]) * timedelta(days=1)
    started: Body = {"session_id": f"s{number}", "start_time": _time(rng, at)}
    pieces = [(at, started), (reported_at, whole)]
    return rng.choice([pieces, pieces, pieces[1:], pieces[1:], pieces[:1]])


def _patient_plans(rng: Random, patient: int, consents: Consents) -> list[Plan]:
    def plan(scene: Scene, day: int) -> Plan:
        return Plan(scene, patient, day, rng.randrange(SLOTS_PER_DAY), rng.getrandbits(32))

    plans = [plan("visit", day) for day in range(28) if rng.random() < _ATTENDANCE[patient % 4]]
    if len(plans) == 28:
        # Later every day, so that the first and the last visit are 28 dates apart.
        plans = [visit._replace(slot=visit.day * 95 // 27) for visit in plans]
    for scene, most in (("reps", 8), ("feedback", 5), ("alert", 5)):
        plans += [plan(scene, rng.randrange(28)) for _ in range(rng.randint(0, most))]  # type: ignore[arg-type]
    if consents != "none":
        plans += [plan("consent", rng.randrange(28)) for _ in range(rng.randint(0, 3))]
    return plans


def build(
    plans: Iterable[Plan],
    *,
    consents: Consents = "any",
    duplicates: bool = True,
    ts_from_publish: bool = False,
) -> list[Arrival]:
    """The events of the plans, one plan after another.

    `duplicates`: some events occur once more, published later. `ts_from_publish`: some events state no `ts`
    and take it from the publish time; leave it off where the publish time cannot be set (files).
    """
    arrivals: list[Arrival] = []
    for number, plan in enumerate(plans):
        rng = Random(plan.seed)
        for index, draft in enumerate(_drafts(plan, rng, consents)):
            arrival = _arrival(plan, draft, _event_id(number, index), rng, ts_from_publish)
            arrivals.append(arrival)
            if duplicates and rng.random() < 0.1:
                later = arrival.publish_us + rng.randrange(1, 3_600_000_000)
                # A copy that took its ts from another publish time would be a different event.
                keeps_ts = "ts" in arrival.envelope or "timestamp" in arrival.envelope
                arrivals.append(arrival._replace(publish_us=later) if keeps_ts else arrival)
    return arrivals


def arrival_orders(arrivals: Sequence[Arrival], rng: Random) -> list[Arrival]:
    """Another order in which they may arrive with the same result: shuffled, consents before all others."""
    consents = [arrival for arrival in arrivals if arrival.envelope["kind"] == "consent"]
    others = [arrival for arrival in arrivals if arrival.envelope["kind"] != "consent"]
    rng.shuffle(consents)
    rng.shuffle(others)
    return consents + others


def in_time_order(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Consents first, then the others by their own time: the order in which feedback on reps is defined."""
    return sorted(arrivals, key=lambda arrival: (arrival.envelope["kind"] != "consent", event_time(arrival)))


# --- Scenes


def _drafts(plan: Plan, rng: Random, consents: Consents) -> list[_Draft]:
    if plan.scene == "consent":
        return [_consent(plan, rng, consents)]
    scene: Callable[[Plan, Random], list[_Draft]] = {
        "visit": _visit,
        "reps": _reps,
        "feedback": _feedback,
        "alert": _alert,
    }[plan.scene]
    return scene(plan, rng)


def _visit(plan: Plan, rng: Random) -> list[_Draft]:
    shape = rng.choice(["whole", "whole", "only_end", "nameless", "pieces"])
    if shape == "nameless":
        return [_nameless_session(plan, rng)]
    # A few short names recur, across days and patients; the others belong to one visit.
    session_id = rng.choice([f"s{plan.day}-{plan.slot}", f"s{plan.day}-{plan.slot}", "s1", "s2"])
    exercise_id = _exercise_of(session_id)
    length = timedelta(minutes=rng.choice([4, 10, 25, 40]))
    if shape == "pieces":
        times = [plan.at + rng.choice([0, 0, 1, 8]) * SLOT for _ in range(rng.randint(2, 4))]
        return [
            _Draft(
                "exercise_session", ts, {"session_id": session_id, **_session_fields(plan, rng)}, exercise_id
            )
            for ts in times
        ]
    start: Body = {"session_id": session_id, **_stated(rng, 0.8, **_start_time(rng, plan.at))}
    end = {
        "session_id": session_id,
        **_start_time(rng, plan.at),
        **_under(rng, _time(rng, plan.at + length), "end_time", "ended_at"),
        **_outcome(rng),
        **_ratings(plan, rng),
    }
    ended_at = plan.at + length
    uploaded_at = ended_at + rng.choice(
        [timedelta(0), timedelta(0), timedelta(minutes=3), timedelta(hours=30)]
    )
    drafts = [_Draft("exercise_session", uploaded_at, end, exercise_id)]
    if shape == "whole":
        drafts.insert(0, _Draft("exercise_session", plan.at, start, exercise_id))
        drafts += _burst(plan, rng, plan.at, rng.choice([0, 3, 8]), exercise_id, session_id)
    return drafts


def _nameless_session(plan: Plan, rng: Random) -> _Draft:
    """A session of one event, known by its event_id; only here an end may come without a start."""
    body = _session_fields(plan, rng)
    if rng.random() < 0.3:
        end = _time(rng, plan.at + timedelta(minutes=20))
        body = {**_under(rng, end, "end_time", "ended_at"), **_ratings(plan, rng)}
    return _Draft("exercise_session", plan.at, body, rng.choice(_EXERCISES))


def _session_fields(plan: Plan, rng: Random) -> Body:
    start = plan.at - rng.choice([0, 0, 2, 40]) * SLOT
    return {
        **_stated(rng, 0.5, **_start_time(rng, _inside(start))),
        **_stated(rng, 0.4, duration_minutes=rng.choice([0, 5, 9.5, 10, 30])),
        **_outcome(rng),
        **_ratings(plan, rng),
    }


def _start_time(rng: Random, start: datetime) -> Body:
    return _under(rng, _time(rng, start), "start_time", "started_at")


def _outcome(rng: Random) -> Body:
    statuses = ["completed", "completed", "partial", "aborted", "started"]
    prescribed = _whole(rng, rng.choice([0, 10, 12]))
    return {
        **_stated(rng, 0.5, **_under(rng, rng.choice(statuses), "completion_status", "status")),
        **_stated(rng, 0.4, **_under(rng, prescribed, "prescribed_reps", "target_reps")),
        **_stated(rng, 0.4, completed_reps=_whole(rng, rng.choice([0, 4, 10, 12]))),
        **_stated(rng, 0.3, prescription=_prescription(rng)),
        **_stated(rng, 0.3, completion_summary=_summary(rng)),
    }


def _prescription(rng: Random) -> Any:
    if rng.random() < 0.1:
        return "3 x 10"
    return {
        **_stated(rng, 0.9, sets=_whole(rng, rng.choice([0, 1, 2]))),
        **_stated(rng, 0.9, reps=_whole(rng, rng.choice([5, 6, None]))),
        "exercise": "squat",
    }


def _summary(rng: Random) -> Body:
    return {
        **_stated(rng, 0.7, total_reps=_whole(rng, rng.choice([0, 4, 10, 12, None]))),
        **_stated(rng, 0.7, average_quality=rng.choice([0.3, 0.65, 0.9, None])),
        **_stated(rng, 0.7, session_duration=rng.choice([0, 599, 600, 1500.5, None])),
    }


def _ratings(plan: Plan, rng: Random) -> Body:
    prescribed = rng.choice(_PRESCRIBED[plan.patient % 4])
    return {
        **_stated(rng, 0.5, **_under(rng, _score(plan, rng), "overall_quality", "quality_score")),
        **_stated(rng, 0.15, pain_level=rng.choice([0, 3, 3.9, 4, 6.5, 7, 10])),
        **_stated(rng, 0.15, prescribed_sessions_per_week=_whole(rng, prescribed)),
        **_stated(rng, 0.1, device_info={"model": "band-2"}),
        **_stated(rng, 0.1, prescribed_exercise_id="plan-7"),
    }


def _reps(plan: Plan, rng: Random) -> list[_Draft]:
    return _burst(plan, rng, plan.at, rng.choice([1, 2, 7, 20, 25]), rng.choice(_EXERCISES), None)


def _burst(
    plan: Plan, rng: Random, start: datetime, count: int, exercise_id: str | None, session_id: str | None
) -> list[_Draft]:
    """Reps some seconds apart: now and then at one instant, or just within or beyond the 30 s of feedback."""
    ts = start
    drafts = []
    for number in range(1, count + 1):
        ts += timedelta(milliseconds=rng.choice([0, 2_500, 4_125, 9_000, 29_999, 30_000]))
        body = {
            **_rep_score(rng, _score(plan, rng)),
            **_stated(rng, 0.5, rep_number=_whole(rng, number)),
            **({} if session_id is None else {"session_id": session_id}),
            **_stated(rng, 0.3, **_under(rng, _issues(rng), "form_issues", "form_errors", "anomalies")),
            **_stated(rng, 0.2, **_under(rng, 0.9, "confidence_rating", "confidence")),
            **_stated(rng, 0.2, duration_ms=2100, range_of_motion=0.8, peak_velocity=0.4),
            **_stated(rng, 0.1, keypoints=[{"x": 0.25, "y": 0.5}], joint_angles={"knee": 87.5}),
        }
        drafts.append(_Draft("rep_observation", ts, body, exercise_id))
    return drafts


def _rep_score(rng: Random, score: float) -> Body:
    if rng.random() < 0.1:
        return {"form_analysis": {"overall_score": score, "symmetry": None}, "quality_score": None}
    return _under(rng, score, "quality_score", "rep_quality", "form_score")


def _issues(rng: Random) -> list[Any]:
    return [_issue(rng) for _ in range(rng.randint(0, 3))]


def _issue(rng: Random) -> Any:
    issue_type = rng.choice(_ISSUES)
    if rng.random() < 0.4:
        return issue_type
    severity = rng.choice(["minor", "moderate", "major"])
    return {
        "type": issue_type,
        **_stated(rng, 0.7, severity=rng.choice([severity, severity, severity, None])),
        **_stated(rng, 0.2, keypoint_deviation=0.125),
    }


def _feedback(plan: Plan, rng: Random) -> list[_Draft]:
    feedback_id = rng.choice([None, "f1", "f2", f"f{plan.day}-{plan.slot}"])
    times = [plan.at + rng.choice([0, 0, 2, 30]) * SLOT for _ in range(rng.randint(1, 3))]
    return [
        _Draft("feedback", ts, _feedback_fields(rng, feedback_id), rng.choice(_EXERCISES))
        for ts in (times[:1] if feedback_id is None else times)
    ]


def _feedback_fields(rng: Random, feedback_id: str | None) -> Body:
    as_object = feedback_id is not None and zlib.crc32(feedback_id.encode()) % 2 == 0
    text = rng.choice(["Well done.", "Keep the back straight.", "Café après-midi ✓", ""])
    content = {"text": text, **_stated(rng, 0.3, pain_level=rng.choice([2, 4.5, 8]))} if as_object else text
    priority = rng.choice(["low", "medium", "high", "critical"])
    when = WINDOW_START + rng.randrange(28 * SLOTS_PER_DAY) * SLOT
    return {
        **({} if feedback_id is None else {"feedback_id": feedback_id}),
        **_stated(rng, 0.5, therapist_id=rng.choice(["t1", "t2"])),
        **_stated(rng, 0.5, feedback_type=rng.choice(["encouragement", "correction"])),
        **_stated(rng, 0.3, **_under(rng, "s1", "target_session_id", "session_id")),
        **_stated(rng, 0.5, **_under(rng, content, "content", "message")),
        **_stated(rng, 0.4, **_under(rng, priority, "priority", "severity", "severity_level")),
        **_stated(rng, 0.2, delivered_at=_time(rng, when)),
        **_stated(rng, 0.3, acknowledged_at=_time(rng, when)),
        **_stated(rng, 0.3, pain_level=rng.choice([0, 3, 4, 5.5, 7, 9])),
    }


def _alert(plan: Plan, rng: Random) -> list[_Draft]:
    alert_id = rng.choice([None, "a1", "a2", f"a{plan.day}-{plan.slot}"])
    times = [plan.at + rng.choice([0, 0, 2, 30]) * SLOT for _ in range(rng.randint(1, 4))]
    return [
        _Draft("alert", ts, _alert_fields(rng, alert_id), rng.choice(_EXERCISES))
        for ts in (times[:1] if alert_id is None else times)
    ]


def _alert_fields(rng: Random, alert_id: str | None) -> Body:
    when = WINDOW_START + rng.randrange(28 * SLOTS_PER_DAY) * SLOT
    statuses = ["pending", "active", "acknowledged", "in_review", "resolved", "dismissed"]
    urgencies = ["low", "medium", "high", "critical", "urgent"]
    description = rng.choice(["Please call", "Fell at home", ""])
    return {
        **({} if alert_id is None else {"alert_id": alert_id}),
        "alert_type": rng.choice(["fall_risk", "no_show", ""]),
        **_stated(rng, 0.5, **_under(rng, rng.choice(urgencies), "urgency", "severity", "priority")),
        **_stated(rng, 0.6, **_under(rng, rng.choice(statuses), "resolution_status", "status")),
        **_stated(rng, 0.3, trigger_criteria={"threshold": rng.choice([1, 2.5])}),
        **_stated(rng, 0.3, context={"room": rng.choice(["A", "B"]), "tags": ["x", {"n": 1}]}),
        **_stated(rng, 0.4, assigned_to=rng.choice(["t1", "t2"])),
        **_stated(rng, 0.4, **_under(rng, description, "description", "title", "message")),
        **_stated(rng, 0.2, pain_level=rng.choice([0, 3.9, 4, 6, 7, 10])),
        **_stated(rng, 0.2, sla_deadline=rng.choice([EPOCH, _time(rng, when)])),
        **_stated(rng, 0.2, resolved_at=rng.choice([EPOCH, _time(rng, when)])),
    }


def _consent(plan: Plan, rng: Random, consents: Consents) -> _Draft:
    scope = rng.choice([{"video": False}, ["video", "motion"], [], None])
    names: Body = _stated(rng, 0.3, consent_id=f"c{plan.slot}") | _stated(rng, 0.4, scope=scope)
    if rng.random() < 0.15:
        return _Draft(
            "consent", plan.at, {"consent_type": "research", "status": rng.choice(["granted", "revoked"])}
        )
    names |= _stated(rng, 0.3, consent_type="data_collection")
    if consents == "harmless" and rng.random() < 0.2:
        # Nothing happens at or after the window's end, so this hides the patient but withholds no event.
        return _Draft(
            "consent", plan.at, {**names, "granted": False, "effective_from": _time(rng, WINDOW_END)}
        )
    statuses = ["granted", "granted", "granted", "pending"]
    if consents == "any":
        statuses += ["revoked", "revoked", "expired"]
    status = rng.choice(statuses)
    effective_from = plan.at + rng.choice([-200, -40, 4, 60]) * SLOT
    return _Draft(
        "consent",
        plan.at,
        {
            **names,
            **_consent_statement(rng, status),
            **_stated(rng, 0.5, effective_from=_time(rng, effective_from)),
            **(_expiry(plan, rng, consents) if status == "granted" else {}),
        },
    )


def _consent_statement(rng: Random, status: str) -> Body:
    granted = {"granted": status == "granted"}
    forms: list[Body] = [{"status": status}, {"status": status, **granted}]
    if status in ("granted", "revoked"):
        forms.append(granted)
    return rng.choice(forms)


def _expiry(plan: Plan, rng: Random, consents: Consents) -> Body:
    choices = [WINDOW_END + timedelta(days=36_500)]
    if consents == "any":
        choices.append(_inside(plan.at + rng.choice([10, 300, 900]) * SLOT))
    return _stated(rng, 0.4, **_under(rng, _time(rng, rng.choice(choices)), "expires_at", "expiry"))


# --- Details


def _arrival(plan: Plan, draft: _Draft, event_id: str, rng: Random, ts_from_publish: bool) -> Arrival:
    ts = _inside(draft.ts)
    delay = timedelta(milliseconds=rng.randrange(5_000))
    envelope: dict[str, Any] = {
        "event_id": event_id,
        "kind": draft.kind,
        **_under(rng, _time(rng, ts), "ts", "timestamp"),
        **_under(rng, f"p{plan.patient}", "subject_id", "patient_id"),
        "body": draft.body | _stated(rng, 0.1, x_vendor={"ts": "kept out of the way"}),
        **_stated(rng, 0.4, meta=_meta(rng)),
    }
    if draft.exercise_id is not None:
        envelope |= _stated(rng, 0.3, exercise_id=None) or {"exercise_id": draft.exercise_id}
        if envelope["exercise_id"] is None:
            envelope["body"] |= _under(rng, draft.exercise_id, "exercise_id", "exercise_type")
    if ts_from_publish and rng.random() < 0.2:
        envelope.pop("ts", None)
        envelope.pop("timestamp", None)
        delay = timedelta(0)
    return Arrival(envelope, _microseconds(ts + delay))


def _meta(rng: Random) -> Body:
    return {
        **_stated(rng, 0.6, site_id=rng.choice(["north", "south"])),
        **_stated(rng, 0.3, phi=rng.choice([True, False])),
        **_stated(
            rng, 0.3, version=_whole(rng, 1), correlation_id=rng.choice(["corr-1", None]), consent_id="c1"
        ),
    }


def _event_id(number: int, index: int) -> str:
    """Unique, and in no relation to time, so that ids decide ties in both directions."""
    return f"e{(number * 100 + index) * 7919 % 2_147_483_647:010d}"


def _exercise_of(session_id: str) -> str | None:
    return _EXERCISES[zlib.crc32(session_id.encode()) % len(_EXERCISES)]


def _score(plan: Plan, rng: Random) -> float | int:
    """Within the patient's usual range, on the thresholds now and then; a whole number is a JSON integer."""
    low, high = _LOWEST_SCORE[plan.patient % 4], _HIGHEST_SCORE[plan.patient % 4]
    if plan.patient % 4 == 0 and rng.random() < 0.2:
        return rng.choice([0, 0.5, 0.6, 0.7, 0.85, 1])
    score = rng.uniform(low, high)
    return score if rng.random() < 0.1 else round(score, 3)


def _inside(time: datetime) -> datetime:
    return min(max(time, WINDOW_START), WINDOW_END - timedelta(seconds=1))


def _microseconds(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _under(rng: Random, value: Any, *names: str) -> Body:
    """The value under one of the names; now and then with null under those before it."""
    at = names.index(rng.choice([names[0], *names]))
    return dict.fromkeys(names[:at] if rng.random() < 0.3 else ()) | {names[at]: value}


def _whole(rng: Random, number: int | None) -> int | float | None:
    """Now and then as a float, as some senders write whole numbers."""
    return float(number) if number is not None and rng.random() < 0.2 else number


def _stated(rng: Random, share: float, **fields: Any) -> Body:
    """All of the fields in that share of cases, else none."""
    return fields if rng.random() < share else {}


def _time(rng: Random, time: datetime) -> str:
    """The instant in one of the forms that RFC 3339 allows; without an offset it is UTC."""
    ahead = timedelta(hours=5, minutes=30)
    forms = [
        time.isoformat().replace("+00:00", "Z"),
        time.isoformat().replace("+00:00", "Z"),
        time.isoformat(timespec="microseconds"),
        time.replace(tzinfo=None).isoformat(),
        (time + ahead).replace(tzinfo=None).isoformat() + "+05:30",
    ]
    if time.second == 0 and rng.random() < 0.1:
        minute_before = time - timedelta(minutes=1)
        forms = [f"{minute_before:%Y-%m-%dT%H:%M}:60{time:.%f}Z"]
    return rng.choice(forms)
