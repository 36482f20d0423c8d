"""A proxy in front of the BigQuery emulator that misbehaves as BigQuery and the network to it may."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiohttp import ClientSession, web
from aiohttp.web import Request, Response

from tests.chaos.background import Background
from tests.chaos.schedule import Schedule

# By status: the reason that BigQuery gives with it.
REASONS = {"429": "rateLimitExceeded", "500": "internalError", "503": "backendError"}
ANY_CALL = (*REASONS, "reset", "slow", "done_but_reset", "done_but_timed_out")
INSERT = (*ANY_CALL, "partial", "stopped")
_ROW_REASONS = ("backendError", "internalError", "timeout")

_SLOW_SECONDS = (0.1, 2.0)
_HOP_HEADERS = {"connection", "content-encoding", "content-length", "date", "host", "transfer-encoding"}
_REQUEST_BYTES = 100 * 1024 * 1024


class _Answer(NamedTuple):
    body: bytes
    status: int
    headers: dict[str, str]

    def response(self) -> Response:
        return Response(body=self.body, status=self.status, headers=self.headers)


class MisbehavingBigQuery:
    """Spoils calls as a schedule says, while it is `armed`; otherwise hands them on."""

    def __init__(self, target: str, schedule: Schedule, timeout_seconds: float) -> None:
        """`target` is the emulator's URL; a call that times out is closed after `timeout_seconds`."""
        self.armed = False
        self.url = ""
        self.schedule = schedule
        self._target = target
        self._queries: dict[str, _Answer] = {}
        self._timeout_seconds = timeout_seconds

    async def start(self) -> None:
        """Starts to serve on a free port of loopback."""
        self._session = ClientSession(auto_decompress=True)
        application = web.Application(client_max_size=_REQUEST_BYTES)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Ends every connection."""
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: Request) -> Response:
        body = await request.read()
        is_insert = request.path.endswith("/insertAll")
        fault = self.schedule.draw(INSERT if is_insert else ANY_CALL) if self.armed else None
        if fault in REASONS:
            return _error(fault)
        if fault == "reset":
            return _reset(request)
        if fault == "slow":
            await asyncio.sleep(self.schedule.rng.uniform(*_SLOW_SECONDS))
        if fault in ("partial", "stopped"):
            return await self._insert_some(request, json.loads(body), fault)
        response = await self._forward(request, body)
        if fault == "done_but_timed_out":
            await asyncio.sleep(self._timeout_seconds)
        if fault in ("done_but_reset", "done_but_timed_out"):
            return _reset(request)
        return response

    async def _forward(self, request: Request, body: bytes) -> Response:
        request_id = json.loads(body).get("requestId") if request.path.endswith("/queries") else None
        if request_id in self._queries:
            # As BigQuery does. The emulator says that there is such a job already.
            return self._queries[request_id].response()
        answer = await self._ask(request, body)
        if request_id:
            self._queries[request_id] = answer
        return answer.response()

    async def _ask(self, request: Request, body: bytes) -> _Answer:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        url = f"{self._target}{request.path_qs}"
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            passed = {n: v for n, v in answer.headers.items() if n.lower() not in _HOP_HEADERS}
            return _Answer(await answer.read(), answer.status, passed)

    async def _insert_some(self, request: Request, content: dict[str, Any], fault: str) -> Response:
        """Writes a part of the rows (none if `stopped`) and reports the others as not written."""
        rows, rng = content["rows"], self.schedule.rng
        left_out = {index for index in range(len(rows)) if fault == "stopped" or rng.random() < 0.5}
        errors = [{"index": index, "errors": [_row_error(fault, rng)]} for index in sorted(left_out)]
        written = [row for index, row in enumerate(rows) if index not in left_out]
        if written:
            answer = await self._forward(request, json.dumps(content | {"rows": written}).encode())
            if answer.status != 200 or "insertErrors" in (answer.text or ""):
                # What BigQuery itself has against rows is the truth.
                return answer
        kind = "bigquery#tableDataInsertAllResponse"
        return web.json_response({"kind": kind, "insertErrors": errors} if errors else {"kind": kind})


def _row_error(fault: str, rng: Any) -> dict[str, str]:
    reason = "stopped" if fault == "stopped" else rng.choice(_ROW_REASONS)
    return {"reason": reason, "location": "", "debugInfo": "", "message": ""}


def _error(status: str) -> Response:
    errors = [{"reason": REASONS[status], "domain": "global", "message": "misbehaving"}]
    body = {"error": {"code": int(status), "message": "misbehaving", "errors": errors}}
    return web.json_response(body, status=int(status))


def _reset(request: Request) -> Response:
    """Closes the connection without an answer."""
    if request.transport:
        request.transport.abort()
    return Response()


@contextmanager
def misbehaving_bigquery(
    runner: Background, target: str, schedule: Schedule, timeout_seconds: float = 1.0
) -> Iterator[MisbehavingBigQuery]:
    """Serves until the end of the block; well-behaved until it is `armed`."""
    proxy = MisbehavingBigQuery(target, schedule, timeout_seconds)
    runner.run(proxy.start())
    try:
        yield proxy
    finally:
        runner.run(proxy.stop())
