"""The Terraform configuration makes what the job needs, as `pipeline.provision` does, and grants no more.

It is parsed, not run: Terraform and Google's provider come from registries that the tests do not need.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hcl2
import pytest

from pipeline.operations import provisioning
from pipeline.options import RehabOptions, parse_options
from pipeline.tables import TABLES
from transforms.dead_letters import REASONS
from transforms.events import KINDS
from transforms.steps.telemetry import LATENCY_BOUNDS_MS

ROOT = Path(__file__).resolve().parents[3]
TERRAFORM = ROOT / "templates/terraform"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(TERRAFORM.glob("*.tf"))}
TEXT = "\n".join(FILES.values())
DEPLOY = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")


class Grant(NamedTuple):
    identity: str
    role: str
    resource: str


# The least that works. A role on the project is one that Google grants on nothing smaller.
GRANTS = {
    Grant("rehab-worker", "roles/dataflow.worker", "project"),
    Grant("rehab-worker", "roles/bigquery.jobUser", "project"),
    Grant("rehab-worker", "roles/bigquery.dataEditor", "table"),
    Grant("rehab-worker", "roles/bigquery.dataViewer", "view"),
    Grant("rehab-worker", "roles/pubsub.subscriber", "subscription"),
    Grant("rehab-worker", "roles/pubsub.viewer", "subscription"),
    Grant("rehab-worker", "roles/pubsub.publisher", "topic"),
    Grant("rehab-worker", "roles/storage.objectAdmin", "bucket"),
    Grant("rehab-worker", "roles/artifactregistry.reader", "repository"),
    Grant("rehab-launcher", "roles/dataflow.developer", "project"),
    Grant("rehab-launcher", "roles/cloudbuild.builds.editor", "project"),
    Grant("rehab-launcher", "roles/serviceusage.serviceUsageConsumer", "project"),
    Grant("rehab-launcher", "roles/logging.logWriter", "project"),
    Grant("rehab-launcher", "roles/iam.serviceAccountUser", "service account"),
    Grant("rehab-launcher", "roles/storage.objectAdmin", "bucket"),
    Grant("rehab-launcher", "roles/storage.legacyBucketReader", "bucket"),
    Grant("rehab-launcher", "roles/artifactregistry.writer", "repository"),
    Grant("rehab-api", "roles/pubsub.publisher", "topic"),
    Grant("rehab-api", "roles/pubsub.viewer", "subscription"),
    Grant("rehab-api", "roles/dataflow.viewer", "project"),
    Grant("rehab-api", "roles/monitoring.viewer", "project"),
    Grant("rehab-api", "roles/secretmanager.secretAccessor", "secret"),
    Grant("Pub/Sub", "roles/pubsub.publisher", "topic"),
    Grant("Pub/Sub", "roles/pubsub.subscriber", "subscription"),
    Grant("operators", "roles/iam.serviceAccountTokenCreator", "service account"),
    Grant("readers", "roles/bigquery.dataViewer", "view"),
    Grant("api_callers", "roles/run.invoker", "service"),
}


def _blocks(kind: str) -> Iterator[dict[str, Any]]:
    options = hcl2.SerializationOptions(
        strip_string_quotes=True, with_comments=False, explicit_blocks=False, preserve_heredocs=False
    )
    for name in FILES:
        with (TERRAFORM / name).open(encoding="utf-8") as file:
            yield from hcl2.load(file, serialization_options=options).get(kind, [])


RESOURCES = {
    (kind, name): body
    for block in _blocks("resource")
    for kind, named in block.items()
    for name, body in named.items()
}
VARIABLES = {name: body for block in _blocks("variable") for name, body in block.items()}
LOCALS = {name: value for block in _blocks("locals") for name, value in block.items()}


def resource(kind: str, name: str) -> dict[str, Any]:
    return dict(RESOURCES[kind, name])


def test_the_topics_are_those_of_the_job_and_keep_events_as_long() -> None:
    assert resource("google_pubsub_topic", "topics")["name"] == "rehab-${each.key}"
    assert resource("google_pubsub_topic", "topics")["message_retention_duration"] == "${each.value}"
    assert LOCALS["retention"] == f"{int(provisioning.RETENTION.total_seconds())}s"
    kept = dict.fromkeys(("events-primary", "events-secondary", "undelivered"), "${local.retention}")
    assert LOCALS["topics"] == kept | {"nudges": None}


@pytest.mark.parametrize("name", ["events", "undelivered"])
def test_subscriptions_are_as_provisioned(name: str) -> None:
    subscription = resource("google_pubsub_subscription", name)
    assert subscription["ack_deadline_seconds"] == provisioning.ACK_SECONDS
    assert subscription["expiration_policy"] == [{"ttl": ""}]


def test_each_source_has_its_own_topic_and_moves_what_cannot_be_delivered() -> None:
    events = resource("google_pubsub_subscription", "events")
    assert LOCALS["sources"] == '${toset(["primary", "secondary"])}'
    assert events["name"] == "rehab-${each.key}"
    assert events["topic"] == '${google_pubsub_topic.topics["events-${each.key}"].id}'
    (policy,) = events["dead_letter_policy"]
    assert policy["dead_letter_topic"] == '${google_pubsub_topic.topics["undelivered"].id}'
    assert policy["max_delivery_attempts"] == 100
    kept = resource("google_pubsub_subscription", "undelivered")["topic"]
    assert kept == policy["dead_letter_topic"]


def test_tables_and_views_are_made_of_the_files_that_provision_reads() -> None:
    folder = (TERRAFORM / LOCALS["schemas"].replace("${path.module}", ".")).resolve()
    assert folder == ROOT / "templates/bigquery"
    assert {path.stem for path in folder.glob("*.json")} == set(TABLES)
    assert 'fileset(local.schemas, "*.json")' in LOCALS["tables"]
    assert 'fileset(local.schemas, "*_current.sql")' in LOCALS["views"]
    assert 'replace(file("${local.schemas}/${file}"), "{dataset}", local.dataset)' in LOCALS["views"]
    assert LOCALS["dataset"] == "${var.project}.rehab_tracking"
    assert resource("google_bigquery_dataset", "rehab_tracking")["dataset_id"] == "rehab_tracking"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_provisioned(name: str) -> None:
    table = resource("google_bigquery_table", "tables")
    wanted = provisioning.table_definition("project.dataset", name)
    stated = json.loads((ROOT / "templates/bigquery" / f"{name}.json").read_text())
    assert table["for_each"] == "${local.tables}"
    assert table["table_id"] == "${each.key}"
    assert table["schema"] == "${jsonencode(each.value.schema)}"
    assert table["time_partitioning"] == [
        {"type": wanted.time_partitioning.type_, "field": "${each.value.partition_field}"}
    ]
    assert wanted.time_partitioning.field == stated["partition_field"]
    assert table["clustering"] == "${each.value.clustering}"
    assert wanted.clustering_fields == stated["clustering"]
    assert table["description"] == "${each.value.description}"
    assert table["deletion_protection"] is True


def test_provision_finds_the_views_that_terraform_made() -> None:
    view = resource("google_bigquery_table", "views")
    assert view["table_id"] == "${each.key}_current"
    assert view["description"] == "The current rows of ${each.key}."
    assert view["view"] == [{"query": "${each.value}", "use_legacy_sql": False}]
    assert view["labels"]["definition"] == (
        '${substr(sha256("${each.value}${file("${local.schemas}/${each.key}.json")}"), 0, 32)}'
    )


def test_exactly_the_listed_roles_are_granted_and_documented() -> None:
    granted = set(_grants())
    assert granted == GRANTS
    rows = re.findall(r"^\| `?([\w/-]+)`? \| `(roles/[\w.]+)` \| ([\w ]+) \|", DEPLOY, re.MULTILINE)
    assert {Grant(*row) for row in rows} == GRANTS
    assert len(rows) == len(GRANTS)


def _grants() -> Iterator[Grant]:
    resources = {
        "project": "project",
        "bigquery_table": "table",
        "pubsub_subscription": "subscription",
        "pubsub_topic": "topic",
        "storage_bucket": "bucket",
        "artifact_registry_repository": "repository",
        "service_account": "service account",
        "secret_manager_secret": "secret",
        "cloud_run_v2_service": "service",
    }
    for (kind, _), body in RESOURCES.items():
        if match := re.fullmatch(r"google_(\w+)_iam_\w+", kind):
            assert kind.endswith("_iam_member"), "binding and policy take away what others have granted"
            on = resources[match[1]]
            yield Grant(_identity(body), body["role"], "view" if "views" in str(body) else on)


def _identity(body: dict[str, Any]) -> str:
    account = re.fullmatch(r"\$\{google_service_account\.(\w+)\.member\}", body["member"])
    if account:
        return str(resource("google_service_account", account[1])["account_id"])
    if body["member"] == "${google_project_service_identity.pubsub.member}":
        return "Pub/Sub"
    variable = re.search(r"var\.(operators|readers|api_callers)\b", body["for_each"])
    assert variable, body
    return variable[1]


def test_nothing_is_open_to_everyone() -> None:
    for name in ("operators", "readers", "api_callers"):
        assert VARIABLES[name]["default"] == []
    assert "allUsers" not in re.sub(r'description = ".*"', "", TEXT)
    assert "allAuthenticatedUsers" not in TEXT
    bucket = resource("google_storage_bucket", "job")
    assert bucket["public_access_prevention"] == "enforced"
    assert bucket["uniform_bucket_level_access"] is True
    access = resource("google_bigquery_dataset", "rehab_tracking")["access"]
    assert access == [{"role": "OWNER", "special_group": "projectOwners"}]
    assert VARIABLES["api_ingress"]["default"] != "INGRESS_TRAFFIC_ALL"


def test_readers_see_views_of_projections_only() -> None:
    projections = set(re.findall(r'"(\w+)"', LOCALS["projections"]))
    assert projections == set(TABLES) - {"consents", "dead_letters"}
    assert (
        "bigquery_table.views[each.value[0]]"
        in resource("google_bigquery_table_iam_member", "readers")["table_id"]
    )


def test_what_is_staged_outlives_temporary_files() -> None:
    (rule,) = resource("google_storage_bucket", "job")["lifecycle_rule"]
    (condition,) = rule["condition"]
    job = resource("google_dataflow_flex_template_job", "rehab_tracking")
    folders = {name: job[name].rpartition("/")[2] for name in ("temp_location", "staging_location")}
    assert f"{folders['temp_location']}/" in condition["matches_prefix"]
    assert f"{folders['staging_location']}/" not in condition["matches_prefix"]


def test_the_job_gets_options_that_it_has_and_all_that_it_must_have() -> None:
    job = resource("google_dataflow_flex_template_job", "rehab_tracking")
    names = re.findall(
        r"^\s*(\w+) = ", job["parameters"].replace(", ", "\n").replace("{", "\n"), re.MULTILINE
    )
    assert names == ["primary_subscription", "secondary_subscription", "nudge_topic", "dataset"]
    values = {
        "primary_subscription": "projects/project/subscriptions/rehab-primary",
        "secondary_subscription": "projects/project/subscriptions/rehab-secondary",
        "nudge_topic": "projects/project/topics/rehab-nudges",
        "dataset": "project.rehab_tracking",
    }
    options = parse_options([f"--{name}={values[name]}" for name in names])
    assert isinstance(options, RehabOptions)
    assert options.subscriptions.keys() == {"primary", "secondary"}


def test_every_pattern_of_a_counter_takes_the_names_that_are_meant() -> None:
    ended = {f"event.processed.{kind}" for kind in KINDS}
    ended |= {"event.duplicate", "event.withheld", "event.too_late"}
    letters = {f"event.dead_letter.{reason}" for reason in REASONS}
    bounds = {f"event_to_write_ms.le.{bound}" for bound in (*LATENCY_BOUNDS_MS, "inf")}
    batches = {f"batch.processed.{table}" for table in TABLES}
    nudges = {f"{kind}.generated.pain_reported" for kind in ("nudge", "alert", "feedback", "emergency")}
    every = ended | letters | bounds | batches | nudges | {"event.unknown", "row.projected.quality"}
    taken = {
        name: {counter for counter in every if re.fullmatch(pattern, counter)}
        for name, pattern in LOCALS["counters"].items()
    }
    assert taken == {
        "dead_letter": letters,
        "ended": ended | letters,
        "rows": {"event_to_write_ms.le.inf"},
        "rows_within": bounds,
        "batches": batches,
        "nudges": nudges,
    }


def test_the_names_that_the_patterns_take_are_those_that_the_job_counts() -> None:
    code = "".join(path.read_text() for path in (ROOT / "transforms").rglob("*.py"))
    code += (ROOT / "pipeline/sinks/tables.py").read_text()
    stems = ("event.duplicate", "event.dead_letter.", "event_to_write_ms.le.", "batch.processed.")
    outcomes = ("withheld", "too_late", "processed.", ".generated.")
    assert not [stem for stem in stems if f'"{stem}' not in code]
    assert not [outcome for outcome in outcomes if outcome not in code]


def test_a_late_row_is_noticed_up_to_the_highest_bound() -> None:
    highest = str(LATENCY_BOUNDS_MS[-1])
    assert f'"le", "{highest}"' in LOCALS["histogram"]
    (validation,) = VARIABLES["event_to_write_p95_ms"]["validation"]
    assert f"< {highest}" in validation["condition"]


def test_alerts_cover_backlog_dead_letters_latency_and_a_job_that_is_gone() -> None:
    alerts = LOCALS["alerts"]
    assert set(alerts) == {"backlog", "dead_letters", "undelivered", "event_to_write", "job_down"}
    (condition,) = resource("google_monitoring_alert_policy", "alerts")["conditions"]
    (query,) = condition["condition_prometheus_query_language"]
    assert query["query"] == "${each.value.query}"
    assert "local.gone" in alerts["job_down"]["query"]
    for alert in alerts.values():
        assert alert["severity"] in {"CRITICAL", "WARNING"}


def test_names_in_queries_are_names_of_resources() -> None:
    metrics = FILES["metrics.tf"]
    assert set(re.findall(r'job_name=\\"([\w-]+)\\"', metrics)) == {
        resource("google_dataflow_flex_template_job", "rehab_tracking")["name"]
    }
    assert set(re.findall(r'service_name=\\"([\w-]+)\\"', metrics)) == {
        resource("google_cloud_run_v2_service", "api")["name"]
    }
    assert set(re.findall(r'subscription_id=~?\\"([^\\]+)\\"', metrics)) == {
        "rehab-(primary|secondary)",
        resource("google_pubsub_subscription", "undelivered")["name"],
    }


def test_everything_that_is_referred_to_exists_and_nothing_is_left_over() -> None:
    for kind, name in re.findall(r"\b(google_\w+)\.(\w+)", TEXT):
        assert (kind, name) in RESOURCES, f"{kind}.{name}"
    assert set(re.findall(r"\bvar\.(\w+)", TEXT)) == set(VARIABLES)
    assert set(re.findall(r"\blocal\.(\w+)", TEXT)) == set(LOCALS)


def test_every_variable_is_described_and_documented() -> None:
    for name, variable in VARIABLES.items():
        assert variable["description"], name
        assert variable["type"], name
        assert f"`{name}`" in DEPLOY, name


def test_versions_are_pinned() -> None:
    (settings,) = _blocks("terraform")
    assert settings["required_version"] == ">= 1.9, < 2.0"
    (providers,) = settings["required_providers"]
    assert set(providers) == {"google", "google-beta"}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", provider["version"]) for provider in providers.values())
