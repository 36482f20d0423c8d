"""From the JSON of one event to the message that is published, or the reason for refusing it.

An event is published byte for byte as it arrived, with `event_id` and `ts` filled in where it states
none. So the pipeline sees exactly the event that was validated here, however often it is published and
however long it waits.
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

# Stands for the content of an event whose bytes are not JSON.
NOT_JSON = object()


class Accepted(NamedTuple):
    """A valid event. `timestamp` is its time (RFC 3339), `payload` the bytes to publish."""

    event_id: str
    kind: str
    timestamp: str
    payload: bytes


class Refused(NamedTuple):
    """A refused event: its HTTP status, and what is wrong."""

    status: int
    errors: list[FieldError]


class Outgoing(NamedTuple):
    """A message to publish, with one event or an array of them."""

    payload: bytes
    attributes: dict[str, str]


def accept(
    raw: bytes, content: Any, now_us: int, caller: Caller, key: str | None = None
) -> Accepted | Refused:
    """Validates one event.

    `content` is what `raw` decodes to, or NOT_JSON; `now_us` is the current time in microseconds since
    the epoch. An event without an id gets one made from its content and the idempotency key, if any.
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
    # Also true of an event that states exactly this time. Repeating it changes nothing.
    if event.ts_us == now_us:
        missing["ts"] = timestamp
    payload = _filled_in(raw.strip(), missing)
    if len(payload) > MAX_MESSAGE_BYTES:
        return Refused(413, [FieldError("event", f"Input should have at most {MAX_MESSAGE_BYTES} bytes")])
    return Accepted(event.event_id, event.kind, timestamp, payload)


def _filled_in(payload: bytes, fields: dict[str, str]) -> bytes:
    # Appended, because the last of two equal names counts.
    return payload[:-1] + b"," + orjson.dumps(fields)[1:] if fields else payload


def _keyed_id(key: str, content: dict[str, Any]) -> str:
    # The content is part of the id, so a key used for two events loses neither. The position in a batch is
    # not: a client may resend only the refused events under the same key.
    return hashlib.blake2b(f"{key} {content_id(content)}".encode(), digest_size=16).hexdigest()


def message(events: Sequence[Accepted]) -> Outgoing:
    """One message with all of these events. Its publish id is new, and the same for all its retries."""
    identity = {PUBLISH_ID_ATTRIBUTE: uuid4().hex}
    if len(events) == 1:
        # Lets subscribers filter.
        stated = {"event_id": events[0].event_id, "kind": events[0].kind}
        return Outgoing(events[0].payload, identity | stated)
    return Outgoing(b"[" + b",".join(event.payload for event in events) + b"]", identity)


def packed(events: Iterable[Accepted]) -> Iterator[list[Accepted]]:
    """The events in order, in groups that each fit into one message."""
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
