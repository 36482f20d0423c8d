"""What a command shows of the logs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The packages of this project, and the command itself.
_OWN = ("pipeline", "transforms", "__main__")


@contextmanager
def logs() -> Iterator[logging.Handler]:
    """During the block, writes the log to standard error; yields the handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    level, excepthook = root.level, threading.excepthook
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        threading.excepthook = excepthook


def show_own_only(handler: logging.Handler, command: str) -> None:
    """Hides the libraries' logs, and prefixes lines with the command instead of time and module.

    It also hides exceptions in the libraries' threads: many occur when a run is stopped or fails.
    """
    handler.addFilter(lambda record: record.name.partition(".")[0] in _OWN)
    handler.setFormatter(logging.Formatter(f"{command}: %(message)s"))
    threading.excepthook = lambda _failed: None
