"""Chooses the number of processes for a bounded run on this machine."""

import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions

from pipeline.cloud.files import InputFile
from pipeline.options import RehabOptions
from pipeline.sources.lines import file_parts

# A process takes seconds to start; below about 80 MB, a second one does not pay off.
BYTES_PER_PROCESS = 60_000_000


def processes(files: Sequence[InputFile], cores: int) -> int:
    """The fastest number of processes for the files; 1 for a pipe, which only this process can read."""
    if any(file.size is None for file in files):
        return 1
    # One process reads a compressed file, whatever its size.
    parts = sum(len(file_parts(file)) for file in files)
    large_enough = sum(file.size or 0 for file in files) // BYTES_PER_PROCESS
    return max(1, min(cores, parts, large_enough))


def use_cores(options: RehabOptions, files: Sequence[InputFile]) -> None:
    """Sets Beam's number of processes, unless the command line states it."""
    if options.states("direct_num_workers", "direct_running_mode"):
        return
    number = processes(files, os.process_cpu_count() or 1)
    if number > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = number
        direct.direct_running_mode = "multi_processing"
