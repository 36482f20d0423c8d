"""Progress of a bounded run: counted in the workers, summed where it is displayed."""

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

_FORMAT = struct.Struct("4q")
_BYTES, _LINES, _GATHERED, _PROJECTED = range(4)


class Measured(NamedTuple):
    """Progress so far.

    `bytes` counts bytes of the files as stored. `gathered` and `projected` count an event once for each
    projection that receives it.
    """

    bytes: int = 0
    lines: int = 0
    gathered: int = 0
    projected: int = 0


class Meter:
    """Counts one step's progress in its own file, because workers may be other processes."""

    def __init__(self, folder: str | None) -> None:
        """`folder` is on this machine; None disables counting."""
        self._folder = folder
        self._counts: memoryview | None = None

    def __reduce__(self) -> tuple[type["Meter"], tuple[str | None]]:
        # Each copy has its own file, so that no two write to the same counter.
        return Meter, (self._folder,)

    def read(self, file_bytes: int = 0, lines: int = 0) -> None:
        """Adds bytes and lines read."""
        self._add(_BYTES, file_bytes)
        self._add(_LINES, lines)

    def gathered(self, events: int) -> None:
        """Adds events on their way into a projection."""
        self._add(_GATHERED, events)

    def projected(self, events: int) -> None:
        """Adds events that a projection has applied."""
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
    """The sums over all meters of a folder."""
    contents = [path.read_bytes() for path in Path(folder).iterdir()]
    counts = [_FORMAT.unpack(content) for content in contents if len(content) == _FORMAT.size]
    return Measured(*map(sum, zip(*counts, strict=True))) if counts else Measured()
