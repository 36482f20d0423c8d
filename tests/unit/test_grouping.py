"""Which time packed events go on with: by it a runner knows what is still on its way."""

from apache_beam.utils.timestamp import Timestamp

from transforms.events import Event, parse_event
from transforms.grouping import GatherByKey, GatherFindings, by_patient
from transforms.message import Message
from transforms.times import DAY_US, MICROS

NOW_US = 20_150 * DAY_US


def event(publish_us: int) -> Event:
    content = {"kind": "rep_observation", "subject_id": "p1", "body": {"quality_score": 1}}
    return parse_event(content, Message(b"", {}, "s", "m", publish_us), NOW_US)


def test_a_pack_is_as_old_as_its_oldest_event() -> None:
    gather = GatherByKey(by_patient)
    gather.start_bundle()
    for publish_us in (NOW_US - 2 * MICROS, NOW_US - 3 * MICROS, NOW_US - MICROS):
        gather.process(event(publish_us))
    (pack,) = gather.finish_bundle()
    assert pack.timestamp == Timestamp(micros=NOW_US - 3 * MICROS)


def test_a_finding_of_a_timer_is_as_old_as_the_timer() -> None:
    gather = GatherFindings(by_patient)
    gather.start_bundle()
    due = Timestamp(micros=NOW_US - DAY_US)
    for timestamp in (Timestamp(micros=NOW_US), due):
        gather.process(event(NOW_US), timestamp)
    (pack,) = gather.finish_bundle()
    assert pack.timestamp == due
