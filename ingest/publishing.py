"""Publishes to Pub/Sub: to the primary topic, and to the secondary one while the primary fails."""

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pybreaker
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud.pubsub_v1 import PublisherClient
from google.cloud.pubsub_v1.publisher.exceptions import FlowControlLimitError
from google.cloud.pubsub_v1.types import (
    BatchSettings,
    LimitExceededBehavior,
    PublisherOptions,
    PublishFlowControl,
)
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from ingest import api_metrics
from ingest.intake import Outgoing
from ingest.settings import ApiSettings

_LOGGER = logging.getLogger(__name__)

# Messages of concurrent requests are published together; one waits up to `max_latency` for others.
_BATCHES = BatchSettings(max_messages=500, max_bytes=4_000_000, max_latency=0.02)

# When Pub/Sub is too slow, messages go to disk instead of filling the memory.
_FLOW = PublishFlowControl(
    message_limit=20_000, byte_limit=64_000_000, limit_exceeded_behavior=LimitExceededBehavior.ERROR
)

# gRPC's default is to wait up to two minutes before it reconnects.
_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

# Consecutive failures that open the circuit. A failed request counts once for each message in it.
_FAILURES = 3


class NotPublishedError(Exception):
    """Neither topic has confirmed the message, though one may have received it."""


class Publisher:
    """Publishes to the first of the two topics that confirms."""

    def __init__(self, settings: ApiSettings) -> None:
        """Raises GoogleAuthError without Google Cloud credentials."""
        self._client = PublisherClient(
            batch_settings=_BATCHES,
            # No retries: the other topic is the retry, and then the disk.
            publisher_options=PublisherOptions(
                flow_control=_FLOW, retry=None, timeout=settings.publish_timeout_seconds
            ),
            transport=_transport(),
        )
        self._topics = [
            _Topic(self._client, role, path, settings.probe_after_seconds)
            for role, path in (("primary", settings.primary_topic), ("secondary", settings.secondary_topic))
        ]

    async def publish(self, message: Outgoing) -> str:
        """Publishes the message and returns its id. Raises NotPublishedError."""
        for topic in self._topics:
            try:
                return await topic.publish(message)
            except (GoogleAPIError, GoogleAuthError, FlowControlLimitError, pybreaker.CircuitBreakerError):
                continue
        raise NotPublishedError

    def circuits(self) -> dict[str, str]:
        """The state of each topic's circuit: closed while it works, open, half-open."""
        return {topic.role: topic.state for topic in self._topics}

    def may_take(self) -> bool:
        """Whether a topic is believed to work, or is due to be tried again."""
        return any(topic.may_take for topic in self._topics)

    def close(self) -> None:
        """Sends the messages that still wait for their batch."""
        self._client.stop()


class _Topic:
    """One topic behind a circuit breaker."""

    def __init__(self, client: PublisherClient, role: str, path: str, probe_after_seconds: float) -> None:
        self.role = role
        self._client = client
        self._path = path
        self._pause = timedelta(seconds=probe_after_seconds)
        self._storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=_FAILURES,
            reset_timeout=probe_after_seconds,
            # A full buffer in this process says nothing about the topic.
            exclude=[FlowControlLimitError],
            listeners=[_Report(role)],
            state_storage=self._storage,
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> str:
        return self._breaker.current_state

    @property
    def may_take(self) -> bool:
        opened_at = self._storage.opened_at
        if self.state == pybreaker.STATE_OPEN and opened_at:
            return datetime.now(UTC) >= opened_at + self._pause
        return self.state == pybreaker.STATE_CLOSED

    async def publish(self, message: Outgoing) -> str:
        if self.state == pybreaker.STATE_HALF_OPEN:
            # Another message is already trying the topic; this one need not wait for the result.
            raise pybreaker.CircuitBreakerError
        with self._breaker.calling():
            # The client's signature mixes its own keyword arguments with the attributes.
            attributes: Any = message.attributes
            future = self._client.publish(self._path, message.payload, **attributes)
            return await asyncio.wrap_future(future)


class _Report(pybreaker.CircuitBreakerListener):
    """Logs and counts a circuit's changes and failures."""

    def __init__(self, role: str) -> None:
        self._role = role
        api_metrics.CIRCUIT_OPEN.labels(role).set(0)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        api_metrics.CIRCUIT_OPEN.labels(self._role).set(new_state.name != pybreaker.STATE_CLOSED)
        if new_state.name == pybreaker.STATE_CLOSED:
            _LOGGER.info("The %s topic takes events again.", self._role)
        elif old_state.name == pybreaker.STATE_CLOSED:
            _LOGGER.warning("The %s topic does not take events.", self._role)

    def failure(self, cb: Any, exc: BaseException) -> None:
        api_metrics.PUBLISH_FAILURES.labels(self._role, type(exc).__name__).inc()


def _transport() -> PublisherGrpcTransport:
    if emulator := os.environ.get("PUBSUB_EMULATOR_HOST"):
        return PublisherGrpcTransport(channel=grpc.insecure_channel(emulator, options=_RECONNECT))

    def channel(*args: Any, options: list[tuple[str, int]], **more: Any) -> grpc.Channel:
        return PublisherGrpcTransport.create_channel(*args, options=[*options, *_RECONNECT], **more)

    return PublisherGrpcTransport(channel=channel)
