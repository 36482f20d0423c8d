"""From bytes to events and dead letters: whatever arrives, nothing is lost and nothing breaks."""

import json
from collections import Counter
from datetime import UTC, datetime
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.support.fuzzing import fuzzed
from tests.support.strategies import random_arrivals
from transforms.dead_letters import REASONS, DeadLetter, dead_letter_row
from transforms.decoding import STAGE
from transforms.events import EARLIEST_US, FUTURE_TOLERANCE_US, KINDS, Event
from transforms.message import MAX_ARRAY_LENGTH, MAX_MESSAGE_BYTES, Message
from transforms.steps.validation import validate
from transforms.times import to_micros

NOW_US = to_micros(datetime(2025, 4, 2, tzinfo=UTC))
PUBLISH_US = NOW_US - 1_000_000
VALID = b'{"event_id":"e1","kind":"alert","subject_id":"p1","body":{"alert_type":"x"}}'


def message(payload: bytes) -> Message:
    return Message(payload, {"k": "v"}, "projects/p/subscriptions/s", "m1", PUBLISH_US)


def outcomes(payload: bytes) -> list[Event | DeadLetter]:
    """What becomes of a payload, each outcome checked for what holds of every one."""
    found = validate(message(payload), NOW_US)
    for outcome in found:
        assert replace(outcome.message, payload=b"") == message(b"")
        if isinstance(outcome, DeadLetter):
            assert outcome.reason in REASONS
            assert outcome.stage == STAGE
            assert outcome.error
            # As a row it can be written, whatever is in it.
            row = json.loads(dead_letter_row(outcome, NOW_US, "job").body)
            assert row["reason"] == outcome.reason
        else:
            assert isinstance(outcome, Event)
            assert outcome.kind in KINDS
            assert outcome.event_id
            assert outcome.patient_id
            assert EARLIEST_US <= outcome.ts_us <= NOW_US + FUTURE_TOLERANCE_US
    return found


def only_letter(payload: bytes) -> DeadLetter:
    (outcome,) = outcomes(payload)
    assert isinstance(outcome, DeadLetter)
    return outcome


def test_one_object() -> None:
    (event,) = outcomes(VALID)
    assert isinstance(event, Event)
    assert event.message == message(VALID)


def test_each_element_of_an_array_stands_alone_with_its_own_bytes() -> None:
    elements = [
        VALID,
        b'{ "kind" :"nonsense",\t"subject_id": "p1", "body": {} }',
        b'{"kind":"alert","subject_id":"caf\xc3\xa9 \\u00e9","body":{"alert_type":"x", "n": 1.0e0}}',
        b"[ 1, 2 ]",
        b'"text, with ] and , in it"',
        b"null",
        b"17.50",
        b'{"kind":"alert"}',
        VALID,
    ]
    found = outcomes(b" [\n" + b" ,\r\n ".join(elements) + b"\t] ")
    assert [outcome.message.payload for outcome in found] == elements
    reasons = [outcome.reason if isinstance(outcome, DeadLetter) else "valid" for outcome in found]
    assert reasons == [
        "valid",
        "unknown_kind",
        "valid",
        "not_an_event",
        "not_an_event",
        "not_an_event",
        "not_an_event",
        "invalid_schema",
        "valid",
    ]


def test_an_elements_bytes_alone_lead_to_the_same_outcome() -> None:
    elements = [orjson.dumps(arrival.envelope) for arrival in random_arrivals(Random(7))][:MAX_ARRAY_LENGTH]
    together = outcomes(b"[" + b",".join(elements) + b"]")
    assert together == [outcome for element in elements for outcome in outcomes(element)]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed_json"),
        (b" ", "malformed_json"),
        (b"\x00", "malformed_json"),
        (b"{", "malformed_json"),
        (b"{}{}", "malformed_json"),
        (VALID + b"x", "malformed_json"),
        (VALID[:-1], "malformed_json"),
        (b"{'kind': 'alert'}", "malformed_json"),
        (VALID.replace(b'"x"', b"NaN"), "malformed_json"),
        (VALID.replace(b'"x"', b"Infinity"), "malformed_json"),
        (VALID.replace(b'"x"', b"-Infinity"), "malformed_json"),
        (VALID.replace(b'"x"', b"[1,]"), "malformed_json"),
        (VALID.replace(b'"x"', b"01"), "malformed_json"),
        (VALID.replace(b"p1", b"\xff\xfe"), "malformed_json"),
        (VALID.replace(b"p1", b"\xed\xa0\x80"), "malformed_json"),
        (VALID.replace(b"p1", b"\\ud800"), "malformed_json"),
        (VALID.replace(b"p1", b"\n"), "malformed_json"),
        (VALID.decode().encode("utf-16"), "malformed_json"),
        (b"\xef\xbb\xbf" + VALID, "malformed_json"),
        (b"[" + VALID + b",]", "malformed_json"),
        (b"[" + VALID, "malformed_json"),
        (b"[]", "not_an_event"),
        (b" [ ] ", "not_an_event"),
        (b"null", "not_an_event"),
        (b"true", "not_an_event"),
        (b"5", "not_an_event"),
        (b'"text"', "not_an_event"),
        (b"[[]]", "not_an_event"),
        (b"{}", "invalid_schema"),
        (b"[{}]", "invalid_schema"),
        (b'{"kind":"x"}', "unknown_kind"),
        (VALID.replace(b"e1", b'e1","ts":"1999-12-31T23:59:59Z'), "timestamp_out_of_range"),
    ],
    ids=repr,
)
def test_reasons(payload: bytes, reason: str) -> None:
    letter = only_letter(payload)
    assert letter.reason == reason
    if not payload.startswith(b"["):
        assert letter.message.payload == payload


def test_an_array_of_the_greatest_length_and_one_more() -> None:
    def array(length: int) -> bytes:
        return b"[" + b",".join([b"{}"] * length) + b"]"

    assert len(outcomes(array(MAX_ARRAY_LENGTH))) == MAX_ARRAY_LENGTH == 1000
    letter = only_letter(array(MAX_ARRAY_LENGTH + 1))
    assert (letter.reason, letter.message.payload) == ("too_large", array(MAX_ARRAY_LENGTH + 1))


def test_a_message_of_the_greatest_size_and_one_byte_more() -> None:
    largest = VALID + b" " * (MAX_MESSAGE_BYTES - len(VALID))
    assert len(largest) == 1024 * 1024
    (event,) = outcomes(largest)
    assert isinstance(event, Event)
    letter = only_letter(largest + b" ")
    assert (letter.reason, letter.message.payload) == ("too_large", largest + b" ")
    assert only_letter(b"\xff" * (MAX_MESSAGE_BYTES + 1)).reason == "too_large"


def nested(levels: int) -> bytes:
    return b'{"a":' * (levels // 2) + b"[" * (levels // 2) + b"]" * (levels // 2) + b"}" * (levels // 2)


@pytest.mark.parametrize(
    "levels", [100, 248, 250, 252, 254, 256, 258, 500, 900, 1018, 1020, 1024, 1026, 2000, 20000]
)
@pytest.mark.parametrize(
    "around",
    [
        b'{"kind":"alert","subject_id":"p1","body":{"alert_type":"x","context":%s}}',
        b'{"kind":"alert","subject_id":"p1","body":{"alert_type":"x"},"extra":%s}',
        b'{"event_id":"e1","kind":"alert","subject_id":"p1","body":{"alert_type":"x"},"extra":%s}',
        b'{"event_id":"e1","kind":"feedback","subject_id":"p1","body":{"content":%s}}',
        b'{"event_id":"e1","kind":"rep_observation","subject_id":"p1","body":{"quality_score":1,"keypoints":[%s]}}',
        b'{"kind":%s}',
        b"%s",
    ],
)
def test_deep_nesting(levels: int, around: bytes) -> None:
    payload = around.replace(b"%s", nested(levels))
    (alone,) = outcomes(payload)
    assert alone.message.payload == payload
    if levels == 2000:
        assert isinstance(alone, DeadLetter)
    first, second = outcomes(b"[" + VALID + b"," + payload + b"]")
    assert isinstance(first, Event)
    assert second == alone


def check(payload: bytes) -> list[Event | DeadLetter]:
    """Checks that each element comes out once; returns the outcomes."""
    found = outcomes(payload)
    try:
        content = orjson.loads(payload)
    except orjson.JSONDecodeError:
        check_apart(payload, found)
        return found
    is_many = isinstance(content, list) and 1 <= len(content) <= MAX_ARRAY_LENGTH
    assert len(found) == (len(content) if is_many and len(payload) <= MAX_MESSAGE_BYTES else 1)
    if not is_many:
        assert found[0].message.payload == payload
    else:
        assert [orjson.loads(outcome.message.payload) for outcome in found] == content
    return found


def check_apart(payload: bytes, found: list[Event | DeadLetter]) -> None:
    """What is not JSON as a whole comes out whole, or as the parts of an array: every byte, and in order."""
    if [outcome.message.payload for outcome in found] == [payload]:
        assert isinstance(found[0], DeadLetter)
        assert found[0].reason == "malformed_json"
        return
    rest, signs = payload, b""
    for outcome in found:
        element = outcome.message.payload
        assert outcomes(element) == [outcome] or element.startswith(b"[")
        between, _, rest = rest.partition(element)
        signs += between
    assert b"".join((signs + rest).split()) == b"[" + b"," * (len(found) - 1) + b"]"
    assert any(isinstance(outcome, DeadLetter) for outcome in found)


BAD_ELEMENTS = [
    VALID.replace(b"p1", rb"\ud83d"),
    VALID.replace(b"p1", rb"\udc00\ud83d").replace(b'"x"', rb'"x","note":"\ud83d"'),
    VALID[:-1] + rb',"\ud83d":1}',
    VALID[:-1] + b',"unknown":1e400}',
    VALID[:-1] + b',"unknown":-1e400}',
    VALID[:-1] + b',"unknown":{"deep":[' + b"9" * 400 + b"]}}",
    VALID.replace(b'"x"', b"9" * 400),
    VALID.replace(b"p1", b"\xff"),
    VALID.replace(b"p1", b"\xed\xa0\x80"),
    VALID.replace(b"p1", b"caf\xe9"),
    VALID.replace(b'"x"', b"NaN"),
    VALID.replace(b'"x"', b"-Infinity"),
    VALID.replace(b'"x"', b"01"),
    VALID.replace(b"p1", b"\n"),
    VALID.replace(b"p1", rb"\x41"),
    VALID.replace(b"p1", rb"]}\",[{\\\ud800"),
    VALID.replace(b'"x"', b"{'a': [1]}"),
    VALID + VALID,
    b"undefined",
    b"NaN",
    b"1e400",
    rb'"\ud83d"',
]


@pytest.mark.parametrize("bad", BAD_ELEMENTS, ids=lambda bad: repr(bad[-60:]))
def test_a_bad_element_takes_no_neighbour_along_wherever_it_stands(bad: bytes) -> None:
    neighbours = [VALID.replace(b"e1", f"e{number}, ]}}".encode()) for number in range(3)]
    for position in range(4):
        elements = [*neighbours[:position], bad, *neighbours[position:]]
        found = outcomes(b"\n[ " + b" ,\t".join(elements) + b"\r]\n")
        assert [outcome.message.payload for outcome in found] == elements
        letter = found.pop(position)
        assert isinstance(letter, DeadLetter)
        assert letter.reason == "malformed_json"
        assert all(isinstance(outcome, Event) for outcome in found)
    assert only_letter(b"[" + bad + b"]").message.payload == bad
    if not bad.startswith(VALID):
        assert only_letter(bad).reason == "malformed_json"


@pytest.mark.parametrize(
    "payload",
    [
        b"[%s,%s",
        b"[%s,%s]]",
        b"[%s,%s}",
        b"[%s,%s]x",
        b"[%s,,%s]",
        b"[,%s,%s]",
        b"[%s,%s,]",
        b"[%s,%s][]",
        b"[[%s,%s]",
        b"[{%s,%s]",
        b'["%s,%s]',
        b"x[%s,%s]",
        b"\xef\xbb\xbf[%s,%s]",
        b"%s,%s",
    ],
    ids=repr,
)
def test_where_brackets_or_quotes_do_not_match_there_are_no_elements(payload: bytes) -> None:
    for second in (VALID, BAD_ELEMENTS[0], BAD_ELEMENTS[3]):
        whole = payload.replace(b"%s", VALID, 1).replace(b"%s", second)
        letter = only_letter(whole)
        assert (letter.reason, letter.message.payload) == ("malformed_json", whole)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_text_in_another_encoding_has_no_elements(encoding: str) -> None:
    whole = (b"[" + VALID + b"," + VALID + b"]").decode().encode(encoding)
    letter = only_letter(whole)
    assert (letter.reason, letter.message.payload) == ("malformed_json", whole)


def test_too_many_elements_are_too_many_if_one_of_them_is_bad() -> None:
    def array(length: int) -> bytes:
        return b"[" + b",".join([b"{}"] * (length - 1) + [b"1e400"]) + b"]"

    found = outcomes(array(MAX_ARRAY_LENGTH))
    assert len(found) == MAX_ARRAY_LENGTH
    letter = only_letter(array(MAX_ARRAY_LENGTH + 1))
    assert (letter.reason, letter.message.payload) == ("too_large", array(MAX_ARRAY_LENGTH + 1))


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([*BAD_ELEMENTS, VALID, b"{}", b"5"]) | st.binary(max_size=6), max_size=5),
    st.data(),
)
def test_any_array_of_anything(elements: list[bytes], data: st.DataObject) -> None:
    whole = b"[" + b",".join(elements) + b"]"
    check(whole)
    check(whole[: data.draw(st.integers(0, len(whole)))])


def test_ten_thousand_fuzzed_inputs() -> None:
    tally: Counter[str] = Counter()
    for payload in fuzzed(Random(20250320), 10_000):
        tally.update(found.reason if isinstance(found, DeadLetter) else "valid" for found in check(payload))
    assert tally.total() >= 10_000
    wanted = {"valid", "malformed_json", "not_an_event", "unknown_kind", "invalid_schema"}
    assert wanted | {"timestamp_out_of_range"} >= tally.keys() >= wanted


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes(payload: bytes) -> None:
    check(payload)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
NAMES = [
    "event_id",
    "kind",
    "ts",
    "subject_id",
    "exercise_id",
    "body",
    "meta",
    "site_id",
    "granted",
    "status",
]
LIKE_AN_EVENT = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from([*KINDS, "p1", {"quality_score": 1}, {"granted": True}]) | JSON
)


@settings(max_examples=500)
@given(JSON | LIKE_AN_EVENT | st.lists(LIKE_AN_EVENT | JSON, max_size=5))
def test_any_json(content: Any) -> None:
    check(json.dumps(content).encode())
    check(json.dumps(content, ensure_ascii=False, indent=1).encode(errors="surrogatepass"))
