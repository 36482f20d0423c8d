"""How a step reports its progress."""

from typing import Protocol


class Meter(Protocol):
    """Receives numbers of events: those that a projection will apply, and those that it has applied."""

    def gathered(self, events: int) -> None: ...

    def projected(self, events: int) -> None: ...
