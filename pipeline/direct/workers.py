"""The worker processes of a bounded run on this machine.

They replace Beam's own, which print a stack trace for every failure, and for which a stopped run may wait
forever. Tied to Beam's version, like `pipeline.direct.runner`.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.transforms.environments import Environment
from google.protobuf import json_format, text_format

from pipeline.options import RehabOptions

_URN = "rehab_tracking:env:process:v1"
_SHOWING = b"showing errors"


def worker_environment(options: RehabOptions) -> "Environment | None":
    """The environment for several worker processes; None for a run in this process."""
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return None
    # Otherwise Beam would use its own environment.
    direct.direct_running_mode = None
    return WorkerProcesses(_SHOWING if options.verbose else b"")


@Environment.register_urn(_URN, bytes)
class WorkerProcesses(Environment):
    """Workers as processes on this machine."""

    def __init__(
        self,
        payload: bytes,
        capabilities: Iterable[str] = (),
        artifacts: Iterable[Any] = (),
        resource_hints: Mapping[str, bytes] | None = None,
    ) -> None:
        """`payload` says whether workers print their errors; the other arguments are Beam's."""
        super().__init__(capabilities, artifacts, resource_hints)
        self._payload = payload

    def to_runner_api_parameter(self, _context: Any) -> tuple[str, bytes]:
        return _URN, self._payload

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes,
        capabilities: Iterable[str],
        artifacts: Iterable[Any],
        resource_hints: Mapping[str, bytes],
        _context: Any,
    ) -> "WorkerProcesses":
        return WorkerProcesses(payload, capabilities, artifacts, resource_hints)


@WorkerHandler.register_environment(_URN, bytes)
class _Process(GrpcWorkerHandler):
    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._errors = None if payload == _SHOWING else subprocess.DEVNULL

    def start_worker(self) -> None:
        places = {
            "CONTROL_API_SERVICE_DESCRIPTOR": self.control_api_service_descriptor(),
            "LOGGING_API_SERVICE_DESCRIPTOR": self.logging_api_service_descriptor(),
        }
        environment = {name: _text(place) for name, place in places.items()}
        environment["PIPELINE_OPTIONS"] = json_format.MessageToJson(
            self.provision_info.provision_info.pipeline_options
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"],
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, **environment, "WORKER_ID": self.worker_id},
            # The terminal's Ctrl-C then reaches only the main process, which stops the others in order.
            start_new_session=True,
        )

    def close(self) -> None:
        # Kill first: its bundles are done or no longer wanted, and closing the connections might wait for
        # them.
        self._process.kill()
        self._process.wait()
        super().close()

    def stop_worker(self) -> None:
        """Nothing to do: `close` has killed the process."""


def _text(place: endpoints_pb2.ApiServiceDescriptor) -> str:
    text: str = text_format.MessageToString(place)
    return text
