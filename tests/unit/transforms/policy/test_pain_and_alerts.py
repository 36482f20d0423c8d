"""Pain and critical alerts: docs/contract.md, 5.2. Each example is worked out by hand."""

import pytest

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


ALERT = ("pain_reported", "alert", "high")
EMERGENCY = ("pain_reported", "emergency", "critical")


@pytest.mark.parametrize(
    ("level", "wanted"), [(3.99, []), (4, [ALERT]), (6.99, [ALERT]), (7, [EMERGENCY]), (10, [EMERGENCY])]
)
@pytest.mark.parametrize("kind", ["session", "feedback", "feedback's content", "alert"])
def test_pain_counts_wherever_it_is_reported(
    calculated: Calculation, kind: str, level: float, wanted: list[tuple[str, str, str]]
) -> None:
    reports = {
        "session": session(day(3), pain_level=level),
        "feedback": event("feedback", day(3), pain_level=level),
        "feedback's content": event("feedback", day(3), content={"pain_level": level}),
        "alert": alert(day(3), pain_level=level),
    }
    assert calculated.fired(reports[kind]) == wanted


@pytest.mark.parametrize("urgency", ["low", "medium", "high", "critical", "urgent"])
def test_only_a_critical_alert_is_an_emergency(calculated: Calculation, urgency: str) -> None:
    emergency = [("critical_alert", "emergency", "critical")]
    assert calculated.fired(alert(day(3), urgency=urgency)) == emergency * (urgency in ("critical", "urgent"))
