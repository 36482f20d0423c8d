"""The queue on disk: what is put comes out in order, again and again until it is confirmed."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ingest.intake import Outgoing
from ingest.spool import Spool, SpoolError, SpoolFullError

MB = 1024 * 1024

Use = Callable[[Spool], Awaitable[None]]


def numbered(count: int, size: int = 10) -> list[Outgoing]:
    return [Outgoing(b"%06d" % number + b"x" * size, {"event_id": str(number)}) for number in range(count)]


def with_spool(folder: Path, use: Use, max_bytes: int = MB) -> None:
    async def run() -> None:
        spool = Spool(folder, max_bytes)
        try:
            await use(spool)
        finally:
            await spool.close()

    asyncio.run(run())


def test_what_is_not_confirmed_comes_again_after_a_restart(tmp_path: Path) -> None:
    async def put_and_take(spool: Spool) -> None:
        for message in numbered(5):
            await spool.put(message)
        assert await spool.take(2) == numbered(5)[:2]
        await spool.confirm()
        assert await spool.take(100) == numbered(5)[2:]
        assert await spool.take(100) == []
        assert not spool.is_empty

    async def take_again(spool: Spool) -> None:
        assert not spool.is_empty
        assert await spool.take(100) == numbered(5)[2:]
        await spool.confirm()
        assert spool.is_empty

    with_spool(tmp_path, put_and_take)
    with_spool(tmp_path, take_again)


def test_what_comes_together_keeps_its_order_and_what_comes_meanwhile_stays(tmp_path: Path) -> None:
    async def use(spool: Spool) -> None:
        await asyncio.gather(*map(spool.put, numbered(300)))
        first = await spool.take(1)
        late = Outgoing(b"late", {})
        await spool.put(late)
        await spool.confirm()
        assert first + await spool.take(1000) == [*numbered(300), late]

    with_spool(tmp_path, use)


def test_a_full_queue_takes_again_when_it_has_been_emptied(tmp_path: Path) -> None:
    async def use(spool: Spool) -> None:
        taken = 0
        while not spool.is_full:
            await spool.put(Outgoing(b"x" * 30_000, {}))
            taken += 1
        with pytest.raises(SpoolFullError):
            await spool.put(numbered(1)[0])
        assert len(await spool.take(1000)) == taken > 10
        await spool.confirm()
        await spool.put(numbered(1)[0])

    with_spool(tmp_path, use)


def test_nothing_of_a_message_is_left_on_disk(tmp_path: Path) -> None:
    async def use(spool: Spool) -> None:
        await spool.put(Outgoing(b"of a patient", {}))
        await spool.take(1)
        await spool.confirm()
        assert not [path for path in tmp_path.iterdir() if b"of a patient" in path.read_bytes()]

    with_spool(tmp_path, use)


def test_one_directory_has_one_queue(tmp_path: Path) -> None:
    async def use(_spool: Spool) -> None:
        with pytest.raises(SpoolError, match="cannot be opened"):
            Spool(tmp_path, MB)

    with_spool(tmp_path, use)
