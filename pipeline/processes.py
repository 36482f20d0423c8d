"""Processes and signals of a local run: what it starts, it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP_SECONDS = 5.0
# Some supervisors send a second signal right after the first.
_REPEAT_SECONDS = 1.0


class Stopped(BaseException):
    """The run was told to stop, by Ctrl-C or another signal."""

    def __init__(self, signum: int) -> None:
        """`signum` is the signal's number."""
        super().__init__(signum)
        self.signum = signum


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into `Stopped`, raised in the main thread where that is safe."""

    def __init__(self) -> None:
        """Installs the handlers; call from the main thread."""
        self._held = 0
        self._pending: int | None = None
        self._raised_at = float("-inf")
        for signum in _SIGNALS:
            # nohup means that SIGHUP is to be ignored. A shell ignores SIGINT for every background job of a
            # script, but whoever sends it to one wants it to end.
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._on_signal)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps a signal back until the end of the block.

        Raised between a process's start and the line that remembers it, it would leave an orphan.
        """
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._pending is not None and not self._held:
            self._raise(self._pending)

    def ignore(self) -> None:
        """From now on signals have no effect: the run is ending already."""
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._held:
            self._pending = signum
        elif time.monotonic() - self._raised_at > _REPEAT_SECONDS:
            self._raise(signum)

    def _raise(self, signum: int) -> None:
        self._pending = None
        self._raised_at = time.monotonic()
        raise Stopped(signum)


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command, its output in `log`; at the end of the block it and all its children are ended."""
    with log.open("ab") as output:
        # A group of its own: the terminal's Ctrl-C reaches only us, and we end it in order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    # Also when the process itself has ended: its children may not have.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
