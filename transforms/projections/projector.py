"""What the three projectors share: settings, a patient's common state, row versions, outcomes."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import orjson

from transforms.events import REVIEW, Event, SessionFact
from transforms.policy import (
    Announcement,
    Finding,
    FindingLedger,
    Nudge,
    Policy,
    Subject,
    announce,
    is_reviewed,
    review,
)
from transforms.projections.consent import ConsentLog, ConsentMode, Decision, is_visible
from transforms.rows import Row
from transforms.times import DAY_US, HOUR_US, day_of, to_rfc3339

STATE_DAYS = 28
SILENT_DAYS = 60

# As the day from which on something has changed.
ALWAYS = 0
NEVER = sys.maxsize

PROCESSED = "processed"
WITHHELD = "withheld"
TOO_LATE = "too_late"


class Settings(NamedTuple):
    """What an operator sets of the rules.

    `rebuilt_since_us` is from when on a job that builds its state again reads every event once more.
    """

    policy: Policy = Policy()
    consent: ConsentMode = "enforce"
    prescribed_sessions_per_week: int = 7
    nudge_max_age_hours: float = 24
    rebuilt_since_us: int | None = None


class KnownReview(NamedTuple):
    """One of the policy's items as the work queue shows it."""

    item_id: str
    created_us: int
    urgency: str


class Memory(NamedTuple):
    """What the tables know of a patient of whom there is no state.

    `reviews` are the policy's items that a rebuild is about to prove again, or not.
    """

    decisions: tuple[Decision, ...] = ()
    reviews: tuple[KnownReview, ...] = ()


def in_periods(events: Iterable[Event]) -> Iterator[list[Event]]:
    """A patient's events in parts, in order of time, of which none spans more days than state covers.

    So what is projected after each part misses nothing, however long the history is.
    """
    period: list[Event] = []
    begins_us = 0
    for event in sorted(events, key=about_us):
        if period and about_us(event) - begins_us > STATE_DAYS * DAY_US:
            yield period
            period = []
        begins_us = begins_us if period else about_us(event)
        period.append(event)
    yield period


def about_us(event: Event) -> int:
    """The time that an event is about: a session may be reported long after it began."""
    if isinstance(event.fact, SessionFact) and event.fact.start_us is not None:
        return min(event.ts_us, event.fact.start_us)
    return event.ts_us


def consents_first(event: Event) -> tuple[bool, int, str]:
    """Of events that arrive together, a consent is known before the events that it may withhold."""
    return (event.kind != "consent", event.ts_us, event.event_id)


class Cause(NamedTuple):
    """What sets a projection off: a patient's newest event, or (`event_id` null) a timer."""

    patient_id: str
    event_id: str | None
    publish_us: int


@dataclass(slots=True)
class Output:
    """What a projection leads to: (table, row) pairs, nudges, and events for the work queue."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    nudges: list[Nudge] = field(default_factory=list)
    reviews: list[Event] = field(default_factory=list)

    def add(self, announcement: Announcement) -> None:
        """Takes in what findings lead to."""
        self.nudges += announcement.nudges
        self.reviews += announcement.reviews


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
    OWN: ClassVar[Any]
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
        stored = GenericAlias(tuple, (_Common, cls.OWN))
        cls._decode = msgspec.msgpack.Decoder(stored).decode

    @abstractmethod
    def own(self) -> Any:
        """What the subclass adds, in the form that `OWN` describes."""

    @abstractmethod
    def take_own(self, own: Any) -> None:
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
        return bytes((self.VERSION,)) + msgspec.msgpack.encode((common, self.own()))

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
        state.take_own(own)
        state.changed_since, state.projected_us, state.expected_us = NEVER, state.touched_us, 0
        return state

    def recall(self, memory: Memory) -> None:
        """Begins with what the tables know."""
        self.consents = ConsentLog(list(memory.decisions))

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
        self, key: str, table_key: str, columns: dict[str, Any], cause: Cause, now_us: int
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
        stamp = {"version": version, "updated_at": to_rfc3339(now_us), "source_event_id": cause.event_id}
        return Row(table_key, version, cause.publish_us, encoded[:-1] + b"," + orjson.dumps(stamp)[1:])


class Projector[S: PatientState](ABC):
    """One projection: pure rules over a patient's state.

    `counted_kinds` are the kinds of event that it accounts for; every kind is counted by one
    projector alone, however many receive it.
    """

    tables: ClassVar[tuple[str, ...]]
    counted_kinds: ClassVar[frozenset[str]]
    state_type: type[S]

    def __init__(self, settings: Settings) -> None:
        """With what the operator has set."""
        self.settings = settings

    @abstractmethod
    def apply(self, state: S, event: Event, cause: Cause, now_us: int, output: Output) -> str:
        """Takes an event in: PROCESSED, or another outcome and the state is as it was."""

    @abstractmethod
    def project(self, state: S, cause: Cause, now_us: int, output: Output) -> None:
        """Adds the rows that have changed and what the policy finds."""

    @abstractmethod
    def project_at_once(self, state: S, cause: Cause, now_us: int, output: Output) -> None:
        """In place of `project` while rows are held back: adds only what must not wait."""

    def wake(self, state: S, now_us: int) -> S:
        """Takes in that time has passed."""
        return state.forget_if_silent(now_us)

    def wake_times_us(self, state: S, now_us: int) -> list[int | None]:
        """When time alone may next change something; null and past times mean nothing."""
        return [state.silent_from_us(), state.consents.next_change_us(now_us)]

    def is_visible(self, state: PatientState, now_us: int) -> bool:
        """Whether the patient's rows may be shown, and findings announced."""
        return self.settings.consent == "off" or is_visible(state.consents.status_at(now_us))

    def expect(self, state: PatientState, events: Sequence[Event]) -> None:
        """Has events that arrive together judged by the newest of them that no consent withholds.

        They are in the order of `consents_first`, and have not been taken in yet.
        """
        consents = [event for event in events if event.kind == "consent"]
        decided = state.consents.including(consents) if consents else state.consents
        expected_us = consents[-1].ts_us if consents else 0
        for event in reversed(events[len(consents) :]):
            if event.ts_us <= expected_us:
                break
            if event.kind != REVIEW and decided.admits(event.ts_us, self.settings.consent):
                expected_us = max(expected_us, about_us(event))
        state.expected_us = expected_us

    def admit(self, state: PatientState, event: Event, time_us: int, now_us: int) -> str:
        """PROCESSED if the event may be used, and then what every event says is taken in.

        `time_us` is the time that the event is about.
        """
        if event.kind == "consent":
            state.consents.add(event)
            state.changed_since = ALWAYS
        elif time_us < max(state.newest_us, state.expected_us) - STATE_DAYS * DAY_US:
            return TOO_LATE
        elif not state.consents.admits(event.ts_us, self.settings.consent):
            return WITHHELD
        state.note(event, time_us, now_us)
        if state.consents.prune(state.horizon_us):
            state.changed_since = ALWAYS
        return PROCESSED

    @staticmethod
    def take_changed_since(state: PatientState, cause: Cause, now_us: int) -> int:
        """The first day of which something is to be calculated again; to be asked once in a projection.

        That is everything at a timer, when consent has changed (by event or by itself), and when
        something has aged out.
        """
        status_changes_us = state.consents.next_change_us(state.projected_us)
        has_changed = status_changes_us is not None and status_changes_us <= now_us
        if has_changed or cause.event_id is None or state.findings.has_old(state.horizon_us):
            state.changed_since = ALWAYS
        since_day, state.changed_since, state.projected_us = state.changed_since, NEVER, now_us
        return since_day

    def reconcile(
        self, state: PatientState, findings: Iterable[Finding], since_day: int, cause: Cause, now_us: int
    ) -> Announcement:
        """What follows from everything that holds from a day on."""
        announcement = state.findings.reconcile(
            self.subject(state, cause),
            findings,
            since_day,
            state.horizon_us,
            now_us,
            self.announce_since_us(state, now_us),
        )
        state.findings.age_out(state.horizon_us)
        return announcement

    def announce_since_us(self, state: PatientState, now_us: int) -> int | None:
        """From when on findings are announced; null while the patient's consent is withdrawn."""
        if not self.is_visible(state, now_us):
            return None
        hours = self.settings.nudge_max_age_hours
        return now_us - int(hours * HOUR_US) if hours else 0

    def say_at_once(
        self, state: PatientState, finding: Finding, cause: Cause, now_us: int, output: Output
    ) -> None:
        """Announces a finding that stems from one event alone, and so needs no ledger."""
        since_us = self.announce_since_us(state, now_us)
        subject = self.subject(state, cause)
        if since_us is not None and finding.newest_us >= since_us:
            output.nudges.append(announce(subject, finding, now_us))
        if is_reviewed(finding):
            output.reviews.append(review(subject, finding, now_us))

    @staticmethod
    def subject(state: PatientState, cause: Cause) -> Subject:
        """Whom findings are about."""
        return Subject(
            cause.patient_id, state.site[2] if state.site else None, cause.event_id, cause.publish_us
        )
