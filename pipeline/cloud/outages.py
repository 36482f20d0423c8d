"""The current outages: which calls of this process fail, and since when."""

import threading
import time
from typing import NamedTuple

from transforms.times import MICROS


class Call(NamedTuple):
    """A kind of request to a service, such as ("BigQuery", "table PROJECT.DATASET.TABLE", "write to")."""

    service: str
    resource: str
    operation: str


class Outage(NamedTuple):
    """A call that has failed on every attempt since `since_us` (microseconds since the epoch).

    `error` is the class of the latest error, not its message, which might quote a value.
    """

    since_us: int
    error: str


class Outages:
    """The failing calls; safe to use from any thread."""

    def __init__(self) -> None:
        """Without an outage."""
        self._lock = threading.Lock()
        self._outages: dict[Call, Outage] = {}

    def failed(self, call: Call, error: BaseException) -> None:
        """Records a failed attempt."""
        with self._lock:
            known = self._outages.get(call)
            since_us = known.since_us if known else int(time.time() * MICROS)
            self._outages[call] = Outage(since_us, type(error).__name__)

    def answered(self, call: Call) -> None:
        """Records a successful attempt, which ends an outage."""
        # Almost always without the lock, because every write calls this.
        if call in self._outages:
            with self._lock:
                self._outages.pop(call, None)

    def current(self) -> dict[Call, Outage]:
        """The outages at this moment."""
        with self._lock:
            return dict(self._outages)


# One per process: runners copy the steps that use the services, and return nothing from them.
OUTAGES = Outages()
