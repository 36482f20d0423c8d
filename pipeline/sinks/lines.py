"""Rows and nudges as files of JSON lines, the results of a bounded run."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io import WriteToText
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.sinks.results import unfinished_path
from transforms.rows import Row
from transforms.steps.chunks import NudgeChunk
from transforms.steps.tagging import together

LINES_AT_ONCE = 1000


class WriteLines(beam.PTransform[Sequence[beam.PCollection[Any]], Any]):
    """(PCollection of Row or NudgeChunk, …) → nothing: writes each as a line of `<prefix>*.jsonl`."""

    def __init__(self, prefix: str, in_process: bool) -> None:
        """`prefix` is on any file system that Beam supports; `in_process` if the DirectRunner runs it."""
        super().__init__()
        self._prefix = prefix
        self._in_process = in_process

    def expand(self, written: Sequence[beam.PCollection[Any]]) -> Any:
        lines = [
            each | f"Lines {number}" >> beam.ParDo(_JoinLines()).with_output_types(bytes)
            for number, each in enumerate(written, start=1)
        ]
        written_lines = together(lines, bytes)
        if self._in_process:
            return written_lines | "Files" >> beam.ParDo(WriteFile(self._prefix))
        return written_lines | "Files" >> WriteToText(self._prefix, ".jsonl", coder=BytesCoder())


class WriteFile(beam.DoFn):
    """Lines → nothing: writes each bundle to a new file, which `results_folder` names at the end.

    Only for the DirectRunner, which never retries a bundle. Beam's own write treats its path as a pattern
    when it moves its files, and leaves temporary files behind when the run is stopped.
    """

    def __init__(self, prefix: str) -> None:
        """`prefix` is a folder and one of the result names."""
        self._prefix = prefix

    def start_bundle(self) -> None:
        self._file: BinaryIO | None = None

    def process(self, lines: bytes) -> None:
        if self._file is None:
            self._file = FileSystems.create(unfinished_path(self._prefix))
        self._file.write(lines + b"\n")

    def finish_bundle(self) -> None:
        if self._file is not None:
            self._file.close()


class _JoinLines(beam.DoFn):
    """Joins many lines into one value: writing many costs as much as writing one."""

    def start_bundle(self) -> None:
        self._lines: list[bytes] = []

    def process(self, written: Row | NudgeChunk) -> Iterable[bytes]:
        self._lines += (
            [nudge.body for nudge in written] if isinstance(written, NudgeChunk) else [written.body]
        )
        if len(self._lines) < LINES_AT_ONCE:
            return ()
        joined = b"\n".join(self._lines)
        self.start_bundle()
        return (joined,)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._lines:
            yield GlobalWindows.windowed_value(b"\n".join(self._lines))
