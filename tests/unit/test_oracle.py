"""The oracle against small examples worked out by hand from SPEC. 3 March 2025 is a Monday."""

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import (
    REP_FEEDBACK,
    Arrival,
    Nudge,
    Options,
    Row,
    absences,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
    normalize,
    too_late,
)
from tests.strategies import arrival_orders, arrival_sets, in_time_order, random_arrivals

_numbers = count()


def event(
    kind: str, ts: str | None, /, *, patient: str = "p", exercise: str | None = None, **body: Any
) -> Arrival:
    """An event; `event_id` and `site_id` go to their places, event ids ascend by default."""
    envelope: dict[str, Any] = {
        "event_id": body.pop("event_id", f"e{next(_numbers):05d}"),
        "kind": kind,
        "subject_id": patient,
    }
    if ts is not None:
        envelope["ts"] = ts
    if exercise is not None:
        envelope["exercise_id"] = exercise
    if "site_id" in body:
        envelope["meta"] = {"site_id": body.pop("site_id")}
    return Arrival({**envelope, "body": body}, publish_us=0)


def session(ts: str, /, status: str | None = "completed", **body: Any) -> Arrival:
    return event("exercise_session", ts, **({"completion_status": status} if status else {}), **body)


def rep(ts: str, score: float, /, **body: Any) -> Arrival:
    return event("rep_observation", ts, quality_score=score, **body)


def alert(ts: str, /, **body: Any) -> Arrival:
    body.setdefault("alert_type", "fall_risk")
    return event("alert", ts, **body)


def day(number: int, clock: str = "12:00") -> str:
    """A time of day in March 2025, UTC."""
    return f"2025-03-{number:02d}T{clock}:00Z"


def at(number: int, hour: int = 12, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2025, 3, number, hour, minute, second, tzinfo=UTC)


def week(arrivals: Iterable[Arrival], monday: int = 3, options: Options | None = None) -> Row:
    rows = expected(list(arrivals), options).adherence
    return next(row for row in rows if row["week_start"] == date(2025, 3, monday))


def only_quality(*arrivals: Arrival) -> Row:
    (row,) = expected(arrivals).quality
    return row


def only_item(*arrivals: Arrival) -> Row:
    (row,) = [row for row in expected(arrivals).work_queue if row["item_type"] != "review"]
    return row


def fired(*arrivals: Arrival, options: Options | None = None) -> list[tuple[str, str, str]]:
    return [(nudge.type, nudge.kind, nudge.severity) for nudge in expected(arrivals, options).nudges]


def item_times(nudge_type: str, *arrivals: Arrival) -> list[datetime | None]:
    return [nudge.created_at for nudge in expected(arrivals).nudges if nudge.type == nudge_type]


# --- Reading


def test_aliases_of_the_envelope() -> None:
    envelope = {"event_id": "e", "kind": "alert", "patient_id": "p", "timestamp": "2025-03-03T12:00:00+02:00"}
    row = only_item(Arrival({**envelope, "body": {"alert_type": "x"}}, publish_us=0))
    assert (row["patient_id"], row["created_at"]) == ("p", at(3, 10))


def test_time_without_offset_is_utc() -> None:
    assert only_item(alert("2025-03-03T12:00:00"))["created_at"] == at(3)


def test_publish_time_stands_in_for_ts() -> None:
    arrival = event("alert", None, alert_type="x")._replace(publish_us=1_500_000)
    assert only_item(arrival)["created_at"] == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)


def test_repeated_event_counts_once() -> None:
    one = rep(day(3), 0.9)
    assert only_quality(one, one)["total_reps"] == 1


def test_what_has_no_defined_result_is_refused() -> None:
    assert only_quality(rep(day(1, "12:00"), 0.9), rep(day(29, "12:00"), 0.9))["total_reps"] == 1
    with pytest.raises(ValueError, match="28 days apart"):
        expected([rep(day(1, "12:00"), 0.9), rep(day(29, "12:01"), 0.9)])
    with pytest.raises(ValueError, match="share an item id"):
        expected([alert(day(3), alert_id="a"), event("feedback", day(3), feedback_id="a")])
    with pytest.raises(ValueError, match="text in one event"):
        expected([event("feedback", day(3), feedback_id="f", content=content) for content in ("x", {"x": 1})])
    with pytest.raises(ValueError, match="states none"):
        expected([Arrival({"kind": "alert", "subject_id": "p", "body": {}}, publish_us=0)])


# --- Adherence


def test_adherence_row() -> None:
    arrivals = [
        session(day(3), start_time=day(3, "11:30")),
        session(day(5), "partial", start_time=day(5, "11:30")),
        session(day(6), "aborted"),
        session(day(7), None),
    ]
    assert week(arrivals) == {
        "patient_id": "p",
        "week_start": date(2025, 3, 3),
        "prescribed_sessions": 7,
        "completed_sessions": 1,
        "partial_sessions": 1,
        "missed_sessions": 5,
        "adherence_percentage": 14.285714,
        "rolling_7day_avg": 14.285714,
        "rolling_28day_avg": 3.571429,
        "last_session_at": at(5, 11, 30),
        "consecutive_missed_days": 2,
        "consent_status": "unknown",
        "visible": True,
    }


def test_a_row_for_each_week_with_a_session_of_any_status() -> None:
    rows = expected([session(day(3)), session(day(17), None)]).adherence
    assert [row["week_start"] for row in rows] == [date(2025, 3, 3), date(2025, 3, 17)]
    started = rows[1]
    assert (started["completed_sessions"], started["missed_sessions"]) == (0, 7)
    assert started["last_session_at"] is None
    assert started["consecutive_missed_days"] == 14


def test_missed_days_are_counted_from_the_newest_session_day() -> None:
    assert week([session(day(3)), session(day(5), "partial")])["consecutive_missed_days"] == 0
    assert week([session(day(3)), session(day(5), None)])["consecutive_missed_days"] == 2
    assert week([session(day(3)), session(day(5), None), session(day(12))])["consecutive_missed_days"] == 2


def test_week_never_attended_so_far_has_no_missed_days() -> None:
    assert week([session(day(3), "aborted")])["consecutive_missed_days"] is None


def test_rolling_averages_end_on_the_newest_session_day_of_the_week() -> None:
    arrivals = [
        session(day(3), prescribed_sessions_per_week=4),
        session(day(4)),
        session(day(10)),
        session(day(12), "aborted"),
        session(day(17)),
    ]
    first, second, third = week(arrivals, 3), week(arrivals, 10), week(arrivals, 17)
    assert (first["rolling_7day_avg"], first["rolling_28day_avg"]) == (50.0, 12.5)
    # D = 12 March: the 7 days are 6 to 12 March.
    assert (second["rolling_7day_avg"], second["rolling_28day_avg"]) == (25.0, 18.75)
    assert (third["rolling_7day_avg"], third["rolling_28day_avg"]) == (25.0, 25.0)


def test_first_day_of_the_7_counts_and_the_day_before_does_not() -> None:
    options = Options(prescribed_sessions_per_week=2)
    assert week([session(day(4)), session(day(10))], 10, options)["rolling_7day_avg"] == 100.0
    assert week([session(day(3)), session(day(10))], 10, options)["rolling_7day_avg"] == 50.0


def test_percentages_stop_at_100_and_nothing_is_missed_below_0() -> None:
    row = week([session(day(3)), session(day(4)), session(day(5), prescribed_sessions_per_week=2)])
    assert (row["adherence_percentage"], row["rolling_7day_avg"], row["missed_sessions"]) == (100.0, 100.0, 0)
    assert row["rolling_28day_avg"] == 37.5


def test_newest_prescription_counts_for_every_week() -> None:
    arrivals = [
        session(day(10), prescribed_sessions_per_week=3),
        session(day(3), prescribed_sessions_per_week=5),
        session(day(11)),
    ]
    assert [row["prescribed_sessions"] for row in expected(arrivals).adherence] == [3, 3]


def test_session_counts_once_with_its_highest_status_on_the_day_of_its_earliest_event() -> None:
    arrivals = [
        session(day(11), "partial", session_id="s", start_time=day(11)),
        session(day(9, "23:50"), "completed", session_id="s"),
        session(day(12), "aborted", session_id="s"),
    ]
    (row,) = expected(arrivals).adherence
    assert row["week_start"] == date(2025, 3, 3)
    assert (row["completed_sessions"], row["partial_sessions"]) == (1, 0)
    assert row["last_session_at"] == at(9, 23, 50)


def test_event_id_decides_which_of_two_events_is_the_earliest() -> None:
    later_start = session(day(5), session_id="s", event_id="b", start_time=day(4))
    earlier_id = session(day(5), session_id="s", event_id="a", start_time=day(3))
    assert week([later_start, earlier_id])["last_session_at"] == at(3)


def test_start_time_decides_the_day_in_utc() -> None:
    (row,) = expected([session(day(12), start_time="2025-03-09T23:30:00-02:00")]).adherence
    assert (row["week_start"], row["last_session_at"]) == (date(2025, 3, 10), at(10, 1, 30))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"completed_reps": 10, "prescribed_reps": 10}, "completed"),
        ({"completed_reps": 4, "prescribed_reps": 10, "duration_minutes": 20}, "partial"),
        ({"completed_reps": 0, "prescribed_reps": 10}, "started"),
        ({"completed_reps": 0, "prescribed_reps": 10, "duration_minutes": 20}, "completed"),
        ({"completed_reps": 0, "prescribed_reps": 0}, "started"),
        ({"completed_reps": 1, "prescribed_reps": 1}, "completed"),
        ({"completed_reps": 1, "prescribed_reps": 2}, "partial"),
        ({"completed_reps": 5}, "started"),
        ({"duration_minutes": 0}, "completed"),
        ({"end_time": day(3, "12:30")}, "completed"),
        ({"completion_status": "aborted", "completed_reps": 10, "prescribed_reps": 10}, "aborted"),
        ({}, "started"),
    ],
)
def test_session_status(body: Row, status: str) -> None:
    row = week([session(day(3), None, **body)])
    counts = (row["completed_sessions"], row["partial_sessions"])
    assert counts == {"completed": (1, 0), "partial": (0, 1)}.get(status, (0, 0))


def test_session_without_id_is_known_by_its_event() -> None:
    assert week([session(day(3)), session(day(3))])["completed_sessions"] == 2


# --- Quality


def test_quality_row() -> None:
    row = only_quality(
        rep(day(3), 0.9, exercise="squat", form_issues=["lean", {"type": "knee", "severity": "major"}]),
        rep(day(3), 0.6, exercise="squat", form_issues=["lean", "lean"]),
        rep(day(3), 0.5, exercise="squat", form_issues=["depth"]),
        rep(day(3), 0.4, exercise="squat"),
        session(day(3), exercise="squat", overall_quality=0.75),
    )
    assert row == {
        "patient_id": "p",
        "exercise_id": "squat",
        "total_reps": 4,
        "average_quality": 0.6,
        "critical_issues_count": 1,
        "critical_issues_percentage": 25.0,
        "percentile_25": 0.4,
        "percentile_50": 0.5,
        "percentile_75": 0.6,
        "quality_trend": "stable",
        "form_issue_frequency": [
            {"type": "lean", "count": 3},
            {"type": "depth", "count": 1},
            {"type": "knee", "count": 1},
        ],
        "last_session_quality": 0.75,
        "visible": True,
    }


@pytest.mark.parametrize("score_field", ["quality_score", "rep_quality", "form_score"])
@pytest.mark.parametrize("issues_field", ["form_issues", "form_errors", "anomalies"])
def test_aliases_of_reps(score_field: str, issues_field: str) -> None:
    body: Row = {score_field: 1, issues_field: ["x"]}
    row = only_quality(event("rep_observation", day(3), **body))
    assert (row["average_quality"], row["form_issue_frequency"]) == (1.0, [{"type": "x", "count": 1}])
    assert row["exercise_id"] == ""


def test_nearest_rank_of_an_odd_number_of_reps() -> None:
    row = only_quality(*(rep(day(3), score) for score in (0.5, 0.1, 0.4, 0.2, 0.3)))
    # 25 % of 5 is 1.25, so the second; 2.5 the third; 3.75 the fourth.
    assert (row["percentile_25"], row["percentile_50"], row["percentile_75"]) == (0.2, 0.3, 0.4)


def test_window_is_the_7_days_that_end_on_the_newest_rep() -> None:
    row = only_quality(
        rep(day(3, "23:59"), 0.1, form_issues=["old"]), rep(day(4, "00:00"), 0.7), rep(day(10), 0.8)
    )
    assert (row["total_reps"], row["average_quality"], row["form_issue_frequency"]) == (2, 0.75, [])


def test_window_follows_the_exercise_and_not_the_patient() -> None:
    rows = expected([rep(day(3), 0.9, exercise="a"), rep(day(20), 0.9, exercise="b")]).quality
    assert [(row["exercise_id"], row["total_reps"]) for row in rows] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("before", "now", "trend"),
    [(0.7, 0.75, "improving"), (0.7, 0.74, "stable"), (0.75, 0.7, "declining"), (0.75, 0.701, "stable")],
)
def test_trend(before: float, now: float, trend: str) -> None:
    # The 7 days before 4 to 10 March are 25 February to 3 March.
    for earlier in ("2025-02-25T00:00:00Z", "2025-03-03T23:59:59Z"):
        assert only_quality(rep(earlier, before), rep(day(10), now))["quality_trend"] == trend


def test_trend_is_stable_without_reps_in_the_week_before() -> None:
    assert only_quality(rep("2025-02-24T23:59:00Z", 0.1), rep(day(10), 0.9))["quality_trend"] == "stable"


def test_session_quality_alone_makes_a_row() -> None:
    row = only_quality(
        session(day(3), exercise="squat", quality_score=0.8), session(day(3), exercise="other")
    )
    assert row == {
        "patient_id": "p",
        "exercise_id": "squat",
        "total_reps": 0,
        "average_quality": None,
        "critical_issues_count": 0,
        "critical_issues_percentage": 0.0,
        "percentile_25": None,
        "percentile_50": None,
        "percentile_75": None,
        "quality_trend": "stable",
        "form_issue_frequency": [],
        "last_session_quality": 0.8,
        "visible": True,
    }


def test_last_session_quality_is_that_of_the_newest_start() -> None:
    row = only_quality(
        session(day(9), start_time=day(4), overall_quality=0.1),
        session(day(6), start_time=day(5), overall_quality=0.9),
        session(day(8)),
    )
    assert row["last_session_quality"] == 0.9


def test_newest_event_breaks_a_tie_of_starts() -> None:
    row = only_quality(
        session(day(4), session_id="a", start_time=day(4), overall_quality=0.1),
        session(day(6), session_id="a"),
        session(day(5), session_id="b", start_time=day(4), overall_quality=0.9),
    )
    assert row["last_session_quality"] == 0.1


def test_session_quality_is_its_newest_statement() -> None:
    row = only_quality(
        session(day(5), session_id="s", overall_quality=0.8),
        session(day(4), session_id="s", overall_quality=0.9),
        session(day(6), session_id="s"),
    )
    assert row["last_session_quality"] == 0.8


# --- Work queue


def test_alert_with_defaults() -> None:
    assert only_item(alert(day(3), event_id="e")) == {
        "patient_id": "p",
        "item_id": "e",
        "item_type": "alert",
        "therapist_id": None,
        "site_id": None,
        "urgency": "medium",
        "priority": 3,
        "description": "fall_risk",
        "status": "pending",
        "created_at": at(3),
        "sla_deadline": at(5),
        "resolved_at": None,
        "context": {"alert_type": "fall_risk"},
        "visible": True,
    }


def test_newest_event_that_states_a_field_wins() -> None:
    first = alert(
        day(3),
        alert_id="a",
        urgency="low",
        assigned_to="t1",
        site_id="north",
        title="Call",
        trigger_criteria={"n": 1},
        context={"room": "A"},
        sla_deadline=day(20),
    )
    second = alert(day(4), alert_id="a", alert_type="no_show", severity="high", status="in_review")
    third = alert(day(5), alert_id="a", assigned_to="t2", resolution_status="acknowledged")
    assert only_item(second, third, first) == {
        "patient_id": "p",
        "item_id": "a",
        "item_type": "alert",
        "therapist_id": "t2",
        "site_id": "north",
        "urgency": "high",
        "priority": 2,
        "description": "Call",
        "status": "in_review",
        "created_at": at(3),
        "sla_deadline": at(20),
        "resolved_at": None,
        "context": {"alert_type": "fall_risk", "trigger_criteria": {"n": 1}, "room": "A"},
        "visible": True,
    }


def test_event_id_decides_which_of_two_statements_is_newer() -> None:
    row = only_item(
        alert(day(3), alert_id="a", event_id="2", assigned_to="t2"),
        alert(day(3), alert_id="a", event_id="1", assigned_to="t1"),
    )
    assert row["therapist_id"] == "t2"


@pytest.mark.parametrize(
    ("stated", "urgency", "priority", "deadline"),
    [
        ({"urgency": "critical"}, "critical", 1, at(3, 16)),
        ({"severity": "urgent"}, "critical", 1, at(3, 16)),
        ({"priority": "high"}, "high", 2, at(4)),
        ({"urgency": "medium"}, "medium", 3, at(5)),
        ({"urgency": "low"}, "low", 4, at(10)),
    ],
)
def test_urgency_decides_priority_and_deadline(
    stated: Row, urgency: str, priority: int, deadline: datetime
) -> None:
    row = only_item(alert(day(3), **stated))
    assert (row["urgency"], row["priority"], row["sla_deadline"]) == (urgency, priority, deadline)


def test_resolved_and_dismissed_rank_alike_so_the_earlier_one_stays() -> None:
    row = only_item(
        alert(day(5), alert_id="a", status="resolved"),
        alert(day(4), alert_id="a", status="dismissed"),
        alert(day(6), alert_id="a", status="active"),
    )
    assert (row["status"], row["resolved_at"]) == ("dismissed", at(4))


def test_stated_resolution_time_wins() -> None:
    row = only_item(
        alert(day(4), alert_id="a", status="resolved", resolved_at=day(3)),
        alert(day(5), alert_id="a", status="resolved"),
    )
    assert row["resolved_at"] == at(3)


def test_feedback_item() -> None:
    row = only_item(
        event(
            "feedback",
            day(3),
            feedback_id="f",
            therapist_id="t1",
            feedback_type="correction",
            session_id="s",
            message="Slower.",
            severity_level="high",
            delivered_at="2025-03-03T12:00:00+01:00",
            pain_level=2,
            site_id="north",
        ),
        event("feedback", day(4), feedback_id="f", acknowledged_at=day(4)),
    )
    assert row == {
        "patient_id": "p",
        "item_id": "f",
        "item_type": "feedback_needed",
        "therapist_id": "t1",
        "site_id": "north",
        "urgency": "high",
        "priority": 2,
        "description": "Slower.",
        "status": "acknowledged",
        "created_at": at(3),
        "sla_deadline": at(4),
        "resolved_at": None,
        "context": {
            "feedback_type": "correction",
            "target_session_id": "s",
            "pain_level": 2,
            "delivered_at": at(3, 11),
        },
        "visible": True,
    }


def test_feedback_that_states_nothing() -> None:
    row = only_item(event("feedback", day(3), event_id="e"))
    assert (row["item_id"], row["urgency"], row["status"]) == ("e", "medium", "pending")
    assert (row["description"], row["context"], row["therapist_id"]) == (None, None, None)


def test_feedback_content_that_is_an_object_goes_to_the_context() -> None:
    row = only_item(event("feedback", day(3), content={"text": "Slower."}))
    assert (row["description"], row["context"]) == (None, {"content": {"text": "Slower."}})


def test_newest_feedback_content_and_site_win() -> None:
    texts = [event("feedback", day(n), feedback_id="f", content=f"{n}", site_id=f"s{n}") for n in (3, 5, 4)]
    row = only_item(*texts)
    assert (row["description"], row["site_id"]) == ("5", "s5")
    objects = [event("feedback", day(n), feedback_id="f", content={"n": n}) for n in (3, 5, 4)]
    assert only_item(*objects)["context"] == {"content": {"n": 5}}


def test_two_patients_may_use_one_item_id() -> None:
    arrivals = [alert(day(3), alert_id="a"), alert(day(4), alert_id="a", patient="q")]
    assert [row["created_at"] for row in expected(arrivals).work_queue] == [at(3), at(4)]


def test_policy_alerts_become_review_items() -> None:
    rows = expected([session(day(3), pain_level=7, duration_minutes=30)]).work_queue
    assert rows == [
        {
            "patient_id": "p",
            "item_type": "review",
            "urgency": "critical",
            "priority": 1,
            "status": "pending",
            "created_at": at(3),
            "sla_deadline": at(3, 16),
            "resolved_at": None,
            "visible": True,
        }
    ]


# --- Consent


def consent(ts: str, status: str | None = None, **body: Any) -> Arrival:
    return event("consent", ts, **({"status": status} if status else {}), **body)


def test_revoked_consent_withholds_what_comes_after_it() -> None:
    arrivals = [
        session(day(3), event_id="before"),
        session(day(5), event_id="at once"),
        session(day(6), event_id="between"),
        session(day(8), event_id="after"),
        consent(day(5), "revoked"),
        consent(day(7), granted=True),
    ]
    result = expected(arrivals)
    assert result.withheld == {"at once", "between"}
    assert result.adherence[0]["completed_sessions"] == 2
    assert result.adherence[0]["consent_status"] == "granted"


def test_revoked_consent_hides_every_row() -> None:
    arrivals = [session(day(3), overall_quality=0.4), alert(day(3)), rep(day(3), 0.9)]
    result = expected([*arrivals, consent(day(5), granted=False)])
    assert (result.adherence, result.quality, result.work_queue) == ([], [], [])
    assert [nudge.type for nudge in result.nudges] == ["poor_quality"]
    assert result.withheld == frozenset()


def test_withheld_events_do_not_nudge() -> None:
    arrivals = [session(day(6), pain_level=9), consent(day(5), "revoked"), consent(day(7), "granted")]
    assert fired(*arrivals) == []


def test_effective_from_goes_before_ts() -> None:
    arrivals = [
        session(day(6)),
        consent(day(20), "revoked", effective_from=day(5)),
        consent(day(4), "granted"),
    ]
    assert len(expected(arrivals).withheld) == 1


def test_newest_of_two_consents_effective_at_once_is_by_ts() -> None:
    revoked = consent(day(4), "revoked", effective_from=day(5))
    granted = consent(day(3), "granted", effective_from=day(5))
    assert len(expected([session(day(6)), revoked, granted]).withheld) == 1


def test_consent_expires() -> None:
    granted = consent(day(3), "granted", expires_at=day(6))
    renewed = consent(day(9), "granted", expires_at="2125-01-01T00:00:00Z")
    arrivals = [session(day(5, "11:59")), session(day(6)), session(day(7)), granted]
    assert len(expected(arrivals).withheld) == 2
    assert expected(arrivals).adherence == []
    assert week([*arrivals, renewed])["consent_status"] == "granted"


def test_hidden_as_of_now() -> None:
    arrivals = [session(day(5)), consent(day(3), "granted", expires_at=day(20))]
    assert week(arrivals, options=Options(now=at(19)))["consent_status"] == "granted"
    assert expected(arrivals, Options(now=at(20))).adherence == []


def test_consent_that_is_not_yet_effective_changes_nothing() -> None:
    arrivals = [
        session(day(5)),
        consent(day(6), "granted"),
        consent(day(6), "revoked", effective_from=day(20)),
    ]
    assert week(arrivals, options=Options(now=at(10)))["consent_status"] == "granted"


@pytest.mark.parametrize("status", ["pending", None])
def test_unknown_consent(status: str | None) -> None:
    arrivals = [session(day(5)), *([consent(day(3), status)] if status else [])]
    assert week(arrivals)["consent_status"] == "unknown"
    assert len(expected(arrivals, Options(consent="require")).withheld) == 1


def test_require_allows_what_is_granted() -> None:
    arrivals = [session(day(5)), consent(day(4), "granted")]
    assert expected(arrivals, Options(consent="require")).withheld == frozenset()


def test_consent_of_another_type_is_no_matter() -> None:
    row = week([session(day(5)), consent(day(3), "revoked", consent_type="research")])
    assert row["consent_status"] == "unknown"


def test_consent_off() -> None:
    arrivals = [session(day(5)), consent(day(3), "revoked")]
    result = expected(arrivals, Options(consent="off"))
    assert result.withheld == frozenset()
    assert result.adherence[0]["visible"] is True


# --- Policy


def test_gap_of_4_to_7_days() -> None:
    nudge = ("missed_sessions", "nudge", "low")
    assert fired(session(day(3)), session(day(6))) == []
    assert fired(session(day(3)), session(day(7))) == [nudge]
    assert fired(session(day(3), "aborted"), session(day(10), None)) == [nudge]
    assert fired(session(day(3)), session(day(7)), session(day(7)), session(day(11), None)) == [nudge, nudge]


def test_gap_of_more_than_7_days() -> None:
    arrivals = [session(day(3)), session(day(11), "started")]
    assert fired(*arrivals) == [("extended_absence", "alert", "high")]
    assert item_times("extended_absence", *arrivals) == [at(11, 0)]


def test_absences_of_a_long_history() -> None:
    starts = ["2025-01-01", "2025-01-08", "2025-01-16", "2025-03-17", "2025-05-17", "2026-05-17"]
    arrivals = [session(f"{start}T12:00:00Z") for start in reversed(starts)]
    long = {"absence": "more than 60 days"}
    wanted = [{"last_session_day": "2025-01-08"}, {"last_session_day": "2025-01-16"}, long, long]
    assert absences(arrivals) == [("p", data) for data in wanted]
    nudges = expected(arrivals, Options(any_span=True)).nudges
    assert len([nudge for nudge in nudges if nudge.type == "extended_absence"]) == 4


def test_too_late_is_more_than_28_days_before_the_newest_known_then() -> None:
    first, second, third = (session(f"2025-{month}T12:00:00Z") for month in ("01-01", "01-29", "02-27"))
    names = [each.envelope["event_id"] for each in (first, second, third)]
    assert too_late([[first], [second], [third]]) == set()
    assert too_late([[third, first, second]]) == {names[0], names[1]}
    assert too_late([[first, second], [third]]) == set()
    assert too_late([[third], [second]]) == {names[1]}
    other = session("2025-03-30T12:00:00Z", patient="q")
    assert too_late([[first, second, other]]) == set()
    begun = session("2025-02-27T12:00:00Z", start_time="2025-01-29T12:00:00Z")
    assert too_late([[first, begun]]) == set()
    assert too_late([[third, begun]]) == {begun.envelope["event_id"]}
    assert too_late([[first, third, consent("2025-01-30T00:00:00Z", "revoked")]]) == {names[0]}
    assert too_late([[first, second, rep("2025-02-27T12:00:00Z", 0.9)]]) == set()


@pytest.mark.parametrize(
    ("body", "short"),
    [
        ({"duration_minutes": 9.9}, True),
        ({"duration_minutes": 10}, False),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:09")}, True),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:10")}, False),
        ({"start_time": day(3, "11:00"), "end_time": day(3, "11:50"), "duration_minutes": 5}, True),
        ({}, False),
        ({"duration_minutes": 5, "status": "partial"}, False),
    ],
)
def test_short_session(body: Row, short: bool) -> None:
    assert fired(session(day(3), **body)) == ([("short_session", "nudge", "low")] if short else [])


def test_short_session_goes_by_the_newest_duration() -> None:
    long = session(day(4), None, session_id="s", duration_minutes=30)
    assert fired(session(day(3), session_id="s", duration_minutes=5), long) == []


def weekly(*numbers: int, **body: Any) -> list[Arrival]:
    return [session(day(number), **body) for number in numbers]


def test_low_weekly_adherence() -> None:
    low = ("low_weekly_adherence", "alert", "medium")
    assert low not in fired(*weekly(3, 6, 9))
    arrivals = weekly(3, 6, 9, 10, 13, 16, 17, 20)
    # Candidates are all days from 10 March on (at most 3 of 7): 10, then 17 March.
    assert fired(*arrivals) == [low, low]
    assert item_times("low_weekly_adherence", *arrivals) == [at(10), at(17)]


def test_low_weekly_adherence_starts_below_half() -> None:
    # The 7 days that end on 10 March have 2 completed sessions.
    arrivals = [*weekly(3, 7, 10), session(day(5), "aborted")]
    assert fired(*arrivals, options=Options(prescribed_sessions_per_week=4)) == []
    low = ("low_weekly_adherence", "alert", "medium")
    assert fired(*arrivals, options=Options(prescribed_sessions_per_week=5)) == [low]


def test_low_weekly_adherence_counts_up_to_the_session_itself() -> None:
    arrivals = [
        *weekly(3, 6, 9),
        session(day(10, "08:00"), "aborted", prescribed_sessions_per_week=5),
        session(day(10, "09:00")),
        session(day(10, "10:00")),
    ]
    assert item_times("low_weekly_adherence", *arrivals) == [at(10, 8)]


def test_session_that_only_started_is_no_occasion() -> None:
    assert fired(*weekly(3, 6, 9), session(day(12), None)) == []


def test_adherence_excellence() -> None:
    options = Options(prescribed_sessions_per_week=5)
    first, last = session(day(1, "23:00")), session(day(29, "01:00"))
    between = weekly(*range(4, 26, 3), *range(4, 26, 3), 28)
    excellence = ("adherence_excellence", "nudge", "low")
    # 2 to 29 March: 17 sessions and the last one are 18 of 20, which is 90 %.
    assert len(between) == 17
    assert fired(first, *between, last, options=options) == []
    assert fired(first, *between, session(day(27)), options=options) == []
    assert fired(first, *between, session(day(27)), last, options=options) == [excellence]


@pytest.mark.parametrize(
    ("quality", "outcome"),
    [
        (0.499, [("poor_quality", "alert", "medium")]),
        (0.5, [("quality_reminder", "nudge", "low")]),
        (0.699, [("quality_reminder", "nudge", "low")]),
        (0.7, []),
    ],
)
def test_session_quality(quality: float, outcome: list[tuple[str, str, str]]) -> None:
    assert fired(session(day(3), overall_quality=quality)) == outcome


def test_poor_quality_is_about_the_newest_statement() -> None:
    arrivals = [
        session(day(3), session_id="s", exercise="squat", overall_quality=0.6),
        session(day(4), session_id="s", exercise="squat", quality_score=0.3),
        session(day(5), session_id="s", exercise="squat"),
    ]
    assert expected(arrivals).nudges == [
        Nudge("alert", "poor_quality", "medium", "p", "squat", "s", created_at=at(4), occasion="s")
    ]


def reps(number: int, scores: Iterable[float], exercise: str = "squat") -> list[Arrival]:
    return [
        rep(f"2025-03-{number:02d}T12:00:{second:02d}Z", score, exercise=exercise)
        for second, score in enumerate(scores)
    ]


def test_quality_degradation_by_average() -> None:
    degradation = ("quality_degradation", "alert", "high")
    assert fired(*reps(3, [0.69] * 19)) == []
    assert fired(*reps(3, [0.69] * 20)) == [degradation]
    assert fired(*reps(3, [0.7] * 20)) == []
    assert fired(*reps(3, [0.69] * 19), *reps(4, [0.69], "other")) == []


def test_quality_degradation_by_critical_share() -> None:
    assert fired(*reps(3, [0.49] * 6 + [0.9] * 14)) == [("quality_degradation", "alert", "high")]
    assert fired(*reps(3, [0.49] * 5 + [0.9] * 15)) == []
    assert fired(*reps(3, [0.5] * 6 + [0.9] * 14)) == []


def test_quality_degradation_looks_back_7_days() -> None:
    assert fired(*reps(3, [0.69] * 19), *reps(10, [0.69])) == []
    assert fired(*reps(3, [0.69] * 19), *reps(9, [0.69])) == [("quality_degradation", "alert", "high")]


def test_quality_degradation_is_repeated_after_7_days() -> None:
    arrivals = [*reps(3, [0.6] * 10), *reps(4, [0.6] * 10), *reps(10, [0.6] * 20), *reps(11, [0.6] * 20)]
    # 3 March has 10 reps; 4 March is the first candidate, then 11 March.
    assert item_times("quality_degradation", *arrivals) == [at(4), at(11)]
    assert expected(arrivals).nudges[0].exercise_id == "squat"


def test_quality_improvement() -> None:
    improvement = [("quality_improvement", "nudge", "low")]
    assert fired(*reps(3, [0.9]), *reps(15, [0.9])) == []
    assert fired(*reps(3, [0.9]), *reps(16, [0.9])) == improvement
    assert fired(*reps(3, [0.85]), *reps(16, [0.9])) == []
    assert fired(*reps(3, [0.9]), *reps(10, [0.8]), *reps(16, [0.9])) == []
    assert fired(*reps(3, [0.9]), *reps(16, [0.9]), *reps(29, [0.9])) == improvement
    assert fired(*reps(3, [0.9]), *reps(16, [0.9]), *reps(30, [0.9])) == improvement * 2


def test_quality_improvement_looks_back_14_days_of_7_day_averages() -> None:
    improvement = [("quality_improvement", "nudge", "low")]
    assert fired(*reps(3, [0.8]), *reps(17, [0.9])) == improvement
    # 9 March averages 0.875 thanks to the days before; the 7 days that end on 16 March leave it out.
    assert fired(*reps(3, [0.9]), *reps(8, [0.95] * 10), *reps(9, [0.1]), *reps(16, [0.86])) == improvement


def test_pain() -> None:
    assert fired(session(day(3), pain_level=3.9)) == []
    assert fired(session(day(3), pain_level=4)) == [("pain_reported", "alert", "high")]
    assert fired(event("feedback", day(3), pain_level=6.9)) == [("pain_reported", "alert", "high")]
    assert fired(event("feedback", day(3), pain_level=7)) == [("pain_reported", "emergency", "critical")]


def test_pain_is_per_event() -> None:
    arrivals = [session(day(number), session_id="s", pain_level=5) for number in (3, 4)]
    assert item_times("pain_reported", *arrivals) == [at(3), at(4)]


def test_critical_alert_is_once_per_alert() -> None:
    arrivals = [
        alert(day(5), alert_id="a", urgency="urgent"),
        alert(day(4), alert_id="a", severity="critical"),
        alert(day(3), alert_id="a", priority="high"),
        alert(day(6), alert_id="b"),
    ]
    assert fired(*arrivals) == [("critical_alert", "emergency", "critical")]
    assert item_times("critical_alert", *arrivals) == [at(4)]


def rep_feedback(*arrivals: Arrival) -> list[tuple[str, str, str]]:
    return fired(*arrivals, options=Options(rep_feedback=True))


@pytest.mark.parametrize(
    ("issues", "severity"),
    [
        (["lean"], "low"),
        ([{"type": "lean"}], "low"),
        ([{"type": "lean", "severity": "minor"}], "low"),
        (["lean", {"type": "knee", "severity": "moderate"}], "medium"),
        ([{"type": "knee", "severity": "major"}, {"type": "lean", "severity": "minor"}], "high"),
    ],
)
def test_form_correction(issues: list[Any], severity: str) -> None:
    assert rep_feedback(rep(day(3), 0.9, form_issues=issues)) == [("form_correction", "feedback", severity)]


def test_rep_feedback_waits_30_seconds() -> None:
    quality = ("rep_quality", "feedback", "low")
    first = rep("2025-03-03T12:00:00Z", 0.59, exercise="a")
    assert rep_feedback(rep(day(3), 0.6, form_issues=[])) == []
    assert rep_feedback(first, rep("2025-03-03T12:00:29.999Z", 0.5, exercise="a")) == [quality]
    assert rep_feedback(first, rep("2025-03-03T12:00:30Z", 0.5, exercise="a")) == [quality] * 2
    assert rep_feedback(first, rep("2025-03-03T12:00:01Z", 0.5, exercise="b")) == [quality] * 2
    assert rep_feedback(first, rep("2025-03-03T12:00:01Z", 0.5, exercise="a", patient="q")) == [quality] * 2


def test_one_rep_may_cause_both_kinds_of_feedback() -> None:
    assert [name for name, _, _ in rep_feedback(rep(day(3), 0.1, form_issues=["x"]))] == sorted(REP_FEEDBACK)


def test_rep_feedback_is_defined_in_the_order_of_time_only() -> None:
    with pytest.raises(ValueError, match="in the order of their ts"):
        rep_feedback(rep(day(4), 0.1), rep(day(3), 0.1))


# --- Comparing


def written(row: Row, version: int = 1, **changes: Any) -> Row:
    """The row as a file holds it."""
    row = row | changes
    if row.get("item_type") == "review":
        row = row | {"item_id": "hash", "description": "what happened", "context": {"n": 1}}
    texts = {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)
        for name, value in row.items()
        if isinstance(value, datetime | date)
    }
    if row.get("context") is not None:
        texts["context"] = json.dumps(row["context"], default=str)
    return row | texts | {"version": version, "updated_at": day(30), "source_event_id": "e"}


def test_rows_as_written_equal_the_expected_rows() -> None:
    arrivals = [
        session(day(3), overall_quality=0.3, pain_level=8),
        alert(day(3), context={"room": "A"}),
        event("feedback", day(3), delivered_at=day(3)),
        rep(day(3), 1 / 3),
    ]
    result = expected(arrivals)
    for table in ("adherence", "quality", "work_queue"):
        rows = getattr(result, table)
        actual = [written(row) for row in rows]
        assert rows
        assert_rows_equal(actual, rows, table)
        with pytest.raises(AssertionError, match="missing"):
            assert_rows_equal(actual[1:], rows, table)
        with pytest.raises(AssertionError, match="unexpected"):
            assert_rows_equal(actual, rows[1:], table)


def test_difference_names_row_and_column() -> None:
    (row,) = expected([rep(day(3), 0.9)]).quality
    assert_rows_equal([written(row, percentile_50=0.905)], [row], "quality")
    with pytest.raises(AssertionError, match=r"\('p', ''\) average_quality: got 0.905, expected 0.9"):
        assert_rows_equal([written(row, average_quality=0.905)], [row], "quality")
    with pytest.raises(AssertionError, match="surplus: got 1, expected None"):
        assert_rows_equal([written(row, surplus=1)], [row], "quality")


def test_normalize_leaves_normal_rows_alone() -> None:
    for row in expected([session(day(3)), rep(day(3), 0.9), alert(day(3))]).quality:
        assert normalize(normalize(row)) == normalize(row) == normalize(written(row))


def test_current_rows() -> None:
    (row,) = expected([rep(day(3), 0.9)]).quality
    older, newer = written(row, 1, total_reps=1), written(row, 2, total_reps=2)
    assert current_rows([newer, older], "quality") == [newer]
    assert current_rows([newer, older | {"version": 3, "visible": False}], "quality") == []
    assert current_rows([newer, newer], "quality") == [newer]
    with pytest.raises(AssertionError, match="one version"):
        current_rows([newer, older | {"version": 2}], "quality")


def test_current_rows_hide_patients_by_their_newest_consent() -> None:
    (row,) = expected([rep(day(3), 0.9)]).quality
    revoked = {"patient_id": "p", "visible": False, "version": 2}
    granted = {"patient_id": "p", "visible": True, "version": 3}
    assert current_rows([written(row)], "quality", [revoked]) == []
    assert current_rows([written(row)], "quality", [granted, revoked]) == [written(row)]


def message(nudge: Nudge) -> Row:
    return {
        "nudge_id": "hash",
        "kind": nudge.kind,
        "type": nudge.type,
        "severity": nudge.severity,
        "subject_id": nudge.patient_id,
        "exercise_id": nudge.exercise_id or None,
        "session_id": nudge.session_id or None,
    }


def test_nudges_are_compared_as_a_multiset() -> None:
    nudges = expected([session(day(3), overall_quality=0.3), session(day(3), pain_level=8)]).nudges
    messages = [message(nudge) for nudge in nudges]
    assert_nudges_equal(reversed(messages), nudges)
    with pytest.raises(AssertionError, match="missing nudge"):
        assert_nudges_equal(messages[1:], nudges)
    with pytest.raises(AssertionError, match="unexpected nudge"):
        assert_nudges_equal(messages + messages[:1], nudges)


def test_feedback_on_reps_is_compared_on_request() -> None:
    nudges = expected([rep(day(3), 0.1)], Options(rep_feedback=True)).nudges
    assert_nudges_equal([], nudges)
    with pytest.raises(AssertionError, match="missing nudge"):
        assert_nudges_equal([], nudges, rep_feedback=True)


# --- Generated sets


def comparable(arrivals: list[Arrival], options: Options) -> tuple[Any, ...]:
    result = expected(arrivals, options)
    rows = [sorted(map(str, rows)) for rows in (result.adherence, result.quality, result.work_queue)]
    return rows, sorted(map(str, result.nudges)), result.withheld


@settings(max_examples=60)
@given(
    arrival_sets(ts_from_publish=True), st.integers(0, 1000), st.sampled_from(["enforce", "require", "off"])
)
def test_oracle_does_not_depend_on_order(arrivals: list[Arrival], seed: int, mode: Any) -> None:
    options = Options(consent=mode, now=at(31))
    shuffled = arrival_orders(arrivals, Random(seed))
    assert sorted(map(str, shuffled)) == sorted(map(str, arrivals))
    assert comparable(shuffled, options) == comparable(arrivals, options)


@settings(max_examples=60)
@given(arrival_sets(consents="harmless"))
def test_harmless_consents_withhold_nothing(arrivals: list[Arrival]) -> None:
    consents = [arrival for arrival in arrivals if arrival.envelope["kind"] == "consent"]
    others = [arrival for arrival in arrivals if arrival.envelope["kind"] != "consent"]
    for known in range(len(consents) + 1):
        assert expected(consents[:known] + others).withheld == frozenset()


@settings(max_examples=60)
@given(arrival_sets())
def test_generated_events_are_json_and_have_ids_of_their_own(arrivals: list[Arrival]) -> None:
    by_id: dict[str, str] = {}
    for arrival in arrivals:
        text = json.dumps(arrival.envelope, allow_nan=False)
        assert json.loads(text) == arrival.envelope
        assert by_id.setdefault(arrival.envelope["event_id"], text) == text


def test_seeded_generator_is_repeatable_and_reaches_every_rule() -> None:
    types, kinds, columns = set(), set(), set()
    for seed in range(20):
        arrivals = random_arrivals(Random(seed))
        assert arrivals == random_arrivals(Random(seed))
        kinds |= {arrival.envelope["kind"] for arrival in arrivals}
        result = expected(in_time_order(arrivals), Options(rep_feedback=True))
        types |= {(nudge.kind, nudge.type) for nudge in result.nudges}
        columns |= {
            (name, row[name])
            for row in result.adherence + result.quality + result.work_queue
            for name in ("consent_status", "quality_trend", "status", "urgency", "item_type")
            if name in row
        }
    assert len(kinds) == 5
    assert len(types) == 14
    assert {value for name, value in columns if name == "quality_trend"} == {
        "improving",
        "declining",
        "stable",
    }
    assert {value for name, value in columns if name == "status"} == {
        "pending",
        "acknowledged",
        "in_review",
        "resolved",
        "dismissed",
    }
