"""Where the CPU time goes: `python -m benchmarks.profile WAY`, by module and by function.

The process samples its own stack every few milliseconds of CPU time. Unlike recording each call, this does
not make functions that are called often look expensive.
"""

import argparse
import dis
import logging
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

from benchmarks.measure import prepare_for, way_for
from benchmarks.workload import events_file

_ROOT = Path(__file__).parent.parent
# The kernel's tick limits how fine this timer can be.
_INTERVAL_SECONDS = 0.001
_RESUME = dis.opmap["RESUME"]


class Function(NamedTuple):
    """A function by the path of its module, relative to this project or the installed packages."""

    module: str
    name: str

    @classmethod
    def of(cls, code: CodeType) -> "Function":
        """The function that has this code."""
        return cls(_module(code.co_filename), code.co_qualname)

    def __str__(self) -> str:
        return f"{self.module} {self.name}"


# From the innermost function outwards.
Stack = tuple[Function, ...]


@contextmanager
def sampled() -> Iterator[Counter[Stack]]:
    """Counts samples of the main thread's stack within the block."""
    stacks = Counter[Stack]()

    def look(_signal: int, frame: FrameType | None) -> None:
        # Python handles a signal at the start of a function. The time was spent in the caller.
        if frame and frame.f_code.co_code[frame.f_lasti] == _RESUME:
            frame = frame.f_back
        stack = []
        while frame:
            stack.append(Function.of(frame.f_code))
            frame = frame.f_back
        stacks[tuple(stack)] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)
    try:
        yield stacks
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@cache
def _module(file: str) -> str:
    path = Path(file)
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else f"Python's {path.name}"


def profile(way: str, events: Path) -> Counter[Stack]:
    """The sampled stacks of a run of `way`, in one process."""
    prepare_for(way)(events)
    with tempfile.TemporaryDirectory() as directory, sampled() as stacks:
        way_for(way, 1)(events, Path(directory, "out"))
    return stacks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the profiler."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("way", choices=("bare", "bounded", "streaming", "naive"))
    parser.add_argument("--events", type=int, default=100_000, help="How many events (default 100000).")
    parser.add_argument("--patients", type=int, default=1000, help="How many patients (default 1000).")
    parser.add_argument("--functions", type=int, default=40, help="How many functions (default 40).")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    stacks = profile(options.way, events_file(options.events, options.patients))
    modules, functions = Counter[str](), Counter[str]()
    for (function, *_), number in stacks.items():
        modules[function.module] += number
        functions[str(function)] += number
    for title, counted in (("module", modules), ("function", functions)):
        print(f"\n    %  {title}, excluding its callees")
        for name, number in counted.most_common(options.functions):
            print(f"{100 * number / stacks.total():5.1f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
