"""A timer in processing time that does not hold back the watermark."""

from apache_beam.runners.worker.bundle_processor import OutputTimer
from apache_beam.transforms.userstate import BaseTimer
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

# After all time, as Beam's Java says it: an earlier one, such as the end of the window, holds a drain up.
_NEVER = MAX_TIMESTAMP + Duration(micros=1000)


def set_without_hold(timer: BaseTimer, time_us: int) -> None:
    """Has a timer fire at that time, in microseconds since the epoch, and hold nothing back until then.

    Beam's worker tells the runner to hold the step's watermark at the element's timestamp until the timer
    fires, and offers no way to say otherwise (https://github.com/apache/beam/issues/20705). With a
    patient's wake-up days away, nothing after the step could ever tell that a rebuild has caught up, and
    the job would seem to be days behind.
    """
    if isinstance(timer, OutputTimer):
        timer._input_timestamp = _NEVER
    timer.set(Timestamp(micros=time_us))
