"""Input files: what is matched, on this machine and on Cloud Storage alike, and what is refused."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cloud.files import InputFile, find_files
from pipeline.errors import OptionsError
from tests.support.cloud_storage import BUCKET, cloud_storage_server

FILES = (
    "x.jsonl",
    "y.jsonl.gz",
    "e[1].jsonl",
    "._x.jsonl",
    "d/x.jsonl",
    "d/.hidden/x.jsonl",
    "d/e/y.jsonl",
    "d/e/f/z.jsonl",
    "d/empty.jsonl",
)

# Pattern → the files that it names.
MATCHES = {
    "x.jsonl": {"x.jsonl"},
    "*.jsonl": {"x.jsonl", "e[1].jsonl"},
    "*": {"x.jsonl", "y.jsonl.gz", "e[1].jsonl"},
    "._*": {"._x.jsonl"},
    "?.jsonl": {"x.jsonl"},
    "[a-m]*.jsonl": {"e[1].jsonl"},
    "[!x]*.jsonl": {"e[1].jsonl"},
    "e[1].jsonl": {"e[1].jsonl"},
    "e[[]1].jsonl": {"e[1].jsonl"},
    "*/x.jsonl": {"d/x.jsonl"},
    "d/*": {"d/x.jsonl", "d/empty.jsonl"},
    "d/**/*.jsonl": {"d/x.jsonl", "d/empty.jsonl", "d/e/y.jsonl", "d/e/f/z.jsonl"},
    "**/[yz].jsonl": {"d/e/y.jsonl", "d/e/f/z.jsonl"},
    "**/x.jsonl": {"x.jsonl", "d/x.jsonl"},
    "d/.hidden/*": {"d/.hidden/x.jsonl"},
}

# Pattern → what the refusal says.
REFUSALS = {
    "none.jsonl": "no file matches",
    "none*.jsonl": "no file matches",
    "X.JSONL": "no file matches",
    "d": "is a folder: name its files, such as",
    "d/": "is a folder: name its files, such as",
}


def content(name: str) -> bytes:
    return b"" if "empty" in name else name.encode()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A server of Cloud Storage's API with the files in a bucket."""
    with cloud_storage_server() as client:
        for name in (*FILES, "d/e/"):
            client.bucket(BUCKET).blob(name).upload_from_string(content(name))
        yield f"gs://{BUCKET}"


@pytest.fixture
def disk(tmp_path: Path) -> str:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return str(tmp_path)


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest) -> str:
    place: str = request.getfixturevalue(request.param)
    return place


def find(*patterns: str) -> list[InputFile]:
    return find_files("--input_files", patterns)


def sentence_of(*patterns: str) -> str:
    with pytest.raises(OptionsError) as refused:
        find(*patterns)
    sentence = str(refused.value)
    assert re.fullmatch(r"--input_files: .+\.", sentence)
    return sentence


@pytest.mark.parametrize("pattern", MATCHES)
def test_a_pattern_names_the_same_files_on_every_file_system(root: str, pattern: str) -> None:
    found = find(f"{root}/{pattern}")
    assert {file.path.removeprefix(f"{root}/") for file in found} == MATCHES[pattern]
    assert {file.path: file.size for file in found} == {
        f"{root}/{name}": len(content(name)) for name in MATCHES[pattern]
    }


@pytest.mark.parametrize("pattern", REFUSALS)
def test_a_pattern_that_names_no_file_is_refused(root: str, pattern: str) -> None:
    assert REFUSALS[pattern] in sentence_of(f"{root}/{pattern}")
    assert REFUSALS[pattern] in sentence_of(f"{root}/x.jsonl", f"{root}/{pattern}")


def test_a_file_that_two_patterns_name_is_read_once(root: str) -> None:
    assert [file.path for file in find(f"{root}/d/x.jsonl", f"{root}/d/*", f"{root}/*/x.jsonl")] == [
        f"{root}/d/x.jsonl",
        f"{root}/d/empty.jsonl",
    ]


@pytest.mark.parametrize("pattern", sorted(MATCHES))
def test_a_relative_pattern_is_as_good_as_an_absolute_one(
    disk: str, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(disk)
    assert {file.path for file in find(pattern)} == MATCHES[pattern]
    assert {os.path.normpath(file.path) for file in find(f"./{pattern}")} == MATCHES[pattern]


def test_a_url_of_a_local_file(disk: str) -> None:
    plain = find(f"{disk}/x.jsonl")
    assert find(f"file://{disk}/x.jsonl") == find(f"file://localhost{disk}/%78.jsonl") == plain
    assert len(find(f"file://{disk}/*.jsonl")) == 2
    assert "should begin with file:///" in sentence_of("file://server/x.jsonl")


@pytest.mark.parametrize("url", ["s3://b/x.jsonl", "https://a/x.jsonl", "hdfs://a/x", "x-y://a/*"])
def test_other_schemes_are_refused(url: str) -> None:
    assert sentence_of(url) == f"--input_files: {url} is neither a local path nor on Cloud Storage (gs://…)."


def test_cloud_storage_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "gs://bucket/x.jsonl needs Google credentials" in sentence_of("gs://bucket/x.jsonl")


def test_a_bucket_that_does_not_exist(bucket: str) -> None:
    assert sentence_of("gs://other/x") == "--input_files: the bucket of gs://other/x does not exist."
    assert "should name a bucket" in sentence_of("gs://*/x")


def test_links_are_followed(disk: str) -> None:
    os.symlink(f"{disk}/d", f"{disk}/linked")
    os.symlink(f"{disk}/x.jsonl", f"{disk}/linked.jsonl")
    os.symlink(f"{disk}/gone.jsonl", f"{disk}/broken.jsonl")
    assert [file.path for file in find(f"{disk}/linked/[!e]*.jsonl")] == [f"{disk}/linked/x.jsonl"]
    assert [file.path for file in find(f"{disk}/l*/e/*")] == [f"{disk}/linked/e/y.jsonl"]
    assert find(f"{disk}/linked.jsonl") == [InputFile(f"{disk}/linked.jsonl", len("x.jsonl"))]
    assert "No such file" in sentence_of(f"{disk}/broken.jsonl")


def test_a_pattern_of_folders_alone(disk: str) -> None:
    assert sentence_of(f"{disk}/[d]") == f"--input_files: {disk}/[d] matches folders only."


def test_pipes_have_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert find(str(tmp_path / "fifo")) == [InputFile(str(tmp_path / "fifo"), None)]
    reading, writing = os.pipe()
    try:
        assert find(f"/dev/fd/{reading}") == [InputFile(f"/dev/fd/{reading}", None)]
    finally:
        os.close(reading)
        os.close(writing)
    assert "neither a file nor a pipe" in sentence_of("/dev/null")


def test_standard_input_that_is_a_file_is_that_file(disk: str) -> None:
    with open(f"{disk}/x.jsonl", "rb") as file:
        assert find(f"/dev/fd/{file.fileno()}") == find(f"{disk}/x.jsonl")


def test_a_file_that_may_not_be_read() -> None:
    # Root may read everything, so another user looks, who must be able to reach the folder.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "x.jsonl"
        path.write_bytes(b"{}")
        path.chmod(0)
        look = "import os; from pipeline.main import main; os.getuid() or os.setuid(65534); exit(main())"
        ended = subprocess.run(
            [sys.executable, "-c", look, f"--input_files={path}", "--dataset=rehab-local.rehab"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert ended.returncode == 2
    assert ended.stderr == f"pipeline.main: --input_files: {path} cannot be read (Permission denied).\n"
