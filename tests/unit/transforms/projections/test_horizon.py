"""What is too late: docs/contract.md, 4.3. Each example is worked out by hand."""

from datetime import timedelta

import pytest

from tests.support.examples import Calculation, alert, at, consent, day, event, rep, session
from tests.support.oracle import Arrival


def test_too_late_is_more_than_28_days_before_the_newest_known_then(calculated: Calculation) -> None:
    first, second, third = (session(f"2025-{month}T12:00:00Z") for month in ("01-01", "01-29", "02-27"))
    names = [each.envelope["event_id"] for each in (first, second, third)]
    assert calculated.too_late([[first], [second], [third]]) == set()
    assert calculated.too_late([[third, first, second]]) == {names[0], names[1]}
    assert calculated.too_late([[first, second], [third]]) == set()
    assert calculated.too_late([[third], [second]]) == {names[1]}
    other = session("2025-03-30T12:00:00Z", patient="q")
    assert calculated.too_late([[first, second, other]]) == set()
    begun = session("2025-02-27T12:00:00Z", start_time="2025-01-29T12:00:00Z")
    assert calculated.too_late([[first, begun]]) == set()
    assert calculated.too_late([[third, begun]]) == {begun.envelope["event_id"]}
    assert calculated.too_late([[first, third, consent("2025-01-30T00:00:00Z", "revoked")]]) == {names[0]}
    assert calculated.too_late([[first, second, rep("2025-02-27T12:00:00Z", 0.9)]]) == set()


@pytest.mark.parametrize(("early", "is_too_late"), [(timedelta(0), False), (timedelta(microseconds=1), True)])
@pytest.mark.parametrize("kind", ["session", "rep", "alert", "feedback"])
def test_an_event_exactly_28_days_old_still_counts(
    calculated: Calculation, kind: str, early: timedelta, is_too_late: bool
) -> None:
    def of_kind(ts: str) -> Arrival:
        return {
            "session": session(ts),
            "rep": rep(ts, 0.9),
            "alert": alert(ts),
            "feedback": event("feedback", ts),
        }[kind]

    newest, old = of_kind(day(31)), of_kind((at(3) - early).isoformat())
    assert calculated.too_late([[newest], [old]]) == ({old.envelope["event_id"]} if is_too_late else set())
    assert calculated.too_late([[old, newest]]) == ({old.envelope["event_id"]} if is_too_late else set())
    assert calculated.too_late([[old], [newest]]) == set()
