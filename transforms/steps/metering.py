"""What a step tells of its progress, to whoever wants to show it."""

from typing import Protocol


class Meter(Protocol):
    """Is told how many events a projection is to take in, and how many it has taken in."""

    def gathered(self, events: int) -> None: ...

    def projected(self, events: int) -> None: ...
