"""What is written about deploying is held to the scripts, to gcloud, and to its own arithmetic."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest

from tests.gcloud import assert_known

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "templates/OPERATING.md").read_text(encoding="utf-8")
NAMES = {"PROJECT": "my-project", "REGION": "europe-west3", "BUCKET": "my-bucket"}

_FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in _FENCE.findall(text) if found == language]


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


FIRST_LAUNCH = lines(blocks(README[README.index("\n## Deploy\n") :], "sh")[0])
COMMANDS = [*FIRST_LAUNCH, *(line for block in blocks(OPERATING, "sh") for line in lines(block))]
SCRIPTED = [line for line in COMMANDS if "templates/launch.sh" in line]
SCRIPTED += [
    code
    for code in re.findall(r"`(templates/launch\.sh [^`]+)`", OPERATING.replace("\n", " "))
    if "…" not in code
]
OF_GCLOUD = [line for line in COMMANDS if line.startswith("gcloud ")]


def test_a_job_runs_after_ten_commands_at_most() -> None:
    assert 0 < len(FIRST_LAUNCH) <= 10
    assert [line.split()[1] for line in FIRST_LAUNCH if "templates/launch.sh" in line] == ["build", "launch"]
    stated = dict(pair.split("=") for pair in FIRST_LAUNCH[0].removeprefix("export ").split())
    assert stated == NAMES


@pytest.mark.parametrize("line", SCRIPTED)
def test_the_script_takes_what_is_written(line: str) -> None:
    planned = subprocess.run(
        ["bash", "-c", line.replace("templates/launch.sh", "bash templates/launch.sh --dry-run")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TAG": "0.1.0", **NAMES},
        timeout=60,
    )
    assert planned.stdout.startswith("gcloud ")


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("line", OF_GCLOUD)
def test_gcloud_knows_what_is_written(line: str, tmp_path: Path) -> None:
    command = shlex.join(shlex.split(Template(line).substitute(NAMES)))
    assert_known(command, tmp_path)


def test_the_arithmetic_prints_what_is_written() -> None:
    (program,), (printed,) = blocks(OPERATING, "python"), blocks(OPERATING, "text")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == printed


def test_every_file_and_test_that_is_named_exists() -> None:
    stated = re.findall(r"`((?:templates|tests)/[\w./]+)(?:::(\w+))?`", OPERATING)
    assert len(stated) > 4
    for path, test in stated:
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), test
