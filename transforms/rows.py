"""A row on its way to a table."""

from typing import NamedTuple

import msgspec
import orjson


class Row(NamedTuple):
    """One version of one key of a table.

    `key` is unique within the table; `version` grows with each change of the key. `publish_us` is the oldest
    publish time, in microseconds since the epoch, among the events behind this version. `body` is a JSON
    object with the table's columns as BigQuery's insertAll expects them: timestamps in RFC 3339, bytes in
    base64, JSON columns as encoded strings.
    """

    key: str
    version: int
    publish_us: int
    body: bytes


pack_row = msgspec.msgpack.Encoder().encode
unpack_row = msgspec.msgpack.Decoder(Row).decode


def row_key(*parts: str) -> str:
    """The key of several columns; different columns have different keys, whatever they contain."""
    return orjson.dumps(parts).decode()
