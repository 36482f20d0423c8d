"""The oracle: what it refuses, how it compares, and that what is generated for it reaches every rule."""

import json
from datetime import date, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import alert, at, consent, day, event, rep, session
from tests.support.oracle import (
    Arrival,
    Nudge,
    Options,
    Row,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
)
from tests.support.strategies import arrival_orders, arrival_sets, in_time_order, random_arrivals


def test_what_has_no_defined_result_is_refused() -> None:
    assert expected([rep(day(1, "12:00"), 0.9), rep(day(29, "12:00"), 0.9)]).quality[0]["total_reps"] == 1
    with pytest.raises(ValueError, match="28 days apart"):
        expected([rep(day(1, "12:00"), 0.9), rep(day(29, "12:01"), 0.9)])
    with pytest.raises(ValueError, match="share an item id"):
        expected([alert(day(3), alert_id="a"), event("feedback", day(3), feedback_id="a")])
    with pytest.raises(ValueError, match="text in one event"):
        expected([event("feedback", day(3), feedback_id="f", content=content) for content in ("x", {"x": 1})])
    with pytest.raises(ValueError, match="states none"):
        expected([Arrival({"kind": "alert", "subject_id": "p", "body": {}}, publish_us=0)])


def test_rep_feedback_is_defined_in_the_order_of_time_only() -> None:
    with pytest.raises(ValueError, match="in the order of their ts"):
        expected([rep(day(4), 0.1), rep(day(3), 0.1)], Options(rep_feedback=True))


def test_a_nudge_names_its_occasion() -> None:
    arrivals = [
        session(day(3), session_id="s", overall_quality=0.3),
        session(day(8), pain_level=5, event_id="e"),
    ]
    occasions = {nudge.type: nudge.occasion for nudge in expected(arrivals).nudges}
    # 8 March 2025 is the 20155th day after 1 January 1970.
    assert occasions == {"poor_quality": "s", "pain_reported": "e", "missed_sessions": "20155"}


def test_what_was_found_before_consent_was_revoked_stays_found() -> None:
    result = expected([session(day(3), overall_quality=0.4), consent(day(5), granted=False)])
    assert [nudge.type for nudge in result.nudges] == ["poor_quality"]


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
