"""An in-memory Pub/Sub server, for machines without Google's emulator.

    python -m local.pubsub --port=8085

It implements the part of google.pubsub.v1 that the project uses: topics, subscriptions, publish, pull and
streaming pull, acknowledgements and their deadlines, and seek by time. It refuses settings that it does not
implement (filters, ordering, push, …).
"""

import argparse
import asyncio
import heapq
import itertools
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from pipeline.names import SUBSCRIPTION, TOPIC

_HOST = "127.0.0.1"

# Google's defaults.
_ACK_SECONDS = 10
_KEPT = timedelta(days=7)
_EXPIRATION = timedelta(days=31)

_ACK_SECONDS_RANGE = range(10, 601)
_MESSAGES_PER_REQUEST = 1000
_MESSAGE_BYTES = 10_000_000
# The most that a pull returns.
_PULL_BYTES = 10_000_000
# How long a pull waits for a message.
_PULL_SECONDS = 90.0

_TOPIC_SETTINGS = {"name", "labels", "message_retention_duration"}
_SUBSCRIPTION_SETTINGS = {
    "name",
    "topic",
    "labels",
    "ack_deadline_seconds",
    "retain_acked_messages",
    "message_retention_duration",
    "expiration_policy",
}
_DELETED_TOPIC = "_deleted-topic_"

# Plain protocol buffers: the wrappers' fields take many times longer to read.
_Topic, _Subscription, _Received = types.Topic.pb(), types.Subscription.pb(), types.ReceivedMessage.pb()


class _RefusedError(Exception):
    def __init__(self, code: Any, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Lease(NamedTuple):
    """A delivered message and its acknowledgement deadline, on the monotonic clock."""

    message: Any
    deadline: float


class TopicLog:
    """A topic's settings, and the messages that it retains for a seek, oldest first."""

    def __init__(self, settings: Any) -> None:
        """Empty."""
        self.settings = settings
        self.messages: deque[Any] = deque()

    def keep(self, messages: Iterable[Any], longest: timedelta) -> None:
        """Adds messages, and drops those older than `longest`."""
        if not longest:
            self.messages.clear()
            return
        self.messages += messages
        oldest_us = time.time_ns() // 1000 - longest // timedelta(microseconds=1)
        while self.messages and _publish_us(self.messages[0]) < oldest_us:
            self.messages.popleft()


class Backlog:
    """A subscription's settings and its unacknowledged messages, waiting or delivered."""

    def __init__(self, settings: Any, log: TopicLog) -> None:
        """Empty; `log` is its topic's."""
        self.settings = settings
        self._log = log
        self._waiting: deque[Any] = deque()
        self._leases: dict[str, _Lease] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._ack_numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._leases)

    @property
    def kept_for(self) -> timedelta:
        """How long this subscription retains acknowledged messages for a seek."""
        if not self.settings.retain_acked_messages:
            return timedelta()
        return self.settings.message_retention_duration.ToTimedelta()

    def add(self, messages: Iterable[Any]) -> None:
        """Queues messages for delivery."""
        self._waiting += messages
        self._changed.set()

    async def take(self, limit: int, lease_seconds: float, patience: float) -> list[Any]:
        """Up to `limit` messages as soon as there is one; none after `patience` seconds."""
        give_up = time.monotonic() + patience
        while not (taken := self._take(limit, lease_seconds)):
            now = time.monotonic()
            if now >= give_up:
                break
            self._changed.clear()
            until = min(give_up, self._deadlines[0][0] if self._deadlines else give_up)
            await _waited(self._changed, until - now)
        return taken

    def _take(self, limit: int, lease_seconds: float) -> list[Any]:
        self._expire()
        taken: list[Any] = []
        size = 0
        while self._waiting and len(taken) < limit and (not taken or size < _PULL_BYTES):
            message = self._waiting.popleft()
            ack_id = f"{self.settings.name}:{next(self._ack_numbers)}"
            self._lease(ack_id, message, lease_seconds)
            taken.append(_Received(ack_id=ack_id, message=message))
            size += len(message.data)
        return taken

    def _lease(self, ack_id: str, message: Any, seconds: float) -> None:
        lease = _Lease(message, time.monotonic() + seconds)
        self._leases[ack_id] = lease
        heapq.heappush(self._deadlines, (lease.deadline, ack_id))

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, ack_id = heapq.heappop(self._deadlines)
            lease = self._leases.get(ack_id)
            # An extended lease has a newer entry, and an acknowledged one is gone.
            if lease and lease.deadline == deadline:
                del self._leases[ack_id]
                self._waiting.appendleft(lease.message)

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """Removes the messages with these ids; an id is void after its deadline."""
        self._expire()
        for ack_id in ack_ids:
            self._leases.pop(ack_id, None)
        # A stream that has reached its limit may receive more.
        self._changed.set()

    def extend(self, ack_ids: Iterable[str], seconds: float) -> None:
        """Sets the deadlines to this many seconds from now; 0 queues the messages again."""
        self._expire()
        for ack_id in ack_ids:
            if lease := self._leases.get(ack_id):
                self._lease(ack_id, lease.message, seconds)
        self._changed.set()

    def outstanding(self, ack_ids: set[str]) -> set[str]:
        """The given ids that a subscriber still has."""
        self._expire()
        return ack_ids & self._leases.keys()

    def seek(self, moment_us: int) -> None:
        """Acknowledges messages published earlier, and queues those published since for delivery again.

        That includes acknowledged messages that are still retained. Earlier acknowledgement ids become void.
        """
        topic_keeps = self._log.settings.message_retention_duration.ToTimedelta()
        kept_us = max(topic_keeps, self.kept_for) // timedelta(microseconds=1)
        oldest_us = time.time_ns() // 1000 - kept_us
        kept = {m.message_id: m for m in self._log.messages if _publish_us(m) >= oldest_us}
        unacknowledged = {m.message_id: m for m in self._unacknowledged()}
        messages = sorted((kept | unacknowledged).values(), key=lambda message: int(message.message_id))
        self._leases.clear()
        self._deadlines.clear()
        self._waiting = deque(message for message in messages if _publish_us(message) >= moment_us)
        self._changed.set()

    def _unacknowledged(self) -> list[Any]:
        return [*self._waiting, *(lease.message for lease in self._leases.values())]


class PubSub:
    """The calls of google.pubsub.v1, each from request to response; for one event loop.

    Topics and subscriptions survive a restart of the server.
    """

    def __init__(self) -> None:
        """Empty."""
        self._topics: dict[str, TopicLog] = {}
        self._subscriptions: dict[str, Backlog] = {}
        self._message_numbers = itertools.count(1)

    def undelivered(self, subscription: str) -> int:
        """The number of unacknowledged messages of a subscription."""
        return len(self._subscriptions[subscription])

    # -- topics ------------------------------------------------------------------------------------

    async def create_topic(self, request: Any, _context: Any) -> Any:
        _check_name(TOPIC, request.name)
        _check_settings(request, _TOPIC_SETTINGS)
        if request.name in self._topics:
            raise _RefusedError(grpc.StatusCode.ALREADY_EXISTS, "Topic already exists")
        self._topics[request.name] = TopicLog(request)
        return request

    async def get_topic(self, request: Any, _context: Any) -> Any:
        return self._topic(request.topic).settings

    async def update_topic(self, request: Any, _context: Any) -> Any:
        _check_settings(request.topic, _TOPIC_SETTINGS)
        settings = self._topic(request.topic.name).settings
        request.update_mask.MergeMessage(request.topic, settings, True, True)
        return settings

    async def list_topics(self, request: Any, _context: Any) -> Any:
        topics = [log.settings for name, log in self._topics.items() if _is_of(name, request.project)]
        return types.ListTopicsResponse.pb()(topics=topics)

    async def list_topic_subscriptions(self, request: Any, _context: Any) -> Any:
        self._topic(request.topic)
        names = [name for name, backlog in self._subscriptions.items() if _reads(backlog, request.topic)]
        return types.ListTopicSubscriptionsResponse.pb()(subscriptions=names)

    async def delete_topic(self, request: Any, _context: Any) -> Any:
        self._topic(request.topic)
        del self._topics[request.topic]
        for backlog in self._subscriptions.values():
            if _reads(backlog, request.topic):
                backlog.settings.topic = _DELETED_TOPIC
        return Empty()

    async def publish(self, request: Any, _context: Any) -> Any:
        log = self._topic(request.topic)
        _check_messages(request.messages)
        now_us = time.time_ns() // 1000
        for message in request.messages:
            message.message_id = str(next(self._message_numbers))
            message.publish_time.FromMicroseconds(now_us)
        readers = [backlog for backlog in self._subscriptions.values() if _reads(backlog, request.topic)]
        topic_keeps = log.settings.message_retention_duration.ToTimedelta()
        log.keep(request.messages, max([topic_keeps, *(backlog.kept_for for backlog in readers)]))
        for backlog in readers:
            backlog.add(request.messages)
        return types.PublishResponse.pb()(message_ids=[message.message_id for message in request.messages])

    # -- subscriptions -----------------------------------------------------------------------------

    async def create_subscription(self, request: Any, _context: Any) -> Any:
        _check_name(SUBSCRIPTION, request.name)
        _check_settings(request, _SUBSCRIPTION_SETTINGS)
        if request.name in self._subscriptions:
            raise _RefusedError(grpc.StatusCode.ALREADY_EXISTS, "Subscription already exists")
        log = self._topic(request.topic)
        request.ack_deadline_seconds = request.ack_deadline_seconds or _ACK_SECONDS
        _check_ack_seconds(request)
        if not request.HasField("message_retention_duration"):
            request.message_retention_duration.FromTimedelta(_KEPT)
        if not request.HasField("expiration_policy"):
            request.expiration_policy.ttl.FromTimedelta(_EXPIRATION)
        self._subscriptions[request.name] = Backlog(request, log)
        return request

    async def get_subscription(self, request: Any, _context: Any) -> Any:
        return self._backlog(request.subscription).settings

    async def update_subscription(self, request: Any, _context: Any) -> Any:
        _check_settings(request.subscription, _SUBSCRIPTION_SETTINGS)
        settings = self._backlog(request.subscription.name).settings
        updated = _Subscription()
        updated.CopyFrom(settings)
        request.update_mask.MergeMessage(request.subscription, updated, True, True)
        _check_ack_seconds(updated)
        settings.CopyFrom(updated)
        return settings

    async def list_subscriptions(self, request: Any, _context: Any) -> Any:
        subscriptions = [
            backlog.settings for name, backlog in self._subscriptions.items() if _is_of(name, request.project)
        ]
        return types.ListSubscriptionsResponse.pb()(subscriptions=subscriptions)

    async def delete_subscription(self, request: Any, _context: Any) -> Any:
        self._backlog(request.subscription)
        del self._subscriptions[request.subscription]
        return Empty()

    async def pull(self, request: Any, _context: Any) -> Any:
        backlog = self._backlog(request.subscription)
        if request.max_messages < 1:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "max_messages must be positive")
        patience = 0.0 if request.return_immediately else _PULL_SECONDS
        taken = await backlog.take(request.max_messages, backlog.settings.ack_deadline_seconds, patience)
        return types.PullResponse.pb()(received_messages=taken)

    async def streaming_pull(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        backlog = self._backlog(first.subscription)
        answers = asyncio.create_task(_take_answers(backlog, requests))
        most = first.max_outstanding_messages or _MESSAGES_PER_REQUEST
        given: set[str] = set()
        try:
            while not answers.done():
                given = backlog.outstanding(given)
                room = min(most - len(given), _MESSAGES_PER_REQUEST)
                # Short, to check regularly for the end of the stream and for room in it.
                taken = await backlog.take(room, first.stream_ack_deadline_seconds, patience=0.1)
                if taken:
                    given |= {received.ack_id for received in taken}
                    yield types.StreamingPullResponse.pb()(received_messages=taken)
        finally:
            answers.cancel()

    async def acknowledge(self, request: Any, _context: Any) -> Any:
        self._backlog(request.subscription).acknowledge(request.ack_ids)
        return Empty()

    async def modify_ack_deadline(self, request: Any, _context: Any) -> Any:
        self._backlog(request.subscription).extend(request.ack_ids, request.ack_deadline_seconds)
        return Empty()

    async def seek(self, request: Any, _context: Any) -> Any:
        backlog = self._backlog(request.subscription)
        if not request.HasField("time"):
            raise _RefusedError(grpc.StatusCode.UNIMPLEMENTED, "This server seeks to a time only")
        backlog.seek(request.time.ToMicroseconds())
        return types.SeekResponse.pb()()

    def _topic(self, name: str) -> TopicLog:
        if name not in self._topics:
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "Topic not found")
        return self._topics[name]

    def _backlog(self, name: str) -> Backlog:
        if name not in self._subscriptions:
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "Subscription does not exist")
        return self._subscriptions[name]


async def _take_answers(backlog: Backlog, requests: AsyncIterator[Any]) -> None:
    """Applies a streaming subscriber's acknowledgements and deadlines until its stream ends."""
    async for request in requests:
        backlog.acknowledge(request.ack_ids)
        for ack_id, seconds in zip(
            request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True
        ):
            backlog.extend([ack_id], seconds)


async def _waited(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def _publish_us(message: Any) -> int:
    return message.publish_time.ToMicroseconds()


def _is_of(name: str, project: str) -> bool:
    return name.startswith(f"{project}/")


def _reads(backlog: Backlog, topic: str) -> bool:
    return bool(backlog.settings.topic == topic)


def _check_name(form: Any, name: str) -> None:
    if not form.fullmatch(name):
        raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"Invalid name: {name}")


def _check_settings(settings: Any, known: set[str]) -> None:
    for field, _ in settings.ListFields():
        if field.name not in known:
            raise _RefusedError(grpc.StatusCode.UNIMPLEMENTED, f"This server does not know {field.name}")


def _check_ack_seconds(settings: Any) -> None:
    if settings.ack_deadline_seconds not in _ACK_SECONDS_RANGE:
        raise _RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT, "Invalid ack deadline: must be 10 to 600 seconds"
        )


def _check_messages(messages: Sequence[Any]) -> None:
    if not 0 < len(messages) <= _MESSAGES_PER_REQUEST:
        raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "A request has 1 to 1,000 messages")
    for message in messages:
        if not message.data and not message.attributes:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "A message has data or attributes")
        if len(message.data) > _MESSAGE_BYTES:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "A message has 10 MB at the most")
        if message.ordering_key:
            raise _RefusedError(grpc.StatusCode.UNIMPLEMENTED, "This server does not know ordering keys")


class _Call(NamedTuple):
    """A call of the protocol: its name, its request type, and the method of PubSub."""

    name: str
    request: Any
    method: Callable[[PubSub, Any, Any], Awaitable[Any]]


_SERVICES = {
    "google.pubsub.v1.Publisher": (
        _Call("CreateTopic", types.Topic, PubSub.create_topic),
        _Call("GetTopic", types.GetTopicRequest, PubSub.get_topic),
        _Call("UpdateTopic", types.UpdateTopicRequest, PubSub.update_topic),
        _Call("ListTopics", types.ListTopicsRequest, PubSub.list_topics),
        _Call("ListTopicSubscriptions", types.ListTopicSubscriptionsRequest, PubSub.list_topic_subscriptions),
        _Call("DeleteTopic", types.DeleteTopicRequest, PubSub.delete_topic),
        _Call("Publish", types.PublishRequest, PubSub.publish),
    ),
    "google.pubsub.v1.Subscriber": (
        _Call("CreateSubscription", types.Subscription, PubSub.create_subscription),
        _Call("GetSubscription", types.GetSubscriptionRequest, PubSub.get_subscription),
        _Call("UpdateSubscription", types.UpdateSubscriptionRequest, PubSub.update_subscription),
        _Call("ListSubscriptions", types.ListSubscriptionsRequest, PubSub.list_subscriptions),
        _Call("DeleteSubscription", types.DeleteSubscriptionRequest, PubSub.delete_subscription),
        _Call("Pull", types.PullRequest, PubSub.pull),
        _Call("Acknowledge", types.AcknowledgeRequest, PubSub.acknowledge),
        _Call("ModifyAckDeadline", types.ModifyAckDeadlineRequest, PubSub.modify_ack_deadline),
        _Call("Seek", types.SeekRequest, PubSub.seek),
    ),
}


def _unary(pubsub: PubSub, call: _Call) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        try:
            return await call.method(pubsub, request, context)
        except _RefusedError as refusal:
            await context.abort(refusal.code, refusal.reason)

    return grpc.unary_unary_rpc_method_handler(
        answer, call.request.pb().FromString, lambda response: response.SerializeToString()
    )


def _streaming_pull(pubsub: PubSub) -> Any:
    async def answer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        try:
            async for response in pubsub.streaming_pull(requests, context):
                yield response
        except _RefusedError as refusal:
            await context.abort(refusal.code, refusal.reason)

    return grpc.stream_stream_rpc_method_handler(
        answer,
        types.StreamingPullRequest.pb().FromString,
        lambda response: response.SerializeToString(),
    )


class Server:
    """Serves a PubSub on loopback; it can be stopped and restarted on the same port."""

    def __init__(self, pubsub: PubSub, port: int = 0, interceptors: Sequence[Any] = ()) -> None:
        """Port 0 picks a free port at the first start; `interceptors` are grpc.aio's."""
        self.port = port
        self._pubsub = pubsub
        self._interceptors = interceptors

    async def start(self) -> None:
        """Starts to serve. Raises RuntimeError if the port is taken."""
        # A request may have 10 MB; gRPC's default limit is 4.
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(interceptors=self._interceptors, options=options)
        for service, calls in _SERVICES.items():
            handlers = {call.name: _unary(self._pubsub, call) for call in calls}
            if service.endswith("Subscriber"):
                handlers["StreamingPull"] = _streaming_pull(self._pubsub)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port(f"{_HOST}:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Closes every connection at once."""
        await self._server.stop(None)


async def _serve(port: int) -> None:
    server = Server(PubSub(), port)
    await server.start()
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    await stopped.wait()
    await server.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: serves on loopback until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m local.pubsub", description="A Pub/Sub server.")
    parser.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    asyncio.run(_serve(parser.parse_args(arguments).port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
