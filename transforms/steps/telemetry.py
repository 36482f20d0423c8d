"""The metrics of the pipeline, named after the original system's telemetry events.

A metric's full name is its namespace, a dot and its name; where docs/contract.md, 6 says "by", a dot and
the kind, reason, table or type follow. These come from closed lists: no name contains anything else from an
event.
"""

from functools import cache

from apache_beam.metrics.metric import Metrics

BROADWAY = "rehab_tracking.broadway"
POLICY = "rehab_tracking.policy"

LATENCY_BOUNDS_MS = (100, 250, 500, 750, 1000, 1250, 1500, 2000, 3000, 5000, 10000, 30000)


@cache
def _counter(namespace: str, name: str) -> Metrics.DelegatingCounter:
    return Metrics.counter(namespace, name)


@cache
def _distribution(name: str) -> Metrics.DelegatingDistribution:
    return Metrics.distribution(BROADWAY, name)


def count(name: str, amount: int = 1, namespace: str = BROADWAY) -> None:
    """Adds to a counter."""
    _counter(namespace, name).inc(amount)


def observe(name: str, value: int) -> None:
    """Adds one value to a distribution."""
    _distribution(name).update(value)


def observe_latency(milliseconds: int) -> None:
    """Records a row's latency from publish to write.

    Beam's distributions have no percentiles, so cumulative counters by upper bound complement them.
    """
    observe("event_to_write_ms", milliseconds)
    for bound in LATENCY_BOUNDS_MS:
        if milliseconds <= bound:
            count(f"event_to_write_ms.le.{bound}")
    count("event_to_write_ms.le.inf")
