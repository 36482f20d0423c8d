"""The pages on deploying are held to the scripts, to gcloud, and to their own arithmetic."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest

from tests.support.gcloud import assert_known
from tests.support.pages import ROOT, blocks, read, section

NAMES = {"PROJECT": "my-project", "REGION": "europe-west3", "BUCKET": "my-bucket"}
DEPLOY = read("docs/deploy.md")
DATAFLOW = read("docs/dataflow.md")


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


FIRST_LAUNCH = lines(blocks(section(DEPLOY, "First launch"), "sh")[0])
COMMANDS = [*FIRST_LAUNCH, *(line for block in blocks(DATAFLOW, "sh") for line in lines(block))]
SCRIPTED = [line for line in COMMANDS if "templates/launch.sh" in line]
SCRIPTED += [
    code
    for code in re.findall(r"`(templates/launch\.sh [^`]+)`", (DEPLOY + DATAFLOW).replace("\n", " "))
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
    (program,), (printed,) = blocks(DATAFLOW, "python"), blocks(DATAFLOW, "text")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == printed
