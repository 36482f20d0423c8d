"""An event loop in a thread of its own, for servers in the process of a test."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS = 60.0


class Background:
    """Runs coroutines on the loop; made by `background`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it on the loop and waits for what it gives."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_SECONDS)


@contextmanager
def background() -> Iterator[Background]:
    """A loop that runs until the end of the block."""
    made = Background()
    thread = threading.Thread(target=made.loop.run_forever, name="background", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(_SECONDS)
