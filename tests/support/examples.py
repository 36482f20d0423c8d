"""Small sets of events, and two ways to calculate what follows from them: the oracle and the product.

An example states by hand what must come out; tests run it through both. March 3rd 2025 is a Monday.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

from tests.support import oracle
from tests.support.beamless import BeamlessJob, message_of
from tests.support.oracle import (
    REP_FEEDBACK,
    REVIEW_COLUMNS,
    Arrival,
    Expected,
    Nudge,
    Options,
    Row,
    current_rows,
    event_time,
    normalize,
    nudge_of,
    parse_time,
)
from transforms.projections.projector import RuleSettings
from transforms.times import to_micros

NOW = datetime(2025, 4, 2, tzinfo=UTC)
LATER = datetime(2045, 1, 1, tzinfo=UTC)

_numbers = count()


def event(
    kind: str, ts: str | None, /, *, patient: str = "p", exercise: str | None = None, **body: Any
) -> Arrival:
    """An event; `event_id` and `site_id` go to their places, event ids ascend by default."""
    envelope: dict[str, Any] = {
        "event_id": body.pop("event_id", f"e{next(_numbers):05d}"),
        "kind": kind,
        "subject_id": patient,
    }
    if ts is not None:
        envelope["ts"] = ts
    if exercise is not None:
        envelope["exercise_id"] = exercise
    if "site_id" in body:
        envelope["meta"] = {"site_id": body.pop("site_id")}
    return Arrival({**envelope, "body": body}, publish_us=0)


def session(ts: str, /, status: str | None = "completed", **body: Any) -> Arrival:
    return event("exercise_session", ts, **({"completion_status": status} if status else {}), **body)


def weekly(*numbers: int, **body: Any) -> list[Arrival]:
    """A completed session on each of these days of March."""
    return [session(day(number), **body) for number in numbers]


def rep(ts: str, score: float, /, **body: Any) -> Arrival:
    return event("rep_observation", ts, quality_score=score, **body)


def reps(number: int, scores: Iterable[float], exercise: str = "squat") -> list[Arrival]:
    """Reps of one day of March, a second apart."""
    return [
        rep(f"2025-03-{number:02d}T12:00:{second:02d}Z", score, exercise=exercise)
        for second, score in enumerate(scores)
    ]


def alert(ts: str, /, **body: Any) -> Arrival:
    body.setdefault("alert_type", "fall_risk")
    return event("alert", ts, **body)


def consent(ts: str, status: str | None = None, **body: Any) -> Arrival:
    return event("consent", ts, **({"status": status} if status else {}), **body)


def day(number: int, clock: str = "12:00") -> str:
    """A time of day in March 2025, UTC."""
    return f"2025-03-{number:02d}T{clock}:00Z"


def at(number: int, hour: int = 12, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2025, 3, number, hour, minute, second, tzinfo=UTC)


class Calculation(ABC):
    """What follows from a set of events, as tests ask for it."""

    @abstractmethod
    def expected(self, arrivals: Iterable[Arrival], options: Options | None = None) -> Expected:
        """All rows and nudges. Nudges come without their occasion, which a message does not state."""

    @abstractmethod
    def too_late(self, bundles: Sequence[Sequence[Arrival]]) -> set[str]:
        """The ids of the events that are too late, of bundles that arrive one after the other."""

    @abstractmethod
    def absences(self, arrivals: Iterable[Arrival]) -> list[tuple[str, Row]]:
        """Patient and `data` of each extended absence, oldest first."""

    def week(self, arrivals: Iterable[Arrival], monday: int = 3, options: Options | None = None) -> Row:
        """The adherence row of the week that starts on that day of March."""
        rows = self.expected(arrivals, options).adherence
        return next(row for row in rows if row["week_start"] == date(2025, 3, monday))

    def only_quality(self, *arrivals: Arrival) -> Row:
        (row,) = self.expected(arrivals).quality
        return row

    def only_item(self, *arrivals: Arrival) -> Row:
        """The one item that is no review."""
        (row,) = [row for row in self.expected(arrivals).work_queue if row["item_type"] != "review"]
        return row

    def fired(self, *arrivals: Arrival, options: Options | None = None) -> list[tuple[str, str, str]]:
        """Type, kind and severity of each nudge, sorted."""
        nudges = self.expected(arrivals, options).nudges
        return sorted((nudge.type, nudge.kind, nudge.severity) for nudge in nudges)

    def rep_feedback(self, *arrivals: Arrival) -> list[tuple[str, str, str]]:
        """As `fired`, with the feedback on single reps."""
        return self.fired(*arrivals, options=Options(rep_feedback=True))

    def item_times(self, nudge_type: str, *arrivals: Arrival) -> list[datetime]:
        """When the work-queue items of a type were created, in order."""
        nudges = self.expected(arrivals).nudges
        return sorted(nudge.created_at for nudge in nudges if nudge.type == nudge_type and nudge.created_at)


class Oracle(Calculation):
    """The independent calculation of tests/support/oracle.py."""

    def expected(self, arrivals: Iterable[Arrival], options: Options | None = None) -> Expected:
        options = options or Options()
        result = oracle.expected(list(arrivals), options._replace(now=options.now or NOW))
        return result._replace(nudges=[nudge._replace(occasion="") for nudge in result.nudges])

    def too_late(self, bundles: Sequence[Sequence[Arrival]]) -> set[str]:
        return oracle.too_late(bundles)

    def absences(self, arrivals: Iterable[Arrival]) -> list[tuple[str, Row]]:
        return oracle.absences(arrivals)


class Product(Calculation):
    """The product's rules, without Beam. The events arrive together, or each in its turn."""

    def __init__(self, *, in_turn: bool = False) -> None:
        self._in_turn = in_turn

    def expected(self, arrivals: Iterable[Arrival], options: Options | None = None) -> Expected:
        options = options or Options()
        settings = RuleSettings(
            consent=options.consent,
            prescribed_sessions_per_week=options.prescribed_sessions_per_week,
            nudge_max_age_hours=0,
        )
        if options.any_span:
            job = _run(_in_order_of_time(arrivals), settings, options.now or LATER)
        else:
            job = _run(self._bundles(arrivals), settings, options.now or NOW)
        assert not job.dead_letters
        return Expected(
            _rows(job, "adherence"),
            _rows(job, "quality"),
            [_without_open_columns(row) for row in _rows(job, "work_queue")],
            _nudges(job, with_rep_feedback=options.rep_feedback),
            _with_outcome(job, "withheld"),
        )

    def _bundles(self, arrivals: Iterable[Arrival]) -> list[list[Arrival]]:
        # The oracle takes every consent as known before any other event.
        ordered = sorted(arrivals, key=lambda arrival: arrival.envelope["kind"] != "consent")
        return [[arrival] for arrival in ordered] if self._in_turn else [ordered]

    def too_late(self, bundles: Sequence[Sequence[Arrival]]) -> set[str]:
        return set(_with_outcome(_run(bundles, RuleSettings(), LATER), "too_late"))

    def absences(self, arrivals: Iterable[Arrival]) -> list[tuple[str, Row]]:
        job = _run(_in_order_of_time(arrivals), RuleSettings(nudge_max_age_hours=0), LATER)
        return [
            (nudge["subject_id"], nudge["data"])
            for nudge in job.nudges
            if nudge["type"] == "extended_absence"
        ]


def said_in_silence(arrivals: Iterable[Arrival], *wakes: datetime) -> list[tuple[datetime, str, str]]:
    """What the product's timers say after these events: time, type and kind of each nudge."""
    job = _run([list(arrivals)], RuleSettings(nudge_max_age_hours=0), wakes[0] - timedelta(days=1))
    said = []
    for wake in wakes:
        known = len(job.nudges)
        job.wake(to_micros(wake))
        said += [(wake, nudge["type"], nudge["kind"]) for nudge in job.nudges[known:]]
    return said


def _in_order_of_time(arrivals: Iterable[Arrival]) -> list[list[Arrival]]:
    return [[arrival] for arrival in sorted(arrivals, key=event_time)]


def _run(bundles: Iterable[Iterable[Arrival]], settings: RuleSettings, now: datetime) -> BeamlessJob:
    job = BeamlessJob(settings, to_micros(now))
    for bundle in bundles:
        job.take([message_of(arrival) for arrival in bundle])
    return job


def _rows(job: BeamlessJob, table: str) -> list[Row]:
    rows = map(normalize, current_rows(job.rows[table], table, job.rows["consents"]))
    return sorted(rows, key=lambda row: [str(row[column]) for column in oracle.KEYS[table]])


def _without_open_columns(row: Row) -> Row:
    """A review without the columns that the oracle leaves open."""
    if row["item_type"] != "review":
        return row
    return {name: row[name] for name in REVIEW_COLUMNS.split()}


def _nudges(job: BeamlessJob, *, with_rep_feedback: bool) -> list[Nudge]:
    created_at = {row["item_id"]: parse_time(row["created_at"]) for row in job.rows["work_queue"]}
    return [
        nudge_of(nudge)._replace(created_at=created_at.get(nudge["nudge_id"]))
        for nudge in job.nudges
        if with_rep_feedback or nudge["type"] not in REP_FEEDBACK
    ]


def _with_outcome(job: BeamlessJob, wanted: str) -> frozenset[str]:
    return frozenset(event_id for event_id, outcome in job.outcomes.items() if outcome == wanted)
