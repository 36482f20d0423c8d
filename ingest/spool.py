"""The durable queue on disk, for messages until Pub/Sub accepts them."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from persistqueue import Empty, FIFOSQLiteQueue
from persistqueue.serializers import msgpack

from ingest import api_metrics
from ingest.intake import Outgoing

_FILE = "messages.db"
_LOCK = "lock"
# The database, and the files that SQLite keeps beside it.
_SUFFIXES = ("", "-wal", "-shm")


class SpoolError(Exception):
    """The queue cannot be opened; the message is one sentence for the operator."""


class SpoolFullError(Exception):
    """The queue is full."""


class SpoolDiskError(Exception):
    """The disk cannot be written or read."""


class Spool:
    """A queue of messages that outlives the process, however it ends.

    Messages that arrive together are one entry, so a single wait for the disk makes all of them safe.
    Only one thread uses SQLite, so nothing else waits for the disk.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Opens or creates the queue; `max_bytes` limits the size of its files. Raises SpoolError."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, "spool")
        self._waiting: list[tuple[Outgoing, asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(directory / _LOCK)
            self._queue = self._open()
            self._count(self._queue.qsize())
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise SpoolError(f"The queue in {directory} cannot be opened ({reason}).") from None

    def _open(self) -> Any:
        # SQLite gives its other files the permissions of this one.
        os.close(os.open(self._directory / _FILE, os.O_CREAT | os.O_RDWR, 0o600))
        return FIFOSQLiteQueue(
            str(self._directory),
            # Entries stay until they are confirmed by `task_done`.
            auto_commit=False,
            multithreading=True,
            serializer=msgpack,
            db_file_name=_FILE,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no message waits."""
        return not self._entries

    @property
    def is_full(self) -> bool:
        """Whether the queue accepts no more."""
        return self._bytes() >= self._max_bytes

    async def put(self, message: Outgoing) -> None:
        """Returns once the message is safe on disk. Raises SpoolFullError or SpoolDiskError."""
        safe = asyncio.get_running_loop().create_future()
        self._waiting.append((message, safe))
        async with self._writing:
            # The first caller writes for everybody who arrived while the disk was busy.
            if together := self._waiting:
                self._waiting = []
                await self._write(together)
        await safe

    async def _write(self, together: list[tuple[Outgoing, asyncio.Future[None]]]) -> None:
        problem: Exception | None = None
        try:
            await self._in_thread(lambda: self._put([message for message, _ in together]))
        except (SpoolFullError, SpoolDiskError) as error:
            problem = error
        for _, safe in together:
            if safe.cancelled():
                continue
            if problem:
                safe.set_exception(problem)
            else:
                safe.set_result(None)

    def _put(self, messages: list[Outgoing]) -> None:
        if self.is_full:
            raise SpoolFullError
        self._queue.put(messages)
        self._count(self._entries + 1)

    async def take(self, at_least: int) -> list[Outgoing]:
        """The oldest messages, at least so many, or all; they stay until `confirm`. Raises SpoolDiskError."""
        return await self._in_thread(lambda: self._take(at_least))

    def _take(self, at_least: int) -> list[Outgoing]:
        messages: list[Outgoing] = []
        try:
            while len(messages) < at_least:
                messages += [Outgoing(*stored) for stored in self._queue.get(block=False)]
        except Empty:
            pass
        except sqlite3.Error:
            # Those already read must be published, because the next `confirm` deletes them.
            if not messages:
                raise
        return messages

    async def confirm(self) -> None:
        """Deletes all messages that have been taken. Raises SpoolDiskError."""
        await self._in_thread(self._confirm)

    def _confirm(self) -> None:
        self._queue.task_done()
        if self._queue.empty():
            # Deleted messages are patients' data, and stay in the file until it shrinks.
            self._queue.shrink_disk_usage()
            self._queue.close()
            self._queue = self._open()
        self._count(self._queue.qsize())

    async def close(self) -> None:
        """Closes the queue; its messages stay on disk."""
        await self._in_thread(self._queue.close)
        self._thread.shutdown()
        self._lock.close()

    async def _in_thread[T](self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except (OSError, sqlite3.Error) as error:
            raise SpoolDiskError(type(error).__name__) from None

    def _bytes(self) -> int:
        sizes = 0
        for suffix in _SUFFIXES:
            with suppress(FileNotFoundError):
                sizes += (self._directory / f"{_FILE}{suffix}").stat().st_size
        return sizes

    def _count(self, entries: int) -> None:
        self._entries = entries
        api_metrics.QUEUE_ENTRIES.set(entries)
        api_metrics.QUEUE_BYTES.set(self._bytes())


def _locked(path: Path) -> Any:
    """The file, locked until this process ends. Two that drained one queue would publish everything twice."""
    file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file
