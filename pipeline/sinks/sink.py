"""What a sink of rows must do, whatever it writes to."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from transforms.rows import Row


class Rejection(NamedTuple):
    """A row that the sink refuses for good; `error` names fields and reasons, never a value."""

    row: Row
    error: str


class TableSink(Protocol):
    """Writes the rows of one table, from one thread at a time."""

    def write(self, rows: Sequence[Row]) -> list[Rejection]:
        """Writes the rows; returns those it refuses for good. All others are stored on return.

        Blocks and retries while the service cannot be reached; raises once it gives up. Writing a row twice
        must change nothing that a reader of the table's view sees.
        """
        ...
