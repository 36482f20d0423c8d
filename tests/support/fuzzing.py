"""Messages that are nearly events, and messages that are nothing of the kind."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import orjson

from tests.support.strategies import random_arrivals

_ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    -0.0,
    "",
    "x" * 200,
    "2025-03-20",
    [],
    {},
    [[]],
    {"": 0},
    "\x00",
    "🦵",
]
_JSON_BYTES = b' {}[]",:\\0123456789.eE+-truefalsn\xc3\xa9'


def fuzzed(rng: Random, count: int) -> Iterator[bytes]:
    """Random bytes, valid events with bytes changed, arrays, and events with fields put into disorder."""
    valid = [orjson.dumps(arrival.envelope) for arrival in random_arrivals(rng, ts_from_publish=True)]
    ways: list[Callable[[Random, list[bytes]], bytes]] = [
        _noise,
        _json_noise,
        _changed,
        _spliced,
        _array,
        _odd,
    ]
    for _ in range(count):
        yield rng.choice(ways)(rng, valid)


def _noise(rng: Random, _: list[bytes]) -> bytes:
    return rng.randbytes(rng.randrange(200))


def _json_noise(rng: Random, _: list[bytes]) -> bytes:
    return bytes(rng.choice(_JSON_BYTES) for _ in range(rng.randrange(60)))


def _changed(rng: Random, valid: list[bytes]) -> bytes:
    changed = bytearray(rng.choice(valid))
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _spliced(rng: Random, valid: list[bytes]) -> bytes:
    first, second = rng.choice(valid), rng.choice(valid)
    return first[: rng.randrange(len(first))] + second[rng.randrange(len(second)) :]


def _array(rng: Random, valid: list[bytes]) -> bytes:
    elements = [*valid[:20], b"1", b"{}"]
    return b"[" + b",".join(rng.choice(elements) for _ in range(rng.randrange(9))) + b"]"


def _odd(rng: Random, valid: list[bytes]) -> bytes:
    content = orjson.loads(rng.choice(valid))
    for _ in range(rng.randrange(3)):
        content[rng.choice(["event_id", "ts", "subject_id", "exercise_id", "meta", "x"])] = rng.choice(_ODD)
    for _ in range(rng.randrange(3)):
        content["body"][rng.choice([*content["body"], "x"])] = rng.choice(_ODD)
    return orjson.dumps(content)
