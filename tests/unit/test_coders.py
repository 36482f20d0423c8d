"""How events cross a shuffle."""

from random import Random

import pytest

from tests.strategies import WINDOW_END, random_arrivals
from transforms.coders import EventCoder
from transforms.events import REVIEW, Event, ReviewFact, parse_event
from transforms.message import Message
from transforms.times import DAY_US, to_micros


def test_events_of_every_kind_come_back_as_they_were() -> None:
    now_us = to_micros(WINDOW_END) + DAY_US
    events = [
        parse_event(
            arrival.envelope, Message(b"\x00{}\xff", {"k": "v"}, "s", "m", arrival.publish_us), now_us
        )
        for arrival in random_arrivals(Random(5))
    ]
    fact = ReviewFact("n1", now_us, False, "high", "text", "{}")
    events.append(Event("", REVIEW, 0, "p1", "", None, fact, Message(b"", {}, "", "", now_us)))
    assert {event.kind for event in events} > {"exercise_session", "rep_observation", "consent", "alert"}
    for event in events:
        back = EventCoder().decode(EventCoder().encode(event))
        assert back == event
        assert type(back.fact) is type(event.fact)
        assert type(back.message) is Message


def test_an_event_of_a_later_release_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot read version"):
        EventCoder().decode(bytes((EventCoder.VERSION + 1, 0x90)))
