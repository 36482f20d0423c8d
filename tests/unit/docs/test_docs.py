"""Every page holds together: links, anchors, paths, commands, options, names of tests."""

import importlib.util
import io
import re
import shlex
import tokenize
from collections.abc import Callable
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from ingest.settings import JOB_SETTINGS
from local import command as local_command
from local.simulate import parse_arguments as parse_simulate
from pipeline import provision
from pipeline.options import RehabOptions, parse_options
from pipeline.replay import parse_arguments as parse_replay
from tests.support.pages import (
    ROOT,
    anchor,
    headings,
    inline_code,
    pages,
    prose,
    read,
    section,
    shell_lines,
    tracked,
)

PAGES = pages()
PATHS = tracked()
FOLDERS = {str(parent) for path in PATHS for parent in PurePosixPath(path).parents}
TOPS = {path.split("/")[0] for path in PATHS}

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MODULE = re.compile(r"python -m ([\w.]+)((?: [^|&;]*)?)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_CITATION = re.compile(r"docs/contract\.md,\s+(\d(?:\.\d)?)")

Parse = Callable[[list[str]], object]
PARSERS: dict[str, Parse] = {
    "pipeline.main": parse_options,
    "pipeline.provision": provision.main,
    "pipeline.replay": parse_replay,
    "local.simulate": parse_simulate,
    "local": local_command.parse,
}

# What belongs to gcloud, to templates/launch.sh and to other tools that are not ours.
FOREIGN_OPTIONS = {
    "--additional-experiments",
    "--additional-pipeline-options",
    "--disable-public-ips",
    "--dry-run",
    "--max-workers",
    "--subnetwork",
    "--worker-machine-type",
    "--data-file",
}
FOREIGN_MODULES = {"pytest"}


class Call(NamedTuple):
    page: str
    module: str
    arguments: str


def calls() -> list[Call]:
    """Every `python -m` of the pages, in blocks and in the text."""
    return [
        Call(page, match[1], match[2].strip())
        for page, text in PAGES.items()
        for line in (*shell_lines(text), *inline_code(text))
        if (match := _MODULE.search(line))
    ]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    broken = {link for link in _LINK.findall(prose(read(page))) if not leads_somewhere(link, page)}
    assert not broken


def leads_somewhere(link: str, page: str) -> bool:
    if re.match(r"https?://", link):
        return True
    path, _, fragment = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not target.exists() or ROOT not in target.resolve().parents:
        return False
    return not fragment or fragment in map(anchor, headings(target.read_text(encoding="utf-8")))


def test_links_are_looked_at() -> None:
    assert leads_somewhere("docs/contract.md#45-quality", "README.md")
    assert not leads_somewhere("docs/contract.md#no-such-section", "README.md")
    assert not leads_somewhere("docs/no-such-page.md", "README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    stated = {code for code in inline_code(PAGES[page]) if is_path(code)}
    assert not {code for code in stated if not exists(code, page)}


def is_path(code: str) -> bool:
    path = code.partition("::")[0]
    if re.fullmatch(r"[\w.-]+\.(py|sh|md|toml|txt|tf|sql|yml|yaml)", path):
        return "*" not in path and not path.startswith("NNNN")
    return bool(re.fullmatch(r"\.?[\w.-]+/[\w./<>*-]*", path)) and path.split("/")[0] in TOPS


def exists(code: str, page: str) -> bool:
    path = code.partition("::")[0].rstrip("/")
    if "<" in path or "*" in path:
        return any(ROOT.glob(re.sub(r"<[^>]+>", "*", path)))
    beside = str(PurePosixPath(page).parent / path)
    return bool({path, beside} & (PATHS | FOLDERS))


def test_paths_are_looked_at() -> None:
    assert is_path("pipeline/graph.py")
    assert is_path("templates/bigquery/<table>.json")
    assert not exists("pipeline/no_such.py", "README.md")
    assert not is_path("gs://BUCKET/templates/rehab-tracking.json")


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    stated = re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGES[page])
    assert not [name for path, name in stated if f"def {name}(" not in read(path)]


def test_every_module_that_is_run_exists() -> None:
    modules = {call.module for call in calls()} - FOREIGN_MODULES
    modules |= {
        code for text in PAGES.values() for code in inline_code(text) if re.fullmatch(r"pipeline\.\w+", code)
    }
    assert "pipeline.main" in modules
    assert not {module for module in modules if importlib.util.find_spec(module) is None}


def test_the_commands_take_the_options_that_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for call in calls():
        if call.module in FOREIGN_MODULES or "…" in call.arguments or not _OPTION.search(call.arguments):
            continue
        seen.add(call.module)
        stated = set(_OPTION.findall(call.arguments))
        assert stated <= known_options(call.module, capsys), call
    assert {"pipeline.main", "pipeline.provision", "pipeline.replay", "local.simulate"} <= seen


def known_options(module: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Those that the command's help lists; of programs that only measure, those in their source."""
    if module in PARSERS:
        return listed_by(PARSERS[module], capsys)
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    return set(re.findall(r'"(--\w+)"', Path(spec.origin).read_text(encoding="utf-8")))


def listed_by(parse: Parse, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    return set(_OPTION.findall(capsys.readouterr().out))


def test_every_option_in_the_text_is_one_of_ours_or_known(capsys: pytest.CaptureFixture[str]) -> None:
    known = FOREIGN_OPTIONS | beams_options() | {f"--{name}" for name in JOB_SETTINGS}
    for parse in PARSERS.values():
        known |= listed_by(parse, capsys)
    stated = {
        (page, option)
        for page, text in PAGES.items()
        for code in inline_code(text)
        if not re.match(r"(gcloud|openssl|templates/launch\.sh|python -m) ", code)
        for option in _OPTION.findall(code)
    }
    assert ("docs/operate.md", "--rebuild_days") in stated
    assert not {(page, option) for page, option in stated if option not in known}


def beams_options() -> set[str]:
    parser = _BeamArgumentParser()
    for options in PipelineOptions.__subclasses__():
        if options is not RehabOptions:
            options._add_argparse_args(parser)
    return {name for action in parser._actions for name in action.option_strings}


def test_the_local_runs_have_the_options_that_they_are_given() -> None:
    lines = [line for text in PAGES.values() for line in (*shell_lines(text), *inline_code(text))]
    runs = {line.removeprefix("./run_local.sh") for line in lines if line.startswith("./run_local.sh")}
    assert len(runs) > 2
    for arguments in runs - {" --help"}:
        local_command.parse(shlex.split(arguments))


def test_every_script_that_is_run_exists() -> None:
    lines = [line for text in PAGES.values() for line in shell_lines(text)]
    scripts = {match[1] for line in lines if (match := re.match(r"(?:bash )?([\w./]+)", line))}
    assert {"./run_local.sh", ".ci/run", ".ci/venv", "templates/launch.sh"} <= scripts
    stated = {script for script in scripts if "/" in script and not script.startswith(".venv/")}
    assert not {script for script in stated if not (ROOT / script).is_file()}


def test_every_function_of_an_events_way_is_where_the_architecture_says() -> None:
    way = section(PAGES["docs/architecture.md"], "An event's way")
    stated = [
        (name, path)
        for names, path in re.findall(r"((?:`\w+`(?:, )?)+) (?:in |\()`([\w/.]+\.py)`", way)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert len(stated) > 15
    assert not [
        (name, path)
        for name, path in stated
        if not re.search(rf"^ *(class|def) {name}\b", read(path), re.MULTILINE)
    ]


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    steps = workflow["jobs"]["ci"]["steps"]
    versions = {key: step["with"][key] for step in steps for key in step.get("with", {}) if "version" in key}
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert versions["python-version"] == read(".python-version").strip()


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(_LINK.findall(PAGES["README.md"]))
    assert {page for page in PAGES if page.count("/") == 1} <= linked


def test_every_decision_is_in_the_list_and_has_its_parts() -> None:
    records = [page for page in PAGES if re.match(r"docs/decisions/\d", page)]
    linked = _LINK.findall(PAGES["docs/decisions/README.md"])
    assert linked == [page.removeprefix("docs/decisions/") for page in records]
    for number, page in enumerate(records, start=1):
        title, *parts = headings(PAGES[page])
        assert page.startswith(f"docs/decisions/{number:04}-")
        assert title.startswith(f"{number}. ")
        assert parts == ["Context", "Decision", "Consequence"]
        assert 10 <= len(PAGES[page].splitlines()) <= 25


def held_to_the_link() -> list[str]:
    exempt = ("CHANGELOG.md", "docs/contract.md", "docs/decisions/")
    return [path for path in sorted(PATHS) if path.endswith(".md") and not path.startswith(exempt)]


@pytest.mark.parametrize("page", held_to_the_link())
def test_the_contract_is_linked_where_it_is_first_mentioned(page: str) -> None:
    text = read(page)
    mention = re.search(r"\bthe\s+contract\b", text, re.IGNORECASE)
    if mention is None:
        return
    link = re.search(r"\[([^\]]*)\]\([\w./-]*\bcontract\.md(#[\w-]+)?\)", text)
    assert link
    assert link.start() <= mention.start()


def remarks(path: str) -> list[str]:
    """The comments and strings of a Python file, the comments of any other, each block as one line."""
    text = read(path)
    if not path.endswith(".py"):
        return [_joined(block) for block in re.findall(r"(?:^[ \t]*#.*\n?)+", text, re.MULTILINE)]
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    ]
    comments = [
        _joined("\n".join(token.string for token in block))
        for is_comment, block in groupby(tokens, lambda token: token.type == tokenize.COMMENT)
        if is_comment
    ]
    return comments + [_joined(token.string) for token in tokens if token.type == tokenize.STRING]


def _joined(block: str) -> str:
    return " ".join(re.sub(r"^\s*#+", "", block, flags=re.MULTILINE).split())


def held_to_the_number() -> list[str]:
    return sorted(path for path in PATHS if path.endswith((".py", ".tf", ".sh")) or path.startswith(".ci/"))


@pytest.mark.parametrize("path", held_to_the_number())
def test_code_that_mentions_the_contract_cites_a_section(path: str) -> None:
    assert not [remark for remark in remarks(path) if _mentions(remark) and not _CITATION.search(remark)]


def _mentions(remark: str) -> bool:
    return bool(re.search(r"\bthe contract\b", remark, re.IGNORECASE))


def test_mentions_of_the_contract_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = "# as the\n# {} says\n".format("contract")
    for path in ("module.py", "script.sh"):
        (tmp_path / path).write_text(wrapped)
        monkeypatch.setattr("tests.support.pages.ROOT", tmp_path)
        assert [_mentions(remark) for remark in remarks(path)] == [True]


def test_every_section_that_is_cited_by_number_exists() -> None:
    texts = [read(path) for path in PATHS if path.endswith((".md", ".py", ".tf", ".sh"))]
    cited = {number for text in texts for number in _CITATION.findall(text)}
    numbers = {heading.partition(" ")[0] for heading in headings(PAGES["docs/contract.md"])}
    assert cited
    assert cited <= numbers
