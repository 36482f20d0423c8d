"""A job that starts without state: it rereads the retained events, and the facts that the tables hold."""

import logging
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from google.api_core.exceptions import BadRequest
from google.api_core.retry import Retry, if_exception_type
from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter
from google.cloud.bigquery.table import Row as TableRow

from pipeline.cloud.clients import PUBSUB_TRANSIENT, bigquery, subscriber
from pipeline.cloud.outages import OUTAGES, Call
from pipeline.errors import OperatorError
from pipeline.options import RehabOptions
from pipeline.sinks.bigquery import patience
from transforms.projections.consent import Decision
from transforms.projections.state import KnownPatient, KnownReviewItem
from transforms.steps.rebuilding import Rebuild
from transforms.times import DAY_US, MICROS, day_of, iso_date, to_micros, to_rfc3339

_LOGGER = logging.getLogger(__name__)

# How far back a finding's evidence reaches: an absence depends on a session 8 days before it. So a finding
# near the beginning of the retained events cannot be derived again for a patient with an older history.
_REASONS_DAYS = 9
_WEEK_DAYS = 7

# By default the client does not retry some transient errors.
_SEEK_RETRY = Retry(predicate=if_exception_type(*PUBSUB_TRANSIENT), initial=0.2, timeout=60.0)

_CONSENTS = """
SELECT patient_id, decisions FROM `{dataset}.consents` WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY patient_id ORDER BY version DESC) = 1
"""
_REVIEWS = """
SELECT patient_id, item_id, created_at, urgency FROM `{dataset}.work_queue_current`
WHERE item_type = 'review' AND version < @until AND created_at >= @since AND (
  created_at >= @provable
  OR patient_id NOT IN (SELECT patient_id FROM `{dataset}.adherence` WHERE week_start <= @older)
)
"""

# `cache` alone lets two steps query at the same time.
_lock = threading.Lock()


def planned_rebuild(options: RehabOptions) -> Rebuild | None:
    """The rebuild that the options ask for, as of now; None if they ask for none.

    Call it once, at launch: the graph, the rules and the seek must agree on its times.
    """
    if not options.rebuild_days:
        return None
    now_us = int(time.time() * MICROS)
    return Rebuild(now_us - options.rebuild_days * DAY_US, now_us)


def seek(options: RehabOptions, rebuild: Rebuild) -> None:
    """Seeks the subscriptions back to the beginning of the rebuild."""
    for role, subscription in options.subscriptions.items():
        subscriber().seek(
            request={"subscription": subscription, "time": to_rfc3339(rebuild.since_us)}, retry=_SEEK_RETRY
        )
        _LOGGER.info("%s subscription sought back %d days", role, options.rebuild_days)


class KnownPatients:
    """Reads what the tables know of patients, in the process that needs it."""

    def __init__(self, dataset: str, rebuild: Rebuild | None) -> None:
        """`dataset` is PROJECT.DATASET."""
        self._dataset = dataset
        self._rebuild = rebuild

    def __call__(self) -> Mapping[str, KnownPatient]:
        """By patient. Blocks while BigQuery cannot be reached; raises RetryError after 10 minutes."""
        with _lock:
            return _known_patients(self._dataset, self._rebuild)


@cache
def _known_patients(dataset: str, rebuild: Rebuild | None) -> Mapping[str, KnownPatient]:
    patients: dict[str, KnownPatient] = {}
    for row in _query(dataset, _CONSENTS):
        patients[row["patient_id"]] = KnownPatient(tuple(_decision(known) for known in row["decisions"]))
    if rebuild:
        for row in _query(dataset, _REVIEWS, *_provable(rebuild)):
            patient = patients.get(row["patient_id"], KnownPatient())
            item = KnownReviewItem(row["item_id"], to_micros(row["created_at"]), row["urgency"])
            patients[row["patient_id"]] = patient._replace(review_items=(*patient.review_items, item))
    return patients


def _provable(rebuild: Rebuild) -> list[ScalarQueryParameter]:
    since_us = rebuild.since_us
    return [
        # This job has already derived an item with a higher version again.
        ScalarQueryParameter("until", "INT64", rebuild.until_us),
        ScalarQueryParameter("since", "TIMESTAMP", to_rfc3339(since_us)),
        ScalarQueryParameter("provable", "TIMESTAMP", to_rfc3339(since_us + _REASONS_DAYS * DAY_US)),
        ScalarQueryParameter("older", "DATE", iso_date(day_of(since_us) - _WEEK_DAYS)),
    ]


def _decision(known: dict[str, Any]) -> Decision:
    expires_at = known["expires_at"]
    return Decision(
        to_micros(known["effective_from"]),
        to_micros(known["decided_at"]),
        known["event_id"],
        known["status"],
        to_micros(expires_at) if expires_at else None,
    )


def _query(dataset: str, query: str, *parameters: ScalarQueryParameter) -> list[TableRow]:
    client = bigquery(dataset.rpartition(".")[0])
    config = QueryJobConfig(query_parameters=parameters)

    def ask() -> list[TableRow]:
        return list(client.query_and_wait(query.format(dataset=dataset), job_config=config))

    reading = Call("BigQuery", f"dataset {dataset}", "read")
    try:
        rows: list[TableRow] = patience("Reading the tables", reading)(ask)()
    except BadRequest:
        raise OperatorError(
            f"The tables of {dataset} are not this release's: run `python -m pipeline.provision`."
        ) from None
    OUTAGES.answered(reading)
    return rows
