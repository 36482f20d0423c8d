"""What a worker tells the runner of the timers that a step sets."""

from typing import Any

import pytest
from apache_beam.coders import StrUtf8Coder
from apache_beam.coders.coders import GlobalWindowCoder, _TimerCoder
from apache_beam.runners.worker.bundle_processor import OutputTimer
from apache_beam.runners.worker.data_plane import ClosableOutputStream
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

from tests.releases.recording import PROJECTORS, Cell
from transforms.events import parse_event
from transforms.message import Message
from transforms.projections.projector import Projector, RuleSettings
from transforms.steps.coders import pack
from transforms.steps.rebuilding import Rebuild
from transforms.steps.streaming import StreamingProjectFn
from transforms.times import DAY_US

START_MS = 1_772_409_600_000
START_US = START_MS * 1000
UNTIL_MS = START_MS + DAY_US // 1000
CODER = _TimerCoder(StrUtf8Coder(), GlobalWindowCoder()).get_impl()


class WorkersTimer:
    """One of a worker's own timers for the key `p1`, at an element of `START_US`."""

    def __init__(self, domain: str) -> None:
        self._stream = ClosableOutputStream()
        self.timer = OutputTimer(
            "p1",
            GlobalWindow(),
            Timestamp(micros=START_US),
            PANE_INFO_UNKNOWN,
            domain,
            "t",
            CODER,
            self._stream,
        )

    @property
    def fire_and_hold_ms(self) -> tuple[int, int]:
        """When the one timer that was set fires, and where it holds the watermark until then."""
        (timer,) = CODER.decode_all(self._stream.get())
        return timer.fire_timestamp.micros // 1000, timer.hold_timestamp.micros // 1000


def test_beam_holds_the_watermark_for_a_timer_in_processing_time() -> None:
    """If it does not any more, `transforms/steps/timers.py` has no purpose."""
    set_by_beam = WorkersTimer(TimeDomain.REAL_TIME)
    set_by_beam.timer.set(Timestamp(micros=UNTIL_MS * 1000))
    assert set_by_beam.fire_and_hold_ms == (UNTIL_MS, START_MS)


@pytest.mark.parametrize("projector", [kind for kind, _ in PROJECTORS.values()])
def test_a_patients_wake_up_does_not_hold_back_the_watermark(projector: type[Projector[Any]]) -> None:
    """But what a rebuild holds back does, until the moment that it waits for."""
    wake_up, catch_up = WorkersTimer(TimeDomain.REAL_TIME), WorkersTimer(TimeDomain.WATERMARK)
    project = StreamingProjectFn(
        projector(RuleSettings()), False, Rebuild(0, UNTIL_MS * 1000), dict, lambda: START_MS / 1000
    )
    project.setup()
    content = {"kind": "consent", "event_id": "c1", "subject_id": "p1", "body": {"granted": True}}
    event = parse_event(content, Message(b"", {}, "s", "m", START_US), START_US)
    list(project.process(("p1", pack([event])), Cell(), wake_up.timer, catch_up.timer))
    fires_ms, held_ms = wake_up.fire_and_hold_ms
    assert fires_ms > START_MS
    # What a runner takes for no hold: Java's TIMESTAMP_MAX_VALUE and a millisecond.
    assert held_ms == MAX_TIMESTAMP.micros // 1000 + 1
    assert catch_up.fire_and_hold_ms == (UNTIL_MS, UNTIL_MS)
