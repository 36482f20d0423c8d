"""What misbehaves does so as it is told, and the code that talks to it copes with each fault alone."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import orjson
import pytest
from google.cloud.pubsub_v1.subscriber.message import Message
from google.cloud.pubsub_v1.types import FlowControl

from local.emulators import bigquery_emulator
from pipeline.cloud.clients import bigquery, publisher, subscriber
from pipeline.operations.provisioning import Resources, provision, table_definition
from pipeline.options import parse_options
from pipeline.preflight import check
from pipeline.rebuild import planned_rebuild, seek
from pipeline.sinks import bigquery as writing
from pipeline.sinks.bigquery import TableWriter
from tests.chaos.background import Background
from tests.chaos.bigquery import ANY_CALL, INSERT, misbehaving_bigquery
from tests.chaos.pubsub import DEATH, TRANSIENT, MisbehavingPubSub, misbehaving_pubsub
from tests.chaos.schedule import Schedule
from transforms.rows import Row

PROJECT = "rehab-local"
TOPIC = f"projects/{PROJECT}/topics/chaos"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/chaos"
WAIT_SECONDS = 60.0


class Script(Schedule):
    """The faults that are given, one call after the other, and then none."""

    def __init__(self, *faults: str) -> None:
        super().__init__(seed=1, share=0)
        self._left = list(faults)

    def tell(self, *faults: str) -> None:
        """Has these happen next."""
        self._left = list(faults)

    def draw(self, faults: Sequence[str]) -> str | None:
        self.calls += 1
        fault = self._left.pop(0) if self._left else None
        if fault:
            assert fault in faults
            self.faults[fault] += 1
        return fault


def test_equal_seeds_draw_alike_and_every_fault_comes() -> None:
    first, second, other = Schedule(7, 0.1), Schedule(7, 0.1), Schedule(8, 0.1)
    drawn = [first.draw(INSERT) for _ in range(2000)]
    assert drawn == [second.draw(INSERT) for _ in range(2000)]
    assert drawn != [other.draw(INSERT) for _ in range(2000)]
    assert set(first.faults) == set(INSERT)
    assert max(first.faults.values()) - min(first.faults.values()) <= 1
    assert 150 < first.faults.total() < 250


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("bigquery")
    with bigquery_emulator(folder, folder / "data") as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("BIGQUERY_EMULATOR_HOST", url)
        bigquery(PROJECT).create_dataset(f"{PROJECT}.faults")
        bigquery(PROJECT).create_table(table_definition(f"{PROJECT}.faults", "consents"))
        yield url


@pytest.mark.parametrize("fault", [*INSERT, "no_answer_in_time"])
def test_rows_are_written_through_each_fault(
    loop: Background, emulator: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    timeout_seconds = 0.2
    if fault == "no_answer_in_time":
        # Longer than the client has patience for.
        monkeypatch.setattr(writing, "_REQUEST_SECONDS", 0.5)
        fault, timeout_seconds = "done_but_timed_out", 2.0
    script = Script(fault)
    with misbehaving_bigquery(loop, emulator, script, timeout_seconds) as proxy:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
        proxy.armed = True
        rows = [consent_row(f"{fault}-{timeout_seconds}-{number}") for number in range(20)]

        assert TableWriter(f"{PROJECT}.faults", "consents").write(rows) == []

        proxy.armed = False
        assert script.faults == {fault: 1}
        query = "SELECT patient_id FROM faults.consents"
        written = {row["patient_id"] for row in bigquery(PROJECT).query_and_wait(query)}
    assert written >= {row.key for row in rows}


def consent_row(patient_id: str) -> Row:
    columns = {
        "patient_id": patient_id,
        "consent_status": "granted",
        "visible": True,
        "version": 1,
        "updated_at": "2026-01-01T00:00:00Z",
        "source_event_id": None,
    }
    return Row(patient_id, 1, 0, orjson.dumps(columns))


@pytest.mark.parametrize("fault", ANY_CALL)
def test_a_query_comes_through_each_fault(
    loop: Background, emulator: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    script = Script(fault)
    with misbehaving_bigquery(loop, emulator, script, timeout_seconds=0.2) as proxy:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", proxy.url)
        proxy.armed = True
        assert [row["one"] for row in bigquery(PROJECT).query_and_wait("SELECT 1 AS one")] == [1]
    assert script.faults == {fault: 1}


@pytest.fixture
def script() -> Script:
    """What a test has told to go wrong; empty until it does."""
    return Script()


@pytest.fixture
def server(loop: Background, script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingPubSub]:
    with misbehaving_pubsub(loop, script) as running:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
        publisher().create_topic(name=TOPIC)
        subscriber().create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=10)
        running.misbehaviour.armed = True
        yield running


def publish(*payloads: bytes) -> None:
    for future in [publisher().publish(TOPIC, payload) for payload in payloads]:
        future.result(WAIT_SECONDS)


def pull() -> list[Any]:
    answer = subscriber().pull(subscription=SUBSCRIPTION, max_messages=1000)
    return list(answer.received_messages)


def acknowledge(received: list[Any]) -> None:
    subscriber().acknowledge(subscription=SUBSCRIPTION, ack_ids=[each.ack_id for each in received])


def counted(received: list[Any]) -> Counter[bytes]:
    return Counter(each.message.data for each in received)


def test_what_is_refused_is_not_done_and_what_is_done_may_be_refused(
    server: MisbehavingPubSub, script: Script
) -> None:
    script.tell("refused")
    publish(b"once")
    script.tell("done_but_refused")
    publish(b"twice")
    assert counted(pull()) == {b"once": 1, b"twice": 2}


def test_a_dropped_acknowledgement_is_none(server: MisbehavingPubSub, script: Script) -> None:
    publish(b"x")
    received = pull()
    script.tell("acknowledgement_dropped")
    acknowledge(received)
    assert server.pubsub.undelivered(SUBSCRIPTION) == 1
    acknowledge(received)
    assert server.pubsub.undelivered(SUBSCRIPTION) == 0


def test_messages_come_in_another_order_twice_and_again(server: MisbehavingPubSub, script: Script) -> None:
    sent = [b"%03d" % number for number in range(200)]
    publish(*sent)
    script.tell("reordered")
    reordered = pull()
    assert counted(reordered) == Counter(sent)
    assert [each.message.data for each in reordered] != sent
    again(reordered)
    script.tell("duplicated")
    duplicated = pull()
    assert counted(duplicated).keys() == set(sent)
    assert len(duplicated) > len(sent)
    again(list({each.ack_id: each for each in duplicated}.values()))
    script.tell("redelivered")
    first, second = pull(), pull()
    assert counted(first) == Counter(sent)
    assert 0 < len(second) < len(sent)
    assert counted(second).keys() < set(sent)


def again(received: list[Any]) -> None:
    """Gives messages back."""
    ids = [each.ack_id for each in received]
    subscriber().modify_ack_deadline(subscription=SUBSCRIPTION, ack_ids=ids, ack_deadline_seconds=0)


def test_what_was_published_outlives_the_servers_death(server: MisbehavingPubSub) -> None:
    publish(b"before")
    server.die_soon()
    publish(b"after")
    assert server.schedule.faults == {DEATH: 1}
    received: list[Any] = []
    while len(received) < 2:
        received += pull()
    assert counted(received) == {b"before": 1, b"after": 1}


@pytest.mark.parametrize("status", list(grpc.StatusCode)[1:], ids=lambda status: status.name)
def test_any_status_can_be_returned(
    loop: Background, monkeypatch: pytest.MonkeyPatch, status: grpc.StatusCode
) -> None:
    with misbehaving_pubsub(loop, Schedule(1, 1.0), statuses=[status]) as running:
        running.misbehaviour.armed = True
        with grpc.insecure_channel(running.address) as channel:
            call = channel.unary_unary("/google.pubsub.v1.Publisher/GetTopic")
            codes = {called(call) for _ in range(6)}
    assert status in codes


@pytest.mark.parametrize("status", TRANSIENT, ids=lambda status: status.name)
def test_a_transient_error_does_not_keep_a_job_from_starting(
    loop: Background, emulator: str, monkeypatch: pytest.MonkeyPatch, status: grpc.StatusCode
) -> None:
    script = Script()
    with misbehaving_pubsub(loop, script, statuses=[status]) as running:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
        names = {
            "primary_topic": f"{TOPIC}-1",
            "secondary_topic": f"{TOPIC}-2",
            "primary_subscription": f"{SUBSCRIPTION}-1",
            "secondary_subscription": f"{SUBSCRIPTION}-2",
            "nudge_topic": TOPIC,
            "dataset": f"{PROJECT}.launch",
        }
        provision(Resources(**names), report=lambda line: None)
        stated = [f"--{name}={names[name]}" for name in names if not name.endswith("ary_topic")]
        options = parse_options([*stated, "--rebuild_days=1"])
        running.misbehaviour.armed = True
        script.tell("refused", "refused")
        check(options)
        script.tell("refused")
        rebuild = planned_rebuild(options)
        assert rebuild
        seek(options, rebuild)
    assert script.faults == {"refused": 3}


def called(call: Any) -> Any:
    try:
        call(b"", timeout=WAIT_SECONDS)
    except grpc.RpcError as error:
        return error.code()


def test_a_stream_gets_everything_though_the_server_misbehaves(
    loop: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {b"%d" % number for number in range(500)}
    seen: set[bytes] = set()
    done = threading.Event()

    def take(message: Message) -> None:
        seen.add(message.data)
        message.ack()
        if seen == sent:
            done.set()

    with misbehaving_pubsub(loop, Schedule(3, 0.3)) as running:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", running.address)
        publisher().create_topic(name=TOPIC)
        subscriber().create_subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=10)
        running.misbehaviour.armed = True
        # By itself the client asks for a minute: so long would what is lost on the way be missing.
        lease = FlowControl(max_duration_per_lease_extension=10)
        stream = subscriber().subscribe(SUBSCRIPTION, take, flow_control=lease)
        publish(*sent)
        assert done.wait(WAIT_SECONDS), len(seen)
        stream.cancel()
        running.misbehaviour.armed = False
        stream.result(WAIT_SECONDS)
    assert running.schedule.faults.total() > 0
