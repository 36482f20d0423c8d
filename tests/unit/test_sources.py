"""Files in parts: each line once, wherever a part ends."""

import gzip
from pathlib import Path

import pytest
from apache_beam.io.filesystem import FileMetadata

from pipeline import sources
from pipeline.sources import ReadLines

LINES = [b"first", b"", b"a longer line", b"  ", b"x", b"\xff not text", b"carriage return\r", b"last"]
WANTED = [b"first", b"a longer line", b"x", b"\xff not text", b"carriage return", b"last"]


def read(path: Path, *parts: tuple[int, int]) -> list[bytes]:
    messages = [
        message for part in parts for chunk in ReadLines().process((str(path), *part)) for message in chunk
    ]
    assert {message.subscription for message in messages} <= {str(path)}
    return [message.payload for message in messages]


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["unfinished", "finished"])
@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_each_line_comes_once_wherever_the_parts_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: bytes
) -> None:
    monkeypatch.setattr(sources, "_BLOCK_BYTES", block)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n".join(LINES) + end)
    size = path.stat().st_size
    for first in range(1, size):
        assert read(path, (0, first), (first, size)) == WANTED
    assert read(path, *((byte, byte + 1) for byte in range(size))) == WANTED


def test_a_compressed_file_is_one_part(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(LINES)))
    (part,) = sources._parts(FileMetadata(str(path), path.stat().st_size))
    assert read(path, part[1:]) == WANTED
