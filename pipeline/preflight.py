"""What a job that runs in this process needs from Google, looked for before it starts."""

from collections.abc import Callable, Iterator

from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError
from google.api_core.retry import Retry, if_transient_error
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import ConnectionError as HttpConnectionError

from pipeline.clients import PUBSUB_TRANSIENT, bigquery, publisher, subscriber
from pipeline.errors import OperatorError
from pipeline.options import RehabOptions
from pipeline.provision import TABLES

# Long enough for a hiccup, short enough for whoever waits at the prompt.
_SECONDS = 10.0
_RETRY = Retry(
    predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT) or if_transient_error(error),
    initial=0.2,
    timeout=_SECONDS,
)


def check(options: RehabOptions) -> None:
    """Looks for the tables, topic and subscriptions of checked options. Raises OperatorError.

    Without them a running job would wait for minutes, because BigQuery does not see a table during
    the first moments after its creation, or fail in the middle of a bundle.
    """
    for name, look in _needs(options):
        try:
            look()
        except NotFound:
            raise OperatorError(
                f"The {name} does not exist: create it with `python -m pipeline.provision`."
            ) from None
        except Forbidden:
            # The right to use a thing does not imply the right to look at it.
            continue
        except (GoogleAPICallError, GoogleAuthError, HttpConnectionError, RetryError) as error:
            cause = error.cause if isinstance(error, RetryError) else error
            raise OperatorError(f"The {name} cannot be reached ({type(cause).__name__}).") from None


def _needs(options: RehabOptions) -> Iterator[tuple[str, Callable[[], object]]]:
    for subscription in options.subscriptions.values():
        yield f"subscription {subscription}", _subscription(subscription)
    if options.nudge_topic:
        yield f"topic {options.nudge_topic}", _topic(options.nudge_topic)
    for table in TABLES if options.dataset else ():
        yield f"table {options.dataset}.{table}", _table(options.dataset, table)


def _subscription(path: str) -> Callable[[], object]:
    return lambda: subscriber().get_subscription(subscription=path, retry=_RETRY, timeout=_SECONDS)


def _topic(path: str) -> Callable[[], object]:
    return lambda: publisher().get_topic(topic=path, retry=_RETRY, timeout=_SECONDS)


def _table(dataset: str, table: str) -> Callable[[], object]:
    client = bigquery(dataset.rpartition(".")[0])
    return lambda: client.get_table(f"{dataset}.{table}", retry=_RETRY, timeout=_SECONDS)
