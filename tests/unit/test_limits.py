"""Depth is known before anything is parsed."""

from random import Random
from typing import Any

import orjson
import pytest

from ingest.limits import MAX_DEPTH, _is_deep


def nested(depth: int) -> Any:
    content: Any = 1
    for level in range(depth):
        content = [content] if level % 2 else {"a[{": content, '"]': "[[["}
    return content


def test_brackets_count_outside_of_strings_only() -> None:
    strings = orjson.dumps(['"[' * 500, "\\", "{" * 500, '\\"['] * 3)
    assert not _is_deep(bytearray(strings))
    assert not _is_deep(bytearray(b"[" + b"[]," * 1000 + b"[]]"))


@pytest.mark.parametrize(("depth", "deep"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True), (250, True)])
def test_depth_is_that_of_the_deepest_place(depth: int, deep: bool) -> None:
    siblings = [nested(2) for _ in range(200)]
    # The array is a level of its own.
    body = orjson.dumps([*siblings, nested(depth - 1), *siblings])
    assert _is_deep(bytearray(body)) is deep


def test_no_bytes_are_an_error() -> None:
    rng = Random(2)
    for _ in range(300):
        _is_deep(bytearray(rng.choices(b'[]{}"\\a\xff', k=rng.randrange(1000))))
    assert _is_deep(bytearray(b"[" * 4_000_000))
