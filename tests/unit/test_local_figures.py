"""The account and the figures that a local run draws from the reports of its job and simulator."""

import json
from pathlib import Path

import pytest

from pipeline.local.figures import (
    BROADWAY,
    POLICY,
    Account,
    Metrics,
    Published,
    Settling,
    Spread,
    account,
    read_metrics,
    read_published,
)
from transforms import telemetry

SECOND = 1_000_000


def metrics(updated_us: int = 0, *, written: int = 0, **counts: int) -> Metrics:
    counters = {BROADWAY + name.replace("__", "."): count for name, count in counts.items()}
    return Metrics(counters, {BROADWAY + "batch.size.quality": Spread(1, written)}, updated_us)


def test_the_names_are_those_of_the_job() -> None:
    assert (BROADWAY, POLICY) == (telemetry.BROADWAY + ".", telemetry.POLICY + ".")


def test_the_account_of_every_outcome() -> None:
    made = metrics(
        event__processed__consent=3,
        event__processed__alert=4,
        event__duplicate=2,
        event__withheld=1,
        event__too_late=5,
        event__dead_letter__malformed_json=6,
        event__dead_letter__projection_failed=1,
        # Its event was processed before: it must not count twice.
        event__dead_letter__write_rejected=9,
    )
    sums = account(Published(events=25), made)
    assert sums == Account(25, 7, 2, 1, 5, 7)
    assert (sums.accounted, sums.open) == (22, 3)
    assert made.faults == {"projection_failed": 1, "write_rejected": 9}


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


def test_settled_is_what_has_stayed_balanced() -> None:
    settling = Settling(2 * SECOND)
    done = Published(events=1, finished=True)
    counts = {"event__processed__alert": 1, "row__projected__quality": 1}
    assert settling.update(Published(events=1), metrics(1 * SECOND, written=1, **counts)) is None
    assert settling.update(done, metrics(2 * SECOND, **counts)) is None
    assert settling.update(done, metrics(3 * SECOND, written=1, **counts)) is None
    # A row that comes late makes what looked like the end none.
    counts["row__projected__quality"] = 2
    assert settling.update(done, metrics(4 * SECOND, written=1, **counts)) is None
    assert settling.update(done, metrics(5 * SECOND, written=2, **counts)) is None
    assert settling.update(done, metrics(6 * SECOND, written=2, **counts)) is None
    assert settling.update(done, metrics(7 * SECOND, written=2, **counts)) == 5 * SECOND


def test_never_settled_with_an_event_missing() -> None:
    settling = Settling(2 * SECOND)
    for second in range(1, 10):
        made = metrics(second * SECOND, event__processed__alert=1)
        assert settling.update(Published(events=2, finished=True), made) is None


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


def test_reading_reports(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert read_published(path) == Published()
    assert read_metrics(path) == Metrics()

    path.write_text(
        json.dumps({"published": 5, "bad": 1, "last_publish": "2026-11-24T00:00:01.5Z", "finished": True})
    )
    published = read_published(path)
    assert published[:2] == (5, 1)
    assert published.finished
    assert published.last_us == 1_795_478_401_500_000

    path.write_text(
        json.dumps(
            {
                "counters": {"a": 1},
                "distributions": {"b": {"count": 2, "sum": 7, "min": 3, "max": 4}},
                "updated_at": "2026-11-24T00:00:01Z",
            }
        )
    )
    made = read_metrics(path)
    assert made == Metrics({"a": 1}, {"b": Spread(2, 7)}, 1_795_478_401_000_000)
    assert made.distributions["b"].mean == 3.5


def test_the_rate_between_two_reports() -> None:
    first = Published(events=100, last_us=10, written_us=1 * SECOND)
    last = Published(events=500, last_us=3 * SECOND, finished=True, written_us=9 * SECOND)
    assert last.rate_since(first) == pytest.approx(200)
    assert last.rate_since(last) is None
