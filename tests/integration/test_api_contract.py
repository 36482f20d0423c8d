"""The OpenAPI document, and the API held to it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration import contract_checks
from tests.integration.api import Api, bearer, eventually, token
from tests.integration.streaming import Job

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_nothing_is_found_against_the_document(
    serve: Callable[..., Api], start: Callable[..., Job], tmp_path: Path
) -> None:
    # With a job, because a pipeline that is down answers 503.
    api = serve(REHAB_METRICS_FILE=str(start().metrics_path))
    everything = token(scope="events:write status:read")

    def job_is_up() -> None:
        status = api.client.get("/api/v1/broadway/status", headers=bearer(everything))
        assert status.status_code == 200, status.text

    eventually(job_is_up)
    found = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {everything}", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "30"),
            *("--seed", "1", "--generation-deterministic", "--continue-on-failure"),
            *("--exclude-checks", "positive_data_acceptance"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "SCHEMATHESIS_HOOKS": contract_checks.__name__},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"Tested: [1-9]", found.stdout)


WRITE = {"201", "202", "400", "401", "403", "413", "415", "422", "429", "503"}


def test_the_document_describes_every_status_of_every_call(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    assert set(paths["/api/v1/events"]["post"]["responses"]) == WRITE
    assert set(paths["/api/v1/events/batch"]["post"]["responses"]) == WRITE | {"207"}
    assert set(paths["/healthz"]["get"]["responses"]) == {"200"}
    assert set(paths["/readyz"]["get"]["responses"]) == {"200", "503"}
    for path, calls in paths.items():
        for call in calls.values():
            assert ("security" in call) == path.startswith("/api/")


def test_the_document_describes_every_kind(api: Api) -> None:
    schemas = api.client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Event"]["discriminator"]["mapping"]) == {
        "exercise_session",
        "rep_observation",
        "feedback",
        "alert",
        "consent",
    }
