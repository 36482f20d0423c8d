"""Each worked example of docs/policy.md, fed to the rules: they say what the page prints."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from pydantic import BaseModel

from tests.support.beamless import BeamlessJob
from transforms.message import Message
from transforms.policy.rules import RULES
from transforms.policy.thresholds import Policy, policy_from
from transforms.projections.adherence import Adherence
from transforms.projections.projector import Output, RuleSettings
from transforms.projections.state import Trigger
from transforms.times import to_micros

PAGE = (Path(__file__).parents[4] / "docs/policy.md").read_text(encoding="utf-8")
SETTINGS = RuleSettings(nudge_max_age_hours=0)

Content = dict[str, Any]


def march(day: int, hour: int = 10, second: float = 0) -> datetime:
    return datetime(2025, 3, day, hour, tzinfo=UTC) + timedelta(seconds=second)


def session(time: datetime, **body: Any) -> Content:
    return event("exercise_session", time, completion_status="completed", **body)


def rep(time: datetime, score: float, **body: Any) -> Content:
    return event("rep_observation", time, quality_score=score, **body)


def event(kind: str, time: datetime, **body: Any) -> Content:
    return {"kind": kind, "ts": time.isoformat(), "subject_id": "p1", "body": body}


EXAMPLES: dict[str, list[Content]] = {
    "Missed sessions: a gap": [session(march(3)), session(march(8))],
    "Extended absence": [session(march(3)), session(march(12))],
    "Short session": [session(march(3), duration_minutes=8)],
    "Low weekly adherence": [session(march(day)) for day in (3, 6, 9, 10)],
    "Adherence excellence": [
        session(march(3 + 7 * week + day), prescribed_sessions_per_week=3)
        for week in range(5)
        for day in (0, 2, 4)
        if week < 4 or day == 0
    ],
    "Poor quality": [session(march(3), overall_quality=0.42)],
    "Quality reminder": [session(march(3), overall_quality=0.65)],
    "Quality degradation": [rep(march(3, second=number), 0.65) for number in range(20)],
    "Quality improvement": [rep(march(day), 0.90) for day in (3, 7, 12, 16)],
    "Form correction": [
        rep(march(3), 0.8, form_issues=[{"type": "knee_valgus", "severity": "major"}, "hip_drop"])
    ],
    "Rep quality": [rep(march(3), 0.55)],
    "Severe pain": [session(march(3), pain_level=8)],
    "Moderate pain": [event("feedback", march(3), pain_level=5)],
    "Critical alert": [event("alert", march(3), alert_id="a1", alert_type="fall", urgency="critical")],
}
SILENCE = "Missed sessions: silence"


def printed() -> dict[str, Content]:
    sections = re.findall(r"^### ([^\n]+)\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return {
        title: json.loads(match[1])
        for title, text in sections
        if (match := re.search(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    }


def taken(events: list[Content], now: datetime) -> BeamlessJob:
    hand = BeamlessJob(SETTINGS, to_micros(now))
    hand.take(Message(orjson.dumps(each), {}, "", "", to_micros(now)) for each in events)
    return hand


def of_type(nudges: list[Content], type_: str) -> list[Content]:
    shown = ("kind", "type", "severity", "data")
    return [{name: nudge[name] for name in shown} for nudge in nudges if nudge["type"] == type_]


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_rules_say_what_the_example_prints(title: str) -> None:
    nudge = printed()[title]
    hand = taken(EXAMPLES[title], datetime(2025, 4, 1, tzinfo=UTC))
    assert of_type(hand.nudges, nudge["type"]) == [nudge]


def test_a_timer_says_what_the_example_of_silence_prints() -> None:
    hand = taken(EXAMPLES["Short session"], march(3, 11))
    adherence = Adherence(SETTINGS)
    state = adherence.state_type.decode(hand.states[0, "p1"])
    assert said_at(adherence, state, march(5, 23)) == []
    assert of_type(said_at(adherence, state, march(6, 0)), "missed_sessions") == [printed()[SILENCE]]


def said_at(adherence: Adherence, state: Any, time: datetime) -> list[Content]:
    output, now_us = Output(), to_micros(time)
    adherence.project(adherence.wake(state, now_us), Trigger("p1", None, now_us), now_us, output)
    return [orjson.loads(nudge.body) for nudge in output.nudges]


def test_rep_quality_stays_silent_for_as_long_as_the_example_says() -> None:
    reps = [rep(march(3, second=second), 0.55) for second in (0, 20, 30)]
    hand = taken(reps, march(4))
    assert len(of_type(hand.nudges, "rep_quality")) == 2


def test_every_rule_has_an_example() -> None:
    assert set(printed()) == {*EXAMPLES, SILENCE}
    shown = {(nudge["type"], nudge["kind"]) for nudge in printed().values()}
    assert shown == {(rule.type, rule.kind) for rule in RULES.values()}


def test_the_policy_file_names_every_threshold_with_its_built_in_value() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    content = yaml.safe_load(text)
    assert policy_from(content) == Policy()
    assert set(names_of(Policy())) == {(rule, name) for rule, values in content.items() for name in values}


def test_every_threshold_is_explained_with_its_built_in_value() -> None:
    rules = PAGE[: PAGE.index("## The policy file")]
    stated = re.findall(r"`(\w+)\.(\w+)`\s\((\d+(?:\.\d+)?)\)", rules)
    assert {(rule, name): float(value) for rule, name, value in stated} == names_of(Policy())


def names_of(policy: Policy) -> dict[tuple[str, str], float]:
    return dict(_thresholds(policy))


def _thresholds(policy: Policy) -> Iterator[tuple[tuple[str, str], float]]:
    rules: dict[str, BaseModel] = dict(policy)
    for rule, thresholds in rules.items():
        for name, value in thresholds:
            yield (rule, name), float(value)
