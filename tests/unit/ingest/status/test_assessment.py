"""The verdict on a job, and the figures of the last minute."""

from pathlib import Path
from typing import Any

import pytest

from ingest.status.assessment import assess
from ingest.status.local import LocalJob
from ingest.status.metric_names import COUNTERS, DISTRIBUTIONS, names
from ingest.status.model import Status
from ingest.status.monitor import Monitor, Seen
from ingest.status.observer import Job, NoJob, Observation, ObserverError, Subscription
from pipeline.reporting.metrics import BROADWAY, Metrics, Spread

SECOND = 1_000_000
START = 1_800_000_000 * SECOND
SOURCE = LocalJob(Path("unused"))
PRIMARY = Subscription("projects/rehab-local/subscriptions/primary", True, 3, 1.5)


def observation(second: float, *, sizes: tuple[int, int] = (0, 0), **more: Any) -> Observation:
    """At a second after the start; `sizes` are batches and rows of the quality table."""
    counts = {BROADWAY + name.replace("__", "."): more.pop(name) for name in list(more) if "__" in name}
    metrics = Metrics(counts, {BROADWAY + "batch.size.quality": Spread(*sizes)}, START + int(second * SECOND))
    told = Observation(
        Job("rehab", "process 1", "running", "then"), metrics, {"primary": PRIMARY}, {}, None, ()
    )
    return told._replace(**more)


def status(*observations: Observation, after: float = 0.0, failure: str | None = None) -> Status:
    """So many seconds after the last one."""
    seen = Seen()
    for one in observations:
        seen = seen.after(one)
    now_us = observations[-1].metrics.updated_us + int(after * SECOND)
    return assess(seen._replace(failure=failure), SOURCE, now_us)


def verdict(*observations: Observation, **more: Any) -> tuple[str, list[str]]:
    told = status(*observations, **more)
    return told.status, told.reasons


def test_a_job_that_is_well() -> None:
    assert verdict(observation(0), observation(1)) == ("healthy", [])


def test_a_job_that_reports_no_more() -> None:
    assert verdict(observation(0), after=4.9)[0] == "healthy"
    assert verdict(observation(0), after=5.1) == (
        "down",
        ["The job has reported nothing since 2027-01-15T08:00:00Z."],
    )


def test_a_job_that_has_ended() -> None:
    ended = observation(0, stopped="The job ended.", troubles=("BigQuery is out.",))
    assert verdict(ended) == ("down", ["The job ended.", "BigQuery is out."])


def test_what_ails_a_job() -> None:
    assert verdict(observation(0, troubles=("BigQuery is out.",))) == ("degraded", ["BigQuery is out."])
    assert verdict(observation(0), failure="The file cannot be read.") == (
        "degraded",
        ["The file cannot be read."],
    )


def test_subscriptions_that_cannot_be_read() -> None:
    gone = PRIMARY._replace(reachable=False)
    assert verdict(observation(0, subscriptions={"primary": gone})) == (
        "down",
        ["No subscription can be read."],
    )
    assert verdict(observation(0, subscriptions={"primary": gone, "secondary": PRIMARY}))[0] == "healthy"
    # What cannot be told is no reason for alarm.
    unknown = PRIMARY._replace(reachable=None)
    assert verdict(observation(0, subscriptions={"primary": unknown}))[0] == "healthy"


@pytest.mark.parametrize(
    ("age", "timeout_ms", "health"), [(63, 1000, "healthy"), (65, 1000, "degraded"), (65, 2000, "healthy")]
)
def test_a_backlog_that_is_old(age: float, timeout_ms: int, health: str) -> None:
    behind = {"primary": PRIMARY._replace(oldest_seconds=age)}
    found, reasons = verdict(observation(0, subscriptions=behind, config={"batch_timeout_ms": timeout_ms}))
    assert found == health
    assert [f"published {age} s ago" in reason for reason in reasons] == [True] * (health == "degraded")


def test_rows_that_wait_while_none_is_written() -> None:
    waiting = observation(0, row__projected__quality=8, sizes=(1, 5))
    assert verdict(
        waiting, waiting._replace(metrics=waiting.metrics._replace(updated_us=START + 7 * SECOND))
    ) == (
        "degraded",
        ["BigQuery: 3 rows wait to be written, and none was in the last 7 s."],
    )
    assert verdict(waiting, observation(6, row__projected__quality=8, sizes=(1, 5)))[0] == "healthy"
    assert verdict(waiting, observation(9, row__projected__quality=9, sizes=(2, 8)))[0] == "healthy"
    written = observation(0, row__projected__quality=5, sizes=(1, 5))
    assert verdict(written, observation(9, row__projected__quality=6, sizes=(1, 5)))[0] == "healthy"


def test_faults_of_the_last_minute() -> None:
    before = observation(0, event__dead_letter__write_rejected=2)
    after = observation(30, event__dead_letter__write_rejected=5, event__dead_letter__malformed_json=9)
    assert verdict(before, after) == (
        "degraded",
        ["BigQuery refuses rows: 3 more dead letters (write_rejected) in the last minute."],
    )
    assert verdict(
        before, after, after._replace(metrics=after.metrics._replace(updated_us=START + 95 * SECOND))
    ) == (
        "healthy",
        [],
    )


def processed(second: float, count: int) -> Observation:
    return observation(second, event__processed__alert=count)


def test_rates_are_those_of_the_last_minute() -> None:
    told = status(processed(0, 0), processed(30, 600), processed(60, 660), processed(90, 690))
    counter = told.metrics.counters[BROADWAY + "event.processed.alert"]
    assert (counter.total, counter.per_second) == (690, 1.5)
    assert told.metrics.events_per_second == 1.5
    assert (told.target_throughput, told.achieved_throughput) == ("1000 events/sec", "2 events/sec")


def test_one_observation_makes_no_rate() -> None:
    told = status(processed(0, 50))
    assert told.metrics.events_per_second is None
    assert told.achieved_throughput == "0 events/sec"


def test_the_rates_of_a_job_that_is_down_fall_to_nothing() -> None:
    assert status(processed(0, 0), processed(30, 600), after=30).metrics.events_per_second == 10
    assert status(processed(0, 0), processed(30, 600), after=90).metrics.events_per_second == 0


def test_a_job_that_was_started_again_is_another() -> None:
    again = processed(60, 5)._replace(job=Job("rehab", "process 2", "running", "later"))
    told = status(processed(0, 1000), again)
    assert told.metrics.events_per_second is None
    assert told.job
    assert told.job.id == "process 2"


def test_percentiles_are_those_of_the_last_minute() -> None:
    def rows(second: float, **counts: int) -> Observation:
        named: dict[str, Any] = {
            f"event_to_write_ms__le__{name[2:]}": count for name, count in counts.items()
        }
        return observation(second, **named)

    told = status(rows(0, le100=900, le250=900, leinf=900), rows(70, le100=900, le250=1000, leinf=1000))
    assert (told.metrics.event_to_write_ms.p50, told.metrics.event_to_write_ms.p95) == (175, 242.5)


def test_batches_of_all_tables() -> None:
    told = status(observation(0, sizes=(4, 90)))
    assert (told.metrics.batches.count, told.metrics.batches.mean_size) == (4, 22.5)
    assert status(observation(0)).metrics.batches.mean_size is None


def test_what_has_not_counted_yet_is_told_as_nothing() -> None:
    told = status(observation(0))
    assert list(told.metrics.counters) == names(COUNTERS)
    assert {count.total for count in told.metrics.counters.values()} == {0}
    assert set(told.metrics.distributions) == set(names(DISTRIBUTIONS))


def test_no_job() -> None:
    source = NoJob()
    with pytest.raises(ObserverError) as told:
        source.observe()
    found = assess(Seen(failure=str(told.value)), source, START)
    assert (found.status, found.job, found.producers) == ("down", None, {})
    assert found.reasons == [str(told.value)]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"counters": {}, "distributions": {}}'])
def test_a_file_that_is_no_metrics_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ObserverError, match="No job has reported yet"):
        LocalJob(path).observe()
    path.write_text(content)
    with pytest.raises(ObserverError, match="is not the metrics file of a job of this release"):
        LocalJob(path).observe()


def test_a_source_that_fails_is_no_end_of_observing() -> None:
    class Failing(NoJob):
        def observe(self) -> Observation:
            raise ZeroDivisionError("with a patient's name")

    monitor = Monitor(Failing())
    monitor._look()
    assert monitor.seen.failure == "The status could not be observed (ZeroDivisionError)."
