"""GET /api/v1/events/broadway/status."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response

from ingest.auth import READ_STATUS, Caller, requires
from ingest.openapi import AUTHORIZATION_ANSWERS, Answers, Problem
from ingest.settings import ApiSettings
from ingest.status.assessment import assess
from ingest.status.dataflow import DataflowJob
from ingest.status.local import LocalJob
from ingest.status.model import Status
from ingest.status.monitor import Monitor
from ingest.status.observer import NoJob, Observer
from transforms.times import MICROS

_ANSWERS: Answers = {
    200: {"model": Status, "description": "The pipeline is healthy, or degraded."},
    401: AUTHORIZATION_ANSWERS[401],
    403: AUTHORIZATION_ANSWERS[403],
    503: {"model": Status | Problem, "description": "The pipeline is down, or tokens cannot be checked."},
}


@asynccontextmanager
async def _observing(app: FastAPI) -> AsyncIterator[None]:
    monitor: Monitor = app.state.monitor
    monitor.start()
    yield
    monitor.stop()


router = APIRouter(tags=["status"], lifespan=_observing)


@router.get("/api/v1/events/broadway/status", summary="The pipeline's status", responses=_ANSWERS)
@router.get("/api/v1/broadway/status", summary="The pipeline's status", responses=_ANSWERS)
async def status(
    request: Request, response: Response, _caller: Annotated[Caller, Depends(requires(READ_STATUS))]
) -> Status:
    """healthy, degraded or down, and why. The HTTP status is 503 when it is down."""
    found = current(request.app)
    response.status_code = 503 if found.status == "down" else 200
    return found


def current(app: FastAPI) -> Status:
    """The current status."""
    monitor: Monitor = app.state.monitor
    return assess(monitor.seen, monitor.observer, int(time.time() * MICROS))


def install(app: FastAPI, settings: ApiSettings) -> None:
    """Adds the call to the application."""
    app.state.monitor = Monitor(_observer(settings))
    app.include_router(router)


def _observer(settings: ApiSettings) -> Observer:
    if settings.job_id and settings.project and settings.region:
        return DataflowJob(settings.project, settings.region, settings.job_id)
    return LocalJob(settings.metrics_file) if settings.metrics_file else NoJob()
