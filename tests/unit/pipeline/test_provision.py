"""The table and view files: the columns of docs/contract.md, 4.1 to 4.7, in a form that BigQuery accepts."""

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from pipeline.tables import TABLES, Table

WITH_VIEW = [table for table in TABLES.values() if table.view]

VERSIONED = {
    "visible": "BOOLEAN",
    "version": "INTEGER",
    "updated_at": "TIMESTAMP",
    "source_event_id": "STRING",
}

COLUMNS = {
    "adherence": {
        "patient_id": "STRING",
        "week_start": "DATE",
        "prescribed_sessions": "INTEGER",
        "completed_sessions": "INTEGER",
        "partial_sessions": "INTEGER",
        "missed_sessions": "INTEGER",
        "adherence_percentage": "FLOAT",
        "rolling_7day_avg": "FLOAT",
        "rolling_28day_avg": "FLOAT",
        "last_session_at": "TIMESTAMP",
        "consecutive_missed_days": "INTEGER",
        "consent_status": "STRING",
        **VERSIONED,
    },
    "quality": {
        "patient_id": "STRING",
        "exercise_id": "STRING",
        "total_reps": "INTEGER",
        "average_quality": "FLOAT",
        "critical_issues_count": "INTEGER",
        "critical_issues_percentage": "FLOAT",
        "percentile_25": "FLOAT",
        "percentile_50": "FLOAT",
        "percentile_75": "FLOAT",
        "quality_trend": "STRING",
        "form_issue_frequency": "RECORD",
        "last_session_quality": "FLOAT",
        **VERSIONED,
    },
    "work_queue": {
        "item_id": "STRING",
        "patient_id": "STRING",
        "therapist_id": "STRING",
        "site_id": "STRING",
        "item_type": "STRING",
        "urgency": "STRING",
        "priority": "INTEGER",
        "description": "STRING",
        "status": "STRING",
        "created_at": "TIMESTAMP",
        "sla_deadline": "TIMESTAMP",
        "resolved_at": "TIMESTAMP",
        "context": "JSON",
        **VERSIONED,
    },
    "consents": {"patient_id": "STRING", "consent_status": "STRING", "decisions": "RECORD", **VERSIONED},
    "dead_letters": {
        "dead_letter_id": "STRING",
        "reason": "STRING",
        "stage": "STRING",
        "error_message": "STRING",
        "payload": "BYTES",
        "attributes": "JSON",
        "subscription": "STRING",
        "message_id": "STRING",
        "event_id": "STRING",
        "event_kind": "STRING",
        "publish_time": "TIMESTAMP",
        "failed_at": "TIMESTAMP",
        "attempts": "INTEGER",
        "job_name": "STRING",
        "schema_version": "INTEGER",
        "replayed_at": "TIMESTAMP",
    },
}


def read(name: str) -> str:
    return files("templates").joinpath("bigquery", name).read_text(encoding="utf-8")


def stated(table: str) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(read(f"{table}.json"))
    return definition


def test_there_is_a_definition_for_every_table_and_no_other_file() -> None:
    names = {entry.name for entry in files("templates").joinpath("bigquery").iterdir() if entry.is_file()}
    views = {f"{table.view}.sql" for table in TABLES.values() if table.view}
    assert names == {f"{table}.json" for table in TABLES} | views


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_are_those_of_the_contract(table: str) -> None:
    assert {field["name"]: field["type"] for field in stated(table)["schema"]} == COLUMNS[table]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_described_and_has_a_mode(table: str) -> None:
    for field in stated(table)["schema"]:
        assert field["description"]
        assert field["mode"] in ("NULLABLE", "REQUIRED", "REPEATED")


@pytest.mark.parametrize("table", TABLES)
def test_partitions_and_clusters_are_on_columns_that_every_row_has(table: str) -> None:
    definition = stated(table)
    modes = {field["name"]: field["mode"] for field in definition["schema"]}
    for column in [definition["partition_field"], *definition["clustering"]]:
        assert modes[column] == "REQUIRED"
    # Streaming refuses rows whose partition is years away: it has to be a time of ours, not an event's.
    assert definition["partition_field"] in ("updated_at", "failed_at")


def test_form_issues_are_repeated_pairs() -> None:
    (issues,) = [field for field in stated("quality")["schema"] if field["mode"] == "REPEATED"]
    assert issues["name"] == "form_issue_frequency"
    assert [(field["name"], field["type"]) for field in issues["fields"]] == [
        ("type", "STRING"),
        ("count", "INTEGER"),
    ]


@pytest.mark.parametrize(
    "table", [table for table in TABLES.values() if table.view], ids=lambda table: table.name
)
def test_a_view_reads_its_table_in_the_dataset_it_is_made_in(table: Table) -> None:
    assert f"`{{dataset}}.{table.name}`" in read(f"{table.view}.sql")


@pytest.mark.parametrize(
    "table", [table for table in TABLES.values() if table.view], ids=lambda table: table.name
)
def test_a_view_shows_one_row_for_each_key(table: Table) -> None:
    partitions = re.findall(r"PARTITION BY (.+?) ORDER BY", read(f"{table.view}.sql"))
    assert partitions[0] == ", ".join(table.key)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_key_is_made_of_columns_that_every_row_has(table: Table) -> None:
    modes = {field["name"]: field["mode"] for field in stated(table.name)["schema"]}
    assert {modes[column] for column in table.key} == {"REQUIRED"}
