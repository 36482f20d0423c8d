"""Processing time that a test moves on: TestStream's own, for Beam's timers and for the steps' `clock` alike.

The steps are pickled on their way into the runner, so what they share with a test lies in this module.
"""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.runners.direct.clock import TestClock

_now = 0.0
_heard: list[tuple[float, str, Any]] = []


def now() -> float:
    """The stream's processing time, in seconds since the epoch."""
    return _now


class StreamClock(TestClock):
    """Beam's clock for TestStream, which also tells the steps the time."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self._publish()

    def advance_time(self, advance_by: Any) -> None:
        super().advance_time(advance_by)
        self._publish()

    def _publish(self) -> None:
        global _now
        _now = self.time()


class Listen(beam.DoFn):
    """Notes each element with the processing time at which it came out."""

    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, element: Any) -> Iterator[Any]:
        _heard.append((now(), self._name, element))
        yield from ()


def heard(name: str) -> list[tuple[float, Any]]:
    """(processing time, element) of what came out under a name, in order."""
    return [(moment, element) for moment, output, element in _heard if output == name]


def forget() -> None:
    """Begins anew."""
    _heard.clear()
