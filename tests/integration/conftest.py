"""Both emulators, for all integration tests, and fresh resources on them for each test.

Without Java or Google's emulator the project's own Pub/Sub server stands in for it.
"""

import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.emulators import available_pubsub, bigquery_emulator
from pipeline.cloud.clients import bigquery, publisher, subscriber
from pipeline.operations.provisioning import Resources, provision, provision_dataset, provision_pubsub
from tests.integration.api import KEY, Api
from tests.integration.streaming import PATIENT, SECRET, Job

PROJECT = "rehab-local"


@pytest.fixture(scope="session", autouse=True)
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts both emulators, which the environment then names; gives the BigQuery emulator's URL."""
    folder = tmp_path_factory.mktemp("emulators")
    start_pubsub, missing = available_pubsub()
    if missing:
        warnings.warn(missing, stacklevel=1)
    with (
        start_pubsub(folder) as pubsub,
        bigquery_emulator(folder, folder / "bigquery") as bigquery_url,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("PUBSUB_EMULATOR_HOST", pubsub)
        environment.setenv("BIGQUERY_EMULATOR_HOST", bigquery_url)
        yield bigquery_url


@pytest.fixture
def resources() -> Resources:
    """Names that no other test uses; nothing exists yet."""
    return unused_names()


def unused_names() -> Resources:
    suffix = uuid.uuid4().hex
    return Resources(
        primary_topic=f"projects/{PROJECT}/topics/primary-{suffix}",
        secondary_topic=f"projects/{PROJECT}/topics/secondary-{suffix}",
        primary_subscription=f"projects/{PROJECT}/subscriptions/primary-{suffix}",
        secondary_subscription=f"projects/{PROJECT}/subscriptions/secondary-{suffix}",
        nudge_topic=f"projects/{PROJECT}/topics/nudges-{suffix}",
        dataset=f"{PROJECT}.test_{suffix}",
    )


@pytest.fixture(scope="session")
def unchanged(emulators: str) -> Resources:
    """Resources for all tests that change nothing in them: to make a dataset takes seconds."""
    resources = unused_names()
    provision(resources, report=lambda line: None)
    return resources


@pytest.fixture
def subscribed(resources: Resources) -> Iterator[Resources]:
    """Fresh topics and subscriptions; of the dataset, only the name."""
    provision_pubsub(resources, report=lambda line: None)
    yield resources
    for subscription in (resources.primary_subscription, resources.secondary_subscription):
        subscriber().delete_subscription(subscription=subscription)
    for topic in (resources.primary_topic, resources.secondary_topic, resources.nudge_topic):
        publisher().delete_topic(topic=topic)


@pytest.fixture
def provisioned(subscribed: Resources) -> Iterator[Resources]:
    """Fresh topics, subscriptions, dataset, tables and views."""
    provision_dataset(subscribed.dataset, report=lambda line: None)
    yield subscribed
    bigquery(PROJECT).delete_dataset(subscribed.dataset, delete_contents=True)


@pytest.fixture
def nudge_subscription(provisioned: Resources) -> Iterator[str]:
    """A subscription on the nudge topic, from before anything is published."""
    path = provisioned.nudge_topic.replace("/topics/", "/subscriptions/")
    subscriber().create_subscription(name=path, topic=provisioned.nudge_topic)
    yield path
    subscriber().delete_subscription(subscription=path)


@pytest.fixture
def start(provisioned: Resources, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs over the test's resources, and in the end leaves none; their logs tell of no patient."""
    jobs: list[Job] = []

    def start_job(*more: str, resources: Resources = provisioned) -> Job:
        jobs.append(Job(resources, tmp_path / f"job-{len(jobs)}", *more))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.kill()
    for job in jobs:
        log = job.log.read_text()
        assert PATIENT not in log
        assert SECRET not in log


@pytest.fixture(scope="session")
def api(emulators: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that takes events nobody looks for, for all tests that only want its answers."""
    topics = [f"projects/{PROJECT}/topics/{name}-of-nobody" for name in ("primary", "secondary")]
    for topic in topics:
        publisher().create_topic(name=topic)
    api = Api(topics, tmp_path_factory.mktemp("api"), {})
    yield api
    end(api)


def end(api: Api) -> None:
    """Ends it; its log tells of no patient, no secret and no defect."""
    api.kill()
    log = api.log.read_text()
    for private in (PATIENT, SECRET, KEY, "Traceback"):
        assert private not in log


@pytest.fixture
def serve(subscribed: Resources, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Starts the API over the test's resources, and in the end leaves none.

    All of them have one queue, and `environment` on top of their settings.
    """
    apis: list[Api] = []

    def start_api(resources: Resources = subscribed, **environment: str) -> Api:
        topics = (resources.primary_topic, resources.secondary_topic)
        apis.append(Api(topics, tmp_path / "api", environment))
        return apis[-1]

    yield start_api
    for api in apis:
        end(api)


@pytest.fixture
def no_silence(tmp_path: Path) -> str:
    """An option with which no absence falls due within 28 days: the time of day changes no row."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("missed_sessions: {silent_days: 27}\n")
    return f"--policy_config={policy}"
