"""The simulated stream: the patients' history, with duplicates, late events and invalid ones."""

import heapq
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import orjson

from local.patients import Dialect, Event, Patient, Upload, history, make_patients, rep_event, stamp
from transforms.message import MAX_ARRAY_LENGTH
from transforms.times import DAY_US, HOUR_US

# Share of late events that are more than 28 days older than their patient's newest event.
_TOO_LATE_SHARE = 0.1
_SECONDARY_SHARE = 0.25
# How long a late event is delayed, as a share of the stream.
_DELAY_SHARES = (0.01, 0.2)
# How many recent messages a duplicate is chosen from.
_RECENT = 4096
# Share of bad events that are valid JSON; and how often an array contains one.
_SPOILED_EVENT_SHARE = 0.7
_BAD_NEIGHBOR_CHANCE = 0.1


class Scenario(NamedTuple):
    """What to simulate.

    `events` includes duplicates and bad events. The shares are fractions of `events`; their sum is below 1.
    `now_us` (microseconds since the epoch) is the end of the history. Equal scenarios produce the same
    stream, byte for byte.
    """

    events: int
    patients: int
    seed: int
    now_us: int
    duplicates: float = 0.05
    late: float = 0.05
    bad: float = 0.02


class Emission(NamedTuple):
    """One message to publish, and the number of events of each sort in it.

    `events` is 1 for a message that cannot be decoded. `bad` events become dead letters; `duplicates` repeat
    an earlier event, on either topic; `late` events arrive after newer ones.
    """

    payload: bytes
    attributes: dict[str, str]
    to_secondary: bool
    events: int
    bad: int = 0
    duplicates: int = 0
    late: int = 0


def simulate(scenario: Scenario) -> Iterator[Emission]:
    """The messages in the order of publication; they hold `scenario.events` events."""
    return iter(_Stream(scenario))


class _Stream:
    """Draws each next message at random, in proportion to what is left of each sort.

    The shares come out exactly, except for late events: the last events may be unsuitable for a delay.
    """

    def __init__(self, scenario: Scenario) -> None:
        late = int(scenario.events * scenario.late)
        self._rng = Random(scenario.seed)  # noqa: S311 (repeatable, not secret)
        self._now_us = scenario.now_us
        self._events = scenario.events
        self._bad_left = int(scenario.events * scenario.bad)
        self._duplicates_left = int(scenario.events * scenario.duplicates)
        self._too_late_left = int(late * _TOO_LATE_SHARE)
        self._late_left = late - self._too_late_left
        self._planned_left = scenario.events - self._bad_left - self._duplicates_left - self._too_late_left
        # Planned events that may still be delayed.
        self._open = self._planned_left
        self._patients = make_patients(self._rng, scenario.patients, scenario.now_us)
        self._history = history(self._rng, self._patients, scenario.now_us, self._planned_left)
        self._ts_us = scenario.now_us
        self._emitted = 0
        # A heap of (number of emitted events at which it is due, tie-breaker, upload).
        self._delayed: list[tuple[int, int, Upload]] = []
        # A ring; the newest is at `_last`.
        self._recent: list[tuple[Upload, Emission]] = []
        self._last = 0

    def __iter__(self) -> Iterator[Emission]:
        while left := self._planned_left + self._duplicates_left + self._bad_left + self._too_late_left:
            emission = self._draw(self._rng.randrange(left))
            self._emitted += emission.events
            yield emission

    def _draw(self, ticket: int) -> Emission:
        if ticket < self._planned_left or not self._recent:
            return self._planned()
        ticket -= self._planned_left
        if ticket < self._duplicates_left:
            return self._duplicate()
        if ticket < self._duplicates_left + self._bad_left:
            return self._bad()
        return self._too_late()

    def _planned(self) -> Emission:
        """The next upload of the history, or a delayed one that is due."""
        while not self._delayed or self._emitted < self._delayed[0][0]:
            upload = next(self._history, None)
            if upload is None:
                break
            self._ts_us = upload.ts_us
            is_delayed = self._is_delayed(upload)
            self._open -= len(upload.events)
            if not is_delayed:
                return self._upload(upload, is_late=False)
            self._late_left -= len(upload.events)
            due = self._emitted + 1 + int(self._events * self._rng.uniform(*_DELAY_SHARES))
            heapq.heappush(self._delayed, (due, self._open, upload))
        return self._upload(heapq.heappop(self._delayed)[2], is_late=True)

    def _is_delayed(self, upload: Upload) -> bool:
        # Never delay a consent: an event that it withholds must not overtake it.
        return (
            self._rng.random() * self._open < self._late_left
            and len(upload.events) <= self._late_left
            and upload.events[0]["kind"] != "consent"
        )

    def _upload(self, upload: Upload, *, is_late: bool) -> Emission:
        events, count = upload.events, len(upload.events)
        late = count if is_late else 0
        self._planned_left -= count
        emission = Emission(_payload(events), _attributes(events), self._to_secondary(), count, late=late)
        # An event without a time gets its publish time, so a second copy would be a different event.
        if _has_time(events) or not self._recent:
            self._remember(upload, emission)
        if count == 1 or not self._bad_left or self._rng.random() > _BAD_NEIGHBOR_CHANCE:
            return emission
        self._bad_left -= 1
        spoiled = [*events, self._spoiled(upload.patient)]
        self._rng.shuffle(spoiled)
        return emission._replace(payload=_payload(spoiled), events=count + 1, bad=1)

    def _duplicate(self) -> Emission:
        """The latest message again, on the other topic; or an older one, on either."""
        if self._rng.random() < 0.5:
            upload, first = self._recent[self._last]
            to_secondary = not first.to_secondary
        else:
            upload, first = self._rng.choice(self._recent)
            to_secondary = first.to_secondary ^ (self._rng.random() < 0.6)
        events = upload.events if len(upload.events) <= self._duplicates_left else upload.events[:1]
        self._duplicates_left -= len(events)
        payload, attributes = _payload(events), _attributes(events)
        return Emission(payload, attributes, to_secondary, len(events), duplicates=len(events))

    def _bad(self) -> Emission:
        self._bad_left -= 1
        patient = self._rng.choice(self._patients)
        if self._rng.random() < _SPOILED_EVENT_SHARE:
            spoiled = [self._spoiled(patient)]
            payload, attributes = _payload(spoiled), _attributes(spoiled)
        else:
            event = self._rep(patient, patient.exercises[0], self._ts_us)
            payload = self._rng.choice(_BROKEN_PAYLOADS)(self._rng, _payload([event]))
            attributes = _attributes([event])
        return Emission(payload, attributes, self._to_secondary(), 1, bad=1)

    def _spoiled(self, patient: Patient) -> Any:
        event = self._rep(patient, patient.exercises[0], self._ts_us)
        return self._rng.choice(_SPOILED_EVENTS)(self._rng, event, patient.dialect, self._now_us)

    def _too_late(self) -> Emission:
        """A repetition more than 28 days older than an event that its patient has already sent."""
        self._too_late_left -= 1
        upload, _ = self._rng.choice(self._recent)
        patient = upload.patient
        exercise = upload.events[0].get("exercise_id", patient.exercises[0])
        ts_us = upload.ts_us - 28 * DAY_US - self._rng.randrange(2 * DAY_US, 12 * DAY_US)
        event = [self._rep(patient, exercise, ts_us)]
        return Emission(_payload(event), _attributes(event), self._to_secondary(), 1, late=1)

    def _rep(self, patient: Patient, exercise: str, ts_us: int) -> Event:
        return rep_event(self._rng, patient, exercise, ts_us, self._now_us, 1 + self._rng.randrange(20), None)

    def _to_secondary(self) -> bool:
        return self._rng.random() < _SECONDARY_SHARE

    def _remember(self, upload: Upload, emission: Emission) -> None:
        if len(self._recent) < _RECENT:
            self._last = len(self._recent)
            self._recent.append((upload, emission))
        else:
            self._last = (self._last + 1) % _RECENT
            self._recent[self._last] = upload, emission


def _payload(events: list[Any]) -> bytes:
    """One event as an object, several as an array."""
    return orjson.dumps(events[0] if len(events) == 1 else events)


def _attributes(events: list[Any]) -> dict[str, str]:
    """The id and kind of a single event, if it has them."""
    event = events[0]
    if len(events) > 1 or not isinstance(event, dict):
        return {}
    return {name: event[name] for name in ("event_id", "kind") if name in event}


def _has_time(events: list[Event]) -> bool:
    return all("ts" in event or "timestamp" in event for event in events)


def _unknown_kind(rng: Random, event: Event, _dialect: Dialect, _now_us: int) -> Event:
    return event | {"kind": rng.choice(("heartbeat", "gait_analysis", "exercise-session"))}


def _no_kind(_rng: Random, event: Event, _dialect: Dialect, _now_us: int) -> Event:
    return _without(event, "kind")


def _no_patient(_rng: Random, event: Event, dialect: Dialect, _now_us: int) -> Event:
    return _without(event, dialect.subject)


def _no_body(_rng: Random, event: Event, _dialect: Dialect, _now_us: int) -> Event:
    return _without(event, "body")


def _no_score(_rng: Random, event: Event, dialect: Dialect, _now_us: int) -> Event:
    return event | {"body": _without(event["body"], dialect.score)}


def _score_out_of_range(rng: Random, event: Event, dialect: Dialect, _now_us: int) -> Event:
    return event | {"body": event["body"] | {dialect.score: round(rng.uniform(1.1, 100), 1)}}


def _score_as_text(_rng: Random, event: Event, dialect: Dialect, _now_us: int) -> Event:
    return event | {"body": event["body"] | {dialect.score: str(event["body"][dialect.score])}}


def _ends_before_start(rng: Random, event: Event, dialect: Dialect, now_us: int) -> Event:
    start_us = now_us - rng.randrange(DAY_US, 20 * DAY_US)
    times = {"start_time": stamp(start_us, dialect.zone), "end_time": stamp(start_us - HOUR_US, dialect.zone)}
    return event | {"kind": "exercise_session", "body": times}


def _from_the_future(rng: Random, event: Event, dialect: Dialect, now_us: int) -> Event:
    return event | {dialect.ts: stamp(now_us + rng.randrange(DAY_US, 365 * DAY_US), dialect.zone)}


def _clock_never_set(rng: Random, event: Event, dialect: Dialect, _now_us: int) -> Event:
    return event | {dialect.ts: stamp(rng.randrange(DAY_US), dialect.zone)}


def _not_an_object(rng: Random, _event: Event, _dialect: Dialect, _now_us: int) -> Any:
    number = rng.getrandbits(32)
    return rng.choice((number, f"ping {number}"))


def _truncated(rng: Random, payload: bytes) -> bytes:
    return payload[: rng.randrange(1, len(payload))]


def _with_nan(_rng: Random, payload: bytes) -> bytes:
    return payload[:-1] + b',"gain":NaN}'


def _in_latin_1(_rng: Random, payload: bytes) -> bytes:
    return payload[:-1] + ',"note":"café"}'.encode("latin-1")


def _nothing(_rng: Random, _payload: bytes) -> bytes:
    return b""


def _array_too_long(rng: Random, _payload: bytes) -> bytes:
    return b"[" + b",".join([b"%d" % rng.getrandbits(32)] + [b"0"] * MAX_ARRAY_LENGTH) + b"]"


def _without(fields: Event, name: str) -> Event:
    return {field: value for field, value in fields.items() if field != name}


_SPOILED_EVENTS: tuple[Callable[[Random, Event, Dialect, int], Any], ...] = (
    _unknown_kind,
    _no_kind,
    _no_patient,
    _no_body,
    _no_score,
    _score_out_of_range,
    _score_as_text,
    _ends_before_start,
    _from_the_future,
    _clock_never_set,
    _not_an_object,
)
_BROKEN_PAYLOADS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _truncated,
    _with_nan,
    _in_latin_1,
    _nothing,
    _array_too_long,
)
