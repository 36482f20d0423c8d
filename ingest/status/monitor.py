"""Observes a job at intervals, so that no request waits and rates do not depend on requests."""

import logging
import threading
from collections.abc import Sequence
from typing import NamedTuple

from ingest.status.observer import Observation, Observer, ObserverError
from transforms.times import MINUTE_US

_LOGGER = logging.getLogger(__name__)

# Rates look back a minute. Unwritten rows take longer to notice where counters arrive late.
_KEPT_US = 3 * MINUTE_US


class Seen(NamedTuple):
    """What is known about the job: observations of the last minutes, oldest first.

    `failure` says why the latest attempt failed, if it did.
    """

    observations: Sequence[Observation] = ()
    failure: str | None = None

    def after(self, observation: Observation) -> "Seen":
        """Adds an observation, and drops those of another job or of an earlier run of the same job."""
        known = [
            earlier
            for earlier in self.observations
            if _run(earlier) == _run(observation)
            and earlier.metrics.updated_us < observation.metrics.updated_us
        ]
        since_us = observation.metrics.updated_us - _KEPT_US
        while len(known) > 1 and known[1].metrics.updated_us <= since_us:
            del known[0]
        return Seen((*known, observation))


def _run(observation: Observation) -> tuple[str, str | None]:
    return observation.job.id, observation.job.started_at


class Monitor:
    """A thread that observes. `seen` is the latest it knows; reading it never waits."""

    def __init__(self, observer: Observer) -> None:
        """Does not start the thread."""
        self.observer = observer
        self.seen = Seen(failure="The job has not been looked for yet.")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._observe, name="status", daemon=True)

    def start(self) -> None:
        """Starts observing."""
        self._thread.start()

    def stop(self) -> None:
        """Stops observing, without waiting for an observation that is under way."""
        self._stopped.set()

    def _observe(self) -> None:
        while True:
            self._look()
            if self._stopped.wait(self.observer.interval_seconds):
                return

    def _look(self) -> None:
        try:
            self.seen = self.seen.after(self.observer.observe())
        except ObserverError as error:
            self.seen = self.seen._replace(failure=str(error))
        except Exception as error:
            # A defect. The thread must go on, and the error's text may quote what was received.
            _LOGGER.error("The status could not be observed: %s", type(error).__name__)
            self.seen = self.seen._replace(
                failure=f"The status could not be observed ({type(error).__name__})."
            )
