"""The OpenAPI document, and the API held to it."""

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.integration.api import Api, bearer, token

# Rules that JSON Schema cannot state: of the clock, and between two fields.
_BEYOND_THE_SCHEMA = re.compile(
    "Input should be from 2000-01-01 to 5 minutes from now"
    "|Input should be an RFC 3339 date and time"
    "|end_time should not be before start_time"
    "|granted or status is required"
    "|granted and status should not contradict each other"
)


@pytest.fixture(scope="session")
def document(api: Api) -> Any:
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
def test_nothing_is_found_against_the_document(case: Any) -> None:
    answer = case.call(headers=bearer(token()))
    case.validate_response(answer, headers=bearer(token()), excluded_checks=[positive_data_acceptance])
    if case.meta.generation.mode == GenerationMode.POSITIVE and answer.status_code == 422:
        assert not unexplained(answer)


def unexplained(answer: Response) -> list[str]:
    """Why valid data was refused, but for the rules that the document cannot state."""
    errors = answer.json().get("validation_errors") or [answer.json()]
    return [error["message"] for error in errors if not _BEYOND_THE_SCHEMA.fullmatch(error["message"])]


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
    assert "quality_score" in schemas["RepBody"]["properties"]
