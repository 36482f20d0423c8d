"""The streaming job as a process over fresh emulators, watched from outside: what it holds, how far it is."""

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
# A job that works writes its metrics twice a second.
STANDSTILL_SECONDS = 120.0
MIB = 1024 * 1024


class Holding(NamedTuple):
    """What a process holds: resident memory in bytes, open file handles (sockets too) and threads."""

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
        """What the job holds now. Raises psutil.NoSuchProcess if it has ended."""
        with self._process.oneshot():
            memory = self._process.memory_info().rss
            self.peak_memory = max(self.peak_memory, memory)
            return Holding(memory, self._process.num_fds(), self._process.num_threads())

    def metrics(self) -> Metrics:
        """What the job says of itself."""
        return read_metrics(self._metrics_file)

    def left(self, published: int) -> int:
        """Of so many events, those without an outcome; of rows, those not yet written are added."""
        metrics = self.metrics()
        return account(Published(events=published), metrics).open + sum(metrics.unwritten.values())

    def until_done(self, published: int, look: Callable[[], None] = lambda: None) -> int:
        """Watches until the job is done with so many events, or nothing moves; gives what is left."""
        seen, moved = None, time.monotonic()
        left, calm = published, 0
        # Timers go on making rows for minutes: done it is when nothing has been left for a second and a half.
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
    """Fresh emulators with everything that the job needs, which this process's environment names too."""
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
    """Runs `python -m pipeline.<name>`, its output in `folder`, until the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", f"pipeline.{name}", *arguments]
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
    with module("main", folder, *arguments) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not metrics.exists():
            if time.monotonic() > deadline or not process.is_running():
                raise RuntimeError(f"the job did not start:\n{(folder / 'main.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield Watched(process, metrics)


def machine() -> str:
    """What this ran on, in a few words."""
    memory = psutil.virtual_memory().total / 1024**3
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB of memory, Python {sys.version.split()[0]}"
