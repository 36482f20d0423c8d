"""Provisioning, against both emulators."""

from datetime import UTC, datetime, timedelta

import pytest
from google.cloud.bigquery import SchemaField, Table, TimePartitioning

from pipeline.cloud.clients import bigquery, publisher, subscriber
from pipeline.operations.provisioning import ProvisionError, Resources, provision, table_definition
from pipeline.provision import main
from pipeline.tables import TABLES
from tests.integration.conftest import PROJECT


def outcomes(resources: Resources, location: str | None = None) -> dict[str, str]:
    lines: list[str] = []
    provision(resources, location, lines.append)
    return dict(line.rpartition(": ")[::2] for line in lines)


def pull(subscription: str, count: int) -> list[bytes]:
    """Pulls and acknowledges so many messages; in the order of their payloads."""
    payloads: list[bytes] = []
    deadline = datetime.now(UTC) + timedelta(seconds=30)
    while len(payloads) < count and datetime.now(UTC) < deadline:
        received = subscriber().pull(subscription=subscription, max_messages=100).received_messages
        payloads += [message.message.data for message in received]
        if received:
            ids = [message.ack_id for message in received]
            subscriber().acknowledge(subscription=subscription, ack_ids=ids)
    return sorted(payloads)


def arguments(resources: Resources) -> list[str]:
    return [f"--{name}={value}" for name, value in resources._asdict().items()]


def test_the_first_run_creates_everything_and_the_second_finds_it(resources: Resources) -> None:
    first = outcomes(resources)
    assert len(first) == 3 + 2 + 1 + 5 + 4
    assert set(first.values()) == {"created"}
    assert outcomes(resources) == dict.fromkeys(first, "exists")


def test_two_subscriptions_on_one_topic(resources: Resources) -> None:
    resources = resources._replace(secondary_topic=resources.primary_topic)
    assert len(outcomes(resources)) == 2 + 2 + 1 + 5 + 4
    publisher().publish(resources.primary_topic, b"x").result(30)
    assert pull(resources.primary_subscription, 1) == [b"x"]
    assert pull(resources.secondary_subscription, 1) == [b"x"]


def test_a_seek_brings_back_what_was_acknowledged(subscribed: Resources) -> None:
    payloads = [b"%03d" % number for number in range(50)]
    for future in [publisher().publish(subscribed.primary_topic, payload) for payload in payloads]:
        future.result(30)
    assert pull(subscribed.primary_subscription, 50) == payloads
    start = datetime.now(UTC) - timedelta(days=28)
    subscriber().seek(request={"subscription": subscribed.primary_subscription, "time": start})
    assert pull(subscribed.primary_subscription, 50) == payloads


def test_topics_of_events_keep_them_for_a_rebuild_and_the_nudge_topic_does_not(
    subscribed: Resources,
) -> None:
    for topic in (subscribed.primary_topic, subscribed.secondary_topic):
        assert publisher().get_topic(topic=topic).message_retention_duration == timedelta(days=31)
    assert not publisher().get_topic(topic=subscribed.nudge_topic).message_retention_duration


def test_a_subscription_never_expires(subscribed: Resources) -> None:
    subscription = subscriber().get_subscription(subscription=subscribed.primary_subscription)
    assert not subscription.expiration_policy.ttl


def test_a_topic_without_retention_is_updated(resources: Resources) -> None:
    publisher().create_topic(name=resources.primary_topic)
    assert outcomes(resources)[f"topic {resources.primary_topic}"] == "updated"
    topic = publisher().get_topic(topic=resources.primary_topic)
    assert topic.message_retention_duration == timedelta(days=31)


def test_a_subscription_with_another_deadline_is_updated(resources: Resources) -> None:
    publisher().create_topic(name=resources.primary_topic)
    subscriber().create_subscription(
        name=resources.primary_subscription, topic=resources.primary_topic, ack_deadline_seconds=10
    )
    assert outcomes(resources)[f"subscription {resources.primary_subscription}"] == "updated"
    assert outcomes(resources)[f"subscription {resources.primary_subscription}"] == "exists"


def test_a_subscription_on_another_topic_is_refused(resources: Resources) -> None:
    publisher().create_topic(name=resources.secondary_topic)
    subscriber().create_subscription(name=resources.primary_subscription, topic=resources.secondary_topic)
    with pytest.raises(ProvisionError, match=r"exists already, on another topic\.$"):
        provision(resources)


def test_a_new_column_is_added_to_the_table_and_shown_by_the_view(provisioned: Resources) -> None:
    client, dataset = bigquery(PROJECT), f"{provisioned.dataset}_old"
    client.create_dataset(dataset)
    older = table_definition(dataset, "adherence")
    older.schema = [field for field in older.schema if field.name != "source_event_id"]
    client.create_table(older)
    found = outcomes(provisioned._replace(dataset=dataset))
    assert found[f"table {dataset}.adherence"] == "updated"
    assert found[f"table {dataset}.quality"] == "created"
    view = client.query_and_wait(f"SELECT * FROM `{dataset}.adherence_current`")
    assert [field.name for field in view.schema] == [
        field.name for field in table_definition(dataset, "adherence").schema
    ]
    assert set(outcomes(provisioned._replace(dataset=dataset)).values()) == {"exists"}


def test_a_view_of_an_older_release_is_replaced_with_its_new_columns(provisioned: Resources) -> None:
    client, name = bigquery(PROJECT), f"{provisioned.dataset}.quality_current"
    client.query_and_wait(f"CREATE OR REPLACE VIEW `{name}` AS SELECT 1 AS one")
    found = outcomes(provisioned)
    assert found.pop(f"view {name}") == "updated"
    assert set(found.values()) == {"exists"}
    assert "one" not in [field.name for field in client.query_and_wait(f"SELECT * FROM `{name}`").schema]


def test_a_column_of_another_release_stays(provisioned: Resources) -> None:
    client = bigquery(PROJECT)
    table = client.get_table(f"{provisioned.dataset}.quality")
    table.schema = [*table.schema, SchemaField("of_a_newer_release", "STRING")]
    client.update_table(table, ["schema"])
    assert set(outcomes(provisioned).values()) == {"exists"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"type": "INTEGER"}, "with another type of column stage."),
        ({"mode": "NULLABLE"}, "with another type of column stage."),
        (None, "without the required column stage."),
    ],
)
def test_a_table_that_cannot_be_brought_up_to_date_is_refused(
    resources: Resources, change: dict[str, str] | None, sentence: str
) -> None:
    bigquery(PROJECT).create_dataset(resources.dataset)
    table = table_definition(resources.dataset, "dead_letters")
    fields = {field.name: field.to_api_repr() for field in table.schema}
    stage = fields.pop("stage")
    if change:
        fields["stage"] = {**stage, **change}
    table.schema = [SchemaField.from_api_repr(field) for field in fields.values()]
    bigquery(PROJECT).create_table(table)
    with pytest.raises(ProvisionError) as refusal:
        provision(resources)
    assert str(refusal.value) == f"Table {resources.dataset}.dead_letters exists already, {sentence}"


def test_a_table_with_other_partitions_is_refused(resources: Resources) -> None:
    bigquery(PROJECT).create_dataset(resources.dataset)
    table: Table = table_definition(resources.dataset, "adherence")
    table.time_partitioning = TimePartitioning(field="last_session_at")
    bigquery(PROJECT).create_table(table)
    with pytest.raises(ProvisionError, match=r"exists already, with other partitions\.$"):
        provision(resources)


def test_a_dataset_elsewhere_is_refused_only_if_a_location_is_stated(unchanged: Resources) -> None:
    assert outcomes(unchanged, "us")[f"dataset {unchanged.dataset}"] == "exists"
    with pytest.raises(ProvisionError, match=r"exists already, in US\.$"):
        provision(unchanged, "EU")


def test_a_new_dataset_is_made_where_it_is_asked_for(resources: Resources) -> None:
    provision(resources, "europe-west3")
    assert bigquery(PROJECT).get_dataset(resources.dataset).location == "europe-west3"
    assert set(outcomes(resources).values()) == {"exists"}


def test_the_command_prints_a_line_for_each_resource(
    resources: Resources, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(resources)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"topic {resources.primary_topic}: created"
    assert f"table {resources.dataset}.{next(iter(TABLES))}: created" in lines
    assert all(line.endswith(": created") for line in lines)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("primary_topic", "t", "--primary_topic must have the form projects/PROJECT/topics/NAME."),
        ("nudge_topic", "projects/x/topics/name", "--nudge_topic must have the form"),
        ("secondary_subscription", "projects/rehab-local/topics/name", "--secondary_subscription must have"),
        ("dataset", "dataset", "--dataset must have the form PROJECT.DATASET."),
        ("location", "in the EU", "--location must be a BigQuery location"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    resources: Resources, capsys: pytest.CaptureFixture[str], option: str, value: str, sentence: str
) -> None:
    assert main([*arguments(resources), f"--{option}={value}"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(sentence)
    assert output.err.endswith(".\n")
    assert output.err.count("\n") == 1


def test_options_that_contradict_each_other_are_refused(resources: Resources) -> None:
    with pytest.raises(ProvisionError, match=r"must not be the same\.$"):
        provision(resources._replace(secondary_subscription=resources.primary_subscription))
    with pytest.raises(ProvisionError, match=r"would read its own nudges\.$"):
        provision(resources._replace(nudge_topic=resources.secondary_topic))


def test_missing_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--location=EU"]) == 2
    assert "--primary_topic" in capsys.readouterr().err
