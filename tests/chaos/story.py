"""What a run of the proof publishes, and what must come of it."""

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple

import orjson

from tests.integration.streaming import PATIENT, SECRET, recent
from tests.support.oracle import Arrival, Expected, Nudge, distinct_events, expected, rep_of
from tests.support.strategies import random_arrivals

# Of all events: copies of others, and such as cannot be used.
_DUPLICATE_SHARE = 0.08
_BAD_SHARE = 0.05
_SECONDARY_SHARE = 0.3
# About what a patient's 28 days come to.
_EVENTS_PER_PATIENT = 100


class Sent(NamedTuple):
    """A message to publish, and how many events it counts for."""

    payload: bytes
    to_secondary: bool
    events: int


class Story(NamedTuple):
    """`uploads` are the patients whose sessions come in one message each, and their repetitions too.

    `hidden` ones have withdrawn their consent in the end. `letters` are the inputs that cannot be used,
    each with the reason for it.
    """

    messages: list[Sent]
    arrivals: list[Arrival]
    uploads: frozenset[str]
    hidden: frozenset[str]
    letters: dict[bytes, str]
    expected: Expected

    @property
    def events(self) -> int:
        """How many events there are in the messages."""
        return sum(message.events for message in self.messages)

    @property
    def nudges(self) -> list[Nudge]:
        """What all events together give, where the policy need not keep silent after a repetition."""
        return [*self.expected.nudges, *_rep_feedback(self.arrivals)]


def tell(events: int, seed: int) -> Story:
    """A story of so many events, in disorder, of patients that no log may name."""
    rng = Random(seed)
    valid = round(events * (1 - _DUPLICATE_SHARE - _BAD_SHARE))
    patients = max(8, valid // _EVENTS_PER_PATIENT)
    drawn = recent(random_arrivals(rng, consents="harmless", patients=patients, duplicates=False))
    arrivals = _at_most(drawn, valid)
    names = {patient_of(arrival) for arrival in arrivals}
    # Of each of the four habits half.
    uploads = frozenset(name for name in names if int(name.rpartition("p")[2]) // 4 % 2 == 0)
    payloads = [[orjson.dumps(arrival.envelope) for arrival in group] for group in _groups(arrivals, uploads)]
    letters: dict[bytes, str] = {}
    bad = max(0, round(events * _BAD_SHARE))
    singles = _spoil(payloads, letters, bad, rng)
    messages = [_sent(group, rng) for group in payloads + singles]
    while (missing := events - sum(message.events for message in messages)) > 0:
        copy = rng.choice(messages)
        if copy.events <= missing:
            messages.append(copy._replace(to_secondary=rng.random() < 0.5))
    rng.shuffle(messages)
    hidden = frozenset(patient_of(arrival) for arrival in arrivals if _withdraws(arrival.envelope))
    return Story(messages, arrivals, uploads, hidden, letters, expected(arrivals))


def patient_of(arrival: Arrival) -> str:
    """The patient that an event is about."""
    return str(arrival.envelope.get("subject_id") or arrival.envelope["patient_id"])


def _at_most(arrivals: list[Arrival], most: int) -> list[Arrival]:
    """Without the last patients, so that there are no more than so many."""
    left = Counter(patient_of(arrival) for arrival in arrivals)
    while left.total() > most:
        left.popitem()
    return [arrival for arrival in arrivals if patient_of(arrival) in left]


def _groups(arrivals: Iterable[Arrival], uploads: frozenset[str]) -> list[list[Arrival]]:
    """The arrivals by message: each alone, but for sessions and repetitions that are uploaded together."""
    together: dict[tuple[str, str], list[Arrival]] = {}
    alone = []
    for arrival in arrivals:
        patient, kind = patient_of(arrival), arrival.envelope["kind"]
        if patient in uploads and kind in ("exercise_session", "rep_observation"):
            together.setdefault((patient, kind), []).append(arrival)
        else:
            alone.append([arrival])
    return [*together.values(), *alone]


def _spoil(
    payloads: list[list[bytes]], letters: dict[bytes, str], count: int, rng: Random
) -> list[list[bytes]]:
    """Makes so many inputs that cannot be used: some among the events of an array, the others returned."""
    singles = []
    for number in range(count):
        payload, reason = rng.choice(_UNUSABLE)(number)
        letters[payload] = reason
        group = rng.choice(payloads)
        if len(group) > 1 and reason not in ("malformed_json", "too_large"):
            group.insert(rng.randrange(len(group)), payload)
        else:
            singles.append([payload])
    return singles


def _sent(group: list[bytes], rng: Random) -> Sent:
    payload = group[0] if len(group) == 1 else b"[" + b",".join(group) + b"]"
    return Sent(payload, rng.random() < _SECONDARY_SHARE, len(group))


def _withdraws(envelope: dict[str, Any]) -> bool:
    body = envelope["body"]
    about_data = body.get("consent_type", "data_collection") == "data_collection"
    status = body.get("status") or ("granted" if body.get("granted") else "revoked")
    return envelope["kind"] == "consent" and about_data and status == "revoked"


def _rep_feedback(arrivals: Iterable[Arrival]) -> list[Nudge]:
    severities = {"minor": "low", "moderate": "medium", "major": "high"}
    nudges = []
    for event in distinct_events(arrivals):
        if event.kind != "rep_observation":
            continue
        rep = rep_of(event)
        about = (event.patient_id, event.exercise_id, "", None, event.event_id)
        if rep.issues:
            worst = max((severity for _type, severity in rep.issues), key=list(severities).index)
            nudges.append(Nudge("feedback", "form_correction", severities[worst], *about))
        if rep.score < Fraction("0.6"):
            nudges.append(Nudge("feedback", "rep_quality", "low", *about))
    return nudges


def _json(kind: str, number: int, **fields: Any) -> bytes:
    envelope = {"kind": kind, "subject_id": f"{PATIENT}-{number}", "note": SECRET, "body": {}}
    return orjson.dumps(envelope | fields)


_UNUSABLE: tuple[Callable[[int], tuple[bytes, str]], ...] = (
    lambda number: (b"\xff%d " % number + SECRET.encode(), "malformed_json"),
    lambda number: (_json("alert", number)[:-3], "malformed_json"),
    lambda number: (
        b'{"note": "%s", "number": %d, "gain": NaN}' % (SECRET.encode(), number),
        "malformed_json",
    ),
    lambda number: (b'"%s %d"' % (SECRET.encode(), number), "not_an_event"),
    lambda number: (b"%d" % number, "not_an_event"),
    lambda number: (_json(f"{SECRET}-{number}", number), "unknown_kind"),
    lambda number: (_json("rep_observation", number), "invalid_schema"),
    lambda number: (_json("feedback", number, body={"pain_level": SECRET}), "invalid_schema"),
    lambda number: (
        _json("alert", number, ts="1999-12-31T00:00:00Z", body={"alert_type": "fall"}),
        "timestamp_out_of_range",
    ),
    lambda number: (b"[%d" % number + b",0" * 1000 + b"]", "too_large"),
)
