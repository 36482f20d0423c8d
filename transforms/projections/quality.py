"""Quality: how well a patient does each exercise, over the 7 days up to the newest rep."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec

from transforms.events import ISSUE_SEVERITIES, Event, Kind, RepFact, SessionFact
from transforms.policy.findings import Finding
from transforms.policy.rules import RULES, RuleName
from transforms.projections.ordering import about_us
from transforms.projections.projector import PROCESSED, Outcome, Output, Projector
from transforms.projections.state import ALWAYS, NEVER, STATE_DAYS, PatientState, Trigger
from transforms.rows import row_key
from transforms.times import DAY_US, MICROS, day_of

WINDOW_DAYS = 7
CRITICAL_SCORE = 0.50
TREND_STEP = 0.05

# Scores are summed as integers, so that the sum does not depend on the order of arrival. The integers stand
# for the decimal numbers that were sent: exactly from 0.1 on, to 17 decimals below. Millionths and remainders
# are summed separately, so that each sum fits into 64 bits.
_DIGITS = 17
_SCORE_UNIT = 10**_DIGITS
_MILLION = 1_000_000
_UNITS_IN_MILLIONTH = _SCORE_UNIT // _MILLION
# Percentiles come from a histogram. Half a bin is well within the promised precision of 0.01.
_BINS = 200

# An improvement that began 28 days ago compares the 7-day averages of up to 21 days before it. And a row
# should not lose its last session only because that is slightly older than the reps.
_KEPT_DAYS = 2 * STATE_DAYS

# Few events are late within the seconds that the repeat limit spans, so a few times suffice.
_MAX_FEEDBACK_TIMES = 20

TABLE = "quality"

Trend = Literal["improving", "declining", "stable"]


# By the index of the worst severity.
_FORM_RULES: tuple[RuleName, ...] = ("form_minor", "form_moderate", "form_major")


class DayStats(msgspec.Struct, array_like=True, gc=False):
    """The reps of one exercise on one day; the order in which they are added does not matter.

    `score_sum` is in millionths, `score_rest` the sum of the remainders, in units of 10⁻¹⁷.
    """

    reps: int = 0
    score_sum: int = 0
    critical: int = 0
    first_us: int = 0
    last_us: int = 0
    histogram: dict[int, int] = {}
    issues: dict[str, int] = {}
    # Last and with a default, because states of release 0.1.0 lack it.
    score_rest: int = 0

    def add(self, ts_us: int, fact: RepFact) -> None:
        """Adds a rep."""
        if ts_us < self.first_us or not self.reps:
            self.first_us = ts_us
        if ts_us > self.last_us:
            self.last_us = ts_us
        self.reps += 1
        millionths, rest = _millionths(fact.score)
        self.score_sum += millionths
        self.score_rest += rest
        self.critical += fact.score < CRITICAL_SCORE
        bin_index = round(fact.score * _BINS)
        self.histogram[bin_index] = self.histogram.get(bin_index, 0) + 1
        for issue, _ in fact.issues:
            self.issues[issue] = self.issues.get(issue, 0) + 1


class Window(NamedTuple):
    """The sum of several days; `score_sum` is in units of 10⁻¹⁷."""

    reps: int
    score_sum: int
    critical: int
    days: list[DayStats]

    @classmethod
    def ending(cls, days: dict[int, DayStats], day: int) -> "Window":
        """The 7 days ending on `day`."""
        members = [days[d] for d in range(day - WINDOW_DAYS + 1, day + 1) if d in days]
        reps = score_sum = critical = 0
        for member in members:
            reps += member.reps
            score_sum += member.score_sum * _UNITS_IN_MILLIONTH + member.score_rest
            critical += member.critical
        return cls(reps, score_sum, critical, members)

    @property
    def average(self) -> float:
        """The mean score. Raises ZeroDivisionError without reps."""
        return self.score_sum / (self.reps * _SCORE_UNIT)

    def is_under(self, score: float) -> bool:
        """Whether the unrounded mean is less than `score`."""
        return self.score_sum < self.reps * _in_units(score)

    def is_over(self, score: float) -> bool:
        """Whether the unrounded mean is more than `score`."""
        return self.score_sum > self.reps * _in_units(score)

    @property
    def critical_percentage(self) -> float:
        """The percentage of critical reps; 0 without reps."""
        return 100 * self.critical / self.reps if self.reps else 0.0

    def percentiles(self, shares: Iterable[int]) -> Iterator[float | None]:
        """The score at each percentage, by nearest rank; `shares` rise."""
        bins = iter(sorted(_added_up(day.histogram for day in self.days).items()))
        score, below = None, 0
        for share in shares:
            while self.reps and below * 100 < share * self.reps:
                bin_index, count = next(bins)
                score, below = bin_index / _BINS, below + count
            yield score

    def trend_since(self, before: "Window") -> Trend:
        """The trend against the window `before`."""
        if not self.reps or not before.reps:
            return "stable"
        # In integers, because 0.85 − 0.80 is less than 0.05 in binary floating point.
        difference = self.score_sum * before.reps - before.score_sum * self.reps
        step = _in_units(TREND_STEP) * self.reps * before.reps
        if abs(difference) < step:
            return "stable"
        return "improving" if difference > 0 else "declining"

    def issue_counts(self) -> list[dict[str, Any]]:
        """The form issues, the most frequent first."""
        issues = _added_up(day.issues for day in self.days)
        ordered = sorted(issues.items(), key=lambda item: (-item[1], item[0]))
        return [{"type": issue, "count": count} for issue, count in ordered]


class Windows(dict[int, Window]):
    """The window ending on each day, calculated on first use."""

    def __init__(self, days: dict[int, DayStats]) -> None:
        """`days` are those of one exercise."""
        self._days = days

    def __missing__(self, day: int) -> Window:
        window = self[day] = Window.ending(self._days, day)
        return window


class ScoredSession(msgspec.Struct, array_like=True, gc=False):
    """A session and the quality that its events state.

    `first` is the (time, id) of its earliest event, `newest_us` the time of its newest one, `quality` the
    newest score stated, as (time, id, score).
    """

    session_id: str
    start_us: int
    exercise_id: str
    first: tuple[int, str]
    newest_us: int
    quality: tuple[int, str, float] | None


_Stored = tuple[dict[str, dict[int, DayStats]], list[ScoredSession], dict[str, int], dict[str, list[int]]]


class QualityState(PatientState):
    """A patient's reps by exercise and day, and the sessions with their quality.

    `first_days` is the first day with a rep, by exercise; `feedback_times` the times of the latest feedback,
    by type and exercise. `changed`, not stored, are the exercises that the events being applied concern.
    """

    STORED = _Stored

    def __init__(self) -> None:
        """A new patient."""
        super().__init__()
        self.days: dict[str, dict[int, DayStats]] = {}
        self.sessions: dict[str, ScoredSession] = {}
        self.first_days: dict[str, int] = {}
        self.feedback_times: dict[str, list[int]] = {}
        self.changed: set[str] = set()

    def to_stored(self) -> _Stored:
        """Every field, the sessions as a list."""
        return self.days, list(self.sessions.values()), self.first_days, self.feedback_times

    def restore(self, stored: _Stored) -> None:
        """Sets every field."""
        self.days, sessions, self.first_days, self.feedback_times = stored
        self.sessions = {session.session_id: session for session in sessions}
        self.changed = set()


class Quality(Projector[QualityState]):
    """Sessions, reps and consents → `quality` rows by patient and exercise."""

    tables = (TABLE,)
    counted_kinds = frozenset[Kind]({"rep_observation"})
    state_type = QualityState

    def apply(
        self, state: QualityState, event: Event, trigger: Trigger, now_us: int, output: Output
    ) -> Outcome:
        """Adds a rep to its day, or merges a session event into its session."""
        fact = event.fact
        if isinstance(fact, RepFact):
            outcome = self.admit(state, event, event.ts_us, now_us)
            if outcome == PROCESSED:
                self._add_rep(state, event, fact)
                self._give_feedback(state, event, fact, trigger, now_us, output)
        elif isinstance(fact, SessionFact):
            start_us = event.ts_us if fact.start_us is None else fact.start_us
            outcome = self.admit(state, event, about_us(event), now_us)
            if outcome == PROCESSED:
                self._merge_session(state, event, fact, start_us)
        else:
            outcome = self.admit(state, event, event.ts_us, now_us)
        return outcome

    @staticmethod
    def _add_rep(state: QualityState, event: Event, fact: RepFact) -> None:
        day = day_of(event.ts_us)
        by_day = state.days.setdefault(event.exercise_id, {})
        stats = by_day.get(day)
        if stats is None:
            stats = by_day[day] = DayStats()
            state.first_days[event.exercise_id] = min(day, state.first_days.get(event.exercise_id, day))
            Quality._forget_details(by_day)
        stats.add(event.ts_us, fact)
        state.changed.add(event.exercise_id)
        state.touch(event.ts_us)

    @staticmethod
    def _forget_details(by_day: dict[int, DayStats]) -> None:
        """Drops details of the days before the newest window, which need only sums."""
        newest = max(by_day)
        for day, stats in by_day.items():
            if day <= newest - WINDOW_DAYS:
                stats.histogram, stats.issues = {}, {}

    @staticmethod
    def _merge_session(state: QualityState, event: Event, fact: SessionFact, start_us: int) -> None:
        stamp = (event.ts_us, event.event_id)
        session = state.sessions.get(fact.session_id)
        if session is None:
            session = ScoredSession(fact.session_id, start_us, event.exercise_id, stamp, event.ts_us, None)
            state.sessions[fact.session_id] = session
        exercise_id, quality = session.exercise_id, session.quality
        session.newest_us = max(session.newest_us, event.ts_us)
        if stamp < session.first:
            session.first, session.start_us, session.exercise_id = stamp, start_us, event.exercise_id
        if fact.quality is not None:
            stated = (*stamp, fact.quality)
            session.quality = max(session.quality, stated) if session.quality else stated
        if session.quality:
            state.changed |= {exercise_id, session.exercise_id}
            state.touch((quality or session.quality)[0])

    def project(self, state: QualityState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds the rows of changed exercises, and the findings."""
        self._forget_old(state)
        since_day = self.take_changed_since(state, trigger, now_us)
        if since_day == NEVER:
            return
        exercises, visible = self._exercises(state), self.is_visible(state, now_us)
        # An earlier event may move an exercise's only session to another exercise: the row is then hidden.
        for exercise_id in {**dict.fromkeys(state.rows), **exercises}:
            if since_day != ALWAYS and exercise_id not in state.changed:
                continue
            columns = {
                "patient_id": trigger.patient_id,
                "exercise_id": exercise_id,
                **self._columns(state.days.get(exercise_id, {}), exercises.get(exercise_id)),
                "visible": visible and exercise_id in exercises,
            }
            table_key = row_key(trigger.patient_id, exercise_id)
            row = state.next_version(exercise_id, table_key, columns, trigger, now_us)
            if row:
                output.rows.append((TABLE, row))
        state.changed = set()
        output.add(self.reconcile(state, self._findings(state, since_day), since_day, trigger, now_us))

    def project_urgent(self, state: QualityState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds nothing: every row and finding depends on many events."""

    def _forget_old(self, state: QualityState) -> None:
        oldest = day_of(state.newest_us) - _KEPT_DAYS
        old = [key for key, session in state.sessions.items() if self._is_old(session, state, oldest)]
        if not old and all(min(by_day) >= oldest for by_day in state.days.values()):
            return
        state.changed_since = ALWAYS
        known = self._exercises(state)
        for exercise_id, by_day in list(state.days.items()):
            for day in [day for day in by_day if day < oldest]:
                del by_day[day]
            if not by_day:
                del state.days[exercise_id]
        for key in old:
            del state.sessions[key]
        for exercise_id in known.keys() - self._exercises(state).keys():
            state.rows.pop(exercise_id, None)

    @staticmethod
    def _is_old(session: ScoredSession, state: QualityState, oldest: int) -> bool:
        # A quality may be stated long after the session's start.
        return session.start_us < oldest * DAY_US and session.newest_us < state.horizon_us

    @staticmethod
    def _exercises(state: QualityState) -> dict[str, ScoredSession | None]:
        """Every exercise that has a row, with its newest session that states a quality."""
        newest: dict[str, ScoredSession | None] = dict.fromkeys(state.days)
        for session in state.sessions.values():
            if session.quality is None:
                continue
            known = newest.get(session.exercise_id)
            if known is None or _recency(session) > _recency(known):
                newest[session.exercise_id] = session
        return newest

    @staticmethod
    def _columns(by_day: dict[int, DayStats], session: ScoredSession | None) -> dict[str, Any]:
        day = max(by_day, default=0)
        window, before = Window.ending(by_day, day), Window.ending(by_day, day - WINDOW_DAYS)
        p25, p50, p75 = window.percentiles((25, 50, 75))
        return {
            "total_reps": window.reps,
            "average_quality": round(window.average, 6) if window.reps else None,
            "critical_issues_count": window.critical,
            "critical_issues_percentage": round(window.critical_percentage, 6),
            "percentile_25": p25,
            "percentile_50": p50,
            "percentile_75": p75,
            "quality_trend": window.trend_since(before),
            "form_issue_frequency": window.issue_counts(),
            "last_session_quality": session.quality[2] if session and session.quality else None,
        }

    # --- Policy

    def _give_feedback(
        self, state: QualityState, event: Event, fact: RepFact, trigger: Trigger, now_us: int, output: Output
    ) -> None:
        for rule, data in self._feedback(fact):
            if not self._may_give(state, RULES[rule].type, event):
                continue
            finding = Finding(
                rule=rule,
                occasion=event.event_id,
                at_us=event.ts_us,
                newest_us=event.ts_us,
                exercise_id=event.exercise_id,
                session_id=fact.session_id,
                data=data,
                triggered_by=event.event_id,
            )
            self.announce_at_once(state, finding, trigger, now_us, output)

    def _feedback(self, fact: RepFact) -> Iterator[tuple[RuleName, dict[str, Any]]]:
        if fact.issues:
            worst = max(
                ISSUE_SEVERITIES.index(severity or ISSUE_SEVERITIES[0]) for _, severity in fact.issues
            )
            yield _FORM_RULES[worst], {"form_issues": [issue for issue, _ in fact.issues]}
        if fact.score < self.settings.policy.rep_feedback.quality:
            yield "rep_quality", {"quality_score": fact.score}

    def _may_give(self, state: QualityState, feedback_type: str, event: Event) -> bool:
        """Whether the repeat limit, in event time, lets feedback through; if so, stores its time."""
        limit_us = self.settings.policy.rep_feedback.repeat_seconds * MICROS
        times = state.feedback_times.setdefault(f"{feedback_type}/{event.exercise_id}", [])
        index = bisect_left(times, event.ts_us)
        if any(abs(event.ts_us - other) < limit_us for other in times[max(0, index - 1) : index + 1]):
            return False
        times.insert(index, event.ts_us)
        del times[:-_MAX_FEEDBACK_TIMES]
        return True

    def _findings(self, state: QualityState, since_day: int) -> Iterator[Finding]:
        yield from self._session_findings(state, since_day)
        for exercise_id, by_day in state.days.items():
            days = sorted(
                day for day in by_day if day >= since_day and by_day[day].last_us >= state.horizon_us
            )
            if days:
                windows = Windows(by_day)
                degradations = self._degradations(exercise_id, by_day, windows, days)
                yield from state.findings.spaced(degradations, since_day, state.horizon_us)
                first_day = state.first_days[exercise_id]
                improvements = self._improvements(exercise_id, by_day, windows, days, first_day)
                yield from state.findings.spaced(improvements, since_day, state.horizon_us)

    def _session_findings(self, state: QualityState, since_day: int) -> Iterator[Finding]:
        limits = self.settings.policy.session_quality
        highest, since_us = max(limits.poor, limits.reminder), since_day * DAY_US
        for session in state.sessions.values():
            if session.quality and session.quality[2] < highest and session.quality[0] >= since_us:
                stated_us, event_id, score = session.quality
                yield Finding(
                    rule="poor_quality" if score < limits.poor else "quality_reminder",
                    occasion=session.session_id,
                    at_us=stated_us,
                    newest_us=stated_us,
                    exercise_id=session.exercise_id,
                    session_id=session.session_id,
                    data={"overall_quality": score},
                    triggered_by=event_id,
                )

    def _degradations(
        self, exercise_id: str, by_day: dict[int, DayStats], windows: Windows, days: list[int]
    ) -> Iterator[Finding]:
        limits = self.settings.policy.quality_degradation
        for day in days:
            week = windows[day]
            slipped = week.is_under(limits.average) or week.critical_percentage >= limits.critical_percent
            if week.reps >= limits.min_reps and slipped:
                yield self._day_finding(
                    "quality_degradation", exercise_id, by_day[day], week, limits.repeat_days
                )

    def _improvements(
        self,
        exercise_id: str,
        by_day: dict[int, DayStats],
        windows: Windows,
        days: list[int],
        first_day: int,
    ) -> Iterator[Finding]:
        limits = self.settings.policy.quality_improvement
        for day in days:
            since = day - limits.days + 1
            steady = first_day <= since and all(
                windows[d].is_over(limits.average) for d in range(day, since - 1, -1) if d in by_day
            )
            if steady:
                yield self._day_finding(
                    "quality_improvement", exercise_id, by_day[day], windows[day], limits.repeat_days
                )

    @staticmethod
    def _day_finding(
        rule: RuleName, exercise_id: str, stats: DayStats, window: Window, repeat_days: int
    ) -> Finding:
        return Finding(
            rule=rule,
            occasion=str(day_of(stats.first_us)),
            at_us=stats.first_us,
            newest_us=stats.last_us,
            exercise_id=exercise_id,
            session_id=None,
            data={
                "average_quality": round(window.average, 6),
                "critical_issues_percentage": round(window.critical_percentage, 6),
                "total_reps": window.reps,
            },
            triggered_by=None,
            repeat_days=repeat_days,
        )


def _millionths(score: float) -> tuple[int, int]:
    """The score in whole millionths, and the remainder in units of 10⁻¹⁷."""
    millionths = round(score * _MILLION)
    if millionths / _MILLION == score:
        return millionths, 0
    return divmod(_in_units(score), _UNITS_IN_MILLIONTH)


def _in_units(score: float) -> int:
    """The decimal number that was sent as the score, in units of 10⁻¹⁷."""
    return int(Decimal(repr(score)).scaleb(_DIGITS).to_integral_value())


def _added_up[K: (int, str)](counts: Iterable[dict[K, int]]) -> dict[K, int]:
    total: dict[K, int] = {}
    for each in counts:
        for key, number in each.items():
            total[key] = total.get(key, 0) + number
    return total


def _recency(session: ScoredSession) -> tuple[int, int, str]:
    return (session.start_us, session.newest_us, session.session_id)
