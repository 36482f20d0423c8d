"""Timers in processing time that do not hold back the watermark."""

from typing import Protocol

from apache_beam.runners.worker.bundle_processor import OutputTimer
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

# After the end of time, as in Beam's Java SDK. An earlier time (the end of the window) would block a drain.
_NEVER = MAX_TIMESTAMP + Duration(micros=1000)


class Timer(Protocol):
    """A timer as Beam passes it to a DoFn."""

    def set(self, timestamp: Timestamp) -> None: ...


def set_without_hold(timer: Timer, time_us: int) -> None:
    """Sets a timer to `time_us`, in microseconds since the epoch, without a watermark hold.

    Beam's worker makes the runner hold the step's watermark at the element's timestamp until the timer fires,
    and has no option to change that (https://github.com/apache/beam/issues/20705). A patient's wake-up is
    days away. Until then, later steps could not see that a rebuild has caught up, and the job would seem
    to be days behind.
    """
    if isinstance(timer, OutputTimer):
        timer._input_timestamp = _NEVER
    timer.set(Timestamp(micros=time_us))
