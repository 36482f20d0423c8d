"""The calls of the API over HTTP, through Pub/Sub and the job to the views."""

import uuid
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import httpx
import orjson
import pytest

from pipeline.cloud.clients import subscriber
from pipeline.operations.provisioning import Resources
from tests.integration.api import Api, bearer, eventually, token
from tests.integration.streaming import PATIENT, SECRET, Job, check_views, event, sessions, view
from transforms.message import MAX_MESSAGE_BYTES, PUBLISH_ID_ATTRIBUTE

Start = Callable[..., Job]
Serve = Callable[..., Api]

MIB = 1024 * 1024
JSON = {"Content-Type": "application/json"}


def pulled(subscription: str) -> list[Any]:
    """The messages that wait on a subscription now."""
    answer = subscriber().pull(subscription=subscription, max_messages=1000, return_immediately=True)
    return [received.message for received in answer.received_messages]


def envelope(**more: Any) -> dict[str, Any]:
    return event("exercise_session", f"event-{uuid.uuid4()}", duration_minutes=20).envelope | more


def test_events_of_both_calls_are_counted_once_in_the_views(
    serve: Serve, start: Start, provisioned: Resources
) -> None:
    api, job = serve(), start()
    arrivals = sessions(60)
    single, batch = arrivals[0].envelope, [arrival.envelope for arrival in arrivals[1:]]

    first = api.post(single)
    assert first.status_code == 201
    assert first.json().keys() == {"event_id", "message_id", "timestamp"}
    assert first.json()["event_id"] == single["event_id"]
    answer = api.batch(batch)
    assert answer.status_code == 201
    results = answer.json()["results"]
    assert [(result["index"], result["status"]) for result in results] == [(n, 201) for n in range(59)]
    assert [result["event_id"] for result in results] == [content["event_id"] for content in batch]
    assert len({result["message_id"] for result in results}) == 1
    # A client that has not seen the answers sends all of it again.
    assert api.post(single).status_code == 201
    assert api.batch(batch).status_code == 201

    job.until_settled(120)
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert job.counter("event.duplicate") == 60


def test_what_is_published_arrives_as_it_was_sent(serve: Serve, subscribed: Resources) -> None:
    api, sent = serve(), envelope()
    answer = api.post(sent)
    api.batch([envelope(), envelope()])

    found: list[Any] = []

    def arrived() -> None:
        found.extend(pulled(subscribed.primary_subscription))
        assert len({message.message_id for message in found}) == 2

    eventually(arrived)
    messages = {message.message_id: message for message in found}
    message = messages.pop(answer.json()["message_id"])
    assert orjson.loads(message.data) == sent
    attributes = dict(message.attributes)
    assert attributes.pop(PUBLISH_ID_ATTRIBUTE)
    assert attributes == {"event_id": sent["event_id"], "kind": "exercise_session"}
    (array,) = messages.values()
    assert len(orjson.loads(array.data)) == 2


def test_an_event_without_an_id_counts_once_when_it_is_sent_again(
    serve: Serve, start: Start, provisioned: Resources
) -> None:
    api, job = serve(), start()
    nameless = {name: value for name, value in envelope().items() if name not in ("event_id", "ts")}
    ids = {api.post(nameless).json()["event_id"] for _ in range(2)}
    ids |= {api.batch([nameless]).json()["results"][0]["event_id"]}
    assert len(ids) == 1
    key = {"Idempotency-Key": "a-key"}
    keyed = {api.post(nameless, **key).json()["event_id"] for _ in range(2)}
    keyed |= {
        api.batch(events, **key).json()["results"][-1]["event_id"] for events in ([nameless], [{}, nameless])
    }
    assert len(keyed) == 1
    # The same key for another event.
    other = nameless | {"body": {"duration_minutes": 25}}
    assert api.post(other, **key).json()["event_id"] not in keyed | ids

    job.until_settled(8)
    assert job.counter("event.duplicate") == 5
    (row,) = view(provisioned, "adherence")
    assert row["completed_sessions"] == 3


def test_each_event_of_a_batch_stands_alone(api: Api) -> None:
    answer = api.batch([envelope(), {"kind": SECRET}, envelope(), 5])
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [(result["index"], result["status"]) for result in results] == [
        (0, 201),
        (1, 422),
        (2, 201),
        (3, 422),
    ]
    assert results[1]["validation_errors"][0]["field"] == "kind"
    assert SECRET not in answer.text


UNREADABLE = [rb'"\ud83d"', b"1e400", b"9" * 400, b'"\xff"', b"NaN", b"01", b'"\n"']


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: repr(value[:10]))
def test_an_event_of_a_batch_that_is_not_json_takes_no_other_along(api: Api, value: bytes) -> None:
    def post(*events: bytes) -> httpx.Response:
        content = b'{"source": "a:b", "events": [' + b", ".join(events) + b"]}"
        return api.client.post("/api/v1/events/batch", content=content, headers=JSON)

    for position in range(3):
        events = [orjson.dumps(envelope()) for _ in range(3)]
        events[position] = events[position][:-1] + b',"note":{"of":' + value + b"}}"
        answer = post(*events)
        assert answer.status_code == 207
        results = answer.json()["results"]
        statuses = [201] * 3
        statuses[position] = 400
        assert [(result["index"], result["status"]) for result in results] == list(enumerate(statuses))
        assert results[position]["validation_errors"] == [
            {"field": "event", "message": "Input should be JSON in UTF-8"}
        ]
    alone = post(events[2])
    assert (alone.status_code, alone.json()["error"]) == (400, "malformed_json")
    assert alone.json()["validation_errors"] == [
        {"field": "events.0", "message": "Input should be JSON in UTF-8"}
    ]
    # By itself it is the body that is not JSON.
    single = api.client.post("/api/v1/events", content=events[2], headers=JSON)
    assert (single.status_code, single.json()["error"]) == (400, "malformed_json")
    for body in (
        b'{"events": {"of": ' + value + b"}}",
        b'{"events": [' + value + b"}",
    ):
        assert api.client.post("/api/v1/events/batch", content=body, headers=JSON).status_code == 400


def test_a_batch_without_a_valid_event_is_refused(api: Api) -> None:
    answer = api.batch([{"kind": "alert", "subject_id": PATIENT, "body": {}}, []])
    assert answer.status_code == 422
    content = answer.json()
    assert content["message"] == "None of the 2 events is taken."
    assert content["validation_errors"] == [
        {"field": "events.0.body.alert_type", "message": "Field required"},
        {"field": "events.1", "message": "Input should be an object"},
    ]
    assert [result["status"] for result in content["results"]] == [422, 422]
    not_events: list[Any] = [[], [envelope()] * 1001, {}, None]
    for events in not_events:
        answer = api.batch(events)
        assert answer.status_code == 422
        assert answer.json()["validation_errors"] == [
            {"field": "events", "message": "Input should be an array of 1 to 1000 events"}
        ]
    not_batches: list[Any] = [[], 5, {}]
    for batch in not_batches:
        assert api.post(batch, "/api/v1/events/batch").status_code == 422


def test_an_invalid_event_is_told_field_by_field(api: Api) -> None:
    answer = api.post(envelope(subject_id="", body={"pain_level": SECRET}))
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "invalid_event",
        "message": "subject_id: String should have at least 1 character; "
        "body.pain_level: Input should be a valid number.",
        "validation_errors": [
            {"field": "subject_id", "message": "String should have at least 1 character"},
            {"field": "body.pain_level", "message": "Input should be a valid number"},
        ],
    }


NOT_JSON = [
    b"",
    b"{",
    b"\xff",
    b'{"a": NaN}',
    b'{"a": "\\ud800"}',
    b"{} {}",
    b'{"events": [NaN]}',
    b'{"events": ["\xff"]}',
]


@pytest.mark.parametrize("path", ["/api/v1/events", "/api/v1/events/batch"])
def test_what_cannot_be_read_is_refused(api: Api, path: str) -> None:

    def post(content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
        answer = api.client.post(path, content=content, headers=JSON | headers)
        assert answer.json().keys() >= {"error", "message"}
        assert answer.json()["message"].endswith(".")
        return answer

    for body in NOT_JSON:
        assert post(body).status_code == 400, body
    for media_type in ("", "text/plain", "application/json; charset=latin-1", "application/x-ndjson"):
        assert post(b"{}", **{"Content-Type": media_type}).status_code == 415
    for coding in ("gzip", "identity, gzip"):
        assert post(b"{}", **{"Content-Encoding": coding}).status_code == 415
    assert post(b" " * (4 * MIB + 1)).status_code == 413
    # In chunks, of an unknown number.
    assert post(b" " * MIB for _ in repeat(None, 5)).status_code == 413
    assert post(b" " * 4 * MIB).status_code == 400
    assert post(b"[" * 129 + b"]" * 129).json()["error"] == "nested_too_deeply"
    assert post(b'{"a":' * 100_000).json()["error"] == "nested_too_deeply"
    for key in (b"", b"k" * 129, b"two words", b"caf\xe9"):
        answer = api.client.post(path, json=envelope(), headers={b"Idempotency-Key": key})
        assert answer.status_code == 400
        assert answer.json()["validation_errors"][0]["field"] == "idempotency-key"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json; charset=utf-8; odata.metadata=minimal"},
        {"Content-Type": "application/json;"},
        {"Content-Encoding": "Identity"},
    ],
)
def test_a_type_and_an_encoding_are_read_by_their_grammar(api: Api, headers: dict[str, str]) -> None:
    answer = api.client.post("/api/v1/events", content=orjson.dumps(envelope()), headers=JSON | headers)
    assert answer.status_code == 201


def test_an_event_longer_than_a_message_is_refused_and_its_neighbours_are_not(api: Api) -> None:
    long = envelope(note="x" * MAX_MESSAGE_BYTES)
    assert api.post(long).status_code == 413
    answer = api.batch([envelope(), long])
    assert (answer.status_code, answer.json()["results"][1]["status"]) == (207, 413)
    assert api.batch([long]).status_code == 413


def test_a_batch_of_two_megabytes_becomes_as_many_messages_as_it_needs(
    serve: Serve, start: Start, provisioned: Resources
) -> None:
    api, job = serve(), start()
    answer = api.batch([envelope(note="x" * 30_000) for _ in range(100)])
    assert answer.status_code == 201
    assert len({result["message_id"] for result in answer.json()["results"]}) == 3
    job.until_settled(100)
    assert job.counter("event.processed.exercise_session") == 100


def test_every_answer_has_the_security_headers_and_says_nothing_of_the_server(api: Api) -> None:
    answers = [
        api.post(envelope()),
        api.post({}),
        httpx.post(f"{api.url}/api/v1/events"),
        api.client.get("/nowhere"),
        api.client.put("/api/v1/events"),
        api.client.get("/docs"),
        api.client.get("/docs/files/swagger-ui-bundle.js"),
        api.client.get("/openapi.json"),
        api.client.get("/healthz"),
    ]
    assert [answer.status_code for answer in answers] == [201, 422, 401, 404, 405, 200, 200, 200, 200]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in answer.headers
    for answer in answers[1:5]:
        assert answer.json().keys() >= {"error", "message"}
    assert answers[4].headers["Allow"] == "POST"
    assert "//" not in answers[5].text.replace("<!--", "").replace("//www.w3.org", "")


def test_a_token_of_some_sites_writes_for_these_only(api: Api) -> None:
    headers = bearer(token(sites=["north"]))
    north, south = envelope(meta={"site_id": "north"}), envelope(meta={"site_id": "south"})
    assert api.post(north, **headers).status_code == 201
    for foreign in (south, envelope()):
        answer = api.post(foreign, **headers)
        assert answer.status_code == 403
        assert answer.json()["validation_errors"][0]["field"] == "meta.site_id"
    answer = api.batch([north, south], **headers)
    assert (answer.status_code, answer.json()["results"][1]["status"]) == (207, 403)
    assert api.batch([south], **headers).status_code == 403
