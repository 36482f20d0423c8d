"""Where the time goes: `python -m benchmarks.profile WAY`, by module and by function."""

import argparse
import cProfile
import logging
import pstats
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import prepare_for, way_for
from benchmarks.workload import events_file

_ROOT = Path(__file__).parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("way", choices=("bare", "bounded", "streaming", "naive"))
    parser.add_argument("--events", type=int, default=20_000, help="How many events (default 20000).")
    parser.add_argument("--patients", type=int, default=200, help="Of how many patients (default 200).")
    parser.add_argument("--functions", type=int, default=40, help="How many functions (default 40).")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    events = events_file(options.events, options.patients)
    prepare_for(options.way)(events)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as directory:
        profile.enable()
        way_for(options.way, 1)(events, Path(directory, "out"))
        profile.disable()
    stats = pstats.Stats(profile)
    show_modules(stats)
    stats.sort_stats("tottime").print_stats(options.functions)
    return 0


def show_modules(stats: pstats.Stats) -> None:
    """Prints the time in each of this project's modules and in each library, calls to others not included."""
    seconds: dict[str, float] = {}
    for (file, _, _), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        seconds[_module(file)] = seconds.get(_module(file), 0) + own
    total = sum(seconds.values())
    for module, own in sorted(seconds.items(), key=lambda item: -item[1])[:20]:
        print(f"{own:8.3f} s {100 * own / total:5.1f} %  {module}")


def _module(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_ROOT) and ".venv" not in path.parts:
        return str(path.relative_to(_ROOT))
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return "Python and compiled code"


if __name__ == "__main__":
    sys.exit(main())
