"""`run_local.sh` from the outside: what it prints, how it ends, and that nothing of it stays behind."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cloud.clients import bigquery
from tests.integration.servers import HAS_OFFICIAL, LOGS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120.0
CURL = ROOT / "tests/support/curl.py"
MARK = "RUN_LOCAL_TEST"
STOPPED = "Stopped: everything that this run had started has ended.\n"
TABLES = (
    "Adherence by patient",
    "Quality by patient",
    "Work queue",
    "Nudges by type",
    "Dead letters by reason",
    "Account of events",
    "Figures",
    "Checks",
)

pytestmark = pytest.mark.long


class Run:
    """One `run_local.sh` as a process, with a directory for its temporary files."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = (str(ROOT / "run_local.sh"),),
        **environment: str,
    ) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.mark = uuid.uuid4().hex
        self.output = ""
        self._errors = folder / "errors"
        self._grown = threading.Condition()
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=folder,
                env=without_emulators() | {"TMPDIR": str(self.temporary), MARK: self.mark} | environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._grown:
                self.output += line
                self._grown.notify_all()

    def wait_for(self, text: str) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: text in self.output, PATIENCE_SECONDS), self.output

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return self._errors.read_text()

    def end(self) -> int:
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return status

    def processes(self) -> list[tuple[int, str]]:
        """The ids and command lines of all that the run has started, however far it went astray."""
        found = []
        for process in psutil.process_iter():
            # Those of others do not show their environment, which children inherit.
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append((process.pid, shlex.join(process.cmdline())))
        return found


def without_emulators() -> dict[str, str]:
    """This process's environment, as if no emulator ran."""
    named = ("PUBSUB_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST")
    return {name: value for name, value in os.environ.items() if name not in named}


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    """Where a test puts its runs, so that none outlives it."""
    started: list[Run] = []
    yield started
    for run in started:
        for pid, _ in run.processes():
            os.kill(pid, signal.SIGKILL)
        run.end()


def check_gone(run: Run) -> None:
    assert run.processes() == []
    assert list(run.temporary.iterdir()) == []


def test_a_run_in_emulators_that_run_already(tmp_path: Path, runs: list[Run]) -> None:
    named = {name: os.environ[name] for name in ("PUBSUB_EMULATOR_HOST", "BIGQUERY_EMULATOR_HOST")}
    # Enough for the checks of the policy too.
    run = Run(tmp_path, "--rate=400", "--seconds=5", **named)
    runs.append(run)

    assert run.end() == 0, run.output + run.errors
    assert run.errors == ""
    for title in TABLES:
        assert title in run.output
    assert re.search(r"published +2,000\b", run.output)
    assert re.search(r"unaccounted for +0\b", run.output)
    assert "FAILED" not in run.output
    assert re.search(r"ok +nudges of several kinds arrived: \w+, \w+", run.output)
    check_gone(run)

    dataset = re.search(r"rehab-local\.rehab_tracking_\w+", run.output)
    assert dataset
    tables = {table.table_id for table in bigquery("rehab-local").list_tables(dataset[0])}
    assert {"adherence", "adherence_current", "dead_letters_current"} <= tables


def test_serve_and_keep(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path, "--rate=40", "--seconds=5", "--patients=10", "--serve", "--keep=kept")
    runs.append(run)
    run.wait_for("gcloud pubsub" if HAS_OFFICIAL else "sys.argv[2].encode()")
    assert "FAILED" not in run.output
    printed = commands(run.output)
    send, status, query = (
        command for title, command in printed.items() if not title.startswith(_WITHOUT_API)
    )
    before = json.loads(shell(status))
    assert before["status"] == "healthy"

    answer = json.loads(shell(send))
    assert answer["event_id"].startswith("by-hand-")
    assert answer["message_id"]
    await_sessions(status, processed(before) + 1)
    assert await_rows(query, 2) == {"Severe pain reported", "Session of poor quality"}

    event, publish, *_ = (command for title, command in printed.items() if title.startswith(_WITHOUT_API))
    shell(event + publish)
    await_sessions(status, processed(before) + 2)
    await_rows(query, 4)
    run.wait_for("nudges received")

    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert run.errors == STOPPED
    check_gone(run)
    check_kept(tmp_path / "kept")


_WITHOUT_API = ("Or publish", "with curl", "or with gcloud", "with Python")


def commands(output: str) -> dict[str, str]:
    """The shell commands that the run has printed, by their titles."""
    _, _, printed = output.partition("In another terminal:\n\n")
    blocks = (block.split("\n", 1) for block in printed.split("\n\n") if "\n" in block)
    return {title: command + "\n" for title, command in blocks}


def shell(command: str) -> bytes:
    if shutil.which("curl") is None:
        command = f'curl() {{ {shlex.join([sys.executable, str(CURL)])} "$@"; }}\n{command}'
    return subprocess.run(["bash", "-ec", command], check=True, capture_output=True).stdout


def processed(status: dict[str, Any]) -> int:
    name = "rehab_tracking.broadway.event.processed.exercise_session"
    return int(status["metrics"]["counters"][name]["total"])


def await_sessions(status: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while processed(told := json.loads(shell(status))) != count:
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def await_rows(query: str, count: int) -> set[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(rows := json.loads(shell(query)).get("rows", [])) < count:
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)
    return {row["f"][0]["v"] for row in rows}


def check_kept(folder: Path) -> None:
    adherence, _, _, letters = (
        read_lines(folder / f"{name}_current.jsonl")
        for name in ("adherence", "quality", "work_queue", "dead_letters")
    )
    assert all(base64.b64decode(row["payload"], validate=True) is not None for row in letters)
    assert all(re.fullmatch(r"[-\d]{10}T[.:\d]+Z", row["failed_at"]) for row in letters)
    assert {"nudge_id", "kind", "type", "severity"} <= read_lines(folder / "nudges.jsonl")[0].keys()
    assert json.loads((folder / "report.json").read_text())["finished"]
    assert json.loads((folder / "metrics.json").read_text())["counters"]
    patients = {row["patient_id"] for row in adherence}
    pubsub_log = LOGS["official" if HAS_OFFICIAL else "own"]
    for log in ("main.log", "ingest.log", "simulate.log", pubsub_log, "bigquery-emulator.log"):
        assert not [patient for patient in patients if patient in (folder / log).read_text()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.open()]
    assert lines
    return lines


@pytest.mark.parametrize("moment", ["Pub/Sub      127.0.0.1", "provisioned  ", "events/s  lag"])
def test_ctrl_c_ends_everything(tmp_path: Path, runs: list[Run], moment: str) -> None:
    run = Run(tmp_path, "--rate=20", "--seconds=300")
    runs.append(run)
    run.wait_for(moment)
    assert len(run.processes()) > 1

    run.process.send_signal(signal.SIGINT)

    assert run.end() == 130
    assert run.errors == STOPPED
    check_gone(run)


def test_a_job_that_dies(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path, "--rate=20", "--seconds=300")
    runs.append(run)
    run.wait_for("events/s  lag")
    [job] = [pid for pid, command in run.processes() if "-m pipeline.main" in command]

    os.kill(job, signal.SIGKILL)

    assert run.end() == 1
    assert run.errors.startswith("run_local.sh: The job has died")
    check_gone(run)


def test_without_java_the_projects_own_server_takes_the_emulators_place(
    tmp_path: Path, runs: list[Run]
) -> None:
    # The program itself: its shell script needs the PATH.
    program = (sys.executable, "-m", "local")
    shown = ("--rate=40", "--seconds=5", "--patients=10", "--serve")
    run = Run(tmp_path, *shown, program=program, PATH="", CLOUDSDK_ROOT_DIR="/none", PYTHONPATH=str(ROOT))
    runs.append(run)
    run.wait_for("sys.argv[2].encode()")
    assert "the project's own server takes the emulator's place. The" in run.output
    assert "FAILED" not in run.output

    send, status, query, event, publish = commands(run.output).values()
    before = processed(json.loads(shell(status)))
    shell(send)
    shell(event + publish)
    await_sessions(status, before + 2)
    assert await_rows(query, 4) == {"Severe pain reported", "Session of poor quality"}

    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    # Nothing of gRPC's own about the server that ends.
    assert run.errors == STOPPED
    check_gone(run)


def test_an_emulator_that_is_not_there(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "local"],
        cwd=ROOT,
        env=without_emulators() | {"PUBSUB_EMULATOR_HOST": "127.0.0.1:1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr == "run_local.sh: PUBSUB_EMULATOR_HOST names 127.0.0.1:1, where nothing answers.\n"
    assert list(tmp_path.iterdir()) == []
