"""Context managers that run emulators on loopback: Google's for Pub/Sub or our own, and one for BigQuery."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import requests
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

from local.processes import running

_HOST = "127.0.0.1"
_START_SECONDS = 90.0

_JAVA = 17

# Where the Google Cloud CLI may be installed if `gcloud` is not on the PATH.
_CLI_FOLDERS = (
    "/usr/lib/google-cloud-sdk",
    "/usr/lib/google-cloud-cli",
    "/usr/share/google-cloud-sdk",
    "/usr/local/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "/snap/google-cloud-cli/current",
    "/opt/homebrew/share/google-cloud-sdk",
    "~/google-cloud-sdk",
)

# Without these imports, DuckDB would download its extensions at the first query.
_BIGQUERY_PROGRAM = """
import duckdb_extensions
from local_bigquery import cli

for name in ("icu", "ducklake", "spatial"):
    duckdb_extensions.import_extension(name)
cli.main()
"""


class EmulatorError(Exception):
    """An emulator is missing or does not start; the message is one sentence for the user."""


@contextmanager
def pubsub_emulator(log_dir: Path, port: int = 0) -> Iterator[str]:
    """Runs the official Pub/Sub emulator; yields `host:port` for PUBSUB_EMULATOR_HOST.

    Its output goes to `log_dir/pubsub-emulator.log`. Port 0 picks a free port. It keeps its data in memory
    only. Raises EmulatorError.
    """
    jar, java = _find_jar(), _find_java()
    port = port or _free_port()
    command = [java, "-jar", str(jar), f"--host={_HOST}", f"--port={port}"]
    with _answering("Pub/Sub", command, log_dir / "pubsub-emulator.log", lambda: _pubsub_answers(port)):
        yield f"{_HOST}:{port}"


@contextmanager
def pubsub_server(log_dir: Path, port: int = 0) -> Iterator[str]:
    """Runs the project's own Pub/Sub server, which needs no Java; otherwise as `pubsub_emulator`.

    Its output goes to `log_dir/pubsub-server.log`.
    """
    port = port or _free_port()
    command = [sys.executable, "-m", "local.pubsub", f"--port={port}"]
    with _answering("Pub/Sub", command, log_dir / "pubsub-server.log", lambda: _pubsub_answers(port)):
        yield f"{_HOST}:{port}"


def available_pubsub() -> tuple[Callable[[Path], AbstractContextManager[str]], str | None]:
    """The Pub/Sub emulator to run, and why it is not the official one (None if it is)."""
    try:
        _find_jar()
        _find_java()
    except EmulatorError as missing:
        return pubsub_server, str(missing)
    return pubsub_emulator, None


@contextmanager
def bigquery_emulator(log_dir: Path, data_dir: Path, port: int = 0) -> Iterator[str]:
    """Runs the BigQuery emulator; yields its URL for BIGQUERY_EMULATOR_HOST.

    It stores tables in `data_dir`; its output goes to `log_dir/bigquery-emulator.log`. Port 0 picks a free
    port. Raises EmulatorError.
    """
    if importlib.util.find_spec("local_bigquery") is None:
        raise EmulatorError(
            "The BigQuery emulator is missing: install it with `pip install -r requirements/local.txt`."
        )
    data_dir.mkdir(parents=True, exist_ok=True)
    port = port or _free_port()
    command = [sys.executable, "-c", _BIGQUERY_PROGRAM, f"--host={_HOST}", f"--port={port}"]
    command += ["--grpc-port=0", f"--data-dir={data_dir.resolve()}"]
    url = f"http://{_HOST}:{port}"
    with _answering("BigQuery", command, log_dir / "bigquery-emulator.log", lambda: _bigquery_answers(url)):
        yield url


@contextmanager
def _answering(name: str, command: list[str], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with running(command, log, os.environ) as process:
        deadline = time.monotonic() + _START_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EmulatorError(f"The {name} emulator did not start; its output is in {log}.")
            time.sleep(0.05)
        yield


def _pubsub_answers(port: int) -> bool:
    with grpc.insecure_channel(f"{_HOST}:{port}") as channel:
        client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        try:
            list(client.list_topics(project="projects/emulator-check", retry=None, timeout=2.0))
        except GoogleAPICallError:
            return False
        return True


def _bigquery_answers(url: str) -> bool:
    try:
        answer = requests.get(f"{url}/bigquery/v2/projects/emulator-check/datasets", timeout=10.0)
    except requests.RequestException:
        return False
    return answer.ok


def _cli_folders() -> list[Path]:
    # Google's own variable for the CLI's folder; it overrides all others.
    if stated := os.environ.get("CLOUDSDK_ROOT_DIR"):
        return [Path(stated)]
    gcloud = shutil.which("gcloud")
    installed = [Path(gcloud).resolve().parents[1]] if gcloud else []
    return installed + [Path(name).expanduser() for name in _CLI_FOLDERS]


def _find_jar() -> Path:
    for folder in _cli_folders():
        jars = sorted(folder.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"))
        if jars:
            return jars[-1]
    raise EmulatorError(
        "The official Pub/Sub emulator is missing: install it with `sudo apt-get install"
        " google-cloud-cli-pubsub-emulator` (from Google's apt repository) or"
        " `gcloud components install pubsub-emulator`."
    )


def _find_java() -> str:
    java = shutil.which("java")
    if java is None or _java_version(java) < _JAVA:
        raise EmulatorError(
            f"The Pub/Sub emulator needs Java {_JAVA} or newer: install it with"
            " `sudo apt-get install openjdk-17-jre-headless`."
        )
    return java


def _java_version(java: str) -> int:
    """0 if it is not a real Java: a Mac has a stub that only says where to get one."""
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', told.stderr + told.stdout)
    return int(found[1]) if found else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
