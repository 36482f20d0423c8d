"""Every refusal has one shape: `{error, message}`, and `validation_errors` where fields are at fault."""

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transforms.events import FieldError

_LOGGER = logging.getLogger(__name__)


class RefusedError(Exception):
    """A refused request.

    `error` is a fixed word for programs, `message` one sentence for people; neither quotes the request.
    `more` are further fields of the answer.
    """

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": error, "message": message, **more}
        self.headers = headers

    def response(self) -> Response:
        """The refusal as an HTTP response."""
        return json_response(self.status, self.content, self.headers)


def json_response(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(content), status, headers=dict(headers or {}), media_type="application/json")


def field_errors(errors: list[FieldError], prefix: str = "") -> list[dict[str, str]]:
    """The errors as the API shows them; `prefix` goes before each path."""
    return [{"field": prefix + error.field, "message": error.message} for error in errors]


def install(app: FastAPI) -> None:
    """Gives the refusals of FastAPI and Starlette the same shape."""

    @app.exception_handler(RefusedError)
    async def refused(_request: Request, error: RefusedError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        name = status.phrase.lower().replace(" ", "_")
        return json_response(status, {"error": name, "message": f"{status.description}."}, error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_parameters(_request: Request, error: RequestValidationError) -> Response:
        errors = [FieldError(str(detail["loc"][-1]), detail["msg"]) for detail in error.errors()]
        sentence = "; ".join(f"{field}: {message}" for field, message in errors) + "."
        return RefusedError(400, "bad_request", sentence, validation_errors=field_errors(errors)).response()


class LastResort:
    """ASGI middleware: answers a defect with 500 and logs it without the request's content."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            # Nobody is left to answer.
            return
        except Exception as error:
            # An exception's text may quote a value, so only its type and the stack are logged.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _LOGGER.error("%s\n%s", type(error).__name__, frames)
            if not started:
                response = RefusedError(500, "internal_error", "The server has failed; try again.").response()
                await response(scope, receive, send)
