"""The DirectRunner's reader: receives messages, hands them over, acknowledges them or gives them back.

It uses only Beam's public classes.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.transforms.window import GlobalWindows

from pipeline.sources.pubsub import PubSubSource
from pipeline.sources.source import IDS_PER_REQUEST, RECEIVE_SECONDS, Source
from transforms.message import Message

_LOGGER = logging.getLogger(__name__)

# Limit of one pull, and of what the pipeline takes at a time.
MAX_MESSAGES = 1000

# Pull only while less than this is waiting, so that at most twice as much waits.
_ENOUGH_MESSAGES = 1000
_ENOUGH_BYTES = 16 * 1024 * 1024

# A pull returns as soon as there is one message. One pull per message would cost more than the processing.
_PULL_PAUSE_SECONDS = 0.01
_ACKNOWLEDGE_EVERY_SECONDS = 0.1

# How long a failing acknowledgement is retried; after that, the messages are redelivered.
_ACKNOWLEDGE_PATIENCE_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Unacknowledged(NamedTuple):
    """How many messages are received but not acknowledged; the oldest's publish time (µs), None if none."""

    messages: int
    oldest_us: int | None


@beam.typehints.with_output_types(Message)
class ReadFromPubSubDirect(beam.PTransform[PBegin, PCollection[Message]]):
    """PBegin → Message, with its publish time as timestamp; for the StreamingDirectRunner only.

    A message is acknowledged when it has passed two buffers in series (rows, then dead letters of rejected
    rows), each of which may hold it for `hold_seconds`.
    """

    def __init__(self, subscription: str, hold_seconds: float) -> None:
        """`subscription` is projects/PROJECT/subscriptions/NAME."""
        super().__init__()
        self.source: Source = PubSubSource(subscription)
        self.hold_seconds = hold_seconds

    def expand(self, begin: PBegin) -> PCollection[Message]:
        return PCollection(begin.pipeline, is_bounded=False)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        return beam.Windowing(GlobalWindows())


class HoldLedger:
    """Messages in the pipeline, until they have passed two buffers of `hold_seconds` each.

    The runner asks for more only when nothing is being processed and no timer is due. So at its first request
    after a hand-over, every message is either processed or in a first buffer. At a request that follows one
    at least `hold_seconds` later, the first buffer's timers have fired, and what came out is processed or in
    a second buffer; then the same again.
    """

    def __init__(self, hold_seconds: float) -> None:
        """Empty."""
        self._hold_seconds = hold_seconds
        self._handed_over: list[str] = []
        self._buffered: tuple[deque[tuple[float, list[str]]], ...] = (deque(), deque())
        self._asked_at = float("-inf")

    def add(self, ids: list[str]) -> None:
        """Adds the ids of messages that were handed over."""
        self._handed_over += ids

    def turn(self, now: float) -> list[str]:
        """The ids to acknowledge when the runner asks for more at `now` (seconds, on the timers' clock)."""
        # Timers due at the previous request have fired since; timers due now may not have.
        begun_before = self._asked_at - self._hold_seconds
        first, second = self._buffered
        settled = _begun_before(second, begun_before)
        if moved := _begun_before(first, begun_before):
            second.append((now, moved))
        if self._handed_over:
            first.append((now, self._handed_over))
            self._handed_over = []
        self._asked_at = now
        return settled

    def pending(self) -> list[str]:
        """All ids that may not be acknowledged yet."""
        buffered = itertools.chain(*self._buffered)
        return [*itertools.chain.from_iterable(ids for _, ids in buffered), *self._handed_over]


def _begun_before(entries: deque[tuple[float, list[str]]], limit: float) -> list[str]:
    ids: list[str] = []
    while entries and entries[0][0] <= limit:
        ids += entries.popleft()[1]
    return ids


class Subscription:
    """Reads one source: a thread receives its messages, another acknowledges them."""

    def __init__(
        self,
        source: Source,
        hold_seconds: float,
        changed: threading.Condition,
        fail: Callable[[Exception], None],
    ) -> None:
        """`changed` guards the waiting messages of all subscriptions; `fail` ends the pipeline."""
        self._source = source
        self._changed = changed
        self._fail = fail
        self._ledger = HoldLedger(hold_seconds)
        self._waiting: deque[tuple[Message, str]] = deque()
        self._waiting_bytes = 0
        self._unacknowledged: dict[str, int] = {}
        self._read_until_us = 0
        self._settled: list[str] = []
        self._stopped = threading.Event()
        self._puller = threading.Thread(target=self._pull_forever, name=f"pull {source.path}", daemon=True)
        self._answerer = threading.Thread(target=self._answer, name=f"answer {source.path}", daemon=True)

    def start(self) -> None:
        """Starts the threads."""
        self._puller.start()
        self._answerer.start()

    def stop(self) -> None:
        """Makes the threads acknowledge settled messages and give the others back for the next reader."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for that after `stop`, for a limited time."""
        self._answerer.join(RECEIVE_SECONDS + 2 * _STOP_SECONDS)

    def waiting(self) -> int:
        """The number of messages that the pipeline has not taken yet."""
        return len(self._waiting)

    def read_until_us(self) -> int:
        """Every message published before this (µs since the epoch) has been handed over."""
        with self._changed:
            return self._waiting[0][0].publish_us if self._waiting else self._read_until_us

    def unacknowledged(self) -> Unacknowledged:
        """What the source would deliver again."""
        with self._changed:
            return Unacknowledged(len(self._unacknowledged), min(self._unacknowledged.values(), default=None))

    def take(self, now: float) -> list[Message]:
        """Hands over up to MAX_MESSAGES; the runner asks at `now`."""
        with self._changed:
            if self._stopped.is_set():
                return []
            self._settled += self._ledger.turn(now)
            count = min(MAX_MESSAGES, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            self._waiting_bytes -= sum(len(message.payload) for message, _ in taken)
            self._ledger.add([ack_id for _, ack_id in taken])
            self._changed.notify_all()
        return [message for message, _ in taken]

    def _pull_forever(self) -> None:
        try:
            while self._wait_for_room():
                received, until_us = self._source.receive(MAX_MESSAGES, self._stopped.is_set)
                self._keep(received, until_us)
                if len(received) < MAX_MESSAGES // 10:
                    self._stopped.wait(_PULL_PAUSE_SECONDS)
        except Exception as error:
            if not self._stopped.is_set():
                self._fail(error)

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped.is_set()
                    or (len(self._waiting) < _ENOUGH_MESSAGES and self._waiting_bytes < _ENOUGH_BYTES)
                )
            )
        return not self._stopped.is_set()

    def _keep(self, received: list[tuple[Message, str]], until_us: int) -> None:
        with self._changed:
            self._read_until_us = max(self._read_until_us, until_us)
            if not self._stopped.is_set():
                self._waiting += received
                self._unacknowledged.update((ack_id, message.publish_us) for message, ack_id in received)
                self._waiting_bytes += sum(len(message.payload) for message, _ in received)
                self._changed.notify_all()
                return
        self._give_back([ack_id for _, ack_id in received])

    def _answer(self) -> None:
        while not self._stopped.wait(_ACKNOWLEDGE_EVERY_SECONDS):
            self._acknowledge_settled()
        self._acknowledge_settled()
        with self._changed:
            unfinished = [*self._ledger.pending(), *(ack_id for _, ack_id in self._waiting)]
        if unfinished:
            self._give_back(unfinished)
            # A pull in progress cannot be cancelled; it may receive them, and then gives them back again.
            self._puller.join(RECEIVE_SECONDS + _STOP_SECONDS)

    def _acknowledge_settled(self) -> None:
        with self._changed:
            ids, self._settled = self._settled, []
        for portion in itertools.batched(ids, IDS_PER_REQUEST, strict=False):
            self._request(self._source.acknowledge, portion)
            with self._changed:
                for ack_id in portion:
                    self._unacknowledged.pop(ack_id, None)
            _LOGGER.debug("%s: %d messages acknowledged.", self._source.path, len(portion))

    def _give_back(self, ids: list[str]) -> None:
        for portion in itertools.batched(ids, IDS_PER_REQUEST, strict=False):
            self._request(self._source.give_back, portion)

    def _request(self, request: Callable[[Sequence[str], float], None], ids: Sequence[str]) -> None:
        patience = _STOP_SECONDS if self._stopped.is_set() else _ACKNOWLEDGE_PATIENCE_SECONDS
        try:
            request(ids, patience)
        except Exception as error:
            # The pipeline goes on: the messages are delivered again, and dropped as duplicates. Once it has
            # ended, the emulator may be gone as well.
            _LOGGER.log(
                logging.DEBUG if self._stopped.is_set() else logging.WARNING,
                "%s: %s failed for %d messages (%s); they will be delivered again.",
                self._source.path,
                request.__name__,
                len(ids),
                type(error).__name__,
            )
