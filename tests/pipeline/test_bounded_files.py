"""A bounded run's files: what it reads and writes, what it refuses, and what a stopped run leaves behind."""

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import orjson
import pytest
from apache_beam.internal.gcp import auth
from google.cloud.storage import Client

from pipeline.main import main
from pipeline.sinks.results import NAMES
from tests.support.cloud_storage import cloud_storage_server
from tests.support.strategies import random_arrivals

_DEADLINE_SECONDS = 120
# What another run over the same events states anew.
_OF_THE_RUN = {"version", "updated_at", "generated_at", "failed_at", "publish_time", "subscription"}


def rows_of(contents: dict[str, bytes]) -> Counter[tuple[str, str]]:
    """The results' lines by kind of file, without what a new run states anew."""
    rows: Counter[tuple[str, str]] = Counter()
    for name, content in contents.items():
        result = next(result for result in NAMES if name.startswith(f"{result}-0"))
        for line in content.splitlines():
            row = orjson.loads(line)
            row = {column: value for column, value in row.items() if column not in _OF_THE_RUN}
            rows[result, orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()] += 1
    return rows


def results_in(folder: Path) -> Counter[tuple[str, str]]:
    names = os.listdir(folder)
    assert all(name.endswith(".jsonl") for name in names)
    return rows_of({name: (folder / name).read_bytes() for name in names})


@pytest.fixture(scope="module")
def events() -> bytes:
    arrivals = random_arrivals(Random("files"))
    return b"".join(orjson.dumps(arrival.envelope) + b"\n" for arrival in arrivals) + b"not an event\n"


@pytest.fixture(scope="module")
def wanted(events: bytes, tmp_path_factory: pytest.TempPathFactory) -> Counter[tuple[str, str]]:
    """The results of a run over one plain file."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "events.jsonl").write_bytes(events)
    assert run(f"{folder}/events.jsonl", folder / "out") == 0
    rows = results_in(folder / "out")
    assert {result for result, _ in rows} >= {"adherence", "quality", "work_queue", "dead_letters"}
    return rows


def run(input_files: str, output_dir: Path | str, *more: str) -> int:
    return main(
        [f"--input_files={input_files}", f"--output_dir={output_dir}", "--nudge_max_age_hours=0", *more]
    )


def command(input_files: str, output_dir: Path, *more: str) -> list[str]:
    options = [f"--input_files={input_files}", f"--output_dir={output_dir}", "--nudge_max_age_hours=0", *more]
    return [sys.executable, "-m", "pipeline.main", *options]


# --- Reading


def test_relative_patterns_in_the_folder_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: bytes, wanted: Counter[tuple[str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = events.splitlines(keepends=True)
    (tmp_path / "day").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(lines[::3]))
    (tmp_path / "day/b.jsonl").write_bytes(b"".join(lines[1::3]))
    (tmp_path / "day/c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[2::3])))
    (tmp_path / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07 of a Mac\n")
    assert run("*.jsonl, **/*.jsonl*", "out") == 0
    assert results_in(tmp_path / "out") == wanted


def test_a_pipe_is_read(tmp_path: Path, events: bytes, wanted: Counter[tuple[str, str]]) -> None:
    ended = subprocess.run(
        command("/dev/stdin", tmp_path / "out"), input=events, capture_output=True, check=False, timeout=240
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert results_in(tmp_path / "out") == wanted


def test_a_named_pipe_is_read(tmp_path: Path, events: bytes, wanted: Counter[tuple[str, str]]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(events,))
    writer.start()
    assert run(str(fifo), tmp_path / "out") == 0
    writer.join(_DEADLINE_SECONDS)
    assert not writer.is_alive()
    assert results_in(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    "workers", [(), ("--direct_num_workers=2", "--direct_running_mode=multi_processing")], ids=["one", "two"]
)
def test_a_truncated_file_among_good_ones_is_named_and_nothing_is_written(
    tmp_path: Path, events: bytes, workers: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(events)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(events)[:-9])
    ended = subprocess.run(
        command(f"{tmp_path}/*", tmp_path / "new/out", *workers),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"pipeline.main: The input file {tmp_path}/b.jsonl.gz is truncated: its compressed data ends early."
    )
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.jsonl.gz"]


# --- Refusals at launch


# (--input_files, --output_dir) → the problem; {0} is a folder with one file.
LAUNCH_PROBLEMS = {
    ("{0}", "{0}/out"): "--input_files: {0} is a folder: name its files, such as {0}/*.jsonl.",
    ("{0}/none*", "{0}/out"): "--input_files: no file matches {0}/none*.",
    ("{0}/x.jsonl", "{0}/x.jsonl"): "--output_dir: {0}/x.jsonl is a file.",
    ("{0}/x.jsonl", "{0}/x.jsonl/out"): "--output_dir: {0}/x.jsonl/out cannot be made (Not a directory).",
    ("{0}/x.jsonl", "/dev/null/out"): "--output_dir: /dev/null/out cannot be made (Not a directory).",
    (
        "{0}/x.jsonl",
        "s3://b/o",
    ): "--output_dir: s3://b/o is neither a local path nor on Cloud Storage (gs://…).",
}


@pytest.mark.parametrize("paths", LAUNCH_PROBLEMS)
def test_problems_at_launch_are_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], paths: tuple[str, str]
) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"{}\n")
    input_files, output_dir = (path.format(tmp_path) for path in paths)
    assert run(input_files, output_dir) == 2
    assert capfd.readouterr().err == f"pipeline.main: {LAUNCH_PROBLEMS[paths].format(tmp_path)}\n"
    assert os.listdir(tmp_path) == ["x.jsonl"]


# --- Writing


@pytest.mark.parametrize("name", ["res[1]", "a*", "what?", "with space", "deep/er"])
def test_the_output_folder_is_no_pattern(
    tmp_path: Path, events: bytes, wanted: Counter[tuple[str, str]], name: str
) -> None:
    (tmp_path / "events.jsonl").write_bytes(events)
    (tmp_path / "abc").mkdir()
    assert run(f"{tmp_path}/events.jsonl", f"file://{tmp_path}/{name}/".replace("?", "%3F")) == 0
    assert results_in(tmp_path / name) == wanted
    assert sorted(os.listdir(tmp_path)) == sorted({"events.jsonl", "abc", name.split("/")[0]})


def test_earlier_results_are_refused_or_replaced_as_a_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], events: bytes, wanted: Counter[tuple[str, str]]
) -> None:
    (tmp_path / "events.jsonl").write_bytes(events)
    out = tmp_path / "out"
    out.mkdir()
    # As a run with more shards would have left them, among files that are nobody's results.
    earlier = [f"{result}-{shard:05}-of-00003.jsonl" for result in NAMES for shard in range(3)]
    others = ["adherence-notes.jsonl", "events.jsonl", "quality-00000-of-00003.csv", ".hidden"]
    for name in (*earlier, *others):
        (out / name).write_bytes(b'{"of": "before"}\n')
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(f"{tmp_path}/events.jsonl", out) == 2
    assert capfd.readouterr().err == (
        f"pipeline.main: --output_dir: {out} holds an earlier run's results, "
        "such as adherence-00000-of-00003.jsonl: name another folder, or replace them with --overwrite.\n"
    )
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert run(f"{tmp_path}/events.jsonl", out, "--overwrite") == 0
    assert set(others) < set(os.listdir(out))
    for name in others:
        assert (out / name).read_bytes() == b'{"of": "before"}\n'
        (out / name).unlink()
    assert results_in(out) == wanted


def test_a_run_that_fails_leaves_earlier_results_as_they_were(tmp_path: Path, events: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(events)
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    assert run(f"{tmp_path}/events.jsonl", tmp_path / "out") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(f"{tmp_path}/*", tmp_path / "out", "--overwrite") == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# --- Stopping


def _restore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    "workers", [(), ("--direct_num_workers=2", "--direct_running_mode=multi_processing")], ids=["one", "two"]
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing(
    tmp_path: Path, events: bytes, signum: signal.Signals, workers: tuple[str, ...]
) -> None:
    (tmp_path / "events.jsonl").write_bytes(events * 300)
    process = subprocess.Popen(
        command(f"{tmp_path}/events.jsonl", tmp_path / "new/out", *workers),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_restore_interrupts,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not list(tmp_path.glob("new/out/.unfinished-*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=_DEADLINE_SECONDS)
        assert process.returncode == 128 + signum
        assert errors.splitlines()[-1] == "pipeline.main: Stopped; nothing is written."
        assert "Traceback" not in errors
        assert os.listdir(tmp_path) == ["events.jsonl"]
    finally:
        # Workers are of its group: none may be left.
        left = _group_is_alive(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not left


def _group_is_alive(group: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


# --- Cloud Storage


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    # Beam would look for credentials for half a minute before it goes on without them.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    with cloud_storage_server() as client:
        yield client


def test_files_on_cloud_storage(
    bucket: Client, capfd: pytest.CaptureFixture[str], events: bytes, wanted: Counter[tuple[str, str]]
) -> None:
    files = bucket.bucket("rehab-files")
    files.blob("in/a.jsonl").upload_from_string(events)
    files.blob("in/b.jsonl.gz").upload_from_string(gzip.compress(events))
    assert run("gs://rehab-files/in/*", "gs://rehab-files/out/") == 0
    names = [blob.name for blob in bucket.list_blobs("rehab-files", prefix="out/")]
    written = {name: files.blob(name).download_as_bytes() for name in names}
    rows = rows_of({name.removeprefix("out/"): content for name, content in written.items()})
    # Every event comes twice, and counts once.
    assert {row for row in rows if row[0] != "dead_letters"} == {
        row for row in wanted if row[0] != "dead_letters"
    }
    assert run("gs://rehab-files/in/*", "gs://rehab-files/out") == 2
    assert "holds an earlier run's results" in capfd.readouterr().err
    files.blob("in/b.jsonl.gz").upload_from_string(gzip.compress(events)[:-9])
    assert run("gs://rehab-files/in/*", "gs://rehab-files/out", "--overwrite") == 1
    assert "gs://rehab-files/in/b.jsonl.gz is truncated" in capfd.readouterr().err
    assert {
        name: files.blob(name).download_as_bytes()
        for name in (blob.name for blob in bucket.list_blobs("rehab-files", prefix="out/"))
    } == written
    files.blob("in/b.jsonl.gz").delete()
    assert run("gs://rehab-files/in/*", "gs://rehab-files/out", "--overwrite") == 0
    assert [blob.name for blob in bucket.list_blobs("rehab-files", prefix="out/")] == names
