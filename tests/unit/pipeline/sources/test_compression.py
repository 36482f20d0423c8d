"""Compressed files: every kind is read to its end, and one that is cut or damaged is refused by its name."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from zstandard import ZstdCompressor

from pipeline.cloud.files import InputFile
from pipeline.errors import InputFileError
from pipeline.sources.compression import is_compressed
from pipeline.sources.lines import ReadLines, file_parts

LINES = [b'{"number": %d, "noise": "%s"}' % (n, str(n**9).encode()) for n in range(3000)]
CONTENT = b"\n".join(LINES) + b"\n"

KINDS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".deflate": zlib.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    ".zst": ZstdCompressor().compress,
    ".zstd": ZstdCompressor().compress,
    ".GZ": gzip.compress,
}
EACH_KIND = pytest.mark.parametrize("suffix", KINDS)


def flushed_gzip(content: bytes) -> bytes:
    """As a program writes that flushes now and then: at each flush everything so far can be read."""
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    blocks = [content[at : at + 10_000] for at in range(0, len(content), 10_000)]
    return (
        b"".join(compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH) for block in blocks)
        + compressor.flush()
    )


def read(path: Path) -> list[bytes]:
    (part,) = file_parts(InputFile(str(path), path.stat().st_size))
    return [message.payload for chunk in ReadLines().process(part) for message in chunk]


def fault_of(path: Path) -> str:
    with pytest.raises(InputFileError) as refused:
        read(path)
    return str(refused.value)


@EACH_KIND
def test_every_kind_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.jsonl{suffix}"
    assert is_compressed(path.name)
    path.write_bytes(KINDS[suffix](CONTENT))
    assert read(path) == LINES


@EACH_KIND
def test_several_streams_in_one_file_and_padding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.jsonl{suffix}"
    compress = KINDS[suffix]
    half = CONTENT.index(b"\n", len(CONTENT) // 2) + 5
    path.write_bytes(compress(CONTENT[:half]) + compress(CONTENT[half:]) + bytes(512))
    assert read(path) == LINES


@EACH_KIND
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.jsonl{suffix}"
    whole = KINDS[suffix](CONTENT)
    cuts = {0, 1, 5, *range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}
    for cut in sorted(cuts - {len(whole)}):
        path.write_bytes(whole[:cut])
        assert fault_of(path) == f"The input file {path} is truncated: its compressed data ends early."


def test_a_cut_right_after_a_flush_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    whole = flushed_gzip(CONTENT)
    path.write_bytes(whole)
    assert read(path) == LINES
    flushes = [at + 4 for at in range(len(whole)) if whole[at : at + 4] == b"\x00\x00\xff\xff"]
    assert len(flushes) > 5
    for cut in flushes:
        path.write_bytes(whole[:cut])
        assert "is truncated" in fault_of(path)


@EACH_KIND
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.jsonl{suffix}"
    path.write_bytes(b'{"not": "compressed"}\n' * 100)
    assert fault_of(path) == f"The input file {path} is damaged: it is not what its name says."
    whole = KINDS[suffix](CONTENT)
    path.write_bytes(whole + b"rubbish after the end")
    assert str(path) in fault_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".deflate"])
def test_a_flipped_bit_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events.jsonl{suffix}"
    damaged = bytearray(KINDS[suffix](CONTENT))
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert str(path) in fault_of(path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "events.jsonl")
    with pytest.raises(InputFileError) as refused:
        list(ReadLines().process((path, 0, 10)))
    assert str(refused.value) == f"The input file {path} cannot be read (No such file or directory)."
