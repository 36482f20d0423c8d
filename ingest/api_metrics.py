"""The API's own metrics, for Prometheus. No label holds anything from a request."""

import time

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter("rehab_ingest_requests", "Requests answered.", ("method", "route", "status"))
REQUEST_SECONDS = Histogram(
    "rehab_ingest_request_seconds",
    "Time from a request's head to the end of its answer.",
    ("route",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
EVENTS = Counter("rehab_ingest_events", "Events by the status they were answered with.", ("status",))
PUBLISH_FAILURES = Counter(
    "rehab_ingest_publish_failures", "Messages that a topic has not confirmed.", ("topic", "error")
)
CIRCUIT_OPEN = Gauge("rehab_ingest_circuit_open", "1 while a failed topic is not used.", ("topic",))
QUEUE_ENTRIES = Gauge("rehab_ingest_queue_entries", "Entries on disk that wait for Pub/Sub.")
QUEUE_BYTES = Gauge("rehab_ingest_queue_bytes", "Size of the queue's files.")
DRAINED = Counter("rehab_ingest_drained_messages", "Messages published from the queue.")

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class CountRequests:
    """ASGI middleware that counts and times every request by its route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), "none"

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            # An undeclared path or method could be anything, and each would become a new label.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            REQUESTS.labels(method, route, status).inc()
            REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)
