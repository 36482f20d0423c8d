"""For all tests: no test asserts how long something took, so an example may take as long as it takes."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell ignores SIGINT for its background jobs, and what is ignored is inherited by all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for chosen files and tests, which starts soonest; for tests/unit alone one per core.

    All other tests wait for programs half of the time, so two per core; with 8 the longest test decides.
    """
    if all(".py" in argument for argument in config.args):
        return 0
    cores = os.process_cpu_count() or 1
    only_unit = all("unit" in Path(argument).parts for argument in config.args)
    return cores if only_unit else min(2 * cores, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts modules with long tests first: one that starts last would leave the other processes idle."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
