"""What a bounded run counts while it runs, and over how many processes it is spread."""

import bz2
import gzip
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions

from pipeline.cloud.files import InputFile
from pipeline.direct.cores import processes, use_cores
from pipeline.options import parse_options
from pipeline.reporting.meter import UNMETERED, Measured, Meter, measured
from pipeline.sources.lines import ReadLines, file_parts

MB = 1_000_000


def test_the_copies_of_a_meter_add_up(tmp_path: Path) -> None:
    meter = Meter(str(tmp_path))
    assert measured(str(tmp_path)) == Measured()

    def count(copy: Meter) -> None:
        for _ in range(1000):
            copy.read(2**33, 1)
            copy.gathered(3)
            copy.projected(2)

    copies = [pickle.loads(pickle.dumps(meter)) for _ in range(4)]
    threads = [threading.Thread(target=count, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured(str(tmp_path)) == Measured(4000 * 2**33, 4000, 12_000, 8000)


def test_a_file_that_is_not_a_whole_meter_yet_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"")
    assert measured(str(tmp_path)) == Measured()


def test_what_is_not_metered_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    UNMETERED.read(1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.bz2", bz2.compress)],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n  \n"], ids=repr)
def test_in_the_end_every_byte_and_every_line_is_read(
    name: str, compress: Callable[[bytes], bytes], end: bytes, tmp_path: Path
) -> None:
    lines = [b"x" * (number * 7919 % 300_000 + 1) for number in range(50)]
    path, folder = tmp_path / name, tmp_path / "meters"
    path.write_bytes(compress(b"\xef\xbb\xbf" + b"\n".join(lines) + end))
    folder.mkdir()
    parts = file_parts(InputFile(str(path), path.stat().st_size))
    reads = [
        message for part in parts for some in ReadLines(Meter(str(folder))).process(part) for message in some
    ]
    assert len(reads) == len(lines)
    assert measured(str(folder)) == Measured(path.stat().st_size, len(lines))


@pytest.mark.parametrize(
    ("files", "available", "wanted"),
    [
        # Too small to gain by it, and just large enough.
        ([("a.jsonl", 119 * MB)], 2, 1),
        ([("a.jsonl", 120 * MB)], 2, 2),
        ([("a.jsonl", 30 * MB)] * 4, 2, 2),
        # As many as there are cores, or as there is work for.
        ([("a.jsonl", 4000 * MB)], 1, 1),
        ([("a.jsonl", 4000 * MB)], 8, 8),
        ([("a.jsonl", 190 * MB)], 8, 3),
        # A compressed file cannot be shared; a pipe is open in the first process only.
        ([("a.jsonl.gz", 4000 * MB)], 8, 1),
        ([("a.jsonl.gz", 4000 * MB)] * 3, 8, 3),
        ([("a.jsonl", 4000 * MB), ("/dev/fd/63", None)], 8, 1),
        ([], 8, 1),
    ],
)
def test_as_many_processes_as_the_input_is_worth(
    files: list[tuple[str, int | None]], available: int, wanted: int
) -> None:
    assert processes([InputFile(*file) for file in files], available) == wanted


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], (3, "multi_processing")),
        # What the user says holds.
        (["--direct_num_workers=1"], (1, "in_memory")),
        (["--direct_num_workers=2", "--direct_running_mode=multi_threading"], (2, "multi_threading")),
        (["--direct_running_mode=in_memory"], (1, "in_memory")),
    ],
)
def test_beam_is_told_of_the_processes(
    arguments: list[str], wanted: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3)
    options = parse_options(["--input_files=a.jsonl", "--output_dir=out", *arguments])
    use_cores(options, [InputFile("a.jsonl", 1000 * MB)])
    direct = options.view_as(DirectOptions)
    assert (direct.direct_num_workers, direct.direct_running_mode) == wanted


def test_a_machine_that_does_not_tell_its_cores_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: None)
    options = parse_options(["--input_files=a.jsonl", "--output_dir=out"])
    use_cores(options, [InputFile("a.jsonl", 1000 * MB)])
    assert options.view_as(DirectOptions).direct_num_workers == 1
