"""The streaming job as a process over fresh emulators, observed from outside: its resources and progress."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from local.emulators import available_pubsub, bigquery_emulator
from local.figures import Published, account, read_metrics
from local.places import Places, make_places
from local.processes import running
from pipeline.operations.provisioning import provision
from pipeline.reporting.metrics import Metrics

_ROOT = Path(__file__).resolve().parents[1]
_START_SECONDS = 120.0
# A running job writes its metrics twice a second; after this long without progress, give up.
STANDSTILL_SECONDS = 120.0
MIB = 1024 * 1024


class Holding(NamedTuple):
    """Resources of a process: resident memory in bytes, open file handles (sockets included) and threads."""

    memory: int
    handles: int
    threads: int


class Watched:
    """A running job."""

    def __init__(self, process: psutil.Process, metrics_file: Path) -> None:
        self._process = process
        self._metrics_file = metrics_file
        self.peak_memory = 0

    def holding(self) -> Holding:
        """The job's resources now. Raises psutil.NoSuchProcess if it has ended."""
        with self._process.oneshot():
            memory = self._process.memory_info().rss
            self.peak_memory = max(self.peak_memory, memory)
            return Holding(memory, self._process.num_fds(), self._process.num_threads())

    def metrics(self) -> Metrics:
        """The job's own metrics."""
        return read_metrics(self._metrics_file)

    def left(self, published: int) -> int:
        """The number of published events without an outcome, plus rows not yet written."""
        metrics = self.metrics()
        return account(Published(events=published), metrics).open + sum(metrics.unwritten.values())

    def until_done(self, published: int, look: Callable[[], None] = lambda: None) -> int:
        """Waits until all events and rows are done or nothing moves any more. Returns what is left."""
        seen, moved = None, time.monotonic()
        left, calm = published, 0
        # Timers may still make rows, so it is done only after nothing has been left for a second and a half.
        while calm < 3 and time.monotonic() - moved < STANDSTILL_SECONDS:
            look()
            self.holding()
            left, metrics = self.left(published), self.metrics()
            calm = 0 if left else calm + 1
            if metrics.moving_parts != seen:
                seen, moved = metrics.moving_parts, time.monotonic()
            time.sleep(0.5)
        return left


@contextmanager
def places(folder: Path) -> Iterator[Places]:
    """Starts fresh emulators with the job's resources, and names them in this process's environment."""
    start_pubsub, _ = available_pubsub()
    with ExitStack() as stack:
        pubsub = stack.enter_context(start_pubsub(folder))
        bigquery = stack.enter_context(bigquery_emulator(folder, folder / "bigquery"))
        made = make_places(pubsub, bigquery, fresh=True)
        os.environ.update(made.environment)
        provision(made.resources, report=lambda line: None)
        yield made


@contextmanager
def module(name: str, folder: Path, *arguments: str) -> Iterator[psutil.Process]:
    """Runs `python -m <name>` until the end of the block. Its output goes to `folder`."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", name, *arguments]
    with running(command, folder / f"{name}.log", environment) as process:
        yield psutil.Process(process.pid)


@contextmanager
def job(places: Places, folder: Path) -> Iterator[Watched]:
    """Starts the job and waits until it runs."""
    resources, metrics = places.resources, folder / "metrics.json"
    metrics.unlink(missing_ok=True)
    arguments = (
        f"--primary_subscription={resources.primary_subscription}",
        f"--secondary_subscription={resources.secondary_subscription}",
        f"--nudge_topic={resources.nudge_topic}",
        f"--dataset={resources.dataset}",
        f"--metrics_file={metrics}",
    )
    with module("pipeline.main", folder, *arguments) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not metrics.exists():
            if time.monotonic() > deadline or not process.is_running():
                raise RuntimeError(
                    f"the job did not start:\n{(folder / 'pipeline.main.log').read_text()[-2000:]}"
                )
            time.sleep(0.1)
        yield Watched(process, metrics)


def machine() -> str:
    """The machine, in a few words."""
    memory = psutil.virtual_memory().total / 1024**3
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB of memory, Python {sys.version.split()[0]}"
