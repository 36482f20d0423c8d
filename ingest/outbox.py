"""Delivers events to Pub/Sub or, where there is a durable disk, to the queue until Pub/Sub accepts them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ingest import api_metrics
from ingest.intake import Outgoing
from ingest.publishing import NotPublishedError, Publisher
from ingest.spool import Spool, SpoolDiskError

_LOGGER = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_DISK_RETRY_SECONDS = 1.0
_DRAIN_MESSAGES = 500


class Outbox:
    """Delivers messages, and drains the queue while it runs.

    Messages may overtake each other: while the queue drains, new ones go straight to Pub/Sub. The
    projections do not depend on the order.
    """

    def __init__(self, publisher: Publisher, spool: Spool | None) -> None:
        """Without a spool there is no queue."""
        self._publisher = publisher
        self._spool = spool
        self._drain: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts draining what an earlier process left behind."""
        if self._spool:
            self._drain = asyncio.create_task(self._keep_draining(self._spool))

    async def stop(self) -> None:
        """Stops draining. Unpublished messages stay in the queue."""
        if self._drain:
            self._drain.cancel()
            await asyncio.wait([self._drain])
        await asyncio.to_thread(self._publisher.close)
        if self._spool:
            await self._spool.close()

    async def deliver(self, message: Outgoing) -> str | None:
        """Returns once the message is safe: its id, or null if it is queued.

        Raises SpoolFullError or SpoolDiskError if neither Pub/Sub nor the disk accepts it, NotPublishedError
        if Pub/Sub does not and there is no queue.
        """
        try:
            return await self._publisher.publish(message)
        except NotPublishedError:
            if not self._spool:
                raise
            await self._spool.put(message)
            return None

    def is_ready(self) -> bool:
        """Whether events are accepted."""
        if not self._spool:
            # Only an event can find out that a topic works again, so report ready when a try is due.
            return self._publisher.may_take()
        return not self._spool.is_full or "closed" in self._publisher.circuits().values()

    def readiness(self) -> dict[str, str]:
        """Each topic's circuit, and the queue: `empty`, `waiting`, `full`, or `none` without one."""
        return {**self._publisher.circuits(), "queue": self._queue_state()}

    def _queue_state(self) -> str:
        if not self._spool:
            return "none"
        if self._spool.is_full:
            return "full"
        return "empty" if self._spool.is_empty else "waiting"

    async def _keep_draining(self, spool: Spool) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            while messages := await self._retried(lambda: spool.take(_DRAIN_MESSAGES)):
                await self._publish_all(messages)
                # Retried until it succeeds, or the next process would publish them again.
                await self._retried(spool.confirm)
                api_metrics.DRAINED.inc(len(messages))
                _LOGGER.info("Published %d messages from the queue.", len(messages))

    async def _retried[T](self, use_disk: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await use_disk()
            except SpoolDiskError as error:
                _LOGGER.warning("The queue's disk fails (%s).", error)
                await asyncio.sleep(_DISK_RETRY_SECONDS)

    async def _publish_all(self, messages: list[Outgoing]) -> None:
        while messages := [
            message
            for message, published in zip(
                messages, await asyncio.gather(*map(self._publish, messages)), strict=True
            )
            if not published
        ]:
            await asyncio.sleep(_POLL_SECONDS)

    async def _publish(self, message: Outgoing) -> bool:
        try:
            await self._publisher.publish(message)
        except NotPublishedError:
            return False
        return True
