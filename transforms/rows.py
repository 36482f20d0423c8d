"""A row on its way to a table."""

from typing import NamedTuple

import msgspec
import orjson


class Row(NamedTuple):
    """One version of one key of a table.

    `key` names the row's key within its table; `version` grows with each change of that key;
    `publish_us` is the oldest publish time (microseconds since the epoch) among the events that
    the row stems from; `body` is a JSON object with the table's columns, as BigQuery's insertAll
    takes them: timestamps RFC 3339, bytes base64, JSON columns as encoded strings.
    """

    key: str
    version: int
    publish_us: int
    body: bytes


pack_row = msgspec.msgpack.Encoder().encode
unpack_row = msgspec.msgpack.Decoder(Row).decode


def row_key(*parts: str) -> str:
    """A key of several columns; different columns never give the same key, whatever ids contain."""
    return orjson.dumps(parts).decode()
