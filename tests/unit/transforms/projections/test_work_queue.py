"""The work queue: docs/contract.md, 4.6. Each example is worked out by hand."""

from datetime import datetime

import pytest

from tests.support.examples import Calculation, alert, at, day, event, session
from tests.support.oracle import Row


def test_alert_with_defaults(calculated: Calculation) -> None:
    assert calculated.only_item(alert(day(3), event_id="e")) == {
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


def test_newest_event_that_states_a_field_wins(calculated: Calculation) -> None:
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
    assert calculated.only_item(second, third, first) == {
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


def test_event_id_decides_which_of_two_statements_is_newer(calculated: Calculation) -> None:
    row = calculated.only_item(
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
    calculated: Calculation, stated: Row, urgency: str, priority: int, deadline: datetime
) -> None:
    row = calculated.only_item(alert(day(3), **stated))
    assert (row["urgency"], row["priority"], row["sla_deadline"]) == (urgency, priority, deadline)


def test_resolved_and_dismissed_rank_alike_so_the_earlier_one_stays(calculated: Calculation) -> None:
    row = calculated.only_item(
        alert(day(5), alert_id="a", status="resolved"),
        alert(day(4), alert_id="a", status="dismissed"),
        alert(day(6), alert_id="a", status="active"),
    )
    assert (row["status"], row["resolved_at"]) == ("dismissed", at(4))


def test_stated_resolution_time_wins(calculated: Calculation) -> None:
    row = calculated.only_item(
        alert(day(4), alert_id="a", status="resolved", resolved_at=day(3)),
        alert(day(5), alert_id="a", status="resolved"),
    )
    assert row["resolved_at"] == at(3)


def test_feedback_item(calculated: Calculation) -> None:
    row = calculated.only_item(
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


def test_feedback_that_states_nothing(calculated: Calculation) -> None:
    row = calculated.only_item(event("feedback", day(3), event_id="e"))
    assert (row["item_id"], row["urgency"], row["status"]) == ("e", "medium", "pending")
    assert (row["description"], row["context"], row["therapist_id"]) == (None, None, None)


def test_feedback_content_that_is_an_object_goes_to_the_context(calculated: Calculation) -> None:
    row = calculated.only_item(event("feedback", day(3), content={"text": "Slower."}))
    assert (row["description"], row["context"]) == (None, {"content": {"text": "Slower."}})


def test_newest_feedback_content_and_site_win(calculated: Calculation) -> None:
    texts = [event("feedback", day(n), feedback_id="f", content=f"{n}", site_id=f"s{n}") for n in (3, 5, 4)]
    row = calculated.only_item(*texts)
    assert (row["description"], row["site_id"]) == ("5", "s5")
    objects = [event("feedback", day(n), feedback_id="f", content={"n": n}) for n in (3, 5, 4)]
    assert calculated.only_item(*objects)["context"] == {"content": {"n": 5}}


def test_two_patients_may_use_one_item_id(calculated: Calculation) -> None:
    arrivals = [alert(day(3), alert_id="a"), alert(day(4), alert_id="a", patient="q")]
    assert [row["created_at"] for row in calculated.expected(arrivals).work_queue] == [at(3), at(4)]


def test_policy_alerts_become_review_items(calculated: Calculation) -> None:
    rows = calculated.expected([session(day(3), pain_level=7, duration_minutes=30)]).work_queue
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


STATUSES = ("pending", "acknowledged", "in_review", "resolved")


@pytest.mark.parametrize("later", [*STATUSES, "dismissed"])
@pytest.mark.parametrize("earlier", STATUSES)
def test_a_status_moves_forward_only(calculated: Calculation, earlier: str, later: str) -> None:
    row = calculated.only_item(
        alert(day(3), alert_id="a", status=earlier), alert(day(4), alert_id="a", status=later)
    )
    ranks = {**{status: rank for rank, status in enumerate(STATUSES)}, "dismissed": 3}
    assert row["status"] == (later if ranks[later] > ranks[earlier] else earlier)
    assert (row["resolved_at"] is None) is (max(ranks[later], ranks[earlier]) < 3)


def test_a_late_event_moves_the_creation_and_the_deadline_back(calculated: Calculation) -> None:
    row = calculated.only_item(alert(day(4), alert_id="a", urgency="high"), alert(day(3), alert_id="a"))
    assert (row["created_at"], row["sla_deadline"]) == (at(3), at(4))


@pytest.mark.parametrize(
    ("pain", "deadline"), [(4, at(4)), (7, at(3, 16))], ids=["alert: 24 h", "emergency: 4 h"]
)
def test_a_reviews_deadline_follows_its_severity(
    calculated: Calculation, pain: float, deadline: datetime
) -> None:
    (row,) = calculated.expected([session(day(3), pain_level=pain)]).work_queue
    assert row["sla_deadline"] == deadline
