"""How far a bounded run has come, counted where it works and added up where it is shown."""

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

_FORMAT = struct.Struct("4q")
_BYTES, _LINES, _GATHERED, _PROJECTED = range(4)


class Measured(NamedTuple):
    """What has been done so far.

    `bytes` are those of the files, compressed or not. `gathered` and `projected` are events, each counted in
    every projection that it goes to.
    """

    bytes: int = 0
    lines: int = 0
    gathered: int = 0
    projected: int = 0


class Meter:
    """Counts what one step has done, in a file of its own; workers may be other processes."""

    def __init__(self, folder: str | None) -> None:
        """`folder` is on this machine; None: nothing is counted."""
        self._folder = folder
        self._counts: memoryview | None = None

    def __reduce__(self) -> tuple[type["Meter"], tuple[str | None]]:
        # Each copy has a file of its own, so that no two write to the same number.
        return Meter, (self._folder,)

    def read(self, file_bytes: int = 0, lines: int = 0) -> None:
        """Adds what has been read."""
        self._add(_BYTES, file_bytes)
        self._add(_LINES, lines)

    def gathered(self, events: int) -> None:
        """Adds events that a projection is to take in."""
        self._add(_GATHERED, events)

    def projected(self, events: int) -> None:
        """Adds events that a projection has taken in."""
        self._add(_PROJECTED, events)

    def _add(self, index: int, amount: int) -> None:
        if self._folder is None:
            return
        if self._counts is None:
            self._counts = _new_counts(self._folder)
        self._counts[index] += amount


UNMETERED = Meter(None)


def _new_counts(folder: str) -> memoryview:
    with open(f"{folder}/{uuid4().hex}", "w+b") as file:
        os.ftruncate(file.fileno(), _FORMAT.size)
        return memoryview(mmap.mmap(file.fileno(), _FORMAT.size)).cast("q")


def measured(folder: str) -> Measured:
    """The sums of what all meters of a folder have counted."""
    contents = [path.read_bytes() for path in Path(folder).iterdir()]
    counts = [_FORMAT.unpack(content) for content in contents if len(content) == _FORMAT.size]
    return Measured(*map(sum, zip(*counts, strict=True))) if counts else Measured()
