"""What a job counts, as it is told to those who watch."""

import pytest

from pipeline.reporting.metrics import BROADWAY, POLICY, Metrics, Spread
from transforms.steps import telemetry


def test_the_names_are_those_of_the_job() -> None:
    assert (BROADWAY, POLICY) == (telemetry.BROADWAY + ".", telemetry.POLICY + ".")


def test_rows_and_nudges() -> None:
    made = Metrics(
        {
            BROADWAY + "row.projected.quality": 7,
            BROADWAY + "row.projected.adherence": 2,
            POLICY + "nudge.generated.short_session": 1,
            POLICY + "nudge.generated.quality_reminder": 2,
            POLICY + "emergency.generated.pain_reported": 4,
        },
        {BROADWAY + "batch.size.quality": Spread(2, 5), BROADWAY + "batch.size.adherence": Spread(1, 2)},
    )
    assert made.written == {"quality": 5, "adherence": 2}
    assert made.unwritten == {"quality": 2}
    assert made.nudges == {"nudge": 3, "emergency": 4}


def latencies(**counts: int) -> Metrics:
    return Metrics({f"{BROADWAY}event_to_write_ms.le.{name[2:]}": count for name, count in counts.items()})


def test_latency_is_interpolated_between_bounds() -> None:
    made = latencies(le100=10, le250=60, le500=100, leinf=100)
    assert made.latency(0.05) == pytest.approx(50)
    assert made.latency(0.5) == pytest.approx(220)
    assert made.latency(0.8) == pytest.approx(375)
    assert made.latency(1.0) == pytest.approx(500)


def test_latency_since_an_earlier_look() -> None:
    earlier, later = latencies(le100=90, le250=90, leinf=90), latencies(le100=90, le250=100, leinf=100)
    assert later.latency(0.5, since=earlier) == pytest.approx(175)
    assert later.latency(0.5, since=later) is None


def test_latency_at_the_ends() -> None:
    assert Metrics().latency(0.5) is None
    assert latencies(le100=0, le250=0, leinf=4).latency(0.5) == 250
    # A bound that no row has come under yet has no counter.
    assert latencies(le250=4, leinf=4).latency(1.0) == 250
