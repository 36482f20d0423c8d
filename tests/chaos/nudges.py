"""The judge of what is on the nudge topic: nothing is unsaid, and nothing is said that was not true.

A rule on one event says the same whatever else has arrived. A rule on several events goes by those that have
arrived, and what it has said stays said. So what it says and all events together do not is held to the
patient's events: some of them, alone, must make it true.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from math import ceil
from typing import Any, NamedTuple

import orjson

from tests.chaos.story import Story
from tests.support.oracle import (
    Event,
    Nudge,
    Rep,
    day_occasion,
    distinct_events,
    ending_on,
    minutes_of,
    nudge_of,
    parse_time,
    quality_of,
    rep_of,
    status_of,
)

# The most that may be set: so hardly an absence falls due while the proof runs.
_SILENT_DAYS = 27
# And feedback on a repetition does not depend on others.
POLICY = f"missed_sessions: {{silent_days: {_SILENT_DAYS}}}\nrep_feedback: {{repeat_seconds: 0}}\n"

# How long a rule on days keeps silent once it has spoken.
_REPEAT_DAYS = {
    "low_weekly_adherence": 7,
    "adherence_excellence": 28,
    "quality_degradation": 7,
    "quality_improvement": 14,
}
# These are about none, whatever their events are about.
_WITHOUT_EXERCISE = frozenset(
    {"missed_sessions", "extended_absence", "low_weekly_adherence", "adherence_excellence", "critical_alert"}
)
# Sessions a week, where no event states the patient's own.
_PRESCRIBED = 7
# Averages are rounded to 6 digits.
_ROUNDED = 1e-6

type Message = Mapping[str, Any]


class Verdict(NamedTuple):
    """`ids` is how many nudge ids there are; `missing` and `unexpected` are one nudge an id."""

    ids: int
    missing: set[Nudge]
    unexpected: set[Nudge]


def judge(messages: Iterable[Message], story: Story) -> Verdict:
    """Holds what is on the topic to the story.

    Wanted is what all events together give. It is missing if it is not there, but for patients whose events
    come one by one, of whom a rule on days may have spoken within its limit instead. Of `hidden` patients
    nothing is missing: their withdrawal may have arrived before, or not.

    What is not wanted is unexpected, but for a rule on several events of a patient whose events come one by
    one. Wanted or not, a nudge is unexpected if it is not about events of its patient, or if a rule on
    several events says what no events of the patient make true.
    """
    known: dict[str, list[Event]] = defaultdict(list)
    for event in distinct_events(story.arrivals):
        known[event.patient_id].append(event)
    ids, said, untrue = set(), set(), set()
    for message in messages:
        events = known[message["subject_id"]]
        nudge = nudge_of(message)._replace(occasion=_occasion(message, events))
        ids.add(message["nudge_id"])
        said.add(nudge)
        if not (_is_about_patient(message, events) and _is_possible(nudge, message, events)):
            untrue.add(nudge)
    wanted = {nudge._replace(created_at=None) for nudge in story.nudges}
    missing = {
        nudge
        for nudge in wanted - said
        if nudge.patient_id not in story.hidden
        and (nudge.patient_id in story.uploads or not _is_said_nearby(nudge, said))
    }
    extra = {
        nudge
        for nudge in said - wanted
        if nudge.patient_id in story.uploads or nudge.type not in _OF_SEVERAL_EVENTS
    }
    return Verdict(len(ids), missing, untrue | extra)


def _occasion(message: Message, events: Iterable[Event]) -> str:
    """That of which, with the rest that the message states, the id is made; '' if of nothing known."""
    exercise_id = "" if message["type"] in _WITHOUT_EXERCISE else message["exercise_id"] or ""
    about = (message["type"], message["kind"], message["subject_id"], exercise_id)
    occasions = {day_occasion(time.date()) for event in events for time in (event.ts, event.start)}
    if message["type"] not in _REPEAT_DAYS:
        occasions |= {message["session_id"], message["triggered_by"], message["data"].get("alert_id")} - {
            None
        }
    for occasion in occasions:
        if blake2b(orjson.dumps((*about, occasion)), digest_size=16).hexdigest() == message["nudge_id"]:
            return occasion
    return ""


def _is_said_nearby(nudge: Nudge, said: Iterable[Nudge]) -> bool:
    """Whether a rule on days has spoken of another day, so near that it keeps silent on this one."""
    limit = _REPEAT_DAYS.get(nudge.type, 0)
    return any(
        abs(int(other.occasion) - int(nudge.occasion)) < limit
        for other in said
        if limit and other.occasion and other._replace(occasion=nudge.occasion) == nudge
    )


def _is_about_patient(message: Message, events: Iterable[Event]) -> bool:
    """Whether it was set off by an event of the patient, or by none; pain, by one of that exercise."""
    exercises = {event.event_id: event.exercise_id for event in events}
    if message["type"] == "pain_reported":
        return exercises.get(message["triggered_by"]) == (message["exercise_id"] or "")
    return message["triggered_by"] is None or message["triggered_by"] in exercises


# --- What some of a patient's events make true


def _is_possible(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    if nudge.type not in _OF_SEVERAL_EVENTS:
        return True
    rule = _RULES.get((nudge.type, nudge.kind, nudge.severity))
    return bool(nudge.occasion) and rule is not None and rule(nudge, message, events)


def _is_gap(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """Of two sessions alone, the one is the first since the other."""
    return any(
        3 < (gap := _days_between(before, back)) <= 7
        and message["data"] == {"gap_days": gap}
        and message["session_id"] == back.session_id
        and nudge.occasion == day_occasion(back.start.date())
        for before, back in _returns(message, events)
    )


def _is_silence(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """If a session of that day is the newest to have arrived, it was long ago enough when this was said."""
    return message["triggered_by"] is None and any(
        _is_of_last_day(nudge, message, event) and _was_silent(event, _SILENT_DAYS, message)
        for event in _sessions(events)
    )


def _is_absence(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """The same after a week, or of two sessions alone, the one is the first since the other."""
    if message["triggered_by"] is None:
        return any(
            _is_of_last_day(nudge, message, event) and _was_silent(event, 7, message)
            for event in _sessions(events)
        )
    return any(
        _days_between(before, back) > 7 and _is_of_last_day(nudge, message, before)
        for before, back in _returns(message, events)
    )


def _is_short(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """The event states the duration, and none that is needed to complete its session states a newer one."""
    own = [event for event in _sessions(events) if event.session_id == nudge.session_id]
    return any(
        event.event_id == message["triggered_by"]
        and (minutes := minutes_of(event)) is not None
        and minutes < 10
        and message["data"] == {"duration_minutes": round(minutes, 6)}
        and any(
            status_of(other) == "completed" and (minutes_of(other) is None or other.order <= event.order)
            for other in own
        )
        and _is_about_session(nudge, message["exercise_id"], own)
        for event in own
    )


def _is_rated(
    nudge: Nudge, message: Message, events: Sequence[Event], *, at_least: float, under: float
) -> bool:
    """The event states the quality."""
    own = [event for event in _sessions(events) if event.session_id == nudge.session_id]
    return any(
        event.event_id == message["triggered_by"]
        and (quality := quality_of(event)) is not None
        and at_least <= quality < under
        and message["data"] == {"overall_quality": quality}
        and _is_about_session(nudge, message["exercise_id"], own)
        for event in own
    )


def _is_rolling(
    nudge: Nudge, message: Message, events: Sequence[Event], *, days: int, applies: Callable[[float], bool]
) -> bool:
    """Some number of sessions that can be completed, of some number that is prescribed, is the average.

    The number that is prescribed is not tied to the sessions whose events state it.
    """
    average = message["data"].get(f"rolling_{days}day_avg")
    stated = {event.get("prescribed_sessions_per_week") for event in _sessions(events)} - {None}
    return (
        isinstance(average, float)
        and applies(average)
        and any(
            abs(average - 100 * min(1.0, done / (prescribed * days // 7))) <= _ROUNDED
            for first in _sessions(events)
            if first.event_id == message["triggered_by"]
            and first.session_id == message["session_id"]
            and nudge.occasion == day_occasion(first.start.date())
            for done in _possibly_completed(first, _sessions(events), days)
            for prescribed in stated | {_PRESCRIBED}
        )
    )


def _possibly_completed(first: Event, events: Sequence[Event], days: int) -> range:
    """How many sessions of the days up to this one may be completed, if it ends and its first event is this;
    none if no other session was early enough for the rule to apply."""
    others: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        others[event.session_id].append(event)
    own = [event for event in others.pop(first.session_id) if event.order >= first.order]
    if not any(_days_between(event, first) >= days for parts in others.values() for event in parts):
        return range(0)
    statuses = {status_of(first)} if status_of(first) == "completed" else set(map(status_of, own))
    ends = statuses - {"started"}
    if not ends:
        return range(0)
    most = sum(_may_be_completed(parts, first, days) for parts in others.values())
    return range(int(ends == {"completed"}), most + int("completed" in ends) + 1)


def _may_be_completed(parts: Sequence[Event], until: Event, days: int) -> bool:
    """Whether some events of a session complete it and put its start before the other's, in the same days."""
    return any(
        ending_on(until.start.date(), days, first.start.date())
        and (first.start, first.session_id) < (until.start, until.session_id)
        and any(status_of(event) == "completed" and event.order >= first.order for event in parts)
        for first in parts
    )


def _is_degraded(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """So many repetitions of the week up to a day, one of that day, have that average and share."""
    data = message["data"]
    slipped = data["average_quality"] < 0.7 or data["critical_issues_percentage"] >= 30
    return data["total_reps"] >= 20 and slipped and _is_of_window(nudge, data, events)


def _is_improved(nudge: Nudge, message: Message, events: Sequence[Event]) -> bool:
    """The same, with a repetition so long ago that the rule applies, itself good if it is one of the 14 days.

    The averages of the other days are not looked at.
    """
    data = message["data"]
    begun = any(
        int(nudge.occasion) - int(day_occasion(rep.day)) >= (13 if rep.score > Fraction("0.85") else 14)
        for rep in _reps(nudge, events)
    )
    return data["average_quality"] > 0.85 and begun and _is_of_window(nudge, data, events)


def _is_of_window(nudge: Nudge, data: Mapping[str, Any], events: Sequence[Event]) -> bool:
    day = date(1970, 1, 1) + timedelta(days=int(nudge.occasion))
    window = [rep for rep in _reps(nudge, events) if ending_on(day, 7, rep.day)]
    count, average, share = data["total_reps"], data["average_quality"], data["critical_issues_percentage"]
    if not 0 < count <= len(window) or average < 0:
        return False
    # In thousandths. The few scores with more digits may move the total by what they lose.
    slack = ceil(sum(abs(rep.score * 1000 - round(rep.score * 1000)) for rep in window))
    nearest, critical = round(average * count * 1000), round(share * count / 100)
    totals = [
        total
        for total in range(max(0, nearest - slack), nearest + slack + 1)
        if abs(total / count / 1000 - average) <= _ROUNDED + slack / count / 1000
    ]
    return abs(100 * critical / count - share) <= _ROUNDED and any(
        _adds_up(window[:number] + window[number + 1 :], rep, count, totals, critical)
        for number, rep in enumerate(window)
        if rep.day == day
    )


def _adds_up(others: Iterable[Rep], rep: Rep, count: int, totals: Sequence[int], critical: int) -> bool:
    """Whether `count` repetitions, this one and others, have one of the totals, and so many are critical."""
    scores: dict[bool, list[int]] = {True: [], False: []}
    for other in others:
        scores[_is_critical(other)].append(round(other.score * 1000))
    more_critical = critical - _is_critical(rep)
    sums = _sums(1 << round(rep.score * 1000), scores[True], more_critical)
    reached = _sums(sums, scores[False], count - 1 - more_critical)
    return any(reached >> total & 1 for total in totals)


def _sums(sums: int, scores: Iterable[int], count: int) -> int:
    """What `count` of the scores add up to, on top of any of the sums: a set, as the bits of a number."""
    if count < 0:
        return 0
    reached = [sums] + [0] * count
    for score in scores:
        for number in range(count, 0, -1):
            reached[number] |= reached[number - 1] << score
    return reached[count]


def _is_critical(rep: Rep) -> bool:
    return rep.score < Fraction(1, 2)


def _reps(nudge: Nudge, events: Iterable[Event]) -> list[Rep]:
    observed = (rep_of(event) for event in events if event.kind == "rep_observation")
    return [rep for rep in observed if rep.exercise_id == nudge.exercise_id]


def _sessions(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.kind == "exercise_session"]


def _returns(message: Message, events: Sequence[Event]) -> list[tuple[Event, Event]]:
    """An event of any other session, and the triggering event."""
    sessions = _sessions(events)
    return [
        (before, back)
        for back in sessions
        if back.event_id == message["triggered_by"]
        for before in sessions
        if before.session_id != back.session_id
    ]


def _days_between(before: Event, back: Event) -> int:
    return (back.start.date() - before.start.date()).days


def _is_of_last_day(nudge: Nudge, message: Message, event: Event) -> bool:
    day = event.start.date()
    stated = message["data"] == {"last_session_day": day.isoformat()}
    return stated and message["session_id"] is None and nudge.occasion == day_occasion(day)


def _was_silent(event: Event, days: int, message: Message) -> bool:
    return (parse_time(message["generated_at"]).date() - event.start.date()).days > days


def _is_about_session(nudge: Nudge, exercise_id: str | None, parts: Iterable[Event]) -> bool:
    return nudge.occasion == nudge.session_id and (exercise_id or "") in {part.exercise_id for part in parts}


_RULES: dict[tuple[str, str, str], Callable[[Nudge, Message, Sequence[Event]], bool]] = {
    ("missed_sessions", "nudge", "low"): _is_gap,
    ("missed_sessions", "alert", "medium"): _is_silence,
    ("extended_absence", "alert", "high"): _is_absence,
    ("short_session", "nudge", "low"): _is_short,
    ("poor_quality", "alert", "medium"): partial(_is_rated, at_least=0.0, under=0.5),
    ("quality_reminder", "nudge", "low"): partial(_is_rated, at_least=0.5, under=0.7),
    ("low_weekly_adherence", "alert", "medium"): partial(_is_rolling, days=7, applies=lambda avg: avg < 50),
    ("adherence_excellence", "nudge", "low"): partial(_is_rolling, days=28, applies=lambda avg: avg > 90),
    ("quality_degradation", "alert", "high"): _is_degraded,
    ("quality_improvement", "nudge", "low"): _is_improved,
}
_OF_SEVERAL_EVENTS = frozenset(nudge_type for nudge_type, _kind, _severity in _RULES)
