"""The account and the figures that a local run draws from the reports of its job and simulator."""

import json
from pathlib import Path

import pytest

from local.figures import (
    Published,
    Settling,
    account,
    read_metrics,
    read_published,
)
from pipeline.reporting.metrics import BROADWAY, Account, Metrics, Spread

SECOND = 1_000_000


def metrics(updated_us: int = 0, *, written: int = 0, **counts: int) -> Metrics:
    counters = {BROADWAY + name.replace("__", "."): count for name, count in counts.items()}
    return Metrics(counters, {BROADWAY + "batch.size.quality": Spread(1, written)}, updated_us)


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
                "state_bytes": 9,
            }
        )
    )
    made = read_metrics(path)
    assert made == Metrics({"a": 1}, {"b": Spread(2, 7)}, 1_795_478_401_000_000, 9)
    assert made.distributions["b"].mean == 3.5


def test_the_rate_between_two_reports() -> None:
    first = Published(events=100, last_us=10, written_us=1 * SECOND)
    last = Published(events=500, last_us=3 * SECOND, finished=True, written_us=9 * SECOND)
    assert last.rate_since(first) == pytest.approx(200)
    assert last.rate_since(last) is None
