"""The command `run_local.sh`: its options and its exit status."""

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, NoReturn

from pipeline.interruption import Interruption, Stopped

_DESCRIPTION = """\
Runs the whole stream on this machine: starts a Pub/Sub and a BigQuery emulator, creates topics and
tables, starts the streaming job and the HTTP API, publishes events of simulated patients, and
shows the results. At the end it prints projections, nudges and figures, and checks that every
event is accounted for. Uses Google's Pub/Sub emulator if that and Java are installed. Nothing
leaves this machine.
"""
_EPILOG = """\
examples:
  ./run_local.sh                             a minute at 200 events a second
  ./run_local.sh --rate 1000                 at the rate that the system is designed for
  ./run_local.sh --seconds 10 --serve        then stays up, so that you can send events
  ./run_local.sh --keep /tmp/a-run           keeps logs, metrics, nudges and tables there

PUBSUB_EMULATOR_HOST (host:port) and BIGQUERY_EMULATOR_HOST (host:port or URL) name emulators that
are already running. The run then creates topics and a dataset with new names there and keeps them.

Exits with 0 if all checks passed, 1 if not, 2 for invalid options, 130 after Ctrl-C.
"""


class LocalOptions(NamedTuple):
    """What to run; `rate` is in events per second."""

    rate: float
    seconds: float
    patients: int
    seed: int
    serve: bool
    keep: Path | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"run_local.sh: {message.removeprefix('argument ').rstrip('.')}; see --help.", file=sys.stderr)
        sys.exit(2)


def parse(arguments: Sequence[str] | None = None) -> LocalOptions:
    """Parses a command line; exits with 2 and one sentence if it is invalid."""
    parser = _Parser(
        prog="./run_local.sh",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rate", type=_rate, default=200.0, metavar="N", help="events a second (default 200)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="N", help="how long to publish (default 60)"
    )
    parser.add_argument(
        "--patients", type=_patients, default=50, metavar="N", help="simulated patients (default 50)"
    )
    parser.add_argument(
        "--seed", type=_seed, default=1, metavar="N", help="another seed gives other patients (default 1)"
    )
    parser.add_argument("--serve", action="store_true", help="stay up afterwards, until Ctrl-C")
    parser.add_argument(
        "--keep", type=_keep, metavar="DIR", help="new or empty directory for logs, metrics and results"
    )
    options = LocalOptions(**vars(parser.parse_args(arguments)))
    if options.rate * options.seconds < 1:
        parser.error("--rate times --seconds must make at least one event")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    _silence_libraries()
    interruption = Interruption()
    stack = ExitStack()
    try:
        # Imported here because it takes a second to load, and Ctrl-C must work from the start.
        from local.run import run

        return run(options, stack, interruption)
    except Stopped as stopped:
        interruption.ignore()
        stack.close()
        print("Stopped: everything that this run had started has ended.", file=sys.stderr)
        return 128 + stopped.signum
    finally:
        interruption.ignore()
        stack.close()


def _silence_libraries() -> None:
    """Keeps the libraries' messages out of the display; errors get a sentence of our own."""
    # gRPC writes to stderr, for example when a server has ended. It reads this variable with its first
    # channel.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.captureWarnings(True)
    # Without a handler Python writes warnings to stderr.
    logging.getLogger().addHandler(logging.NullHandler())


def _rate(text: str) -> float:
    return _number(text, 0.1, 100_000)


def _seconds(text: str) -> float:
    return _number(text, 1, 86_400)


def _patients(text: str) -> int:
    return _integer(text, 1, 100_000)


def _seed(text: str) -> int:
    return _integer(text, 0, 2**63 - 1)


def _number(text: str, lowest: float, highest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"must be a number from {lowest:,} to {highest:,}")
    return value


def _integer(text: str, lowest: int, highest: int) -> int:
    digits = text if text.isascii() and text.isdecimal() and len(text) < 20 else "-1"
    if not lowest <= int(digits) <= highest:
        raise argparse.ArgumentTypeError(f"must be a whole number from {lowest:,} to {highest:,}")
    return int(digits)


def _keep(text: str) -> Path:
    folder = Path(text)
    if folder.is_dir() and any(folder.iterdir()):
        raise argparse.ArgumentTypeError(f"{text} is not empty")
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return folder.absolute()
