"""How events cross a shuffle."""

from random import Random

import pytest

from tests.support.strategies import WINDOW_END, random_arrivals
from transforms.events import REVIEW, Event, ReviewItemFact, parse_event
from transforms.message import Message
from transforms.steps.chunks import EventChunk, EventChunkCoder
from transforms.steps.coders import encoded, pack, unpack
from transforms.times import DAY_US, to_micros


@pytest.fixture(scope="module")
def events() -> list[Event]:
    now_us = to_micros(WINDOW_END) + DAY_US
    parsed = [
        parse_event(
            arrival.envelope, Message(b"\x00{}\xff", {"k": "v"}, "s", "m", arrival.publish_us), now_us
        )
        for arrival in random_arrivals(Random(5))
    ]
    fact = ReviewItemFact("n1", now_us, False, "high", "text", "{}")
    return [*parsed, Event("", REVIEW, 0, "p1", "", None, fact, Message(b"", {}, "", "", now_us))]


def test_events_of_every_kind_come_back_as_they_were(events: list[Event]) -> None:
    assert {event.kind for event in events} > {"exercise_session", "rep_observation", "consent", "alert"}
    coder = EventChunkCoder()
    for event in events:
        (back,) = coder.decode(coder.encode(EventChunk([event])))
        assert back == event
        assert type(back.fact) is type(event.fact)
        assert type(back.message) is Message


@pytest.mark.parametrize("number", [0, 1, 10, 100])
def test_packed_events_come_back_as_they_were(events: list[Event], number: int) -> None:
    packed = pack(events[:number])
    assert unpack(packed) == events[:number]
    # So do those that were gathered one by one.
    assert pack(encoded(event) for event in events[:number]) == packed


def test_many_packed_events_are_smaller_than_each_by_itself(events: list[Event]) -> None:
    assert len(pack(events)) < sum(len(pack([event])) for event in events) / 2


def test_events_of_a_later_release_are_refused() -> None:
    later = bytes((pack([])[0] + 1, 0x90))
    with pytest.raises(ValueError, match="cannot read version"):
        unpack(later)
