"""Reads what a local run has left in BigQuery, and checks it."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from google.cloud.bigquery import Client

from local.dashboard import Check, NudgeType, Tally
from local.figures import Published, account
from pipeline.reporting.display import Listing, account_sentence
from pipeline.reporting.metrics import Metrics
from pipeline.tables import TABLES

VIEWS = tuple(table.view for table in TABLES.values() if table.view)

_SHOWN = 10
# A shorter history may produce no alert: most of its events are older than a day, so they emit no nudge.
_TELLING_EVENTS = 2000

_ADHERENCE = """
SELECT *, COUNT(*) OVER () AS total FROM (
  SELECT * FROM `{dataset}.adherence_current` WHERE TRUE
  QUALIFY ROW_NUMBER() OVER (PARTITION BY patient_id ORDER BY week_start DESC) = 1
)
ORDER BY adherence_percentage, rolling_28day_avg, patient_id LIMIT {limit}
"""
_QUALITY = """
SELECT *, COUNT(*) OVER () AS total FROM `{dataset}.quality_current`
WHERE average_quality IS NOT NULL
ORDER BY average_quality, patient_id, exercise_id LIMIT {limit}
"""
_WORK_QUEUE = """
SELECT *, COUNT(*) OVER () AS total FROM `{dataset}.work_queue_current`
WHERE status NOT IN ('resolved', 'dismissed')
ORDER BY priority, sla_deadline, item_id LIMIT {limit}
"""
_URGENCIES = """
SELECT priority, urgency, COUNT(*) AS n FROM `{dataset}.work_queue_current`
WHERE status NOT IN ('resolved', 'dismissed') GROUP BY priority, urgency ORDER BY priority
"""
_DEAD_LETTERS = """
SELECT reason, COUNT(DISTINCT dead_letter_id) AS `distinct`, MIN(error_message) AS example
FROM `{dataset}.dead_letters_current` GROUP BY reason ORDER BY `distinct` DESC, reason
"""
_ROWS = "SELECT COUNT(*) AS n FROM `{dataset}.{view}`"
_REVIEWS = "SELECT COUNT(*) AS n FROM `{dataset}.work_queue_current` WHERE item_type = 'review'"


class Outcome(NamedTuple):
    """The contents of the views.

    `open_items` counts open work items by urgency, `rows` counts rows by view, `reviews` counts the policy's
    items in the work queue.
    """

    adherence: Listing
    quality: Listing
    work_queue: Listing
    open_items: dict[str, int]
    dead_letters: Listing
    rows: dict[str, int]
    reviews: int


class ApiReport(NamedTuple):
    """The API's report: health, reasons, and the counters that differ from the job's own."""

    health: str
    reasons: Sequence[str]
    differing: Sequence[str]

    @property
    def is_fine(self) -> bool:
        """Whether the pipeline is healthy and all counters agree."""
        return self.health == "healthy" and not self.differing


def api_report(status: Mapping[str, Any], metrics: Metrics) -> ApiReport:
    """Compares the API's status with the job's own metrics."""
    counted = {name: count["total"] for name, count in status["metrics"]["counters"].items()}
    differing = [name for name, count in counted.items() if count != metrics.counter(name)]
    return ApiReport(status["status"], status["reasons"], differing)


def read_outcome(client: Client, dataset: str) -> Outcome:
    """Reads the views of `dataset` (PROJECT.DATASET). Raises GoogleAPIError."""
    letters = _rows(client, dataset, _DEAD_LETTERS)
    return Outcome(
        _listing(client, dataset, _ADHERENCE),
        _listing(client, dataset, _QUALITY),
        _listing(client, dataset, _WORK_QUEUE),
        {row["urgency"]: row["n"] for row in _rows(client, dataset, _URGENCIES)},
        Listing(letters, len(letters)),
        {view: _number(client, dataset, _ROWS, view) for view in VIEWS},
        _number(client, dataset, _REVIEWS),
    )


def dump_views(client: Client, dataset: str, folder: Path) -> None:
    """Writes each view to `<view>.jsonl`, one row a line: bytes as base64, times RFC 3339."""
    for view in VIEWS:
        rows = client.query_and_wait(f"SELECT * FROM `{dataset}.{view}`")  # noqa: S608 (names of ours)
        with (folder / f"{view}.jsonl").open("w") as lines:
            lines.writelines(json.dumps(dict(row.items()), default=_plain) + "\n" for row in rows)


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    return str(value)


def checks(
    published: Published,
    metrics: Metrics,
    is_settled: bool,
    outcome: Outcome,
    tallies: Mapping[NudgeType, Tally],
    api: ApiReport,
) -> list[Check]:
    """Everything that must hold when a run has come to its end."""
    return [
        *_stream_checks(published, metrics, is_settled),
        *_table_checks(published, metrics, outcome),
        *_policy_checks(published, metrics, outcome, tallies),
        *_api_checks(api),
    ]


def _stream_checks(published: Published, metrics: Metrics, is_settled: bool) -> Iterator[Check]:
    sums = account(published, metrics)
    yield Check(
        "every published event is accounted for",
        sums.arrived > 0 and not sums.open,
        f"The account does not balance: published {account_sentence(sums)}.",
    )
    written, rows = sum(metrics.written.values()), sum(metrics.rows.values())
    behind = ", ".join(f"{table} {n:,}" for table, n in metrics.unwritten.items())
    yield Check(
        f"all {rows:,} rows that the projectors emitted are written",
        is_settled and not behind,
        f"Only {written:,} of {rows:,} rows are written ({behind or 'and more keep coming'}).",
    )
    faults = ", ".join(f"{reason} {n:,}" for reason, n in metrics.faults.items())
    yield Check(
        "no projection failed and BigQuery refused no row",
        not faults,
        f"The job itself caused dead letters: {faults}.",
    )


def _table_checks(published: Published, metrics: Metrics, outcome: Outcome) -> Iterator[Check]:
    is_telling = published.events >= _TELLING_EVENTS
    for view in VIEWS:
        if not is_telling and not metrics.rows.get(view.removesuffix("_current")):
            continue
        rows = outcome.rows[view]
        yield Check(f"{view} has {rows:,} rows", rows > 0, f"{view} is empty.")
    # Identical payloads are one dead letter, so the table may have fewer than arrived.
    distinct = {row["reason"]: row["distinct"] for row in outcome.dead_letters.rows}
    counted = {reason: n for reason, n in metrics.dead_letters.items() if n}
    fits = distinct.keys() == counted.keys() and all(distinct[reason] <= n for reason, n in counted.items())
    yield Check(
        f"dead letters: {sum(counted.values()):,} counted, {sum(distinct.values()):,} distinct in the table",
        fits,
        f"The table's dead letters ({_by_reason(distinct)}) are not those counted ({_by_reason(counted)}).",
    )


def _policy_checks(
    published: Published, metrics: Metrics, outcome: Outcome, tallies: Mapping[NudgeType, Tally]
) -> Iterator[Check]:
    distinct = sum(tally.distinct for tally in tallies.values())
    generated = sum(metrics.nudges.values())
    yield Check(
        f"all {generated:,} nudges that the policy generated arrived on the topic",
        distinct >= generated,
        f"The policy generated {generated:,} nudges, but only {distinct:,} arrived on the topic.",
    )
    if published.events < _TELLING_EVENTS:
        return
    kinds = {key.kind for key in tallies}
    yield Check(
        f"nudges of several kinds arrived: {', '.join(sorted(kinds))}",
        len(kinds) > 1,
        f"Nudges of several kinds were expected; there were only: {', '.join(kinds) or 'none'}.",
    )
    yield Check(
        f"the work queue has {outcome.reviews:,} review items of the policy",
        outcome.reviews > 0,
        "The work queue has no review item, so no alert of the policy has reached it.",
    )


def _api_checks(api: ApiReport) -> Iterator[Check]:
    yield Check(
        "the API says that the pipeline is healthy",
        api.health == "healthy",
        f"The API says that the pipeline is {api.health}: {' '.join(api.reasons)}",
    )
    yield Check(
        "the API's counts are those of the job",
        not api.differing,
        f"The API's counts are not those of the job: {', '.join(api.differing)}.",
    )


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items())) or "none"


def _listing(client: Client, dataset: str, query: str) -> Listing:
    rows = _rows(client, dataset, query)
    return Listing(rows, rows[0]["total"] if rows else 0)


def _number(client: Client, dataset: str, query: str, view: str = "") -> int:
    return int(_rows(client, dataset, query, view)[0]["n"])


def _rows(client: Client, dataset: str, query: str, view: str = "") -> list[dict[str, Any]]:
    text = query.format(dataset=dataset, limit=_SHOWN, view=view)
    return [dict(row.items()) for row in client.query_and_wait(text)]
