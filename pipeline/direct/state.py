"""Each step's state and timers, by key. Tied to Beam's version, like `pipeline.direct.runner`."""

import copy
import heapq
import itertools
from collections.abc import Iterator
from typing import Any

from apache_beam.runners.direct import evaluation_context
from apache_beam.runners.direct.util import TimerFiring
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.utils.timestamp import Timestamp


class StepContext(evaluation_context.DirectStepContext):
    """A bundle's view of its step's state, copied without `deepcopy`."""

    def get_keyed_state(self, key: bytes | None) -> evaluation_context.DirectUnmergedState:
        state = self.partial_keyed_state.get(key)
        if state is None:
            state = self.partial_keyed_state[key] = _copied(self.existing_keyed_state.get(key))
        return state


def _copied(
    state: evaluation_context.DirectUnmergedState | None,
) -> evaluation_context.DirectUnmergedState:
    copied = evaluation_context.DirectUnmergedState()
    if state is None:
        return copied
    if state.global_state:
        copied.global_state = copy.deepcopy(state.global_state)
    for window, timers in state.timers.items():
        copied.timers[window] = dict(timers)
    for window, tags in state.state.items():
        for tag, value in tags.items():
            copied.state[window][tag] = copy.copy(value)
    return copied


class DueKeys:
    """Keys, ordered by the earliest time at which one of their timers may fall due."""

    def __init__(self) -> None:
        """Empty."""
        self._heap: list[tuple[float, int, bytes | None]] = []
        self._earliest: dict[bytes | None, float] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._earliest)

    def add(self, key: bytes | None, moment: float) -> None:
        """Notes that a timer of the key may fall due at `moment`.

        A postponed timer keeps its old entry; when that is popped, the caller adds the key again. So a timer
        that every event postpones costs nothing until its first moment.
        """
        earliest = self._earliest.get(key)
        if earliest is None or moment < earliest:
            self._earliest[key] = moment
            heapq.heappush(self._heap, (moment, next(self._order), key))

    def pop(self, now: float) -> list[bytes | None]:
        """Removes and returns the keys whose moment has come."""
        keys = []
        while self._heap and self._heap[0][0] <= now:
            moment, _, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == moment:
                del self._earliest[key]
                keys.append(key)
        return keys


class KeyedStates(dict[bytes | None, Any]):
    """One step's state by key. Beam scans all keys for due timers, several times per bundle."""

    def __init__(self) -> None:
        super().__init__()
        self._due = {TimeDomain.REAL_TIME: DueKeys(), TimeDomain.WATERMARK: DueKeys()}
        self.bytes = 0

    def __setitem__(self, key: bytes | None, state: Any) -> None:
        self.bytes += _size(state) - _size(self.get(key))
        if _is_blank(state):
            self.pop(key, None)
        else:
            super().__setitem__(key, state)
            self._watch(key, state)

    def has_realtime_timers(self) -> bool:
        """Whether a processing-time timer may be set."""
        return bool(self._due[TimeDomain.REAL_TIME])

    def due(self, watermark: Timestamp, now: float) -> list[TimerFiring]:
        """The due timers; they remain due until they are delivered and the state is set again."""
        keys = self._due[TimeDomain.REAL_TIME].pop(now) + self._due[TimeDomain.WATERMARK].pop(
            float(watermark)
        )
        firings = []
        for key in dict.fromkeys(keys):
            if (state := self.get(key)) is None:
                continue
            expired, _ = state.get_timers(watermark=watermark, processing_time=now)
            for window, (name, domain, timestamp, tag) in expired:
                firings.append(TimerFiring(key, window, name, domain, timestamp, dynamic_timer_tag=tag))
            self._watch(key, state)
        return sorted(firings, key=lambda firing: firing.timestamp)

    def _watch(self, key: bytes | None, state: Any) -> None:
        for timers in state.timers.values():
            for (_, domain, _), timestamp in timers.items():
                self._due[domain].add(key, float(timestamp))


def _values(state: Any) -> Iterator[list[Any]]:
    return itertools.chain.from_iterable(tags.values() for tags in state.state.values())


def _is_blank(state: Any) -> bool:
    return not state.timers and not state.global_state and not any(_values(state))


def _size(state: Any) -> int:
    """The total size of the encoded values in a key's state; 0 for None."""
    values = itertools.chain.from_iterable(_values(state)) if state else ()
    return sum(len(value) for value in values if isinstance(value, bytes))
