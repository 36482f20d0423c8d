"""How much the HTTP API takes while the whole pipeline runs on the same machine:

    .venv/bin/python -m benchmarks.load sustained
    .venv/bin/python -m benchmarks.load burst
    .venv/bin/python -m benchmarks.load capacity

Starts both emulators, the job and the API, or takes a run that stays up (`./run_local.sh --serve`):
`--url http://127.0.0.1:4000`, and its token in the variable TOKEN. The load is open: a request is due at
its time whether or not those before it are answered, and its latency counts from then.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

from benchmarks.phases import SCENARIOS
from pipeline.emulators import bigquery_emulator, pubsub_emulator
from pipeline.local.api import make_api
from pipeline.local.places import make_places
from pipeline.processes import running
from pipeline.provision import provision

ROOT = Path(__file__).resolve().parents[1]

_PATIENCE_SECONDS = 120.0
_LATENCY = "rehab_tracking.broadway.event_to_write_ms"
_EVENTS = ("processed", "duplicate", "withheld", "too_late", "dead_letter")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, help="for each phase, instead of the scenario's own")
    parser.add_argument("--url", help="an API that runs already; its token is in TOKEN")
    options = parser.parse_args()
    if options.url:
        return drive(options.scenario, options.seconds, options.url, os.environ["TOKEN"])
    with everything() as (url, token):
        # A process of its own: what locust does to sockets and threads, gRPC does not bear.
        command = [sys.executable, "-m", "benchmarks.load", *sys.argv[1:], f"--url={url}"]
        return subprocess.run(command, env=os.environ | {"TOKEN": token}, check=False).returncode


@contextmanager
def everything() -> Iterator[tuple[str, str]]:
    """Emulators, job and API; gives the API's URL and a token."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehab-load-")))
        pubsub = stack.enter_context(pubsub_emulator(folder))
        places = make_places(
            pubsub, stack.enter_context(bigquery_emulator(folder, folder / "bigquery")), fresh=False
        )
        os.environ.update(places.environment)
        resources = places.resources
        provision(resources, report=lambda line: None)
        metrics = folder / "metrics.json"
        job = [
            *(sys.executable, "-m", "pipeline.main"),
            f"--primary_subscription={resources.primary_subscription}",
            f"--secondary_subscription={resources.secondary_subscription}",
            f"--nudge_topic={resources.nudge_topic}",
            f"--dataset={resources.dataset}",
            f"--metrics_file={metrics}",
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        stack.enter_context(running(job, folder / "main.log", environment))
        api = make_api()
        settings = api.environment(resources, metrics, folder / "queue")
        command = [sys.executable, "-m", "ingest"]
        stack.enter_context(running(command, folder / "ingest.log", environment | settings))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (metrics.exists() and api.answers()):
            if time.monotonic() > deadline:
                sys.exit("The job or the API did not start.")
            time.sleep(0.1)
        yield api.url, api.token


def drive(scenario: str, seconds: float | None, url: str, token: str) -> int:
    """Sends the load and prints what came of it; 1 if an event is missing in the end."""
    from benchmarks.open_load import Load

    before = status(url, token)
    load = Load(url, token)
    accepted = 0
    print(f"{'events/s':16}{'accepted/s':>12}{'requests':>10}{'errors':>8}{'p50':>10}{'p95':>10}{'p99':>10}")
    for phase in SCENARIOS[scenario]:
        figures = load.run(phase._replace(seconds=seconds or phase.seconds))
        accepted += figures.accepted
        print(
            f"{phase.name:16}{figures.accepted / figures.seconds:12,.0f}{figures.requests:10,}"
            f"{figures.errors:8,}{figures.p50:7,.0f} ms{figures.p95:7,.0f} ms{figures.p99:7,.0f} ms",
            flush=True,
        )
        if scenario == "capacity" and not figures.holds(phase._replace(seconds=seconds or phase.seconds)):
            break
    return report(before, accepted, url, token)


def report(before: dict[str, Any], accepted: int, url: str, token: str) -> int:
    """Waits until the pipeline has written what was accepted, and prints what it says of it."""
    began = moved = time.monotonic()
    seen = events(now := status(url, token)) - events(before)
    while (seen < accepted or written(now) < projected(now)) and time.monotonic() - moved < _PATIENCE_SECONDS:
        time.sleep(0.5)
        now = status(url, token)
        if (more := events(now) - events(before)) != seen:
            seen, moved = more, time.monotonic()
    rows = written(now) - written(before)
    latency = now["metrics"]["distributions"][_LATENCY]["mean"]
    print(f"accepted by the API        {accepted:10,} events")
    print(f"came out of the pipeline   {seen:10,} events")
    print(f"written to BigQuery        {rows:10,} rows, published to written {latency:,.0f} ms on average")
    print(f"all of it written          {time.monotonic() - began:10.1f} s after the last request")
    print(f"the pipeline is {now['status']}", *now["reasons"])
    return 0 if seen == accepted else 1


def status(url: str, token: str) -> dict[str, Any]:
    answer = requests.get(
        f"{url}/api/v1/events/broadway/status", headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    content: dict[str, Any] = answer.json()
    return content


def events(told: dict[str, Any]) -> int:
    """Events that have come out of the pipeline somewhere."""
    prefixes = tuple(f"rehab_tracking.broadway.event.{outcome}" for outcome in _EVENTS)
    counters = told["metrics"]["counters"].items()
    return sum(count["total"] for name, count in counters if name.startswith(prefixes))


def projected(told: dict[str, Any]) -> int:
    counters = told["metrics"]["counters"].items()
    return sum(count["total"] for name, count in counters if ".row.projected." in name)


def written(told: dict[str, Any]) -> int:
    """Rows that BigQuery has acknowledged: each one's latency is observed then."""
    return int(told["metrics"]["distributions"][_LATENCY]["count"])


if __name__ == "__main__":
    sys.exit(main())
