"""From the JSON of one event to the message that is published, or why it is refused.

What is published is what arrived, byte for byte, with `event_id` and `ts` filled in where the event
states none: so the pipeline makes of it just the event that was validated here, however often it is
published and however long it waits.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from ingest.auth import Caller
from transforms.events import FieldError, InvalidEventError, content_id, parse_event
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, PUBLISH_ID_ATTRIBUTE, Message
from transforms.times import to_rfc3339

# In place of what an event says, where its bytes are not JSON.
NOT_JSON = object()


class Accepted(NamedTuple):
    """A valid event; `timestamp` is its time (RFC 3339), `payload` its bytes as they are published."""

    event_id: str
    kind: str
    timestamp: str
    payload: bytes


class Refused(NamedTuple):
    """An event that is not taken, and the status that says so."""

    status: int
    errors: list[FieldError]


class Outgoing(NamedTuple):
    """A message to publish, with one event or an array of them."""

    payload: bytes
    attributes: dict[str, str]


def accept(
    raw: bytes, content: Any, now_us: int, caller: Caller, key: str | None = None
) -> Accepted | Refused:
    """The event in `content`, decoded from `raw`, or NOT_JSON; `now_us` is the present in microseconds.

    The id of an event that states none comes from its content and, if there is one, from the
    idempotency key.
    """
    if content is NOT_JSON:
        return Refused(400, [FieldError("event", "Input should be JSON in UTF-8")])
    if not isinstance(content, dict):
        return Refused(422, [FieldError("event", "Input should be an object")])
    missing = {}
    if key is not None and content.get("event_id") is None:
        missing["event_id"] = _keyed_id(key, content)
    try:
        event = parse_event(content | missing, Message(raw, {}, "", "", now_us), now_us)
    except InvalidEventError as error:
        return Refused(422, error.errors)
    if not caller.may_write_for(event.site_id):
        return Refused(403, [FieldError("meta.site_id", "The token may not write for this site")])
    timestamp = to_rfc3339(event.ts_us)
    if content.get("event_id") is None:
        missing["event_id"] = event.event_id
    # An event of this very microsecond may state its time; then it is stated twice, the same.
    if event.ts_us == now_us:
        missing["ts"] = timestamp
    payload = _filled_in(raw.strip(), missing)
    if len(payload) > MAX_MESSAGE_BYTES:
        return Refused(413, [FieldError("event", f"Input should have at most {MAX_MESSAGE_BYTES} bytes")])
    return Accepted(event.event_id, event.kind, timestamp, payload)


def _filled_in(payload: bytes, fields: dict[str, str]) -> bytes:
    # At the end: of a name that an object has twice, the last counts.
    return payload[:-1] + b"," + orjson.dumps(fields)[1:] if fields else payload


def _keyed_id(key: str, content: dict[str, Any]) -> str:
    # The content is part of it, so that a key used for two events loses neither. An event's place in a batch
    # is not: a client may send again, under the same key, only what was refused.
    return hashlib.blake2b(f"{key} {content_id(content)}".encode(), digest_size=16).hexdigest()


def message(events: Sequence[Accepted]) -> Outgoing:
    """One message with all of these events, of the same identity whenever it is published again."""
    identity = {PUBLISH_ID_ATTRIBUTE: uuid4().hex}
    if len(events) == 1:
        # For subscribers that filter.
        stated = {"event_id": events[0].event_id, "kind": events[0].kind}
        return Outgoing(events[0].payload, identity | stated)
    return Outgoing(b"[" + b",".join(event.payload for event in events) + b"]", identity)


def packed(events: Iterable[Accepted]) -> Iterator[list[Accepted]]:
    """The events in groups of one message each, as few as the limits of a message allow."""
    group: list[Accepted] = []
    size = len(b"[]")
    for event in events:
        grown = size + len(event.payload) + len(b",")
        if group and (len(group) == MAX_ARRAY_LENGTH or grown > MAX_MESSAGE_BYTES):
            yield group
            group, grown = [], len(b"[],") + len(event.payload)
        group.append(event)
        size = grown
    if group:
        yield group
