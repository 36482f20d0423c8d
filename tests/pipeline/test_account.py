"""What a bounded run says: its progress, and at its end the account of its input."""

import errno
import gzip
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import orjson
import pytest

from pipeline.direct import cores
from pipeline.main import main
from pipeline.reporting.meter import measured
from tests.support.oracle import Options, assert_rows_equal, current_rows, expected
from tests.support.strategies import arrival_orders, random_arrivals

DEADLINE_SECONDS = 240
BAD_LINES = {
    b"{": "malformed_json",
    b"[1": "malformed_json",
    b"7": "not_an_event",
    b'{"kind": "nonsense", "subject_id": "p", "body": {}}': "unknown_kind",
    b'{"kind": "alert", "subject_id": "secret-patient", "body": {"alert_type": 7}}': "invalid_schema",
}
EXAMPLE = "body.alert_type"


class Case(NamedTuple):
    """A file of events, and what is to come of it; `processed` is by kind."""

    path: Path
    lines: int
    events: int
    processed: dict[str, int]
    duplicates: int
    withheld: int
    dead_letters: dict[str, int]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Events with duplicates and withheld ones among them, some in arrays, and bad lines."""
    rng = Random("account 1")
    arrivals = arrival_orders(random_arrivals(rng), rng)
    envelopes = [arrival.envelope for arrival in arrivals]
    lines = [orjson.dumps(envelopes[:3]), *map(orjson.dumps, envelopes[3:]), b"", b"  ", *BAD_LINES]
    path = tmp_path_factory.mktemp("account") / "events.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    kinds = {envelope["event_id"]: envelope["kind"] for envelope in envelopes}
    withheld = expected(arrivals, Options()).withheld
    return Case(
        path,
        len(lines) - 2,
        len(envelopes) + len(BAD_LINES),
        dict(Counter(kind for event_id, kind in kinds.items() if event_id not in withheld)),
        len(envelopes) - len(kinds),
        len(withheld),
        dict(Counter(BAD_LINES.values())),
    )


def arguments(case: Case, out: Path, *more: str) -> list[str]:
    return [f"--input_files={case.path}", f"--output_dir={out}", "--nudge_max_age_hours=0", *more]


def numbers(text: str, title: str) -> dict[str, int]:
    """The rows of one of the tables, as far as they end with a number."""
    table = text.partition(f"\n{title}")[2].partition("\n\n")[0]
    return {
        match[1].strip(): int(match[2].replace(",", ""))
        for match in re.finditer(r"^(.*\S) +([\d,]+) *$", table, re.MULTILINE)
    }


def assert_account(text: str, case: Case, out: Path) -> None:
    """The account's numbers are those of the independent calculation, and of what is in the files."""
    text = "\n" + text
    sums = numbers(text, "Account of events")
    assert sums.pop(f"events in {case.lines:,} lines") == case.events
    outcomes = {
        "processed": sum(case.processed.values()),
        "duplicates": case.duplicates,
        "withheld": case.withheld,
        "too late": 0,
        "dead letters": len(BAD_LINES),
        "unaccounted for": 0,
    }
    assert sums == case.processed | outcomes
    rows = {
        table: sum(len(path.read_bytes().splitlines()) for path in out.glob(f"{table}-*.jsonl"))
        for table in ("adherence", "quality", "work_queue", "consents", "dead_letters")
    }
    assert numbers(text, "Rows by table") == rows
    nudges = Counter(
        f"{nudge['kind']} {nudge['type']}"
        for path in out.glob("nudges-*.jsonl")
        for nudge in map(orjson.loads, path.read_bytes().splitlines())
    )
    stated = {" ".join(name.split()): number for name, number in numbers(text, "Nudges by type").items()}
    assert stated == dict(nudges)
    letters = text.partition("\nDead letters by reason")[2].partition("\n\n")[0]
    assert {m[1]: int(m[2]) for m in re.finditer(r"^(\w+) +(\d+) ", letters, re.MULTILINE)} == (
        case.dead_letters
    )
    assert EXAMPLE in letters
    assert "secret-patient" not in text
    assert f"Results: {out}\n" in text


def test_the_account_is_that_of_the_independent_calculation(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    assert case.duplicates
    assert case.withheld
    out = tmp_path / "out"
    assert main([*arguments(case, out), f"--output_dir={out.as_uri()}/"]) == 0
    said = capsys.readouterr()
    assert_account(said.out, case, out)
    # Not a terminal: plain lines, and the last says that everything is done.
    *progress, last, letters = said.err.splitlines()
    size = case.path.stat().st_size / 1000
    assert last == f"read {size:.1f} kB of {size:.1f} kB, {case.lines:,} lines, projected 100%"
    assert all(line.startswith("read ") for line in progress)
    assert f"{len(BAD_LINES)} dead letters" in letters
    assert f"{out}/dead_letters" in letters
    assert "\x1b" not in said.out + said.err
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_dead_letters_as_a_failure(
    quiet: list[str], case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(case, out, "--fail_on_dead_letters", *quiet)) == 3
    said = capsys.readouterr()
    assert "dead letters" in said.err.splitlines()[-1]
    if quiet:
        assert (said.out, len(said.err.splitlines())) == ("", 1)
    else:
        assert_account(said.out, case, out)
    # The results are there all the same.
    assert sum(len(path.read_bytes().splitlines()) for path in out.glob("dead_letters-*")) == len(BAD_LINES)


def test_a_quiet_run_that_goes_well_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events.jsonl"
    lines = [orjson.dumps(arrival.envelope) for arrival in random_arrivals(Random("quiet"))]
    events.write_bytes(b"\n".join(lines))
    status = main(
        [f"--input_files={events}", f"--output_dir={tmp_path}/out", "--quiet", "--fail_on_dead_letters"]
    )
    assert (status, *capsys.readouterr()) == (0, "", "")
    assert list((tmp_path / "out").glob("adherence-*"))


def test_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"")
    assert main([f"--input_files={tmp_path}/events.jsonl", f"--output_dir={tmp_path}/out"]) == 0
    said = capsys.readouterr()
    assert numbers("\n" + said.out, "Account of events")["unaccounted for"] == 0
    assert "events in 0 lines" in said.out
    assert said.err.splitlines()[-1] == "read 0 bytes of 0 bytes, 0 lines"


@pytest.mark.parametrize("verbose", [False, True])
def test_beams_own_log_only_if_it_is_asked_for(
    verbose: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.compress(b"{}\n" * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
    options = ["--verbose"] if verbose else []
    status = main([f"--input_files={tmp_path}/a.jsonl.gz", f"--output_dir={tmp_path}/out", *options])
    said = capsys.readouterr()
    sentence = f"pipeline.main: The input file {tmp_path}/a.jsonl.gz is truncated: "
    assert status == 1
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith(sentence)
    assert ("INFO apache_beam." in said.err) == verbose
    assert ("Traceback" in said.err) == verbose


@pytest.mark.parametrize("damaged", [False, True])
def test_several_processes_give_what_one_gives(
    damaged: bool,
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As for an input that is large enough for them."""
    second = tmp_path / "events.jsonl.gz"
    compressed = gzip.compress(case.path.read_bytes())
    second.write_bytes(compressed[:-9] if damaged else compressed)
    monkeypatch.setattr(cores, "BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2)
    files = [f"--input_files={case.path},{second}", "--nudge_max_age_hours=0"]
    status = main([*files, f"--output_dir={tmp_path}/two"])
    said = capfd.readouterr()
    if damaged:
        assert status == 1
        assert "truncated" in said.err.splitlines()[-1]
        assert all(line.startswith("read ") for line in said.err.splitlines()[:-1])
        assert not (tmp_path / "two").exists()
        return
    assert status == 0
    assert len(list((tmp_path / "two").glob("adherence-*"))) == 2
    assert main([*files, f"--output_dir={tmp_path}/one", "--direct_num_workers=1"]) == 0
    assert len(list((tmp_path / "one").glob("adherence-*"))) == 1
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    for table in ("adherence", "quality", "work_queue"):
        assert_rows_equal(
            current_rows(two[table], table, two["consents"]),
            current_rows(one[table], table, one["consents"]),
            table,
        )
    sums = numbers("\n" + said.out, "Account of events")
    assert sums[f"events in {2 * case.lines:,} lines"] == 2 * case.events
    assert sums["duplicates"] == len_of_events(case) + case.duplicates
    assert sums["dead letters"] == 2 * len(BAD_LINES)
    assert sums["unaccounted for"] == 0


def len_of_events(case: Case) -> int:
    return case.events - len(BAD_LINES)


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        table: [
            orjson.loads(line)
            for path in out.glob(f"{table}-*.jsonl")
            for line in path.read_bytes().splitlines()
        ]
        for table in ("adherence", "quality", "work_queue", "consents")
    }


# --- Workers that end before their time


@contextmanager
def two_processes(case: Case, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run over much more of the same, in two processes beside its own."""
    (folder / "events.jsonl").write_bytes(case.path.read_bytes() * 100)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline.main", f"--input_files={folder}/events.jsonl"),
            *(f"--output_dir={folder}/out", "--direct_num_workers=2"),
            "--direct_running_mode=multi_processing",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False, timeout=60
    )
    return [int(pid) for pid in found.stdout.split()]


def wait_for[T](look: Callable[[], T]) -> T:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert seen
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_while_its_workers_start_leaves_none(
    number: signal.Signals, case: Case, tmp_path: Path
) -> None:
    with two_processes(case, tmp_path) as process:
        workers = wait_for(lambda: workers_of(process))
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (128 + number, "")
    assert err == "pipeline.main: Stopped; nothing is written.\n"
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(case: Case, tmp_path: Path) -> None:
    with two_processes(case, tmp_path) as process:
        folder = str(wait_for(lambda: list(tmp_path.glob("rehab-progress-*")))[0])
        wait_for(lambda: measured(folder).bytes)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out) == (1, "")
    *progress, sentence = err.splitlines()
    assert sentence.startswith("pipeline.main: A worker process was killed")
    assert all(line.startswith("read ") for line in progress)
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


# --- On a terminal


def on_a_terminal(*command: str) -> tuple[int, str]:
    """Runs a command on a terminal of 100 columns; gives its exit status and what it has written."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        ) as process:
            os.close(theirs)
            try:
                written = b"".join(output(ours)).decode()
                return process.wait(DEADLINE_SECONDS), written
            finally:
                process.kill()
    finally:
        os.close(ours)


def output(terminal: int) -> Iterator[bytes]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            block = os.read(terminal, 65536)
        except OSError as error:
            # So Linux says that the other side has closed the terminal.
            if error.errno == errno.EIO:
                return
            raise
        if not block:
            return
        yield block
    raise TimeoutError("the command has not ended")


def test_a_bar_and_the_account_on_a_terminal(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, written = on_a_terminal(sys.executable, "-m", "pipeline.main", *arguments(case, out))
    assert status == 0, written
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written).replace("\r\n", "\n")
    *drawn, account = plain.partition("Dead letters by reason")
    bar = "".join(drawn)
    assert re.search(r"reading +━", bar)
    assert f"{case.lines:,} lines" in bar
    assert re.search(r"projecting +━+ 100%", bar)
    assert_account("Dead letters by reason" + account, case, out)
    # Nothing of a library's.
    for word in ("INFO", "WARNING", "apache_beam", "grpc"):
        assert word not in plain
