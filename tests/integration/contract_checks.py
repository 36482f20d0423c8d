"""A check for schemathesis, in place of its own that data which fits the schema is accepted."""

import re
from typing import Any

import schemathesis
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode

# Rules that JSON Schema cannot state: of the clock, and between two fields.
_BEYOND_THE_SCHEMA = re.compile(
    "Input should be from 2000-01-01 to 5 minutes from now"
    "|Input should be an RFC 3339 date and time"
    r"|Input should not be before body\.start(_time|ed_at)"
    "|granted or status is required"
    "|granted and status should not contradict each other"
)


@schemathesis.check
def valid_data_is_refused_only_by_rules_beyond_the_schema(
    _context: schemathesis.CheckContext, response: Response, case: schemathesis.Case[Any]
) -> None:
    if response.status_code != 422 or not case.meta or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    content: Any = response.json()
    unexplained = [
        error
        for error in content.get("validation_errors") or [content]
        if not _BEYOND_THE_SCHEMA.fullmatch(error["message"])
    ]
    assert not unexplained, unexplained
