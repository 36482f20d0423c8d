"""What is too late: docs/contract.md, 4.3. Each example is worked out by hand."""

from tests.support.examples import Calculation, consent, rep, session


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
