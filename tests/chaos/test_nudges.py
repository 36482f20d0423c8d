"""The judge of nudges: it lets through what some order of arrival gives, and nothing else."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple

import orjson
import pytest
import yaml

from tests.chaos.nudges import POLICY, Verdict, judge
from tests.chaos.story import Sent, Story, tell
from tests.support.beamless import BeamlessJob
from tests.support.oracle import Arrival, expected
from transforms.message import Message
from transforms.policy.findings import Finding
from transforms.policy.nudges import Origin, announce
from transforms.policy.rules import RuleName
from transforms.policy.thresholds import policy_from
from transforms.projections.projector import RuleSettings
from transforms.times import iso_date, to_micros

_BEGIN = datetime(2026, 2, 28, 12, tzinfo=UTC)
_END_US = to_micros(_BEGIN + timedelta(days=31))


def day(number: int) -> int:
    """The day-th of March 2026, as the job counts days."""
    return (_BEGIN + timedelta(days=number)).toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()


def event(kind: str, event_id: str, on: int, exercise_id: str = "squat", **body: Any) -> Arrival:
    at = _BEGIN + timedelta(days=on, seconds=int(event_id[1:]))
    envelope = {"event_id": event_id, "kind": kind, "ts": at.isoformat(), "subject_id": "p"}
    return Arrival(envelope | {"exercise_id": exercise_id, "body": body}, to_micros(at))


def sessions(*days: int) -> list[Arrival]:
    """A completed session on each of the days, whose id is s and the day."""
    return [event("exercise_session", f"s{on}", on, completion_status="completed") for on in days]


def parts(*bodies: dict[str, Any]) -> list[Arrival]:
    """Events s0, s1, … of the session "one", on the first."""
    return [
        event("exercise_session", f"s{number}", 1, session_id="one", **body)
        for number, body in enumerate(bodies)
    ]


def reps(on: int, *scores: float) -> list[Arrival]:
    return [
        event("rep_observation", f"r{on * 100 + number}", on, quality_score=score)
        for number, score in enumerate(scores)
    ]


def finding(rule: RuleName, occasion: object, data: dict[str, Any], **more: Any) -> Finding:
    stated: dict[str, Any] = {"exercise_id": "", "session_id": None, "triggered_by": None}
    return Finding(rule, str(occasion), at_us=0, newest_us=0, data=data, **stated | more)


def of_session(rule: RuleName, data: dict[str, Any], triggered_by: str) -> Finding:
    """Of the session "one"."""
    return finding(rule, "one", data, session_id="one", exercise_id="squat", triggered_by=triggered_by)


def judged(
    arrivals: Sequence[Arrival],
    findings: Iterable[Finding],
    uploads: frozenset[str] = frozenset(),
    hidden: frozenset[str] = frozenset(),
) -> Verdict:
    nudges = [announce(Origin("p", None, None, 0), each, _END_US) for each in findings]
    story = Story([], list(arrivals), uploads, hidden, {}, expected(arrivals))
    return judge([orjson.loads(nudge.body) for nudge in nudges], story)


def said_without_beam(messages: Sequence[Sent]) -> list[dict[str, Any]]:
    """What a job says to which they arrive one by one."""
    settings = RuleSettings(policy=policy_from(yaml.safe_load(POLICY)), nudge_max_age_hours=0)
    job = BeamlessJob(settings, to_micros(datetime.now(UTC)))
    for number, message in enumerate(messages):
        job.take([Message(message.payload, {}, "test", str(number), job.now_us)])
    return job.nudges


class Case(NamedTuple):
    """What some of the events give and all of them do not, and changes that no events give."""

    arrivals: list[Arrival]
    possible: Finding
    changes: list[dict[str, Any]]


def last_day(number: int) -> dict[str, Any]:
    return {"occasion": str(day(number)), "data": {"last_session_day": iso_date(day(number))}}


def window(average: float, reps: int, critical: float = 0.0) -> dict[str, Any]:
    return {"average_quality": average, "critical_issues_percentage": critical, "total_reps": reps}


CASES = {
    "gap": Case(
        sessions(1, 3, 6),
        finding("gap", day(6), {"gap_days": 5}, session_id="s6", triggered_by="s6"),
        [
            {"data": {"gap_days": 4}},
            {"data": {"gap_days": 3}},
            {"occasion": str(day(7))},
            {"session_id": "s3"},
            {"triggered_by": "s3"},
            {"triggered_by": None},
        ],
    ),
    "silence": Case(
        sessions(1, 6, 11),
        finding("silence", **last_day(1)),
        [last_day(2), last_day(6), {"occasion": str(day(6))}, {"triggered_by": "s1"}],
    ),
    "absence by silence": Case(
        sessions(2, 7, 12, 29), finding("absence", **last_day(2)), [last_day(3), last_day(29)]
    ),
    "absence by return": Case(
        sessions(1, 6, 11),
        finding("absence", **last_day(1), triggered_by="s11"),
        [last_day(6), last_day(2), {"triggered_by": "s6"}, {"triggered_by": "s1"}],
    ),
    "short": Case(
        parts({"duration_minutes": 5}, {"completion_status": "completed", "duration_minutes": 30}),
        of_session("short_session", {"duration_minutes": 5.0}, "s0"),
        [
            {"data": {"duration_minutes": 4.0}},
            {"data": {"duration_minutes": 30.0}, "triggered_by": "s1"},
            {"triggered_by": "s1"},
            {"exercise_id": "bridge"},
            {"occasion": "s0"},
        ],
    ),
    "short, never completed without a longer duration": Case(
        parts(
            {"duration_minutes": 9, "completion_status": "completed"},
            {"duration_minutes": 5, "completion_status": "partial"},
            {"duration_minutes": 30},
        ),
        of_session("short_session", {"duration_minutes": 9.0}, "s0"),
        [{"rule": "poor_quality"}, {"data": {"duration_minutes": 30.0}, "triggered_by": "s2"}],
    ),
    "poor": Case(
        parts({"overall_quality": 0.4}, {"overall_quality": 0.6}, {"overall_quality": 0.9}),
        of_session("poor_quality", {"overall_quality": 0.4}, "s0"),
        [
            {"data": {"overall_quality": 0.3}},
            {"data": {"overall_quality": 0.6}, "triggered_by": "s1"},
            {"triggered_by": "s1"},
            {"session_id": "two", "occasion": "two"},
            {"exercise_id": "bridge"},
        ],
    ),
    "reminder": Case(
        parts({"overall_quality": 0.4}, {"overall_quality": 0.6}, {"overall_quality": 0.9}),
        of_session("quality_reminder", {"overall_quality": 0.6}, "s1"),
        [
            {"data": {"overall_quality": 0.4}, "triggered_by": "s0"},
            {"data": {"overall_quality": 0.9}, "triggered_by": "s2"},
            {"triggered_by": "s2"},
        ],
    ),
    "low adherence": Case(
        [
            *sessions(1, 3, 6, 8),
            event("exercise_session", "s10", 10, duration_minutes=30, prescribed_sessions_per_week=3),
        ],
        finding(
            "low_weekly_adherence",
            day(10),
            {"rolling_7day_avg": 33.333333},
            session_id="s10",
            triggered_by="s10",
        ),
        [
            {"data": {"rolling_7day_avg": 0.0}},
            {"data": {"rolling_7day_avg": 25.0}},
            {"data": {"rolling_7day_avg": 66.666667}},
            {"occasion": str(day(8))},
            {"session_id": "s8"},
            # Less than seven days after the first.
            {"occasion": str(day(6)), "session_id": "s6", "triggered_by": "s6"},
        ],
    ),
    "excellent adherence": Case(
        [
            event("exercise_session", "s99", 1, duration_minutes=30),
            *sessions(8, 15, 22),
            event("exercise_session", "s29", 29, duration_minutes=30, prescribed_sessions_per_week=1),
            event("exercise_session", "s30", 29, prescribed_sessions_per_week=14),
        ],
        finding(
            "adherence_excellence",
            day(29),
            {"rolling_28day_avg": 100.0},
            session_id="s29",
            triggered_by="s29",
        ),
        [
            {"data": {"rolling_28day_avg": 95.0}},
            {"data": {"rolling_28day_avg": 75.0}},
            {"occasion": str(day(22)), "session_id": "s22", "triggered_by": "s22"},
        ],
    ),
    "degradation": Case(
        [*reps(3, *[0.6] * 20, *[1.0] * 20), *reps(20, 0.9)],
        finding("quality_degradation", day(3), window(0.6, 20), exercise_id="squat"),
        [
            {"data": window(0.6, 19)},
            {"data": window(-0.6, 20)},
            {"data": window(0.6, 41)},
            {"data": window(0.59, 20)},
            {"data": window(0.61, 20)},
            {"data": window(0.6, 20, 30.0)},
            {"data": window(0.8, 40)},
            {"occasion": str(day(4))},
            {"occasion": "r300", "triggered_by": "r300"},
            {"exercise_id": "bridge"},
        ],
    ),
    "degradation by critical ones": Case(
        reps(3, *[0.4] * 6, *[0.9] * 14, *[1.0] * 20),
        finding("quality_degradation", day(3), window(0.75, 20, 30.0), exercise_id="squat"),
        [{"data": window(0.75, 20, 35.0)}, {"data": window(0.8, 20, 25.0)}],
    ),
    "improvement": Case(
        [*reps(1, 0.9), *reps(8, 0.5), *reps(14, 0.95, 0.87)],
        finding("quality_improvement", day(14), window(0.95, 1), exercise_id="squat"),
        [
            {"data": window(0.5, 1, 100.0)},
            {"data": window(0.96, 1)},
            {"data": window(0.91, 3)},
            {"occasion": str(day(8))},
            {"occasion": str(day(13))},
        ],
    ),
    "improvement without a good beginning": Case(
        [*reps(1, 0.9), *reps(2, 0.5), *reps(14, 0.95), *reps(15, 0.95)],
        finding("quality_improvement", day(14), window(0.95, 1), exercise_id="squat"),
        [{"exercise_id": ""}],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_some_of_the_events_give_is_not_unexpected(case: Case) -> None:
    assert judged(case.arrivals, [case.possible]).unexpected == set()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_where_the_events_arrive_together(case: Case) -> None:
    assert len(judged(case.arrivals, [case.possible], uploads=frozenset("p")).unexpected) == 1


@pytest.mark.parametrize(
    ("case", "change"),
    [(case, change) for case in CASES.values() for change in case.changes],
    ids=[f"{name}: {change}" for name, case in CASES.items() for change in case.changes],
)
def test_what_no_events_give_is_unexpected(case: Case, change: dict[str, Any]) -> None:
    fabricated = case.possible._replace(**change)
    assert len(judged(case.arrivals, [fabricated]).unexpected) == 1
    assert len(judged(case.arrivals, [fabricated], hidden=frozenset("p")).unexpected) == 1


ONE_EVENT = [
    *reps(1, 0.5, 0.9),
    event("rep_observation", "r9", 1, quality_score=0.9, form_issues=["lean"]),
    event("feedback", "f1", 1, pain_level=5),
    event("alert", "a1", 1, alert_id="fall", alert_type="fall", urgency="critical"),
    event("alert", "a2", 1, alert_id="call", alert_type="call", urgency="medium"),
]
SAID_OF_ONE = [
    finding("rep_quality", "r100", {}, exercise_id="squat", triggered_by="r100"),
    finding("form_minor", "r9", {}, exercise_id="squat", triggered_by="r9"),
    finding("pain_alert", "f1", {}, exercise_id="squat", triggered_by="f1"),
    finding("critical_alert", "fall", {"alert_id": "fall"}, triggered_by="a1"),
]
NOT_SO = [
    SAID_OF_ONE[0]._replace(occasion="r101", triggered_by="r101"),
    SAID_OF_ONE[1]._replace(rule="form_major"),
    SAID_OF_ONE[1]._replace(occasion="r100", triggered_by="r100"),
    SAID_OF_ONE[2]._replace(rule="pain_emergency"),
    SAID_OF_ONE[2]._replace(exercise_id="bridge"),
    SAID_OF_ONE[3]._replace(occasion="call", data={"alert_id": "call"}, triggered_by="a2"),
    SAID_OF_ONE[3]._replace(occasion="nothing known"),
    SAID_OF_ONE[3]._replace(exercise_id="squat"),
    SAID_OF_ONE[3]._replace(triggered_by="an event of another patient"),
]


def test_what_is_said_of_one_event_is_wanted_exactly() -> None:
    assert judged(ONE_EVENT, SAID_OF_ONE * 2) == Verdict(4, set(), set())
    for said in SAID_OF_ONE:
        assert len(judged(ONE_EVENT, [each for each in SAID_OF_ONE if each != said]).missing) == 1


@pytest.mark.parametrize("fabricated", NOT_SO)
def test_what_is_not_so_of_one_event_is_unexpected(fabricated: Finding) -> None:
    assert len(judged(ONE_EVENT, [*SAID_OF_ONE, fabricated]).unexpected) == 1


@pytest.mark.parametrize(
    ("said", "exercise", "missing"), [(3, "squat", 0), (9, "squat", 0), (10, "squat", 1), (9, "bridge", 1)]
)
def test_a_rule_on_days_may_have_spoken_of_a_day_nearby(said: int, exercise: str, missing: int) -> None:
    arrivals = [*reps(3, *[0.6] * 20), *reps(9, 0.6), *reps(10, 0.6)]
    told = finding("quality_degradation", day(said), window(0.6, 20), exercise_id=exercise)

    assert len(judged(arrivals, [told]).missing) == missing
    assert len(judged(arrivals, [told], uploads=frozenset("p")).missing) == int(said != 3)
    assert judged(arrivals, [told], hidden=frozenset("p")).missing == set()


def test_every_other_rule_has_to_have_spoken() -> None:
    arrivals = [*sessions(1, 5, 14), *parts({"overall_quality": 0.3, "duration_minutes": 4})]
    assert {nudge.type for nudge in judged(arrivals, []).missing} == {
        "missed_sessions",
        "extended_absence",
        "low_weekly_adherence",
        "poor_quality",
        "short_session",
    }


@pytest.mark.parametrize("seed", range(3))
def test_a_job_that_is_killed_says_nothing_else_in_any_order(seed: int) -> None:
    story, rng = tell(1500, seed), Random(seed)
    killed = said_without_beam(story.messages[: rng.randrange(len(story.messages))])
    rebuilt = said_without_beam(rng.sample(story.messages, len(story.messages)))

    verdict = judge(killed + rebuilt, story)
    assert (verdict.missing, verdict.unexpected) == (set(), set())
