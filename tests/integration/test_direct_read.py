"""The DirectRunner's read, against the real emulator."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp
from google.api_core.exceptions import DeadlineExceeded

from pipeline.cloud.clients import publisher, subscriber
from pipeline.direct.runner import StreamingDirectRunner
from pipeline.direct.subscription import MAX_MESSAGES, ReadFromPubSubDirect
from pipeline.sources.pubsub import SubscriptionError
from tests.integration.conftest import PROJECT
from transforms.message import Message

HOLD_SECONDS = 0.2
# Pub/Sub's shortest, and one that no test waits for.
ACK_DEADLINE_SECONDS = 10
LONG_ACK_DEADLINE_SECONDS = 600

# What the steps below have seen, by the name that a test gave them.
SEEN: dict[str, list[Any]] = {}
GATE = threading.Event()


class Subscription:
    """A topic with one subscription."""

    def __init__(self, ack_deadline_seconds: int = ACK_DEADLINE_SECONDS) -> None:
        name = f"direct-{uuid.uuid4().hex}"
        self.topic = f"projects/{PROJECT}/topics/{name}"
        self.path = f"projects/{PROJECT}/subscriptions/{name}"
        publisher().create_topic(name=self.topic)
        subscriber().create_subscription(
            name=self.path, topic=self.topic, ack_deadline_seconds=ack_deadline_seconds
        )

    def publish(self, *payloads: bytes, **attributes: Any) -> None:
        futures = [publisher().publish(self.topic, payload, **attributes) for payload in payloads]
        for future in futures:
            future.result(30)

    def pull(self) -> list[bytes]:
        """What is there, or comes within a second."""
        try:
            response = subscriber().pull(subscription=self.path, max_messages=1000, retry=None, timeout=1.0)
        except DeadlineExceeded:
            return []
        return [received.message.data for received in response.received_messages]

    def delete(self) -> None:
        subscriber().delete_subscription(subscription=self.path)
        publisher().delete_topic(topic=self.topic)


@pytest.fixture
def first() -> Iterator[Subscription]:
    subscription = Subscription()
    yield subscription
    subscription.delete()


@pytest.fixture
def second() -> Iterator[Subscription]:
    subscription = Subscription()
    yield subscription
    subscription.delete()


@pytest.fixture
def patient() -> Iterator[Subscription]:
    """Delivers nothing again by itself while a test runs."""
    subscription = Subscription(LONG_ACK_DEADLINE_SECONDS)
    yield subscription
    subscription.delete()


@pytest.fixture
def seen() -> Iterator[str]:
    name = uuid.uuid4().hex
    SEEN[name] = []
    yield name
    del SEEN[name]


class Collect(beam.DoFn):
    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, element: Any, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        SEEN[self._name].append((element, timestamp))


class CollectBundles(beam.DoFn):
    """One entry for each bundle: the elements in it. The first bundle waits until GATE is open."""

    def __init__(self, name: str) -> None:
        self._name = name

    def start_bundle(self) -> None:
        self._bundle: list[bytes] = []

    def process(self, message: Message) -> None:
        self._bundle.append(message.payload)

    def finish_bundle(self) -> None:
        SEEN[self._name].append(self._bundle)
        assert GATE.wait(60)


class OnlyWhen(beam.DoFn):
    """Holds an element back until the moment that it states, in seconds; everything else waits with it."""

    def process(self, message: Message) -> Iterator[tuple[str, Message]]:
        while time.time() < float(message.attributes["not_before"]):
            time.sleep(0.001)
        yield "key", message


class PutOff(beam.DoFn):
    """Each message sets the timer to the moment in its payload."""

    TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)

    def __init__(self, name: str) -> None:
        self._name = name

    def process(self, element: tuple[str, Message], timer: Any = beam.DoFn.TimerParam(TIMER)) -> None:
        moment = Timestamp(int(element[1].payload))
        timer.set(moment)
        SEEN[self._name].append(("set", moment))

    @on_timer(TIMER)
    def fire(self, moment: Any = beam.DoFn.TimestampParam) -> None:
        SEEN[self._name].append(("fired", moment))


def start(build: Callable[[beam.Pipeline], Any]) -> Any:
    pipeline = beam.Pipeline(runner=StreamingDirectRunner(), options=PipelineOptions(["--streaming"]))
    build(pipeline)
    return pipeline.run()


@contextmanager
def running(build: Callable[[beam.Pipeline], Any]) -> Iterator[Any]:
    result = start(build)
    try:
        yield result
    finally:
        GATE.set()
        result.cancel()


def read(pipeline: beam.Pipeline, *subscriptions: Subscription, hold_seconds: float = HOLD_SECONDS) -> Any:
    return [
        pipeline | f"Read {number}" >> ReadFromPubSubDirect(subscription.path, hold_seconds)
        for number, subscription in enumerate(subscriptions)
    ] | "Both" >> beam.Flatten()


def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def pull_until(
    subscription: Subscription, enough: Callable[[list[bytes]], bool], seconds: float = 60
) -> None:
    pulled: list[bytes] = []
    deadline = time.monotonic() + seconds
    while not enough(pulled):
        assert time.monotonic() < deadline, "it did not come about"
        pulled += subscription.pull()


def payloads(name: str) -> list[bytes]:
    return [message.payload for message, _ in SEEN[name]]


def numbered(count: int) -> list[bytes]:
    return [b"%05d" % number for number in range(count)]


def test_a_message_arrives_whole(first: Subscription, seen: str) -> None:
    before = time.time()
    first.publish(b"\x00\xff", event_id="e")
    with running(lambda pipeline: read(pipeline, first) | beam.ParDo(Collect(seen))):
        eventually(lambda: SEEN[seen])
    ((message, timestamp),) = SEEN[seen]
    assert message.payload == b"\x00\xff"
    assert message.attributes == {"event_id": "e"}
    assert message.subscription == first.path
    assert message.message_id
    assert before - 1 < message.publish_us / 1e6 < time.time() + 1
    assert timestamp == Timestamp(micros=message.publish_us)


def test_an_idle_subscription_does_not_delay_the_other(
    first: Subscription, second: Subscription, seen: str
) -> None:
    # One after the other: a single wait for the idle subscription would take all of the time.
    expected = numbered(20)
    with running(lambda pipeline: read(pipeline, first, second) | beam.ParDo(Collect(seen))):
        deadline = time.monotonic() + 20
        for payload in expected:
            first.publish(payload)
            eventually(lambda: payloads(seen)[-1:] == [payload], deadline - time.monotonic())  # noqa: B023
    assert payloads(seen) == expected


def test_what_piles_up_comes_in_few_large_bundles_and_does_not_fill_the_memory(
    first: Subscription, seen: str
) -> None:
    GATE.clear()
    with running(lambda pipeline: read(pipeline, first) | beam.ParDo(CollectBundles(seen))) as result:
        first.publish(b"first")
        eventually(lambda: SEEN[seen])
        first.publish(*numbered(3500))
        (subscription,) = result._evaluation_context.subscriptions.values()
        eventually(lambda: subscription.waiting() >= MAX_MESSAGES)
        GATE.set()
        eventually(lambda: sum(map(len, SEEN[seen])) == 3501)
    assert SEEN[seen][:1] == [[b"first"]]
    assert len(SEEN[seen][1]) == max(map(len, SEEN[seen])) == MAX_MESSAGES
    assert sorted(itertools.chain(*SEEN[seen][1:])) == numbered(3500)


def test_it_stops_pulling_while_enough_waits(first: Subscription, second: Subscription, seen: str) -> None:
    GATE.clear()
    with running(lambda pipeline: read(pipeline, first, second) | beam.ParDo(CollectBundles(seen))) as result:
        second.publish(b"first")
        eventually(lambda: SEEN[seen])
        first.publish(*numbered(2 * MAX_MESSAGES + 500))
        subscription = next(
            subscription
            for read_step, subscription in result._evaluation_context.subscriptions.items()
            if read_step.transform.source.path == first.path
        )
        eventually(lambda: subscription.waiting() >= MAX_MESSAGES)
        # Whoever else pulls gets what is left: the pipeline has stopped at a bounded number.
        pull_until(first, lambda left: len(left) >= 500)
        assert subscription.waiting() <= 2 * MAX_MESSAGES


def test_timers_of_batches_fire_while_nothing_arrives(
    first: Subscription, second: Subscription, seen: str
) -> None:
    first.publish(b"a", b"b")

    def build(pipeline: beam.Pipeline) -> Any:
        keyed = read(pipeline, first, second) | beam.Map(
            lambda message: (0, message.payload)
        ).with_output_types(tuple[int, bytes])
        return keyed | beam.GroupIntoBatches(100, 0.5) | beam.ParDo(Collect(seen))

    with running(build):
        eventually(lambda: sum(len(batch) for (_, batch), _ in SEEN[seen]) == 2)


def test_a_timer_that_was_put_off_does_not_fire_at_its_old_moment(first: Subscription, seen: str) -> None:
    due = int(time.time()) + 3
    first.publish(b"%d" % due, not_before="0")

    def build(pipeline: beam.Pipeline) -> Any:
        keyed = read(pipeline, first) | beam.ParDo(OnlyWhen()).with_output_types(tuple[str, Message])
        return keyed | beam.ParDo(PutOff(seen))

    with running(build):
        eventually(lambda: SEEN[seen])
        # It reaches the timer's step when the timer is due already.
        first.publish(b"%d" % (due + 1), not_before=str(due + 0.1))
        eventually(lambda: any(what == "fired" for what, _ in SEEN[seen]))
    expected = [("set", due), ("set", due + 1), ("fired", due + 1)]
    assert SEEN[seen] == [(what, Timestamp(moment)) for what, moment in expected]


def test_a_cancelled_pipeline_gives_back_what_it_has_not_acknowledged_to_the_next_one(
    patient: Subscription, first: Subscription, seen: str
) -> None:
    expected = numbered(300)
    patient.publish(*expected)

    def build(pipeline: beam.Pipeline) -> Any:
        return read(pipeline, patient, first, hold_seconds=3600) | beam.ParDo(Collect(seen))

    with running(build):
        eventually(lambda: sorted(payloads(seen)) == expected)
    SEEN[seen].clear()
    with running(build):
        eventually(lambda: sorted(payloads(seen)) == expected)


@pytest.mark.parametrize("exists", [True, False], ids=["beside one that exists", "alone"])
def test_a_missing_subscription_ends_the_pipeline_with_one_sentence(
    first: Subscription, seen: str, exists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    missing = f"projects/{PROJECT}/subscriptions/missing-{uuid.uuid4().hex}"

    def build(pipeline: beam.Pipeline) -> Any:
        messages = [pipeline | "Read missing" >> ReadFromPubSubDirect(missing, HOLD_SECONDS)]
        if exists:
            messages.append(pipeline | "Read" >> ReadFromPubSubDirect(first.path, HOLD_SECONDS))
        return messages | beam.Flatten() | beam.ParDo(Collect(seen))

    with pytest.raises(SubscriptionError) as raised:
        start(build).wait_until_finish()
    assert str(raised.value) == (
        f"The subscription {missing} does not exist: create it with `python -m pipeline.provision`."
    )
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_killed_pipeline_loses_nothing_that_was_not_acknowledged(
    first: Subscription, second: Subscription
) -> None:
    short, long = numbered(50), [b"long-" + payload for payload in numbered(50)]
    with reader(first.path, second.path) as lines:
        first.publish(*short)
        eventually(lambda: acknowledged(lines, first.path) == len(short))
        second.publish(*long)
        eventually(lambda: sum(line.startswith(b"long-") for line in lines) == len(long))
    pull_until(second, lambda again: set(again) == set(long))
    # Their deadline was over before that of the others.
    assert first.pull() == []
    assert not acknowledged(lines, second.path)


def test_an_interrupted_pipeline_gives_back_what_it_has_not_acknowledged(
    first: Subscription, patient: Subscription
) -> None:
    expected = numbered(50)
    with reader(first.path, patient.path, signal.SIGINT) as lines:
        patient.publish(*expected)
        eventually(lambda: sum(line.strip() in expected for line in lines) == len(expected))
    pull_until(patient, lambda again: sorted(again) == expected)
    assert [line for line in lines if line.strip() not in expected] == [b"interrupted\n"]


def acknowledged(lines: list[bytes], path: str) -> int:
    ours = [line for line in lines if path.encode() in line and b"acknowledged" in line]
    return sum(int(line.split(path.encode() + b": ")[1].split()[0]) for line in ours)


@contextmanager
def reader(short: str, long: str, end: signal.Signals = signal.SIGKILL) -> Iterator[list[bytes]]:
    """A process that reads both, until the block's end; gives what it has printed."""
    lines: list[bytes] = []
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import read_and_print; read_and_print({short!r}, {long!r})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(os.environ),
    )
    assert process.stdout
    thread = threading.Thread(
        target=lambda output: lines.extend(iter(output.readline, b"")), args=[process.stdout]
    )
    thread.start()
    try:
        yield lines
    finally:
        process.send_signal(end)
        process.wait(60)
        thread.join()
        process.stdout.close()


class Print(beam.DoFn):
    def process(self, message: Message) -> None:
        print(message.payload.decode(), flush=True)


def read_and_print(short: str, long: str) -> None:
    """What the process of `reader` does."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("pipeline.direct.subscription").setLevel(logging.DEBUG)
    pipeline = beam.Pipeline(runner=StreamingDirectRunner(), options=PipelineOptions(["--streaming"]))
    for name, path, hold_seconds in (("short", short, HOLD_SECONDS), ("long", long, 3600)):
        (
            pipeline
            | f"Read {name}" >> ReadFromPubSubDirect(path, hold_seconds)
            | f"Print {name}" >> beam.ParDo(Print())
        )
    try:
        pipeline.run().wait_until_finish()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
