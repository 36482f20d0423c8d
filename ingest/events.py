"""The two calls that accept events."""

import asyncio
import time
from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from ingest import api_metrics, openapi
from ingest.auth import WRITE_EVENTS, Caller, requires
from ingest.intake import NOT_JSON, Accepted, Outgoing, Refused, accept, message, packed
from ingest.limits import read_body
from ingest.outbox import Outbox
from ingest.publishing import NotPublishedError
from ingest.refusals import RefusedError, field_errors, json_response
from ingest.spool import SpoolDiskError, SpoolFullError
from transforms.decoding import parts
from transforms.events import FieldError
from transforms.message import MAX_ARRAY_LENGTH

_RETRY_AFTER = {"Retry-After": "5"}
_TOO_MANY = f"Input should be an array of 1 to {MAX_ARRAY_LENGTH} events"

router = APIRouter(prefix="/api/v1", tags=["events"])

Writer = Annotated[Caller, Depends(requires(WRITE_EVENTS))]
IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern="^[!-~]{1,128}$",
        description="For events without an `event_id`: the same key and content give the same id, so a retry"
        " counts once.",
    ),
]


class _Batch(msgspec.Struct):
    events: list[msgspec.Raw]


_BATCH = msgspec.json.Decoder(_Batch)


@router.post("/events", status_code=201, responses=openapi.EVENT_ANSWERS, openapi_extra=openapi.EVENT_BODY)
async def post_event(request: Request, caller: Writer, idempotency_key: IdempotencyKey = None) -> Response:
    """Accepts one event: 201 once Pub/Sub has confirmed it, 202 while it waits on disk for Pub/Sub."""
    body = await read_body(request)
    event = accept(body, _decoded(body), _now_us(), caller, idempotency_key)
    if isinstance(event, Refused):
        api_metrics.EVENTS.labels(event.status).inc()
        raise _refusal(event)
    result = await _deliver(_outbox(request), message([event]))
    api_metrics.EVENTS.labels(result["status"]).inc()
    status = result.pop("status")
    answer = {"event_id": event.event_id, **result, "timestamp": event.timestamp}
    return json_response(status, answer if status < 400 else result, _retry_after({status}))


@router.post(
    "/events/batch", status_code=201, responses=openapi.BATCH_ANSWERS, openapi_extra=openapi.BATCH_BODY
)
async def post_batch(request: Request, caller: Writer, idempotency_key: IdempotencyKey = None) -> Response:
    """Accepts 1 to 1,000 events, each on its own, and answers for each."""
    now_us = _now_us()
    outcomes = [
        accept(raw, content, now_us, caller, idempotency_key)
        for raw, content in _elements(await read_body(request))
    ]
    groups = list(packed(outcome for outcome in outcomes if isinstance(outcome, Accepted)))
    deliveries = await asyncio.gather(*(_deliver(_outbox(request), message(group)) for group in groups))
    delivered = iter([delivery for group, delivery in zip(groups, deliveries, strict=True) for _ in group])
    results = [
        _refused_result(index, outcome)
        if isinstance(outcome, Refused)
        else {
            "index": index,
            "event_id": outcome.event_id,
            "timestamp": outcome.timestamp,
            **next(delivered),
        }
        for index, outcome in enumerate(outcomes)
    ]
    for result in results:
        api_metrics.EVENTS.labels(result["status"]).inc()
    return _batch_answer(results)


def _elements(body: bytes) -> list[tuple[bytes, Any]]:
    """The events of a batch: the bytes of each, and what they decode to or NOT_JSON. Raises RefusedError."""
    try:
        raws = [bytes(raw) for raw in _BATCH.decode(body).events]
    except msgspec.ValidationError:
        # The decoder stopped early; the rest may not even be JSON.
        _decoded(body)
        raws = []
    except msgspec.DecodeError:
        # One event that is not JSON must not fail the others.
        raws = _raws_apart(body)
    if not 1 <= len(raws) <= MAX_ARRAY_LENGTH:
        raise RefusedError(
            422,
            "invalid_batch",
            f"events: {_TOO_MANY}.",
            validation_errors=field_errors([FieldError("events", _TOO_MANY)]),
        )
    # Decodes exactly the bytes that are published: the whole body may hold `events` twice.
    return [(raw, _content(raw)) for raw in raws]


def _raws_apart(body: bytes) -> list[bytes]:
    """The events of a batch in which some are not JSON, separated by brackets and quotes alone."""
    raws: list[bytes] | None = None
    for member in parts(body, b"{") or ():
        name, _, value = member.partition(b":")
        if _content(name) == "events":
            raws = parts(value, b"[")
        else:
            _decoded(b"{" + member + b"}")
    if raws is None:
        raise _not_json()
    return raws


def _content(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return NOT_JSON


def _decoded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _not_json() from None


def _not_json() -> RefusedError:
    return RefusedError(400, "malformed_json", "The body is not JSON in UTF-8.")


async def _deliver(outbox: Outbox, outgoing: Outgoing) -> dict[str, Any]:
    """The status of a message's events, and the fields of the answer that go with it."""
    try:
        message_id = await outbox.deliver(outgoing)
    except SpoolFullError:
        return {
            "status": 429,
            "error": "queue_full",
            "message": "Pub/Sub does not take events, and the queue is full; try again later.",
        }
    except SpoolDiskError:
        return {
            "status": 503,
            "error": "unavailable",
            "message": "Neither Pub/Sub nor the queue on disk takes events; try again later.",
        }
    except NotPublishedError:
        return {
            "status": 503,
            "error": "unavailable",
            "message": "Pub/Sub does not take events; try again later.",
        }
    return (
        {"status": 202, "queued": True} if message_id is None else {"status": 201, "message_id": message_id}
    )


def _refusal(event: Refused) -> RefusedError:
    sentence = "; ".join(f"{error.field}: {error.message}" for error in event.errors) + "."
    return RefusedError(
        event.status, _ERRORS[event.status], sentence, validation_errors=field_errors(event.errors)
    )


def _refused_result(index: int, event: Refused) -> dict[str, Any]:
    return {"index": index, "status": event.status, "validation_errors": field_errors(event.errors)}


def _batch_answer(results: list[dict[str, Any]]) -> Response:
    statuses = {result["status"] for result in results}
    if statuses <= {201, 202}:
        return json_response(max(statuses), {"results": results})
    if statuses & {201, 202}:
        return json_response(207, {"results": results}, _retry_after(statuses))
    # If none is accepted, a status that is the server's fault wins: then a retry may help.
    status = next(
        (status for status in (503, 429) if status in statuses), max(statuses) if len(statuses) == 1 else 422
    )
    content = {
        "error": _ERRORS[status],
        "message": f"None of the {len(results)} events is taken.",
        "validation_errors": [
            {**error, "field": f"events.{result['index']}.{error['field']}".removesuffix(".event")}
            for result in results
            for error in result.get("validation_errors", ())
        ],
        "results": results,
    }
    return json_response(status, content, _retry_after(statuses))


def _retry_after(statuses: set[int]) -> dict[str, str]:
    return _RETRY_AFTER if statuses & {429, 503} else {}


_ERRORS = {
    400: "malformed_json",
    403: "forbidden",
    413: "too_large",
    422: "invalid_event",
    429: "queue_full",
    503: "unavailable",
}


def _outbox(request: Request) -> Outbox:
    outbox: Outbox = request.app.state.outbox
    return outbox


def _now_us() -> int:
    return time.time_ns() // 1000
