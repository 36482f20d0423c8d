"""What a local run must have brought about, and what it says when something is missing."""

import pytest

from local.dashboard import NudgeType, Tally
from local.figures import Published
from local.outcome import ApiReport, Outcome, api_report, checks
from pipeline.reporting.display import Listing
from pipeline.reporting.metrics import BROADWAY, POLICY, Metrics, Spread

PUBLISHED = Published(events=2000, bad=40, finished=True)
METRICS = Metrics(
    {
        BROADWAY + "event.processed.alert": 1960,
        BROADWAY + "event.dead_letter.malformed_json": 40,
        BROADWAY + "row.projected.work_queue": 10,
        POLICY + "alert.generated.poor_quality": 2,
        POLICY + "nudge.generated.short_session": 1,
    },
    {BROADWAY + "batch.size.work_queue": Spread(2, 10)},
)
NOTHING = Listing([], 0)
OUTCOME = Outcome(
    adherence=NOTHING,
    quality=NOTHING,
    work_queue=NOTHING,
    open_items={"high": 4},
    dead_letters=Listing([{"reason": "malformed_json", "distinct": 39}], 1),
    rows={"adherence_current": 1, "quality_current": 1, "work_queue_current": 1, "dead_letters_current": 39},
    reviews=2,
)
TALLIES = {
    NudgeType("alert", "poor_quality", "medium"): Tally(2, 3),
    NudgeType("nudge", "short_session", "low"): Tally(1, 1),
}
API = ApiReport("healthy", [], [])


def problems(
    published: Published = PUBLISHED,
    metrics: Metrics = METRICS,
    outcome: Outcome = OUTCOME,
    tallies: dict[NudgeType, Tally] = TALLIES,
    *,
    settled: bool = True,
    api: ApiReport = API,
) -> list[str]:
    found = checks(published, metrics, settled, outcome, tallies, api)
    return [check.problem for check in found if not check.holds]


def plus(name: str, count: int) -> Metrics:
    return METRICS._replace(counters={**METRICS.counters, name: METRICS.counters.get(name, 0) + count})


def test_a_run_that_lacks_nothing() -> None:
    assert problems() == []


def test_events_missing_and_events_counted_twice() -> None:
    assert problems(published=PUBLISHED._replace(events=2003)) == [
        "The account does not balance: published 2,003 = 1,960 processed + 0 duplicates + 0 withheld"
        " + 0 too late + 40 dead letters + 3 unaccounted for."
    ]
    assert problems(metrics=plus(BROADWAY + "event.duplicate", 1)) == [
        "The account does not balance: published 2,000 = 1,960 processed + 1 duplicates + 0 withheld"
        " + 0 too late + 40 dead letters - 1 counted twice."
    ]


def test_rows_that_were_not_written() -> None:
    assert problems(metrics=plus(BROADWAY + "row.projected.work_queue", 5)) == [
        "Only 10 of 15 rows are written (work_queue 5)."
    ]
    assert problems(settled=False) == ["Only 10 of 10 rows are written (and more keep coming)."]


def test_rows_that_were_refused() -> None:
    refused = problems(metrics=plus(BROADWAY + "event.dead_letter.write_rejected", 2))
    assert refused[0] == "The job itself caused dead letters: write_rejected 2."


@pytest.mark.parametrize("view", list(OUTCOME.rows))
def test_a_view_without_rows(view: str) -> None:
    assert problems(outcome=OUTCOME._replace(rows=OUTCOME.rows | {view: 0})) == [f"{view} is empty."]


@pytest.mark.parametrize("rows", [[], [{"reason": "malformed_json", "distinct": 41}]])
def test_dead_letters_other_than_those_counted(rows: list[dict[str, object]]) -> None:
    [problem] = problems(outcome=OUTCOME._replace(dead_letters=Listing(rows, len(rows))))
    assert problem.startswith("The table's dead letters (")
    assert problem.endswith(") are not those counted (malformed_json 40).")


def test_no_review_items() -> None:
    [problem] = problems(outcome=OUTCOME._replace(reviews=0))
    assert problem.startswith("The work queue has no review item")


def test_nudges_that_did_not_arrive() -> None:
    assert problems(tallies={}) == [
        "The policy generated 3 nudges, but only 0 arrived on the topic.",
        "Nudges of several kinds were expected; there were only: none.",
    ]


def test_an_api_that_says_otherwise() -> None:
    name = BROADWAY + "event.processed.alert"
    status = {
        "status": "degraded",
        "reasons": ["Too hot.", "Too cold."],
        "metrics": {"counters": {name: {"total": 1959}, BROADWAY + "event.duplicate": {"total": 0}}},
    }
    report = api_report(status, METRICS)
    assert not report.is_fine
    assert problems(api=report) == [
        "The API says that the pipeline is degraded: Too hot. Too cold.",
        f"The API's counts are not those of the job: {name}.",
    ]
    assert API.is_fine


def test_a_short_story_need_not_have_everything() -> None:
    short = Metrics({BROADWAY + "event.processed.alert": 3}, {})
    outcome = OUTCOME._replace(dead_letters=NOTHING, rows=dict.fromkeys(OUTCOME.rows, 0), reviews=0)
    assert problems(Published(events=3, finished=True), short, outcome, {}) == []
