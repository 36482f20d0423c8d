"""The projections against the independent calculation, in any order of arrival."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.beamless import BeamlessJob, bundles
from tests.support.oracle import (
    Arrival,
    Options,
    absences,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
    parse_time,
    too_late,
)
from tests.support.strategies import (
    Consents,
    arrival_orders,
    arrival_sets,
    in_time_order,
    long_histories,
    random_arrivals,
)
from transforms.events import Event, parse_event
from transforms.message import Message
from transforms.projections.adherence import Adherence, AdherenceState
from transforms.projections.consent import CONSENT_MODES, ConsentMode
from transforms.projections.projector import Output, RuleSettings
from transforms.projections.state import ALWAYS, PatientState, Trigger
from transforms.times import to_micros

NOW = datetime(2025, 4, 2, tzinfo=UTC)
TABLES = ("adherence", "quality", "work_queue")


def run(arrivals: Sequence[Arrival], rng: Random, consent: ConsentMode = "enforce") -> BeamlessJob:
    job = BeamlessJob(RuleSettings(consent=consent, nudge_max_age_hours=0), to_micros(NOW))
    for bundle in bundles(arrivals, rng):
        job.take(bundle)
    assert not job.dead_letters
    return job


def check_rows(job: BeamlessJob, arrivals: Sequence[Arrival], options: Options) -> None:
    wanted = expected(arrivals, options)
    for table in TABLES:
        actual = current_rows(job.rows[table], table, job.rows["consents"])
        assert_rows_equal(actual, getattr(wanted, table), table)
    withheld = {event_id for event_id, outcome in job.outcomes.items() if outcome == "withheld"}
    assert withheld == wanted.withheld


@given(arrivals=arrival_sets(consents="any"), rng=st.randoms(use_true_random=False))
def test_current_rows_equal_the_independent_calculation(arrivals: list[Arrival], rng: Random) -> None:
    arrivals = arrival_orders(arrivals, rng)
    check_rows(run(arrivals, rng), arrivals, Options(now=NOW))


@pytest.mark.parametrize("consent", CONSENT_MODES)
@pytest.mark.parametrize("seed", range(10))
def test_realistic_histories(seed: int, consent: ConsentMode) -> None:
    rng = Random(seed)
    arrivals = arrival_orders(random_arrivals(rng, consents="any"), rng)
    check_rows(run(arrivals, rng, consent), arrivals, Options(now=NOW, consent=consent))


@given(arrivals=arrival_sets(consents="harmless"), rng=st.randoms(use_true_random=False))
def test_consents_that_withhold_nothing_may_arrive_at_any_time(arrivals: list[Arrival], rng: Random) -> None:
    rng.shuffle(arrivals)
    check_rows(run(arrivals, rng), arrivals, Options(now=NOW))


@settings(max_examples=50)
@given(arrivals=arrival_sets(consents="none"), rng=st.randoms(use_true_random=False))
def test_nudges_equal_the_independent_calculation(arrivals: list[Arrival], rng: Random) -> None:
    arrivals = in_time_order(arrivals)
    job = BeamlessJob(RuleSettings(nudge_max_age_hours=0), to_micros(NOW))
    messages = [message for bundle in bundles(arrivals, rng) for message in bundle]
    job.take(messages)
    wanted = expected(arrivals, Options(now=NOW, rep_feedback=True)).nudges
    assert_nudges_equal(job.nudges, wanted, rep_feedback=True)


KINDS = ("exercise_session", "rep_observation", "alert", "feedback", "consent")


@pytest.mark.parametrize("consent", CONSENT_MODES)
@given(arrivals=long_histories(*KINDS), rng=st.randoms(use_true_random=False))
def test_what_arrives_together_is_judged_by_the_newest_of_it(
    consent: ConsentMode, arrivals: list[Arrival], rng: Random
) -> None:
    rng.shuffle(arrivals)
    job = BeamlessJob(RuleSettings(consent=consent), to_micros(datetime(2045, 1, 1, tzinfo=UTC)))
    together: list[list[Arrival]] = []
    for bundle in bundles(arrivals, rng):
        together.append([arrivals[int(message.message_id)] for message in bundle])
        job.take(bundle)
    late = {event_id for event_id, outcome in job.outcomes.items() if outcome == "too_late"}
    assert late == too_late(together, Options(consent=consent))


@given(arrivals=long_histories("exercise_session"))
def test_every_absence_of_a_long_stream_is_said_once_and_stays_in_the_queue(arrivals: list[Arrival]) -> None:
    job = BeamlessJob(RuleSettings(nudge_max_age_hours=0), to_micros(datetime(2045, 1, 1, tzinfo=UTC)))
    for arrival in sorted(arrivals, key=lambda arrival: _begun(arrival)):
        job.take(bundles([arrival], Random(1))[0])
    wanted = sorted(json.dumps(data) for _, data in absences(arrivals))
    said = [nudge["data"] for nudge in job.nudges if nudge["type"] == "extended_absence"]
    assert sorted(map(json.dumps, said)) == wanted
    items = [json.loads(row["context"]) for row in current_rows(job.rows["work_queue"], "work_queue")]
    filed = [item["data"] for item in items if item["type"] == "extended_absence"]
    assert sorted(map(json.dumps, filed)) == wanted


def _begun(arrival: Arrival) -> datetime:
    return parse_time(arrival.envelope["body"]["start_time"])


class FromScratch(BeamlessJob):
    """Calculates everything again at each step, instead of what the events at hand may have changed."""

    def __init__(self, settings: RuleSettings, now_us: int) -> None:
        super().__init__(settings, now_us)
        for projector in self.projectors:
            projector.project = partial(self._project_all, projector.project)  # type: ignore[method-assign]

    @staticmethod
    def _project_all(project: Callable[..., None], state: PatientState, *rest: Any) -> None:
        state.changed_since = ALWAYS
        project(state, *rest)


@pytest.mark.parametrize("consents", ["none", "any"])
@pytest.mark.parametrize("seed", range(15))
def test_what_has_not_changed_need_not_be_calculated_again(seed: int, consents: Consents) -> None:
    rng = Random(seed)
    arrivals = arrival_orders(random_arrivals(rng, consents=consents), rng)
    partly, wholly = (
        kind(RuleSettings(nudge_max_age_hours=0), to_micros(NOW)) for kind in (BeamlessJob, FromScratch)
    )
    for bundle in bundles(arrivals, rng):
        partly.take(bundle)
        wholly.take(bundle)
    for table in TABLES:
        actual, wanted = (
            current_rows(each.rows[table], table, each.rows["consents"]) for each in (partly, wholly)
        )
        assert_rows_equal(actual, wanted, table)
    identifiers = [sorted(nudge["nudge_id"] for nudge in each.nudges) for each in (partly, wholly)]
    assert identifiers[0] == identifiers[1]


def piece(event_id: str, ts: str, start: str | None = None, session_id: str = "s") -> Arrival:
    """A part of a session, which begins when its earliest part says."""
    body = {"session_id": session_id, "start_time": start or ts, "completion_status": "partial"}
    envelope = {"event_id": event_id, "kind": "exercise_session", "ts": ts, "subject_id": "p", "body": body}
    return Arrival(envelope, to_micros(datetime.fromisoformat(ts)))


SUNDAY, MONDAY = piece("early", "2025-03-16T23:00:00Z"), piece("late", "2025-03-17T01:00:00Z")


def test_the_first_session_may_turn_out_to_have_begun_later() -> None:
    # Of two parts with one time, the one with the lower id is the earlier one.
    arrivals = [
        piece("b", "2025-03-22T00:30:00Z", start="2025-03-21T14:30:00Z", session_id="first"),
        piece("a", "2025-03-22T00:30:00Z", start="2025-03-22T00:00:00Z", session_id="first"),
        # Seven days after the one, six after the other: only seven days make a low adherence.
        piece("c", "2025-03-28T00:00:00Z"),
    ]
    job = BeamlessJob(RuleSettings(nudge_max_age_hours=0), to_micros(NOW))
    for arrival in arrivals:
        job.take(bundles([arrival], Random(1))[0])
    check_rows(job, arrivals, Options(now=NOW))
    assert "low_weekly_adherence" not in {nudge["type"] for nudge in job.nudges}


def check_rebuild(seen: Sequence[Arrival], arrivals: Sequence[Arrival], rng: Random) -> None:
    """A job that had `seen` some events is killed, and the next one builds its state again from all."""
    killed = run(seen, rng)
    settings = RuleSettings(nudge_max_age_hours=0, rebuilt_since_us=to_micros(NOW - timedelta(days=40)))
    rebuilt = BeamlessJob(settings, killed.now_us + 1)
    for bundle in bundles(arrivals, rng):
        rebuilt.take(bundle)
    wanted = expected(arrivals, Options(now=NOW))
    for table in TABLES:
        # The policy's items are taken back in BigQuery, before the rebuild begins.
        earlier = [row for row in killed.rows[table] if row.get("item_type") != "review"]
        actual = current_rows([*earlier, *rebuilt.rows[table]], table, rebuilt.rows["consents"])
        assert_rows_equal(actual, getattr(wanted, table), table)


def test_a_rebuild_hides_a_week_that_a_killed_job_took_a_session_to_be_in() -> None:
    check_rebuild([MONDAY], [SUNDAY, MONDAY], Random(1))


@given(arrivals=arrival_sets(consents="harmless"), rng=st.randoms(use_true_random=False))
def test_a_rebuild_leaves_nothing_of_what_a_killed_job_took_for_true(
    arrivals: list[Arrival], rng: Random
) -> None:
    rng.shuffle(arrivals)
    seen = arrivals[: rng.randrange(len(arrivals) + 1)]
    rng.shuffle(arrivals)
    check_rebuild(seen, arrivals, rng)


def test_a_rebuild_says_nothing_of_weeks_of_which_events_may_not_come_again() -> None:
    settings = RuleSettings(rebuilt_since_us=to_micros(datetime(2025, 3, 12, tzinfo=UTC)))
    rebuilt = BeamlessJob(settings, to_micros(NOW))
    for bundle in bundles([MONDAY], Random(1)):
        rebuilt.take(bundle)
    assert [row["week_start"] for row in rebuilt.rows["adherence"]] == ["2025-03-17"]


def test_another_consent_mode_shows_or_hides_a_patient_at_the_next_event() -> None:
    now_us = to_micros(NOW)
    message = Message(b"", {}, "s", "m", now_us)

    def event(kind: str, **body: Any) -> Event:
        content = {"event_id": kind, "kind": kind, "subject_id": "p1", "body": body}
        return parse_event(content, message, now_us)

    def visible(mode: ConsentMode, *events: Event) -> list[bool]:
        projector, output = Adherence(RuleSettings(consent=mode)), Output()
        trigger = Trigger("p1", "e", now_us)
        for each in events:
            projector.apply(state, each, trigger, now_us, output)
        projector.project(state, trigger, now_us, output)
        return [json.loads(row.body)["visible"] for table, row in output.rows if table == "consents"]

    state, session = AdherenceState(), event("exercise_session", completion_status="completed")
    assert visible("off", event("consent", status="revoked"), session) == [True]
    state = AdherenceState.decode(state.encode())
    assert visible("enforce", session) == [False]
    state = AdherenceState.decode(state.encode())
    assert visible("enforce", session) == []
    assert visible("off", session) == [True]
