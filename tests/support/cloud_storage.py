"""A server with Cloud Storage's API, on this machine and in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gcp_storage_emulator.server import create_server
from google.cloud.storage import Client

BUCKET = "rehab-files"


@contextmanager
def cloud_storage_server() -> Iterator[Client]:
    """Runs the server, names it in the environment, makes one empty bucket, and yields a client."""
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
            client = Client.create_anonymous_client()
            client.project = "rehab-local"
            client.create_bucket(BUCKET)
            yield client
    finally:
        server.stop()
