"""Publishes simulated patients' events: `python -m local.simulate --help`."""

import argparse
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from uuid import uuid4

import orjson
from google.auth.exceptions import GoogleAuthError
from google.cloud.pubsub_v1 import PublisherClient

from local.simulation import Emission, Scenario, simulate
from pipeline.cloud import clients
from pipeline.names import TOPIC
from transforms.message import PUBLISH_ID_ATTRIBUTE
from transforms.times import to_micros, to_rfc3339

_TICK_SECONDS = 0.05
_REPORT_SECONDS = 0.5
# Enough for several seconds of an outage at thousands of events per second. Below the client's own limit, at
# which `publish` would block and a signal could not stop the run.
_MAX_UNCONFIRMED = 10_000
# How long a stopped run waits for the confirmation of what it has already sent.
_GRACE_SECONDS = 5.0


class SimulateError(ValueError):
    """Invalid or contradictory arguments; the message is one sentence for the user."""


class Report:
    """Counts what has been published, and keeps a JSON file up to date if there is a path.

    Events count when Pub/Sub confirms them; refused events count as `failed`.
    """

    def __init__(self, path: Path | None) -> None:
        self.messages = 0
        self.published = 0
        self.bad = 0
        self.duplicates = 0
        self.late = 0
        self.failed = 0
        self._path = path
        self._last_publish: str | None = None
        self._due = 0.0

    def confirm(self, emission: Emission) -> None:
        """Counts a confirmed message."""
        self.messages += 1
        self.published += emission.events
        self.bad += emission.bad
        self.duplicates += emission.duplicates
        self.late += emission.late
        self._last_publish = to_rfc3339(_now_us())

    def refuse(self, emission: Emission) -> None:
        """Counts a message without a confirmation."""
        self.failed += emission.events

    def write(self, *, finished: bool) -> None:
        """Replaces the file, unless that has just been done; always if `finished`: nothing more will come."""
        if not self._path or (time.monotonic() < self._due and not finished):
            return
        self._due = time.monotonic() + _REPORT_SECONDS
        # Atomic: a reader sees the old content or the new one, never a part.
        part = self._path.with_name(self._path.name + ".part")
        part.write_bytes(
            orjson.dumps(
                {
                    "published": self.published,
                    "messages": self.messages,
                    "bad": self.bad,
                    "duplicates": self.duplicates,
                    "late": self.late,
                    "failed": self.failed,
                    "last_publish": self._last_publish,
                    "finished": finished,
                }
            )
        )
        os.replace(part, self._path)


class Publication:
    """Publishes messages at a given rate and checks that each is confirmed."""

    def __init__(
        self, client: PublisherClient, primary_topic: str, secondary_topic: str, report: Report
    ) -> None:
        """The topics are full paths, projects/PROJECT/topics/NAME."""
        self._client = client
        self._primary_topic = primary_topic
        self._secondary_topic = secondary_topic
        self._report = report
        self._unconfirmed: deque[tuple[Future[str], Emission]] = deque()

    def run(self, emissions: Iterator[Emission], rate: float, stop: threading.Event) -> None:
        """Publishes `rate` events per second until there are no more, or `stop` is set.

        Returns when every message is confirmed or refused, or within seconds after `stop`.
        """
        started, sent, exhausted = time.monotonic(), 0, False
        while not exhausted and not stop.is_set():
            due = rate * (time.monotonic() - started)
            while sent < due and len(self._unconfirmed) < _MAX_UNCONFIRMED:
                emission = next(emissions, None)
                if emission is None:
                    exhausted = True
                    break
                self._publish(emission)
                sent += emission.events
            self._settle()
            stop.wait(_TICK_SECONDS)
        self._drain(stop)

    def _publish(self, emission: Emission) -> None:
        topic = self._secondary_topic if emission.to_secondary else self._primary_topic
        # The client takes attributes as keywords, mixed with its own.
        attributes: Any = emission.attributes | {PUBLISH_ID_ATTRIBUTE: uuid4().hex}
        future = self._client.publish(topic, emission.payload, **attributes)
        self._unconfirmed.append((future, emission))

    def _settle(self) -> None:
        while self._unconfirmed and self._unconfirmed[0][0].done():
            future, emission = self._unconfirmed.popleft()
            if future.exception():
                self._report.refuse(emission)
            else:
                self._report.confirm(emission)
        self._report.write(finished=False)

    def _drain(self, stop: threading.Event) -> None:
        deadline = float("inf")
        while self._unconfirmed and time.monotonic() < deadline:
            wait([self._unconfirmed[0][0]], _TICK_SECONDS)
            self._settle()
            if stop.is_set():
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        for _, emission in self._unconfirmed:
            self._report.refuse(emission)


def write_lines(emissions: Iterable[Emission], path: Path, report: Report, stop: threading.Event) -> None:
    """Writes each message as a line, as fast as possible, until `stop` is set. Skips empty messages."""
    with path.open("wb") as lines:
        for emission in emissions:
            if stop.is_set():
                return
            if emission.payload:
                lines.write(emission.payload + b"\n")
                report.confirm(emission)
                report.write(finished=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SimulateError(message.removeprefix("argument ").strip().rstrip(".") + ".")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses and checks a command line. Raises SimulateError."""
    parser = _Parser(
        prog="python -m local.simulate",
        description="Publishes the events of simulated patients, or writes them to a file.",
        allow_abbrev=False,
    )
    parser.add_argument("--primary_topic", help="Where most events go, projects/PROJECT/topics/NAME.")
    parser.add_argument("--secondary_topic", help="Where the others go.")
    parser.add_argument("--output_file", type=Path, help="Instead of topics: JSON lines, written at once.")
    parser.add_argument("--rate", type=float, default=200, help="Events a second (default 200).")
    parser.add_argument("--seconds", type=float, default=60, help="How long (default 60).")
    parser.add_argument("--patients", type=int, default=50, help="How many patients (default 50).")
    parser.add_argument("--seed", type=int, default=1, help="Equal seeds tell equal stories (default 1).")
    parser.add_argument("--duplicates", type=float, default=0.05, help="Share of repeats (default 0.05).")
    parser.add_argument("--late", type=float, default=0.05, help="Share that comes late (default 0.05).")
    parser.add_argument(
        "--bad", type=float, default=0.02, help="Share that is no valid event (default 0.02)."
    )
    parser.add_argument(
        "--now",
        type=_moment,
        help="Time at which the 28 days of events end, RFC 3339 (default: the present).",
    )
    parser.add_argument(
        "--report", type=Path, help="JSON file that is kept up to date with what was published."
    )
    options = parser.parse_args(arguments)
    for problem in (*_destination_problems(options), *_value_problems(options)):
        raise SimulateError(problem)
    return options


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("an RFC 3339 date and time is needed") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _destination_problems(options: argparse.Namespace) -> Iterator[str]:
    topics = {"primary": options.primary_topic, "secondary": options.secondary_topic}
    if options.output_file and any(topics.values()):
        yield "--output_file cannot go with a topic: events go either to a file or to Pub/Sub."
    if not options.output_file and not all(topics.values()):
        yield "Events need somewhere to go: give --primary_topic and --secondary_topic, or --output_file."
    for role, topic in topics.items():
        if topic and not TOPIC.fullmatch(topic):
            yield f"--{role}_topic must have the form projects/PROJECT/topics/NAME."


def _value_problems(options: argparse.Namespace) -> Iterator[str]:
    # Each comparison also refuses NaN.
    if not 0 < options.rate <= 1_000_000:
        yield "--rate must be more than 0 and at most 1000000 events a second."
    if not 0 < options.seconds <= 31 * 86_400:
        yield "--seconds must be more than 0 and at most 31 days."
    elif options.rate * options.seconds < 1:
        yield "--rate times --seconds must make at least one event."
    if not 1 <= options.patients <= 1_000_000:
        yield "--patients must be from 1 to 1000000."
    shares = (options.duplicates, options.late, options.bad)
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        yield "--duplicates, --late and --bad are shares from 0 to 1 and must make less than 1 together."
    if options.now and to_micros(options.now) > _now_us():
        yield "--now must not be in the future: the job would refuse the events."


def _now_us() -> int:
    return time.time_ns() // 1000


def run(options: argparse.Namespace, stop: threading.Event) -> Report:
    """Publishes or writes what the arguments ask for, until everything is done or `stop` is set.

    Raises OSError if a file cannot be written, GoogleAuthError without credentials for the cloud.
    """
    report = Report(options.report)
    report.write(finished=False)
    scenario = Scenario(
        events=round(options.rate * options.seconds),
        patients=options.patients,
        seed=options.seed,
        now_us=to_micros(options.now) if options.now else _now_us(),
        duplicates=options.duplicates,
        late=options.late,
        bad=options.bad,
    )
    try:
        if options.output_file:
            write_lines(simulate(scenario), options.output_file, report, stop)
        else:
            publication = Publication(
                clients.publisher(), options.primary_topic, options.secondary_topic, report
            )
            publication.run(simulate(scenario), options.rate, stop)
    finally:
        report.write(finished=True)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 for invalid arguments, 1 if an event may not have arrived."""
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except SimulateError as error:
        return _complain(str(error), 2)
    try:
        report = run(options, _stop_on_signals())
    except OSError as error:
        return _complain(f"Cannot write {error.filename or 'a file'} ({error.strerror}).", 1)
    except GoogleAuthError:
        return _complain("Google Cloud needs credentials: run `gcloud auth application-default login`.", 1)
    if report.failed:
        return _complain(f"Pub/Sub did not confirm {report.failed} events.", 1)
    return 0


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()

    def end(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    return stop


def _complain(sentence: str, status: int) -> int:
    print(f"local.simulate: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
