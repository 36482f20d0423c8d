"""Streams rows into BigQuery tables; retries transient failures and returns rejected rows."""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from google.api_core.exceptions import (
    BadRequest,
    Conflict,
    Forbidden,
    GoogleAPICallError,
    NotFound,
    ServerError,
    TooManyRequests,
)
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import TransportError
from google.cloud.bigquery import DatasetReference, LoadJobConfig
from requests.exceptions import ChunkedEncodingError, Timeout
from requests.exceptions import ConnectionError as HttpConnectionError

from pipeline.cloud import clients
from pipeline.cloud.outages import OUTAGES, Call
from pipeline.sinks.sink import Rejection
from transforms.rows import Row

_LOGGER = logging.getLogger(__name__)

# BigQuery's limits are 10 MB and 50,000 rows; the difference is room for the request's frame.
_MAX_REQUEST_BYTES = 9_500_000
_MAX_REQUEST_ROWS = 50_000
_FRAME_BYTES = 80  # per row: its id and the names around it
_REQUEST_SECONDS = 60.0

_TOO_LARGE = 413
_RATE_REASONS = {"rateLimitExceeded", "quotaExceeded"}
_TRANSIENT = (
    ChunkedEncodingError,
    HttpConnectionError,
    # Streaming reports a table as missing just after its creation.
    NotFound,
    ServerError,
    Timeout,
    TooManyRequests,
    TransportError,
)

# The client's own retries would hide which rows must be sent again.
_ONCE = Retry(predicate=if_exception_type())


class _Entry(NamedTuple):
    row: Row
    row_id: str
    columns: dict[str, Any]
    size: int


class _UnwrittenError(Exception):
    """BigQuery accepted the request, but did not store all valid rows."""


def patience(doing: str, call: Call) -> Retry:
    """Retries a call for 10 minutes after transient errors, and logs that; `doing` is for the log."""

    def note(error: Exception) -> None:
        # Only the kind of error: BigQuery's messages may quote a value.
        _LOGGER.warning("%s again after %s", doing, type(error).__name__)
        OUTAGES.failed(call, error)

    return Retry(predicate=_is_transient, initial=0.2, maximum=20.0, timeout=600.0, on_error=note)


class TableWriter:
    """A `TableSink` that writes to one BigQuery table."""

    def __init__(self, dataset: str, table: str) -> None:
        """`dataset` is PROJECT.DATASET."""
        project, _, dataset_id = dataset.rpartition(".")
        self._client = clients.bigquery(project)
        self._table = DatasetReference(project, dataset_id).table(table)
        self._writing = Call("BigQuery", f"table {dataset}.{table}", "write to")
        self._retry = patience(f"Writing to {table}", self._writing)

    def write(self, rows: Sequence[Row]) -> list[Rejection]:
        """Writes the rows, in several requests if necessary; returns those that BigQuery refuses.

        Blocks while BigQuery cannot be reached. Raises RetryError after 10 minutes, and GoogleAPICallError
        if the job lacks a permission.
        """
        rejections = []
        for request in _requests([_entry(row) for row in rows]):
            rejections += self._send(request)
            OUTAGES.answered(self._writing)
        return rejections

    def _send(self, entries: list[_Entry]) -> list[Rejection]:
        if entries[0].size > _MAX_REQUEST_BYTES:
            return self._load(entries[0])
        pending, rejections = entries, list[Rejection]()

        def attempt() -> None:
            nonlocal pending
            errors = self._insert(pending)
            rejections.extend(_refused(pending, errors))
            pending = _unwritten(pending, errors)
            if pending:
                raise _UnwrittenError

        try:
            self._retry(attempt)()
        except GoogleAPICallError as error:
            if error.code not in (BadRequest.code, _TOO_LARGE):
                raise
            rejections += self._send_apart(pending, error)
        return rejections

    def _insert(self, entries: list[_Entry]) -> dict[int, list[dict[str, Any]]]:
        errors = self._client.insert_rows_json(
            self._table,
            [entry.columns for entry in entries],
            row_ids=[entry.row_id for entry in entries],
            skip_invalid_rows=True,
            retry=_ONCE,
            timeout=_REQUEST_SECONDS,
        )
        return {error["index"]: error["errors"] for error in errors}

    def _send_apart(self, entries: list[_Entry], error: GoogleAPICallError) -> list[Rejection]:
        """Halves a request that BigQuery refused as a whole, until each bad row is alone."""
        if len(entries) > 1:
            middle = len(entries) // 2
            return self._send(entries[:middle]) + self._send(entries[middle:])
        if error.code == _TOO_LARGE:
            return self._load(entries[0])
        return [Rejection(entries[0].row, "row: invalid")]

    def _load(self, entry: _Entry) -> list[Rejection]:
        """Loads a row that is too large for streaming with a load job, which takes rows up to 100 MB."""
        schema = self._client.get_table(self._table, retry=self._retry).schema
        columns = dict(entry.columns)
        for field in schema:
            # A load job takes JSON values; streaming takes them encoded as strings.
            if field.field_type == "JSON" and columns.get(field.name) is not None:
                columns[field.name] = json.loads(columns[field.name])
        config = LoadJobConfig(schema=schema, write_disposition="WRITE_APPEND")
        numbers = itertools.count()

        def attempt() -> None:
            # The ids stay the same after a restart, so a job that has succeeded is found again. Job ids are
            # unique per project, so they must contain the dataset.
            job_id = f"{self._table.dataset_id}-{self._table.table_id}-{entry.row_id}-{next(numbers)}"
            try:
                job = self._client.load_table_from_json(
                    [columns], self._table, job_id=job_id, job_config=config
                )
            except Conflict:
                self._client.get_job(job_id).result()
            else:
                job.result()

        try:
            self._retry(attempt)()
        except BadRequest:
            return [Rejection(entry.row, "row: invalid")]
        return []


def _entry(row: Row) -> _Entry:
    columns = json.loads(row.body)
    # A row id has at most 128 characters, and keys contain patient ids: a hash is short and reveals nothing.
    row_id = hashlib.blake2b(f"{row.key}:{row.version}".encode(), digest_size=16).hexdigest()
    # The size in the client's encoding, which escapes non-ASCII characters.
    return _Entry(row, row_id, columns, len(json.dumps(columns)) + _FRAME_BYTES)


def _requests(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    request, size = list[_Entry](), 0
    for entry in entries:
        if request and (size + entry.size > _MAX_REQUEST_BYTES or len(request) == _MAX_REQUEST_ROWS):
            yield request
            request, size = [], 0
        request.append(entry)
        size += entry.size
    if request:
        yield request


def _refused(entries: list[_Entry], errors: dict[int, list[dict[str, Any]]]) -> list[Rejection]:
    return [
        Rejection(entries[index].row, _describe(details))
        for index, details in errors.items()
        if _is_invalid(details)
    ]


def _unwritten(entries: list[_Entry], errors: dict[int, list[dict[str, Any]]]) -> list[_Entry]:
    return [entries[index] for index, details in errors.items() if not _is_invalid(details)]


def _is_invalid(details: list[dict[str, Any]]) -> bool:
    return any(detail.get("reason") == "invalid" for detail in details)


def _describe(details: list[dict[str, Any]]) -> str:
    found = (f"{detail.get('location') or 'row'}: {detail['reason']}" for detail in details)
    return "; ".join(dict.fromkeys(found))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, Forbidden):
        return any(detail.get("reason") in _RATE_REASONS for detail in error.errors)
    return isinstance(error, (_UnwrittenError, *_TRANSIENT))
