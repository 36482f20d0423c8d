"""When Pub/Sub, the disk or the API itself fails: what was taken is counted, once."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.pubsub_v1.types import Subscription

from local.pubsub import PubSub, Server
from pipeline.cloud.clients import publisher, subscriber
from pipeline.operations.provisioning import Resources
from tests.chaos.background import background
from tests.integration.api import KEY, Api, bearer, eventually, token
from tests.integration.conftest import end
from tests.integration.proxy import Proxy
from tests.integration.streaming import PATIENT, WAIT_SECONDS, Job, check_views, event
from tests.support.oracle import Arrival

Start = Callable[..., Job]
Serve = Callable[..., Api]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Stands before the Pub/Sub emulator."""
    proxy = Proxy(os.environ["PUBSUB_EMULATOR_HOST"])
    yield proxy
    proxy.refuse()


def reps(count: int, name: str = "rep") -> list[Arrival]:
    """So many repetitions, each with an id; each one that is counted shows in the projection."""
    return [
        event(
            "rep_observation",
            f"{name}-{number}",
            f"{PATIENT}-{number % 5}",
            exercise_id="squat",
            quality_score=0.9,
        )
        for number in range(count)
    ]


class Load:
    """A client that sends each event until it is answered with 201 or 202, as clients do."""

    def __init__(self, url: Callable[[], str], arrivals: list[Arrival], size: int) -> None:
        """Sends `size` events at a time: one by itself, several as a batch."""
        self.statuses: list[int] = []
        self._url = url
        self._arrivals = arrivals
        self._size = size
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> list[Arrival]:
        """Ends it; gives the events that were taken."""
        self._stop.set()
        self._thread.join(WAIT_SECONDS)
        return self._arrivals[: self.sent]

    def _run(self) -> None:
        with httpx.Client(headers=bearer(token()), timeout=WAIT_SECONDS) as client:
            while not self._stop.is_set():
                self._send(client, self._arrivals[self.sent : self.sent + self._size])
                self.sent += self._size
                self._stop.wait(0.05)

    def _send(self, client: httpx.Client, arrivals: list[Arrival]) -> None:
        events: list[Any] = [arrival.envelope for arrival in arrivals]
        while True:
            try:
                answer = (
                    client.post(f"{self._url()}/api/v1/events", json=events[0])
                    if self._size == 1
                    else client.post(f"{self._url()}/api/v1/events/batch", json={"events": events})
                )
            except httpx.TransportError:
                # The API has been killed.
                time.sleep(0.1)
                continue
            self.statuses.append(answer.status_code)
            if answer.status_code in (201, 202):
                return


def test_an_outage_of_both_topics_and_a_kill_meanwhile_lose_nothing(
    serve: Serve, start: Start, provisioned: Resources, proxy: Proxy
) -> None:
    through_proxy = {"PUBSUB_EMULATOR_HOST": proxy.address}
    job, api = start(), serve(**through_proxy)
    apis = [api]
    loads = [
        Load(lambda: apis[-1].url, reps(20_000, "single-a"), 1),
        Load(lambda: apis[-1].url, reps(20_000, "single-b"), 1),
        Load(lambda: apis[-1].url, reps(20_000, "batch"), 20),
    ]
    eventually(lambda: taken(loads, 201))

    proxy.refuse()
    down = time.monotonic()
    eventually(lambda: taken(loads, 202))
    lasts(down, 10)
    api.kill()
    apis.append(serve(**through_proxy))
    assert apis[-1].ready()["queue"] == "waiting"
    before = [len(load.statuses) for load in loads]
    eventually(lambda: went_on(loads, before))
    lasts(down, 20)
    proxy.restore()

    eventually(lambda: is_state(apis[-1], primary="closed", queue="empty"))
    arrivals = [arrival for load in loads for arrival in load.stop()]
    eventually(lambda: is_state(apis[-1], primary="closed", queue="empty"))
    assert {status for load in loads for status in load.statuses} == {201, 202}
    assert len(arrivals) > 500
    job.eventually(lambda: all_counted(job, len(arrivals)))
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert job.counter("event.processed.rep_observation") == len(arrivals)


def taken(loads: list[Load], status: int) -> None:
    assert all(load.statuses.count(status) > 5 for load in loads)


def went_on(loads: list[Load], before: list[int]) -> None:
    assert all(len(load.statuses) > count + 5 for load, count in zip(loads, before, strict=True))


def lasts(since: float, seconds: float) -> None:
    """Lets the load go on until so many seconds have passed."""
    while time.monotonic() < since + seconds:
        time.sleep(0.05)


def is_state(api: Api, **state: str) -> None:
    found = api.ready()
    assert {name: found.get(name) for name in state} == state


def all_counted(job: Job, events: int) -> None:
    assert job.counter("event.processed.rep_observation") >= events


def test_while_the_primary_topic_fails_events_go_to_the_secondary_and_back(
    serve: Serve, subscribed: Resources
) -> None:
    missing = subscribed.primary_topic + "-later"
    api = serve(subscribed._replace(primary_topic=missing))
    for number in range(5):
        assert api.post(event("exercise_session", f"early-{number}").envelope).status_code == 201
    is_state(api, primary="open", secondary="closed")
    assert ids(subscribed.secondary_subscription) == {f"early-{number}" for number in range(5)}

    publisher().create_topic(name=missing)
    subscription = missing.replace("/topics/", "/subscriptions/")
    subscriber().create_subscription(request=Subscription(name=subscription, topic=missing))
    eventually(lambda: back(api))
    assert api.post(event("exercise_session", "late").envelope).status_code == 201
    assert "late" in ids(subscription)
    subscriber().delete_subscription(subscription=subscription)
    publisher().delete_topic(topic=missing)


def back(api: Api) -> None:
    assert api.post(event("exercise_session", "probe").envelope).status_code == 201
    is_state(api, primary="closed", secondary="closed")


def ids(subscription: str) -> set[str]:
    """The ids of the events that come on a subscription first."""
    answer = subscriber().pull(subscription=subscription, max_messages=100, timeout=WAIT_SECONDS)
    return {received.message.attributes["event_id"] for received in answer.received_messages}


def test_a_pubsub_that_does_not_answer_is_given_up_and_tried_again(
    serve: Serve, start: Start, provisioned: Resources, proxy: Proxy
) -> None:
    job, api = start(), serve(PUBSUB_EMULATOR_HOST=proxy.address)
    arrivals = reps(30)
    assert api.post(arrivals[0].envelope).status_code == 201
    proxy.hang()
    answer = api.batch([arrival.envelope for arrival in arrivals[1:20]])
    assert answer.status_code == 202
    assert {(result["status"], result["queued"]) for result in answer.json()["results"]} == {(202, True)}
    for arrival in arrivals[20:]:
        answer = api.post(arrival.envelope)
        assert answer.status_code == 202
        assert answer.json().keys() == {"event_id", "queued", "timestamp"}
    assert api.ready()["status"] == "ready"
    proxy.restore()
    eventually(lambda: is_state(api, queue="empty"))
    job.eventually(lambda: check_views(provisioned, arrivals))


def test_a_full_queue_refuses_and_takes_again_when_it_has_been_drained(
    serve: Serve, start: Start, provisioned: Resources, tmp_path: Path
) -> None:
    later = provisioned._replace(
        primary_topic=provisioned.primary_topic + "-later",
        secondary_topic=provisioned.secondary_topic + "-later",
    )
    api = serve(later, REHAB_QUEUE_MAX_MB="1")
    answers = [api.post(padded(number).envelope) for number in range(60)]
    statuses = [answer.status_code for answer in answers]
    taken = statuses.count(202)
    assert statuses == [202] * taken + [429] * (60 - taken)
    assert 10 < taken < 50
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert answers[-1].json()["error"] == "queue_full"
    batch = api.batch([padded(number).envelope for number in range(2)])
    assert (batch.status_code, batch.headers["Retry-After"]) == (429, "5")
    assert api.client.get("/readyz").status_code == 503

    # As the topics now exist, the other API takes what the first has left.
    api.send(signal.SIGTERM)
    queue = tmp_path / "api" / "queue"
    assert {path.stat().st_mode & 0o777 for path in queue.iterdir()} == {0o600}
    assert queue.stat().st_mode & 0o777 == 0o700
    job, api = start(), serve(REHAB_QUEUE_MAX_MB="1")
    eventually(lambda: is_state(api, queue="empty"))
    job.eventually(lambda: check_views(provisioned, [padded(number) for number in range(taken)]))
    # Of what was in it, nothing stays on disk.
    assert sum(path.stat().st_size for path in queue.iterdir()) < 100_000
    assert not [path for path in queue.iterdir() if PATIENT.encode() in path.read_bytes()]
    assert api.post(padded(0).envelope).status_code == 201


def padded(number: int) -> Arrival:
    """A large event, the same for each number."""
    arrival = reps(number + 1, "padded")[-1]
    times = {"ts": time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime())}
    return arrival._replace(envelope=arrival.envelope | {"note": "x" * 30_000} | times)


def test_a_disk_that_cannot_be_written_is_the_end_of_what_can_be_done(
    serve: Serve, subscribed: Resources
) -> None:
    missing = subscribed._replace(primary_topic=subscribed.primary_topic + "-no")
    missing = missing._replace(secondary_topic=missing.primary_topic)
    api = serve(missing)
    assert api.post(padded(0).envelope).status_code == 202
    resource.prlimit(api.process.pid, resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
    answer = api.post(padded(1).envelope)
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    batch = api.batch([padded(1).envelope, padded(2).envelope])
    assert batch.status_code == 503
    assert {result["status"] for result in batch.json()["results"]} == {503}
    resource.prlimit(api.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert api.post(padded(1).envelope).status_code == 202


NO_DISK = {"REHAB_QUEUE_DURABLE": "false", "REHAB_QUEUE_DIR": ""}


def test_without_a_durable_disk_nothing_is_promised_that_pubsub_has_not_confirmed(
    serve: Serve, start: Start, provisioned: Resources, proxy: Proxy, tmp_path: Path
) -> None:
    api = serve(PUBSUB_EMULATOR_HOST=proxy.address, **NO_DISK)
    arrivals = reps(20)
    assert api.post(arrivals[0].envelope).status_code == 201
    assert api.ready() == {"status": "ready", "primary": "closed", "secondary": "closed", "queue": "none"}

    proxy.refuse()
    refused = [api.post(arrival.envelope) for arrival in arrivals[:10]]
    batch = api.batch([arrival.envelope for arrival in arrivals[10:]])
    for answer in (*refused, batch):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json()["error"] == "unavailable"
    assert {result["status"] for result in batch.json()["results"]} == {503}
    eventually(lambda: is_not_ready(api, arrivals[0]))

    proxy.restore()
    # Ready to be tried again, with no event that tries; then the events themselves find out.
    eventually(lambda: is_state(api, status="ready", primary="open"))
    eventually(lambda: all_taken(api, arrivals))
    is_state(api, queue="none")
    # Those that were answered with 503 are sent again, and count once.
    job = start()
    job.eventually(lambda: check_views(provisioned, arrivals))
    assert not (tmp_path / "api" / "queue").exists()


def is_not_ready(api: Api, arrival: Arrival) -> None:
    """After an event that was not taken, for a while."""
    assert api.post(arrival.envelope).status_code == 503
    answer = api.client.get("/readyz")
    assert (answer.status_code, answer.json()["message"]) == (
        503,
        "Neither topic takes events, and there is no queue.",
    )


def all_taken(api: Api, arrivals: list[Arrival]) -> None:
    assert api.batch([arrival.envelope for arrival in arrivals]).status_code == 201


class Selective(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses to publish what holds a mark."""

    MARK = b"refuse-me"

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if not details.method.endswith("/Publish"):
            return handler

        async def answer(request: Any, context: Any) -> Any:
            if any(self.MARK in message.data for message in request.messages):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "refused")
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


@pytest.fixture
def selective(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Pub/Sub server with both topics, which the environment then names."""
    with background() as runner:
        server = Server(PubSub(), interceptors=[Selective()])
        runner.run(server.start())
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{server.port}")
        for topic in (resources.primary_topic, resources.secondary_topic):
            publisher().create_topic(name=topic)
        yield
        runner.run(server.stop())


@pytest.mark.usefixtures("selective")
def test_without_a_durable_disk_a_batch_is_answered_event_by_event(
    resources: Resources, tmp_path: Path
) -> None:
    api = Api((resources.primary_topic, resources.secondary_topic), tmp_path / "api", NO_DISK)
    # Four messages, of which a request to Pub/Sub takes three.
    events = [event("alert", f"long-{n}", alert_type="fall", note="x" * 1_040_000).envelope for n in range(4)]
    events[3] |= {"note": Selective.MARK.decode()}
    answer = api.batch(events)
    assert (answer.status_code, answer.headers["Retry-After"]) == (207, "5")
    statuses = [result["status"] for result in answer.json()["results"]]
    assert statuses == [201, 201, 201, 503]
    end(api)


def test_one_queue_has_one_process(serve: Serve, subscribed: Resources, tmp_path: Path) -> None:
    serve()
    queue = tmp_path / "api" / "queue"
    ended = run(subscribed, REHAB_QUEUE_DIR=str(queue))
    assert (
        ended.stderr == f"ingest: The queue in {queue} cannot be opened (Resource temporarily unavailable).\n"
    )
    assert ended.returncode == 1


def test_a_queue_that_is_no_queue_is_told_in_a_sentence(subscribed: Resources, tmp_path: Path) -> None:
    (tmp_path / "messages.db").write_bytes(b"something else " * 1000)
    ended = run(subscribed, REHAB_QUEUE_DIR=str(tmp_path))
    assert ended.stderr == f"ingest: The queue in {tmp_path} cannot be opened (DatabaseError).\n"
    assert ended.returncode == 1


def test_settings_that_do_not_work_end_it_with_a_sentence(subscribed: Resources, tmp_path: Path) -> None:
    ended = run(subscribed, REHAB_QUEUE_DIR=str(tmp_path), REHAB_JWT_SECRET="short")
    assert (ended.returncode, ended.stderr) == (2, "ingest: REHAB_JWT_SECRET: must have at least 32 bytes.\n")


def run(resources: Resources, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "REHAB_PORT": "0",
        "REHAB_PRIMARY_TOPIC": resources.primary_topic,
        "REHAB_SECONDARY_TOPIC": resources.secondary_topic,
        "REHAB_JWT_SECRET": KEY,
    }
    return subprocess.run(
        [sys.executable, "-m", "ingest"],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
