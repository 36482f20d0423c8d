"""The API as a process, and what its callers have: for tests over HTTP."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import jwt

from tests.integration.streaming import WAIT_SECONDS

KEY = "nobody-else-knows-this-long-secret"
WRITE = "events:write"


def token(
    key: Any = KEY, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """A token that is valid for writing, but for what is given; a null claim is left out."""
    stated = {"exp": int(time.time()) + 600, "scope": WRITE} | claims
    kept = {name: value for name, value in stated.items() if value is not None}
    return jwt.encode(kept, key, algorithm, headers=headers)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def eventually(check: Callable[[], None]) -> None:
    """Tries until the check no longer fails."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class Api:
    """`python -m ingest` over two topics; ends with `stop` or `kill`."""

    def __init__(self, topics: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Starts it and waits until it listens; `environment` goes on top of settings that work."""
        folder.mkdir(exist_ok=True)
        self.log = folder / "api.log"
        settings = {
            "REHAB_PORT": "0",
            "REHAB_PRIMARY_TOPIC": topics[0],
            "REHAB_SECONDARY_TOPIC": topics[1],
            "REHAB_QUEUE_DIR": str(folder / "queue"),
            "REHAB_JWT_SECRET": KEY,
            "REHAB_PUBLISH_TIMEOUT_SECONDS": "1",
            "REHAB_PROBE_AFTER_SECONDS": "0.5",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ingest"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **settings, **environment},
            )
        self.url = self._listening()
        self.client = httpx.Client(base_url=self.url, headers=bearer(token()), timeout=WAIT_SECONDS)

    def _listening(self) -> str:
        deadline = time.monotonic() + WAIT_SECONDS
        pattern = rf"\[{self.process.pid}\][\s\S]*?running on (http://\S+)"
        while not (found := re.search(pattern, self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found[1]

    def post(self, content: Any, path: str = "/api/v1/events", **headers: str) -> httpx.Response:
        return self.client.post(path, json=content, headers=headers)

    def batch(self, events: Any, **headers: str) -> httpx.Response:
        return self.post({"events": events}, "/api/v1/events/batch", **headers)

    def ready(self) -> dict[str, str]:
        content: dict[str, str] = self.client.get("/readyz").json()
        return content

    def send(self, signum: signal.Signals) -> int:
        self.process.send_signal(signum)
        return self.process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.client.close()
