"""Google clients, one per process, service and endpoint.

They use an emulator, without credentials, if `PUBSUB_EMULATOR_HOST` (host:port) or `BIGQUERY_EMULATOR_HOST`
(URL or host:port) is set; otherwise the cloud.
"""

import os
import threading
from functools import cache

import grpc
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import TransportError
from google.cloud.bigquery import Client as BigQueryClient
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.types import (
    BatchSettings,
    LimitExceededBehavior,
    PublisherOptions,
    PublishFlowControl,
)
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

# Errors after which to retry a request to Pub/Sub. The client itself retries only some of its calls.
PUBSUB_TRANSIENT = (
    exceptions.Aborted,
    # A server that shuts down cancels its open calls.
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ServiceUnavailable,
    exceptions.TooManyRequests,
    exceptions.Unknown,
    TransportError,
)

# A request carries at most 1,000 messages and 10 MB. At thousands of events a second, 500 arrive within the
# latency bound, and half the byte limit leaves room for one message of the largest size.
_BATCHES = BatchSettings(max_messages=500, max_bytes=4_000_000, max_latency=0.02)

# A publisher that outruns Pub/Sub blocks, instead of filling memory with unsent messages.
_FLOW = PublishFlowControl(
    message_limit=20_000,
    byte_limit=64_000_000,
    limit_exceeded_behavior=LimitExceededBehavior.BLOCK,
)

# `cache` alone lets two threads make a client at the same time.
_lock = threading.Lock()


def publisher() -> PublisherClient:
    """The process's Pub/Sub publisher; it batches, and blocks while too much is unsent."""
    with _lock:
        return _publisher(os.environ.get("PUBSUB_EMULATOR_HOST"))


def subscriber() -> SubscriberClient:
    """The process's Pub/Sub subscriber."""
    with _lock:
        return _subscriber(os.environ.get("PUBSUB_EMULATOR_HOST"))


def bigquery(project: str) -> BigQueryClient:
    """The process's BigQuery client whose jobs run in `project`."""
    with _lock:
        return _bigquery(project, os.environ.get("BIGQUERY_EMULATOR_HOST"))


# The endpoint is an argument to make it part of the cache key; the publisher client reads the variable
# itself.
@cache
def _publisher(_emulator: str | None) -> PublisherClient:
    return PublisherClient(batch_settings=_BATCHES, publisher_options=PublisherOptions(flow_control=_FLOW))


@cache
def _subscriber(emulator: str | None) -> SubscriberClient:
    if not emulator:
        return SubscriberClient()
    # A pull may return 10 MB, but the client's own channel to an emulator accepts 4. And a restarted emulator
    # is found at once.
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 1000)]
    channel = grpc.insecure_channel(emulator, options=options)
    return SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))


@cache
def _bigquery(project: str, emulator: str | None) -> BigQueryClient:
    if not emulator:
        return BigQueryClient(project=project)
    endpoint = emulator if "://" in emulator else f"http://{emulator}"
    return BigQueryClient(
        project=project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": endpoint},
    )
