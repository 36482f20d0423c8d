"""Which time packed events go on with: by it a runner knows what is still on its way."""

from apache_beam.utils.timestamp import Timestamp

from transforms.events import parse_event
from transforms.message import Message
from transforms.steps.chunks import EventChunk
from transforms.steps.gathering import PackByKey, by_patient
from transforms.times import DAY_US, MICROS

NOW_US = 20_150 * DAY_US


def chunk() -> EventChunk:
    content = {"kind": "rep_observation", "subject_id": "p1", "body": {"quality_score": 1}}
    return EventChunk([parse_event(content, Message(b"", {}, "s", "m", NOW_US), NOW_US)])


def test_a_pack_is_as_old_as_its_oldest_chunk() -> None:
    """A finding of a timer may be older than all else: as old as the timer."""
    gather = PackByKey(by_patient)
    gather.start_bundle()
    for seconds in (2, 3, 1):
        gather.process(chunk(), Timestamp(micros=NOW_US - seconds * MICROS))
    (pack,) = gather.finish_bundle()
    assert pack.timestamp == Timestamp(micros=NOW_US - 3 * MICROS)
