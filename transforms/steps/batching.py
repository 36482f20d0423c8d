"""Batches of rows, on a bounded number of shards per table."""

import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import apache_beam as beam

from transforms.rows import Row, pack_row


class Batch(beam.PTransform[Any, Any]):
    """Row → (shard, [packed Row, …]): `size` rows at the most, none older than `timeout_seconds`.

    The shards are few and not the patients, because batches are made per key: keyed by patient, each
    would hold one row. Every version of a row's key lands in one shard.

    Batches that are not full come out in rounds, a timeout apart: those of all shards at the same moment,
    to be written together.
    """

    def __init__(
        self,
        size: int,
        timeout_seconds: float,
        shards: int,
        clock: Callable[[], float] = time.time,
        began: float = 0.0,
    ) -> None:
        """One of the rounds began at `began`; that and what `clock` gives are seconds since the epoch."""
        super().__init__()
        self._size = size
        self._timeout_seconds = timeout_seconds
        self._shards = shards
        self._round_began = partial(_round_began, timeout_seconds, began, clock)

    def expand(self, rows: beam.PCollection[Row]) -> beam.PCollection[tuple[int, Iterable[bytes]]]:
        # Not an argument of the function, with which Beam calls it more slowly.
        shard = partial(_shard, self._shards)
        return (
            rows
            | "Shard" >> beam.Map(shard).with_output_types(tuple[int, bytes])
            # It holds a batch for the timeout from what its clock says: by this one, until the round ends.
            | "Group" >> beam.GroupIntoBatches(self._size, self._timeout_seconds, self._round_began)
        )


def _shard(shards: int, row: Row) -> tuple[int, bytes]:
    # Packed once, because the grouping encodes it again and again.
    return zlib.crc32(row.key.encode()) % shards, pack_row(row)


def _round_began(seconds: float, began: float, clock: Callable[[], float]) -> float:
    now = clock()
    return now - (now - began) % seconds


def newest_versions(rows: Iterable[Row]) -> list[Row]:
    """Of several versions of one key the newest alone, in order of first appearance."""
    newest: dict[str, Row] = {}
    for row in rows:
        known = newest.get(row.key)
        if known is None or row.version > known.version:
            newest[row.key] = row
    return list(newest.values())
