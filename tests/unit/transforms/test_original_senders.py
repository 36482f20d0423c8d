"""Events as the original system's senders write them, whole, and what a therapist sees of them."""

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from tests.support.beamless import BeamlessJob
from tests.support.oracle import (
    Arrival,
    Options,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
)
from transforms.events import parse_event
from transforms.message import Message
from transforms.projections.projector import RuleSettings
from transforms.times import to_micros

NOW = datetime(2025, 3, 21, 9, 0, tzinfo=UTC)
NOW_US = to_micros(NOW)

STARTED: dict[str, Any] = {
    "event_id": "evt-1",
    "kind": "exercise_session",
    "timestamp": "2025-03-20T08:00:00Z",
    "patient_id": "patient-1",
    "body": {
        "session_id": "session-1",
        "exercise_type": "squat",
        "status": "started",
        "started_at": "2025-03-20T08:00:00Z",
        "prescription": {"exercise": "squat", "sets": 3, "reps": 10, "rest_seconds": 60},
        "device_info": {"model": "tablet", "app_version": "2.1.0"},
    },
    "meta": {"phi": True, "consent_id": "consent-1", "site_id": None, "version": 1.0},
}
ENDED: dict[str, Any] = STARTED | {
    "event_id": "evt-2",
    "timestamp": "2025-03-20T08:25:00Z",
    "body": {
        "session_id": "session-1",
        "exercise_type": "squat",
        "started_at": "2025-03-20T08:00:00Z",
        "ended_at": "2025-03-20T08:25:00Z",
        "completion_status": None,
        "prescription": {"exercise": "squat", "sets": 3, "reps": 10},
        "completion_summary": {
            "total_reps": 24.0,
            "average_quality": 0.62,
            "session_duration": 540,
            "exercises_completed": ["squat"],
        },
    },
}
REP: dict[str, Any] = {
    "event_id": "evt-3",
    "kind": "rep_observation",
    "timestamp": "2025-03-20T08:03:12.250Z",
    "patient_id": "patient-1",
    "body": {
        "session_id": "session-1",
        "exercise_type": "squat",
        "rep_number": 1.0,
        "form_analysis": {"overall_score": 0.55, "depth": 0.4, "symmetry": 0.9},
        "anomalies": [{"type": "knee_valgus", "severity": "moderate"}],
        "joint_angles": {"knee_left": 92.5, "knee_right": 88.0},
    },
}
FEEDBACK: dict[str, Any] = {
    "event_id": "evt-4",
    "kind": "feedback",
    "timestamp": "2025-03-20T09:00:00Z",
    "patient_id": "patient-1",
    "body": {
        "feedback_id": "feedback-1",
        "feedback_type": "pain_report",
        "content": {"text": "The knee hurts.", "pain_level": 5, "location": "knee"},
        "severity_level": "high",
    },
}
ALERT: dict[str, Any] = {
    "event_id": "evt-5",
    "kind": "alert",
    "timestamp": "2025-03-20T09:30:00Z",
    "patient_id": "patient-1",
    "body": {
        "alert_id": "alert-1",
        "alert_type": "pain_spike",
        "severity": "urgent",
        "status": "active",
        "message": "Pain of 8 after the second set.",
        "pain_level": 8,
        "trigger_criteria": {"pain_level": {"above": 7}},
    },
}
REVOKED: dict[str, Any] = {
    "event_id": "evt-6",
    "kind": "consent",
    "timestamp": "2025-03-20T12:00:00Z",
    "patient_id": "patient-1",
    "body": {
        "consent_id": "consent-1",
        "consent_type": "data_collection",
        "status": "revoked",
        "scope": ["video", "motion_data", "progress_reports"],
        "effective_from": "2025-03-20T12:00:00Z",
        "expiry": None,
    },
}
EVENTS = [STARTED, ENDED, REP, FEEDBACK, ALERT]


def taken(envelopes: list[dict[str, Any]]) -> BeamlessJob:
    job = BeamlessJob(RuleSettings(nudge_max_age_hours=0), NOW_US)
    job.take([Message(orjson.dumps(envelope), {}, "", "", NOW_US) for envelope in envelopes])
    assert not job.dead_letters
    return job


def parsed(envelope: dict[str, Any]) -> Any:
    return parse_event(envelope, Message(b"", {}, "", "", NOW_US), NOW_US).fact


def rows(job: BeamlessJob, table: str) -> list[dict[str, Any]]:
    return current_rows(job.rows[table], table, job.rows["consents"])


@pytest.mark.parametrize(
    "envelopes", [EVENTS, EVENTS[::-1], [*EVENTS, REVOKED]], ids=["in order", "reversed", "revoked"]
)
def test_the_rows_and_nudges_are_those_of_the_independent_calculation(
    envelopes: list[dict[str, Any]],
) -> None:
    job = taken(envelopes)
    wanted = expected(
        [Arrival(envelope, NOW_US) for envelope in envelopes], Options(now=NOW, rep_feedback=True)
    )
    for table in ("adherence", "quality", "work_queue"):
        assert_rows_equal(rows(job, table), getattr(wanted, table), table)
    if REVOKED not in envelopes:
        assert_nudges_equal(job.nudges, wanted.nudges, rep_feedback=True)


def test_what_a_therapist_sees() -> None:
    job = taken(EVENTS)
    (week,) = rows(job, "adherence")
    assert (week["completed_sessions"], week["partial_sessions"]) == (0, 1)
    assert week["last_session_at"] == "2025-03-20T08:00:00Z"
    (squat,) = rows(job, "quality")
    assert squat["exercise_id"] == "squat"
    assert (squat["total_reps"], squat["average_quality"]) == (1, 0.55)
    assert squat["last_session_quality"] == 0.62
    assert squat["form_issue_frequency"] == [{"type": "knee_valgus", "count": 1}]
    items = {row["item_id"]: row for row in rows(job, "work_queue")}
    alert, feedback = items["alert-1"], items["feedback-1"]
    assert (alert["urgency"], alert["status"]) == ("critical", "pending")
    assert alert["description"] == "Pain of 8 after the second set."
    assert json.loads(alert["context"]) == {
        "alert_type": "pain_spike",
        "pain_level": 8,
        "trigger_criteria": {"pain_level": {"above": 7}},
    }
    assert feedback["urgency"] == "high"
    assert json.loads(feedback["context"])["pain_level"] == 5
    said = {(nudge["type"], nudge["kind"]) for nudge in job.nudges}
    assert said == {
        ("form_correction", "feedback"),
        ("rep_quality", "feedback"),
        ("quality_reminder", "nudge"),
        ("pain_reported", "alert"),
        ("pain_reported", "emergency"),
        ("critical_alert", "emergency"),
    }


def test_a_revoked_consent_with_a_list_of_scopes_hides_the_patient() -> None:
    job = taken([*EVENTS, REVOKED])
    assert rows(job, "adherence") == rows(job, "quality") == rows(job, "work_queue") == []
    again = REVOKED | {
        "event_id": "evt-7",
        "timestamp": "2025-03-20T13:00:00Z",
        "body": {"granted": True, "scope": {"video": False}, "expiry": "2026-03-20T00:00:00Z"},
    }
    job = taken([*EVENTS, REVOKED, again])
    assert len(rows(job, "adherence")) == 1
    (decided,) = rows(job, "consents")
    assert decided["decisions"][-1]["expires_at"] == "2026-03-20T00:00:00Z"


@pytest.mark.parametrize(
    ("summary", "minutes", "status"),
    [
        ({"session_duration": 540}, 9.0, "partial"),
        ({"session_duration": 0}, 0.0, "partial"),
        ({"session_duration": None}, 25.0, "partial"),
        ({"total_reps": 30}, 25.0, "completed"),
        ({"total_reps": 0}, 25.0, "completed"),
        ({"total_reps": None}, 25.0, "completed"),
    ],
)
def test_a_summary_in_part(summary: dict[str, Any], minutes: float, status: str) -> None:
    stated = {"total_reps": 24} | summary
    body = ENDED["body"] | {"completion_summary": stated}
    event = parsed(ENDED | {"body": body})
    assert (event.duration_minutes, event.status) == (minutes, status)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"prescription": {"sets": 2, "reps": 12}}, "completed"),
        ({"prescription": {"sets": 3, "reps": 12}}, "partial"),
        ({"prescription": {"sets": 3, "reps": 12}, "target_reps": 24}, "completed"),
        ({"prescription": {"sets": 2, "reps": 12}, "prescribed_reps": 25, "target_reps": 1}, "partial"),
        ({"prescription": {"sets": 3, "reps": None}}, "completed"),
        ({"prescription": {"reps": 30}}, "completed"),
        ({"prescription": {"sets": "x", "reps": []}, "target_reps": 24}, "completed"),
        ({"prescription": "3 x 12"}, "completed"),
        ({"prescription": ["3 x 12"]}, "completed"),
    ],
    ids=str,
)
def test_prescribed_repetitions(more: dict[str, Any], status: str) -> None:
    body = ENDED["body"] | {"prescription": None} | more
    assert parsed(ENDED | {"body": body}).status == status
