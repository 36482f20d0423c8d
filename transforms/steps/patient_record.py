"""What the streaming step stores of a patient in one cell of Beam's state."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from transforms.dead_letters import failed_in_projection
from transforms.deduplication import REMEMBERED_SECONDS, SeenIds, deduplication_key
from transforms.events import Event
from transforms.steps.timers import Timer, set_without_hold
from transforms.times import MICROS

# Per patient, so that replays are counted: many times the events of a day of exercise.
_MAX_FAILED = 2**12
_VERSION = 1


class Cell(Protocol):
    """A patient's cell in Beam's state."""

    def read(self) -> bytes | None: ...

    def write(self, value: bytes) -> None: ...

    def clear(self) -> None: ...


class PatientRecord(msgspec.Struct, array_like=True):
    """A patient's state, encoded by its projector, and the events that have been seen.

    `failed` names those of them that failed in the projection. `due_us` is when the passing of time may
    next change something, `wake_us` what the timer is set to, which may be earlier; 0 means never.
    """

    state: bytes | None
    seen: SeenIds
    failed: list[str]
    due_us: int = 0
    wake_us: int = 0

    @classmethod
    def read(cls, cell: Cell) -> "PatientRecord":
        """The record in a cell, or a new one. Raises ValueError if a later release wrote it."""
        encoded = cell.read()
        if not encoded:
            return cls(None, SeenIds(), [])
        if encoded[0] > _VERSION:
            raise ValueError(f"This release cannot read a patient's state of version {encoded[0]}")
        return _decode(memoryview(encoded)[1:])

    def write(self, cell: Cell) -> None:
        """Stores the record, or clears the cell if nothing is left to store."""
        if self.state or self.seen.hours or self.failed:
            cell.write(bytes((_VERSION,)) + msgspec.msgpack.encode(self))
        else:
            cell.clear()

    def wake_at(self, due_us: int, now_us: int, timer: Timer) -> None:
        """Sets the timer to `due_us`, or leaves it if it fires earlier."""
        self.due_us = due_us
        # Rescheduling on every event costs more than one idle wake-up.
        if due_us and not now_us < self.wake_us <= due_us:
            self.wake_us = due_us
            set_without_hold(timer, due_us)

    def admitting(self, now_us: int) -> Callable[[Event], bool]:
        """Tells whether an event is to be projected: it is new, or it failed and is replayed."""
        now, is_new, failed = now_us // MICROS, self.seen.is_new, self.failed

        def admits(event: Event) -> bool:
            name = deduplication_key(event)
            new = is_new(name, now)
            if name in failed and (new or failed_in_projection(event.message)):
                failed.remove(name)
                return True
            return new

        return admits

    def add_failed(self, event: Event) -> None:
        """Remembers that the event failed, so that its replay is no duplicate."""
        self.failed.append(deduplication_key(event))
        del self.failed[:-_MAX_FAILED]

    def ids_expire_us(self, now_us: int) -> int:
        """When every stored id will be too old to matter if no event follows; 0 if there are none."""
        return now_us + 2 * REMEMBERED_SECONDS * MICROS if self.seen.hours else 0


_decode = msgspec.msgpack.Decoder(PatientRecord).decode
