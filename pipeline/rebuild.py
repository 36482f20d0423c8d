"""A job that starts without state: the projections are built again from the events that Pub/Sub retains."""

import logging
import time
from datetime import UTC, datetime, timedelta

from google.api_core.retry import Retry, if_exception_type
from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

from pipeline.clients import PUBSUB_TRANSIENT, bigquery, subscriber
from pipeline.options import RehabOptions
from transforms.times import MICROS

_LOGGER = logging.getLogger(__name__)

# A finding's reasons reach this far back: an absence is told from a session 8 days before it. Of a patient
# whose history is older than the events to come, a finding near their beginning could not be proved again.
_REASONS_DAYS = 9
_WEEK_DAYS = 7

# By itself the client takes some errors that pass for the last word.
_RETRY = Retry(predicate=if_exception_type(*PUBSUB_TRANSIENT), initial=0.2, timeout=60.0)

_WITHDRAW = """
INSERT INTO `{dataset}.work_queue` ({columns}, visible, version, updated_at, source_event_id)
SELECT {columns}, FALSE, @version, @now, NULL
FROM `{dataset}.work_queue_current`
WHERE item_type = 'review' AND created_at >= @start AND (
  created_at >= @provable
  OR patient_id NOT IN (SELECT patient_id FROM `{dataset}.adherence` WHERE week_start <= @older)
)
"""
_COLUMNS = (
    "item_id, patient_id, therapist_id, site_id, item_type, urgency, priority, description, status, "
    "created_at, sla_deadline, resolved_at, context"
)


def rebuild(options: RehabOptions) -> None:
    """Takes back the findings that the events are about to prove again, and seeks the subscriptions back.

    A finding that a late event had made untrue, unseen by the state that was lost, would otherwise stay
    in the work queue for ever.
    """
    now = datetime.now(UTC)
    start = now - timedelta(days=options.rebuild_days)
    if options.dataset:
        _withdraw_findings(options.dataset, now, start)
    for role, subscription in options.subscriptions.items():
        subscriber().seek(request={"subscription": subscription, "time": start}, retry=_RETRY)
        _LOGGER.info("%s subscription sought back %d days", role, options.rebuild_days)


def _withdraw_findings(dataset: str, now: datetime, start: datetime) -> None:
    project, _, _ = dataset.partition(".")
    parameters = [
        ScalarQueryParameter("version", "INT64", int(time.time() * MICROS)),
        ScalarQueryParameter("now", "TIMESTAMP", now),
        ScalarQueryParameter("start", "TIMESTAMP", start),
        ScalarQueryParameter("provable", "TIMESTAMP", start + timedelta(days=_REASONS_DAYS)),
        ScalarQueryParameter("older", "DATE", start.date() - timedelta(days=_WEEK_DAYS)),
    ]
    query = _WITHDRAW.format(dataset=dataset, columns=_COLUMNS)
    bigquery(project).query_and_wait(query, job_config=QueryJobConfig(query_parameters=parameters))
