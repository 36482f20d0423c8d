"""What the API publishes: just the event that it validated, in as few messages as the limits allow."""

from itertools import pairwise
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ingest.auth import Caller
from ingest.intake import NOT_JSON, Accepted, Refused, accept, message, packed
from tests.support.fuzzing import fuzzed
from tests.support.strategies import random_arrivals
from transforms.dead_letters import DeadLetter
from transforms.events import Event, content_id, parse_event
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, PUBLISH_ID_ATTRIBUTE, Message
from transforms.steps.validation import validate
from transforms.times import DAY_US, to_rfc3339

NOW_US = 1_800_000_000_000_001
LATER_US = NOW_US + 3 * DAY_US
ANYBODY = Caller(frozenset(), None)
REP = {"kind": "rep_observation", "subject_id": "p", "body": {"quality_score": 0.5}}


def in_pipeline(payload: bytes) -> list[Event | DeadLetter]:
    """What the pipeline makes of a message that comes days later."""
    return validate(Message(payload, {}, "", "", LATER_US), LATER_US)


def accepted(raw: bytes, **more: Any) -> Accepted:
    outcome = accept(raw, orjson.loads(raw), NOW_US, ANYBODY, **more)
    assert isinstance(outcome, Accepted), outcome
    return outcome


def refused(raw: bytes, caller: Caller = ANYBODY) -> Refused:
    outcome = accept(raw, orjson.loads(raw), NOW_US, caller)
    assert isinstance(outcome, Refused), outcome
    return outcome


def validated(raw: bytes) -> Event:
    """The event as it is at the time of its arrival at the API."""
    return parse_event(orjson.loads(raw), Message(raw, {}, "", "", NOW_US), NOW_US)


def same_event(one: Event | DeadLetter, other: Event) -> bool:
    """Equal in all but the message they came with."""
    return isinstance(one, Event) and replace(one, message=other.message) == other


def disordered(rng: Random, envelope: dict[str, Any]) -> dict[str, Any]:
    """The envelope with or without an id and a time, absent or null."""
    changed = dict(envelope)
    for name in ("event_id", "ts", "timestamp"):
        way = rng.randrange(4)
        if way == 0:
            changed.pop(name, None)
        elif way == 1:
            changed[name] = None
    return changed


def test_what_is_not_json_is_refused_as_that() -> None:
    outcome = accept(b"1e400", NOT_JSON, NOW_US, ANYBODY)
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.errors) == (400, [("event", "Input should be JSON in UTF-8")])
    assert accept(b"{", NOT_JSON, NOW_US, ANYBODY, "key") == outcome


def test_the_pipeline_makes_of_it_just_the_event_that_was_validated() -> None:
    rng = Random(11)
    checked = 0
    for arrival in random_arrivals(rng, patients=8):
        for _ in range(4):
            raw = b"\n " + orjson.dumps(disordered(rng, arrival.envelope)) + b"\t"
            event = accepted(raw)
            (found,) = in_pipeline(event.payload)
            assert same_event(found, validated(raw))
            assert isinstance(found, Event)
            assert (event.event_id, event.timestamp) == (found.event_id, to_rfc3339(found.ts_us))
            checked += 1
    assert checked > 500


def test_what_states_its_id_and_time_is_published_byte_for_byte() -> None:
    raw = b'{"ts":"2026-01-01T00:00:00Z", "big": 123456789012345678901234567890, "event_id":"e" ,'
    raw += orjson.dumps(REP)[1:]
    assert accepted(raw).payload == raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"event_id":"first","kind":"rep_observation","subject_id":"p","body":{"quality_score":0.5},'
        b'"event_id":null}',
        b'{"ts":"2026-01-01T00:00:00Z","timestamp":null,"kind":"rep_observation","subject_id":"p",'
        b'"body":{"quality_score":0.5},"ts":null}',
        b'{"kind":"alert","kind":"rep_observation","subject_id":"p","body":{"quality_score":0.5}}',
        b'{"event_id":"\\u00e9\\ud83e\\uddb5\\"","kind":"rep_observation","subject_id":"p",'
        b'"body":{"quality_score":0.5}}',
    ],
)
def test_names_that_occur_twice_mean_the_same_to_the_pipeline(raw: bytes) -> None:
    (found,) = in_pipeline(accepted(raw).payload)
    assert same_event(found, validated(raw))


def test_ten_thousand_fuzzed_bodies_are_refused_or_become_the_event_that_was_validated() -> None:
    taken = 0
    for raw in fuzzed(Random(3), 10_000):
        try:
            content = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        outcome = accept(raw, content, NOW_US, ANYBODY)
        if isinstance(outcome, Accepted):
            taken += 1
            (found,) = in_pipeline(outcome.payload)
            assert same_event(found, validated(raw))
        else:
            assert outcome.status in (413, 422)
            assert outcome.errors
    assert taken > 500


def test_a_retry_has_the_same_id_though_its_time_is_another() -> None:
    raw = orjson.dumps(REP)
    first = accepted(raw)
    second = accept(raw, REP, LATER_US, ANYBODY)
    assert isinstance(second, Accepted)
    assert first.event_id == second.event_id == content_id(REP)
    assert first.timestamp != second.timestamp


def test_an_event_that_states_its_id_keeps_it_under_a_key() -> None:
    assert accepted(orjson.dumps(REP | {"event_id": "own"}), key="key").event_id == "own"


def keyed(content: dict[str, Any], key: str) -> str:
    return accepted(orjson.dumps(content), key=key).event_id


def test_an_id_under_a_key_depends_on_key_and_content() -> None:
    other = REP | {"subject_id": "q"}
    ids = {keyed(REP, "key"), keyed(other, "key"), keyed(REP, "another"), content_id(REP)}
    assert len(ids) == 4
    assert keyed(dict(reversed(REP.items())), "key") == keyed(REP, "key")
    assert keyed(REP | {"event_id": None}, "key") not in ids


bodies = st.fixed_dictionaries({"quality_score": st.floats(0, 1)}, optional={"note": st.text(max_size=5)})


@given(st.lists(bodies, min_size=2, max_size=5), st.text("!~aZ09", min_size=1, max_size=128))
def test_of_events_under_one_key_only_equal_ones_have_an_equal_id(sent: list[Any], key: str) -> None:
    events = [REP | {"body": body} for body in sent]
    different = {orjson.dumps(event, option=orjson.OPT_SORT_KEYS) for event in events}
    assert len({keyed(event, key) for event in events}) == len(different)


def sized(size: int, **more: Any) -> bytes:
    """An event of so many bytes."""
    content = REP | {"event_id": "e", "ts": "2026-01-01T00:00:00Z", "note": "", **more}
    return orjson.dumps(content | {"note": "x" * (size - len(orjson.dumps(content)))})


def test_an_event_has_at_most_as_many_bytes_as_the_pipeline_takes() -> None:
    assert len(accepted(sized(MAX_MESSAGE_BYTES)).payload) == MAX_MESSAGE_BYTES
    outcome = refused(sized(MAX_MESSAGE_BYTES + 1))
    assert (outcome.status, str(outcome.errors[0].message)) == (
        413,
        "Input should have at most 1048576 bytes",
    )
    # What is filled in counts too.
    assert refused(sized(MAX_MESSAGE_BYTES, event_id=None)).status == 413


def test_a_caller_of_some_sites_writes_for_these_only() -> None:
    north = Caller(frozenset(), frozenset({"north"}))
    assert isinstance(
        accept(b"{}", REP | {"meta": {"site_id": "north"}}, NOW_US, north),
        Accepted,
    )
    for meta in ({"site_id": "south"}, {"site_id": None}, {}, None):
        outcome = refused(orjson.dumps(REP | {"meta": meta}), north)
        assert (outcome.status, outcome.errors[0].field) == (403, "meta.site_id")
    nowhere = Caller(frozenset(), frozenset())
    assert refused(orjson.dumps(REP), nowhere).status == 403


sizes = st.lists(st.integers(150, 300) | st.integers(200_000, MAX_MESSAGE_BYTES), min_size=1, max_size=30)


@given(sizes)
def test_messages_are_as_few_as_the_limits_allow_and_the_pipeline_takes_each(wanted: list[int]) -> None:
    events = [accepted(sized(size, event_id=str(number))) for number, size in enumerate(wanted)]
    groups = list(packed(events))
    assert [event for group in groups for event in group] == events
    found = [event for group in groups for event in in_pipeline(message(group).payload)]
    assert [event.event_id for event in found] == [event.event_id for event in events]
    for group, following in pairwise(groups):
        assert len(message([*group, following[0]]).payload) > MAX_MESSAGE_BYTES


def test_a_message_has_at_most_as_many_events_as_the_pipeline_takes() -> None:
    event = accepted(sized(200))
    assert [len(group) for group in packed([event] * (2 * MAX_ARRAY_LENGTH + 1))] == [1000, 1000, 1]


def test_one_event_tells_its_id_and_kind_in_attributes_and_several_do_not() -> None:
    event = accepted(sized(200))
    single, array, again = message([event]), message([event, event]), message([event])
    assert single.attributes.keys() == {PUBLISH_ID_ATTRIBUTE, "event_id", "kind"}
    assert (single.attributes["event_id"], single.attributes["kind"]) == ("e", "rep_observation")
    assert array.attributes.keys() == {PUBLISH_ID_ATTRIBUTE}
    # A corrected event is another publication, though its id is the same.
    assert len({outgoing.attributes[PUBLISH_ID_ATTRIBUTE] for outgoing in (single, array, again)}) == 3
