"""Signals that end a run, raised as an exception where that is safe."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
