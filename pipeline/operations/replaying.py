"""Selects dead letters, publishes or writes them again, and marks them as replayed."""

import argparse
import base64
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from google.api_core.exceptions import BadRequest, NotFound
from google.cloud.bigquery import ArrayQueryParameter, QueryJobConfig, ScalarQueryParameter
from google.cloud.bigquery.table import RowIterator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline.cloud.clients import bigquery, publisher
from pipeline.errors import OperatorError
from pipeline.sinks.bigquery import TableWriter
from pipeline.sinks.sink import TableSink
from pipeline.tables import TABLES
from transforms.dead_letters import (
    ATTEMPTS_ATTRIBUTE,
    REPLAY_ATTRIBUTE,
    WRITE_REJECTED,
    DeadLetter,
    dead_letter_row,
)
from transforms.events import KINDS
from transforms.message import FIRST_PUBLISH_ATTRIBUTE, PUBLISH_ID_ATTRIBUTE, Message
from transforms.rows import Row
from transforms.times import MICROS, to_micros, to_rfc3339

# Letters sent before they are marked; a crash in between sends them again.
_PORTION = 500
_SAMPLE = 5
_PUBLISH_SECONDS = 600

_PENDING = "SELECT * FROM `{dataset}.dead_letters_current` WHERE replayed_at IS NULL"
_MATCHING = "SELECT * FROM ({chosen}) WHERE {condition}"
# The line breaks terminate a comment at the end of a condition.
_COUNTS = """
SELECT reason, attempts < @max_attempts AS due, COUNT(*) AS letters,
  MIN(failed_at) AS oldest, MAX(failed_at) AS newest
FROM ({chosen}
) GROUP BY reason, due
"""
_DUE = """
SELECT * FROM ({chosen}
) WHERE attempts < @max_attempts
"""

Letter = dict[str, Any]


class ReplayError(ValueError):
    """Invalid or contradictory arguments; the message is one sentence for the operator."""


class Count(NamedTuple):
    """Number of selected dead letters with one reason; `due` if they may still be retried."""

    reason: str
    due: bool
    letters: int
    oldest: datetime
    newest: datetime


class Selection:
    """The selected dead letters, without those already replayed since their last failure."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises ReplayError if `--where` is not a valid condition, GoogleAPIError for other failures."""
        self._client = bigquery(options.dataset.partition(".")[0])
        conditions = [_PENDING.format(dataset=options.dataset)]
        self._parameters: list[Any] = [ScalarQueryParameter("max_attempts", "INT64", options.max_attempts)]
        for condition, name, kind, values in (
            ("reason IN UNNEST(@reasons)", "reasons", "STRING", options.reason),
            ("dead_letter_id IN UNNEST(@ids)", "ids", "STRING", options.id),
        ):
            if values:
                conditions.append(condition)
                self._parameters.append(ArrayQueryParameter(name, kind, values))
        for condition, name, moment in (
            ("failed_at >= @since", "since", options.since),
            ("failed_at < @until", "until", options.until),
        ):
            if moment:
                conditions.append(condition)
                self._parameters.append(ScalarQueryParameter(name, "TIMESTAMP", moment))
        self._chosen = " AND ".join(conditions)
        if options.where:
            self._chosen = _MATCHING.format(chosen=self._chosen, condition=options.where)
            self._check_condition()

    def _check_condition(self) -> None:
        """Refuses an invalid condition. A dry run reads no row, so BigQuery's answer quotes none."""
        try:
            self._client.query(
                self._chosen, job_config=QueryJobConfig(dry_run=True, query_parameters=self._parameters)
            )
        except BadRequest as error:
            problem = str(error.message).partition("\n")[0].rpartition("prettyPrint=false: ")[2]
            raise ReplayError(f"--where does not work: {problem.rstrip('.')}.") from None

    def counts(self) -> list[Count]:
        """Numbers by reason, largest first."""
        rows = self._query(_COUNTS.format(chosen=self._chosen))
        counts = [
            Count(row["reason"], row["due"], row["letters"], row["oldest"], row["newest"]) for row in rows
        ]
        return sorted(counts, key=lambda count: (-count.letters, count.reason, count.due))

    def sample(self) -> list[Letter]:
        """A few letters that are due."""
        return [dict(row.items()) for row in self._query(f"{self._due()} LIMIT {_SAMPLE}")]

    def portions(self) -> Iterator[list[Letter]]:
        """The letters that are due, in portions."""
        for page in self._query(self._due(), page_size=_PORTION).pages:
            yield [dict(row.items()) for row in page]

    def _due(self) -> str:
        return _DUE.format(chosen=self._chosen)

    def _query(self, query: str, page_size: int | None = None) -> RowIterator:
        try:
            return self._client.query_and_wait(
                query, job_config=QueryJobConfig(query_parameters=self._parameters), page_size=page_size
            )
        except BadRequest:
            # BigQuery's message may quote a row.
            raise OperatorError(
                "BigQuery cannot look for the dead letters: either --where fails on one of them,"
                " or `python -m pipeline.provision` has to bring the view up to date."
            ) from None


class Replay:
    """Sends dead letters back and marks them, so that the next run skips them."""

    def __init__(self, dataset: str, topic: str | None) -> None:
        """`topic` may be None if all letters are rows that BigQuery refused."""
        self._dataset = dataset
        self._topic = topic
        self._letters: TableSink = TableWriter(dataset, "dead_letters")
        self.published = 0
        self.written = 0
        self.refused = 0

    def send(self, letters: list[Letter]) -> None:
        """Publishes events and writes rows. Marks what was sent, even when it raises GoogleAPIError."""
        self._publish([letter for letter in letters if letter["reason"] != WRITE_REJECTED])
        rejected = [letter for letter in letters if letter["reason"] == WRITE_REJECTED]
        for table in sorted({_table(letter) for letter in rejected}):
            self._write(table, [letter for letter in rejected if _table(letter) == table])

    def _publish(self, letters: list[Letter]) -> None:
        pending: list[tuple[Letter, Future[str]]] = []
        for letter in letters:
            attributes: Any = replay_attributes(letter)
            pending.append((letter, publisher().publish(str(self._topic), letter["payload"], **attributes)))
        sent = []
        try:
            for letter, future in pending:
                future.result(_PUBLISH_SECONDS)
                sent.append(letter)
        except NotFound:
            raise OperatorError(f"The topic {self._topic} does not exist.") from None
        finally:
            self._mark(sent)
            self.published += len(sent)

    def _write(self, table: str, letters: list[Letter]) -> None:
        """Rows may be written late: readers always see the newest version of a row."""
        rows = {letter["dead_letter_id"]: _refused_row(letter) for letter in letters}
        sink: TableSink = TableWriter(self._dataset, table)
        rejections = sink.write(list(rows.values()))
        errors = {rejection.row.key: rejection.error for rejection in rejections}
        written = [letter for letter in letters if letter["dead_letter_id"] not in errors]
        again = [letter for letter in letters if letter["dead_letter_id"] in errors]
        self._mark(written)
        self._keep([_failed_again(letter, errors[letter["dead_letter_id"]]) for letter in again])
        self.written += len(written)
        self.refused += len(again)

    def _mark(self, letters: Iterable[Letter]) -> None:
        # Marks the replayed failure only; a new failure of this replay stays unmarked.
        self._keep([_marked(letter, _now_us()) for letter in letters])

    def _keep(self, rows: list[Row]) -> None:
        if rows and self._letters.write(rows):
            raise OperatorError(
                f"BigQuery refuses rows of {self._dataset}.dead_letters: run `python -m pipeline.provision`."
            )


def replay_attributes(letter: Letter) -> dict[str, str]:
    """The republished message's attributes: the original's, plus what the job must know of the replay.

    They are the same for the same failure, so that Pub/Sub's deduplication can drop what a crash repeats.
    """
    return (letter["attributes"] or {}) | {
        ATTEMPTS_ATTRIBUTE: str(letter["attempts"]),
        REPLAY_ATTRIBUTE: letter["reason"],
        FIRST_PUBLISH_ATTRIBUTE: str(_publish_us(letter)),
        # A new id: under the original's, Dataflow would drop a message that it has just seen.
        PUBLISH_ID_ATTRIBUTE: f"{letter['dead_letter_id']}-{letter['attempts']}",
    }


def _publish_us(letter: Letter) -> int:
    return to_micros(letter["publish_time"] or letter["failed_at"])


def _table(letter: Letter) -> str:
    table = (letter["attributes"] or {}).get("table")
    if table not in TABLES:
        raise OperatorError(f"Dead letter {letter['dead_letter_id']} names no table that its row belongs to.")
    return str(table)


def _refused_row(letter: Letter) -> Row:
    version = orjson.loads(letter["payload"])["version"]
    return Row(letter["dead_letter_id"], version, _publish_us(letter), letter["payload"])


def _failed_again(letter: Letter, error: str) -> Row:
    attributes = letter["attributes"] | {ATTEMPTS_ATTRIBUTE: str(letter["attempts"])}
    message = Message(letter["payload"], attributes, "", "", _publish_us(letter))
    again = DeadLetter(letter["reason"], letter["stage"], error, message)
    return dead_letter_row(again, _now_us(), letter["job_name"])


def _marked(letter: Letter, replayed_us: int) -> Row:
    columns = {name: _encoded(value) for name, value in letter.items()}
    columns["replayed_at"] = to_rfc3339(replayed_us)
    return Row(letter["dead_letter_id"], replayed_us, _publish_us(letter), orjson.dumps(columns))


def _encoded(value: Any) -> Any:
    """A column in the form that insertAll takes."""
    if isinstance(value, datetime):
        return to_rfc3339(to_micros(value))
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


def _now_us() -> int:
    return int(time.time() * MICROS)


def run(options: argparse.Namespace) -> None:
    """Replays the selected letters, or shows them with `dry_run`. Raises ReplayError and OperatorError."""
    selection = Selection(options)
    counts = selection.counts()
    output = Console()
    if spent := sum(count.letters for count in counts if not count.due):
        output.print(f"Left out, because tried {options.max_attempts} times or more: {spent:,}.")
    due = [count for count in counts if count.due]
    if not due:
        output.print("No dead letter is to be replayed.")
    elif options.dry_run:
        output.print(_overview(due), "Some of them:")
        for letter in selection.sample():
            output.print(_redacted(letter), soft_wrap=True, markup=False, highlight=False)
    elif not options.topic and any(count.reason != WRITE_REJECTED for count in due):
        raise ReplayError("--topic is required: events are published to it.")
    else:
        _replay(selection, sum(count.letters for count in due), options, output)


def _replay(selection: Selection, total: int, options: argparse.Namespace, output: Console) -> None:
    replay = Replay(options.dataset, options.topic)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Replaying", total=total)
        for letters in selection.portions():
            replay.send(letters)
            progress.advance(task, len(letters))
    output.print(f"Events published: {replay.published:,}. Rows written: {replay.written:,}.")
    if replay.refused:
        output.print(f"Rows refused again: {replay.refused:,}.")


def _overview(counts: list[Count]) -> Table:
    table = Table("reason", "letters", "oldest (UTC)", "newest (UTC)", title="Dead letters to replay")
    for count in counts:
        table.add_row(count.reason, f"{count.letters:,}", f"{count.oldest:%F %T}", f"{count.newest:%F %T}")
    return table


def _redacted(letter: Letter) -> str:
    """One line about a letter, with nothing from its payload or attributes except a known kind."""
    kind = letter["event_kind"] if letter["event_kind"] in KINDS else "no known kind"
    size, attempts = len(letter["payload"]), letter["attempts"]
    stated = (letter["dead_letter_id"], letter["reason"], kind, f"{size:,} bytes", f"attempts {attempts}")
    return "  ".join([*stated, letter["error_message"] or ""])
