"""Batches of rows, on a bounded number of shards per table."""

import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import apache_beam as beam

from transforms.rows import Row, pack_row


class Batch(beam.PTransform[Any, Any]):
    """Row → (shard, [packed Row, …]): at most `size` rows, none older than `timeout_seconds`.

    Beam makes batches per key. Keys are shards, because a batch per patient would hold one row. All versions
    of a row's key go to the same shard.

    Partial batches are emitted in rounds, a timeout apart: those of all shards at once, so that they are
    written together.
    """

    def __init__(
        self,
        size: int,
        timeout_seconds: float,
        shards: int,
        clock: Callable[[], float] = time.time,
        began: float = 0.0,
    ) -> None:
        """A round starts at `began`. `began` and `clock` are in seconds since the epoch."""
        super().__init__()
        self._size = size
        self._timeout_seconds = timeout_seconds
        self._shards = shards
        self._round_began = partial(_round_began, timeout_seconds, began, clock)

    def expand(self, rows: beam.PCollection[Row]) -> beam.PCollection[tuple[int, Iterable[bytes]]]:
        # Bound here, because Beam is slower with arguments of the function.
        shard = partial(_shard, self._shards)
        return (
            rows
            | "Shard" >> beam.Map(shard).with_output_types(tuple[int, bytes])
            # It emits a batch one timeout after its first row, by its clock. This clock returns the start of
            # the round, so the batch is emitted when the round ends.
            | "Group" >> beam.GroupIntoBatches(self._size, self._timeout_seconds, self._round_began)
        )


def _shard(shards: int, row: Row) -> tuple[int, bytes]:
    # Packed once, because the grouping encodes its elements several times.
    return zlib.crc32(row.key.encode()) % shards, pack_row(row)


def _round_began(seconds: float, began: float, clock: Callable[[], float]) -> float:
    now = clock()
    return now - (now - began) % seconds


def newest_versions(rows: Iterable[Row]) -> list[Row]:
    """Only the newest version of each key, in order of first appearance."""
    newest: dict[str, Row] = {}
    for row in rows:
        known = newest.get(row.key)
        if known is None or row.version > known.version:
            newest[row.key] = row
    return list(newest.values())
