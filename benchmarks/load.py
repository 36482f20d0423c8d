"""How much load the HTTP API takes while the whole pipeline runs on the same machine:

    .venv/bin/python -m benchmarks.load sustained
    .venv/bin/python -m benchmarks.load burst
    .venv/bin/python -m benchmarks.load capacity

Starts both emulators, the job and the API, or uses a run that stays up (`./run_local.sh --serve`):
`--url http://127.0.0.1:4000`, with its token in the variable TOKEN. The load is open: each request is due at
a fixed time, whether or not earlier ones have been answered, and its latency counts from that time.
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

from benchmarks.phases import SCENARIOS
from local.api import make_api
from local.emulators import EmulatorError, bigquery_emulator, pubsub_emulator
from local.places import make_places
from local.processes import running
from pipeline.operations.provisioning import provision

ROOT = Path(__file__).resolve().parents[1]

_PATIENCE_SECONDS = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, help="for each phase, instead of the scenario's own")
    parser.add_argument("--url", help="an API that runs already; its token is in TOKEN")
    options = parser.parse_args()
    if options.url:
        if not (token := os.environ.get("TOKEN")):
            parser.error("--url needs the API's token in the variable TOKEN")
        return drive(options, options.url, token)
    try:
        with everything() as (url, token):
            return drive(options, url, token)
    except EmulatorError as error:
        sys.exit(f"benchmarks.load: {error}")


def drive(options: argparse.Namespace, url: str, token: str) -> int:
    # In its own process, because locust patches sockets and threads, which breaks gRPC.
    command = [sys.executable, "-m", "benchmarks.drive", options.scenario, url]
    if options.seconds:
        command.append(str(options.seconds))
    return subprocess.run(command, env=os.environ | {"TOKEN": token}, check=False).returncode


@contextmanager
def everything() -> Iterator[tuple[str, str]]:
    """Starts emulators, job and API. Yields the API's URL and a token."""
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


if __name__ == "__main__":
    sys.exit(main())
