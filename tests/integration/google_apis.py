"""Google's Dataflow and Monitoring APIs on this machine: their answers over the wire."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.cloud import dataflow_v1beta3 as dataflow
from google.cloud.dataflow_v1beta3.services.jobs_v1_beta3.transports import JobsV1Beta3GrpcTransport
from google.cloud.dataflow_v1beta3.services.metrics_v1_beta3.transports import MetricsV1Beta3GrpcTransport
from google.cloud.monitoring_v3 import (
    ListTimeSeriesRequest,
    ListTimeSeriesResponse,
    MetricServiceClient,
    TimeSeries,
)
from google.cloud.monitoring_v3.services.metric_service.transports import MetricServiceGrpcTransport

from ingest.status.dataflow import Clients

_JOBS = "/google.dataflow.v1beta3.JobsV1Beta3/GetJob"
_METRICS = "/google.dataflow.v1beta3.MetricsV1Beta3/GetJobMetrics"
_SERIES = "/google.monitoring.v3.MetricService/ListTimeSeries"


class GoogleApis(grpc.GenericRpcHandler):  # type: ignore[misc]
    """What the APIs know; a test changes it while they run.

    `jobs` by id; `series` by the metric's type and the id that the filter asks for; `refusing` are the
    services that answer PERMISSION_DENIED.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dataflow.Job] = {}
        self.metrics: dict[str, list[dataflow.MetricUpdate]] = {}
        self.series: dict[tuple[str, str], float] = {}
        self.refusing: set[str] = set()
        self.asked: list[Any] = []

    def service(self, details: Any) -> Any:
        method = details.method
        calls: Mapping[str, tuple[Callable[[Any], Any], Any, Any]] = {
            _JOBS: (self._job, dataflow.GetJobRequest, dataflow.Job),
            _METRICS: (self._job_metrics, dataflow.GetJobMetricsRequest, dataflow.JobMetrics),
            _SERIES: (self._time_series, ListTimeSeriesRequest, ListTimeSeriesResponse),
        }
        answer, request_type, answer_type = calls[method]

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.asked.append(request)
            if method in self.refusing:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "a secret of Google's")
            try:
                return answer(request)
            except KeyError:
                context.abort(grpc.StatusCode.NOT_FOUND, "a secret of Google's")

        return grpc.unary_unary_rpc_method_handler(handle, request_type.deserialize, answer_type.serialize)

    def refuse_metrics(self) -> None:
        self.refusing |= {_METRICS, _SERIES}

    def refuse_jobs(self) -> None:
        self.refusing.add(_JOBS)

    def _job(self, request: dataflow.GetJobRequest) -> dataflow.Job:
        job = self.jobs[request.job_id]
        if request.view == dataflow.JobView.JOB_VIEW_SUMMARY:
            summary = dataflow.Job(job)
            del summary.environment
            return summary
        return job

    def _job_metrics(self, request: dataflow.GetJobMetricsRequest) -> dataflow.JobMetrics:
        return dataflow.JobMetrics(metrics=self.metrics.get(request.job_id, []))

    def _time_series(self, request: ListTimeSeriesRequest) -> ListTimeSeriesResponse:
        found = [
            _series(metric, value)
            for (metric, of), value in self.series.items()
            if f'metric.type = "{metric}"' in request.filter and f'"{of}"' in request.filter
        ]
        return ListTimeSeriesResponse(time_series=found)


def _series(metric: str, value: float) -> TimeSeries:
    now = int(time.time())
    # The newest first, as the API has them.
    points = [
        {
            "interval": {"start_time": {"seconds": moment}, "end_time": {"seconds": moment}},
            "value": {"int64_value": n},
        }
        for moment, n in ((now - 120, int(value)), (now - 180, int(value) + 1000))
    ]
    return TimeSeries(metric={"type": metric}, metric_kind="GAUGE", value_type="INT64", points=points)


@contextmanager
def serving(apis: GoogleApis) -> Iterator[Clients]:
    """Serves them; gives clients that are connected to them."""
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((apis,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Clients(
            dataflow.JobsV1Beta3Client(transport=JobsV1Beta3GrpcTransport(channel=channel)),
            dataflow.MetricsV1Beta3Client(transport=MetricsV1Beta3GrpcTransport(channel=channel)),
            MetricServiceClient(transport=MetricServiceGrpcTransport(channel=channel)),
        )
    server.stop(None).wait()


def counted(name: str, value: int, step: str = "s1", **context: str) -> dataflow.MetricUpdate:
    """A counter of ours, as Dataflow lists it."""
    return dataflow.MetricUpdate(name=_named(name, step, context), cumulative=True, scalar=value)


def distributed(name: str, step: str = "s1", **values: int) -> list[dataflow.MetricUpdate]:
    """A distribution of ours: itself, and its parts for Dataflow's pages."""
    whole = dataflow.MetricUpdate(name=_named(name, step, {}), distribution=dict(values))
    parts = [counted(f"{name}_{part.upper()}", value, step) for part, value in values.items()]
    return [whole, *parts]


def _named(name: str, step: str, context: Mapping[str, str]) -> dataflow.MetricStructuredName:
    namespace, short = name.split("/")
    stated = {"namespace": namespace, "step": step, **context}
    return dataflow.MetricStructuredName(origin="user", name=short, context=stated)
