"""Signals that end a run, raised as an exception where that is safe."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Some supervisors send a second signal right after the first; it is the same request.
_REPEAT_SECONDS = 1.0


class Stopped(BaseException):
    """Ctrl-C or another signal stopped the run."""

    def __init__(self, signum: int) -> None:
        """`signum` is the signal's number."""
        super().__init__(signum)
        self.signum = signum


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into `Stopped`, raised in the main thread where that is safe."""

    def __init__(self) -> None:
        """Installs the handlers; call from the main thread."""
        self._deferring = 0
        self._pending: int | None = None
        self._raised: int | None = None
        self._raised_at = float("-inf")
        for signum in _SIGNALS:
            # An ignored SIGHUP stays ignored: that is what nohup does. A shell also ignores SIGINT for every
            # background job of a script, but a SIGINT sent to a job is meant to stop it.
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals until the end of the block.

        A signal between the start of a process and the line that remembers it would leave an orphan.
        """
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if self._pending is not None and not self._deferring:
            self._raise(self._pending)

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Defers signals in the last steps of a run, and for good: a run that is complete cannot be stopped.

        Raises Stopped if a signal came before and the run went on all the same, because a library swallowed
        the exception.
        """
        if self._raised is not None:
            raise Stopped(self._raised)
        self._deferring += 1
        try:
            yield
        except BaseException:
            self._deferring -= 1
            raise

    def ignore(self) -> None:
        """Ignores signals from now on, because the run is already ending."""
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._deferring:
            self._pending = signum
        elif time.monotonic() - self._raised_at > _REPEAT_SECONDS:
            self._raise(signum)

    def _raise(self, signum: int) -> None:
        self._pending, self._raised = None, signum
        self._raised_at = time.monotonic()
        raise Stopped(signum)
