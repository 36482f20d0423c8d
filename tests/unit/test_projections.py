"""The projections against the independent calculation, in any order of arrival."""

from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.by_hand import ByHand, bundles
from tests.oracle import Arrival, Options, assert_nudges_equal, assert_rows_equal, current_rows, expected
from tests.strategies import arrival_orders, arrival_sets, in_time_order, random_arrivals
from transforms.consent import CONSENT_MODES, ConsentMode
from transforms.projection import Settings
from transforms.times import to_micros

NOW = datetime(2025, 4, 2, tzinfo=UTC)
TABLES = ("adherence", "quality", "work_queue")


def run(arrivals: Sequence[Arrival], rng: Random, consent: ConsentMode = "enforce") -> ByHand:
    by_hand = ByHand(Settings(consent=consent, nudge_max_age_hours=0), to_micros(NOW))
    for bundle in bundles(arrivals, rng):
        by_hand.take(bundle)
    assert not by_hand.dead_letters
    return by_hand


def check_rows(by_hand: ByHand, arrivals: Sequence[Arrival], options: Options) -> None:
    wanted = expected(arrivals, options)
    for table in TABLES:
        actual = current_rows(by_hand.rows[table], table, by_hand.rows["consents"])
        assert_rows_equal(actual, getattr(wanted, table), table)
    withheld = {event_id for event_id, outcome in by_hand.outcomes.items() if outcome == "withheld"}
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
    by_hand = ByHand(Settings(nudge_max_age_hours=0), to_micros(NOW))
    messages = [message for bundle in bundles(arrivals, rng) for message in bundle]
    by_hand.take(messages)
    wanted = expected(arrivals, Options(now=NOW, rep_feedback=True)).nudges
    assert_nudges_equal(by_hand.nudges, wanted, rep_feedback=True)
