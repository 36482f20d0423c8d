"""From a message's bytes to the JSON objects in it.

Each element of an array is judged alone. If an array is not valid JSON as a whole, brackets, quotes and
commas tell its elements apart, and each is decoded separately. So a fault inside one element (half a
surrogate pair, a number outside the range of a double, NaN, bytes that are not UTF-8) affects only that
element. A text with unbalanced brackets or quotes, or in another encoding, cannot be split.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from transforms.dead_letters import DeadLetter
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, Message

STAGE = "Validate"

_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])

# An unclosed string matches up to the end of the text, so that no quote is tried twice.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{},]', re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}
_BLANK = b" \t\n\r"


# An object with its own message, or a dead letter.
Decoded = tuple[Message, dict[str, Any]] | DeadLetter


def decode(message: Message) -> list[Decoded]:
    """The objects in a message, which holds one object or an array of them.

    The message of an element has the element's bytes, unchanged, as its payload. Anything but an object
    becomes a dead letter.
    """
    if len(message.payload) > MAX_MESSAGE_BYTES:
        return [DeadLetter("too_large", STAGE, f"message: longer than {MAX_MESSAGE_BYTES} bytes", message)]
    try:
        content = orjson.loads(message.payload)
    except orjson.JSONDecodeError:
        return _elements_apart(message)
    return _elements(message, content) if isinstance(content, list) else [_object(message, content)]


def parts(text: bytes, opening: bytes) -> list[bytes] | None:
    """The elements of an array (`opening` is `[`) or the members of an object (`{`), unchanged.

    They need not be valid JSON. Null if the text is not a single array or object.
    """
    text = text.strip(_BLANK)
    if not text.startswith(opening):
        return None
    if not text[1:-1].strip(_BLANK) and text.endswith(_CLOSING[opening]):
        return []
    try:
        return list(_split(text))
    except ValueError:
        return None


def _split(text: bytes) -> Iterator[bytes]:
    """Splits at the commas inside the outermost brackets. Raises ValueError if brackets do not match."""
    awaited: list[bytes] = []
    begin = 1
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in _CLOSING:
            awaited.append(_CLOSING[sign])
        elif sign == b"," and len(awaited) == 1:
            yield _part(text[begin : token.start()])
            begin = token.end()
        elif sign in (b"]", b"}") and awaited.pop() != sign:
            raise ValueError("another bracket was open")
        if not awaited:
            break
    if awaited or token.end() != len(text):
        raise ValueError("not one pair of outermost brackets")
    yield _part(text[begin:-1])


def _part(text: bytes) -> bytes:
    part = text.strip(_BLANK)
    if not part:
        raise ValueError("nothing between two commas")
    return part


def _elements_apart(message: Message) -> list[Decoded]:
    """The elements of an array that is not valid JSON as a whole."""
    elements = parts(message.payload, b"[")
    if not elements:
        return [_malformed(message)]
    if len(elements) > MAX_ARRAY_LENGTH:
        return [_too_many(message)]
    return [_element(replace(message, payload=element)) for element in elements]


def _element(message: Message) -> Decoded:
    try:
        return _object(message, orjson.loads(message.payload))
    except orjson.JSONDecodeError:
        return _malformed(message)


def _malformed(message: Message) -> DeadLetter:
    return DeadLetter("malformed_json", STAGE, "message: not JSON in UTF-8", message)


def _too_many(message: Message) -> DeadLetter:
    problem = f"message: an array of more than {MAX_ARRAY_LENGTH} events"
    return DeadLetter("too_large", STAGE, problem, message)


def _elements(message: Message, content: list[Any]) -> list[Decoded]:
    if not content:
        return [DeadLetter("not_an_event", STAGE, "message: an empty array", message)]
    if len(content) > MAX_ARRAY_LENGTH:
        return [_too_many(message)]
    raws = _ELEMENTS.decode(message.payload)
    return [
        _object(replace(message, payload=bytes(raw).strip()), element)
        for raw, element in zip(raws, content, strict=True)
    ]


def _object(message: Message, content: object) -> Decoded:
    if isinstance(content, dict):
        return message, content
    return DeadLetter("not_an_event", STAGE, "message: neither a JSON object nor an array of them", message)
