"""Pain and critical alerts: docs/contract.md, 5.2. Each example is worked out by hand."""

from tests.support.examples import Calculation, alert, at, day, event, session


def test_pain(calculated: Calculation) -> None:
    assert calculated.fired(session(day(3), pain_level=3.9)) == []
    assert calculated.fired(session(day(3), pain_level=4)) == [("pain_reported", "alert", "high")]
    assert calculated.fired(event("feedback", day(3), pain_level=6.9)) == [("pain_reported", "alert", "high")]
    assert calculated.fired(event("feedback", day(3), pain_level=7)) == [
        ("pain_reported", "emergency", "critical")
    ]


def test_pain_is_per_event(calculated: Calculation) -> None:
    arrivals = [session(day(number), session_id="s", pain_level=5) for number in (3, 4)]
    assert calculated.item_times("pain_reported", *arrivals) == [at(3), at(4)]


def test_critical_alert_is_once_per_alert(calculated: Calculation) -> None:
    arrivals = [
        alert(day(5), alert_id="a", urgency="urgent"),
        alert(day(4), alert_id="a", severity="critical"),
        alert(day(3), alert_id="a", priority="high"),
        alert(day(6), alert_id="b"),
    ]
    assert calculated.fired(*arrivals) == [("critical_alert", "emergency", "critical")]
    assert calculated.item_times("critical_alert", *arrivals) == [at(4)]
