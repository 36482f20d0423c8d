"""The stream from the subscriptions to the views and the nudge topic."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from pipeline.operations.provisioning import Resources
from tests.integration.streaming import (
    PATIENT,
    Job,
    Nudges,
    check_views,
    encoded,
    event,
    publish,
    recent,
    sessions,
    view,
)
from tests.support.oracle import expected
from tests.support.strategies import random_arrivals
from transforms.policy.rules import RULES

Start = Callable[..., Job]

# A pull that waits would hold up the other checks.
pytestmark = pytest.mark.filterwarnings("ignore:The return_immediately flag")


def test_the_views_show_what_an_independent_calculation_gives(
    start: Start, provisioned: Resources, no_silence: str
) -> None:
    rng = Random(11)
    arrivals = recent(random_arrivals(rng, consents="any", patients=6, duplicates=False))
    consents = [arrival for arrival in arrivals if arrival.envelope["kind"] == "consent"]
    others = [arrival for arrival in arrivals if arrival.envelope["kind"] != "consent"]
    rng.shuffle(others)
    job = start(no_silence)
    publish(provisioned.primary_topic, *encoded(consents))
    job.until_settled(len(consents))

    publish(provisioned.primary_topic, *encoded(others[::2]))
    publish(provisioned.secondary_topic, *encoded(others[1::2]))

    job.until_settled(len(arrivals))
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert {row["item_type"] for row in view(provisioned, "work_queue")} == {
        "alert",
        "feedback_needed",
        "review",
    }
    assert job.counter("event.withheld") == len(expected(arrivals).withheld) > 0
    assert view(provisioned, "dead_letters") == []


def test_an_array_is_so_many_events(start: Start, provisioned: Resources) -> None:
    arrivals = sessions(1000)
    job = start()

    publish(provisioned.primary_topic, b"[" + b",\n".join(encoded(arrivals)) + b"]")

    job.until_settled(1000)
    job.eventually(lambda: check_views(provisioned, arrivals))


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_events_get_through_while_the_other_subscription_is_idle(
    start: Start, provisioned: Resources, role: str
) -> None:
    arrivals = sessions(30)
    topic = provisioned.primary_topic if role == "primary" else provisioned.secondary_topic
    job = start()

    for message in encoded(arrivals):
        publish(topic, message)

    job.eventually(lambda: check_views(provisioned, arrivals))


def test_an_event_counts_once_however_often_it_arrives(start: Start, provisioned: Resources) -> None:
    arrivals = [
        *sessions(5),
        *(event("rep_observation", f"rep-{number}", quality_score=0.9) for number in range(5)),
        event("alert", "alert", alert_type="fall_risk"),
    ]
    messages = encoded(arrivals)
    job = start()
    publish(provisioned.primary_topic, *messages)
    publish(provisioned.secondary_topic, *messages)
    job.until_settled(2 * len(arrivals))
    job.eventually(lambda: check_views(provisioned, arrivals))
    versions = [row["version"] for row in view(provisioned, "adherence")]

    publish(provisioned.secondary_topic, *messages, b"[" + b",".join(messages) + b"]")

    job.until_settled(4 * len(arrivals))
    check_views(provisioned, arrivals)
    assert [row["version"] for row in view(provisioned, "adherence")] == versions
    assert job.counter("event.duplicate") == 3 * len(arrivals)
    assert job.counter("event.processed.exercise_session") == 5
    assert job.counter("event.processed.rep_observation") == 5
    assert job.counter("event.processed.alert") == 1


def test_nudges_come_out(start: Start, provisioned: Resources, nudge_subscription: str) -> None:
    arrivals = [
        event("exercise_session", "short", duration_minutes=3, session_id="s1", overall_quality=0.6),
        event("exercise_session", "poor", overall_quality=0.4, duration_minutes=30, exercise_id="squat"),
        event("exercise_session", "pain", pain_level=5),
        event("feedback", "emergency", pain_level=9),
        event("alert", "critical", alert_type="fall_risk", urgency="urgent"),
        event("rep_observation", "rep", quality_score=0.9, form_issues=[{"type": "k", "severity": "major"}]),
    ]
    wanted = {
        ("short_session", "nudge", "low"),
        ("quality_reminder", "nudge", "low"),
        ("poor_quality", "alert", "medium"),
        ("pain_reported", "alert", "high"),
        ("pain_reported", "emergency", "critical"),
        ("critical_alert", "emergency", "critical"),
        ("form_correction", "feedback", "high"),
    }
    nudges = Nudges(nudge_subscription)
    job = start()

    publish(provisioned.primary_topic, *encoded(arrivals))
    publish(provisioned.secondary_topic, *encoded(arrivals))

    def check() -> None:
        nudges.pull()
        assert nudges.by_type().keys() >= wanted

    job.eventually(check)
    job.until_settled(2 * len(arrivals))
    nudges.pull()
    assert nudges.by_type() == dict.fromkeys(wanted, 1)
    ids = {arrival.envelope["event_id"] for arrival in arrivals}
    for message in nudges.messages:
        body = json.loads(message.data)
        assert body.keys() == {
            *("nudge_id", "kind", "type", "severity", "subject_id", "exercise_id", "session_id", "site_id"),
            *("data", "triggered_by", "generated_at"),
        }
        assert {name: body[name] for name in message.attributes} == dict(message.attributes)
        assert message.attributes.keys() == {"nudge_id", "kind", "type", "severity"}
        assert body["subject_id"] == PATIENT
        assert body["triggered_by"] in ids
    reviews = {row["item_id"] for row in view(provisioned, "work_queue") if row["item_type"] == "review"}
    reviewed = {
        message.attributes["nudge_id"]
        for message in nudges.messages
        if message.attributes["kind"] in ("alert", "emergency")
    }
    assert reviews == reviewed
    generated = job.metrics()["counters"]
    assert {name.rpartition(".")[2] for name in generated if ".generated." in name} <= {
        rule.type for rule in RULES.values()
    }
    assert generated["rehab_tracking.policy.emergency.generated.pain_reported"] == 1


def test_an_old_event_updates_rows_but_is_not_announced(
    start: Start, provisioned: Resources, nudge_subscription: str
) -> None:
    job = start("--nudge_max_age_hours=1")
    arrivals = [
        event("feedback", "old", ts=(datetime.now(UTC) - timedelta(hours=2)).isoformat(), pain_level=9),
        event("feedback", "new", pain_level=8),
    ]

    publish(provisioned.primary_topic, *encoded(arrivals))

    nudges = Nudges(nudge_subscription)

    def check() -> None:
        nudges.pull()
        assert [json.loads(message.data)["triggered_by"] for message in nudges.messages] == ["new"]

    job.until_settled(2)
    job.eventually(check)
    job.eventually(lambda: check_views(provisioned, arrivals))
