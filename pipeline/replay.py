"""Brings dead letters back into the stream: `python -m pipeline.replay --help`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import ConnectionError as HttpConnectionError

from pipeline.errors import OperatorError, refusal
from pipeline.names import DATASET, TOPIC
from pipeline.operations.replaying import ReplayError, run
from transforms.reasons import REASONS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ReplayError(message.removeprefix("argument ").rstrip(".") + ".")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a time such as 2026-03-02T14:30:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks the arguments. Raises ReplayError."""
    parser = _Parser(
        prog="python -m pipeline.replay",
        description="Brings dead letters back: events are published again, refused rows written again. "
        "A replayed letter is skipped next time, unless it has failed again.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, help="dataset of the dead letters, PROJECT.DATASET")
    parser.add_argument("--topic", help="topic to publish events to, projects/PROJECT/topics/NAME")
    choice = parser.add_argument_group("which dead letters", "All of these must hold; without any: all.")
    choice.add_argument("--reason", action="append", choices=REASONS, help="may be given several times")
    choice.add_argument("--id", action="append", help="a dead_letter_id; may be given several times")
    choice.add_argument("--since", type=_moment, help="only those that failed at this time (UTC) or later")
    choice.add_argument("--until", type=_moment, help="only those that failed before this time (UTC)")
    choice.add_argument("--where", help="an SQL condition on the columns of dead_letters_current")
    choice.add_argument(
        "--max_attempts", type=int, default=5, help="skip letters with this many attempts or more (default 5)"
    )
    parser.add_argument("--dry_run", action="store_true", help="only show their number and a sample")
    options = parser.parse_args(arguments)
    for problem in _problems(options):
        raise ReplayError(problem)
    return options


def _problems(options: argparse.Namespace) -> Iterator[str]:
    if not DATASET.fullmatch(options.dataset):
        yield "--dataset must have the form PROJECT.DATASET."
    if options.topic and not TOPIC.fullmatch(options.topic):
        yield "--topic must have the form projects/PROJECT/topics/NAME."
    if options.max_attempts < 1:
        yield "--max_attempts must be at least 1."
    if options.since and options.until and options.since >= options.until:
        yield "--since must be before --until."
    if options.where is not None and not options.where.strip():
        yield "--where is empty."
    if ";" in (options.where or ""):
        yield "--where must be one condition, without a semicolon."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 for invalid arguments, 1 if something outside fails."""
    try:
        run(parse_arguments(sys.argv[1:] if arguments is None else arguments))
    except ReplayError as error:
        return _complain(str(error), 2)
    except OperatorError as error:
        return _complain(str(error), 1)
    except (GoogleAPIError, GoogleAuthError, HttpConnectionError) as error:
        return _complain(f"Google refused: {refusal(error)}", 1)
    return 0


def _complain(sentence: str, status: int) -> int:
    print(f"pipeline.replay: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
