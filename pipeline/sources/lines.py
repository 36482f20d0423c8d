"""Reads messages from files of JSON lines."""

import sys
import time
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError

from pipeline.cloud.files import InputFile
from pipeline.errors import InputFileError
from pipeline.reporting.meter import UNMETERED, Meter
from pipeline.sources.compression import DAMAGE, decompressed, is_compressed
from transforms.message import Message
from transforms.steps.telemetry import count
from transforms.times import MICROS

# The part of a file that one worker reads, and the block that it emits at a time.
_PART_BYTES = 2 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024


class ReadFiles(beam.PTransform[beam.pvalue.PBegin, beam.PCollection[list[Message]]]):
    """PBegin → [Message, …]: a message for each non-blank line; its publish time is the time of reading."""

    def __init__(self, files: Sequence[InputFile], meter: Meter = UNMETERED) -> None:
        """`files` are on any file system that Beam supports; progress goes to `meter`."""
        super().__init__()
        self._files = files
        self._meter = meter

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[list[Message]]:
        return (
            pipeline
            | "Files" >> beam.Create(self._files)
            | "Parts" >> beam.FlatMap(file_parts).with_output_types(tuple[str, int, int])
            | "Spread" >> beam.Reshuffle()
            | "Lines" >> beam.ParDo(ReadLines(self._meter)).with_output_types(list[Message])
        )


def file_parts(file: InputFile) -> list[tuple[str, int, int]]:
    """Parts to read in parallel: (path, begin, end) in bytes. A compressed file or a pipe is one part."""
    if file.size is None or is_compressed(file.path):
        return [(file.path, 0, sys.maxsize)]
    return [(file.path, begin, begin + _PART_BYTES) for begin in range(0, file.size, _PART_BYTES)]


class ReadLines(beam.DoFn):
    """(path, begin, end) → [Message, …] for the lines that begin in that part of the file.

    Beam's own read emits one line at a time, which costs more than parsing it.
    """

    def __init__(self, meter: Meter = UNMETERED) -> None:
        """Progress goes to `meter`."""
        self._meter = meter

    def process(self, part: tuple[str, int, int]) -> Iterator[list[Message]]:
        path, begin, end = part
        with _opened(path) as file:
            at = _first_line(file, path, begin)
            rest = b""
            blocks = _blocks(file, path, self._meter)
            while at < end and (block := next(blocks, b"")):
                rest += block
                # The line in which this part ends belongs to this part.
                cut = rest.rfind(b"\n") if at + len(rest) < end else rest.find(b"\n", end - at - 1)
                if cut >= 0:
                    yield self._read(_messages(path, rest[:cut], at), cut + 1, path)
                    at, rest = at + cut + 1, rest[cut + 1 :]
            if rest and at < end:
                yield self._read(_messages(path, rest, at), len(rest), path)

    def _read(self, messages: list[Message], text_bytes: int, path: str) -> list[Message]:
        count("line.read", len(messages))
        self._meter.read(0 if is_compressed(path) else text_bytes, len(messages))
        return messages


def _opened(path: str) -> BinaryIO:
    try:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (OSError, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _first_line(file: BinaryIO, path: str, begin: int) -> int:
    """The offset of the first line that begins in a part; leaves the file there."""
    if not begin:
        return 0
    try:
        # A line that begins earlier belongs to another part; it may end at the byte before this part.
        file.seek(begin - 1)
        return begin - 1 + len(file.readline())
    except (OSError, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _blocks(file: BinaryIO, path: str, meter: Meter) -> Iterator[bytes]:
    """The rest of the file, decompressed, in non-empty blocks."""
    try:
        if is_compressed(path):
            yield from filter(None, decompressed(file, path, meter.read))
        else:
            yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
    except EOFError:
        raise InputFileError(f"The input file {path} is truncated: its compressed data ends early.") from None
    except (*DAMAGE, GoogleAPIError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> InputFileError:
    if is_compressed(path) and isinstance(error, DAMAGE) and getattr(error, "strerror", None) is None:
        return InputFileError(f"The input file {path} is damaged: it is not what its name says.")
    cause = getattr(error, "strerror", None) or type(error).__name__
    return InputFileError(f"The input file {path} cannot be read ({cause}).")


def _messages(path: str, lines: bytes, at: int) -> list[Message]:
    """The messages of complete lines; `at` is their offset in the file."""
    # Spreadsheets and editors put a byte order mark at a file's start; it is not part of the first event.
    text = lines if at else lines.removeprefix(BOM_UTF8)
    now_us = int(time.time() * MICROS)
    stripped = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    return [Message(line, {}, path, "", now_us) for line in stripped if line and not line.isspace()]
