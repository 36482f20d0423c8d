"""The application, assembled from everything that answers a request."""

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
    """The API with these settings.

    Raises SettingsError for an unusable key, SpoolError if the queue cannot be opened, GoogleAuthError
    without Google Cloud credentials.
    """
    app = FastAPI(
        title="Rehabilitation tracking",
        summary="Accepts patients' events and reports the pipeline's status.",
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
    # The middleware added last runs first, so every failure is answered, counted and gets the headers.
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
