"""From a message's bytes to the JSON objects in it."""

from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from transforms.dead_letters import DeadLetter
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, Message

STAGE = "Validate"

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


# An object, with its own message; or what it becomes if it is none.
Decoded = tuple[Message, dict[str, Any]] | DeadLetter


def decode(message: Message) -> list[Decoded]:
    """Each object in a message that holds one or an array of them, with its own message.

    An element's message has that element's bytes, as they arrived, for its payload. What is no
    object comes out as a dead letter; each element stands or falls alone.
    """
    if len(message.payload) > MAX_MESSAGE_BYTES:
        return [DeadLetter("too_large", STAGE, f"message: longer than {MAX_MESSAGE_BYTES} bytes", message)]
    try:
        content = orjson.loads(message.payload)
    except orjson.JSONDecodeError:
        return [DeadLetter("malformed_json", STAGE, "message: not JSON in UTF-8", message)]
    return _elements(message, content) if isinstance(content, list) else [_object(message, content)]


def _elements(message: Message, content: list[Any]) -> list[Decoded]:
    if not content:
        return [DeadLetter("not_an_event", STAGE, "message: an empty array", message)]
    if len(content) > MAX_ARRAY_LENGTH:
        problem = f"message: an array of more than {MAX_ARRAY_LENGTH} events"
        return [DeadLetter("too_large", STAGE, problem, message)]
    raws = _ELEMENTS.decode(message.payload)
    return [
        _object(replace(message, payload=bytes(raw).strip()), element)
        for raw, element in zip(raws, content, strict=True)
    ]


def _object(message: Message, content: Any) -> Decoded:
    if isinstance(content, dict):
        return message, content
    return DeadLetter("not_an_event", STAGE, "message: neither a JSON object nor an array of them", message)
