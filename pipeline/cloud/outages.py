"""Which services do not answer this process at the moment, and since when."""

import threading
import time
from typing import NamedTuple

from transforms.times import MICROS


class Call(NamedTuple):
    """What is asked of a service, such as ("BigQuery", "table PROJECT.DATASET.TABLE", "write to")."""

    service: str
    resource: str
    operation: str


class Outage(NamedTuple):
    """A call that failed whenever it was tried since `since_us` (microseconds since the epoch).

    `error` is the class of the newest error: its message might quote a value.
    """

    since_us: int
    error: str


class Outages:
    """The calls that fail; any thread may report."""

    def __init__(self) -> None:
        """With everything answering."""
        self._lock = threading.Lock()
        self._outages: dict[Call, Outage] = {}

    def failed(self, call: Call, error: BaseException) -> None:
        """Takes note of a failure."""
        with self._lock:
            known = self._outages.get(call)
            since_us = known.since_us if known else int(time.time() * MICROS)
            self._outages[call] = Outage(since_us, type(error).__name__)

    def answered(self, call: Call) -> None:
        """The call works, or works again."""
        # Without the lock nearly always: it is called for every write.
        if call in self._outages:
            with self._lock:
                self._outages.pop(call, None)

    def current(self) -> dict[Call, Outage]:
        """What fails now."""
        with self._lock:
            return dict(self._outages)


# One for the process: runners copy the steps that use the services, and hand nothing back.
OUTAGES = Outages()
