"""Each page is held to the code: its tables, pictures, examples and commands."""

import argparse
import json
import re
import shlex
import threading
from typing import NamedTuple

import pytest
from pydantic.fields import FieldInfo

from ingest.settings import ApiSettings, variable
from local.simulate import parse_arguments
from local.simulate import run as simulate
from pipeline.main import launch
from pipeline.options import RehabOptions, parse_options
from pipeline.reporting.metrics_file import snapshot
from pipeline.tables import TABLES
from tests.support.pages import ROOT, blocks, first_cells, inline_code, pages, section, shell_lines
from transforms.dead_letters import REASONS
from transforms.events import KINDS, parse_event
from transforms.message import Message
from transforms.policy.rules import RULES

PAGES = pages()
CONTRACT = PAGES["docs/contract.md"]
EVENTS = PAGES["docs/events.md"]
OPERATE = PAGES["docs/operate.md"]
RUNNING = PAGES["docs/running.md"]

_NOW_US = 1_800_000_000_000_000


class Option(NamedTuple):
    name: str
    default: str
    meaning: str


def test_the_option_table_is_that_of_the_job() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    RehabOptions._add_argparse_args(parser)
    declared = [
        Option(
            a.dest, "none" if a.default is None else f"`{a.default}`", re.sub(r"([<*])", r"\\\1", str(a.help))
        )
        for a in parser._actions
    ]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", PAGES["docs/options.md"], re.MULTILINE)
    assert [Option(*row) for row in rows] == declared


def test_the_contract_has_every_option_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    RehabOptions._add_argparse_args(parser)
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", section(CONTRACT, "1.2 Options of the job"), re.M
    )
    stated = {name: default.strip("` ") for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    # A local job's file is the operator's own affair.
    declared = {a.dest: a.default for a in parser._actions if a.dest != "metrics_file"}
    assert declared.keys() <= stated.keys()
    shown = {name: "none" if default is None else str(default).lower() for name, default in declared.items()}
    # What is built in without a file.
    shown["policy_config"] = "built in"
    assert {name: stated[name] for name in shown} == shown


def test_the_settings_table_is_that_of_the_api() -> None:
    declared = [
        Option(variable(name), stated_default(field), str(field.description))
        for name, field in ApiSettings.model_fields.items()
    ]
    settings = section(PAGES["docs/http-api.md"], "Settings")
    rows = re.findall(r"^\| `(REHAB_\w+)` \| (.*?) \| (.*?) \|$", settings, re.MULTILINE)
    assert [Option(*row) for row in rows] == declared


def stated_default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def test_the_picture_has_every_step_of_the_graph() -> None:
    steps = set(re.findall(r'"([^"]+)" >>', (ROOT / "pipeline/graph.py").read_text(encoding="utf-8")))
    (picture,) = blocks(PAGES["README.md"], "mermaid")
    assert "Validate" in steps
    assert not {step for step in steps if not re.search(rf"\b{re.escape(step)}\b", picture)}


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    assert set(first_cells(section(OPERATE, "Dead letters"))) == set(REASONS)


def test_the_contract_lists_the_reasons_the_kinds_and_the_rules() -> None:
    assert set(re.findall(r"^- `(\w+)`", section(CONTRACT, "3.2 Reasons"), re.MULTILINE)) == set(REASONS)
    (kinds,) = re.findall(r"^\| `kind` \|.*$", section(CONTRACT, "2.4 Envelope"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", kinds)) == {"kind", *KINDS}
    rules = re.findall(r"^\| `(\w+)` \|[^|]*\| (\w+)", section(CONTRACT, "5.2 The rules"), re.MULTILINE)
    assert set(rules) == {(rule.type, rule.kind) for rule in RULES.values()}


def test_every_table_is_described_with_its_view() -> None:
    tables = section(OPERATE, "Tables and views")
    assert set(first_cells(tables)) == set(TABLES)
    views = {path.stem for path in (ROOT / "templates/bigquery").glob("*_current.sql")}
    assert set(re.findall(r"\b\w+_current\b", tables)) == views


def test_the_contract_names_every_column_of_the_projections() -> None:
    for table in ("adherence", "quality", "work_queue"):
        schema = json.loads((ROOT / f"templates/bigquery/{table}.json").read_text(encoding="utf-8"))
        assert not [column["name"] for column in schema["schema"] if f"`{column['name']}`" not in CONTRACT]


def test_the_run_over_files_writes_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("run")
    commands = [
        re.split(r"python -m [\w.]+ ", line.replace("/tmp/", f"{folder}/"))[1]
        for line in shell_lines(RUNNING)
        if "python -m" in line
    ]
    sample, run = map(shlex.split, commands)
    simulate(parse_arguments(sample), threading.Event())
    result = launch(parse_options(run))
    result.wait_until_finish()
    written = {path.name.partition("-")[0] for path in (folder / "rehab-results").iterdir()}
    assert written == {
        code.removesuffix("*.jsonl") for code in inline_code(RUNNING) if code.endswith("*.jsonl")
    }
    assert_documented(snapshot(result)["counters"])


def assert_documented(counters: dict[str, int]) -> None:
    """Every metric that is counted is in the table, and every metric of the table is in the code."""
    stated = first_cells(section(OPERATE, "Metrics"))
    forms = [re.compile(re.sub(r"<\w+>", r"\\w+", re.escape(name).replace(r"\<", "<"))) for name in stated]
    counted = [re.sub(r"(alert|feedback|emergency)(?=\.generated)", "nudge", name) for name in counters]
    assert not [name for name in counted if not any(form.fullmatch(name) for form in forms)]
    # Files are not written in batches, and not every sample has every outcome: those are looked up.
    uncounted = [
        name for name, form in zip(stated, forms, strict=True) if not any(map(form.fullmatch, counted))
    ]
    code = "".join(
        path.read_text() for room in ("transforms", "pipeline") for path in (ROOT / room).rglob("*.py")
    )
    stems = [name.partition("<")[0].removeprefix("rehab_tracking.broadway.") for name in uncounted]
    assert not [
        stem for stem in stems if f'"{stem}' not in code and f'"{stem.removeprefix("event.")}"' not in code
    ]


@pytest.mark.parametrize("text", blocks(EVENTS, "json"))
def test_the_events_are_events(text: str) -> None:
    event = parse_event(json.loads(text), Message(text.encode(), {}, "", "", _NOW_US), _NOW_US)
    assert event.kind in KINDS


def test_there_is_an_event_of_each_kind() -> None:
    assert {json.loads(text)["kind"] for text in blocks(EVENTS, "json")} == set(KINDS)
