"""Quality: docs/contract.md, 4.5. Each example is worked out by hand."""

import pytest

from tests.support.examples import Calculation, day, event, rep, session
from tests.support.oracle import Row


def test_quality_row(calculated: Calculation) -> None:
    row = calculated.only_quality(
        rep(day(3), 0.9, exercise="squat", form_issues=["lean", {"type": "knee", "severity": "major"}]),
        rep(day(3), 0.6, exercise="squat", form_issues=["lean", "lean"]),
        rep(day(3), 0.5, exercise="squat", form_issues=["depth"]),
        rep(day(3), 0.4, exercise="squat"),
        session(day(3), exercise="squat", overall_quality=0.75),
    )
    assert row == {
        "patient_id": "p",
        "exercise_id": "squat",
        "total_reps": 4,
        "average_quality": 0.6,
        "critical_issues_count": 1,
        "critical_issues_percentage": 25.0,
        "percentile_25": 0.4,
        "percentile_50": 0.5,
        "percentile_75": 0.6,
        "quality_trend": "stable",
        "form_issue_frequency": [
            {"type": "lean", "count": 3},
            {"type": "depth", "count": 1},
            {"type": "knee", "count": 1},
        ],
        "last_session_quality": 0.75,
        "visible": True,
    }


@pytest.mark.parametrize("score_field", ["quality_score", "rep_quality", "form_score"])
@pytest.mark.parametrize("issues_field", ["form_issues", "form_errors", "anomalies"])
def test_aliases_of_reps(calculated: Calculation, score_field: str, issues_field: str) -> None:
    body: Row = {score_field: 1, issues_field: ["x"]}
    row = calculated.only_quality(event("rep_observation", day(3), **body))
    assert (row["average_quality"], row["form_issue_frequency"]) == (1.0, [{"type": "x", "count": 1}])
    assert row["exercise_id"] == ""


def test_nearest_rank_of_an_odd_number_of_reps(calculated: Calculation) -> None:
    row = calculated.only_quality(*(rep(day(3), score) for score in (0.5, 0.1, 0.4, 0.2, 0.3)))
    # 25 % of 5 is 1.25, so the second; 2.5 the third; 3.75 the fourth.
    assert (row["percentile_25"], row["percentile_50"], row["percentile_75"]) == (0.2, 0.3, 0.4)


def test_window_is_the_7_days_that_end_on_the_newest_rep(calculated: Calculation) -> None:
    row = calculated.only_quality(
        rep(day(3, "23:59"), 0.1, form_issues=["old"]), rep(day(4, "00:00"), 0.7), rep(day(10), 0.8)
    )
    assert (row["total_reps"], row["average_quality"], row["form_issue_frequency"]) == (2, 0.75, [])


def test_window_follows_the_exercise_and_not_the_patient(calculated: Calculation) -> None:
    rows = calculated.expected([rep(day(3), 0.9, exercise="a"), rep(day(20), 0.9, exercise="b")]).quality
    assert [(row["exercise_id"], row["total_reps"]) for row in rows] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("before", "now", "trend"),
    [(0.7, 0.75, "improving"), (0.7, 0.74, "stable"), (0.75, 0.7, "declining"), (0.75, 0.701, "stable")],
)
def test_trend(calculated: Calculation, before: float, now: float, trend: str) -> None:
    # The 7 days before 4 to 10 March are 25 February to 3 March.
    for earlier in ("2025-02-25T00:00:00Z", "2025-03-03T23:59:59Z"):
        assert calculated.only_quality(rep(earlier, before), rep(day(10), now))["quality_trend"] == trend


def test_trend_is_stable_without_reps_in_the_week_before(calculated: Calculation) -> None:
    assert (
        calculated.only_quality(rep("2025-02-24T23:59:00Z", 0.1), rep(day(10), 0.9))["quality_trend"]
        == "stable"
    )


def test_session_quality_alone_makes_a_row(calculated: Calculation) -> None:
    row = calculated.only_quality(
        session(day(3), exercise="squat", quality_score=0.8), session(day(3), exercise="other")
    )
    assert row == {
        "patient_id": "p",
        "exercise_id": "squat",
        "total_reps": 0,
        "average_quality": None,
        "critical_issues_count": 0,
        "critical_issues_percentage": 0.0,
        "percentile_25": None,
        "percentile_50": None,
        "percentile_75": None,
        "quality_trend": "stable",
        "form_issue_frequency": [],
        "last_session_quality": 0.8,
        "visible": True,
    }


def test_last_session_quality_is_that_of_the_newest_start(calculated: Calculation) -> None:
    row = calculated.only_quality(
        session(day(9), start_time=day(4), overall_quality=0.1),
        session(day(6), start_time=day(5), overall_quality=0.9),
        session(day(8)),
    )
    assert row["last_session_quality"] == 0.9


def test_newest_event_breaks_a_tie_of_starts(calculated: Calculation) -> None:
    row = calculated.only_quality(
        session(day(4), session_id="a", start_time=day(4), overall_quality=0.1),
        session(day(6), session_id="a"),
        session(day(5), session_id="b", start_time=day(4), overall_quality=0.9),
    )
    assert row["last_session_quality"] == 0.1


def test_session_quality_is_its_newest_statement(calculated: Calculation) -> None:
    row = calculated.only_quality(
        session(day(5), session_id="s", overall_quality=0.8),
        session(day(4), session_id="s", overall_quality=0.9),
        session(day(6), session_id="s"),
    )
    assert row["last_session_quality"] == 0.8


@pytest.mark.parametrize(
    ("before", "now", "trend"),
    [
        (0.8, 0.85, "improving"),
        (0.8, 0.849999, "stable"),
        (0.85, 0.8, "declining"),
        (0.85, 0.800001, "stable"),
        (0.8, 0.8, "stable"),
    ],
)
def test_trend_at_exactly_0_05(calculated: Calculation, before: float, now: float, trend: str) -> None:
    assert calculated.only_quality(rep(day(3), before), rep(day(10), now))["quality_trend"] == trend


@pytest.mark.parametrize(("score", "critical"), [(0.499, 1), (0.5, 0)])
def test_a_critical_rep_is_under_0_50(calculated: Calculation, score: float, critical: int) -> None:
    row = calculated.only_quality(rep(day(3), score), rep(day(3), 0.9))
    assert (row["critical_issues_count"], row["critical_issues_percentage"]) == (critical, 50.0 * critical)


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 2, 3)), (4, (1, 2, 3)), (5, (2, 3, 4)), (8, (2, 4, 6))],
)
def test_percentiles_are_the_nearest_rank(
    calculated: Calculation, count: int, ranks: tuple[int, int, int]
) -> None:
    row = calculated.only_quality(*(rep(day(3), number / 10) for number in range(count, 0, -1)))
    found = (row["percentile_25"], row["percentile_50"], row["percentile_75"])
    assert found == tuple(rank / 10 for rank in ranks)
