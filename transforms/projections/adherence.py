"""Adherence: how many of the prescribed sessions a patient does, week by week."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from operator import attrgetter, gt, lt
from typing import Any, NamedTuple

import msgspec

from transforms.events import Event, Kind, SessionFact, SessionStatus
from transforms.policy.findings import Finding
from transforms.policy.rules import RuleName
from transforms.policy.thresholds import AdherenceLevel
from transforms.projections.consent import Decision
from transforms.projections.ordering import about_us
from transforms.projections.projector import PROCESSED, Outcome, Output, Projector, RuleSettings
from transforms.projections.state import ALWAYS, NEVER, SILENT_DAYS, STATE_DAYS, PatientState, Trigger
from transforms.rows import Row, row_key
from transforms.times import DAY_US, MINUTE_US, day_of, iso_date, to_rfc3339, week_start_of

STATUS_RANKS: dict[SessionStatus, int] = {"started": 0, "aborted": 1, "partial": 2, "completed": 3}
_STARTED, _PARTIAL, _COMPLETED = STATUS_RANKS["started"], STATUS_RANKS["partial"], STATUS_RANKS["completed"]

# Events are applied for 28 days, but sessions are kept longer: the rolling average of the oldest week looks
# 27 days further back, and a week begins up to 6 days before its first session.
_KEPT_DAYS = 2 * STATE_DAYS + 6

# If an absence is already due when an event arrives, it waits for other events on their way.
_ABSENCE_GRACE_US = MINUTE_US

_LONG_ABSENCE = {"absence": f"more than {SILENT_DAYS} days"}

TABLE = "adherence"
CONSENTS_TABLE = "consents"


class Session(msgspec.Struct, array_like=True, gc=False):
    """One session, merged from its events: the highest status, and the start according to its earliest event.

    `first` is the (time, id) of the earliest event, `duration` the newest one stated, as (time, id, minutes).
    """

    session_id: str
    start_us: int
    rank: int
    first: tuple[int, str]
    exercise_id: str
    duration: tuple[int, str, float] | None

    @property
    def day(self) -> int:
        """The UTC day on which the session began, as days since the epoch."""
        return self.start_us // DAY_US


class _Stored(msgspec.Struct, array_like=True, gc=False):
    """The stored form of an `AdherenceState`; fields that version 1 did not have are at the end."""

    sessions: list[Session]
    first_day: int | None
    prescription: tuple[int, str, int] | None
    absence_checked_us: int
    shown: bool
    last_day: int | None = None
    last_active_day: int | None = None


class AdherenceState(PatientState):
    """A patient's sessions by id.

    Of forgotten sessions, three days remain: `first_day` and `last_day` of any, `last_active_day` of the
    completed and partial ones. `prescription` is the newest one stated, as (time, event id, sessions a week).
    `absence_checked_us` is when a timer last looked for an absence, `shown` whether the consent's row is
    visible.
    """

    STORED = _Stored

    def __init__(self) -> None:
        """A new patient."""
        super().__init__()
        self.sessions: dict[str, Session] = {}
        self.first_day: int | None = None
        self.last_day: int | None = None
        self.last_active_day: int | None = None
        self.prescription: tuple[int, str, int] | None = None
        self.absence_checked_us = 0
        self.shown = True

    def to_stored(self) -> _Stored:
        """Every field, the sessions as a list."""
        return _Stored(
            list(self.sessions.values()),
            self.first_day,
            self.prescription,
            self.absence_checked_us,
            self.shown,
            self.last_day,
            self.last_active_day,
        )

    def restore(self, stored: _Stored) -> None:
        """Sets every field."""
        self.sessions = {session.session_id: session for session in stored.sessions}
        self.first_day, self.last_day = stored.first_day, stored.last_day
        self.last_active_day = stored.last_active_day
        self.prescription, self.shown = stored.prescription, stored.shown
        self.absence_checked_us = stored.absence_checked_us

    def forget(self, session: Session) -> None:
        """Removes a session that no admitted event can change; only its day is still needed."""
        del self.sessions[session.session_id]
        self.changed_since = ALWAYS
        day = session.day
        self.first_day = day if self.first_day is None else min(self.first_day, day)
        self.last_day = day if self.last_day is None else max(self.last_day, day)
        if session.rank >= _PARTIAL:
            self.last_active_day = day if self.last_active_day is None else max(self.last_active_day, day)

    def in_order(self) -> list[Session]:
        """The sessions in order of start."""
        return sorted(self.sessions.values(), key=attrgetter("start_us", "session_id"))


class _Calendar(NamedTuple):
    """The days of a patient's sessions, sorted, with one entry per session.

    `completed` are the days of completed sessions, `active` those of completed and partial ones;
    `active_before` is the last active day before them.
    """

    completed: list[int]
    active: list[int]
    active_before: int | None

    @classmethod
    def of(cls, sessions: list[Session], active_before: int | None) -> "_Calendar":
        """The calendar of sessions that are in order of start."""
        return cls(
            [session.start_us // DAY_US for session in sessions if session.rank == _COMPLETED],
            [session.start_us // DAY_US for session in sessions if session.rank >= _PARTIAL],
            active_before,
        )

    def rolling_average(self, day: int, days: int, prescribed: int) -> float:
        """Percentage of the prescribed sessions that were completed in the days ending on `day`."""
        done = bisect_right(self.completed, day) - bisect_right(self.completed, day - days)
        return _percentage(done, prescribed * days // 7)

    def last_active_day(self, day: int) -> int | None:
        """The newest active day up to `day`, or null."""
        index = bisect_right(self.active, day)
        return self.active[index - 1] if index else self.active_before


class _AverageRule(NamedTuple):
    """A rule about a rolling average over `days`, which `holds` compares with the level's percentage."""

    name: RuleName
    level: AdherenceLevel
    days: int
    holds: Callable[[float, float], bool]


class Adherence(Projector[AdherenceState]):
    """Sessions and consents → `adherence` rows by patient and week, and `consents` rows by patient."""

    tables = (TABLE, CONSENTS_TABLE)
    counted_kinds = frozenset[Kind]({"exercise_session", "consent"})
    state_type = AdherenceState

    def __init__(self, settings: RuleSettings) -> None:
        """Uses the operator's settings."""
        super().__init__(settings)
        self._silent_days = settings.policy.missed_sessions.silent_days
        self._absent_days = settings.policy.extended_absence.days
        self._average_rules = (
            _AverageRule("low_weekly_adherence", settings.policy.low_weekly_adherence, 7, lt),
            _AverageRule("adherence_excellence", settings.policy.adherence_excellence, 28, gt),
        )

    def apply(
        self, state: AdherenceState, event: Event, trigger: Trigger, now_us: int, output: Output
    ) -> Outcome:
        """Merges a session event into its session."""
        fact = event.fact
        if not isinstance(fact, SessionFact):
            return self.admit(state, event, event.ts_us, now_us)
        start_us = event.ts_us if fact.start_us is None else fact.start_us
        outcome = self.admit(state, event, about_us(event), now_us)
        if outcome == PROCESSED:
            self._merge(state, event, fact, start_us)
            if finding := pain_finding(self.settings, event, fact.pain_level, fact.session_id):
                self.announce_at_once(state, finding, trigger, now_us, output)
        return outcome

    @staticmethod
    def _merge(state: AdherenceState, event: Event, fact: SessionFact, start_us: int) -> None:
        rank, stamp = STATUS_RANKS[fact.status], (event.ts_us, event.event_id)
        session = state.sessions.get(fact.session_id)
        if session is None:
            session = Session(fact.session_id, start_us, rank, stamp, event.exercise_id, None)
            state.sessions[fact.session_id] = session
        state.touch(session.start_us)
        session.rank = max(session.rank, rank)
        if stamp < session.first:
            session.first, session.start_us, session.exercise_id = stamp, start_us, event.exercise_id
            state.touch(start_us)
        if fact.duration_minutes is not None:
            stated = (*stamp, fact.duration_minutes)
            session.duration = max(session.duration, stated) if session.duration else stated
        if fact.sessions_per_week is not None:
            prescribed = (*stamp, fact.sessions_per_week)
            newest = max(state.prescription, prescribed) if state.prescription else prescribed
            if state.prescription is None or newest[2] != state.prescription[2]:
                state.changed_since = ALWAYS
            state.prescription = newest

    def project(self, state: AdherenceState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds the changed rows of weeks and of the consent, and the findings."""
        self._forget_old(state)
        changed_since = self.take_changed_since(state, trigger, now_us)
        # Visibility also changes with the option `--consent`.
        if changed_since == ALWAYS or self.is_visible(state, now_us) != state.shown:
            self._add_consent_row(state, trigger, now_us, output)
        if changed_since == NEVER or not state.sessions:
            return
        sessions = state.in_order()
        calendar = _Calendar.of(sessions, state.last_active_day)
        # A gap begins, and an absence ends, with the session before the changed ones.
        first = _index_of_day(sessions, changed_since)
        since_day = sessions[first - 1].day + 1 if first else ALWAYS
        for row in self._week_rows(state, sessions, calendar, since_day, trigger, now_us):
            output.rows.append((TABLE, row))
        findings = self._findings(state, sessions, first, calendar, since_day)
        output.add(self.reconcile(state, findings, since_day, trigger, now_us))

    def project_urgent(self, state: AdherenceState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds the consent's row if it hides the patient: only that must not wait."""
        if not self.is_visible(state, now_us):
            self._add_consent_row(state, trigger, now_us, output)

    @staticmethod
    def _forget_old(state: AdherenceState) -> None:
        oldest_us = (day_of(state.newest_us) - _KEPT_DAYS) * DAY_US
        for session in [session for session in state.sessions.values() if session.start_us < oldest_us]:
            state.forget(session)
        oldest_week = iso_date(week_start_of(day_of(state.horizon_us)))
        for week in [week for week in state.rows if week < oldest_week and week != CONSENTS_TABLE]:
            del state.rows[week]

    def _add_consent_row(self, state: AdherenceState, trigger: Trigger, now_us: int, output: Output) -> None:
        if not state.consents.decisions:
            return
        state.shown = self.is_visible(state, now_us)
        columns = {
            "patient_id": trigger.patient_id,
            "consent_status": state.consents.status_at(now_us),
            "visible": state.shown,
            "decisions": [_decision_columns(decision) for decision in state.consents.decisions],
        }
        row = state.next_version(CONSENTS_TABLE, trigger.patient_id, columns, trigger, now_us)
        if row:
            output.rows.append((CONSENTS_TABLE, row))

    def _week_rows(
        self,
        state: AdherenceState,
        sessions: list[Session],
        calendar: _Calendar,
        since_day: int,
        trigger: Trigger,
        now_us: int,
    ) -> Iterator[Row]:
        oldest_week = max(week_start_of(day_of(state.horizon_us)), week_start_of(since_day - 1))
        oldest_date = iso_date(oldest_week)
        # An earlier event may move a week's only session to another week: the row is then hidden.
        weeks: dict[str, list[Session]] = {
            key: [] for key in state.rows if key != CONSENTS_TABLE and key >= oldest_date
        }
        for week in self._rebuilt_weeks(state, oldest_week, sessions[-1].day):
            weeks[iso_date(week)] = []
        for session in sessions[_index_of_day(sessions, oldest_week) :]:
            weeks.setdefault(iso_date(week_start_of(session.day)), []).append(session)
        status, visible = state.consents.status_at(now_us), self.is_visible(state, now_us)
        for week_start, members in weeks.items():
            columns = {
                "patient_id": trigger.patient_id,
                "week_start": week_start,
                **self._week_columns(state, members, calendar, sessions[-1].day),
                "consent_status": status,
                "visible": visible and bool(members),
            }
            table_key = row_key(trigger.patient_id, week_start)
            row = state.next_version(week_start, table_key, columns, trigger, now_us)
            if row:
                yield row

    def _rebuilt_weeks(self, state: AdherenceState, oldest_week: int, newest_day: int) -> range:
        """Weeks for which an earlier job may have written rows unknown to this one."""
        if self.settings.rebuilt_since_us is None:
            return range(0)
        # In earlier weeks, some events may not be delivered again.
        first = max(oldest_week, week_start_of(day_of(self.settings.rebuilt_since_us)) + 7)
        return range(first, max(newest_day, day_of(state.newest_us)) + 1, 7)

    def _week_columns(
        self, state: AdherenceState, sessions: list[Session], calendar: _Calendar, newest_day: int
    ) -> dict[str, Any]:
        prescribed = self._prescribed(state)
        completed = sum(session.rank == _COMPLETED for session in sessions)
        partial = sum(session.rank == _PARTIAL for session in sessions)
        day = sessions[-1].day if sessions else newest_day
        last_start_us = max(
            (session.start_us for session in sessions if session.rank >= _PARTIAL), default=None
        )
        last_active = calendar.last_active_day(day)
        # Counts full days without a session once a timer has seen them, else up to the newest session.
        seen_day = day_of(state.absence_checked_us) - 1
        until = seen_day if day == newest_day and seen_day - day >= self._silent_days else day
        return {
            "prescribed_sessions": prescribed,
            "completed_sessions": completed,
            "partial_sessions": partial,
            "missed_sessions": max(0, prescribed - completed - partial),
            "adherence_percentage": _percentage(completed, prescribed),
            "rolling_7day_avg": calendar.rolling_average(day, 7, prescribed),
            "rolling_28day_avg": calendar.rolling_average(day, 28, prescribed),
            "last_session_at": None if last_start_us is None else to_rfc3339(last_start_us),
            "consecutive_missed_days": None if last_active is None else until - last_active,
        }

    def _prescribed(self, state: AdherenceState) -> int:
        return state.prescription[2] if state.prescription else self.settings.prescribed_sessions_per_week

    # --- Policy

    def _findings(
        self, state: AdherenceState, sessions: list[Session], first: int, calendar: _Calendar, since_day: int
    ) -> Iterator[Finding]:
        before = sessions[first - 1].day if first else state.last_day
        yield from self._gaps(before, sessions[first:])
        yield from self._open_absence(state, sessions[-1])
        yield from self._short_sessions(sessions[first:])
        for rule in self._average_rules:
            averages = self._averages(state, sessions, first, calendar, rule)
            yield from state.findings.spaced(averages, since_day, state.horizon_us)

    def _gaps(self, before: int | None, sessions: list[Session]) -> Iterator[Finding]:
        """Gaps between sessions; `before` is the day of the last session before these, or null."""
        for after in sessions:
            last_day, before = before, after.day
            gap = 0 if last_day is None else after.day - last_day
            if last_day is not None and gap > self._absent_days:
                yield self._absence(last_day, after)
            elif gap > self.settings.policy.missed_sessions.gap_days:
                yield Finding(
                    rule="gap",
                    occasion=str(after.day),
                    at_us=after.start_us,
                    newest_us=after.first[0],
                    exercise_id="",
                    session_id=after.session_id,
                    data={"gap_days": gap},
                    triggered_by=after.first[1],
                )

    def _absence(self, last_day: int, returned: Session | None) -> Finding:
        """The finding of an absence; the same one, whether a timer or the patient's return reports it.

        Its data are the day of the last session, or only that the absence took more than 60 days.
        """
        due_us = (last_day + self._absent_days + 1) * DAY_US
        is_long = returned is not None and returned.day - last_day > SILENT_DAYS
        return Finding(
            rule="absence",
            occasion=str(last_day),
            at_us=due_us,
            newest_us=returned.first[0] if returned else due_us,
            exercise_id="",
            session_id=None,
            data=_LONG_ABSENCE if is_long else {"last_session_day": iso_date(last_day)},
            triggered_by=returned.first[1] if returned else None,
            is_open=returned is None,
        )

    def _open_absence(self, state: AdherenceState, newest: Session) -> Iterator[Finding]:
        silence_due_us = (newest.day + self._silent_days + 1) * DAY_US
        if state.absence_checked_us >= silence_due_us:
            yield Finding(
                rule="silence",
                occasion=str(newest.day),
                at_us=silence_due_us,
                newest_us=silence_due_us,
                exercise_id="",
                session_id=None,
                data={"last_session_day": iso_date(newest.day)},
                triggered_by=None,
                is_open=True,
            )
        absence = self._absence(newest.day, None)
        if state.absence_checked_us >= absence.at_us:
            yield absence

    def _short_sessions(self, sessions: list[Session]) -> Iterator[Finding]:
        limit = self.settings.policy.short_session.minutes
        for session in sessions:
            if session.rank == _COMPLETED and session.duration and session.duration[2] < limit:
                stated_us, event_id, minutes = session.duration
                yield Finding(
                    rule="short_session",
                    occasion=session.session_id,
                    at_us=session.start_us,
                    newest_us=stated_us,
                    exercise_id=session.exercise_id,
                    session_id=session.session_id,
                    data={"duration_minutes": round(minutes, 6)},
                    triggered_by=event_id,
                )

    def _averages(
        self,
        state: AdherenceState,
        sessions: list[Session],
        first: int,
        calendar: _Calendar,
        rule: _AverageRule,
    ) -> Iterator[Finding]:
        """The rolling averages at ended sessions that break a limit, from `after_days` on."""
        level, days = rule.level, rule.days
        prescribed = self._prescribed(state) * days // 7
        completed = bisect_left(calendar.completed, sessions[first].day)
        # A session in state may still move to an earlier day.
        first_day = min(sessions[0].day, sessions[0].day if state.first_day is None else state.first_day)
        for session in sessions[first:]:
            completed += session.rank == _COMPLETED
            day, is_recent = session.day, min(session.start_us, session.first[0]) >= state.horizon_us
            if session.rank == _STARTED or not is_recent or day - first_day < level.after_days:
                continue
            average = _exact_percentage(completed - bisect_right(calendar.completed, day - days), prescribed)
            if rule.holds(average, level.percent):
                yield Finding(
                    rule=rule.name,
                    occasion=str(day),
                    at_us=session.start_us,
                    newest_us=session.first[0],
                    exercise_id="",
                    session_id=session.session_id,
                    data={f"rolling_{days}day_avg": round(average, 6)},
                    triggered_by=session.first[1],
                    repeat_days=level.repeat_days,
                )

    # --- Time

    def wake(self, state: AdherenceState, now_us: int) -> AdherenceState:
        """Looks for an absence as well."""
        state = super().wake(state, now_us)
        state.absence_checked_us = now_us
        return state

    def wake_times_us(self, state: AdherenceState, now_us: int) -> list[int | None]:
        """Also each midnight at which an absence grows by a day, while it can be reported."""
        return [*super().wake_times_us(state, now_us), self._absence_due_us(state, now_us)]

    def _absence_due_us(self, state: AdherenceState, now_us: int) -> int | None:
        if not state.sessions:
            return None
        newest_day = day_of(max(map(attrgetter("start_us"), state.sessions.values())))
        due_day = max(newest_day + self._silent_days + 1, day_of(state.absence_checked_us) + 1)
        if due_day > newest_day + STATE_DAYS:
            return None
        return max(due_day * DAY_US, state.touched_us + _ABSENCE_GRACE_US, now_us + 1)


def pain_finding(
    settings: RuleSettings, event: Event, level: float | None, session_id: str | None
) -> Finding | None:
    """The finding of an event that reports pain at or above a threshold, or null."""
    pain = settings.policy.pain
    if level is None or level < min(pain.alert, pain.emergency):
        return None
    return Finding(
        rule="pain_emergency" if level >= pain.emergency else "pain_alert",
        occasion=event.event_id,
        at_us=event.ts_us,
        newest_us=event.ts_us,
        exercise_id=event.exercise_id,
        session_id=session_id,
        data={"pain_level": level},
        triggered_by=event.event_id,
    )


def _percentage(done: int, prescribed: int) -> float:
    return round(_exact_percentage(done, prescribed), 6)


def _exact_percentage(done: int, prescribed: int) -> float:
    """Not rounded, for comparisons."""
    return min(100.0, 100 * done / prescribed)


def _decision_columns(decision: Decision) -> dict[str, Any]:
    """A decision as the consent's row shows it; a job without state reads it from there."""
    return {
        "effective_from": to_rfc3339(decision.effective_us),
        "decided_at": to_rfc3339(decision.ts_us),
        "event_id": decision.event_id,
        "status": decision.status,
        "expires_at": None if decision.expires_us is None else to_rfc3339(decision.expires_us),
    }


def _index_of_day(sessions: list[Session], day: int) -> int:
    """The index of the first session on or after a day; the sessions are in order of start."""
    return bisect_left(sessions, day * DAY_US, key=attrgetter("start_us"))
