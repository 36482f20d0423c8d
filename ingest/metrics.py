"""GET /metrics: the pipeline's metrics and the API's own, in Prometheus's format.

Names are the job's, with underscores for dots. Label values come from closed lists only.
"""

from collections.abc import Iterable, Iterator

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ingest.status.metric_names import COUNTERS, DISTRIBUTIONS, Family
from ingest.status.model import Status
from ingest.status.monitor import Monitor
from ingest.status.router import current
from pipeline.reporting.metrics import LATENCY, Metrics, Spread

_LATENCY_DISTRIBUTION = LATENCY.removesuffix(".le")


class _Pipeline(Collector):
    """What is known about the job at the time of the scrape."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def collect(self) -> Iterable[Metric]:
        monitor: Monitor = self._app.state.monitor
        yield from _status(current(self._app))
        if monitor.seen.observations:
            metrics = monitor.seen.observations[-1].metrics
            yield from (_counter(family, metrics) for family in COUNTERS)
            yield from (_distribution(family, metrics) for family in DISTRIBUTIONS)


class _Api(Collector):
    """The API's own metrics."""

    def collect(self) -> Iterable[Metric]:
        return REGISTRY.collect()


def install(app: FastAPI) -> None:
    """Adds the route. Like the health checks it needs no token: it reveals nothing about a patient."""
    registry = CollectorRegistry()
    registry.register(_Pipeline(app))
    registry.register(_Api())

    @app.get(
        "/metrics", summary="Metrics for Prometheus", tags=["operation"], response_class=PlainTextResponse
    )
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _status(status: Status) -> Iterator[Metric]:
    health = GaugeMetricFamily(
        "rehab_tracking_pipeline_status",
        "1 for the pipeline's current status, 0 for the others.",
        labels=["status"],
    )
    for state in ("healthy", "degraded", "down"):
        health.add_metric([state], float(state == status.status))
    yield health
    producers = status.producers.items()
    gauges: dict[str, tuple[str, dict[str, float | None]]] = {
        "reachable": ("1 if the subscription can be read.", {role: p.reachable for role, p in producers}),
        "backlog": ("Unacknowledged messages.", {role: p.backlog for role, p in producers}),
        "oldest_unacknowledged_seconds": (
            "Age of the oldest unacknowledged message.",
            {role: p.oldest_unacknowledged_seconds for role, p in producers},
        ),
    }
    for name, (meaning, values) in gauges.items():
        gauge = GaugeMetricFamily(f"rehab_tracking_subscription_{name}", meaning, labels=["role"])
        for role, value in values.items():
            if value is not None:
                gauge.add_metric([role], float(value))
        yield gauge


def _counter(family: Family, metrics: Metrics) -> Metric:
    counter = CounterMetricFamily(_name(family), f"{family.name} of the job.", labels=_labels(family))
    for value, name in family.members.items():
        counter.add_metric([value] if family.label else [], metrics.counter(name))
    return counter


def _distribution(family: Family, metrics: Metrics) -> Metric:
    name, meaning = _name(family), f"{family.name} of the job."
    if family.name == _LATENCY_DISTRIBUTION:
        spread = metrics.distributions.get(family.name, Spread(0, 0))
        bounds = metrics.by(LATENCY)
        total = bounds.pop("inf", 0)
        buckets = [(f"{bound}.0", bounds[str(bound)]) for bound in sorted(map(int, bounds))]
        return HistogramMetricFamily(name, meaning, buckets=[*buckets, ("+Inf", total)], sum_value=spread.sum)
    summary = SummaryMetricFamily(name, meaning, labels=_labels(family))
    for value, member in family.members.items():
        spread = metrics.distributions.get(member, Spread(0, 0))
        summary.add_metric([value] if family.label else [], spread.number, spread.sum)
    return summary


def _name(family: Family) -> str:
    return family.name.replace(".", "_")


def _labels(family: Family) -> list[str]:
    return [family.label] if family.label else []
