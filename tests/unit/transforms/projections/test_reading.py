"""How an envelope is read, as the rows show it."""

from datetime import UTC, datetime

from tests.support.examples import Calculation, alert, at, day, event, rep
from tests.support.oracle import Arrival


def test_aliases_of_the_envelope(calculated: Calculation) -> None:
    envelope = {"event_id": "e", "kind": "alert", "patient_id": "p", "timestamp": "2025-03-03T12:00:00+02:00"}
    row = calculated.only_item(Arrival({**envelope, "body": {"alert_type": "x"}}, publish_us=0))
    assert (row["patient_id"], row["created_at"]) == ("p", at(3, 10))


def test_time_without_offset_is_utc(calculated: Calculation) -> None:
    assert calculated.only_item(alert("2025-03-03T12:00:00"))["created_at"] == at(3)


def test_publish_time_stands_in_for_ts(calculated: Calculation) -> None:
    arrival = event("alert", None, alert_type="x")._replace(publish_us=1_740_960_001_500_000)
    assert calculated.only_item(arrival)["created_at"] == datetime(2025, 3, 3, 0, 0, 1, 500_000, tzinfo=UTC)


def test_repeated_event_counts_once(calculated: Calculation) -> None:
    one = rep(day(3), 0.9)
    assert calculated.only_quality(one, one)["total_reps"] == 1
