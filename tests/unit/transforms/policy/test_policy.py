"""What is announced, how often, and what is taken back; what time alone brings about; what is forgotten."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from random import Random
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import WINDOW_END, arrival_orders, random_arrivals
from transforms.events import Event, RepFact, ReviewItemFact, parse_event
from transforms.message import Message
from transforms.policy.rules import RULES
from transforms.policy.thresholds import AdherenceLevel, Policy
from transforms.projections.adherence import Adherence, AdherenceState
from transforms.projections.consent import ConsentLog, Decision
from transforms.projections.projector import PROCESSED, TOO_LATE, WITHHELD, Output, Projector, RuleSettings
from transforms.projections.quality import DayStats, Quality, Window
from transforms.projections.state import SILENT_DAYS, PatientState, Trigger
from transforms.projections.work_queue import WorkQueue
from transforms.times import DAY_US, HOUR_US, MINUTE_US, day_of, to_micros, to_rfc3339

DAY_0 = to_micros(datetime(2025, 3, 3, tzinfo=UTC))


def at(day: float, hour: float = 10) -> int:
    """Microseconds since the epoch, so many days and hours after Monday, March 3rd."""
    return DAY_0 + int(day * DAY_US + hour * HOUR_US)


class Patient:
    """One patient's state in one projector, stored and read back at every step."""

    def __init__(self, projector: Projector[Any], now_us: int) -> None:
        self.projector = projector
        self.now_us = now_us
        self.stored = projector.state_type().encode()
        self.outcomes: list[str] = []
        self.ids = 0

    @property
    def state(self) -> Any:
        return self.projector.state_type.decode(self.stored)

    def tell(self, kind: str, ts_us: int, body: dict[str, Any] | None = None, **fields: Any) -> Output:
        """One event arrives; what comes out of it."""
        self.ids += 1
        content = {
            "event_id": f"e{self.ids}",
            "kind": kind,
            "ts": to_rfc3339(ts_us),
            "subject_id": "p1",
            "body": body or {},
        }
        message = Message(b"", {}, "", "", ts_us)
        return self.take(parse_event(content | fields, message, max(self.now_us, ts_us)))

    def take(self, event: Event) -> Output:
        state, output = self.state, Output()
        trigger = Trigger("p1", event.event_id, event.message.publish_us)
        self.outcomes.append(self.projector.apply(state, event, trigger, self.now_us, output))
        self.projector.project(state, trigger, self.now_us, output)
        self.stored = state.encode()
        return output

    def wake(self) -> Output:
        """Time has passed."""
        output = Output()
        state = self.projector.wake(self.state, self.now_us)
        self.projector.project(state, Trigger("p1", None, self.now_us), self.now_us, output)
        self.stored = state.encode()
        return output

    @property
    def wakes_at(self) -> int | None:
        times = self.projector.wake_times_us(self.state, self.now_us)
        return min((time for time in times if time and time > self.now_us), default=None)


def said(output: Output) -> list[tuple[str, str, str]]:
    return [
        (nudge.attributes["type"], nudge.attributes["kind"], nudge.attributes["severity"])
        for nudge in output.nudges
    ]


def reviews(output: Output) -> list[ReviewItemFact]:
    return [event.fact for event in output.review_items if isinstance(event.fact, ReviewItemFact)]


def bodies(output: Output) -> list[dict[str, Any]]:
    return [orjson.loads(row.body) for _, row in output.rows]


def adherent(now_us: int, **settings: Any) -> Patient:
    return Patient(Adherence(RuleSettings(**settings)), now_us)


def done(minutes: float = 30, **body: Any) -> dict[str, Any]:
    return {"completion_status": "completed", "duration_minutes": minutes} | body


# --- What each rule announces

MISSED_NUDGE = ("missed_sessions", "nudge", "low")
MISSED_ALERT = ("missed_sessions", "alert", "medium")
ABSENCE = ("extended_absence", "alert", "high")


@pytest.mark.parametrize(
    ("gap", "wanted"),
    [(1, []), (3, []), (4, [MISSED_NUDGE]), (7, [MISSED_NUDGE]), (8, [ABSENCE]), (20, [ABSENCE])],
)
def test_a_session_after_a_gap(gap: int, wanted: list[tuple[str, str, str]]) -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    patient.now_us = at(gap)
    # 7 a week are prescribed, so an alert about that comes along after a week.
    output = patient.tell("exercise_session", at(gap), done())
    assert [one for one in said(output) if one[0] != "low_weekly_adherence"] == wanted
    kinds = [fact.withdrawn for fact in reviews(output)]
    assert len(kinds) == sum(kind in ("alert", "emergency") for _, kind, _ in said(output))


@pytest.mark.parametrize(("minutes", "wanted"), [(9.99, [("short_session", "nudge", "low")]), (10, [])])
def test_a_short_session(minutes: float, wanted: list[tuple[str, str, str]]) -> None:
    output = adherent(at(0)).tell("exercise_session", at(0), done(minutes))
    assert said(output) == wanted


@pytest.mark.parametrize(
    ("pain", "wanted"),
    [
        (3.99, []),
        (4, [("pain_reported", "alert", "high")]),
        (6.99, [("pain_reported", "alert", "high")]),
        (7, [("pain_reported", "emergency", "critical")]),
    ],
)
def test_pain(pain: float, wanted: list[tuple[str, str, str]]) -> None:
    session = adherent(at(0)).tell("exercise_session", at(0), {"pain_level": pain})
    assert said(session) == wanted
    assert len(reviews(session)) == len(wanted)
    reports: list[tuple[str, str, dict[str, Any]]] = [
        ("feedback", "feedback_needed", {"pain_level": pain}),
        ("feedback", "feedback_needed", {"content": {"pain_level": pain}}),
        ("alert", "alert", {"alert_type": "check_in", "pain_level": pain}),
    ]
    for kind, item_type, body in reports:
        output = Patient(WorkQueue(RuleSettings()), at(0)).tell(kind, at(0), body)
        assert said(output) == wanted
        rows = {row["item_type"]: row for row in bodies(output)}
        assert rows.keys() == ({item_type, "review"} if wanted else {item_type})
        assert orjson.loads(rows[item_type]["context"])["pain_level"] == pain


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        (0.499, [("poor_quality", "alert", "medium")]),
        (0.5, [("quality_reminder", "nudge", "low")]),
        (0.699, [("quality_reminder", "nudge", "low")]),
        (0.7, []),
    ],
)
def test_quality_of_a_session(score: float, wanted: list[tuple[str, str, str]]) -> None:
    patient = Patient(Quality(RuleSettings()), at(0))
    assert said(patient.tell("exercise_session", at(0), {"overall_quality": score})) == wanted


def test_a_critical_alert_is_an_emergency_once() -> None:
    queue = Patient(WorkQueue(RuleSettings()), at(0))
    alert = {"alert_id": "a1", "alert_type": "fall"}
    assert said(queue.tell("alert", at(0), alert | {"urgency": "high"})) == []
    output = queue.tell("alert", at(0, 10.1), alert | {"urgency": "urgent"})
    assert said(output) == [("critical_alert", "emergency", "critical")]
    assert {body["item_type"] for body in bodies(output)} == {"alert", "review"}
    assert said(queue.tell("alert", at(0, 10.2), alert | {"urgency": "critical"})) == []


def test_a_nudge_in_full() -> None:
    patient = adherent(at(0, 11))
    body = done(5, session_id="s1", pain_level=8)
    output = patient.tell("exercise_session", at(0), body, exercise_id="squat", meta={"site_id": "north"})
    for nudge in output.nudges:
        content = orjson.loads(nudge.body)
        assert nudge.attributes == {name: content[name] for name in ("nudge_id", "kind", "type", "severity")}
        assert content["subject_id"] == "p1"
        assert content["exercise_id"] == "squat"
        assert content["session_id"] == "s1"
        assert content["site_id"] == "north"
        assert content["triggered_by"] == "e1"
        assert content["generated_at"] == to_rfc3339(at(0, 11))
        assert content["data"] in ({"duration_minutes": 5}, {"pain_level": 8})
    assert len(output.nudges) == 2


EPOCH = "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("field", ["sla_deadline", "resolved_at"])
@pytest.mark.parametrize("stated", [EPOCH, "1969-12-31T23:59:59.999999Z"])
def test_the_first_moment_of_1970_is_a_time(field: str, stated: str) -> None:
    queue = Patient(WorkQueue(RuleSettings()), at(0))
    (row,) = bodies(queue.tell("alert", at(0), {"alert_type": "x", "status": "resolved", field: stated}))
    assert row[field] == stated


@pytest.mark.parametrize(
    ("kind", "body", "context"),
    [
        (
            "alert",
            {"alert_type": "", "title": "", "trigger_criteria": {"a": 1}},
            {"alert_type": "", "trigger_criteria": {"a": 1}},
        ),
        ("feedback", {"content": "", "feedback_type": ""}, {"feedback_type": ""}),
    ],
)
def test_an_empty_text_is_stated(kind: str, body: dict[str, Any], context: dict[str, Any]) -> None:
    (row,) = bodies(Patient(WorkQueue(RuleSettings()), at(0)).tell(kind, at(0), body))
    assert row["description"] == ""
    assert orjson.loads(row["context"]) == context


@pytest.mark.parametrize("field", ["effective_from", "expires_at"])
def test_a_consent_may_change_with_the_first_moment_of_1970(field: str) -> None:
    log = ConsentLog([Decision(-DAY_US, at(0), "e1", "granted", None)])
    change = (
        Decision(0, at(0), "e2", "revoked", None)
        if field == "effective_from"
        else Decision(-1, 1, "e3", "granted", 0)
    )
    log.decisions.append(change)
    assert log.next_change_us(-HOUR_US) == (0 if field == "effective_from" else -1)
    assert log.next_change_us(-1) == 0


# --- How often


def rep(patient: Patient, ts_us: int, score: float = 0.9, **body: Any) -> Output:
    return patient.tell("rep_observation", ts_us, {"quality_score": score} | body, exercise_id="squat")


def test_feedback_on_repetitions_again_after_30_seconds() -> None:
    patient = Patient(Quality(RuleSettings()), at(0, 12))
    seconds = [0, 10, 29.999, 30, 59.999, 60]
    outputs = [rep(patient, at(0) + int(second * 1e6), 0.5) for second in seconds]
    assert [len(output.nudges) for output in outputs] == [1, 0, 0, 1, 0, 1]
    assert said(outputs[0]) == [("rep_quality", "feedback", "low")]


def test_feedback_is_limited_by_type_and_exercise() -> None:
    patient = Patient(Quality(RuleSettings()), at(0, 12))
    assert len(rep(patient, at(0), 0.5).nudges) == 1
    assert said(rep(patient, at(0), 0.9, form_issues=["x"])) == [("form_correction", "feedback", "low")]
    other = patient.tell("rep_observation", at(0), {"quality_score": 0.5}, exercise_id="bridge")
    assert len(other.nudges) == 1
    assert rep(patient, at(0), 0.5, form_issues=["x"]).nudges == []


@pytest.mark.parametrize(
    ("severities", "wanted"),
    [([None], "low"), (["minor"], "low"), (["minor", "moderate"], "medium"), (["major", "minor"], "high")],
)
def test_the_worst_form_issue_decides(severities: list[str | None], wanted: str) -> None:
    patient = Patient(Quality(RuleSettings()), at(0, 12))
    issues = [{"type": f"i{number}", "severity": severity} for number, severity in enumerate(severities)]
    assert said(rep(patient, at(0), form_issues=issues)) == [("form_correction", "feedback", wanted)]


def test_degradation_again_after_7_days() -> None:
    patient = Patient(Quality(RuleSettings()), at(0))
    announced = []
    for day in range(16):
        patient.now_us = at(day, 23)
        for number in range(20):
            output = rep(patient, at(day) + number * 60_000_000, 0.65)
            announced += [day for one in said(output) if one == ("quality_degradation", "alert", "high")]
    assert announced == [0, 7, 14]


def test_a_limit_holds_on_when_the_finding_that_set_it_has_aged_out() -> None:
    patient = Patient(Quality(RuleSettings()), at(0))
    found: list[ReviewItemFact] = []
    for day in range(60):
        patient.now_us = at(day, 23)
        for number in range(20):
            found += reviews(rep(patient, at(day) + number * 60_000_000, 0.65))
    assert {fact.nudge_id: fact.withdrawn for fact in found} == {fact.nudge_id: False for fact in found}
    assert len({fact.nudge_id for fact in found}) == len(range(0, 60, 7))


@pytest.mark.parametrize(
    ("scores", "is_degraded"),
    [
        ([0.69] * 19, False),
        ([0.69] * 20, True),
        ([0.7] * 20, False),
        ([1.0] * 14 + [0.49] * 6, True),
        ([1.0] * 15 + [0.49] * 5, False),
        ([1.0] * 14 + [0.5] * 6, False),
        # A float32 of 0.7, and what else rounds to 0.70 or adds up to it.
        ([0.699999988079071] * 20, True),
        ([0.7] * 19 + [0.6999999999999999], True),
        ([0.7] * 19 + [0.7000000000000001], False),
        ([0.6, 0.8] * 10, False),
        ([0.55, 0.65, 0.75, 0.85] * 5, False),
        ([0.1, 0.95, 0.8, 0.95] * 5, False),
        ([2 / 3, 0.7333333333333334] * 10, False),
        ([2 / 3, 0.7333333333333333] * 10, True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_thresholds_of_degradation(scores: list[float], is_degraded: bool) -> None:
    patient = Patient(Quality(RuleSettings()), at(0, 23))
    outputs = [rep(patient, at(0) + number * MINUTE_US, score) for number, score in enumerate(scores)]
    found = [one for output in outputs for one in said(output)]
    assert (("quality_degradation", "alert", "high") in found) is is_degraded


@pytest.mark.parametrize(("score", "wanted"), [(0.85, []), (0.8500000000000001, [13]), (0.851, [13])])
@pytest.mark.parametrize("worst_day", [None, 0])
def test_thresholds_of_improvement(score: float, wanted: list[int], worst_day: int | None) -> None:
    patient = Patient(Quality(RuleSettings()), at(0))
    announced = []
    for day in range(14):
        patient.now_us = at(day)
        output = rep(patient, at(day), 0.7 if day == worst_day else score)
        announced += [day for kind in said(output) if kind == ("quality_improvement", "nudge", "low")]
    assert announced == ([] if worst_day == 0 else wanted)


@pytest.mark.parametrize(
    ("now", "trend"),
    [
        (0.85, "improving"),
        (0.8499999999999999, "stable"),
        (0.75, "declining"),
        (0.7500000000000001, "stable"),
        (0.8, "stable"),
    ],
)
def test_thresholds_of_the_trend(now: float, trend: str) -> None:
    patient = Patient(Quality(RuleSettings()), at(8))
    for score in (0.7, 0.9):
        rep(patient, at(0), score)
    (row,) = bodies(rep(patient, at(7), now))
    assert row["quality_trend"] == trend
    assert row["average_quality"] == round(now, 6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_a_days_sum_is_the_decimal_sum_in_any_order(scores: list[float], rng: Random) -> None:
    one, other = DayStats(), DayStats()
    for score in scores:
        one.add(at(0), RepFact(score, None, ()))
    rng.shuffle(scores)
    for score in scores:
        other.add(at(0), RepFact(score, None, ()))
    assert (one.score_sum, one.score_rest) == (other.score_sum, other.score_rest)
    assert max(one.score_sum, one.score_rest) < 2**63
    wanted = sum(Fraction(repr(score)) for score in scores)
    found = Fraction(one.score_sum, 10**6) + Fraction(one.score_rest, 10**17)
    # The shortest decimal form of a double of 0.1 or more has at most 17 decimals.
    tolerance = sum(score < 0.1 for score in scores) * Fraction(1, 2 * 10**17)
    assert abs(found - wanted) <= tolerance


def test_a_days_sum_of_release_0_1_0_goes_on() -> None:
    stored = msgspec.msgpack.encode([2, 1_300_000, 0, at(0), at(0), {120: 1, 140: 1}, {}])
    day = msgspec.msgpack.decode(stored, type=DayStats)
    day.add(at(0), RepFact(0.7, None, ()))
    assert Window.ending({day_of(at(0)): day}, day_of(at(0))).average == 2 / 3


@pytest.mark.parametrize(("percent", "is_low"), [(33.3333331, False), (33.3333334, True)])
def test_an_adherence_is_compared_as_it_is_and_shown_rounded(percent: float, is_low: bool) -> None:
    level = AdherenceLevel(percent=percent, after_days=7, repeat_days=7)
    policy = Policy(low_weekly_adherence=level)
    patient = adherent(at(7), policy=policy, prescribed_sessions_per_week=3)
    patient.tell("exercise_session", at(0), done())
    output = patient.tell("exercise_session", at(7), done())
    lows = [
        orjson.loads(nudge.body)
        for nudge in output.nudges
        if nudge.attributes["type"] == "low_weekly_adherence"
    ]
    assert [low["data"] for low in lows] == [{"rolling_7day_avg": 33.333333}] * is_low


@pytest.mark.parametrize(
    ("per_week", "days", "is_low"),
    [(2, [0, 7], False), (3, [0, 7], True), (2, [0, 6], False), (14, [0, 6], False), (14, [0, 7], True)],
)
def test_thresholds_of_low_adherence(per_week: int, days: list[int], is_low: bool) -> None:
    patient = adherent(at(0), prescribed_sessions_per_week=per_week)
    found = []
    for day in days:
        patient.now_us = at(day)
        found += said(patient.tell("exercise_session", at(day), done()))
    assert (("low_weekly_adherence", "alert", "medium") in found) is is_low


def test_low_weekly_adherence_again_after_7_days() -> None:
    patient = adherent(at(0))
    announced = []
    for day in range(0, 24, 3):
        patient.now_us = at(day)
        output = patient.tell("exercise_session", at(day), done())
        announced += [day for one in said(output) if one == ("low_weekly_adherence", "alert", "medium")]
    assert announced == [9, 18]


def test_improvement_again_after_14_days() -> None:
    patient = Patient(Quality(RuleSettings()), at(0))
    announced = []
    for day in range(30):
        patient.now_us = at(day)
        output = rep(patient, at(day), 0.95)
        announced += [day for one in said(output) if one == ("quality_improvement", "nudge", "low")]
    assert announced == [13, 27]


def test_excellence_after_28_days_and_again_after_28() -> None:
    patient = adherent(at(0))
    announced = []
    for day in range(60):
        patient.now_us = at(day)
        output = patient.tell("exercise_session", at(day), done())
        announced += [day for one in said(output) if one == ("adherence_excellence", "nudge", "low")]
    assert announced == [28, 56]


# --- Late events


def test_a_late_session_withdraws_a_gap() -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    patient.now_us = at(9)
    output = patient.tell("exercise_session", at(9), done(), meta={"site_id": "north"})
    absence = next(fact for fact in reviews(output) if "extended_absence" in fact.context)
    output = patient.tell("exercise_session", at(4), done())
    (withdrawal,) = [fact for fact in reviews(output) if fact.nudge_id == absence.nudge_id]
    assert withdrawal.withdrawn
    assert withdrawal.revision > absence.revision
    # The item leaves the work queue, in whatever order the two arrive.
    for order in (reviews_of := [absence, withdrawal]), reviews_of[::-1]:
        queue = Patient(WorkQueue(RuleSettings()), at(9))
        rows = []
        for fact in order:
            event = Event("e", "review", at(8), "p1", "", None, fact, Message(b"", {}, "", "", at(9)))
            rows += [body for body in bodies(queue.take(event)) if body["item_id"] == absence.nudge_id]
        assert rows[-1]["visible"] is False


@pytest.mark.parametrize("days", [0, 1])
def test_a_better_score_withdraws_poor_quality(days: int) -> None:
    patient = Patient(Quality(RuleSettings()), at(0, 12))
    poor = patient.tell("exercise_session", at(0, 10), {"session_id": "s1", "overall_quality": 0.3})
    better = patient.tell("exercise_session", at(days, 11), {"session_id": "s1", "overall_quality": 0.9})
    assert better.nudges == []
    assert [fact.withdrawn for fact in reviews(poor)] == [False]
    assert [(fact.nudge_id, fact.withdrawn) for fact in reviews(better)] == [
        (reviews(poor)[0].nudge_id, True)
    ]


@pytest.mark.parametrize(
    ("hours", "age", "count"), [(24, 23.9, 1), (24, 24.1, 0), (1, 0.9, 1), (1, 1.1, 0), (0, 600, 1)]
)
def test_old_events_are_not_announced_but_filed(hours: float, age: float, count: int) -> None:
    patient = adherent(at(25), nudge_max_age_hours=hours)
    output = patient.tell("exercise_session", at(25) - int(age * HOUR_US), done(5, pain_level=9))
    assert len(output.nudges) == 2 * count
    assert len(reviews(output)) == 1
    assert patient.outcomes == [PROCESSED]


def test_ids_of_nudges_are_deterministic() -> None:
    def announced(now_us: int) -> list[str]:
        patient = adherent(now_us, nudge_max_age_hours=0)
        for day in (0, 4, 14):
            patient.tell("exercise_session", at(day), done(5))
        output = patient.tell("exercise_session", at(15), done(5, pain_level=8))
        return [nudge.attributes["nudge_id"] for nudge in output.nudges]

    assert announced(at(15)) == announced(at(20))
    assert len(set(announced(at(15)))) == len(announced(at(15))) >= 2


def test_every_type_of_the_contract_has_a_rule() -> None:
    table = {
        MISSED_NUDGE,
        MISSED_ALERT,
        ABSENCE,
        ("short_session", "nudge", "low"),
        ("low_weekly_adherence", "alert", "medium"),
        ("adherence_excellence", "nudge", "low"),
        ("poor_quality", "alert", "medium"),
        ("quality_reminder", "nudge", "low"),
        ("quality_degradation", "alert", "high"),
        ("quality_improvement", "nudge", "low"),
        ("form_correction", "feedback", "high"),
        ("form_correction", "feedback", "medium"),
        ("form_correction", "feedback", "low"),
        ("rep_quality", "feedback", "low"),
        ("pain_reported", "emergency", "critical"),
        ("pain_reported", "alert", "high"),
        ("critical_alert", "emergency", "critical"),
    }
    assert {rule[:3] for rule in RULES.values()} == table


# --- Consent


def test_withdrawn_consent_silences_and_hides() -> None:
    patient = adherent(at(1))
    patient.tell("exercise_session", at(0), done())
    hiding = patient.tell("consent", at(1), {"granted": False})
    assert [body["visible"] for body in bodies(hiding)] == [False, False]
    after = patient.tell("exercise_session", at(1, 11), done(5, pain_level=9))
    assert (patient.outcomes[-1], after) == (WITHHELD, Output())
    # What happened before is projected, and not announced to a patient who has withdrawn.
    before = patient.tell("exercise_session", at(0, 20), done(5, pain_level=9))
    assert patient.outcomes[-1] == PROCESSED
    assert before.nudges == []
    patient.now_us = at(1, 12)
    shown = patient.tell("consent", at(1, 12), {"granted": True})
    assert {body["visible"] for body in bodies(shown)} == {True}


def test_consent_expires_by_itself() -> None:
    patient = adherent(at(1))
    expiry = at(1) + 90 * MINUTE_US
    patient.tell("consent", at(0), {"granted": True, "expires_at": to_rfc3339(expiry)})
    patient.tell("exercise_session", at(0), done())
    assert patient.wakes_at == expiry
    patient.now_us = expiry
    rows = bodies(patient.wake())
    assert [(row["visible"], row["consent_status"]) for row in rows] == [(False, "expired")] * 2
    assert {row["source_event_id"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("mode", "body", "outcome"),
    [
        ("enforce", None, PROCESSED),
        ("enforce", {"status": "pending"}, PROCESSED),
        ("enforce", {"granted": True}, PROCESSED),
        ("enforce", {"granted": False}, WITHHELD),
        ("enforce", {"status": "expired"}, WITHHELD),
        ("enforce", {"granted": False, "consent_type": "research"}, PROCESSED),
        ("require", None, WITHHELD),
        ("require", {"status": "pending"}, WITHHELD),
        ("require", {"granted": True}, PROCESSED),
        ("require", {"granted": True, "consent_type": "research"}, WITHHELD),
        ("off", {"granted": False}, PROCESSED),
    ],
    ids=str,
)
def test_modes_of_consent(mode: str, body: dict[str, Any] | None, outcome: str) -> None:
    patient = adherent(at(2), consent=mode)
    if body:
        patient.tell("consent", at(0), body)
    output = patient.tell("exercise_session", at(1), done())
    assert patient.outcomes[-1] == outcome
    assert {row["visible"] for row in bodies(output)} == (set() if outcome == WITHHELD else {True})


@pytest.mark.parametrize("projector", [Adherence, Quality, WorkQueue])
def test_a_consent_is_never_too_late(projector: type[Projector[Any]]) -> None:
    patient = Patient(projector(RuleSettings()), at(100))
    kinds = {Adherence: "exercise_session", Quality: "rep_observation", WorkQueue: "feedback"}
    body = {"quality_score": 0.8} if projector is Quality else {}
    patient.tell(kinds[projector], at(100), body)
    patient.tell("consent", at(0), {"granted": False})
    patient.tell(kinds[projector], at(100, 11), body)
    assert patient.outcomes == [PROCESSED, PROCESSED, WITHHELD]


@pytest.mark.parametrize(
    ("projector", "kind", "body"),
    [
        (Adherence, "exercise_session", {}),
        (Quality, "rep_observation", {"quality_score": 0.8}),
        (WorkQueue, "feedback", {}),
        (WorkQueue, "alert", {"alert_type": "x"}),
    ],
)
def test_too_late_is_more_than_28_days_behind(
    projector: type[Projector[Any]], kind: str, body: dict[str, Any]
) -> None:
    patient = Patient(projector(RuleSettings()), at(40))
    patient.tell(kind, at(30), body)
    patient.tell(kind, at(2), body)
    before = patient.stored
    assert patient.tell(kind, at(2) - 1, body) == Output()
    assert patient.outcomes == [PROCESSED, PROCESSED, TOO_LATE]
    assert patient.stored == before


def test_a_session_that_began_too_early_is_too_late() -> None:
    patient = adherent(at(40))
    patient.tell("exercise_session", at(30), {})
    patient.tell("exercise_session", at(30), {"start_time": to_rfc3339(at(2))})
    patient.tell("exercise_session", at(30), {"start_time": to_rfc3339(at(2) - 1)})
    assert patient.outcomes == [PROCESSED, PROCESSED, TOO_LATE]


# --- Absence


def test_two_and_seven_days_of_silence() -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    heard: dict[int, list[tuple[str, str, str]]] = {}
    missed: dict[int, int] = {}
    for _ in range(12):
        wakes_at = patient.wakes_at
        assert wakes_at
        patient.now_us = wakes_at
        day = day_of(wakes_at) - day_of(at(0))
        output = patient.wake()
        heard[day] = said(output)
        (missed[day],) = [body["consecutive_missed_days"] for body in bodies(output)]
        assert all(orjson.loads(nudge.body)["triggered_by"] is None for nudge in output.nudges)
        assert len(reviews(output)) == len(heard[day])
    # Midnight after 2 full days: days 1 and 2 are over when day 3 begins.
    assert {day: what for day, what in heard.items() if what} == {3: [MISSED_ALERT], 8: [ABSENCE]}
    assert missed == {day: day - 1 for day in range(3, 15)}


def test_no_wake_for_an_absence_before_it_is_due() -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    assert patient.wakes_at == at(3, 0)
    patient.now_us = at(3, 0) - 1
    output = patient.wake()
    assert (output.rows, output.nudges, output.review_items) == ([], [], [])


@pytest.mark.parametrize(("hour", "announced"), [(1, 1), (23.9, 1), (24.1, 0)])
def test_an_absence_already_due_waits_a_minute_and_is_not_announced_after_a_day(
    hour: float, announced: int
) -> None:
    patient = adherent(at(3, hour))
    patient.tell("exercise_session", at(0), done())
    assert patient.wakes_at == at(3, hour) + MINUTE_US
    patient.now_us += MINUTE_US
    output = patient.wake()
    assert said(output) == [MISSED_ALERT] * announced
    # The therapist is to know in any case.
    assert [fact.withdrawn for fact in reviews(output)] == [False]


def test_an_event_on_its_way_forestalls_an_absence_that_is_due() -> None:
    patient = adherent(at(3, 5))
    patient.tell("exercise_session", at(0), done())
    patient.now_us += MINUTE_US // 2
    patient.tell("exercise_session", at(3, 4), done())
    patient.now_us += MINUTE_US // 2
    output = patient.wake()
    assert said(output) == []
    assert reviews(output) == []


def test_a_new_session_withdraws_the_silence_but_not_the_absence() -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    found = []
    for day in (3, 8):
        patient.now_us = at(day, 0)
        found += reviews(patient.wake())
    silence, absence = found
    patient.now_us = at(8)
    output = patient.tell("exercise_session", at(8), done())
    changed = {fact.nudge_id: fact.withdrawn for fact in reviews(output)}
    assert changed[silence.nudge_id] is True
    assert changed.get(absence.nudge_id, False) is False
    # The absence was announced when it was found; the return from it is no news.
    assert ABSENCE not in said(output)


def test_silence_is_announced_again_after_the_next_session() -> None:
    patient = adherent(at(0))
    for day in (0, 4):
        patient.now_us = at(day)
        patient.tell("exercise_session", at(day), done())
        patient.now_us = at(day + 3, 0)
        assert said(patient.wake()) == [MISSED_ALERT]


class Therapist:
    """What a patient's therapist sees of the adherence rules: the work queue beside them."""

    def __init__(self, now_us: int) -> None:
        self.patient = adherent(now_us)
        self.queue = Patient(WorkQueue(RuleSettings()), now_us)
        self.rows: dict[str, dict[str, Any]] = {}
        self.written = 0

    def at(self, now_us: int) -> Patient:
        self.patient.now_us = self.queue.now_us = now_us
        return self.patient

    def hear(self, output: Output) -> Output:
        for event in output.review_items:
            self.see(self.queue.take(event))
        return output

    def see(self, output: Output) -> None:
        self.written += len(output.rows)
        self.rows |= {body["item_id"]: body for body in bodies(output)}

    def come(self, day: int) -> Output:
        return self.hear(self.at(at(day)).tell("exercise_session", at(day), done()))

    def wait(self, until: int) -> list[tuple[str, str, str]]:
        """Time passes, with every timer that falls due."""
        found = []
        while (wakes_at := self.patient.wakes_at) and wakes_at <= until:
            found += said(self.hear(self.at(wakes_at).wake()))
        self.at(until)
        return found

    def visible(self, description: str) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if row["visible"] and row["description"] == description]


LONG, SILENT = "No session for more than a week", "No session for days in a row"


@pytest.mark.parametrize("days", [(0, 39, 65), (0, 63, 126), (0, 8, 64, 90), (0, 29, 58, 87, 116)], ids=str)
def test_an_absence_stays_in_the_queue_when_its_sessions_have_aged_out(days: tuple[int, ...]) -> None:
    therapist, absences = Therapist(at(0)), -1
    for day in days:
        therapist.come(day)
        absences += 1
        assert len(therapist.visible(LONG)) == absences
        withdrawn = [row for row in therapist.rows.values() if not row["visible"]]
        assert withdrawn == []


@pytest.mark.parametrize("back", [8, 28, 29, 36, 37, 59])
def test_an_absence_that_silence_brought_up_is_said_once_whenever_the_patient_returns(back: int) -> None:
    therapist = Therapist(at(0))
    therapist.come(0)
    found = therapist.wait(at(back, 9))
    assert found == [MISSED_ALERT, ABSENCE]
    (item,) = therapist.visible(LONG)
    output = therapist.come(back)
    assert ABSENCE not in said(output)
    assert therapist.visible(LONG) == [item]
    # The silence is over; the absence has happened.
    assert therapist.visible(SILENT) == []


@pytest.mark.parametrize("consents", [[], [20, 50], [*range(5, 200, 30)]], ids=["forgotten", "60", "200"])
@pytest.mark.parametrize("back", [61, 64, 200])
def test_an_absence_that_has_been_settled_is_not_opened_again_by_the_return(
    back: int, consents: list[int]
) -> None:
    therapist = Therapist(at(0))
    therapist.come(0)
    therapist.wait(at(9))
    for item_id in list(therapist.rows):
        settled = {"alert_id": item_id, "alert_type": "absence", "status": "resolved"}
        therapist.see(therapist.queue.tell("alert", at(9), settled))
    for day in (day for day in consents if day < back):
        therapist.wait(at(day))
        therapist.hear(therapist.patient.tell("consent", at(day), {"granted": True}))
        therapist.see(therapist.queue.tell("feedback", at(day, 11), {"feedback_id": "f"}))
    assert therapist.wait(at(back, 9)) == []
    written = therapist.written
    therapist.queue.wake()
    output = therapist.come(back)
    assert ABSENCE not in said(output)
    opened = [row for row in therapist.rows.values() if row["status"] != "resolved"]
    assert [row for row in opened if row["description"] == LONG] == []
    if not consents:
        assert (output.nudges, therapist.written) == ([], written)


def test_a_first_absence_of_more_than_60_days_says_so() -> None:
    for gap, data in ((60, {"last_session_day": "2025-03-03"}), (61, {"absence": "more than 60 days"})):
        patient = adherent(at(gap))
        patient.tell("exercise_session", at(0), done())
        output = patient.tell("exercise_session", at(gap), done())
        nudges = [orjson.loads(nudge.body) for nudge in output.nudges]
        assert [nudge["data"] for nudge in nudges if nudge["type"] == "extended_absence"] == [data]


def test_a_late_session_makes_more_than_60_days_less() -> None:
    therapist = Therapist(at(61))
    for day in (0, 61, 35):
        therapist.hear(therapist.patient.tell("exercise_session", at(day), done()))
        therapist.at(therapist.patient.now_us + 1)
    contexts = [orjson.loads(row["context"])["data"] for row in therapist.visible(LONG)]
    assert contexts == [{"last_session_day": "2025-03-03"}, {"last_session_day": "2025-04-07"}]


def test_a_finding_about_a_session_that_began_after_its_report_stays() -> None:
    patient = adherent(at(50))
    patient.tell("exercise_session", at(0), done())
    ahead = patient.tell("exercise_session", at(20), done(start_time=to_rfc3339(at(30))))
    assert len(reviews(ahead)) == 2
    later = patient.tell("exercise_session", at(50), done())
    assert [fact for fact in reviews(later) if fact.withdrawn] == []


def test_a_session_rated_long_after_it_began_stays_poor() -> None:
    patient = Patient(Quality(RuleSettings()), at(60))
    patient.tell("exercise_session", at(30), {"session_id": "s"}, exercise_id="squat")
    found = reviews(patient.tell("exercise_session", at(80), {"session_id": "s", "overall_quality": 0.3}))
    assert [fact.withdrawn for fact in found] == [False]
    for day in (81, 86, 87, 100, 120):
        patient.now_us = at(day)
        found += reviews(rep(patient, at(day)))
    assert [fact for fact in found if fact.withdrawn] == []


@pytest.mark.parametrize("projector", [Adherence, Quality, WorkQueue])
def test_a_withheld_event_does_not_make_others_too_late(projector: type[Projector[Any]]) -> None:
    kinds = {Adherence: "exercise_session", Quality: "rep_observation", WorkQueue: "feedback"}
    body = {"quality_score": 0.8} if projector is Quality else {}
    patient = Patient(projector(RuleSettings()), at(90))
    together = [
        parse_event(
            {
                "event_id": f"e{day}",
                "kind": kind,
                "ts": to_rfc3339(at(day)),
                "subject_id": "p1",
                "body": each,
            },
            Message(b"", {}, "", "", at(day)),
            at(90),
        )
        for kind, day, each in (
            ("consent", 40, {"granted": False}),
            (kinds[projector], 0, body),
            (kinds[projector], 20, body),
            (kinds[projector], 80, body),
        )
    ]
    state = patient.state
    patient.projector.expect(state, together)
    outcomes = [
        patient.projector.apply(state, event, Trigger("p1", event.event_id, 0), at(90), Output())
        for event in together
    ]
    # Forty days before the consent, which is an event too; the one of day 80 is withheld.
    assert outcomes == [PROCESSED, TOO_LATE, PROCESSED, WITHHELD]
    assert state.newest_us == at(40)


# --- What is forgotten


@pytest.mark.parametrize("projector", [Adherence, Quality, WorkQueue])
def test_sixty_silent_days_clear_all_but_the_consents(projector: type[Projector[Any]]) -> None:
    kinds = {Adherence: "exercise_session", Quality: "rep_observation", WorkQueue: "feedback"}
    body = {"quality_score": 0.8} if projector is Quality else {}
    for consents in (0, 1):
        patient = Patient(projector(RuleSettings()), at(0, 11))
        for _ in range(consents):
            patient.tell("consent", at(0), {"granted": False, "effective_from": to_rfc3339(at(1))})
        patient.tell(kinds[projector], at(0), body)
        patient.now_us = at(0, 11) + SILENT_DAYS * DAY_US - 1
        patient.wake()
        assert patient.state.newest_us == at(0)
        assert not patient.state.is_spent(patient.now_us)
        patient.now_us += 1
        patient.wake()
        assert patient.state.newest_us == 0
        assert len(patient.state.consents.decisions) == consents
        assert patient.state.is_spent(patient.now_us) is not bool(consents)
        patient.tell(kinds[projector], at(50), body)
        assert patient.outcomes[-1] == (WITHHELD if consents else PROCESSED)


# --- State at rest


def plain(state: Any) -> Any:
    """Everything in a state, to compare it by."""
    if isinstance(state, PatientState):
        return {name: plain(value) for name, value in vars(state).items()}
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    if hasattr(state, "statements"):
        return state.statements, msgspec.structs.astuple(state)
    if hasattr(state, "decisions"):
        return state.decisions
    if hasattr(state, "found"):
        return state.found, state.last_days
    return state


@pytest.mark.parametrize("projector", [Adherence, Quality, WorkQueue])
@pytest.mark.parametrize("seed", range(5))
def test_states_come_back_as_they_were(projector: type[Projector[Any]], seed: int) -> None:
    rng = Random(seed)
    now_us = to_micros(WINDOW_END + timedelta(days=2))
    subject = projector(RuleSettings(nudge_max_age_hours=0))
    receives = {
        Adherence: {"exercise_session", "consent"},
        Quality: {"exercise_session", "rep_observation", "consent"},
        WorkQueue: {"alert", "feedback", "consent"},
    }[projector]
    states: dict[str, Any] = {}
    for arrival in arrival_orders(random_arrivals(rng), rng):
        if arrival.envelope["kind"] in receives:
            event = parse_event(arrival.envelope, Message(b"", {}, "", "", arrival.publish_us), now_us)
            state = states.setdefault(event.patient_id, subject.state_type())
            trigger = Trigger(event.patient_id, event.event_id, event.message.publish_us)
            output = Output()
            subject.apply(state, event, trigger, now_us, output)
            subject.project(state, trigger, now_us, output)
    assert len(states) == 4
    for state in states.values():
        back = subject.state_type.decode(state.encode())
        assert plain(back) == plain(state)
        assert back.encode() == state.encode()


@pytest.mark.parametrize("projector", [Adherence, Quality, WorkQueue])
def test_a_later_releases_state_is_refused(projector: type[Projector[Any]]) -> None:
    state_type = projector.state_type
    encoded = state_type().encode()
    assert encoded[0] == state_type.VERSION
    with pytest.raises(ValueError, match="cannot read version"):
        state_type.decode(bytes((state_type.VERSION + 1,)) + encoded[1:])


def test_a_state_of_the_first_version_can_be_read() -> None:
    patient = adherent(at(0))
    patient.tell("exercise_session", at(0), done())
    patient.now_us = at(8, 0)
    patient.wake()
    common, own = msgspec.msgpack.decode(memoryview(patient.stored)[1:])
    *first, findings = common
    found = {key: entry[:-1] for key, entry in findings[0].items()}
    earlier = (*first, (found, *findings[1:])), own[:5]
    state = patient.state
    back = AdherenceState.decode(b"\x01" + msgspec.msgpack.encode(earlier))
    assert (back.sessions, back.last_day, back.last_active_day) == (state.sessions, None, None)
    assert back.findings.entries.keys() == state.findings.entries.keys() != set()
    assert not any(entry.is_open for entry in back.findings.entries.values())
    assert all(entry.is_open for entry in state.findings.entries.values())
