"""The project's own Pub/Sub server, misbehaving: an interceptor that answers wrongly, late or not at all."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from local.pubsub import PubSub, Server
from tests.chaos.background import Background
from tests.chaos.schedule import Schedule

# Those after which Google's documentation says that a request is to be tried again.
TRANSIENT = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
)

# Any call may be refused, be answered late, or be done and yet answered with an error.
ANY_CALL = ("refused", "delayed", "done_but_refused")
FAULTS = {
    "Pull": (*ANY_CALL, "reordered", "duplicated", "redelivered"),
    "Acknowledge": (*ANY_CALL, "acknowledgement_dropped"),
    "StreamingPull": ("refused", "delayed", "reordered", "duplicated"),
}
DEATH = "death"

_DELAYS = (0.02, 1.0)


class Misbehaviour(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Spoils calls as a schedule says, while it is `armed`."""

    def __init__(
        self,
        pubsub: PubSub,
        schedule: Schedule,
        death_share: float = 0.0,
        statuses: Sequence[Any] = TRANSIENT,
    ) -> None:
        """At `death_share` of the calls `deadly` is set; `statuses` are what calls are refused with."""
        self.armed = False
        self.deadly = asyncio.Event()
        self._pubsub = pubsub
        self._schedule = schedule
        self._death_share = death_share
        self._statuses = statuses

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if not self.armed or handler is None:
            return handler
        name = details.method.rpartition("/")[2]
        if handler.unary_unary:
            answer = self._spoiled(handler.unary_unary, name)
            return grpc.unary_unary_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )
        stream = self._spoiled_stream(handler.stream_stream, name)
        return grpc.stream_stream_rpc_method_handler(
            stream, handler.request_deserializer, handler.response_serializer
        )

    def die(self) -> None:
        """Has the server die, unless it is dying already."""
        if not self.deadly.is_set():
            self._schedule.faults[DEATH] += 1
            self.deadly.set()

    def _spoiled(self, answer: Any, name: str) -> Any:
        async def spoiled(request: Any, context: Any) -> Any:
            if self._schedule.rng.random() < self._death_share:
                self.die()
            fault = self._schedule.draw(FAULTS.get(name, ANY_CALL))
            await self._before(fault, context)
            if fault == "acknowledgement_dropped":
                return Empty()
            response = await answer(request, context)
            if fault == "done_but_refused":
                await self._refuse(context)
            if name == "Pull":
                self._rearrange(fault, response)
            if fault == "redelivered":
                await self._give_back(request, response)
            return response

        return spoiled

    def _spoiled_stream(self, answer: Any, name: str) -> Any:
        async def spoiled(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for response in answer(requests, context):
                fault = self._schedule.draw(FAULTS[name])
                await self._before(fault, context)
                self._rearrange(fault, response)
                yield response

        return spoiled

    async def _before(self, fault: str | None, context: Any) -> None:
        if fault == "refused":
            await self._refuse(context)
        if fault == "delayed":
            await asyncio.sleep(self._schedule.rng.uniform(*_DELAYS))

    async def _refuse(self, context: Any) -> None:
        await context.abort(self._schedule.rng.choice(self._statuses), "misbehaving")

    def _rearrange(self, fault: str | None, response: Any) -> None:
        received = list(response.received_messages)
        if fault == "duplicated":
            received += self._schedule.rng.choices(received, k=1 + len(received) // 10) if received else []
        if fault in ("duplicated", "reordered"):
            self._schedule.rng.shuffle(received)
            del response.received_messages[:]
            response.received_messages.extend(received)

    async def _give_back(self, request: Any, response: Any) -> None:
        """Has some of what is delivered delivered once more, as if its deadline had passed."""
        ids = [each.ack_id for each in response.received_messages if self._schedule.rng.random() < 0.5]
        again = types.ModifyAckDeadlineRequest.pb()(subscription=request.subscription, ack_ids=ids)
        await self._pubsub.modify_ack_deadline(again, None)


class MisbehavingPubSub:
    """The server and its misbehaviour; made by `misbehaving_pubsub`."""

    def __init__(
        self,
        runner: Background,
        pubsub: PubSub,
        server: Server,
        misbehaviour: Misbehaviour,
        schedule: Schedule,
    ) -> None:
        self.pubsub = pubsub
        self.misbehaviour = misbehaviour
        self.schedule = schedule
        self._runner = runner
        self._server = server

    @property
    def address(self) -> str:
        """host:port for PUBSUB_EMULATOR_HOST."""
        return f"127.0.0.1:{self._server.port}"

    def die_soon(self) -> None:
        """Has the server die."""
        self._runner.loop.call_soon_threadsafe(self.misbehaviour.die)

    async def die_now_and_then(self) -> None:
        """Ends all connections when the schedule says so, and listens again a while later."""
        deadly = self.misbehaviour.deadly
        while await deadly.wait():
            await self._server.stop()
            await asyncio.sleep(self.schedule.rng.uniform(0.5, 2))
            await self._server.start()
            deadly.clear()


@contextmanager
def misbehaving_pubsub(
    runner: Background, schedule: Schedule, death_share: float = 0.0, statuses: Sequence[Any] = TRANSIENT
) -> Iterator[MisbehavingPubSub]:
    """Serves until the end of the block; well-behaved until `misbehaviour.armed`."""
    pubsub = PubSub()
    misbehaviour = Misbehaviour(pubsub, schedule, death_share, statuses)
    server = Server(pubsub, interceptors=[misbehaviour])
    runner.run(server.start())
    misbehaving = MisbehavingPubSub(runner, pubsub, server, misbehaviour, schedule)
    reaper = asyncio.run_coroutine_threadsafe(misbehaving.die_now_and_then(), runner.loop)
    try:
        yield misbehaving
    finally:
        reaper.cancel()
        runner.run(server.stop())
