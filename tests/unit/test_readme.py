"""The README is held to the code: options, policy file, names, files and commands."""

import argparse
import importlib.util
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingest.settings import Settings, variable
from pipeline.local import command as local_command
from pipeline.main import launch
from pipeline.metrics_file import snapshot
from pipeline.options import RehabOptions, parse_options
from pipeline.provision import TABLES
from pipeline.provision import main as provision
from pipeline.replay import parse_arguments as parse_replay
from pipeline.simulate import parse_arguments
from pipeline.simulate import run as simulate
from transforms.dead_letters import REASONS
from transforms.events import KINDS, parse_event
from transforms.message import Message
from transforms.policy import Policy, policy_from

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"python -m (pipeline\.\w+) (.*)")
_NOW_US = 1_800_000_000_000_000


class Option(NamedTuple):
    name: str
    default: str
    meaning: str


class Call(NamedTuple):
    module: str
    arguments: list[str]


def section(title: str) -> str:
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    assert match, title
    return match[1]


def blocks(language: str) -> list[str]:
    return [body for found, body in _FENCE.findall(README) if found == language]


def inline_code() -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _FENCE.sub("", README))]


def first_cells(title: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` ", section(title), re.MULTILINE)


def shell_lines() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    values = dict(re.findall(r"\b([A-Z]+)=(\S+)", text))
    return [line.strip() for line in Template(text).substitute(values).splitlines()]


def calls() -> Iterator[Call]:
    for line in shell_lines():
        if match := _COMMAND.search(line):
            yield Call(match[1], shlex.split(match[2]))


def local_runs() -> list[str]:
    stated = [code for code in inline_code() if code.startswith("./run_local.sh")]
    return [text.removeprefix("./run_local.sh") for text in stated]


def test_the_option_table_is_that_of_the_job() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    RehabOptions._add_argparse_args(parser)
    declared = [
        Option(
            a.dest, "none" if a.default is None else f"`{a.default}`", re.sub(r"([<*])", r"\\\1", str(a.help))
        )
        for a in parser._actions
    ]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("Options"), re.MULTILINE)
    assert [Option(*row) for row in rows] == declared


def test_the_settings_table_is_that_of_the_api() -> None:
    declared = [
        Option(variable(name), stated_default(field), str(field.description))
        for name, field in Settings.model_fields.items()
    ]
    rows = re.findall(r"^\| `(REHAB_\w+)` \| (.*?) \| (.*?) \|$", section("HTTP API"), re.MULTILINE)
    assert [Option(*row) for row in rows] == declared


def stated_default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def test_the_policy_file_names_every_threshold_with_its_built_in_value() -> None:
    (text,) = blocks("yaml")
    content = yaml.safe_load(text)
    assert policy_from(content) == Policy()
    assert names_of(Policy()) == {(rule, name) for rule, values in content.items() for name in values}


def names_of(policy: Policy) -> set[tuple[str, str]]:
    rules: dict[str, BaseModel] = dict(policy)
    return {(rule, name) for rule, thresholds in rules.items() for name in type(thresholds).model_fields}


def test_the_picture_has_every_step_of_the_graph() -> None:
    steps = set(re.findall(r'"([^"]+)" >>', (ROOT / "pipeline/graph.py").read_text(encoding="utf-8")))
    (picture,) = blocks("mermaid")
    assert "Validate" in steps
    assert not {step for step in steps if not re.search(rf"\b{re.escape(step)}\b", picture)}


def test_every_reason_of_a_dead_letter_is_explained() -> None:
    assert first_cells("Dead letters") == list(REASONS)


def test_every_table_is_described_with_its_view() -> None:
    assert set(first_cells("Tables and views")) == set(TABLES)
    views = {path.stem for path in (ROOT / "templates/bigquery").glob("*_current.sql")}
    assert set(re.findall(r"\b\w+_current\b", section("Tables and views"))) == views


def test_the_run_over_files_writes_what_it_says_and_counts_by_the_names_it_says(tmp_path: Path) -> None:
    sample, run = (
        [argument.replace("/tmp/", f"{tmp_path}/") for argument in call.arguments]
        for call in calls()
        if "rehab-events.jsonl" in str(call.arguments)
    )
    simulate(parse_arguments(sample), threading.Event())
    result = launch(parse_options(run))
    result.wait_until_finish()
    written = {path.name.partition("-")[0] for path in (tmp_path / "rehab-results").iterdir()}
    assert written == {code.removesuffix("*.jsonl") for code in inline_code() if code.endswith("*.jsonl")}
    stated = first_cells("Metrics")
    forms = [re.compile(re.sub(r"<\w+>", r"\\w+", re.escape(name).replace(r"\<", "<"))) for name in stated]
    counted = [
        re.sub(r"(alert|feedback|emergency)(?=\.generated)", "nudge", name)
        for name in snapshot(result)["counters"]
    ]
    assert not [name for name in counted if not any(form.fullmatch(name) for form in forms)]
    # Files are not written in batches, and not every sample has every outcome: those are looked up.
    uncounted = [
        name for name, form in zip(stated, forms, strict=True) if not any(map(form.fullmatch, counted))
    ]
    code = "".join(path.read_text() for path in (ROOT / "transforms").glob("*.py"))
    code += (ROOT / "pipeline/sinks.py").read_text()
    stems = [name.partition("<")[0].removeprefix("rehab_tracking.broadway.") for name in uncounted]
    assert not [
        stem for stem in stems if f'"{stem}' not in code and f'"{stem.removeprefix("event.")}"' not in code
    ]


def test_the_event_is_an_event() -> None:
    (text,) = blocks("json")
    event = parse_event(json.loads(text), Message(text.encode(), {}, "", "", _NOW_US), _NOW_US)
    assert event.kind in KINDS


def test_every_path_exists() -> None:
    stated = [code for code in inline_code() if is_path(code)]
    assert len(stated) > 20
    assert not [path for path in stated if not list(ROOT.glob(re.sub(r"<[^>]+>", "*", path)))]


def is_path(code: str) -> bool:
    tops = {path.name for path in ROOT.iterdir()} - {".venv"}
    top = re.match(r"([\w.-]+)/[\w./<>*-]*$", code)
    is_file = re.fullmatch(r"\w+\.(py|sh|md|toml)", code)
    return (
        code in tops
        or bool(is_file)
        or bool(top and top[1] in tops | {"ingest", "pipeline", "transforms", "templates", "tests"})
    )


def test_every_test_that_is_named_exists() -> None:
    stated = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)
    assert stated
    assert not [
        name for path, name in stated if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]


def test_every_module_that_is_run_exists() -> None:
    modules = set(re.findall(r"(?:python -m |`)(pipeline\.\w+)", README))
    assert modules
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def test_the_commands_have_the_options_that_they_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_text("{}\n")
    seen = set()
    for module, arguments in calls():
        seen.add(module)
        if module == "pipeline.main":
            parse_options([re.sub(r"^--input_files=.*", f"--input_files={sample}", a) for a in arguments])
        elif module == "pipeline.simulate":
            parse_arguments(arguments)
        elif module == "pipeline.replay":
            parse_replay(arguments)
        else:
            # Asked for help as well, it checks and creates nothing.
            with pytest.raises(SystemExit, match="0"):
                provision([*arguments, "--help"])
            known = re.findall(r"--\w+", capsys.readouterr().out)
            assert {argument.partition("=")[0] for argument in arguments} <= set(known)
    assert seen == {"pipeline.main", "pipeline.provision", "pipeline.replay", "pipeline.simulate"}


@pytest.mark.parametrize("arguments", [run for run in local_runs() if "--help" not in run])
def test_the_local_runs_have_the_options_that_they_are_given(arguments: str) -> None:
    local_command.parse(shlex.split(arguments))


def test_every_script_that_is_run_exists() -> None:
    scripts = {match[1] for line in shell_lines() if (match := re.match(r"(?:bash )?([\w./]+)", line))}
    assert {"./run_local.sh", ".ci/run", ".ci/venv"} <= scripts
    stated = {script for script in scripts if "/" in script and not script.startswith(".venv/")}
    assert not [script for script in stated if not (ROOT / script).is_file()]
