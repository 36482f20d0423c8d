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

# How far back from a patient's newest event the horizon lies.
STATE_DAYS = 28
# A state without events for so long is cleared.
SILENT_DAYS = 60

# Special values of the first day on which something has changed.
ALWAYS = 0
NEVER = sys.maxsize


class KnownReviewItem(NamedTuple):
    """A review item as the table shows it; `created_us` is in microseconds since the epoch."""

    item_id: str
    created_us: int
    urgency: str


class KnownPatient(NamedTuple):
    """What the tables show of a patient when a job starts without state.

    `review_items` are those that a rebuild will either confirm or withdraw.
    """

    decisions: tuple[Decision, ...] = ()
    review_items: tuple[KnownReviewItem, ...] = ()


class Trigger(NamedTuple):
    """What triggers a projection: a patient's newest event, or a timer (`event_id` is null)."""

    patient_id: str
    event_id: str | None
    publish_us: int


# The fields that every state has, in the order in which they are stored.
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
    """A patient's state in one projection. Times are microseconds since the epoch.

    Stored: `newest_us` is the time of the newest event, `touched_us` when an event last arrived, `site` the
    newest site as (time, event id, site), `rows` the version and digest of each row by its key within the
    state. A rebuild holds rows back until the publish time `held_until_us`; 0 means no hold-back.

    Not stored: `changed_since` is the first day that the events being applied may have changed,
    `projected_us` the time of the last projection, `expected_us` the time of the newest event being applied
    (0 if unknown).
    """

    # Version 2 added open findings, and the days of sessions that have been forgotten.
    VERSION: ClassVar[int] = 2
    STORED: ClassVar[Any]
    _decode: ClassVar[Callable[[memoryview], tuple[_Common, Any]]]

    def __init__(self) -> None:
        """A new patient."""
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
        """Prepares the decoder: a typed one builds the objects of a state many times faster than Python."""
        stored = GenericAlias(tuple, (_Common, cls.STORED))
        cls._decode = msgspec.msgpack.Decoder(stored).decode

    @abstractmethod
    def to_stored(self) -> Any:
        """The subclass's own fields, as a value of the type `STORED`."""

    @abstractmethod
    def restore(self, stored: Any) -> None:
        """Sets the subclass's fields: from such a value, or to their defaults if they are not stored."""

    def encode(self) -> bytes:
        """A version byte, then msgpack."""
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
        """The state in `encoded`, of this version or an earlier one; a new patient's if there is none.

        Raises ValueError if a later version wrote it.
        """
        if not encoded:
            return cls()
        if encoded[0] > cls.VERSION:
            raise ValueError(f"{cls.__name__} {cls.VERSION} cannot read version {encoded[0]}")
        common, stored = cls._decode(memoryview(encoded)[1:])
        # Skips `__init__`, because every field is set below.
        state = cls.__new__(cls)
        state.newest_us, state.touched_us, state.held_until_us, state.site = common[:4]
        decisions, state.rows, state.findings = common[4:]
        state.consents = ConsentLog(decisions)
        state.restore(stored)
        state.changed_since, state.projected_us, state.expected_us = NEVER, state.touched_us, 0
        return state

    def start_from(self, known: KnownPatient) -> None:
        """Starts from what the tables show."""
        self.consents = ConsentLog(list(known.decisions))

    def release(self) -> None:
        """Ends the hold-back, once the rebuild has caught up."""
        self.held_until_us = 0

    @property
    def horizon_us(self) -> int:
        """Events before this time are too late."""
        return self.newest_us - STATE_DAYS * DAY_US

    def note(self, event: Event, time_us: int, now_us: int) -> None:
        """Applies what every kind of event states; `time_us` is the time that it is about."""
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
        """Marks everything from that day on as changed."""
        self.changed_since = min(self.changed_since, day_of(time_us))

    def forget_if_silent(self, now_us: int) -> Self:
        """This state, or an empty one if it has been silent for too long; consents are kept."""
        if now_us < self.silent_from_us():
            return self
        successor = type(self)()
        successor.consents = self.consents
        successor.touched_us = self.touched_us
        return successor

    def is_spent(self, now_us: int) -> bool:
        """Whether nothing is worth storing any longer."""
        return now_us >= self.silent_from_us() and not self.consents.decisions

    def silent_from_us(self) -> int:
        """When the state is cleared if no event arrives."""
        return self.touched_us + SILENT_DAYS * DAY_US

    def next_version(
        self, key: str, table_key: str, columns: dict[str, Any], trigger: Trigger, now_us: int
    ) -> Row | None:
        """The next version of a row, or null if its columns have not changed.

        `key` names the row within the state, `table_key` within its table.
        """
        encoded = orjson.dumps(columns)
        digest = hashlib.blake2b(encoded, digest_size=8).digest()
        version, known = self.rows.get(key, (0, b""))
        if digest == known:
            return None
        # Based on time, so that versions grow across jobs; never equal, so that they grow within one.
        version = max(now_us, version + 1)
        self.rows[key] = (version, digest)
        stamp = {"version": version, "updated_at": to_rfc3339(now_us), "source_event_id": trigger.event_id}
        return Row(table_key, version, trigger.publish_us, encoded[:-1] + b"," + orjson.dumps(stamp)[1:])
