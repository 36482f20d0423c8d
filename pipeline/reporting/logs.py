"""What of the logs a command shows."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The packages of this project, and the command itself.
_OWN = ("pipeline", "transforms", "__main__")


@contextmanager
def logs() -> Iterator[logging.Handler]:
    """During the block, shows the log on standard error; yields the handler that does."""
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
    """Leaves out what libraries say, and names the command where a log names the time and the module.

    What the threads of libraries fail with is left out as well: many do when a run is stopped or fails.
    """
    handler.addFilter(lambda record: record.name.partition(".")[0] in _OWN)
    handler.setFormatter(logging.Formatter(f"{command}: %(message)s"))
    threading.excepthook = lambda _failed: None
