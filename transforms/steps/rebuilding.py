"""A rebuild: a job starts without state and rebuilds it from the events that Pub/Sub retains.

Meanwhile rows are held back: events are applied to the state, and rows are written once, when every message
published before the rebuild began has been read. So readers see the old rows until they see complete new
ones, which have higher versions.
"""

import logging
import threading
import time
from typing import NamedTuple

from transforms.times import MICROS, to_rfc3339

_LOGGER = logging.getLogger(__name__)
_REPORT_SECONDS = 10.0


class Rebuild(NamedTuple):
    """Messages published from `since_us` to `until_us` (microseconds since the epoch) are read again."""

    since_us: int
    until_us: int

    def after_findings(self) -> "Rebuild":
        """The rebuild of a projection that also waits for the findings of the others: one second longer."""
        return self._replace(until_us=self.until_us + MICROS)


class Progress:
    """Logs the progress of a rebuild: one line for all steps of a process, at a limited rate."""

    def __init__(self) -> None:
        """Nothing has been logged yet."""
        self._lock = threading.Lock()
        self._due = 0.0
        self._newest_us = 0
        self._done = False

    def note(self, rebuild: Rebuild, publish_us: int) -> None:
        """Notes that a message with that publish time has been applied."""
        with self._lock:
            self._newest_us = max(self._newest_us, publish_us)
            if self._done or time.monotonic() < self._due:
                return
            self._due = time.monotonic() + _REPORT_SECONDS
        _LOGGER.info(
            "Rebuild: %d %% taken in, messages up to %s of %s.",
            _share(rebuild, self._newest_us),
            to_rfc3339(self._newest_us),
            to_rfc3339(rebuild.until_us),
        )

    def finish(self) -> None:
        """Notes that every message has been read."""
        with self._lock:
            if self._done:
                return
            self._done = True
        _LOGGER.info("Rebuild: all messages are taken in, rows are written.")


def _share(rebuild: Rebuild, publish_us: int) -> int:
    whole = rebuild.until_us - rebuild.since_us
    return min(100, max(0, 100 * (publish_us - rebuild.since_us) // whole))


progress = Progress()
