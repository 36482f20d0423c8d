"""Checks that the Google resources of a local job exist, before it starts and while it runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError
from google.api_core.retry import Retry, if_exception_type, if_transient_error
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import RequestException

from pipeline.cloud.clients import PUBSUB_TRANSIENT, bigquery, publisher, subscriber
from pipeline.cloud.outages import OUTAGES, Call
from pipeline.errors import OperatorError
from pipeline.options import RehabOptions
from pipeline.tables import TABLES

# Long enough for a server to restart, short enough for someone waiting at the prompt.
_SECONDS = 20.0
_RETRY = Retry(
    predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT) or if_transient_error(error),
    initial=0.2,
    timeout=_SECONDS,
)

# An outage shows within a few seconds.
_WATCH_EVERY_SECONDS = 2.0
_WATCH_SECONDS = 4.0
_ONCE = Retry(predicate=if_exception_type())

_FAILURES = (GoogleAPICallError, GoogleAuthError, RequestException, RetryError)

type _Look = Callable[[Retry, float], object]


def check(options: RehabOptions) -> None:
    """Checks that the tables, the topic and the subscriptions exist. Raises OperatorError.

    Without them, a running job would fail in the middle of a bundle, or retry for minutes, because BigQuery
    also reports a table as missing just after its creation.
    """
    for call, look in _needs(options):
        try:
            look(_RETRY, _SECONDS)
        except NotFound:
            raise OperatorError(
                f"The {call.resource} does not exist: create it with `python -m pipeline.provision`."
            ) from None
        except Forbidden:
            # Permission to use a resource does not imply permission to look it up.
            continue
        except _FAILURES as error:
            cause = error.cause if isinstance(error, RetryError) else error
            raise OperatorError(f"The {call.resource} cannot be reached ({type(cause).__name__}).") from None


@contextmanager
def watched(options: RehabOptions) -> Iterator[None]:
    """During the block, records in OUTAGES which of these resources do not answer.

    So a deleted subscription or a BigQuery outage shows before the next event arrives.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(options, ended), name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()


def _watch(options: RehabOptions, ended: threading.Event) -> None:
    needs = list(_needs(options))
    while not ended.wait(_WATCH_EVERY_SECONDS):
        for call, look in needs:
            try:
                look(_ONCE, _WATCH_SECONDS)
            except Forbidden:
                continue
            except _FAILURES as error:
                OUTAGES.failed(call, error)
            else:
                OUTAGES.answered(call)


def _needs(options: RehabOptions) -> Iterator[tuple[Call, _Look]]:
    for subscription in options.subscriptions.values():
        yield Call("Pub/Sub", f"subscription {subscription}", "look up"), _subscription(subscription)
    if options.nudge_topic:
        yield Call("Pub/Sub", f"topic {options.nudge_topic}", "look up"), _topic(options.nudge_topic)
    for table in TABLES if options.dataset else ():
        yield Call("BigQuery", f"table {options.dataset}.{table}", "look up"), _table(options.dataset, table)


def _subscription(path: str) -> _Look:
    return lambda retry, timeout: subscriber().get_subscription(
        subscription=path, retry=retry, timeout=timeout
    )


def _topic(path: str) -> _Look:
    return lambda retry, timeout: publisher().get_topic(topic=path, retry=retry, timeout=timeout)


def _table(dataset: str, table: str) -> _Look:
    client = bigquery(dataset.rpartition(".")[0])
    return lambda retry, timeout: client.get_table(f"{dataset}.{table}", retry=retry, timeout=timeout)
