"""From observations to the status: the figures of the last minute, and the verdict."""

from collections.abc import Iterator

from ingest.status import model
from ingest.status.metric_names import COUNTERS, DISTRIBUTIONS, is_bucket, names
from ingest.status.monitor import Seen
from ingest.status.observer import Observation, Observer
from pipeline.reporting.metrics import Metrics, Spread
from transforms.times import MICROS, to_rfc3339

TARGET_EVENTS_PER_SECOND = 1000

# A job that keeps up acknowledges within seconds. An older message is a backlog worth reporting.
_OLD_SECONDS = 60.0


def assess(seen: Seen, observer: Observer, now_us: int) -> model.Status:
    """The status at `now_us` (microseconds since the epoch)."""
    newest = seen.observations[-1] if seen.observations else None
    down = list(_down(seen, observer, now_us))
    recent = Recent(seen, is_over=bool(down), now_us=now_us)
    degraded = list(_degraded(seen, observer, recent)) if newest else []
    return model.Status(
        status="down" if down else "degraded" if degraded else "healthy",
        reasons=down + degraded,
        job=_job(newest) if newest else None,
        producers=_producers(newest, observer.measured) if newest else {},
        metrics=_metrics(recent),
        config=dict(newest.config) if newest else {},
        target_throughput=_throughput(TARGET_EVENTS_PER_SECOND),
        achieved_throughput=_throughput(recent.rate(recent.now.events, recent.then.events) or 0),
    )


class Recent:
    """The metrics `now` and those about a minute earlier, `then`, and the seconds between them."""

    def __init__(self, seen: Seen, *, is_over: bool, now_us: int) -> None:
        """For a job that `is_over`, the interval extends to `now_us`, so that its rates fall to 0."""
        known = [observation.metrics for observation in seen.observations] or [Metrics()]
        self.now = known[-1]
        upto_us = now_us if is_over else self.now.updated_us
        past = [metrics for metrics in known if metrics.updated_us <= upto_us - 60 * MICROS]
        self.then = past[-1] if past else known[0]
        self.seconds = (upto_us - self.then.updated_us) / MICROS if self.then.updated_us else 0.0

    def rate(self, now: float, then: float) -> float | None:
        """The increase per second; None while there is nothing to compare with."""
        return round((now - then) / self.seconds, 2) if self.seconds > 0 else None


def _down(seen: Seen, observer: Observer, now_us: int) -> Iterator[str]:
    if not seen.observations:
        yield seen.failure or "The job has not been looked for yet."
        return
    newest = seen.observations[-1]
    if newest.stopped:
        yield newest.stopped
    elif now_us - newest.metrics.updated_us > observer.fresh_seconds * MICROS:
        yield f"The job has reported nothing since {to_rfc3339(newest.metrics.updated_us)}."
    elif newest.subscriptions and not any(s.reachable is not False for s in newest.subscriptions.values()):
        yield "No subscription can be read."


def _degraded(seen: Seen, observer: Observer, recent: Recent) -> Iterator[str]:
    newest = seen.observations[-1]
    if seen.failure:
        yield seen.failure
    yield from newest.troubles
    yield from _backlog(newest)
    yield from _unwritten(seen, observer)
    yield from _faults(recent)


def _backlog(newest: Observation) -> Iterator[str]:
    limit = _OLD_SECONDS + 4 * _batch_seconds(newest)
    for role, subscription in newest.subscriptions.items():
        if (age := subscription.oldest_seconds or 0) > limit:
            yield (
                f"The pipeline is behind: the oldest message of the {role} subscription that is not"
                f" acknowledged was published {age:.0f} s ago."
            )
    if (lag := newest.job.system_lag_seconds or 0) > limit:
        yield f"The pipeline is behind: an element has waited for {lag:.0f} s in the job."


def _unwritten(seen: Seen, observer: Observer) -> Iterator[str]:
    """Rows have waited longer than a batch may take, and none has been written."""
    newest = seen.observations[-1]
    patience = observer.fresh_seconds + 2 * _batch_seconds(newest)
    since_us = newest.metrics.updated_us - patience * MICROS
    before = [earlier.metrics for earlier in seen.observations if earlier.metrics.updated_us <= since_us]
    if (
        before
        and (rows := sum(before[-1].unwritten.values()))
        and before[-1].written == newest.metrics.written
    ):
        yield f"BigQuery: {rows} rows wait to be written, and none was in the last {patience:.0f} s."


def _faults(recent: Recent) -> Iterator[str]:
    before = recent.then.faults
    for reason, count in recent.now.faults.items():
        if more := count - before.get(reason, 0):
            yield f"{_FAULTS[reason]}: {more} more dead letters ({reason}) in the last minute."


_FAULTS = {"write_rejected": "BigQuery refuses rows", "projection_failed": "A projection fails"}


def _batch_seconds(observation: Observation) -> float:
    return float(observation.config.get("batch_timeout_ms", 1000)) / 1000


def _job(observation: Observation) -> model.JobStatus:
    return model.JobStatus(
        **observation.job._asdict(), observed_at=to_rfc3339(observation.metrics.updated_us)
    )


def _producers(observation: Observation, measured: str) -> dict[str, model.Producer]:
    return {
        role: model.Producer(
            subscription=subscription.path,
            reachable=subscription.reachable,
            backlog=subscription.backlog,
            oldest_unacknowledged_seconds=subscription.oldest_seconds,
            measured=measured,
        )
        for role, subscription in observation.subscriptions.items()
    }


def _metrics(recent: Recent) -> model.Metrics:
    now, then = recent.now, recent.then
    counted = (name for name in now.counters if not is_bucket(name))
    batches = list(now.batches.values())
    together = Spread(sum(batch.number for batch in batches), sum(batch.sum for batch in batches))
    return model.Metrics(
        counters={
            name: model.Count(
                total=now.counter(name),
                per_second=recent.rate(now.counter(name), then.counter(name)),
            )
            for name in dict.fromkeys((*names(COUNTERS), *counted))
        },
        distributions={
            name: _distribution(now.distributions.get(name, Spread(0, 0)))
            for name in dict.fromkeys((*names(DISTRIBUTIONS), *now.distributions))
        },
        event_to_write_ms=model.Latency(
            p50=_rounded(now.latency(0.50, since=then)), p95=_rounded(now.latency(0.95, since=then))
        ),
        batches=model.Batches(count=together.number, mean_size=_rounded(together.mean)),
        events_per_second=recent.rate(now.events, then.events),
    )


def _distribution(spread: Spread) -> model.Distribution:
    return model.Distribution(count=spread.number, mean=_rounded(spread.mean))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _throughput(events_per_second: float) -> str:
    return f"{events_per_second:.0f} events/sec"
