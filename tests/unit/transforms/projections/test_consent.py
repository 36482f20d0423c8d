"""Consent: docs/contract.md, 4.7. Each example is worked out by hand."""

from datetime import timedelta

import pytest

from tests.support.examples import Calculation, alert, at, consent, day, rep, session
from tests.support.oracle import Options, Row


def test_revoked_consent_withholds_what_comes_after_it(calculated: Calculation) -> None:
    arrivals = [
        session(day(3), event_id="before"),
        session(day(5), event_id="at once"),
        session(day(6), event_id="between"),
        session(day(8), event_id="after"),
        consent(day(5), "revoked"),
        consent(day(7), granted=True),
    ]
    result = calculated.expected(arrivals)
    assert result.withheld == {"at once", "between"}
    assert result.adherence[0]["completed_sessions"] == 2
    assert result.adherence[0]["consent_status"] == "granted"


def test_revoked_consent_hides_every_row(calculated: Calculation) -> None:
    arrivals = [session(day(3), overall_quality=0.4), alert(day(3)), rep(day(3), 0.9)]
    result = calculated.expected([*arrivals, consent(day(5), granted=False)])
    assert (result.adherence, result.quality, result.work_queue) == ([], [], [])
    assert result.withheld == frozenset()


def test_withheld_events_do_not_nudge(calculated: Calculation) -> None:
    arrivals = [session(day(6), pain_level=9), consent(day(5), "revoked"), consent(day(7), "granted")]
    assert calculated.fired(*arrivals) == []


def test_effective_from_goes_before_ts(calculated: Calculation) -> None:
    arrivals = [
        session(day(6)),
        consent(day(20), "revoked", effective_from=day(5)),
        consent(day(4), "granted"),
    ]
    assert len(calculated.expected(arrivals).withheld) == 1


def test_newest_of_two_consents_effective_at_once_is_by_ts(calculated: Calculation) -> None:
    revoked = consent(day(4), "revoked", effective_from=day(5))
    granted = consent(day(3), "granted", effective_from=day(5))
    assert len(calculated.expected([session(day(6)), revoked, granted]).withheld) == 1


def test_consent_expires(calculated: Calculation) -> None:
    granted = consent(day(3), "granted", expires_at=day(6))
    renewed = consent(day(9), "granted", expires_at="2125-01-01T00:00:00Z")
    arrivals = [session(day(5, "11:59")), session(day(6)), session(day(7)), granted]
    assert len(calculated.expected(arrivals).withheld) == 2
    assert calculated.expected(arrivals).adherence == []
    assert calculated.week([*arrivals, renewed])["consent_status"] == "granted"


def test_hidden_as_of_now(calculated: Calculation) -> None:
    arrivals = [session(day(5)), consent(day(3), "granted", expires_at=day(20))]
    assert calculated.week(arrivals, options=Options(now=at(19)))["consent_status"] == "granted"
    assert calculated.expected(arrivals, Options(now=at(20))).adherence == []


def test_consent_that_is_not_yet_effective_changes_nothing(calculated: Calculation) -> None:
    arrivals = [
        session(day(5)),
        consent(day(6), "granted"),
        consent(day(6), "revoked", effective_from=day(20)),
    ]
    assert calculated.week(arrivals, options=Options(now=at(10)))["consent_status"] == "granted"


@pytest.mark.parametrize("status", ["pending", None])
def test_unknown_consent(calculated: Calculation, status: str | None) -> None:
    arrivals = [session(day(5)), *([consent(day(3), status)] if status else [])]
    assert calculated.week(arrivals)["consent_status"] == "unknown"
    assert len(calculated.expected(arrivals, Options(consent="require")).withheld) == 1


def test_require_allows_what_is_granted(calculated: Calculation) -> None:
    arrivals = [session(day(5)), consent(day(4), "granted")]
    assert calculated.expected(arrivals, Options(consent="require")).withheld == frozenset()


def test_consent_of_another_type_is_no_matter(calculated: Calculation) -> None:
    row = calculated.week([session(day(5)), consent(day(3), "revoked", consent_type="research")])
    assert row["consent_status"] == "unknown"


def test_consent_off(calculated: Calculation) -> None:
    arrivals = [session(day(5)), consent(day(3), "revoked")]
    result = calculated.expected(arrivals, Options(consent="off"))
    assert result.withheld == frozenset()
    assert result.adherence[0]["visible"] is True


@pytest.mark.parametrize(
    ("ts", "is_withheld"), [("2025-03-05T11:59:59.999999Z", False), (day(5), True), (day(6), True)]
)
@pytest.mark.parametrize(
    "change", [{"status": "revoked"}, {"status": "granted", "expires_at": day(5), "effective_from": day(1)}]
)
def test_an_event_is_withheld_from_exactly_when_consent_ends(
    calculated: Calculation, ts: str, is_withheld: bool, change: Row
) -> None:
    result = calculated.expected([session(ts, event_id="e"), consent(day(5), **change)])
    assert result.withheld == ({"e"} if is_withheld else set())


@pytest.mark.parametrize(("second", "is_shown"), [(59, True), (60, False)])
def test_rows_are_hidden_from_exactly_when_consent_expires(
    calculated: Calculation, second: int, is_shown: bool
) -> None:
    arrivals = [session(day(5)), consent(day(3), "granted", expires_at=day(20))]
    now = at(20, 11, 59) + timedelta(seconds=second)
    assert bool(calculated.expected(arrivals, Options(now=now)).adherence) is is_shown


@pytest.mark.parametrize(("ts", "is_withheld"), [(day(4, "11:59"), True), (day(4), False)])
def test_require_admits_from_exactly_when_consent_is_granted(
    calculated: Calculation, ts: str, is_withheld: bool
) -> None:
    arrivals = [session(ts), consent(day(4), "granted")]
    assert len(calculated.expected(arrivals, Options(consent="require")).withheld) == is_withheld
