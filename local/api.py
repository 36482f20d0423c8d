"""The HTTP API of a local run: its address, its settings and its answers."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import requests

from ingest.auth import development_token, new_secret
from pipeline.operations.provisioning import Resources

_HOST = "127.0.0.1"
_PORT = 4000
_SECONDS = 5.0


class Api(NamedTuple):
    """An API on this machine. The token is signed with the secret, and grants every right for half a day."""

    port: int
    secret: str
    token: str

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{_HOST}:{self.port}"

    def environment(self, resources: Resources, metrics_file: Path, queue: Path) -> dict[str, str]:
        """Its settings, as environment variables."""
        return {
            "REHAB_HOST": _HOST,
            "REHAB_PORT": str(self.port),
            "REHAB_PRIMARY_TOPIC": resources.primary_topic,
            "REHAB_SECONDARY_TOPIC": resources.secondary_topic,
            "REHAB_QUEUE_DIR": str(queue),
            "REHAB_METRICS_FILE": str(metrics_file),
            "REHAB_JWT_SECRET": self.secret,
        }

    def answers(self) -> bool:
        """Whether the API is up."""
        try:
            return requests.get(f"{self.url}/healthz", timeout=_SECONDS).ok
        except requests.RequestException:
            return False

    def status(self) -> Mapping[str, Any]:
        """Its report on the pipeline. Raises RequestException."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.get(f"{self.url}/api/v1/events/broadway/status", headers=headers, timeout=_SECONDS)
        content: Mapping[str, Any] = answer.json()
        return content


def make_api() -> Api:
    """An API to start: on port 4000, or on a free port if that is taken."""
    secret = new_secret()
    return Api(_free_port(), secret, development_token(secret))


def _free_port() -> int:
    for port in (_PORT, 0):
        with socket.socket() as probe:
            # As the server does: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("No port is free.")
