"""The official Pub/Sub emulator and the project's own server behave alike, to Google's clients."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.api_core.exceptions import AlreadyExists, InvalidArgument, NotFound
from google.cloud.pubsub_v1.subscriber.message import Message
from google.pubsub_v1.types import ExpirationPolicy, ReceivedMessage, Subscription, Topic

from pipeline.cloud.clients import publisher, subscriber
from tests.integration.conftest import PROJECT
from tests.integration.servers import SERVERS

WAIT_SECONDS = 60.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of each server."""
    with SERVERS[request.param](tmp_path_factory.mktemp("pubsub")) as address:
        yield address


@pytest.fixture(autouse=True)
def named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server)


@pytest.fixture
def topic() -> str:
    return make_topic(message_retention_duration=timedelta(days=1), labels={"a": "b"})


def make_topic(**settings: Any) -> str:
    path = f"projects/{PROJECT}/topics/pubsub-{uuid.uuid4().hex}"
    publisher().create_topic(request=Topic(name=path, **settings))
    return path


@pytest.fixture
def subscription(topic: str) -> str:
    return subscribe(topic)


def subscribe(topic: str, **settings: Any) -> str:
    path = f"projects/{PROJECT}/subscriptions/pubsub-{uuid.uuid4().hex}"
    subscriber().create_subscription(request=Subscription(name=path, topic=topic, **settings))
    return path


def publish(topic: str, *payloads: bytes, **attributes: Any) -> list[str]:
    futures = [publisher().publish(topic, payload, **attributes) for payload in payloads]
    return [future.result(WAIT_SECONDS) for future in futures]


def pull_now(subscription: str, most: int = 1000) -> list[ReceivedMessage]:
    """What is there at once, if anything is."""
    with pytest.warns(DeprecationWarning, match="return_immediately"):
        answer = subscriber().pull(subscription=subscription, max_messages=most, return_immediately=True)
    return list(answer.received_messages)


def pull(subscription: str, count: int) -> list[ReceivedMessage]:
    """So many messages, as they come."""
    received: list[ReceivedMessage] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(received) < count:
        assert time.monotonic() < deadline, f"{len(received)} of {count} came"
        received += subscriber().pull(subscription=subscription, max_messages=count).received_messages
    return received


def payloads(received: list[ReceivedMessage]) -> list[bytes]:
    return sorted(each.message.data for each in received)


def ids(received: list[ReceivedMessage]) -> list[str]:
    return [each.ack_id for each in received]


def test_a_message_arrives_whole_and_once_acknowledged_is_gone(topic: str, subscription: str) -> None:
    before = datetime.now(UTC)
    sent = publish(topic, b"\x00\xff", note="é")
    sent += publish(topic, b"", empty="yes")

    received = pull(subscription, 2)

    by_id = {each.message.message_id: each.message for each in received}
    assert set(by_id) == set(sent)
    message = by_id[sent[0]]
    assert (message.data, dict(message.attributes)) == (b"\x00\xff", {"note": "é"})
    assert timedelta(seconds=-5) < message.publish_time - before < timedelta(seconds=60)
    subscriber().acknowledge(subscription=subscription, ack_ids=ids(received))
    subscriber().modify_ack_deadline(subscription=subscription, ack_ids=ids(received), ack_deadline_seconds=0)
    assert pull_now(subscription) == []


def test_each_subscription_gets_what_came_since_it_exists() -> None:
    # Of a topic that keeps its messages, the official emulator delivers older ones too; Google does not.
    topic = make_topic()
    publish(topic, b"early")
    first, second = subscribe(topic), subscribe(topic)
    publish(topic, b"late")
    assert payloads(pull(first, 1)) == payloads(pull(second, 1)) == [b"late"]


def test_a_pull_gives_no_more_than_asked_for_and_nothing_twice(topic: str, subscription: str) -> None:
    publish(topic, *[b"%d" % number for number in range(9)])
    received: list[ReceivedMessage] = []
    while len(received) < 9:
        answer = subscriber().pull(subscription=subscription, max_messages=4).received_messages
        assert 0 < len(answer) <= 4
        received += answer
    assert payloads(received) == [b"%d" % number for number in range(9)]


def test_a_pull_may_bring_many_large_messages(topic: str, subscription: str) -> None:
    sent = [b"%02d" % number + b"x" * 1024 * 1024 for number in range(12)]
    publish(topic, *sent)
    assert payloads(pull(subscription, 12)) == sent


def test_a_pull_waits_for_a_message(topic: str, subscription: str) -> None:
    assert pull_now(subscription) == []
    later = threading.Timer(0.5, publish, [topic, b"x"])
    later.start()
    assert payloads(pull(subscription, 1)) == [b"x"]
    later.join()


def test_what_is_given_back_or_forgotten_is_delivered_again(topic: str, subscription: str) -> None:
    sent = publish(topic, b"back", b"forgotten")
    received = {each.message.data: each for each in pull(subscription, 2)}
    for payload, seconds in ((b"back", 0), (b"forgotten", 1)):
        subscriber().modify_ack_deadline(
            subscription=subscription, ack_ids=[received[payload].ack_id], ack_deadline_seconds=seconds
        )
    again = pull(subscription, 2)
    assert payloads(again) == [b"back", b"forgotten"]
    assert {each.message.message_id for each in again} == set(sent)
    assert set(ids(again)).isdisjoint({each.ack_id for each in received.values()})


def test_a_deadline_can_be_extended(topic: str, subscription: str) -> None:
    publish(topic, b"held")
    received = pull(subscription, 1)
    for seconds in (1, 30):
        subscriber().modify_ack_deadline(
            subscription=subscription, ack_ids=ids(received), ack_deadline_seconds=seconds
        )
    publish(topic, b"other", b"more")
    # That long a message of a second would have been back.
    deadline = time.monotonic() + 3
    seen: list[ReceivedMessage] = []
    while time.monotonic() < deadline:
        seen += pull_now(subscription)
    assert payloads(seen) == [b"more", b"other"]
    subscriber().acknowledge(subscription=subscription, ack_ids=ids(received) + ids(seen))


def test_a_seek_brings_back_what_was_acknowledged_since(topic: str, subscription: str) -> None:
    publish(topic, b"before")
    [before] = pull(subscription, 1)
    publish(topic, b"acknowledged", b"held")
    received = pull(subscription, 2)
    acknowledged = [each.ack_id for each in received if each.message.data == b"acknowledged"]
    subscriber().acknowledge(subscription=subscription, ack_ids=[before.ack_id, *acknowledged])
    publish(topic, b"waiting")

    moment = min(each.message.publish_time for each in received)
    subscriber().seek(request={"subscription": subscription, "time": moment})

    assert payloads(pull(subscription, 3)) == [b"acknowledged", b"held", b"waiting"]
    assert pull_now(subscription) == []


def test_a_seek_to_the_present_leaves_out_what_waits(topic: str, subscription: str) -> None:
    publish(topic, b"waiting", b"held")
    pull(subscription, 1)
    moment = datetime.now(UTC) + timedelta(seconds=1)
    subscriber().seek(request={"subscription": subscription, "time": moment})
    assert pull_now(subscription) == []


def test_a_subscription_may_keep_what_it_acknowledged() -> None:
    topic = make_topic()
    keeping = subscribe(topic, retain_acked_messages=True, message_retention_duration=timedelta(hours=1))
    publish(topic, b"kept")
    subscriber().acknowledge(subscription=keeping, ack_ids=ids(pull(keeping, 1)))
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    subscriber().seek(request={"subscription": keeping, "time": hour_ago})
    assert payloads(pull(keeping, 1)) == [b"kept"]


def test_a_stream_delivers_and_acknowledges(topic: str, subscription: str) -> None:
    seen: list[bytes] = []
    done = threading.Event()

    def take(message: Message) -> None:
        first = seen.count(message.data) == 0
        seen.append(message.data)
        # Once is given back.
        message.nack() if message.data == b"7" and first else message.ack()
        if len(seen) == 51:
            done.set()

    stream = subscriber().subscribe(subscription, take)
    publish(topic, *[b"%d" % number for number in range(50)])

    assert done.wait(WAIT_SECONDS), sorted(seen)
    stream.cancel()
    stream.result(WAIT_SECONDS)
    assert sorted(seen) == sorted([b"%d" % number for number in range(50)] + [b"7"])


def test_settings_are_kept_and_updated(topic: str) -> None:
    path = subscribe(topic, ack_deadline_seconds=20, expiration_policy=ExpirationPolicy())
    wanted = Subscription(name=path, ack_deadline_seconds=60)
    mask = {"paths": ["ack_deadline_seconds"]}

    updated = subscriber().update_subscription(request={"subscription": wanted, "update_mask": mask})

    found = subscriber().get_subscription(subscription=path)
    assert found == updated
    assert (found.topic, found.ack_deadline_seconds) == (topic, 60)
    assert not found.expiration_policy.ttl
    assert publisher().get_topic(topic=topic).message_retention_duration == timedelta(days=1)
    longer = Topic(name=topic, message_retention_duration=timedelta(days=2))
    publisher().update_topic(
        request={"topic": longer, "update_mask": {"paths": ["message_retention_duration"]}}
    )
    assert publisher().get_topic(topic=topic).message_retention_duration == timedelta(days=2)


def test_defaults_are_googles(topic: str) -> None:
    found = subscriber().get_subscription(subscription=subscribe(topic))
    assert found.ack_deadline_seconds == 10
    assert found.message_retention_duration == timedelta(days=7)


def test_lists_name_what_exists(topic: str, subscription: str) -> None:
    project = f"projects/{PROJECT}"
    assert topic in [each.name for each in publisher().list_topics(project=project)]
    assert subscription in [each.name for each in subscriber().list_subscriptions(project=project)]
    assert list(publisher().list_topic_subscriptions(topic=topic)) == [subscription]
    assert topic not in [each.name for each in publisher().list_topics(project="projects/other-project")]


def test_a_subscription_outlives_its_topic(topic: str, subscription: str) -> None:
    publish(topic, b"left")
    publisher().delete_topic(topic=topic)
    assert subscriber().get_subscription(subscription=subscription).topic == "_deleted-topic_"
    assert payloads(pull(subscription, 1)) == [b"left"]
    subscriber().delete_subscription(subscription=subscription)
    with pytest.raises(NotFound):
        subscriber().get_subscription(subscription=subscription)


REFUSED: dict[str, tuple[type[Exception], Callable[[str, str], Any]]] = {
    "a topic that exists": (AlreadyExists, lambda topic, _: publisher().create_topic(name=topic)),
    "a subscription that exists": (
        AlreadyExists,
        lambda topic, path: subscriber().create_subscription(name=path, topic=topic),
    ),
    "a subscription on no topic": (NotFound, lambda topic, _: subscribe(f"{topic}-missing")),
    "no topic to publish to": (NotFound, lambda topic, _: publish(f"{topic}-missing", b"x")),
    "no topic": (NotFound, lambda topic, _: publisher().get_topic(topic=f"{topic}-missing")),
    "no topic to delete": (NotFound, lambda topic, _: publisher().delete_topic(topic=f"{topic}-missing")),
    "no subscription": (NotFound, lambda _, path: pull(f"{path}-missing", 1)),
    "no subscription to acknowledge": (
        NotFound,
        lambda _, path: subscriber().acknowledge(subscription=f"{path}-missing", ack_ids=["x"]),
    ),
    "no subscription to seek": (
        NotFound,
        lambda _, path: subscriber().seek(
            request={"subscription": f"{path}-missing", "time": datetime.now(UTC)}
        ),
    ),
    "an empty message": (InvalidArgument, lambda topic, _: publish(topic, b"")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_work_is_refused(topic: str, subscription: str, what: str) -> None:
    error, call = REFUSED[what]
    with pytest.raises(error):
        call(topic, subscription)
