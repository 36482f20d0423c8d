"""How many processes a bounded run on this machine is spread over."""

import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import DirectOptions

from pipeline.cloud.files import InputFile
from pipeline.options import RehabOptions
from pipeline.sources.lines import file_parts

# A process takes seconds to start: a second one should save more than that, which it does not below 80 MB.
BYTES_PER_PROCESS = 60_000_000


def processes(files: Sequence[InputFile], cores: int) -> int:
    """How many processes read the files fastest; 1 for a pipe, which only the first process has."""
    if any(file.size is None for file in files):
        return 1
    # A compressed file is read by one process, whatever its size.
    parts = sum(len(file_parts(file)) for file in files)
    large_enough = sum(file.size or 0 for file in files) // BYTES_PER_PROCESS
    return max(1, min(cores, parts, large_enough))


def use_cores(options: RehabOptions, files: Sequence[InputFile]) -> None:
    """Has Beam use as many processes as the files are worth, unless its own options say how many."""
    if options.states("direct_num_workers", "direct_running_mode"):
        return
    number = processes(files, os.process_cpu_count() or 1)
    if number > 1:
        direct = options.view_as(DirectOptions)
        direct.direct_num_workers = number
        direct.direct_running_mode = "multi_processing"
