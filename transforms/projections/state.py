"""A patient's state: what every projection stores, its coder, and the versions of its rows."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import GenericAlias
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import orjson

from transforms.events import Event
from transforms.policy.ledger import FindingLedger
from transforms.projections.consent import ConsentLog, Decision
from transforms.rows import Row
from transforms.times import DAY_US, day_of, to_rfc3339

STATE_DAYS = 28

SILENT_DAYS = 60

# As the day from which on something has changed.
ALWAYS = 0

NEVER = sys.maxsize


class KnownReviewItem(NamedTuple):
    """One of the policy's items as the work queue shows it."""

    item_id: str
    created_us: int
    urgency: str


class KnownPatient(NamedTuple):
    """What the tables know of a patient of whom there is no state.

    `review_items` are those that a rebuild is about to prove again, or not.
    """

    decisions: tuple[Decision, ...] = ()
    review_items: tuple[KnownReviewItem, ...] = ()


class Trigger(NamedTuple):
    """What sets a projection off: a patient's newest event, or (`event_id` null) a timer."""

    patient_id: str
    event_id: str | None
    publish_us: int


# What every state holds, in the order in which it is stored.
_Common = tuple[
    int,
    int,
    int,
    tuple[int, str, str] | None,
    list[Decision],
    dict[str, tuple[int, bytes]],
    FindingLedger,
]


class PatientState(ABC):
    """A patient's state in one projector.

    `newest_us` is the newest time that an event is about, `touched_us` when an event last arrived, `site` the
    newest statement of a site as (time, event id, site), `rows` the version and digest of each row,
    `held_until_us` until when (publish time) a rebuild holds the rows back, 0 if none does.

    Not stored: `changed_since` is the first day of which the events at hand may have changed something;
    `projected_us` is a time up to which the passing of time has been taken into account; `expected_us` is
    the newest time that the events at hand are about, 0 if it is not known.
    """

    # 2: a finding may be open, and the days of the last sessions outlive them.
    VERSION: ClassVar[int] = 2
    STORED: ClassVar[Any]
    _decode: ClassVar[Callable[[memoryview], tuple[_Common, Any]]]

    def __init__(self) -> None:
        """A patient of whom nothing is known."""
        self.newest_us = 0
        self.touched_us = 0
        self.held_until_us = 0
        self.site: tuple[int, str, str] | None = None
        self.consents = ConsentLog()
        self.rows: dict[str, tuple[int, bytes]] = {}
        self.findings = FindingLedger()
        self.changed_since = ALWAYS
        self.projected_us = 0
        self.expected_us = 0

    def __init_subclass__(cls) -> None:
        """Prepares the decoder: a typed one builds the state's objects many times faster than Python does."""
        stored = GenericAlias(tuple, (_Common, cls.STORED))
        cls._decode = msgspec.msgpack.Decoder(stored).decode

    @abstractmethod
    def to_stored(self) -> Any:
        """What the subclass adds, in the form that `STORED` describes."""

    @abstractmethod
    def restore(self, own: Any) -> None:
        """Takes that back in, and begins with what is not stored."""

    def encode(self) -> bytes:
        """A version byte and msgpack."""
        common = (
            self.newest_us,
            self.touched_us,
            self.held_until_us,
            self.site,
            self.consents.decisions,
            self.rows,
            self.findings,
        )
        return bytes((self.VERSION,)) + msgspec.msgpack.encode((common, self.to_stored()))

    @classmethod
    def decode(cls, encoded: bytes | None) -> Self:
        """The state in those bytes, of this version or an earlier one; of a new patient if there are none."""
        if not encoded:
            return cls()
        if encoded[0] > cls.VERSION:
            raise ValueError(f"{cls.__name__} {cls.VERSION} cannot read version {encoded[0]}")
        common, own = cls._decode(memoryview(encoded)[1:])
        # Without what a new patient's begins with, all of which is replaced.
        state = cls.__new__(cls)
        state.newest_us, state.touched_us, state.held_until_us, state.site = common[:4]
        decisions, state.rows, state.findings = common[4:]
        state.consents = ConsentLog(decisions)
        state.restore(own)
        state.changed_since, state.projected_us, state.expected_us = NEVER, state.touched_us, 0
        return state

    def start_from(self, known: KnownPatient) -> None:
        """Begins with what the tables know."""
        self.consents = ConsentLog(list(known.decisions))

    def release(self) -> None:
        """The rebuild has caught up: rows are no longer held back."""
        self.held_until_us = 0

    @property
    def horizon_us(self) -> int:
        """What is before this is too late."""
        return self.newest_us - STATE_DAYS * DAY_US

    def note(self, event: Event, time_us: int, now_us: int) -> None:
        """Takes in what every event says; `time_us` is the time that it is about."""
        ts_us = event.ts_us
        if time_us > self.newest_us:
            self.newest_us = time_us
        self.touched_us = now_us
        if event.site_id is not None and (self.site is None or ts_us >= self.site[0]):
            stated = (ts_us, event.event_id, event.site_id)
            newest = max(self.site, stated) if self.site else stated
            if self.site is None or newest[2] != self.site[2]:
                self.changed_since = ALWAYS
            self.site = newest

    def touch(self, time_us: int) -> None:
        """What depends on that time may have changed."""
        self.changed_since = min(self.changed_since, day_of(time_us))

    def forget_if_silent(self, now_us: int) -> Self:
        """A new state in place of one that has long been silent; the consents are never forgotten."""
        if now_us < self.silent_from_us():
            return self
        successor = type(self)()
        successor.consents = self.consents
        successor.touched_us = self.touched_us
        return successor

    def is_spent(self, now_us: int) -> bool:
        """Whether there is nothing left to keep."""
        return now_us >= self.silent_from_us() and not self.consents.decisions

    def silent_from_us(self) -> int:
        """When the state will have been silent for long enough to be cleared."""
        return self.touched_us + SILENT_DAYS * DAY_US

    def next_version(
        self, key: str, table_key: str, columns: dict[str, Any], trigger: Trigger, now_us: int
    ) -> Row | None:
        """The next version of a row, or null if nothing in it has changed."""
        encoded = orjson.dumps(columns)
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        version, known = self.rows.get(key, (0, b""))
        if digest == known:
            return None
        # Time-based, so that versions grow across restarts and jobs, yet never stand still within one.
        version = max(now_us, version + 1)
        self.rows[key] = (version, digest)
        stamp = {"version": version, "updated_at": to_rfc3339(now_us), "source_event_id": trigger.event_id}
        return Row(table_key, version, trigger.publish_us, encoded[:-1] + b"," + orjson.dumps(stamp)[1:])
