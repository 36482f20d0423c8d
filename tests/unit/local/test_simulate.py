"""The simulated stream, judged by the job's own validation, and the command around it."""

import json
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.simulate import SimulateError, main, parse_arguments, run
from local.simulation import Emission, Scenario, simulate
from transforms.dead_letters import DeadLetter
from transforms.events import KINDS, AlertFact, ConsentFact, Event, FeedbackFact, RepFact, SessionFact
from transforms.message import Message
from transforms.steps.validation import validate
from transforms.times import DAY_US, HOUR_US, to_micros

NOW_US = to_micros(datetime(2026, 3, 2, 14, 30, tzinfo=UTC))
# The defaults of run_local.sh: 200 events a second for 60 s.
SCENARIO = Scenario(events=12_000, patients=50, seed=1, now_us=NOW_US)


class Arrival(NamedTuple):
    emission: Emission
    events: list[Event]
    dead_letters: list[DeadLetter]


def receive(emission: Emission, now_us: int = NOW_US) -> Arrival:
    outcomes = validate(Message(emission.payload, emission.attributes, "s", "1", now_us), now_us)
    return Arrival(
        emission,
        [outcome for outcome in outcomes if isinstance(outcome, Event)],
        [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)],
    )


@cache
def arrivals() -> Sequence[Arrival]:
    return tuple(receive(emission) for emission in simulate(SCENARIO))


def originals() -> list[Arrival]:
    """Those that are neither late nor repeated nor bad."""
    return [a for a in arrivals() if not (a.emission.bad or a.emission.duplicates or a.emission.late)]


def contents(kind: str) -> list[dict[str, Any]]:
    events = (event for arrival in originals() for event in arrival.events if event.kind == kind)
    return [orjson.loads(event.message.payload) for event in events]


def is_timeless(event: Event) -> bool:
    return not {"ts", "timestamp"} & orjson.loads(event.message.payload).keys()


def assert_counted_right(scenario: Scenario, received: Sequence[Arrival]) -> None:
    """Each of the simulator's own figures is what the job will find."""
    seen: set[str] = set()
    duplicates = 0
    for emission, events, dead_letters in received:
        assert len(events) + len(dead_letters) == emission.events
        assert len(dead_letters) == emission.bad
        duplicates += sum(event.event_id in seen for event in events)
        seen |= {event.event_id for event in events}
    totals = [arrival.emission for arrival in received]
    assert sum(emission.events for emission in totals) == scenario.events
    assert sum(emission.bad for emission in totals) == int(scenario.events * scenario.bad)
    assert sum(emission.duplicates for emission in totals) == duplicates
    assert duplicates == int(scenario.events * scenario.duplicates)


def test_equal_scenarios_give_equal_streams() -> None:
    scenario = SCENARIO._replace(events=3000)
    assert list(simulate(scenario)) == list(simulate(scenario))


@pytest.mark.parametrize("other", [{"seed": 2}, {"now_us": NOW_US + 1000}], ids=["seed", "time"])
def test_another_seed_or_time_gives_other_events(other: dict[str, int]) -> None:
    first = {event.event_id for arrival in arrivals() for event in arrival.events}
    stream = simulate(SCENARIO._replace(events=3000)._replace(**other))
    assert not first & {event.event_id for emission in stream for event in receive(emission).events}


def test_every_event_is_what_the_simulator_says_it_is() -> None:
    assert_counted_right(SCENARIO, arrivals())


@settings(deadline=None, max_examples=60)
@given(
    st.builds(
        Scenario,
        events=st.integers(1, 400),
        patients=st.integers(1, 60),
        seed=st.integers(0, 2**32),
        now_us=st.integers(NOW_US - DAY_US, NOW_US),
        duplicates=st.floats(0, 0.5),
        late=st.floats(0, 0.3),
        bad=st.floats(0, 0.19),
    )
)
def test_every_small_scenario_comes_out_exactly(scenario: Scenario) -> None:
    assert_counted_right(scenario, [receive(emission, scenario.now_us) for emission in simulate(scenario)])


def test_the_late_share_is_met_and_late_means_overtaken() -> None:
    late = [arrival for arrival in arrivals() if arrival.emission.late]
    share = sum(arrival.emission.late for arrival in late) / SCENARIO.events
    assert 0.99 * SCENARIO.late <= share <= SCENARIO.late
    newest_us = 0
    for emission, events, _ in arrivals():
        timed = [event.ts_us for event in events if not is_timeless(event)]
        if emission.late and timed:
            assert max(timed) < newest_us
        newest_us = max([newest_us, *timed])


def test_without_a_late_share_nothing_is_late() -> None:
    stream = list(simulate(SCENARIO._replace(events=3000, late=0)))
    assert not any(emission.late for emission in stream)


def test_history_moves_forward_to_now() -> None:
    times = [
        max(event.ts_us for event in arrival.events)
        for arrival in originals()
        if not any(map(is_timeless, arrival.events))
    ]
    assert times == sorted(times)
    assert NOW_US - 28 * DAY_US <= times[0] < NOW_US - 27 * DAY_US
    assert NOW_US - HOUR_US < times[-1] <= NOW_US
    # Evenly: half of the stream is half of the time, give or take two days.
    assert abs(times[len(times) // 2] - (NOW_US - 14 * DAY_US)) < 2 * DAY_US


def test_only_a_few_late_events_are_more_than_28_days_behind_their_patient() -> None:
    newest: defaultdict[str, int] = defaultdict(int)
    too_late = []
    for emission, events, _ in arrivals():
        for event in events:
            assert event.ts_us <= NOW_US
            if event.ts_us < newest[event.patient_id] - 28 * DAY_US:
                too_late.append((emission, event))
            newest[event.patient_id] = max(newest[event.patient_id], event.ts_us)
    assert len(too_late) == SCENARIO.events * SCENARIO.late / 10
    assert all(emission.late and event.kind == "rep_observation" for emission, event in too_late)


def test_both_topics_are_used_and_duplicates_come_on_either() -> None:
    secondary = sum(arrival.emission.to_secondary for arrival in originals()) / len(originals())
    assert 0.2 < secondary < 0.3
    topics: dict[str, bool] = {}
    repeats: Counter[bool] = Counter()
    for emission, events, _ in arrivals():
        for event in events:
            if emission.duplicates:
                repeats[emission.to_secondary == topics[event.event_id]] += 1
            topics.setdefault(event.event_id, emission.to_secondary)
    assert repeats[False] > repeats[True] > 0


def test_all_kinds_in_many_spellings() -> None:
    kinds = Counter(event.kind for arrival in originals() for event in arrival.events)
    assert set(kinds) == set(KINDS)
    assert kinds["rep_observation"] > kinds["exercise_session"] > kinds["feedback"] > kinds["alert"]
    reps = contents("rep_observation")
    assert {name for rep in reps for name in rep} >= {"ts", "timestamp", "subject_id", "patient_id"}
    fields = {name for rep in reps for name in rep["body"]}
    assert fields >= {"quality_score", "rep_quality", "form_score", "form_issues", "form_errors", "anomalies"}
    zones = {rep.get("ts", rep.get("timestamp", ""))[23:] for rep in reps}
    assert zones == {"Z", "", "+02:00"}
    assert {event["meta"]["site_id"] for event in reps} == {"site-1", "site-2", "site-3"}


def test_arrays_and_events_without_id_or_time_are_there_but_rare() -> None:
    events = [event for arrival in originals() for event in arrival.events]
    arrays = sum(len(arrival.events) for arrival in originals() if len(arrival.events) > 1)
    without_id = sum("event_id" not in orjson.loads(event.message.payload) for event in events)
    timeless = sum(map(is_timeless, events))
    assert 0.02 < arrays / len(events) < 0.3
    assert 0 < without_id / len(events) < 0.01
    assert 0 < timeless / len(events) < 0.005


def test_attributes_name_the_single_event_of_a_message() -> None:
    for emission, events, _ in originals():
        named = {"event_id": events[0].event_id, "kind": events[0].kind}
        if "event_id" not in emission.attributes:
            named.pop("event_id")
        assert emission.attributes == ({} if len(events) > 1 else named)


def test_bad_ones_are_bad_for_every_reason() -> None:
    letters = [letter for arrival in arrivals() for letter in arrival.dead_letters]
    assert {letter.reason for letter in letters} == {
        "malformed_json",
        "not_an_event",
        "unknown_kind",
        "invalid_schema",
        "timestamp_out_of_range",
        "too_large",
    }
    assert any(not letter.message.payload for letter in letters)
    assert any(arrival.events and arrival.dead_letters for arrival in arrivals())


def test_sessions_begin_and_end() -> None:
    statuses: defaultdict[str, list[str]] = defaultdict(list)
    for arrival in arrivals():
        for event in arrival.events:
            if isinstance(event.fact, SessionFact):
                statuses[event.fact.session_id].append(event.fact.status)
    ends = Counter(tuple(sorted(set(stated))) for stated in statuses.values())
    assert ends["completed", "started"] > 0.7 * len(statuses)
    assert ends["partial", "started"] > 0
    assert ends["aborted", "started"] > 0
    assert ends["started",] > 0
    assert ends["completed",] > 0


def test_patients_take_different_courses() -> None:
    scores: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    days: defaultdict[str, set[int]] = defaultdict(set)
    for arrival in originals():
        for event in arrival.events:
            if isinstance(event.fact, RepFact):
                scores[event.patient_id].append((event.ts_us, event.fact.score))
            if isinstance(event.fact, SessionFact):
                days[event.patient_id].add(event.ts_us // DAY_US)
    courses = set()
    for observed in scores.values():
        first, last = (
            sum(score for at_us, score in observed if (at_us < NOW_US - 20 * DAY_US) == is_first)
            / max(1, sum((at_us < NOW_US - 20 * DAY_US) == is_first for at_us, _ in observed))
            for is_first in (True, False)
        )
        level = "low" if last < 0.5 else "high" if last > 0.85 else "middle"
        courses.add((level, "up" if last > first + 0.1 else "down" if last < first - 0.1 else "even"))
    assert courses >= {("middle", "up"), ("middle", "down"), ("low", "even"), ("high", "even")}
    gaps = [max(b - a for a, b in pairwise(sorted(d))) for d in days.values() if len(d) > 1]
    assert min(gaps) == 1
    assert max(gaps) > 7
    assert any(max(d) < NOW_US // DAY_US - 7 for d in days.values())
    assert sum(len(d) >= 28 for d in days.values()) >= 5


def test_pain_alerts_and_feedback_call_for_action() -> None:
    facts = [event.fact for arrival in originals() for event in arrival.events]
    pains = [fact.pain_level for fact in facts if isinstance(fact, SessionFact | FeedbackFact)]
    assert any(pain >= 7 for pain in pains if pain is not None)
    assert any(4 <= pain < 7 for pain in pains if pain is not None)
    alerts = [fact for fact in facts if isinstance(fact, AlertFact)]
    assert {"critical", "high", "medium", "low", None} == {alert.urgency for alert in alerts}
    steps = {alert.status for alert in alerts}
    assert steps == {None, "pending", "acknowledged", "in_review", "resolved", "dismissed"}
    feedback = [fact for fact in facts if isinstance(fact, FeedbackFact)]
    assert 0 < sum(fact.acknowledged for fact in feedback) < len(feedback) / 2
    assert any(issue for fact in facts if isinstance(fact, RepFact) for issue in fact.issues)


def test_one_patient_revokes_consent_and_one_grants_it_again() -> None:
    consents: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    others: defaultdict[str, list[int]] = defaultdict(list)
    for emission, events, _ in arrivals():
        for event in events:
            if isinstance(event.fact, ConsentFact):
                assert not emission.late
                if not emission.duplicates:
                    consents[event.patient_id].append((event.ts_us, event.fact.status))
            else:
                others[event.patient_id].append(event.ts_us)
    stories = Counter(tuple(status for _, status in sorted(story)) for story in consents.values())
    assert stories == {("granted",): 43, ("granted", "revoked"): 1, ("granted", "revoked", "granted"): 1}
    for patient, story in consents.items():
        for changed_us, _ in story[1:]:
            # Nothing that a change would withhold can overtake it, yet something is withheld.
            assert not any(changed_us <= at_us < changed_us + DAY_US for at_us in others[patient])
            assert any(changed_us < at_us for at_us in others[patient])


def test_more_events_are_more_repetitions_of_the_same_sessions() -> None:
    longer = Counter(
        event.kind
        for emission in simulate(SCENARIO._replace(events=36_000))
        if not (emission.bad or emission.duplicates or emission.late)
        for event in receive(emission).events
    )
    kinds = Counter(event.kind for arrival in originals() for event in arrival.events)
    assert longer["rep_observation"] > 3 * kinds["rep_observation"]
    assert abs(longer["exercise_session"] - kinds["exercise_session"]) < 0.1 * kinds["exercise_session"]


def test_a_file_holds_what_the_report_says(tmp_path: Path) -> None:
    lines, report = tmp_path / "events.jsonl", tmp_path / "report.json"
    arguments = [f"--output_file={lines}", f"--report={report}", "--rate=3000", "--seconds=1", "--bad=0.1"]
    run(parse_arguments([*arguments, "--now=2026-03-02T14:30:00Z"]), threading.Event())
    # All but the empty ones, which no line can hold.
    expected = [e for e in simulate(SCENARIO._replace(events=3000, bad=0.1)) if e.payload]
    assert lines.read_bytes() == b"".join(emission.payload + b"\n" for emission in expected)
    content = json.loads(report.read_bytes())
    assert to_micros(datetime.fromisoformat(content.pop("last_publish"))) > NOW_US
    assert content == {
        "published": sum(emission.events for emission in expected),
        "messages": len(expected),
        "bad": sum(emission.bad for emission in expected),
        "duplicates": sum(emission.duplicates for emission in expected),
        "late": sum(emission.late for emission in expected),
        "failed": 0,
        "finished": True,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "report.json"}


def test_a_run_that_is_stopped_still_reports(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    report = tmp_path / "report.json"
    run(parse_arguments([f"--output_file={tmp_path / 'events.jsonl'}", f"--report={report}"]), stop)
    content = json.loads(report.read_bytes())
    assert (content["published"], content["last_publish"], content["finished"]) == (0, None, True)


TOPICS = [
    "--primary_topic=projects/rehab-local/topics/one",
    "--secondary_topic=projects/rehab-local/topics/two",
]
FILE = ["--output_file=events.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--primary_topic"),
        (TOPICS[:1], "--secondary_topic"),
        ([*TOPICS, *FILE], "--output_file"),
        (["--primary_topic=one", TOPICS[1]], "--primary_topic"),
        ([*FILE, "--rate=0"], "--rate"),
        ([*FILE, "--rate=nan"], "--rate"),
        ([*FILE, "--rate=fast"], "--rate"),
        ([*FILE, "--seconds=-1"], "--seconds"),
        ([*FILE, "--rate=0.1", "--seconds=1"], "--rate times --seconds"),
        ([*FILE, "--patients=0"], "--patients"),
        ([*FILE, "--late=1"], "--late"),
        ([*FILE, "--bad=0.6", "--duplicates=0.4"], "--bad"),
        ([*FILE, "--now=yesterday"], "--now"),
        ([*FILE, "--now=2999-01-01T00:00:00Z"], "--now"),
        ([*FILE, "--speed=3"], "--speed"),
    ],
)
def test_wrong_arguments_are_refused_with_one_sentence(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SimulateError):
        parse_arguments(arguments)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.endswith(".\n")
    assert not printed.out


def test_the_command_does_not_load_beam() -> None:
    program = "import sys, local.simulate; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
