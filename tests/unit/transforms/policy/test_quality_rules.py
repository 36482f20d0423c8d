"""Quality that slips or improves: docs/contract.md, 5.2. Each example is worked out by hand."""

import pytest

from tests.support.examples import Calculation, at, reps


def test_quality_degradation_by_average(calculated: Calculation) -> None:
    degradation = ("quality_degradation", "alert", "high")
    assert calculated.fired(*reps(3, [0.69] * 19)) == []
    assert calculated.fired(*reps(3, [0.69] * 20)) == [degradation]
    assert calculated.fired(*reps(3, [0.7] * 20)) == []
    assert calculated.fired(*reps(3, [0.69] * 19), *reps(4, [0.69], "other")) == []


def test_quality_degradation_by_critical_share(calculated: Calculation) -> None:
    assert calculated.fired(*reps(3, [0.49] * 6 + [0.9] * 14)) == [("quality_degradation", "alert", "high")]
    assert calculated.fired(*reps(3, [0.49] * 5 + [0.9] * 15)) == []
    assert calculated.fired(*reps(3, [0.5] * 6 + [0.9] * 14)) == []


def test_quality_degradation_looks_back_7_days(calculated: Calculation) -> None:
    assert calculated.fired(*reps(3, [0.69] * 19), *reps(10, [0.69])) == []
    assert calculated.fired(*reps(3, [0.69] * 19), *reps(9, [0.69])) == [
        ("quality_degradation", "alert", "high")
    ]


def test_quality_degradation_is_repeated_after_7_days(calculated: Calculation) -> None:
    arrivals = [*reps(3, [0.6] * 10), *reps(4, [0.6] * 10), *reps(10, [0.6] * 20), *reps(11, [0.6] * 20)]
    # 3 March has 10 reps; 4 March is the first candidate, then 11 March.
    assert calculated.item_times("quality_degradation", *arrivals) == [at(4), at(11)]
    assert calculated.expected(arrivals).nudges[0].exercise_id == "squat"


def test_quality_improvement(calculated: Calculation) -> None:
    improvement = [("quality_improvement", "nudge", "low")]
    assert calculated.fired(*reps(3, [0.9]), *reps(15, [0.9])) == []
    assert calculated.fired(*reps(3, [0.9]), *reps(16, [0.9])) == improvement
    assert calculated.fired(*reps(3, [0.85]), *reps(16, [0.9])) == []
    assert calculated.fired(*reps(3, [0.9]), *reps(10, [0.8]), *reps(16, [0.9])) == []
    assert calculated.fired(*reps(3, [0.9]), *reps(16, [0.9]), *reps(29, [0.9])) == improvement
    assert calculated.fired(*reps(3, [0.9]), *reps(16, [0.9]), *reps(30, [0.9])) == improvement * 2


def test_quality_improvement_looks_back_14_days_of_7_day_averages(calculated: Calculation) -> None:
    improvement = [("quality_improvement", "nudge", "low")]
    assert calculated.fired(*reps(3, [0.8]), *reps(17, [0.9])) == improvement
    # 9 March averages 0.875 thanks to the days before; the 7 days that end on 16 March leave it out.
    assert (
        calculated.fired(*reps(3, [0.9]), *reps(8, [0.95] * 10), *reps(9, [0.1]), *reps(16, [0.86]))
        == improvement
    )


DEGRADATION = ("quality_degradation", "alert", "high")
IMPROVEMENT = ("quality_improvement", "nudge", "low")


@pytest.mark.parametrize(
    ("scores", "is_degraded"),
    [
        ([0.69] * 19, False),
        ([0.69] * 20, True),
        ([0.7] * 20, False),
        ([0.7] * 19 + [0.69], True),
        ([0.49] * 6 + [1.0] * 14, True),
        ([0.49] * 5 + [1.0] * 15, False),
        ([0.5] * 6 + [1.0] * 14, False),
        ([0.49] * 7 + [1.0] * 17, False),
    ],
    ids=["19 reps", "20 reps", "0.70", "under 0.70", "30 %", "25 %", "at 0.50", "29 %"],
)
def test_degradation_on_each_side_of_its_limits(
    calculated: Calculation, scores: list[float], is_degraded: bool
) -> None:
    assert calculated.fired(*reps(3, scores)) == [DEGRADATION] * is_degraded


@pytest.mark.parametrize(("again", "wanted"), [(9, 1), (10, 2)])
def test_degradation_is_repeated_after_7_days(calculated: Calculation, again: int, wanted: int) -> None:
    arrivals = [*reps(3, [0.6] * 20), *reps(again, [0.6] * 20)]
    assert calculated.fired(*arrivals) == [DEGRADATION] * wanted


@pytest.mark.parametrize(("score", "wanted"), [(0.85, []), (0.851, [IMPROVEMENT])])
def test_improvement_is_more_than_0_85(
    calculated: Calculation, score: float, wanted: list[tuple[str, str, str]]
) -> None:
    assert calculated.fired(*reps(3, [score]), *reps(16, [score])) == wanted


def test_improvement_is_of_one_exercise(calculated: Calculation) -> None:
    assert calculated.fired(*reps(3, [0.9], "bridge"), *reps(16, [0.9])) == []
