"""Creates what the job needs: topics, subscriptions, a dataset, its tables and views.

Idempotent, against the cloud or the emulators: existing resources are left alone or brought up to date, and
nothing is ever deleted.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.resources import files
from typing import NamedTuple

from google.api_core.exceptions import AlreadyExists, Conflict, NotFound
from google.cloud.bigquery import Client, Dataset, SchemaField, Table, TimePartitioning
from google.pubsub_v1.types import ExpirationPolicy, Subscription, Topic

from pipeline.cloud import clients
from pipeline.names import DATASET, SUBSCRIPTION, TOPIC
from pipeline.tables import TABLES

# The projections are a function of the last 28 days of events; the topic's log, at Pub/Sub's maximum, can
# rebuild them. A topic's retention covers acknowledged messages of all its subscriptions, so the
# subscriptions need not retain them as well.
RETENTION = timedelta(days=31)

# Many times longer than a message waits for its acknowledgement, yet a killed job's messages come back within
# a minute. A late acknowledgement causes a redelivery, which is dropped as a duplicate.
ACK_SECONDS = 60

_LOCATION = re.compile(r"[A-Za-z][-A-Za-z0-9]*", re.ASCII)

Report = Callable[[str], None]


class ProvisionError(ValueError):
    """Invalid names, or an existing resource that conflicts; the message is one sentence for the operator."""


class Resources(NamedTuple):
    """The names of a job's resources.

    Topics and subscriptions are full paths (projects/PROJECT/…), the dataset is PROJECT.DATASET. Both event
    topics may be the same; it then has both subscriptions.
    """

    primary_topic: str
    secondary_topic: str
    primary_subscription: str
    secondary_subscription: str
    nudge_topic: str
    dataset: str


def provision(resources: Resources, location: str | None = None, report: Report = print) -> None:
    """Creates or updates the resources; `report` receives one line for each.

    `location` is the BigQuery location of a new dataset (default US). Raises ProvisionError for invalid names
    and conflicting resources, GoogleAPIError or GoogleAuthError when Google refuses.
    """
    for problem in _problems(resources, location):
        raise ProvisionError(problem)
    provision_pubsub(resources, report)
    provision_dataset(resources.dataset, location, report)


def provision_pubsub(resources: Resources, report: Report = print) -> None:
    """Provisions the topics and subscriptions; their names must be valid."""
    for topic in dict.fromkeys((resources.primary_topic, resources.secondary_topic)):
        report(f"topic {topic}: {_topic(topic, RETENTION)}")
    # No retention: nudges can be derived again from the events, and patient data is stored no more than
    # needed.
    report(f"topic {resources.nudge_topic}: {_topic(resources.nudge_topic, None)}")
    for subscription, topic in (
        (resources.primary_subscription, resources.primary_topic),
        (resources.secondary_subscription, resources.secondary_topic),
    ):
        report(f"subscription {subscription}: {_subscription(subscription, topic)}")


def _problems(resources: Resources, location: str | None) -> Iterator[str]:
    for name in ("primary_topic", "secondary_topic", "nudge_topic"):
        if not TOPIC.fullmatch(getattr(resources, name)):
            yield f"--{name} must have the form projects/PROJECT/topics/NAME."
    for name in ("primary_subscription", "secondary_subscription"):
        if not SUBSCRIPTION.fullmatch(getattr(resources, name)):
            yield f"--{name} must have the form projects/PROJECT/subscriptions/NAME."
    if not DATASET.fullmatch(resources.dataset):
        yield "--dataset must have the form PROJECT.DATASET."
    if resources.primary_subscription == resources.secondary_subscription:
        yield "--primary_subscription and --secondary_subscription must not be the same."
    if resources.nudge_topic in (resources.primary_topic, resources.secondary_topic):
        yield "--nudge_topic must not be a topic of events: the job would read its own nudges."
    if location is not None and not _LOCATION.fullmatch(location):
        yield "--location must be a BigQuery location, such as US, EU or europe-west3."


def _topic(path: str, retention: timedelta | None) -> str:
    topic = Topic(name=path, message_retention_duration=retention)
    try:
        clients.publisher().create_topic(request=topic)
    except AlreadyExists:
        existing = clients.publisher().get_topic(topic=path)
        if retention is None or existing.message_retention_duration == retention:
            return "exists"
        clients.publisher().update_topic(
            request={"topic": topic, "update_mask": {"paths": ["message_retention_duration"]}}
        )
        return "updated"
    return "created"


def _subscription(path: str, topic: str) -> str:
    wanted = Subscription(
        name=path,
        topic=topic,
        ack_deadline_seconds=ACK_SECONDS,
        # No expiration: after 31 days without a reader, the subscription and its backlog still exist.
        expiration_policy=ExpirationPolicy(),
    )
    try:
        clients.subscriber().create_subscription(request=wanted)
    except AlreadyExists:
        existing = clients.subscriber().get_subscription(subscription=path)
        if existing.topic != topic:
            raise ProvisionError(f"Subscription {path} exists already, on another topic.") from None
        differing = [
            name
            for name in ("ack_deadline_seconds", "expiration_policy")
            if getattr(existing, name) != getattr(wanted, name)
        ]
        if not differing:
            return "exists"
        clients.subscriber().update_subscription(
            request={"subscription": wanted, "update_mask": {"paths": differing}}
        )
        return "updated"
    return "created"


def provision_dataset(dataset: str, location: str | None = None, report: Report = print) -> None:
    """Provisions a dataset (PROJECT.DATASET), its tables and views."""
    project, _, _ = dataset.rpartition(".")
    client = clients.bigquery(project)
    report(f"dataset {dataset}: {_dataset(client, dataset, location)}")
    for name in TABLES:
        report(f"table {dataset}.{name}: {_table(client, dataset, name)}")
    # Last, because views read several tables.
    for table in TABLES.values():
        if table.view:
            report(f"view {dataset}.{table.view}: {_view(client, dataset, table.name, table.view)}")


def _dataset(client: Client, dataset: str, location: str | None) -> str:
    wanted = Dataset(dataset)
    wanted.location = location or "US"
    try:
        client.create_dataset(wanted)
    except Conflict:
        existing = client.get_dataset(dataset).location
        if location and existing.casefold() != location.casefold():
            raise ProvisionError(f"Dataset {dataset} exists already, in {existing}.") from None
        return "exists"
    return "created"


def _table(client: Client, dataset: str, name: str) -> str:
    wanted = table_definition(dataset, name)
    try:
        client.create_table(wanted)
    except Conflict:
        existing = client.get_table(f"{dataset}.{name}")
        schema = _merged(f"{dataset}.{name}", existing, wanted)
        differing = [
            attribute
            for attribute, value in (
                ("schema", schema),
                ("clustering_fields", wanted.clustering_fields),
                ("description", wanted.description),
            )
            if getattr(existing, attribute) != value
        ]
        if not differing:
            return "exists"
        wanted.schema = schema
        client.update_table(wanted, differing)
        return "updated"
    return "created"


def table_definition(dataset: str, name: str) -> Table:
    """The table that `templates/bigquery/<name>.json` defines, in `dataset` (PROJECT.DATASET)."""
    stated = json.loads(_template(f"{name}.json"))
    table = Table(f"{dataset}.{name}", [SchemaField.from_api_repr(field) for field in stated["schema"]])
    table.description = stated["description"]
    table.time_partitioning = TimePartitioning(field=stated["partition_field"])
    table.clustering_fields = stated["clustering"]
    return table


def _merged(label: str, existing: Table, wanted: Table) -> list[SchemaField]:
    """The existing columns plus the new ones. A column unknown to this release stays."""
    if existing.time_partitioning != wanted.time_partitioning:
        raise ProvisionError(f"Table {label} exists already, with other partitions.")
    have = {field.name: field for field in existing.schema}
    want = {field.name: field for field in wanted.schema}
    for name, field in want.items():
        if name in have and _shape(have[name]) != _shape(field):
            raise ProvisionError(f"Table {label} exists already, with another type of column {name}.")
        if name not in have and field.mode == "REQUIRED":
            raise ProvisionError(f"Table {label} exists already, without the required column {name}.")
    kept = [want.get(field.name, field) for field in existing.schema]
    return kept + [field for field in wanted.schema if field.name not in have]


def _shape(field: SchemaField) -> tuple[object, ...]:
    return field.name, field.field_type, field.mode, tuple(_shape(nested) for nested in field.fields)


def _view(client: Client, dataset: str, table: str, view: str) -> str:
    name = f"{dataset}.{view}"
    query = _template(f"{view}.sql").replace("{dataset}", dataset)
    # A view with `*` must also be replaced when its table gets new columns.
    definition = hashlib.sha256((query + _template(f"{table}.json")).encode()).hexdigest()[:32]
    try:
        if client.get_table(name).labels.get("definition") == definition:
            return "exists"
        outcome = "updated"
    except NotFound:
        outcome = "created"
    # One statement, so that readers always see the old view or the new one.
    client.query_and_wait(
        f"CREATE OR REPLACE VIEW `{name}`"
        f" OPTIONS (description = 'The current rows of {table}.', labels = [('definition', '{definition}')])"
        f" AS\n{query}"
    )
    return outcome


def _template(name: str) -> str:
    return files("templates").joinpath("bigquery", name).read_text(encoding="utf-8")
