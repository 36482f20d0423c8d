"""The limits on a request's body, checked before it is parsed."""

import re
from email.message import Message
from functools import lru_cache
from itertools import accumulate

from starlette.requests import Request

from ingest.refusals import RefusedError

MAX_BODY_BYTES = 4 * 1024 * 1024
# Far more than an event needs, and well below the JSON parser's own limit of 254.
MAX_DEPTH = 128

_UTF_8 = {"utf-8", "utf8"}
# Parsing a header takes time quadratic in its length.
_MAX_TYPE_CHARACTERS = 1000

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


async def read_body(request: Request) -> bytes:
    """The body of a JSON request.

    Raises RefusedError: 415 for another media type or a compressed body, 413 over `MAX_BODY_BYTES` (with
    or without a Content-Length), 422 for JSON nested more than `MAX_DEPTH` levels deep.
    """
    _check_type(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    if _is_deep(body):
        raise RefusedError(422, "nested_too_deeply", f"The JSON is nested more than {MAX_DEPTH} levels deep.")
    return bytes(body)


def _check_type(request: Request) -> None:
    types = request.headers.getlist("content-type")
    if not types or not all(map(is_json, types)):
        raise RefusedError(415, "unsupported_media_type", "The body should be application/json in UTF-8.")
    if not all(map(is_identity, request.headers.getlist("content-encoding"))):
        raise RefusedError(415, "unsupported_media_type", "The body should not be compressed.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()


# Most requests have the same header.
@lru_cache(maxsize=32)
def is_json(content_type: str) -> bool:
    """Whether a Content-Type is JSON in UTF-8. Parameters other than `charset` are ignored."""
    if len(content_type) > _MAX_TYPE_CHARACTERS:
        return False
    header = Message()
    header["Content-Type"] = content_type
    charsets = [value for name, value in header.get_params([]) if name.lower() == "charset"]
    return header.get_content_type() == "application/json" and all(
        isinstance(charset, str) and charset.lower() in _UTF_8 for charset in charsets
    )


def is_identity(content_encoding: str) -> bool:
    """Whether a Content-Encoding, a list of codings, leaves the body unchanged."""
    # RFC 9110, 5.6.1: an element of a list may be empty.
    return {coding.strip().lower() for coding in content_encoding.split(",")} <= {"identity", ""}


def _too_large() -> RefusedError:
    return RefusedError(413, "too_large", f"The body should have at most {MAX_BODY_BYTES} bytes.")


def _is_deep(body: bytearray) -> bool:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", body).translate(None, _NOT_BRACKETS)
    return any(depth > MAX_DEPTH for depth in accumulate(map(_STEP.__getitem__, brackets)))
