"""The OpenAPI document: what FastAPI cannot infer, because the calls read request bodies themselves."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from transforms.events import EventModel
from transforms.message import MAX_ARRAY_LENGTH

_REF = "#/components/schemas/{model}"


class FieldProblem(BaseModel):
    """A field and the rule it breaks; never its value."""

    field: str
    message: str


class Problem(BaseModel):
    """Why a request is refused: `error` for programs, `message` for people."""

    error: str
    message: str
    validation_errors: list[FieldProblem] = []


class EventConfirmed(BaseModel):
    """Pub/Sub has the event; `timestamp` is the event's time."""

    event_id: str
    message_id: str
    timestamp: str


class EventQueued(BaseModel):
    """The event is safe on disk and will be published once Pub/Sub accepts it."""

    event_id: str
    queued: Literal[True]
    timestamp: str


class Result(BaseModel):
    """The outcome of the event at `index`, as if it had been sent alone."""

    index: int
    status: Literal[201, 202, 400, 403, 413, 422, 429, 503]
    event_id: str | None = None
    message_id: str | None = None
    timestamp: str | None = None
    queued: bool | None = None
    validation_errors: list[FieldProblem] = []


class BatchResults(BaseModel):
    """The outcome of each event."""

    results: list[Result]


class BatchProblem(Problem):
    """No event is accepted. Without `results`, the batch itself is at fault."""

    results: list[Result] = []


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["alive"]


_Circuit = Literal["closed", "open", "half-open"]


class Readiness(BaseModel):
    """Events are accepted. A topic's circuit is closed while the topic works."""

    status: Literal["ready"]
    primary: _Circuit
    secondary: _Circuit
    queue: Literal["empty", "waiting", "full", "none"]


_RETRY_AFTER = {
    "headers": {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
}
_CHALLENGE = {
    "headers": {"WWW-Authenticate": {"description": "What is missing.", "schema": {"type": "string"}}}
}


def _answer(model: type[BaseModel], description: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "description": description, **more}


Answers = dict[int | str, dict[str, Any]]

# For every call under /api.
AUTHORIZATION_ANSWERS: Answers = {
    401: _answer(Problem, "No valid token.", **_CHALLENGE),
    403: _answer(Problem, "The token does not have the scope."),
    503: _answer(Problem, "The keys that tokens are checked with cannot be reached."),
}


def _write_answers(problem: type[Problem]) -> Answers:
    return {
        400: _answer(problem, "The body is not JSON in UTF-8, or the Idempotency-Key is invalid."),
        401: AUTHORIZATION_ANSWERS[401],
        403: _answer(problem, "The token does not have the scope, or may not write for the site."),
        413: _answer(problem, "The body has more than 4 MiB, or an event more than 1 MiB."),
        415: _answer(Problem, "The body is not application/json."),
        422: _answer(problem, "No valid event."),
        429: _answer(problem, "Pub/Sub does not accept events, and the queue is full.", **_RETRY_AFTER),
        503: _answer(
            problem,
            "Pub/Sub does not accept events, and the queue on disk fails or there is none.",
            **_RETRY_AFTER,
        ),
    }


EVENT_ANSWERS: Answers = {
    201: _answer(EventConfirmed, "Pub/Sub has confirmed the event."),
    202: _answer(EventQueued, "The event is on disk and will be published."),
    **_write_answers(Problem),
}
BATCH_ANSWERS: Answers = {
    201: _answer(BatchResults, "Pub/Sub has confirmed every event."),
    202: _answer(BatchResults, "Every event is accepted. Some are on disk and will be published."),
    207: _answer(BatchResults, "Some events are accepted."),
    **_write_answers(BatchProblem),
}
HEALTH_ANSWERS: Answers = {200: _answer(Liveness, "The process answers.")}
READINESS_ANSWERS: Answers = {
    200: _answer(Readiness, "Events are accepted."),
    503: _answer(Problem, "Events are not accepted."),
}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_EVENT = {"$ref": _REF.format(model="Event")}
EVENT_BODY = _body(_EVENT)
BATCH_BODY = _body(
    {
        "type": "object",
        "required": ["events"],
        "properties": {
            "events": {"type": "array", "minItems": 1, "maxItems": MAX_ARRAY_LENGTH, "items": _EVENT}
        },
    }
)


def install(app: FastAPI) -> None:
    """Adds the schema of an event to the document."""

    def document() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            event = TypeAdapter(EventModel).json_schema(ref_template=_REF)
            app.openapi_schema["components"]["schemas"] |= event.pop("$defs") | {"Event": event}
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
