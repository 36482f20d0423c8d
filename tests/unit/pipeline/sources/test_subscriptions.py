"""Files in parts: each line once, wherever a part ends. Messages of a bundle: together, but not too many."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from google.pubsub_v1.types import PubsubMessage

from pipeline.cloud.files import InputFile
from pipeline.sources import lines, subscriptions
from pipeline.sources.lines import ReadLines, file_parts
from transforms.message import Message
from transforms.times import to_micros

LINES = [b"first", b"", b"a longer line", b"  ", b"x", b"\xff not text", b"carriage return\r", b"last"]
WANTED = [b"first", b"a longer line", b"x", b"\xff not text", b"carriage return", b"last"]


def read(path: Path, *parts: tuple[int, int]) -> list[bytes]:
    messages = [
        message for part in parts for chunk in ReadLines().process((str(path), *part)) for message in chunk
    ]
    assert {message.subscription for message in messages} <= {str(path)}
    return [message.payload for message in messages]


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["unfinished", "finished"])
@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_each_line_comes_once_wherever_the_parts_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: bytes
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n".join(LINES) + end)
    size = path.stat().st_size
    for first in range(1, size):
        assert read(path, (0, first), (first, size)) == WANTED
    assert read(path, *((byte, byte + 1) for byte in range(size))) == WANTED


def test_a_compressed_file_is_one_part(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(LINES)))
    (part,) = file_parts(InputFile(str(path), path.stat().st_size))
    assert read(path, part[1:]) == WANTED


@pytest.mark.parametrize("block", [1, 2, 3, 4, 1000])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_belongs_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, suffix: str
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    path = tmp_path / f"lines.jsonl{suffix}"
    # Only the first one is the file's: within it is what it is in any text.
    content = b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n"
    path.write_bytes(gzip.compress(content) if suffix else content)
    (part,) = file_parts(InputFile(str(path), path.stat().st_size))
    assert read(path, part[1:]) == [b"{}", b"\xef\xbb\xbf{}"]
    path.write_bytes(b"\xef\xbb\xbf" if not suffix else gzip.compress(b"\xef\xbb\xbf\n"))
    assert read(path, part[1:]) == []


def test_messages_go_on_together_as_old_as_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "_GATHERED_MESSAGES", 3)
    monkeypatch.setattr(subscriptions, "_GATHERED_BYTES", 10)
    gather = subscriptions.GatherMessages()
    gather.start_bundle()
    sizes = [1, 1, 1, 4, 7, 20, 1]
    gathered = [
        chunk
        for number, size in enumerate(sizes)
        for chunk in gather.process(Message(b"x" * size, {}, "s", "m", 100 - number))
    ]
    gathered += gather.finish_bundle()
    assert [[len(message.payload) for message in chunk.value] for chunk in gathered] == [
        [1, 1, 1],
        [4, 7],
        [20],
        [1],
    ]
    assert [chunk.timestamp.micros for chunk in gathered] == [98, 96, 95, 94]
    gather.start_bundle()
    assert list(gather.finish_bundle()) == []


def test_a_message_without_publish_time_has_the_timestamp_of_its_element() -> None:
    stamp = datetime(2026, 3, 2, tzinfo=UTC)
    dated = PubsubMessage(data=b"1", attributes={"k": "v"}, message_id="m1", publish_time=stamp)
    encoded = [PubsubMessage.serialize(message) for message in (dated, PubsubMessage(data=b"2"), dated)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        messages = (
            pipeline
            | beam.Create(encoded)
            | beam.Map(lambda message: TimestampedValue(message, 7))
            | subscriptions.giving_chunks(subscriptions._ToMessages("s"))
            | beam.ParDo(subscriptions._Date())
            | beam.FlatMap(lambda chunk: chunk)
        )
        first = Message(b"1", {"k": "v"}, "s", "m1", to_micros(stamp))
        assert_that(messages, equal_to([first, Message(b"2", {}, "s", "", 7_000_000), first]))
