"""The application: everything that answers a request, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from secure import (
    CacheControl,
    ContentSecurityPolicy,
    CrossOriginOpenerPolicy,
    CrossOriginResourcePolicy,
    ReferrerPolicy,
    Secure,
    StrictTransportSecurity,
    XContentTypeOptions,
    XFrameOptions,
)
from secure.middleware import SecureASGIMiddleware

from ingest import docs, events, health, metrics, openapi, refusals
from ingest.api_metrics import CountRequests
from ingest.auth import Verifier
from ingest.outbox import Outbox
from ingest.publishing import Publisher
from ingest.settings import ApiSettings
from ingest.spool import Spool
from ingest.status import router as status

_MB = 1024 * 1024


def create_app(settings: ApiSettings) -> FastAPI:
    """The API of checked settings.

    Raises SettingsError for a key that cannot be used, SpoolError for a queue that cannot be opened,
    GoogleAuthError without credentials for the cloud.
    """
    app = FastAPI(
        title="Rehabilitation tracking",
        summary="Events of patients in, how the pipeline is out.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.verifier = Verifier(settings)
    spool = Spool(settings.queue_dir, settings.queue_max_mb * _MB) if settings.queue_dir else None
    app.state.outbox = Outbox(Publisher(settings), spool)
    app.include_router(events.router)
    app.include_router(health.router)
    status.install(app, settings)
    metrics.install(app)
    openapi.install(app)
    refusals.install(app)
    scripts = docs.install(app)
    # The last one added comes first: what fails anywhere is answered, counted, and has the headers.
    app.add_middleware(refusals.LastResort)
    app.add_middleware(CountRequests)
    app.add_middleware(SecureASGIMiddleware, secure=_security_headers(scripts))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    outbox: Outbox = app.state.outbox
    outbox.start()
    yield
    await outbox.stop()


def _security_headers(scripts: list[str]) -> Secure:
    policy = (
        ContentSecurityPolicy()
        .default_src("'none'")
        .script_src(*scripts)
        .style_src("'self'", "'unsafe-inline'")
        .img_src("'self'", "data:")
        .connect_src("'self'")
        .base_uri("'none'")
        .form_action("'none'")
        .frame_ancestors("'none'")
    )
    return Secure(
        cache=CacheControl().no_store(),
        coop=CrossOriginOpenerPolicy().same_origin(),
        corp=CrossOriginResourcePolicy().same_origin(),
        csp=policy,
        hsts=StrictTransportSecurity().max_age(31_536_000),
        referrer=ReferrerPolicy().no_referrer(),
        xcto=XContentTypeOptions().nosniff(),
        xfo=XFrameOptions().deny(),
    )
