"""Displays the progress of a bounded run: bars on a terminal, otherwise a line now and then."""

import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from pipeline.cloud.files import InputFile
from pipeline.reporting.display import WIDTH
from pipeline.reporting.meter import Measured, Meter, measured

_LOOK_SECONDS = 0.5
_LINE_SECONDS = 10.0
# The period over which a rate is computed.
_RECENT_SECONDS = 5.0


class Progress:
    """Meters a run, and displays its progress on standard error."""

    def __init__(self, in_lines: bool) -> None:
        """`in_lines` prints lines instead of bars, even on a terminal."""
        self._in_lines = in_lines
        self._folder = tempfile.TemporaryDirectory(prefix="rehab-progress-", ignore_cleanup_errors=True)
        self.meter = Meter(self._folder.name)
        self.files: Sequence[InputFile] = ()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def measured(self) -> Measured:
        """The progress so far."""
        return measured(self._folder.name)

    @contextmanager
    def over(self, files: Sequence[InputFile]) -> Iterator[None]:
        """Displays the progress of a run over these files during the block."""
        self.files = files
        console = Console(stderr=True, highlight=False)
        with_bar = console.is_terminal and not console.is_dumb_terminal and not self._in_lines
        display: _Display = _Bar(console, files) if with_bar else _Lines(files)
        ended = threading.Event()
        shower = threading.Thread(target=self._show, args=(display, ended), name="progress", daemon=True)
        shower.start()
        try:
            yield
            display.done(self.measured())
        finally:
            ended.set()
            shower.join()
            display.stop()

    def _show(self, display: "_Display", ended: threading.Event) -> None:
        while not ended.wait(_LOOK_SECONDS):
            display.show(self.measured())


class _Display(Protocol):
    def show(self, now: Measured) -> None: ...

    def done(self, now: Measured) -> None: ...

    def stop(self) -> None: ...


def total_bytes(files: Sequence[InputFile]) -> int | None:
    """The total size of the files in bytes; None if one is a pipe."""
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size or 0 for size in sizes)


class _Pace:
    """Rates over the last few seconds."""

    def __init__(self) -> None:
        self._looks = deque([(time.monotonic(), Measured())])

    def take(self, now: Measured) -> None:
        """Adds the newest measurement."""
        at = time.monotonic()
        self._looks.append((at, now))
        while len(self._looks) > 2 and self._looks[1][0] < at - _RECENT_SECONDS:
            self._looks.popleft()

    def rate(self, of: Callable[[Measured], int]) -> float:
        """The rate of one measure, per second."""
        (began, before), (ended, after) = self._looks[0], self._looks[-1]
        return (of(after) - of(before)) / (ended - began) if ended > began else 0.0


def _read_text(now: Measured, total: int | None) -> str:
    of_all = f" of {decimal(total)}" if total is not None else ""
    return f"{decimal(now.bytes)}{of_all}, {now.lines:,} lines"


def _is_read(now: Measured, total: int | None) -> bool:
    # Projection starts only when everything has been read.
    return now.projected > 0 or now.bytes == total


class _Bar:
    """Two bars: reading the files, then projecting their events, which may take just as long."""

    def __init__(self, console: Console, files: Sequence[InputFile]) -> None:
        self._total = total_bytes(files)
        self._pace = _Pace()
        width = min(console.width, WIDTH)
        self._bars = Bars(
            TextColumn("{task.description:<10}"),
            _BarOfKnownLength(bar_width=24 if width == WIDTH else 10),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True, highlight=False, width=width),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._reading = self._bars.add_task("reading", total=self._total, text="")
        self._projecting: TaskID | None = None
        self._bars.start()

    def show(self, now: Measured) -> None:
        self._pace.take(now)
        text = _read_text(now, self._total)
        is_read = _is_read(now, self._total)
        if not is_read:
            text += f", {self._pace.rate(lambda at: at.lines):,.0f} lines/s"
        self._bars.update(self._reading, completed=now.bytes, text=text)
        if is_read and self._projecting is None:
            self._projecting = self._bars.add_task("projecting", total=None, text="")
        if self._projecting is not None and now.gathered:
            share = f"{now.projected / now.gathered:.0%}"
            self._bars.update(self._projecting, total=now.gathered, completed=now.projected, text=share)
        self._bars.refresh()

    def done(self, now: Measured) -> None:
        self.show(now)

    def stop(self) -> None:
        self._bars.stop()


class _BarOfKnownLength(BarColumn):
    """A bar that is hidden while its total is unknown."""

    def render(self, task: Task) -> Any:
        return Text("") if task.total is None else super().render(task)


class _Lines:
    """A line every ten seconds, to keep logs short, and one at the end."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        self._total = total_bytes(files)
        self._pace = _Pace()
        self._said = time.monotonic()

    def show(self, now: Measured) -> None:
        self._pace.take(now)
        if time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self._say(now)

    def done(self, now: Measured) -> None:
        self._say(now)

    def stop(self) -> None:
        """Nothing to clean up."""

    def _say(self, now: Measured) -> None:
        text = f"read {_read_text(now, self._total)}"
        if _is_read(now, self._total):
            share = f", projected {now.projected / now.gathered:.0%}" if now.gathered else ""
            left = self._left(now.gathered - now.projected, lambda at: at.projected)
            print(f"{text}{share}{left}", file=sys.stderr)
            return
        rate = f", {self._pace.rate(lambda at: at.lines):,.0f} lines/s"
        left = self._left(self._total - now.bytes, lambda at: at.bytes) if self._total else ""
        print(f"{text}{rate}{left}", file=sys.stderr)

    def _left(self, amount: int, of: Callable[[Measured], int]) -> str:
        rate = self._pace.rate(of)
        return f", about {amount / rate:,.0f} s left" if amount and rate else ""
