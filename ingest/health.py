"""For load balancers and supervisors: whether the process is alive and whether it accepts events."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from ingest import openapi
from ingest.outbox import Outbox
from ingest.refusals import RefusedError, json_response

router = APIRouter(tags=["health"])


@router.get("/healthz", responses=openapi.HEALTH_ANSWERS)
async def live() -> Response:
    """The process answers."""
    return json_response(200, {"status": "alive"})


@router.get("/readyz", responses=openapi.READINESS_ANSWERS)
async def ready(request: Request) -> Response:
    """Events are accepted: by a topic, or at least by the queue."""
    outbox: Outbox = request.app.state.outbox
    state = outbox.readiness()
    if not outbox.is_ready():
        queue = "there is no queue" if state["queue"] == "none" else "the queue is full"
        raise RefusedError(503, "not_ready", f"Neither topic takes events, and {queue}.")
    return json_response(200, {"status": "ready", **state})
