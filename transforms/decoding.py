"""From a message's bytes to the JSON objects in it."""

from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from transforms.dead_letters import DeadLetter
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, Message

STAGE = "Validate"

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def decode(message: Message) -> Iterator[tuple[Message, dict[str, Any]] | DeadLetter]:
    """Each object in a message that holds one or an array of them, with its own message.

    An element's message has that element's bytes, as they arrived, for its payload. What is no
    object comes out as a dead letter; each element stands or falls alone.
    """
    if len(message.payload) > MAX_MESSAGE_BYTES:
        yield DeadLetter("too_large", STAGE, f"message: longer than {MAX_MESSAGE_BYTES} bytes", message)
        return
    try:
        content = orjson.loads(message.payload)
    except orjson.JSONDecodeError:
        yield DeadLetter("malformed_json", STAGE, "message: not JSON in UTF-8", message)
        return
    if isinstance(content, list):
        yield from _elements(message, content)
    else:
        yield _object(message, content)


def _elements(message: Message, content: list[Any]) -> Iterator[tuple[Message, dict[str, Any]] | DeadLetter]:
    if not content:
        yield DeadLetter("not_an_event", STAGE, "message: an empty array", message)
    elif len(content) > MAX_ARRAY_LENGTH:
        yield DeadLetter(
            "too_large", STAGE, f"message: an array of more than {MAX_ARRAY_LENGTH} events", message
        )
    else:
        for raw, element in zip(_ELEMENTS.decode(message.payload), content, strict=True):
            yield _object(replace(message, payload=bytes(raw).strip()), element)


def _object(message: Message, content: Any) -> tuple[Message, dict[str, Any]] | DeadLetter:
    if isinstance(content, dict):
        return message, content
    return DeadLetter("not_an_event", STAGE, "message: neither a JSON object nor an array of them", message)
