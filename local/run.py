"""The local run: starts emulators, job, API and simulator, watches them, and reports the results."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from google.api_core.exceptions import GoogleAPIError
from requests import RequestException
from rich.console import Console
from rich.live import Live

from local import dashboard
from local.api import make_api
from local.emulators import EmulatorError, available_pubsub, bigquery_emulator
from local.examples import commands
from local.figures import Published, Settling, account, read_metrics, read_published
from local.nudges import NudgeReader
from local.outcome import ApiReport, api_report, checks, dump_views, read_outcome
from local.places import PROJECT, PlaceError, Places, make_places, named_emulators
from local.processes import running
from pipeline.cloud import clients
from pipeline.interruption import Interruption
from pipeline.operations.provisioning import provision
from pipeline.reporting import display
from pipeline.reporting.metrics import Metrics

if TYPE_CHECKING:
    from local.command import LocalOptions

_ROOT = Path(__file__).resolve().parents[1]
_LOOK_SECONDS = 0.5
_LINE_SECONDS = 5.0
_START_SECONDS = 120.0
# A working run makes progress all the time: a row waits in a batch for a second at most.
_STANDSTILL_SECONDS = 30.0
_CALM_US = 2_000_000
_API_SECONDS = 10.0
_LOG_LINES = 15

_METRICS = "metrics.json"
_REPORT = "report.json"


class LocalRunError(Exception):
    """The run cannot continue; the message is for the user."""


def run(options: "LocalOptions", stack: ExitStack, interruption: Interruption) -> int:
    """Runs everything; returns the exit status. The cleanup is left on `stack`. Passes `Stopped` on."""
    console = display.make_console()
    try:
        local_run = LocalRun(options, console, stack, interruption)
        local_run.start()
        local_run.watch()
        holds = local_run.report()
        if options.serve:
            local_run.serve()
    except (LocalRunError, PlaceError) as error:
        print(f"run_local.sh: {error}", file=sys.stderr)
        return 1
    except (GoogleAPIError, RequestException) as error:
        print(f"run_local.sh: An emulator failed: {type(error).__name__}.", file=sys.stderr)
        return 1
    return 0 if holds else 1


class LocalRun:
    """One run, step by step: `start`, `watch`, `report` and perhaps `serve`."""

    def __init__(
        self, options: "LocalOptions", console: Console, stack: ExitStack, interruption: Interruption
    ) -> None:
        """Starts nothing yet."""
        self._options = options
        self._console = console
        self._stack = stack
        self._interruption = interruption
        self._first = self._published = Published()
        self._metrics = Metrics()
        self._settled_us: int | None = None
        self._official_pubsub = True

    def start(self) -> None:
        """Starts everything, the simulator last.

        Raises LocalRunError or PlaceError if something cannot be started, GoogleAPIError or RequestException
        if an emulator fails.
        """
        self._temporary = self._make_temporary()
        self._folder = self._make_folder()
        self._places = self._start_emulators()
        self._provision()
        self._start_job()
        self._start_api()
        self._start_simulator()

    def _make_temporary(self) -> Path:
        with self._interruption.deferred():
            folder = Path(tempfile.mkdtemp(prefix="rehab-local-"))
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _make_folder(self) -> Path:
        keep = self._options.keep
        if not keep:
            return self._temporary
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalRunError(f"--keep: {keep} cannot be made ({error.strerror}).") from None
        return keep

    def _start_emulators(self) -> Places:
        pubsub, bigquery = named_emulators()
        fresh = bool(pubsub or bigquery)
        if not pubsub:
            pubsub = self._start_pubsub()
        self._say("Pub/Sub", pubsub)
        if not bigquery:
            emulator = bigquery_emulator(self._folder, self._folder / "bigquery")
            bigquery = self._start_emulator("BigQuery", emulator, "bigquery-emulator.log")
        self._say("BigQuery", bigquery)
        return make_places(pubsub, bigquery, fresh=fresh)

    def _start_pubsub(self) -> str:
        start, missing = available_pubsub()
        self._official_pubsub = missing is None
        if missing:
            self._say("Pub/Sub", f"the project's own server takes the emulator's place. {missing}")
        log = "pubsub-server.log" if missing else "pubsub-emulator.log"
        return self._start_emulator("Pub/Sub", start(self._folder), log)

    def _start_emulator(self, name: str, emulator: AbstractContextManager[str], log: str) -> str:
        with self._step(f"Starting the {name} emulator"):
            try:
                # A signal while the process starts would leave it running.
                with self._interruption.deferred():
                    return self._stack.enter_context(emulator)
            except EmulatorError as error:
                raise LocalRunError(f"{error}{self._last_lines(log)}") from None

    def _provision(self) -> None:
        # For this process's clients.
        os.environ.update(self._places.environment)
        keep = self._folder / "nudges.jsonl" if self._options.keep else None
        resources = self._places.resources
        with self._step("Creating topics, subscriptions, tables and views"):
            provision(resources, report=_silent)
            self._nudges = NudgeReader(resources.nudge_topic, self._places.nudge_subscription, keep)
        self._say("provisioned", f"topics, subscriptions and dataset {resources.dataset}")

    def _start_job(self) -> None:
        resources = self._places.resources
        self._job = self._start_process(
            "pipeline.main",
            f"--primary_subscription={resources.primary_subscription}",
            f"--secondary_subscription={resources.secondary_subscription}",
            f"--nudge_topic={resources.nudge_topic}",
            f"--dataset={resources.dataset}",
            f"--metrics_file={self._folder / _METRICS}",
        )
        with self._step("Starting the streaming job"):
            self._wait_for("job", (self._folder / _METRICS).exists, self._check_job, "main.log")
        self._say("job", "streaming on the DirectRunner")

    def _start_api(self) -> None:
        self._api = make_api()
        settings = self._api.environment(
            self._places.resources, self._folder / _METRICS, self._folder / "queue"
        )
        self._api_process = self._start_process("ingest", environment=settings)
        with self._step("Starting the API"):
            self._wait_for("API", self._api.answers, self._check_api, "ingest.log")
        self._say("API", self._api.url)
        self._say("token", self._api.token)

    def _wait_for(self, name: str, is_up: Callable[[], bool], check: Callable[[], None], log: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not is_up():
            check()
            if time.monotonic() > deadline:
                raise LocalRunError(f"The {name} did not start in time.{self._last_lines(log)}")
            time.sleep(0.1)

    def _start_simulator(self) -> None:
        options, resources = self._options, self._places.resources
        self._simulator = self._start_process(
            "local.simulate",
            f"--primary_topic={resources.primary_topic}",
            f"--secondary_topic={resources.secondary_topic}",
            f"--rate={options.rate}",
            f"--seconds={options.seconds}",
            f"--patients={options.patients}",
            f"--seed={options.seed}",
            f"--report={self._folder / _REPORT}",
        )
        self._say("simulator", f"{options.patients:,} patients over the last 28 days, seed {options.seed}")

    def _start_process(
        self, module: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[bytes]:
        environment = {
            # Only this run sets the API's settings.
            **{name: value for name, value in os.environ.items() if not name.startswith("REHAB_")},
            **environment,
            "PYTHONPATH": str(_ROOT),
            "PYTHONUNBUFFERED": "1",
            # A killed process cannot remove its temporary files.
            "TMPDIR": str(self._temporary),
        }
        command = [sys.executable, "-m", module, *arguments]
        log = f"{module.rpartition('.')[2]}.log"
        with self._interruption.deferred():
            process = running(command, self._folder / log, environment)
            return self._stack.enter_context(process)

    def watch(self) -> None:
        """Shows the progress until everything published is written, or nothing changes any more.

        Raises LocalRunError if the job, the API or the simulator ends too early.
        """
        settling = Settling(_CALM_US)
        progress = dashboard.Progress(self._options.rate, self._options.seconds)
        started = moved = time.monotonic()
        # At a low rate, there are long pauses between uploads.
        due = started + self._options.seconds
        with self._display() as show:
            while not self._settled_us and time.monotonic() - moved < _STANDSTILL_SECONDS:
                if self._look() or time.monotonic() < due:
                    moved = time.monotonic()
                if not self._published.events:
                    started = time.monotonic()
                self._check_job()
                self._check_api()
                self._check_simulator()
                self._settled_us = settling.update(self._published, self._metrics)
                progress.update(self._published, self._metrics, self._nudges.received)
                show(progress, time.monotonic() - started)
                time.sleep(_LOOK_SECONDS)

    def _look(self) -> bool:
        """Reads the newest reports; returns whether anything has changed."""
        before = self._published.events, self._metrics.moving_parts
        self._published = read_published(self._folder / _REPORT)
        if not self._first.events:
            self._first = self._published
        self._metrics = read_metrics(self._folder / _METRICS)
        self._nudges.pull()
        return before != (self._published.events, self._metrics.moving_parts)

    @contextmanager
    def _display(self) -> Iterator[Callable[[dashboard.Progress, float], None]]:
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=4) as live:
                yield lambda progress, elapsed: live.update(progress.panel(elapsed))
            return
        due = _LINE_SECONDS

        def show(progress: dashboard.Progress, elapsed: float) -> None:
            nonlocal due
            if elapsed >= due or self._settled_us:
                self._console.print(progress.line(elapsed), soft_wrap=True)
                due = elapsed + _LINE_SECONDS

        yield show

    def report(self) -> bool:
        """Prints tables, figures and checks; returns whether all checks passed.

        Raises GoogleAPIError or RequestException if an emulator fails.
        """
        with self._step("Reading the tables"):
            dataset = self._places.resources.dataset
            client = clients.bigquery(PROJECT)
            outcome = read_outcome(client, dataset)
            self._await_nudges()
            api = self._await_api()
            if self._options.keep:
                dump_views(client, dataset, self._folder)
        tallies = self._nudges.tallies
        tables = (
            dashboard.adherence_table(outcome.adherence),
            dashboard.quality_table(outcome.quality),
            dashboard.work_queue_table(outcome.work_queue, outcome.open_items),
            dashboard.nudge_table(tallies),
            dashboard.dead_letter_table(outcome.dead_letters, self._metrics.dead_letters),
            display.account_table(account(self._published, self._metrics)),
            display.figure_table(self._figures()),
        )
        is_settled = self._settled_us is not None
        results = checks(self._published, self._metrics, is_settled, outcome, tallies, api)
        for table in (*tables, dashboard.check_table(results)):
            self._console.print("", table)
        if self._options.keep:
            self._console.print(f"\nEverything is kept in {self._folder}", soft_wrap=True)
        failed = sum(not check.holds for check in results)
        if failed:
            print(f"run_local.sh: {failed} of {len(results)} checks failed; they say why.", file=sys.stderr)
        return not failed

    def _await_nudges(self) -> None:
        generated = sum(self._metrics.nudges.values())
        deadline = time.monotonic() + _STANDSTILL_SECONDS
        while self._nudges.distinct < generated and time.monotonic() < deadline:
            self._nudges.pull()
            time.sleep(0.1)

    def _await_api(self) -> ApiReport:
        """The API's report, once it agrees with the job's metrics, which the API reads twice a second."""
        deadline = time.monotonic() + _API_SECONDS
        while True:
            report = api_report(self._api.status(), self._metrics)
            if report.is_fine or time.monotonic() > deadline:
                return report
            time.sleep(0.1)

    def _figures(self) -> dict[str, str]:
        published, metrics = self._published, self._metrics
        rate = published.rate_since(self._first)
        after = "never" if not self._settled_us else f"{(self._settled_us - published.last_us) / 1e6:.1f} s"
        p50, p95 = (dashboard.milliseconds(metrics.latency(share)) for share in (0.50, 0.95))
        writes = dashboard.milliseconds(metrics.writes.mean)
        return {
            "published": f"{published.events:,} events" + (f" at {rate:,.0f} events/s" if rate else ""),
            "published to written": f"p50 {p50}, p95 {p95}",
            "a write to BigQuery": f"{writes} on average of {metrics.writes.number:,}",
            "all of it in the views": f"{after} after the last publish",
        }

    def serve(self) -> None:
        """Stays up, saying what goes through, until it is stopped. Raises LocalRunError if a part dies."""
        self._console.print("\n[bold]The stream stays up; Ctrl-C ends it.[/] In another terminal:\n")
        for title, command in commands(self._places, self._api, official=self._official_pubsub).items():
            self._console.print(title, style="dim")
            # In one piece, so that it can be copied.
            self._console.print(command + "\n", markup=False, soft_wrap=True)
        while True:
            before, received = self._metrics, self._nudges.received
            time.sleep(_LOOK_SECONDS)
            self._check_job()
            self._check_api()
            self._look()
            if news := dashboard.change(before, self._metrics, self._nudges.received - received):
                self._console.print(f"[dim]{datetime.now().astimezone():%H:%M:%S}[/]  {news}")

    def _check_job(self) -> None:
        if self._job.poll() is not None:
            raise LocalRunError(f"The job has died; its last lines were:{self._last_lines('main.log')}")

    def _check_api(self) -> None:
        if self._api_process.poll() is not None:
            raise LocalRunError(f"The API has died; its last lines were:{self._last_lines('ingest.log')}")

    def _check_simulator(self) -> None:
        if self._simulator.poll():
            raise LocalRunError(f"The simulator has failed:{self._last_lines('simulate.log')}")

    def _last_lines(self, log: str) -> str:
        with suppress(OSError):
            lines = (self._folder / log).read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return "".join(f"\n    {line}" for line in lines)
        return ""

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        with self._console.status(what):
            yield

    def _say(self, what: str, detail: str) -> None:
        self._console.print(f"[dim]{what:<12}[/] {detail}", soft_wrap=True)


def _silent(_line: str) -> None:
    pass
